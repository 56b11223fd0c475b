"""The journal of a scan: every verdict, on disk instead of in memory, and there when the scan resumes."""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from bisect import bisect_left
from contextlib import suppress
from typing import IO, Any, Self

from ftkit import __version__
from ftkit._arguments import local_path
from ftkit._files import digest
from ftkit._images.findings import KINDS
from ftkit._images.folders import Folder
from ftkit._images.verdict import Verdict, read_line
from ftkit.errors import FileWriteError, FtkitError


class Journal:
    """Lines of JSON, ``[path, verdict]`` for each file, each after a digest; memory holds their places only.

    The first line says what was scanned, and every digest covers that too: a line counts for this scan, unharmed, or
    not at all, and its file is looked at again. A line that a killed scan left unfinished is cut off.
    """

    def __init__(self, path: str | os.PathLike[str] | None, folder: Folder) -> None:
        self._folder = folder
        self._kept = path is not None
        # Hashes of the paths that are known, sorted, and the places of their lines.
        self._known, self._places = array("q"), array("q")
        head = {"ftkit": "scan", "version": __version__, "root": folder.place}
        self._head = json.dumps(head).encode() + b"\n"
        if path is None:
            self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        else:
            path = local_path("journal", path, error=FileWriteError)
            if folder.holds(path):
                raise FtkitError(f"The journal {path} would be among the images. Choose a path outside {folder.name}.")
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise FileWriteError(f"Can't keep a journal in {path}: it is a device or a pipe. Choose another path.")
            try:
                self._file = path.open("a+b")
            except OSError as error:
                raise FtkitError(f"Can't write a journal to {path}: {error.strerror}. Choose another path.") from error
            try:
                self._read_back(path, head)
            except BaseException:
                self._file.close()
                raise
        self._end = self._file.seek(0, os.SEEK_END)
        if self._end == 0:
            self._file.write(self._head)
            self._end = len(self._head)

    def _read_back(self, path: str | os.PathLike[str], head: dict[str, str]) -> None:
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
        self._file.truncate(at)
        self._known.extend(sorted(places))
        self._places.extend(places[key] for key in self._known)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            self._file.close()
        except OSError as error:  # which a write has met before
            if kind is None:
                raise self._unwritten(error) from error

    def append(self, line: bytes) -> int:
        """Add a line; return its place."""
        at = self._end
        try:
            self._end += self._file.write(b"%b %b" % (self._digest(line), line))
        except OSError as error:
            raise self._unwritten(error) from error
        return at

    def _flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            raise self._unwritten(error) from error

    def _unwritten(self, error: OSError) -> FileWriteError:
        where = f"The journal {self._file.name}" if self._kept else f"A temporary file in {tempfile.gettempdir()}"
        where += f" can't be written: {error.strerror}. Free some space, or "
        return FileWriteError(where + ("choose another path." if self._kept else "set TMPDIR to another folder."))

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


def _read_head(line: bytes) -> dict[str, Any] | None:
    """Return what a journal says of its scan in the first line; None if it is not a journal's."""
    try:
        head = json.loads(line)
    except ValueError:
        return None
    is_head = isinstance(head, dict) and head.get("ftkit") == "scan" and {"root", "version"} <= head.keys()
    return head if is_head else None
