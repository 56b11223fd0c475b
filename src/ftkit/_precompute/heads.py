"""The head of a row: by which it is known, which sample it is of, and a sum by which a change to it is seen."""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy as np
import torch

_ODD: Final = 0x1E3779B97F4A7C15
_SOURCE: Final = 32  # the bit from which the number of a sample says which data set it is of
MAGIC: Final = b"ftkitrow"
"""Bytes at the start of each row, by which it is known."""
TAG: Final = 16
"""Bytes at the start of each row, with those, that say which cut it belongs to."""
_NUMBER: Final = 24
"""Where the number of the sample ends, which follows."""
HEAD: Final = 32
"""Where what is kept begins, behind the sum."""


def begins(value: Any, with_what: bytes) -> bool:
    """Whether a value is a batch of rows that all begin with some bytes."""
    if not isinstance(value, torch.Tensor) or value.dtype is not torch.uint8 or value.dim() != 2 or not len(value):
        return False
    return bool(_head(value)[:, : len(with_what)].tobytes() == with_what * len(value))


def numbered(rows: torch.Tensor, numbers: Any, source: int) -> torch.Tensor:
    """Note in rows, in place, which samples they are of, and of which player's data set."""
    _head(rows)[:, TAG:_NUMBER].view(np.int64)[:, 0] = np.asarray(numbers, np.int64) + (source << _SOURCE)
    return rows


def numbers_of(rows: torch.Tensor) -> tuple[list[int], int]:
    """What :func:`numbered` has noted; the data set is that of the first row."""
    whole: list[int] = _head(rows)[:, TAG:_NUMBER].view(np.int64)[:, 0].tolist()
    return [one & ((1 << _SOURCE) - 1) for one in whole], whole[0] >> _SOURCE


def signed(rows: torch.Tensor) -> torch.Tensor:
    """Note in rows, in place, the sum of what each keeps."""
    _head(rows)[:, _NUMBER:].view(np.int64)[:, 0] = _sums(rows)
    return rows


def are_signed(rows: torch.Tensor) -> bool:
    """Whether the sums of rows are those that :func:`signed` has noted."""
    return bool((_sums(rows) == _head(rows)[:, _NUMBER:].view(np.int64)[:, 0]).all())


def _head(rows: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The heads of rows: their own memory if that is the CPU's."""
    near = rows if rows.device.type == "cpu" else rows[:, :HEAD].cpu()
    return near.numpy()[:, :HEAD]


def _sums(rows: torch.Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    """A sum of what each row keeps, in which each place counts differently."""
    weights = _weights((rows.shape[1] - HEAD) // 8)
    if rows.device.type == "cpu":
        return np.einsum("ij,j->i", rows.numpy()[:, HEAD:].view(np.int64), weights)
    words = rows[:, HEAD:].view(torch.int64)
    return (words * torch.from_numpy(weights).to(words.device)).sum(1).cpu().numpy()


@functools.lru_cache(maxsize=16)
def _weights(words: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.arange(1, 2 * words, 2, dtype=np.int64) * np.int64(_ODD)
