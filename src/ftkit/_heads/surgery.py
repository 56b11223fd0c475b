"""Carry out a change of a model's head: new layers and all that follows them, or nothing."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ftkit._heads.counters import Counter, counters, counts_classes, losses, repeated, shifted
from ftkit._heads.decide import Found, are_twins
from ftkit._heads.fresh import mark, mark_tensors
from ftkit._heads.layers import Layer, Layers, distinct, holders, layers, like, read
from ftkit._heads.metrics import counts_in_tensors, rebuild
from ftkit._heads.proof import Proof
from ftkit._heads.renew import is_as_started, renewed
from ftkit._heads.vocabulary import PER_CLASS, says
from ftkit._models.dryrun import remember_random
from ftkit._models.slots import own_slots, replace
from ftkit._models.undo import Undo
from ftkit._torch import buffers_of, parameters_of
from ftkit.errors import HeadError

_log = logging.getLogger("ftkit")

_USUAL_STD = 0.02  # of an embedding's start in the transformers family, for a table that has no values to tell its own


def resize(
    model: nn.Module,
    found: Found,
    count: int,
    keep: Mapping[int, int] | None,
    follow: Callable[[int, Mapping[int, int], Undo], object],
) -> tuple[Layers, Proof]:
    """Rebuild the layers of a head for ``count`` classes, and update everything that counts them.

    Args:
        model: The model, not wrapped.
        found: Its head.
        count: The new number of classes.
        keep: The new index of each class that stays, to its old index.
        follow: What else is to follow the new count and the kept classes.

    Returns:
        The new layers, and what proves them.

    Raises:
        HeadError: The model would not run with them. It is as it was.
    """
    _check_own_weights(model, found)
    proof = Proof(model, found)
    thaw = not any(parameter.requires_grad for parameter in model.parameters())
    changes: list[tuple[Layer, nn.Module, dict[int, int]]] = []
    with Undo() as undo:
        remember_random(undo)
        as_started = [is_as_started(model, one) for one in found.layers]
        _resize_class_weights(model, found, count, keep or {}, undo)
        if count != found.classes:
            _resize_relations(model, found, count, keep or {}, undo)
        recount(model, found, count, keep or {}, undo)
        for one, started in zip(found.layers, as_started, strict=True):  # all are made before the first is put in
            rows = {} if keep is None else _rows(one, found.classes, count, keep)
            regrown = keep and _tables(model, one)
            outputs = one.outputs_for(count)
            new = one.module if regrown else renewed(model, one, outputs, rows, as_started=started, thaw=thaw)
            twin = next((made for other, made, _ in changes if _are_equal_twins(model, one, other)), None)
            if twin is not None and not regrown:
                new.load_state_dict(twin.state_dict())
            changes.append((one, new, rows))
        for one, new, rows in changes:
            if new is one.module:
                mark([new, *_tables(model, one)], undo)
                _regrow(model, one, count, rows, undo)
            else:
                mark(new.modules(), undo)
                replace(model, one.modules, new, undo)
                untie(model, one, undo)
            _resize_biases(model, one, one.outputs_for(count), rows, undo)
        follow(count, keep or {}, undo)
        proof.check(model, count)
    made = (dataclasses.replace(one, modules=(new,), outputs=one.outputs_for(count)) for one, new, _ in changes)
    return Layers(made), proof


def _check_own_weights(model: nn.Module, found: Found) -> None:
    """Refuse a layer whose weight another layer has too, which would keep the old one."""
    weights = ((one, parameters_of(one.module).get("weight")) for one in found.layers)
    mine = {id(weight): one for one, weight in weights if weight is not None}
    for other in layers(model):
        one = mine.get(id(parameters_of(other.module).get("weight")))
        if one is not None and other.name not in found.layers.names:
            raise HeadError(
                f"{one.name!r} and {other.name!r} share one weight, and a new head would separate them. "
                "Give each its own weight, or replace both with replace_modules."
            )


def _are_equal_twins(model: nn.Module, one: Layer, other: Layer) -> bool:
    """Whether two layers have the same place in parts that are alike, and the same values: a teacher's, as a copy."""
    ours, theirs = (layer.module.state_dict() for layer in (one, other))
    if not are_twins(model, one.name, other.name) or ours.keys() != theirs.keys():
        return False
    pairs = [(value, theirs[key]) for key, value in ours.items()]
    like = all((a.device, a.dtype) == (b.device, b.dtype) and not a.is_meta for a, b in pairs)
    return like and all(torch.equal(a, b) for a, b in pairs)


def _rows(one: Layer, classes: int, count: int, keep: Mapping[int, int]) -> dict[int, int]:
    """Which row of the new layer comes from which row of the old one."""
    kept = itertools.product(keep.items(), range(one.times))
    rows = {one.row(new, part, count): one.row(old, part, classes) for (new, old), part in kept}
    return rows | {one.times * count + k: one.times * classes + k for k in range(one.extra)}


