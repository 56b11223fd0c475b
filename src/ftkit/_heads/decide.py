"""Which layers of a model are its head: rules in the order in which they are tried, each with who needs it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from ftkit._heads.counters import counters, counts_classes, told
from ftkit._heads.graph import CLEAN, NORMED, SQUASHED, End
from ftkit._heads.layers import HeadLayer, Layer, Sizes, describe, has_parameters, has_shapes, holders, layers
from ftkit._heads.trace import Trace, trace
from ftkit._heads.vocabulary import is_auxiliary, is_of_labels, is_usual, role
from ftkit.errors import HeadError

__all__ = ["DoubtError", "Found", "find_layers", "in_classes"]


@dataclass(frozen=True, eq=False)
class Found:
    """What was found to be the head.

    Attributes:
        layers: Its layers, in order of registration.
        classes: How many classes it has.
        run: The run on fake tensors that told, where one was needed.
    """

    layers: list[HeadLayer]
    classes: int
    run: Trace | None = None

    @property
    def names(self) -> list[str]:
        """The names of all its layers."""
        return [name for one in self.layers for name in one.layer.names]


class DoubtError(HeadError):
    """Several layers could be the head. They are its ``layers``."""

    layers: list[Layer]


def find_layers(model: nn.Module) -> Found:
    """Find the layers that make the class outputs, and how many classes they have.

    Args:
        model: The model, not wrapped.

    Raises:
        HeadError: There is none, or several that can't be told apart.
    """
    every = layers(model)
    kind = type(model).__name__
    if not every:
        raise HeadError(f"The {kind} has no linear or convolutional layer, so it has no head to find.{_sealed(model)}")
    if getattr(model, "num_classes", None) == 0:
        raise HeadError(f"The {kind} has no head: its num_classes is 0. To put one on its features use append_head.")
    settled = next(filter(None, (rule(model, every) for rule in _RULES_WITHOUT_A_RUN)), None)
    if settled is not None:
        return Found([HeadLayer(layer) for layer in settled], settled[0].outputs)
    evidence = _Evidence(model, every, trace(model, every))
    found = next(filter(None, (rule(evidence) for rule in _RULES)), None)
    if found is None:
        raise _nothing(evidence)
    _check_scorers(evidence, found)
    classes = found[0].classes
    return Found([*found, *_label_tables(model, classes)], classes, evidence.run)


def in_classes(model: nn.Module, layer: Layer) -> HeadLayer:
    """Tell how the outputs of a layer that the user named count classes."""
    counts = told(model, layer.names)
    if not layer.sizes.sure:
        run = trace(model, layers(model))
        layer = next((end.layer for end in run.ends if end.layer.names == layer.names), layer)
        if layer.outputs not in counts and layer.inputs in counts:
            layer = layer.turned()
    counted = (_counted(model, layer, classes) for classes in counts)
    return next(filter(None, counted), HeadLayer(layer))


# ---- rules that need no run


def _declared(model: nn.Module, every: list[Layer]) -> list[Layer] | None:
    """The layers that the model itself says classify: timm's models (``pretrained_cfg``), where nothing contradicts."""
    count = getattr(model, "num_classes", None)
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    said = config.get("classifier") if isinstance(config, Mapping) else None
    if not said or type(count) is not int:
        return None
    names = (said,) if isinstance(said, str) else tuple(said)
    named = [layer for name in names for layer in [layer for layer in every if layer.is_in(name)][-1:]]
    counting = {layer for layer in every if layer.outputs == count}
    if len(named) < len(names) or set(named) != counting or _outputs_counted_elsewhere(model, named[-1]):
        return None
    return named


def _obvious(model: nn.Module, every: list[Layer]) -> list[Layer] | None:
    """The one last layer, under a usual name and alone with its count: nearly every plain classifier."""
    last = every[-1]
    place = _usual_place(model, last.name)
    if place is None or last.role == "other" or len(last.names) > 1:
        return None
    at, holder = place
    settled = (
        _is_alone(model, every, last)
        and not _has_rivals(holder, at.rpartition(".")[2])
        and last.outputs in (told(model, ()) or [last.outputs])
        and _is_a_chain(layer for layer in every if layer.is_in(at))
    )
    return [last] if settled else None


_RULES_WITHOUT_A_RUN = (_declared, _obvious)


