"""Where an archive's members are written: the files, folders and links below one folder, which none of them leaves."""

from __future__ import annotations

import contextlib
import errno
import graphlib
import os
import shutil
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, Self

from ftkit._archives.members import Check, Limits, Member, refused
from ftkit._archives.paths import UNWRITABLE_NAME, is_absolute, junk_in, split_path
from ftkit._wording import shown
from ftkit.errors import FileWriteError

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_SET_UID: Final = 0o6000  # or set-gid
_FOLDER_BYTES: Final = 4096  # that most file systems take for a folder; a path of a few bytes implies hundreds of them
_MOST_HOPS: Final = 40  # MAXSYMLINKS of Linux
# The first bytes of the "._name" files in which macOS keeps what other systems have no place for (RFC 1740).
_APPLE_DOUBLE: Final = b"\x00\x05\x16\x07"


class _Entry(NamedTuple):
    kind: str
    name: str


class _Link(NamedTuple):
    parts: list[str]
    target: str

    @property
    def name(self) -> str:
        return "/".join(self.parts)


class Tree:
    """The files, folders and links of an archive, below one folder.

    Every name is claimed before its data are written, so that no two members collide. Links are created
    last: while files are written, there is none that a path could lead through.

    Attributes:
        files: How many files and links were written.
        bytes: The total size of the files.
        left_out: The number of system files left out, by kind.
        set_uid: How many files had a set-uid or set-gid bit, which was dropped.
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
        self._entries: dict[str, _Entry] = {}  # by place
        self._links: dict[str, _Link] = {}  # by place
        self._folders = 0
        self._writers = {"folder": self._write_folder, "file": self._write_file, "hard link": self._write_hard_link}
        self._folder: list[str] | None = None
        self.folds_case: bool = _folds_case(root)

    def claim(self, member: Member) -> bool:
        """Claim the place of ``member``; return False for what is left out, raise for what is refused."""
        self._members += 1
        self._limits.check_files(self._members)
        if member.kind not in (*self._writers, "link"):
            raise refused(member.name, f"is a {member.kind}; only files, folders and links are unpacked")
        parts = split_path(member.name)
        if junk := junk_in(parts):
            self.left_out[junk] += member.kind != "folder"
            return False
        if not parts and member.kind == "folder":  # "./", the root itself
            return False
        if not parts:
            raise refused(member.name, "has no name")
        for depth in range(1, len(parts)):
            self._take(parts[:depth], "folder", member)
        self._take(parts, member.kind, member)
        if member.kind == "link":
            self._links[self._place(parts)] = _Link(parts, _checked_target(member))
        return True

    def _place(self, parts: list[str]) -> str:
        place = "/".join(parts)
        if self.folds_case:
            place = place.casefold()
        return place if place.isascii() else unicodedata.normalize("NFC", place)

    def _take(self, parts: list[str], kind: str, member: Member) -> None:
        place, name = self._place(parts), "/".join(parts)
        taken = self._entries.get(place)
        if taken is None:
            self._entries[place] = _Entry(kind, place if place == name else name)  # one string for both
            self._limits.check_files(len(self._entries))
            self._folders += kind == "folder"
            self._limits.check_ratio(self.bytes + self._folders * _FOLDER_BYTES)
        elif why := _collision(taken, kind, name):
            raise refused(member.name, why)

    def write(self, member: Member) -> None:
        """Write ``member``, which has its place; a link waits for ``make_links``."""
        if member.kind != "link":
            self._writers[member.kind](member)

    def output(self, member: Member) -> Output:
        """Open the file of ``member``; raise on leaving it if the data are not those announced."""
        return Output(self, member)

    def _write_folder(self, member: Member) -> None:
        self._make_folder(split_path(member.name), member.name)

    def _write_file(self, member: Member) -> None:
        with self.output(member) as output:
            for chunk in member.data():
                output.write(chunk)

    def path(self, parts: list[str], name: str) -> Path:
        """Return the path of ``parts``, and create the folders on the way."""
        self._make_folder(parts[:-1], name)
        return self.root.joinpath(*parts)

    def _make_folder(self, parts: list[str], name: str) -> None:
        if parts != self._folder:  # most members are next to the one before
            with _writing(name):
                self.root.joinpath(*parts).mkdir(parents=True, exist_ok=True)
            self._folder = parts

    def spend(self, size: int) -> None:
        """Count ``size`` bytes as written; raise if they are too many."""
        self.bytes += size
        self._limits.check_bytes(self.bytes)
        self._advance(size)

    def _write_hard_link(self, member: Member) -> None:
        parts, target = split_path(member.name), split_path(member.target, member.name)
        there = self._entries.get(self._place(target))
        path, source = self.path(parts, member.name), self.root.joinpath(*target)
        if there is None or there.kind not in ("file", "hard link") or target == parts or not source.exists():
            raise refused(
                member.name, f"is a hard link to '{shown(member.target)}', which is not a file that came before it"
            )
        with _writing(member.name):
            self._second_name(source, path)
        self.files += 1

    def _second_name(self, source: Path, path: Path) -> None:
        try:
            os.link(source, path)
        except OSError:  # a file system without links, or with too many of them
            self.spend(source.stat().st_size)
            shutil.copy2(source, path)

    def make_links(self, top: list[str]) -> None:
        """Create the symbolic links, now that all names are known; raise if one leads out of the folder ``top``."""
        inside: dict[str, set[str]] = {}  # the folders in each folder, below it or through a link
        for link in self._links.values():
            here, there = link.parts[:-1], self._follow(link, top)
            if self._is_folder(there):
                for parts in (here, there):
                    for depth in range(len(parts)):
                        inside.setdefault(self._place(parts[:depth]), set()).add(self._place(parts[: depth + 1]))
                inside.setdefault(self._place(here), set()).add(self._place(there))
        self._refuse_circles(inside)
        for link in self._links.values():
            path, there = self.path(link.parts, link.name), self._follow(link, top)
            with _writing(link.name):
                try:
                    path.symlink_to(link.target.replace("/", os.sep), self._is_folder(there))
                except OSError as error:
                    if not _lacks_links(error):
                        raise
                    self._copy_instead(path, there, link)
            self.files += 1

    def _copy_instead(self, path: Path, there: list[str], link: _Link) -> None:
        """Hard-link or copy the file that a link leads to, where the system can't create symbolic links."""
        source = self.root.joinpath(*there)
        if not source.is_file():
            what = "a folder" if source.is_dir() else "nothing in the archive"
            raise refused(
                link.name,
                f"is a link to {what}, '{shown(link.target)}', and this system or account can't create symbolic links "
                "(on Windows, its Developer Mode allows them)",
            )
        self._second_name(source, path)

    def _refuse_circles(self, inside: dict[str, set[str]]) -> None:
        """Raise if a folder contains itself by way of links: following links would never end."""
        try:
            graphlib.TopologicalSorter(inside).prepare()
        except graphlib.CycleError as error:
            circle = set(error.args[1])
            link = next(
                link
                for link in self._links.values()
                if self._place(link.parts[:-1]) in circle
                and self._is_folder(there := self._follow(link, []))
                and self._place(there) in circle
            )
            raise refused(link.name, f"is a link that leads in a circle, to '{shown(link.target)}'") from None

    def _follow(self, link: _Link, top: list[str]) -> list[str]:
        """Return the path that a link leads to, by the names of the archive alone.

        ``os.path.realpath`` gives up if a path grows too long, and then calls it safe (CVE-2025-4517).
        """
        at, todo, hops = link.parts[:-1], _steps(link.target), 0
        while todo:
            step = todo.pop()
            if step == ".." and len(at) <= len(top):
                raise refused(link.name, f"is a link that leads out of the archive, to '{shown(link.target)}'")
            at = at[:-1] if step == ".." else [*at, step]
            if through := self._links.get(self._place(at)):
                hops += 1
                at = at[:-1]
                todo += _steps(through.target)
            if hops > _MOST_HOPS:
                raise refused(link.name, f"is a link that leads in a circle, to '{shown(link.target)}'")
        return at

    def _is_folder(self, parts: list[str]) -> bool:
        taken = self._entries.get(self._place(parts))
        return not parts or (taken is not None and taken.kind == "folder")

    def single_folder(self) -> list[str]:
        """Return the name of the only top-level entry, if it is a folder, as a list of one; else an empty list."""
        with os.scandir(self.root) as scan:
            entries = list(scan)
        links = {link.parts[0] for link in self._links.values()}
        if len(entries) == 1 and entries[0].is_dir(follow_symlinks=False) and links <= {entries[0].name}:
            return [entries[0].name]
        return []


