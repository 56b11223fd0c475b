"""One self-contained page, to review what a scan found and to choose what moves."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import shlex
from bisect import bisect_right
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

from ftkit._files import atomic_write
from ftkit._images.findings import KINDS, DuplicateGroup, Finding
from ftkit._images.folders import below, read_bytes
from ftkit._images.manifest import PAGE_MARK
from ftkit._images.table import ImageRow
from ftkit._images.workers import Job, close_workers, core_count, run_jobs
from ftkit._wording import plural, some

_THUMBNAILS = 10_000  # files that have one
_TASK = 32  # thumbnails at a time
_SIDE = 160  # pixels
_SECONDS = 10.0  # for one thumbnail
_CLASSES = 24  # in the chart
_NAMED = 8  # splits or classes in a title
_LEAST_SIDE, _MOST_SIDE = 32, 4096  # between which the chart of sizes has a bar for each doubling

_PAGE = Path(__file__).with_name("gallery.html")
_MARK = re.compile(r"\{\{(\w+)\}\}")
_SCRIPT = re.compile("<script>(.*?)</script>", re.DOTALL)
_UNFIT = re.compile(r"[^\w.-]+", re.ASCII)  # in the name of a file on every system


def write_gallery(
    path: str | os.PathLike[str],
    root: str,
    note: str,
    findings: Iterable[Finding],
    groups: Sequence[DuplicateGroup],
    table: Iterable[ImageRow],
    classes: Mapping[str, int],
    moved_to: str | None = None,
) -> None:
    """Write the page. The thumbnails are made in worker processes, like everything that decodes.

    The page holds its data as JSON, and a script makes cards of what is looked at. Names are only ever text in it.

    Args:
        path: The file to write.
        root: The folder that was scanned.
        note: What to say about the scan.
        findings: What to show, by kind, in the order of `KINDS`.
        groups: The copies to show side by side, those across splits and classes first.
        table: The usable images.
        classes: How many there are in each class, under ``"split/class"``.
        moved_to: The folder, next to the page, that the files move to; there is nothing to choose then.
    """
    by_path: dict[str, list[Finding]] = {}
    by_kind: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for finding in findings:
        by_path.setdefault(finding.path, []).append(finding)
        by_kind[finding.kind].append(finding.path)
    groups = sorted(groups, key=lambda g: (not g.crosses_splits, not g.crosses_classes, g.kind, g.paths))
    # In the order in which they are shown; a thumbnail first for those on top in their kind.
    ranks = {file: rank for files in by_kind.values() for rank, file in enumerate(files)}
    ranks |= {file: rank for rank, group in enumerate(groups) for file in group.paths}
    numbers = {file: number for number, file in enumerate(ranks)}
    rows, sizes = _rows(table, numbers)
    kinds = [kind for kind, files in by_kind.items() if files]
    data = {
        "root": PurePath(root).name or root,
        "note": note,
        "base": _base(path, root) if moved_to is None else quote(moved_to) + "/",
        "choose": moved_to is None,
        "command": f"ftkit quarantine {shlex.quote(root)} FOLDER --only {shlex.quote(_list_name(root))}",
        "list": _list_name(root),
        "charts": [chart for chart in (_class_chart(classes), _size_chart(sizes)) if chart],
        "kinds": [(kind, *KINDS[kind][:3], [numbers[file] for file in by_kind[kind]]) for kind in kinds],
        "groups": [_group(group, numbers) for group in groups],
        "files": [
            {
                "path": below(root, file),
                "notes": [(kinds.index(found.kind), found.detail) for found in by_path.get(file, ())],
                "row": rows.get(file),
                "pick": moved_to is None and _may_move(file, by_path.get(file, ())),
            }
            for file in numbers
        ],
    }
    before, after = _PAGE.read_text(encoding="utf-8").split("{{thumbnails}}")
    parts = {
        "generator": "ftkit" if moved_to is None else PAGE_MARK,
        "title": html.escape(_readable(PurePath(root).name or root)),
        "policy": f"sha256-{base64.b64encode(hashlib.sha256(_SCRIPT.findall(after)[0].encode()).digest()).decode()}",
        "data": json.dumps(data).replace("<", "\\u003c"),
    }
    first = set(sorted(ranks, key=ranks.__getitem__)[:_THUMBNAILS])

    def place(name: str) -> str:
        """Return where a file is now."""
        there = "" if moved_to is None else str(Path(path).parent / moved_to / below(root, name))
        return there if os.path.lexists(there) else name

    wanted = (place(name) if name in first else "" for name in numbers)
    with atomic_write(path) as file:
        file.write(_MARK.sub(lambda mark: parts[mark[1]], before).encode())
        for thumbnail in _thumbnails("" if _is_folder(name) else name for name in wanted):
            file.write(f"{thumbnail}\n".encode())
        file.write(after.encode())


def _readable(name: str) -> str:
    """Return a name for the page, also one that is not UTF-8."""
    return name.encode(errors="backslashreplace").decode()


def _list_name(root: str) -> str:
    """Return what the list of the chosen files is to be called."""
    return f"{_UNFIT.sub('-', PurePath(root).name).strip('-') or 'files'}-chosen.txt"


def _base(page: str | os.PathLike[str], root: str) -> str | None:
    """Return what turns a path below ``root`` into a URL, as the page sees it; None if a browser can't open it."""
    if "://" in root:
        return None
    home, place = Path(os.path.realpath(root)), Path(os.path.realpath(page)).parent
    try:
        relative = os.path.relpath(home, place).replace(os.sep, "/")
    except ValueError:  # another drive
        return home.as_uri() + "/"
    return quote(os.fsencode(relative)) + "/"


