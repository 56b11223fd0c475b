"""Which folders of a data set are splits and which are classes, as torchvision's ImageFolder takes them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
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
    "train": "train", "training": "train", "trainval": "train", "train_val": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test",
}  # fmt: skip
# A split's name may go on: train2017, training_set, test-images.
_SPLIT_NAME = re.compile(rf"({'|'.join(_SPLITS)})([_ -]?(set|data|images?|imgs?|photos?))?[_ -]?[0-9]{{0,4}}")
# Or it ends a name that other splits begin alike: cars_train beside cars_test.
_SPLIT_END = re.compile(rf"(.+[_ -])({'|'.join(_SPLITS)})")
_FOLD = re.compile("folds?[_ -]?[0-9]{1,3}")
_CITYSCAPES = "leftimg8bit"
# Not classes, unless beside some: images, and images_001 of many.
_IMAGE_FOLDER = re.compile(f"(images?|imgs?|jpegimages|{_CITYSCAPES})([_ -]?[0-9]+)?")
# Beside them, or in each split: what tells of the images, as in the layouts of YOLO, COCO and Pascal VOC. The split
# that it goes with may be part of the name: trainannot, train_masks, labels_val.
_LABEL_FOLDER = re.compile(
    rf"(({'|'.join(_SPLITS)})[0-9]{{0,4}}[_ -]?)?"
    "(labels?|ann(o|ot|otation)?s?|masks?|gt|gtfine|gtcoarse|(.*[_ -])?ground[_ -]?truths?|trimaps?|mattes?|segs?|"
    "(mask|label|gt)[_ -]?(images?|imgs?|masks?)|imagesets|segmentations?|segmentation(class|object)[a-z]*)"
    rf"([_ -]?({'|'.join(_SPLITS)})[0-9]{{0,4}})?"
)
_LABEL_SUFFIXES = (".txt", ".xml", ".json")
# What a mask may have after its image's name.
_MASK_END = re.compile(r"[_-](masks?|labels?|seg(mentation)?|gt)$", re.IGNORECASE)
_DEPTH = 3  # of folders in a class, down to its images
_SAMPLE = 16  # names in a folder that tell what it is
_MOST_OTHERS = 100  # folders in which such names are looked for
_NAMED = 5  # folders in a detail
_LEVELS = 4  # of folders down to those of classes or splits, as in ILSVRC/Data/CLS-LOC/train


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
        holders: The folders of images, in a split or in none, whose folders are classes: "images" with "images/cat".
        grouped: The splits whose folders are none.
    """

    splits: Mapping[str, str]
    classes: Collection[str] = ()
    holders: Collection[str] = ()
    grouped: Collection[str] = ()
    _folder: Listing | None = field(default=None, compare=False)
    _known: dict[str, bool] = field(default_factory=dict, compare=False)  # of folders, whether they go with images

    @classmethod
    def find(cls, tops: Sequence[str], folder: Listing, splits: Sequence[str] | Mapping[str, str] | None) -> Layout:
        """Return the layout that `scan_images` is given by ``splits``, or else that the folders suggest.

        Args:
            tops: The names of the folders right below ``folder``.
            folder: The data set's folder.
            splits: As for `scan_images`.
        """
        if splits is None:
            found = _splits_among(tops, folder.tops)
            if not found:
                classes = _classes_among("", tops, folder)
                for top in sorted(tops):
                    if _is_known(top) and top not in classes:
                        found |= _splits_among([f"{top}/{name}" for name in folder.tops(top)], folder.tops)
                if not found:
                    return cls._with_classes({}, classes, folder)
            return cls._with_classes(found, _classes_in(found, folder), folder)
        named = splits if isinstance(splits, Mapping) else {name: name for name in strings("splits", splits, "folders")}
        strings("splits", [*named, *named.values()], "folders")
        found = {name.replace(os.sep, "/").strip("/"): split for name, split in named.items()}
        for name in found:
            if name.partition("/")[0] not in tops:
                hint = did_you_mean(name, tops)
                raise FtkitError(
                    f"splits= names {name!r}, but {folder.name!r} has no such folder.{hint} Pass folders in it."
                )
        return cls._with_classes(found, _classes_in(found, folder), folder)

    @classmethod
    def _with_classes(cls, splits: Mapping[str, str], classes: Collection[str], folder: Listing) -> Layout:
        """Return the layout, with the folders of images looked into."""
        holders = [
            join(split, name)
            for split in splits or ("",)
            for name in _folders_in(split, folder)
            if _is_images(name) and name not in classes and _holds_classes(join(split, name), folder)
        ]
        grouped = [split for split in splits if _is_images(split.partition("/")[0]) and _is_grouped(split, folder)]
        return cls(splits, {*classes, *_classes_in(holders, folder)}, holders, grouped, folder)

    @property
    def of_images(self) -> dict[str, str]:
        """The splits without those of labels and masks."""
        return {path: split for path, split in self.splits.items() if not _is_labels(path.partition("/")[0])}

    @property
    def homes(self) -> dict[str, str]:
        """The folders whose folders are classes, each with the name of the split that it is in, if any."""
        return {
            home: self.splits.get(split, "")
            for split in self.splits or ("",)
            for home in [one for one in self.holders if one.rpartition("/")[0] == split] or [split]
            if home not in self.grouped
        }

    def tells_of_images(self, path: str) -> bool:
        """Whether a file or folder is in one that goes with images, as masks do, and so is no image to learn from."""
        at = ""
        for name in path.split("/")[:-1]:
            place = join(at, name)
            if _is_labels(name):
                if place not in self._known:
                    self._known[place] = self._goes_with_images(at, name)
                if self._known[place]:
                    return True
            at = place
        return False

    def _goes_with_images(self, at: str, name: str) -> bool:
        """Whether a folder that is called as one of labels is no class, and there are images beside it."""
        folder = self._folder
        if folder is None:
            return False
        beside = {one: join(at, one) for one in _folders_in(at, folder)}
        if at in self.splits or not at:
            classes = self.classes if at or not self.splits else ()
        else:
            has_splits = _splits_among([*beside.values()], partial(_folders_in, folder=folder))
            classes = () if has_splits else _classes_among(at, [*beside], folder)
        if name in classes:
            return False
        names = _sample(beside[name], folder) if name in beside else []
        return bool(_most(names, _namesakes(names, at, folder)) and names) or any(
            _has_images(place, folder) for one, place in beside.items() if not _is_labels(one)
        )

    def place(self, path: str) -> Place:
        """Return where a path relative to the root lies.

        Example:
            >>> from ftkit._images.layout import Layout
            >>> layout = Layout({"train": "train"})
            >>> layout.place("train/cat/a/1.jpg")
            Place(folder='train', split='train', label='cat', rest='a/1.jpg')
        """
        split = next((folder for folder in self.splits if path.startswith(folder + "/")), "")
        folder = next((folder for folder in self.holders if path.startswith(folder + "/")), split)
        inside = path.removeprefix(folder + "/" if folder else "")
        label, slash, rest = inside.partition("/")
        is_class = label in self.classes and bool(split or not self.splits)
        if not slash or folder in self.grouped or (_is_known(label) and not is_class):
            label, rest = "", inside
        return Place(folder, self.splits.get(split, ""), label, rest)


