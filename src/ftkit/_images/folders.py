"""Folders, here or behind a URL: which files to look at, how to read them, and which folders are splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from ftkit._images.workers import check_batch, run_jobs, verdict_of, write_line
from ftkit.errors import FtkitError, did_you_mean

__all__ = ["LITTER_FOLDERS", "LocalFolder", "RemoteFolder", "Stamp", "find_splits", "open_folder", "read_bytes"]

_LITTER_NAMES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store", ".directory", ".localized"))
LITTER_FOLDERS = frozenset(("__macosx", ".ipynb_checkpoints", "@eadir", ".trashes", ".spotlight-v100", ".fseventsd"))
_SKIPPED_FOLDERS = frozenset((".git", ".hg", ".svn", ".dvc"))
_SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test",
}  # fmt: skip


def find_splits(tops: Sequence[str], root: str, splits: Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    """Return the folders that are splits, relative to ``root``, with the splits' names.

    Args:
        tops: The names of the folders right below ``root``.
        root: What the error calls it.
        splits: As for `scan_images`.
    """
    if splits is None:
        return {name: _SPLITS[name.lower()] for name in sorted(tops) if name.lower() in _SPLITS}
    named = dict(splits) if isinstance(splits, Mapping) else {name: name for name in splits}
    named = {name.replace(os.sep, "/").strip("/"): split for name, split in named.items()}
    for name in named:
        if name.partition("/")[0] not in tops:
            hint = did_you_mean(name, tops)
            raise FtkitError(f"There is no folder {name!r} in {root!r} to be a split.{hint} splits= takes folders.")
    return named


Note: TypeAlias = Callable[[str, str, str], None]
#: What tells whether a file has changed.
Stamp: TypeAlias = list[Any]


class LocalFolder:
    """A folder of this machine, and of those that the executor's workers run on.

    Attributes:
        name: What the caller calls it.
        prefix: What turns a path relative to it into one that opens as it stands.
        place: The same folder by whatever name.
    """

    def __init__(self, name: str) -> None:
        if not Path(name).is_dir():
            raise FtkitError(f"{name!r} is no folder. Give the folder that the class or split folders lie in.")
        self.name = name
        self.prefix: str = name if name.endswith(("/", os.sep)) else name + os.sep
        self._root = Path(name).absolute()
        self.place: str = str(self._root)

    def tops(self) -> list[str]:
        """Return the names of the folders right below."""
        return [path.name for path in self._root.iterdir() if path.is_dir()]

    def holds(self, path: str | os.PathLike[str]) -> bool:
        """Whether a path lies in it."""
        return Path(path).resolve().is_relative_to(self._root.resolve())

    def walk(self, note: Note, enter: Callable[[str], None]) -> Iterator[str]:
        """Yield the files to check; see `_walk`."""
        return _walk(str(self._root), note, enter)

    def task(self, paths: list[str], timeout: float) -> tuple[Any, ...]:
        """Return what an executor is to call, and with what."""
        return check_batch, str(self._root), paths, timeout

    def stamp(self, path: str) -> Stamp:
        """Return the state of a file that a journal remembers."""
        status = (self._root / path).stat()
        return [status.st_size, status.st_mtime_ns]


class RemoteFolder:
    """A folder behind a URL that fsspec knows. The task reads a file's bytes, the worker process gets them."""

    def __init__(self, url: str) -> None:
        self.name = url
        self.prefix: str = url.rstrip("/") + "/"
        self._files, self._root = _open_remote(url)
        self.place: str = self.prefix
        if not self._files.isdir(self._root):
            raise FtkitError(f"{url!r} is no folder. Give the folder that the class or split folders lie in.")

    def tops(self) -> list[str]:
        """Return the names of the folders right below."""
        return [
            entry["name"].rstrip("/").rpartition("/")[2]
            for entry in self._files.ls(self._root, detail=True)
            if entry["type"] == "directory"
        ]

    def holds(self, path: str | os.PathLike[str]) -> bool:  # noqa: ARG002  (none does)
        """Whether a local path lies in it."""
        return False

    def walk(self, note: Note, enter: Callable[[str], None]) -> Iterator[str]:
        """Yield the files to check, relative to the root."""
        for place, folders, files in self._files.walk(self._root):
            folder = place[len(self._root) :].strip("/")
            enter(folder)
            folders[:] = sorted(name for name in folders if name.lower() not in _SKIPPED_FOLDERS)
            littered = any(part.lower() in LITTER_FOLDERS for part in folder.split("/"))
            if not folders and not files and folder:
                note(folder, "empty_folder", "no file in it")
            for name in sorted(files):
                path = f"{folder}/{name}" if folder else name
                if littered or _is_litter(name.lower()):
                    note(path, "litter", f"left behind by {_who(name.lower())}")
                elif name:
                    yield path

    def task(self, paths: list[str], timeout: float) -> tuple[Any, ...]:
        """Return what an executor is to call, and with what."""
        return _check_remote, self.name, paths, timeout

    def stamp(self, path: str) -> Stamp:
        """Return the state of a file that a journal remembers."""
        return [self._files.ukey(f"{self._root}/{path}")]


