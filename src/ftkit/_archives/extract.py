"""``extract_archive``: ``formats`` reads the members, ``tree`` writes them into a folder from ``staging``."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from ftkit._archives.formats import open_archive
from ftkit._archives.members import Archive, Limits, Source
from ftkit._archives.record import Origin, recall, write
from ftkit._archives.staging import publish, staged
from ftkit._archives.tree import Tree
from ftkit._arguments import came, flag, local_path, real_number
from ftkit._reports import Parts, Report
from ftkit._wording import in_bytes, plural, shown
from ftkit.errors import ArchiveError, FileWriteError, did_you_mean


@dataclass(frozen=True, slots=True, repr=False)
class ArchiveReport(Report):
    """What was unpacked from an archive, and what was left out.

    Attributes:
        source: The archive.
        dest: The folder that now contains its files.
        format: The archive's format: ``"zip"``, ``"tar"``, ``"tar.gz"``, ``"7z"``, ...
        files: How many files and links were written.
        bytes: The total size of the files.
        left_out: How many system files were left out, by kind: ``__MACOSX``, ``.DS_Store``, ``Thumbs.db`` and
            ``._*`` (macOS metadata).
        encoding: The encoding of names that don't state one, forced or detected; None if all names are ASCII or
            state theirs.
        stripped: The top-level folder that was removed from the paths, or None.
        set_uid: How many files had a set-uid or set-gid bit, which was dropped.
        already_unpacked: True if an earlier call unpacked it there: nothing was done, and the other fields say what
            was done then.
    """

    source: Path
    dest: Path
    format: str
    files: int
    bytes: int
    left_out: dict[str, int]
    encoding: str | None = None
    stripped: str | None = None
    set_uid: int = 0
    already_unpacked: bool = False

    def _parts(self) -> Parts:
        size = f"{plural(self.files, 'file')}, {in_bytes(self.bytes)}"
        done = "; already unpacked, nothing was done" if self.already_unpacked else ""
        yield f"{self.source} ({self.format}) -> {self.dest}: {size}{done}"
        if self.encoding:
            yield f"  names read as {self.encoding}"
        if self.stripped:
            yield f"  top-level folder removed: '{shown(self.stripped)}'"
        if self.left_out:
            kinds = ", ".join(f"{kind} ({count:,})" for kind, count in sorted(self.left_out.items()))
            yield f"  left out: {kinds}"
        if self.set_uid:
            yield f"  set-uid and set-gid bits dropped: {plural(self.set_uid, 'file')}"


def extract_archive(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    max_bytes: float = 1 << 38,
    max_ratio: float = 500.0,
    max_files: float = 5_000_000,
    encoding: str | None = None,
    password: str | bytes | None = None,
    strip: bool = False,
) -> ArchiveReport:
    """Unpack the archive ``source`` into the folder ``dest``: all of it, verified, or nothing.

    Zip, tar (plain, gz, bz2, xz, zst) and, with the extra ``ftkit[7z]``, 7z are recognized by content. The members are
    written to a hidden folder next to ``dest``, which is renamed to ``dest`` once every checksum is verified and
    everything is on disk; an error leaves nothing behind. ``dest`` must not exist yet, or be an empty folder: nothing
    is ever overwritten.

    Unpacking the same archive there again does nothing, returns at once and says so: the folder records what it was
    unpacked from. Files changed or deleted since are not checked. Another archive, a changed one, or other options
    are an error.

    The encoding of names that don't state one is detected from all the names in the archive (UTF-8, CP949, Shift-JIS,
    GBK or CP437). System files (``__MACOSX``, ``.DS_Store``, ``Thumbs.db``, ``._*``) are left out. Files keep their
    modification times and their modes, without set-uid bits or write access for others. Links that stay inside the
    folder are created.

    These are refused, by the name of the member: paths that are absolute, have a drive or contain ``..``; links that
    lead outside or in a circle; devices and FIFOs; members that collide (the same name twice, in two Unicode forms, or
    in two cases if the file system ignores case); archives joined into one file; and archive bombs.

    Args:
        source: The archive file. ``~`` is your home folder, in ``dest`` too.
        dest: The folder to create, with any missing parents.
        max_bytes: Maximum unpacked size, in bytes; 256 GiB by default.
        max_ratio: Maximum unpacked size of the archive, and of each member of a zip, as a multiple of the packed size.
            Masks and tables may reach hundreds, bombs a thousand and more. Up to 32 MiB, any ratio is allowed.
        max_files: Maximum number of files, folders and links, including folders that paths imply.
        encoding: Encoding of names that don't state one, instead of detecting it.
        password: Password for encrypted members.
        strip: Remove the top-level folder from the paths, if it contains everything.

    Returns:
        What was unpacked, and what was left out.

    Raises:
        ArchiveError: The archive is damaged, cut off, encrypted, of an unknown format, or contains something that is
            refused.
        FileWriteError: ``dest`` is a file, can't be written, or contains anything but this archive's files.

    Example:
        >>> import zipfile
        >>> from ftkit import extract_archive
        >>> with zipfile.ZipFile("pets.zip", "w") as archive:
        ...     archive.writestr("cats/tom.jpg", b"...")
        ...     archive.writestr("__MACOSX/cats/._tom.jpg", b"...")
        >>> print(extract_archive("pets.zip", "pets"))
        pets.zip (zip) -> pets: 1 file, 3 B
          left out: __MACOSX (1)
        >>> extract_archive("pets.zip", "pets").already_unpacked
        True
    """
    source, dest = local_path("source", source, error=ArchiveError), local_path("dest", dest, error=FileWriteError)
    asked = {"max_bytes": max_bytes, "max_ratio": max_ratio, "max_files": max_files}
    most = {what: real_number(what, limit, "of at least 0", lambda one: one >= 0) for what, limit in asked.items()}
    strip = flag("strip", strip)
    if not isinstance(password, str | bytes | None):
        raise ArchiveError(f"password must be a string or bytes, not {came(password)}.")
    target = Path(os.path.realpath(dest))
    try:
        "".encode(encoding or "ascii")
    except (LookupError, TypeError, ValueError):
        raise ArchiveError(f"Python has no encoding {encoding!r}. Try 'cp949', 'shift_jis' or 'gbk'.") from None
    secret = password.encode() if isinstance(password, str) else password
    options = {"encoding": encoding, "strip": strip}
    try:
        _refuse_no_file(source)
    except OSError as error:
        raise _unreadable(source, error) from error
    try:
        with source.open("rb") as file:
            if before := _recalled(source, dest, file, options):
                return before
            origin = Origin.of(file, source.name, options)
            limits = Limits(**most, packed=origin.size)
            with (
                staged(target) as folder,
                tqdm(
                    unit="B", unit_scale=True, desc=f"unpacking {shown(source.name)}", disable=None, delay=1
                ) as progress,
            ):
                archive = open_archive(Source(source, file, limits, encoding, secret))
                progress.total = limits.packed if archive.read else archive.total
                tree = Tree(folder, limits, lambda size: _advance(progress, archive, size))
                _check_space(folder, archive)
                for batch in archive.batches:
                    members = list(filter(tree.claim, batch))
                    if progress.total and not archive.read:  # nothing is written for system files and links
                        written = sum(member.size for member in members if member.kind == "file")
                        progress.total -= sum(member.size for member in batch) - written
                    archive.pour(tree, members)
                _advance(progress, archive, 0)
                top = tree.single_folder() if strip else []
                tree.make_links(top)
                report = ArchiveReport(
                    source,
                    dest,
                    archive.format,
                    tree.files,
                    tree.bytes,
                    dict(tree.left_out),
                    archive.encoding,
                    top[0] if top else None,
                    tree.set_uid,
                )
                write(folder.joinpath(*top), origin, file, report.to_dict())
                try:
                    publish(folder.joinpath(*top), target)
                except FileWriteError:
                    if before := _recalled(source, dest, file, options):  # by another process, in the meantime
                        return before
                    raise
    except (ArchiveError, FileWriteError) as error:
        error.args = (f"{shown(source)} was not unpacked, and nothing was left behind: {error}",)
        raise
    except OSError as error:
        raise _unreadable(source, error) from error
    return report


def _advance(progress: tqdm[Any], archive: Archive, size: int) -> None:
    """Show that ``size`` more bytes were written, or how much of an archive that tells no total has been read."""
    progress.update(archive.read() - progress.n if archive.read else size)


def _refuse_no_file(source: Path) -> None:
    """Raise unless ``source`` is a file, and say what it is instead."""
    if source.is_file():
        return
    missing = next((place for place in (*reversed(source.parents), source) if not place.exists()), None)
    wrong, fits = missing or source, Path.is_file if missing in (None, source) else Path.is_dir
    close = did_you_mean(wrong.name, (path.name for path in wrong.parent.glob("*") if fits(path)))
    if missing is None:
        what = "a folder, not an archive" if source.is_dir() else "not a regular file"
        raise ArchiveError(f"{shown(source)} is {what}.{close}")
    raise ArchiveError(f"There is no {'file' if missing == source else 'folder'} {shown(missing)}.{close}")


def _unreadable(source: Path, error: OSError) -> ArchiveError:
    return ArchiveError(f"{shown(source)} can't be read: {error.strerror or error}.")


def _recalled(source: Path, dest: Path, file: IO[bytes], options: dict[str, Any]) -> ArchiveReport | None:
    """Return the report of an earlier call that did all that is asked."""
    then = recall(dest, file, options) if dest.is_dir() else None
    if then is None:
        return None
    try:
        report = ArchiveReport(**then | {"source": source, "dest": dest, "already_unpacked": True})
        str(report)
    except (TypeError, ValueError, AttributeError):  # written by another version or program
        return None
    return report


def _check_space(folder: Path, archive: Archive) -> None:
    free = shutil.disk_usage(folder).free
    if archive.total is not None and archive.total > free:
        raise FileWriteError(f"it needs {in_bytes(archive.total)}, and the disk has {in_bytes(free)} free.")