# ---- layers that share their weight with an embedding


def _tables(model: nn.Module, layer: Layer) -> list[nn.Embedding]:
    """The embeddings that a layer shares its weight with."""
    weight = parameters_of(layer.module).get("weight")
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding) and module.weight is weight]
    return [table for table in tables if table is not layer.module]


def _regrow(model: nn.Module, layer: Layer, count: int, rows: Mapping[int, int], undo: Undo) -> None:
    """Cut or grow a tied output layer and its embedding as one table; the parameter stays the same object."""
    tables = _tables(model, layer)
    weight = tables[0].weight
    grown = weight.data.new_empty(count, *weight.shape[1:])
    grown.normal_(std=_USUAL_STD if weight.is_meta else float(weight.data.std()))
    grown[list(rows)] = weight.data[list(rows.values())]
    undo.callback(setattr, weight, "grad", weight.grad)
    undo.callback(setattr, weight, "data", weight.data)
    weight.data, weight.grad = grown, None
    places = dict(zip(rows.values(), rows, strict=True))
    for table in tables:
        undo.remember(table)
        table.num_embeddings = count
        table.padding_idx = None if table.padding_idx is None else places.get(table.padding_idx)
    if isinstance(layer.module, nn.Linear):
        undo.remember(layer.module)
        layer.module.out_features = count
    bias = parameters_of(layer.module).get("bias")
    if bias is not None:
        replace(model, bias, like(bias, _carried(bias, count, rows)), undo)


def untie(model: nn.Module, layer: Layer, undo: Undo) -> None:
    """Let the configuration say that an output layer that leaves its embedding has a weight of its own now."""
    config = read(model, "config")
    for place in (config, read(config, "text_config")):
        if getattr(place, "tie_word_embeddings", False) and _tables(model, layer):
            undo.remember(place)
            place.tie_word_embeddings = False


# ---- tensors elsewhere that count the classes


def _resize_biases(model: nn.Module, one: Layer, outputs: int, rows: Mapping[int, int], undo: Undo) -> None:
    """Make those biases anew that are added to a layer's outputs from the modules that hold it.

    A parameter is one only in the nearest of them, and if the layer has no bias of its own.
    """
    way = holders(model, one.name)
    has_none = getattr(one.module, "bias", None) is None
    for slot in own_slots(*way):
        bias = slot.content
        if isinstance(bias, nn.Module) or "bias" not in slot.name:
            continue
        alike = bias.shape[-1:] == (one.outputs,) == (bias.numel(),)
        if alike and (not isinstance(bias, nn.Parameter) or (has_none and slot.module is way[-1])):
            mark_tensors(slot.module, [slot.name], undo)
            new = _carried(bias.flatten(), outputs, rows).view(*bias.shape[:-1], outputs)
            replace(model, bias, like(bias, new), undo)


def _resize_class_weights(model: nn.Module, found: Found, count: int, keep: Mapping[int, int], undo: Undo) -> None:
    """Make the class weights of losses inside the model anew: those of kept classes stay.

    The others are what all old ones were, if these are alike, and else one. One more than the classes is the weight of
    "no object", and stays.
    """
    places = distinct([*losses(model, found.layers.names), *holders(model, *found.layers.names)])
    for slot in own_slots(*places):
        old, kind = slot.content, type(slot.module).__name__
        if not isinstance(old, nn.Module) and _is_class_weight(slot.name, old, found.classes):
            rivals = _rivals(model, found, old.numel())
            if rivals:
                _log.warning("The %s of the %s stays: it may be that of %s.", slot.name, kind, rivals[0])
                continue
            ours = old[: found.classes]
            alike = not old.is_meta and bool((ours == ours[0]).all())
            if not (alike or old.is_meta) and len(keep) < count:
                _log.warning(
                    "The %s of the %s, which was not the same for all classes, is 1 for each new one. "
                    "Set what the new classes need.",
                    slot.name,
                    kind,
                )
            filled = ours[:1].expand(count) if alike else old.new_ones(count)
            new = torch.cat([filled, old[found.classes :]])
            new[list(keep)] = old[list(keep.values())]
            undo.set_item(slot.table, slot.name, new)


def _is_class_weight(name: str, tensor: torch.Tensor, classes: int) -> bool:
    fits = tensor.dim() == 1 and tensor.numel() - classes in (0, 1)
    return fits and "weight" in name and not isinstance(tensor, nn.Parameter)


