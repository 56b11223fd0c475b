"""Give a base model the layers of a delta, and check that it is the delta's base."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ftkit._deltas.changes import fingerprint, tensors_of
from ftkit._deltas.layers import Description, build
from ftkit._heads.evidence import counters
from ftkit._heads.replace import replace_head
from ftkit._models.undo import Undo
from ftkit.errors import CheckpointError, HeadError, did_you_mean

__all__ = ["fill", "place"]


def place(model: nn.Module, record: Mapping[str, Any], tensors: Mapping[str, Tensor], undo: Undo) -> None:
    """Give a base model the layers that a delta's tensors need, and check that it is the delta's base.

    The record is that of :func:`ftkit._deltas.changes.split`.

    Raises:
        CheckpointError: It is another base, or a layer can't be built.
    """
    lacking = {layer: how for layer, how in record["layers"].items() if not _fits(model, layer, tensors)}
    _check_base(model, record["base"], {*tensors}, tuple(f"{layer}." for layer in lacking))
    with torch.random.fork_rng(devices=[]):  # new layers draw their first weights, which are replaced at once
        for layer, description in lacking.items():
            if not _resized(model, layer, tensors, undo):
                _rebuild(model, layer, description, tensors, undo)
        for layer in sorted({_owner(name) for name in _misfits(model, tensors)}):
            _resized(model, layer, tensors, undo)
    _check_all_fit(model, tensors)


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors that are known to fit into the model."""
    state = tensors_of(model)
    with torch.no_grad():
        for name, value in tensors.items():
            state[name].copy_(value)


# ---- what fits


def _alike(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.dtype) == (b.shape, b.dtype)


def _inside(layer: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(f"{layer}.")}


def _fits(model: nn.Module, layer: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a layer of the model holds just the tensors that it has in the delta."""
    wanted, there = _inside(layer, tensors), _inside(layer, tensors_of(model))
    return wanted.keys() == there.keys() and all(_alike(there[name], wanted[name]) for name in wanted)


def _misfits(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors that have no place in the model."""
    state = tensors_of(model)
    return [name for name, value in tensors.items() if name not in state or not _alike(state[name], value)]


def _check_all_fit(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    misfits = _misfits(model, tensors)
    if misfits:
        state, name = tensors_of(model), misfits[0]
        there = f"{state[name].dtype} of {list(state[name].shape)}" if name in state else "nothing"
        raise CheckpointError(
            f"The delta holds {name!r}, {tensors[name].dtype} of {list(tensors[name].shape)}; this model has {there} "
            "there, and the part can't be built from the file. Build the model as it was in training, its head "
            f"included (replace_head), and load again.{did_you_mean(name, state) if name not in state else ''}"
        )


def _check_base(model: nn.Module, wanted: Mapping[str, Any], changed: set[str], lacking: tuple[str, ...]) -> None:
    """Compare everything that neither is in the delta nor in a layer to be replaced with the delta's base."""
    base = {
        name: tensor
        for name, tensor in tensors_of(model).items()
        if name not in changed and not name.startswith(lacking)
    }
    found = fingerprint(base)
    if found["shapes"] != wanted["shapes"]:
        raise CheckpointError(
            f"This delta belongs to another architecture: its base has {wanted['tensors']} tensors, this model "
            f"{found['tensors']} besides those in the delta, or their names or shapes differ. Build the model that "
            "it was made from."
        )
    if found["contents"] != wanted["contents"]:
        raise CheckpointError(
            "This delta belongs to a base of the same architecture with other weights. Load the pretrained weights "
            "that fine-tuning started from first."
        )


# ---- layers


def _owner(name: str) -> str:
    """The layer that a tensor belongs to: a parametrization's tensors belong to the layer that it stands in."""
    layer, parametrized, _ = name.partition(".parametrizations.")
    return layer if parametrized else name.rpartition(".")[0]


def _resized(model: nn.Module, layer: str, tensors: Mapping[str, Tensor], undo: Undo) -> bool:
    """Try to fit a layer by another count of classes, so that the model's own counters follow."""
    there = _inside(layer, tensors_of(model))
    counts = {
        new
        for name, value in _inside(layer, tensors).items()
        if name in there and there[name].ndim == value.ndim
        for old, new in zip(there[name].shape, value.shape, strict=True)
        if old != new
    }
    if len(counts) != 1:
        return False
    attempt = Undo()
    _remember(model, layer, attempt)
    with contextlib.suppress(HeadError):
        replace_head(model, counts.pop(), at=layer)
    if not _fits(model, layer, tensors):
        attempt.take_back()
        return False
    undo.callback(attempt.take_back)
    return True


def _rebuild(model: nn.Module, layer: str, description: Description, tensors: Mapping[str, Tensor], undo: Undo) -> None:
    """Put a layer made from its description where the base has another one."""
    try:
        old = model.get_submodule(layer)
    except AttributeError:
        return
    form = next((tensor.dtype for tensor in _inside(layer, tensors).values() if tensor.is_floating_point()), None)
    device = [*old.parameters(), *model.parameters(), torch.empty(0)][0].device
    new = build(description).to(device, form).train(old.training)
    _remember(model, layer, undo)
    try:
        replace_head(model, new, at=layer)
    except HeadError:  # the base has no layer there that could be a head: nothing counts its classes
        model.set_submodule(layer, new)
    new.to(dtype=form)  # a head takes the type of the layer before it


def _remember(model: nn.Module, layer: str, undo: Undo) -> None:
    """Note how a model is built, and what counts the classes of a layer, in it and in its configuration."""
    for module in model.modules():
        undo.remember(module)
    for counter in counters(model, [layer]):
        undo.remember(counter.owner)
