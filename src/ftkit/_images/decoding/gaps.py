"""The grey that a decoder has filled a gap with, in a picture that was saved again."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from ftkit._images.decoding.picture import Pixels

_Flags: TypeAlias = "npt.NDArray[np.bool_]"

# Levels: what decoders fill gaps with, and how far saving it again as a JPEG moves it.
_FILL, _SHIFT, _SPREAD = 128, 1, 2
_UNITS = (16, 16), (8, 16), (8, 8), (16, 8)  # height and width in pixels of what a JPEG codes in one go
_LEVELS = 32  # of brightness, that a photo has at least
_STRAY = 0.05  # of the units elsewhere, that may be as grey
# How many times as much as elsewhere may a picture step on the line above its last row of units, and on those between.
_JUMP, _JUMP_TO_GREY, _TILES = 3, 1.2, 2
_MOSTLY = 0.4
_SLANTED = 0.4  # of the columns, that end in grey above where the grey begins


def filled_share(grey: Pixels) -> float:
    """Return which share of the rows, from the lowest up, looks like what decoders fill gaps with."""
    last = grey[-1].tobytes()
    if max(last) - min(last) > _SPREAD or abs(last[0] - _FILL) > _SHIFT:  # as for nearly all pictures
        return 0.0
    filled = (np.ptp(grey, axis=1) <= _SPREAD) & (abs(grey[:, 0].astype(np.int16) - _FILL) <= _SHIFT)
    return int(filled[::-1].argmin()) / len(filled)


def is_cut_off(colours: Pixels, share: float) -> bool:
    """Whether a picture ends as one that was decoded from a cut-off JPEG.

    Such a picture has no other grey, and ends within a row of units: to the left of some unit there is picture, from
    there on it is grey, and in the row above there is picture all along. Padding, frames and backgrounds end straight,
    or in a slanted line once they are turned.

    Args:
        colours: The picture in RGB.
        share: How much of it, from the lowest row up, is grey.
    """
    lowest = colours[-max(1, int(len(colours) * share * 0.9)) :].astype(np.int16)
    if (abs(lowest - _FILL) > _SPREAD).any():  # it has a colour
        return False
    light: npt.NDArray[np.float32] = np.dot(colours, np.array([0.299, 0.587, 0.114], np.float32))
    if len(np.unique(light)) < _LEVELS:  # a mask of labels, of which one is as grey
        return False
    return any(_ends_within_a_row(light, *unit) for unit in _UNITS)


def _ends_within_a_row(light: npt.NDArray[np.float32], height: int, width: int) -> bool:
    filled = _all_of_each(np.abs(light - _FILL) <= _SPREAD, height, width)
    rows, columns = filled.shape
    top = rows - int(np.logical_and.reduce(filled, axis=1)[::-1].argmin())  # the first row that is filled
    if not 2 <= top < rows:
        return False
    cut = columns - int(filled[top - 1, ::-1].argmin())  # in the row above that, the first that is
    if not 0 < cut < columns:
        return False
    start, left = (top - 1) * height, cut * width
    # Units are decoded whole: with grey in their last line, it is the slanted edge of what was turned or sheared.
    ends = light[start + height - 1, :left], light[start - 1, left:]
    if any((np.abs(end - _FILL) <= 2 * _SPREAD).mean() > _SLANTED for end in ends):
        return False
    jump = np.abs(light[start, :left] - light[start - 1, :left]).mean()
    is_mostly_grey = (np.abs(light[start : start + height, :left] - _FILL) <= 4 * _SPREAD).mean() > _MOSTLY
    most = _JUMP_TO_GREY if is_mostly_grey else _JUMP
    if jump > most * np.abs(np.diff(light[:start], axis=0)).mean() + 1:  # a line of text under the picture
        return False
    picture = (filled[: top - 1], filled[top - 1, :cut], filled[top - 2, cut:])
    return all(part.mean() <= _STRAY for part in picture) and not _is_laid_of_tiles(
        light[: top * height], height, width
    )


def _all_of_each(flags: _Flags, height: int, width: int) -> _Flags:
    """Return for each unit whether all of it is set."""
    rows, columns = -(-flags.shape[0] // height), -(-flags.shape[1] // width)
    whole = np.ones((rows * height, columns * width), bool)
    whole[: flags.shape[0], : flags.shape[1]] = flags
    units: _Flags = np.logical_and.reduce(whole.reshape(rows, height, columns, width), axis=(1, 3))
    return units


def _is_laid_of_tiles(light: npt.NDArray[np.float32], height: int, width: int) -> bool:
    """Whether a picture steps on the lines between units, as a sheet of sprites does."""
    for values, unit in ((light, width), (light.T, height)):
        steps = abs(np.diff(values, axis=1)).mean(0)
        is_line = np.arange(1, len(steps) + 1) % unit == 0
        if is_line.any() and steps[is_line].mean() > _TILES * steps[~is_line].mean() + 1:
            return True
    return False
