"""The journal of a scan: every answer of the workers, on disk instead of in memory."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import IO, Any, Self

__all__ = ["Journal"]


class Journal:
    """Lines of JSON, one a file, to which memory holds places only, and from which a stopped scan goes on.

    A line is the path, relative to the root, a tab, and the worker's verdict.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self._file: IO[bytes] = Path(path).open("a+b") if path else tempfile.TemporaryFile()  # noqa: SIM115
        self._end = self._file.seek(0, os.SEEK_END)

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

    def read(self, at: int) -> tuple[str, list[Any]]:
        """Return the path and the verdict that stand at a place."""
        self._file.flush()
        self._file.seek(at)
        return parse(self._file.readline())


def parse(line: bytes) -> tuple[str, list[Any]]:
    """Take a line apart into path and verdict."""
    path, _, verdict = line.partition(b"\t")
    return json.loads(path), json.loads(verdict)
