"""Which layers of a model are its head: rules in the order in which they are tried, each with who needs it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from ftkit._heads.counters import counters, counts_classes, told
from ftkit._heads.graph import CLEAN, End, Ends
from ftkit._heads.inputs import Inputs
from ftkit._heads.layers import (
    Layer,
    Layers,
    has_parameters,
    holders,
    layers,
    own_tensors,
    read,
    self_description,
    width_of_norm,
)
from ftkit._heads.refusals import (
    check_losses,
    check_maps,
    check_passed_on,
    check_scorers,
    doubt,
    headless,
    normed_otherwise,
    nothing,
    sideless,
)
from ftkit._heads.trace import Run, Trace, trace
from ftkit._heads.vocabulary import AUXILIARY, LABELS, is_usual, role, says
from ftkit._models.dryrun import tensors_in
from ftkit._torch import is_convolution


@dataclass(frozen=True, eq=False)
class Found:
    """What was found to be the head."""

    layers: Layers
    classes: int
    trace: Trace | None = None  # what told, where names and counters were not enough


def find_layers(model: nn.Module, given: Inputs | None = None, *, run: bool = False) -> Found:
    """Find the layers that make the class outputs, and how many classes they have.

    Args:
        model: The model, not wrapped.
        given: Inputs that the user knows it to take.
        run: Whether to run it, on those or made-up ones, even where names settle it; if they and the run disagree, the
            run is right.

    Raises:
        HeadError: There is none, or several that can't be told apart.
    """
    every = layers(model)
    if not every or read(model, "num_classes") == 0:
        raise headless(model, every)
    seen = trace(model, every, given) if run or given is not None else None
    for at_once in (_declared, _obvious):
        settled = at_once(model, every)
        if settled and (seen is None or _gives_outputs(model, settled, seen)):
            return Found(settled, settled[0].outputs, seen)
    evidence = _Evidence(model, every, seen or trace(model, every))
    found = next(filter(None, (rule(evidence) for rule in _RULES)), None)
    if found is None:
        check_losses(model, evidence.unseen, evidence.told, Layers())
        raise nothing(model, every, evidence.trace)
    check_passed_on(model, evidence.trace, found)
    check_scorers(model, evidence.trace, found)
    check_losses(model, evidence.unseen, evidence.told, found)
    classes = found[0].classes
    found, boxes = (Layers(in_order(one, evidence.trace) for one in part) for part in (found, _boxes(evidence, found)))
    found = with_norms(model, _with_maps(every, found, evidence.trace), evidence.trace)
    check_maps(model, every, evidence.trace, found)
    order = list(dict(model.named_modules(remove_duplicate=False)))
    whole = sorted([*found, *boxes], key=lambda layer: order.index(layer.name))
    return Found(Layers([*whole, *_label_tables(model, classes)]), classes, evidence.trace)


def in_classes(model: nn.Module, layer: Layer, seen: Trace | None) -> Layer:
    """Tell how the outputs of a layer that the user named count classes.

    Raises:
        HeadError: Nothing tells which axis of its weight they are.
    """
    counts = told(model, layer.names)
    if not layer.sure:
        seen = seen or trace(model, layers(model))
        layer = (seen.ends.of(layer).layers or [layer])[0]
        layer = layer.turned() if layer.outputs not in counts and layer.inputs in counts else layer
        gave = {seen.run.widths.get(name) for name in layer.names}
        if seen.run.complete and {layer.outputs, layer.inputs}.isdisjoint({*counts, *gave}):
            raise sideless(model, layer)
    return next(filter(None, (_counted(model, layer, classes, seen) for classes in counts)), layer)


def in_order(layer: Layer, seen: Trace) -> Layer:
    """Tell whether the several outputs of one class are neighbors, by how the model splits them."""
    rows = {size for end in seen.ends.of(layer) for size in end.rows}
    if layer.times == 1 or layer.extra or layer.times == layer.classes or rows not in ({layer.times}, {layer.classes}):
        return layer
    return replace(layer, by_class=rows == {layer.times})


def with_norms(model: nn.Module, found: Layers, seen: Trace) -> Layers:
    """Add the norms that the outputs of layers pass on their way out, which have as many features.

    Raises:
        HeadError: A norm counts something else too.
    """
    norms: dict[str, Layer] = {}
    for layer in found:
        for name in sorted({name for end in seen.ends.leaving(layer) for name in _norms_behind(end, layer)}):
            norm = model.get_submodule(name)
            if width_of_norm(norm) != layer.outputs:
                raise normed_otherwise(model, layer, name)
            norms[name] = replace(layer, names=(name,), modules=(norm,), inputs=layer.outputs, axis=0)
    return Layers([*found, *norms.values()])


def _norms_behind(end: End, layer: Layer) -> Iterable[str]:
    return end.norms if layer.names == end.layer.names else next(n for one, n in end.chain if one.names == layer.names)


def _with_maps(every: Layers, found: Layers, seen: Trace) -> Layers:
    """Add what comes before convolutions from classes to classes, as far as it gives the classes: VNet, USleep.

    That is sure only where one module holds just these, and nothing else in the model has as many outputs.
    """
    parts = {layer.names: layer for layer in found}
    for layer in (one for one in found if is_convolution(one.module) and one.outputs == one.classes):
        for chain in ([one for one, _ in end.chain] for end in seen.ends.of(layer) if end.chain):
            row = {layer.names, *(one.names for one in chain)}
            held = {one.names for one in every.inside(layer.holder)}  # of the model itself, none
            alike = {one.names for one in every.of_size(layer.outputs)} - parts.keys()
            if held == row >= alike and len(held) < len(every):
                parts |= {one.names: replace(one, from_classes=True) for one in (layer, *chain[:-1])}
                parts[chain[-1].names] = chain[-1]
    return Layers(parts.values())


# ---- rules that need no run


def _gives_outputs(model: nn.Module, settled: Layers, seen: Trace) -> bool:
    """Whether a run, if there was one, shows nothing against the layers that names settled."""
    ends = seen.ends.where(lambda end: not end.body)
    again = not told(model, ()) and any(_is_the_series(end, seen.run) for end in ends.where(End.is_clean))
    return not seen.run.complete or (all(layer.name in ends.layers.names for layer in settled) and not again)


def _declared(model: nn.Module, every: Layers) -> Layers:
    """The layers that the model itself says classify: timm's models (``pretrained_cfg``), where nothing contradicts."""
    said, count = self_description(model).get("classifier") or (), read(model, "num_classes")
    named = [every.inside(name)[-1:] for name in ([said] if isinstance(said, str) else said)]
    counting = every.of_size(count)
    agreed = set(map(tuple, named)) == {(layer,) for layer in counting}
    return counting if counting and agreed and not _is_counted_elsewhere(model, counting[-1]) else Layers()