def _may_move(file: str, findings: Iterable[Finding]) -> bool:
    """Whether a quarantine could move it: of folders, only empty ones and links."""
    if "://" in file:
        return False
    is_empty = any(finding.kind == "empty_folder" for finding in findings)
    return is_empty or not _is_folder(file)


def _is_folder(file: str) -> bool:
    return os.path.isdir(file) and not os.path.islink(file)  # noqa: PTH112, PTH114  (Path raises where it may not look)


def _rows(table: Iterable[ImageRow], wanted: Container[str]) -> tuple[dict[str, tuple[Any, ...]], Counter[int]]:
    """Return the facts about the images that are shown, and how many images there are of each shorter side."""
    rows, sides = {}, Counter[int]()
    for row in table:
        sides[min(row.width, row.height)] += 1
        if row.path in wanted:
            place = "/".join(filter(None, (row.split, row.class_))) or "no class"
            rows[row.path] = row.width, row.height, row.mode, row.bytes, place, row.sharpness, row.hash
    return rows, sides


def _group(group: DuplicateGroup, numbers: Mapping[str, int]) -> tuple[str, list[int], list[float | None]]:
    """Return a group's title, its files, and how similar each but the first is to it, if it was found to be a copy."""
    places = [("in", group.splits), ("labeled", group.classes)]
    title = f"{group.kind}: {plural(len(group.paths), 'copy', 'copies')}"
    for word, names in places:
        if len(names) > 1:
            all_of_them = f"{', '.join(names[:-1])} and {names[-1]}"
            title += f", {word} {some(names, _NAMED) if len(names) > _NAMED else all_of_them}"
    first, *others = group.paths
    similar = {one if other == first else other: like for one, other, like in group.pairs if first in (one, other)}
    return title, [numbers[file] for file in group.paths], [similar.get(file) for file in others]


def _class_chart(classes: Mapping[str, int]) -> dict[str, Any] | None:
    totals, splits = Counter[str](), Counter[str]()
    for place, count in classes.items():
        split, _, name = place.rpartition("/")
        totals[name] += count
        splits[split] += count
    order = [split for split, _ in splits.most_common()]
    shown = totals.most_common(_CLASSES)
    rows = [(name, [classes.get("/".join(filter(None, (split, name))), 0) for split in order]) for name, _ in shown]
    hidden = len(totals) - len(shown)
    more = f"and {plural(hidden, 'more class', 'more classes')}" if hidden else ""
    return _chart("Usable images by class", rows, order, more)


def _size_chart(sides: Mapping[int, int]) -> dict[str, Any] | None:
    edges = [_LEAST_SIDE]
    while edges[-1] < _MOST_SIDE:
        edges.append(2 * edges[-1])
    labels = [f"under {edges[0]}", *(f"{low:,} to {2 * low - 1:,}" for low in edges[:-1]), f"{edges[-1]:,} or more"]
    counts = [0] * len(labels)
    for side, count in sides.items():
        counts[bisect_right(edges, side)] += count
    there = [at for at, count in enumerate(counts) if count] or [0]
    rows = [(labels[at], [counts[at]]) for at in range(there[0], there[-1] + 1)]
    return _chart("Usable images by shorter side, in pixels", rows, [""], "")


def _chart(title: str, rows: list[tuple[str, list[int]]], splits: list[str], more: str) -> dict[str, Any] | None:
    """Return a chart for the page, if there is anything to show."""
    if not any(any(counts) for _, counts in rows):
        return None
    return {"title": title, "unit": "image", "rows": rows, "splits": splits, "more": more}


def _thumbnails(files: Iterable[str]) -> Iterator[str]:
    """Yield the pictures of files, each in Base64; nothing for an empty name, or when there is nothing to show."""
    tasks = iter(files)
    batches = iter(lambda: list(islice(tasks, _TASK)), [])
    try:
        with ThreadPoolExecutor(core_count(), thread_name_prefix="ftkit-page") as pool:
            yield from chain.from_iterable(pool.map(_some_thumbnails, batches))
    finally:
        close_workers()


def _some_thumbnails(files: Sequence[str]) -> list[str]:
    """Make thumbnails in a worker process; a file behind a URL is read here."""
    jobs = [_thumbnail_job(file) if file else None for file in files]
    answers = run_jobs([job for job in jobs if job], _SECONDS)
    return [next(answers).value or "" if job else "" for job in jobs]


def _thumbnail_job(file: str) -> Job | None:
    if "://" not in file:
        return Job("thumbnail", (str(Path(file).absolute()), _SIDE))
    data = read_bytes(file)
    return None if data is None else Job("thumbnail", (file, _SIDE), data)