def _usual_place(model: nn.Module, name: str) -> tuple[str, nn.Module] | None:
    """Where a child with a usual name begins on the way to a layer, and what holds it.

    Whatever is passed on the way there has nothing but that child to train: the wrappers around a model.
    """
    steps = name.split(".")
    for depth, (holder, step) in enumerate(zip(holders(model, name), steps, strict=True)):
        if is_usual(step):
            return ".".join(steps[: depth + 1]), holder
        if sum(map(has_parameters, holder.children())) != 1:
            return None
    return None


def _is_alone(model: nn.Module, every: list[Layer], last: Layer) -> bool:
    """Whether nothing else in the model has the last layer's count, its weight or a place after it."""
    alike = any(layer.outputs == last.outputs for layer in every if layer is not last)
    return not (alike or _outputs_counted_elsewhere(model, last) or _is_tied(model, last))


def _has_rivals(holder: nn.Module, name: str) -> bool:
    """Whether other children beside the one of that name could be a head too, by what they are called."""
    others = [other for other, child in holder.named_children() if other != name and has_parameters(child)]
    return any(role(other) is not None or is_auxiliary(other) for other in others)


def _is_a_chain(several: Iterable[Layer]) -> bool:
    """Whether each layer takes what the one before gives."""
    return all(one.outputs == two.inputs for one, two in itertools.pairwise(several))


def _is_tied(model: nn.Module, layer: Layer) -> bool:
    """Whether something else in the model has a parameter of the layer."""
    mine = {id(parameter) for parameter in layer.module.parameters()}
    names = [name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in mine]
    return len(names) > len(mine) * len(layer.names)


def _outputs_counted_elsewhere(model: nn.Module, layer: Layer) -> bool:
    """Whether tensors of the size of the outputs stand beside the layer, or come after it: a norm of the logits."""
    for holder in holders(model, layer.name):
        beside = itertools.chain(holder.parameters(recurse=False), holder.buffers(recurse=False))
        if any(layer.outputs in tensor.shape for tensor in beside):
            return True
    inside = {id(module) for one in layer.modules for module in one.modules()}
    rest = itertools.dropwhile(lambda module: id(module) not in inside, model.modules())
    after = (module.parameters(recurse=False) for module in rest if id(module) not in inside)
    return any(p.dim() == 1 and p.numel() == layer.outputs for p in itertools.chain.from_iterable(after))


# ---- rules on what a run told


class _Evidence:
    """What a run and the counters told of a model.

    Attributes:
        unseen: The layers that did not run.
        ends: Those that could be class outputs: no layer comes after them, and no name says otherwise.
        named: The same, and where the run was cut short those that would have run after, told by their names.
        told: The counts of classes that counters tell, the most telling first.
    """

    def __init__(self, model: nn.Module, every: list[Layer], run: Trace) -> None:
        self.model, self.every, self.run = model, every, run
        self.unseen = [layer for layer in every if run.unseen.issuperset(layer.names)]
        self.ends = [end for end in run.ends if not end.body and end.layer.role != "other"]
        self.told = told(model, [name for end in self.ends for name in end.layer.names])
        self.named = self.ends
        if not run.complete and self.unseen:  # what came out before the run failed need be no output of the model
            late = {layer.names for layer in every[every.index(self.unseen[-1]) :]}
            possible = [*self.ends, *map(End, self.unseen)]
            self.ends = [end for end in self.ends if end.layer.names in late]
            self.named = [end for end in possible if end in self.ends or end.layer.role == "class"]


def _counted_by_the_model(evidence: _Evidence) -> list[HeadLayer] | None:
    """The layers whose outputs fit a counter: transformers, detectors, most libraries, and models that do not run."""
    for classes in evidence.told:
        chosen = _fitting(evidence, classes) or _fitting_with_no_object(evidence, classes)
        if not all(end.training_only for end, _ in chosen):
            found = [one for _, one in chosen]
            on_the_way = [HeadLayer(end.layer) for end in _scoring_on_the_way(evidence, classes)]
            return _with_boxes(evidence, [*found, *_siblings_unseen(evidence, found), *on_the_way])
    return None


def _named_for_classes(evidence: _Evidence) -> list[HeadLayer] | None:
    """The outputs of layers named for classes, or under a softmax: models that count nothing, one head among others."""
    group = [end for end in evidence.ends if end.level <= SQUASHED and (end.softmax or end.layer.role == "class")]
    return None if all(end.helps_training for end in group) else _of_one_size(evidence, group)


def _left_as_they_are(evidence: _Evidence) -> list[HeadLayer] | None:
    """The outputs that leave the model as the layer gave them: a user's own model, in which no name says anything."""
    group = [end for end in evidence.ends if end.level == CLEAN] if evidence.run.complete else []
    return None if all(end.training_only for end in group) else _of_one_size(evidence, group)


