"""Where an archive's members are written: one folder that nothing leaves, and that appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from ftkit._archives.members import Check, Limits, Member, refused
from ftkit._files import sync_folder
from ftkit.errors import FileWriteError

if sys.platform != "win32":
    import fcntl

__all__ = ["Output", "Tree", "publish", "split_path", "staged"]

_LITTER_SUFFIX = ".ftkit-unpacking"
_DEEPEST = 256
_UNWRITABLE_NAME = "has a name that this system can't hold"
_DRIVE = re.compile(r"[A-Za-z]:")
_WINDOWS_FORBIDS = re.compile(r'[<>:"|?*\x00-\x1f]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)
_JUNK = {"__macosx": "__MACOSX", ".ds_store": ".DS_Store", "thumbs.db": "Thumbs.db"}
# The first bytes of the "._name" files in which macOS keeps what other systems have no place for (RFC 1740).
_APPLE_DOUBLE = b"\x00\x05\x16\x07"


class Tree:
    """The files, folders and links of an archive, below one folder.

    Every name is claimed before its data are written, so that no two members take one place. Links are made last
    of all: while files are written there is none that a path could lead through.

    Attributes:
        files: How many files and links were written.
        bytes: The size of the files.
        left_out: What other systems leave behind, counted by kind.
        set_uid: How many files came with a set-uid or set-gid bit, and lost it.
    """

    def __init__(self, root: Path, limits: Limits, advance: Callable[[int], object]) -> None:
        self.root = root
        self._advance = advance
        self.files: int = 0
        self.bytes: int = 0
        self.set_uid: int = 0
        self.left_out: Counter[str] = Counter()
        self.now: float = time.time()
        self._limits = limits
        self._members = 0
        self._entries: dict[str, tuple[str, str]] = {}  # place -> kind and name
        self._links: dict[str, tuple[list[str], str]] = {}  # place -> parts of the name, and target
        self._folder: list[str] | None = None
        self.folds_case: bool = _folds_case(root)

    def claim(self, member: Member) -> bool:
        """Take the place of ``member``; return False for what is left out, raise for what is refused."""
        self._members += 1
        self._limits.check_files(self._members)
        if member.kind not in ("file", "folder", "link", "hard link"):
            raise refused(member.name, f"is a {member.kind}; only files, folders and links are unpacked")
        parts = split_path(member.name)
        junk = next((_JUNK[part.lower()] for part in parts if part.lower() in _JUNK), None)
        if junk:
            self.left_out[junk] += member.kind != "folder"
            return False
        if not parts:
            if member.kind == "folder":  # "./", the root itself
                return False
            raise refused(member.name, "has no name to be written under")
        for depth in range(1, len(parts)):
            self._take(parts[:depth], "folder", member)
        self._take(parts, member.kind, member)
        if member.kind == "link":
            target = member.target.replace("\\", "/")
            if not target or target.startswith("/") or _DRIVE.match(target) or "\0" in target:
                raise refused(member.name, f"is a link that leads out of the archive, to {member.target!r}")
            self._links[self._place(parts)] = (parts, target)
        return True

    def _place(self, parts: list[str]) -> str:
        place = "/".join(parts)
        if self.folds_case:
            place = place.casefold()
        return place if place.isascii() else unicodedata.normalize("NFC", place)

    def _take(self, parts: list[str], kind: str, member: Member) -> None:
        place, name = self._place(parts), "/".join(parts)
        if place not in self._entries:
            self._entries[place] = kind, place if place == name else name
            return
        taken_kind, taken = self._entries[place]
        if taken != name:
            how = "by case" if taken.casefold() == name.casefold() else "by Unicode form"
            raise refused(member.name, f"collides with {taken!r}, which differs {how} alone")
        if taken_kind == "link":
            raise refused(member.name, f"would be written through the link {taken!r}")
        if "folder" in (taken_kind, kind) and taken_kind != kind:
            raise refused(member.name, f"makes {taken!r} a file and a folder at once")
        if kind != "folder":
            raise refused(member.name, "comes twice, and one would overwrite the other")

    def write(self, member: Member) -> None:
        """Write ``member``, which has its place; a link waits for ``make_links``."""
        if member.kind == "folder":
            self._make_folder(split_path(member.name), member.name)
        elif member.kind == "file":
            with Output(self, member) as output:
                for chunk in member.data():
                    output.write(chunk)
        elif member.kind == "hard link":
            self._hard_link(member)

    def path(self, parts: list[str], name: str) -> Path:
        """Return the path of ``parts``, with the folders on the way made."""
        self._make_folder(parts[:-1], name)
        return self.root.joinpath(*parts)

    def _make_folder(self, parts: list[str], name: str) -> None:
        if parts != self._folder:  # most members lie beside the one before
            with _writing(name):
                self.root.joinpath(*parts).mkdir(parents=True, exist_ok=True)
            self._folder = parts

    def spend(self, size: int) -> None:
        """Count ``size`` bytes as written; raise if they are too many."""
        self.bytes += size
        self._limits.check_bytes(self.bytes)
        self._advance(size)

    def _hard_link(self, member: Member) -> None:
        parts, target = split_path(member.name), split_path(member.target, member.name)
        kind, _ = self._entries.get(self._place(target), ("", ""))
        path, source = self.path(parts, member.name), self.root.joinpath(*target)
        if kind not in ("file", "hard link") or target == parts or not source.exists():
            raise refused(member.name, f"is a hard link to {member.target!r}, which is no file that came before it")
        with _writing(member.name):
            try:
                os.link(source, path)
            except OSError:  # a file system without links, or with too many of them
                self.spend(source.stat().st_size)
                shutil.copy2(source, path)
        self.files += 1

    def make_links(self, top: list[str]) -> None:
        """Make the symbolic links, now that all names are known; raise if one leads out of the folder ``top``."""
        for parts, target in self._links.values():
            self._follow(parts, target, top)
        for parts, target in self._links.values():
            path = self.path(parts, "/".join(parts))
            with _writing("/".join(parts)):
                path.symlink_to(target)
            self.files += 1

    def _follow(self, parts: list[str], target: str, top: list[str]) -> None:
        """Walk to where a link leads, by the names of the archive alone.

        ``os.path.realpath`` gives up where a path grows too long, and then calls it safe (CVE-2025-4517).
        """
        name, at, hops = "/".join(parts), parts[:-1], 0
        todo = target.split("/")[::-1]
        while todo:
            part = todo.pop()
            if part == "..":
                if len(at) <= len(top):
                    raise refused(name, f"is a link that leads out of the archive, to {target!r}")
                at = at[:-1]
            elif part not in ("", "."):
                at = [*at, part]
                through = self._links.get(self._place(at))
                if through:
                    hops += 1
                    if hops > 40:  # as many as Linux follows
                        raise refused(name, f"is a link that leads in a circle, to {target!r}")
                    at = at[:-1]
                    todo += through[1].split("/")[::-1]

    def single_folder(self) -> list[str]:
        """Return the name of the one folder that holds everything, as a list of one; an empty list if there is none."""
        with os.scandir(self.root) as scan:
            entries = list(scan)
        links = {parts[0] for parts, _ in self._links.values()}
        if len(entries) == 1 and entries[0].is_dir(follow_symlinks=False) and links <= {entries[0].name}:
            return [entries[0].name]
        return []


class Output:
    """The file of ``member`` while it is written; leaving it raises if the data were not those announced."""

    def __init__(self, tree: Tree, member: Member) -> None:
        self._tree, self._member = tree, member
        self._path = tree.path(split_path(member.name), member.name)
        mode = 0o644 if member.mode is None else member.mode | 0o600
        if mode & 0o6000:
            tree.set_uid += 1
        # As tarfile's "data" filter: nobody else writes, and who may not run it himself shares nothing to run.
        mode &= 0o755 if mode & 0o100 else 0o644
        with _writing(member.name):
            self._file = os.fdopen(os.open(self._path, _CREATE, mode), "wb", buffering=0)
        self._check = Check(member)
        self._is_double = False

    def write(self, chunk: bytes | bytearray | memoryview) -> int:
        """Append ``chunk``."""
        if not self._check.size and self._path.name.startswith("._"):
            self._is_double = bytes(chunk[:4]) == _APPLE_DOUBLE
        self._check.add(chunk)
        self._tree.spend(len(chunk))
        with _writing(self._member.name):
            rest = memoryview(chunk)
            while rest:
                rest = rest[self._file.write(rest) :]
        return len(chunk)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None:
            self._end()

    def _end(self) -> None:
        self._check.end()
        if self._is_double:
            self._path.unlink()
            self._tree.bytes -= self._check.size
            self._tree.left_out["._*"] += 1
            return
        self._tree.files += 1
        modified = self._member.modified
        if modified is not None and modified >= 0:
            modified = min(modified, self._tree.now)  # a time to come would upset whoever compares times
            with contextlib.suppress(OverflowError, OSError):
                os.utime(self._path, (modified, modified))


_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


def split_path(path: str, member: str | None = None) -> list[str]:
    """Split ``path`` into its parts, or raise in the name of ``member`` if it leads anywhere but down."""
    name = path if member is None else member
    # Old Windows tools write backslashes between folders.
    path = path.replace("\\", "/")
    if path.startswith("/") or _DRIVE.match(path):
        raise refused(name, "has an absolute path; only paths below the archive's own folder are unpacked")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise refused(name, "climbs out of its folder with '..'")
    if len(parts) > _DEEPEST:
        raise refused(name, f"lies more than {_DEEPEST} folders deep")
    for part in parts:
        if "\0" in part or (sys.platform == "win32" and _WINDOWS_FORBIDS.search(part)):
            raise refused(name, _UNWRITABLE_NAME)
    return parts


@contextlib.contextmanager
def _writing(name: str) -> Iterator[None]:
    try:
        yield
    except (UnicodeEncodeError, OSError) as error:
        if isinstance(error, UnicodeEncodeError) or error.errno in (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL):
            raise refused(name, _UNWRITABLE_NAME) from error
        failure = FileWriteError(f"Its member {name!r} can't be written: {error.strerror or error}.")
        failure.errno, failure.filename = error.errno, error.filename
        raise failure from error


def _folds_case(folder: Path) -> bool:
    probe = folder / "Case"
    probe.mkdir()
    try:
        return (folder / "cASE").exists()
    finally:
        probe.rmdir()


@contextlib.contextmanager
def staged(dest: Path) -> Iterator[Path]:
    """Give an empty folder beside ``dest``; what is in it when the block ends and was not published is deleted.

    It is locked while its writer lives: what a killed one left behind is deleted by the next call.
    """
    missing = [folder for folder in dest.parents if not folder.exists()]
    folder, lock = None, -1
    try:
        try:
            _refuse_dest(dest)
            dest.parent.mkdir(parents=True, exist_ok=True)
            _remove_litter(dest.parent)
            folder, lock = _locked_folder(dest)
        except OSError as error:
            if isinstance(error, FileWriteError):
                raise
            raise _unwritable(dest, error) from error
        yield folder
        shutil.rmtree(folder, ignore_errors=True)  # what is left where a folder in it was published
    except BaseException:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        for made in missing:
            with contextlib.suppress(OSError):
                made.rmdir()
        raise
    finally:
        if lock >= 0:
            os.close(lock)


def publish(folder: Path, dest: Path) -> None:
    """Give ``folder`` the name ``dest`` in one step."""
    try:
        if dest.is_dir():
            folder.chmod(dest.stat().st_mode & 0o777)
            if sys.platform == "win32":  # can't rename over a folder, not even an empty one
                dest.rmdir()
        folder.rename(dest)
        sync_folder(dest.parent)
    except OSError as error:
        raise _unwritable(dest, error) from error


def _refuse_dest(dest: Path) -> None:
    why = ""
    if os.path.lexists(dest) and not dest.is_dir():
        why = "it is a file"
    elif dest.is_dir() and next(dest.iterdir(), None) is not None:
        why = "it is not empty, and nothing is ever overwritten"
    elif dest.is_dir() and dest.samefile(Path.cwd()):
        why = "it is the current folder, which can't be replaced"
    elif os.path.ismount(dest):
        why = "it is where a disk is mounted, which can't be replaced"
    if why:
        error = FileWriteError(f"Can't unpack into {dest}: {why}. Name a folder that does not exist yet.")
        error.errno, error.filename = errno.EEXIST, str(dest)
        raise error


def _unwritable(dest: Path, cause: OSError) -> FileWriteError:
    error = FileWriteError(f"Can't unpack into {dest}: {cause.strerror or cause}. Choose a folder you may write to.")
    error.errno, error.filename = cause.errno, str(dest)
    return error


def _locked_folder(dest: Path) -> tuple[Path, int]:
    stem = os.fsencode(dest.name)[:180].decode(errors="ignore")
    while True:
        folder = dest.with_name(f".{stem}.{os.urandom(6).hex()}{_LITTER_SUFFIX}")
        folder.mkdir()
        if sys.platform == "win32":
            return folder, -1
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        with contextlib.suppress(OSError):  # some network file systems know no locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder.exists():
            return folder, lock
        os.close(lock)  # a clean-up came between the two calls


def _remove_litter(parent: Path) -> None:
    if sys.platform == "win32":  # without a lock nobody knows whether its writer lives
        return
    for folder in parent.glob(f".*{_LITTER_SUFFIX}"):
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
