"""Is this file a sound image? Runs in a worker process, where a decoder may crash or hang."""

from __future__ import annotations

import base64
import errno
import io
import os
import stat
import struct
import warnings
import zlib
from pathlib import PurePosixPath

import numpy as np
import simplejpeg  # type: ignore[import-untyped]  # it has no stubs for all Python versions
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from ftkit.files import digest
from ftkit.images import png
from ftkit.images.fingerprint import Prints, fingerprints
from ftkit.images.jpeg import pillow_complaint, read_header, weigh_complaint
from ftkit.images.verdict import MOST_PIXELS, Broken, Form, Notes, Verdict, judge_pixel_count

__all__ = ["IMAGENET_SUFFIXES", "check_bytes", "check_file", "prepare"]

_FRAME_PIXELS = 250_000_000  # of an animation, all frames together, that are decoded

# What torchvision's ImageFolder takes for an image, by the suffix alone.
IMAGENET_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"))
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif"),
    "MPO": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heif", ".hif"),
    "ICO": (".ico",),
    "JPEG2000": (".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc"),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
    "JXL": (".jxl",),
}
_IMAGE_SUFFIXES = frozenset(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
_NOT_IMAGES = (
    (b"version https://git-lfs", "a Git LFS pointer: the file itself was never fetched"),
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<?xml", "XML"),
    (b"<svg", "an SVG drawing"),
    (b"%pdf", "a PDF document"),
    (b"%!ps", "a PostScript drawing"),
    (b"pk\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"rar!", "a RAR archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"{", "JSON text"),
)
# Pillow would start Ghostscript, or ask Windows to draw.
_DRAWINGS = frozenset(("EPS", "WMF", "EMF"))


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
    return check_bytes(path, data)._replace(size=status.st_size, mtime=status.st_mtime_ns)


def _file_type(mode: int) -> str:
    for test, name in ((stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISDIR, "a folder")):
        if test(mode):
            return name
    return "a device"


def check_bytes(path: str, data: bytes) -> Verdict:
    """Judge the bytes of a file; ``path`` only serves for its suffix."""
    suffix = PurePosixPath(path).suffix.lower()
    if not data.strip(b"\0"):
        if suffix in _IMAGE_SUFFIXES or not data:
            return Verdict([("empty", f"{len(data):,} bytes, all of them zero" if data else "0 bytes")], len(data))
        return Verdict([("other_file", "zeros only")], len(data))
    notes: Notes = []
    form: Form | None = None
    prints: Prints | None = None
    try:
        if data.startswith(b"\xff\xd8\xff"):
            form, grey = _check_jpeg(data, notes)
        else:
            form, grey = _check_other(data, notes)
    except Broken as broken:
        kind, detail = broken.args
        if kind == "not_an_image" and suffix not in _IMAGE_SUFFIXES:
            kind = "other_file"
        notes.append((kind, detail))
    except MemoryError:
        notes.append(("out_of_memory", "decoding it passed a worker's limit of memory"))
    except Exception as error:  # noqa: BLE001  (a decoder may raise anything on hostile bytes; the finding says what)
        notes.append(("damaged", f"{type(error).__name__}: {error}"))
    else:
        _judge_name(suffix, form[0], notes)
        prints = _judge_picture(data, form, grey, notes)
    return Verdict(notes, len(data), 0, digest(data), form, prints)


def _judge_name(suffix: str, form: str, notes: Notes) -> None:
    if suffix in _IMAGE_SUFFIXES and suffix not in _SUFFIXES.get(form, (suffix,)):
        notes.append(("wrong_suffix", f"{form} content under the suffix {suffix}"))
    elif suffix not in IMAGENET_SUFFIXES:
        notes.append(("unlisted_suffix", f"a sound {form} image under the suffix {suffix or '(none)'}"))


def _judge_picture(data: bytes, form: Form, grey: Image.Image, notes: Notes) -> Prints | None:
    """Note what is odd about the pixels; return their fingerprints unless they are too plain."""
    _, mode, width, height = form
    short, long = sorted((width, height))
    if short < 10:
        notes.append(("tiny", f"{width} x {height} pixels"))
    if long > 10 * short:
        notes.append(("extreme_aspect", f"{width} x {height} pixels"))
    if mode.startswith("CMYK"):
        notes.append(("cmyk", "four inks: cyan, magenta, yellow, black"))
    pixels = np.asarray(grey)
    low, high = int(pixels.min()), int(pixels.max())
    if high - low <= 3:
        notes.append(("constant", f"brightness {low} to {high} of 255 everywhere"))
        return None
    plain = (np.ptp(pixels, axis=1) <= 2) & (abs(pixels[:, 0].astype(np.int16) - 128) <= 1)
    rows = len(plain) - 1 - int(np.flatnonzero(~plain)[-1]) if not plain.all() else 0
    if rows >= max(2, len(plain) / 20) and _is_neutral(data, rows / len(plain)):
        notes.append(("half_grey", f"the lowest {rows / len(plain):.0%} is the grey that decoders fill gaps with"))
    if pixels.std() < 3:
        return None
    return fingerprints(grey)


def _is_neutral(data: bytes, share: float) -> bool:
    """Whether the lowest ``share`` of a picture is without colour, too."""
    with Image.open(io.BytesIO(data)) as image:
        colours = np.asarray(image.convert("RGB"))
    rows = colours[-max(1, int(len(colours) * share * 0.9)) :].astype(np.int16)
    return bool((abs(rows - 128) <= 2).all())


# ------------------------------------------------------------------------------------------------ JPEG


def _check_jpeg(data: bytes, notes: Notes) -> tuple[Form, Image.Image]:
    header = read_header(data)
    if header is None or header.precision != 8 or header.components not in (1, 3, 4):
        return _check_other(data, notes)
    width, height = header.width, header.height
    judge_pixel_count(width, height, notes)
    # At an eighth of the size every bit is still decoded: that finds what a full decode finds.
    scale = (1, 1, 8) if min(width, height) >= 256 else (32, 32, 1)
    grey: Image.Image | None = None
    try:
        pixels = simplejpeg.decode_jpeg(data, header.colours, False, False, *scale)
        if header.components != 4:
            grey = Image.fromarray(pixels[:, :, 0])
        if not data.endswith(b"\xff\xd9") and not header.multiple:
            after = len(data) - 2 - data.rfind(b"\xff\xd9")
            notes.append(("trailing_data", f"{after:,} bytes after the end marker"))
    except ValueError as error:
        weigh_complaint(data, header, str(error), notes)
    if grey is None:
        with Image.open(io.BytesIO(data)) as image:
            image.draft("L", (width // 8, height // 8))
            ImageFile.LOAD_TRUNCATED_IMAGES = True  # an end marker may be missing
            try:
                grey = image.convert("RGB").convert("L")
            finally:
                ImageFile.LOAD_TRUNCATED_IMAGES = False
    if header.orientation is None:
        notes.append(("bad_exif", "the EXIF directory does not fit its segment"))
    elif header.orientation != 1:
        notes.append(("exif_rotated", _say_orientation(header.orientation)))
    mode = {1: "L", 3: "RGB", 4: "CMYK"}[header.components]
    return ("MPO" if header.multiple else "JPEG", mode, width, height), grey


def _say_orientation(orientation: int) -> str:
    turns = {3: "180", 4: "180", 5: "90", 6: "90", 7: "270", 8: "270"}
    mirrored = "mirrored" if orientation in (2, 4, 5, 7) else ""
    turned = f"turned by {turns[orientation]} degrees" if orientation in turns else ""
    return f"EXIF orientation {orientation}: to be {' and '.join(filter(None, (mirrored, turned)))}"


# ------------------------------------------------------------------------------------------------ the rest


def _check_other(data: bytes, notes: Notes) -> tuple[Form, Image.Image]:
    """Decode all of it with Pillow."""
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for magic, name in _NOT_IMAGES:
        if start.startswith(magic):
            raise Broken("not_an_image", name)
    note: tuple[str, ...] | None = None
    if data.startswith(png.MAGIC):
        note = png.judge(data)
        if note and pillow_complaint(data):
            note, data = (*note, "unusable"), png.mend(data)
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format in _DRAWINGS:
                raise Broken("not_an_image", f"a drawing ({image.format}) that Pillow can't draw by itself")
            judge_pixel_count(*image.size, notes)
            form = (image.format or "unknown", image.mode, *image.size)
            frames = _load_frames(image)
            image.seek(0)
            image.load()
            _judge_form(image, frames, notes)
            grey = _to_grey(image)
    except UnidentifiedImageError:
        raise Broken(*_describe(data)) from None
    except Image.DecompressionBombError as error:
        raise Broken("bomb", str(error)) from None
    except (OSError, SyntaxError, EOFError, struct.error, zlib.error) as error:
        text = str(error) or type(error).__name__
        raise Broken("truncated" if isinstance(error, EOFError) or "runcated" in text else "damaged", text) from None
    if note:
        notes.append(note)
    return form, grey


def _describe(data: bytes) -> tuple[str, str]:
    """Tell a damaged image from what never was one."""
    if data.startswith(b"\xff\xd8\xff"):
        return "damaged", "begins as a JPEG file, but no picture follows"
    if data.startswith((b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")):
        return "damaged", "begins as an image, but Pillow can't read its header"
    at = data.find(b"\xff\xd8\xff", 0, 1024)
    if at > 0:
        return "damaged", f"{at} foreign bytes stand before a JPEG picture"
    try:
        text = data[:256].decode()
    except UnicodeDecodeError as error:
        if error.start < 250:
            return "not_an_image", f"unknown content, {len(data):,} bytes"
        text = data[: error.start].decode()
    if text.isprintable() or all(c.isprintable() or c.isspace() for c in text):
        return "not_an_image", f"text: {text[:40]!r}"
    return "not_an_image", f"unknown content, {len(data):,} bytes"


def _load_frames(image: Image.Image) -> int:
    """Decode every frame of an animation, within reason; return how many there are."""
    frames: int = getattr(image, "n_frames", 1)
    width, height = image.size
    for frame in range(1, min(frames, 1 + _FRAME_PIXELS // (width * height))):
        image.seek(frame)
        image.load()
    return frames


def _judge_form(image: Image.Image, frames: int, notes: Notes) -> None:
    if frames > 1:
        notes.append(("animated", f"{frames} frames"))
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        notes.append(("sixteen_bit", f"mode {mode}"))
    elif "transparency" in image.info or mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        notes.append(("transparency", f"mode {mode}" + (" with a transparent palette" if mode == "P" else "")))
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # noqa: BLE001  (EXIF is a TIFF file of its own, with as many ways to break)
        notes.append(("bad_exif", str(error)))
        return
    if isinstance(orientation, int) and 2 <= orientation <= 8:
        notes.append(("exif_rotated", _say_orientation(orientation)))


def _to_grey(image: Image.Image) -> Image.Image:
    """Shrink to at most 512 pixels a side, in 8-bit grey."""
    factor = max(1, min(image.size) // 64)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, np.float64)[::factor, ::factor]
        low, high = np.nanmin(values), np.nanmax(values)
        values = (values - low) * (255 / (high - low) if high > low else 0)
        return Image.fromarray(np.nan_to_num(values).astype(np.uint8))
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    return image.convert("L").reduce(factor)


def prepare() -> None:
    """Set Pillow up for a worker: no warnings, and limits of our own in place of its."""
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = None


# ------------------------------------------------------------------------------------------------ what a worker does


def do_check(path: str, data: bytes | None) -> Verdict:
    """Check a file, or the bytes that came along."""
    return check_file(path) if data is None else check_bytes(path, data)


def do_thumbnail(path: str, side: int, data: bytes | None) -> str:
    """Return a small JPEG of what can be shown of a file, in Base64; empty when nothing can."""
    source = path if data is None else io.BytesIO(data)
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        if data is None and not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
            return ""
        with Image.open(source) as image:
            if image.format in _DRAWINGS or image.width * image.height > MOST_PIXELS:
                return ""
            image.draft("RGB", (side, side))
            shown = image.convert("RGBA").convert("RGB")
            shown.thumbnail((side, side))
        buffer = io.BytesIO()
        shown.save(buffer, "JPEG", quality=70)
        return base64.b64encode(buffer.getvalue()).decode()
    except Exception:  # noqa: BLE001  (what is broken beyond showing is shown by its name)
        return ""
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
