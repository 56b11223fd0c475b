"""How one file is mended, in a worker process: without touching pixels where that is possible."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ftkit._files import atomic_write
from ftkit._images import png
from ftkit._images.suffixes import LISTED_SUFFIXES, SUFFIXES

__all__ = ["mend"]

# Kinds whose remedy changes pixels, or how they are stored.
_REDRAWN = frozenset(("exif_rotated", "bad_exif", "cmyk", "sixteen_bit", "transparency"))


def mend(path: str, kinds: list[str], target: str) -> str:
    """Write a mended copy of ``path`` to ``target``, with the suffix that its content calls for; return its path.

    Raises:
        FileExistsError: Something of that name is there.
    """
    data = Path(path).read_bytes()
    if data.startswith(png.MAGIC) and {"bad_crc", "missing_end", "trailing_data"} & set(kinds):
        data = png.mend(data)
    if data.startswith(b"\xff\xd8"):
        if "trailing_data" in kinds:
            data = data[: data.rfind(b"\xff\xd9") + 2]
        if "missing_eoi" in kinds:
            data += b"\xd9" if data.endswith(b"\xff") else b"\xff\xd9"
    with Image.open(io.BytesIO(data)) as image:
        form = image.format or "PNG"
        unlisted = "unlisted_suffix" in kinds and SUFFIXES.get(form, ("",))[0] not in LISTED_SUFFIXES
        if unlisted or _REDRAWN & set(kinds):
            data, form = _redraw(image, form)
    suffixes = SUFFIXES.get(form, (f".{form.lower()}",))
    place = Path(target)
    if place.suffix.lower() not in suffixes or "unlisted_suffix" in kinds:
        place = place.with_name((place.stem if place.suffix else place.name) + suffixes[0])
    if place.exists():
        raise FileExistsError(f"{place} is there already")
    with atomic_write(place) as file:
        file.write(data)
    return str(place)


def _redraw(image: Image.Image, form: str) -> tuple[bytes, str]:
    """Turn it upright, put it on white, in RGB or grey of 8 bits; return the file and its format."""
    upright = image if image.info.get("exif") is None else _upright(image)
    if upright.mode.startswith("I") or upright.mode == "F":
        values = np.asarray(upright, np.float64)
        top = 65535 if values.max() > 255 else 255
        upright = Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8))
    if "transparency" in upright.info or upright.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        layer = upright.convert("RGBA")
        upright = Image.new("RGBA", layer.size, "white")
        upright.alpha_composite(layer)
    if upright.mode != "L":
        upright = upright.convert("RGB")
    buffer = io.BytesIO()
    if form in ("JPEG", "MPO"):
        upright.save(buffer, "JPEG", quality=95, subsampling="4:4:4")
        return buffer.getvalue(), "JPEG"
    upright.save(buffer, "PNG")
    return buffer.getvalue(), "PNG"


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001  (garbled EXIF says nothing of up and down; the pixels are kept)
        return image