def _resize_relations(model: nn.Module, found: Found, count: int, keep: Mapping[int, int], undo: Undo) -> None:
    """Make anew what a module that counts the classes has for each, or each two, of them: a CRF's transitions."""
    classes, head = found.classes, {id(module) for layer in found.layers for module in layer.modules}
    for module in [module for module in model.modules() if id(module) not in head]:
        counts = [
            key
            for key, value in vars(module).items()
            if counts_classes(key) and type(value) is int and value == classes
        ]
        for slot in own_slots(module) if counts else ():
            if isinstance(slot.content, nn.Parameter) and set(slot.content.shape) == {classes}:
                mark_tensors(module, [slot.name], undo)
                replace(model, slot.content, _related_anew(slot.content, count, keep), undo)
                undo.remember(module)
                vars(module).update(dict.fromkeys(counts, count))
                _log.info("The per-class %s of the %s was reinitialized too.", slot.name, type(module).__name__)


def _related_anew(parameter: nn.Parameter, count: int, keep: Mapping[int, int]) -> torch.Tensor:
    """Draw a parameter anew from what the old one looks like; where all the classes of an entry are kept, it is."""
    old = parameter.detach()
    new = old.new_empty((count,) * old.dim()).normal_() * old.std(correction=0) + old.mean()
    if keep:
        fresh, taken = (torch.meshgrid([torch.tensor([*k])] * old.dim(), indexing="ij") for k in (keep, keep.values()))
        new[fresh] = old[taken]
    return like(parameter, new)


def _carried(old: torch.Tensor, size: int, rows: Mapping[int, int]) -> torch.Tensor:
    new = old.detach().new_zeros(size)
    new[list(rows)] = old.detach()[list(rows.values())]
    return new


# ---- counters


def recount(model: nn.Module, found: Found, count: int, keep: Mapping[int, int], undo: Undo) -> None:
    """Let the counters of classes follow, so that the model's own loss and its next checkpoint fit the new head.

    What counts as many beside several heads of that size stays, with a warning: it may be another one's.
    """
    counting = [one for one in counters(model, found.layers.names) if one.value == found.classes]
    counting += _of_inputs(model, found)
    on_the_way = set(map(id, holders(model, *found.layers.names)))
    rivals = _rivals(model, found, found.classes)
    for counter in (*repeated(model, counting, found.classes), *counting):
        beside = isinstance(counter.owner, nn.Module) and id(counter.owner) not in on_the_way
        if rivals and beside:
            _log.warning(
                "The %s of the %s stays %d: it may be that of %s.",
                counter.name,
                type(counter.owner).__name__,
                found.classes,
                rivals[0],
            )
        elif beside and counts_in_tensors(counter.owner, found.classes):
            rebuild(counter.owner, counter.name, count, undo)
        else:
            labels = getattr(counter.owner, "id2label", None)
            for more in shifted(counter):
                more.set(more.value + count - found.classes, undo)
            counter.set(count, undo)
            if counter.name == "num_labels":
                _relabel(counter.owner, labels, count, keep)
    for module in distinct([*holders(model, *found.layers.names), *losses(model, found.layers.names)]):
        for name, tensor in () if count == found.classes else (*vars(module).items(), *buffers_of(module).items()):
            if isinstance(tensor, torch.Tensor) and found.classes in tensor.shape and says(name, PER_CLASS):
                _log.warning("The %s of the %s still has %d classes.", name, type(module).__name__, found.classes)


def _of_inputs(model: nn.Module, found: Found) -> list[Counter]:
    """The counters of inputs in what holds nothing but layers that take the classes: they count these, too."""
    names = [one.name for one in found.layers if one.from_classes]
    taking = {id(model.get_submodule(name)) for name in names}
    return [
        one
        for one in counters(model, names, of="inputs")
        if one.value == found.classes and isinstance(one.owner, nn.Module)
        if all(id(part) in taking for part in one.owner.modules() if parameters_of(part))
    ]


def _rivals(model: nn.Module, found: Found, count: int) -> Layers:
    """Other layers that give so many outputs, which leave the model; without a run, those that nothing could take."""
    every = layers(model)
    possible = every.of_size(count)
    if found.trace is not None:
        possible = found.trace.ends.where(lambda end: not end.body).layers.of_size(count)
    elif any(one.inputs == count for one in every):
        return Layers()
    return Layers(one for one in possible if not (one.name in found.layers.names or one.names_another()))


def _relabel(config: Any, labels: object, count: int, keep: Mapping[int, int]) -> None:
    """Let the labels of kept classes stay in a configuration, whose new count has given it labels without names."""
    if isinstance(labels, Mapping) and keep:
        kept = {new: labels[old] for new, old in keep.items() if old in labels}
        config.id2label = {index: kept.get(index, f"LABEL_{index}") for index in range(count)}
        config.label2id = dict(zip(config.id2label.values(), config.id2label, strict=True))
    if count > 1 and getattr(config, "problem_type", None) == "regression":
        config.problem_type = None
