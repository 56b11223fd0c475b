"""The seam that changed bits leave in a JPEG even when the decoder notices nothing."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ftkit.images.verdict import Pixels

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["confirm_seam", "find_seams"]

Floats: TypeAlias = "npt.NDArray[np.float32]"

_LEAST = 16  # levels of brightness that a seam is high, at least
_STEP = 4  # levels of a single pixel's step
_CLEAR = 2.5  # how many times it stands out from the steps around it, to be worth a second look
_SHARP = 0.45  # of its pixels that step on the very line; in photographs up to 0.26 of them do


def find_seams(eighth: Pixels, unit_width: int, unit_height: int) -> list[tuple[int, int]]:
    """Return where a seam may begin: rows and columns of blocks, at most four, the clearest first.

    The brightness of a block is coded as the difference from the block before. When a changed bit
    makes one difference wrong, all blocks behind it, to the end, are off by the same amount: the
    picture has a step that runs under a row of blocks as far as some column, and above that row from
    there on. Natural edges seldom turn by one row of blocks on the way.

    Args:
        eighth: The picture at an eighth of its size: a pixel for each 8 x 8.
        unit_width: How many of these pixels a unit of the coding (an MCU) is wide.
        unit_height: How many it is high.
    """
    rows, columns = eighth.shape[0] // unit_height, eighth.shape[1] // unit_width
    if rows < 6 or columns < 8:
        return []
    grey = eighth[: rows * unit_height, : columns * unit_width]
    steps: Floats = np.subtract(
        grey[unit_height::unit_height], grey[unit_height - 1 : -1 : unit_height], dtype=np.float32
    )
    for at in range(1, unit_width):
        steps[:, ::unit_width] += steps[:, at::unit_width]
    steps = steps[:, ::unit_width] / np.float32(unit_width)
    # A seam from column c on in a row and up to c in the row below, for each c; and the steps that are not on it.
    along, size = _running_sums(steps), _running_sums(np.abs(steps))
    right, left = along[:-1, -1:] - along[:-1], along[1:]
    seam = np.abs(right + left)
    rest = (size[1:, -1:] + columns) - size[1:] + size[:-1]
    standing_out = (seam >= _CLEAR * rest) & (seam >= _LEAST * columns)
    if not standing_out.any():  # as for nearly all pictures
        return []
    places = np.flatnonzero(standing_out.any(1))
    clear = seam / rest
    seam_size = size[:-1, -1:] - size[:-1] + size[1:]
    inside = slice(1, columns - 2)  # for each c but the outermost
    right, left, seam, seam_size, clear = (values[places, inside] for values in (right, left, seam, seam_size, clear))
    count = np.arange(2, columns - 1, dtype=np.float32)
    clear[
        (seam < _LEAST * columns)
        | (seam < 0.75 * seam_size)  # one sign nearly everywhere
        | (right * left <= 0)
        | (np.abs(right) * columns < 0.5 * seam * (columns - count))  # on both sides of the turn
        | (np.abs(left) * columns < 0.5 * seam * count)
    ] = 0
    if clear.max() < _CLEAR:
        return []
    found = []
    for flat in np.argsort(-clear, axis=None)[:16]:
        place, at = divmod(int(flat), clear.shape[1])
        if clear[place, at] < _CLEAR:
            break
        row, column = int(places[place]) + 1, at + 2
        # Within the row, too, the brightness steps where the seam turns.
        line = grey[row * unit_height].astype(np.float32)
        step = line[column * unit_width] - line[column * unit_width - 1]
        if 0.4 < step * columns / (right + left)[place, at] < 2.5:
            found.append((row, column))
    return found[:4]


def _running_sums(rows: Floats) -> Floats:
    columns = rows.shape[1]
    return np.cumsum(rows, 1) if columns > 256 else rows @ _triangle(columns)  # what costs less


@lru_cache(64)  # a data set has few sizes
def _triangle(side: int) -> Floats:
    return np.triu(np.ones((side, side), np.float32))


def confirm_seam(grey: Pixels, row: int, column: int, width: int, height: int) -> bool:
    """Whether the picture in full size steps sharply on the very line between blocks, all along the seam.

    Args:
        grey: The picture.
        row: The row of units in which the seam begins.
        column: The column where it does.
        width: The width of a unit in pixels.
        height: Its height.
    """
    values = grey.astype(np.int16)
    x = np.arange(values.shape[1] // width * width)
    y = np.minimum(np.where(x < column * width, row + 1, row) * height, len(values) - 2)
    on = values[y, x] - values[y - 1, x]
    above, below = values[y - 1, x] - values[y - 2, x], values[y + 1, x] - values[y, x]
    sign = 1 if np.median(on) > 0 else -1
    sharp = sign * on > np.maximum(_STEP, 1.5 * np.maximum(np.abs(above), np.abs(below)))
    # An edge of a frame that lies on a line of blocks by chance does not turn.
    sides = sharp[: column * width], sharp[column * width :]
    return bool(sharp.mean() > _SHARP and all(side.mean() > _SHARP / 2 for side in sides))
