"""The seam that changed bits leave in a JPEG even when the decoder notices nothing.

The mean of a block is coded as the difference from the block before (the DC coefficient). When a changed bit makes one
difference wrong, all blocks behind it, to the end, are off by the same amount, in brightness or in a color difference:
the picture has a step that runs under a row of units of the coding as far as some column, and above that row from there
on. Natural edges seldom turn by one row of units on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from ftkit._images.decoding.picture import Pixels

if TYPE_CHECKING:
    import numpy.typing as npt


_Integers: TypeAlias = "npt.NDArray[np.signedinteger]"
_Matrix: TypeAlias = "npt.NDArray[np.float32]"

# To set these anew: "benchmarks/images.py detect" counts what is found of garbled photos, and the alarms on sound ones.
# How many times as high as the others a seam is to be worth a look in full size (in brightness, in color differences),
# and to be one.
_WORTH, _CLEAR = np.array((12, 9, 9), np.float32)[:, None, None], 10
_GRID = 8  # parts of the width, at whose ends a seam is looked for at first
_EACH_SIDE = 0.4  # of its mean height, that each side of the turn has at least
_HALF_LEVEL = 1  # half a level, as the steps of `_Lines` are doubled
# In full size:
_HEIGHT, _HEIGHT_MOSTLY = (12, 6), (10, 5)  # levels, in brightness and color differences: the mean, the median
_STRAIGHT = 0.35  # of its mean height, that the edges may have which would make it go on straight at the turn
_SHARP, _SHARP_SIDE = 0.45, 0.3  # of the pixels, that step on the very line, and of those on each side of the turn
_STEP, _STEEPER = 3, 1.5  # levels of such a step, and how many times it is as high as those next to it
_EVEN, _ABOUT = 0.3, (0.5, 1.6)  # of the units on each side, that are about as high as the median
_ROUGH = 1, 0.2  # levels between pixels next to the line: drawings are plain, and have any edges
_TILES = 3  # times as high as elsewhere are the steps on all lines between units, in sheets of tiles
_AROUND = 3  # times as high as on other lines, with no regard to signs, the edges there are, at most
_LOOKS = 3  # of the clearest are looked at


class _Seam(NamedTuple):
    row: int  # the line below this row of units, from the column on; the line below the next one, up to it
    column: int
    height: float  # doubled, and negative for a step down


def may_have_seam(eighth: Pixels, unit_width: int, unit_height: int) -> list[int]:
    """Return the components of a picture at an eighth of its size that look as if they had a seam.

    Args:
        eighth: Its components, a pixel for each 8 x 8: height x width x components.
        unit_width: How many of these pixels a unit of the coding (an MCU) is wide.
        unit_height: How many it is high.
    """
    rows, columns = eighth.shape[0] // unit_height, eighth.shape[1] // unit_width
    if rows < 6 or columns < 8:  # too few units around a seam for it to stand out
        return []
    height, width = rows * unit_height, columns * unit_width
    sides, share = _sides(columns, unit_width)
    planes = eighth[:height, :width].transpose(2, 0, 1).astype(np.float32, "C")
    excess = _over_lines(rows, unit_height) @ (planes @ sides)
    before, left = excess[:, :-1, : _GRID - 1], excess[:, 1:, : _GRID - 1]
    right, after = excess[:, :-1, _GRID - 1 :], excess[:, 1:, _GRID - 1 :]
    seams = left + right
    heights = np.abs(seams)
    flat = heights.reshape(len(seams), -1)
    usual = np.partition(flat, flat.shape[1] // 2)[:, flat.shape[1] // 2, None, None]
    high = heights > _WORTH[: len(seams)] * (usual + _HALF_LEVEL * width)
    if not high.any():  # as for nearly all pictures
        return []
    turns = (
        (left * seams >= _EACH_SIDE * share * seams**2)
        & (right * seams >= _EACH_SIDE * (1 - share) * seams**2)
        & (np.abs(before) <= share * heights)
        & (np.abs(after) <= (1 - share) * heights)
    )
    doubtful: list[int] = np.flatnonzero((high & turns).any((1, 2))).tolist()
    return doubtful


@lru_cache(64)
def _sides(columns: int, unit_width: int) -> tuple[_Matrix, _Matrix]:
    """Return what to take the sums of rows of pixels by, up to some columns and from there on; the shares."""
    ends = np.arange(1, _GRID) * columns // _GRID * unit_width
    left = (np.arange(columns * unit_width)[:, None] < ends).astype(np.float32)
    return np.hstack((left, 1 - left)), left.mean(0)


@lru_cache(64)
def _over_lines(rows: int, unit_height: int) -> _Matrix:
    """Return what to take the steps over the lines between rows of units by, as they are in `_Lines`."""
    steps = np.diff(np.eye(rows * unit_height, dtype=np.float32), axis=0, prepend=0, append=0)
    steps[0] = steps[-1] = 0
    return (
        2 * steps[unit_height:-1:unit_height]
        - steps[unit_height - 1 : -2 : unit_height]
        - steps[unit_height + 1 :: unit_height]
    )


def find_seam(plane: Pixels, unit_width: int, unit_height: int, is_color: bool) -> tuple[int, int] | None:
    """Return the row and the column of units where one component of a picture begins to be shifted.

    Args:
        plane: The component in full size.
        unit_width: The width in its pixels of a unit of the coding.
        unit_height: The height.
        is_color: Whether it is a color difference, else brightness.
    """
    lines = _Lines(plane[:, :, None], unit_width, unit_height)
    if lines.rows < 6 or lines.columns < 8 or unit_height < 4 or _is_laid_of_tiles(lines, plane, unit_height):
        return None
    heights = np.abs(lines.seams[:, 0])
    levels = heights / (2 * lines.width)
    clear = heights / (1.5 * np.median(heights) + 0.5 * _HALF_LEVEL * lines.width)
    order = np.argsort(-clear)
    order = order[(clear[order] >= _CLEAR) & (levels[order] >= _HEIGHT[is_color])]
    seams = islice(lines.turning(order, 0, 3, _STRAIGHT), _LOOKS)
    return next(((seam.row + 1, seam.column) for seam in seams if _is_sharp(lines, seam, is_color)), None)


class _Lines:
    """The lines between rows of units, and how high the picture steps over them.

    Attributes:
        rows: How many units the picture is high.
        columns: How many it is wide.
        width: How many pixels that is.
        on: The step over each line, by pixel: lines x width x components.
        above: The step one pixel above it.
        below: The one below it.
        seams: The height of a seam that begins at each unit, one row after the other: the sum over the line that is
            above the row from there on, and under it up to there. Steps are doubled, less what the picture steps
            above and below the line.
    """

    def __init__(self, pixels: Pixels, unit_width: int, unit_height: int) -> None:
        self.rows, self.columns = pixels.shape[0] // unit_height, pixels.shape[1] // unit_width
        height, self.width = self.rows * unit_height, self.columns * unit_width
        steps = np.zeros((height + 1, self.width, pixels.shape[2]), np.int16)
        whole = pixels[:height, : self.width]
        np.subtract(whole[1:], whole[:-1], out=steps[1:-1], dtype=np.int16)
        self.on, self.above, self.below = (
            steps[unit_height + shift : height + shift : unit_height] for shift in (0, -1, 1)
        )
        excess = 2 * self.on - self.above - self.below
        self._excess = excess
        by_unit: _Integers = sum((excess[:, at::unit_width] for at in range(1, unit_width)), excess[:, ::unit_width])
        self._sums = np.zeros((by_unit.shape[0] * self.columns + 1, pixels.shape[2]), np.int32)
        by_unit.reshape(-1, pixels.shape[2]).cumsum(0, dtype=np.int32, out=self._sums[1:])
        self.seams: _Integers = self._sums[self.columns :] - self._sums[: -self.columns]

    @property
    def usual(self) -> float:
        """The height of the steps over a line, on average, with no regard to their sign."""
        return float(np.median(np.abs(self._excess).mean((1, 2))))

    def turning(self, places: npt.NDArray[np.intp], which: int, margin: int, straight: float) -> Iterator[_Seam]:
        """Yield those seams that turn.

        Args:
            places: Where the seams begin.
            which: In which component.
            margin: Units between the turn and the sides of the picture, at least.
            straight: Height that may be where it would go on straight, on average, in shares of its own.
        """
        sums = self._sums[:, which]
        for place in places.tolist():
            row, column = divmod(place, self.columns)
            if not (margin <= column < self.columns - margin and row < self.rows - 2):
                continue
            start, turn, end, stop = (int(sums[at]) for at in (
                row * self.columns, (row + 1) * self.columns, place + self.columns, (row + 2) * self.columns
            ))  # fmt: skip
            height = (end - int(sums[place])) / self.columns
            right, left = (turn - int(sums[place])) / (self.columns - column), (end - turn) / column
            before, after = (int(sums[place]) - start) / column, (stop - end) / (self.columns - column)
            if min(right / height, left / height) >= _EACH_SIDE and max(abs(before), abs(after)) <= straight * abs(
                height
            ):
                yield _Seam(row, column, height)


def _is_sharp(lines: _Lines, seam: _Seam, is_color: bool) -> bool:
    """Whether the picture steps sharply on the very line between units, all along the seam and by the same height."""
    unit = lines.width // lines.columns
    x, turn = np.arange(lines.width), seam.column * unit
    row = np.where(x < turn, seam.row + 1, seam.row)
    sign = 1 if seam.height > 0 else -1
    on, above, below = (sign * steps[row, x, 0] for steps in (lines.on, lines.above, lines.below))
    around = np.maximum(np.abs(above), np.abs(below))
    sharp = on > np.maximum(_STEP, _STEEPER * around)
    heights = (2 * on - above - below).reshape(-1, unit).mean(1) / 2
    most = float(np.median(heights))
    even = (heights > _ABOUT[0] * most) & (heights < _ABOUT[1] * most)
    rough = (np.abs(above) + np.abs(below)).mean() / 2
    other = np.where(x < turn, seam.row, seam.row + 1)
    straight = np.abs(2 * lines.on[other, x, 0] - lines.above[other, x, 0] - lines.below[other, x, 0]).mean()
    return bool(
        sharp.mean() >= _SHARP
        and min(sharp[:turn].mean(), sharp[turn:].mean()) >= _SHARP_SIDE
        and min(even[: seam.column].mean(), even[seam.column :].mean()) >= _EVEN
        and most >= _HEIGHT_MOSTLY[is_color]
        and straight <= _AROUND * (lines.usual + _HALF_LEVEL)
        and rough >= _ROUGH[is_color]
    )


def _is_laid_of_tiles(lines: _Lines, plane: Pixels, unit_height: int) -> bool:
    between = _Lines(plane[unit_height // 2 :, :, None], lines.width // lines.columns, unit_height)
    return bool(lines.usual > _TILES * (between.usual + _HALF_LEVEL))