def _last_by_its_name(evidence: _Evidence) -> list[HeadLayer] | None:
    """The last layer, if it is named for classes and alone: a model that can't be run, not even in part."""
    last = evidence.every[-1]
    named = last.role == "class" and not is_auxiliary(last.name)
    if evidence.run.ends or not named or not _is_alone(evidence.model, evidence.every, last):
        return None
    return [HeadLayer(last)]


_RULES: tuple[Callable[[_Evidence], list[HeadLayer] | None], ...] = (
    _counted_by_the_model,
    _named_for_classes,
    _left_as_they_are,
    _last_by_its_name,
)


def _fitting(evidence: _Evidence, classes: int) -> list[tuple[End, HeadLayer]]:
    """The layers that a number of classes fits. Scores that are squashed or normed must be named so."""
    possible = [end for end in evidence.named if end.level == CLEAN or end.layer.role == "class"]
    return [(end, one) for end in possible if (one := _counted(evidence.model, end.layer, classes, end))]


def _fitting_with_no_object(evidence: _Evidence, classes: int) -> list[tuple[End, HeadLayer]]:
    """The layers with one more output, for "no object": set-prediction detectors (DETR and what came of it)."""
    possible = [end for end in evidence.named if end.level == CLEAN and end.layer.role == "class"]
    return [(end, HeadLayer(end.layer, extra=1)) for end in possible if end.layer.outputs == classes + 1]


