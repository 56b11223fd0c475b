"""Folders, here or behind a URL: which files to look at, and how to read them."""

from __future__ import annotations

import errno
import os
import re
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from posixpath import join
from typing import Any, NamedTuple, TypeAlias
from urllib.request import url2pathname

from ftkit._arguments import path_or_url
from ftkit._files import digest
from ftkit._images.suffixes import IMAGE_SUFFIXES, LITTER_FOLDERS, suffix_of
from ftkit._images.verdict import Note, Verdict, write_line
from ftkit._images.workers import Job, check_batch, run_jobs
from ftkit._wording import shown, some
from ftkit.errors import FtkitError, MissingPackageError, did_you_mean

_SOMEBODY = "a system or tool"
# What systems and tools leave behind: by the name, or its first two letters, who does and what the content looks like.
_LITTER: dict[str, tuple[str, Callable[[bytes], object]]] = {
    "thumbs.db": ("Windows", re.compile(b"\xd0\xcf\x11\xe0").match),
    "ehthumbs.db": ("Windows", re.compile(b"\xd0\xcf\x11\xe0").match),
    "desktop.ini": ("Windows", re.compile(rb"[\xef\xbb\xbf\xff\xfe\0\s]*\[").match),
    ".ds_store": ("macOS", re.compile(b"\0\0\0\1Bud1").match),
    ".localized": ("macOS", re.compile(b"$").match),
    "._": ("macOS", re.compile(b"\0\5\x16\7").match),
    ".directory": (_SOMEBODY, re.compile(rb"\s*\[").match),
    "~$": (_SOMEBODY, re.compile(rb"[\x01-\x35].{53}", re.DOTALL).match),  # the length of a name, and room for it
}
#: What version control keeps for itself: not scanned, not moved.
SKIPPED_FOLDERS = frozenset((".git", ".hg", ".svn", ".dvc"))
_IMAGE_NAMES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")  # that loops over files ask for
# Entries met again by further links to their folders until the rest is left out: so many, or so many for each.
# Links in linked folders multiply: thirty folders can have a billion names.
_MOST_AGAIN, _TIMES_AGAIN = 10_000, 100
_FEW = 256  # names in a folder, that tell what it is
_HEAD = 64  # bytes of a manifest, or of litter, that say what it is
_LOCAL = re.compile("(file|local)://(localhost(?=/))?", re.IGNORECASE)  # begins the URL of a folder of this machine
_SET_ASIDE = Note("quarantine", "what its manifest says was moved here")

TakeNote: TypeAlias = Callable[[str, Note], None]
#: What tells whether a file has changed; JSON.
Stamp: TypeAlias = tuple[Any, ...]
#: What a scan saw of a file: its stamp, and its digest where it was made.
Judged: TypeAlias = tuple[Stamp, str]

#: What may have become of a file since it was judged.
GONE, CHANGED = "gone already", "it has changed since the scan"


class _ToVisit(NamedTuple):
    """A folder that a walk has yet to look into: its path, whether it is in litter, and the folders above it."""

    folder: str
    littered: bool
    above: frozenset[tuple[int, int]]


