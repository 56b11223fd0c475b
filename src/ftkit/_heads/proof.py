"""The proof of a new head: the model runs as before, and its outputs have grown with the head."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from ftkit._heads.decide import Found
from ftkit._heads.graph import SQUASHED
from ftkit._heads.layers import Layers
from ftkit._heads.trace import Trace, shapes
from ftkit.errors import HeadError


def prove(model: nn.Module, found: Found, count: int) -> None:
    """Run a model with its new head on what it ran on before, its own loss too; without such a run there is no proof.

    Args:
        model: The model with its new head.
        found: The old head.
        count: The new number of classes.

    Raises:
        HeadError: The model fails, or an output of the head does not follow.
    """
    if found.trace is None:
        return
    runs = [shapes(model, inputs) for inputs in found.trace.taken]
    failures = [f": {after}" for after in runs if isinstance(after, str)]
    if runs and isinstance(runs[0], dict):  # without labels, as the run that told of the head
        failures += _astray(found.layers, found.trace, runs[0], count)
    if failures:
        raise HeadError(
            f"With {count} classes in place of {found.classes} at {', '.join(map(repr, found.layers.names))} the "
            f"{type(model).__name__} does not run any more{failures[0]}. Something else in it counts the classes too."
        )


def _astray(head: Layers, trace: Trace, after: dict[str, torch.Size], count: int) -> Iterator[str]:
    """Tell of each output of the head that did not follow."""
    for layer in head:
        for end in trace.ends.of(layer).where(lambda end: not end.training_only):
            for port in end.ports_within(SQUASHED):
                before, shape = end.shapes[port], after.get(port)
                if shape is None or not _follows(before, shape, layer.outputs, layer.outputs_for(count)):
                    yield f" as before: what was {tuple(before)} is {tuple(shape or ())}"


def _follows(before: torch.Size, after: torch.Size, old: int, new: int) -> bool:
    """Whether an output grew with the outputs of its layer along one axis, if at all, and that not the batch's."""
    if before.numel() * new != after.numel() * old:
        return True  # the axis of the classes is gone, or how many detections there are depends on the scores
    if len(before) != len(after):
        return False
    changed = [axis for axis, (b, a) in enumerate(zip(before, after, strict=True)) if b != a]
    return len(changed) < 2 and all(axis and (old > 1 or before[axis] == 1) for axis in changed)
