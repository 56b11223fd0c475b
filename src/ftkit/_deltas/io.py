"""Deltas: what fine-tuning changed in a model, and nothing else."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ftkit._files import digest
from ftkit._freezing.holding import is_held
from ftkit._heads.replace import replace_head
from ftkit._tensors.bytes import bytes_of, in_threads
from ftkit._tensors.pytree import pack, unpack
from ftkit._tensors.safetensors import SafetensorsFile, write_tensors
from ftkit._weights.sources import Source, WeightsSource
from ftkit.errors import CheckpointError, HeadError, did_you_mean
from ftkit.selection import unwrap

__all__ = ["digests", "fill", "load_delta", "place", "same", "save_delta", "split", "tensors_of"]

_KEY: Final = "ftkit.delta"

# The layers that heads are made of, with the attributes that their constructors take.
_LAYERS: Final[dict[str, tuple[str, ...]]] = {
    "Linear": ("in_features", "out_features"),
    "Conv1d": ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    "Conv2d": ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    "Conv3d": ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    "BatchNorm1d": ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    "BatchNorm2d": ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    "LayerNorm": ("normalized_shape", "eps", "elementwise_affine"),
    "Dropout": ("p", "inplace"),
    "Flatten": ("start_dim", "end_dim"),
    "AdaptiveAvgPool1d": ("output_size",),
    "AdaptiveAvgPool2d": ("output_size",),
    "ReLU": ("inplace",),
    "SiLU": ("inplace",),
    "Hardswish": ("inplace",),
    "GELU": ("approximate",),
    "Tanh": (),
    "Sigmoid": (),
    "Identity": (),
}


def save_delta(model: nn.Module, path: str | os.PathLike[str], *, base: WeightsSource | None = None) -> None:
    """Write what fine-tuning changed in a model: kilobytes to share instead of the whole.

    The file holds tensors under their own names, the layers of a new head, and a digest of all the rest,
    the base, by which :func:`load_delta` knows the base again.

    Args:
        model: The fine-tuned model.
        path: A safetensors file.
        base: The model before fine-tuning: a module, its ``state_dict`` or a file of it. Then exactly what
            differs is written. Without it, that is every trainable parameter, and the buffers of every
            module that may have moved them: one with a trainable parameter in it, one in training mode that
            ``freeze`` does not hold, and a norm that counted batches. Give the base if something was trained
            first and frozen later.

    Raises:
        CheckpointError: Nothing is trainable, or the base is not one of this model.
        FileWriteError: The file could not be written. What stood there is intact.

    Example:
        >>> import torch
        >>> from ftkit import freeze_except, load_delta, save_delta
        >>> def pretrained():
        ...     torch.manual_seed(0)
        ...     return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 9))
        >>> model = pretrained()
        >>> model[1] = torch.nn.Linear(4, 2)  # a new head
        >>> _ = freeze_except(model, "1")
        >>> save_delta(model, "pets.safetensors")
        >>> fresh = pretrained()
        >>> load_delta(fresh, "pets.safetensors")
        >>> torch.equal(fresh(torch.ones(1, 4)), model(torch.ones(1, 4)))
        True
    """
    inner = unwrap(model)
    changed, _, record = split(inner, tensors_of(inner), base=base)
    if not changed:
        raise CheckpointError(
            "This model does not differ from its base, so there is no delta to save."
            if base is not None
            else "Nothing in this model is trainable, so nobody can tell what fine-tuning changed: give base=, the "
            "model before fine-tuning, or save it whole with save_weights."
        )
    write_tensors(path, changed, {_KEY: pack(record)[1]})


def load_delta(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Turn a base model into the fine-tuned one, in place.

    A head that the base lacks is built from the file. Everything is checked before anything changes.

    Args:
        model: The base that the delta was made from, with its own head or with the new one.
        path: A file of :func:`save_delta`.

    Raises:
        CheckpointError: The file is no delta, belongs to another base, or has a head that can't be built from
            plain layers.
        DamagedFileError: The file's bytes are not the ones that were written.

    Example:
        >>> import torch
        >>> from ftkit import freeze_except, load_delta, save_delta
        >>> base = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 9)).state_dict()
        >>> def pretrained():
        ...     model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 9))
        ...     model.load_state_dict(base)
        ...     return model
        >>> tuned, fresh = pretrained(), pretrained()
        >>> _ = freeze_except(tuned, "1.bias")
        >>> _ = torch.nn.init.ones_(tuned[1].bias)
        >>> save_delta(tuned, "bias.safetensors")
        >>> load_delta(fresh, "bias.safetensors")
        >>> torch.equal(fresh[1].bias, tuned[1].bias)
        True
    """
    inner = unwrap(model)
    with SafetensorsFile(path) as file:
        if _KEY not in file.metadata:
            reader = "load_checkpoint(path, model=model)" if "ftkit.checkpoint" in file.metadata else "load_weights"
            raise CheckpointError(f"{os.fspath(path)} is no delta of save_delta. Read it with {reader}.")
        record = unpack({}, file.metadata[_KEY])
        tensors = file.read()
    place(inner, record, tensors)
    fill(inner, tensors)


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors that are known to fit into the model."""
    state = tensors_of(model)
    with torch.no_grad():
        for name, value in tensors.items():
            state[name].copy_(value)


# ---- what changed


def split(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    base: WeightsSource | None = None,
    before: Mapping[str, str] | None = None,
    moved: Collection[Any] = (),
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Tell what fine-tuning changed from what it left alone.

    Args:
        model: The model, unwrapped.
        state: Its :func:`tensors_of`.
        base: The model before fine-tuning: what differs from it is what changed. If left out, that is what
            may have changed; see :func:`save_delta`.
        before: Digests of the base, where there is no base: what differs has changed too.
        moved: Parameters known to have been trained, whatever they are now.

    Returns:
        What changed, what did not, and the description by which :func:`place` knows the latter again.
    """
    now: Mapping[str, str] = {}
    if base is not None:
        names = _differing(state, base)
    else:
        known = {id(parameter) for parameter in moved}
        buffers = _restless(model, state)
        now = digests(state) if before is not None else {}
        names = {
            name
            for name, tensor in state.items()
            if (tensor.requires_grad or id(tensor) in known if isinstance(tensor, nn.Parameter) else name in buffers)
            or (before is not None and before.get(name) != now[name])
        }
    changed = {name: tensor for name, tensor in state.items() if name in names}
    rest = {name: tensor for name, tensor in state.items() if name not in names}
    found = _fingerprint(rest, now) if now else _remembered(model, rest)
    return changed, rest, {"base": found, "layers": dict(_describable(model, "", changed, state))}


