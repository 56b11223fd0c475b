"""Mended copies of what is odd but whole: of which files, and what came of it. decoding/mending.py makes each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ftkit._arguments import local_path
from ftkit._images.findings import KINDS, Finding, chooser
from ftkit._images.workers import Job, close_workers, run_jobs
from ftkit.errors import FileWriteError, FtkitError

_SECONDS = 60.0  # for one file


@dataclass(frozen=True, slots=True)
class Repair:
    """What a repair made.

    Attributes:
        folder: Where the copies are, under the paths of their originals.
        made: The copy of each original.
        failed: What could not be mended, and why.
    """

    folder: Path
    made: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.made):,} mended copies in {self.folder}; the originals are as they were"]
        lines += [f"  not mended: {path} ({why})" for path, why in self.failed.items()]
        return "\n".join(lines)


def repair(
    root: str, findings: Sequence[Finding], kinds: Iterable[str] | None, dest: str | os.PathLike[str] | None
) -> Repair:
    """Write mended copies of files below ``root``; see `ScanReport.repair`."""
    wanted = chooser([kind for kind, known in KINDS.items() if known.mendable] if kinds is None else kinds)
    if "://" in root:
        raise FtkitError(f"{root} is no folder of this machine; copy it here to repair its files.")
    home = Path(root).resolve()
    repaired = home.with_name(f"{home.name}-repaired")
    folder = (repaired if dest is None else local_path("dest", dest, error=FileWriteError)).resolve()
    if folder.is_relative_to(home):
        raise FtkitError(f"{folder} lies inside the data set, where the copies would be duplicates. Choose another.")
    chosen: dict[str, list[str]] = {}
    hopeless = {f.path for f in findings if f.severity == "unusable" and not KINDS[f.kind].mendable}
    for finding in filter(wanted, findings):
        if KINDS[finding.kind].mendable and finding.path not in hopeless:
            chosen.setdefault(finding.path, []).append(finding.kind)
    jobs = [
        Job("repair", (str(Path(path).absolute()), why, str(folder / os.path.relpath(path, root))))
        for path, why in chosen.items()
    ]
    result = Repair(folder)
    try:
        for path, answer in zip(chosen, run_jobs(jobs, _SECONDS), strict=True):
            if answer.lost:
                result.failed[path] = answer.lost.detail
            else:
                result.made[path] = answer.value
    finally:
        close_workers()
    return result
