"""What a worker process can be asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ftkit._images.decoding.checks import check_bytes, check_file
from ftkit._images.verdict import Verdict


def _check(path: str, stamp: Sequence[Any] = (), data: bytes | None = None) -> Verdict:
    """Check a file, or the bytes that came along with their stamp."""
    return check_file(path) if data is None else check_bytes(path, data)._replace(stamp=stamp)


def _thumbnail(path: str, side: int, data: bytes | None = None) -> str:
    """Return a small JPEG of what can be shown of a file, in Base64; empty when nothing can."""
    from ftkit._images.decoding.pillow import thumbnail  # Pillow is slow to import, and most workers do without

    return thumbnail(path, side, data)


def _groups(table: str) -> list[list[tuple[int, int, float]]]:
    """Find the groups of near copies in a table of fingerprints, which is a file."""
    import numpy as np

    from ftkit._images.decoding.search import ROW, near_groups

    return near_groups(np.memmap(table, ROW, "r"))


def _repair(path: str, kinds: list[str], target: str, dry_run: bool) -> str:
    """Write a mended copy of a file, except in a dry run; return its path."""
    from ftkit._images.decoding.mending import mend

    return mend(path, kinds, target, dry_run)


#: The function for each verb. It gets the job's arguments, and last the bytes that came along, where some did; its
#: answer is to be written as JSON.
VERBS: dict[str, Callable[..., Any]] = {
    "check": _check,
    "thumbnail": _thumbnail,
    "groups": _groups,
    "repair": _repair,
}