class Folder:
    """A folder to scan, of this machine and of those that the executor's workers run on. Paths are relative to it.

    Attributes:
        name: What the caller calls it.
        prefix: What turns a relative path into one that opens as is.
        place: The same folder by whatever name.
    """

    def __init__(self, name: str) -> None:
        if not os.path.isdir(name):  # noqa: PTH112  (Path raises where it may not look)
            raise _no_folder(name)
        self.name = name
        self.prefix: str = os.path.join(name, "")  # noqa: PTH118  (Path knows no such thing)
        self.place: str = str(Path(name).absolute())

    def tops(self, inside: str = "") -> list[str]:
        """Return the names of the folders right below, or below one of them."""
        try:
            with os.scandir(Path(self.place, inside)) as listing:
                return [entry.name for entry in listing if _is_folder(entry)]
        except OSError as error:
            raise FtkitError(f"Can't read {self.name!r}: {error.strerror}. Fix its permissions.") from error

    def peek(self, inside: str) -> list[str]:
        """Return the first few names in a folder, those of folders with a slash; none where it can't be read."""
        with suppress(OSError), os.scandir(Path(self.place, inside)) as listing:
            return [entry.name + "/" * _is_folder(entry) for entry in islice(listing, _FEW)]
        return []

    def among(self, inside: str, names: Collection[str]) -> set[str]:
        """Return which of some names are in a folder."""
        return {name for name in names if os.path.lexists(Path(self.place, inside, name))}

    def head(self, inside: str, name: str) -> bytes:
        """Return the first few bytes of a file in a folder, which may raise an `OSError`."""
        file = Path(self.place, inside, name)
        if not file.is_file():  # a pipe would keep us waiting
            return b""
        with file.open("rb") as opened:
            return opened.read(_HEAD)

    def snapshot(self, folder: str, names: Sequence[str]) -> str:
        """Return the snapshot to scan in place of a folder in which the Hugging Face hub keeps files; none in others.

        Its blobs are the files, under names that tell nothing; its snapshots are links to them.
        """
        place = Path(self.place, folder)
        if not {"blobs", "snapshots"} <= {*names} or ("refs" not in names and "--" not in place.name):
            return ""
        with suppress(OSError):
            snapshots = sorted((place / "snapshots").iterdir(), key=lambda one: one.stat().st_mtime)
            is_class = not all(map(Path.is_dir, snapshots)) or any(
                blob.is_dir() or suffix_of(blob.name) in IMAGE_SUFFIXES for blob in (place / "blobs").iterdir()
            )
            if is_class or not snapshots:
                return ""
            main = place / "refs/main"
            named = main.read_text(errors="replace").strip() if main.is_file() else ""
            return join(folder, "snapshots", next((one for one in snapshots if one.name == named), snapshots[-1]).name)
        return ""

    def holds(self, path: str | os.PathLike[str]) -> bool:
        """Whether a local path is in it."""
        return is_inside(path, self.place)

    def walk(self, note: TakeNote, enter: Callable[[str], None]) -> Iterator[str]:
        """Yield the files to check, in order; those in linked folders last.

        Args:
            note: Called with the path of what is not to be opened, and the note on it.
            enter: Called with each folder.
        """
        # Links are followed when all else is done, those in linked folders last: what is left out has been scanned by a
        # plainer name.
        pending, linked = [_ToVisit("", False, frozenset())], deque[_ToVisit]()
        visited: set[tuple[int, int]] = set()
        met, again = 0, 0  # entries
        left_out: list[str] = []
        while pending or linked:
            folder, littered, above = pending.pop() if pending else linked.popleft()
            place = Path(self.place, folder)
            try:
                status = place.stat()
                me = status.st_dev, status.st_ino
                if me in above and status.st_ino:  # which some file systems don't give
                    note(folder, Note("link_loop", f"leads back to {place.resolve()}"))
                    continue
                is_known = me in visited and bool(status.st_ino)
                if is_known and again > max(_MOST_AGAIN, _TIMES_AGAIN * met):
                    left_out.append(folder)
                    continue
                visited.add(me)
                with os.scandir(place) as listing:
                    entries = sorted(listing, key=lambda entry: entry.name)
            except OSError as error:
                note(folder, Note("unreadable", f"{error.strerror}: nothing in this folder was checked"))
                continue
            met, again = (met, again + 1 + len(entries)) if is_known else (met + len(entries), again)
            ours = _set_aside(folder, [entry.name for entry in entries], partial(self.head, folder), note)
            if ours and len(ours) == len(entries):
                continue
            entries = [entry for entry in entries if entry.name not in ours]
            if folder and (snapshot := self.snapshot(folder, [entry.name for entry in entries])):
                note(folder, Note("hub_cache", f"did you mean {self.prefix}{snapshot}?"))
                continue
            _enter(folder, bool(entries), note, enter)
            inside = list[_ToVisit]()
            for entry in entries:
                path, name = join(folder, entry.name), entry.name.lower()
                if not _is_folder(entry):
                    is_noted = _noted_as_litter(path, littered, partial(self.head, folder), note)
                    if not is_noted and not _noted_as_shut(path, entry, note):
                        yield path
                elif name not in SKIPPED_FOLDERS:
                    if name.endswith(_IMAGE_NAMES):
                        note(path, Note("folder_named_image", "a folder with an image's file extension"))
                    further = _ToVisit(path, littered or name in LITTER_FOLDERS, above | {me})
                    (linked if entry.is_symlink() else inside).append(further)
            pending.extend(reversed(inside))
        if left_out:
            note("", Note("many_links", f"scanned by other paths, so left out by these: {some(left_out, 3)}"))

    def task(self, paths: list[str], timeout: float) -> tuple[Any, ...]:
        """Return what an executor is to call for lines of the journal, and with what."""
        return check_batch, self.place, paths, timeout

    def stamp(self, path: str) -> Stamp:
        """Return the state of a file that a journal remembers."""
        status = Path(self.place, path).stat()
        return status.st_size, status.st_mtime_ns

    def change(self, path: str, stamp: Stamp, known: str) -> str:
        """Return what has become of a file since it was judged: by size, time and, where there is one, its digest."""
        place = Path(self.place, path)
        if not os.path.lexists(place):
            return GONE
        now: Stamp = ()
        try:
            now = self.stamp(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENAMETOOLONG):  # a link to nothing, or to itself
                raise
        is_same = now == tuple(stamp) and (not known or digest(place.read_bytes()) == known)
        return "" if is_same else CHANGED

    def identity(self, path: str) -> Hashable:
        """Return what is the same for all names of one file."""
        with suppress(OSError):
            status = Path(self.place, path).stat()
            if status.st_ino:
                return status.st_dev, status.st_ino
        return path

    def plain(self, path: str) -> str:
        """Return what is the same for all names that a file has through linked folders, as opposed to links to it."""
        folder, name = os.path.split(path)
        return os.path.join(os.path.realpath(Path(self.place, folder)), name)  # noqa: PTH118  (Path costs more)


