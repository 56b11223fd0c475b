"""The journal of a scan: every verdict, on disk instead of in memory, and there when the scan resumes."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Self
from weakref import WeakSet

from ftkit import __version__
from ftkit._arguments import local_path
from ftkit._files import digest, lock
from ftkit._images.findings import KINDS
from ftkit._images.folders import Folder
from ftkit._images.scratch import in_scratch
from ftkit._images.verdict import Verdict, read_line
from ftkit.errors import FileWriteError, FtkitError


class Journal:
    """Lines of JSON, ``[path, verdict]`` for each file, each after a digest; memory holds their places only.

    The first line says what was scanned, and every digest covers that too: a line counts for this scan, unharmed, or
    not at all, and its file is looked at again. A line that a killed scan left unfinished is cut off.

    A scan locks its journal. Where the file system has no locks, it only ever adds to it, and reads a copy of its own.
    """

    def __init__(self, path: str | os.PathLike[str] | None, folder: Folder) -> None:
        self._folder = folder
        self._kept: Path | None = None
        self._shared: BinaryIO | None = None  # the journal, where what is read is a copy
        # Hashes of the paths that are known, sorted, and the places of their lines.
        self._known, self._places = array("q"), array("q")
        head = {"ftkit": "scan", "version": __version__, "root": folder.place}
        self._head = json.dumps(head).encode() + b"\n"
        if path is None:
            self._file: BinaryIO = _temporary()
        else:
            path = local_path("journal", path, error=FileWriteError)
            if folder.holds(path):
                raise FtkitError(f"The journal {path} would be among the images. Choose a path outside {folder.name}.")
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise FileWriteError(f"Can't keep a journal in {path}: it is a device or a pipe. Choose another path.")
            try:
                self._file = path.open("a+b")
                self._kept = path
            except OSError as error:
                raise FtkitError(f"Can't write a journal to {path}: {error.strerror}. Choose another path.") from error
            try:
                self._claim(path)
                self._read_back(path, head)
            except BaseException:
                self._close()
                raise
        self._end = self._file.seek(0, os.SEEK_END)
        if self._end == 0:
            self._write(self._head)

    def _claim(self, path: Path) -> None:
        self._file.seek(0)  # on Windows, what is locked
        is_ours = lock(self._file.fileno())
        if is_ours is False:
            raise FtkitError(
                f"Another scan is writing to the journal {path}. Wait until it has ended, or choose another path."
            )
        if is_ours:
            _LOCKED.add(self)
        else:
            self._shared, self._file = self._file, _temporary()
            with in_scratch():
                shutil.copyfileobj(self._shared, self._file)

    def leave(self) -> None:
        """Leave it to the process that this one was forked from: a copy of what is open there keeps the lock."""
        self._file.raw.close()  # type: ignore[attr-defined]  # which writes nothing

    def _read_back(self, path: Path, head: dict[str, str]) -> None:
        self._file.seek(0)
        first = self._file.readline()
        at, places = len(first), {}
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            if known := self._parse(line):
                places[hash(known[0])] = at
            at += len(line)
        if first != self._head and not places:
            found = _read_head(first)
            is_ours = found["root"] == head["root"] if found else self._head.startswith(first.strip(b"\0"))
            if not is_ours:
                what = f"the scan of {found['root']} by ftkit {found['version']}" if found else "something else"
                raise FtkitError(
                    f"{path} contains {what}, not a scan of {head['root']} by ftkit {head['version']}. "
                    f"Pass another path, or move the file away."
                )
            at = 0  # of another version, or with nothing in it that was not torn
        if self._shared and at < self._file.seek(0, os.SEEK_END):
            self._shared.write(b"\n")
        self._file.truncate(at)
        self._known.extend(sorted(places))
        self._places.extend(places[key] for key in self._known)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            self.flush()
        except FileWriteError:  # which a write has met before
            if kind is None:
                raise
        finally:
            self._close()

    def _close(self) -> None:
        for file in filter(None, (self._file, self._shared)):
            with suppress(OSError):
                file.close()

    def append(self, line: bytes) -> int:
        """Add a line; return its place."""
        at = self._end
        self._write(b"%b %b" % (self._digest(line), line))
        return at

    def _write(self, line: bytes) -> None:
        with self._writing():
            self._end += self._file.write(line)
        if self._shared and self._kept:
            with _in_journal(self._kept):
                self._shared.write(line)
                self._shared.flush()  # in one go: another scan may write, too

    def _flush(self) -> None:
        with self._writing():
            self._file.flush()

    def _writing(self) -> AbstractContextManager[None]:
        return in_scratch() if self._shared or not self._kept else _in_journal(self._kept)

    def _digest(self, line: bytes) -> bytes:
        return digest(self._head + line).encode()

    def flush(self) -> None:
        """Hand what was added to the system, so that it outlives this process."""
        if self._kept:
            self._flush()

    def read(self, at: int) -> tuple[str, Verdict]:
        """Return the path and the verdict that stand at a place, where they were found before."""
        known = self._parse(self._line(at))
        if known is None:
            raise FtkitError("The journal was changed during the scan. Use one journal per scan, and scan again.")
        return known

    def _line(self, at: int) -> bytes:
        self._flush()
        self._file.seek(at)
        return self._file.readline()

    def _parse(self, line: bytes) -> tuple[str, Verdict] | None:
        """Return what a line says, if it is as it was written."""
        known, _, line = line.partition(b" ")
        if known != self._digest(line):
            return None
        try:
            return read_line(line)
        except ValueError:  # a build of this version wrote it that measured less
            return None

    def recall(self, path: str) -> tuple[bytes, int] | None:
        """Return the line on a file and its place, when the file has not changed since it was written."""
        key = hash(path)
        index = bisect_left(self._known, key)
        if index == len(self._known) or self._known[index] != key:
            return None
        line = self._line(self._places[index])
        found = self._parse(line)
        if found is None:
            return None
        known, verdict = found
        is_transient = any(KINDS[note.kind].transient for note in verdict.notes)
        with suppress(OSError):
            if known == path and not is_transient and verdict.stamp == self._folder.stamp(path):
                return line.partition(b" ")[2], self._places[index]
        return None


_LOCKED: WeakSet[Journal] = WeakSet()


def _after_fork() -> None:
    for journal in list(_LOCKED):
        journal.leave()


if hasattr(os, "register_at_fork"):  # a worker of an executor would hold the journal of a scan that was killed
    os.register_at_fork(after_in_child=_after_fork)


def _temporary() -> BinaryIO:
    with in_scratch():
        return tempfile.TemporaryFile()


@contextmanager
def _in_journal(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileWriteError(
            f"The journal {path} can't be written: {error.strerror}. Free some space, or choose another path."
        ) from error


def _read_head(line: bytes) -> dict[str, Any] | None:
    """Return what a journal says of its scan in the first line; None if it is not a journal's."""
    try:
        head = json.loads(line)
    except ValueError:
        return None
    is_head = isinstance(head, dict) and head.get("ftkit") == "scan" and {"root", "version"} <= head.keys()
    return head if is_head else None
