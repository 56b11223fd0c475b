"""Paths in an archive: they only lead down, and the disk can store them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Final

from ftkit._archives.members import refused

UNWRITABLE_NAME: Final = "has a name that this system can't store"
_ABSOLUTE: Final = re.compile(r"/|[A-Za-z]:")  # a root or a drive
_DEEPEST: Final = 256  # an eighth of the folders that PATH_MAX of Linux has room for: more are a trap, not a data set
# Of Windows: "Naming Files, Paths, and Namespaces" in its documentation of file systems.
_FORBIDDEN: Final = re.compile(
    r'[<>:"|?*\x00-\x1f]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)' if sys.platform == "win32" else r"\0",
    re.IGNORECASE,
)
RECORD_NAME: Final = ".ftkit-unpacked"
"""The file that records what a folder was unpacked from, where an attribute of the folder can't."""
_JUNK: Final = {junk.lower(): junk for junk in ("__MACOSX", ".DS_Store", "Thumbs.db", RECORD_NAME)}

# What must not be true of a path and its parts, and the error if it is; the first counts.
_RULES: Final[tuple[tuple[Callable[[str, list[str]], object], str], ...]] = (
    (
        lambda path, _: is_absolute(path),
        "has an absolute path; only paths below the archive's own folder are unpacked",
    ),
    (lambda _, parts: ".." in parts, "climbs out of its folder with '..'"),
    (lambda _, parts: len(parts) > _DEEPEST, f"is more than {_DEEPEST} folders deep"),
    (lambda _, parts: any(map(_FORBIDDEN.search, parts)), UNWRITABLE_NAME),
)


def split_path(path: str, member: str | None = None) -> list[str]:
    """Split ``path`` into its parts, or raise in the name of ``member`` if it leads anywhere but down."""
    name = path if member is None else member
    path = path.replace("\\", "/")  # old Windows tools write backslashes between folders
    parts = [part for part in path.split("/") if part not in ("", ".")]
    for is_wrong, why in _RULES:
        if is_wrong(path, parts):
            raise refused(name, why)
    return parts


def is_absolute(path: str) -> bool:
    """Return whether a path starts at a root or a drive."""
    return _ABSOLUTE.match(path) is not None


def junk_in(parts: list[str]) -> str | None:
    """Return the system file or folder, or ftkit's own, that is in a path; None for what is the user's."""
    return next((_JUNK[part.lower()] for part in parts if part.lower() in _JUNK), None)