class Output:
    """The file of ``member`` while it is written; leaving it raises if the data are not those announced."""

    def __init__(self, tree: Tree, member: Member) -> None:
        self._tree, self._member = tree, member
        self._path = tree.path(split_path(member.name), member.name)
        mode = 0o644 if member.mode is None else member.mode | 0o600
        tree.set_uid += bool(mode & _SET_UID)
        # As tarfile's "data" filter: no one else writes, and only what the owner can run can others run.
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
            modified = min(modified, self._tree.now)  # a time in the future would upset tools that compare times
            with contextlib.suppress(OverflowError, OSError):
                os.utime(self._path, (modified, modified))


def _collision(taken: _Entry, kind: str, name: str) -> str | None:
    """Say why two members can't have one place; a folder may be repeated."""
    if taken.name != name:
        how = "by case" if taken.name.casefold() == name.casefold() else "by Unicode form"
        return f"collides with '{shown(taken.name)}', which differs only {how}"
    if taken.kind == "link":
        return f"would be written through the link '{shown(taken.name)}'"
    if "folder" in (taken.kind, kind) and taken.kind != kind:
        return f"makes '{shown(taken.name)}' both a file and a folder"
    return None if kind == "folder" else "appears twice, and one would overwrite the other"


def _checked_target(member: Member) -> str:
    target = member.target.replace("\\", "/")
    if not target or is_absolute(target) or "\0" in target:
        raise refused(member.name, f"is a link that leads out of the archive, to '{shown(member.target)}'")
    return target


def _steps(target: str) -> list[str]:
    """Return the steps to where a link leads, the first one last."""
    return [step for step in reversed(target.split("/")) if step not in ("", ".")]


def _lacks_links(error: OSError) -> bool:
    """Return whether symbolic links can't be created: on Windows for most accounts, and on FAT."""
    no_privilege = 1314  # ERROR_PRIVILEGE_NOT_HELD, which Python calls EINVAL
    unknown = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
    return getattr(error, "winerror", None) == no_privilege or error.errno in unknown


@contextlib.contextmanager
def _writing(name: str) -> Iterator[None]:
    try:
        yield
    except (UnicodeEncodeError, OSError) as error:
        if isinstance(error, UnicodeEncodeError) or error.errno in (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL):
            raise refused(name, UNWRITABLE_NAME) from error
        failure = FileWriteError(f"its member '{shown(name)}' can't be written: {error.strerror or error}.")
        failure.errno, failure.filename = error.errno, error.filename
        raise failure from error


def _folds_case(folder: Path) -> bool:
    probe = folder / "Case"
    probe.mkdir()
    try:
        return (folder / "cASE").exists()
    finally:
        probe.rmdir()
