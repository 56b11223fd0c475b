"""Move what a scan found out of the data set, in a way that any moment of it can be undone."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple, Self

from ftkit._files import atomic_write, digest, remove_litter, sync_folder
from ftkit._images.findings import Finding
from ftkit._wording import some
from ftkit.errors import FtkitError


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Where a quarantine put things.

    Attributes:
        root: The data set's folder.
        folder: Where the files are now.
        manifest: What `ftkit.restore` needs to bring them back.
        gallery: A page with thumbnails of what was moved.
        moved: How many files went.
        kinds: How many files went for each kind of finding.
        emptied: Folders that held nothing any more and were taken away, too.
        left: What could not be moved, and why.
    """

    root: Path
    folder: Path
    manifest: Path
    gallery: Path
    moved: int
    kinds: dict[str, int] = field(default_factory=dict)
    emptied: list[str] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.moved:,} files moved from {self.root} to {self.folder}"]
        lines += [f"  {number:7,}  {kind}" for kind, number in sorted(self.kinds.items(), key=lambda kind: -kind[1])]
        if self.emptied:
            lines.append(f"  folders that are empty now and went along: {', '.join(self.emptied)}")
        lines += [f"  left where it is: {path} ({why})" for path, why in self.left]
        lines.append(f"Look at {self.gallery}; undo with ftkit.restore({str(self.manifest)!r}).")
        return "\n".join(lines)


class _Entry(NamedTuple):
    """What a manifest says of a file or link that moves, or of a folder that is taken away."""

    path: str
    type: str
    kinds: list[str]
    mtime: int
    mode: int

    @property
    def is_folder(self) -> bool:
        return self.type == "folder"

    @classmethod
    def of(cls, root: Path, path: str, kinds: list[str]) -> Self:
        status = (root / path).lstat()
        kind = {stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}.get(stat.S_IFMT(status.st_mode), "file")
        return cls(path, kind, kinds, status.st_mtime_ns, stat.S_IMODE(status.st_mode))


def move_away(
    root: str, findings: Iterable[Finding], dest: str | os.PathLike[str], show: Callable[[Path], None]
) -> Quarantine:
    """Move what ``findings`` are about below ``dest``; see `ScanReport.quarantine`.

    Args:
        root: The folder that was scanned.
        findings: What moves.
        dest: A folder outside.
        show: Writes the gallery, before anything moves.
    """
    if "://" in root:
        raise FtkitError(f"{root} can't be moved about in. Pass over its files with image_folder_filter().")
    home, target = Path(root).resolve(), Path(dest).resolve()
    if target.is_relative_to(home):
        raise FtkitError(
            f"{dest} lies inside the data set {root}, where it would become a class of its own. "
            f"Choose a folder outside, such as {home}-quarantine."
        )
    reasons: dict[str, list[str]] = {}
    for finding in findings:
        reasons.setdefault(os.path.relpath(finding.path, root), []).append(finding.kind)
    entries, left = _plan(home, reasons)
    numbers = chain([""], map("-{}".format, count(2)))
    number = next(number for number in numbers if not (target / f"manifest{number}.json").exists())
    folder, manifest = target / f"files{number}", target / f"manifest{number}.json"
    gallery = manifest.with_suffix(".html")
    show(gallery)
    facts = {"ftkit": "quarantine", "version": 1, "root": str(home), "folder": folder.name}
    with atomic_write(manifest) as file:
        file.write(json.dumps({**facts, "entries": [entry._asdict() for entry in entries]}, indent=1).encode())

    gone: list[_Entry] = []
    for entry in entries:
        try:
            if entry.is_folder:
                (home / entry.path).rmdir()
            else:
                _move(home / entry.path, folder / entry.path)
            gone.append(entry)
        except OSError as error:
            left.append((entry.path, _reason(error)))
    moved = [entry for entry in gone if not entry.is_folder]
    return Quarantine(
        root=home,
        folder=folder,
        manifest=manifest,
        gallery=gallery,
        moved=len(moved),
        kinds=dict(Counter(kind for entry in moved for kind in entry.kinds)),
        emptied=[entry.path for entry in gone if entry.is_folder],
        left=left,
    )


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _plan(root: Path, reasons: dict[str, list[str]]) -> tuple[list[_Entry], list[tuple[str, str]]]:
    """List the moves, files first, then the folders that they leave empty, the innermost first; and what must stay."""
    found: list[_Entry] = []
    left: list[tuple[str, str]] = []
    for path, kinds in sorted(reasons.items()):
        try:
            found.append(_Entry.of(root, path, kinds))
        except OSError as error:
            left.append((path, _reason(error)))
    plan = [entry for entry in found if not entry.is_folder]
    leaving = {root / entry.path for entry in plan}
    folders = {root / entry.path for entry in found if entry.is_folder}
    folders |= {parent for file in leaving for parent in file.parents if parent.is_relative_to(root)}
    for folder in sorted(folders - {root}, key=lambda folder: (-len(folder.parts), folder)):
        path = str(folder.relative_to(root))
        entry = _Entry.of(root, path, reasons.get(path, []))
        if entry.is_folder and leaving.issuperset(folder.iterdir()):
            leaving.add(folder)
            plan.append(entry)
        elif path in reasons:
            left.append((path, "a folder that is not empty"))
    return plan, left


