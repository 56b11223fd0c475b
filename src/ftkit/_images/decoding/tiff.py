"""TIFF files that Pillow does not open, though nothing is wrong with them: satellite bands, numbers of instruments."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from PIL import TiffImagePlugin

from ftkit._wording import plural

# Tags of TIFF 6.0.
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _MEANING, _SAMPLES, _MORE, _FORMATS = 256, 257, 258, 259, 262, 277, 338, 339
_RGB = 2  # a meaning; those below are grey
_STRIPS, _TILES = (273, 279), (324, 325)  # their offsets and sizes
_NUMBERS = {1: "unsigned", 2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
_WIDTHS = (8, 16, 32, 64, 128)  # of a number, in bits
_RAW = 1
# Which instruments, maps and microscopes use, by the name that libtiff has for them.
_CODINGS = {
    _RAW: "", 5: "LZW", 7: "JPEG", 8: "Deflate", 32946: "Deflate", 32773: "PackBits", 33003: "JPEG 2000",
    33005: "JPEG 2000", 34712: "JPEG 2000", 34887: "LERC", 34925: "LZMA", 50000: "Zstandard", 50001: "WebP",
    50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip

# What Pillow opens, whatever the samples mean: the kind of number, its bits, and how many there are.
_KNOWN = {(form[0], bits[0], len(bits)) for _, _, form, _, bits, _ in TiffImagePlugin.OPEN_INFO}


def unsupported(data: bytes) -> str:
    """Return what the samples of a TIFF file are, if it is whole as far as its first directory tells; else nothing."""
    try:
        tags: Any = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if b"+" in data[2:4] else 8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        count, coding = tags.get(_SAMPLES, 1), tags.get(_COMPRESSION, _RAW)
        (bits,), (number,) = set(tags[_BITS]), set(tags.get(_FORMATS, (1,)))
        words = f"{plural(count, 'channel')} of {bits}-bit {_NUMBERS[number]} numbers"
        words += f" in {_CODINGS[coding]}" if coding != _RAW else ""
        are_bands = tags.get(_MEANING, _RGB) < _RGB and count == 1 + len(tags.get(_MORE, ())) > 1
        is_known = (number, bits, count) in _KNOWN and coding in TiffImagePlugin.COMPRESSION_INFO
        strips, tiles = (_total(tags, *places, len(data)) for places in (_STRIPS, _TILES))
        size = tags[_WIDTH] * tags[_HEIGHT] * count * bits // 8
    except Exception:  # noqa: BLE001  (a directory that was damaged raises whatever comes first)
        return ""
    is_whole = (strips == size or tiles >= size) if coding == _RAW else strips or tiles
    is_sound = size and is_whole and bits in _WIDTHS and count == len(tags[_BITS])
    return words if is_sound and (are_bands or not is_known) else ""


def _total(tags: Any, starts: int, sizes: int, end: int) -> int:
    """Return the bytes of all strips or tiles, of which each must lie within the file."""
    places: Sequence[int] = tags.get(starts, ())
    lengths: Sequence[int] = tags.get(sizes, ())
    if any(not 0 < start < start + size <= end for start, size in zip(places, lengths, strict=True)):
        raise ValueError("beyond the end")
    return sum(lengths)
