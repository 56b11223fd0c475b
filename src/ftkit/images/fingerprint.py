"""Fingerprints that survive resizing, re-encoding, mirroring and a slight crop, and the search among them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["MIRROR", "fingerprints", "near_pairs"]

Hashes: TypeAlias = npt.NDArray[np.uint64]

_SIDE = 32
# The 64 lowest spatial frequencies but the mean, in the order of their distance from it.
_ORDER = sorted(((u, v) for u in range(12) for v in range(12) if u + v), key=lambda c: (c[0] ** 2 + c[1] ** 2, c))[:64]
_U, _V = (np.array(axis) for axis in zip(*_ORDER, strict=True))
_COSINES = np.cos(np.pi * np.arange(12)[:, None] * (2 * np.arange(_SIDE) + 1) / (2 * _SIDE)).astype(np.float32)
_SHIFTS = np.uint64(1) << np.arange(64, dtype=np.uint64)

#: XOR with it turns a fingerprint into that of the mirror image.
MIRROR = int(_SHIFTS[_V % 2 == 1].sum())


def fingerprints(grey: Image.Image) -> tuple[int, int]:
    """Return two 64-bit fingerprints of a grey image: of the whole, and without a sixteenth at each side.

    A bit is the sign of one of the 64 lowest frequencies of the discrete cosine transform of the
    picture shrunk to 32 x 32. The transform of a mirror image differs in the sign of the odd
    horizontal frequencies alone, hence `MIRROR`. The second fingerprint meets the first of a
    copy that was cropped.
    """
    from PIL import Image

    width, height = grey.size
    margin = (width / 16, height / 16, width - width / 16, height - height / 16)
    whole = np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float32)
    inner = np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.BOX, margin), np.float32)
    spectra = _COSINES @ np.stack((whole, inner)) @ _COSINES.T
    signs = spectra[:, _U, _V] > 0
    packed = np.packbits(signs, axis=1, bitorder="little").tobytes()
    return int.from_bytes(packed[:8], "little"), int.from_bytes(packed[8:], "little")


def near_pairs(hashes: Hashes, distance: int = 8) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    """Yield the pairs ``(i, j)`` of fingerprints at a Hamming distance of at most ``distance``, in two arrays."""
    for start in range(0, len(hashes), 256):
        far = np.bitwise_count(hashes[start : start + 256, None] ^ hashes[None, start:])
        first, second = np.nonzero(far <= distance)
        keep = second > first
        yield first[keep] + start, second[keep] + start