def _splits_among(folders: Sequence[str], below: Callable[[str], Sequence[str]]) -> dict[str, str]:
    """Return which of the folders next to each other are splits.

    "train" is a class, too, of Pascal VOC and COCO: alone among other folders, a split has class folders.
    """
    names = {folder: folder.rpartition("/")[2] for folder in sorted(folders, key=_by_number)}
    found = {folder: split for folder, name in names.items() if (split := _split(name))} or _alike(names)
    found |= _folds(names, below)
    others = [n for f, n in names.items() if f not in found and not _is_known(n) and may_be_class(n)]
    is_split = not others or len(set(found.values())) > 1 or any(map(may_be_class, chain(*map(below, found))))
    return found if is_split else {}


def _folds(names: Mapping[str, str], below: Callable[[str], Sequence[str]]) -> dict[str, str]:
    """Return which folders are folds: fold1 and fold2.

    They have class folders. Without, they may be classes, and with splits in each, all of them have the same images.
    """
    folds = {folder: name for folder, name in names.items() if _FOLD.fullmatch(name.lower())}
    inner = list(filter(may_be_class, chain(*map(below, folds))))
    are_splits = len(folds) > 1 and inner and not any(_split(name) or _is_known(name) for name in inner)
    return folds if are_splits else {}


def _alike(names: Mapping[str, str]) -> dict[str, str]:
    """Return which folders are splits by names that differ in nothing else: cars_train and cars_test."""
    ends = {
        folder: end
        for folder, name in names.items()
        if (end := _SPLIT_END.fullmatch(name.lower())) and not _is_labels(name)
    }
    begun: dict[str, set[str]] = {}
    for begin, split in map(re.Match.groups, ends.values()):
        begun.setdefault(begin, set()).add(_SPLITS[split])
    return {folder: _SPLITS[end[2]] for folder, end in ends.items() if len(begun[end[1]]) > 1}


def _by_number(name: str) -> list[tuple[int, str]]:
    """What sorts fold10 behind fold9."""
    return [(int(part) if part.isdecimal() else 0, part) for part in re.split(r"([0-9]+)", name)]


def _classes_in(splits: Iterable[str], folder: Listing) -> set[str]:
    """Return which folders are classes in one of the splits, though they are called as what tells of images is."""
    return set().union(*(_classes_among(split, _folders_in(split, folder), folder) for split in splits))


def _classes_among(inside: str, names: Sequence[str], folder: Listing) -> set[str]:
    """Return which of all the folders in a folder are classes, though they are called as what tells of images is.

    Those are that contain images and are next to classes by other names, unless they go with the images of these.
    """
    doubtful = [name for name in names if _is_known(name)]
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


