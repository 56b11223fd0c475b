"""Fingerprints that survive resizing, re-encoding, mirroring and a slight crop."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ftkit._images.decoding.picture import Pixels
from ftkit._images.verdict import Prints

if TYPE_CHECKING:
    import numpy.typing as npt


_Matrix: TypeAlias = "npt.NDArray[np.float32]"

_COARSE, _FINE = 64, 128
_REACH = 18  # frequencies 0 to 17 hold the lowest 192
# The lowest spatial frequencies but the mean, in the order of their distance from it.
_ORDER = sorted(
    ((u, v) for u in range(_REACH) for v in range(_REACH) if u + v), key=lambda c: (c[0] ** 2 + c[1] ** 2, c)
)[: _COARSE + _FINE]
# Where they stand in the spectra of the whole (the upper left of a matrix of 36 x 36) and of the inner part.
_WHOLE = np.array([u * 2 * _REACH + v for u, v in _ORDER])
_PLACES = np.stack((_WHOLE, _WHOLE + 2 * _REACH * _REACH + _REACH))
_MIRRORED = sum(1 << bit for bit, (_, v) in enumerate(_ORDER) if v % 2)

#: XOR with these turns a fingerprint, coarse or fine, into that of the mirror image.
MIRROR = _MIRRORED & (1 << _COARSE) - 1
MIRROR_FINE = _MIRRORED >> _COARSE


def fingerprints(pixels: Pixels) -> Prints:
    """Return the fingerprints of a grey image, given as its rows.

    A bit is the sign of one of the 192 lowest frequencies of the picture's cosine transform (as in the
    pHash of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, with
    zero for the median). Mirroring changes the sign of the odd horizontal frequencies and nothing else.
    """
    height, width = pixels.shape
    spectra = _waves(height) @ pixels.astype(np.float32) @ _waves(width).T
    packed = np.packbits(spectra.take(_PLACES) > 0, bitorder="little").tobytes()
    first, second = packed[:24], packed[24:]
    cut = _COARSE // 8
    return Prints(*(int.from_bytes(bits, "little") for bits in (first[:cut], second[:cut], first[cut:], second[cut:])))


@lru_cache(64)  # a data set has few sizes
def _waves(length: int) -> _Matrix:
    """Return the cosines over a row of pixels: first over all of it, then without a sixteenth at each side.

    Each value is the integral over a pixel, so that pictures of different sizes compare.
    """
    edges = np.arange(length + 1)
    orders = np.arange(_REACH)[:, None]
    rows = []
    for margin in (0, length / 16):
        # The integral of cos(pi k x) over x in [0, 1] is sin(pi k x) / (pi k), and x itself for k = 0.
        x = np.clip((edges - margin) / (length - 2 * margin), 0, 1)
        integral = np.where(orders, np.sin(np.pi * orders * x) / np.maximum(np.pi * orders, 1), x)
        rows.append(np.diff(integral, axis=1))
    return np.concatenate(rows).astype(np.float32)
