"""A folder that appears whole or not at all, and of which a killed writer leaves nothing for long."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ftkit._files import sync_folder
from ftkit.errors import FileWriteError

if sys.platform != "win32":
    import fcntl

__all__ = ["publish", "staged"]

_LITTER_SUFFIX: Final = ".ftkit-unpacking"


@contextlib.contextmanager
def staged(dest: Path) -> Iterator[Path]:
    """Give an empty folder beside ``dest``; what is in it when the block ends and was not published is deleted.

    It is locked while its writer lives: what a killed one left behind is deleted by the next call.
    """
    missing = [folder for folder in dest.parents if not folder.exists()]
    folder, lock = None, -1
    try:
        try:
            _refuse_unfit(dest)
            dest.parent.mkdir(parents=True, exist_ok=True)
            _remove_litter(dest.parent)
            folder, lock = _locked_folder(dest)
        except FileWriteError:
            raise
        except OSError as error:
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


# Where a folder can't be put, and what is said then; the first counts.
_UNFIT: Final[tuple[tuple[Callable[[Path], bool], str], ...]] = (
    (lambda dest: os.path.lexists(dest) and not dest.is_dir(), "it is a file"),
    (
        lambda dest: dest.is_dir() and next(dest.iterdir(), None) is not None,
        "it is not empty, and nothing is ever overwritten",
    ),
    (
        lambda dest: dest.is_dir() and dest.samefile(Path.cwd()),
        "it is the current folder, which can't be replaced",
    ),
    (os.path.ismount, "it is where a disk is mounted, which can't be replaced"),
)


def _refuse_unfit(dest: Path) -> None:
    for is_unfit, why in _UNFIT:
        if is_unfit(dest):
            raise _error(f"Can't unpack into {dest}: {why}. Name a folder that does not exist yet.", errno.EEXIST, dest)


def _unwritable(dest: Path, cause: OSError) -> FileWriteError:
    why = cause.strerror or cause
    return _error(f"Can't unpack into {dest}: {why}. Choose a folder you may write to.", cause.errno, dest)


def _error(message: str, number: int | None, path: Path) -> FileWriteError:
    error = FileWriteError(message)
    error.errno, error.filename = number, str(path)
    return error


def _locked_folder(dest: Path) -> tuple[Path, int]:
    stem = os.fsencode(dest.name)[:180].decode(errors="ignore")  # most file systems end at 255 bytes
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