class _RemoteFolder(Folder):
    """A folder behind a URL that fsspec knows. The task reads a file's bytes, the worker process gets them."""

    def __init__(self, url: str) -> None:
        self.name = url
        self.prefix = self.place = url if url.endswith("/") else f"{url}/"
        with _reached(url):
            self._files, self._root = _open_remote(url)
            is_folder = self._files.isdir(self._root)
            if not is_folder:  # or so it says where the place can't be reached
                with suppress(FileNotFoundError, NotADirectoryError):
                    self._files.ls(self._root)
        if not is_folder:
            raise _no_folder(url)

    def _list(self, folder: str) -> tuple[list[str], list[str]]:
        """Return the names of the folders and of the files in a folder, sorted."""
        place = join(self._root, folder).rstrip("/")
        with _reached(f"{self.prefix}{folder}"):
            entries = self._files.ls(place, detail=True)
        names: tuple[list[str], list[str]] = [], []
        for entry in entries:
            path = entry["name"].rstrip("/")
            name = path.rpartition("/")[2]
            if path.strip("/") != place.strip("/") and not name.startswith("?"):  # itself; a page's way to sort it
                names[entry["type"] != "directory"].append(name)
        return sorted(names[0]), sorted(names[1])

    def tops(self, inside: str = "") -> list[str]:
        return self._list(inside)[0]

    def peek(self, inside: str) -> list[str]:
        with suppress(FtkitError):
            folders, files = self._list(inside)
            return [*(f"{name}/" for name in folders), *files][:_FEW]
        return []

    def among(self, inside: str, names: Collection[str]) -> set[str]:
        return {name for listed in self._list(inside) for name in listed if name in names}

    def snapshot(self, folder: str, names: Sequence[str]) -> str:  # noqa: ARG002  (it is a folder of this machine)
        return ""

    def holds(self, path: str | os.PathLike[str]) -> bool:  # noqa: ARG002  (none does)
        return False

    def walk(self, note: TakeNote, enter: Callable[[str], None]) -> Iterator[str]:
        pending = [""]
        while pending:
            folder = pending.pop()
            try:
                folders, files = self._list(folder)
            except FtkitError as error:
                note(folder, Note("unreadable", f"{_words(error.__cause__)}: nothing in this folder was checked"))
                continue
            read = partial(self.head, folder)
            ours = _set_aside(folder, [*folders, *files], read, note)
            if ours and len(ours) == len(folders) + len(files):
                continue
            _enter(folder, bool(folders or files), note, enter)
            littered = not LITTER_FOLDERS.isdisjoint(folder.lower().split("/"))
            for path in (join(folder, name) for name in files if name not in ours):
                if not _noted_as_litter(path, littered, read, note):
                    yield path
            inside = [name for name in folders if name.lower() not in SKIPPED_FOLDERS and name not in ours]
            pending.extend(join(folder, name) for name in reversed(inside))

    def head(self, inside: str, name: str) -> bytes:
        try:
            data: bytes = self._files.cat_file(join(self._root, inside, name), 0, _HEAD)
        except Exception as error:
            raise OSError(error) from error
        return data

    def task(self, paths: list[str], timeout: float) -> tuple[Any, ...]:
        return _check_remote, self.name, paths, timeout

    def stamp(self, path: str) -> Stamp:
        return (self._files.ukey(f"{self._root}/{path}"),)

    def identity(self, path: str) -> Hashable:
        return path

    def plain(self, path: str) -> str:
        return path


