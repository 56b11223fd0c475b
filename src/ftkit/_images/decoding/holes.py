"""Coded pixels that can't be right, as a copy that went wrong leaves them: not every decoder minds."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from PIL import Image

_HOLE = bytes(512)  # a sector of a disk
_CODED_TIFF = frozenset(("tiff_lzw", "jpeg", "webp", "zstd", "lzma"))  # raw ones may be black


def has_hole(image: Image.Image, data: bytes) -> bool:
    """Whether a sector's worth of zeros stands where only coded pixels can be, or a checksum within a TIFF is wrong."""
    if str(image.info.get("compression")).endswith("deflate"):
        return not all(_inflates(data[start:stop]) for start, stop in _in_tiff(image))
    if _HOLE not in data:  # as in nearly all files
        return False
    find = {"WEBP": _in_riff, "JPEG2000": _in_jpeg_2000, "AVIF": _in_avif}.get(image.format or "")
    parts = find(data) if find else ()
    if image.info.get("compression") in _CODED_TIFF:
        parts = _in_tiff(image)
    return any(_HOLE in data[start:stop] for start, stop in parts)


def _inflates(packed: bytes) -> bool:
    try:
        zlib.decompress(packed)
    except zlib.error:
        return False
    return True


def _in_riff(data: bytes) -> Iterator[tuple[int, int]]:
    at = 12
    while at + 8 <= len(data):
        stop = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] in (b"VP8 ", b"VP8L", b"ALPH", b"ANMF"):
            yield at + 8, stop
        at = stop + stop % 2


def _in_jpeg_2000(data: bytes) -> Iterator[tuple[int, int]]:
    start = data.find(b"\xff\x93")  # the first tile
    if start >= 0:
        yield start, len(data)


def _in_avif(data: bytes) -> Iterator[tuple[int, int]]:
    start = data.find(b"mdat")
    if start >= 0 and b"Exif" not in data:  # which may lie beside the pixels, padded with zeros
        yield start, len(data)


def _in_tiff(image: Image.Image) -> Iterator[tuple[int, int]]:
    tags = getattr(image, "tag_v2", {})
    for starts, sizes in ((273, 279), (324, 325)):  # StripOffsets and StripByteCounts, TileOffsets and TileByteCounts
        for start, size in zip(tags.get(starts, ()), tags.get(sizes, ()), strict=False):
            yield start, start + size
