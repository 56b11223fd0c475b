"""Colours that no picture has: brightness and colour differences that fit no red, green and blue."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ftkit._images.decoding.picture import Pixels

if TYPE_CHECKING:
    import numpy.typing as npt


_Planes: TypeAlias = "npt.NDArray[np.float32]"

# Frames of video may never have been red, green and blue, and be more colorful than a screen can show: so colors are
# lowered first. Then the most that a unit is off is 2 levels, of 4,700 files of photos, art, noise and such frames.
_MARGIN = 12  # levels
_SATURATION = 0.75
_SHARE, _FEWEST = 0.005, 4  # of the units
_ERROR = 1 + 1.772  # in red, green or blue, of an error of one level in all three
# What brightness, blue difference and red difference contribute to red, green and blue (ITU-T T.871).
_PALER = np.array(((1, 0, 1.402), (1, -0.344136, -0.714136), (1, 1.772, 0)), np.float32) * np.array(
    (1, _SATURATION, _SATURATION), np.float32
)
_NEUTRAL = _PALER @ np.array(((0,), (-128,), (-128,)), np.float32)  # where there is no difference, it is 128


def is_out_of_gamut(pixels: Pixels, width: int, height: int, step: float) -> bool:
    """Whether a part of a picture has colours that no encoder has put there.

    An encoder makes brightness and colour differences of red, green and blue. The mean over a unit of the coding, where
    all three are known to the same area, is that of a possible colour, but for the rounding. When a changed bit has
    shifted one of the three, it often is not.

    Args:
        pixels: The components of the picture, shrunk: height x width x 3.
        width: The width of a unit (an MCU) in these pixels.
        height: Its height.
        step: By how much the coarsest of the means is rounded, in levels.
    """
    low, high = -_MARGIN - _ERROR * step / 2, 255 + _MARGIN + _ERROR * step / 2
    some = _rgb(pixels[::height, ::width].reshape(-1, 3).T.astype(np.float32))
    if some.min() >= low and some.max() <= high:  # as for nearly all pictures
        return False
    rows, columns = pixels.shape[0] // height, pixels.shape[1] // width
    whole = pixels[: rows * height, : columns * width].reshape(rows, height, columns, width, 3)
    units = _rgb(whole.mean(axis=(1, 3), dtype=np.float32).reshape(-1, 3).T)
    wrong = ((units < low) | (units > high)).any(0)
    return bool(wrong.sum() >= max(_FEWEST, _SHARE * wrong.size))


def _rgb(components: _Planes) -> _Planes:
    """Return red, green and blue, paler than they are."""
    colours: _Planes = _PALER @ components
    colours += _NEUTRAL
    return colours
