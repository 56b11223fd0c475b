"""The manifest of a quarantine: what moved, and from where. It may be an untrusted source's: nothing is believed."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple, Self

from ftkit._files import atomic_write
from ftkit._wording import cause
from ftkit.errors import FtkitError, did_you_mean

_VERSION = 1
#: What tells the page beside a manifest from others.
PAGE_MARK = "ftkit quarantine"
_JUNCTION = 0xA0000003  # what links folders on Windows, beside links


class Entry(NamedTuple):
    """What a manifest says of a file or link that moves, or of a folder that is taken away."""

    path: str
    type: str
    kinds: list[str]
    mtime: int = 0
    mode: int = 0o777

    @property
    def is_folder(self) -> bool:
        """Whether it is of a folder."""
        return self.type == "folder"

    @classmethod
    def of(cls, root: Path, path: str, kinds: list[str]) -> Self:
        """Return what is to be said of a path below ``root``."""
        status = (root / path).lstat()
        return cls(path, _type(status), kinds, status.st_mtime_ns, stat.S_IMODE(status.st_mode))

    def describes(self, place: Path) -> bool:
        """Whether what stands at a place is a file, a link or a folder, as this says."""
        return _type(place.lstat()) == self.type

    def is_sound(self) -> bool:
        """Whether its fields are such as `of` makes them."""
        return (
            names_inside(self.path)
            and self.type in ("file", "link", "folder")
            and type(self.kinds) is list
            and all(type(kind) is str for kind in self.kinds)
            and type(self.mtime) is type(self.mode) is int
            and 0 <= self.mode <= 0o7777
        )


def _type(status: os.stat_result) -> str:
    return {stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}.get(stat.S_IFMT(status.st_mode), "file")


class Manifest(NamedTuple):
    """A manifest as it was read: in form it is one, and no path in it leads out of its folder.

    Attributes:
        path: The file.
        root: The data set's folder, as it says.
        inode: The number that the file system had for that folder; 0 if it is not known.
        folder: Where the files are now.
        entries: What moved.
    """

    path: Path
    root: Path
    inode: int
    folder: Path
    entries: Sequence[Entry]

    def write(self) -> None:
        """Write the file."""
        facts = {"ftkit": "quarantine", "version": _VERSION, "root": str(self.root), "inode": self.inode}
        entries = [entry._asdict() for entry in self.entries]
        with atomic_write(self.path) as file:
            file.write(json.dumps({**facts, "folder": self.folder.name, "entries": entries}, indent=1).encode())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read one.

        Raises:
            FtkitError: There is none, or it asks for what no quarantine of ours wrote.
        """
        try:
            data = path.read_bytes() if stat.S_ISREG(path.stat().st_mode) else None
        except (FileNotFoundError, NotADirectoryError, ValueError):
            data = None
        except OSError as error:
            raise FtkitError(f"Can't read the manifest {path}: {error.strerror}. Nothing was moved.") from error
        if data is None:
            hint = hint_beside(path) or " Pass the .manifest of what quarantine() returned."
            raise FtkitError(f"There is no manifest at {path}.{hint}")
        try:
            root, inode, folder, entries = _facts(json.loads(data))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise FtkitError(
                f"{path} is not a quarantine manifest ({cause(error)}). Nothing was moved.{hint_beside(path)}"
            ) from error
        place = Path(os.path.realpath(path))
        return cls(place, Path(root), inode, place.parent / folder, entries)


def is_page(path: Path) -> bool:
    """Whether a file is the page that a quarantine writes beside its manifest."""
    try:
        with path.open("rb") as file:
            return PAGE_MARK.encode() in file.read(1024)
    except OSError:
        return False


def hint_beside(path: Path) -> str:
    """Return the name of the manifest that goes with a path: its page, the folder with its files, or a misspelling."""
    number = path.stem.removeprefix("files").removeprefix("manifest")
    mate = path.with_name(f"manifest{number}.json")
    with suppress(OSError, ValueError):  # what can't be a path
        if mate != path and mate.is_file():
            return f" Did you mean {str(mate)!r}?"
        return did_you_mean(str(path), (str(other) for other in path.parent.glob("manifest*.json") if other != path))
    return ""


def _facts(facts: Any) -> tuple[str, int, str, list[Entry]]:
    """Return what a manifest says, or raise what tells why it can't be one."""
    if facts["ftkit"] != "quarantine" or facts["version"] != _VERSION:
        raise ValueError(f"of another kind or version: {facts['ftkit']!r}, {facts['version']!r}")
    root, inode, folder = facts["root"], facts.get("inode", 0), facts["folder"]
    if type(root) is not str or "\0" in root or type(inode) is not int:
        raise ValueError(f"root is {root!r}")
    if not (PurePosixPath(root).is_absolute() or PureWindowsPath(root).is_absolute()):  # of whatever system
        raise ValueError(f"root is {root!r}")
    os.fsencode(root)
    if not names_inside(folder) or PureWindowsPath(folder).name != folder:
        raise ValueError(f"folder is {folder!r}")
    if type(facts["entries"]) is not list:
        raise ValueError("entries is not a list")
    entries = [Entry(**entry) for entry in facts["entries"]]
    for entry in entries:
        if not entry.is_sound():
            raise ValueError(f"an entry that no quarantine writes: {str(entry)[:200]}")
    places = [PurePath(entry.path) for entry in entries]
    files = {place for place, entry in zip(places, entries, strict=True) if not entry.is_folder}
    if len(set(places)) < len(places) or any(not files.isdisjoint(place.parents) for place in places):
        raise ValueError("an entry is repeated, or is below a file")
    return root, inode, folder, entries


def names_inside(path: object) -> bool:
    r"""Whether a path names something below a folder, by the rules of every system.

    Example:
        >>> from ftkit._images.manifest import names_inside
        >>> [names_inside(path) for path in ("cat/1.jpg", "../1.jpg", r"..\1.jpg", "/1.jpg", "C:1.jpg")]
        [True, False, False, False, False]
    """
    if type(path) is not str or "\0" in path:
        return False
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    readings = PurePosixPath(path), PureWindowsPath(path)
    return all(reading.parts and not reading.anchor and ".." not in reading.parts for reading in readings)


def obstacle(root: Path, path: str) -> str:
    """Return what keeps a path from lying where it says, truly below ``root``; nothing if nothing does.

    Args:
        root: A folder, by its real path.
        path: Relative to it.
    """
    for parent in reversed(PurePath(path).parents[:-1]):
        try:
            status = (root / parent).lstat()
        except OSError:  # nothing there; if it is something else, moving will tell
            return ""
        if stat.S_ISLNK(status.st_mode) or getattr(status, "st_reparse_tag", 0) == _JUNCTION:
            return f"{parent} is a link"
        if not stat.S_ISDIR(status.st_mode):
            return f"{parent} is not a folder"
    return ""
