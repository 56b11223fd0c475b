"""Move what a scan found out of the data set, such that it can be undone at any point."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from itertools import chain, count
from pathlib import Path, PurePosixPath

from ftkit._arguments import flag, local_path
from ftkit._files import LITTER_SUFFIX, atomic_write, digest, holding, lock, open_folder, remove_litter, sync_folder
from ftkit._images.findings import KINDS, Finding, last_copies
from ftkit._images.folders import (
    CHANGED,
    GONE,
    SKIPPED_FOLDERS,
    Folder,
    Judged,
    below,
    is_inside,
    is_litter,
    require_folder,
)
from ftkit._images.manifest import Entry, Manifest, hint_beside, is_page, names_inside, obstacle
from ftkit._reports import Grid, Parts, Report
from ftkit._wording import plural, some
from ftkit.errors import FileWriteError, FtkitError

_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
# What is found for where a file lies: families of kinds.
_BY_PLACE = frozenset(("leaks", "eval_leaks", "duplicates", "label_conflicts"))
_MOST_HOPS = 40  # from link to link, as systems have it


@dataclass(frozen=True, slots=True, repr=False)
class Quarantine(Report):
    """Where a quarantine put things.

    Attributes:
        root: The data set's folder.
        folder: Where the files are now; ``dest``, which is not made, if there was nothing to move.
        manifest: What `ftkit.restore` needs to bring them back; None if there was nothing to move.
        gallery: A page with thumbnails of what was moved; None if there was nothing to move.
        moved: How many files were moved.
        files: Their paths, relative to ``root``, with the kinds of findings that they were moved for.
        kinds: How many files were moved for each kind of finding.
        emptied: Folders that were left empty, and removed too.
        left: What could not be moved, and why.
        dry_run: Whether nothing was changed, and the rest is what would be.
    """

    root: Path
    folder: Path
    manifest: Path | None
    gallery: Path | None
    moved: int
    kinds: dict[str, int] = field(default_factory=dict)
    emptied: list[str] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    files: dict[str, list[str]] = field(default_factory=dict)
    dry_run: bool = False

    def _parts(self) -> Parts:
        to = f" to {self.folder}" if self.manifest else "; nothing was written"
        if self.dry_run:
            yield f"{plural(self.moved, 'file')} would be moved from {self.root} to {self.folder}; nothing was changed"
            yield Grid([(path, ", ".join(kinds)) for path, kinds in self.files.items()])
        else:
            yield f"{plural(self.moved, 'file')} moved from {self.root}{to}"
        numbers = sorted(self.kinds.items(), key=lambda kind: -kind[1])
        yield Grid([(f"{number:,}", kind) for kind, number in numbers], names=(1,), right=(0,))
        if self.emptied:
            yield f"  folders left empty, and {'to be ' if self.dry_run else ''}removed: {some(self.emptied, 8)}"
        yield Grid([(path, why if why == GONE else f"left in place: {why}") for path, why in self.left])
        if self.manifest:
            yield f"Look at {self.gallery}; undo with ftkit.restore({str(self.manifest)!r})."


def move_away(
    root: str,
    findings: Iterable[Finding],
    dest: str | os.PathLike[str],
    judged: Mapping[str, Judged],
    show: Callable[[Path, str, Collection[str]], None] | None,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> Quarantine:
    """Move what ``findings`` are about below ``dest``; see `ScanReport.quarantine`.

    Args:
        root: The folder that was scanned.
        findings: What moves.
        dest: A folder outside.
        judged: What the scan saw of the files; one that has changed since stays.
        show: Writes the gallery; gets its path, the name of the folder next to it that the files move to, and their
            paths relative to ``root``. It is called before anything moves, and again if not all of that moves. None for
            a dry run.
        pairs: Copies: what is to go as one stays if none of what it is a copy of does. None to obey ``findings``.
    """
    if "://" in root:
        raise FtkitError(f"Files in {root} can't be moved. Skip them with image_folder_filter().")
    dest = local_path("dest", dest, error=FileWriteError)
    require_folder(root)
    data, home, target = Folder(root), Path(os.path.realpath(root)), Path(os.path.realpath(dest))
    if is_inside(target, home):
        raise FtkitError(
            f"{dest} is inside the data set {root}, where it would become a class. "
            f"Choose a folder outside, such as {home}-quarantine."
        )
    reasons: dict[str, list[str]] = {}
    seen: dict[str, Judged] = {}
    for finding in findings:
        path = below(root, finding.path)
        if path == ".":  # about the data set as a whole: nothing in it is to move
            continue
        reasons.setdefault(path, []).append(finding.kind)
        if finding.path in judged:
            seen[path] = judged[finding.path]

    def change(path: str) -> str:
        return data.change(path, *seen[path]) if path in seen else ""

    named = {below(root, path): path for pair in pairs or () for path in pair}

    @cache
    def is_there(path: str) -> bool:
        with suppress(OSError, KeyError):
            return not data.change(path, *judged[named[path]])
        return False

    def last(going: Mapping[str, Sequence[str]]) -> dict[str, str]:
        """Return what no copy would stay of; a copy may be one that goes, by another name."""
        if pairs is None:
            return {}

        def stays(path: str) -> bool:
            name = _true_name(home, path)
            return is_there(path) and (name == path or name not in going)

        return last_copies(going, [(below(root, one), below(root, other)) for one, other in pairs], stays)

    entries, left = _plan(home, reasons, change, last, dry_run=show is None)
    if show is None or not entries:
        return _summary(home, target, entries, left, dry_run=show is None)
    missing = _make(target)
    with _alone(target):
        try:
            folder, place = _claim(target)
        except FtkitError:
            _remove(missing)
            raise
        made, gallery = [folder, *missing], place.with_suffix(".html")
        try:
            show(gallery, folder.name, {entry.path for entry in entries})
            manifest = Manifest(place, home, home.stat().st_ino, folder, entries)
            manifest.write()
        except BaseException:
            gallery.unlink(missing_ok=True)
            _remove(made)
            raise

    gone: list[Entry] = []
    for entry in entries:
        try:
            if entry.is_folder:
                (home / entry.path).rmdir()
            elif entry.type == "file" and (why := change(entry.path)):  # a link may have lost what it leads to by now
                left.append((entry.path, why))
                continue
            else:
                _move(home / entry.path, folder / entry.path)
            gone.append(entry)
        except OSError as error:
            if entry.kinds:  # a folder that would have been empty is no loss
                left.append((entry.path, _reason(error) if os.path.lexists(home / entry.path) else GONE))
    if len(gone) < len(entries):  # another process was faster, say: a manifest lists what is here
        moved = {entry.path for entry in gone}
        _remove_empty(folder, {parent for entry in entries for parent in (folder / entry.path).parents})
        there = [
            entry
            for entry in entries
            if entry.path in moved or (not entry.is_folder and os.path.lexists(folder / entry.path))
        ]
        if not there:
            for file in (manifest.path, gallery):
                file.unlink()
            _remove(made)
            return _summary(home, target, gone, left)
        with suppress(FileWriteError):  # the disk is full, say: to list more than is here does no harm
            manifest._replace(entries=there).write()
            show(gallery, folder.name, {entry.path for entry in there})
    return _summary(home, folder, gone, left, manifest=manifest.path, gallery=gallery)


def moved_before(root: str, dest: str | os.PathLike[str]) -> list[str]:
    """Return what earlier quarantines to ``dest`` took away, relative to ``root``, and is not back."""
    home, moved = Path(os.path.realpath(root)), []
    for path in local_path("dest", dest, error=FileWriteError).glob("manifest*.json"):
        with suppress(FtkitError, OSError):  # another's file of that name
            manifest = Manifest.read(path)
            if Path(os.path.realpath(manifest.root)) == home:
                moved += [
                    entry.path
                    for entry in manifest.entries
                    if os.path.lexists(manifest.folder / entry.path) and not os.path.lexists(home / entry.path)
                ]
    return moved


def _summary(
    home: Path,
    folder: Path,
    gone: Sequence[Entry],
    left: list[tuple[str, str]],
    *,
    manifest: Path | None = None,
    gallery: Path | None = None,
    dry_run: bool = False,
) -> Quarantine:
    files = {entry.path: entry.kinds for entry in gone if not entry.is_folder}
    return Quarantine(
        root=home,
        folder=folder,
        manifest=manifest,
        gallery=gallery,
        moved=len(files),
        kinds=dict(Counter(kind for kinds in files.values() for kind in kinds)),
        emptied=[entry.path for entry in gone if entry.is_folder],
        left=left,
        files=files,
        dry_run=dry_run,
    )


def _make(target: Path) -> list[Path]:
    """Make a folder; return those that were made, the innermost first."""
    missing = [place for place in (target, *target.parents) if not os.path.lexists(place)]
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _remove(missing)
        raise _unusable(target, error) from error
    return missing


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold up other quarantines to a folder, and clear away what those left that were killed before they moved a file.

    Not on Windows, where only files can be locked.
    """
    with ExitStack() as after:
        if sys.platform != "win32":
            with suppress(OSError):
                after.enter_context(holding(descriptor := open_folder(target)))
                if lock(descriptor, wait=True):
                    _clear_what_was_left(target)
        yield


