"""Carry out a change of a model's head: new layers and all that follows them, or nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import nn

from ftkit._heads import evidence
from ftkit._heads.evidence import Found
from ftkit._heads.layers import Layer, Part, renewed
from ftkit._heads.trace import SQUASHED, shapes
from ftkit._models.slots import replace
from ftkit._models.undo import Undo
from ftkit.errors import HeadError

__all__ = ["recount", "resize", "untie"]

_log = logging.getLogger("ftkit")


def resize(model: nn.Module, found: Found, count: int, keep: Mapping[int, int] | None) -> list[Layer]:
    """Make the layers of a head anew for ``count`` classes, and let all follow that counts them.

    Args:
        model: The model, not wrapped.
        found: Its head.
        count: The new number of classes.
        keep: The new index of each class that stays, to its old index.

    Returns:
        The new layers.

    Raises:
        HeadError: The model would not run with them. It is as it was.
    """
    parts, classes = found.parts, found.classes
    thaw = not any(parameter.requires_grad for parameter in model.parameters())
    rows = [_rows(part, classes, count, keep) for part in parts]
    tables = [_tables(model, part.layer) for part in parts]
    news = [
        part.layer.module if keep and table else renewed(model, part, part.times * count + part.extra, kept, thaw)
        for part, kept, table in zip(parts, rows, tables, strict=True)
    ]
    names = [name for part in parts for name in part.layer.names]
    with Undo() as undo:
        for part, new, kept, table in zip(parts, news, rows, tables, strict=True):
            if new is part.layer.module:
                _regrow(model, part.layer, table, count, kept, undo)
            else:
                replace(model, part.layer.modules, new, undo)
                untie(model, part.layer, undo)
            _biases(model, part, count, kept, undo)
        _weights(model, names, classes, count, keep or {}, undo)
        _relations(model, classes, count, keep or {}, undo)
        recount(model, names, classes, count, keep, undo)
        _prove(model, found, count)
    return [
        Layer(part.layer.names, (new,), part.layer.inputs, part.times * count + part.extra, part.layer.axis)
        for part, new in zip(parts, news, strict=True)
    ]


def _prove(model: nn.Module, found: Found, count: int) -> None:
    """Run a model with its new head on what it ran on before, its own loss too; all outputs of the head must follow."""
    run, names = found.run, [name for part in found.parts for name in part.layer.names]
    parts = {part.layer.names: part for part in found.parts}
    for inputs in run.taken if run is not None else ():
        after = shapes(model, inputs)
        why = f": {after}" if isinstance(after, str) else ""
        for end in run.ends if run is not None and not why and inputs is run.taken[0] else ():
            part = parts.get(end.layer.names)
            if part is None or end.training_only:
                continue
            sizes = part.layer.outputs, part.times * count + part.extra
            for port, level in end.ports.items():
                shape = after.get(port) if isinstance(after, dict) else None
                if level <= SQUASHED and (shape is None or not _follows(end.shapes[port], shape, *sizes)):
                    why = f" as before: what was {tuple(end.shapes[port])} is {tuple(shape or ())}"
        if why:
            raise HeadError(
                f"With {count} classes in place of {found.classes} at {', '.join(map(repr, names))} the "
                f"{type(model).__name__} does not run any more{why}. Something else in it counts the classes too."
            )


def _follows(before: torch.Size, after: torch.Size, old: int, new: int) -> bool:
    """Whether an output grew with the outputs of its layer along one axis, if at all, and that not the batch's."""
    if before.numel() * new != after.numel() * old:
        return True  # the axis of the classes is gone, or how many detections there are depends on the scores
    changed = [axis for axis, (b, a) in enumerate(zip(before, after, strict=False)) if b != a]
    return (
        len(before) == len(after)
        and len(changed) < 2
        and all(axis and (old > 1 or before[axis] == 1) for axis in changed)
    )


def _tables(model: nn.Module, layer: Layer) -> list[nn.Embedding]:
    """The embeddings that a layer shares its weight with."""
    weight = layer.module._parameters.get("weight")
    found = [m for m in model.modules() if isinstance(m, nn.Embedding) and weight is not None and m.weight is weight]
    return [table for table in found if table is not layer.module]


def _regrow(
    model: nn.Module, layer: Layer, tables: list[nn.Embedding], count: int, rows: dict[int, int], undo: Undo
) -> None:
    """Cut or grow a tied output layer and its embedding as one table; the parameter stays the same object."""
    weight = tables[0].weight
    undo.callback(setattr, weight, "data", weight.data)
    grown = torch.empty(count, *weight.shape[1:], device=weight.device, dtype=weight.dtype)
    grown.normal_(std=float(weight.data.std()) if weight.device.type != "meta" else 0.02)
    grown[list(rows)] = weight.data[list(rows.values())]
    weight.data, weight.grad = grown, None
    places = {old: new for new, old in rows.items()}
    for table in tables:
        undo.remember(table)
        table.num_embeddings = count
        table.padding_idx = places.get(table.padding_idx) if table.padding_idx is not None else None
    undo.remember(layer.module)
    if isinstance(layer.module, nn.Linear):
        layer.module.out_features = count
    bias = layer.module._parameters.get("bias")
    if bias is not None:
        replace(model, bias, nn.Parameter(_carried(bias, count, rows), requires_grad=bias.requires_grad), undo)


