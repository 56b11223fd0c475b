"""The journal of a scan: every verdict, on disk instead of in memory, and there when the scan goes on."""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from bisect import bisect_left
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from ftkit import __version__
from ftkit.errors import FtkitError

if TYPE_CHECKING:
    from ftkit._images.folders import LocalFolder, RemoteFolder

__all__ = ["Journal"]

# What may be otherwise at the next try.
_PASSING = frozenset(("crash", "out_of_memory", "timeout", "unreadable", "vanished"))


class Journal:
    """Lines of JSON, ``[path, verdict]`` for each file; memory holds their places only.

    The first line says what was scanned. A line that a killed scan left unfinished is cut off.
    """

    def __init__(self, path: str | os.PathLike[str] | None, folder: LocalFolder | RemoteFolder) -> None:
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
        try:
            found = json.loads(first)
        except ValueError:
            found = None
        if found != head:
            what = f"the scan of {found['root']} by ftkit {found['version']}" if _is_head(found) else "something else"
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
        for key in sorted(places):
            self._known.append(key)
            self._places.append(places[key])

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

    def read(self, at: int) -> tuple[str, list[Any]]:
        """Return the path and the verdict that stand at a place."""
        return self._parse(self._line(at))

    def _line(self, at: int) -> bytes:
        self._file.flush()
        self._file.seek(at)
        return self._file.readline()

    @staticmethod
    def _parse(line: bytes) -> tuple[str, list[Any]]:
        path, verdict = json.loads(line)
        return path, verdict

    def recall(self, path: str) -> tuple[bytes, int] | None:
        """Return the line on a file and its place, when the file has not changed since it was written."""
        key = hash(path)
        index = bisect_left(self._known, key)
        if index == len(self._known) or self._known[index] != key:
            return None
        line = self._line(self._places[index])
        known, (notes, stamp, *_) = self._parse(line)
        if known != path or any(note[0] in _PASSING for note in notes):
            return None
        try:
            same = stamp == self._folder.stamp(path)
        except OSError:
            same = False
        return (line, self._places[index]) if same else None


def _is_head(found: object) -> bool:
    return isinstance(found, dict) and found.get("ftkit") == "scan" and {"root", "version"} <= found.keys()
