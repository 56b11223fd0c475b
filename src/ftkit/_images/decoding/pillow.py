"""What Pillow is for: every format but JPEG, and how training loaders take a file."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
import stat
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from ftkit._images.decoding import jpeg2000, png, tiff
from ftkit._images.decoding.holes import has_hole
from ftkit._images.decoding.leftover import InTwo, gif_end, has_leftover, is_cut_off, is_lossless, stills
from ftkit._images.decoding.overruns import runs_over
from ftkit._images.decoding.picture import MOST_PIXELS, ORIENTATION, Pixels, judge_orientation, judge_pixel_count
from ftkit._images.verdict import Broken, Form, Note, Notes
from ftkit._wording import plural

_LOST = "the last bytes of the pixels stand for none: the decoder has lost its place"
_HOLE = "some of the compressed data is zeros, or one byte again and again, or has a wrong checksum"
_AGAIN_PIXELS = 60_000_000  # of an AVIF sequence, that are decoded once more to judge its frames
_FRAME_PIXELS = 250_000_000  # of an animation, all frames together, that are decoded: some seconds of work
_FRAMES = 2000  # of an animation, that are decoded: each takes time of its own
_RAW = (b"BM", b"P4", b"P5", b"P6", b"Pf")  # BMP, and PPM and its like, but for those in plain text
_PADDED = 4  # bytes, at most, that a row of a BMP is filled up with
_MASKS, _MASKS_ALPHA = 3, 6  # codings of BMP: masks tell which bits are red, green and blue, and how transparent it is
_WITH_ALPHA = 56  # bytes of a BMP's header that has a mask for that, at least
_BITS_OF_PIXELS = frozenset((12, 15, 16, 24, 30, 32))
# What is told by its start, in lower case.
_NOT_IMAGES = (
    ((b"version https://git-lfs",), "a Git LFS pointer: the file itself was never fetched"),
    ((b"<!doctype html", b"<html"), "an HTML page"),
    ((b"<?xml",), "XML"),
    ((b"<svg",), "an SVG drawing"),
    ((b"%pdf",), "a PDF document"),
    ((b"%!ps",), "a PostScript drawing"),
    ((b"pk\x03\x04",), "a zip archive"),
    ((b"\x1f\x8b",), "a gzip file"),
    ((b"rar!",), "a RAR archive"),
    ((b"7z\xbc\xaf",), "a 7z archive"),
    ((b"{",), "JSON text"),
)
_DAMAGED = (
    ((b"\xff\xd8\xff",), "starts like a JPEG file, but no image follows"),
    (
        (b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", *jpeg2000.MAGICS),
        "starts like an image, but Pillow can't read its header",
    ),
)
# By the brands of the file, those that tell least at the end, or by its first bytes: what opens it.
_HEIF, _JXL = ("HEIF", "pillow-heif"), ("JXL", "pillow-jxl-plugin")
_PLUGINS = {
    **dict.fromkeys((b"avif", b"avis", b"MA1A", b"MA1B"), ("AVIF", "pillow-avif-plugin")),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), _HEIF),
    **dict.fromkeys((b"avci", b"avcs", b"j2ki", b"j2is", b"jpeg", b"jpgs", b"vvic", b"vvis", b"MiHB", b"MiHE"), _HEIF),
    **dict.fromkeys((b"mif1", b"mif2", b"mif3", b"msf1", b"miaf"), _HEIF), b"\xff\x0a": _JXL,
}  # fmt: skip
_MOST_BRANDS = 256  # bytes that tell of them
_COMPLAINTS = (OSError, SyntaxError, EOFError, struct.error, zlib.error)
# Pillow would start Ghostscript, or ask Windows to draw.
_DRAWINGS = frozenset(("EPS", "WMF", "EMF"))


def complaint(data: bytes, frame: int = 0, *, at_once: bool = False) -> str:
    """Load as training loaders do, or a later frame, or with all data at once; return what Pillow says against it."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.seek(frame)
            if at_once:
                image.decodermaxblock = len(data)
            image.load()
    except MemoryError:
        raise
    except UnidentifiedImageError:  # whose message has an address
        return "cannot identify image file"
    except Exception as error:  # noqa: BLE001  (Pillow's plug-ins raise many kinds)
        return str(error) or type(error).__name__
    return ""


