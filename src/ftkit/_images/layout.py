"""Which folders of a data set are splits and which are classes, as torchvision's ImageFolder takes them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice
from posixpath import join
from typing import NamedTuple

from ftkit._arguments import strings
from ftkit._images.companions import (
    Listing,
    are_gray_forms,
    classes_among,
    folders_in,
    has_images,
    is_grouped,
    mirrors,
    most,
    namesakes,
    only_tells,
    sample,
)
from ftkit._images.names import are_of_one_split, is_images, is_known, is_labels, may_tell_of_images, split_of
from ftkit._images.splits import find_splits, in_folds, splits_among, unwrapped
from ftkit._images.suffixes import IMAGE_SUFFIXES, may_be_class, suffix_of
from ftkit.errors import FtkitError, did_you_mean


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
        holders: The folders of images, in a split or in none, whose folders are classes: "images" with "images/cat"; or
            the one whose classes have splits in them: "data" with "data/cat/train".
        grouped: The splits whose folders are none.
        folds: Of a split that belongs to a fold, which is a data set of its own, that fold.
        by_class: Whether the splits are in the classes: cat/train and dog/train.
        unsure: What would be splits if another folder beside theirs had some, too.
        is_complete: Whether what is in no split is in no class: there are several splits, which have all of them.
    """

    splits: Mapping[str, str]
    classes: Collection[str] = ()
    holders: Collection[str] = ()
    grouped: Collection[str] = ()
    folds: Mapping[str, str] = field(default_factory=dict)
    by_class: bool = False
    unsure: Mapping[str, str] = field(default_factory=dict)
    is_complete: bool = False
    _folder: Listing | None = field(default=None, compare=False)
    _companions: dict[str, Collection[str]] = field(default_factory=dict, compare=False)

    @classmethod
    def find(cls, tops: Sequence[str], folder: Listing, splits: Sequence[str] | Mapping[str, str] | None) -> Layout:
        """Return the layout that `scan_images` is given by ``splits``, or else that the folders suggest.

        Args:
            tops: The names of the folders right below ``folder``.
            folder: The data set's folder.
            splits: As for `scan_images`.
        """
        if splits is None:
            return cls._guessed(folder)
        named = splits if isinstance(splits, Mapping) else _by_name(strings("splits", splits, "folders"))
        strings("splits", [*named, *named.values()], "folders")
        found = {name.replace(os.sep, "/").strip("/"): split for name, split in named.items()}
        for name in found:
            above = name.rpartition("/")[0]
            there = [join(above, one) for one in folders_in(above, folder)] if above else tops
            if name not in there:
                hint = did_you_mean(name, there)
                raise FtkitError(
                    f"splits= names {name!r}, but {folder.name!r} has no such folder.{hint} Pass folders in it."
                )
        parts: defaultdict[str, set[str]] = defaultdict(set)
        folds = {path: fold for path, fold in in_folds(found, folder)[1].items() if path in found}
        for path, fold in folds.items():
            parts[fold].add(found[path])
        folds = {path: fold for path, fold in folds.items() if {"train"} < parts[fold]}
        homes = {path.rpartition("/")[0] for path in found}
        above_them = {home.rpartition("/")[0] for home in homes}
        is_one = (
            len(homes) > 1 and len(above_them) == 1 and not any(is_known(path.rpartition("/")[2]) for path in homes)
        )
        sites = above_them.pop() if is_one and "" not in homes else None
        return cls._arranged(found, folds, sites, folder)

    @classmethod
    def _guessed(cls, folder: Listing) -> Layout:
        """Return the layout that the folders suggest."""
        known = find_splits(folder)
        splits = known.splits
        if all(any(map(is_labels, path.split("/")[:-1])) for path in splits):  # of what tells of images alone
            splits = {}
        found, folds = in_folds(splits, folder)
        found, folds = ({unwrapped(one, folder): name for one, name in some.items()} for some in (found, folds))
        return replace(cls._arranged(found, folds, known.sites, folder), unsure=known.unsure)

    @classmethod
    def _arranged(
        cls, found: Mapping[str, str], folds: Mapping[str, str], sites: str | None, folder: Listing
    ) -> Layout:
        """Return the layout by its splits; where they are in several folders of ``sites``, these may be the classes."""
        inner = (name for split in found for name in folders_in(split, folder))
        home, called = (sites or "").rpartition("/")[::2]
        is_detection = is_images(called) and any(map(is_labels, folders_in(home, folder)))
        by_class = sites is not None and not folds and not is_detection and all(map(is_known, inner))
        if found and not by_class:
            classes = _classes_in(found, folder)
        else:
            classes = classes_among(sites or "", folders_in(sites or "", folder), folder)
        return cls._with_classes(found, classes, folder, folds, sites if by_class else None)

    @classmethod
    def _with_classes(
        cls,
        splits: Mapping[str, str],
        classes: Collection[str],
        folder: Listing,
        folds: Mapping[str, str] | None = None,
        sites: str | None = None,
    ) -> Layout:
        """Return the layout, with the folders of images looked into, or the one whose folders have the splits."""
        holders = [
            join(split, name)
            for split in splits or ("",)
            for name in folders_in(split, folder)
            if is_images(name) and name not in classes and _holds_classes(join(split, name), folder)
        ]
        grouped = [split for split in splits if any(map(is_images, split.split("/"))) and is_grouped(split, folder)]
        classes = {*classes, *_classes_in(holders, folder)}
        holders = [sites] if sites else holders
        is_complete = sites is None and len({*splits.values()}) > 1
        return cls(splits, classes, holders, grouped, folds or {}, sites is not None, {}, is_complete, folder)

    @property
    def of_images(self) -> dict[str, str]:
        """The splits without those of labels and masks."""
        told = set() if self.by_class else {path for path in self.splits if any(map(is_labels, path.split("/")[:-1]))}
        return {path: split for path, split in self.splits.items() if path not in told}

    @property
    def roots(self) -> Iterable[str]:
        """What the folders of classes are in, or those of images: the splits, or all of it."""
        return self.splits if self.splits and not self.by_class else ("",)

    @property
    def homes(self) -> dict[str, str]:
        """The folders whose folders are classes, each with the name of the split that it is in, if any."""
        return {
            home: self.splits.get(split, "")
            for split in self.roots
            for home in [one for one in self.holders if not split or one.startswith(f"{split}/")] or [split]
            if home not in self.grouped
        }

    def tells_of_images(self, path: str) -> bool:
        """Whether a file or folder is in one that goes with images, as masks do, and so is no image to learn from."""
        at = ""
        for name in path.split("/")[:-1]:
            if name in self._companions_in(at):
                return True
            at = join(at, name)
        return False

    def _companions_in(self, at: str) -> Collection[str]:
        """Return the names of the folders in a folder that go with images."""
        if at not in self._companions:
            self._companions[at] = frozenset(self._find_companions(at, self._folder) if self._folder else ())
        return self._companions[at]

    def _find_companions(self, at: str, folder: Listing) -> Iterator[str]:
        """Yield what is no class, and called as labels are that have images beside them, or has files that are."""
        beside = {name: join(at, name) for name in folders_in(at, folder)}
        if at in self.splits or not at:
            classes = self.classes if at or not self.splits or self.by_class else ()
        else:
            has_splits = splits_among([*beside.values()], folder)
            classes = () if has_splits else classes_among(at, [*beside], folder)
        photos = [place for name, place in beside.items() if not is_labels(name)]
        images = [place for name, place in beside.items() if is_images(name) and name not in classes]
        splits = [split for split in self.splits if split.rpartition("/")[0] == at]
        for name, place in beside.items():
            if name in classes or is_images(name) or place in splits or not may_be_class(name):
                continue
            if is_labels(name):
                names = sample(place, folder)
                is_loose = bool(names) and most(names, namesakes(names, at, folder))
                is_one = is_loose or any(has_images(one, folder) for one in photos)
            else:
                is_told = may_tell_of_images(name)
                near = [split for split in splits if are_of_one_split(split, place)]
                inner = {join(place, one): join(at, one) for one in folders_in(place, folder)}
                is_one = (
                    mirrors(place, [*images, *near, *([at] if is_told else [])], folder)
                    or (is_told and are_gray_forms(place, [one for one in photos if one != place], folder))
                    or any(mirrors(one, [other], folder) for one, other in inner.items() if other in splits)
                    or (bool(images) and only_tells(place, folder))
                )
            if is_one:
                yield name

    def place(self, path: str) -> Place:
        """Return where a path relative to the root lies.

        Example:
            >>> from ftkit._images.layout import Layout
            >>> layout = Layout({"train": "train"})
            >>> layout.place("train/cat/a/1.jpg")
            Place(folder='train', split='train', label='cat', rest='a/1.jpg')
        """
        split = self._split(path)
        folder = "" if self.by_class else split
        folder = next((folder for folder in self.holders if path.startswith(folder + "/")), folder)
        inside = path.removeprefix(folder + "/" if folder else "")
        label, slash, rest = inside.partition("/")
        is_class = label in self.classes and bool(split or self.by_class or not self.splits)
        if self.is_complete and not split:
            return Place("", "", "", path)
        is_none = (is_known(label) and not is_class) or label in self._companions_in(folder)
        is_none |= join(folder, label) in self.splits
        if not slash or folder in self.grouped or is_none:
            label, rest = "", inside
        return Place(folder, self.splits.get(split, ""), label, rest)

    def apart(self, paths: Iterable[str]) -> list[list[str]]:
        """Return the files by the data set that they are in: of folds, each is one, and all have the same images."""
        parts: defaultdict[str, list[str]] = defaultdict(list)
        for path in paths:
            parts[self.folds.get(self._split(path), "")].append(path)
        common = parts.pop("", [])
        return [[*common, *part] for part in parts.values()] or [common]

    def _split(self, path: str) -> str:
        """Return the folder of the split that a file is in, if any."""
        above = accumulate(path.split("/")[:-1], join)
        return next((one for one in above if one in self.splits), "")