def _folders_in(path: str, folder: Listing) -> list[str]:
    """Return the names of the folders in a folder, which may not be there."""
    return folder.tops(path) if any(name.endswith("/") for name in folder.peek(path)) else []


def _has_images(path: str, folder: Listing) -> bool:
    return bool(_first_with_images(path, folder))


def _first_with_images(path: str, folder: Listing, depth: int = _DEPTH) -> str:
    """Return a folder with images, or else one below it that has some; nothing if there is none."""
    names = folder.peek(path)
    if any(suffix_of(name) in IMAGE_SUFFIXES for name in names):
        return path
    inner = [name.rstrip("/") for name in names if name.endswith("/")][:_DEPTH] if depth else []
    return next(filter(None, (_first_with_images(join(path, name), folder, depth - 1) for name in inner)), "")


def _holds_classes(path: str, folder: Listing) -> bool:
    """Whether the folders in a folder of images are classes: several that have images, and no labels for each image."""
    names = _sample(path, folder)
    if _most(names, [name for name in names if suffix_of(name) in IMAGE_SUFFIXES]):
        return False
    inner = _folders_in(path, folder)
    splits = _splits_among([join(path, name) for name in inner], folder.tops)
    known = {name for name in inner if _is_known(name)} - _classes_among(path, inner, folder)
    classes = (name for name in inner if may_be_class(name) and name not in known and join(path, name) not in splits)
    filled = islice((name for name in classes if _has_images(join(path, name), folder)), 2)
    return len(list(filled)) > 1 and not _is_grouped(path, folder)


def _is_grouped(path: str, folder: Listing) -> bool:
    """Whether each image below a folder of images has labels of its own, as for detection: its folders are groups."""
    parts = path.split("/")
    at = next(at for at, name in enumerate(parts) if _is_images(name))
    if parts[at].lower() == _CITYSCAPES:  # which has cities there
        return True
    home = "/".join(parts[:at])
    beside = [join(home, name, *parts[at + 1 :]) for name in _folders_in(home, folder) if _is_labels(name)]
    inner = (_first_with_images(join(path, name), folder) for name in sorted(_folders_in(path, folder)))
    for inside in islice(filter(None, inner), _DEPTH):
        stems = {splitext(one)[0] for one in _sample(inside, folder) if suffix_of(one) in IMAGE_SUFFIXES}
        wanted = {stem + suffix for stem in stems for suffix in _LABEL_SUFFIXES}
        for place in (inside, *(join(one, inside.removeprefix(f"{path}/")) for one in beside), *beside):
            if folder.peek(place) and _most([*stems], folder.among(place, wanted)):
                return True
    return False


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
        if _most(names, [name for name, end in mates if not owners[name] or (end and end != suffix_of(name))]):
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


def _is_images(name: str) -> bool:
    return bool(_IMAGE_FOLDER.fullmatch(name.lower()))


def _is_labels(name: str) -> bool:
    return bool(_LABEL_FOLDER.fullmatch(name.lower()))


def _is_known(name: str) -> bool:
    """Whether a folder is called as one of images, or of what tells of them."""
    return _is_images(name) or _is_labels(name)


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
        #: Images by the split's folder, and the folder below that, down to a few levels.
        self._images: Counter[tuple[str, str]] = Counter()

    def add(self, path: str, folder: str) -> None:
        """Take in an image, in the folder of its split, or that of images in it."""
        above = folder.rpartition("/")[0] if folder in self._layout.holders else folder
        for home in {folder, above}:
            folders = path.removeprefix(home).lstrip("/").split("/")[:-1]
            self._images[home, "/".join(folders[:_LEVELS])] += 1

    def notes(self, prefix: str) -> Iterator[tuple[str, Note]]:
        """Yield what ImageFolder would stumble over, by the folder's path; ``prefix`` makes one that opens."""
        for split in (*(self._layout.splits or ("",)), *self._layout.holders):
            inside = {folder: count for (home, folder), count in self._images.items() if home == split}
            yield from self._in_split(f"{split}/" if split else "", inside, prefix)

    def _in_split(self, split: str, inside: Mapping[str, int], prefix: str) -> Iterator[tuple[str, Note]]:
        loose, names = inside.get("", 0), _next_folders("", inside)
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
        at, deeper = "", names
        while len(deeper) == 1 and at not in inside:
            at = join(at, deeper[0])
            deeper = _next_folders(at, inside)
        are_groups = _is_images(at) and split + at not in self._layout.holders
        if at and len(deeper) > 1 and at not in inside and not are_groups:
            folders = ", ".join(map(repr, deeper[:_NAMED]))
            yield split + at, Note("classes_deeper", f"it has {folders}; did you mean {prefix}{split}{at}?")


def _next_folders(at: str, folders: Iterable[str]) -> list[str]:
    """Return the names that lead from a folder to those below it."""
    start = f"{at}/" if at else ""
    return sorted({one[len(start) :].partition("/")[0] for one in folders if one.startswith(start)} - {""})
