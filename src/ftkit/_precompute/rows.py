"""What is kept, as data sets for loaders; and its bytes in less precision."""

from __future__ import annotations

import operator
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ftkit._precompute import samples
from ftkit._precompute.frontier import near
from ftkit._precompute.heads import HEAD, fresh, numbered, signed
from ftkit._precompute.replay import ALIGN, Player
from ftkit._precompute.store import RowFile
from ftkit.errors import DamagedFileError, FtkitError


@dataclass(frozen=True)
class Piece:
    """One kept tensor in a row.

    Attributes:
        at: Where it lies in a row.
        kept_at: Where it lies in a row as it is kept.
        nbytes: What it takes in a row.
        dtype: Its type.
        kept_as: The type in which it is kept.
    """

    at: int
    kept_at: int
    nbytes: int
    dtype: torch.dtype
    kept_as: torch.dtype

    @property
    def kept_bytes(self) -> int:
        """What it takes as it is kept."""
        return self.nbytes // self.dtype.itemsize * self.kept_as.itemsize


class Packing:
    """Makes less of the bytes of rows: floating-point values are rounded to a narrower type.

    Args:
        player: Whose rows they are.
        dtype: The narrower type; None to keep rows as they are.
    """

    def __init__(self, player: Player, dtype: torch.dtype | None) -> None:
        self._dtype = dtype
        self.row_bytes, self.kept_bytes, self.pieces = player.row_bytes, HEAD, list[Piece]()
        for number, at in player.offsets.items():
            layout = player.cut.layouts[number]
            narrows = dtype is not None and layout.dtype.is_floating_point and layout.dtype.itemsize > dtype.itemsize
            kept_as = dtype if dtype is not None and narrows else layout.dtype
            piece = Piece(at, self.kept_bytes, layout.nbytes, layout.dtype, kept_as)
            self.pieces.append(piece)
            self.kept_bytes += -(-piece.kept_bytes // ALIGN) * ALIGN
        if dtype is None:
            self.kept_bytes = self.row_bytes  # which may be longer than its pieces

    @property
    def description(self) -> list[str]:
        """In which types the pieces are kept, ready for JSON."""
        return [str(piece.kept_as) for piece in self.pieces]

    def pack(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows as they are kept.

        Raises:
            FtkitError: A value does not fit into the narrower type.
        """
        if self._dtype is None:
            return rows
        kept = torch.zeros(len(rows), self.kept_bytes, dtype=torch.uint8)
        kept[:, :HEAD] = rows[:, :HEAD]
        for piece in self.pieces:
            values = _values(rows, piece.at, piece.nbytes, piece.dtype)
            narrow = values.to(piece.kept_as)
            if piece.kept_as is not piece.dtype and (values.isfinite() & ~narrow.isfinite()).any():
                raise FtkitError(
                    f"A value of the frozen part, {values[values.isfinite()].abs().max():.3g}, is too large for "
                    f"{piece.kept_as}: keep it in torch.bfloat16, or leave dtype out."
                )
            kept[:, piece.kept_at : piece.kept_at + piece.kept_bytes] = narrow.view(torch.uint8)
        return kept

    def unpack(self, kept: torch.Tensor) -> torch.Tensor:
        """Rows as the model takes them."""
        if self._dtype is None:
            return kept
        rows = torch.zeros(len(kept), self.row_bytes, dtype=torch.uint8)
        rows[:, :HEAD] = kept[:, :HEAD]
        for piece in self.pieces:
            values = _values(kept, piece.kept_at, piece.kept_bytes, piece.kept_as)
            rows[:, piece.at : piece.at + piece.nbytes] = values.to(piece.dtype).view(torch.uint8)
        return signed(rows)

    def near(self, kept: torch.Tensor, row: torch.Tensor) -> bool:
        """Whether a row that was kept is that of a sample computed anew."""
        each = (
            [_values(one[None], piece.at, piece.nbytes, piece.dtype) for one in (row, kept)] for piece in self.pieces
        )
        return all(self.near_values(computed, there) for computed, there in each)

    def near_values(self, computed: torch.Tensor, kept: torch.Tensor) -> bool:
        """Whether values that are kept are those computed anew, up to what kernels and types round."""
        if self._dtype is None or not computed.is_floating_point() or computed.dtype.itemsize <= self._dtype.itemsize:
            return near(computed, kept)
        if computed.shape != kept.shape:
            return False
        eps = torch.finfo(self._dtype).eps
        return torch.allclose(computed, kept, eps, 1e-4 * _largest(computed), equal_nan=True)

    def rounding(self, rows: torch.Tensor) -> tuple[float, float] | None:
        """The largest and the mean relative error of the values of rows; None if they are kept as they are."""
        if self._dtype is None:
            return None
        again, errors = self.unpack(self.pack(rows)), [torch.zeros(1, dtype=torch.float64)]
        for piece in self.pieces:
            if piece.kept_as != piece.dtype:
                one, other = (_values(each, piece.at, piece.nbytes, piece.dtype).double() for each in (rows, again))
                there = one.isfinite() & (one != 0)
                errors.append((one - other)[there].abs() / one[there].abs())
        every = torch.cat(errors[1:] if len(errors) > 1 and any(map(len, errors[1:])) else errors)
        return float(every.max()), float(every.mean())


def _largest(values: torch.Tensor) -> float:
    finite = values[values.isfinite()]
    return float(finite.abs().max()) if len(finite) else 0.0


def _values(rows: torch.Tensor, at: int, nbytes: int, dtype: torch.dtype) -> torch.Tensor:
    return (
        rows[:, at : at + nbytes]
        .clone(memory_format=torch.contiguous_format)
        .view(-1)
        .view(dtype)
        .view(len(rows), nbytes // dtype.itemsize)
    )


class Rows(Dataset[Any]):
    """A data set of what is kept: each sample as it was, with one row of bytes in the place of the model's input.

    With several views of each sample it gives the next one each time that it is asked for a sample, in any process.
    """

    def __init__(
        self, path: Path, packing: Packing, kinds: list[Any], form: samples.Form, views: int, source: int
    ) -> None:
        self._path, self.packing, self._kinds, self._form = path, packing, kinds, form
        self._views, self._source = views, source
        self._size = samples.rest_size(kinds)
        self._open: tuple[int, RowFile] | None = os.getpid(), RowFile(path)
        self._identity = self._open[1].identity()
        self._turns: torch.Tensor | None = None
        if views > 1:
            self._turns = torch.zeros(len(self), dtype=torch.int32)
            self._turns.share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return self._file().rows // self._views

    def __getitem__(self, index: int) -> Any:
        rows, beside = self._gathered(self._places([index]))
        return self._form.joined(rows[0], samples.rest_of(beside[0].tobytes(), self._kinds))

    def batch(self, indices: list[int]) -> Any:
        """Samples as torch's ``default_collate`` would put them together, read at once."""
        rows, beside = self._gathered(self._places(indices))
        return self._form.joined(rows, samples.rests_of(beside, self._kinds))

    def digest(self, place: int) -> bytes:
        """What tells the sample from others from which the row at a place in the file was computed."""
        return self._file().sample(place)

    def every(self, part: int, decode: Any) -> Any:
        """All samples as one batch, every view of each, with ``decode`` of so many rows at a time."""
        count = self._file().rows
        parts = [self._gathered(np.arange(start, min(start + part, count))) for start in range(0, count, part)]
        rest = samples.rests_of(np.concatenate([beside for _, beside in parts]), self._kinds)
        return self._form.joined(torch.cat([decode(rows) for rows, _ in parts]), rest)

    def _gathered(self, places: Any) -> tuple[torch.Tensor, Any]:
        """Rows, and the bytes of what is beside them."""
        data = self._file().gather(places)
        numbered(data, places, self._source)
        kept, end = data[:, : self.packing.kept_bytes], self.packing.kept_bytes + self._size
        rows = fresh(self.packing.unpack(torch.from_numpy(kept)), self._source)
        return rows, data[:, self.packing.kept_bytes : end]

    def _places(self, indices: list[int]) -> Any:
        count, numbers = len(self), [*map(operator.index, indices)]
        if beyond := [one for one in numbers if not -count <= one < count]:
            raise IndexError(f"There are {count} samples, no number {beyond[0]}.")
        places = np.array(numbers, dtype=np.int64)
        if min(numbers, default=0) < 0:
            places[places < 0] += count
        if self._turns is None:
            return places
        turns = []
        for at in places.tolist():
            turns.append(int(self._turns[at]) % self._views)
            self._turns[at] += 1
        return places * self._views + turns

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": None}

    def _file(self) -> RowFile:
        if self._open is None or self._open[0] != os.getpid():
            file = RowFile(self._path)
            if file.identity() != self._identity:
                raise DamagedFileError(
                    f"{self._path} is another file than when it was opened, of another model or data set: call "
                    "precompute() again."
                )
            self._open = os.getpid(), file
        return self._open[1]


class Batches(Dataset[Any]):
    """Rows for a loader that asks for all samples of a batch at once."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._rows[index]

    def __getitems__(self, indices: list[int]) -> Any:
        return self._rows.batch(indices)
