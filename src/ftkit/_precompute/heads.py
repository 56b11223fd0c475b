"""The head of a row: by which it is known, how it came to be, of which sample, and a sum by which a change is seen."""

from __future__ import annotations

import functools
import threading
import weakref
from typing import Any, Final

import numpy as np
import torch
import xxhash

from ftkit._torch import no_transforms, version_of, without_transforms
from ftkit.errors import FtkitError

_HERE = threading.local()
_ODD: Final = 0x1E3779B97F4A7C15
_SOURCE: Final = 32  # the bit from which the number of a sample says which data set it is of
MAGIC: Final = b"ftkitrow"
"""Bytes at the start of each row, by which it is known."""
TAG: Final = 12
"""Bytes at the start of each row, with those, that say which cut it belongs to."""
_WAY: Final = 16
"""Where ends what tells the decisions that Python took when the row was computed, which follows."""
_NUMBER: Final = 24
"""Where the number of the sample ends, which follows."""
HEAD: Final = 32
"""Where what is kept begins, behind the sum."""


def begins(value: Any, with_what: bytes) -> bool:
    """Whether a value is a batch of rows that all begin with some bytes."""
    if not isinstance(value, torch.Tensor) or value.dtype is not torch.uint8 or value.dim() != 2 or not value.shape[0]:
        return False
    if (values := without_transforms(value)) is not value:
        with no_transforms():
            are_rows = begins(values.reshape(-1, values.shape[-1]), MAGIC)
        if are_rows:
            raise FtkitError(
                "The model was called with kept rows inside of torch.func.vmap or another transform, which they can't "
                "pass through. Call it with whole batches of rows, and transform what comes behind it."
            )
        return False
    return bool(_heads(value)[:, : len(with_what)].tobytes() == with_what * value.shape[0])


def numbered(rows: np.ndarray[Any, Any], numbers: np.ndarray[Any, Any], source: int) -> None:
    """Note in rows, in place, which samples they are of, and of which player's data set."""
    rows[:, _WAY:_NUMBER].view(np.int64)[:, 0] = numbers + (source << _SOURCE)


def source_of(rows: torch.Tensor) -> int:
    """Which data set :func:`numbered` has noted, of the first row."""
    return int(_heads(rows)[0, _WAY:_NUMBER].view(np.int64)[0]) >> _SOURCE


def of_one_source(rows: torch.Tensor) -> list[int]:
    """The places of the rows of the same data set as the first: loops join batches of several."""
    sources = _heads(rows)[:, _WAY:_NUMBER].view(np.int64)[:, 0] >> _SOURCE
    places: list[int] = np.flatnonzero(sources == sources[0]).tolist()
    return places


def numbers_of(rows: torch.Tensor) -> list[int]:
    """Which samples :func:`numbered` has noted."""
    numbers: list[int] = (_heads(rows)[:, _WAY:_NUMBER].view(np.int64)[:, 0] & ((1 << _SOURCE) - 1)).tolist()
    return numbers


def decided(rows: torch.Tensor, decisions: list[bool]) -> torch.Tensor:
    """Note in rows, in place, which decisions Python took when they were computed."""
    rows[:, TAG:_WAY] = torch.frombuffer(bytearray(xxhash.xxh32_digest(bytes(decisions))), dtype=torch.uint8)
    return rows


def ways_of(rows: torch.Tensor) -> set[int]:
    """What tells the decisions apart that :func:`decided` has noted."""
    return set(_heads(rows)[:, TAG:_WAY].view(np.int32)[:, 0].tolist())


def signed(rows: torch.Tensor) -> torch.Tensor:
    """Note in rows, in place, the sum of what each keeps."""
    _heads(rows)[:, _NUMBER:].view(np.int64)[:, 0] = _sums(rows)
    return rows


def are_signed(rows: torch.Tensor) -> bool:
    """Whether the sums of rows are those that :func:`signed` has noted."""
    return bool((_sums(rows) == _heads(rows)[:, _NUMBER:].view(np.int64)[:, 0]).all())


def fresh(rows: torch.Tensor, source: int) -> torch.Tensor:
    """Note that rows were just read in this thread, from a player's file, where their sums were seen to be right.

    Not of inference tensors: no one sees what is written to them.
    """
    _HERE.last = None if rows.is_inference() else (weakref.ref(rows), version_of(rows), source)
    return rows


def is_fresh(value: Any, source: int) -> bool:
    """Whether a value is the rows that were last read in this thread, from a player's file, as they were."""
    last = getattr(_HERE, "last", None)
    return last is not None and last[0]() is value and last[1:] == (version_of(value), source)


def _heads(rows: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The heads of rows: their own memory if that is the CPU's."""
    near = _laid(rows) if rows.device.type == "cpu" else rows[:, :HEAD].cpu()
    return near.numpy()[:, :HEAD]


def _laid(rows: torch.Tensor) -> torch.Tensor:
    """Rows of which each lies in one piece, which someone may have laid out otherwise."""
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _sums(rows: torch.Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    """A sum of what each row keeps, in which each place counts differently."""
    weights = _weights((rows.shape[1] - HEAD) // 8, rows.device)
    if rows.device.type == "cpu":  # where a product of integers is slow in torch, and einsum makes none
        sums: np.ndarray[Any, np.dtype[np.int64]]
        sums = np.einsum("ij,j->i", _laid(rows).numpy()[:, HEAD:].view(np.int64), weights.numpy())
        return sums
    return (_laid(rows)[:, HEAD:].view(torch.int64) * weights).sum(1).cpu().numpy()


@functools.lru_cache(maxsize=16)
def _weights(words: int, device: torch.device) -> torch.Tensor:
    return (2 * torch.arange(words, device=device) + 1) * _ODD
