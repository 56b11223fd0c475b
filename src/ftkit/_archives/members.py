"""What the readers of all formats have in common: members, limits, and errors about damage."""

from __future__ import annotations

import contextlib
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Protocol

from ftkit._wording import shown
from ftkit.errors import ArchiveError, FtkitError

CHUNK: Final = 1 << 20
# By the bits of a Unix mode, which zip and 7z keep too.
FILE_KINDS: Final = {
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
}
# Small archives of blank pictures or tables pack better than any limit: below this, any ratio is harmless.
_HARMLESS = 32 << 20
_LONGEST_TARGET: Final = 4096  # PATH_MAX of Linux
# What a damaged file makes the readers of the standard library raise.
_DAMAGE: Final = (
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


@dataclass(slots=True)
class Member:
    """One entry of an archive, its name as the archive spells it.

    Attributes:
        name: Its path in the archive, not to be trusted.
        kind: ``"file"``, ``"folder"``, ``"link"`` or ``"hard link"``; anything else is the reason to refuse it.
        size: Bytes announced.
        mode: Permission bits, or None where the archive has none.
        modified: Seconds since 1970, or None.
        checksum: CRC-32 announced, or None.
        target: Where a link leads: from its own folder, for a hard link from the archive's.
        data: Reads the content, once.
    """

    name: str
    kind: str
    size: int = 0
    mode: int | None = None
    modified: float | None = None
    checksum: int | None = None
    target: str = ""
    data: Callable[[], Iterator[bytes]] = lambda: iter(())


class Sink(Protocol):
    """The folder in which members are written."""

    root: Path

    def write(self, member: Member) -> None:
        """Write a member that can be read on its own."""

    def output(self, member: Member) -> contextlib.AbstractContextManager[Any]:
        """Open the file of ``member``, to ``write`` it; raise on leaving it if the data are not those announced."""


def _one_by_one(sink: Sink, members: list[Member]) -> None:
    for member in members:
        sink.write(member)


@dataclass(slots=True)
class Archive:
    """An open archive.

    Attributes:
        format: ``"zip"``, ``"tar"``, ``"tar.gz"``, ...
        batches: The members in order. All of a batch are known before the data of the first are read.
        total: Bytes to come, where the archive says so.
        encoding: The encoding of names that don't state one; None if there are no such names.
        pour: Writes a batch; formats whose members can't be read one by one have their own way.
        read: Where the archive is read in one pass, says how many of its own bytes have been.
    """

    format: str
    batches: Iterator[list[Member]] = field(default_factory=lambda: iter(()))
    total: int | None = None
    encoding: str | None = None
    pour: Callable[[Sink, list[Member]], None] = _one_by_one
    read: Callable[[], int] | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an archive of ``packed`` bytes may unpack to."""

    max_bytes: float
    max_ratio: float
    max_files: float
    packed: int

    def check_bytes(self, unpacked: int, packed: int | None = None) -> None:
        """Raise if ``unpacked`` bytes are too many in total, or for the ``packed`` bytes that they came from."""
        if unpacked > self.max_bytes:
            raise ArchiveError(
                f"it unpacks to more than {self.max_bytes:,.0f} bytes; if you trust it, raise max_bytes."
            )
        self.check_ratio(unpacked, packed)

    def check_ratio(self, unpacked: int, packed: int | None = None) -> None:
        """Raise if ``unpacked`` bytes are too many for the ``packed`` bytes that they came from."""
        packed = self.packed if packed is None else packed
        if unpacked > _HARMLESS and unpacked > self.max_ratio * packed:
            raise ArchiveError(
                f"it unpacks to more than {self.max_ratio:g} times its size, like an archive bomb; "
                "if you trust it, raise max_ratio."
            )

    def check_files(self, count: int) -> None:
        """Raise if ``count`` files, folders and links are too many."""
        if count > self.max_files:
            raise ArchiveError(
                f"it has more than {self.max_files:,.0f} files, folders and links; if you trust it, raise max_files."
            )


@dataclass(frozen=True, slots=True)
class Source:
    """An archive's file, at its start, and what its reader has to know."""

    path: Path
    file: IO[bytes]
    limits: Limits
    encoding: str | None = None  # forced on names that don't state one
    password: bytes | None = None


class Check:
    """Compares the content of a member with what its archive announced."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._checksum = 0
        self.size: int = 0

    def add(self, chunk: bytes | bytearray | memoryview) -> bytes | bytearray | memoryview:
        """Count the next bytes and return them; raise if they are too many."""
        self.size += len(chunk)
        if self.size > self._member.size:
            raise refused(
                self._member.name, f"is damaged: it contains more than the {self._member.size:,} bytes announced"
            )
        if self._member.checksum is not None:
            self._checksum = zlib.crc32(chunk, self._checksum)
        return chunk

    def end(self) -> None:
        """Raise if there were too few bytes, or wrong ones."""
        if self.size != self._member.size:
            announced = f"{self.size:,} of the {self._member.size:,} bytes announced"
            raise refused(self._member.name, f"is damaged or cut off: it contains {announced}")
        if self._member.checksum not in (None, self._checksum):
            raise refused(self._member.name, "is damaged: its checksum does not match")


def check_link(member: Member) -> None:
    """Raise if what ``member`` announces is too long for the target of a link."""
    if member.size > _LONGEST_TARGET:
        raise refused(member.name, f"is a link whose target is {member.size:,} bytes long")


def refused(name: str, why: str) -> ArchiveError:
    """Return the error that refuses the member ``name``."""
    return ArchiveError(f"its member '{shown(name)}' {why}.")


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn what a reader raises on damage into an ArchiveError about ``what``."""
    try:
        yield
    except FtkitError:
        raise
    except _DAMAGE as error:
        raise ArchiveError(f"{what} is damaged or cut off ({shown(error) or type(error).__name__}).") from error