def _obvious(model: nn.Module, every: Layers) -> Layers:
    """The one last layer, under a usual name and alone with its count: nearly every plain classifier."""
    last = every[-1]
    place = _usual_place(model, last.name)
    if place is None or last.names_another() or len(last.names) > 1 or not _is_alone(model, every, last):
        return Layers()
    at, holder = place
    chained = all(one.outputs == two.inputs for one, two in itertools.pairwise(every.inside(at)))
    counts = told(model, last.names) or ([] if _may_feed_another(every, last) else [last.outputs])
    settled = chained and last.outputs in counts and not _has_rivals(holder, at.rpartition(".")[2])
    return Layers([last] if settled else [])


def _may_feed_another(every: Layers, last: Layer) -> bool:
    """Whether a layer that was registered earlier takes as many features as the last one gives: a head made first."""
    return any(layer.inputs == last.outputs for layer in every if layer is not last)


def _usual_place(model: nn.Module, name: str) -> tuple[str, nn.Module] | None:
    """Where a child with a usual name begins on the way to a layer, and what holds it.

    Whatever is passed on the way there has nothing but that child to train: the wrappers around a model.
    """
    steps = name.split(".")
    for depth, (holder, step) in enumerate(zip(holders(model, name), steps, strict=True)):
        if is_usual(step):
            return ".".join(steps[: depth + 1]), holder
        if sum(map(has_parameters, holder.children())) != 1:
            break
    return None


