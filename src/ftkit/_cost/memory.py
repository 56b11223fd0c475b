"""Whose memory is alive in a step, and what of it autograd keeps."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Protocol

import torch

from ftkit._cost.fakes import memory_of, storage_of


class Keeper(Protocol):
    """Who made a tensor: the call of a module."""

    saved: int


class _Watch(weakref.ref[torch.UntypedStorage]):
    """Tells when a storage dies."""

    __slots__ = ("key", "maker", "size")
    key: int
    maker: Keeper
    size: int


class Memory:
    """The storages that are alive, by identity.

    Attributes:
        peak: The most bytes that were alive at any moment since :meth:`restart`.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._current = 0
        self._alive: dict[int, _Watch | None] = {}  # None for what was there before the step
        self._kept: dict[int, Keeper] = {}

    def adopt(self, tensors: Iterable[torch.Tensor]) -> None:
        """Take tensors for what was there before the step: they cost nothing."""
        self._alive |= dict.fromkeys(memory_of(tensor)[0] for tensor in tensors)

    def watch(self, tensor: torch.Tensor, maker: Keeper) -> None:
        """Count the memory under a tensor from now on until it is freed."""
        key, size = memory_of(tensor)
        known = self._alive.get(key)
        storage = None if key in self._alive else storage_of(tensor)
        if known is not None:  # it may have been resized, as by out=
            self._current += size - known.size
            known.size = size
            self.peak = max(self.peak, self._current)
        elif storage is not None:
            watch = self._alive[key] = _Watch(storage, self._freed)
            watch.key, watch.size, watch.maker = key, size, maker
            self._current += size
            self.peak = max(self.peak, self._current)

    def spend(self, scratch: int) -> None:
        """Count what an operator held for itself, and has freed."""
        self.peak = max(self.peak, self._current + scratch)

    def restart(self) -> int:
        """Reset the peak; return what is alive now."""
        self.peak = self._current
        return self._current

    # ---- what autograd keeps

    def keep(self, tensor: torch.Tensor, keeper: Keeper) -> None:
        """Note a tensor that autograd keeps for the backward pass."""
        key, size = memory_of(tensor)
        was_there = key in self._alive and self._alive[key] is None
        if key not in self._kept and not was_there:
            self._kept[key] = keeper
            keeper.saved += size

    def keep_all_but(self, tensors: Iterable[Any]) -> None:
        """Take all that is alive for kept, but ``tensors``: where no hook may see what autograd keeps."""
        own = {memory_of(tensor)[0] for tensor in tensors if isinstance(tensor, torch.Tensor)}
        for key, watch in self._alive.items():
            if watch is not None and key not in own:
                watch.maker.saved += watch.size

    def settle(self) -> None:
        """Note that the forward pass is over: what is freed from now on has been kept."""
        self._kept.clear()

    def _freed(self, watch: weakref.ref[torch.UntypedStorage]) -> None:
        assert isinstance(watch, _Watch)
        self._current -= watch.size
        self._alive.pop(watch.key, None)
        keeper = self._kept.pop(watch.key, None)
        if keeper is not None:  # its graph was dropped before the backward pass: it was not kept after all
            keeper.saved -= watch.size