def broken(text: str) -> Broken:
    """Return the verdict that a message of Pillow's comes to."""
    return Broken("truncated" if "runcated" in text else "damaged", text)


def check(data: bytes, notes: Notes, is_damaged_jpeg: Callable[[bytes], bool] = lambda _: False) -> tuple[Form, Pixels]:
    """Decode all of it with Pillow; judge a JPEG within it by ``is_damaged_jpeg``."""
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if name := _by_start(start, _NOT_IMAGES):
        raise Broken("not_an_image", name)
    note: Note | None = None
    if data.startswith(png.MAGIC):
        note = png.judge(data)
        if png.is_apples(data):
            detail = "PNG as Xcode packs it (CgBI), which Pillow can't open; pngcrush -revert-iphone-optimizations can"
            raise Broken("needs_package", detail)
        if note and complaint(data):
            note, data = note._replace(severity="unusable"), png.mend(data)
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format in _DRAWINGS:
                raise Broken("not_an_image", f"a drawing ({image.format}) that Pillow can't draw on its own")
            judge_pixel_count(*image.size, notes)
            form = Form(image.format or "unknown", image.mode, *image.size)
            said = _load(image, len(data))
            _judge_loaded(image, data, said, is_damaged_jpeg)
            if image.format == "TIFF" and tiff.lacks_tags(data):
                notes.append(Note("truncated", "some tags are cut off, none that the pixels need", "odd"))
            _judge_palette(image, notes)
            _judge_form(image, notes)
            planes = _to_planes(image)
            _judge_frames(image, data, notes)
            is_whole = not any(found.kind in ("damaged", "truncated") for found in notes)
            if image.format == "GIF" and is_whole and gif_end(data) is not None:
                notes.append(Note("missing_end", "no trailer"))
    except UnidentifiedImageError:
        raise _describe(data) from None
    except Image.DecompressionBombError as error:
        raise Broken("bomb", str(error)) from None
    except (*_COMPLAINTS, ValueError) as error:
        if judged := _judge_refused(data, str(error)):
            raise judged from None
        if isinstance(error, ValueError):
            raise
        raise _broken_by(error) from None
    if note:
        notes.append(note)
    return form, planes


def _by_start(data: bytes, table: tuple[tuple[tuple[bytes, ...], str], ...]) -> str:
    return next((detail for starts, detail in table if data.startswith(starts)), "")


def _describe(data: bytes) -> Broken:
    """Tell a damaged image from what never was one, and from what needs a plug-in."""
    brands = {b"\xff\x0a" if data[4:8] == b"JXL " else data[:2]}
    if data[4:8] == b"ftyp":  # the file's own brand, its version, and those that it is compatible with
        brands = {
            data[at : at + 4] for at in range(8, min(int.from_bytes(data[:4], "big"), _MOST_BRANDS), 4) if at != 12
        }
    form, package = next((plugin for brand, plugin in _PLUGINS.items() if brand in brands), ("", ""))
    if form and form not in Image.OPEN:
        if is_cut_off(data):
            raise Broken("truncated", f"{form}, whose last box ends beyond the end of the file")
        return Broken("needs_package", f"{form}, which Pillow opens with the package {package}")
    if judged := _judge_refused(data):
        return judged
    if data[:3] in (b"PF\n", b"PF\r", b"PF "):
        return Broken("needs_package", "PFM with three channels, which Pillow can't open, but the package imageio can")
    if data.startswith(b"\x76\x2f\x31\x01\x02") or (data[:4] in (b"SDPX", b"XPDS") and data[8:10] in (b"V1", b"V2")):
        form = "OpenEXR" if data[0] == 0x76 else "DPX"
        return Broken("needs_package", f"{form}, which Pillow can't open, but the package OpenImageIO can")
    if data.startswith(b"P7\n"):
        if not _is_whole_pam(data):
            return Broken("truncated", "the data ends before the image does")
        return Broken("needs_package", "PAM, which Pillow can't open, but the tools of netpbm can")
    if _is_tga_of_15_bits(data):
        return Broken("needs_package", "TGA of 15 bits, which Pillow can't open, but the tools of ImageMagick can")
    if detail := f"starts like {form}, but Pillow can't read its header" if form else _by_start(data, _DAMAGED):
        return Broken("damaged", detail)
    at = data.find(b"\xff\xd8\xff", 0, 1024)
    if at > 0:
        return Broken("damaged", f"a JPEG image comes after {plural(at, 'foreign byte')}")
    text = data[:256].decode(errors="ignore")
    is_text = text and all(character.isprintable() or character.isspace() for character in text)
    # What it says stays out of a report that may be shared.
    return Broken("not_an_image", f"{'text' if is_text else 'unknown content'}, {plural(len(data), 'byte')}")


