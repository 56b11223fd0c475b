"""Who writes to a folder: only one process at a time, and only one of its managers at a time."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from ftkit._files import lock, open_folder
from ftkit.errors import FileWriteError


class Turns:
    """The turns in which the managers of this process write to a folder; other processes may not write meanwhile.

    The folder is claimed at the first turn. It is free again when the process ends in any way, or when no manager of
    the folder is left.

    Attributes:
        count: How many turns there were.
        run: The run whose checkpoint was written last.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count: int = 0
        self.run: str | None = None
        self._lock = threading.Lock()  # not one of its thread: a write in the background ends the turn of another one
        self._claim: int | None = None

    def begin(self) -> None:
        """Wait for the other managers of this process.

        Raises:
            FileWriteError: Another process writes to the folder.
        """
        self._lock.acquire()
        try:
            if not self._is_ours():
                raise FileWriteError(
                    f"Another process is saving checkpoints to {self.folder}, nothing was written. End it, or choose "
                    "another folder. (A notebook counts as such a process until its kernel stops or its "
                    "CheckpointManager is deleted.)"
                )
            self.count += 1
        except BaseException:
            self._lock.release()
            raise

    def end(self) -> None:
        """Let the next one write."""
        self._lock.release()

    def _is_ours(self) -> bool:
        with contextlib.suppress(OSError):  # if it can't be locked, it can't be written: the write itself says why
            if self._claim is not None and self._is_replaced(self._claim):
                self._give_up()
            if self._claim is None:
                self._claim = open_folder(self.folder)
                if lock(self._claim) is False:
                    self._give_up()
                    return False
        return True

    def _is_replaced(self, claim: int) -> bool:
        """Whether the folder was deleted, and made again; Windows deletes none that is in use."""
        return sys.platform != "win32" and not os.path.samestat(os.fstat(claim), self.folder.stat())

    def _give_up(self, close: Callable[[int], None] = os.close) -> None:  # the name may be gone when the process ends
        if self._claim is not None:
            close(self._claim)
            self._claim = None

    def start_anew(self) -> None:
        """Leave the folder to the process that this one was forked from."""
        self._lock = threading.Lock()
        self._give_up()

    def __del__(self) -> None:
        self._give_up()


_KNOWN: Final[WeakValueDictionary[str, Turns]] = WeakValueDictionary()
_KNOWN_LOCK: Final = threading.Lock()


def turns_in(folder: Path) -> Turns:
    """Return the one object that all managers of a folder share."""
    place = os.path.realpath(folder)
    with _KNOWN_LOCK:
        return _KNOWN.setdefault(place, Turns(Path(place)))


def _after_fork() -> None:
    for turns in list(_KNOWN.values()):
        turns.start_anew()
    _KNOWN_LOCK.release()


if hasattr(os, "register_at_fork"):  # a loader's worker would hold the folder of a run that was killed
    os.register_at_fork(before=_KNOWN_LOCK.acquire, after_in_parent=_KNOWN_LOCK.release, after_in_child=_after_fork)
