"""Every place where something is registered, told apart by identity."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ftkit._models.slots import own_slots, replace, slots
from ftkit._models.undo import Undo
from tests.models.hostile import HOSTILE


def registered(model: nn.Module) -> list[tuple[str, int]]:
    return [(slot.name, id(slot.content)) for slot in slots(model)]


@st.composite
def models(draw: st.DrawFn) -> nn.ModuleDict:
    """Layers in nested dictionaries, some of them, and some of their weights, in several places."""
    pool: list[nn.Module] = [nn.Linear(2, 2), nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2), nn.ReLU()]
    pool[1].weight = pool[0].weight
    for _ in range(draw(st.integers(1, 3))):
        chosen = draw(st.lists(st.sampled_from(range(len(pool))), max_size=4))
        pool.append(nn.ModuleDict({f"m{place}": pool[index] for place, index in enumerate(chosen)}))
    return nn.ModuleDict({"last": pool[-1], "layer": pool[0]})


@given(models())
def test_slots_are_all_that_the_model_has_registered(model: nn.ModuleDict) -> None:
    """Just what torch lists, without what is not there."""
    listed = {id(tensor) for _, tensor in (*model.named_parameters(), *model.named_buffers())}
    listed |= {id(module) for module in model.modules() if module is not model}
    assert {id(slot.content) for slot in slots(model)} == listed
    assert all(slot.table[slot.name] is slot.content for slot in slots(model))


@given(models(), st.data())
def test_replacing_reaches_every_place_and_no_other_and_is_taken_back(
    model: nn.ModuleDict, data: st.DataObject
) -> None:
    """A parameter or a module, whatever the places are."""
    before = registered(model)
    old = data.draw(st.sampled_from([slot.content for slot in slots(model)]))
    new = nn.Parameter(torch.zeros(2, 2)) if isinstance(old, torch.Tensor) else nn.Identity()
    undo = Undo()
    replace(model, old, new, undo)
    assert all(slot.content is not old for slot in slots(model))
    undo.take_back()
    assert registered(model) == before


def test_one_of_several_modules_is_replaced_by_the_same_new_one() -> None:
    """As two modules around one weight are one layer."""
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    model, new = nn.Sequential(first, nn.ReLU(), second), nn.Linear(2, 3)
    replace(model, (first, second), new, Undo())
    assert model[0] is new is model[2]


def test_what_is_not_there_is_no_slot() -> None:
    """A layer without a bias, and a child that is None."""
    layer = nn.Linear(2, 2, bias=False)
    layer.register_module("nothing", None)
    assert [slot.name for slot in own_slots(layer)] == ["weight"]


def test_scripts_are_passed_by() -> None:
    """What is in them can't be replaced, and is not offered."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(torch.jit.script(nn.Linear(2, 2)))
    assert [slot.name for slot in slots(model)] == ["0"]


@pytest.mark.parametrize("make", HOSTILE)
def test_a_module_that_answers_as_no_module_should_is_left_alone(make: Callable[[], nn.Module]) -> None:
    """``==`` and the truth of a module are up to its class; they have no say in what is replaced."""
    hostile, old, new = make(), nn.Linear(2, 2), nn.Linear(2, 2)
    model = nn.ModuleDict({"hostile": hostile, "old": old})
    replace(model, old, new, Undo())
    assert dict.__getitem__(model._modules, "hostile") is hostile
    assert model["old"] is new
    replace(model, hostile, old, Undo())
    assert model["hostile"] is old
    assert model["old"] is new
