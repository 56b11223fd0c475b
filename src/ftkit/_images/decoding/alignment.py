"""Whether two pictures that look alike are the same: one is laid over the other, and what is fine in them compared."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ftkit._images.decoding.picture import Pixels
from ftkit._images.verdict import COLOR_SIDE, SIDE

if TYPE_CHECKING:
    import numpy.typing as npt


_Matrix: TypeAlias = "npt.NDArray[np.float64]"

_ROUNDS = 8
_LONGEST, _SHORTEST = 0.05, 0.0005  # step of a round, in shares of the picture
_LEAST = 20  # of the rows, and of the columns, that overlap
_LEVEL, _PLAIN = 16, 0.9  # how wide each of the two levels of a silhouette is, and their share of the pixels
_COVERED = 0.9  # of two silhouettes together, what both cover if they are copies
_EVEN, _LOOSE = 2, 0.2  # levels of error that may be all over a copy, and cells by which a part of it may have shifted
_SOME = 4096  # pictures in memory at a time
_TINT, _EDGE = 24, 0.25  # levels of a color difference that copies may be apart, and the share of what it changes by
_CENTRES = (np.arange(SIDE) + 0.5) / SIDE
_COLOR_CENTRES = (np.arange(COLOR_SIDE) + 0.5) / COLOR_SIDE


def compare(one: Pixels, other: Pixels, start: tuple[float, ...]) -> tuple[float, tuple[float, ...]]:
    """Return the similarity of two small pictures, of which the first may be a part of the second, and how it lies.

    It is the correlation of what is fine in them: 1 for copies, around 0 for strangers of one layout.

    The map between them, a scale and a shift each way, is found by least squares on the brightness (B. Lucas and T.
    Kanade, "An Iterative Image Registration Technique", 1981), a change of brightness and contrast along with it.

    Args:
        one: `SIDE` x `SIDE` levels of grey.
        other: The same of the other picture.
        start: Where the map is thought to be: scale and shift by height, and by width.
    """
    mine, theirs = _softened(one), _with_slopes(_softened(other))
    place = np.array(start, np.float64)
    step, turn = np.ones(4), 0
    while True:
        here, seen, effects = _laid(mine, theirs, place)
        if min(here.shape) < _LEAST:
            return 0.0, start
        if turn == _ROUNDS or abs(step).max() < _SHORTEST:
            return _correlation(_fine(here), _fine(seen)), tuple(place.tolist())
        step = _solved(effects, seen)[:4].clip(-_LONGEST, _LONGEST)
        place -= step
        turn += 1


def peak(one: Pixels, other: Pixels, place: tuple[float, ...]) -> float:
    """Return how much two pictures that lie on each other differ in one place, as a multiple of what is usual in them.

    What a copy went through leaves errors all over it, while what fills in one template differs in a few places. The
    edge, where a copy may have been cut, doesn't count.

    Args:
        one: As for `compare`.
        other: The same.
        place: The map between them, as `compare` finds it.
    """
    here, seen, effects = _laid(_softened(one), _with_slopes(_softened(other)), np.array(place))
    slopes = np.hypot(effects[:, 1], effects[:, 3]) / SIDE
    effects = np.column_stack((effects, here.ravel() ** 2 / 255))  # another gamma, or clipped
    errors = abs(seen.ravel() - effects @ _solved(effects, seen))
    highest = (errors - _LOOSE * slopes).reshape(seen.shape)[1:-1, 1:-1].max()
    return float(highest / (1 + min(np.median(errors), _EVEN)))


def softened(smalls: Pixels) -> tuple[Pixels, Pixels]:
    """Return small pictures as `stand_out` takes them: softened, and by how much a slight shift changes each cell."""
    levels, slack = np.empty_like(smalls), np.empty_like(smalls)
    blur = _blurred(SIDE, 1).astype(np.float32)
    for at in range(0, len(smalls), _SOME):
        soft = blur @ smalls[at : at + _SOME].astype(np.float32) @ blur.T
        levels[at : at + _SOME] = soft + 0.5
        slack[at : at + _SOME] = _LOOSE * np.hypot(*np.gradient(soft, axis=(1, 2)))
    return levels, slack


def stand_out(mine: Pixels, theirs: Pixels, slack: Pixels, most: float) -> npt.NDArray[np.bool_]:
    """Return which pairs have a `peak` of more than ``most`` as they are, not laid over each other: quick, for many.

    Args:
        mine: Levels of the first of each pair, as of `softened`, maybe turned.
        theirs: The same of the second.
        slack: What goes with the latter.
        most: The highest peak.
    """
    errors = abs(mine.astype(np.int16) - theirs)
    highest = (errors - slack)[..., 1:-1, 1:-1].max((-2, -1)) - 1  # of which both were rounded
    found: npt.NDArray[np.bool_] = highest > most * (1 + _EVEN)
    if (rest := np.flatnonzero(~found)).size:
        found[rest] = highest[rest] > most * (1 + np.median(errors[rest], (-2, -1)))
    return found


def are_two_shapes(one: Pixels, other: Pixels, start: tuple[float, ...]) -> bool:
    """Whether two small pictures are silhouettes, such as masks, that don't cover each other.

    Where nothing is fine, scaling and shifting would lay any ellipse over any other.

    Args:
        one: As for `compare`.
        other: The same.
        start: The same.
    """
    if not (_is_silhouette(one) and _is_silhouette(other)):
        return False
    (rows, take_rows), (columns, take_columns) = _overlap(*start[:2]), _overlap(*start[2:])
    here, seen = one[rows][:, columns] / 255, (take_rows @ other @ take_columns.T / 255).clip(0, 1)
    if here.mean() > 0.5:
        here, seen = 1 - here, 1 - seen
    return bool(np.minimum(here, seen).sum() < _COVERED * np.maximum(here, seen).sum())


def are_two_colors(one: Pixels, other: Pixels, place: tuple[float, ...]) -> bool:
    """Whether two pictures differ in color somewhere. One without any may be a copy in grey.

    A color counts as found if it is there or next to there.

    Args:
        one: The color differences, 2 x `COLOR_SIDE` x `COLOR_SIDE` levels.
        other: The same of the other picture.
        place: The map between them, as `compare` finds it.
    """
    if (one == 128).all() or (other == 128).all():
        return False
    back = tuple(value for s, t in (place[:2], place[2:]) for value in (1 / s, -t / s))
    return max(_unmatched(one, other, place), _unmatched(other, one, back)) > _TINT


def _unmatched(one: Pixels, other: Pixels, place: tuple[float, ...]) -> float:
    """Return by how many levels at most a color of one picture lies outside of those around its place in the other."""
    (rows, near_rows), (columns, near_columns) = _neighbors(*place[:2]), _neighbors(*place[2:])
    around = other.astype(np.int16)[:, near_rows][..., near_columns]  # color, row, near it, column, near it
    low, high = around.min((2, 4)), around.max((2, 4))
    here = one[:, rows][..., columns]
    return float((np.maximum(here - high, low - here) - _EDGE * (high - low)).max())


def _neighbors(scale: float, shift: float) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.intp]]:
    """Return which rows of colors lie in the other picture, and for each of them the rows of it that are near."""
    at = (scale * _COLOR_CENTRES + shift) * COLOR_SIDE - 0.5
    inside = (at > -0.5) & (at < COLOR_SIDE - 0.5)
    at = at[inside]
    near = np.stack([np.floor(at - 1), np.floor(at), np.ceil(at), np.ceil(at + 1)], -1)
    return inside, near.clip(0, COLOR_SIDE - 1).astype(np.intp)


def _is_silhouette(pixels: Pixels) -> bool:
    return bool(((pixels < _LEVEL) | (pixels > 255 - _LEVEL)).mean() > _PLAIN)


def _overlap(scale: float, shift: float) -> tuple[npt.NDArray[np.bool_], _Matrix]:
    """Return which rows of the one picture lie in the other, and how to make these of its rows: cubic interpolation."""
    at = (scale * _CENTRES + shift) * SIDE - 0.5
    inside = (at >= 0) & (at <= SIDE - 1)
    x = abs(at[inside][:, None] - np.arange(SIDE))
    near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    return inside, np.where(x < 1, near, np.where(x < 2, far, 0))


def _softened(pixels: Pixels) -> _Matrix:
    blur = _blurred(SIDE, 1)
    soft: _Matrix = blur @ pixels.astype(np.float64) @ blur.T
    return soft


def _with_slopes(pixels: _Matrix) -> _Matrix:
    return np.stack((pixels, *(SIDE * slope for slope in np.gradient(pixels))))


def _laid(mine: _Matrix, theirs: _Matrix, place: _Matrix) -> tuple[_Matrix, _Matrix, _Matrix]:
    """Return what both show of the same, and what a little more of each part of the map or of brightness would add."""
    (rows, take_rows), (columns, take_columns) = _overlap(*place[:2]), _overlap(*place[2:])
    here, (seen, by_row, by_column) = mine[rows][:, columns], take_rows @ theirs @ take_columns.T
    y, x = _CENTRES[rows][:, None], _CENTRES[columns]
    effects = np.stack((by_row * y, by_row, by_column * x, by_column, here, np.ones_like(here)), -1)
    return here, seen, effects.reshape(-1, 6)


def _solved(effects: _Matrix, seen: _Matrix) -> _Matrix:
    """Return how much of each effect it takes to come to what is seen, by least squares."""
    normal = effects.T @ effects + 1e-3 * np.eye(effects.shape[1])  # a plain picture has no slope
    return np.asarray(np.linalg.solve(normal, effects.T @ seen.ravel()), np.float64)


def _fine(pixels: _Matrix) -> _Matrix:
    """Return a picture without what is coarse in it."""
    down, across = (_blurred(length, 6) for length in pixels.shape)
    coarse: _Matrix = down @ pixels @ across.T
    return pixels - coarse


@lru_cache
def _blurred(length: int, times: int) -> _Matrix:
    """Return what to take rows by to blur them so many times; the first and the last one go on outside."""
    blur: _Matrix = 2 * np.eye(length) + np.eye(length, k=1) + np.eye(length, k=-1)
    blur[0, 0] = blur[-1, -1] = 3
    return np.linalg.matrix_power(blur / 4, times)


def _correlation(one: _Matrix, other: _Matrix) -> float:
    energy = float((one**2).sum() * (other**2).sum())
    return float((one * other).sum()) / energy**0.5 if energy > 1e-6 else 0.0
