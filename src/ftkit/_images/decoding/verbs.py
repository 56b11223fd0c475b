"""What a worker process can be asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from ftkit._images.decoding.checks import Opened, judge, open_bytes, open_file

if TYPE_CHECKING:
    from ftkit._images.decoding.search import NearGroup

#: A job that was begun: a file to be judged, or what does the rest and returns the answer.
Work: TypeAlias = Opened | Callable[[], Any]


def begin(verb: str, *arguments: Any) -> Work:
    """Begin a job, given its arguments, and last the bytes that came along, where some did."""
    return _open(*arguments) if verb == "check" else partial(_VERBS[verb], *arguments)


def is_sure(work: Work) -> bool:
    """Whether what is left of a job takes next to no time, and can't take the process down."""
    return isinstance(work, Opened) and work.decoded is not None


def finish(works: Sequence[Work]) -> list[Any]:
    """Do the rest of some jobs; return the answers, which are to be written as JSON."""
    files = [work for work in works if isinstance(work, Opened)]
    verdicts = iter(judge(files))
    return [next(verdicts) if isinstance(work, Opened) else work() for work in works]


def _open(path: str, stamp: Sequence[Any] = (), data: bytes | None = None) -> Opened:
    """Open a file to be checked, or the bytes that came along with their stamp."""
    return open_file(path) if data is None else open_bytes(path, data, stamp)


def _thumbnail(path: str, side: int, data: bytes | None = None) -> str:
    """Return a small JPEG of what can be shown of a file, in Base64; empty when nothing can."""
    from ftkit._images.decoding.pillow import thumbnail  # Pillow is slow to import, and most workers do without

    return thumbnail(path, side, data)


def _groups(table: str) -> list[NearGroup]:
    """Find the groups of near copies in a table of fingerprints, which is a file."""
    import numpy as np

    from ftkit._images.decoding.search import ROW, near_groups

    return near_groups(np.memmap(table, ROW, "r"))


def _copies(table: str, one: int, others: list[int], is_of_many: bool) -> list[tuple[int, float]]:
    """Find the copies of a picture among others, all given as rows of such a table."""
    import numpy as np

    from ftkit._images.decoding.search import ROW, copies_of

    return copies_of(np.memmap(table, ROW, "r"), one, others, is_of_many)


def _repair(path: str, kinds: list[str], target: str, taken: list[str], dry_run: bool) -> str:
    """Write a mended copy of a file, except in a dry run; return its path."""
    from ftkit._images.decoding.mending import mend

    return mend(path, kinds, target, taken, dry_run)


_VERBS: dict[str, Callable[..., Any]] = {
    "thumbnail": _thumbnail,
    "groups": _groups,
    "copies": _copies,
    "repair": _repair,
}
