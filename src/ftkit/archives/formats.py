"""What is in an archive: zip and tar read into one plain stream of members, with every byte checked.

Nothing here writes, and nothing here trusts a name: both are the business of ``tree``.
"""

from __future__ import annotations

import bz2
import contextlib
import datetime as dt
import io
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from ftkit.archives.names import find_encoding, plain_decode
from ftkit.errors import ArchiveError

__all__ = ["Archive", "Limits", "Member", "open_archive"]

_CHUNK = 1 << 20
# What a damaged file makes the readers of the standard library raise.
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    ArithmeticError,
    RuntimeError,
)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an archive may unpack to."""

    max_bytes: float
    max_ratio: float
    max_files: float
    packed: int
    """Bytes of the archive itself."""

    # Small archives of blank pictures or tables pack better than any limit: what fits here hurts nobody.
    _HARMLESS = 32 << 20

    def check_bytes(self, unpacked: int, packed: int | None = None) -> None:
        """Raise if ``unpacked`` bytes are too many in all, or for the ``packed`` bytes they came from."""
        if unpacked > self.max_bytes:
            raise ArchiveError(f"it unpacks to more than {self.max_bytes:,} bytes; if you trust it, raise max_bytes.")
        packed = self.packed if packed is None else packed
        if unpacked > self._HARMLESS and unpacked > self.max_ratio * packed:
            raise ArchiveError(
                f"it unpacks to more than {self.max_ratio:g} times its size, as only bombs do; "
                "if you trust it, raise max_ratio."
            )

    def check_files(self, count: int) -> None:
        """Raise if ``count`` members are too many."""
        if count > self.max_files:
            raise ArchiveError(f"it has more than {self.max_files:,} members; if you trust it, raise max_files.")


@dataclass(slots=True)
class Member:
    """One entry of an archive, its name as the archive spells it."""

    name: str
    kind: str  # "file", "folder", "link" or "hard link"; anything else is the reason to refuse it
    size: int = 0
    mode: int | None = None
    modified: float | None = None
    target: str = ""
    data: Callable[[], Iterator[bytes]] = lambda: iter(())


@dataclass(slots=True)
class Archive:
    """An open archive.

    Attributes:
        format: ``"zip"``, ``"tar"``, ``"tar.gz"``, ...
        batches: Its members in order. All of a batch are known before the first one's data are read.
        total: Bytes to come, where the archive says so.
        encoding: In which its unmarked names are written; None where they are ASCII or say so themselves.
    """

    format: str
    batches: Iterator[list[Member]] = field(default_factory=lambda: iter(()))
    total: int | None = None
    encoding: str | None = None


@contextlib.contextmanager
def _reading(what: str) -> Iterator[None]:
    """Turn what a reader raises on damage into an ArchiveError."""
    try:
        yield
    except ArchiveError:
        raise
    except _DAMAGE as error:
        raise ArchiveError(f"{what} is damaged or cut off ({str(error) or type(error).__name__}).") from error


@contextlib.contextmanager
def open_archive(source: Path, limits: Limits, encoding: str | None, password: bytes | None) -> Iterator[Archive]:
    """Open ``source`` by what it holds, whatever its suffix."""
    with source.open("rb") as file:
        head = file.read(512)
        file.seek(0)
        if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")):
            yield _zip(file, limits, encoding, password)
            return
        packing = next((name for name, magic in _MAGIC.items() if head.startswith(magic)), None)
        if packing or _is_tar_header(head):
            yield _tar(source, file, packing, limits, encoding)
            return
        if zipfile.is_zipfile(file):  # behind a program that unpacks itself
            yield _zip(file, limits, encoding, password)
            return
    looks = f"it starts with {head[:8]!r}" if head else "it is empty"
    raise ArchiveError(f"it is none of zip, tar, tar.gz, tar.bz2, tar.xz, tar.zst and 7z: {looks}.")


# --- packed streams ---------------------------------------------------------------------------------------------------


class _Decoder(Protocol):
    """What bz2, lzma and zstd share; _Inflate makes it of zlib."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Inflate:
    def __init__(self, window_bits: int) -> None:
        self._zlib = zlib.decompressobj(window_bits)
        self._full = False

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._full and not self._zlib.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        out = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        self._full = len(out) == max_length
        return out


