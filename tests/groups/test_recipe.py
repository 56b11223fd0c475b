"""Parameter groups: every parameter once, with the rate and the decay that are its own."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from ftkit._groups import param_groups
from ftkit.errors import FtkitError, SelectionError
from tests.groups.models import stack


def test_every_trainable_parameter_is_in_exactly_one_group() -> None:
    """Frozen ones are left out, tied ones come once, and torch accepts names and all."""
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "body": nn.Linear(3, 3), "out": nn.Linear(3, 5)})
    model["out"].weight = model["embed"].weight
    model["body"].bias.requires_grad_(False)
    groups = param_groups(model, 0.1, weight_decay=0.1, layer_decay=0.5)
    names = [name for group in groups for name in group["param_names"]]
    assert sorted(names) == ["body.weight", "embed.weight", "out.bias"]
    optimizer = torch.optim.AdamW(groups)
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == groups[0]["param_names"]
    assert "frozen" not in names


def test_biases_and_norms_do_not_decay() -> None:
    """By kind, not by shape alone: a LayerNorm over an image and a bias of four dimensions are spared too."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.LayerNorm((4, 2, 2)), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 2)
    )
    model[0].bias = nn.Parameter(torch.zeros(1, 4, 1, 1))
    groups = param_groups(model, 0.1, weight_decay=0.1)
    decaying = [name for group in groups if group["weight_decay"] for name in group["param_names"]]
    assert decaying == ["0.weight", "4.weight"]


def test_rates_by_selector_outrank_the_rest() -> None:
    """Absolute values, the last match counts, any selector will do."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    groups = param_groups(model, 0.1, layer_decay=0.5, rates={nn.Linear: 0.3, "*.bias": 0.2, model[2]: 0.4})
    rates = {name: group["lr"] for group in groups for name in group["param_names"]}
    assert rates == {
        **dict.fromkeys(("0.weight", "1.weight"), 0.3),
        **dict.fromkeys(("0.bias", "1.bias"), 0.2),
        **dict.fromkeys(("2.weight", "2.bias"), 0.4),
    }
    with pytest.raises(SelectionError, match="Did you mean"):
        param_groups(model, 0.1, rates={"0.wieght": 1.0})
    with pytest.raises(SelectionError, match="no parameters"):
        param_groups(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), 0.1, rates={nn.ReLU: 1.0})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1.0}, "lr must be a number of at least 0, not -1.0"),
        ({"lr": 1.0, "layer_decay": 1.5}, "layer_decay must be a number of more than 0 and at most 1"),
        ({"lr": 1.0, "weight_decay": float("nan")}, "weight_decay must be a number of at least 0, not nan"),
        ({"lr": 1.0, "rates": {"weight": -2.0}}, "the rate of 'weight' must be a number of at least 0"),
    ],
)
def test_numbers_out_of_range_are_errors(arguments: dict[str, object], message: str) -> None:
    """The message says what was expected and what came."""
    with pytest.raises(FtkitError, match=message):
        param_groups(nn.Linear(2, 2), **arguments)


def test_a_frozen_model_is_an_error() -> None:
    """An optimizer of nothing is never what was meant."""
    with pytest.raises(FtkitError, match="unfreeze"):
        param_groups(nn.Linear(2, 2).requires_grad_(False), 0.1)


@given(
    st.lists(st.sampled_from(["linear", "norm", "block", "stage"]), min_size=1, max_size=6),
    st.integers(0, 2**16),
    st.sampled_from([None, 0.5, 1.0]),
)
@settings(max_examples=100, deadline=None)
def test_groups_of_any_tree_hold_each_trainable_parameter_once(
    kinds: list[str], mask: int, decay: float | None
) -> None:
    """Names and parameters agree, and rates rise from group to group."""
    make: dict[str, Callable[[], nn.Module]] = {
        "linear": lambda: nn.Linear(2, 2),
        "norm": lambda: nn.LayerNorm(2),
        "block": lambda: nn.TransformerEncoderLayer(2, 1, 4),
        "stage": lambda: nn.Sequential(stack(2), nn.LayerNorm(2), stack(1)),
    }
    model = nn.Sequential(*(make[kind]() for kind in kinds))
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(bool(mask >> index % 16 & 1))
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not wanted:
        return
    groups = param_groups(model, 1.0, weight_decay=0.1, layer_decay=decay)
    pairs = [pair for group in groups for pair in zip(group["param_names"], group["params"], strict=True)]
    assert len(pairs) == len(wanted)
    assert all(wanted[name] is parameter for name, parameter in pairs)
    rates = [group["lr"] for group in groups]
    assert rates == sorted(rates)
