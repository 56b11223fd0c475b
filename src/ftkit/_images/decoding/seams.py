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
_WORTH, _CLEAR = np.array((12, 9, 9), np.float32), 10
_GRID = 8  # parts of the width, at whose ends a seam is looked for at first
_EACH_SIDE = 0.4  # of its mean height, that each side of the turn has at least
_HALF_LEVEL = 1  # half a level, as the steps of `_Lines` are doubled
_HIGHEST, _STRAIGHT_IN_SMALL = 40, 0.8  # seams that are looked at, and `_STRAIGHT`, before a look in full size
# In full size:
_HEIGHT, _HEIGHT_MOSTLY = (12, 6), (10, 5)  # levels, in brightness and color differences: the mean, the median
_STRAIGHT = 0.35  # of its mean height, that the edges may have which would make it go on straight at the turn
_SHARP, _SHARP_SIDE = 0.45, 0.3  # of the pixels, that step on the very line, and of those on each side of the turn
_STEP, _STEEPER = 3, 1.5  # levels of such a step, and how many times it is as high as those next to it
_EVEN, _ABOUT = 0.3, (0.5, 1.6)  # of the units on each side, that are about as high as the median
_ROUGH = 1, 0.2  # levels between pixels next to the line: drawings are plain, and have any edges
_TILES = 3  # times as high as elsewhere are the steps on all lines between units, in sheets of tiles
_AROUND = 3  # times as high as on other lines, with no regard to signs, the edges there are, at most
_FILLED = 2  # levels between what lies behind a seam, at most, where nothing has shifted
_LOOKS = 3  # of the clearest are looked at


class _Seam(NamedTuple):
    row: int  # the line below this row of units, from the column on; the line below the next one, up to it
    column: int
    height: float  # doubled, and negative for a step down


def may_have_seam(eighth: Pixels, unit_width: int, unit_height: int) -> list[int]:
    """Return the components of a picture at an eighth of its size that look as if they had a seam.

    Args:
        eighth: Its components, a pixel for each 8 x 8: components x height x width.
        unit_width: How many of these pixels a unit of the coding (an MCU) is wide.
        unit_height: How many it is high.
    """
    components, height, width = eighth.shape
    if height < 6 * unit_height or width < 8 * unit_width:  # too few units around a seam for it to stand out
        return []
    parts, share = _parts(width, unit_width)
    sums = eighth.reshape(-1, width).astype(np.float32) @ parts
    excess = _over_lines(height, unit_height) @ sums.reshape(components, height, _GRID)
    to_left = excess[:, :, :-1]
    to_right = excess[:, :, -1:] - to_left
    left, right = to_left[:, 1:], to_right[:, :-1]
    seams = left + right
    heights = np.abs(seams)
    each = heights.reshape(components, -1)
    middle = each.shape[1] // 2
    usual = np.partition(each, middle)[:, middle]
    least = _WORTH[:components] * (usual + _HALF_LEVEL * (width - width % unit_width))
    if (each.max(1) <= least).all():  # as for nearly all pictures
        return []
    high = heights > least[:, None, None]
    turns = (
        (left * seams >= _EACH_SIDE * share * seams**2)
        & (right * seams >= _EACH_SIDE * (1 - share) * seams**2)
        & (np.abs(to_left[:, :-1]) <= share * heights)
        & (np.abs(to_right[:, 1:]) <= (1 - share) * heights)
    )
    doubtful: list[int] = np.flatnonzero((high & turns).any((1, 2))).tolist()
    return [which for which in doubtful if _turns_somewhere(eighth[which], unit_width, unit_height)]


def _turns_somewhere(plane: Pixels, unit_width: int, unit_height: int) -> bool:
    """Whether one of the highest seams turns, at any column, as far as an eighth of the size tells."""
    if unit_height == 1:  # a line and those next to it are to be told apart
        plane, unit_height = plane.repeat(2, axis=0), 2
    lines = _Lines(plane, unit_width, unit_height)
    heights = np.abs(lines.seams)
    highest = np.argsort(-heights)[:_HIGHEST]
    return any(True for _ in lines.turning(highest[heights[highest] > 0], 2, _STRAIGHT_IN_SMALL))


@lru_cache(64)
def _parts(width: int, unit_width: int) -> tuple[_Matrix, _Matrix]:
    """Return what to take the sums of rows of pixels by, up to some columns of units and to the last; their shares."""
    columns = width // unit_width
    ends = np.arange(1, _GRID + 1) * columns // _GRID * unit_width
    return (np.arange(width)[:, None] < ends).astype(np.float32), (ends[:-1] / ends[-1]).astype(np.float32)


