"""Companions: folders of what goes with images, as labels and masks do, by their files."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from posixpath import join, splitext
from typing import Protocol

from ftkit._images.names import (
    has_more_images,
    is_images,
    is_known,
    is_labels,
    is_of_cities,
    may_tell_of_images,
    split_of,
)
from ftkit._images.suffixes import IMAGE_SUFFIXES, may_be_class, suffix_of

_LABEL_SUFFIXES = (".txt", ".xml", ".json")
# What a mask may have after its image's name, and how it is kept: without loss.
_MASK_END = re.compile(r"[_-](masks?|labels?|seg(mentation)?|gt|mattes?|targets?)$", re.IGNORECASE)
_LOSSLESS = frozenset((".png", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm"))
_DEPTH = 3  # of folders in a class, down to its images
_SAMPLE = 16  # names in a folder that tell what it is, and folders that are compared with one
_MOST_OTHERS = 100  # folders in which such names are looked for


class Listing(Protocol):
    """The data set's folder, as far as it tells what the folders in it are; paths are relative to it."""

    name: str

    def tops(self, inside: str = "") -> list[str]:
        """Return the names of the folders right below, or below one of them."""

    def peek(self, inside: str) -> list[str]:
        """Return the first few names in a folder, those of folders with a slash."""

    def among(self, inside: str, names: Collection[str]) -> set[str]:
        """Return which of some names are in a folder."""

    def head(self, inside: str, name: str) -> bytes:
        """Return the first few bytes of a file in a folder, which may raise an `OSError`."""


def classes_among(inside: str, names: Sequence[str], folder: Listing) -> set[str]:
    """Return which of all the folders in a folder are classes, though they are called as what tells of images is.

    Those are that contain images and are next to classes by other names, unless they go with the images of these.
    """
    doubtful = [name for name in names if is_known(name)]
    images = [join(inside, name) for name in doubtful if is_images(name)][:_SAMPLE]
    others = [join(inside, name) for name in names if name not in doubtful and may_be_class(name)] if doubtful else []
    filled = (
        other
        for other in others
        if has_images(other, folder) and not mirrors(other, images, folder) and not only_tells(other, folder)
    )
    others = list(islice(filled, _MOST_OTHERS))
    if not others:
        return set()
    known = [join(inside, name) for name in doubtful]
    return {
        name
        for name, path in zip(doubtful, known, strict=True)
        if has_images(path, folder)
        and not _goes_with(path, others, [one for one in known if one != path][:_SAMPLE], folder)
        and not are_gray_forms(path, others, folder)
    }


def mirrors(path: str, images: Sequence[str], folder: Listing) -> bool:
    """Whether the files in a folder go by the names of the images in another, as those of masks and depth maps do.

    Their names differ by an end such as _mask, or by the suffix, if they have no colors or the folder's name tells of
    them; then even the same names will do. Photos may be numbered alike, and are no more than that.
    """
    called = path.rpartition("/")[2]
    is_told = may_tell_of_images(called)
    if not images or (not is_told and has_more_images(called)):
        return False
    inside = first_with_images(path, folder)
    names = [name for name in sample(inside or path, folder) if not name.endswith("/")]
    if inside:
        names = [name for name in names if suffix_of(name) in IMAGE_SUFFIXES]
    shorts = {name: _MASK_END.sub("", splitext(name)[0]) for name in names}
    ended = {name for name, short in shorts.items() if short != splitext(name)[0]}
    for one in images:
        home = f"{one}{inside.removeprefix(path)}"
        suffixes = {splitext(name)[1] for name in folder.peek(home) if suffix_of(name) in IMAGE_SUFFIXES}
        wanted: dict[str, str] = {}
        for name, short in shorts.items():
            mates = {short + suffix for suffix in ("", *suffixes)}
            is_apart = is_told and suffix_of(name) in _LOSSLESS and one != path.rpartition("/")[0]
            wanted |= dict.fromkeys(mates if is_apart else mates - {name}, name)
        found = {wanted[mate] for mate in folder.among(home, wanted)} if suffixes else set()
        if most(names, found) and (
            is_told or not inside or most(names, found & ended) or most(names, _grays(inside, folder)[1])
        ):
            return True
    return False


def are_gray_forms(path: str, others: Sequence[str], folder: Listing) -> bool:
    """Whether the images in a folder are gray, as masks are, and go by the names of images in another that are not."""
    inside = first_with_images(path, folder)
    names, grays = _grays(inside, folder)
    if not most(names, grays):
        return False
    homes = filter(folder.peek, (f"{one}{inside.removeprefix(path)}" for one in others))
    return any(most(names, namesakes(grays, home, folder)) and not most(*_grays(home, folder)) for home in homes)


def only_tells(path: str, folder: Listing) -> bool:
    """Whether all the folders with images in a folder, which has none itself, are called as what tells of images."""
    filled = [name for name in folders_in(path, folder) if has_images(join(path, name), folder)]
    is_loose = any(suffix_of(name) in IMAGE_SUFFIXES for name in folder.peek(path))
    return bool(filled) and not is_loose and all(is_labels(name) or may_tell_of_images(name) for name in filled)


