"""The seam that changed bits leave in a JPEG even when the decoder notices nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ftkit._images.decoding.picture import Pixels

if TYPE_CHECKING:
    import numpy.typing as npt


_Integers: TypeAlias = "npt.NDArray[np.signedinteger]"

# To set these anew: "benchmarks/images.py detect" counts what is found of garbled photos, and the alarms on sound ones.
_LEAST = 16  # levels of brightness that a seam is high, at least
_STEP = 4  # levels of a single pixel's step
_CLEAR = 2.5  # how many times it stands out from the steps around it, to be worth a second look
_ONE_SIGN = 0.75  # of its steps taken without their signs is left with them: it goes up nearly everywhere, or down
_EACH_SIDE = 0.5  # of its mean height that each side of the turn has, at least
_TURN = 0.4, 2.5  # times its mean height that the step within the row has, where the seam turns
_SHARP = 0.45  # of its pixels that step on the very line; in photographs up to 0.26 of them do
# How many of the units step about as high as the middle one: rows of tiles step all over. A turn near to a side, in
# shares of the width, proves little else.
_EVEN, _EVEN_AT_SIDE, _SIDE = 0.4, 0.75, 0.25
_ABOUT = 0.5, 1.6  # times as high
_LOOKS, _MOST = 16, 4  # how many of the clearest are looked at, and how many returned


def find_seams(eighth: Pixels, unit_width: int, unit_height: int) -> list[tuple[int, int]]:
    """Return where a seam may begin: rows and columns of blocks, at most four, the clearest first.

    The brightness of a block is coded as the difference from the block before (the DC coefficient). When
    a changed bit makes one difference wrong, all blocks behind it, to the end, are off by the same amount:
    the picture has a step that runs under a row of blocks as far as some column, and above that row from
    there on. Natural edges seldom turn by one row of blocks on the way.

    Args:
        eighth: The picture at an eighth of its size: a pixel for each 8 x 8.
        unit_width: How many of these pixels a unit of the coding (an MCU) is wide.
        unit_height: How many it is high.
    """
    rows, columns = eighth.shape[0] // unit_height, eighth.shape[1] // unit_width
    if rows < 6 or columns < 8:  # too few blocks around a seam for it to stand out
        return []
    grey = eighth[: rows * unit_height, : columns * unit_width]
    steps = _steps(grey, unit_width, unit_height)
    # One row after the other, the steps of a seam follow each other, as many as there are columns: from behind some
    # column c in a row up to c in the row below. Summed so far, up to any step, they give the sum over each seam.
    along = _sums(steps)
    shape = rows - 2, columns  # a seam for each c
    before, after = along[1:-columns].reshape(shape), along[columns + 1 :].reshape(shape)
    seam = np.abs(after - before)
    across = columns * unit_width
    if seam.max() < _LEAST * across:
        return []
    size = _sums(np.abs(steps))
    seam_size = (size[columns + 1 :] - size[1:-columns]).reshape(shape)
    ends = size[::columns, None]
    rest = (ends[2:] - ends[:-2] + across) - seam_size  # the other steps in the two rows
    places = np.flatnonzero((seam >= np.maximum(_CLEAR * rest, _LEAST * across)).any(1))
    if not len(places):  # as for nearly all pictures
        return []
    turns = along[columns:-columns:columns, None]
    inside = slice(1, columns - 2)  # for each c but the outermost
    right, left, seam, seam_size, rest = (
        values[places, inside] for values in (turns - before, after - turns, seam, seam_size, rest)
    )
    count = np.arange(2, columns - 1)
    is_high = seam >= _LEAST * across
    has_one_sign = (seam >= _ONE_SIGN * seam_size) & (np.sign(right) * left > 0)
    runs_right = np.abs(right) * columns >= _EACH_SIDE * seam * (columns - count)
    runs_left = np.abs(left) * columns >= _EACH_SIDE * seam * count
    clear = np.where(is_high & has_one_sign & runs_right & runs_left, seam / rest, 0)
    found = []
    for flat in np.argsort(-clear, axis=None)[:_LOOKS]:
        place, at = divmod(int(flat), clear.shape[1])
        row, column = int(places[place]) + 1, at + 2
        line = grey[row * unit_height]
        turn = int(line[column * unit_width]) - int(line[column * unit_width - 1])
        if clear[place, at] >= _CLEAR and _TURN[0] < turn * across / (right + left)[place, at] < _TURN[1]:
            found.append((row, column))
    return found[:_MOST]


def _steps(grey: Pixels, unit_width: int, unit_height: int) -> _Integers:
    """Return by how much each unit is brighter at its top than the one above at its bottom, summed over its width."""
    steps = np.subtract(grey[unit_height::unit_height], grey[unit_height - 1 : -1 : unit_height], dtype=np.int32)
    for at in range(1, unit_width):
        steps[:, ::unit_width] += steps[:, at::unit_width]
    return steps[:, ::unit_width]


def _sums(values: _Integers) -> _Integers:
    """Return the sums over all values before the first, the second, ... and over all."""
    sums = np.zeros(values.size + 1, np.int32)  # may overflow, which their differences never do
    values.cumsum(dtype=np.int32, out=sums[1:])
    return sums


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
    if sharp.mean() <= _SHARP or any(side.mean() <= _SHARP / 2 for side in sides):
        return False
    heights = on.reshape(-1, width).mean(1)
    middle = float(np.median(heights))
    low, high = sorted(times * middle for times in _ABOUT)
    place = column / len(heights)
    wanted = _EVEN_AT_SIDE if min(place, 1 - place) < _SIDE else _EVEN
    return bool(((heights > low) & (heights < high)).mean() >= wanted)
