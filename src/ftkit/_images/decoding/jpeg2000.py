"""JPEG 2000 files: the walk through their markers, and what no coder writes between these."""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from ftkit._images.decoding.leftover import boxes
from ftkit._images.decoding.picture import HOLE
from ftkit._wording import plural

MAGICS = (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")  # of bare codestreams, and of files around one
_PART, _CODES, _END = b"\xff\x90", b"\xff\x93", b"\xff\xd9"  # start of tile-part, of its packets, and the end
_MARKER = re.compile(b"\xff[\x90-\xff]")  # that pixels are coded around
_TAKEN = 4  # components that Pillow takes, at most


class _Stream(NamedTuple):
    """A codestream (ITU-T T.800, annex A).

    Attributes:
        start: Where it is.
        stop: Where its tile-parts end, the last that can be followed.
        components: How many components it has.
        style: Where the segment about its coding begins.
        parts: Where the packets of each tile-part are.
        is_whole: Whether there are parts of all tiles, and the end behind them.
    """

    start: int
    stop: int
    components: int
    style: int
    parts: list[tuple[int, int]]
    is_whole: bool


def _read(data: bytes) -> _Stream:
    """Follow the tile-parts; raise struct.error or ValueError where there is no codestream."""
    start = data.index(MAGICS[0])
    style = data.index(b"\xff\x52", start, len(data) - 12)
    length, _, right, bottom, left, top, *grid, components = struct.unpack_from(">HHIIIIIIIIH", data, start + 4)
    width, height, across, down = grid[0], grid[1], right - grid[2], bottom - grid[3]
    parts, seen, at = [], set[int](), data.find(_PART, style)
    stop = at
    while at >= 0 and data[at : at + 2] == _PART:
        tile, taken = struct.unpack_from(">HI", data, at + 4)
        stop = at + taken if taken else data.rfind(_END)
        first = data.find(_CODES, at)
        if not at < first < stop <= len(data):
            break
        parts.append((first + 2, stop))
        seen.add(tile)
        at = stop
    tiles = -(-across // width) * -(-down // height) if width and height else 0
    is_whole = length == 38 + 3 * components and len(seen) == max(seen, default=-1) + 1 == tiles
    if start:
        size = struct.pack(">IIH", bottom - top, right - left, components)
        is_whole = is_whole and _tells_of(data, start, stop + len(_END), size)
    is_whole = is_whole and at == stop and data[stop : stop + 2] == _END
    return _Stream(start, stop, components, style, parts, is_whole)


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
    """Return what a file that Pillow refuses is made of, and its codestream, which Pillow takes if nothing is missing.

    Instead of more components than it takes, the second is empty. So is the first of a file that may be damaged.
    """
    try:
        stream = _read(data) if data.startswith(MAGICS) else None
    except (struct.error, ValueError):
        return "", b""
    if stream is None or not stream.is_whole or has_hole(data):
        return "", b""
    bare = data[stream.start : stream.stop] + _END if stream.components <= _TAKEN else b""
    return f"JPEG 2000 with {plural(stream.components, 'component')}", bare


def has_hole(data: bytes) -> bool:
    """Whether a sector's worth of zeros, or a marker, stands where only coded pixels can be."""
    try:
        stream = _read(data)
    except (struct.error, ValueError):
        return False
    if data[stream.style + 4] & 6:  # packets have markers of their own
        return False
    if any(_MARKER.search(data, start, stop) for start, stop in stream.parts):
        return True
    return not _may_have_zeros(data, stream) and any(HOLE in data[start:stop] for start, stop in stream.parts)


def _may_have_zeros(data: bytes, stream: _Stream) -> bool:
    """Whether zeros may stand among the packets (A.6.1): bits that bypass the coder, or many packets that are empty."""
    style = stream.style
    has_precincts, bypasses = data[style + 4] & 1, data[style + 12] & 1
    layers, levels = int.from_bytes(data[style + 6 : style + 8], "big"), data[style + 9]
    return bool(has_precincts or bypasses) or stream.components * layers * (levels + 1) >= len(HOLE)
