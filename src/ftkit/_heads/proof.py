"""The proof of a new head: the model runs as before, and its outputs have grown with the head."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from ftkit._heads.decide import Found
from ftkit._heads.graph import CLEAN, SQUASHED, End
from ftkit._heads.layers import layers
from ftkit._heads.trace import Run, Trace, run_on, run_with_labels
from ftkit.errors import HeadError


class Proof:
    """What a model gave before its head changed, and how that compares with what it gives afterwards.

    Attributes:
        missing: Why there can be no proof; empty where there is one.
    """

    def __init__(self, model: nn.Module, found: Found) -> None:
        """Run the model with its old head."""
        self._found = found
        self.missing = "that was not requested"
        if found.trace is not None:
            self._ends, self._run = found.trace.ends, found.trace.run
            self._with_labels = run_with_labels(model, self._run) if self._run.complete else Run()
            unused = [one.name for one in found.layers if not (self._ends.leaving(one) or self._run.returns(one))]
            self.missing = f"{unused[0]!r} does not contribute to the model's outputs" if unused else ""
            for other in layers(model).of_size(found.classes):
                apart = other.name not in found.layers.names and not other.names_another()
                if apart and self._run.is_without_history(other) and self._run.returns(other):
                    self.missing = f"an output of the model comes from {other.name!r}, which still has {other.outputs}"
            if not self._run.complete:
                self.missing = self._run.unproven

    def check(self, model: nn.Module, count: int) -> None:
        """Run the model with its new head on what it ran on before, its own loss too.

        Args:
            model: The model with its new head.
            count: The new number of classes.

        Raises:
            HeadError: The model fails, or an output of the head does not follow.
        """
        what = f"{count} {'outputs' if self._splits() else 'classes'} in place of {self._found.classes}"
        after = self._runs_still(model, what)
        if after is not None:
            failures = [*self._astray(after, count), *self._fails_with_labels(model, after)]
            if failures:
                raise self._error(model, what, failures[0])

    def check_module(self, model: nn.Module) -> int:
        """Run the model with a module of the user's as its head, and return how many outputs that has; 0 for unknown.

        Raises:
            HeadError: The model fails.
        """
        after = self._runs_still(model, "the new module")
        sizes = set() if after is None or after.guessed else set(self._sizes(after))
        return sizes.pop() if len(sizes) == 1 else 0

    def _sizes(self, after: Run) -> Iterator[int]:
        """Yield the size of each output of the model along the axis that counted what the head gave."""
        for end in (end for layer in self._found.layers for end in self._ends.of(layer)):
            for port in set(end.ports_within(CLEAN)) & self._run.outputs.keys() & after.outputs.keys():
                before, now = self._run.outputs[port].shape, after.outputs[port].shape
                axes = [axis for axis, size in enumerate(before) if axis and size == end.layer.outputs]
                if len(before) == len(now) and len(axes) == 1:
                    yield now[axes[0]]

    def _runs_still(self, model: nn.Module, what: str) -> Run | None:
        if self._found.trace is None or not self._run.complete:
            return None
        after = run_on(model, self._run.inputs)
        if after.unable:
            self.missing = f"the model could not be run with the new head on fake tensors ({after.failure})"
            return None
        if not after.complete:
            last = after.failed_in
            kind = type(model.get_submodule(last)).__name__
            raise self._error(model, what, f": {after.failure}{f' in {last!r} ({kind})' if last else ''}")
        return after

    def _fails_with_labels(self, model: nn.Module, after: Run) -> Iterator[str]:
        """Tell why the model's own loss fails on such labels as before. Those shaped like an output follow it."""
        if self._with_labels.complete:
            args, kwargs = self._with_labels.inputs
            now = {
                old.shape: after.outputs[port].shape for port, old in self._run.outputs.items() if port in after.outputs
            }
            labels = {key: kwargs[key] for key in kwargs if key not in self._run.inputs[1]}
            follow = {key: one.new_empty(now.get(one.shape, one.shape)) for key, one in labels.items()}
            with_labels = run_on(model, (args, kwargs | follow))
            if not (with_labels.complete or with_labels.unable):
                yield f": {with_labels.failure}"

    def _error(self, model: nn.Module, what: str, failure: str) -> HeadError:
        names = ", ".join(map(repr, self._found.layers.names))
        return HeadError(
            f"With {what} at {names}, the {type(model).__name__} no longer runs{failure}. "
            f"{self._splits() or 'Something else in it counts the classes too.'}"
        )

    def _splits(self) -> str:
        """Tell of a layer of which nothing says how many outputs it has for each class, but which the model splits."""
        seen = self._found.trace or Trace(Run())
        for layer in self._found.layers:
            sizes = {size for end in seen.ends.of(layer) for size in end.rows}
            shapes = seen.shapes_of(layer, CLEAN)
            sizes |= {shape[-1] for shape in shapes if len(shape) > 2 and layer.outputs not in shape}
            parts = [size for size in sizes if 1 < size < layer.outputs and layer.outputs % size == 0]
            if layer.times == 1 and parts:
                return (
                    f"It splits the {layer.outputs} outputs of {layer.name!r} into {layer.outputs // max(parts)} x "
                    f"{max(parts)}. If those are classes and anchors, let it take the number of its classes from an "
                    "attribute, num_classes, which replace_head changes too; else build the model for the new number."
                )
        return ""

    def _astray(self, after: Run, count: int) -> Iterator[str]:
        """Tell of each output that did not follow the head, or did as no number of classes can make it."""
        grown = count - self._found.classes
        before = {port: tensor.shape for port, tensor in self._run.outputs.items()}
        shapes = {port: tensor.shape for port, tensor in after.outputs.items()}
        loose = self._run.guessed or after.guessed  # how many detections there are, say, hangs on the scores
        for port, shape in before.items():
            new = shapes.get(port)
            if not (loose or (new is not None and self._follows(shape, new, count))):
                yield f" as before: an output of shape {tuple(shape)} is now {tuple(new or ())}"
        for layer in self._found.layers:
            for end in self._ends.of(layer).where(lambda end: not end.training_only):
                ports = end.ports_within(SQUASHED)
                if grown and not loose and ports and all(shapes.get(port) == before[port] for port in ports):
                    yield from (_stuck(end, port, before[port]) for port in ports if _counts(end, port))

    def _follows(self, before: torch.Size, after: torch.Size, count: int) -> bool:
        """Whether an output is as it was, or grew along an axis by as much for each class; never along the batch's."""
        classes, grown = self._found.classes, count - self._found.classes
        if len(before) != len(after):  # one number for each example, which had no axis of its own
            return classes == 1 and any(after[:axis] + after[axis + 1 :] == before for axis in _axes_of(after, count))
        steps = {axis: new - old for axis, (old, new) in enumerate(zip(before, after, strict=True)) if new != old}
        tables = {layer.outputs for layer in self._found.layers if isinstance(layer.module, nn.Embedding)}
        no_batch = len(before) < 2 or before[0] in tables
        return all(
            grown and step % grown == 0 and step // grown > 0 and (axis or no_batch) for axis, step in steps.items()
        )


def _axes_of(shape: torch.Size, size: int) -> list[int]:
    return [axis for axis, its_size in enumerate(shape) if its_size == size and axis]


def _counts(end: End, port: str) -> bool:
    """Whether an output has an axis for what a layer gives, or takes a part of it; else that axis is summed up."""
    return port in end.cut or (end.layer.outputs > 1 and end.layer.outputs in end.shapes[port][1:])


def _stuck(end: End, port: str, shape: torch.Size) -> str:
    used = "only a fixed part is used" if port in end.cut else "as many as before are used"
    return f" as it should: of the outputs of {end.layer.name!r}, {used}, {tuple(shape)}"
