"""Which folders of a data set are splits and which are classes, as torchvision's ImageFolder takes them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ftkit._arguments import strings
from ftkit.errors import FtkitError, did_you_mean

_SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test",
}  # fmt: skip


class Place(NamedTuple):
    """Where a file lies: the split's folder and name, the class (each empty if there is none), the rest of the path."""

    folder: str
    split: str
    label: str
    rest: str


@dataclass(frozen=True, slots=True)
class Layout:
    """The splits of a data set: each one's folder, relative to the root, with the split's name."""

    splits: Mapping[str, str]

    @classmethod
    def find(cls, tops: Sequence[str], root: str, splits: Sequence[str] | Mapping[str, str] | None) -> Layout:
        """Return the layout that `scan_images` is given by ``splits``, or else that the folders' names suggest.

        Args:
            tops: The names of the folders right below ``root``.
            root: What the error calls it.
            splits: As for `scan_images`.
        """
        if splits is None:
            return cls({name: _SPLITS[name.lower()] for name in sorted(tops) if name.lower() in _SPLITS})
        named = splits if isinstance(splits, Mapping) else {name: name for name in strings("splits", splits, "folders")}
        strings("splits", [*named, *named.values()], "folders")
        layout = cls({name.replace(os.sep, "/").strip("/"): split for name, split in named.items()})
        for name in layout.splits:
            if name.partition("/")[0] not in tops:
                hint = did_you_mean(name, tops)
                raise FtkitError(f"There is no folder {name!r} in {root!r} to be a split.{hint} splits= takes folders.")
        return layout

    def place(self, path: str) -> Place:
        """Return where a path relative to the root lies.

        Example:
            >>> from ftkit._images.layout import Layout
            >>> layout = Layout({"train": "train"})
            >>> layout.place("train/cat/a/1.jpg")
            Place(folder='train', split='train', label='cat', rest='a/1.jpg')
        """
        folder = next((folder for folder in self.splits if path.startswith(folder + "/")), "")
        label, slash, rest = path.removeprefix(folder + "/" if folder else "").partition("/")
        return Place(folder, self.splits.get(folder, ""), *((label, rest) if slash else ("", label)))
