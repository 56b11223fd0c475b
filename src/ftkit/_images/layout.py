"""Which folders of a data set are splits and which are classes, as torchvision's ImageFolder takes them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from posixpath import join, splitext
from typing import NamedTuple, Protocol
from unicodedata import normalize

from ftkit._arguments import strings
from ftkit._images.suffixes import IMAGE_SUFFIXES, may_be_class, suffix_of
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
# What a mask may have after its image's name.
_MASK_END = re.compile(r"[_-](masks?|labels?|seg|gt)$", re.IGNORECASE)
_DEPTH = 3  # of folders in a class, down to its images
_SAMPLE = 16  # names in a folder that tell what it is
_MOST_OTHERS = 100  # folders in which such names are looked for
_NAMED = 5  # folders in a detail


class Listing(Protocol):
    """The data set's folder, as far as it tells what the folders in it are; paths are relative to it."""

    name: str

    def tops(self, inside: str = "") -> list[str]:
        """Return the names of the folders right below, or below one of them."""

    def peek(self, inside: str) -> list[str]:
        """Return the first few names in a folder, those of folders with a slash."""

    def among(self, inside: str, names: Collection[str]) -> set[str]:
        """Return which of some names are in a folder."""


class Place(NamedTuple):
    """Where a file lies: the split's folder and name, the class (each empty if there is none), the rest of the path."""

    folder: str
    split: str
    label: str
    rest: str


@dataclass(frozen=True, slots=True)
class Layout:
    """The splits and classes of a data set.

    Attributes:
        splits: Each one's folder, relative to the root, with the split's name.
        classes: What is a class whatever its name says, by the name: "masks" beside "gloves".
    """

    splits: Mapping[str, str]
    classes: Collection[str] = ()

    @classmethod
    def find(cls, tops: Sequence[str], folder: Listing, splits: Sequence[str] | Mapping[str, str] | None) -> Layout:
        """Return the layout that `scan_images` is given by ``splits``, or else that the folders suggest.

        Args:
            tops: The names of the folders right below ``folder``.
            folder: The data set's folder.
            splits: As for `scan_images`.
        """
        if splits is None:
            found = _splits_among(sorted(tops), folder.tops)
            if not found:
                classes = _classes_among("", tops, folder)
                for top in sorted(tops):
                    if top.lower() in _NO_CLASSES and top not in classes:
                        found |= _splits_among([f"{top}/{name}" for name in folder.tops(top)], folder.tops)
                if not found:
                    return cls({}, classes)
            return cls(found, _classes_in(found, folder))
        named = splits if isinstance(splits, Mapping) else {name: name for name in strings("splits", splits, "folders")}
        strings("splits", [*named, *named.values()], "folders")
        found = {name.replace(os.sep, "/").strip("/"): split for name, split in named.items()}
        for name in found:
            if name.partition("/")[0] not in tops:
                hint = did_you_mean(name, tops)
                raise FtkitError(
                    f"splits= names {name!r}, but {folder.name!r} has no such folder.{hint} Pass folders in it."
                )
        return cls(found, _classes_in(found, folder))

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
        is_class = label in self.classes and bool(folder or not self.splits)
        if label.lower() in _NO_CLASSES and not is_class:
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


def _classes_in(splits: Iterable[str], folder: Listing) -> set[str]:
    """Return which folders are classes in one of the splits, though they are called as what tells of images is."""
    return set().union(
        *(
            _classes_among(split, folder.tops(split), folder)
            for split in splits
            if any(name.endswith("/") for name in folder.peek(split))
        )
    )


def _classes_among(inside: str, names: Sequence[str], folder: Listing) -> set[str]:
    """Return which of all the folders in a folder are classes, though they are called as what tells of images is.

    Those are that contain images and are next to classes by other names, unless they go with the images of these.
    """
    doubtful = [name for name in names if name.lower() in _NO_CLASSES]
    others = [join(inside, name) for name in names if name not in doubtful and may_be_class(name)] if doubtful else []
    others = list(islice((other for other in others if _has_images(other, folder)), _MOST_OTHERS))
    if not others:
        return set()
    known = [join(inside, name) for name in doubtful]
    return {
        name
        for name, path in zip(doubtful, known, strict=True)
        if _has_images(path, folder) and not _goes_with(path, others, [one for one in known if one != path], folder)
    }


def _has_images(path: str, folder: Listing, depth: int = _DEPTH) -> bool:
    names = folder.peek(path)
    if any(suffix_of(name) in IMAGE_SUFFIXES for name in names):
        return True
    inner = [name.rstrip("/") for name in names if name.endswith("/")][:_DEPTH] if depth else []
    return any(_has_images(join(path, name), folder, depth - 1) for name in inner)


def _goes_with(path: str, others: Sequence[str], known: Sequence[str], folder: Listing, depth: int = _DEPTH) -> bool:
    """Whether a folder's contents go with those of others beside it by their names, as masks go with images.

    ``known`` are called as what tells of images is. That classes number their images alike is no more than that.
    """
    names = _sample(path, folder)
    splits = {name.rstrip("/") for name in names if name.endswith("/") and _split(name.rstrip("/"))}
    if splits:
        return sum(bool(folder.among(other, splits)) for other in others) < 2
    in_others = [_namesakes(names, other, folder) for other in others]
    owners = {name: [at for at, found in enumerate(in_others) if name in found] for name in names}
    for one in known:
        mates = _namesakes(names, one, folder).items()
        if _most(names, [name for name, end in mates if not owners[name] or (end and end not in IMAGE_SUFFIXES)]):
            return True
    owned = {name: at[0] for name, at in owners.items() if len(at) == 1}
    if not _most(names, owned):
        return False
    if len(others) > 1:  # each name belongs to one image, if no two classes share theirs
        sampled = ((_sample(one, folder), other) for one, other in zip(others, (*others[1:], others[0]), strict=True))
        is_own = not any(_most(ours, _namesakes(ours, other, folder)) for ours, other in sampled)
        return is_own and (len(set(owned.values())) > 1 or _is_other_form(owned, in_others))
    inner = [name.rstrip("/") for name in owned if name.endswith("/") and in_others[0][name] != "/"]
    if inner and depth:
        return _goes_with(join(path, inner[0]), [join(others[0], inner[0])], (), folder, depth - 1)
    return _is_other_form(owned, in_others)


def _is_other_form(owned: Mapping[str, int], in_others: Sequence[Mapping[str, str]]) -> bool:
    return all(in_others[at][name] != suffix_of(name) for name, at in owned.items())


def _most(names: Sequence[str], some: Collection[str]) -> bool:
    return 2 * len(some) > len(names)


def _sample(path: str, folder: Listing) -> list[str]:
    return [name for name in folder.peek(path) if not name.startswith(".")][:_SAMPLE]


def _namesakes(names: Iterable[str], path: str, folder: Listing) -> dict[str, str]:
    """Return which of some names those in a folder go by but for the suffix, with theirs; "/" for the folder's own."""
    suffixes = {splitext(name)[1] for name in folder.peek(path) if not name.endswith("/")}
    wanted: dict[str, tuple[str, str]] = {}
    for name in names:
        if name.endswith("/"):
            wanted[name.rstrip("/")] = name, ""
        else:
            stem = splitext(name)[0]
            for suffix in suffixes:
                mate = name, suffix.lower()
                wanted |= {stem + suffix: mate, _MASK_END.sub("", stem) + suffix: mate}
    own = {name: "/" for name in names if name == path.rpartition("/")[2] + "/"}
    return dict(wanted[mate] for mate in folder.among(path, wanted)) | own


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
