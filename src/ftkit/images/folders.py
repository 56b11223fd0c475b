"""The way through a folder: which files to look at, and which folders are splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ftkit.errors import FtkitError, did_you_mean

__all__ = ["LITTER_FOLDERS", "find_splits", "walk"]

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


def walk(root: str, note: Callable[[str, str, str], None], enter: Callable[[str], None]) -> Iterator[str]:
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
            elif littered or is_litter(lower):
                note(path, "litter", f"left behind by {_who(lower)}")
            else:
                yield path
        pending.extend(reversed(inside))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_litter(name: str) -> bool:
    """Whether a file of this name (in lower case) is a system's or tool's own."""
    return name in _LITTER_NAMES or name.startswith(("._", "~$"))


def _who(name: str) -> str:
    if name.startswith(("thumbs", "ehthumbs", "desktop.ini")):
        return "Windows"
    return "macOS" if name.startswith(("._", ".ds_store", ".localized")) else "a system or tool"