def _is_alone(model: nn.Module, every: Layers, last: Layer) -> bool:
    """Whether nothing else in the model has the last layer's count, its weight or a place after it."""
    return (
        every.of_size(last.outputs) == [last] and not _is_counted_elsewhere(model, last) and not _is_tied(model, last)
    )


def _has_rivals(holder: nn.Module, name: str) -> bool:
    """Whether other children beside the one of that name could be a head too, by what they are called."""
    others = [other for other, child in holder.named_children() if other != name and has_parameters(child)]
    return any(role(other) or says(other, AUXILIARY) for other in others)


def _is_tied(model: nn.Module, layer: Layer) -> bool:
    """Whether something else in the model has a parameter of the layer."""
    mine = set(map(id, layer.module.parameters()))
    places = sum(id(parameter) in mine for _, parameter in model.named_parameters(remove_duplicate=False))
    return places > len(mine) * len(layer.names)


def _is_counted_elsewhere(model: nn.Module, layer: Layer) -> bool:
    """Whether tensors of the size of the outputs stand beside the layer, or come after it: a norm of the logits."""
    around = map(own_tensors, holders(model, layer.name))
    if any(layer.outputs in tensor.shape for tensor in itertools.chain.from_iterable(around)):
        return True
    inside = {id(module) for one in layer.modules for module in one.modules()}
    rest = itertools.dropwhile(lambda module: module is not layer.module, model.modules())
    after = (own_tensors(module) for module in rest if id(module) not in inside)
    return any(one.shape == (layer.outputs,) for one in itertools.chain.from_iterable(after))


# ---- rules on what a run told


class _Evidence:
    """What a run and the counters told of a model.

    Attributes:
        unseen: The layers that did not run.
        ends: Those that could be class outputs: no layer comes after them, and no name says otherwise.
        named: The same, and where the run was cut short those that would have run after, told by their names or counts.
        told: The counts of classes that counters tell, the most telling first.
    """

    def __init__(self, model: nn.Module, every: Layers, seen: Trace) -> None:
        self.model, self.every, self.trace = model, every, seen
        self.unseen = Layers(layer for layer in every if seen.run.unseen.issuperset(layer.names))
        self.ends = self.named = seen.ends.where(lambda end: not (end.body or end.layer.names_another()))
        self.told = told(model, self.ends.layers.names)
        if self.unseen and not seen.run.complete:  # what came out before the run failed need be no output of the model
            late = {layer.names for layer in every[every.index(self.unseen[-1]) :]}
            possible = Ends([*self.ends, *map(End, self.unseen)])
            self.ends = self.ends.where(lambda end: end.layer.names in late)
            taken = {layer.inputs for layer in every}
            counted = {count for count in told(model, ()) if count > 1} - taken  # what no layer takes, leaves the model
            self.named = possible.where(
                lambda end: (
                    end in self.ends
                    or end.layer.names_classes()
                    or (end.layer in self.unseen and end.layer.outputs in counted and not end.layer.names_another())
                )
            )


def _counted_by_the_model(evidence: _Evidence) -> Layers:
    """The layers whose outputs fit a counter: transformers, detectors, most libraries, and models that do not run."""
    for classes in evidence.told:
        chosen = _fitting(evidence, classes) or _fitting_with_no_object(evidence, classes)
        if not all(end.training_only for end in chosen):
            siblings = _siblings(evidence, chosen.layers)
            return Layers([*chosen.layers, *siblings, *_scoring_on_the_way(evidence, classes).layers])
    return Layers()


def _named_for_classes(evidence: _Evidence) -> Layers:
    """The outputs of layers named for classes, or under a softmax: models that count nothing, one head among others."""
    group = evidence.ends.where(End.scores).where(lambda end: end.softmax or end.layer.names_classes())
    if any(_is_the_series(end, evidence.trace.run) for end in group):
        return Layers()
    return Layers() if all(map(End.helps_training, group)) else _of_one_size(evidence, group)


