"""Tar, plain and compressed, read in one pass."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import tarfile
from collections.abc import Iterator
from typing import Final

from ftkit._archives.members import CHUNK, Archive, Limits, Member, Source, reading
from ftkit._archives.names import decode, find_encoding
from ftkit._archives.packing import PACKINGS, blocks, unpack
from ftkit._wording import shown
from ftkit.errors import ArchiveError

_LONGEST_HEADER: Final = (
    16 << 20
)  # of a name or a pax header, which tarfile reads whole: no honest one has a thousandth
_SURROGATES = re.compile(r"[\ud800-\udfff]")  # bytes that are not UTF-8
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


def read_tar(source: Source, packing: str | None = None) -> Archive:
    """Read a tar, one member after the other."""
    total = None if packing else source.limits.packed
    archive = Archive(f"tar.{packing}" if packing else "tar", total=total, read=source.file.tell)

    def text(name: str, field: str, info: tarfile.TarInfo) -> str:
        """Return a name or target decoded; its encoding is known only if it is in a pax header."""
        raw = _raw(name)
        if raw.isascii() or field in info.pax_headers:
            return name
        # Today's tars are UTF-8. It is worth reading all names ahead once one is not.
        if archive.encoding is None:
            archive.encoding = source.encoding or "utf-8"
        if archive.encoding == "utf-8" and not source.encoding and _SURROGATES.search(name):
            archive.encoding = _encoding(source, packing, raw)
        return decode(raw, archive.encoding, forced=source.encoding is not None)

    def batches() -> Iterator[list[Member]]:
        with reading("it"):
            for tar, info in _infos(source, packing):
                yield [_member(tar, info, text(info.name, "path", info), text(info.linkname, "linkpath", info))]

    archive.batches = batches()
    return archive


def _raw(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")  # undoes what tarfile did


def _encoding(source: Source, packing: str | None, raw: bytes) -> str:
    """Read all names ahead."""
    with source.path.open("rb") as file:
        infos = _infos(dataclasses.replace(source, file=file), packing)
        names = [_raw(info.name) for _, info in infos if "path" not in info.pax_headers]
    return find_encoding([*names, raw]) or "utf-8"


def _infos(source: Source, packing: str | None) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    chunks = blocks(source.file)
    if packing:
        chunks = unpack(chunks, PACKINGS[packing].new_decoder)
    stream = _Forward(chunks, source.limits)
    first = stream.peek(tarfile.BLOCKSIZE)
    if not is_tar_header(first):
        raise ArchiveError(f"its content is not a tar archive: it starts with {first[:8]!r}.")
    with tarfile.TarFile(fileobj=stream, mode="r", encoding="utf-8", errors="surrogateescape") as tar:
        while (info := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # else it keeps a kilobyte for each member
            yield tar, info
    # tarfile takes any invalid header for the end.
    if len(stream.last) < tarfile.BLOCKSIZE or stream.last.strip(b"\0"):
        raise tarfile.ReadError("there is no end mark")
    _read_end(stream)


def _read_end(stream: _Forward) -> None:
    """Read from the first block of the end mark on; raise if there is no second one, or anything but zeros follows.

    To the last byte: the compressed stream's checksum is there. What follows an end mark is never read as members: a
    lost header and a file of zeros look the same as an end mark.
    """
    start = at = stream.tell() - tarfile.BLOCKSIZE
    blocks_of_zeros = 1
    while chunk := stream.read(CHUNK):
        at = stream.tell() - len(chunk)
        if behind := chunk.lstrip(b"\0"):
            at += (len(chunk) - len(behind)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
            raise _goes_on(start, at, chunk[at - stream.tell() :][: tarfile.BLOCKSIZE])
        blocks_of_zeros += len(chunk) // tarfile.BLOCKSIZE
    if blocks_of_zeros < 2:
        raise tarfile.ReadError("there is half an end mark")


def _goes_on(start: int, there: int, block: bytes) -> ArchiveError:
    if not is_tar_header(block):
        return ArchiveError(
            f"it is damaged: there are zeros at byte {start:,}, where a member or the end should be, and more data at "
            f"byte {there:,}. A header is lost, and its file with it: fetch the archive again."
        )
    name = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").name
    return ArchiveError(
        f"its end mark is at byte {start:,}, and another tar begins at byte {there:,}, with '{shown(name)}': tars "
        "were joined into one file, or a header is lost. Unpack each tar separately; 'tar --ignore-zeros --list' "
        "lists everything in it."
    )


def _check_holes(tar: tarfile.TarFile, info: tarfile.TarInfo, name: str) -> None:
    """Raise if the map of a sparse file is invalid, which tarfile fills with zeros or with other members' bytes."""
    extents: list[tuple[int, int]] | None = getattr(info, "sparse", None)
    if extents is None:
        return
    at = stored = 0
    for offset, size in extents:
        if min(offset, size) < 0 or (size and offset < at) or offset + size > info.size:
            break
        at, stored = max(at, offset + size), stored + size
    else:
        if -(-stored // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE == tar.offset - info.offset_data:
            return
    raise tarfile.ReadError(f"the map of the sparse file '{shown(name)}' is invalid")


def _member(tar: tarfile.TarFile, info: tarfile.TarInfo, name: str, target: str) -> Member:
    def data() -> Iterator[bytes]:
        with reading(f"its member '{shown(name)}'"):
            content = tar.extractfile(info)
            assert content is not None
            yield from blocks(content)

    _check_holes(tar, info, name)
    kind = "file" if info.isreg() else _KINDS.get(info.type, f"member of unknown type {info.type!r}")
    return Member(name, kind, info.size, info.mode, float(info.mtime), target=target, data=data)


class _Forward(io.RawIOBase):
    """A stream of chunks as the file that tarfile expects; it can skip, but never go back."""

    def __init__(self, chunks: Iterator[bytes], limits: Limits) -> None:
        self._chunks, self._limits = chunks, limits
        self._chunk, self._at, self._past = b"", 0, 0
        self.last = b""
        """What was read last: shows whether the end mark was reached."""

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
            raise tarfile.ReadError("a header points backward")
        while self.tell() < position and self._fill():
            self._at += min(position - self.tell(), len(self._chunk) - self._at)
        return self.tell()

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header is {size:,} bytes long")
        parts = []
        while size and self._fill():
            part = self._chunk[self._at : self._at + size]
            self._at += len(part)
            size -= len(part)
            parts.append(part)
        self.last = b"".join(parts)
        return self.last
