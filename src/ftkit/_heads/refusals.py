"""Why a model has no head, or none for sure, and what the user can do about it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection

import torch
from torch import nn

from ftkit._heads.counters import counters, told
from ftkit._heads.graph import NORMED, SCALED, SQUASHED, End, Ends
from ftkit._heads.layers import Layer, Layers, describe, has_shapes
from ftkit._heads.trace import Trace
from ftkit._heads.vocabulary import LOSSES, says
from ftkit._torch import is_convolution, is_norm
from ftkit._wording import some
from ftkit.errors import HeadError


class UnsureError(HeadError):
    """No layer is the head for sure.

    Attributes:
        could_be: The names of layers that the user could say are it, each choice in a list.
        advice: What comes before the call that names one of them.
    """

    could_be: list[list[str]]
    advice: str


class DoubtError(UnsureError):
    """Several layers could be the head. They are its ``layers``."""

    layers: list[Layer]


def check_scorers(model: nn.Module, seen: Trace, found: Layers) -> None:
    """Refuse a layer that gives one number, which the model uses as such: a score or a depth is no class output."""
    complete, kind = seen.run.complete, type(model).__name__
    for layer in found.of_size(1):
        shapes = seen.shapes_of(layer, SQUASHED)
        if not complete or not all(1 in shape[1:] for shape in shapes):
            came_out = f" ({', '.join(str(tuple(shape)) for shape in shapes)})" if complete else ""
            error = UnsureError(
                f"{describe([layer])} outputs one number, which the {kind} does not return as a class score{came_out}."
            )
            error.could_be, error.advice = [[layer.name]], "To replace it anyway"
            raise error


def check_losses(model: nn.Module, unseen: Layers, told: Collection[int], found: Layers) -> None:
    """Refuse features as classes where a loss inside the model has the directions of the classes: ArcFace."""
    for layer in unseen:
        classes = {layer.outputs, layer.inputs} & set(told)
        if classes and says(layer.name, LOSSES) and not any(one.classes in classes for one in found[:1]):
            giving = str(found[0]) if found else "all else"
            error = UnsureError(
                f"The {type(model).__name__} has its classes in its loss, {layer}; {giving} outputs features."
            )
            error.could_be, error.advice = [[layer.name]], "To change the classes of the loss"
            raise error


def check_passed_on(model: nn.Module, seen: Trace, found: Layers) -> None:
    """Refuse what takes the scores that the model counts, and gives other ones: a coarser classifier, a decoder.

    Where nothing is counted, what comes out and is passed on too may be scores or features; only names tell.
    """
    counts, last, kind = told(model, ()), found[0], type(model).__name__
    passed = Layers(end.layer for end in seen.ends.where(lambda end: end.beside and end.is_clean()))
    if counts:
        for layer in passed if last.classes not in counts else ():
            if layer.outputs in counts:
                raise HeadError(
                    f"{layer} gives the classes that the {kind} counts, and {last} comes after it. "
                    "Replace both with replace_modules, or rebuild the head."
                )
        return
    for layer in passed:
        if layer.names in [one.names for one in found] or layer.outputs < 2 or layer.names_another():
            continue
        if not (last.names_classes() and not layer.names_classes()) and not layer.names_features():
            error = UnsureError(
                f"The {kind} returns what {layer} gives, and passes it on to {last}: nothing tells whether the former "
                "gives class scores or features. If those are the classes, replace both with replace_modules, or "
                "rebuild the head."
            )
            error.could_be, error.advice = [[last.name]], f"If {last.name!r} has the classes"
            raise error


def check_maps(model: nn.Module, every: Layers, seen: Trace, found: Layers) -> None:
    """Refuse a layer from classes to classes after others: nothing tells where the classes begin.

    Linear ones only if nothing but these is as wide, and the model counts their outputs: EdgeCNN.
    """
    for layer in (one for one in found if not is_norm(one.module)):
        row = [] if layer.from_classes else _row(every, seen, layer)
        counted = any(one.value == layer.outputs for one in counters(model, layer.names))
        if row and (is_convolution(layer.module) or (counted and len(every.of_size(layer.outputs)) == len(row))):
            several, both = (f"{row[0]} and {row[1]}", "both") if len(row) == 2 else (describe(row), "all")
            error = UnsureError(
                f"{several} in the {type(model).__name__} {both} have {layer.outputs} outputs, and nothing "
                f"tells whether those of the first count classes too. If they don't, pass at={layer.name!r}."
            )
            error.could_be, error.advice = [[one.name for one in row]], "If they do"
            raise error


def _row(every: Layers, seen: Trace, last: Layer) -> list[Layer]:
    """The layers in a row in one module that give as many outputs as the last of them; none if that is alone.

    Where no run tells what comes after what, by their order in what holds them.
    """
    chains = [[one for one, _ in end.chain] for end in seen.ends.of(last)]
    around = every.inside(last.holder) if last.holder else every
    inside = [one.names for one in around]
    row = list(itertools.takewhile(lambda one: one.names in inside, chains[0] if chains else []))
    if not row and last.inputs == last.outputs:
        earlier = around[: inside.index(last.names)][::-1]
        row = list(itertools.takewhile(lambda one: one.outputs == last.outputs, earlier))
        row = row[: next((place for place, one in enumerate(row, 1) if one.inputs != one.outputs), None)]
    return [*row[::-1], last] if row else []


def normed_otherwise(model: nn.Module, layer: Layer, name: str) -> HeadError:
    """Say that a norm of the scores fits their number alone."""
    return HeadError(
        f"The outputs of {layer} pass through {name!r} in the {type(model).__name__}, whose weights count more than "
        "them, so another count would not fit. Replace both with replace_modules, or rebuild the head."
    )


def sideless(model: nn.Module, layer: Layer) -> HeadError:
    """Say that the classes could be on either side of a weight."""
    return HeadError(
        f"Nothing tells whether the {layer.inputs} or the {layer.outputs} of {layer.name!r} in the "
        f"{type(model).__name__} are its classes. Pass a module in its place: "
        f"replace_head(model, module, at={layer.name!r})."
    )


def doubt(model: nn.Module, group: Ends) -> DoubtError:
    names = [layer.name for layer in group.layers]
    error = DoubtError(
        f"The {type(model).__name__} has several layers that could be its head: {describe(group.layers)}."
    )
    error.layers, error.could_be, error.advice = group.layers, [*([name] for name in names), names], "Say which"
    return error


def headless(model: nn.Module, every: Layers) -> HeadError:
    kind = type(model).__name__
    if every:
        return HeadError(f"The {kind} has no head: its num_classes is 0. To put one on its features, use append_head.")
    return HeadError(f"The {kind} has no linear or convolutional layer, so it has no head to find.{_sealed(model)}")


def nothing(model: nn.Module, every: Layers, seen: Trace) -> HeadError:
    """Say what the outputs come from instead, or else what stands at the end of the model."""
    run, kind = seen.run, type(model).__name__
    sealed = _sealed(model)
    trained = seen.ends.where(lambda end: end.training_only and end.is_clean() and end.layer.names_classes()).layers
    if trained:
        error = UnsureError(
            f"The {kind} returns class scores in training mode only, from {describe(trained)}; in eval mode it returns "
            "something else, such as features."
        )
        error.could_be, error.advice = [[layer.name for layer in trained]], "To replace that"
        return error
    named = seen.ends.where(lambda end: end.layer.names_classes())
    for end in named.where(lambda end: end.level == NORMED):
        error = UnsureError(
            f"The outputs of {end.layer} pass through a norm, {some(sorted(map(repr, end.norms)), 2)}, before they "
            f"leave the {kind}, as features do, and nothing says that they are class scores."
        )
        error.could_be, error.advice = [[end.layer.name]], "If they are, which replaces the norm too"
        return error
    ends = seen.ends.where(lambda end: not end.body)
    counts = told(model, ())
    for end in named.where(lambda end: end.level == SCALED) or _scaled_alone(model, ends):
        return HeadError(
            f"The outputs of {end.layer} are scaled by other weights before they leave the {kind}, so another count "
            "would not fit. Replace both with replace_modules, or rebuild the head."
        )
    if seen.bare and run.complete and not sealed and not ends.where(End.is_clean):
        return HeadError(
            f"The outputs of the {kind} come from {', '.join(map(repr, sorted(seen.bare)))}, which no linear layer "
            "contains. Only a module can be replaced: put the parameter into an nn.Linear."
        )
    why = "" if run.complete else f" It could not be run on fake inputs either: {run.failure}."
    outermost = [one for one in every if not any(one.outputs == other.inputs for other in every if other is not one)]
    likely = [layer for layer in ends.layers if run.complete or layer.names_classes()] or outermost or every[-2:]
    counted = [layer for layer in likely if layer.outputs in counts]
    ends_in = "It ends in" if run.complete else "Judging by its layers' sizes, it may end in"
    error = UnsureError(
        f"No layer of the {kind} looks like a classifier, judging by names, counters and outputs.{why}{sealed} "
        f"{ends_in} {describe(likely)}. To add a layer on top of the outputs, use append_head."
    )
    if counted and run.complete:
        error.could_be, error.advice = [[one.name for one in counted]], "As many as the model counts come from these"
        return error
    rows = [[*(one.name for one, _ in end.chain[::-1]), end.layer.name] for end in seen.ends if end.body and end.chain]
    if run.complete and rows and not ends:  # a sum of class scores and what refines them
        error.could_be, error.advice = rows[-1:], "If the scores are refined there, name all of these"
        return error
    last = likely[-1]
    if not last.sure:
        return HeadError(f"{error} {sideless(model, last)}")
    if beside := _as_wide(model, last):
        return HeadError(
            f"{error} {last} is not alone in {last.holder!r}, which has {some(list(map(repr, beside)), 4)} as wide. "
            f"If that is the head, pass a module for the whole of it: replace_head(model, module, at={last.holder!r})."
        )
    same = [
        one.name for one in likely if (one.holder, one.inputs, one.outputs) == (last.holder, last.inputs, last.outputs)
    ]
    error.could_be, error.advice = [same], "If one is, name it"
    return error


def _scaled_alone(model: nn.Module, ends: Ends) -> Ends:
    """What the outputs come from, if that is one layer and weights elsewhere scale what it gives, its class scores."""
    scaled = ends.where(lambda end: end.level == SCALED and not (end.norms or _as_wide(model, end.layer)))
    return scaled if len(ends) == 1 else Ends()


def _as_wide(model: nn.Module, layer: Layer) -> list[str]:
    """The weights beside a layer that have one of their axes for its outputs, as those of attention in graphs."""
    beside = model.get_submodule(layer.holder).named_parameters(recurse=False) if layer.holder else ()
    return [name for name, weight in beside if weight.dim() > 1 and layer.outputs in weight.shape]


def _sealed(model: nn.Module) -> str:
    """Tell of the first module that can't be seen into, or be made anew, as a sentence for an error message."""
    for name, module in model.named_modules():
        for is_sealed, how in _SEALS:
            if is_sealed(module):
                return f" Its {type(module).__name__}{f' {name!r}' if name else ''} {how}."
    return ""


_SEALS: tuple[tuple[Callable[[nn.Module], bool], str], ...] = (
    (
        lambda module: isinstance(module, torch.jit.ScriptModule),
        "is scripted: replace the head before scripting",
    ),
    (lambda module: "quantized" in type(module).__module__, "is quantized: replace the head before quantizing"),
    (lambda module: not has_shapes(module), "has no shape yet: run the model on one batch first"),
)
