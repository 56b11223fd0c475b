"""A layer made anew with another number of outputs or inputs, and started as the model would have started it."""

from __future__ import annotations

import contextlib
import copy
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from ftkit._heads.layers import Layer, like
from ftkit._heads.starts import start, start_by_code
from ftkit._heads.untrained import are_alike, is_constant, is_untrained
from ftkit._models.dryrun import quiet
from ftkit._models.slots import own_slots
from ftkit._torch import buffers_of, is_norm, parameters_of, power_iterate, pre_hooks_of
from ftkit._wording import cause
from ftkit.errors import HeadError

_COUNTS = (
    *("out_features", "out_channels", "nf", "num_classes", "num_labels", "n_classes", "num_embeddings"),
    *("num_features", "num_channels"),  # of norms
)
_POWER_ITERATIONS = 15  # as many as torch's own spectral norm does at its start


def is_as_started(model: nn.Module, layer: Layer) -> bool:
    """Whether an untrained layer is as the model's own code starts one of its size, so that the code can be trusted.

    To be asked before the model counts other classes, on which a start may hang.
    """
    old = layer.module
    with torch.no_grad(), _resting(old), torch.random.fork_rng(devices=[]):
        if not is_untrained(layer):
            return False
        twin = _twin(old, layer.outputs, layer.outputs, layer.axis)
        bare = _bare(twin, layer, layer.outputs)
        start_by_code(model, layer, bare)
        _fill(twin, bare)
        return all(are_alike(value, old.get_parameter(name)) for name, value in twin.named_parameters())


def renewed(
    model: nn.Module, layer: Layer, outputs: int, rows: Mapping[int, int], *, as_started: bool, thaw: bool
) -> nn.Module:
    """Return a layer like the old one, initialized, with another number of outputs.

    Args:
        model: The model that holds it. It counts the new classes already.
        layer: The old layer.
        outputs: How many outputs the new one has.
        rows: Which of them are carried over: each one's index to its old index.
        as_started: Whether the old layer is as the model's own code starts it.
        thaw: Whether it trains even where the old one was frozen.

    Raises:
        HeadError: Something that hangs on the layer fits the old number alone.
    """
    old = layer.module
    _check_free(layer, "another count would not fit them", outputs, keeps=bool(rows))
    new = _twin(old, layer.outputs, outputs, layer.axis)
    vars(new).update({name: outputs for name in _COUNTS if vars(new).get(name) == layer.outputs})
    if layer.from_classes and not is_norm(old):
        new = _twin(new, layer.inputs, outputs, 1 - layer.axis, vectors=False)
        vars(new).update({name: outputs for name in ("in_features", "in_channels") if name in vars(new)})
    if vars(new).get("normalized_shape") == (layer.outputs,):
        vars(new)["normalized_shape"] = (outputs,)
    padding = vars(new).get("padding_idx")
    if padding is not None and padding >= layer.outputs - layer.extra:
        vars(new)["padding_idx"] = padding + outputs - layer.outputs
    with torch.no_grad(), _resting(old):
        bare = _bare(new, layer, outputs)
        start(model, layer, bare, as_started=as_started)
        _fill(new, bare)
        for name, value in new.named_parameters():  # such as the lengths of a weight norm that all are one
            source = old.get_parameter(name)
            if bare is not new and source.numel() > 1 and is_constant(source):
                value.fill_(source.flatten()[0])
        if rows:
            _carry(layer, new, rows)
    _need_gradients_like(old, new, thaw)
    return new


def with_channels(entry: Layer, channels: int) -> nn.Module:
    """Return a convolution like the old one for another number of channels, with its filters."""
    _check_free(entry, "its channels are fixed")
    old, axis = entry.module, 1 - entry.axis
    new = _twin(old, entry.inputs, channels, axis, vectors=False)
    vars(new)["in_channels"] = channels
    with torch.no_grad(), _resting(old):
        source: torch.Tensor = getattr(old, "weight").detach()  # noqa: B009 -- it may be parametrized
        turn = torch.arange(channels, device=source.device) % entry.inputs
        taken = source.index_select(axis, turn) * (entry.inputs / channels)
        _assign(new, "weight", source.sum(axis, keepdim=True) if channels == 1 else taken)
    _need_gradients_like(old, new, thaw=False)
    return new