def _counted(model: nn.Module, layer: Layer, classes: int, end: End | None = None) -> HeadLayer | None:
    """Tell how a number of classes could make a layer's outputs, or that it can't.

    Several for each class, as detectors have them for their anchors, only where that number is near: in what holds the
    layer, the model itself left out, or in the shape in which the scores come out.
    """
    if layer.outputs == classes:
        return HeadLayer(layer)
    if classes < 2 or layer.outputs % classes:
        return None
    around = [c for c in counters(model, layer.names) if isinstance(c.owner, nn.Module) and c.owner is not model]
    near = {counter.value for counter in around if counts_classes(counter.name)}
    near |= {shape[-1] for shape in _shapes_of(end, CLEAN) if len(shape) > 2}
    return HeadLayer(layer, times=layer.outputs // classes) if classes in near else None


def _shapes_of(end: End | None, level: int) -> list[torch.Size]:
    return [] if end is None else [end.shapes[port] for port in end.ports_within(level)]


def _of_one_size(evidence: _Evidence, group: list[End]) -> list[HeadLayer]:
    """Take the layers of a group as one head, with those that help it in training.

    Raises:
        DoubtError: They have different numbers of outputs, or are several heads of the same one.
    """
    sizes = {end.layer.outputs for end in group if not is_auxiliary(end.layer.name)} or {group[0].layer.outputs}
    if len(sizes) > 1:
        raise _doubt(evidence.model, [end.layer for end in group])
    classes = sizes.pop()
    helpers = [end for end in evidence.ends if end.level <= SQUASHED and end.helps_training]
    same = [end for end in evidence.ends if end.layer.outputs == classes and (end in group or end in helpers)]
    same += _scoring_on_the_way(evidence, classes)
    head = _with_boxes(evidence, [HeadLayer(end.layer) for end in same])
    leaving = {frozenset(end.ports.items()) for end in same if not end.helps_training}
    if len(head) == len(same) and len(leaving) > 1:  # not summed, and no boxes beside
        raise _doubt(evidence.model, [end.layer for end in same])
    return head


# ---- layers that belong to a head beside those that a rule found


def _scoring_on_the_way(evidence: _Evidence, classes: int) -> list[End]:
    """Layers that feed another one and score the classes too: deep supervision, heads from coarse to fine."""
    beside = [end for end in evidence.run.ends if end.body and end.beside]
    return [end for end in beside if end.layer.outputs == classes and end.layer.role != "other"]


def _siblings_unseen(evidence: _Evidence, found: list[HeadLayer]) -> list[HeadLayer]:
    """Layers of the same lists that did not run, like those found: heads of a decoder's other layers."""
    more: dict[Layer, HeadLayer] = {}
    for one in found:
        if isinstance(evidence.model.get_submodule(one.layer.holder), nn.ModuleList):
            more |= {layer: replace(one, layer=layer) for layer in evidence.unseen if _is_sibling(layer, one.layer)}
    known = {one.layer.names for one in found}
    return [one for one in more.values() if one.layer.names not in known]


def _is_sibling(one: Layer, other: Layer) -> bool:
    return (one.holder, one.inputs, one.outputs) == (other.holder, other.inputs, other.outputs)


def _with_boxes(evidence: _Evidence, found: list[HeadLayer]) -> list[HeadLayer]:
    """Add the layer that gives a box for each class beside one that scores the classes: two-stage detectors."""
    boxes = [
        HeadLayer(layer, times=_COORDINATES, by_class=True)
        for one in found
        for layer in evidence.every
        if one.times == 1 and layer.role == "other" and _is_box_layer(layer, one.layer)
    ]
    order = {layer.names: index for index, layer in enumerate(evidence.every)}
    return sorted(found + boxes, key=lambda one: order[one.layer.names])


_COORDINATES = 4  # of a box


def _is_box_layer(layer: Layer, scores: Layer) -> bool:
    return (layer.holder, layer.inputs, layer.outputs) == (scores.holder, scores.inputs, _COORDINATES * scores.outputs)


def _label_tables(model: nn.Module, classes: int) -> Iterator[HeadLayer]:
    """The embeddings of class labels: detectors that learn from noisy labels, with a row more for "none" or without."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and is_of_labels(name) and classes > 1:
            extra = module.num_embeddings - classes
            if extra in (0, 1):
                table = Layer((name,), (module,), Sizes(module.embedding_dim, module.num_embeddings, axis=0))
                yield HeadLayer(table, extra=extra)


# ---- why there is no head


def _check_scorers(evidence: _Evidence, found: list[HeadLayer]) -> None:
    """Refuse a layer that gives one number, which the model uses as such: a score or a depth is no class output."""
    complete, kind = evidence.run.complete, type(evidence.model).__name__
    for layer in (one.layer for one in found if one.layer.outputs == 1):
        ends = [end for end in evidence.run.ends if end.layer.names == layer.names]
        shapes = [shape for end in ends for shape in _shapes_of(end, SQUASHED)]
        if not complete or any(1 not in shape[1:] for shape in shapes):
            seen = f" ({', '.join(str(tuple(shape)) for shape in shapes)})" if complete else ""
            raise HeadError(
                f"{describe([layer])} gives one number, which does not leave the {kind} as the score of a class{seen}. "
                f"To make classes of it all the same: replace_head(model, n, at={layer.name!r})."
            )


def _doubt(model: nn.Module, group: list[Layer]) -> DoubtError:
    names = [layer.name for layer in group]
    error = DoubtError(
        f"The {type(model).__name__} has several layers that could be its head: {describe(group)}. "
        f"Say which: replace_head(model, n, at={names[0]!r}), or at={names} for all of them."
    )
    error.layers = group
    return error


def _nothing(evidence: _Evidence) -> HeadError:
    """Say what the outputs come from instead, or else what stands at the end of the model."""
    run, kind, sealed = evidence.run, type(evidence.model).__name__, _sealed(evidence.model)
    normed = [end.layer for end in run.ends if end.level == NORMED and end.layer.role == "class"]
    if normed:
        return HeadError(
            f"The outputs of {describe(normed[:1])} pass a layer with weights of their own before they leave the "
            f"{kind}, so another count would not fit it. Replace both with replace_modules, or rebuild the head."
        )
    ends = [end for end in run.ends if not end.body]
    if run.complete and run.bare and not (sealed or any(end.level == CLEAN for end in ends)):
        return HeadError(
            f"The outputs of the {kind} come from {', '.join(map(repr, sorted(run.bare)))}, which no linear layer "
            "holds. What can be replaced is a module: let an nn.Linear hold the parameter."
        )
    why = "" if run.complete else f" It could not be run on fake inputs either: {run.failure}."
    likely = [end.layer for end in ends if run.complete or end.layer.role == "class"] or evidence.every[-2:]
    return HeadError(
        f"No layer of the {kind} looks like a classifier, by its names, its counters or its outputs.{why}{sealed} "
        f"If one is, say so: replace_head(model, n, at={likely[-1].name!r}); last in it: {describe(likely)}. "
        "To add a layer to the outputs use append_head."
    )


def _sealed(model: nn.Module) -> str:
    """Tell of the first module that can't be seen into, or be made anew, as a sentence for an error message."""
    for name, module in model.named_modules():
        whose = f" Its {type(module).__name__}{f' {name!r}' if name else ''}"
        if isinstance(module, torch.jit.ScriptModule):
            return f"{whose} is scripted: replace the head before torch.jit does that."
        if "quantized" in type(module).__module__:
            return f"{whose} is quantized: replace the head before that."
        if not has_shapes(module):
            return f"{whose} has no shape yet: run the model on one batch first."
    return ""
