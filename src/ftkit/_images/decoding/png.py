"""PNG files: their checksums, and which of them speak of the pixels."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from ftkit._images.verdict import Broken, Note
from ftkit._wording import plural

MAGIC = b"\x89PNG\r\n\x1a\n"
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by the type of colour
# The first column and row of each pass of an interlaced file, and the steps from there.
_ADAM7 = (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)
REMARKS = frozenset((b"tEXt", b"zTXt", b"iTXt", b"iCCP"))  # of which Pillow takes no more than some
_PIXEL_CHUNKS = frozenset((b"IHDR", b"PLTE", b"tRNS"))  # what a wrong one does to the pixels can't be told


class _Chunk(NamedTuple):
    name: bytes
    body: bytes
    is_right: bool  # by its checksum
    stop: int


def _chunks(data: bytes) -> Iterator[_Chunk]:
    """Yield the whole chunks up to IEND (PNG, 5.3)."""
    at, name = len(MAGIC), b""
    while at + 12 <= len(data) and name != b"IEND":
        (length,) = struct.unpack_from(">I", data, at)
        name, stop = data[at + 4 : at + 8], at + 12 + length
        if stop > len(data):
            return
        checksum = int.from_bytes(data[stop - 4 : stop], "big")
        yield _Chunk(name, data[at + 8 : stop - 4], zlib.crc32(data[at + 4 : stop - 4]) == checksum, stop)
        at = stop


def judge(data: bytes) -> Note | None:
    """Check every chunk's CRC and the end; raise Broken when the pixels are wrong or can't be trusted."""
    chunks = list(_chunks(data))
    wrong = {chunk.name for chunk in chunks if not chunk.is_right}
    if wrong & _PIXEL_CHUNKS or (b"IDAT" in wrong and not _inflates(c.body for c in chunks if c.name == b"IDAT")):
        raise Broken("damaged", f"the checksum of {_say(wrong)} is wrong")
    if wrong:
        return Note("bad_crc", f"the checksum of {_say(wrong)} is wrong, but the pixels are intact")
    if not chunks or chunks[-1].name != b"IEND":
        return Note("missing_end", "no IEND chunk")
    if chunks[-1].stop < len(data):
        return Note("trailing_data", f"{plural(len(data) - chunks[-1].stop, 'byte')} after the last chunk")
    return None


def is_short(data: bytes) -> bool:
    """Whether there are fewer compressed pixels than the header promises: decoders leave the rest black."""
    chunks = list(_chunks(data))
    if not chunks or chunks[0].name != b"IHDR":
        return False
    wanted, got = _size(chunks[0].body), 0
    inflate = zlib.decompressobj()
    for part in (chunk.body for chunk in chunks if chunk.name == b"IDAT"):
        rest = part
        while rest and not inflate.eof and got < wanted:
            got += len(inflate.decompress(rest, 1 << 22))
            rest = inflate.unconsumed_tail
    return bool(got < wanted)


def is_apples(data: bytes) -> bool:
    """Whether it is a whole file of the kind that Xcode makes: pixels as bare Deflate, behind a chunk of its own."""
    names = [chunk.name for chunk in _chunks(data)]
    if names[:2] != [b"CgBI", b"IHDR"] or names[-1] != b"IEND":
        return False
    return _inflates((chunk.body for chunk in _chunks(data) if chunk.name == b"IDAT"), -zlib.MAX_WBITS)


def _size(header: bytes) -> int:
    """Return how many bytes the pixels take before they are compressed."""
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", header)
    bits = depth * _SAMPLES.get(colour, 1)
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = ((-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes)
    return sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns > 0 and rows > 0)


def _say(names: set[bytes]) -> str:
    return ", ".join(sorted(name.decode("latin-1") for name in names))


def _inflates(packed: Iterable[bytes], form: int = zlib.MAX_WBITS) -> bool:
    """Whether the compressed pixels inflate to their end, where zlib checks the Adler-32 over them."""
    inflate = zlib.decompressobj(form)
    try:
        for part in packed:
            rest = part
            while rest and not inflate.eof:
                inflate.decompress(rest, 1 << 22)
                rest = inflate.unconsumed_tail
    except zlib.error:
        return False
    return inflate.eof


def mend(data: bytes, without: Collection[bytes] = ()) -> bytes:
    """Put the right checksums and an end to a file of sound chunks; cut off what follows, and drop kinds of chunks."""
    named = [(chunk.name, chunk.body) for chunk in _chunks(data) if chunk.name not in without]
    if not named or named[-1][0] != b"IEND":
        named.append((b"IEND", b""))
    return MAGIC + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in named
    )
