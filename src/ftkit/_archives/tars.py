"""Tar, plain and packed, read in one pass."""

from __future__ import annotations

import contextlib
import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ftkit._archives.members import CHUNK, Archive, Limits, Member, reading
from ftkit._archives.names import decode, find_encoding
from ftkit._archives.packing import TAR_MAGIC, blocks, unpack
from ftkit.errors import ArchiveError

__all__ = ["is_tar_header", "read_tar"]

_LONGEST_HEADER = 16 << 20
_SURROGATES = re.compile(r"[\ud800-\udfff]")  # bytes that are no UTF-8
_KINDS = {
    tarfile.DIRTYPE: "folder",
    tarfile.SYMTYPE: "link",
    tarfile.LNKTYPE: "hard link",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "FIFO",
}


def is_tar_header(block: bytes) -> bool:
    """Return whether a tar can start with ``block``."""
    if len(block) < tarfile.BLOCKSIZE:
        return False
    if not block.strip(b"\0"):
        return True  # the end mark alone: an empty tar
    with contextlib.suppress(tarfile.TarError):
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        return True
    return False


def read_tar(source: Path, file: IO[bytes], packing: str | None, limits: Limits, encoding: str | None) -> Archive:
    """Read a tar, one member after the other."""
    archive = Archive(f"tar.{packing}" if packing else "tar", total=None if packing else limits.packed)

    def text(name: str, field: str, info: tarfile.TarInfo) -> str:
        """Return a name or target decoded; unless a pax header holds it, nothing says how."""
        raw = name.encode("utf-8", "surrogateescape")
        if raw.isascii() or field in info.pax_headers:
            return name
        if encoding is not None:
            archive.encoding = encoding
        elif archive.encoding in (None, "utf-8"):
            # Today's tars are UTF-8. It is worth reading all names ahead once one is not.
            valid = not _SURROGATES.search(name)
            archive.encoding = "utf-8" if valid else _encoding(source, packing, limits, raw)
        return decode(raw, archive.encoding, forced=encoding is not None)

    def batches() -> Iterator[list[Member]]:
        with reading("it"):
            for tar, info in _infos(file, packing, limits):
                yield [_member(tar, info, text(info.name, "path", info), text(info.linkname, "linkpath", info))]

    archive.batches = batches()
    return archive


def _encoding(source: Path, packing: str | None, limits: Limits, raw: bytes) -> str:
    """Read all names ahead."""
    with source.open("rb") as file:
        names = [
            info.name.encode("utf-8", "surrogateescape")
            for _, info in _infos(file, packing, limits)
            if "path" not in info.pax_headers
        ]
    return find_encoding([*names, raw]) or "utf-8"


def _infos(file: IO[bytes], packing: str | None, limits: Limits) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    chunks = blocks(file)
    if packing:
        chunks = unpack(chunks, TAR_MAGIC[packing][1])
    stream = _Forward(chunks, limits)
    first = stream.peek(tarfile.BLOCKSIZE)
    if not is_tar_header(first):
        raise ArchiveError(f"what is packed in it is no tar archive: it starts with {first[:8]!r}.")
    with tarfile.TarFile(fileobj=stream, mode="r", encoding="utf-8", errors="surrogateescape") as tar:
        while (info := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # else it keeps a kilobyte for each member
            yield tar, info
    # tarfile takes any header that makes no sense for the end.
    if len(stream.last) < tarfile.BLOCKSIZE or stream.last.strip(b"\0"):
        raise tarfile.ReadError("there is no end mark")
    while stream.read(CHUNK):  # the packed stream's checksum stands at its very end
        pass


def _member(tar: tarfile.TarFile, info: tarfile.TarInfo, name: str, target: str) -> Member:
    def data() -> Iterator[bytes]:
        with reading(f"its member {name!r}"):
            content = tar.extractfile(info)
            assert content is not None
            yield from blocks(content)

    kind = "file" if info.isreg() else _KINDS.get(info.type, f"member of the unknown type {info.type!r}")
    return Member(name, kind, info.size, info.mode, float(info.mtime), target=target, data=data)


class _Forward(io.RawIOBase):
    """A stream of chunks as the file that tarfile wants; it can skip, never go back."""

    def __init__(self, chunks: Iterator[bytes], limits: Limits) -> None:
        self._chunks, self._limits = chunks, limits
        self._chunk, self._at, self._past = b"", 0, 0
        self.last = b""
        """What was read last: shows whether the end mark was met."""

    def peek(self, size: int) -> bytes:
        """Return the first bytes, before anything is read."""
        while len(self._chunk) < size and (more := next(self._chunks, b"")):
            self._chunk += more
        return self._chunk[:size]

    def _fill(self) -> bool:
        """Get the next chunk where this one is used up; return whether there is any."""
        if self._at == len(self._chunk):
            self._past += self._at
            self._chunk, self._at = next(self._chunks, b""), 0
            self._limits.check_bytes(self._past + len(self._chunk))
        return bool(self._chunk)

    def tell(self) -> int:
        return self._past + self._at

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or position < self.tell():
            raise tarfile.ReadError("a header points back")
        while self.tell() < position and self._fill():
            self._at += min(position - self.tell(), len(self._chunk) - self._at)
        return self.tell()

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        parts = []
        while size and self._fill():
            part = self._chunk[self._at : self._at + size]
            self._at += len(part)
            size -= len(part)
            parts.append(part)
        self.last = b"".join(parts)
        return self.last
