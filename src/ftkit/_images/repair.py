"""Repaired copies of what is odd but whole: of which files, and what came of it. decoding/mending.py makes each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ftkit._arguments import local_path
from ftkit._images.findings import KINDS, SEVERITIES, Finding
from ftkit._images.folders import Folder, Judged, below, is_inside, require_folder
from ftkit._images.workers import Job, close_workers, run_jobs
from ftkit._reports import Grid, Parts, Report
from ftkit._wording import plural, some
from ftkit.errors import FileWriteError, FtkitError

_SECONDS = 60.0  # for one file


@dataclass(frozen=True, slots=True, repr=False)
class Repair(Report):
    """What a repair wrote.

    Attributes:
        folder: Where the copies are, under the same relative paths as their originals; not made for none.
        made: The copy of each original.
        failed: What could not be repaired, and why.
        dry_run: Whether nothing was written, and ``made`` is what would be.
    """

    folder: Path
    made: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    dry_run: bool = False

    def _parts(self) -> Parts:
        copies = plural(len(self.made), "repaired copy", "repaired copies")
        none = "nothing was repaired" if self.failed else "nothing to mend"
        if self.made and self.dry_run:
            yield f"{copies} would be written to {self.folder}; nothing was"
            yield Grid(list(self.made.items()), names=(0, 1))
        else:
            yield f"{copies} in {self.folder}; the originals are unchanged" if self.made else none
        if renamed := [copy for path, copy in self.made.items() if Path(copy).stem != Path(path).stem]:
            yield f"  called so as another image has the plain name: {some(renamed, 3)}"
        yield Grid([(path, f"not repaired: {why}") for path, why in self.failed.items()])


def repair(
    root: str,
    findings: Sequence[Finding],
    dest: str | os.PathLike[str] | None,
    choose: Callable[[], Iterable[Finding]],
    judged: Mapping[str, Judged],
    *,
    report_others: bool,
    dry_run: bool,
) -> Repair:
    """Write repaired copies of files below ``root``; see `ScanReport.repair`.

    Args:
        root: The folder that was scanned.
        findings: All of them.
        dest: The folder for the copies.
        choose: Returns the findings to mend.
        judged: What the scan saw of the files; one that has changed since is not mended.
        report_others: Whether those of them that can't be mended are reported.
        dry_run: Whether nothing is written.
    """
    given: object = dest  # kinds came first once
    if not isinstance(given, str | os.PathLike | None) or given in (*KINDS, *SEVERITIES):
        raise FtkitError(f"Expected a folder for the copies, got {dest!r}. Kinds come second: repair(kinds=...).")
    wanted = choose()
    if "://" in root:
        raise FtkitError(f"{root} is not a local folder. Copy it to this machine to repair its files.")
    require_folder(root)
    home = Path(os.path.realpath(root))
    repaired = home.with_name(f"{home.name}-repaired")
    folder = Path(os.path.realpath(repaired if dest is None else local_path("dest", dest, error=FileWriteError)))
    if is_inside(folder, home):
        raise FtkitError(f"{folder} is inside the data set, where the copies would be duplicates. Choose another.")
    chosen: dict[str, list[str]] = {}
    hopeless = {f.path: f.kind for f in findings if f.severity == "unusable" and not KINDS[f.kind].mendable}
    beyond: dict[str, str] = {}
    for finding in wanted:
        if KINDS[finding.kind].mendable and finding.path not in hopeless:
            chosen.setdefault(finding.path, []).append(finding.kind)
        elif report_others:
            beyond[finding.path] = hopeless.get(finding.path, finding.kind)
    changed = {path: why for path in chosen if path in judged and (why := _change(Folder(root), path, judged[path]))}
    for path in changed:
        del chosen[path]
    alike = _Alike()
    jobs = [
        Job("repair", (path, why, str(folder / os.path.relpath(path, root)), alike.names(Path(path)), dry_run))
        for path, why in chosen.items()
    ]
    result = Repair(folder, failed=changed, dry_run=dry_run)
    missing = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    for path in sorted(beyond.keys() - chosen.keys() - changed.keys()):
        result.failed[path] = f"{beyond[path]} can't be mended ({KINDS[beyond[path]].remedy})"
    try:
        for path, answer in zip(chosen, run_jobs(jobs, _SECONDS), strict=True):
            if answer.lost:
                result.failed[path] = answer.lost.detail
            else:
                result.made[path] = answer.value
    finally:
        close_workers()
    if missing and not result.made:
        for place in [*(Path(inside) for inside, _, _ in os.walk(folder, topdown=False)), *missing[1:]]:
            with suppress(OSError):  # not empty: somebody else's
                place.rmdir()
    return result


class _Alike:
    """The names in each folder, case folded: a copy must not be taken for another file's, on any system."""

    def __init__(self) -> None:
        self._names: dict[Path, dict[str, list[str]]] = {}

    def names(self, path: Path) -> list[str]:
        """Return the other names beside a file that begin like its own, up to the first dot."""
        if path.parent not in self._names:
            by_start = self._names[path.parent] = {}
            with suppress(OSError):
                for other in path.parent.iterdir():
                    name = other.name.casefold()
                    by_start.setdefault(name.partition(".")[0], []).append(name)
        name = path.name.casefold()
        return [other for other in self._names[path.parent].get(name.partition(".")[0], ()) if other != name]


def _change(data: Folder, path: str, seen: Judged) -> str:
    """Return what has become of a file since the scan, or why that can't be told."""
    try:
        return data.change(below(data.name, path), *seen)
    except OSError as error:
        return error.strerror or str(error)
