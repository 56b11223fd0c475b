"""Move what a scan found out of the data set, in a way that any moment of it can be undone."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit._files import atomic_write, digest, remove_litter, sync_folder
from ftkit._images.findings import chooser
from ftkit._wording import some
from ftkit.errors import FtkitError

if TYPE_CHECKING:
    from ftkit._images.report import ScanReport

__all__ = ["Quarantine", "move_away", "restore"]


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


def move_away(report: ScanReport, dest: str | os.PathLike[str], kinds: Iterable[str] | None) -> Quarantine:
    """Move the findings of ``kinds`` below ``dest``; see `ScanReport.quarantine`."""
    from ftkit._images.gallery import write_gallery

    wanted = chooser(kinds)
    if "://" in report.root:
        raise FtkitError(f"{report.root} can't be moved about in. Pass over its files with image_folder_filter().")
    root, target = Path(report.root).resolve(), Path(dest).resolve()
    if target.is_relative_to(root):
        raise FtkitError(
            f"{dest} lies inside the data set {report.root}, where it would become a class of its own. "
            f"Choose a folder outside, such as {root}-quarantine."
        )
    chosen = [finding for finding in report.findings if wanted(finding)]
    reasons: dict[str, list[str]] = {}
    for finding in chosen:
        reasons.setdefault(os.path.relpath(finding.path, report.root), []).append(finding.kind)
    plan, left = _plan(root, reasons)
    number = next(n for n in count(1) if not (target / _manifest_name(n)).exists())
    manifest = target / _manifest_name(number)
    folder = target / ("files" if number == 1 else f"files-{number}")
    gallery = manifest.with_suffix(".html")
    write_gallery(report, gallery, chosen)
    facts = {"ftkit": "quarantine", "version": 1, "root": str(root), "folder": folder.name, "entries": plan}
    with atomic_write(manifest) as file:
        file.write(json.dumps(facts, indent=1).encode())

    moved: list[str] = []
    emptied: list[str] = []
    for entry in plan:
        path = entry["path"]
        try:
            if entry["type"] == "folder":
                (root / path).rmdir()
                emptied.append(path)
            else:
                _move(root / path, folder / path)
                moved.append(path)
        except OSError as error:
            left.append((path, error.strerror or str(error)))
    return Quarantine(
        root=root,
        folder=folder,
        manifest=manifest,
        gallery=gallery,
        moved=len(moved),
        kinds=dict(Counter(kind for path in moved for kind in reasons[path])),
        emptied=emptied,
        left=left,
    )


def _manifest_name(number: int) -> str:
    return "manifest.json" if number == 1 else f"manifest-{number}.json"


def _plan(root: Path, reasons: dict[str, list[str]]) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """List the moves, files first, then the folders that they leave empty, the innermost first."""
    entries: list[dict[str, Any]] = []
    left: list[tuple[str, str]] = []
    folders: set[Path] = set()
    for path, kinds in sorted(reasons.items()):
        full = root / path
        try:
            status = full.lstat()
        except OSError as error:
            left.append((path, error.strerror or str(error)))
            continue
        if stat.S_ISDIR(status.st_mode):
            folders.add(full)
            continue
        kind = "link" if stat.S_ISLNK(status.st_mode) else "file"
        entries.append({"path": path, "type": kind, "kinds": kinds, "mtime": status.st_mtime_ns})
        folders.update(parent for parent in full.parents if parent.is_relative_to(root))
    leaving = {root / entry["path"] for entry in entries}
    for folder in sorted(folders - {root}, key=lambda folder: (-len(folder.parts), folder)):
        if folder.is_symlink() or not all(child in leaving for child in folder.iterdir()):
            relative = str(folder.relative_to(root))
            if relative in reasons:
                left.append((relative, "a folder that is not empty"))
            continue
        leaving.add(folder)
        entries.append(
            {
                "path": str(folder.relative_to(root)),
                "type": "folder",
                "kinds": reasons.get(str(folder.relative_to(root)), []),
                "mode": stat.S_IMODE(folder.stat().st_mode),
            }
        )
    return entries, left


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
    file = _find_manifest(Path(manifest))
    root, folder, entries = _read_manifest(file)
    files = [(root / e["path"], folder / e["path"]) for e in entries if e["type"] != "folder"]
    blocked = [str(old) for old, new in files if os.path.lexists(old) and os.path.lexists(new) and not _same(old, new)]
    blocked += [str(root / e["path"]) for e in entries if e["type"] == "folder" and (root / e["path"]).is_file()]
    if blocked:
        raise FtkitError(
            f"Other files stand where {len(blocked):,} files came from, and nothing was moved: {some(blocked, 3)}. "
            f"Move them elsewhere and call restore again."
        )
    for entry in reversed(entries):  # the outermost folder first
        if entry["type"] == "folder" and not (root / entry["path"]).is_dir():
            (root / entry["path"]).mkdir(parents=True)
            (root / entry["path"]).chmod(entry["mode"])
    back, lost = [], []
    for old, new in files:
        if not os.path.lexists(new):
            if not os.path.lexists(old):
                lost.append(str(old))
        elif os.path.lexists(old):  # killed between copy and removal
            new.unlink()
            back.append(str(old))
        else:
            _move(new, old)
            back.append(str(old))
    if folder.is_dir():
        for parent, _, _ in os.walk(folder, topdown=False):
            remove_litter(parent)
            if not any(Path(parent).iterdir()):
                Path(parent).rmdir()
    if lost:
        raise FtkitError(
            f"{len(back):,} files are back, but {len(lost):,} are neither in {folder} nor in their old place: "
            f"{some(lost, 3)}."
        )
    return back


def _find_manifest(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(path.glob("manifest*.json"))
    if len(found) != 1:
        names = ", ".join(str(file) for file in found) or "none"
        raise FtkitError(f"{path} holds {len(found)} manifests ({names}). Give the one to undo; the latest first.")
    return found[0]


def _read_manifest(path: Path) -> tuple[Path, Path, list[dict[str, Any]]]:
    try:
        facts = json.loads(path.read_bytes())
        if facts["ftkit"] != "quarantine" or facts["version"] != 1:
            raise ValueError
        return Path(facts["root"]), path.resolve().parent / facts["folder"], facts["entries"]
    except FileNotFoundError:
        raise FtkitError(f"There is no manifest {path}. It is the .manifest of what quarantine() returned.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FtkitError(f"{path} is no manifest of a quarantine ({error}).") from error


def _same(old: Path, new: Path) -> bool:
    """Whether two files hold the same: what a move killed between copy and removal leaves."""
    if old.is_symlink() or new.is_symlink():
        return old.is_symlink() and new.is_symlink() and old.readlink() == new.readlink()
    if not (old.is_file() and new.is_file()):
        return False
    return old.stat().st_size == new.stat().st_size and digest(old.read_bytes()) == digest(new.read_bytes())
