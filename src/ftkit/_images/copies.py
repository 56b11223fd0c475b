"""Copies among the usable images: which files hold the same picture, and which of them should go."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Literal

from ftkit._images.findings import DuplicateGroup
from ftkit._images.journal import Journal
from ftkit._images.layout import Layout
from ftkit._images.verdict import Note, Verdict
from ftkit._images.workers import Job, run_jobs
from ftkit.errors import FtkitError

_SEARCH_SECONDS = 6 * 3600.0
# Of a picture in several splits, the copy that the scores rest on is kept.
_RANK = {"train": 1, "val": 2, "test": 3}


class Copies:
    """What it takes to find copies: 72 bytes for each usable image; the rest is in the journal."""

    def __init__(self, journal: Journal, near_duplicates: bool) -> None:
        self._journal, self._near = journal, near_duplicates
        # Of every image: half its digest and its place in the journal.
        self._digests, self._places = array("Q"), array("Q")
        # Of those with fingerprints: these, and the place.
        self._prints, self._printed = array("Q"), array("Q")

    def add(self, verdict: Verdict, at: int) -> None:
        """Take in an image, whose line stands at byte ``at`` of the journal."""
        self._digests.append(int(verdict.digest[:16], 16))
        self._places.append(at)
        if verdict.prints and self._near:
            self._prints.extend(verdict.prints.words())
            self._printed.append(at)

    def groups(self) -> Iterator[tuple[dict[str, Verdict], Literal["exact", "near"]]]:
        """Yield each group of files with the same picture, verdicts by path, and what kind of copies they are."""
        yield from ((group, "exact") for group in self._exact())
        yield from ((group, "near") for group in self._nearly())

    def _exact(self) -> Iterator[dict[str, Verdict]]:
        """Yield each group of files with the same bytes."""
        half = self._digests.__getitem__
        for _, same in groupby(sorted(range(len(self._digests)), key=half), key=half):
            places = [self._places[number] for number in same]
            by_digest: defaultdict[str, dict[str, Verdict]] = defaultdict(dict)
            for path, verdict in self._read(places if len(places) > 1 else []).items():
                by_digest[verdict.digest][path] = verdict
            yield from (group for group in by_digest.values() if len(group) > 1)

    def _nearly(self) -> Iterator[dict[str, Verdict]]:
        """Yield each group of files with nearly the same picture, when their bytes differ."""
        if len(self._printed) < 2:
            return
        (answer,) = run_jobs([Job("groups", payload=self._prints.tobytes())], _SEARCH_SECONDS)
        if answer.lost:
            raise FtkitError(
                f"The search for near duplicates among {len(self._printed):,} images failed ({answer.lost.detail}). "
                f"Scan again with near_duplicates=False."
            )
        for members in answer.value:
            group = self._read([self._printed[member] for member in members])
            if len({verdict.digest for verdict in group.values()}) > 1:
                yield group

    def _read(self, places: Sequence[int]) -> dict[str, Verdict]:
        """Return the verdicts, by path, of the images whose lines stand at these places."""
        return dict(map(self._journal.read, places))


def judge_group(
    paths: Sequence[str],
    kind: Literal["exact", "near"],
    layout: Layout,
    prefix: str,
    files: Mapping[str, Hashable] | None = None,
) -> tuple[DuplicateGroup, list[tuple[str, Note]]]:
    """Return the group, and by its path a note on every copy that a careful user would take away.

    A file under several names is no duplicate of itself, but in two splits it leaks, and in two classes it is in doubt.

    Args:
        paths: The files, relative to the root.
        kind: What kind of copies they are.
        layout: The data set's splits and classes.
        prefix: What turns a relative path into one that opens as it stands.
        files: Which file each path stands for; by default each for one of its own.
    """
    files = files or {path: path for path in paths}
    paths = sorted(paths)
    places = {path: layout.place(path) for path in paths}
    classes = sorted({place.label for place in places.values()} - {""})
    splits = sorted({place.split for place in places.values()} - {""})
    rank = {path: _RANK.get(place.split, 0) for path, place in places.items()}
    keeper = max(paths, key=rank.__getitem__)
    near = "near_" if kind == "near" else ""
    notes = []
    for path in paths:
        if len(classes) > 1:
            others = ", ".join(label for label in classes if label != places[path].label)
            notes.append((path, Note(near + "label_conflict", f"also under {others}")))
        if len(splits) > 1 and rank[path] < rank[keeper]:
            is_same = files[path] == files[keeper]
            notes.append((path, Note("same_file" if is_same else near + "leak", f"also at {prefix}{keeper}")))
        elif len(classes) <= 1 and files[path] != files[keeper]:
            notes.append((path, Note(near + "duplicate", f"also at {prefix}{keeper}")))
    return DuplicateGroup(tuple(prefix + path for path in paths), kind, tuple(classes), tuple(splits)), notes
