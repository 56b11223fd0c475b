"""Copies among the usable images: which files contain the same picture, and which of them should be removed."""

from __future__ import annotations

import mmap
from array import array
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self

from ftkit._files import digest
from ftkit._images.findings import DuplicateGroup, leak_of
from ftkit._images.journal import Journal
from ftkit._images.layout import Layout, Place
from ftkit._images.scratch import in_scratch
from ftkit._images.verdict import Note, Verdict
from ftkit._images.workers import Job, run_jobs
from ftkit._wording import some
from ftkit.errors import FtkitError

_SEARCH_SECONDS = 6 * 3600.0
_NAMED = 8  # classes in a detail
# Of a picture in several splits, the copy that the scores rest on is kept.
_RANK = {"train": 1, "val": 2, "test": 3}


@dataclass(frozen=True, slots=True)
class Copied:
    """Files with the same picture, or that are joined by such: the first and the last of a pan need not be copies.

    Attributes:
        kind: What kind of copies they are.
        verdicts: The verdict on each file, by its path relative to the root.
        pairs: The similarity of each pair of copies that was found so far, by the paths in order.
        ask: What finds copies of one file among others; by default all are copies of each other.
    """

    kind: Literal["exact", "near"]
    verdicts: Mapping[str, Verdict]
    pairs: dict[tuple[str, str], float] = field(default_factory=dict)
    ask: Callable[[str, Sequence[str]], Mapping[str, float]] | None = None

    def worth(self, path: str) -> tuple[int, int]:
        """Return how many pixels and bytes a file has."""
        form, measures = self.verdicts[path].form, self.verdicts[path].measures
        return (form.width * form.height, measures.bytes) if form and measures else (0, 0)

    def among(self, sources: Iterable[str], targets: Sequence[str]) -> dict[str, tuple[str, float]]:
        """Return which targets are copies of a source that is none itself: of the first one, and how similar they are.

        Those that are sources, too, are compared with the sources before them.
        """
        found: dict[str, tuple[str, float]] = {}
        left = list(targets)
        for source in sources:
            if source not in found and left:
                left = [path for path in left if path != source]
                found |= {path: (source, like) for path, like in self._copies_of(source, left).items()}
                left = [path for path in left if path not in found]
        return found

    def _copies_of(self, path: str, others: Sequence[str]) -> dict[str, float]:
        pair = {other: (min(path, other), max(path, other)) for other in others}
        unknown = [other for other in others if pair[other] not in self.pairs]
        if unknown:
            answer = self.ask(path, unknown) if self.ask else dict.fromkeys(unknown, 1.0)
            self.pairs.update((pair[other], like) for other, like in answer.items())
        return {other: self.pairs[pair[other]] for other in others if pair[other] in self.pairs}


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
                    yield Copied("exact", group)

    def _nearly(self) -> Iterator[Copied]:
        """Yield each group of files with nearly the same picture, when their bytes differ."""
        if len(self._printed) < 2:
            return
        table, places = self._in_order()
        for pairs, is_of_many in self._search("groups", str(table)):
            found = {row: self._journal.read(places[row]) for pair in pairs for row in pair[:2]}
            group = dict(found.values())
            if len({verdict.digest for verdict in group.values()}) > 1:
                rows = {path: row for row, (path, _) in found.items()}
                by_path: dict[tuple[str, str], float] = {}
                for one, other, similarity in pairs:
                    first, second = sorted((found[one][0], found[other][0]))
                    by_path[first, second] = similarity
                yield Copied("near", group, by_path, partial(self._copies_of, table, rows, is_of_many))

    def _copies_of(
        self, table: Path, rows: Mapping[str, int], is_of_many: bool, path: str, others: Sequence[str]
    ) -> dict[str, float]:
        """Return which of the others are copies of a file in their group, as `Copied.ask` does."""
        paths = {rows[other]: other for other in others}
        return {paths[row]: like for row, like in self._search("copies", str(table), rows[path], [*paths], is_of_many)}

    def _search(self, verb: Literal["groups", "copies"], *arguments: object) -> Any:
        (answer,) = run_jobs([Job(verb, arguments)], _SEARCH_SECONDS)
        if answer.lost:
            raise FtkitError(
                f"The search for near duplicates among {len(self._names):,} images failed ({answer.lost.detail}). "
                f"Scan again with near_duplicates=False."
            )
        return answer.value

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
    copied: Copied,
    layout: Layout,
    prefix: str,
    files: Mapping[str, Hashable] | None = None,
    plain: Mapping[str, str] | None = None,
) -> tuple[DuplicateGroup, list[tuple[str, Note]]]:
    """Return the group, and by its path a note on every copy that a careful user would take away.

    Each is a copy of a file that stays by itself, not by way of others: without them, no picture is lost.

    A file under several names is no duplicate of itself, but in two splits it leaks, and in two classes it is in doubt;
    not so if a folder is in both through a link, as in folds that share one.
    Only a copy in training is a leak that may go; of one in validation and test, only the user knows where it belongs.
    Kept is the copy that the scores rest on; of several in one split, one that does not leak, then the one with the
    most pixels, then the one with the most bytes, then the first by name.

    Args:
        copied: The files and what is known of their likeness.
        layout: The data set's splits and classes.
        prefix: What turns a relative path into one that opens as is.
        files: Which file each path stands for; by default each for its own.
        plain: What each path is without linked folders; by default itself.
    """
    files = files or {path: path for path in copied.verdicts}
    places = {path: layout.place(path) for path in copied.verdicts}
    order = {split: number for number, split in enumerate(layout.splits.values())}

    def rank(split: str) -> tuple[int, int]:
        return _RANK.get(split, 0), order.get(split, -1)

    plain = {path: path for path in places} | dict(plain or {})
    ranked = sorted(places.items(), key=lambda item: rank(item[1].split))
    seen_in = {plain[path]: place.split for path, place in ranked if place.split}  # through a linked folder, too
    split_of = {path: place.split or seen_in.get(plain[path], "") for path, place in places.items()}
    best = sorted(places)  # by name, where all else is the same
    best.sort(key=lambda path: (rank(split_of[path]), copied.worth(path), places[path].split != ""), reverse=True)
    splits = sorted({*split_of.values()} - {""}, key=rank, reverse=True)
    in_split = {split: [path for path in best if split_of[path] == split] for split in (*splits, "")}

    def is_new(path: str, other: str) -> bool:
        """Whether a pair is one of this kind: of near copies, those that are exact are in a group of their own."""
        digest = copied.verdicts[path].digest
        return copied.kind == "exact" or not digest or digest != copied.verdicts[other].digest

    labels = _labels(places, plain)
    conflicts = _conflicts(copied, {path: labels[path] for path in best if labels[path]})
    near = "near_" if copied.kind == "near" else ""
    notes: list[tuple[str, Note]] = []
    for path, classes in conflicts.items():
        names = [name for name, other in sorted(classes.items()) if is_new(path, other)]
        if names:
            notes.append((path, Note(near + "label_conflict", f"also under {some(names, _NAMED)}")))

    def copy(kept: str, like: float) -> str:
        return f"also at {prefix}{kept}" + (f", similarity {like:.3f}" if like < 1 else "")

    leaks: set[str] = set()
    staying: list[str] = []
    for split in splits:
        kind = leak_of([split])
        found = copied.among(staying, in_split[split])
        for path, (kept, like) in found.items():
            is_same = files[path] == files[kept]
            if is_new(path, kept):
                notes.append((path, Note("same_file" if is_same and kind == "leak" else near + kind, copy(kept, like))))
        leaks.update(found)
        staying += [path for path in in_split[split] if kind != "leak" or path not in found]

    inside = [path for path in best if split_of[path]]
    for path, (other, like) in copied.among(inside, in_split[""]).items():
        if files[path] != files[other] and is_new(path, other):
            notes.append((path, Note(near + "outside_copy", copy(other, like))))

    for paths in in_split.values():
        mine = sorted((path for path in paths if path not in conflicts), key=leaks.__contains__)
        for path, (kept, like) in copied.among(mine, mine).items():
            if files[path] != files[kept] and is_new(path, kept):
                larger = _larger(copied.worth(kept), copied.worth(path))
                notes.append((path, Note(near + "duplicate", copy(kept, like) + larger)))

    all_classes = sorted(set().union(*labels.values()))
    named = tuple((prefix + one, prefix + other, like) for (one, other), like in sorted(copied.pairs.items()))
    members = tuple(prefix + path for path in sorted({*chain(*copied.pairs)}))
    return DuplicateGroup(
        members, copied.kind, tuple(all_classes if conflicts else all_classes[:1]), tuple(sorted(splits)), named
    ), notes