def _clear_what_was_left(target: Path) -> None:
    remove_litter(target)
    for folder in target.glob("files*"):
        number = folder.name.removeprefix("files")
        is_ours = not number or (number[0] == "-" and number[1:].isdecimal())
        if is_ours and not os.path.lexists(target / f"manifest{number}.json"):
            _clear(folder, target / f"manifest{number}.html")


def _clear(folder: Path, page: Path) -> None:
    """Remove an empty folder, and the page beside it that shows what was to move there."""
    with suppress(OSError):
        if not any(folder.iterdir()):
            if is_page(page):
                page.unlink()
            folder.rmdir()


def _claim(target: Path) -> tuple[Path, Path]:
    """Make a new folder for the files in ``target``; return it, and a manifest's name for it."""
    for number in chain([""], map("-{}".format, count(2))):
        folder, manifest = target / f"files{number}", target / f"manifest{number}.json"
        if not os.path.lexists(manifest) and not os.path.lexists(manifest.with_suffix(".html")):
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise _unusable(target, error) from error
            return folder, manifest
    raise AssertionError  # there is always a next number


def _remove(folders: Iterable[Path]) -> None:
    """Remove folders, the innermost first, unless something is in them."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _unusable(target: Path, error: OSError) -> FtkitError:
    return FtkitError(f"Can't quarantine to {target}: {_reason(error)}. Nothing was moved. Choose another folder.")


def _reason(error: OSError) -> str:
    return error.strerror or (os.strerror(error.errno) if error.errno else str(error))


def _plan(
    root: Path,
    reasons: dict[str, list[str]],
    change: Callable[[str], str],
    last: Callable[[Mapping[str, Sequence[str]]], Mapping[str, str]],
    *,
    dry_run: bool,
) -> tuple[list[Entry], list[tuple[str, str]]]:
    """List the moves, files first, then the folders that they leave empty, the innermost first; and what must stay.

    With a folder go the links to it, which would be empty classes. Whether a file has changed is asked when it moves,
    and here in a dry run only.
    """
    found: list[Entry] = []
    left: list[tuple[str, str]] = []
    for path, kinds in sorted(reasons.items()):
        try:
            why = obstacle(root, path) if names_inside(path) else "a manifest can't record its name"
            if why and path != (name := _true_name(root, path)) and name in reasons:  # by that, it moves or is left
                continue
            if not why:
                entry = Entry.of(root, path, kinds)
                why = change(path) if entry.type == "link" or dry_run else ""
                if entry.type == "link" and "link_loop" not in kinds and _is_full(root / path):
                    why = _why_full(kinds)
        except FileNotFoundError:
            why = GONE
        except OSError as error:
            why = _reason(error)
        if why:
            left.append((path, why))
        else:
            found.append(entry)
    files = {root / entry.path: entry for entry in found if not entry.is_folder}
    stay: dict[Path, str] = {}
    while True:
        led_to = _led_to(root, files.keys() - stay.keys())
        more = {file: f"{min(led_to[file])} is a link to it" for file in files if file in led_to}
        for file, entry in files.items():
            families = {KINDS[kind].family for kind in reasons[entry.path]}
            # It would go from other splits and classes, too, which keep the other copy only of what counts twice.
            if families <= _BY_PLACE and families != {"duplicates"}:
                linked = next((parent for parent in file.parents if parent in led_to), None)
                if linked:
                    more.setdefault(file, f"{min(led_to[linked])} is a link to a folder around it")
        new = more.keys() - stay.keys()
        stay = more | stay
        going = {entry.path: entry.kinds for file, entry in files.items() if file not in stay}
        stay |= {root / path: why for path, why in last(going).items()}
        if not any(files[file].type == "link" for file in new):  # what such a link leads to stays, too
            break
    left += [(files[file].path, why) for file, why in stay.items()]
    plan = [entry for file, entry in files.items() if file not in stay]
    leaving = {*files} - {*stay}
    links, emptied = list[Entry](), list[Entry]()
    full: dict[str, str] = {}
    folders = {root / entry.path for entry in found if entry.is_folder}
    folders |= {parent for place in (*leaving, *folders) for parent in place.parents}
    while inside := [folder for folder in folders - leaving if folder.is_relative_to(root) and folder != root]:
        folders.clear()
        for folder in sorted(inside, key=lambda folder: (-len(folder.parts), folder)):
            path = folder.relative_to(root).as_posix()
            kinds = reasons.get(path, [])
            led = [name for name in led_to.get(folder, ()) if root / name not in leaving]
            kept = next(
                (name for name in led if not (SKIPPED_FOLDERS.isdisjoint(name.split("/")) and names_inside(name))), ""
            )
            try:
                why = "" if leaving.issuperset(folder.iterdir()) else _why_full(kinds)
                full[path] = why or (kept and f"{kept} is a link to it")
                if not full[path]:
                    links += [Entry.of(root, name, ["empty_folder"]) for name in led]
                    emptied.append(Entry.of(root, path, kinds))
                    leaving |= {folder, *(root / name for name in led)}
                    folders |= {parent for name in led for parent in (root / name).parents}  # some may be empty by that
            except OSError as error:
                full[path] = _reason(error)
    left += [(path, why) for path, why in full.items() if why and path in reasons]
    return [*plan, *links, *emptied], left


def _true_name(root: Path, path: str) -> str:
    """Return what a path relative to ``root`` is without the linked folders that it leads through."""
    place = root / path
    return os.path.relpath(Path(os.path.realpath(place.parent), place.name), root).replace(os.sep, "/")


def _why_full(kinds: Sequence[str]) -> str:
    """Return why a folder stays that is not empty, and what the user can do about it."""
    remedies = [f"{kind}: {KINDS[kind].remedy}" for kind in kinds if kind != "empty_folder"]
    return f"only empty folders move ({'; '.join(remedies)})" if remedies else CHANGED


def _is_full(place: Path) -> bool:
    """Whether a link leads to a folder that is not empty."""
    return os.path.isdir(place) and any(place.iterdir())  # noqa: PTH112  (Path raises for what can't be)


def _led_to(root: Path, leaving: Collection[Path]) -> dict[Path, list[str]]:
    """Return the places that links which stay in the data set lead to, each with these links."""
    places: dict[Path, list[str]] = {}
    pending = [str(root)]
    while pending:
        with suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif entry.is_symlink() and Path(entry.path) not in leaving:
                    name = Path(entry.path).relative_to(root).as_posix()
                    for place in _hops(entry.path):
                        places.setdefault(place, []).append(name)
    return places


def _hops(link: str) -> Iterator[Path]:
    """Yield the places that a link leads to, one after the other, as long as they are links."""
    place = Path(link)
    for _ in range(_MOST_HOPS):
        if not os.path.islink(place):  # noqa: PTH114  (Path raises for what can't be)
            return
        target = place.parent / place.readlink()
        name = "" if target.name == ".." else target.name
        place = Path(os.path.realpath(target.parent if name else target), name)
        yield place


def _move(source: Path, target: Path) -> None:
    """Move a file or link with its times, never onto another; killed at any point, one whole copy stands."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "something with that name already exists")
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if source.is_symlink():
            target.symlink_to(source.readlink())
            shutil.copystat(source, target, follow_symlinks=False)
        elif source.is_file():
            _copy_durably(source, target)
        else:
            raise
        try:
            source.unlink()
        except OSError as refused:  # its disk is read-only, say
            if refused.errno != errno.ENOENT and os.path.lexists(source):  # else the copy is all there is
                target.unlink()
            raise


