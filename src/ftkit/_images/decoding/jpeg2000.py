"""JPEG 2000 files: the walk through their markers, and what no coder writes between these."""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from ftkit._images.decoding.leftover import boxes
from ftkit._images.decoding.picture import HOLE
from ftkit._wording import plural

MAGICS = (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")  # of bare codestreams, and of files around one
_STYLE, _STYLE_OF_ONE = b"\xff\x52", b"\xff\x53"  # how all components are coded, or one
_PART, _CODES, _END = b"\xff\x90", b"\xff\x93", b"\xff\xd9"  # start of tile-part, of its packets, and the end
_MARKER = re.compile(b"\xff[\x90-\xff]")  # that pixels are coded around
_COMPLAINTS = (struct.error, ValueError, LookupError, ArithmeticError)  # of a header that was damaged
_REMARK, _FFMPEG = b"\xff\x64", b"Lavc"  # its coder, which may leave no name, begins markers between layers
_TAKEN = 4  # components that Pillow takes, at most
_GRAY = 2  # components of which Pillow takes only pixels at each point of the grid, at most
_CLOSED = "which Pillow can't open"
_FEW = 64  # zeros, at most, that coded pixels or what tells of them begin or end with


class _Part(NamedTuple):
    """The packets of a tile-part: which tile they are of, and where they are."""

    tile: int
    start: int
    stop: int


class _Stream(NamedTuple):
    """A codestream (ITU-T T.800, annex A).

    Attributes:
        start: Where it is.
        stop: Where its tile-parts end, the last that can be followed.
        components: How many components it has.
        style: Where the segment about its coding begins.
        parts: The tile-parts.
        is_uniform: Whether all tiles and components are coded so.
        is_whole: Whether there are parts of all tiles, and the end behind them.
    """

    start: int
    stop: int
    components: int
    style: int
    parts: list[_Part]
    is_uniform: bool
    is_whole: bool


def _read(data: bytes) -> _Stream:
    """Follow the tile-parts; raise one of _COMPLAINTS where there is no codestream."""
    start = data.index(MAGICS[0])
    styles, at = _header(data, start + 2, _PART)
    length, _, right, bottom, left, top, *grid, components = struct.unpack_from(">HHIIIIIIIIH", data, start + 4)
    width, height, across, down = grid[0], grid[1], right - grid[2], bottom - grid[3]
    parts, stop, is_uniform = list[_Part](), at, len(styles) == 1
    while data[at : at + 2] == _PART:
        tile, taken = struct.unpack_from(">HI", data, at + 4)
        stop = at + taken if taken else data.rfind(_END)
        others, first = _header(data, at, _CODES)
        if not at < first < stop <= len(data):
            break
        parts.append(_Part(tile, first + 2, stop))
        is_uniform = is_uniform and not others
        at = stop
    seen = {part.tile for part in parts}
    tiles = -(-across // width) * -(-down // height) if width and height else 0
    is_whole = length == 38 + 3 * components and len(seen) == max(seen, default=-1) + 1 == tiles
    if start:
        size = struct.pack(">IIH", bottom - top, right - left, components)
        is_whole = is_whole and _tells_of(data, start, stop + len(_END), size)
    is_whole = is_whole and at == stop and data[stop : stop + 2] == _END
    return _Stream(start, stop, components, styles[0], parts, is_uniform, is_whole)


def _header(data: bytes, at: int, end: bytes) -> tuple[list[int], int]:
    """Return where the segments about coding begin in a header, up to the marker that ends it, and where that is."""
    styles = []
    while at < len(data) and (name := data[at : at + 2]) != end:
        if name in (_STYLE, _STYLE_OF_ONE):
            styles.append(at)
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return styles, at


def _tells_of(data: bytes, start: int, stop: int, size: bytes) -> bool:
    """Whether a codestream fills a box, behind others of which one tells the same size of the picture (annex I)."""
    if data[start - 8 : start] not in ((stop - start + 8).to_bytes(4, "big") + b"jp2c", bytes(4) + b"jp2c"):
        return False
    around = _filled(data, 0, start - 8)
    header = _filled(data, *around.get(b"jp2h", (0, 0)))
    first, _ = header.get(b"ihdr", (len(data), 0))
    return b"ftyp" in around and b"colr" in header and data.startswith(size, first)


def _filled(data: bytes, start: int, stop: int) -> dict[bytes, tuple[int, int]]:
    """Return where the content of each box is, by its name, if they fill all of that part."""
    found = list(boxes(data, start, stop))
    return {name: (first, end) for name, first, end in found} if found and found[-1][2] == stop else {}


def unsupported(data: bytes) -> tuple[str, bytes]:
    """Return what a file that Pillow refuses is and what opens it, and a codestream that Pillow takes if it is whole.

    Where there is no such codestream, the second is empty. So is the first of a file that may be damaged.
    """
    try:
        stream = _read(data) if data.startswith(MAGICS) else None
        if stream is None or not stream.is_whole or has_hole(data):
            return "", b""
        bare = data[stream.start : stream.stop] + _END
        apart = set(struct.iter_unpack("xBB", bare[42 : 42 + 3 * stream.components]))  # how far pixels are (A.5.1)
        if stream.components <= _GRAY and apart != {(1, 1)}:
            ((across, down),) = apart
            doubt = ", unless a bit has changed" if ((across ^ 1) << 8 | down ^ 1).bit_count() == 1 else ""
            words = f"JPEG 2000 in gray that is subsampled, one pixel for {across} x {down} points of its grid"
            detail = f"{words}, {_CLOSED}, but opj_decompress and ffmpeg can{doubt}"
            return detail, _by_pixels(bare, stream, across, down)
    except _COMPLAINTS:
        return "", b""
    words = f"JPEG 2000 with {plural(stream.components, 'component')}"
    return f"{words}, {_CLOSED}, but the package rasterio can", bare if stream.components <= _TAKEN else b""


def _by_pixels(bare: bytes, stream: _Stream, across: int, down: int) -> bytes:
    """Return the same pixels on a grid of their own; nothing where tiles begin between two of them."""
    right, bottom, _, _, width, height, left, top = sizes = struct.unpack_from(">8I", bare, 8)
    is_one = left + width >= right and top + height >= bottom
    if not is_one and (width % across or height % down):
        return b""
    pixels = bytearray(bare)
    coarser = (-(-size // step) for size, step in zip(sizes, (across, down) * 4, strict=True))
    struct.pack_into(">8I", pixels, 8, *coarser)
    for first in (43, 44):
        pixels[first : 42 + 3 * stream.components : 3] = b"\1" * stream.components
    return bytes(pixels)


def has_hole(data: bytes) -> bool:
    """Whether more zeros than a coder writes in a row, or a marker, stand where only coded pixels can be."""
    try:
        stream = _read(data)
        has_markers, bypasses = data[stream.style + 4] & 6, data[stream.style + 12] & 1
        head = data[stream.style : stream.parts[0].start]
        is_sloppy = _layers(data, stream) > 1 and (_FFMPEG in head or _REMARK not in head)
        if not (has_markers or is_sloppy) and any(_MARKER.search(data, *part[1:]) for part in stream.parts):
            return True
        if bypasses or not stream.is_uniform or HOLE not in data:  # as in nearly all files
            return False
        for part in stream.parts:
            coded = data[part.start : part.stop]
            if HOLE in coded and (most := _most_zeros(data, stream, part.tile)) <= len(coded) and bytes(most) in coded:
                return True
        return False
    except _COMPLAINTS:
        return False


def _most_zeros(data: bytes, stream: _Stream, tile: int) -> int:
    """Return how many zeros can't be in a row.

    A packet that is empty is one, if it has no markers of its own, and another tells in one bit of a block that it has
    nothing of that (B.10). It begins with one that is set, so only the last in a row may be of that kind.
    """
    style = stream.style
    if data[style + 4] & 6:
        return len(HOLE)
    right, bottom, left, top, width, height, across, down = struct.unpack_from(">8I", data, stream.start + 8)
    row, column = divmod(tile, -(-(right - across) // width))
    columns = max(left, across + column * width), min(right, across + (column + 1) * width)
    rows = max(top, down + row * height), min(bottom, down + (row + 1) * height)
    layers, levels = _layers(data, stream), data[style + 9]
    powers = data[style + 14 : style + 15 + levels] if data[style + 4] & 1 else b"\xff" * (levels + 1)
    # What a block takes of the picture at its scale: of a band, which has half of that, it is half as wide and tall.
    wide, tall = data[style + 10] + 3, data[style + 11] + 3
    packets = blocks = 0
    for component in range(stream.components):
        apart, below = data[stream.start + 43 + 3 * component : stream.start + 45 + 3 * component]
        for level, power in enumerate(powers):
            scale = levels - level
            x, y = power & 15, power >> 4
            packets += _cells(columns, apart << scale, x) * _cells(rows, below << scale, y)
            inside = _cells(columns, apart << scale, min(x, wide)) * _cells(rows, below << scale, min(y, tall))
            blocks = max(blocks, 4 * min(inside, 1 << max(0, x - wide) + max(0, y - tall)))
    return max(len(HOLE), layers * packets + (blocks // 8 if layers > 1 else 0) + _FEW)


def _layers(data: bytes, stream: _Stream) -> int:
    return int.from_bytes(data[stream.style + 6 : stream.style + 8], "big")


def _cells(bounds: tuple[int, int], scale: int, power: int) -> int:
    """Return in how many parts of two to that power what lies between two places falls, at a scale (B.6 and B.7)."""
    start, stop = (-(-bound // scale) for bound in bounds)
    return -(-stop >> power) - (start >> power) if start < stop else 0
