"""Operators that are run once, on zeros, to see what they hold meanwhile."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import torch

from ftkit._cost.fakes import TensorSpec, memory_of
from ftkit._models.dryrun import tensors_in
from ftkit._torch import allocated

ENOUGH: Final = 16 * 2**20
"""Bytes of the tensors that a trial takes and gives, beyond which a few examples tell of the rest."""
_MOST_BYTES: Final = 512 * 2**20  # beyond which it is left out


class _Held(NamedTuple):
    """What an operator held while it ran, and then gave back, in bytes."""

    scratch: int
    given: int


def tried(
    func: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    output: Any,
    *,
    rows: Sequence[int] | None = None,
    otherwise: int = 0,
) -> int:
    """The most bytes that an operator holds while it runs, besides its arguments and its results.

    Each kind of arguments is tried once, and of a large batch a few examples: what it holds grows with the rest as it
    does between these, if what it gives back does so, too.

    Args:
        func: An operator on tensors on the CPU.
        args: Its arguments; their values don't matter.
        kwargs: Its keyword arguments.
        output: What it gives back.
        rows: The places of those arguments in which each example is a row; by default of all that are as long as the
            first.
        otherwise: What to say where no trial is possible: it fails, or would take too much memory.
    """
    try:
        given = _described((args, tuple(kwargs.items())))
        hash(given)
    except TypeError:
        return otherwise
    result = _memory_given(output, (args, kwargs))
    size = sum(spec.needed_bytes() for spec in _specs(given)) + result
    if size > ENOUGH:
        foreseen = _foreseen(func, given, rows, size, result)
        if foreseen is not None:
            return foreseen
    held = _held(func, given, torch.get_num_threads()) if size <= _MOST_BYTES else None
    return held.scratch if held else otherwise


def _foreseen(func: Any, given: Any, rows: Sequence[int] | None, size: int, result: int) -> int | None:
    """What a few examples tell of all; None if they tell nothing: then the result would not be what it is, either."""
    first = next(_specs(given))
    examples, threads = (first.shape or (0,))[0], torch.get_num_threads()
    few = max(threads, examples * ENOUGH // size // 2)
    if 2 * few >= examples:
        return None
    args, kwargs = given
    places = range(len(args)) if rows is None else rows

    def held(count: int) -> _Held | None:
        part = [
            one.of_examples(count)
            if place in places and isinstance(one, TensorSpec) and one.shape[:1] == (examples,)
            else one
            for place, one in enumerate(args)
        ]
        return _held(func, (tuple(part), kwargs), threads)

    one, two = held(few), held(2 * few)
    if one is None or two is None:
        return None
    scratch, kept = (b + (b - a) * (examples - 2 * few) // few for a, b in zip(one, two, strict=True))
    return scratch if abs(kept - result) <= 0.01 * result else None


def _described(value: Any) -> Any:
    """What decides what an operator holds of an argument."""
    if isinstance(value, torch.Tensor):
        return TensorSpec(tuple(value.shape), value.stride(), value.dtype, value.device)
    return tuple(map(_described, value)) if isinstance(value, list | tuple) else value


def _specs(value: Any) -> Iterator[TensorSpec]:
    """The tensors in a description."""
    if isinstance(value, TensorSpec):
        yield value
    elif isinstance(value, tuple):
        for one in value:
            yield from _specs(one)


def _zeros(value: Any) -> Any:
    """What a description describes."""
    if isinstance(value, TensorSpec):
        return value.zeros()
    return tuple(map(_zeros, value)) if isinstance(value, tuple) else value


def _memory_given(output: Any, args: Any) -> int:
    """The bytes of an operator's results that are not in the memory of its arguments."""
    given = dict(map(memory_of, tensors_in(output)))
    return sum(size for key, size in given.items() if key not in dict(map(memory_of, tensors_in(args))))


@functools.lru_cache(1000)
def _held(func: Any, given: Any, threads: int) -> _Held | None:  # noqa: ARG001  (the number of threads decides, too)
    """What an operator holds on arguments so described; None if it can't be tried."""

    def run() -> _Held | None:
        try:
            args, kwargs = _zeros(given)
            _, held = allocated(lambda: func(*args, **dict(kwargs)))
        except Exception:  # noqa: BLE001  (it fails on zeros, or there is too little memory)
            return None
        return held and _Held(*held)

    with ThreadPoolExecutor(1) as fresh:  # where no mode, autocast or profiler of the caller's is on
        return fresh.submit(run).result()
