"""What a check of one file comes to."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from ftkit.images.fingerprint import Prints

__all__ = ["Broken", "Form", "Notes", "Verdict", "judge_pixel_count"]

#: ``(kind, detail)``, or ``(kind, detail, severity)`` where the severity differs from the kind's.
Notes: TypeAlias = list[tuple[str, ...]]
#: Format, mode, width, height.
Form: TypeAlias = tuple[str, str, int, int]

# Pillow warns above the first and refuses above the second number of pixels.
_WARN_PIXELS = 89_478_485
MOST_PIXELS = 2 * _WARN_PIXELS


class Verdict(NamedTuple):
    """What a check found out about one file.

    Attributes:
        notes: The findings.
        size: Bytes of the file.
        mtime: Its time of modification in nanoseconds.
        digest: XXH3 of its bytes, or an empty string.
        form: What it is, when it is an image.
        prints: The fingerprints, unless it is too plain for any.
    """

    notes: Notes
    size: int = 0
    mtime: int = 0
    digest: str = ""
    form: Form | None = None
    prints: Prints | None = None


class Broken(Exception):  # noqa: N818  (a verdict, and caught in here)
    """The pixels can't be had; carries the kind and the detail of the finding."""


def judge_pixel_count(width: int, height: int, notes: Notes) -> None:
    """Raise for a bomb or an empty picture, note a huge one."""
    if not width or not height:
        raise Broken("damaged", f"its header says {width} x {height} pixels")
    if width * height > MOST_PIXELS:
        raise Broken("bomb", f"{width:,} x {height:,} pixels; Pillow refuses more than {MOST_PIXELS:,}")
    if width * height > _WARN_PIXELS:
        notes.append(("huge", f"{width:,} x {height:,} pixels; Pillow warns above {_WARN_PIXELS:,}"))