def _copy_durably(source: Path, target: Path) -> None:
    status = source.stat()
    with source.open("rb") as old, atomic_write(target) as new:
        shutil.copyfileobj(old, new, 1 << 20)
        new.flush()
        if os.utime in os.supports_fd:  # before it has its name: a kill must not cost the time
            os.utime(new.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
    shutil.copystat(source, target)
    sync_folder(target.parent)


def restore(
    manifest: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None, dry_run: bool = False
) -> list[str]:
    """Move the files of a `ScanReport.quarantine` back; return the paths of those restored.

    It may be called after a quarantine or a restore that was killed halfway, and repeatedly: what is already
    back in place stays. The quarantine's folder may have been moved since; if the data set has, pass its new
    folder as ``root``.

    Args:
        manifest: The manifest, or the quarantine's folder if it contains only one of which not all is back.
        root: The data set's folder. By default the one that the manifest names, if it is the very
            folder that was scanned, or is in or next to the quarantine's: a manifest may come from an
            untrusted source.
        dry_run: Only return what would be restored; move nothing.

    Raises:
        FtkitError: ``manifest`` is not a manifest, or asks for more than restoring files; or the data set
            is not there, or can't be it; or something else is now in a file's old place. Nothing is moved then.
            Or files are in neither place, can't be moved, or are in the quarantine without an entry in the manifest;
            the others are restored before, except in a dry run.

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
    facts = Manifest.read(_find_manifest(local_path("manifest", manifest), root))
    home, folder = _home(facts, root), facts.folder
    files = [entry for entry in facts.entries if not entry.is_folder]
    folders = [(home / entry.path, entry) for entry in facts.entries if entry.is_folder]
    reasons = ((home / entry.path, _why_not(entry, home, folder)) for entry in facts.entries)
    blocked = [f"{old} ({why})" for old, why in reasons if why]
    if blocked:
        raise FtkitError(
            f"{plural(len(blocked), 'file')} can't be restored, and nothing was moved: {some(blocked, 3)}. "
            f"Move what is in the way elsewhere, and call restore again."
        )
    if flag("dry_run", dry_run):
        there = [str(home / entry.path) for entry in files if _is_there(folder / entry.path)]
        lost = [str(home / entry.path) for entry in files if not _is_anywhere(entry, home, folder)]
        if why := _lost(lost, folder) + _unnamed(files, folder):
            raise FtkitError(f"{plural(len(there), 'file')} can be restored, but not all.{why}")
        return there
    for place in {(home / entry.path).parent for entry in files}:
        with suppress(OSError):
            remove_litter(place)  # of a restore that was killed
    back, lost, made = [], [], []
    failed: list[tuple[Path, OSError]] = []
    for old, entry in reversed(folders):  # the outermost first
        try:
            if not old.is_dir():
                old.mkdir(parents=True, exist_ok=True)
                old.chmod(entry.mode | 0o700)  # until the files are back
                made.append((old, entry))
        except OSError as error:
            failed.append((old, error))
    for entry in files:
        old, new = home / entry.path, folder / entry.path
        try:
            if why := _why_not(entry, home, folder):  # by now
                raise OSError(why)
            if not _is_there(new):
                lost += [] if os.path.lexists(old) else [str(old)]
                continue
            if os.path.lexists(old):  # killed between copy and removal
                new.unlink()
            else:
                _move(new, old)
            back.append(str(old))
        except OSError as error:
            if not _is_back(entry, home, folder):
                failed.append((old, error))
    for old, entry in reversed(made):
        with suppress(OSError, OverflowError):  # which a manifest may well ask for
            old.chmod(entry.mode)
            os.utime(old, ns=(entry.mtime, entry.mtime))
    _remove_empty(folder, {parent for entry in files for parent in (folder / entry.path).parents})
    if why := _lost(lost, folder) + _unnamed(files, folder) + _stuck(failed, folder):
        raise FtkitError(f"{plural(len(back), 'file')} restored, but not all.{why}")
    return back


def _is_back(entry: Entry, home: Path, folder: Path) -> bool:
    """Whether an entry is in its old place, and in no other: of two restores at once, the other may move it."""
    return not _is_there(folder / entry.path) and os.path.lexists(home / entry.path)


def _is_anywhere(entry: Entry, home: Path, folder: Path) -> bool:
    return _is_there(folder / entry.path) or os.path.lexists(home / entry.path)


def _is_there(place: Path) -> bool:
    """Whether something is at a place, or may be: in a folder that can't be read."""
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass
    return True


def _lost(files: Sequence[str], folder: Path) -> str:
    if not files:
        return ""
    return f" {len(files):,} can't be found in {folder} or the old place: {some(files, 3)}."


def _stuck(failed: Sequence[tuple[Path, OSError]], folder: Path) -> str:
    if not failed:
        return ""
    which = some([f"{old} ({_reason(error)})" for old, error in failed], 3)
    how = "Free some space" if any(error.errno in _FULL for _, error in failed) else "Fix that"
    return f" {len(failed):,} can't be moved: {which}. What is not back is still in {folder}. {how}, and restore again."


def _unnamed(entries: Iterable[Entry], folder: Path) -> str:
    """Say which files are in a quarantine without an entry in its manifest: somebody has changed one or the other."""
    named = {folder / entry.path for entry in entries}
    found = []
    for place, folders, files in () if os.path.islink(folder) else os.walk(folder):  # noqa: PTH114  (the same)
        names = (name for name in [*folders, *files] if not is_litter(name) and not name.endswith(LITTER_SUFFIX))
        inside = (Path(place, name) for name in names)
        left = (path for path in inside if path not in named and (path.is_symlink() or not path.is_dir()))
        found += [str(path.relative_to(folder)) for path in left]
    if not found:
        return ""
    return (
        f" The manifest does not name {plural(len(found), 'file')} in {folder}: {some(sorted(found), 3)}. Move back by "
        f"hand what belongs to the data set."
    )


def _home(manifest: Manifest, root: str | os.PathLike[str] | None) -> Path:
    """Return the folder that files may come back to: the caller's, or the manifest's if that is above suspicion."""
    home = Path(os.path.realpath(manifest.root if root is None else local_path("root", root)))
    hint = f"restore({str(manifest.path)!r}, root=...)"
    if root is None and not manifest.root.is_absolute():
        raise FtkitError(f"{manifest.root} is a folder of another system. Pass where the data set is here: {hint}.")
    if not os.path.isdir(home):  # noqa: PTH112  (Path raises for what can't be)
        raise FtkitError(f"There is no folder {home} to restore to. If the data set has moved, pass it: {hint}.")
    around = manifest.path.parent
    is_as_scanned = manifest.inode != 0 and home.stat().st_ino == manifest.inode
    if root is None and not is_as_scanned and home.parent not in (around, around.parent):
        raise FtkitError(
            f"{manifest.path} asks for files to be put into {home}, which is neither the folder that was scanned nor "
            f"one next to the quarantine. If that is the data set, pass it: {hint}."
        )
    if home.is_relative_to(manifest.folder) or manifest.folder.is_relative_to(home):
        raise FtkitError(
            f"Of the quarantine's files, {manifest.folder}, and the data set, {home}, one is inside the other, which "
            f"no quarantine makes. Move one of them elsewhere, or pass the data set: {hint}."
        )
    kept = _kept(manifest.entries)
    if kept and not is_as_scanned and not any(os.path.lexists(home / folder) for folder in kept):
        raise FtkitError(
            f"{home} has none of the folders that the files are from ({some(sorted(kept), 3)}), so it is not the data "
            f"set. Nothing was moved. Pass the folder that was scanned: {hint}."
        )
    return home


def _kept(entries: Iterable[Entry]) -> set[str]:
    """Return the folders that a quarantine took something out of, but left."""
    gone = {PurePosixPath(entry.path) for entry in entries if entry.is_folder}
    above = (PurePosixPath(entry.path).parents for entry in entries)
    return {str(next(parent for parent in parents if parent not in gone)) for parents in above} - {"."}


def _why_not(entry: Entry, home: Path, folder: Path) -> str:
    """Return why an entry can't be restored; nothing if it can, or need not."""
    old, new = home / entry.path, folder / entry.path
    try:
        if why := obstacle(home, entry.path):
            return why
        if entry.is_folder and os.path.lexists(old) and not old.is_dir():
            return "a file is in its place"
        if why := obstacle(folder.parent, f"{folder.name}/{entry.path}"):
            return f"in the quarantine, {why}"
        if os.path.lexists(new) and not entry.describes(new):
            return f"what is in the quarantine is not a {entry.type}"
        is_taken = not entry.is_folder and os.path.lexists(new) and os.path.lexists(old) and not _same(old, new)
        return "another file is in its place" if is_taken and not _is_back(entry, home, folder) else ""
    except OSError as error:
        return "" if _is_back(entry, home, folder) else _reason(error)


def _remove_empty(folder: Path, parents: Collection[Path]) -> None:
    """Remove those of the folders in ``folder``, and itself, that are now empty."""
    inside = {folder} | {parent for parent in parents if parent.is_relative_to(folder)}
    for parent in sorted(inside, key=lambda parent: -len(parent.parts)):
        with suppress(OSError):
            if parent.is_dir() and not parent.is_symlink():
                remove_litter(parent)
                parent.rmdir()


def _find_manifest(path: Path, root: str | os.PathLike[str] | None) -> Path:
    """Return the manifest that a path stands for: itself, or the only one in a folder of which files are not back."""
    if not os.path.isdir(path):  # noqa: PTH112  (Path raises for what can't be)
        return path
    try:
        found = [file for file in path.iterdir() if fnmatch(file.name, "manifest*.json")]
    except OSError as error:
        raise FtkitError(f"Can't read {path}: {_reason(error)}. Nothing was moved.") from error
    found.sort(key=_number, reverse=True)
    left = [file for file in found if not _is_done(file, root)] or found[:1]
    if not left:
        hint = hint_beside(path) or " Pass the .manifest of what quarantine() returned, or the folder that it is in."
        raise FtkitError(
            f"There is no manifest in {path}, where a quarantine writes one before it moves anything. Nothing was "
            f"moved.{hint}"
        )
    if len(left) > 1:
        names = ", ".join(str(file) for file in left)
        raise FtkitError(f"{path} contains {plural(len(left), 'manifest')} ({names}). Pass one, the latest first.")
    return left[0]


def _number(manifest: Path) -> int:
    """Return which of the quarantines to its folder a manifest is of."""
    number = manifest.stem.removeprefix("manifest").removeprefix("-")
    return int(number) if number.isdecimal() else 1


def _is_done(manifest: Path, root: str | os.PathLike[str] | None) -> bool:
    """Whether nothing is left to restore, as far as a manifest can be read."""
    try:
        facts = Manifest.read(manifest)
    except FtkitError:
        return False
    files = [entry for entry in facts.entries if not entry.is_folder]
    if files:
        return not any(_is_there(facts.folder / entry.path) for entry in files)
    home = facts.root if root is None else local_path("root", root)
    return all(os.path.isdir(home / entry.path) for entry in facts.entries)  # noqa: PTH112


def _same(old: Path, new: Path) -> bool:
    """Whether two files hold the same, and are two: what a move killed between copy and removal leaves."""
    if os.path.samestat(old.lstat(), new.lstat()):
        return False
    content = _content(old)
    return content is not None and content == _content(new)


def _content(path: Path) -> str | Path | None:
    if path.is_symlink():
        return path.readlink()
    return digest(path.read_bytes()) if path.is_file() else None