def _is_tga_of_15_bits(data: bytes) -> bool:
    """Whether pixels or colors have one bit less than Pillow takes, which stand in as many bytes as those of 16."""
    other = bytearray(data[:18])
    for at in (7, 16):  # bits of a color of the palette, and of a pixel
        other[at : at + 1] = other[at : at + 1].replace(b"\x0f", b"\x10")
    return not data.startswith(other) and not complaint(bytes(other) + data[18:])


def _judge_refused(data: bytes, said: str = "") -> Broken | None:
    """Return the verdict on a file that Pillow refuses, if that is whole; None when it may be damaged."""
    if found := tiff.unsupported(data, _NO_SAMPLES in said):
        return _judge_unsupported(found)
    detail, bare = jpeg2000.unsupported(data)
    if detail and not (bare and complaint(bare)):
        return Broken("needs_package", detail)
    if kind := _kind_of_bmp(data):
        return Broken("needs_package", f"{kind}, which Pillow can't open")
    if data.startswith(png.MAGIC):
        bare = png.mend(data, png.REMARKS)
        if not complaint(bare):
            check(bare, [])  # it may lack pixels, too
            detail = "PNG with text or a profile too large for Pillow, but not for the package opencv-python"
            return Broken("needs_package", detail)
    return None


def _kind_of_bmp(data: bytes) -> str:
    """Return the kind of a whole BMP file that Pillow does not know; else nothing."""
    if not data.startswith(b"BM") or len(data) < 70:
        return ""
    told, start, form, width, height, bits, coding = struct.unpack_from("<I4xIIii2xHI", data, 2)
    rest = len(data) - start - (width * bits + 31) // 32 * 4 * abs(height)
    if coding == 0 and bits in (2, 64) and 0 <= rest < 4:
        return f"BMP of {bits} bits per pixel"
    if coding in (_MASKS, _MASKS_ALPHA) and bits in (16, 32) and rest >= 0 and (rest < 4 or told == len(data)):
        masks = struct.unpack_from("<IIII", data, 54)
        used = masks if form >= _WITH_ALPHA or coding == _MASKS_ALPHA else masks[:3]
        return f"BMP whose colors have {_widths(used)} bits" if _is_layout(used) else ""
    inner = {4: ("JPEG", b"\xff\xd8\xff"), 5: ("PNG", png.MAGIC)}.get(coding)
    return f"BMP in {inner[0]}" if inner and not bits and data.startswith(inner[1], start) else ""


