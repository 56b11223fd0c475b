"""What a user has chosen among the findings: by kind, by a list of paths, or both."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from posixpath import normpath

from ftkit._arguments import came, listed, local_path
from ftkit._images.findings import DuplicateGroup, Finding, chooser, leak_of
from ftkit._images.folders import below
from ftkit._wording import plural, shown
from ftkit.errors import FtkitError, did_you_mean

_MOST_CANDIDATES = 2000  # for the closest name, which takes a while to find
_ESCAPE = re.compile(r"\\u(dc[89a-f][0-9a-f])")  # as to_csv and to_parquet write a byte that is not UTF-8


def choose(
    root: str,
    findings: Sequence[Finding],
    groups: Sequence[DuplicateGroup],
    kinds: Iterable[str] | None,
    only: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None,
    gone: Iterable[str] = (),
    written: str = "",
) -> list[Finding]:
    """Return the findings that were chosen.

    Args:
        root: The folder that was scanned.
        findings: All of them.
        groups: The copies; one that stays by default, and has no finding, may be chosen, too.
        kinds: Kinds and the like; None for the default or, if there is a list, for all.
        only: Paths, or the file that lists them, one on each line.
        gone: Paths relative to ``root`` that were moved away before, and may be listed still.
        written: The same folder as the findings' paths begin in a report: the caller may be elsewhere by now.

    Raises:
        FtkitError: There is no such kind, list, or path in the report; or nothing is chosen.
    """
    kinds = kinds if kinds is None or isinstance(kinds, str) else listed("kinds", kinds, "kinds of findings")
    wanted = chooser(kinds)
    if only is None:
        return list(filter(wanted, findings))
    by_path: dict[str, list[Finding]] = {}
    for finding in findings:
        by_path.setdefault(finding.path, []).append(finding)
    for group in groups:
        kind = leak_of(group.splits) if group.crosses_splits else "duplicate"
        if group.kind == "near":
            kind = f"near_{kind}"
        for path in group.paths:
            others = ", ".join(other for other in group.paths if other != path)
            by_path.setdefault(path, [Finding(path, kind, "odd", f"also at {others}")])
    known = {below(root, path): path for path in by_path}
    for name in gone:
        if name not in known:
            path = known[name] = os.path.join(root, name)  # noqa: PTH118  (as the scan joins them)
            by_path[path] = [Finding(path, "vanished", "unusable", "moved before")]
    prefix = os.path.join(written, "")  # noqa: PTH118  (as the scan joins them)
    entries = _entries(root, only, known)
    rests = ((entry, entry.removeprefix(prefix)) for entry in entries)
    entries = [rest if entry not in known and rest in known else entry for entry, rest in rests]
    paths = _found(root, entries, known)
    return [finding for path in paths for finding in by_path[path] if kinds is None or wanted(finding)]


def _entries(
    root: str, only: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], known: dict[str, str]
) -> list[str]:
    """Return what a list contains."""
    if not isinstance(only, str | bytes | os.PathLike):
        entries = listed("only", only, "paths, or the file that lists them")
        for entry in entries:
            if not isinstance(entry, str | bytes | os.PathLike):
                raise FtkitError(f"only must be a list of paths, but {came(entry)} is not a path.")
        return [os.fsdecode(entry) for entry in entries]
    file = local_path("only", only)
    try:
        is_listed = not {str(only), str(file.absolute())}.isdisjoint(known.values())
        data = None if is_listed else file.read_bytes()
    except OSError as error:
        if not known.keys().isdisjoint(_readings(root, str(file))):
            raise FtkitError(
                f"{shown(file)} is a file of the data set, not a list. Pass only=[{str(only)!r}]."
            ) from error
        raise FtkitError(
            f"Can't read the list {shown(file)}: {error.strerror}. Pass the file that the page has saved, or the paths "
            f"as a list: only=[...]."
        ) from error
    if data is None or b"\0" in data[:4096].removeprefix(codecs.BOM_UTF16_LE)[::2]:
        raise FtkitError(f"{shown(file)} is not a list of paths. Pass the file that lists them, or only=[...].")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as PowerShell writes it
        return list(map(_unquoted, data.decode("utf-16", "replace").splitlines()))
    return list(map(_unquoted, data.decode("utf-8-sig", "surrogateescape").replace("\r\n", "\n").split("\n")))


def _unquoted(line: str) -> str:
    """Return the path on a line: as it is, or as a JSON string, for names that a line can't hold."""
    if line.startswith('"'):
        try:
            path = json.loads(line)
        except ValueError:
            return line
        if isinstance(path, str):
            return path
    return line


