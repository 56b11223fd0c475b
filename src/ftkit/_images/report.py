"""What a scan found: to read, to save, to act on."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import overload

from ftkit._arguments import flag
from ftkit._images.choice import choose
from ftkit._images.findings import KINDS, SEVERITIES, DuplicateGroup, Finding, chooser, last_copies
from ftkit._images.folders import Judged, below
from ftkit._images.quarantine import Quarantine, move_away, moved_before
from ftkit._images.repair import Repair, repair
from ftkit._images.suffixes import LISTED_SUFFIXES
from ftkit._images.table import ImageTable, escaped, outside, write_parquet
from ftkit._images.verdict import Severity
from ftkit._reports import Grid, Parts, Report, Target, delivered
from ftkit._wording import plural, some
from ftkit.errors import FtkitError

_COLUMNS = tuple(column.name for column in fields(Finding))


def _row(finding: Finding) -> list[str]:
    """Return a row of a table that may contain only UTF-8."""
    return [escaped(getattr(finding, name)) for name in _COLUMNS]


@dataclass(frozen=True, slots=True, repr=False)
class ScanReport(Report):
    """What `scan_images` found in a folder.

    Attributes:
        root: The folder, as it was passed; without ``file://``.
        findings: What was found, sorted by path.
        duplicates: Groups of files with the same image.
        files: Number of files.
        images: Number of usable images among them.
        classes: Number of usable images in each class, under ``"split/class"``, or ``"images/class"``.
        seconds: How long the scan took.
        splits: The folders that were taken as splits, with the split's name.
    """

    root: str
    findings: list[Finding]
    duplicates: list[DuplicateGroup] = field(default_factory=list)
    files: int = 0
    images: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    splits: dict[str, str] = field(default_factory=dict)
    _judged: dict[str, Judged] = field(default_factory=dict, repr=False, compare=False)
    _table: ImageTable = field(default_factory=ImageTable, repr=False, compare=False)
    _place: str = field(default="", repr=False, compare=False)  # the folder, wherever the caller is by now

    def __post_init__(self) -> None:
        place = self._place or (self.root if "://" in self.root else str(Path(self.root).absolute()))
        object.__setattr__(self, "_place", place)

    @property
    def unusable(self) -> list[Finding]:
        """Findings on files that would stop training, or that have lost pixels."""
        return self._of("unusable")

    @property
    def odd(self) -> list[Finding]:
        """Findings on what loads, but not as you might expect."""
        return self._of("odd")

    @property
    def junk(self) -> list[Finding]:
        """Findings on what is not an image and gets in the way."""
        return self._of("junk")

    @property
    def table(self) -> ImageTable:
        """A row for each usable image: size, brightness, contrast, sharpness and the like; to save or to plot."""
        return self._table

    @property
    def leaks(self) -> list[DuplicateGroup]:
        """Groups of duplicates in more than one split."""
        return [group for group in self.duplicates if group.crosses_splits]

    def _of(self, severity: Severity) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == severity]

    def _parts(self) -> Parts:
        yield self._headline()
        if self.splits:
            yield f"splits: {some(list(self.splits), 8)}"
        for severity, title in SEVERITIES.items():
            found = self._of(severity)
            if found:
                yield f"{len({finding.path for finding in found}):,} {title}"
                numbers = Counter(finding.kind for finding in found).most_common()
                rows = [(f"{n:,}", kind, f"{KINDS[kind].effect} -> {KINDS[kind].remedy}") for kind, n in numbers]
                yield Grid(rows, names=(1,), right=(0,))
        if self.duplicates:
            kinds = Counter(group.kind for group in self.duplicates)
            crossing = sum(group.crosses_classes for group in self.duplicates)
            yield (
                f"{plural(len(self.duplicates), 'group')} of duplicates ({kinds['exact']:,} exact, {kinds['near']:,} "
                f"near), {crossing:,} across classes, {len(self.leaks):,} across splits"
            )
            if kinds["near"]:
                yield "  of near copies in one split, the copy with the most pixels is kept, so not a crop"
        if not self.findings:
            yield "no problems found"
        elif self.unusable or self.junk:
            yield "Nothing was changed. report.quarantine(folder) sets unusable files and junk aside."

    def _headline(self) -> str:
        names = {
            place.rpartition("/")[2] for place, count in self.classes.items() if count
        }  # one in several splits counts once
        classes = f" in {plural(len(names), 'class', 'classes')}" if names else ""
        images = plural(self.images, "usable image")
        return f"{self.root}: {plural(self.files, 'file')}, {images}{classes}, {self.seconds:.1f} s"

    def _target(self, path: Target) -> Target:
        return outside(self._place, path)

    def _here(self, path: str) -> str:
        """Return a path of this report as one that opens in whatever folder the caller is by now."""
        prefix = os.path.join(self.root, "")  # noqa: PTH118  (Path knows no such thing)
        return os.path.join(self._place, path[len(prefix) :]) if path.startswith(prefix) else path  # noqa: PTH118

    def _findings_here(self) -> list[Finding]:
        return [replace(finding, path=self._here(finding.path)) for finding in self.findings]

    def _judged_here(self) -> dict[str, Judged]:
        return {self._here(path): judged for path, judged in self._judged.items()}

    def _groups_here(self) -> list[DuplicateGroup]:
        return [
            replace(
                group,
                paths=tuple(map(self._here, group.paths)),
                pairs=tuple((self._here(one), self._here(other), like) for one, other, like in group.pairs),
            )
            for group in self.duplicates
        ]

    @overload
    def to_csv(self, path: None = None) -> str: ...

    @overload
    def to_csv(self, path: str | os.PathLike[str]) -> None: ...

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """Return the findings as CSV, or write it to the file ``path``; names that are not UTF-8 are escaped."""
        text = io.StringIO(newline="")
        rows = csv.writer(text)
        rows.writerow(_COLUMNS)
        rows.writerows(map(_row, self.findings))
        return delivered(text.getvalue(), self._target(path))

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write the findings as a Parquet table (needs the extra ``parquet``).

        Raises:
            FtkitError: pyarrow is not installed.
        """
        write_parquet(self._target(path), dict.fromkeys(_COLUMNS, str), map(_row, self.findings))

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write one self-contained page to review what was found: by kind, copies side by side, full size on a click.

        Files are chosen there with the mouse or the keyboard; a button saves the choice as a list, which `quarantine`
        takes as ``only``. The page works from a disk, with JavaScript, and makes no requests. It finds the images
        themselves, for the full size, as long as it and the data set stay where they are; thumbnails are part of it.
        """
        self._show(self._target(path), "The scan changed nothing.", self._findings_here(), self._groups_here())

    def _show(
        self,
        path: str | os.PathLike[str],
        note: str,
        findings: list[Finding],
        groups: list[DuplicateGroup],
        moved_to: str | None = None,
    ) -> None:
        from ftkit._images.gallery import write_gallery  # what it needs, a scan does without

        counts = f"{plural(self.files, 'file')}, {plural(self.images, 'usable image')}."
        homes = "|".join(re.escape(os.path.join(home, "")) for home in (self.root, self._place))  # noqa: PTH118
        prefix = re.compile(rf"(?<!\S)(?:{homes})")
        findings = [replace(finding, detail=prefix.sub("", finding.detail)) for finding in findings]
        rows = (row._replace(path=self._here(row.path)) for row in self.table)
        write_gallery(path, self._place, f"{counts} {note}", findings, groups, rows, self.classes, moved_to)

    def quarantine(
        self,
        dest: str | os.PathLike[str],
        kinds: Iterable[str] | None = None,
        *,
        only: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None = None,
        dry_run: bool = False,
    ) -> Quarantine:
        """Move files out of the data set; nothing is deleted, and `ftkit.restore` moves them back.

        A file stays, and is listed as ``left``, when it has changed since the scan, when it is reached through a
        linked folder, or when a link that stays leads to it. So does a copy, unless ``only`` names it, when no file
        that it is a copy of would stay.

        Args:
            dest: A folder outside the scanned one, for the files under their old names, a
                manifest written before the first move, and a gallery to look at.
            kinds: What to move: kinds of findings, severities, ``"leaks"`` (of an image that is in
                training and in evaluation, the training copy), ``"eval_leaks"`` (of one in validation
                and test, the former copy) or ``"duplicates"`` (all but one copy in a split). By default unusable
                files and junk; odd files stay, and so does ``"other_file"``, such as a ``labels.csv``.
            only: The files to move, whatever was found about them unless ``kinds`` says so, too: their paths, relative
                to the data set or from anywhere, or the list of them that the page of `to_html` has saved.
            dry_run: Only return what would move; change nothing.

        Returns:
            Where the files are now, how many were moved, what was left, and the manifest.

        Raises:
            FtkitError: A kind is unknown, nothing is chosen, the report has no finding about a path in ``only``
                (nor was it moved to ``dest`` before), ``dest`` can't be written or is inside the data set, or
                the data set has gone.
        """
        gone = moved_before(self._place, dest) if only is not None else ()
        groups = self._groups_here()
        chosen = choose(self._place, self._findings_here(), groups, kinds, only, gone, self.root)
        note = "Below is what was set aside; ftkit.restore(manifest) moves it back."
        dry_run = flag("dry_run", dry_run)

        def show(page: Path, moved_to: str, paths: Collection[str]) -> None:
            moving = [finding for finding in chosen if below(self._place, finding.path) in paths]
            copies = {finding.path for finding in moving if KINDS[finding.kind].family}
            shown = [group for group in groups if not copies.isdisjoint(group.paths)]
            self._show(page, note, moving, shown, moved_to)

        pairs = [pair[:2] for group in groups for pair in group.pairs] if only is None else None
        return move_away(self._place, chosen, dest, self._judged_here(), None if dry_run else show, pairs)

    def repair(
        self,
        dest: str | os.PathLike[str] | None = None,
        kinds: Iterable[str] | None = None,
        *,
        only: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None = None,
        dry_run: bool = False,
    ) -> Repair:
        """Write repaired copies of what is odd but whole: extension fixed, turned upright, CMYK made RGB, and so on.

        The originals are left unchanged. Where possible, so are the pixels (an extension, an end
        marker, a checksum); an image that must be re-encoded becomes a JPEG of quality 95 or a PNG.

        Args:
            dest: The folder for the copies; by default the data set's path with ``-repaired`` appended.
            kinds: What to repair: kinds of findings or severities; by default all that can be repaired.
            only: The files to repair, as for `quarantine`.
            dry_run: Repair, but write nothing: the report says what would come of it.

        Raises:
            FtkitError: ``dest`` is a list of kinds, inside the data set or behind a URL, a kind is unknown, the report
                has no finding about a path in ``only``, or the data set has gone.
        """
        asked = kinds is not None or only is not None
        mendable = [kind for kind, known in KINDS.items() if known.mendable]
        findings, groups = self._findings_here(), self._groups_here()
        done = repair(
            self._place,
            findings,
            dest,
            lambda: choose(self._place, findings, groups, kinds if asked else mendable, only, (), self.root),
            self._judged_here(),
            report_others=asked,
            dry_run=flag("dry_run", dry_run),
        )
        named = {here.path: finding.path for here, finding in zip(findings, self.findings, strict=True)}
        made = {named.get(path, path): copy for path, copy in done.made.items()}
        return replace(done, made=made, failed={named.get(path, path): why for path, why in done.failed.items()})

    def image_folder_filter(self, kinds: Iterable[str] | None = None) -> Callable[[str], bool]:
        """Return an ``is_valid_file`` for torchvision's ImageFolder that skips what was found.

        It accepts the file extensions that ImageFolder accepts by default, and raises `FtkitError` for a file that is
        not in the scanned folder, by whatever path.

        Args:
            kinds: What to skip: kinds, severities, ``"leaks"`` or ``"duplicates"``; by default as in `quarantine`.
        """
        root = self.root.rstrip("/") if "://" in self.root else os.path.realpath(self._place)
        going: dict[str, list[str]] = {}
        for finding in filter(chooser(kinds), self.findings):
            going.setdefault(finding.path, []).append(finding.kind)
        pairs = (pair[:2] for group in self.duplicates for pair in group.pairs)
        bad = going.keys() - last_copies(going, pairs, lambda _: True).keys()
        return _Filter(root, frozenset(os.path.relpath(path, self.root) for path in bad))


@dataclass(frozen=True, slots=True)
class _Filter:
    """A class, not a closure, so that it can be pickled for the workers of a DataLoader."""

    root: str
    bad: frozenset[str]

    def __call__(self, path: str) -> bool:
        if not path.lower().endswith(LISTED_SUFFIXES):
            return False
        folder, name = os.path.split(path)
        return os.path.join(_below(self.root, folder), name) not in self.bad  # noqa: PTH118


@lru_cache(1024)
def _below(root: str, folder: str) -> str:
    """Return where a folder lies below the scanned one, by whatever name that goes; links in it count as folders."""
    if "://" in root and (folder + "/").startswith(root + "/"):
        return folder[len(root) + 1 :]
    place = Path(folder).absolute()
    for above in (place, *place.parents):
        if os.path.realpath(above) == root:
            return "" if above == place else str(place.relative_to(above))
    raise FtkitError(f"{folder} is not in {root}, the folder that was scanned. Scan the folder that you load from.")
