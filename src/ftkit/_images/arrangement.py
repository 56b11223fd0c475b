"""Where the images of a data set lie, and what ImageFolder would make of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from posixpath import join
from unicodedata import normalize

from ftkit._images.layout import Layout
from ftkit._images.names import is_images
from ftkit._images.verdict import Note
from ftkit._wording import plural

_SPLITS = 100  # in a detail: what is to be passed
_NAMED = 5  # folders in a detail
_LEVELS = 4  # of folders down to those of classes or splits, as in ILSVRC/Data/CLS-LOC/train


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
        if self._layout.unsure:
            some = dict(islice(self._layout.unsure.items(), _SPLITS))
            yield "", Note("splits_deeper", f"if these are splits, pass them all: splits={some}")
        for split in (*self._layout.roots, *self._layout.holders):
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
        are_groups = is_images(at) and split + at not in self._layout.holders
        if at and len(deeper) > 1 and at not in inside and not are_groups:
            folders = ", ".join(map(repr, deeper[:_NAMED]))
            yield split + at, Note("classes_deeper", f"it has {folders}; did you mean {prefix}{split}{at}?")


def _next_folders(at: str, folders: Iterable[str]) -> list[str]:
    """Return the names that lead from a folder to those below it."""
    start = f"{at}/" if at else ""
    return sorted({one[len(start) :].partition("/")[0] for one in folders if one.startswith(start)} - {""})


def _folded(name: str) -> str:
    """Return what is the same for names that are one to some system: case does not count, nor how an é is encoded."""
    return normalize("NFC", name).casefold()