def _found(root: str, entries: Iterable[str], known: dict[str, str]) -> list[str]:
    """Return the paths that entries stand for, by their paths below ``root``, each once."""
    found: dict[str, None] = {}
    unknown = []
    entries = list(filter(str.strip, entries))
    if not entries:
        raise FtkitError("only lists no path, so nothing is chosen. List paths, or leave it out.")
    for entry in entries:
        texts = dict.fromkeys((entry, _unescaped(entry)))
        names = (next((reading for reading in _plain_readings(root, text) if reading in known), None) for text in texts)
        match list(filter(None, names)):
            case []:
                unknown.append(entry)
            case [name]:
                found[known[name]] = None
            case _:
                raise FtkitError(
                    f"{shown(repr(entry))} stands for two files: one of that name, and one whose name is not UTF-8 and "
                    f"is written like this. Rename one of them, and scan again."
                )
    if unknown:
        first = unknown[0]
        others = f" (and {plural(len(unknown) - 1, 'more path')})" if len(unknown) > 1 else ""
        if "://" not in root and any(os.path.lexists(Path(root, way)) for way in _below(root, first)):
            raise FtkitError(
                f"This report has no finding about {shown(repr(first))}{others}. The file is in {root}, and nothing "
                f"was found about it. Take it off the list, or move it yourself."
            )
        close = did_you_mean(_readings(root, first)[-1], _candidates(first, known))
        if not close:
            close = next((f" Did you mean {path!r}?" for path in known if path.endswith("/" + first.strip())), "")
        comment = " Each line is a path: a list has no comments." if first.startswith("#") else ""
        if first.startswith("path,"):
            comment = " That is the head of a table: pass the paths in it, as only=[...]."
        raise FtkitError(
            f"This report has no finding about {shown(repr(first))}{others}.{close}{comment} List paths as the page "
            f"saves them, relative to {root}."
        )
    return list(found)


def _below(root: str, entry: str) -> list[str]:
    """Return the readings of an entry that lie below ``root``."""
    return [way for way in _readings(root, entry) if not os.path.isabs(way) and ".." not in Path(way).parts]  # noqa: PTH117


def _unescaped(entry: str) -> str:
    """Return a path with the bytes that are not UTF-8, which tables of findings escape."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), entry)


def _readings(root: str, entry: str) -> list[str]:
    """Return what an entry may mean, relative to ``root``, the likeliest first.

    It may be a path from anywhere, have other separators, or have escapes for what is not UTF-8.
    """
    return [name for text in dict.fromkeys((entry, _unescaped(entry))) for name in _plain_readings(root, text)]


def _plain_readings(root: str, entry: str) -> list[str]:
    plain = entry.strip()
    names = [entry, plain, normpath(plain), normpath(plain.replace("\\", "/"))]
    if "://" not in root:
        place = Path(os.path.expanduser(plain)).absolute()  # noqa: PTH111  (which leaves a '~name' of no user as is)
        for home, path in (
            (os.path.abspath(root), os.path.normpath(place)),  # noqa: PTH100  (Path keeps the dots)
            (os.path.realpath(root), os.path.join(os.path.realpath(place.parent), place.name)),  # noqa: PTH118
        ):
            if Path(path).is_relative_to(home):
                names.append(Path(path).relative_to(home).as_posix())
    return names


def _candidates(entry: str, known: Collection[str]) -> list[str]:
    """Return the paths that are worth comparing with one that is not known, those in its folder first."""
    *_, folder, name = ["", *entry.replace("\\", "/").split("/")]
    near = [path for path in known if path.endswith("/" + name) or folder in path.split("/")[-2:-1]]
    candidates = [*near, *known]
    return sorted(candidates[:_MOST_CANDIDATES], key=lambda path: not path.isprintable())
