"""Which folders of a data set are splits and which are classes, as torchvision's ImageFolder takes them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple
from unicodedata import normalize

from ftkit._arguments import strings
from ftkit._images.suffixes import may_be_class
from ftkit._images.verdict import Note
from ftkit._wording import plural
from ftkit.errors import FtkitError, did_you_mean

_SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test",
}  # fmt: skip
# A split's name may go on: train2017, training_set, test-images.
_SPLIT_NAME = re.compile(rf"({'|'.join(_SPLITS)})([_ -]?(set|data|images|imgs))?[_ -]?[0-9]{{0,4}}")
_IMAGE_FOLDERS = frozenset(("images", "imgs", "jpegimages"))
# Beside them, or in each split: what tells of the images, as in the layouts of YOLO, COCO and Pascal VOC. No classes.
_LABEL_FOLDERS = frozenset(("labels", "annotations", "masks", "imagesets", "segmentationclass", "segmentationobject"))
_NO_CLASSES = _IMAGE_FOLDERS | _LABEL_FOLDERS
_NAMED = 5  # folders in a detail


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
    def find(
        cls,
        tops: Sequence[str],
        root: str,
        splits: Sequence[str] | Mapping[str, str] | None,
        below: Callable[[str], Sequence[str]] = lambda _: (),
    ) -> Layout:
        """Return the layout that `scan_images` is given by ``splits``, or else that the folders' names suggest.

        Args:
            tops: The names of the folders right below ``root``.
            root: What the error calls it.
            splits: As for `scan_images`.
            below: Returns the names of the folders in a folder.
        """
        if splits is None:
            found = _splits_among(sorted(tops), below)
            inside = (
                _splits_among([f"{top}/{name}" for name in below(top)], below)
                for top in sorted(tops)
                if top.lower() in _NO_CLASSES
            )
            return cls(found or dict(chain.from_iterable(map(dict.items, inside))))
        named = splits if isinstance(splits, Mapping) else {name: name for name in strings("splits", splits, "folders")}
        strings("splits", [*named, *named.values()], "folders")
        layout = cls({name.replace(os.sep, "/").strip("/"): split for name, split in named.items()})
        for name in layout.splits:
            if name.partition("/")[0] not in tops:
                hint = did_you_mean(name, tops)
                raise FtkitError(f"splits= names {name!r}, but {root!r} has no such folder.{hint} Pass folders in it.")
        return layout

    @property
    def of_images(self) -> dict[str, str]:
        """The splits without those of labels and masks."""
        return {path: split for path, split in self.splits.items() if path.split("/")[0].lower() not in _LABEL_FOLDERS}

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
        if label.lower() in _NO_CLASSES:
            label, rest = "", f"{label}/{rest}" if slash else label
            slash = "/"
        return Place(folder, self.splits.get(folder, ""), *((label, rest) if slash else ("", label)))


def _splits_among(folders: Sequence[str], below: Callable[[str], Sequence[str]]) -> dict[str, str]:
    """Return which of the folders next to each other are splits.

    "train" is a class, too, of Pascal VOC and COCO: alone among other folders, a split has class folders.
    """
    names = {folder: folder.rpartition("/")[2] for folder in folders}
    found = {folder: split for folder, name in names.items() if (split := _split(name))}
    others = [n for f, n in names.items() if f not in found and n.lower() not in _NO_CLASSES and may_be_class(n)]
    is_split = not others or len(set(found.values())) > 1 or any(map(may_be_class, chain(*map(below, found))))
    return found if is_split else {}


def _split(name: str) -> str:
    found = _SPLIT_NAME.fullmatch(name.lower())
    return _SPLITS[found[1]] if found else ""


def _folded(name: str) -> str:
    """Return what is the same for names that are one to some system: case does not count, nor how an é is encoded."""
    return normalize("NFC", name).casefold()


class Arrangement:
    """Where the images of a data set lie, to tell what ImageFolder would make of it."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        #: Images by the split's folder, and the two folders below that.
        self._images: Counter[tuple[str, str, str]] = Counter()

    def add(self, path: str, folder: str) -> None:
        """Take in an image, in the folder of its split."""
        first, second, *_ = [*path.removeprefix(folder).strip("/").split("/")[:-1], "", ""]
        self._images[folder, first, second] += 1

    def notes(self, prefix: str) -> Iterator[tuple[str, Note]]:
        """Yield what ImageFolder would stumble over, by the folder's path; ``prefix`` makes one that opens."""
        for split in self._layout.splits or ("",):
            inside = {key[1:]: count for key, count in self._images.items() if key[0] == split}
            yield from self._in_split(f"{split}/" if split else "", inside, prefix)

    @staticmethod
    def _in_split(split: str, inside: Mapping[tuple[str, str], int], prefix: str) -> Iterator[tuple[str, Note]]:
        loose, names = inside.get(("", ""), 0), sorted({first for first, _ in inside} - {""})
        if loose and names:
            detail = f"{plural(loose, 'image')} next to {plural(len(names), 'class folder')}"
            yield split, Note("beside_classes", detail)
        elif loose:
            yield split, Note("flat", f"{plural(loose, 'image')}, and no class folders")
        for name in names:
            if name.startswith("."):
                yield split + name, Note("hidden_class", "a hidden folder that contains images")
        twins = Counter(map(_folded, names))
        for name in names:
            if twins[_folded(name)] > 1:
                others = [other for other in names if _folded(other) == _folded(name) and other != name]
                in_case = all(other.casefold() == name.casefold() for other in others)
                how = "in case" if in_case else "in case, or in how accents are encoded"
                yield split + name, Note("class_twins", f"differs from {', '.join(map(repr, others))} only {how}")
        deeper = sorted(second for _, second in inside)
        if len(names) == 1 and not loose and len(deeper) > 1 and "" not in deeper:
            folders = ", ".join(map(repr, deeper[:_NAMED]))
            yield split + names[0], Note("classes_deeper", f"it has {folders}; did you mean {prefix}{split}{names[0]}?")
