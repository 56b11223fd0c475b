"""Is this file a sound image?"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import xxhash

from ftkit._images.decoding import jpeg
from ftkit._images.decoding.fingerprint import fingerprints
from ftkit._images.decoding.gaps import filled_share, is_cut_off
from ftkit._images.decoding.measures import measure
from ftkit._images.decoding.picture import Pixels
from ftkit._images.suffixes import IMAGE_SUFFIXES, LISTED_SUFFIXES, SUFFIXES, suffix_of
from ftkit._images.verdict import SIDE, Broken, Form, Note, Notes, Verdict
from ftkit._wording import cause, plural

_PLAIN = 3  # levels of brightness between the darkest and the brightest pixel of a picture of one colour, at most
_TOO_PLAIN = 16  # levels below which fingerprints would be made of noise
_TOO_SMALL = SIDE  # pixels a side below which pictures of different things look alike
_LEAST_FILL = 0.05  # of the rows, that are the grey of a gap: less is not worth an alarm


class Opened(NamedTuple):
    """A file that was read, and decoded if that was quick.

    Attributes:
        path: Where it is, which only serves for its suffix.
        data: Its bytes.
        stamp: What tells whether it has changed since.
        decoded: The picture; None when it is still to be decoded, which may take long, or take the process down.
        problem: Why it can't be read.
    """

    path: str
    data: bytes
    stamp: Sequence[Any] = ()
    decoded: jpeg.Decoded | None = None
    problem: Note | None = None


def check_file(path: str) -> Verdict:
    """Read the file once and judge it. Never opens what is no regular file."""
    return judge([open_file(path)])[0]


def check_bytes(path: str, data: bytes) -> Verdict:
    """Judge the bytes of a file; ``path`` only serves for its suffix."""
    return judge([open_bytes(path, data)])[0]


def open_file(path: str) -> Opened:
    """Read a file once, and decode it if that is quick. Never opens what is no regular file."""
    stamp: tuple[int, ...] = ()
    try:
        status = os.stat(path)  # noqa: PTH116
        stamp = status.st_size, status.st_mtime_ns
        if not stat.S_ISREG(status.st_mode):
            what = _SPECIAL.get(stat.S_IFMT(status.st_mode), "a device")
            return Opened(path, b"", stamp, problem=Note("special_file", what))
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123  (Path costs more than the check of a small file)
            data = file.read()
    except OSError as error:
        return Opened(path, b"", stamp, problem=_why_unread(path, error))
    return open_bytes(path, data, stamp)


def open_bytes(path: str, data: bytes, stamp: Sequence[Any] = ()) -> Opened:
    """Take the bytes of a file, and decode them if that is quick."""
    return Opened(path, data, stamp, jpeg.decode_quickly(data) if data.startswith(jpeg.MAGIC) else None)


_SPECIAL = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}


def _why_unread(path: str, error: OSError) -> Note:
    reason = error.strerror or str(error)
    is_link, is_gone = os.path.islink(path), isinstance(error, FileNotFoundError)  # noqa: PTH114
    if is_link and is_gone:
        return Note("broken_link", f"points to {os.readlink(path)!r}, which does not exist")  # noqa: PTH115
    if is_link and error.errno == errno.ELOOP:
        return Note("broken_link", reason)
    return Note("vanished" if is_gone else "unreadable", reason)


class _Look(NamedTuple):
    """What a look at one file came to.

    Attributes:
        verdict: The verdict, but for what is computed of many pictures at a time.
        planes: The picture, shrunk: brightness, and color differences if it has any; None where there is none.
        is_plain: Whether there is too little in it for fingerprints.
    """

    verdict: Verdict
    planes: Pixels | None = None
    is_plain: bool = False


def judge(files: Sequence[Opened]) -> list[Verdict]:
    """Judge opened files: many at a time, as most of what a small picture takes numpy is the way there."""
    looks = [_look_at(file) for file in files]
    seen = {number: look.planes for number, look in enumerate(looks) if look.planes is not None}
    telling = [number for number in seen if not looks[number].is_plain]
    prints = fingerprints([(seen[number], _size(looks[number].verdict)) for number in telling])
    measures = measure([(planes[0], len(files[number].data)) for number, planes in seen.items()])
    prints_of, measures_of = dict(zip(telling, prints, strict=True)), dict(zip(seen, measures, strict=True))
    return [
        look.verdict._replace(prints=prints_of.get(number), measures=measures_of.get(number))
        for number, look in enumerate(looks)
    ]


def _look_at(opened: Opened) -> _Look:
    """Decode a file, unless that was done, and note all that it tells by itself."""
    path, data, stamp, decoded, problem = opened
    if problem:
        return _Look(Verdict([problem], stamp))
    suffix = suffix_of(path)
    if not data:
        return _Look(Verdict([Note("empty", "0 bytes")], stamp))
    if not data.strip(b"\0"):
        return _Look(Verdict([Note("empty", f"{plural(len(data), 'byte')}, all zero")], stamp))
    notes: Notes = []
    form: Form | None = None
    planes: Pixels | None = None
    is_plain = False
    try:
        form, planes = _decode(data, notes, decoded)
    except Broken as broken:
        notes.append(broken.note)
    except MemoryError:
        notes.append(Note("out_of_memory", "decoding exceeded a worker's memory limit"))
    except Exception as error:  # noqa: BLE001  (a decoder may raise anything on hostile bytes; the finding says what)
        notes.append(Note("damaged" if _is_refused(data) else "unjudged", cause(error)))
    else:
        _judge_suffix(suffix, form.format, notes)
        notes += [Note(kind, detail.format(form)) for kind, applies, detail in _BY_FORM if applies(form)]
        is_plain = _judge_pixels(data, form, planes[0], notes)
    return _Look(Verdict(notes, stamp, xxhash.xxh3_128_hexdigest(data), form), planes, is_plain)


def _size(verdict: Verdict) -> tuple[int, int]:
    assert verdict.form
    return verdict.form.height, verdict.form.width


def _decode(data: bytes, notes: Notes, decoded: jpeg.Decoded | None) -> tuple[Form, Pixels]:
    """Return what it is and its picture, shrunk, in planes; note what is odd; raise Broken when it can't be had."""
    if data.startswith(jpeg.MAGIC):
        return jpeg.check(data, notes, decoded)
    from ftkit._images.decoding import pillow  # slow to import, and most files are JPEG

    return pillow.check(data, notes, jpeg.is_damaged)