def _is_layout(masks: tuple[int, ...]) -> bool:
    """Whether masks cut a pixel's bits into colors as wide as each other (green may have one more), and transparency.

    So no layout that Pillow knows becomes another by a changed bit.
    """
    red, green, blue, *_ = (mask.bit_count() for mask in masks)
    runs = [mask // (mask & -mask) for mask in masks if mask]
    is_cut = all(run & run + 1 == 0 for run in runs) and sum(masks) & sum(masks) + 1 == 0
    is_apart = sum(mask.bit_count() for mask in masks) == sum(masks).bit_length()
    return is_cut and is_apart and 0 < red == blue <= green <= red + 1 and sum(masks).bit_length() in _BITS_OF_PIXELS


def _widths(masks: tuple[int, ...]) -> str:
    return ", ".join(str(mask.bit_count()) for mask in masks if mask)


def _is_whole_pam(data: bytes) -> bool:
    head, _, pixels = data.partition(b"\nENDHDR\n")
    numbers = dict(re.findall(rb"^(WIDTH|HEIGHT|DEPTH|MAXVAL)\s+(\d{1,9})\s*$", head, re.MULTILINE))
    if len(numbers) < 4:
        return False
    width, height, depth, most = (int(numbers[name]) for name in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL"))
    return 0 < width * height * depth * (2 if most > 255 else 1) <= len(pixels)


def _judge_unsupported(found: tiff.Unsupported) -> Broken:
    for plane in found.planes:
        try:
            with Image.open(io.BytesIO(plane)) as image:
                remark = _MADE_UP.search(_load(image, len(plane)))
                is_holed = has_hole(image, plane, lambda _: False)
        except _COMPLAINTS as error:
            return _broken_by(error)
        if remark or is_holed:
            return Broken("damaged", remark[0] if remark else _HOLE)
    if not all(map(complaint, found.others)):
        return Broken("damaged", f"TIFF with {found.words}, where one changed bit makes it a coding that loads")
    opener = f"which Pillow can't open, but the package {found.package} may"
    return Broken("needs_package", f"TIFF with {found.words}, {opener}")


def _broken_by(error: Exception) -> Broken:
    if isinstance(error, EOFError):
        return Broken("truncated", str(error) or "EOFError")
    return broken(str(error) or type(error).__name__)


def _load(image: Image.Image, size: int) -> str:
    """Decode the pixels; return what libtiff prints, which is all that tells of some that it has made up."""
    if image.format != "TIFF":
        image.load()
        return ""
    try:
        printed = tempfile.TemporaryFile()  # noqa: SIM115
    except OSError as error:
        raise RuntimeError(f"no temporary file: {error.strerror or error}") from error  # no fault of the image
    with printed:
        stderr = os.dup(2)
        os.dup2(printed.fileno(), 2)
        try:
            image.load()
        except OSError:
            if codec := _NO_CODEC.search(_read(printed)):
                if any(stop > size for _, stop in tiff.parts(getattr(image, "tag_v2", {}))):
                    raise Broken("truncated", f"the pixels, in {codec[1]}, end beyond the end of the file") from None
                raise Broken("needs_package", f"TIFF in {codec[1]}, without which this Pillow was built") from None
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        return _read(printed)


def _read(printed: IO[bytes]) -> str:
    printed.seek(0)
    return printed.read().decode(errors="replace")


# Labels beyond a palette, at most, that mean no class; photos use many of the colors that a palette has lost.
_FEW_LABELS = 7
# The share of pixels unlike a neighbor, at most, in maps of labels: 0.1 at least in 132 photos of 16 to 256 colors. In
# smaller pictures there are more of them, 2.7 over the root of a side of 28 to 256 pixels in 96 photos of 32 colors or
# more, 2 in those of 16 colors; 1.8 at 28 pixels in masks of 120 objects, 1.4 at 64.
_FLAT, _EDGES, _EDGES_OF_FEW, _MANY_LABELS = 0.08, 2.0, 1.5, 24
_NO_SAMPLES = "unknown raw mode"  # what Pillow says of samples that it can't take
_NO_CODEC = re.compile(r"(\w+) compression support is not configured")
_MADE_UP = re.compile(r"\w+Decode\w*: (?!Warning).*")  # it begins with where; other remarks are about tags


def _judge_loaded(image: Image.Image, data: bytes, said: str, is_damaged_jpeg: Callable[[bytes], bool]) -> None:
    """Raise for lost pixels that Pillow does not mind."""
    if remark := _MADE_UP.search(said):
        raise Broken("damaged", remark[0])
    if data.startswith(_RAW) and _was_sent_as_text(data):
        raise Broken("damaged", "a carriage return stands before each line feed: it was sent as text")
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    is_sparse = tiff.is_sparse(tags)
    if (is_sparse or tiff.shares_colors(tags)) and (found := tiff.unsupported(data)):
        raise _judge_unsupported(found)
    if is_sparse:
        raise Broken("damaged", "nothing tells where some of the pixels are")
    if any(len(data) <= start < stop for start, stop in tiff.parts(tags)):  # of bands, of which Pillow takes the first
        raise Broken("truncated", "some of the pixels would be beyond the end of the file")
    lacks_tables = image.format == "TIFF" and tiff.lacks_tags(data)  # of JPEG, which stand among the tags
    if has_hole(image, data, (lambda _: False) if lacks_tables else is_damaged_jpeg):
        raise Broken("damaged", _HOLE)
    frame = next(stills("WEBP", data), b"") if image.format == "WEBP" else b""
    if detail := _said_by_frame(frame) if frame else _said_by_rest(image, data):
        raise Broken("damaged", detail)
    if image.format != "PNG":
        return
    last = image.crop((0, image.height - 1, image.width, image.height))
    if not last.tobytes().strip(b"\0") and png.is_short(data):
        raise Broken("truncated", "there are fewer pixels than the header promises")


def _was_sent_as_text(data: bytes) -> bool:
    """Whether line ends were changed in a file of raw pixels: changed back, it ends where its pixels do."""
    ends = data.count(b"\r\n")
    if not 0 < ends == data.count(b"\n"):
        return False
    before = data.replace(b"\r\n", b"\n")
    return not complaint(before) and complaint(before[:-_PADDED]) != ""


def _judge_palette(image: Image.Image, notes: Notes) -> None:
    """Raise for colors that a palette has lost; note what may be labels of which some have no color."""
    if image.format != "PNG" or image.mode != "P" or not image.palette:
        return
    colours = len(image.palette.palette) // len(image.palette.mode)
    indexes = np.asarray(image)
    most = int(indexes.max())
    if not most >= colours > 1 or len(np.unique(indexes[indexes >= colours])) <= _FEW_LABELS:
        return
    detail = f"pixels use color {most} of a palette of {plural(colours, 'color')}"
    edges = ((indexes[:, 1:] != indexes[:, :-1]).mean() + (indexes[1:] != indexes[:-1]).mean()) / 2
    share = _EDGES if len(np.unique(indexes)) >= _MANY_LABELS else _EDGES_OF_FEW
    if edges > max(_FLAT, share / indexes.size**0.25):
        raise Broken("damaged", detail)
    if edges > _FLAT:
        notes.append(Note("damaged", f"{detail}, unless they are labels", "odd"))


def _said_by_rest(image: Image.Image, data: bytes) -> str:
    """Return what tells that the decoder of a still image has lost its place; empty when nothing does."""
    if has_leftover(image.format or "", data, lambda shorter: not complaint(shorter)):
        return _LOST
    if image.format == "WEBP" and is_lossless(data) and runs_over(np.asarray(image.convert("RGB"))):
        return "from some row on, colors run over from 255 to 0: the decoder has lost its place"
    return ""


def _said_by_frame(frame: bytes) -> str:
    with Image.open(io.BytesIO(frame)) as image:
        return _said_by_rest(image, frame)


def _lacks_place(data: bytes, frame: int) -> bool:
    return has_leftover("AVIF", data, lambda shorter: not complaint(shorter, frame), frame)


def _judge_gif(still: bytes) -> None:
    """Decode a frame alone, which is faster than to draw it on those before."""
    file = InTwo(still)
    with Image.open(file) as image:
        image.load()
    if file.is_left():
        raise Broken("damaged", _LOST)


def judge_pictures(data: bytes, notes: Notes) -> None:
    """Decode the later pictures of an MPO file."""
    with Image.open(io.BytesIO(data)) as image:
        _judge_frames(image, data, notes)


def _judge_frames(image: Image.Image, data: bytes, notes: Notes) -> None:
    """Decode every frame, within reason; loaders take the first, which is sound."""
    frames = frame = work = 0
    first = b""
    try:
        frames = getattr(image, "n_frames", 1)
        width, height = image.size
        coded = stills(image.format or "", data)
        first = next(coded, b"")
        for frame in range(1, min(frames, _FRAMES, 1 + _FRAME_PIXELS // (width * height))):
            still = next(coded, b"")
            if image.format == "GIF" and still:
                _judge_gif(still)
                continue
            image.seek(frame)
            image.load()
            if detail := _said_by_frame(still) if still else "":
                raise Broken("damaged", detail)
            work += (frame + 1) * width * height  # which are decoded again for each
            if image.format == "AVIF" and work < _AGAIN_PIXELS and _lacks_place(data, frame):
                raise Broken("damaged", _LOST)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  (a directory that was cut off raises whatever comes first)
        kind, detail, _ = (error if isinstance(error, Broken) else _broken_by(error)).note
        which = f"frame {frame + 1}" if frame else "a later one"
        notes.append(Note(kind, f"the first frame loads, but {which} does not: {detail}", "odd"))
    if image.format == "WEBP" and first:
        notes.append(Note("animated", f"{plural(frames, 'frame')} in WebP, which torchvision.io refuses"))
    elif frames > 1 and image.format != "MPO":
        notes.append(Note("animated", f"{frames} frames"))


def is_deep(image: Image.Image) -> bool:
    """Whether its samples have more than 8 bits."""
    return image.mode.startswith("I") or image.mode == "F"


def has_alpha(image: Image.Image) -> bool:
    """Whether its pixels may be transparent, by a channel of their own, a colour or the palette."""
    return "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa")


def _is_opaque(image: Image.Image) -> bool:
    alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else image.convert("RGBA").getchannel("A")
    return alpha.getextrema()[0] == 255


def _judge_form(image: Image.Image, notes: Notes) -> None:
    if is_deep(image):
        notes.append(Note("sixteen_bit", f"mode {image.mode}"))
    elif has_alpha(image) and not _is_opaque(image):
        palette = " with a transparent palette" if image.mode == "P" else ""
        notes.append(Note("transparency", f"mode {image.mode}{palette}"))
    try:
        judge_orientation(image.getexif().get(ORIENTATION), notes)
    except Exception as error:  # noqa: BLE001  (EXIF is a TIFF file of its own, with as many ways to break)
        notes.append(Note("bad_exif", str(error)))


# What Pillow turns into grey by a detour only.
_DETOURS = {"P": "RGBA", "PA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB"}


def _to_planes(image: Image.Image) -> Pixels:
    """Shrink to 64 pixels and more on the shorter side, in 8 bits: grey, and the color differences where they are sure.

    What a CMYK file's colors are depends on its profile.
    """
    factor = max(1, min(image.size) // 64)
    if is_deep(image):
        values = np.asarray(image, np.float64)[::factor, ::factor]
        low, high = np.nanmin(values), np.nanmax(values)
        values = (values - low) * (255 / (high - low) if high > low else 0)
        return np.nan_to_num(values).astype(np.uint8)[None]
    has_color = image.mode not in ("1", "L", "LA", "La", "CMYK")
    if image.mode in _DETOURS:
        image = image.convert(_DETOURS[image.mode])
    if not has_color:
        return np.asarray(image.convert("L").reduce(factor))[None]
    small = image.convert("RGB").reduce(factor)
    planes = np.asarray(small.convert("YCbCr")).transpose(2, 0, 1).copy()
    planes[0] = np.asarray(small.convert("L"))
    return planes


def colours(data: bytes) -> Pixels:
    """Return a picture in RGB."""
    with Image.open(io.BytesIO(data)) as image, _filling_gaps():  # an end marker may be missing
        return np.asarray(image.convert("RGB"))


def shrunk_jpeg(data: bytes) -> Pixels:
    """Return a JPEG of any colours in grey, shrunk."""
    with Image.open(io.BytesIO(data)) as image, _filling_gaps():  # an end marker may be missing
        image.draft("L", (-(-image.width // 8), -(-image.height // 8)))
        image.decodermaxblock = len(data)  # which arithmetic coding needs
        return np.asarray(image.convert("RGB").convert("L"))


def thumbnail(path: str, side: int, data: bytes | None) -> str:
    """Return a small JPEG of what can be shown of a file, in Base64; empty when nothing can."""
    try:
        if data is None and not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
            return ""
        with _filling_gaps(), Image.open(path if data is None else io.BytesIO(data)) as image:
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


@contextlib.contextmanager
def _filling_gaps() -> Iterator[None]:
    """Have Pillow show what there is of a file that was cut off."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
