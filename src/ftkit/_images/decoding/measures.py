"""How bright, rich in contrast and sharp a picture is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ftkit._images.decoding.picture import Pixels
from ftkit._images.verdict import Measures

_SIDE = 64  # pixels of the longer side, at which sharpness is measured: it shall not depend on the resolution
_POWERS = np.vander(np.arange(256.0), 3)[:, :2]  # squares and values of the levels
_COUNTS = np.arange(1, 4 * _SIDE**2)
_BITS = np.concatenate(([0], _COUNTS * np.log2(_COUNTS)))  # that a level contributes, by how many pixels have it


def measure(pictures: Sequence[tuple[Pixels, int]]) -> list[Measures]:
    """Measure grey pictures, each given as its rows and the bytes of its file."""
    small = [_shrunk(grey) for grey, _ in pictures]
    counts = np.array([np.bincount(one.ravel(), minlength=256) for one in small], np.intp).reshape(-1, 256)
    numbers = counts.sum(1, keepdims=True)
    squares, means = (counts @ _POWERS / numbers).T
    below = counts.cumsum(1)
    figures = zip(
        (size for _, size in pictures),
        means.tolist(),
        np.sqrt((squares - means**2).clip(0)).tolist(),
        map(_bends, small),
        (below < 0.05 * numbers).sum(1).tolist(),
        (below < 0.99 * numbers).sum(1).tolist(),
        ((_BITS[numbers[:, 0]] - _BITS[counts].sum(1)) / numbers[:, 0]).tolist(),
        strict=True,
    )
    return [
        Measures(size, round(mean, 1), round(deviation, 1), round(bends, 1), dark, light, round(bits, 2))
        for size, mean, deviation, bends, dark, light, bits in figures
    ]


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
    levels, energy, number = grey.astype(np.float32), 0.0, 0
    for steps in (levels[1:] - levels[:-1], (levels[:, 1:] - levels[:, :-1]).T):
        bends = (steps[1:] - steps[:-1]).ravel(order="K")
        energy, number = energy + float(bends @ bends), number + bends.size
    # In pictures, it falls with the square root of the resolution.
    return (energy / number * max(grey.shape) / _SIDE) ** 0.5 if number else 0.0
