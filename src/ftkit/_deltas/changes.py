"""What fine-tuning changed in a model, and the fingerprint by which the rest, its base, is known again."""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ftkit._deltas.layers import descriptions
from ftkit._deltas.outline import outline
from ftkit._files import digest
from ftkit._freezing.holding import is_held
from ftkit._heads.fresh import fresh_names
from ftkit._heads.labels import labels_of
from ftkit._models.contents import bytes_of
from ftkit._tensors.bytes import in_threads
from ftkit._torch import buffers_of, children_of, version_of
from ftkit._weights.libraries import adapter_settings
from ftkit._weights.sources import WeightsSource, open_source
from ftkit.errors import CheckpointError

_ROUNDING: Final = 0.01  # of a norm, by which an average of what never moved may differ from it


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return what a model's ``state_dict`` holds, as the model's own parameters and buffers."""
    return {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}


def split(
    model: nn.Module, state: Mapping[str, Tensor], changed: Collection[str], known: Mapping[str, str] | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Divide a model's tensors into what changed, by name, and the base, which did not.

    Where the digests of the tensors have been taken, they are ``known``. The third thing that is returned is the record
    by which a file describes both: the base's fingerprint, the layers that changed whole, the names of the classes, and
    what no tensor shows of the model and its adapters.
    """
    moved = {name: tensor for name, tensor in state.items() if name in changed}
    base = {name: tensor for name, tensor in state.items() if name not in changed}
    found = fingerprint(base, known) if known else _remembered(model, base)
    record = {
        "base": found,
        "layers": descriptions(model, moved.keys(), state.keys()),
        "labels": labels_of(model),
        "outline": outline(model),
        "adapters": adapter_settings(model),
    }
    return moved, base, record


# ---- what changed


def differing(state: Mapping[str, Tensor], base: WeightsSource) -> set[str]:
    """Return the names of the tensors that a base lacks or that differ from it.

    Raises:
        CheckpointError: The base has no name in common with ``state``.
    """
    with open_source(base) as opened:
        table = max(opened.tables, key=lambda table: len(table.entries.keys() & state.keys()), default=None)
        if table is None or not table.entries.keys() & state.keys():
            first = next(iter(state), "nothing")
            raise CheckpointError(
                f"The base, {opened.name}, is not a base of this model: it has nothing called {first!r}."
            )
        shared = {name: entry for name, entry in table.entries.items() if name in state}
        before = {name: entry.empty() for name, entry in shared.items()}
        opened.read_into((entry, before[name]) for name, entry in shared.items())
    return {name for name, tensor in state.items() if not same(tensor, before.get(name))}


def may_have_changed(model: nn.Module, state: Mapping[str, Tensor], trained: Iterable[object] = ()) -> set[str]:
    """Return the names of the tensors that training may have changed, as :func:`ftkit.save_delta` says.

    What a new head brought, at random, is among them even where it is frozen by now. Some parameters may be known to
    have been ``trained``, whatever they are now.
    """
    known = set(map(id, trained))
    trains = {name for name, tensor in state.items() if tensor.requires_grad or id(tensor) in known}
    return (
        trains
        | state.keys() & {*fresh_names(model), *_set_aside(model)}
        | {
            name
            for prefix, module in model.named_modules(remove_duplicate=False)
            if _may_move_buffers(module)
            for name, _ in module.named_buffers(prefix, recurse=False)
        }
    )


def _set_aside(model: nn.Module) -> Iterator[str]:
    """Yield the names of what peft keeps of the layers that it trains whole, as a rule a head as new as its copy."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        if {"original_module", "modules_to_save"} <= children_of(module).keys():
            original: nn.Module = module.get_submodule("original_module")
            yield from original.state_dict(prefix=f"{prefix}.original_module." if prefix else "original_module.")


def _may_move_buffers(module: nn.Module) -> bool:
    """Whether training may have moved a module's own buffers."""
    if is_held(module):
        return False
    trains = any(parameter.requires_grad for parameter in module.parameters())
    return module.training or trains or _counted_batches(module)


def _counted_batches(module: nn.Module) -> bool:
    """Whether a norm has met batches since its weights were loaded.

    Each batch bumps BatchNorm's counter on its own; everything else treats its three buffers alike.
    """
    own = buffers_of(module)
    count, mean = own.get("num_batches_tracked"), own.get("running_mean")
    return count is not None and mean is not None and version_of(count) > version_of(mean)


def same(a: Tensor, b: Tensor | None) -> bool:
    """Tell whether two tensors are bit-for-bit identical, NaN included."""
    if b is None or (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return torch.equal(*(plain.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for plain in (a, b)))


def is_average_of(value: object, base: Tensor | None) -> bool:
    """Tell whether a tensor may be the average over training of one that never moved: itself, but for rounding."""
    if not isinstance(value, Tensor) or base is None or (value.dtype, value.shape) != (base.dtype, base.shape):
        return False
    if same(value, base) or not value.is_floating_point():
        return same(value, base)
    there, still = value.detach().cpu().float(), base.detach().cpu().float()
    off: Tensor = torch.linalg.vector_norm(there - still)
    return bool(off <= _ROUNDING * torch.linalg.vector_norm(still))


# ---- the base


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the digest of each tensor's bytes."""
    found: dict[str, str] = {}

    def take(name: str) -> None:
        found[name] = digest(bytes_of(tensors[name]))

    in_threads(take, tensors, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))
    return found


def fingerprint(tensors: Mapping[str, Tensor], known: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return how many tensors a base has and two digests, which tell other weights from another architecture."""
    names = sorted(tensors)
    shapes = [f"{name} {tensors[name].dtype} {list(tensors[name].shape)}" for name in names]
    contents = known or digests(tensors)
    return {
        "tensors": len(names),
        "shapes": digest("\n".join(shapes).encode()),
        "contents": digest("\n".join(contents[name] for name in names).encode()),
    }


@dataclass
class _Met:
    """A base that was met before: how its tensors lay in memory, their ends as views and as bytes, its fingerprint."""

    places: list[Any]
    ends: list[Any]
    bytes: bytes
    fingerprint: dict[str, Any]

    def is_still(self, places: list[Any]) -> bool:
        # The ends may be read only while the tensors still lie where they lay.
        return self.places == places and self.bytes == b"".join(self.ends)


_MET: WeakKeyDictionary[nn.Module, _Met] = WeakKeyDictionary()

_END = 64  # bytes at each end of a tensor: what multiplies or fills it changes some of them


def _remembered(model: nn.Module, base: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fingerprint of a base that was met before, if nothing hints that it changed since.

    Reading the whole base for each checkpoint would take longer than writing the delta. Torch counts the
    changes of a tensor; one made behind its back, as through ``.data``, shows at the tensor's first and last bytes.
    """
    if any(tensor.is_inference() for tensor in base.values()):  # torch does not count their changes
        return fingerprint(base)
    places = [
        (name, tensor.data_ptr(), version_of(tensor), tensor.dtype, tensor.shape, tensor.stride())
        for name, tensor in base.items()
    ]
    met = _MET.get(model)
    if met is None or not met.is_still(places):
        ends = [end for tensor in base.values() for end in _ends(tensor)]
        met = _MET[model] = _Met(places, ends, b"".join(ends), fingerprint(base))
    return met.fingerprint


def _ends(tensor: Tensor) -> list[Any]:
    """The first and the last bytes of a tensor, as views of its memory."""
    if tensor.device.type != "cpu" or not tensor.is_contiguous() or not tensor.numel():
        return []
    start, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
    end = ctypes.c_char * min(size, _END)
    return [end.from_address(start), end.from_address(start + size - min(size, _END))]
