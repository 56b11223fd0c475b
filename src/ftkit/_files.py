"""Atomic, durable writes and content digests: the only place that replaces a file."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import xxhash

from ftkit._arguments import local_path
from ftkit.errors import FileWriteError

if sys.platform != "win32":
    import fcntl


_LITTER_SUFFIX = ".ftkit-partial"


def digest(data: bytes | bytearray | memoryview) -> str:
    """Return the XXH3 128-bit digest of ``data`` as 32 hexadecimal digits.

    It notices any accident (a flipped bit, a lost block). It is no protection against somebody
    who changes data and digest together.

    Example:
        >>> from ftkit._files import digest
        >>> digest(b"ants and bees")
        '11ffb739b8106a6c702ca4c5dabe71d7'
    """
    return xxhash.xxh3_128_hexdigest(data)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a new file that takes the name ``path`` only when the block ends without an error.

    The bytes go to a temporary file in the same folder, are forced to the disk, and then take the
    name in one step, so that at any moment, through a crash or a power cut, ``path`` is either the
    whole old file or the whole new one. Which of them a power cut leaves is sure, except on Windows, where
    nothing forces a name to the disk. ``~`` is the home folder. A missing folder is made. A symbolic link stays
    one: the file behind it is replaced.

    Raises:
        FileWriteError: The file could not be written (no space, no permission, a URL, ...). The
            old file is intact and no temporary file stays behind.

    Example:
        >>> from pathlib import Path
        >>> from ftkit._files import atomic_write
        >>> with atomic_write("notes.txt") as file:
        ...     _ = file.write(b"all or nothing")
        >>> Path("notes.txt").read_bytes()
        b'all or nothing'
    """
    target = Path(os.path.realpath(local_path("path", path, error=FileWriteError)))
    temporary: Path | None = None
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():
                raise IsADirectoryError(21, "it is a folder")
            temporary, file = _open_locked(target)
            with file:
                yield file
                file.flush()
                _force(file.fileno())
                if sys.platform != "win32":
                    temporary.replace(target)
            if sys.platform == "win32":  # an open file can't be renamed there
                temporary.replace(target)
            sync_folder(target.parent)
        except OSError as error:
            if isinstance(error, FileWriteError):
                raise
            raise _write_error(target, error) from error
    except BaseException:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise


def _write_error(target: Path, cause: OSError) -> FileWriteError:
    before = "The file that was there is intact." if target.is_file() else "Nothing was left behind."
    reason = cause.strerror or cause
    error = FileWriteError(f"Can't write {target}: {reason}. {before} Free some space or choose another folder.")
    error.errno = cause.errno
    error.filename = str(target)
    return error


def _open_locked(target: Path) -> tuple[Path, BinaryIO]:
    """Create a temporary file beside ``target``, locked as long as its writer lives."""
    mode = target.stat().st_mode & 0o777 if target.is_file() else 0o666
    while True:
        # The name keeps clear of the limit of 255 bytes that most file systems set.
        stem = os.fsencode(target.name)[:180].decode(errors="ignore")
        temporary = target.with_name(f".{stem}.{os.urandom(6).hex()}{_LITTER_SUFFIX}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(temporary, flags, mode)
        if sys.platform != "win32":
            with contextlib.suppress(OSError):  # some network file systems know no locks
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink == 0:  # a clean-up came between the two calls
                os.close(descriptor)
                continue
        return temporary, os.fdopen(descriptor, "w+b")  # buffered: a raw write may stop short in silence


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk, so that a rename in it outlives a power cut."""
    if sys.platform != "win32":
        with _opened(folder, os.O_RDONLY) as descriptor:
            _force(descriptor)


def _force(descriptor: int) -> None:
    """Force what is open to the disk. macOS leaves it in the disk's own cache unless it is asked for more."""
    full = None if sys.platform == "win32" else getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with contextlib.suppress(OSError):  # some file systems know no such thing
            fcntl.fcntl(descriptor, full)
            return
    os.fsync(descriptor)


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Force all that lies below a folder to the disk.

    Linux does it in one step for the whole file system, in a tenth of the time that one file after the other takes
    (2,000 files of 20 KB, on ext4).
    """
    sync = None if sys.platform == "win32" else getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if sync is not None:
        with _opened(folder, os.O_RDONLY) as descriptor:
            if sync(descriptor):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), str(folder))
        return
    for place, _, names in os.walk(folder, topdown=False):
        for path in (Path(place, name) for name in names):
            if not path.is_symlink():
                with _opened(path, os.O_RDWR) as descriptor:
                    os.fsync(descriptor)
        if sys.platform != "win32":
            with _opened(Path(place), os.O_RDONLY) as descriptor:
                (_force if Path(place) == folder else os.fsync)(descriptor)  # the last one, for the disk's own cache


def remove_litter(folder: str | os.PathLike[str]) -> list[Path]:
    """Delete the temporary files that killed writers left in ``folder``; return their paths.

    A file whose writer is alive, in this process or another one, is locked and stays.

    Example:
        >>> from ftkit._files import remove_litter
        >>> open(".best.pt.0123456789ab.ftkit-partial", "wb").close()
        >>> [path.name for path in remove_litter(".")]
        ['.best.pt.0123456789ab.ftkit-partial']
    """
    removed = []
    for path in sorted(Path(folder).glob(f".*{_LITTER_SUFFIX}")):
        with contextlib.suppress(OSError):
            if sys.platform != "win32":
                descriptor = os.open(path, os.O_RDWR)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                finally:
                    os.close(descriptor)
            else:
                path.unlink()  # refused there while a writer has the file open
            removed.append(path)
    return removed
