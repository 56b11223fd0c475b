"""Newcomers to a running optimizer get the options that they would have had from the start."""

from __future__ import annotations

import copy

import pytest
import torch

from ftkit._freezing.freeze import freeze_except, unfreeze
from ftkit._groups import layout, param_groups, restore_layout
from ftkit.errors import FtkitError
from tests.groups.models import stack


@pytest.mark.parametrize("named", [True, False])
def test_newcomers_join_an_optimizer_that_was_built_by_hand(named: bool) -> None:
    """Without a recipe they get its newest rate and its largest decay, but for biases; its other options stay."""
    model = stack()
    freeze_except(model, "2")
    group = {"params": [*model[2].parameters()], "lr": 0.3, "momentum": 0.8, "weight_decay": 0.1}
    if named:
        group["param_names"] = ["2.weight", "2.bias"]
    optimizer = torch.optim.SGD([group], lr=0.1)
    unfreeze(model, "1", optimizer=optimizer)
    assert layout(model, optimizer) == [["2.weight", "2.bias", "1.weight"], ["1.bias"]]
    assert [(g["lr"], g["momentum"], g["weight_decay"]) for g in optimizer.param_groups] == [
        (0.3, 0.8, 0.1),
        (0.3, 0.8, 0.0),
    ]
    assert ("param_names" in optimizer.param_groups[1]) is named
    model(torch.randn(2, 2)).sum().backward()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())


def test_an_optimizer_with_its_own_way_of_adding_is_asked() -> None:
    """What overrides add_param_group sees every newcomer, as ZeroRedundancyOptimizer must."""
    seen: list[int] = []

    class Sharded(torch.optim.SGD):
        def add_param_group(self, param_group: dict[str, object]) -> None:
            super().add_param_group(param_group)
            seen.append(len(param_group["params"]))

    model = stack()
    freeze_except(model, "2")
    optimizer = Sharded(param_groups(model, 0.1))
    unfreeze(model, "1", optimizer=optimizer)
    assert seen == [2, 2]


def test_one_optimizer_may_serve_two_models() -> None:
    """Newcomers follow the groups of their own model."""
    first, second = stack(), stack(2)
    freeze_except(first, "2")
    freeze_except(second, "1")
    groups = param_groups(first, 0.1, rates={"2": 0.5}) + param_groups(second, 0.01, layer_decay=0.5)
    optimizer = torch.optim.SGD(groups)
    unfreeze(first, "1", optimizer=optimizer)
    unfreeze(second, "0", optimizer=optimizer)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [rates[id(layer.weight)] for layer in (*first[1:], *second)] == [0.1, 0.5, 0.005, 0.01]


def test_a_model_of_which_the_optimizer_has_nothing_is_an_error() -> None:
    """A copy, or a model that was built anew, would join in silence, and nothing would train."""
    model = stack()
    freeze_except(model, "2")
    optimizer = torch.optim.SGD(param_groups(model, 0.1, layer_decay=0.5))
    other = copy.deepcopy(model)
    with pytest.raises(FtkitError, match=r"has no parameter of this Sequential.*a copy"):
        unfreeze(other, "1", optimizer=optimizer)
    assert [group["param_names"] for group in optimizer.param_groups] == [["2.weight", "2.bias"]]
    assert not other[1].weight.requires_grad


def test_a_layout_of_another_model_is_an_error() -> None:
    """The closest name is told, and the optimizer is untouched."""
    model = stack()
    optimizer = torch.optim.SGD(param_groups(model, 0.1))
    before = layout(model, optimizer)
    with pytest.raises(FtkitError, match=r"Did you mean '2.weight'"):
        restore_layout(model, [["0.weight"], ["2.wieght"]], optimizer)
    assert layout(model, optimizer) == before
