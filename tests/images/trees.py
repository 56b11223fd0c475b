"""Data sets of empty files, and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ftkit._images.folders import Folder
from ftkit._images.layout import Layout


def found(root: Path, *folders: str, splits: dict[str, str] | None = None) -> Layout:
    """Return the layout of a data set with these folders."""
    for name in folders:
        (root / name).mkdir(parents=True)
    folder = Folder(str(root))
    return Layout.find(folder.tops(), folder, splits)


def laid(root: Path, *files: str) -> Layout:
    """Return the layout of a data set with these files, empty unless they are there."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    folder = Folder(str(root))
    return Layout.find(folder.tops(), folder, None)


def classes(root: Path, *files: str) -> list[str]:
    """Return the classes of the images among these files."""
    layout = laid(root, *files)
    places = (layout.place(path) for path in files if path.endswith(("jpg", "png")))
    return sorted({"/".join(filter(None, (place.folder, place.label))) for place in places})


def several(*folders: str, names: Sequence[object] = range(20), suffix: str = "jpg") -> list[str]:
    """Return the paths of files with the same names in some folders."""
    return [f"{folder}/{name}.{suffix}" for folder in folders for name in names]