def _open_remote(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs  # type: ignore[import-not-found, import-untyped, unused-ignore]  # an extra
    except ImportError as error:
        raise FtkitError(f"{url!r} needs fsspec and its plug-in for the protocol: pip install fsspec.") from error
    try:
        files, root = url_to_fs(url)
    except (ImportError, ValueError) as error:  # the plug-in is missing, or nobody knows the protocol
        raise FtkitError(f"fsspec can't open {url!r}: {error}") from error
    return files, root.rstrip("/")


def read_bytes(url: str) -> bytes | None:
    """Return the content of a file behind a URL; None when it can't be read any more."""
    files, place = _open_remote(url)
    try:
        data: bytes = files.cat_file(place)
    except OSError:
        return None
    return data


def _check_remote(url: str, paths: Sequence[str], timeout: float) -> list[bytes]:
    """Read and check the files, one after the other: a few of them are in memory at a time."""
    files, root = _open_remote(url)
    lines = []
    for path in paths:
        place = f"{root}/{path}"
        try:
            stamp, data = [files.ukey(place)], files.cat_file(place)
        except OSError as error:
            kind = "vanished" if isinstance(error, FileNotFoundError) else "unreadable"
            lines.append(write_line(path, [[[kind, str(error)]], [], "", None, None]))
            continue
        ((_, answer),) = run_jobs([["check", path]], timeout, [data])
        lines.append(write_line(path, verdict_of(answer, stamp)))
    return lines


def open_folder(root: str | os.PathLike[str]) -> LocalFolder | RemoteFolder:
    """Return the folder that a path or URL stands for."""
    name = os.fspath(root)
    return RemoteFolder(name) if "://" in name else LocalFolder(name)


def _walk(root: str, note: Note, enter: Callable[[str], None]) -> Iterator[str]:
    """Yield the files to check, relative to ``root`` and in order.

    Args:
        root: The folder.
        note: Called with path, kind and detail for what needs no look inside.
        enter: Called with each folder.
    """
    pending = [("", False, frozenset[tuple[int, int]]())]
    visits: Counter[tuple[int, int]] = Counter()
    while pending:
        folder, littered, above = pending.pop()
        place = Path(root, folder)
        try:
            status = place.stat()
            me = (status.st_dev, status.st_ino)
            visits[me] += 1
            # The second test bounds folders that link to each other in many ways.
            if status.st_ino and (me in above or visits[me] > 16):
                note(folder, "link_loop", f"leads back to {place.resolve()}")
                continue
            with os.scandir(place) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            note(folder, "unreadable", f"{error.strerror}: nothing in this folder was looked at")
            continue
        enter(folder)
        if not entries and folder:
            note(folder, "empty_folder", "no file in it")
        inside = []
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            lower = entry.name.lower()
            if _is_folder(entry):
                if lower in _SKIPPED_FOLDERS:
                    continue
                if lower.endswith((".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")):
                    note(path, "folder_named_image", "a folder with the suffix of an image")
                inside.append((path, littered or lower in LITTER_FOLDERS, above | {me}))
            elif littered or _is_litter(lower):
                note(path, "litter", f"left behind by {_who(lower)}")
            else:
                yield path
        pending.extend(reversed(inside))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_litter(name: str) -> bool:
    """Whether a file of this name (in lower case) is a system's or tool's own."""
    return name in _LITTER_NAMES or name.startswith(("._", "~$"))


def _who(name: str) -> str:
    if name.startswith(("thumbs", "ehthumbs", "desktop.ini")):
        return "Windows"
    return "macOS" if name.startswith(("._", ".ds_store", ".localized")) else "a system or tool"
