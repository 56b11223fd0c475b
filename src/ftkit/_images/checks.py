"""Is this file a sound image? Runs in a worker process, where a decoder may crash or hang."""

from __future__ import annotations

import errno
import os
import stat

import numpy as np
import xxhash

from ftkit._images import jpeg
from ftkit._images.fingerprint import Prints, fingerprints, near_groups
from ftkit._images.suffixes import IMAGE_SUFFIXES, LISTED_SUFFIXES, SUFFIXES
from ftkit._images.verdict import Broken, Form, Notes, Pixels, Verdict

__all__ = [
    "check_bytes",
    "check_file",
    "do_check",
    "do_groups",
    "do_repair",
    "do_thumbnail",
]


def check_file(path: str) -> Verdict:
    """Read the file once and judge it. Never opens what is no regular file."""
    try:
        status = os.stat(path)  # noqa: PTH116
        if not stat.S_ISREG(status.st_mode):
            return Verdict([("special_file", _file_type(status.st_mode))])
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123  (Path costs more than the check of a small file)
            data = file.read()
    except FileNotFoundError as error:
        if os.path.islink(path):  # noqa: PTH114
            return Verdict([("broken_link", f"points to {os.readlink(path)!r}, which is not there")])  # noqa: PTH115
        return Verdict([("vanished", str(error.strerror))])
    except OSError as error:
        loop = os.path.islink(path) and error.errno == errno.ELOOP  # noqa: PTH114
        kind = "broken_link" if loop else "unreadable"
        return Verdict([(kind, error.strerror or str(error))])
    return check_bytes(path, data)._replace(stamp=(status.st_size, status.st_mtime_ns))


def _file_type(mode: int) -> str:
    for test, name in ((stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISDIR, "a folder")):
        if test(mode):
            return name
    return "a device"


def check_bytes(path: str, data: bytes) -> Verdict:
    """Judge the bytes of a file; ``path`` only serves for its suffix."""
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122
    if not data.strip(b"\0"):
        if suffix in IMAGE_SUFFIXES or not data:
            return Verdict([("empty", f"{len(data):,} bytes, all of them zero" if data else "0 bytes")])
        return Verdict([("other_file", "zeros only")])
    notes: Notes = []
    form: Form | None = None
    prints: Prints | None = None
    try:
        if data.startswith(b"\xff\xd8\xff"):
            form, pixels = jpeg.check(data, notes)
        else:
            from ftkit._images import pillow  # slow to import, and most files are JPEG

            form, pixels = pillow.check(data, notes)
    except Broken as broken:
        kind, detail = broken.args
        if kind == "not_an_image" and suffix not in IMAGE_SUFFIXES:
            kind = "other_file"
        notes.append((kind, detail))
    except MemoryError:
        notes.append(("out_of_memory", "decoding it passed a worker's limit of memory"))
    except Exception as error:  # noqa: BLE001  (a decoder may raise anything on hostile bytes; the finding says what)
        notes.append(("damaged", f"{type(error).__name__}: {error}"))
    else:
        _judge_name(suffix, form[0], notes)
        prints = _judge_picture(data, form, pixels, notes)
    return Verdict(notes, (), xxhash.xxh3_128_hexdigest(data), form, prints)


def _judge_name(suffix: str, form: str, notes: Notes) -> None:
    if suffix in IMAGE_SUFFIXES and suffix not in SUFFIXES.get(form, (suffix,)):
        notes.append(("wrong_suffix", f"{form} content under the suffix {suffix}"))
    elif suffix not in LISTED_SUFFIXES:
        notes.append(("unlisted_suffix", f"a sound {form} image under the suffix {suffix or '(none)'}"))


def _judge_picture(data: bytes, form: Form, pixels: Pixels, notes: Notes) -> Prints | None:
    """Note what is odd about the pixels; return their fingerprints unless they are too plain."""
    _, mode, width, height = form
    short, long = sorted((width, height))
    if short < 10:
        notes.append(("tiny", f"{width} x {height} pixels"))
    if long > 10 * short:
        notes.append(("extreme_aspect", f"{width} x {height} pixels"))
    if mode.startswith("CMYK"):
        notes.append(("cmyk", "four inks: cyan, magenta, yellow, black"))
    low, high = int(pixels.min()), int(pixels.max())
    if high - low <= 3:
        notes.append(("constant", f"brightness {low} to {high} of 255 everywhere"))
        return None
    last = pixels[-1].tobytes()
    if max(last) - min(last) <= 2 and abs(last[0] - 128) <= 1:
        plain = (np.ptp(pixels, axis=1) <= 2) & (abs(pixels[:, 0].astype(np.int16) - 128) <= 1)
        share = (len(plain) - 1 - int(np.flatnonzero(~plain)[-1])) / len(plain)
        from ftkit._images.pillow import lowest_is_grey

        if share >= 0.05 and lowest_is_grey(data, share):
            notes.append(("half_grey", f"the lowest {share:.0%} is the grey that decoders fill gaps with"))
    return fingerprints(pixels) if high - low >= 16 else None


def do_check(path: str, data: bytes | None) -> Verdict:
    """Check a file, or the bytes that came along."""
    return check_file(path) if data is None else check_bytes(path, data)


def do_thumbnail(path: str, side: int, data: bytes | None) -> str:
    """Return a small JPEG of what can be shown of a file, in Base64; empty when nothing can."""
    from ftkit._images.pillow import thumbnail

    return thumbnail(path, side, data)


def do_groups(data: bytes) -> list[list[int]]:
    """Find the groups of near copies in a table of fingerprints."""
    return near_groups(np.frombuffer(data, np.uint64).reshape(-1, 6))


def do_repair(path: str, kinds: list[str], target: str, data: bytes | None) -> str:
    """Write a mended copy of a file; return its path."""
    del data  # it is the original that is mended
    from ftkit._images.mending import mend

    return mend(path, kinds, target)