def _labels(places: Mapping[str, Place], plain: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """Return the classes of each file, by all the folders through which links lead to it."""
    labels: defaultdict[str, set[str]] = defaultdict(set)
    for path, place in places.items():
        labels[plain[path]].update({place.label} - {""})
    return {path: frozenset(labels[plain[path]]) for path in places}


def _conflicts(copied: Copied, labels: Mapping[str, frozenset[str]]) -> dict[str, dict[str, str]]:
    """Return the files that have another class than a copy of theirs: such classes, each with the copy.

    One is found for each, and more only where it costs nothing: a picture may be in all of a thousand classes.
    """
    conflicts: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for mine in sorted({*labels.values()}, key=sorted):
        sources = [path for path in labels if labels[path] == mine]
        targets = [path for path in labels if labels[path].isdisjoint(mine)]
        new = [path for path in sources if path not in conflicts]
        found = copied.among(new, targets)
        found |= copied.among(
            [path for path in sources if path in conflicts], [t for t in targets if t not in conflicts]
        )
        for path, (source, _) in found.items():
            conflicts[path] |= dict.fromkeys(mine, source)
            conflicts[source] |= dict.fromkeys(labels[path], path)
    return conflicts


def _larger(keeper: tuple[int, int], other: tuple[int, int]) -> str:
    """Say why the copy that is kept is worth more, by its pixels and bytes; nothing if it isn't."""
    if keeper <= other:
        return ""
    return ", which has more pixels" if keeper[0] > other[0] else ", which has more bytes"
