"""Colours that no picture has: brightness and colour differences that fit no red, green and blue."""

from __future__ import annotations

from collections.abc import Iterator
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
    some = pixels[::height, ::width].transpose(2, 0, 1).astype(np.float32)
    if not any(plane.min() < low or plane.max() > high for plane in _rgb(some)):  # as for nearly all pictures
        return False
    rows, columns = pixels.shape[0] // height, pixels.shape[1] // width
    whole = pixels[: rows * height, : columns * width].reshape(rows, height, columns, width, 3)
    units = whole.mean(axis=(1, 3), dtype=np.float32).transpose(2, 0, 1)
    wrong = np.logical_or.reduce([(plane < low) | (plane > high) for plane in _rgb(units)])
    return bool(wrong.sum() >= max(_FEWEST, _SHARE * wrong.size))


def _rgb(components: _Planes) -> Iterator[_Planes]:
    """Yield red, green and blue (ITU-T T.871), paler than they are."""
    luma, blue, red = components
    blue, red = _SATURATION * (blue - 128), _SATURATION * (red - 128)
    yield luma + 1.402 * red
    yield luma - 0.344136 * blue - 0.714136 * red
    yield luma + 1.772 * blue