def _zstd() -> _Decoder:
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]  # Python 3.14
    except ImportError:
        try:
            from backports import zstd
        except ImportError:
            raise ArchiveError(
                "it is packed with Zstandard, which this Python can't read: pip install 'ftkit[7z]'."
            ) from None
    decoder: _Decoder = zstd.ZstdDecompressor()
    return decoder


_MAGIC = {"gz": b"\x1f\x8b", "bz2": b"BZh", "xz": b"\xfd7zXZ\x00", "zst": b"\x28\xb5\x2f\xfd"}
_DECODERS: dict[str, Callable[[], _Decoder]] = {
    "gz": lambda: _Inflate(31),
    "bz2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(memlimit=1 << 30),  # a header may ask for 4 GiB
    "zst": _zstd,
}


def _decode(blocks: Iterator[bytes], new_decoder: Callable[[], _Decoder], *, several: bool = False) -> Iterator[bytes]:
    """Unpack in bounded pieces, so that a few bytes can't fill the memory.

    With ``several``, streams may follow one another, and zeros may pad the end, as gzip, bzip2, xz and zstd allow.
    """
    decoder, block = new_decoder(), b""
    while True:
        if decoder.eof:
            if not several:
                return
            block = decoder.unused_data
            while not block.lstrip(b"\0"):
                if not (block := next(blocks, b"")):
                    return
            block = block.lstrip(b"\0")
            decoder = new_decoder()
        elif decoder.needs_input and not (block := next(blocks, b"")):
            raise EOFError("the packed data end too early")
        out = decoder.decompress(block, _CHUNK)
        block = b""
        if out:
            yield out


def _blocks(file: BinaryIO, size: int | None = None) -> Iterator[bytes]:
    left = size
    while left is None or left > 0:
        block = file.read(_CHUNK if left is None else min(left, _CHUNK))
        if not block:
            if left is not None:
                raise EOFError("the file ends too early")
            return
        if left is not None:
            left -= len(block)
        yield block


# --- zip --------------------------------------------------------------------------------------------------------------


def _zip(file: BinaryIO, limits: Limits, encoding: str | None, password: bytes | None) -> Archive:
    archive = Archive("zip")
    with _reading("its directory"):
        try:
            infos = zipfile.ZipFile(file).infolist()
        except zipfile.BadZipFile as error:
            raise ArchiveError(f"its directory, which stands at the end, is damaged or cut off ({error}).") from error
    limits.check_files(len(infos))
    _refuse_overlap(infos)
    archive.total = sum(info.file_size for info in infos)
    limits.check_bytes(archive.total)
    names = [_raw_name(info) for info in infos]
    archive.encoding = encoding or find_encoding(name for name in names if isinstance(name, bytes))
    members = []
    for info, name in zip(infos, names, strict=True):
        limits.check_bytes(info.file_size, info.compress_size)
        text = plain_decode(name, archive.encoding or "ascii") if isinstance(name, bytes) else name
        members.append(_zip_member(file, info, text, password))
    archive.batches = iter([members])
    return archive


def _raw_name(info: zipfile.ZipInfo) -> str | bytes:
    """Return a name as text where the archive says its encoding, as bytes where it does not."""
    if info.flag_bits & 0x800:
        return info.orig_filename
    raw = info.orig_filename.encode("cp437")  # undoes what zipfile did
    unicode_path = _extra(info).get(0x7075, b"")
    if len(unicode_path) > 5 and unicode_path[0] == 1 and unicode_path[1:5] == struct.pack("<I", zlib.crc32(raw)):
        with contextlib.suppress(UnicodeDecodeError):
            return unicode_path[5:].decode()
    return raw


