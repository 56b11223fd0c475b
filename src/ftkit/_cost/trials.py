"""Operators that are run once, on zeros, to see what they hold meanwhile."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, cast

import torch

from ftkit._cost.fakes import TensorSpec
from ftkit._torch import most_allocated

_MOST_BYTES: Final = 512 * 2**20  # of the tensors that a trial takes, beyond which it is left out


def tried(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, rows: Sequence[int] = (), otherwise: int = 0
) -> int:
    """The most bytes that an operator holds while it runs, besides its arguments and its results.

    Each kind of arguments is tried once, and of a large batch a few examples for each thread: what it holds grows with
    the rest as it does between these.

    Args:
        func: An operator on tensors on the CPU.
        args: Its arguments; their values don't matter.
        kwargs: Its keyword arguments.
        rows: The places of those arguments in which each example is a row.
        otherwise: What to say where no trial is possible: it would take too much memory.
    """
    try:
        given = tuple(map(_described, args)), tuple((name, _described(value)) for name, value in kwargs.items())
    except TypeError:
        return otherwise
    threads = torch.get_num_threads()
    examples = args[rows[0]].shape[0] if rows else 0
    if examples <= 2 * threads:
        held = _held(func, *given, tuple(rows), examples, threads)
        return otherwise if held is None else held
    few, many = (_held(func, *given, tuple(rows), count, threads) for count in (threads, 2 * threads))
    if few is None or many is None:
        return otherwise
    return many + (many - few) * (examples - 2 * threads) // threads


def _described(value: Any) -> Hashable:
    """What decides what an operator holds of an argument.

    Raises:
        TypeError: It is several tensors.
    """
    if isinstance(value, torch.Tensor):
        return TensorSpec(tuple(value.shape), value.stride(), value.dtype, value.device)
    if isinstance(value, list | tuple):
        if any(isinstance(one, torch.Tensor) for one in value):
            raise TypeError
        return tuple(value)
    return cast("Hashable", value)


@functools.lru_cache(1000)
def _held(
    func: Any,
    args: tuple[Any, ...],
    kwargs: tuple[tuple[str, Any], ...],
    rows: tuple[int, ...],
    examples: int,
    threads: int,  # noqa: ARG001  (decides, too)
) -> int | None:
    """What an operator holds with so many examples, by this number of threads; None if it can't be tried."""
    made = [one._replace(shape=(examples, *one.shape[1:])) if place in rows else one for place, one in enumerate(args)]
    if sum(one.needed_bytes() for one in made if isinstance(one, TensorSpec)) > _MOST_BYTES:
        return None

    def run() -> int | None:
        zeros = [one.zeros() if isinstance(one, TensorSpec) else one for one in made]
        try:
            return most_allocated(lambda: func(*zeros, **dict(kwargs)))
        except RuntimeError:  # there is too little memory
            return None

    with ThreadPoolExecutor(1) as fresh:  # where no mode, autocast or profiler of the caller's is on
        return fresh.submit(run).result()
