"""``extract_archive``: the members that ``formats`` reads, written by ``tree`` where ``staging`` has made room."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from ftkit._archives.formats import open_archive
from ftkit._archives.members import Archive, Limits, Source
from ftkit._archives.record import Origin, recall, write
from ftkit._archives.staging import publish, staged
from ftkit._archives.tree import Tree
from ftkit._arguments import came, flag, local_path, real_number
from ftkit._wording import in_bytes, plural, shown
from ftkit.errors import ArchiveError, FileWriteError, did_you_mean


@dataclass(frozen=True, slots=True)
class ArchiveReport:
    """What came out of an archive, and what was left out.

    Attributes:
        source: The archive.
        dest: The folder that holds its files now.
        format: What it was: ``"zip"``, ``"tar"``, ``"tar.gz"``, ``"7z"``, ...
        files: How many files and links were written.
        bytes: The size of the files.
        left_out: How many files of other systems' own were left out, by kind: ``__MACOSX``, ``.DS_Store``,
            ``Thumbs.db`` and ``._*`` (the side files of macOS).
        encoding: In which the names were written, where the archive did not say so itself; None where all were
            ASCII or marked.
        stripped: The wrapping folder that was taken away, or None.
        set_uid: How many files came with a set-uid or set-gid bit. They lost it.
        already_unpacked: True where an earlier call had unpacked it there: nothing was done, and the rest tells what
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

    def __str__(self) -> str:
        size = f"{plural(self.files, 'file')}, {in_bytes(self.bytes)}"
        lines = [f"{shown(self.source)} ({self.format}) -> {shown(self.dest)}: {size}"]
        if self.already_unpacked:
            lines[0] += "; already unpacked, nothing was done"
        if self.encoding:
            lines.append(f"names read as {shown(self.encoding)}")
        if self.stripped:
            lines.append(f"the wrapping folder '{shown(self.stripped)}' was taken away")
        if self.left_out:
            kinds = ", ".join(f"{kind} ({count:,})" for kind, count in sorted(self.left_out.items()))
            lines.append(f"left out: {kinds}")
        if self.set_uid:
            lines.append(f"set-uid and set-gid bits dropped: {plural(self.set_uid, 'file')}")
        return "\n  ".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain types, ready for JSON."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}


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
    """Unpack the archive ``source`` into the folder ``dest``: all of it, checked, or nothing.

    Zip, tar (plain, gz, bz2, xz, zst) and, with the extra ``ftkit[7z]``, 7z are told apart by content. The members
    go to a hidden folder beside ``dest`` that takes its name when the last checksum has held and all is on the disk;
    an error leaves nothing behind. ``dest`` must not exist yet, or be an empty folder: nothing is ever overwritten.

    To unpack the same archive there again does nothing, costs no time and says so: the folder keeps what it was
    unpacked from. What became of its files since is yours to know. Another archive, a changed one, or other options
    are an error.

    Names that don't say their encoding are decoded by evidence over the whole archive (UTF-8, CP949, Shift-JIS, GBK
    or CP437). What other systems leave in archives (``__MACOSX``, ``.DS_Store``, ``Thumbs.db``, ``._*``) is left
    out. Files get their times, and modes without set-uid bits or write access for others. Links that stay
    inside are made.

    Refused, by the name of the member: paths that are absolute, have a drive or climb with ``..``; links that lead
    out or in a circle; devices and FIFOs; members that would take one place (twice the same name, one name in two
    Unicode forms, or in two cases where the file system does not tell them apart); archives joined into one file;
    and bombs.

    Args:
        source: The archive, a file. ``~`` is the home folder here, and in ``dest``.
        dest: The folder to make. Missing parents are made, too.
        max_bytes: The most it may unpack to; 256 GiB by default.
        max_ratio: The most that the archive, and each member of a zip, may unpack to, in its packed sizes. Masks and
            tables may reach hundreds, bombs a thousand and more. Up to 32 MiB any ratio passes.
        max_files: The most files, folders and links, with the folders that their paths imply.
        encoding: Forces the encoding of names that don't say theirs.
        password: For encrypted members.
        strip: Take away the one folder that holds everything, if there is such a folder.

    Returns:
        What came, and what was left out.

    Raises:
        ArchiveError: The archive is damaged, cut off, encrypted, of an unknown format, or wants what is refused.
        FileWriteError: ``dest`` is a file, can't be written, or holds anything else than this archive's files.

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
        raise ArchiveError(f"password must be text or bytes, not {came(password)}.")
    target = Path(os.path.realpath(dest))
    try:
        "".encode(encoding or "ascii")
    except (LookupError, TypeError, ValueError):
        raise ArchiveError(f"Python knows no encoding {encoding!r}; 'cp949', 'shift_jis', 'gbk' are some.") from None
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
                progress.total = archive.total
                tree = Tree(folder, limits, progress.update)
                _check_space(folder, archive)
                for batch in archive.batches:
                    archive.pour(tree, list(filter(tree.claim, batch)))
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
        error.args = (f"{shown(source)} was not unpacked, and nothing is left behind: {error}",)
        raise
    except OSError as error:
        raise _unreadable(source, error) from error
    return report


def _refuse_no_file(source: Path) -> None:
    """Raise unless ``source`` is a file, and say what it is instead."""
    if source.is_file():
        return
    missing = next((place for place in (*reversed(source.parents), source) if not place.exists()), None)
    wrong, fits = missing or source, Path.is_file if missing in (None, source) else Path.is_dir
    close = did_you_mean(wrong.name, (path.name for path in wrong.parent.glob("*") if fits(path)))
    if missing is None:
        what = "a folder, not an archive" if source.is_dir() else "no regular file"
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
    except (TypeError, ValueError, AttributeError):  # written by another version, or by somebody else
        return None
    return report


def _check_space(folder: Path, archive: Archive) -> None:
    free = shutil.disk_usage(folder).free
    if archive.total is not None and archive.total > free:
        raise FileWriteError(f"it needs {in_bytes(archive.total)}, and the disk has {in_bytes(free)} left.")
