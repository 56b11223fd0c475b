"""The journal of a scan: every verdict, on disk instead of in memory, and there when the scan goes on."""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from bisect import bisect_left
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

from ftkit import __version__
from ftkit._images.findings import KINDS
from ftkit._images.folders import Folder
from ftkit._images.verdict import Verdict, read_line
from ftkit.errors import FtkitError


class Journal:
    """Lines of JSON, ``[path, verdict]`` for each file; memory holds their places only.

    The first line says what was scanned. A line that a killed scan left unfinished is cut off.
    """

    def __init__(self, path: str | os.PathLike[str] | None, folder: Folder) -> None:
        self._folder = folder
        self._kept = path is not None
        # Hashes of the paths that are known, sorted, and the places of their lines.
        self._known, self._places = array("q"), array("q")
        head = {"ftkit": "scan", "version": __version__, "root": folder.place}
        if path is None:
            self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        else:
            if folder.holds(path):
                raise FtkitError(f"The journal {path} would lie among the images. Choose a path outside {folder.name}.")
            self._file = Path(path).open("a+b")  # noqa: SIM115
            try:
                self._read_back(path, head)
            except BaseException:
                self._file.close()
                raise
        self._end = self._file.seek(0, os.SEEK_END)
        if self._end == 0:
            self.append(json.dumps(head).encode() + b"\n")

    def _read_back(self, path: str | os.PathLike[str], head: dict[str, str]) -> None:
        self._file.seek(0)
        first = self._file.readline()
        if not first:
            return
        found = _read_head(first)
        if found != head:
            what = f"the scan of {found['root']} by ftkit {found['version']}" if found else "something else"
            raise FtkitError(
                f"{path} holds {what}, not a scan of {head['root']} by ftkit {head['version']}. "
                f"Give another path, or move the file away."
            )
        at, places = len(first), {}
        for line in self._file:
            if not line.endswith(b"\n"):
                self._file.truncate(at)
                break
            places[hash(json.loads(line)[0])] = at
            at += len(line)
        self._known.extend(sorted(places))
        self._places.extend(places[key] for key in self._known)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def append(self, line: bytes) -> int:
        """Add a line; return its place."""
        at = self._end
        self._file.write(line)
        self._end += len(line)
        return at

    def flush(self) -> None:
        """Hand what was added to the system, so that it outlives this process."""
        if self._kept:
            self._file.flush()

    def read(self, at: int) -> tuple[str, Verdict]:
        """Return the path and the verdict that stand at a place."""
        return read_line(self._line(at))

    def _line(self, at: int) -> bytes:
        self._file.flush()
        self._file.seek(at)
        return self._file.readline()

    def recall(self, path: str) -> tuple[bytes, int] | None:
        """Return the line on a file and its place, when the file has not changed since it was written."""
        key = hash(path)
        index = bisect_left(self._known, key)
        if index == len(self._known) or self._known[index] != key:
            return None
        line = self._line(self._places[index])
        known, verdict = read_line(line)
        is_transient = any(KINDS[note.kind].transient for note in verdict.notes)
        with suppress(OSError):
            if known == path and not is_transient and verdict.stamp == self._folder.stamp(path):
                return line, self._places[index]
        return None


def _read_head(line: bytes) -> dict[str, Any] | None:
    """Return what a journal says of its scan in the first line; None if it is none's."""
    try:
        head = json.loads(line)
    except ValueError:
        return None
    is_head = isinstance(head, dict) and head.get("ftkit") == "scan" and {"root", "version"} <= head.keys()
    return head if is_head else None
