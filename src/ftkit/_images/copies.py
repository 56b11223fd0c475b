"""Copies among the usable images: which files contain the same picture, and which of them should be removed."""

from __future__ import annotations

import mmap
from array import array
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple, Self

from ftkit._files import digest
from ftkit._images.findings import DuplicateGroup, leak_of
from ftkit._images.journal import Journal
from ftkit._images.layout import Layout
from ftkit._images.scratch import in_scratch
from ftkit._images.verdict import Note, Verdict
from ftkit._images.workers import Job, run_jobs
from ftkit.errors import FtkitError

_SEARCH_SECONDS = 6 * 3600.0
# Of a picture in several splits, the copy that the scores rest on is kept.
_RANK = {"train": 1, "val": 2, "test": 3}


class Copied(NamedTuple):
    """Files with the same picture: the verdicts by path, and the similarity of each pair that was found."""

    kind: Literal["exact", "near"]
    verdicts: dict[str, Verdict]
    pairs: dict[tuple[str, str], float]

    @property
    def worth(self) -> dict[str, tuple[int, int]]:
        """How many pixels and bytes each file has."""
        return {
            path: (verdict.form.width * verdict.form.height, verdict.measures.bytes)
            for path, verdict in self.verdicts.items()
            if verdict.form and verdict.measures
        }


class Copies:
    """What it takes to find copies: 32 bytes for each usable image; the rest is in the journal and a temporary file."""

    def __init__(self, journal: Journal, near_duplicates: bool) -> None:
        self._journal, self._near = journal, near_duplicates
        # Of every image: half its digest and its place in the journal.
        self._digests, self._places = array("Q"), array("Q")
        # Of those with fingerprints: the place in the journal, and half the path's digest; these themselves are rows of
        # a file.
        self._printed, self._names = array("Q"), array("Q")
        with in_scratch():
            self._folder = TemporaryDirectory(prefix="ftkit-")
            self._table = Path(self._folder.name, "prints")
            self._rows = self._table.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(OSError):  # which a write has met before
            self._rows.close()
        self._folder.cleanup()

    def add(self, path: str, verdict: Verdict, at: int) -> None:
        """Take in an image, whose line stands at byte ``at`` of the journal."""
        self._digests.append(int(verdict.digest[:16], 16))
        self._places.append(at)
        if verdict.prints and self._near:
            with in_scratch():
                self._rows.write(verdict.prints.row())
            self._printed.append(at)
            self._names.append(int(digest(path.encode(errors="surrogatepass"))[:16], 16))

    def groups(self) -> Iterator[Copied]:
        """Yield each group of files with the same picture."""
        yield from self._exact()
        yield from self._nearly()

    def _exact(self) -> Iterator[Copied]:
        """Yield each group of files with the same bytes."""
        half = self._digests.__getitem__
        for _, same in groupby(sorted(range(len(self._digests)), key=half), key=half):
            places = [self._places[number] for number in same]
            by_digest: defaultdict[str, dict[str, Verdict]] = defaultdict(dict)
            for path, verdict in self._read(places if len(places) > 1 else []).items():
                by_digest[verdict.digest][path] = verdict
            for group in by_digest.values():
                if len(group) > 1:
                    first, *others = sorted(group)
                    yield Copied("exact", group, {(first, other): 1.0 for other in others})

    def _nearly(self) -> Iterator[Copied]:
        """Yield each group of files with nearly the same picture, when their bytes differ."""
        if len(self._printed) < 2:
            return
        table, places = self._in_order()
        (answer,) = run_jobs([Job("groups", (str(table),))], _SEARCH_SECONDS)
        if answer.lost:
            raise FtkitError(
                f"The search for near duplicates among {len(places):,} images failed ({answer.lost.detail}). "
                f"Scan again with near_duplicates=False."
            )
        for pairs in answer.value:
            found = {row: self._journal.read(places[row]) for pair in pairs for row in pair[:2]}
            group = dict(found.values())
            if len({verdict.digest for verdict in group.values()}) > 1:
                by_path: dict[tuple[str, str], float] = {}
                for one, other, similarity in pairs:
                    first, second = sorted((found[one][0], found[other][0]))
                    by_path[first, second] = similarity
                yield Copied("near", group, by_path)

    def _in_order(self) -> tuple[Path, Sequence[int]]:
        """Return the table and its places in an order in which the same files always stand, whichever came first."""
        order = sorted(range(len(self._names)), key=self._names.__getitem__)
        table = self._table.with_name("ordered")
        with in_scratch():
            self._rows.flush()
            with (
                self._table.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as rows,
                table.open("wb") as ordered,
            ):
                size = len(rows) // len(order)
                ordered.writelines(rows[row * size : (row + 1) * size] for row in order)
        return table, array("Q", (self._printed[row] for row in order))

    def _read(self, places: Sequence[int]) -> dict[str, Verdict]:
        """Return the verdicts, by path, of the images whose lines stand at these places."""
        return dict(map(self._journal.read, places))


