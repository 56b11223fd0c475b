"""Which reader an archive needs: by its content, not its extension."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable
from typing import IO, Final, NamedTuple

from ftkit._archives.members import Archive, Source
from ftkit._archives.packing import PACKINGS
from ftkit._archives.sevenzip import MAGIC as SEVEN_ZIP_MAGIC
from ftkit._archives.sevenzip import read_7z
from ftkit._archives.tars import is_tar_header, read_tar
from ftkit._archives.zips import read_zip
from ftkit.errors import ArchiveError


class _Format(NamedTuple):
    name: str
    fits: Callable[[bytes, IO[bytes]], bool]
    read: Callable[[Source], Archive]


def _starts(*magic: bytes) -> Callable[[bytes, IO[bytes]], bool]:
    return lambda head, _: head.startswith(magic)


_ZIP_MAGIC: Final = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")  # APPNOTE 4.3: whole, empty, in parts
# All that can be read; the first that fits counts, and formats with a signature come first.
_FORMATS: Final = (
    _Format("zip", _starts(*_ZIP_MAGIC), read_zip),
    _Format("7z", _starts(SEVEN_ZIP_MAGIC), read_7z),
    *(
        _Format(f"tar.{name}", _starts(packing.magic), functools.partial(read_tar, packing=name))
        for name, packing in PACKINGS.items()
    ),
    _Format("tar", lambda head, _: is_tar_header(head), read_tar),
    _Format("zip", lambda _, file: zipfile.is_zipfile(file), read_zip),  # behind a program that unpacks itself
)


def open_archive(source: Source) -> Archive:
    """Open an archive.

    Raises:
        ArchiveError: It is in no supported format.
    """
    head = source.file.read(512)
    source.file.seek(0)
    for format in _FORMATS:
        if format.fits(head, source.file):
            source.file.seek(0)
            return format.read(source)
    *names, last = sorted({format.name for format in _FORMATS})
    looks = f"it starts with {head[:8]!r}" if head else "it is empty"
    raise ArchiveError(f"it is not in a supported format ({', '.join(names)} or {last}): {looks}.")
