"""TIFF files that Pillow does not open, though nothing is wrong with them: satellite bands, numbers of instruments."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from PIL import TiffImagePlugin

from ftkit._wording import plural

# Tags of TIFF 6.0, of Adobe and of TIFF/EP.
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _MEANING, _ORDER, _SAMPLES = 256, 257, 258, 259, 262, 266, 277
_PLANES, _PALETTE, _MORE, _FORMATS, _SHARING, _MOSAIC = 284, 320, 338, 339, 530, 33422
_STRIP_ROWS, _STRIPS, _STRIP_SIZES = 278, 273, 279
_TILE_WIDTH, _TILE_ROWS, _TILES, _TILE_SIZES = 322, 323, 324, 325
_NUMBERS = {1: "unsigned", 2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
_FLOATS, _COMPLEX = (16, 24, 32, 64), (16, 32, 64, 128)  # bits of a number; integers have up to 64
_COMMON = frozenset((8, 12, 16, 32, 64, 128))
_SWAPPED, _LARGE = b"MM\0+", b"II+\0"  # of BigTIFF; Pillow does not know the first for one
_UNNAMED = 512  # bytes that no directory tells of, at most, in a file without pixels: remarks of who wrote it
_SPARE = 16  # bytes behind the pixels of a strip or tile, at most
_RAW = 1
_YCBCR = 6
# Which instruments, maps and microscopes use, by the name that libtiff has for them.
_CODINGS = {
    _RAW: "", 2: "CCITT", 3: "Group 3 fax", 4: "Group 4 fax", 5: "LZW", 7: "JPEG", 8: "Deflate", 32946: "Deflate",
    32773: "PackBits", 33003: "JPEG 2000", 33004: "JPEG 2000", 33005: "JPEG 2000",
    34676: "SGI Log", 34677: "SGI Log", 34712: "JPEG 2000", 34887: "LERC", 34892: "JPEG", 34925: "LZMA",
    34926: "Zstandard", 34927: "WebP", 22610: "JPEG XR", 34933: "PNG", 34934: "JPEG XR",
    50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL", 50013: "Pixtiff", 52546: "JPEG XL",
}  # fmt: skip
_OF_BYTES = frozenset((5, 8, 32946, 32773))  # codings that any libtiff decodes, whatever the bytes stand for
_OF_BITS = frozenset((2, 3, 4))  # codings of black and white
_MOST_BYTES = 60_000_000  # that are decoded to see whether they can be: a second's work


class Unsupported(NamedTuple):
    """A TIFF file that is whole as far as its first directory tells.

    Attributes:
        words: What its samples are.
        package: What opens it, most likely.
        planes: Its coded bytes, as files of grey that Pillow opens: they load if the file can be decoded.
        others: The same file in codings whose numbers differ by a bit from one that nobody knows: none of them loads,
            unless that bit has changed.
    """

    words: str
    package: str
    planes: Iterator[bytes]
    others: list[bytes]


class _Piece(NamedTuple):
    start: int
    size: int
    rows: int


def unsupported(data: bytes, was_refused: bool = False) -> Unsupported | None:
    """Return what is known of a TIFF file that Pillow does not take, if it is whole; None when it may be damaged.

    Args:
        data: The file.
        was_refused: Whether Pillow has opened it, but says that it can't take such samples.
    """
    try:
        tags, _ = _first_directory(data)
        count, coding = tags.get(_SAMPLES, 1), tags.get(_COMPRESSION, _RAW)
        (bits,), (number,) = set(_depths(tags)), set(tags.get(_FORMATS, (1,)))
        words = f"{plural(count, 'channel')} of {bits}-bit {_NUMBERS[number]} numbers"
        words += f" in {_CODINGS.get(coding, f'coding {coding}')}" if coding != _RAW else ""
        planes = count if tags.get(_PLANES, 1) != 1 else 1
        width = tags.get(_TILE_WIDTH, tags[_WIDTH])
        row = line = -(-width * (count // planes) * bits // 8)
        places = _places(tags, planes)
        across, down = _sharing(tags)
        if is_shared := across * down > 1:
            line = -(-width // across) * (across * down + 2)  # of so many rows as share colors
            words += f" with a color for {across} x {down} pixels"
        is_known = _is_known(tags, number, coding) and not data.startswith(_SWAPPED) and not is_shared
        is_sound = count == len(_depths(tags)) and _is_number(number, bits) and _has_meaning(tags, count, bits)
        others = [] if coding in _CODINGS else list(_in_other_codings(data, coding))
        pieces = [piece for piece in places if piece.start or piece.size]  # others are left out: there is nothing
        is_sound = is_sound and (pieces != [] or _tells_all(data))
    except Exception:  # noqa: BLE001  (a directory that was damaged raises whatever comes first)
        return None
    if not is_sound or (is_known and not was_refused and len(pieces) == len(places)):
        return None
    if len(pieces) < len(places):
        words += f", {'some' if pieces else 'all'} tiles of which were left out"
    rows = tags.get(_TILE_ROWS) or min(tags.get(_STRIP_ROWS, tags[_HEIGHT]), tags[_HEIGHT])
    if any(not 0 < piece.start < piece.start + piece.size <= len(data) for piece in pieces):
        return None
    if coding == _RAW:
        most = -(-rows // down) * line + _SPARE
        is_whole = all(-(-piece.rows // down) * line <= piece.size < most for piece in pieces)
    else:
        is_whole = coding in _OF_BYTES or coding in _OF_BITS or bits in _COMMON or count > 1  # which all tell the same
    is_decoded = pieces != [] and coding in _OF_BYTES and row * tags[_HEIGHT] * planes <= _MOST_BYTES
    if not is_whole:
        return None
    package = "rasterio" if is_shared else "tifffile"
    return Unsupported(words, package, _planes(data, tags, places, row, planes if is_decoded else 0), others)


def is_sparse(tags: Any) -> bool:
    """Whether strips or tiles were left out, in place of which Pillow gives the first bytes of the file if it can."""
    return 0 in tags.get(_STRIPS, ()) or 0 in tags.get(_TILES, ())


def shares_colors(tags: Any) -> bool:
    """Whether raw pixels have colors in common (TIFF 6.0, section 21), which Pillow does not expect."""
    return bool(_sharing(tags) != (1, 1))


def _sharing(tags: Any) -> Any:
    """Return how many raw pixels have a color in common, across and down."""
    is_raw = tags.get(_COMPRESSION, _RAW) == _RAW and tags.get(_PLANES, 1) == 1
    return tags.get(_SHARING, (2, 2)) if is_raw and tags.get(_MEANING) == _YCBCR else (1, 1)


def parts(tags: Any) -> Iterator[tuple[int, int]]:
    """Yield where each strip or tile begins and ends, as the tags tell."""
    for starts, sizes in ((_STRIPS, _STRIP_SIZES), (_TILES, _TILE_SIZES)):
        for start, size in zip(tags.get(starts, ()), tags.get(sizes, ()), strict=False):
            yield start, start + size


def lacks_tags(data: bytes) -> bool:
    """Whether the first directory, or a value that it points to, was cut off; Pillow may need none of what is lost."""
    place = data[8:16] if b"+" in data[2:4] else data[4:8]
    start = int.from_bytes(place, "little" if data.startswith(b"II") else "big")
    tags, _ = _first_directory(data)
    return bool(tags.next == start)  # which it is until all tags were read


def _first_directory(data: bytes) -> tuple[Any, io.BytesIO]:
    """Return the first directory, and the file, from which the next ones can be loaded in its place."""
    head = data[: 16 if b"+" in data[2:4] else 8]
    is_swapped = head.startswith(_SWAPPED)
    tags: Any = TiffImagePlugin.ImageFileDirectory_v2(_LARGE + head[4:] if is_swapped else head, prefix=head[:2])
    file = io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    return tags, file


def _tells_all(data: bytes) -> bool:
    """Whether the directories tell of nearly all bytes of a file: of no strips or tiles have the places been lost."""
    tags, file = _first_directory(data)
    taken = 0
    while taken < len(data):
        _ = dict(tags)  # what is not looked at is not written
        taken += len(tags.tobytes()) + sum(tags.get(_STRIP_SIZES, ())) + sum(tags.get(_TILE_SIZES, ()))
        if not tags.next:
            break
        file.seek(tags.next)
        tags.load(file)
    return len(data) - taken < _UNNAMED


def _depths(tags: Any) -> tuple[int, ...]:
    """Return how many bits a sample of each channel has."""
    return tuple(tags.get(_BITS, (1,)))


def _is_known(tags: Any, number: int, coding: int) -> bool:
    """Whether Pillow takes such samples: by its table, and band by band if that is how they stand there."""
    bits, more = _depths(tags), tuple(tags.get(_MORE, ()))
    is_planar = tags.get(_PLANES, 1) == 2
    if is_planar and not any(more):  # it passes over bands that are for nothing
        bits, more = bits[: len(bits) - len(more)], ()
    order = 2 if tags.get(_ORDER) == 2 else 1
    samples = tags.prefix, tags.get(_MEANING, 0), (number,), order, bits, more
    _, letters = TiffImagePlugin.OPEN_INFO.get(samples, ("", ""))
    if is_planar and coding == _RAW:  # it takes a letter for a band
        return bool(len(letters) == tags.get(_SAMPLES, 1))
    return letters != "" and coding in TiffImagePlugin.COMPRESSION_INFO


def _is_number(number: int, bits: int) -> bool:
    return 0 < bits <= 64 if number < 3 else bits in (_FLOATS if number == 3 else _COMPLEX)


def _has_meaning(tags: Any, count: int, bits: int) -> bool:
    """Whether the tags tell what so many samples stand for, which a changed bit in them would belie."""
    bands = count - len(tags.get(_MORE, ()))
    return {
        0: bands == 1, 1: True, 2: count >= 3, 3: bands == 1 and len(tags.get(_PALETTE, ())) == 3 << bits,
        4: count == 1, 5: count >= 4, 6: bands == 3, 8: count >= 3, 9: count >= 3,
        32803: _MOSAIC in tags, 32844: True, 32845: count >= 3, 34892: True,
    }.get(tags.get(_MEANING, 0), False)  # fmt: skip


def _places(tags: Any, planes: int) -> list[_Piece]:
    """Return where the strips or tiles are, and how many rows of pixels each must have; raise for a wrong number."""
    height = tags[_HEIGHT]
    rows = tags[_TILE_ROWS] if _TILES in tags else tags.get(_STRIP_ROWS, height)
    across = -(-tags[_WIDTH] // tags[_TILE_WIDTH]) if _TILES in tags else 1
    starts, sizes = (tags[_TILES], tags[_TILE_SIZES]) if _TILES in tags else (tags[_STRIPS], tags[_STRIP_SIZES])
    down = -(-height // rows)
    if across * down * planes != len(starts):
        raise ValueError("another number of them")
    last = rows if _TILES in tags else height - (down - 1) * rows
    wanted = [rows if number % down < down - 1 else last for number in range(len(starts))]
    return [_Piece(*piece) for piece in zip(starts, sizes, wanted, strict=True)]


def _in_other_codings(data: bytes, coding: int) -> Iterator[bytes]:
    """Yield a file in each coding that Pillow knows and whose number differs by a bit; raise if there is no number."""
    order, count = "<" if data.startswith(b"II") else ">", "Q" if b"+" in data[2:4] else "I"
    heads = [struct.pack(f"{order}HH{count}", _COMPRESSION, kind, 1) for kind in (3, 4)]
    values = [struct.pack(order + unit, coding) for unit in "HI"]
    at = max(data.rfind(head + value) for head, value in zip(heads, values, strict=True))
    if at < 0:  # the directory tells of another kind of value, or of many
        raise ValueError
    start = at + len(heads[0])
    unit = "H" if data.startswith(heads[0], at) else "I"
    for other in TiffImagePlugin.COMPRESSION_INFO:
        if (other ^ coding).bit_count() == 1:
            yield data[:start] + struct.pack(order + unit, other) + data[start + struct.calcsize(unit) :]


def _planes(data: bytes, tags: Any, places: list[_Piece], row: int, planes: int) -> Iterator[bytes]:
    """Yield each plane as 8-bit grey, of as many columns as a row of a strip or tile has bytes."""
    for plane in range(planes):
        filled = next(piece for piece in places if piece.size)
        part = places[plane * len(places) // planes : (plane + 1) * len(places) // planes]
        part = [piece if piece.size else filled for piece in part]
        grey: Any = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0" + bytes(4))
        is_tiled = _TILES in tags
        rows = tags[_TILE_ROWS] if is_tiled else tags.get(_STRIP_ROWS, tags[_HEIGHT])
        grey[_WIDTH], grey[_HEIGHT] = row, rows * len(part) if is_tiled else tags[_HEIGHT]
        grey[_BITS], grey[_COMPRESSION], grey[_MEANING], grey[_SAMPLES] = 8, tags[_COMPRESSION], 1, 1
        grey[_ORDER] = tags.get(_ORDER, 1)
        grey[_STRIP_ROWS] = min(rows, grey[_HEIGHT])
        grey[_STRIPS] = tuple(piece.start for piece in part)  # Pillow adds where the directory ends
        grey[_STRIP_SIZES] = tuple(piece.size for piece in part)
        yield b"II*\0" + struct.pack("<I", 8) + grey.tobytes(8) + data