def _extra(info: zipfile.ZipInfo) -> dict[int, bytes]:
    fields, rest = {}, info.extra
    while len(rest) >= 4:
        kind, size = struct.unpack_from("<HH", rest)
        fields[kind] = rest[4 : 4 + size]
        rest = rest[4 + size :]
    return fields


def _refuse_overlap(infos: list[zipfile.ZipInfo]) -> None:
    """Refuse entries that share bytes: a few kilobytes can unpack to petabytes so (David Fifield's zip bomb)."""
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise ArchiveError(f"its member {info.filename!r} overlaps another one, as only bombs do.")
        end = info.header_offset + 30 + info.compress_size


def _zip_member(file: BinaryIO, info: zipfile.ZipInfo, name: str, password: bytes | None) -> Member:
    unix = info.external_attr >> 16 if info.create_system in (3, 19) else 0  # Unix, macOS
    kind = _KINDS.get(stat.S_IFMT(unix), "file")
    if name.endswith(("/", "\\")) or (not unix and info.external_attr & 0x10):
        kind = "folder"

    def data() -> Iterator[bytes]:
        with _reading(f"its member {name!r}"):
            yield from _zip_data(file, info, password)

    member = Member(name, kind, info.file_size, stat.S_IMODE(unix) or None, _zip_time(info), data=data)
    if kind == "link":
        if info.file_size > 4096:
            raise ArchiveError(f"its link {name!r} is {info.file_size:,} bytes long.")
        member.target = os.fsdecode(b"".join(data()))
    return member


_KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
}


def _zip_time(info: zipfile.ZipInfo) -> float | None:
    stamp = _extra(info).get(0x5455, b"")  # seconds in UTC; the plain field is local time in steps of two
    if len(stamp) >= 5 and stamp[0] & 1:
        return float(struct.unpack_from("<i", stamp, 1)[0])
    try:
        return dt.datetime(*info.date_time).timestamp()
    except (OverflowError, ValueError, OSError):
        return None  # month 0, hour 31: never set


_METHODS: dict[int, Callable[[], _Decoder]] = {
    zipfile.ZIP_DEFLATED: lambda: _Inflate(-15),
    zipfile.ZIP_BZIP2: bz2.BZ2Decompressor,
    93: _zstd,
}


def _zip_data(file: BinaryIO, info: zipfile.ZipInfo, password: bytes | None) -> Iterator[bytes]:
    if info.flag_bits & 0x1:
        raise ArchiveError(f"its member {info.filename!r} is encrypted: give its password=.")
    file.seek(info.header_offset)
    signature, name_size, extra_size = struct.unpack("<4s22xHH", file.read(30))
    if signature != b"PK\x03\x04":
        raise zipfile.BadZipFile("no header where the directory says")
    file.seek(name_size + extra_size, io.SEEK_CUR)
    blocks = _blocks(file, info.compress_size)
    if info.compress_type == zipfile.ZIP_STORED:
        chunks = blocks
    elif info.compress_type in _METHODS:
        chunks = _decode(blocks, _METHODS[info.compress_type])
    else:
        raise ArchiveError(f"its member {info.filename!r} is packed by method {info.compress_type}, unknown to ftkit.")
    checksum = size = 0
    for chunk in chunks:
        checksum = zlib.crc32(chunk, checksum)
        size += len(chunk)
        if size > info.file_size:
            break
        yield chunk
    if size != info.file_size:
        raise zipfile.BadZipFile(f"its header says {info.file_size:,} bytes, and there are others")
    if checksum != info.CRC:
        raise zipfile.BadZipFile("its bytes don't fit their checksum")


# --- tar --------------------------------------------------------------------------------------------------------------


def _is_tar_header(block: bytes) -> bool:
    if len(block) < 512:
        return False
    if not block.strip(b"\0"):
        return True  # the end mark alone: an empty tar
    with contextlib.suppress(tarfile.TarError):
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        return True
    return False


