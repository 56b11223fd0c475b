"""What a check of one file comes to."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from ftkit._images.fingerprint import Prints

__all__ = ["Broken", "Form", "Notes", "Verdict", "judge_pixel_count", "say_orientation"]

#: ``(kind, detail)``, or ``(kind, detail, severity)`` where the severity differs from the kind's.
Notes: TypeAlias = list[tuple[str, ...]]
#: Format, mode, width, height.
Form: TypeAlias = tuple[str, str, int, int]

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: Rows of grey.
Pixels: TypeAlias = "npt.NDArray[np.uint8]"

# Pillow warns above the first and refuses above the second number of pixels.
_WARN_PIXELS = 89_478_485
MOST_PIXELS = 2 * _WARN_PIXELS


class Verdict(NamedTuple):
    """What a check found out about one file.

    Attributes:
        notes: The findings.
        stamp: Size and time of modification in nanoseconds: whether it has changed since.
        digest: XXH3 of its bytes, or an empty string.
        form: What it is, when it is an image.
        prints: The fingerprints, unless it is too plain for any.
    """

    notes: Notes
    stamp: tuple[int, ...] = ()
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


def say_orientation(orientation: int) -> str:
    """Put EXIF's orientation into words."""
    turns = {3: "180", 4: "180", 5: "90", 6: "90", 7: "270", 8: "270"}
    mirrored = "mirrored" if orientation in (2, 4, 5, 7) else ""
    turned = f"turned by {turns[orientation]} degrees" if orientation in turns else ""
    return f"EXIF orientation {orientation}: to be {' and '.join(filter(None, (mirrored, turned)))}"