def judge_group(
    paths: Sequence[str],
    kind: Literal["exact", "near"],
    layout: Layout,
    prefix: str,
    files: Mapping[str, Hashable] | None = None,
    plain: Mapping[str, str] | None = None,
    pairs: Mapping[tuple[str, str], float] | None = None,
    worth: Mapping[str, tuple[int, int]] | None = None,
) -> tuple[DuplicateGroup, list[tuple[str, Note]]]:
    """Return the group, and by its path a note on every copy that a careful user would take away.

    A file under several names is no duplicate of itself, but in two splits it leaks, and in two classes it is in doubt;
    not so if a folder is in both through a link, as in folds that share one.
    Only a copy in training is a leak that may go; of one in validation and test, only the user knows where it belongs.
    Kept is the copy that the scores rest on; of several in one split, whether they leak or not, the one with the most
    pixels, then the one with the most bytes, then the first by name.

    Args:
        paths: The files, relative to the root.
        kind: What kind of copies they are.
        layout: The data set's splits and classes.
        prefix: What turns a relative path into one that opens as is.
        files: Which file each path stands for; by default each for its own.
        plain: What each path is without linked folders; by default itself.
        pairs: The similarity of each pair that was found, by its paths in order.
        worth: The pixels and bytes of each path; by default all alike.
    """
    pairs, worth = pairs or {}, worth or {}
    files = files or {path: path for path in paths}
    paths = sorted(paths)
    places = {path: layout.place(path) for path in paths}
    labels: defaultdict[str, set[str]] = defaultdict(set)
    for path, place in places.items():
        if place.label:
            labels[(plain or {}).get(path, path)].add(place.label)
    shared = set.intersection(*labels.values()) if labels else set()
    classes = sorted(shared)[:1] or sorted(set().union(*labels.values()))
    splits = sorted({place.split for place in places.values()} - {""})
    rank = {path: _RANK.get(place.split, 0) for path, place in places.items()}
    order = list(layout.splits.values())

    def value(path: str) -> tuple[int, int, tuple[int, int]]:
        split = places[path].split
        return rank[path], order.index(split) if split else -1, worth.get(path, (0, 0))

    keeper = max(paths, key=value)
    near = "near_" if kind == "near" else ""

    def copy(path: str, kept: str) -> str:
        like = pairs.get((min(path, kept), max(path, kept)), 1.0)
        return f"also at {prefix}{kept}" + (f", similarity {like:.3f}" if like < 1 else "")

    notes = []
    for path in paths:
        split = places[path].split
        if len(classes) > 1:
            others = ", ".join(label for label in classes if label != places[path].label)
            notes.append((path, Note(near + "label_conflict", f"also under {others}")))
        if len(splits) > 1 and split != places[keeper].split:
            is_same = files[path] == files[keeper]
            leak = leak_of([split])
            notes.append((path, Note("same_file" if is_same and leak == "leak" else near + leak, copy(path, keeper))))
        kept = max((other for other in paths if len(splits) < 2 or places[other].split == split), key=value)
        if len(classes) <= 1 and files[path] != files[kept]:
            larger = _larger(worth.get(kept), worth.get(path))
            notes.append((path, Note(near + "duplicate", copy(path, kept) + larger)))
    named = tuple((prefix + one, prefix + other, like) for (one, other), like in sorted(pairs.items()))
    return DuplicateGroup(tuple(prefix + path for path in paths), kind, tuple(classes), tuple(splits), named), notes


def _larger(keeper: tuple[int, int] | None, other: tuple[int, int] | None) -> str:
    """Say why the copy that is kept is worth more, by its pixels and bytes; nothing if both are worth the same."""
    if keeper is None or other is None or keeper == other:
        return ""
    return ", which has more pixels" if keeper[0] > other[0] else ", which has more bytes"