def _is_refused(data: bytes) -> bool:
    """Whether loaders can't take it either: else the fault is the check's own, and no file is condemned for that."""
    from ftkit._images.decoding import pillow

    return pillow.complaint(data) != ""


def _judge_suffix(suffix: str, form: str, notes: Notes) -> None:
    if suffix in IMAGE_SUFFIXES and suffix not in SUFFIXES.get(form, ()):
        notes.append(Note("wrong_suffix", f"{form} content with the extension {suffix}"))
    elif form == "TIFF" and suffix and suffix not in IMAGE_SUFFIXES:
        notes.append(Note("not_an_image", f"TIFF content, as in RAW photos, with the extension {suffix}"))
    elif suffix not in LISTED_SUFFIXES:
        notes.append(Note("unlisted_suffix", f"a valid {form} image with the extension {suffix or '(none)'}"))


#: What size and mode alone tell: each kind, whether it applies to a form, and its detail.
_BY_FORM: tuple[tuple[str, Callable[[Form], bool], str], ...] = (
    ("tiny", lambda form: min(form.width, form.height) < 10, "{0.width} x {0.height} pixels"),
    (
        "extreme_aspect",
        lambda form: max(form.width, form.height) > 10 * min(form.width, form.height),
        "{0.width} x {0.height} pixels",
    ),
    ("cmyk", lambda form: form.mode.startswith("CMYK"), "four channels: cyan, magenta, yellow, black"),
)


def _judge_pixels(data: bytes, form: Form, grey: Pixels, notes: Notes) -> bool:
    """Note what is odd about the pixels; return whether they are too plain for fingerprints."""
    low, high = int(grey.min()), int(grey.max())
    if high - low <= _PLAIN:
        notes.append(Note("constant", f"brightness {low} to {high} of 255 everywhere"))
        return True
    share = filled_share(grey)
    if share >= _LEAST_FILL:
        from ftkit._images.decoding.pillow import colours

        if is_cut_off(colours(data), share):
            notes.append(Note("half_grey", f"the bottom {share:.0%} is the gray that decoders fill gaps with"))
    return high - low < _TOO_PLAIN or min(form.width, form.height) < _TOO_SMALL
