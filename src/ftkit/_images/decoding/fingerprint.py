"""Fingerprints that survive resizing, re-encoding, turning, mirroring and a slight crop."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ftkit._images.decoding.picture import Pixels
from ftkit._images.verdict import COLOR_SIDE, SIDE, Prints

if TYPE_CHECKING:
    import numpy.typing as npt


_Matrix: TypeAlias = "npt.NDArray[np.float32]"

_REACH = 9  # frequencies 0 to 8 hold the lowest 64
# The lowest spatial frequencies but the mean, by their distance from it. With (u, v), (v, u) is among them.
_ORDER = sorted(
    ((u, v) for u in range(_REACH) for v in range(_REACH) if u + v), key=lambda c: (c[0] ** 2 + c[1] ** 2, c)
)[:64]
# What a copy may lack: at the near and the far end of an axis, in shares of its length.
_CUTS = (0, 0), (1 / 16, 1 / 16), (0.1, 0), (0, 0.1)
# The parts of a picture that have a fingerprint, each by its cuts of the height and the width.
_PARTS = (0, 0), (1, 1), (0, 2), (0, 3), (2, 0), (3, 0)
_WAVES = _REACH * len(_CUTS)
_GREY = _WAVES + SIDE  # rows of `_projections` that are for brightness
_TINT = 4  # levels of a color difference, at most, in a picture in grey
_PLACES = np.array(
    [[(y * _REACH + u) * _GREY + x * _REACH + v for u, v in _ORDER] for y, x in _PARTS]
)  # fmt: skip

#: Of each part, scale and shift from a place in it to the same place in the whole picture, by height and by width.
STARTS = tuple(
    tuple(value for cut in (_CUTS[y], _CUTS[x]) for value in (1 - sum(cut), cut[0])) for y, x in _PARTS
)  # fmt: skip
#: XOR with these turns a fingerprint into that of the mirror image, by left and right, and by up and down.
MIRROR = sum(1 << bit for bit, (_, v) in enumerate(_ORDER) if v % 2)
FLIP = sum(1 << bit for bit, (u, _) in enumerate(_ORDER) if u % 2)
#: Which bit of a picture's fingerprint each bit of the transposed picture's is.
TRANSPOSED = [_ORDER.index((v, u)) for u, v in _ORDER]


def fingerprints(pictures: Sequence[tuple[Pixels, tuple[int, int]]]) -> list[Prints]:
    """Return the fingerprints of pictures, given as their planes and the height and width that these stand for.

    A bit is the sign of one of the 64 lowest frequencies of the picture's cosine transform (as in the
    pHash of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, with
    zero for the median). Mirroring changes the sign of the odd horizontal frequencies and nothing else.
    """
    waves = np.empty((len(pictures), *_PLACES.shape), np.float32)
    small = np.empty((len(pictures), SIDE, SIDE), np.float32)
    colors = []
    for number, (planes, size) in enumerate(pictures):
        by_height, by_width = (
            _projections(length, whole / round(whole / length))
            for length, whole in zip(planes.shape[1:], size, strict=True)
        )
        spectra = by_height[:_GREY] @ planes[0].astype(np.float32) @ by_width[:_GREY].T
        pieces = by_height[_GREY:] @ planes[1:].astype(np.float32) @ by_width[_GREY:].T
        colors.append(b64encode((pieces + 0.5).astype(np.uint8).tobytes()).decode() if _has_color(pieces) else "")
        waves[number] = spectra.take(_PLACES)
        small[number] = spectra[_WAVES:, _WAVES:]
    words = np.packbits(waves > 0, axis=-1, bitorder="little").view("<u8")[..., 0]
    low, high = small.min((1, 2), keepdims=True), small.max((1, 2), keepdims=True)
    scale = 255 / np.where(high > low, high.astype(np.float64) - low, 1)
    stretched = ((small - low) * scale.astype(np.float32) + 0.5).astype(np.uint8)
    return [
        Prints(tuple(row), b64encode(levels.tobytes()).decode(), color)
        for row, levels, color in zip(words.tolist(), stretched, colors, strict=True)
    ]


def _has_color(pieces: _Matrix) -> bool:
    return bool(pieces.size and abs(pieces - 128).max() > _TINT)


@lru_cache(512)  # photos of 500 pixels have some 100 lengths of the shorter side, and each takes long to work out
def _projections(length: int, exact: float) -> _Matrix:
    """Return what to take the sums of a row of pixels by: the cosines over each part of it, and equal pieces.

    These are `SIDE` for brightness, then `COLOR_SIDE` for colors, as means.

    Each value is the integral over a pixel, so that pictures of different sizes compare.

    Args:
        length: How many pixels there are.
        exact: How many of them the row is long, of which the last may be a part.
    """
    edges = np.minimum(np.arange(length + 1) / exact, 1)
    near, far = np.array(_CUTS).T[..., None, None]
    x = ((edges - near) / (1 - near - far)).clip(0, 1)
    # The integral of cos(pi k x) over x in [0, 1] is sin(pi k x) / (pi k), and x itself for k = 0.
    pi_k = np.pi * np.arange(1, _REACH)[:, None]
    waves = np.concatenate((x, np.sin(pi_k * x) / pi_k), axis=1)
    pieces = ((edges * count - np.arange(count)[:, None]).clip(0, 1) for count in (SIDE, COLOR_SIDE))
    return np.diff(np.concatenate((*waves, *pieces))).astype(np.float32)
