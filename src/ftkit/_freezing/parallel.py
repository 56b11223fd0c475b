"""Data-parallel wrappers, which decide once which gradients to average, and are told when that changes."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ftkit._torch import can_settle_anew, settle_anew
from ftkit.errors import FtkitError
from ftkit.selection import unwrap


def parallel_wrappers(model: nn.Module) -> list[DistributedDataParallel]:
    """The data-parallel wrappers of a model's parameters, all of them such that :func:`settle` can treat them.

    Frameworks keep the wrapper and hand out the model inside: Lightning's ``pl_module``, the ``model`` of a callback of
    transformers, what Accelerate's ``unwrap_model`` returns. So those that are alive anywhere in the process count.
    """
    wrappers = _wrappers_of(model)
    if not all(map(can_settle_anew, wrappers)):
        gc.collect()  # one that was deleted may be waiting for it
        wrappers = _wrappers_of(model)
    if not all(map(can_settle_anew, wrappers)):
        raise FtkitError(
            "DistributedDataParallel decides which gradients to average when it wraps a model, and with its own "
            "process group that can't be redone. Delete the wrapper, freeze or thaw the model, and wrap it again."
        )
    return wrappers


def settle(wrapper: DistributedDataParallel) -> None:
    """Let a wrapper average the gradients of what is trainable now.

    It decided that when it was made: a thawed parameter would silently diverge between processes, and a frozen one
    would be waited for.
    """
    wrapper.require_backward_grad_sync = any(parameter.requires_grad for parameter in wrapper.module.parameters())
    if wrapper.require_backward_grad_sync:
        settle_anew(wrapper)


def _wrappers_of(model: nn.Module) -> list[DistributedDataParallel]:
    inner = unwrap(model)
    around = itertools.takewhile(lambda module: module is not inner, model.modules())
    found = {id(module): module for module in around if isinstance(module, DistributedDataParallel)}
    own = set(map(id, inner.parameters()))
    found |= {id(one): one for one in _alive() if not own.isdisjoint(map(id, one.module.parameters()))}
    return list(found.values())


def _alive() -> Iterator[DistributedDataParallel]:
    """All data-parallel wrappers in this process."""
    if dist.is_available() and dist.is_initialized():
        # Not isinstance, which asks an object for its class: some are proxies, and answer by loading something.
        found = [one for one in gc.get_objects() if issubclass(type(one), DistributedDataParallel)]
        yield from (one for one in found if "module" in dict(one.named_children()))
