"""Mended copies of what is odd but whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ftkit._images.findings import KINDS, chooser
from ftkit._images.workers import Casualty, close_workers, run_jobs
from ftkit.errors import FtkitError

if TYPE_CHECKING:
    from ftkit._images.report import ScanReport

__all__ = ["MENDABLE", "Repair", "repair"]

#: The kinds that a copy can be rid of.
MENDABLE = frozenset(kind for kind, known in KINDS.items() if known.remedy.startswith("repair()"))


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


def repair(report: ScanReport, kinds: Iterable[str] | None, dest: str | os.PathLike[str] | None) -> Repair:
    """Write mended copies; see `ScanReport.repair`."""
    wanted = chooser(MENDABLE if kinds is None else kinds)
    if "://" in report.root:
        raise FtkitError(f"{report.root} is no folder of this machine; copy it here to repair its files.")
    root = Path(report.root).resolve()
    folder = (Path(dest) if dest is not None else root.with_name(f"{root.name}-repaired")).resolve()
    if folder.is_relative_to(root):
        raise FtkitError(f"{folder} lies inside the data set, where the copies would be duplicates. Choose another.")
    chosen: dict[str, list[str]] = {}
    for finding in report.findings:
        if finding.kind in MENDABLE and wanted(finding):
            chosen.setdefault(finding.path, []).append(finding.kind)
    for path in {finding.path for finding in report.unusable if finding.kind not in MENDABLE}:
        chosen.pop(path, None)
    jobs = [
        ["repair", str(Path(path).absolute()), kinds, str(folder / os.path.relpath(path, report.root))]
        for path, kinds in chosen.items()
    ]
    result = Repair(folder)
    names = list(chosen)
    try:
        for number, answer in run_jobs(jobs, 60.0):
            if isinstance(answer, Casualty):
                result.failed[names[number]] = answer.args[1]
            else:
                result.made[names[number]] = json.loads(answer)
    finally:
        close_workers()
    return result