def _grays(path: str, folder: Listing) -> tuple[list[str], list[str]]:
    """Return a sample of the images in a folder, and those that are gray."""
    names = [name for name in sample(path, folder) if suffix_of(name) in IMAGE_SUFFIXES]
    return names, [name for name in names if _is_gray(path, name, folder)]


def _is_gray(path: str, name: str, folder: Listing) -> bool:
    """Whether an image has a single channel, of grays or of a palette, as masks have."""
    with suppress(OSError):
        head = folder.head(path, name)
        return head.startswith(b"GIF8") or (head.startswith(b"\x89PNG") and head[25:26] in (b"\0", b"\3"))
    return False


def _goes_with(path: str, others: Sequence[str], known: Sequence[str], folder: Listing, depth: int = _DEPTH) -> bool:
    """Whether a folder's contents go with those of others beside it by their names, as masks go with images.

    ``known`` are called as what tells of images is. That classes number their images alike is no more than that.
    """
    names = sample(path, folder)
    splits = {name.rstrip("/") for name in names if name.endswith("/") and split_of(name.rstrip("/"))}
    if splits:
        return sum(bool(folder.among(other, splits)) for other in others) < 2
    in_others = [namesakes(names, other, folder) for other in others]
    owners = {name: [at for at, found in enumerate(in_others) if name in found] for name in names}
    for one in known:
        mates = namesakes(names, one, folder).items()
        if most(names, [name for name, end in mates if not owners[name] or (end and end != suffix_of(name))]):
            return True
    owned = {name: at[0] for name, at in owners.items() if len(at) == 1}
    if not most(names, owned):
        return False
    if len(others) > 1:  # each name belongs to one image, if no two classes share theirs
        sampled = ((sample(one, folder), other) for one, other in zip(others, (*others[1:], others[0]), strict=True))
        is_own = not any(most(ours, namesakes(ours, other, folder)) for ours, other in sampled)
        return is_own and (len(set(owned.values())) > 1 or _is_other_form(owned, in_others))
    inner = [name.rstrip("/") for name in owned if name.endswith("/") and in_others[0][name] != "/"]
    if inner and depth:
        return _goes_with(join(path, inner[0]), [join(others[0], inner[0])], (), folder, depth - 1)
    return _is_other_form(owned, in_others)


def _is_other_form(owned: Mapping[str, int], in_others: Sequence[Mapping[str, str]]) -> bool:
    return all(in_others[at][name] != suffix_of(name) for name, at in owned.items())


def is_grouped(path: str, folder: Listing) -> bool:
    """Whether each image below a folder of images has labels of its own, as for detection: its folders are groups."""
    parts = path.split("/")
    at = next(at for at, name in enumerate(parts) if is_images(name))
    if is_of_cities(parts[at]):
        return True
    home = "/".join(parts[:at])
    beside = [join(home, name, *parts[at + 1 :]) for name in folders_in(home, folder) if is_labels(name)]
    inner = (first_with_images(join(path, name), folder) for name in sorted(folders_in(path, folder)))
    for inside in islice(filter(None, inner), _DEPTH):
        stems = {splitext(one)[0] for one in sample(inside, folder) if suffix_of(one) in IMAGE_SUFFIXES}
        wanted = {stem + suffix for stem in stems for suffix in _LABEL_SUFFIXES}
        for place in (inside, *(join(one, inside.removeprefix(f"{path}/")) for one in beside), *beside):
            if folder.peek(place) and most([*stems], folder.among(place, wanted)):
                return True
    return False


def namesakes(names: Iterable[str], path: str, folder: Listing) -> dict[str, str]:
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


def has_images(path: str, folder: Listing, depth: int = _DEPTH) -> bool:
    """Whether there are images in a folder, or a few levels below."""
    return bool(first_with_images(path, folder, depth))


def first_with_images(path: str, folder: Listing, depth: int = _DEPTH) -> str:
    """Return a folder with images, or else one below it that has some; nothing if there is none."""
    names = folder.peek(path)
    if any(suffix_of(name) in IMAGE_SUFFIXES for name in names):
        return path
    inner = [name.rstrip("/") for name in names if name.endswith("/")][:_DEPTH] if depth else []
    return next(filter(None, (first_with_images(join(path, name), folder, depth - 1) for name in inner)), "")


def folders_in(path: str, folder: Listing) -> list[str]:
    """Return the names of the folders in a folder, which may not be there."""
    return folder.tops(path) if folder.peek(path) else []


def sample(path: str, folder: Listing) -> list[str]:
    """Return some names in a folder, that tell what it is."""
    return [name for name in folder.peek(path) if not name.startswith(".")][:_SAMPLE]


def most(names: Sequence[str], some: Collection[str]) -> bool:
    """Whether some of the names are more than half of them."""
    return 2 * len(some) > len(names)
