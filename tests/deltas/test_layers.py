"""Layers come back from plain values as they were, and what is no plain layer is not described."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ftkit._deltas.layers import build, descriptions
from ftkit._tensors.pytree import pack, unpack
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
        nn.MultiheadAttention(2, 1),
        nn.LSTM(2, 2),
        nn.TransformerDecoderLayer(2, 1),
        nn.LazyLinear(2),
        nn.Sequential(nn.Linear(2, 2), nn.PairwiseDistance(3.0)),  # which keeps its p under another name
        nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
    ],
)
def test_other_layers_are_not_described(head: nn.Module) -> None:
    """Nor what is made of other modules, has no shape yet, or does not keep what it was made from."""
    assert described(head) is None


def test_only_what_changed_whole_is_described() -> None:
    """A part of which something stayed is looked into; the largest part that changed whole is taken."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)))
    names = list(model.state_dict())
    assert list(descriptions(model, names[2:], names)) == ["1"]
    assert list(descriptions(model, names[1:4], names)) == ["1.0"]
    assert not descriptions(model, [], names)


SIMPLE: list[nn.Module] = [
    nn.LeakyReLU(0.3), nn.ELU(0.5, inplace=True), nn.PReLU(), nn.PReLU(8, init=0.1), nn.Softmax(-1), nn.LogSoftmax(1),
    nn.RMSNorm(8), nn.RMSNorm((2, 4), eps=1e-3, elementwise_affine=False), nn.GroupNorm(2, 8, affine=False),
    nn.Softplus(2.0, 10.0), nn.Hardtanh(-2, 3.0), nn.Threshold(0.1, -float("inf")), nn.AlphaDropout(0.3),
    nn.InstanceNorm1d(8, affine=True), nn.Unflatten(1, (2, 4)), nn.SyncBatchNorm(8), nn.Embedding(5, 8),
    nn.MaxPool2d(2, stride=1), nn.Upsample(scale_factor=2.0), nn.ZeroPad2d(1), nn.ConvTranspose2d(4, 4, 2, bias=False),
    nn.BatchNorm1d(4, affine=False), nn.Bilinear(2, 3, 4), nn.Softsign(), nn.LocalResponseNorm(2), nn.RReLU(0.1, 0.2),
]  # fmt: skip


@pytest.mark.parametrize("layer", SIMPLE, ids=lambda layer: type(layer).__name__)
def test_every_simple_layer_of_torch_comes_back(layer: nn.Module) -> None:
    """By what torch declares of it, not by a list of ours; a bias is named only where there could be one and is not."""
    model = model_with(nn.Sequential(nn.Linear(2, 2), layer))
    names = list(model.state_dict())
    before = torch.get_rng_state()
    description = descriptions(model, [name for name in names if name.startswith("head.")], names)["head"]
    assert torch.equal(torch.get_rng_state(), before)
    again = build(unpack({}, pack(description)[1]))[1]
    assert repr(again) == repr(layer)
    assert public(again) == public(layer)
    assert [value.shape for value in again.state_dict().values()] == [v.shape for v in layer.state_dict().values()]
    assert "'bias': True" not in repr(description)
    assert ("'bias': False" in repr(description)) == isinstance(layer, nn.ConvTranspose2d)
    assert "inplace" not in repr(description) or "inplace=True" in repr(layer)  # by default it needs no word


def public(module: nn.Module) -> dict[str, object]:
    """The attributes of a layer that are plain values."""
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


@pytest.mark.parametrize("kind", ["Hologram", "Module", "DataParallel", "LSTM", "Transformer", "Parameter", "init"])
def test_an_unknown_layer_is_an_error(kind: str) -> None:
    """A file of a newer version says so, and none can ask for anything in torch.nn but a plain layer."""
    with pytest.raises(CheckpointError, match=repr(kind)):
        build(["Sequential", {"0": [kind, {}]}])


@pytest.mark.parametrize("value", [[[1]], {"a": 1}, list(range(1000)), b"x"])
def test_only_plain_values_are_taken(value: object) -> None:
    """A file decides nothing but numbers and the like."""
    with pytest.raises(TypeError, match="Linear takes no 'in_features'"):
        build(["Linear", {"in_features": value, "out_features": 1}])
    with pytest.raises(TypeError, match="Linear takes no 'device'"):
        build(["Linear", {"in_features": 1, "out_features": 1, "device": "cpu"}])


def test_no_values_are_described() -> None:
    """A description says what a layer is, not what it holds."""
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(12345.0)
    assert "12345" not in repr(described(layer))
