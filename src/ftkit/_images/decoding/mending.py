"""How a worker mends one file, without touching pixels where that is possible. It is asked by repair.py."""

from __future__ import annotations

import contextlib
import io
from itertools import chain, count
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ftkit._files import atomic_write
from ftkit._images.decoding import jpeg, png
from ftkit._images.decoding.leftover import gif_end
from ftkit._images.decoding.picture import ORIENTATION
from ftkit._images.decoding.pillow import has_alpha, is_deep
from ftkit._images.suffixes import IMAGE_SUFFIXES, LISTED_SUFFIXES, SUFFIXES, suffix_of

_PNG_KINDS = frozenset(("bad_crc", "missing_end", "trailing_data", "bad_exif"))
# Kinds whose remedy changes pixels, or how they are stored.
_REDRAWN = frozenset(("exif_rotated", "cmyk", "sixteen_bit", "transparency"))
_BITS = 258  # TIFF's tag for them, of a sample
_DARK = 2**14 - 1  # the highest level of 14 bits, which those of 16 seldom stay below
_SPACES = {"RGB": b"RGB ", "L": b"GRAY"}  # what the header of an ICC profile says it is for (ICC.1, 7.2.8)


def mend(path: str, kinds: list[str], target: str, taken: list[str], dry_run: bool) -> str:
    """Write a mended copy of ``path`` to ``target``, with the extension that its content calls for; return its path.

    If other images are called like it but for the extension, that is appended to the whole name. A dry run does all of
    that but the writing.

    Args:
        path: The file.
        kinds: What to mend.
        target: Where the copy goes, under the name of the file.
        taken: The names of files beside it that begin like its own, folded.
        dry_run: Whether nothing is written.

    Raises:
        FileExistsError: Something of that name is there.
    """
    data = _mend_bytes(Path(path).read_bytes(), set(kinds))
    with Image.open(io.BytesIO(data)) as image:
        form = image.format or "PNG"
        is_named = not {"unlisted_suffix", "wrong_suffix"}.isdisjoint(kinds)
        is_unlisted = is_named and _suffixes(form)[0] not in LISTED_SUFFIXES
        has_bad_exif = "bad_exif" in kinds and form not in ("JPEG", "MPO", "PNG")
        if is_unlisted or has_bad_exif or not _REDRAWN.isdisjoint(kinds):
            data, form = _redraw(image, form)
    place = Path(target)
    if suffix_of(place.name) not in _suffixes(form) or "unlisted_suffix" in kinds:
        place = _named(place, _suffixes(form)[0], taken)
    if place.exists():
        raise FileExistsError(f"{place} already exists")
    if not dry_run:
        with atomic_write(place) as file:
            file.write(data)
    return str(place)


def _named(place: Path, suffix: str, taken: list[str]) -> Path:
    stem = place.with_suffix("").name.casefold()
    if not any(Path(name).stem == stem and suffix_of(name) in IMAGE_SUFFIXES for name in taken):
        return place.with_suffix(suffix)
    ends = chain([""], map("-{}".format, count(2)))
    names = (f"{place.name}{end}{suffix}" for end in ends)
    return place.with_name(next(name for name in names if name.casefold() not in taken))


def _suffixes(form: str) -> tuple[str, ...]:
    return SUFFIXES.get(form, (f".{form.lower()}",))


def _mend_bytes(data: bytes, kinds: set[str]) -> bytes:
    """Mend what stands around the coded pixels."""
    if data.startswith(png.MAGIC) and kinds & _PNG_KINDS:
        return png.mend(data, [b"eXIf"] if "bad_exif" in kinds else [])
    if data.startswith(b"GIF8") and "missing_end" in kinds and (end := gif_end(data)):
        return data[:end].ljust(end, b"\0") + b";"
    if data.startswith(jpeg.MAGIC) and "bad_exif" in kinds:
        data = jpeg.without_exif(data)
    if data.startswith(jpeg.MAGIC) and "trailing_data" in kinds:
        data = data[: data.rfind(jpeg.EOI) + 2]
    if data.startswith(jpeg.MAGIC) and "missing_eoi" in kinds:
        data = jpeg.with_end(data)
    return data


def _redraw(image: Image.Image, form: str) -> tuple[bytes, str]:
    """Turn it upright, put it on white, in RGB or grey of 8 bits; return the file and its format.

    EXIF stays, but for the orientation, and so does the colour profile where it is one for what was drawn.
    """
    drawn = image if image.info.get("exif") is None else _upright(image)
    if is_deep(drawn):
        drawn = _in_eight_bits(drawn, _used_bits(image))
    if has_alpha(drawn):
        layer = drawn.convert("RGBA")
        drawn = Image.new("RGBA", layer.size, "white")
        drawn.alpha_composite(layer)
    if drawn.mode != "L":
        drawn = drawn.convert("RGB")
    buffer, kept = io.BytesIO(), _kept(image, drawn.mode)
    if form in ("JPEG", "MPO"):
        drawn.save(buffer, "JPEG", quality=95, subsampling="4:4:4", **kept)
        return buffer.getvalue(), "JPEG"
    drawn.info.clear()  # what Pillow would write of it by itself
    drawn.save(buffer, "PNG", **kept)
    return buffer.getvalue(), "PNG"


def _used_bits(image: Image.Image) -> int:
    """Return how many of 16 bits a level has, where the file says so: other formats but TIFF have them scaled."""
    bits: tuple[int, ...] = getattr(image, "tag_v2", {}).get(_BITS, ())
    return bits[0] if image.mode.startswith("I;16") and bits and bits[0] < 16 else 0


def _in_eight_bits(image: Image.Image, bits: int) -> Image.Image:
    """Return deep levels of grey as eight bits: of numbers of so many bits or, if that is 0, up to 1, 255 or 65535."""
    values = np.asarray(image, np.float64)
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= 65535:  # nor are these NaN
        raise ValueError(f"its numbers, from {low:g} to {high:g}, are no levels of gray")
    tops = (2**bits - 1,) if bits else (1, 255, 65535)
    top = next(top for top in tops if high <= top and (top > 1 or image.mode == "F"))
    if top == 65535 and high <= _DARK:
        raise ValueError(
            f"its levels end at {high:g}, and nothing says of how many bits they are: of 16, they would come out "
            "nearly black; scale them by the highest level that they can have"
        )
    return Image.fromarray((values * (255 / top)).round().astype(np.uint8))


def _kept(image: Image.Image, mode: str) -> dict[str, bytes]:
    """Return what is to be saved with what was drawn of an image."""
    kept = {}
    profile = image.info.get("icc_profile") or b""
    if profile[16:20] == _SPACES[mode]:
        kept["icc_profile"] = profile
    with contextlib.suppress(Exception):  # garbled EXIF is left behind
        exif = image.getexif()
        exif.pop(ORIENTATION, None)
        exif.bigtiff = False  # which only TIFF has
        if len(exif):
            kept["exif"] = exif.tobytes()
    return kept


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001  (garbled EXIF says nothing of up and down; the pixels are kept)
        return image
