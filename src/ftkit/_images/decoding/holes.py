"""Coded pixels that can't be right, as a copy that went wrong leaves them: not every decoder minds."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from ftkit._images.decoding import jpeg2000, tiff
from ftkit._images.decoding.leftover import coded_parts
from ftkit._images.decoding.picture import HOLE

_BITS, _PHOTOMETRIC, _FILL_ORDER, _PLANES, _TILE_WIDTH, _JPEG_TABLES = 258, 262, 266, 284, 322, 347  # of TIFF 6.0
_YCBCR, _LOWEST_FIRST = 6, 2  # values of the second and the third
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_ROW = len(HOLE) // 2  # bytes, that are all within a hole, wherever it begins
# Raw ones may be black.
_CODED_TIFF = frozenset(("tiff_lzw", "webp", "zstd", "lzma", "packbits", "tiff_ccitt", "group3", "group4"))


def has_hole(image: Image.Image, data: bytes, is_damaged_jpeg: Callable[[bytes], bool]) -> bool:
    """Whether a sector's worth of zeros stands where only coded pixels can be, or what is within a TIFF is wrong."""
    if image.format == "AVIF":
        return any(_repeats(data[start:stop]) for start, stop in coded_parts(data))
    if image.format == "JPEG2000":
        return jpeg2000.has_hole(data)
    if str(image.info.get("compression")).endswith("deflate"):
        return not all(_inflates(_as_decoded(image, data[start:stop])) for start, stop in tiff.parts(_tags(image)))
    if image.info.get("compression") == "jpeg":
        tables = _tags(image).get(_JPEG_TABLES, b"\xff\xd8\xff\xd9")
        view = memoryview(data)
        parts = {view[start + 2 : stop] for start, stop in tiff.parts(_tags(image))}  # tiles without data are the same
        return any(is_damaged_jpeg(tables[:-2] + part) for part in parts)
    if image.info.get("compression") == "packbits" and not _unpacks(image, data):
        return True
    if image.info.get("compression") not in _CODED_TIFF or HOLE not in data:  # as in nearly all files
        return False
    return any(HOLE in data[start:stop] for start, stop in tiff.parts(_tags(image)))


def _repeats(coded: bytes) -> bool:
    """Whether AV1 repeats a byte a sector long, but at the end, where it may be padding.

    Of sound files, of plain pictures and patterns too, none has more than a few equal bytes in a row; frames that are
    coded as the difference from others may.
    """
    coded = coded.rstrip(coded[-1:])
    rows = np.frombuffer(coded[: len(coded) - len(coded) % _ROW], np.uint8).reshape(-1, _ROW)
    return bool((rows == rows[:, :1]).all(axis=1).any())


def _unpacks(image: Image.Image, data: bytes) -> bool:
    """Whether each strip of a TIFF in PackBits unpacks to whole rows of pixels (TIFF 6.0, section 9)."""
    tags = _tags(image)
    bits = tags.get(_BITS, (1,))
    row = -(-tags.get(_TILE_WIDTH, image.width) * (sum(bits) if tags.get(_PLANES, 1) == 1 else bits[0]) // 8)
    shares_colors = tags.get(_PHOTOMETRIC) == _YCBCR  # between rows, of which there may be parts then
    for start, stop in tiff.parts(tags):
        part = _as_decoded(image, data[start:stop])
        at, size = 0, 0
        while at < len(part):
            head = part[at]
            at += 2 + head if head < 128 else 2 if head > 128 else 1
            size += 1 + head if head < 128 else 257 - head if head > 128 else 0
        if at != stop - start or (size % row and not shares_colors):
            return False
    return True


def _as_decoded(image: Image.Image, part: bytes) -> bytes:
    """Return a strip as its decoder gets it: some writers put the lowest bit first."""
    return part.translate(_REVERSED) if _tags(image).get(_FILL_ORDER) == _LOWEST_FIRST else part


def _inflates(packed: bytes) -> bool:
    try:
        zlib.decompress(packed)
    except zlib.error:
        return False
    return True


def _tags(image: Image.Image) -> Any:
    return getattr(image, "tag_v2", {})
