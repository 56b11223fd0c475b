"""7z, read by py7zr and written through a sink like the other formats."""

from __future__ import annotations

import contextlib
import io
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, cast

from ftkit._archives.members import FILE_KINDS, Archive, Member, Sink, Source, check_link, refused
from ftkit._archives.paths import split_path
from ftkit._wording import shown
from ftkit.errors import ArchiveError, FtkitError

MAGIC: Final = b"7z\xbc\xaf\x27\x1c"
_HEADER_SIZE: Final = 32


def read_7z(source: Source) -> Archive:
    """Read the directory of a 7z."""
    try:
        import py7zr
    except ImportError:
        raise ArchiveError("it is a 7z archive; to read it: pip install 'ftkit[7z]'.") from None

    try:
        password = None if source.password is None else source.password.decode()
    except UnicodeDecodeError:
        raise ArchiveError("it is a 7z archive, whose password must be a string: pass password= as a str.") from None
    with _reading(password):
        _refuse_appended(source)
        _check_count(source, password)
        opened = py7zr.SevenZipFile(source.file, password=password)
        members = [_member(info) for info in opened.files]
    source.limits.check_files(len(members))
    total = sum(member.size for member in members)
    source.limits.check_bytes(total)
    with _reading(password):
        _read_targets(opened, [member for member in members if member.kind == "link"])

    def pour(sink: Sink, batch: list[Member]) -> None:
        files = {_path(member.name): member for member in batch if member.kind == "file"}
        for member in batch:
            if member.kind != "file":
                sink.write(member)
        with _reading(password), contextlib.ExitStack() as last:

            def create(path: str) -> Callable[[bytes], object]:
                last.close()
                write: Callable[[bytes], object] = last.enter_context(sink.output(files.pop(path))).write
                return write

            _extract(opened, sink.root, list(files.values()), create)
        for member in files.values():
            raise refused(member.name, "is listed, but its data are missing")

    return Archive("7z", iter([members]), total=total, pour=pour)


def _refuse_appended(source: Source) -> None:
    """Refuse what follows the end: the directory does not list it."""
    offset, size = _directory(source.file)
    end = _HEADER_SIZE + offset + size
    source.file.seek(0)
    if end < source.limits.packed:
        raise ArchiveError(
            f"it ends at byte {end:,}, and {source.limits.packed - end:,} more bytes follow: archives were joined into "
            "one file, or its header is damaged. Unpack each separately, or fetch it again."
        )


def _directory(file: IO[bytes]) -> tuple[int, int]:
    """Return where the directory begins, counted from the end of the header, and its size."""
    offset, size = struct.unpack("<12xQQ4x", file.read(_HEADER_SIZE))
    return offset, size


def _check_count(source: Source, password: str | None) -> None:
    """Check the number of members against the limit before py7zr makes a list of them.

    Compressed, a directory of millions takes kilobytes.
    """
    from py7zr import archiveinfo
    from py7zr.properties import PROPERTY

    class Count(archiveinfo.Header):
        def _extract_header_info(self, fp: BinaryIO) -> None:
            kind = fp.read(1)
            if kind == PROPERTY.MAIN_STREAMS_INFO:
                archiveinfo.StreamsInfo.retrieve(fp)
                kind = fp.read(1)
            if kind == PROPERTY.FILES_INFO:
                source.limits.check_files(archiveinfo.read_uint64(fp))

    offset, size = _directory(source.file)
    source.file.seek(_HEADER_SIZE + offset)
    head = io.BytesIO(source.file.read(min(size, source.limits.packed)))
    Count.retrieve(cast(BinaryIO, source.file), head, _HEADER_SIZE, password)
    source.file.seek(0)


def _member(info: Any) -> Member:
    kind = FILE_KINDS.get(info.st_fmt or 0, "file")
    if info.is_directory:
        kind = "folder"
    elif info.is_junction or (info.is_symlink and kind != "link"):
        kind = "Windows junction"
    modified = None if info.lastwritetime is None else info.lastwritetime.totimestamp()
    return Member(info.filename, kind, info.uncompressed, info.posix_mode, modified, info.crc32)


def _read_targets(opened: Any, links: list[Member]) -> None:
    """Read where links lead, which is their content."""
    targets: dict[str, list[bytes]] = {}
    for member in links:
        check_link(member)

    def create(path: str) -> Callable[[bytes], None]:
        return targets.setdefault(path, []).append

    if links:
        with tempfile.TemporaryDirectory() as empty:
            _extract(opened, Path(empty), links, create)
        opened.reset()
        for member in links:
            member.target = b"".join(targets[_path(member.name)]).decode()


def _extract(
    opened: Any, root: Path, members: list[Member], create: Callable[[str], Callable[[bytes], object]]
) -> None:
    """Let py7zr write ``members``, one after the other, through what ``create`` returns for their paths in ``root``."""
    import py7zr.io

    class Memories(py7zr.io.WriterFactory):
        def create(self, filename: str) -> Any:
            return _Memory(create(_path(Path(filename).relative_to(root).as_posix())))

    opened.extract(root, [member.name for member in members], factory=Memories())


def _path(name: str) -> str:
    return "/".join(split_path(name))


class _Memory:
    """What py7zr takes for a file in memory: it only writes, and rewinds at the end."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write

    def write(self, chunk: bytes | bytearray) -> int:
        self._write(bytes(chunk))
        return len(chunk)

    def seek(self, offset: int, whence: int = 0) -> int:  # noqa: ARG002  (py7zr's to choose)
        return 0

    def close(self) -> None:
        pass


@contextlib.contextmanager
def _reading(password: str | None) -> Iterator[None]:
    import py7zr

    try:
        yield
    except (FtkitError, MemoryError):
        raise
    except py7zr.exceptions.PasswordRequired as error:
        raise ArchiveError("it is encrypted: pass its password=.") from error
    except Exception as error:  # py7zr does not document which errors damaged files raise
        wrong = ", or the password is wrong" if password is not None else ""
        raise ArchiveError(f"it is damaged or cut off{wrong} ({shown(error) or type(error).__name__}).") from error
