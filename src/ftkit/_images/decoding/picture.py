"""What all decoders share: the form of pixels, and the judgements that need no pixel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from ftkit._images.verdict import Broken, Note, Notes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


#: Rows of grey, or planes of such rows: brightness, and the color differences Cb and Cr of JFIF where they are known.
Pixels: TypeAlias = "npt.NDArray[np.uint8]"

# Pillow's Image.MAX_IMAGE_PIXELS (a quarter of a GiB at 3 bytes a pixel): it warns above, and refuses above twice that.
_WARN_PIXELS = 89_478_485
MOST_PIXELS = 2 * _WARN_PIXELS

#: A run of zeros where a sector of a disk was lost.
HOLE = bytes(512)

#: EXIF's tag for it (CIPA DC-008, 4.6.4).
ORIENTATION = 274
# What each value but 1 asks for; 2, 4, 5 and 7 are mirror images.
_TURNS = {
    2: "mirrored",
    3: "rotated by 180 degrees",
    4: "mirrored and rotated by 180 degrees",
    5: "mirrored and rotated by 90 degrees",
    6: "rotated by 90 degrees",
    7: "mirrored and rotated by 270 degrees",
    8: "rotated by 270 degrees",
}


_PIXELS_A_SECOND = 5_000_000  # that any decoder should manage
#: Called with the seconds that decoding may take beyond what is allowed for a file; a worker process tells its caller.
ask_for_time: Callable[[float], None] = lambda _: None  # noqa: E731


def judge_pixel_count(width: int, height: int, notes: Notes) -> None:
    """Raise for a bomb or an empty picture, note a huge one."""
    if not width or not height:
        raise Broken("damaged", f"its header says {width} x {height} pixels")
    if width * height > MOST_PIXELS:
        raise Broken("bomb", f"{width:,} x {height:,} pixels; Pillow refuses more than {MOST_PIXELS:,}")
    ask_for_time(width * height / _PIXELS_A_SECOND)
    if width * height > _WARN_PIXELS:
        notes.append(Note("huge", f"{width:,} x {height:,} pixels; Pillow warns above {_WARN_PIXELS:,}"))


def judge_orientation(orientation: object, notes: Notes) -> None:
    """Note a picture that EXIF says is stored lying on its side or mirrored."""
    if isinstance(orientation, int) and orientation in _TURNS:
        notes.append(Note("exif_rotated", f"EXIF orientation {orientation}: should be {_TURNS[orientation]}"))