def untie(model: nn.Module, layer: Layer, undo: Undo) -> None:
    """Let the configuration say that an output layer that leaves its embedding has a weight of its own now."""
    config = getattr(model, "config", None)
    for place in (config, getattr(config, "text_config", None)):
        if place is not None and getattr(place, "tie_word_embeddings", False) and _tables(model, layer):
            undo.remember(place)
            place.tie_word_embeddings = False


def _biases(model: nn.Module, part: Part, count: int, rows: dict[int, int], undo: Undo) -> None:
    """Make those biases anew that are added to a layer's outputs from the modules that hold it."""
    layer, outputs = part.layer, part.times * count + part.extra
    holders = [model.get_submodule(layer.name.rpartition(".")[0])] if "." in layer.name else [model]
    if getattr(layer.module, "bias", None) is None:
        for key, value in list(holders[0]._parameters.items()):
            if value is not None and "bias" in key and value.shape == (layer.outputs,):
                new = nn.Parameter(_carried(value, outputs, rows), requires_grad=value.requires_grad)
                replace(model, value, new, undo)
    for holder in evidence.holders(model, layer.name):
        for key, buffer in list(holder._buffers.items()):
            if buffer is not None and "bias" in key and buffer.shape[-1:] == (layer.outputs,) == (buffer.numel(),):
                undo.set_item(
                    holder._buffers, key, _carried(buffer.flatten(), outputs, rows).view(*buffer.shape[:-1], outputs)
                )


def _weights(model: nn.Module, names: list[str], classes: int, count: int, keep: Mapping[int, int], undo: Undo) -> None:
    """Make the class weights of losses inside the model anew: those of kept classes stay, the others are one.

    One more than the classes is the weight of "no object", and stays.
    """
    around = [holder for name in names for holder in evidence.holders(model, name)]
    for loss in dict.fromkeys([*evidence.losses(model, names), *around]):
        for key, buffer in list(loss._buffers.items()):
            extra = buffer.numel() - classes if buffer is not None else -1
            if buffer is not None and "weight" in key and buffer.dim() == 1 and extra in (0, 1):
                new = torch.cat([buffer.new_ones(count), buffer[classes:]])
                new[list(keep)] = buffer[list(keep.values())]
                undo.set_item(loss._buffers, key, new)
                _log.info("The class weights of the %s are one for each new class.", type(loss).__name__)


def _relations(model: nn.Module, classes: int, count: int, keep: Mapping[int, int], undo: Undo) -> None:
    """Make anew what a module that counts the classes has for each, or each two, of them: a CRF's transitions."""
    for module in model.modules():
        counts = [key for key, value in vars(module).items() if type(value) is int and value == classes]
        counts = [key for key in counts if evidence.counts_classes(key)]
        for key, value in list(module._parameters.items()) if counts and count != classes else ():
            if value is None or set(value.shape) != {classes}:
                continue
            old = value.detach()
            new = old.new_empty((count,) * old.dim()).normal_() * old.std(correction=0) + old.mean()
            if keep:
                fresh, taken = (
                    torch.meshgrid([torch.tensor([*k])] * old.dim(), indexing="ij") for k in (keep, keep.values())
                )
                new[fresh] = old[taken]
            replace(model, value, nn.Parameter(new, requires_grad=value.requires_grad), undo)
            undo.remember(module)
            vars(module).update(dict.fromkeys(counts, count))
            _log.info("The %s of the %s, for each class, is new too.", key, type(module).__name__)


def _carried(old: torch.Tensor, size: int, rows: dict[int, int]) -> torch.Tensor:
    new = old.detach().new_zeros(size)
    new[list(rows)] = old.detach()[list(rows.values())]
    return new


def _rows(part: Part, classes: int, count: int, keep: Mapping[int, int] | None) -> dict[int, int]:
    """Which row of the new layer comes from which row of the old one."""
    if keep is None:
        return {}
    if part.by_class:
        rows = {part.times * new + k: part.times * old + k for new, old in keep.items() for k in range(part.times)}
    else:
        rows = {k * count + new: k * classes + old for new, old in keep.items() for k in range(part.times)}
    return rows | {part.times * count + k: part.times * classes + k for k in range(part.extra)}


def recount(
    model: nn.Module, names: list[str], classes: int, count: int, keep: Mapping[int, int] | None, undo: Undo
) -> None:
    """Let the counters of classes follow, so that the model's own loss and its next checkpoint fit the new head."""
    for counter in evidence.counters(model, names):
        if counter.value != classes:
            continue
        owner = counter.owner
        undo.remember(owner)
        labels = getattr(owner, "id2label", None) if counter.name == "num_labels" else None
        counter.set(count)
        if isinstance(labels, Mapping) and keep:
            kept = {new: labels[old] for new, old in keep.items() if old in labels}
            owner.id2label = {index: kept.get(index, f"LABEL_{index}") for index in range(count)}
            owner.label2id = {label: index for index, label in owner.id2label.items()}
        if counter.name == "num_labels" and getattr(owner, "problem_type", None) == "regression" and count > 1:
            owner.problem_type = None