def _move(source: Path, target: Path) -> None:
    """Move a file or link with its times, never onto another; killed at any point, one whole copy stands."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "something of that name is there already")
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if source.is_symlink():
            target.symlink_to(source.readlink())
        elif source.is_file():
            _copy_durably(source, target)
        else:
            raise
        source.unlink()


def _copy_durably(source: Path, target: Path) -> None:
    with source.open("rb") as old, atomic_write(target) as new:
        shutil.copyfileobj(old, new, 1 << 20)
    shutil.copystat(source, target)
    sync_folder(target.parent)


def restore(manifest: str | os.PathLike[str]) -> list[str]:
    """Bring back what `ScanReport.quarantine` moved; return the paths of the files that came back.

    It may be called after a quarantine or a restore that was killed half-way, and again: what is in
    its place already stays. The quarantine may lie elsewhere by now; the data set may not.

    Args:
        manifest: The manifest, or the quarantine's folder when there is but one in it.

    Raises:
        FtkitError: It is no manifest; or another file has taken an old place, in which
            case nothing is moved; or files are in neither place, after the others came back.

    Example:
        >>> from pathlib import Path
        >>> from ftkit import restore, scan_images
        >>> Path("pets/cat").mkdir(parents=True)
        >>> _ = Path("pets/cat/tom.jpg").write_bytes(b"<html>404 Not Found</html>")
        >>> gone = scan_images("pets", workers=1).quarantine("pets-quarantine")
        >>> gone.moved, Path("pets/cat/tom.jpg").exists()
        (1, False)
        >>> restore(gone.manifest) == [str(Path("pets/cat/tom.jpg").resolve())]
        True
    """
    root, folder, entries = _read_manifest(_find_manifest(Path(manifest)))
    files = [(root / entry.path, folder / entry.path) for entry in entries if not entry.is_folder]
    folders = [(root / entry.path, entry.mode) for entry in entries if entry.is_folder]
    blocked = [str(old) for old, new in files if os.path.lexists(old) and os.path.lexists(new) and not _same(old, new)]
    blocked += [str(old) for old, _ in folders if old.is_file()]
    if blocked:
        raise FtkitError(
            f"Other files stand where {len(blocked):,} files came from, and nothing was moved: {some(blocked, 3)}. "
            f"Move them elsewhere and call restore again."
        )
    for old, mode in reversed(folders):  # the outermost first
        if not old.is_dir():
            old.mkdir(parents=True)
            old.chmod(mode)
    back, lost = [], []
    for old, new in files:
        if os.path.lexists(new):
            back.append(str(old))
            if os.path.lexists(old):  # killed between copy and removal
                new.unlink()
            else:
                _move(new, old)
        elif not os.path.lexists(old):
            lost.append(str(old))
    _remove_empty(folder)
    if lost:
        raise FtkitError(
            f"{len(back):,} files are back, but {len(lost):,} are neither in {folder} nor in their old place: "
            f"{some(lost, 3)}."
        )
    return back


def _remove_empty(folder: Path) -> None:
    """Remove the folders that hold nothing any more; ``folder`` need not be there."""
    for parent, _, _ in os.walk(folder, topdown=False):
        remove_litter(parent)
        if not any(Path(parent).iterdir()):
            Path(parent).rmdir()


def _find_manifest(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(path.glob("manifest*.json"))
    if len(found) != 1:
        names = ", ".join(str(file) for file in found) or "none"
        raise FtkitError(f"{path} holds {len(found)} manifests ({names}). Give the one to undo; the latest first.")
    return found[0]


def _read_manifest(path: Path) -> tuple[Path, Path, list[_Entry]]:
    """Return the data set's folder, the one where its files are, and the entries."""
    try:
        facts = json.loads(path.read_bytes())
        if facts["ftkit"] != "quarantine" or facts["version"] != 1:
            raise ValueError
        entries = [_Entry(**{"mtime": 0, "mode": 0o777, **entry}) for entry in facts["entries"]]
        return Path(facts["root"]), path.resolve().parent / facts["folder"], entries
    except FileNotFoundError:
        raise FtkitError(f"There is no manifest {path}. It is the .manifest of what quarantine() returned.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FtkitError(f"{path} is no manifest of a quarantine ({error}).") from error


def _same(old: Path, new: Path) -> bool:
    """Whether two files hold the same: what a move killed between copy and removal leaves."""
    content = _content(old)
    return content is not None and content == _content(new)


def _content(path: Path) -> str | Path | None:
    if path.is_symlink():
        return path.readlink()
    return digest(path.read_bytes()) if path.is_file() else None
