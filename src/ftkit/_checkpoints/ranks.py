"""Runs of several processes: what is sharded over them is gathered for the file, and sharded again from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch import distributed as dist


def rank() -> int:
    """The rank of this process; 0 if there is only one."""
    return dist.get_rank() if _runs() else 0


def gather(own: Any) -> list[Any]:
    """Return what each process passed, on the first one; all must call. The others, or a single one, get nothing."""
    if not _runs() or dist.get_world_size() == 1:
        return []
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)  # a gather on one process needs its device told, this does not
    return found if rank() == 0 else []


def agreed(own: Any) -> Any:
    """Return what the first process passed, on all; all must call."""
    found = [own]
    if _runs():
        dist.broadcast_object_list(found, src=0)
    return found[0]


def holds_shards(tensors: Iterable[Any]) -> bool:
    """Tell whether one of the tensors is sharded over processes, as by ``fully_shard``."""
    return _runs() and any(map(_is_shard, tensors))


def whole(nest: Any) -> Any:
    """Gather every sharded tensor in a nest; all processes must call, and only the first one gets them."""
    if _is_shard(nest):
        full = nest.detach().full_tensor()
        return full.cpu() if rank() == 0 else None
    if isinstance(nest, dict):
        table = nest.copy()
        for key, value in nest.items():  # one by one: a Counter's update() counts instead
            table[key] = whole(value)
        return table
    return type(nest)(map(whole, nest)) if type(nest) in (list, tuple) else nest


def spread(state: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """Shard each whole tensor of a table as the tensor of the same name and shape is; all processes must call."""
    return {name: _spread(value, like.get(name)) for name, value in state.items()}


def _spread(value: Any, like: Any) -> Any:
    if not _is_shard(like) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device_mesh.device_type), like.device_mesh, like.placements)


def _runs() -> bool:
    return dist.is_available() and dist.is_initialized()


def _is_shard(thing: Any) -> bool:
    # The class is part of torch only where it was built for several processes.
    return isinstance(thing, Tensor) and hasattr(thing, "full_tensor")
