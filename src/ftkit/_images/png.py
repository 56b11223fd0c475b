"""PNG files: their checksums, and which of them speak of the pixels."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from ftkit._images.verdict import Broken

__all__ = ["MAGIC", "judge", "mend"]

MAGIC = b"\x89PNG\r\n\x1a\n"
_PIXEL_CHUNKS = frozenset((b"IHDR", b"PLTE", b"tRNS"))  # what a wrong one does to the pixels can't be told


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int, bool]]:
    """Yield name, start, stop and whether the CRC is right, for each whole chunk up to IEND (PNG, 5.3)."""
    at, name = len(MAGIC), b""
    while at + 12 <= len(data) and name != b"IEND":
        (length,) = struct.unpack_from(">I", data, at)
        name, stop = data[at + 4 : at + 8], at + 12 + length
        if stop > len(data):
            return
        right = zlib.crc32(data[at + 4 : stop - 4]) == int.from_bytes(data[stop - 4 : stop], "big")
        yield name, at, stop, right
        at = stop


def judge(data: bytes) -> tuple[str, str] | None:
    """Check every chunk's CRC and the end; raise Broken when the pixels are wrong or can't be trusted."""
    names, packed, wrong, end = set(), [], set(), len(MAGIC)
    for name, start, stop, right in _chunks(data):
        names.add(name)
        end = stop
        if not right:
            wrong.add(name)
        if name == b"IDAT":
            packed.append(data[start + 8 : stop - 4])
    if wrong & _PIXEL_CHUNKS or (b"IDAT" in wrong and not _inflates(packed)):
        raise Broken("damaged", f"the checksum of {_say(wrong)} is wrong")
    if wrong:
        return "bad_crc", f"the checksum of {_say(wrong)} is wrong, the pixels are sound"
    if b"IEND" not in names:
        return "missing_end", "no IEND chunk"
    if end < len(data):
        return "trailing_data", f"{len(data) - end:,} bytes after the last chunk"
    return None


def _say(names: set[bytes]) -> str:
    return ", ".join(sorted(name.decode("latin-1") for name in names))


def _inflates(packed: list[bytes]) -> bool:
    """Whether the compressed pixels inflate to their end, where zlib checks the Adler-32 over them."""
    inflate = zlib.decompressobj()
    try:
        for part in packed:
            rest = part
            while rest and not inflate.eof:
                inflate.decompress(rest, 1 << 22)
                rest = inflate.unconsumed_tail
    except zlib.error:
        return False
    return inflate.eof


def mend(data: bytes) -> bytes:
    """Put the right checksums and an end to a file whose chunks are sound; cut off what follows."""
    kept = [MAGIC]
    for _, start, stop, _ in _chunks(data):
        body = data[start + 4 : stop - 4]
        kept.append(data[start : start + 4] + body + struct.pack(">I", zlib.crc32(body)))
    if kept[-1][4:8] != b"IEND":
        kept.append(b"\0\0\0\0IEND\xae\x42\x60\x82")
    return b"".join(kept)