@lru_cache(64)
def _over_lines(height: int, unit_height: int) -> _Matrix:
    """Return what to take the steps over the lines between rows of units by, as they are in `_Lines`."""
    whole = height - height % unit_height
    steps = np.diff(np.eye(whole, height, dtype=np.float32), axis=0, prepend=0, append=0)
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
    lines = _Lines(plane, unit_width, unit_height)
    if lines.rows < 6 or lines.columns < 8 or unit_height < 4:
        return None
    heights = np.abs(lines.seams)
    levels = heights / (2 * lines.width)
    clear = heights / (1.5 * np.median(heights) + 0.5 * _HALF_LEVEL * lines.width)
    high = np.flatnonzero((clear >= _CLEAR) & (levels >= _HEIGHT[is_color]))
    order = high[np.argsort(-clear[high])]
    seams = islice(lines.turning(order, 3, _STRAIGHT), _LOOKS)
    place = next(((seam.row + 1, seam.column) for seam in seams if _is_sharp(lines, seam, is_color)), None)
    if place is None or _is_laid_of_tiles(lines, plane, unit_height):
        return None
    behind = plane[(place[0] + 1) * unit_height :]
    return None if np.ptp(behind) <= _FILLED else place  # what is missing of a render or a mosaic, filled with a color


class _Lines:
    """The lines between rows of units, and how high the picture steps over them.

    Attributes:
        rows: How many units the picture is high.
        columns: How many it is wide.
        width: How many pixels that is.
        on: The step over each line, by pixel: lines x width.
        above: The step one pixel above it.
        below: The one below it.
        seams: The height of a seam that begins at each unit, one row after the other: the sum over the line that is
            above the row from there on, and under it up to there. Steps are doubled, less what the picture steps
            above and below the line.
    """

    def __init__(self, plane: Pixels, unit_width: int, unit_height: int) -> None:
        self.rows, self.columns = plane.shape[0] // unit_height, plane.shape[1] // unit_width
        self.width = self.columns * unit_width
        units = plane[: self.rows * unit_height, : self.width].reshape(self.rows, unit_height, self.width)
        ends, starts = units[:-1, -2:].astype(np.int16), units[1:, :2].astype(np.int16)
        self.on, self.above, self.below = (
            starts[:, 0] - ends[:, 1],
            ends[:, 1] - ends[:, 0],
            starts[:, 1] - starts[:, 0],
        )
        self._excess = 2 * self.on - self.above - self.below
        by_unit: _Integers = sum(
            (self._excess[:, at::unit_width] for at in range(1, unit_width)), self._excess[:, ::unit_width]
        )
        self._sums = np.zeros(by_unit.size + 1, np.int32)
        by_unit.ravel().cumsum(dtype=np.int32, out=self._sums[1:])
        self.seams: _Integers = self._sums[self.columns :] - self._sums[: -self.columns]

    @property
    def usual(self) -> float:
        """The height of the steps over a line, on average, with no regard to their sign."""
        return float(np.median(np.abs(self._excess).mean(1)))

    def turning(self, places: npt.NDArray[np.intp], margin: int, straight: float) -> Iterator[_Seam]:
        """Yield those seams that turn.

        Args:
            places: Where the seams begin.
            margin: Units between the turn and the sides of the picture, at least.
            straight: Height that may be where it would go on straight, on average, in shares of its own.
        """
        sums = self._sums
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
    on, above, below = (sign * steps[row, x] for steps in (lines.on, lines.above, lines.below))
    around = np.maximum(np.abs(above), np.abs(below))
    sharp = on > np.maximum(_STEP, _STEEPER * around)
    heights = (2 * on - above - below).reshape(-1, unit).mean(1) / 2
    most = float(np.median(heights))
    even = (heights > _ABOUT[0] * most) & (heights < _ABOUT[1] * most)
    rough = (np.abs(above) + np.abs(below)).mean() / 2
    other = np.where(x < turn, seam.row, seam.row + 1)
    straight = np.abs(2 * lines.on[other, x] - lines.above[other, x] - lines.below[other, x]).mean()
    return bool(
        sharp.mean() >= _SHARP
        and min(sharp[:turn].mean(), sharp[turn:].mean()) >= _SHARP_SIDE
        and min(even[: seam.column].mean(), even[seam.column :].mean()) >= _EVEN
        and most >= _HEIGHT_MOSTLY[is_color]
        and straight <= _AROUND * (lines.usual + _HALF_LEVEL)
        and rough >= _ROUGH[is_color]
    )


def _is_laid_of_tiles(lines: _Lines, plane: Pixels, unit_height: int) -> bool:
    between = _Lines(plane[unit_height // 2 :], lines.width // lines.columns, unit_height)
    return bool(lines.usual > _TILES * (between.usual + _HALF_LEVEL))