def is_inside(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> bool:
    """Whether a local path is a folder or below it, by whatever name: case may not count, or it is mounted twice."""
    place, home = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    if place.is_relative_to(home):
        return True
    for above in (place, *place.parents):
        with suppress(OSError):  # not made yet
            if above.samefile(home) and home.stat().st_ino:  # which some file systems don't give
                return True
    return False


def is_litter(name: str) -> bool:
    """Whether a file has a name of those that systems and tools leave behind."""
    return name.lower() in _LITTER or name[:2] in _LITTER


def require_folder(root: str) -> None:
    """Raise if the folder that was scanned is not there any more."""
    if not os.path.isdir(root):  # noqa: PTH112  (Path raises where it may not look)
        raise FtkitError(f"There is no folder {root!r} any more. If it has moved, scan it where it is now.")


def below(root: str, file: str) -> str:
    """Return a path in the folder ``root`` relative to it, as lists and manifests have it: with ``/``."""
    if "://" in root:
        return file.removeprefix(root).lstrip("/")
    return os.path.relpath(file, root).replace(os.sep, "/")


def open_folder(root: str | os.PathLike[str]) -> Folder:
    """Return the folder that a path or URL stands for."""
    name = path_or_url("root", root)
    if here := _LOCAL.match(name):
        written = name[here.end() :]
        name = next(filter(os.path.isdir, (written, url2pathname(written))), written)
    return _RemoteFolder(name) if "://" in name else Folder(name)


def _no_folder(name: str) -> FtkitError:
    close = ""
    with suppress(OSError):
        close = did_you_mean(name, map(str, filter(Path.is_dir, Path(name).parent.iterdir())))
    return FtkitError(f"{name!r} is not a folder.{close} Pass the folder that contains the class or split folders.")


def _enter(folder: str, is_filled: bool, note: TakeNote, enter: Callable[[str], None]) -> None:
    enter(folder)
    if folder and not is_filled:
        note(folder, Note("empty_folder", "no file in it"))


def _set_aside(folder: str, names: Sequence[str], read: Callable[[str], bytes], note: TakeNote) -> set[str]:
    """Return which names in a folder are those of quarantines that went there, by their manifests; note that."""
    ours: set[str] = set()
    for name in names:
        if name.startswith("manifest") and name.endswith(".json"):
            with suppress(OSError):
                if b'"ftkit": "quarantine"' in read(name):
                    files = "files" + name.removeprefix("manifest").removesuffix(".json")
                    ours |= {name, name.removesuffix("json") + "html", files}.intersection(names)
    if ours and folder and len(ours) == len(names):
        note(folder, _SET_ASIDE)
    else:
        for name in sorted(ours):
            if name.startswith("files"):
                note(join(folder, name), _SET_ASIDE)
    return ours


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _noted_as_shut(path: str, entry: os.DirEntry[str], note: TakeNote) -> bool:
    """Whether a name without an image's suffix is a link that none can follow; it is noted then.

    It is no other file: ImageFolder, which asks of every name whether it is a folder, raises.
    """
    if not entry.is_symlink() or suffix_of(path) in IMAGE_SUFFIXES:
        return False
    try:
        entry.is_dir()
    except OSError as error:
        kind = "broken_link" if error.errno == errno.ELOOP else "unreadable"
        note(path, Note(kind, error.strerror or str(error)))
        return True
    return False


def _noted_as_litter(path: str, littered: bool, read: Callable[[str], bytes], note: TakeNote) -> bool:
    """Whether a file is a system's or tool's own, by the folder it lies in, or by its name and content; noted then.

    A photo of that name is a photo, and what is neither is checked as any other file.
    """
    name = path.rpartition("/")[2]
    left_by, is_theirs = _LITTER.get(name.lower()) or _LITTER.get(name[:2]) or (_SOMEBODY, None)
    if is_theirs and not littered:
        with suppress(OSError):
            littered = bool(is_theirs(read(name)))
    if littered:
        note(path, Note("litter", f"left behind by {left_by}"))
    return littered


@contextmanager
def _reached(url: str) -> Iterator[None]:
    try:
        yield
    except FtkitError:
        raise
    except Exception as error:  # each plugin has errors of its own
        raise FtkitError(
            f"fsspec can't open {url!r}: {_words(error)}. Check the URL, the connection and what may be read there."
        ) from error


def _words(error: BaseException | None) -> str:
    return shown(str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__)


def _open_remote(url: str) -> tuple[Any, str]:
    try:
        from fsspec import available_protocols  # type: ignore[import-not-found, import-untyped, unused-ignore]
        from fsspec.core import url_to_fs  # type: ignore[import-not-found, import-untyped, unused-ignore]  # an extra
    except ImportError as error:
        raise MissingPackageError(
            f"{url!r} needs fsspec and its plugin for the protocol: pip install fsspec."
        ) from error
    protocol = re.split("::|://", url)[0]
    try:
        files, root = url_to_fs(url)
    except ImportError as error:
        raise MissingPackageError(f"fsspec can't open {url!r}: {_words(error)}.") from error
    except ValueError as error:
        hint = "" if protocol in available_protocols() else did_you_mean(protocol, available_protocols())
        raise FtkitError(f"fsspec can't open {url!r}: {_words(error)}.{hint}") from error
    return files, root.rstrip("/")


def read_bytes(url: str) -> bytes | None:
    """Return the content of a file behind a URL; None when it can't be read any more."""
    try:
        files, place = _open_remote(url)
        data: bytes = files.cat_file(place)
    except Exception:  # noqa: BLE001  (each plugin has errors of its own)
        return None
    return data


def _check_remote(url: str, paths: Sequence[str], timeout: float) -> list[bytes]:
    """Read and check the files, one after the other: a few of them are in memory at a time."""
    files, root = _open_remote(url)

    def check(path: str) -> bytes:
        try:
            stamp, data = [files.ukey(f"{root}/{path}")], files.cat_file(f"{root}/{path}")
        except Exception as error:  # noqa: BLE001  (each plugin has errors of its own)
            kind = "vanished" if isinstance(error, FileNotFoundError) else "unreadable"
            return Verdict([Note(kind, _words(error))]).to_json()
        (answer,) = run_jobs([Job("check", (path, stamp), data)], timeout)
        return answer.verdict

    return [write_line(path, check(path)) for path in paths]