def _differing(state: Mapping[str, Tensor], base: WeightsSource) -> set[str]:
    """The names of the tensors that a base lacks or has otherwise."""
    with Source(base) as opened:
        table = max(opened.tables, key=lambda table: len(table.entries.keys() & state.keys()), default=None)
        if table is None or not table.entries.keys() & state.keys():
            first = next(iter(state), "nothing")
            raise CheckpointError(
                f"The base, {opened.name}, is not one of this model: it holds nothing called {first!r}."
            )
        before = {name: entry.empty() for name, entry in table.entries.items()}
        opened.read_into((entry, before[name]) for name, entry in table.entries.items())
    return {name for name, tensor in state.items() if not same(tensor, before.get(name))}


def _restless(model: nn.Module, state: Mapping[str, Tensor]) -> set[str]:
    """The names of the buffers that training may have moved."""
    training = {
        name[:end]
        for name, tensor in state.items()
        if tensor.requires_grad
        for end in (0, *(at for at, letter in enumerate(name) if letter == "."))
    }
    names = set()
    for prefix, module in model.named_modules(remove_duplicate=False):
        own = module._buffers
        if not own or is_held(module):
            continue
        # Only BatchNorm's count is bumped by each batch; everything else treats the three buffers alike.
        count, mean = own.get("num_batches_tracked"), own.get("running_mean")
        counted = count is not None and mean is not None and count._version > mean._version
        if module.training or counted or prefix in training:
            names |= {f"{prefix}.{name}" if prefix else name for name in own}
    return names


