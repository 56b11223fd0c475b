"""What a check of one file comes to, and how that travels: as JSON, from a worker to a line of the journal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

Severity: TypeAlias = Literal["unusable", "odd", "junk"]


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


class Prints(NamedTuple):
    """The fingerprints of a picture.

    Attributes:
        whole: 64 bits for the coarse structure of the picture.
        inner: The same without a sixteenth at each side, to meet the ``whole`` of a cropped copy.
        whole_fine: 128 bits for the finer structure, to confirm what the coarse bits suggest.
        inner_fine: The same without a sixteenth at each side.
    """

    whole: int
    inner: int
    whole_fine: int
    inner_fine: int

    def words(self) -> tuple[int, ...]:
        """Return them as six numbers of 64 bits; of fine ones, the low half first."""
        whole, inner, *fine = self
        return whole, inner, *(word for bits in fine for word in (bits & (1 << 64) - 1, bits >> 64))

    @classmethod
    def from_words(cls, words: Sequence[int]) -> Prints:
        """Undo `words`."""
        whole, inner, a, b, c, d = words
        return cls(whole, inner, a | b << 64, c | d << 64)


class Verdict(NamedTuple):
    """What a check found out about one file.

    Attributes:
        notes: What was found.
        stamp: What tells whether it has changed since: for a local file, size and time of modification in nanoseconds.
        digest: XXH3 of its bytes, or an empty string.
        form: What it is, when it is an image.
        prints: The fingerprints, unless it is too plain for any.
    """

    notes: Notes
    stamp: Sequence[Any] = ()
    digest: str = ""
    form: Form | None = None
    prints: Prints | None = None

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
    path, (notes, stamp, digest, form, prints) = json.loads(line)
    return path, Verdict(
        [Note(*note) for note in notes], tuple(stamp), digest, form and Form(*form), prints and Prints(*prints)
    )
