"""What a check of one file comes to, and how that travels: as JSON, from a worker to a line of the journal."""

from __future__ import annotations

import json
import struct
from base64 import b64decode
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

Severity: TypeAlias = Literal["unusable", "odd", "junk", "other"]


class Note(NamedTuple):
    """One thing that a check found.

    Attributes:
        kind: One of `ftkit._images.findings.KINDS`.
        detail: The evidence, in words.
        severity: Where it differs from that of its kind.
    """

    kind: str
    detail: str
    severity: Severity | None = None


Notes: TypeAlias = list[Note]


class Form(NamedTuple):
    """What kind of image it is: format and mode by Pillow's names for them, size in pixels."""

    format: str
    mode: str
    width: int
    height: int


#: Pixels of a picture made small, each way.
SIDE = 32
#: The same of its colors.
COLOR_SIDE = 16


_COLORLESS = bytes([128]) * 2 * COLOR_SIDE**2


class Prints(NamedTuple):
    """The fingerprints of a picture.

    Attributes:
        words: 64 bits for the structure of the picture, and the same of it without a sixteenth at each side, without a
            tenth at the left, the right, the top and the bottom, each to meet the first of a cropped copy.
        small: The picture in `SIDE` x `SIDE` levels of grey, from 0 to 255, in Base64: to see whether what looks alike
            by its words is the same.
        colors: Its color differences, Cb and Cr, in `COLOR_SIDE` x `COLOR_SIDE` levels each, in Base64; empty without
            color, as for a picture in grey.
    """

    words: tuple[int, ...]
    small: str
    colors: str

    def row(self) -> bytes:
        """Return them as a row of the table that near copies are searched in."""
        return struct.pack("<6Q", *self.words) + b64decode(self.small) + (b64decode(self.colors) or _COLORLESS)


class Measures(NamedTuple):
    """What a picture looks like, in levels of grey from 0 to 255.

    Attributes:
        bytes: The size of the file.
        brightness: The mean.
        contrast: The standard deviation.
        sharpness: How much edges stand out, at 64 pixels or a little more on the longer side.
        dark: The level that 5% of the pixels do not exceed.
        light: The level that 99% of the pixels do not exceed.
        information: Entropy of the levels, in bits.
    """

    bytes: int
    brightness: float
    contrast: float
    sharpness: float
    dark: int
    light: int
    information: float


class Verdict(NamedTuple):
    """What a check found out about one file.

    Attributes:
        notes: What was found.
        stamp: What tells whether it has changed since: for a local file, size and time of modification in nanoseconds.
        digest: XXH3 of its bytes, or an empty string.
        form: What it is, when it is an image.
        prints: The fingerprints, unless it is too plain for any.
        measures: What it looks like, when it is an image.
    """

    notes: Notes
    stamp: Sequence[Any] = ()
    digest: str = ""
    form: Form | None = None
    prints: Prints | None = None
    measures: Measures | None = None

    def to_json(self) -> bytes:
        """Return it as JSON: an array of the fields, in their order."""
        return json.dumps(self).encode()


class Broken(Exception):  # noqa: N818  (it ends the check of a file, no more)
    """The pixels can't be had, for the reason that ``note`` gives."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(kind, detail)
        self.note = Note(kind, detail)


def write_line(path: str, verdict: bytes) -> bytes:
    """Return the journal's line for a file, with the verdict as `Verdict.to_json` or a worker gives it."""
    return b"[%b, %b]\n" % (json.dumps(path).encode(), verdict)


def read_line(line: bytes) -> tuple[str, Verdict]:
    """Return the path and the verdict of a journal's line.

    Example:
        >>> from ftkit._images.verdict import Note, Verdict, read_line, write_line
        >>> verdict = Verdict([Note("empty", "0 bytes")], stamp=(0, 17))
        >>> read_line(write_line("cat/tom.jpg", verdict.to_json())) == ("cat/tom.jpg", verdict)
        True
    """
    path, (notes, stamp, digest, form, prints, measures) = json.loads(line)
    if prints:
        words, small, colors = prints
        prints = Prints(tuple(words), small, colors)
    return path, Verdict(
        [Note(*note) for note in notes],
        tuple(stamp),
        digest,
        form and Form(*form),
        prints,
        measures and Measures(*measures),
    )
