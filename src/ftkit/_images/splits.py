"""Which of the folders next to each other are splits."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

from ftkit._images.names import SPLITS, is_known, is_labels, split_of
from ftkit._images.suffixes import may_be_class

# A split's name ends one that other splits begin alike: cars_train beside cars_test.
_SPLIT_END = re.compile(rf"(.+[_ -])({'|'.join(SPLITS)})")
_FOLD = re.compile("folds?[_ -]?[0-9]{1,3}")


def splits_among(folders: Sequence[str], below: Callable[[str], Sequence[str]]) -> dict[str, str]:
    """Return which of the folders next to each other are splits.

    "train" is a class, too, of Pascal VOC and COCO: alone among other folders, a split has class folders.
    """
    names = {folder: folder.rpartition("/")[2] for folder in sorted(folders, key=_by_number)}
    found = {folder: split for folder, name in names.items() if (split := split_of(name))} or _alike(names)
    found |= _folds(names, below)
    others = [n for f, n in names.items() if f not in found and not is_known(n) and may_be_class(n)]
    is_split = not others or len(set(found.values())) > 1 or any(map(may_be_class, chain(*map(below, found))))
    return found if is_split else {}


def _folds(names: Mapping[str, str], below: Callable[[str], Sequence[str]]) -> dict[str, str]:
    """Return which folders are folds: fold1 and fold2.

    They have class folders. Without, they may be classes, and with splits in each, all of them have the same images.
    """
    folds = {folder: name for folder, name in names.items() if _FOLD.fullmatch(name.lower())}
    inner = list(filter(may_be_class, chain(*map(below, folds))))
    are_splits = len(folds) > 1 and inner and not any(split_of(name) or is_known(name) for name in inner)
    return folds if are_splits else {}


def _alike(names: Mapping[str, str]) -> dict[str, str]:
    """Return which folders are splits by names that differ in nothing else: cars_train and cars_test."""
    ends = {
        folder: end
        for folder, name in names.items()
        if (end := _SPLIT_END.fullmatch(name.lower())) and not is_labels(name)
    }
    begun: dict[str, set[str]] = {}
    for begin, split in map(re.Match.groups, ends.values()):
        begun.setdefault(begin, set()).add(SPLITS[split])
    return {folder: SPLITS[end[2]] for folder, end in ends.items() if len(begun[end[1]]) > 1}


def are_of_one_split(one: str, other: str) -> bool:
    """Whether two folders have the name of a split in theirs: train and depth_train."""
    return any(word in one.lower() and word in other.lower() for word in SPLITS)


def _by_number(name: str) -> list[tuple[int, str]]:
    """What sorts fold10 behind fold9."""
    return [(int(part) if part.isdecimal() else 0, part) for part in re.split(r"([0-9]+)", name)]
