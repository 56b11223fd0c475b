"""A model may hold modules that answer ``==``, ``bool()`` and the like as no module should."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ftkit import adapt_input, find_head, replace_head, replace_modules
from tests.heads.nets import features, wired
from tests.models.hostile import HOSTILE, EqualToAll


def with_guests(make: Callable[[], nn.Module], **more: nn.Module) -> nn.Module:
    """A classifier with a hostile module before its layers, between them and after."""
    return wired(
        lambda self, x: self.head(self.body(x)),
        first=make(),
        body=features(),
        guests=nn.ModuleList([make(), make()]),
        head=nn.Linear(8, 5),
        last=make(),
        **more,
    )


def guests(model: nn.Module) -> list[int]:
    return [id(model._modules["first"]), *map(id, model.guests._modules.values()), id(model._modules["last"])]


def metric() -> nn.Module:
    return pytest.importorskip("torchmetrics").classification.MulticlassAccuracy(num_classes=5)


MAKERS = [*HOSTILE, metric]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("at", [None, "head"])
def test_a_head_is_replaced_beside_them(make: Callable[[], nn.Module], at: str | None) -> None:
    """They are where they were, and so is all else."""
    model = with_guests(make)
    before, rest = guests(model), {name: p for name, p in model.named_parameters() if not name.startswith("head.")}
    assert find_head(model).names == ("head",)
    assert replace_head(model, 3, at=at, keep={0: 4}).names == ("head",)
    assert guests(model) == before
    assert {name: id(p) for name, p in model.named_parameters() if name in rest} == {n: id(p) for n, p in rest.items()}
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 3)
    mine = nn.Linear(8, 4)
    replace_head(model, mine, at=at)
    assert model.head is mine
    assert guests(model) == before


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_a_run_is_possible_beside_them(make: Callable[[], nn.Module]) -> None:
    """A head that only the graph tells."""
    model = with_guests(make)
    model.readout, model.head = model.head, nn.LogSoftmax(1)
    type(model).forward = lambda self, x: self.head(self.readout(self.body(x)))
    assert replace_head(model, 3).names == ("readout",)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_an_input_is_adapted_and_modules_are_replaced_beside_them(make: Callable[[], nn.Module]) -> None:
    """One of them is replaced itself only if it is meant."""
    model = with_guests(make)
    before = guests(model)
    assert adapt_input(model, 1) == ["body.0"]
    assert replace_modules(model, nn.ReLU, lambda name, old: nn.GELU()) == ["body.2"]
    assert guests(model) == before
    assert replace_modules(model, "guests.0", lambda name, old: nn.Identity()) == ["guests.0"]
    after = guests(model)
    assert (after[0], *after[2:]) == (before[0], *before[2:])
    assert model(torch.zeros(2, 1, 16, 16)).shape == (2, 5)


def test_modules_inside_one_that_equals_all_are_not_taken_for_each_other() -> None:
    """What is inside a replaced module is told by identity."""
    model = nn.ModuleDict(
        {"a": EqualToAll(), "b": nn.Sequential(EqualToAll(), nn.ReLU()), "c": nn.Sequential(nn.ReLU())}
    )
    assert replace_modules(model, nn.Sequential, lambda name, old: nn.Identity()) == ["b", "c"]