def _left_as_they_are(evidence: _Evidence) -> Layers:
    """The outputs that leave the model as the layer gave them: a user's own model, in which no name says anything."""
    group = evidence.ends.where(End.is_clean)
    run = evidence.trace.run
    if not run.complete or all(end.training_only or end.layer.outputs == 1 for end in group):
        return Layers()
    given = [tensor.shape for tensor in tensors_in(run.inputs) if tensor.is_floating_point()]
    narrowest = min(run.widths.values(), default=0)
    if any(_gives_back(end, shape, narrowest) for end in group for shape in given):
        return Layers()
    return _of_one_size(evidence, group)


_FEWEST_NARROWED = 12  # numbers of an example that a narrow layer stands for
_FEWEST_RESTORED = 32  # numbers of an example: a classifier may have as many classes as features, if these are few


def _is_the_series(end: End, run: Run) -> bool:
    """Whether a model gives as many steps of a series as it takes: a forecaster, whose last layer is a "head" too."""
    given = [tensor.shape for tensor in tensors_in(run.inputs) if tensor.is_floating_point() and tensor.dim() == 3]
    made = [end.shapes[port] for port in end.ports_within(CLEAN)]
    return isinstance(end.layer.module, nn.Linear) and not end.softmax and any(shape in made for shape in given)


def _gives_back(end: End, given: torch.Size, narrowest: int) -> bool:
    """Whether a model gives what goes in, as an autoencoder does, or more of the same series, as a forecaster does.

    A small autoencoder is known by its ``narrowest`` layer, which has at most half as many features as it gives back.
    """
    linear = isinstance(end.layer.module, nn.Linear)
    made = [end.shapes[port] for port in end.ports_within(CLEAN)]
    continues = any(linear and len(given) == len(one) == 3 and given[::2] == one[::2] for one in made)
    fewest = _FEWEST_RESTORED if 2 * narrowest > given[-1] else _FEWEST_NARROWED
    return continues or (given in made and given[1:].numel() >= fewest)


_RULES: tuple[Callable[[_Evidence], Layers], ...] = (
    _counted_by_the_model,
    _named_for_classes,
    _left_as_they_are,
)


def _fitting(evidence: _Evidence, classes: int) -> Ends:
    """The layers that a number of classes fits. Scores that are squashed or normed must be named so."""
    unseen = evidence.unseen
    possible = evidence.named.where(lambda end: end.is_clean() or end.layer.names_classes() or end.layer in unseen)
    found = Ends()
    for end in possible:
        layer = _counted(evidence.model, end.layer, classes, evidence.trace)
        if layer is not None:
            found.append(replace(end, layer=layer))
    return found


def _fitting_with_no_object(evidence: _Evidence, classes: int) -> Ends:
    """The layers with one more output, for "no object": set-prediction detectors (DETR and what came of it)."""
    possible = evidence.named.of_size(classes + 1).where(End.is_clean)
    return Ends(replace(end, layer=replace(end.layer, extra=1)) for end in possible if end.layer.names_classes())


