"""The walk back from outputs: which layers they come from, and how far they are from what these give."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ftkit._heads.graph import CLEAN, MIXED, SCALED, SQUASHED, Walk, unused, walk
from ftkit._heads.layers import layers, own_parameters


def walk_of(model: nn.Module, outputs: dict[str, Tensor]) -> Walk:
    owners = {id(p): layer for layer in layers(model) for p in own_parameters(layer.module).values()}
    return walk(outputs, owners)


class Two(nn.Module):
    """A layer of the body, and one more."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.norm = nn.Linear(4, 6), nn.Linear(6, 5), nn.LayerNorm(5)
        self.scale, self.temperature = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(1))


WAYS: dict[str, tuple[Callable[[Two, Tensor], Tensor], int]] = {
    "as it is": (lambda m, y: y, CLEAN),
    "reshaped": (lambda m, y: y.view(-1).flip(0).unsqueeze(0), CLEAN),
    "softmax": (lambda m, y: y.softmax(1), CLEAN),
    "one temperature": (lambda m, y: y * m.temperature, CLEAN),
    "times a number": (lambda m, y: y * 3 + 1, CLEAN),
    "activation": (lambda m, y: y.relu(), SQUASHED),
    "activation and softmax": (lambda m, y: y.tanh().softmax(1), SQUASHED),
    "norm": (lambda m, y: m.norm(y), SCALED),
    "norm without weights": (lambda m, y: nn.functional.normalize(y), SCALED),
    "a temperature for each class": (lambda m, y: y * m.scale, SCALED),
    "by itself": (lambda m, y: y * y, SCALED),
    "product with itself": (lambda m, y: y @ y.T, MIXED),
}


@pytest.mark.parametrize("way", WAYS)
def test_how_far_an_output_is_from_a_layer(way: str) -> None:
    """By the operators that lie in between."""
    onward, level = WAYS[way]
    model = Two()
    found = walk_of(model, {"out": onward(model, model.head(model.body(torch.zeros(2, 4, requires_grad=True) * 1)))})
    (end,) = [end for end in found.ends if end.layer.name == "head"]
    assert (end.level, end.ports, end.body) == (level, {"out": level}, False)
    assert end.softmax == ("softmax" in way)
    assert {layer.name for layer in found.met} == {"body", "head"}


def test_a_mask_that_is_an_input_is_no_product() -> None:
    """What passes scores along the edges of a graph leaves them scores."""
    model, given = Two(), torch.eye(2, requires_grad=True) * 1
    found = walk_of(model, {"out": given @ model.head(model.body(torch.zeros(2, 4)))})
    assert [(end.layer.name, end.level) for end in found.ends] == [("head", CLEAN)]


def test_the_nearest_way_counts() -> None:
    """An output that reaches a layer on two ways, and two outputs of one layer."""
    model = Two()
    y = model.head(model.body(torch.zeros(2, 4)))
    (end,) = walk_of(model, {"both": y.relu() + y, "far": model.norm(y)}).ends
    assert (end.level, end.ports) == (CLEAN, {"both": CLEAN, "far": SCALED})
    assert end.ports_within(SQUASHED) == ["both"]


def test_a_layer_that_feeds_another_is_body() -> None:
    """Beside the head if its output leaves too; summed with what it feeds, both are body."""
    model = Two()
    x = model.body(torch.zeros(2, 4))
    ends = {end.layer.name: end for end in walk_of(model, {"features": x, "out": model.head(x)}).ends}
    assert (ends["body"].body, ends["body"].beside, ends["head"].body) == (True, True, False)
    ends = {end.layer.name: end for end in walk_of(model, {"out": x[:, :5] + model.head(x)}).ends}
    assert ends["body"].body
    assert ends["head"].body


def test_a_bare_parameter_is_named() -> None:
    """A table that no layer holds."""
    table = nn.Parameter(torch.ones(6, 5))
    table.dotted = "table"
    model = Two()
    found = walk_of(model, {"out": model.body(torch.zeros(2, 4)) @ table})
    assert (found.ends, found.bare) == ([], {"table"})


def test_unused_tensors_are_those_that_nothing_was_made_from() -> None:
    """Of a chain the last, and each end of a fork; what has no graph is left out."""
    a = torch.ones(2, requires_grad=True) * 1
    b, c = a * 2, a * 3
    d = b + 1
    assert set(unused({"a": a, "b": b, "c": c, "d": d, "e": torch.ones(1)})) == {"c", "d"}
