"""Many parameters in few names."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ftkit._models.outline import outermost
from ftkit.selection import select


def tied() -> nn.Sequential:
    """Nested parts, one of them twice, and a module without parameters."""
    shared = nn.Linear(2, 2)
    return nn.Sequential(nn.Sequential(shared, nn.ReLU(), nn.LayerNorm(2)), nn.Sequential(shared), nn.Linear(2, 1))


@given(st.sets(st.integers(0, 5)))
def test_the_names_select_the_same_again(chosen: set[int]) -> None:
    """Whatever is chosen, the names mean exactly that, and no two of them the same parameter."""
    model = tied()
    wanted = {name: p for index, (name, p) in enumerate(model.named_parameters()) if index in chosen}
    names = [name or "**" for name in outermost(model, wanted)]
    assert select(model, *names).parameters == wanted
    assert sum(len(select(model, name).parameters) for name in names) == len(wanted)


def test_whole_parts_are_named_and_what_is_left_over() -> None:
    """A part without parameters is no part of the outline; the model itself has an empty name."""
    model = tied()
    parameters = dict(model.named_parameters())
    assert outermost(model, parameters) == [""]
    del parameters["2.bias"]
    assert outermost(model, parameters) == ["0", "2.weight"]
    assert outermost(model, {"2.bias": torch.nn.Parameter(torch.zeros(1))}) == ["2.bias"]