def _counted(model: nn.Module, layer: Layer, classes: int, seen: Trace | None) -> Layer | None:
    """Tell how a number of classes could make a layer's outputs, or that it can't.

    Several for each class, as detectors have them for their anchors, only where that number is near: in what holds the
    layer, the model itself left out, in the shapes in which the scores come out or are split, or in the groups of the
    layer.
    """
    if layer.outputs == classes:
        return layer
    if classes < 2 or layer.outputs % classes:
        return None
    around = [one for one in counters(model, layer.names) if isinstance(one.owner, nn.Module)]
    near = {one.value for one in around if one.owner is not model and counts_classes(one.name)}
    if seen is not None:
        near |= {shape[-1] for shape in seen.shapes_of(layer, CLEAN) if len(shape) > 2}
        near |= {size for end in seen.ends.of(layer) for row in end.rows for size in (row, layer.outputs // row)}
    near |= {layer.outputs // getattr(layer.module, "groups", layer.outputs)}  # all classes in each group
    return replace(layer, times=layer.outputs // classes) if classes in near else None


def _of_one_size(evidence: _Evidence, group: Ends) -> Layers:
    """Take the layers of a group as one head, with those that help it in training.

    Raises:
        DoubtError: They have different numbers of outputs, or are several heads of the same one.
    """
    main = group.where(lambda end: not end.is_auxiliary()) or Ends(group[:1])
    if all(end.layer.outputs == 1 for end in main):  # true or false, say, beside the classes: an AC-GAN
        main = group.where(lambda end: end.layer.outputs > 1) or main
        group = main
    sizes = {end.layer.outputs for end in main}
    if len(sizes) > 1:
        raise doubt(evidence.model, group)
    classes = sizes.pop()
    helping = evidence.ends.where(End.scores).where(End.helps_training)
    same = evidence.ends.of_size(classes).where(lambda end: end in group or end in helping)
    same += _scoring_on_the_way(evidence, classes)
    siblings = _siblings(evidence, same.layers)
    leaving = {frozenset(end.ports.items()) for end in same if not end.helps_training()}
    if len(leaving) > 1 and not _boxes(evidence, same.layers):  # apart, and not summed
        raise doubt(evidence.model, same)
    return Layers([*same.layers, *siblings])


# ---- layers that belong to a head beside those that a rule found


def _scoring_on_the_way(evidence: _Evidence, classes: int) -> Ends:
    """Layers that feed another one and score the classes too: deep supervision, heads from coarse to fine."""
    return evidence.trace.ends.of_size(classes).where(lambda end: end.beside and not end.layer.names_another())


def _siblings(evidence: _Evidence, found: Layers) -> list[Layer]:
    """Layers like those found: of a decoder's other layers, of another mode, kept for later."""
    siblings = []
    for layer in evidence.every:
        one = next((one for one in found if _is_sibling(evidence, layer, one)), None)
        if one is not None and not found.inside(layer.name):
            siblings.append(replace(one, names=layer.names, modules=layer.modules, inputs=layer.inputs))
    return siblings


def _is_sibling(evidence: _Evidence, layer: Layer, one: Layer) -> bool:
    """Whether a layer belongs to another with as many outputs: in one list with it, or its twin, or kept for training.

    Twins and those named for classes or helping do if they did not run, twins also if they ran without history.
    """
    if layer.outputs != one.outputs or type(layer.module) is not type(one.module) or layer.names_another():
        return False
    unseen, alike = layer in evidence.unseen, layer.inputs == one.inputs
    if layer.holder == one.holder and isinstance(evidence.model.get_submodule(one.holder), nn.ModuleList):
        return unseen or (alike and layer.names_classes())
    helps = says(layer.name, AUXILIARY) or (layer.names_classes() and one.names_classes())
    twins = are_twins(evidence.model, layer.name, one.name)
    runs = evidence.trace.run
    return runs.complete and alike and ((unseen and (helps or twins)) or (twins and runs.is_without_history(layer)))


def are_twins(model: nn.Module, name: str, other: str) -> bool:
    """Whether two layers have the same place in parts of a model that are alike: a student and its mean teacher."""
    steps, others = name.split("."), other.split(".")
    apart = [place for place, (one, two) in enumerate(zip(steps, others, strict=False)) if one != two]
    if len(steps) != len(others) or len(apart) != 1 or apart[0] == len(steps) - 1:
        return False
    parts = [model.get_submodule(".".join(way[: apart[0] + 1])) for way in (steps, others)]
    shapes = [[(key, value.shape) for key, value in part.named_parameters()] for part in parts]
    return type(parts[0]) is type(parts[1]) and shapes[0] == shapes[1]


_COORDINATES = 4  # of a box


def _boxes(evidence: _Evidence, found: Layers) -> list[Layer]:
    """The layers that give a box for each class beside one that scores the classes: two-stage detectors."""
    scoring = {(layer.holder, layer.inputs, _COORDINATES * layer.outputs) for layer in found if layer.times == 1}
    beside = [layer for layer in evidence.every if (layer.holder, layer.inputs, layer.outputs) in scoring]
    return [replace(layer, times=_COORDINATES, by_class=True) for layer in beside if layer.names_another()]


def _label_tables(model: nn.Module, classes: int) -> Iterator[Layer]:
    """The embeddings of class labels: detectors that learn from noisy labels, with a row more for "none" or without."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and says(name.rpartition(".")[2], LABELS) and classes > 1:
            table = Layer((name,), (module,), module.embedding_dim, module.num_embeddings, axis=0)
            if table.outputs - classes in (0, 1):
                yield replace(table, extra=table.outputs - classes)
