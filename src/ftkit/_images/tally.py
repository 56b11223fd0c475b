"""Sum up the verdicts on single files: classes, splits, copies."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator
from itertools import groupby
from typing import Literal

from ftkit._images.findings import KINDS, DuplicateGroup, Finding, Severity
from ftkit._images.folders import LITTER_FOLDERS
from ftkit._images.journal import Journal
from ftkit._images.workers import Casualty, run_jobs
from ftkit.errors import FtkitError

__all__ = ["Tally"]

_IMBALANCE = 10
_SEARCH_SECONDS = 6 * 3600.0
_LOW = (1 << 64) - 1
# Of a picture in several splits, the copy that the scores rest on is kept.
_RANK = {"train": 1, "val": 2, "test": 3}


class Tally:
    """What is known so far: the findings, and 72 bytes for each image; the rest is in the journal."""

    def __init__(self, prefix: str, splits: dict[str, str], journal: Journal, near_duplicates: bool) -> None:
        self.findings: list[Finding] = []
        self.files: int = 0
        self.images: int = 0
        self.classes: dict[tuple[str, str], int] = {}
        self._prefix, self._splits, self._journal, self._near = prefix, splits, journal, near_duplicates
        # Of every usable image: half its digest and its place in the journal. Of those with
        # fingerprints: these, and the image's number. Of the grey ones: the number.
        self._digests, self._places = array("Q"), array("Q")
        self._prints, self._hashed = array("Q"), array("Q")
        self._grey = array("Q")

    def note(self, path: str, kind: str, detail: str, severity: Severity | None = None) -> None:
        """Take in a finding on a path relative to the root."""
        self.findings.append(Finding(self._prefix + path, kind, severity or KINDS[kind].severity, detail))
        self.files += kind == "litter"  # these are never opened

    def enter(self, folder: str) -> None:
        """Take in a folder: it may be a class."""
        split, name, rest = self._place(folder + "/.")
        if name and rest == ".":
            self.classes.setdefault((split, name), 0)

    def _place(self, path: str) -> tuple[str, str, str]:
        """Return the split's folder, the class and the rest of a relative path."""
        for split in self._splits:
            if path.startswith(split + "/"):
                name, slash, rest = path[len(split) + 1 :].partition("/")
                return (split, name, rest) if slash else (split, "", name)
        name, slash, rest = path.partition("/")
        return ("", name, rest) if slash else ("", "", name)

    def add(self, line: bytes, at: int) -> None:
        """Take in a line of the journal, which stands at byte ``at``."""
        path, (notes, _, digest, form, prints) = json.loads(line)
        self.files += 1
        usable = form is not None
        for kind, detail, *severity in notes:
            self.note(path, kind, detail, *severity)
            usable &= (severity[0] if severity else KINDS[kind].severity) == "odd"
        if not path.isascii() and path.encode(errors="replace") != os.fsencode(path):
            self.note(path, "name_not_utf8", ascii(path.rpartition("/")[2]))
        if not usable:
            return
        self.images += 1
        split, name, _ = self._place(path)
        if name:
            self.classes[split, name] = self.classes.get((split, name), 0) + 1
        number = len(self._digests)
        self._digests.append(int(digest[:16], 16))
        self._places.append(at)
        if prints and self._near:
            whole, inner, whole_fine, inner_fine = prints
            halves = (n for fine in (whole_fine, inner_fine) for n in (fine & _LOW, fine >> 64))
            self._prints.extend((whole, inner, *halves))
            self._hashed.append(number)
        if form[1] in ("L", "1", "LA"):
            self._grey.append(number)

    def finish(self) -> list[DuplicateGroup]:
        """Draw the conclusions that need all the files; return the groups of copies."""
        if len(self._grey) * 10 <= self.images:
            for number in self._grey:
                self.note(self._read(number)[0], "greyscale", "one channel, in a set that has colour")
        self._judge_classes()
        groups = [self._group(paths, "exact") for paths in self._exact()]
        if self._near:
            groups += [self._group(paths, "near") for paths in self._nearly()]
        return sorted(groups, key=lambda group: (group.paths, group.kind))

    def _read(self, number: int) -> tuple[str, str]:
        """Return an image's path and digest."""
        path, verdict = self._journal.read(self._places[number])
        return path, verdict[2]

    def _judge_classes(self) -> None:
        counts: dict[str, dict[str, int]] = {}
        for (split, name), count in self.classes.items():
            if (split or not self._splits) and name.lower() not in LITTER_FOLDERS:
                counts.setdefault(split, {})[name] = count
        empty = {finding.path for finding in self.findings if finding.kind == "empty_folder"}
        for split, classes in counts.items():
            most = max(classes, key=lambda name: classes[name])
            for name, count in classes.items():
                path = f"{split}/{name}".lstrip("/")
                if count == 0 and self._prefix + path not in empty:
                    self.note(path, "no_images", "no usable image in it")
                elif count and count * _IMBALANCE <= classes[most]:
                    self.note(path, "imbalance", f"{count:,} images; {most!r} has {classes[most]:,}")
        train = next((split for split in counts if split and self._splits[split] == "train"), None)
        if train is None:
            return
        for split, classes in counts.items():
            extra = sorted(name for name, count in classes.items() if count and not counts[train].get(name))
            if extra:
                self.note(split, "classes_differ", f"{', '.join(map(repr, extra[:5]))} is not in {train!r}")

    # -------------------------------------------------------------------------------------------- copies

    def _exact(self) -> Iterator[list[str]]:
        """Yield the paths of each group of files with the same bytes."""
        digests = self._digests
        order = sorted(range(len(digests)), key=digests.__getitem__)
        for _, same in groupby(order, key=digests.__getitem__):
            first, *others = same
            if others:
                by_digest: dict[str, list[str]] = {}
                for number in (first, *others):
                    path, digest = self._read(number)
                    by_digest.setdefault(digest, []).append(path)
                yield from (paths for paths in by_digest.values() if len(paths) > 1)

    def _nearly(self) -> Iterator[list[str]]:
        """Yield the paths of each group of files with nearly the same picture, when their bytes differ."""
        if len(self._hashed) < 2:
            return
        (_, answer), *_ = run_jobs([["groups"]], _SEARCH_SECONDS, [self._prints.tobytes()])
        if isinstance(answer, Casualty):
            raise FtkitError(
                f"The search for near duplicates among {len(self._hashed):,} images failed ({answer.args[1]}). "
                f"Scan again with near_duplicates=False."
            )
        for members in json.loads(answer):
            read = [self._read(self._hashed[member]) for member in members]
            if len({digest for _, digest in read}) > 1:
                yield [path for path, _ in read]

    def _group(self, paths: list[str], kind: Literal["exact", "near"]) -> DuplicateGroup:
        """Make the group, and a finding for every copy that a careful user would take away."""
        paths.sort()
        near = "near_" if kind == "near" else ""
        places = {path: self._place(path) for path in paths}
        classes = tuple(sorted({name for _, name, _ in places.values() if name}))
        splits = tuple(sorted({self._splits[split] for split, _, _ in places.values() if split}))
        rank = {path: _RANK.get(self._splits.get(places[path][0], ""), 0) for path in paths}
        kept = max(rank.values())
        keeper = next(path for path in paths if rank[path] == kept)
        for path in paths:
            if len(classes) > 1:
                others = ", ".join(name for name in classes if name != places[path][1])
                self.note(path, near + "label_conflict", f"also under {others}")
            if len(splits) > 1 and rank[path] < kept:
                self.note(path, near + "leak", f"also at {self._prefix}{keeper}")
            elif len(classes) <= 1 and path != keeper:
                self.note(path, near + "duplicate", f"also at {self._prefix}{keeper}")
        return DuplicateGroup(tuple(self._prefix + path for path in paths), kind, classes, splits)
