"""One page, without anything beside it, to look at what a scan found."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from ftkit._files import atomic_write
from ftkit._images.findings import COPIES, KINDS, Finding
from ftkit._images.folders import read_bytes
from ftkit._images.workers import Casualty, close_workers, run_jobs

if TYPE_CHECKING:
    from ftkit._images.report import ScanReport

__all__ = ["write_gallery"]

_SHOWN = 48  # thumbnails of a kind
_GROUPS = 60
_SIDE = 160
_SECONDS = 10.0

_PAGE = Path(__file__).with_name("gallery.html")


def write_gallery(report: ScanReport, path: str | os.PathLike[str], findings: Sequence[Finding] | None = None) -> None:
    """Write the page for ``findings``, by default all of the report's, and its duplicates.

    The thumbnails are made in worker processes, as everything that decodes.
    """
    from jinja2 import Environment

    by_kind: dict[str, list[Finding]] = {kind: [] for kind in KINDS}  # keeps the order of gravity
    for finding in report.findings if findings is None else findings:
        by_kind[finding.kind].append(finding)
    chosen = None if findings is None else {finding.path for finding in findings if finding.kind in COPIES}
    groups = [g for g in report.duplicates if chosen is None or chosen.intersection(g.paths)]
    groups.sort(key=lambda g: (not g.crosses_splits, not g.crosses_classes, g.kind, g.paths))
    wanted = dict.fromkeys(
        [f.path for found in by_kind.values() for f in found[:_SHOWN]]
        + [p for g in groups[:_GROUPS] for p in g.paths[:12]]
    )
    thumbnails = _thumbnails(list(wanted))

    def card(path: str, detail: str = "") -> dict[str, Any]:
        name = path.removeprefix(report.root).lstrip("/" + os.sep)
        return {"path": _show(path), "name": _show(name), "detail": _show(detail), "image": thumbnails.get(path, "")}

    sections = [
        {"kind": kind, **KINDS[kind]._asdict(), "count": len(f), "cards": [card(x.path, x.detail) for x in f[:_SHOWN]]}
        for kind, f in by_kind.items()
        if f
    ]
    shown = [
        {
            "title": f"{g.kind}: {len(g.paths)} copies"
            + (f", in {' and '.join(g.splits)}" if g.crosses_splits else "")
            + (f", labelled {' and '.join(g.classes)}" if g.crosses_classes else ""),
            "cards": [card(p) for p in g.paths[:12]],
            "more": max(0, len(g.paths) - 12),
        }
        for g in groups[:_GROUPS]
    ]
    page = Environment(autoescape=True).from_string(_PAGE.read_text())
    text = page.render(
        root=_show(PurePath(report.root).name or report.root),
        files=report.files,
        images=report.images,
        note="Nothing was changed by the scan."
        if findings is None
        else "These were set aside; the manifest brings them back.",
        sections=sections,
        groups=shown,
        group_count=len(groups),
    )
    with atomic_write(path) as file:
        file.write(text.encode())


def _show(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _thumbnails(paths: list[str]) -> dict[str, str]:
    """Make the pictures in worker processes; a file behind a URL is read here."""
    made: dict[str, str] = {}
    far = [path for path in paths if "://" in path]
    near = [path for path in paths if "://" not in path]
    try:
        for number, answer in run_jobs([["thumbnail", str(Path(path).absolute()), _SIDE] for path in near], _SECONDS):
            made[near[number]] = "" if isinstance(answer, Casualty) else json.loads(answer)
        for path in far:
            data = read_bytes(path)
            if data is not None:
                ((_, answer),) = run_jobs([["thumbnail", path, _SIDE]], _SECONDS, [data])
                made[path] = "" if isinstance(answer, Casualty) else json.loads(answer)
    finally:
        close_workers()
    return made