def _by_name(folders: Iterable[str]) -> dict[str, str]:
    """Return the split of each folder in a list: by its name, unless several are called the same, as folds are."""
    named = {name: split_of(name.replace(os.sep, "/").rstrip("/").rpartition("/")[2]) or name for name in folders}
    return named if len({*named.values()}) == len(named) else {name: name for name in named}


def _classes_in(splits: Iterable[str], folder: Listing) -> set[str]:
    """Return which folders are classes in one of the splits, though they are called as what tells of images is."""
    return set().union(*(classes_among(split, folders_in(split, folder), folder) for split in splits))


def _holds_classes(path: str, folder: Listing) -> bool:
    """Whether the folders in a folder of images are classes: several that have images, and no labels for each image."""
    names = sample(path, folder)
    if most(names, [name for name in names if suffix_of(name) in IMAGE_SUFFIXES]):
        return False
    inner = folders_in(path, folder)
    splits = splits_among([join(path, name) for name in inner], folder)
    known = {name for name in inner if is_known(name)} - classes_among(path, inner, folder)
    classes = (name for name in inner if may_be_class(name) and name not in known and join(path, name) not in splits)
    filled = islice((name for name in classes if has_images(join(path, name), folder)), 2)
    return len(list(filled)) > 1 and not is_grouped(path, folder)
