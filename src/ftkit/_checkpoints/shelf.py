"""The checkpoints that managers wrote to a folder, recognized by content, while others may write there too."""

from __future__ import annotations

import logging
import math
import os
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from ftkit._checkpoints import runfile
from ftkit._formats import CHECKPOINT_SUFFIXES
from ftkit.errors import CheckpointError

_log: Final = logging.getLogger("ftkit")

_Stamp: TypeAlias = tuple[int, int, int]
Watched: TypeAlias = tuple[str | None, str | None]
"""By which metric a manager ranks, and which way is better."""

_ORDERS: Final = range(2**53)
_SUFFIXES: Final = tuple(CHECKPOINT_SUFFIXES)
_TRIES: Final = 200  # to see a folder stand still; a process that does nothing but save small files is met in a few
_SETTLED: Final = 10**9  # nanoseconds: some file systems tell the time of a change no finer


@dataclass
class Entry:
    """A checkpoint that a manager wrote.

    Attributes:
        path: The file.
        order: Its place among all of the folder, by age.
        value: The metric by which it is ranked.
        run: The run that it belongs to; those of older versions don't say.
        next_epoch: The epoch in which that run resumes from it.
        other: Whether it was kept for another metric, so that its value says nothing about its worth.
        intact: Whether every byte is as it was written; None before this process has written or verified it.
        stamp: Which of all files that had this name it is; None if another process wrote it for this one.
    """

    path: Path
    order: int
    value: float | None
    run: str
    next_epoch: int | None
    other: bool = False
    intact: bool | None = None
    stamp: _Stamp | None = None

    @property
    def is_gone(self) -> bool:
        """Whether its file is gone, or is another one by now."""
        return self.stamp is not None and self.stamp != stamp_of(self.path)

    def is_whole(self) -> bool:
        """Verify it, once."""
        if self.intact is None:
            try:
                runfile.verify(self.path)
                self.intact = True
            except (CheckpointError, OSError) as error:
                _log.warning("%s The file is not deleted.", error)
                self.intact = False
        return self.intact


class Shelf:
    """What was in the folder when it was last looked at.

    Attributes:
        entries: The checkpoints by the names of their files, oldest first.
        unreadable: How many files can't be read, or are damaged.
        next_order: Above the order of every file ever seen here, so that what was passed over never becomes the newest.
    """

    def __init__(self, folder: Path, watched: Watched) -> None:
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        self.unreadable: int = 0
        self.next_order: int = 0
        self._watched = watched
        self._known: dict[tuple[str, _Stamp], Entry | None] = {}  # None: can't be read, or no manager wrote it
        self._damaged: set[tuple[str, _Stamp]] = set()
        self._changed: int | None = None
        self.look()

    def refresh(self) -> None:
        """Look again if the folder has changed since, or may have."""
        if self._changed is None or self._changed != _changed(self.folder):
            self.look()

    def look(self) -> None:
        """Look at what is there now; what was read before is not read again.

        While a checkpoint replaces another, a listing may contain neither of them, or one that is deleted before
        it is read. What is left then may be an old best one, so the folder is read until it stops changing.
        """
        changed = _changed(self.folder)
        names = self._names()
        for _ in range(_TRIES):
            vanished = self._look_at(names)
            before, names = names, self._names()
            if {*names} == {*before} and not vanished:
                break
        self._changed = changed if changed is None or time.time_ns() - changed > _SETTLED else None

    def _look_at(self, names: list[str]) -> bool:
        """Read what was not read before, and tell whether some of it was gone by then."""
        known: dict[tuple[str, _Stamp], Entry | None] = {}
        self.unreadable, vanished = 0, False
        for path in map(self.folder.joinpath, names):
            stamp = stamp_of(path)
            if stamp is None:
                vanished |= not os.path.lexists(path)
                continue
            key = path.name, stamp
            try:
                known[key] = self._known[key] if key in self._known else self._read(path, stamp)
            except FileNotFoundError:
                vanished = True
                continue
            self.unreadable += key in self._damaged
        self._known = known
        found = [entry for entry in known.values() if entry is not None]
        self.entries = {entry.path.name: entry for entry in sorted(found, key=lambda entry: (entry.order, entry.path))}
        self.next_order = max([self.next_order, *(entry.order + 1 for entry in found)])
        return vanished

    def put(self, entry: Entry) -> None:
        """Add one that was written, in place of any with the same name."""
        name = entry.path.name
        self.entries.pop(name, None)
        self.entries[name] = entry
        self.next_order = max(self.next_order, entry.order + 1)

    def take(self, entries: Iterable[Entry]) -> None:
        """Take away those whose files are deleted."""
        for entry in entries:
            del self.entries[entry.path.name]

    def pass_over(self, entry: Entry) -> None:
        """Count one among the damaged, also when the folder is looked at again."""
        del self.entries[entry.path.name]
        self.unreadable += 1
        if entry.stamp is not None:
            key = entry.path.name, entry.stamp
            self._known[key] = None
            self._damaged.add(key)

    def _names(self) -> list[str]:
        try:
            return [name for name in os.listdir(self.folder) if name.endswith(_SUFFIXES)]  # noqa: PTH208  (10,000 of them)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(f"Can't read the folder {self.folder}: {error.strerror or error}.") from error

    def _read(self, path: Path, stamp: _Stamp) -> Entry | None:
        try:
            run = runfile.read_run(path)
            return None if run is None or "order" not in run else self._entry(path, stamp, run)
        except (CheckpointError, OSError) as error:
            if stamp_of(path) != stamp:
                raise FileNotFoundError(str(path)) from error
            _log.warning("%s The file is not deleted.", error)
            if path.suffix != ".tar":  # which is rather somebody's archive
                self._damaged.add((path.name, stamp))
            return None

    def _entry(self, path: Path, stamp: _Stamp, run: Mapping[Any, Any]) -> Entry:
        """Believe nothing: whoever can write to the folder can have written this."""
        order, name, watched, metrics = (run.get(key) for key in ("order", "run", "watched", "metrics"))
        if type(order) is not int or order not in _ORDERS:
            raise CheckpointError(f"{path} has an invalid position in the folder: no CheckpointManager wrote it.")
        metrics = metrics if isinstance(metrics, Mapping) else {}
        monitor, _ = self._watched
        if isinstance(watched, list | tuple):
            other = tuple(watched) != self._watched
        else:  # of an older version
            other = bool(metrics) and monitor is not None and monitor not in metrics
        epoch = run.get("epoch")
        return Entry(
            path,
            order,
            None if monitor is None else _number(metrics.get(monitor)),
            name if isinstance(name, str) else "",
            epoch + (not run.get("mid_epoch")) if type(epoch) is int else None,
            other,
            stamp=stamp,
        )


def _number(value: object) -> float | None:
    if not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.nan


def stamp_of(path: Path) -> _Stamp | None:
    """What tells a file from others of its name; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size) if stat.S_ISREG(found.st_mode) else None


def _changed(folder: Path) -> int | None:
    """When a file in a folder was last made, renamed or deleted."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return None
