"""Layers come back from plain values as they were, and what is no plain layer is not described."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ftkit._deltas.layers import build, descriptions
from ftkit.errors import CheckpointError

LAYERS = st.one_of(
    st.builds(nn.Linear, st.integers(1, 5), st.integers(1, 5), bias=st.booleans()),
    st.builds(nn.Conv1d, st.just(4), st.sampled_from([2, 4]), st.integers(1, 3), groups=st.sampled_from([1, 2])),
    st.builds(
        nn.Conv2d, st.just(2), st.just(4), st.just(3), padding=st.sampled_from([0, 1, "same"]), bias=st.booleans()
    ),
    st.builds(nn.Conv3d, st.just(2), st.just(2), st.just(1), padding_mode=st.sampled_from(["zeros", "circular"])),
    st.builds(nn.BatchNorm1d, st.integers(1, 5), momentum=st.sampled_from([0.1, None]), affine=st.booleans()),
    st.builds(nn.BatchNorm2d, st.integers(1, 5), eps=st.sampled_from([1e-5, 1e-3]), track_running_stats=st.booleans()),
    st.builds(nn.LayerNorm, st.sampled_from([(3,), (2, 4)]), bias=st.booleans(), elementwise_affine=st.booleans()),
    st.builds(nn.Dropout, st.sampled_from([0.1, 0.5])),
    st.builds(nn.AdaptiveAvgPool2d, st.sampled_from([1, (2, 3)])),
    st.builds(nn.GELU, st.sampled_from(["none", "tanh"])),
    st.sampled_from([nn.ReLU(inplace=True), nn.SiLU(), nn.Hardswish(), nn.Tanh(), nn.Sigmoid(), nn.Identity()]),
)


def model_with(head: nn.Module) -> nn.Module:
    """A model whose head alone has changed."""
    return nn.ModuleDict({"body": nn.Linear(2, 2), "head": head})


def described(head: nn.Module) -> object:
    """What a file says of a head, if anything."""
    model = model_with(head)
    names = list(model.state_dict())
    return descriptions(model, [name for name in names if name.startswith("head.")], names).get("head")


@given(st.lists(LAYERS, min_size=1, max_size=3))
def test_plain_layers_come_back(layers: list[nn.Module]) -> None:
    """Whatever its layers are and take, a head is built again with the same arguments and tensors."""
    head = nn.Sequential(nn.Linear(2, 2), *layers)
    description = described(head)
    assert isinstance(description, list)
    again = build(description)
    assert repr(again) == repr(head)
    shapes, expected = ({name: value.shape for name, value in one.state_dict().items()} for one in (again, head))
    assert shapes == expected


def test_a_layer_that_stands_there_twice_comes_back_twice() -> None:
    """One activation after each layer is one object as a rule."""
    act = nn.ReLU()
    description = described(nn.Sequential(nn.Linear(2, 2), act, nn.Linear(2, 2), act))
    assert isinstance(description, list)
    again = build(description)
    assert isinstance(again, nn.Sequential)
    assert [type(part) for part in again] == [nn.Linear, nn.ReLU] * 2


def test_descriptions_are_plain_values() -> None:
    """They can be written as JSON."""
    head = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    assert json.loads(json.dumps(described(head)))[0] == "Sequential"


class Odd(nn.Linear):
    """A layer of somebody's own."""


@pytest.mark.parametrize(
    "head",
    [
        Odd(2, 2),
        nn.Sequential(nn.Linear(2, 2), Odd(2, 2)),
        nn.Bilinear(2, 2, 2),
        nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
    ],
)
def test_other_layers_are_not_described(head: nn.Module) -> None:
    """A class of somebody's own, a rare layer or a parametrized one can't be built from plain values."""
    assert described(head) is None


def test_only_what_changed_whole_is_described() -> None:
    """A part of which something stayed is looked into; the largest part that changed whole is taken."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)))
    names = list(model.state_dict())
    assert list(descriptions(model, names[2:], names)) == ["1"]
    assert list(descriptions(model, names[1:4], names)) == ["1.0"]
    assert not descriptions(model, [], names)


def test_an_unknown_layer_is_an_error() -> None:
    """A file of a newer version says so."""
    with pytest.raises(CheckpointError, match="'Hologram'"):
        build(["Sequential", {"0": ["Hologram", {}]}])


def test_no_values_are_described() -> None:
    """A description says what a layer is, not what it holds."""
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(12345.0)
    assert "12345" not in repr(described(layer))
