"""7z, read by py7zr and written by ``tree`` like the rest."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ftkit._archives.members import FILE_KINDS, Archive, Limits, Member, check_link, refused
from ftkit._archives.tree import Output, Tree, split_path
from ftkit.errors import ArchiveError, FtkitError

__all__ = ["MAGIC", "read_7z"]

MAGIC = b"7z\xbc\xaf\x27\x1c"


def read_7z(file: IO[bytes], limits: Limits, password: bytes | None) -> Archive:
    """Read the directory of a 7z."""
    try:
        import py7zr
    except ImportError:
        raise ArchiveError("it is a 7z archive: pip install 'ftkit[7z]' to read it.") from None

    with _reading(password):
        opened = py7zr.SevenZipFile(file, password=None if password is None else password.decode())
        members = [_member(info) for info in opened.files]
    limits.check_files(len(members))
    total = sum(member.size for member in members)
    limits.check_bytes(total)
    with _reading(password):
        _read_targets(opened, [member for member in members if member.kind == "link"])

    def pour(tree: Tree, batch: list[Member]) -> None:
        files = {}
        for member in batch:
            if member.kind == "file":
                files["/".join(split_path(member.name))] = member
            else:
                tree.write(member)
        with _reading(password), contextlib.ExitStack() as last:

            def create(path: str) -> Callable[[bytes], int]:
                last.close()
                return last.enter_context(Output(tree, files.pop(path))).write

            _extract(opened, tree.root, list(files.values()), create)
        for member in files.values():
            raise refused(member.name, "is announced, and does not come")

    return Archive("7z", iter([members]), total, pour=pour)


def _member(info: Any) -> Member:
    kind = FILE_KINDS.get(info.st_fmt or 0, "file")
    if info.is_directory:
        kind = "folder"
    elif info.is_junction or (info.is_symlink and kind != "link"):
        kind = "Windows junction"
    modified = None if info.lastwritetime is None else info.lastwritetime.totimestamp()
    return Member(info.filename, kind, info.uncompressed, info.posix_mode, modified, info.crc32)


def _read_targets(opened: Any, links: list[Member]) -> None:
    """Read where links lead: their content says it."""
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
            member.target = b"".join(targets["/".join(split_path(member.name))]).decode()


def _extract(
    opened: Any, root: Path, members: list[Member], create: Callable[[str], Callable[[bytes], object]]
) -> None:
    """Let py7zr write ``members``, one after the other, by what ``create`` gives for their paths below ``root``."""
    import py7zr.io

    class Sinks(py7zr.io.WriterFactory):
        def create(self, filename: str) -> Any:
            return _Sink(create("/".join(split_path(Path(filename).relative_to(root).as_posix()))))

    opened.extract(root, [member.name for member in members], factory=Sinks())


class _Sink:
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
def _reading(password: bytes | None) -> Iterator[None]:
    import py7zr

    try:
        yield
    except (FtkitError, MemoryError):
        raise
    except py7zr.exceptions.PasswordRequired as error:
        raise ArchiveError("it is encrypted: give its password=.") from error
    except Exception as error:  # py7zr promises no kinds of errors for damaged files
        wrong = ", or the password is wrong" if password is not None else ""
        raise ArchiveError(f"it is damaged or cut off{wrong} ({str(error) or type(error).__name__}).") from error
