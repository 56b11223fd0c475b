"""One self-contained page, to look at what a scan found."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from ftkit._files import atomic_write
from ftkit._images.findings import KINDS, DuplicateGroup, Finding
from ftkit._images.folders import read_bytes
from ftkit._images.workers import Answer, Job, close_workers, run_jobs

_SHOWN = 48  # thumbnails of a kind
_GROUPS = 60  # of copies
_COPIES = 12  # thumbnails of a group
_SIDE = 160  # pixels
_SECONDS = 10.0  # for one thumbnail

_PAGE = Path(__file__).with_name("gallery.html")


def write_gallery(
    path: str | os.PathLike[str], root: str, note: str, findings: Iterable[Finding], groups: Sequence[DuplicateGroup]
) -> None:
    """Write the page. The thumbnails are made in worker processes, like everything that decodes.

    Args:
        path: The file to write.
        root: The folder that was scanned.
        note: What to say about the scan.
        findings: What to show, by kind, in the order of `KINDS`.
        groups: The copies to show side by side, those across splits and classes first.
    """
    from jinja2 import Environment

    by_kind: dict[str, list[Finding]] = {kind: [] for kind in KINDS}
    for finding in findings:
        by_kind[finding.kind].append(finding)
    shown = sorted(groups, key=lambda g: (not g.crosses_splits, not g.crosses_classes, g.kind, g.paths))[:_GROUPS]
    wanted = [finding.path for found in by_kind.values() for finding in found[:_SHOWN]]
    wanted += [copy for group in shown for copy in group.paths[:_COPIES]]
    page = Environment(autoescape=True, finalize=_escape).from_string(_PAGE.read_text())
    text = page.render(
        root=PurePath(root).name or root,
        note=note,
        kinds=KINDS,
        by_kind={kind: found for kind, found in by_kind.items() if found},
        groups=shown,
        group_count=len(groups),
        thumbnails=_thumbnails(list(dict.fromkeys(wanted))),
        name=lambda path: path.removeprefix(root).lstrip("/" + os.sep),
        most_cards=_SHOWN,
        most_copies=_COPIES,
    )
    with atomic_write(path) as file:
        file.write(text.encode())


def _escape(value: object) -> object:
    """Make names that are not UTF-8 fit for the page."""
    return value.encode(errors="backslashreplace").decode() if type(value) is str else value


def _thumbnails(paths: list[str]) -> dict[str, str]:
    """Make the pictures in worker processes; a file behind a URL is read here."""
    far = [path for path in paths if "://" in path]
    near = [path for path in paths if "://" not in path]
    try:
        answers = run_jobs([Job("thumbnail", (str(Path(path).absolute()), _SIDE)) for path in near], _SECONDS)
        made = dict(zip(near, answers, strict=True))
        made |= {path: _far_thumbnail(path) for path in far}
    finally:
        close_workers()
    return {path: answer.value or "" for path, answer in made.items()}


def _far_thumbnail(url: str) -> Answer:
    data = read_bytes(url)
    if data is None:
        return Answer(b"null")
    (answer,) = run_jobs([Job("thumbnail", (url, _SIDE), data)], _SECONDS)
    return answer
