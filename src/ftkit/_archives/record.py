"""What a folder was unpacked from, recorded on the folder itself, so that unpacking again costs nothing."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final, Self

import xxhash

from ftkit._archives.paths import RECORD_NAME
from ftkit._archives.staging import is_bare, unfit, unwritable
from ftkit._wording import in_bytes, shown
from ftkit.errors import ArchiveError

_ATTRIBUTE: Final = "user.ftkit.unpacked"  # not a file: listing or loading the folder shows only the archive's own


@dataclass(frozen=True, slots=True)
class Origin:
    """An archive and how it is unpacked, as far as that changes the result.

    Size and time identify it at once; if the times differ, as with another copy, the digest decides.
    """

    name: str
    size: int
    modified: int
    options: dict[str, Any]
    digest: str = ""

    @classmethod
    def of(cls, file: IO[bytes], name: str, options: dict[str, Any]) -> Self:
        """Return the origin of an open archive, without its digest."""
        status = os.fstat(file.fileno())
        return cls(name, status.st_size, status.st_mtime_ns, options)

    def is_in(self, file: IO[bytes]) -> bool:
        """Return whether ``file`` contains the bytes of this archive."""
        now = Origin.of(file, self.name, self.options)
        if now.size != self.size:
            return False
        return now.modified == self.modified or _digest(file) == self.digest

    def __str__(self) -> str:
        date = dt.datetime.fromtimestamp(self.modified / 1e9).isoformat(" ", "seconds")
        return f"'{shown(self.name)}' ({in_bytes(self.size)}, modified {date})"


def _digest(file: IO[bytes]) -> str:
    file.seek(0)
    return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()  # type: ignore[arg-type]


def write(folder: Path, origin: Origin, file: IO[bytes], report: dict[str, Any]) -> None:
    """Record in ``folder`` that it contains what ``file`` unpacked to, and the report."""
    digest = _digest(file)
    if Origin.of(file, origin.name, origin.options) != origin:
        raise ArchiveError("it changed while it was being read. Unpack it again.")
    record = json.dumps({"origin": asdict(origin) | {"digest": digest}, "report": report}, ensure_ascii=False)
    raw = record.encode(errors="surrogatepass")
    try:
        try:
            os.setxattr(folder, _ATTRIBUTE, raw)
        except (AttributeError, OSError):  # macOS, Windows, and file systems without attributes
            (folder / RECORD_NAME).write_bytes(raw)
    except OSError as error:
        raise unwritable(folder, error) from error


def recall(folder: Path, file: IO[bytes], options: dict[str, Any]) -> dict[str, Any] | None:
    """Return the report of when the archive ``file`` was unpacked to ``folder``, or None if it was not.

    Files changed or deleted since are not looked at; if none is left, nothing was unpacked.

    Raises:
        FileWriteError: The folder contains another archive, or this one unpacked with other options.
    """
    read = _read(folder)
    if read is None or is_bare(folder):
        return None
    origin, report = read
    if not origin.is_in(file):
        raise unfit(folder, f"it contains the files of {origin}; this is another archive, or it has changed since")
    if origin.options != options:
        raise unfit(
            folder, f"it contains this archive, unpacked with {_in_words(origin.options)}, not {_in_words(options)}"
        )
    return report


def _in_words(options: dict[str, Any]) -> str:
    return ", ".join(f"{shown(name)}={shown(repr(value))}" for name, value in options.items())


def _read(folder: Path) -> tuple[Origin, dict[str, Any]] | None:
    record = b""
    try:
        record = os.getxattr(folder, _ATTRIBUTE)
    except (AttributeError, OSError):
        with contextlib.suppress(OSError):
            record = (folder / RECORD_NAME).read_bytes()
    try:
        read = json.loads(record)
        return Origin(**read["origin"]), dict(read["report"])
    except (ValueError, LookupError, TypeError):
        return None
