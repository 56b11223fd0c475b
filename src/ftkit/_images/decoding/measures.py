"""How bright, rich in contrast and sharp a picture is."""

from __future__ import annotations

import numpy as np

from ftkit._images.decoding.picture import Pixels
from ftkit._images.verdict import Measures

_SIDE = 64  # pixels of the longer side, at which sharpness is measured: it shall not depend on the resolution
_POWERS = np.vander(np.arange(256.0), 3)[:, :2]  # squares and values of the levels
_COUNTS = np.arange(1, 4 * _SIDE**2)
_BITS = np.concatenate(([0], _COUNTS * np.log2(_COUNTS)))  # that a level contributes, by how many pixels have it


def measure(grey: Pixels, size: int) -> Measures:
    """Measure a grey picture, given as its rows, of a file of ``size`` bytes."""
    small = _shrunk(grey)
    number = small.size
    counts = np.bincount(small.ravel(), minlength=256)
    squares, mean = (counts @ _POWERS / number).tolist()
    dark, light = counts.cumsum().searchsorted((0.05 * number, 0.99 * number)).tolist()
    return Measures(
        size,
        round(mean, 1),
        round(max(0.0, squares - mean**2) ** 0.5, 1),
        round(_bends(small), 1),
        dark,
        light,
        round(float(_BITS[number] - _BITS[counts].sum()) / number, 2),
    )


def _shrunk(grey: Pixels) -> Pixels:
    """Return it at about `_SIDE` pixels on the longer side, each the mean of a rectangle."""
    down, across = (min(length, round(max(grey.shape) / _SIDE)) for length in grey.shape)
    if max(down, across) <= 1:
        return grey
    height, width = grey.shape[0] // down, grey.shape[1] // across
    whole = grey[: height * down, : width * across].reshape(height, down, width, across)
    means: Pixels = (whole.sum((1, 3), dtype=np.uint32) // (down * across)).astype(np.uint8)
    return means


def _bends(grey: Pixels) -> float:
    """Return by how much pixels differ from those next to them on both sides: the root of the mean square."""
    energy, number = 0.0, 0
    for rows in (grey, grey.T):
        levels, width = rows.ravel().astype(np.float32), rows.shape[1]
        steps = levels[width:] - levels[:-width]
        bends = steps[width:] - steps[:-width]
        energy, number = energy + float(bends @ bends), number + bends.size
    # In pictures, it falls with the square root of the resolution.
    return (energy / number * max(grey.shape) / _SIDE) ** 0.5 if number else 0.0