@contextlib.contextmanager
def _resting(layer: nn.Module) -> Iterator[None]:
    """Keep a layer in eval mode, in which nothing moves where a weight is computed to be read."""
    training = [module for module in layer.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _check_free(layer: Layer, what: str, outputs: int = 0, *, keeps: bool = False) -> None:
    """Refuse a layer that something fits to its sizes as they are.

    Groups do not, where each of them gives every class.
    """
    if _hooks_that(layer.module, "apply_mask"):
        raise HeadError(f"{layer.name!r} is pruned; end the pruning with torch.nn.utils.prune.remove first.")
    groups = getattr(layer.module, "groups", 1)
    if groups != 1 and (not outputs or layer.times % groups or layer.extra):
        each = layer.outputs // groups
        how = (
            f" If each group scores all classes, set model.num_classes = {each} first." if outputs and each > 1 else ""
        )
        raise HeadError(f"{layer.name!r} is a convolution with {groups} groups: {what}.{how}")
    if groups != 1 and keeps:
        raise HeadError(
            f"{layer.name!r} is a convolution with {groups} groups, and nothing tells which of its outputs belong to "
            "which class. Leave keep= out."
        )
    groups = getattr(layer.module, "num_groups", 1)
    if outputs % groups:
        raise HeadError(f"{layer.name!r} is a norm of {groups} groups, which can't share {outputs} class scores.")


def _twin(old: nn.Module, before: int, after: int, axis: int, *, vectors: bool = True) -> nn.Module:
    """Copy a layer with all that hangs on it; tensors that count ``before`` along ``axis`` count ``after``.

    So do ``vectors``, such as a bias, where the axis is that of the outputs.
    """
    new: nn.Module = old.__class__.__new__(old.__class__)
    for key, value in vars(old).items():
        new.__dict__[key] = _own(key, value, old, new)
        if isinstance(value, torch.Size) and value[axis : axis + 1] == (before,):  # a parametrization's, of its weight
            new.__dict__[key] = torch.Size((*value[:axis], after, *value[axis + 1 :]))
        if isinstance(value, torch.Tensor):  # the weight that old-style weight norm computes before each forward
            new.__dict__[key] = _sized(key, value, before if vectors or value.dim() > 1 else 0, after, axis)
    for slot in own_slots(new):  # its tables are new, and hold what the old one's do
        if isinstance(slot.content, nn.Module):
            slot.table[slot.name] = _twin(slot.content, before, after, axis, vectors=vectors)
        else:
            counting = before if vectors or slot.content.dim() > 1 else 0
            slot.table[slot.name] = _sized(slot.name, slot.content, counting, after, axis)
    return new


def _own(key: str, value: Any, old: nn.Module, new: nn.Module) -> Any:
    """Give a copy of a module a table, or a forward that was set on it, of its own."""
    if isinstance(value, types.MethodType) and value.__self__ is old:
        return types.MethodType(value.__func__, new)
    return copy.copy(value) if isinstance(value, dict) and key.startswith("_") else value


def _sized(name: str, tensor: torch.Tensor, before: int, after: int, axis: int) -> torch.Tensor:
    """Copy a tensor; where it counts ``before`` along the axis, it counts ``after`` and has no values yet."""
    along, copied = _along(tensor, axis), tensor.detach().clone()
    inward = tensor.dim() == 1 and name.endswith("_v")  # what a spectral norm iterates on, on the side of the inputs
    if tensor.shape[along : along + 1] == (before,) and not inward:
        # A vector that a spectral norm iterates on must not be zero; whatever else is set later.
        copied = copied.new_full((*tensor.shape[:along], after, *tensor.shape[along + 1 :]), after**-0.5)
    return like(tensor, copied)


def _along(tensor: torch.Tensor, axis: int) -> int:
    """The axis of a tensor that counts what ``axis`` of the weight counts: a bias has but one."""
    return min(axis, tensor.dim() - 1)


def _carry(layer: Layer, new: nn.Module, rows: Mapping[int, int]) -> None:
    """Carry the rows of outputs that stay over from the old layer; of one that takes the classes too, no others."""
    names = dict.fromkeys(("weight", "bias", *parameters_of(layer.module)))  # these two may be computed from others
    if is_norm(layer.module):
        names |= dict.fromkeys(buffers_of(layer.module))
    for name in [name for name in names if not name.endswith(("_g", "_v", "_orig"))]:
        source, value = getattr(layer.module, name, None), getattr(new, name, None)
        if not isinstance(source, torch.Tensor) or not isinstance(value, torch.Tensor):
            continue
        axis = _along(source, layer.axis)
        if source.shape[axis : axis + 1] == (layer.outputs,):
            axes = (axis, 1 - axis) if layer.from_classes and source.dim() > 1 else (axis,)
            kept = _chosen(source.detach(), axes, rows.values()).to(value.dtype)
            first = _chosen(value.detach(), axes[:-1], rows)
            first = first.index_copy(axes[-1], torch.tensor([*rows], device=value.device), kept)
            carried = first
            if len(axes) > 1:
                carried = value.detach().index_copy(axis, torch.tensor([*rows], device=value.device), first)
            _assign(new, name, carried)
            now: torch.Tensor = getattr(new, name)
            if not (now.is_meta or torch.allclose(_chosen(now, axes, rows), kept, atol=1e-4)):
                raise HeadError(
                    f"The {name} of {layer.name!r} is computed by a parametrization that can't carry rows over. "
                    "Leave keep= out, or remove the parametrization first."
                )


def _chosen(tensor: torch.Tensor, axes: Iterable[int], places: Iterable[int]) -> torch.Tensor:
    """Take the same places along some axes."""
    index = torch.tensor([*places], device=tensor.device)
    for axis in axes:
        tensor = tensor.index_select(axis, index)
    return tensor


def _need_gradients_like(old: nn.Module, new: nn.Module, thaw: bool) -> None:
    """Let new parameters need gradients where the old ones did; to thaw takes off what freezing hung on the layer."""
    for before, after in zip(old.parameters(), new.parameters(), strict=True):
        after.requires_grad_(before.requires_grad or thaw)
    if thaw:
        _drop("ftkit.", pre_hooks_of(new))
        _drop("_ftkit_", vars(new))


def _drop(prefix: str, table: dict[Any, Any]) -> None:
    for key in [key for key in table if str(key).startswith(prefix)]:
        del table[key]


# ---- weights that are computed: weight norm, spectral norm, parametrizations

_COMPUTES = "compute_weight"  # the method of a hook that does


def _bare(new: nn.Module, layer: Layer, outputs: int) -> nn.Module:
    """Return a new layer itself, or if its weight is computed (weight norm), a plain layer of its class."""
    names = ("weight", "bias")
    if not (_hooks_that(new, _COMPUTES) or any(parametrize.is_parametrized(new, name) for name in names)):
        return new
    kind: type[nn.Module] = type(new).__bases__[0] if parametrize.is_parametrized(new) else type(new)
    bare: nn.Module = kind.__new__(kind)
    nn.Module.__init__(bare)
    bare.__dict__.update({key: value for key, value in vars(new).items() if not key.startswith("_")})
    for name in names:
        value = getattr(layer.module, name, None)  # of the old layer: what the new one computes from has no values yet
        bare.__dict__.pop(name, None)
        made = None if value is None else _sized(name, value.detach(), layer.outputs, outputs, layer.axis)
        if made is not None and made.dim() > 1 and layer.from_classes:
            made = _sized(name, made, layer.inputs, outputs, 1 - layer.axis)
        setattr(bare, name, None if made is None else nn.Parameter(made))
    return bare


def _fill(new: nn.Module, bare: nn.Module) -> None:
    """Set the weights of a new layer to those of the plain one."""
    if bare is not new:
        for name, value in bare.named_parameters():
            _assign(new, name, value.detach())


def _hooks_that(layer: nn.Module, method: str) -> list[Any]:
    """The hooks of ``torch.nn.utils`` that mask a weight (pruning), or compute it (weight norm, spectral norm)."""
    return [hook for hook in pre_hooks_of(layer).values() if hasattr(hook, method)]


def _assign(layer: nn.Module, name: str, value: torch.Tensor) -> None:
    """Set a weight, through weight norm or a parametrization where there is one."""
    hooks = {hook.name: hook for hook in _hooks_that(layer, _COMPUTES)}
    if name in hooks:
        _assign_normed(layer, hooks[name], value)
    elif parametrize.is_parametrized(layer, name):
        _assign_parametrized(layer, name, value)
    else:
        getattr(layer, name).copy_(value)


def _assign_normed(layer: nn.Module, hook: Any, value: torch.Tensor) -> None:
    """Set what a hook computes a weight from, and the weight: a spectral norm has a plain one, a weight norm two."""
    plain, direction, length = (getattr(layer, f"{hook.name}_{part}", None) for part in ("orig", "v", "g"))
    if plain is not None:
        plain.copy_(value)
        for _ in range(_POWER_ITERATIONS):
            hook.compute_weight(layer, do_power_iteration=True)
        setattr(layer, hook.name, hook.compute_weight(layer, do_power_iteration=False))
    elif direction is not None and length is not None:
        direction.copy_(value)
        length.copy_(torch.norm_except_dim(value, 2, hook.dim))
        setattr(layer, hook.name, hook.compute_weight(layer))
    else:
        raise HeadError(f"The {type(hook).__name__} on the head can't be set to another weight; remove it first.")


def _assign_parametrized(layer: nn.Module, name: str, value: torch.Tensor) -> None:
    """Set what parametrizations compute a weight from; one without an inverse starts from the weight, as torch does."""
    computed: nn.ModuleList = layer.parametrizations[name]  # type: ignore[index, assignment]  # a ModuleDict of lists
    steps, original = list(computed), parameters_of(computed).get("original")
    try:
        with quiet():
            try:
                setattr(layer, name, value)
            except (NotImplementedError, RuntimeError):
                if original is None or original.shape != value.shape:
                    raise
                original.copy_(value)
        if getattr(layer, name).shape != value.shape:
            raise ValueError(f"{tuple(value.shape)} became {tuple(getattr(layer, name).shape)}")
        for step in steps:
            power_iterate(step, value, _POWER_ITERATIONS)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        kinds = ", ".join(type(step).__name__ for step in steps)
        raise HeadError(
            f"The {name} of the head is computed by {kinds}, which accepts no other shape ({cause(error)}). Remove it "
            "with torch.nn.utils.parametrize.remove_parametrizations, replace the head, and add it again."
        ) from error
