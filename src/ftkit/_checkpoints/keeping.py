"""Which checkpoints of a run are kept: the newest, the best, and any other until these are known to be whole."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from ftkit._checkpoints.shelf import Entry
from ftkit._monitor import Mode, best_first

_VERIFIED_AT_ONCE: Final = 16  # files in a save; what would go if they are whole waits for the next one


def ranked(entries: Iterable[Entry], mode: Mode) -> list[Entry]:
    """Return the entries that have a number for the metric, best first, older first among equals."""
    return best_first(entries, lambda entry: entry.value, mode)


def surplus(entries: list[Entry], last: int | None, best: int | None, mode: Mode) -> list[Entry]:
    """Return the entries, given oldest first, that are neither among the newest nor among the best ones.

    What another manager kept for its own metric does not count among the newest, and is never deleted.
    """
    return _beyond(entries, last, best, mode, lambda _: True)


def expendable(entries: list[Entry], last: int | None, best: int | None, mode: Mode) -> list[Entry]:
    """Return the surplus that is safe to delete: damaged files, and those not yet checked, don't count as kept."""
    if not surplus(entries, last, best, mode):
        return []
    looked_at = itertools.count()

    def is_whole(entry: Entry) -> bool:
        return (entry.intact is not None or next(looked_at) < _VERIFIED_AT_ONCE) and entry.is_whole()

    return _beyond(entries, last, best, mode, is_whole)


def _beyond(
    entries: list[Entry], last: int | None, best: int | None, mode: Mode, counts: Callable[[Entry], bool]
) -> list[Entry]:
    if last is None:
        return []
    newest = _first((entry for entry in entries[::-1] if not entry.other), last, counts)
    kept = {id(entry) for entry in (*newest, *_first(ranked(entries, mode), best, counts))}
    return [entry for entry in entries if id(entry) not in kept and not entry.other]


def _first(entries: Iterable[Entry], count: int | None, counts: Callable[[Entry], bool]) -> Iterator[Entry]:
    """Yield entries until so many of them count."""
    missing = math.inf if count is None else count
    for entry in entries:
        if missing <= 0:
            return
        missing -= counts(entry)
        yield entry
