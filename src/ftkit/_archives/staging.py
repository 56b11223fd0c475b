"""A folder that appears complete or not at all; what a killed writer leaves is soon deleted."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ftkit._archives.paths import RECORD_NAME
from ftkit._files import lock, open_folder, sync_folder, sync_tree
from ftkit._wording import shown
from ftkit.errors import FileWriteError

_LITTER_SUFFIX: Final = ".ftkit-unpacking"
_MARK: Final = "made-by-ftkit"
_TRIES: Final = 20


@contextlib.contextmanager
def staged(dest: Path) -> Iterator[Path]:
    """Yield an empty folder near ``dest``; whatever was not published when the block ends is deleted.

    It is in a hidden folder next to ``dest``, which is locked while its writer lives, and marked as ftkit's own: the
    next call deletes what a killed writer left behind, and nothing else.
    """
    missing = [folder for folder in dest.parents if not folder.exists()]
    held = -1
    try:
        with contextlib.ExitStack() as cleanup:
            try:
                _refuse_unfit(dest)
                staging = _new_folder(dest)
                cleanup.callback(lambda: _delete(staging, held))
                held = _claimed(staging)
                _remove_litter(dest.parent)
                folder = staging / "files"
                folder.mkdir()
            except FileWriteError:
                raise
            except OSError as error:
                raise unwritable(dest, error) from error
            yield folder
    except BaseException:
        for made in missing:
            with contextlib.suppress(OSError):
                made.rmdir()
        raise


def publish(folder: Path, dest: Path) -> None:
    """Force ``folder`` to disk, and rename it to ``dest`` in one step."""
    try:
        sync_tree(folder)
        if dest.is_dir():
            folder.chmod(dest.stat().st_mode & 0o777)
            if is_bare(dest):
                (dest / RECORD_NAME).unlink(missing_ok=True)
            if sys.platform == "win32":  # can't rename over a folder, not even an empty one
                dest.rmdir()
        folder.rename(dest)
        sync_folder(dest.parent)
    except OSError as error:
        raise unwritable(dest, error) from error


# Where a folder can't be put, and the error; the first counts.
_UNFIT: Final[tuple[tuple[Callable[[Path], bool], str], ...]] = (
    (lambda dest: os.path.lexists(dest) and not dest.is_dir(), "it is a file"),
    (
        lambda dest: dest.is_dir() and not is_bare(dest),
        "it is not empty, and nothing is ever overwritten",
    ),
    (
        lambda dest: dest.is_dir() and dest.samefile(Path.cwd()),
        "it is the current folder, which can't be replaced",
    ),
    (os.path.ismount, "it is a mount point, which can't be replaced"),
)


def _refuse_unfit(dest: Path) -> None:
    for is_unfit, why in _UNFIT:
        if is_unfit(dest):
            raise unfit(dest, why)


def unfit(dest: Path, why: str) -> FileWriteError:
    """Return the error that says why nothing is unpacked to ``dest``."""
    return _error(f"Can't unpack into {shown(dest)}: {why}. Name a folder that does not exist yet.", errno.EEXIST, dest)


def is_bare(folder: Path) -> bool:
    """Return whether ``folder`` is empty but for ftkit's own record."""
    return all(path.name == RECORD_NAME for path in folder.iterdir())


def unwritable(dest: Path, cause: OSError) -> FileWriteError:
    """Return the error that says why the system can't write ``dest``."""
    why = cause.strerror or cause
    return _error(f"Can't unpack into {shown(dest)}: {why}. Choose a folder you can write to.", cause.errno, dest)


def _error(message: str, number: int | None, path: Path) -> FileWriteError:
    error = FileWriteError(message)
    error.errno, error.filename = number, str(path)
    return error


def _new_folder(dest: Path) -> Path:
    stem = os.fsencode(dest.name)[:180].decode(errors="ignore")  # most file systems end at 255 bytes
    folder = dest.with_name(f".{stem}.{os.urandom(6).hex()}{_LITTER_SUFFIX}")
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError, FileExistsError):  # another call that fails removes its parents
            dest.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            return folder
    dest.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir()
    return folder


def _claimed(folder: Path) -> int:
    """Lock a folder for as long as its writer lives, and only then mark it as ftkit's own; return the lock."""
    held = open_folder(folder, _MARK)
    lock(held, wait=True)  # a call that looks for litter may hold it for a moment
    (folder / _MARK).touch()
    return held


def _remove_litter(parent: Path) -> None:
    for folder in parent.glob(f".*{_LITTER_SUFFIX}"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or not (folder / _MARK).is_file():
                continue
            held = open_folder(folder, _MARK)
            try:
                if lock(held) and (folder / _MARK).is_file():
                    _delete(folder, held)
                    held = -1
            finally:
                _close(held)


def _delete(staging: Path, held: int) -> None:
    """Delete a folder of ours and release its lock: Windows deletes nothing that is open."""
    shutil.rmtree(staging / "files", ignore_errors=True)  # the mark goes last, should this be killed
    _close(held)
    shutil.rmtree(staging, ignore_errors=True)


def _close(held: int) -> None:
    if held >= 0:
        os.close(held)