class _Forward(io.RawIOBase):
    """A stream of chunks as the file that tarfile wants; it can skip, never go back."""

    def __init__(self, chunks: Iterator[bytes], limits: Limits) -> None:
        self._chunks, self._limits = chunks, limits
        self._chunk, self._at, self._past = b"", 0, 0
        self.last = b""
        """What was read last: shows whether the end mark was met."""

    def _fill(self) -> bool:
        """Get the next chunk where this one is used up; return whether there is any."""
        while self._at == len(self._chunk):
            self._past += len(self._chunk)
            self._chunk, self._at = next(self._chunks, b""), 0
            if not self._chunk:
                return False
            self._limits.check_bytes(self._past + len(self._chunk))
        return True

    def peek(self, size: int) -> bytes:
        """Return the first bytes, before anything is read."""
        while len(self._chunk) < size and (more := next(self._chunks, b"")):
            self._chunk += more
        return self._chunk[:size]

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._past + self._at

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or position < self.tell():
            raise tarfile.ReadError("a header points back")
        while self.tell() < position and self._fill():
            self._at += min(position - self.tell(), len(self._chunk) - self._at)
        return self.tell()

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= 16 * _CHUNK:
            raise tarfile.ReadError(f"a header of {size} bytes")
        parts = []
        while size and self._fill():
            part = self._chunk[self._at : self._at + size]
            self._at += len(part)
            size -= len(part)
            parts.append(part)
        self.last = b"".join(parts)
        return self.last


def _tar(source: Path, file: BinaryIO, packing: str | None, limits: Limits, encoding: str | None) -> Archive:
    archive = Archive(
        f"tar.{packing}" if packing else "tar", encoding=encoding, total=None if packing else limits.packed
    )

    def text(name: str, info: tarfile.TarInfo, field: str) -> str:
        raw = name.encode("utf-8", "surrogateescape")
        if raw.isascii() or field in info.pax_headers:
            return name
        if archive.encoding is None:
            if _is_text(name):
                return name
            # The first name that is no UTF-8: only now are all the names worth reading ahead.
            with source.open("rb") as again:
                archive.encoding = find_encoding(
                    info.name.encode("utf-8", "surrogateescape")
                    for _, info in _tar_infos(again, packing, limits)
                    if "path" not in info.pax_headers
                )
        return plain_decode(raw, archive.encoding or "utf-8")

    def batches() -> Iterator[list[Member]]:
        with _reading("it"):
            for tar, info in _tar_infos(file, packing, limits):
                yield [_tar_member(tar, info, text(info.name, info, "path"), text(info.linkname, info, "linkpath"))]

    archive.batches = batches()
    return archive


def _is_text(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _tar_infos(
    file: BinaryIO, packing: str | None, limits: Limits
) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    chunks = _blocks(file)
    if packing:
        chunks = _decode(chunks, _DECODERS[packing], several=True)
    stream = _Forward(chunks, limits)
    if not _is_tar_header(first := stream.peek(512)):
        raise ArchiveError(f"what is packed in it is no tar archive: it starts with {first[:8]!r}.")
    with tarfile.TarFile(fileobj=stream, mode="r", encoding="utf-8", errors="surrogateescape") as tar:
        while (info := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # else it keeps a kilobyte for each member
            yield tar, info
    # tarfile takes a header that makes no sense for the end.
    if len(stream.last) < 512 or stream.last.strip(b"\0"):
        raise tarfile.ReadError("there is no end mark")
    for _ in chunks:  # a checksum may stand at the very end
        pass


def _tar_member(tar: tarfile.TarFile, info: tarfile.TarInfo, name: str, target: str) -> Member:
    def data() -> Iterator[bytes]:
        with _reading(f"its member {name!r}"):
            content = tar.extractfile(info)
            while content is not None and (chunk := content.read(_CHUNK)):
                yield chunk

    kind = "file" if info.isreg() else _TAR_KINDS.get(info.type, f"member of the unknown type {info.type!r}")
    return Member(name, kind, info.size, info.mode, float(info.mtime), target, data)


_TAR_KINDS = {
    tarfile.DIRTYPE: "folder",
    tarfile.SYMTYPE: "link",
    tarfile.LNKTYPE: "hard link",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "FIFO",
}