def same(a: Tensor, b: Tensor | None) -> bool:
    """Tell whether two tensors are the same to the bit, NaN included."""
    if b is None or (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return torch.equal(*(plain.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for plain in (a, b)))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return what a model's ``state_dict`` holds, as the model's own parameters and buffers."""
    return {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}


# ---- the base and the head


def _fingerprint(tensors: Mapping[str, Tensor], known: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Two digests, so that another architecture can be told from other weights."""
    names = sorted(tensors)
    shapes = [f"{name} {tensors[name].dtype} {list(tensors[name].shape)}" for name in names]
    contents = known or digests(tensors)
    return {
        "tensors": len(names),
        "shapes": digest("\n".join(shapes).encode()),
        "contents": digest("\n".join(contents[name] for name in names).encode()),
    }


@dataclass
class _Known:
    """A base that was met before: what it was, its ends where they lie in memory, and its fingerprint."""

    state: list[Any]
    ends: list[Any]
    bytes: bytes
    fingerprint: dict[str, Any]


_KNOWN: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()


def _remembered(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fingerprint of a base that was met before, if nothing hints that it changed since.

    Reading the whole base for each checkpoint would take longer than writing the delta. Torch counts the
    changes of a tensor; one made behind its back, as through ``.data``, shows at the tensor's first and last bytes.
    """
    if any(tensor.is_inference() for tensor in tensors.values()):
        return _fingerprint(tensors)
    # The ends may be read only while the tensors still lie where they lay.
    state = [
        (name, tensor.data_ptr(), tensor._version, tensor.dtype, tensor.shape, tensor.stride())
        for name, tensor in tensors.items()
    ]
    known = _KNOWN.get(model)
    if known is None or known.state != state or known.bytes != b"".join(known.ends):
        ends = [end for tensor in tensors.values() for end in _ends(tensor)]
        known = _KNOWN[model] = _Known(state, ends, b"".join(ends), _fingerprint(tensors))
    return known.fingerprint


def _ends(tensor: Tensor) -> list[Any]:
    """The first and the last bytes of a tensor, as views of its memory."""
    if tensor.device.type != "cpu" or not tensor.is_contiguous() or not tensor.numel():
        return []
    start, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
    some = ctypes.c_char * min(size, 64)
    return [some.from_address(start), some.from_address(start + size - min(size, 64))]


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the digest of each tensor's bytes."""
    found: dict[str, str] = {}

    def take(name: str) -> None:
        found[name] = digest(bytes_of(tensors[name]))

    in_threads(take, tensors, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))
    return found


def _describable(
    module: nn.Module, prefix: str, inside: Collection[str], names: Iterable[str]
) -> Iterator[tuple[str, Any]]:
    """Yield the largest parts that lie wholly in the delta and consist of plain layers, described."""
    here = [name for name in names if name.startswith(prefix)]
    if not any(name in inside for name in here):
        return
    if prefix and all(name in inside for name in here) and (description := _describe(module)) is not None:
        yield prefix[:-1], description
        return
    for name, child in module.named_children():
        yield from _describable(child, f"{prefix}{name}.", inside, here)


def _describe(module: nn.Module) -> list[Any] | None:
    """A module as plain values, or None if it is not made of plain layers alone."""
    kind = type(module).__name__
    if type(module) is nn.Sequential:
        parts = {name: _describe(part) for name, part in module.named_children()}
        return None if None in parts.values() else [kind, parts]
    if kind not in _LAYERS or type(module) is not getattr(nn, kind):
        return None
    options = {name: getattr(module, name) for name in _LAYERS[kind]}
    if "bias" in module._parameters and kind not in ("BatchNorm1d", "BatchNorm2d"):
        options["bias"] = module.bias is not None
    return [kind, options]


def _build(description: list[Any]) -> nn.Module:
    kind, options = description
    if kind == "Sequential":
        sequence = nn.Sequential()
        for name, part in options.items():
            sequence.add_module(name, _build(part))
        return sequence
    if kind not in _LAYERS:
        raise CheckpointError(f"The file describes a layer {kind!r} that this version of ftkit does not know.")
    return getattr(nn, kind)(**options)  # type: ignore[no-any-return]


def place(model: nn.Module, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Callable[[], None]:
    """Give a base model the layers that a delta's tensors need, and check that it is the delta's base.

    Returns:
        What takes the new layers out again.

    Raises:
        CheckpointError: It is another base, or a layer can't be built. The model is untouched.
    """
    layers = [layer for layer in record["layers"] if not _fits(model, layer, tensors)]
    _check(model, record, tensors, layers)
    undo = _snapshot(model)
    try:
        with torch.random.fork_rng(devices=[]):  # new layers draw their first weights, which are replaced at once
            for layer in layers:
                if not _resized(model, layer, tensors):
                    _rebuild(model, layer, record["layers"][layer], tensors)
            others = {_owner(name) for name in _misfits(model, tensors)}
            for layer in sorted(others):
                _resized(model, layer, tensors)
        _check_all_fit(model, tensors)
    except BaseException:
        undo()
        raise
    return undo


def _misfits(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors that have no place in the model."""
    state = tensors_of(model)
    return [
        name
        for name, value in tensors.items()
        if name not in state or (state[name].shape, state[name].dtype) != (value.shape, value.dtype)
    ]


def _fits(model: nn.Module, layer: str, tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether a layer of the model holds just the tensors that it has in the delta."""
    state = tensors_of(model)
    inside = {name for name in tensors if name.startswith(f"{layer}.")}
    return inside == {name for name in state if name.startswith(f"{layer}.")} and all(
        (state[name].shape, state[name].dtype) == (tensors[name].shape, tensors[name].dtype) for name in inside
    )


def _owner(name: str) -> str:
    return name.split(".parametrizations.", 1)[0] if ".parametrizations." in name else name.rpartition(".")[0]


def _resized(model: nn.Module, layer: str, tensors: Mapping[str, Tensor]) -> bool:
    """Try to fit a layer by another count of classes, so that the model's own counters follow."""
    state = tensors_of(model)
    counts = [
        new
        for name, value in tensors.items()
        if name.startswith(f"{layer}.") and name in state and state[name].ndim == value.ndim
        for old, new in zip(state[name].shape, value.shape, strict=True)
        if old != new
    ]
    if not counts or len(set(counts)) > 1:
        return False
    undo = _snapshot(model)
    with contextlib.suppress(HeadError):
        replace_head(model, counts[0], at=layer)
    if _fits(model, layer, tensors):
        return True
    undo()
    return False


def _rebuild(model: nn.Module, layer: str, description: list[Any], tensors: Mapping[str, Tensor]) -> None:
    """Put a layer made from its description where the base has another one."""
    parent, _, last = layer.rpartition(".")
    try:
        holder = model.get_submodule(parent)
        old = holder.get_submodule(last)
    except AttributeError:
        return
    forms = [
        value.dtype for name, value in tensors.items() if name.startswith(f"{layer}.") and value.is_floating_point()
    ]
    device = [*old.parameters(), *model.parameters(), torch.empty(0)][0].device
    new = _build(description).to(device, forms[0] if forms else None).train(old.training)
    try:
        replace_head(model, new, at=layer)
    except HeadError:  # the base has no layer there that could be a head: nothing counts its classes
        setattr(holder, last, new)
    new.to(dtype=forms[0] if forms else None)  # a head takes the type of the layer before it


def _snapshot(model: nn.Module) -> Callable[[], None]:
    """Return what puts every module of the model back as it is now; the values of tensors are not kept."""
    former = [
        (module, {key: copy.copy(value) if isinstance(value, dict) else value for key, value in vars(module).items()})
        for module in model.modules()
    ]

    def undo() -> None:
        for module, attributes in former:
            vars(module).clear()
            vars(module).update(attributes)

    return undo


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


def _check(model: nn.Module, record: Mapping[str, Any], tensors: Mapping[str, Tensor], layers: Iterable[str]) -> None:
    """Compare everything that neither is in the delta nor in a layer to be replaced with the delta's base."""
    rest = {
        name: tensor
        for name, tensor in tensors_of(model).items()
        if name not in tensors and not any(name.startswith(f"{layer}.") for layer in layers)
    }
    wanted, found = record["base"], _fingerprint(rest)
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
