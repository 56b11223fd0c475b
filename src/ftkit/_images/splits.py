"""Which of the folders next to each other are splits, or have splits in them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain, islice
from posixpath import join
from types import MappingProxyType
from typing import NamedTuple

from ftkit._images.companions import (
    Listing,
    classes_among,
    first_with_images,
    folders_in,
    has_images,
    mirrors,
    most,
    namesakes,
    sample,
)
from ftkit._images.names import (
    SPLITS,
    are_of_one_split,
    is_images,
    is_known,
    is_labels,
    may_tell_of_images,
    split_of,
    split_within,
    split_word,
)
from ftkit._images.suffixes import IMAGE_SUFFIXES, may_be_class, suffix_of

# What is called as a split but for what other splits have there, too: cars_train beside cars_test, trainA beside testA,
# VOCtrainval beside VOCtest.
_WORDS = "|".join(sorted(SPLITS, key=len, reverse=True))
_ALIKE = re.compile(f"(|.*?[^a-z])((?i:{_WORDS}))(|[_ -].*|[A-Z])")
_NEXT = 3  # folders that one is compared with: a few others may be among folds
_FEW = 20  # folders that tell what the others have in them
_LEVELS = 4  # of folders down to those of splits, as in ILSVRC/Data/CLS-LOC/train
# fold1, pets_fold_a, fold_1_of_3 or 1fold.
_FOLD = re.compile(
    "(splits?|cv)[_ -]?[0-9]{1,3}|(.*[^a-z])?(k|cv)?folds?[_ (-]?([0-9]+([^0-9].*)?|[a-z]([^a-z].*)?)|"
    "(.*[^0-9a-z])?[0-9]+[_ -]?folds?"
)


class Found(NamedTuple):
    """The splits that were found, the folder whose folders they are in, if several, and what may be splits or not."""

    splits: dict[str, str]
    sites: str | None = None
    unsure: Mapping[str, str] = MappingProxyType({})


def splits_among(folders: Sequence[str], folder: Listing) -> dict[str, str]:
    """Return which of the folders next to each other are splits, with the split's name.

    "train" is a class, too, of Pascal VOC and COCO: alone among other folders, a split has class folders, or all others
    have a word for a split in their names. A folder with the same folders is a split as well; next to a single one, its
    name has to say so, and so it has without any.
    """
    names = {one: one.rpartition("/")[2] for one in sorted(folders, key=_by_number)}
    found = {one: split for one, name in names.items() if (split := split_of(name))} or _alike(names, folder)
    found |= _folds(names, folder)
    others = [one for one, name in names.items() if one not in found and not is_known(name) and may_be_class(name)]
    flat = {one: split for one in others if (split := split_word(names[one])) and _is_flat(one, found, folder)}
    is_called = any(split_of(names[one]) for one in found)
    if len({*found.values()}) > 1 or (
        found and len(flat) == len(others) and len({*found.values(), *flat.values()}) > 1
    ):
        found |= flat
    inner = set().union(*(_inner(one, folder) for one in found))
    others = [one for one in others if one not in found]
    are_classes = not is_called and any(has_images(one, folder, 0) for one in others)  # test_id beside fake_id
    if others and not inner and (are_classes or len({*found.values()}) < 2):
        return {}
    more = {one: split_within(names[one]) for one in others if _is_another(one, found, inner, folder)}
    told = {one: split for one, split in more.items() if split != names[one]}
    if len({*found.values(), *told.values()}) < 2:
        return {**told, **found}
    more = {one: split for one, split in more.items() if one in told or not all(map(is_known, _inner(one, folder)))}
    return {**more, **found}


def find_splits(folder: Listing, at: str = "", levels: int = _LEVELS) -> Found:
    """Return the splits in a folder: right there, in images and labels, in several others, or in the only one."""
    paths = {join(at, name): name for name in folders_in(at, folder)}
    splits = splits_among([*paths], folder)
    if not levels:
        return Found(splits)
    classes = set() if splits else classes_among(at, [*paths.values()], folder)
    known = [path for path, name in sorted(paths.items()) if is_known(name) and name not in classes]
    sites, unsure = None, dict[str, str]()
    told: dict[str, str] = {}  # of labels: those of images may be in a folder that is called by no such name
    if not splits:
        for path in known:
            inner = find_splits(folder, path, levels - 1 if is_images(paths[path]) else 0)
            (told if is_labels(paths[path]) else splits).update(inner.splits)
            unsure |= inner.unsure
            sites = inner.sites if sites is None else sites
    others = [path for path, name in paths.items() if may_be_class(name) and path not in splits and path not in known]
    if not splits or {*splits.values()} == {"test"}:
        below, is_sure = _splits_below(others, folder)
    else:
        below, is_sure = _splits_below([path for path in others if is_fold(paths[path])], folder)
    if below and is_sure:
        tests = {path: split for path in others if (split := split_of(paths[path])) and not _inner(path, folder)}
        return Found(below | tests | splits | told, None if splits else at)
    unsure |= below
    filled = (one for one in others if has_images(one, folder, levels + 1)) if not splits and not unsure else ()
    match [*islice(filled, 2)]:
        case [only] if not any(suffix_of(name) in IMAGE_SUFFIXES for name in folder.peek(at)):
            inner = find_splits(folder, only, levels - 1)
            return inner._replace(splits=inner.splits | told)
    return Found(splits | told, sites, {} if splits else unsure)


def _splits_below(folders: Collection[str], folder: Listing) -> tuple[dict[str, str], bool]:
    """Return the splits in several folders, cat/train and dog/train, or of sites or folds; and whether that is sure.

    It is where two have training and evaluation: what has none is apart. Where all of the first few have images and no
    splits, the others are not looked into.
    """
    found: dict[str, str] = {}
    whole, filled, are_all = 0, 0, True
    for number, one in enumerate(sorted(folders, key=_by_number)):
        inner = _splits_in(one, folder)
        if has_images(one, folder):
            whole += {"train"} < {*inner.values()}  # with another to evaluate on
            are_all &= bool(inner)
            filled += 1
            found |= inner
        if number == _FEW and not found:
            break
    is_one = are_all and filled < 2  # which its caller looks into
    return (found, whole > 1) if whole > 1 or (whole and not is_one) else ({}, True)


def _splits_in(path: str, folder: Listing, levels: int = 2) -> dict[str, str]:
    """Return the splits in a folder, or in those of images and labels in it, or in the only one."""
    names = _inner(path, folder)
    found = splits_among([join(path, name) for name in names], folder)
    if not found and levels:
        for name in names:
            if is_known(name) or len(names) == 1:
                found |= _splits_in(join(path, name), folder, levels - 1)
    return found


def in_folds(splits: Mapping[str, str], folder: Listing) -> tuple[dict[str, str], dict[str, str]]:
    """Return the splits, or the folds that are all there is in one, and the fold that each belongs to, if any.

    Folds in a single split, such as train beside test, are splits. Otherwise each has splits of its own, and is a data
    set of its own: all of them have the same images.
    """
    inner = {split: _only_folds(split, folder) for split in splits}
    is_one = sum(map(bool, inner.values())) == 1
    found: dict[str, str] = {}
    for split, name in splits.items():
        found |= {one: fold if is_one else name for one, fold in inner[split].items()} or {split: name}
    folds = {one: fold for one in found for fold in one.split("/") if is_fold(fold) and fold != found[one]}
    return found, _with_the_same([one for one in found if one not in folds], folder) | folds


def unwrapped(split: str, folder: Listing) -> str:
    """Return a split, or the folder of the same name that is all there is in it, as archives have it: train/train."""
    name = split.rpartition("/")[2]
    match folder.peek(split), _inner(split, folder):
        case names, [only] if only == name or split_of(only) == split_of(name) != "":
            has_more = any(suffix_of(one) in IMAGE_SUFFIXES for one in names)
            return split if has_more else unwrapped(join(split, only), folder)
    return split


def is_fold(name: str) -> bool:
    """Whether a folder is called as one of a cross-validation."""
    return bool(_FOLD.fullmatch(name.lower()))


def _with_the_same(splits: Iterable[str], folder: Listing) -> dict[str, str]:
    """Return the splits in folders that have the same images by their names and classes, with that folder.

    Folds may have any name. Sites that number their images alike are taken for such, too.
    """
    homes: defaultdict[str, list[str]] = defaultdict(list)
    for split in sorted(splits, key=_by_number):
        homes[split.rpartition("/")[0]].append(split)
    order = [*homes]
    pairs = ((one, other) for at, one in enumerate(order) for other in order[at + 1 : at + 1 + _NEXT])
    twins = [pair for pair in pairs if _are_shared(homes[pair[0]], homes[pair[1]], folder)]
    return {split: one for one in {*chain(*twins)} for split in homes[one]}


def _are_shared(splits: Sequence[str], others: Sequence[str], folder: Listing) -> bool:
    """Whether most of the images in class folders in some splits are in those of others, whichever."""
    names: list[str] = []
    shared: list[str] = []
    for split in splits:
        place = first_with_images(split, folder)
        inside = place.removeprefix(split)
        is_class = not all(map(is_known, inside.split("/")[1:]))
        images = [name for name in sample(place, folder) if suffix_of(name) in IMAGE_SUFFIXES] if is_class else []
        names += images
        homes = [f"{other}{inside}" for other in others] if images else []
        shared += set().union(*(folder.among(home, images) for home in homes if folder.peek(home)))
    return most(names, shared)


def _only_folds(split: str, folder: Listing) -> dict[str, str]:
    """Return the folds in a split, if there are no other folders."""
    inner = {join(split, name): name for name in sorted(_inner(split, folder), key=_by_number)}
    folds = _folds(inner, folder)
    return folds if len(folds) == len(inner) else {}


def _folds(names: Mapping[str, str], folder: Listing) -> dict[str, str]:
    """Return which folders are folds: fold1 and fold2.

    They have class folders, or labels. Without, they may be classes, and with splits in each, all have the same images.
    """
    folds = {one: name for one, name in names.items() if is_fold(name)}
    inner = [(join(one, name), name) for one in folds for name in _inner(one, folder)]
    have_more = any(not is_images(name) or _inner(path, folder) for path, name in inner)
    have_splits = any(split_of(name) for _, name in inner) or any(_splits_in(one, folder) for one in folds)
    return folds if len(folds) > 1 and have_more and not have_splits else {}


def _alike(names: Mapping[str, str], folder: Listing) -> dict[str, str]:
    """Return which folders are splits by names that differ in nothing else: cars_train and cars_test."""
    begun: defaultdict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for one, name in names.items():
        if (parts := _ALIKE.fullmatch(name)) and not is_labels(name):
            begun[parts[1].lower(), parts[3].lower()][one] = SPLITS[parts[2].lower()]
    found = {one: split for alike in begun.values() if len({*alike.values()}) > 1 for one, split in alike.items()}
    return {one: split for one, split in found.items() if not _mirrors_one(one, found, folder)}


def _is_flat(path: str, splits: Collection[str], folder: Listing) -> bool:
    """Whether a folder has no folders, and no other form of the images in a split, which its name has in it."""
    names = sample(path, folder)
    mates = (namesakes(names, one, folder) for one in splits if are_of_one_split(one, path))
    is_other_form = may_tell_of_images(path.rpartition("/")[2]) or any(most(names, found) for found in mates)
    return not _inner(path, folder) and not is_other_form


def _is_another(path: str, found: Collection[str], inner: Collection[str], folder: Listing) -> bool:
    """Whether a folder next to splits is one, too: most of the folders in it are in those."""
    own = _inner(path, folder)
    return most(own, {*own} & {*inner}) and not _mirrors_one(path, found, folder)


def _mirrors_one(path: str, splits: Collection[str], folder: Listing) -> bool:
    """Whether a folder has masks for the images in a split, which its name has in it."""
    return mirrors(path, [one for one in splits if one != path and are_of_one_split(one, path)], folder)


def _inner(path: str, folder: Listing) -> list[str]:
    return [name for name in folders_in(path, folder) if may_be_class(name)]


def _by_number(name: str) -> list[tuple[int, str]]:
    """What sorts fold10 behind fold9."""
    return [(int(part) if part.isdecimal() else 0, part) for part in re.split(r"([0-9]+)", name)]
