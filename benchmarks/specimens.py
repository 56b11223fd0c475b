"""Kinds of damage, and of pictures that look damaged and are not, made of photos: what `images.py quality` looks at.

Each function takes a photo and a source of chance, and returns the bytes of a file; its name ends in the suffix.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image, ImageDraw, ImageFile, ImageFilter

Make = Callable[[Image.Image, random.Random], bytes]


def encode(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **({"quality": 88} if form == "JPEG" else {}) | options)
    return buffer.getvalue()


# Sound pictures.


def pad(image: Image.Image, _: random.Random, sides: str, fill: object, shape: int = 0) -> Image.Image:
    """Paste the photo, its sides cut to a multiple of 16, into a frame."""
    width, height = (side // 16 * 16 for side in image.size)
    photo = image.crop((0, 0, width, height))
    margin = shape or 16 * (height // 48)
    left, right = margin * ("l" in sides), margin * ("r" in sides)
    top, bottom = margin * ("t" in sides), margin * ("b" in sides)
    whole = Image.new("RGB", (width + left + right, height + top + bottom), fill)
    whole.paste(photo, (left, top))
    return whole


def caption(image: Image.Image, rng: random.Random, fill: object) -> Image.Image:
    whole = pad(image, rng, "b", fill)
    text = "".join(rng.choice("abcdefgh ") for _ in range(30))
    ImageDraw.Draw(whole).text((8, image.height // 16 * 16 + 4), text, fill="black")
    return whole


def cut_out(image: Image.Image, rng: random.Random, shape: str) -> Image.Image:
    """Put an object on the grey of a decoder."""
    mask = Image.new("L", image.size)
    width, height = image.size
    box = (width // 6, height // 8, width * 5 // 6, rng.choice((height * 5 // 6, height // 16 * 8)))
    getattr(ImageDraw.Draw(mask), shape)(box, fill=255)
    return Image.composite(image, Image.new("RGB", image.size, (128, 128, 128)), mask)


def steps(image: Image.Image, rng: random.Random, step: int, photo: bool) -> Image.Image:
    """Lay tiles on grey, the last row of them unfinished."""
    columns, rows = 480 // step, 320 // step
    sheet = Image.new("RGB", (columns * step, rows * step), (128, 128, 128))
    for at in range(int(columns * (rows * 0.7) + rng.randrange(1, columns))):
        x, y = rng.randrange(image.width - step), rng.randrange(image.height - step)
        colour = tuple(rng.randrange(256) for _ in range(3))
        tile = image.crop((x, y, x + step, y + step)) if photo else Image.new("RGB", (step, step), colour)
        sheet.paste(tile, (at % columns * step, at // columns * step))
    return sheet


def drawn(image: Image.Image, rng: random.Random, what: str) -> Image.Image:
    """Draw a document, a chart, a comic, a screenshot."""
    width, height = (side // 16 * 16 for side in image.size)
    paper = {"document": "white", "chart": (128, 128, 128), "comic": "white", "screenshot": (127, 127, 127)}[what]
    page = Image.new("RGB", (width, height), paper)
    draw = ImageDraw.Draw(page)
    if what == "document":
        for y in range(20, height - 60, 14):
            draw.text(
                (20, y), "".join(rng.choice("abcdefghij  ") for _ in range(rng.randrange(10, width // 7))), fill="black"
            )
    elif what == "chart":
        for x in range(16, width - 16, 32):
            draw.rectangle(
                (x, rng.randrange(height - 16), x + 16, height - 16), fill=tuple(rng.randrange(256) for _ in range(3))
            )
    elif what == "comic":
        for x in range(0, width, width // 3):
            page.paste(image.resize((width // 3 - 8, height // 2)), (x, 8))
        draw.rectangle((0, height // 2 + 8, width, height), fill=(128, 128, 128))
        draw.ellipse((20, height // 2 + 20, 200, height - 10), fill="white", outline="black")
    else:
        page.paste(image.resize((width, height // 2)), (0, 0))
        for y in range(height // 2 + 16, height - 48, 16):
            draw.text((8, y), "".join(rng.choice("abcdefghij  ") for _ in range(40)), fill="black")
    return page


def toned(image: Image.Image, _: random.Random, gain: float, offset: float, blur: float = 0) -> Image.Image:
    seen = image.point(lambda value: max(0, min(255, int(value * gain + offset))))
    return seen.filter(ImageFilter.GaussianBlur(blur)) if blur else seen


def horizon(image: Image.Image, _: random.Random, bottom: object) -> Image.Image:
    """A photo whose ground is of one colour, from a line between blocks on."""
    seen = image.copy()
    seen.paste(bottom, (0, image.height // 32 * 16, image.width, image.height))
    return seen


def _looks() -> dict[str, Callable[[Image.Image, random.Random], Image.Image]]:
    looks: dict[str, Callable[[Image.Image, random.Random], Image.Image]] = {}
    for fill in (0, 114, 127, 128, 129, 255):
        for sides in ("b", "r", "lr", "tb", "tblr", "br"):
            looks[f"padding {fill} {sides}"] = partial(pad, sides=sides, fill=(fill,) * 3)
    for fill in (127, 128):
        looks[f"caption {fill}"] = partial(caption, fill=(fill,) * 3)
        looks[f"ground {fill}"] = partial(horizon, bottom=(fill,) * 3)
        looks[f"thin frame {fill}"] = partial(pad, sides="tblr", fill=(fill,) * 3, shape=8)
    for shape in ("ellipse", "rectangle"):
        looks[f"cut-out {shape}"] = partial(cut_out, shape=shape)
    for step in (8, 16, 32, 64):
        looks[f"tiles {step}"] = partial(steps, step=step, photo=False)
        looks[f"mosaic {step}"] = partial(steps, step=step, photo=True)
    for what in ("document", "chart", "comic", "screenshot"):
        looks[what] = partial(drawn, what=what)
    looks["night"] = partial(toned, gain=0.1, offset=2)
    looks["fog"] = partial(toned, gain=0.08, offset=118, blur=4)
    looks["grey fog"] = partial(toned, gain=0.02, offset=126, blur=9)
    looks["snow"] = partial(toned, gain=0.2, offset=204)
    looks["blurred"] = partial(toned, gain=1, offset=0, blur=12)
    looks["x-ray"] = lambda image, rng: pad(image.convert("L").convert("RGB"), rng, "lr", (0, 0, 0))
    looks["negative"] = partial(toned, gain=-1, offset=255)
    looks["poster"] = lambda image, _: image.quantize(6).convert("RGB")
    looks["pixel art"] = lambda image, _: image.resize((40, 30)).resize((640, 480), Image.Resampling.NEAREST)
    looks["sky"] = lambda image, _: image.crop((0, 0, 64, 48)).resize((480, 360), Image.Resampling.BICUBIC)
    looks["plain"] = lambda image, _: image
    return looks


CODINGS: dict[str, Callable[[Image.Image], bytes]] = {
    **{f"quality {q}.jpg": partial(encode, quality=q) for q in (1, 5, 10, 20, 50, 75, 95, 100)},
    **{f"{s}.jpg": partial(encode, subsampling=s) for s in ("4:4:4", "4:2:2")},
    "progressive.jpg": partial(encode, progressive=True),
    "progressive 10.jpg": partial(encode, progressive=True, quality=10),
    "restarts.jpg": partial(encode, restart_marker_rows=1),
    "optimized.jpg": partial(encode, optimize=True),
    "grey.jpg": lambda image: encode(image.convert("L")),
    "inks.jpg": lambda image: encode(image.convert("CMYK")),
    "odd size.jpg": lambda image: encode(image.crop((0, 0, 333, 251))),
    "small.jpg": lambda image: encode(image.resize((90, 70))),
    "large.jpg": lambda image: encode(image.resize((1900, 1400))),
    "exif.jpg": lambda image: encode(image, exif=_exif(6)),
    "profile.jpg": lambda image: encode(image, icc_profile=bytes(3000)),
    "comment.jpg": lambda image: encode(image, comment=b"\xff\xd9 is no end" * 20),
    "fill bytes.jpg": lambda image: (data := encode(image))[:2] + b"\xff\xff\xff" + data[2:],
    ".png": partial(encode, form="PNG"),
    "palette.png": lambda image: encode(image.quantize(64), "PNG"),
    "bits.png": lambda image: encode(image.convert("1"), "PNG"),
    "opaque.png": lambda image: encode(image.convert("RGBA"), "PNG"),
    ".gif": lambda image: encode(image.quantize(200), "GIF"),
    ".webp": partial(encode, form="WEBP"),
    "lossless.webp": partial(encode, form="WEBP", lossless=True),
    ".bmp": partial(encode, form="BMP"),
    "raw.tif": partial(encode, form="TIFF"),
    **{f"{c}.tif": partial(encode, form="TIFF", compression=c) for c in ("tiff_lzw", "tiff_deflate", "packbits")},
    ".ppm": partial(encode, form="PPM"),
    ".jp2": partial(encode, form="JPEG2000"),
    ".avif": lambda image: encode(image, "AVIF", speed=10),
}  # fmt: skip


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def good() -> dict[str, Make]:
    """Return the kinds of sound files: each look in one of four qualities, and each coding of the plain photo."""
    looks = {
        f"{name}.jpg": lambda image, rng, look=look: encode(look(image, rng), quality=rng.choice((5, 12, 20, 60, 90)))
        for name, look in _looks().items()
    }
    return looks | {name: lambda image, _, code=code: code(image) for name, code in CODINGS.items()}


# Damage.


def start_of(data: bytes) -> int:
    """Return where the pixels begin, more or less."""
    if data.startswith(b"\xff\xd8"):
        at = 2
        while data[at + 1] != 0xDA:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        return at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return min(600, len(data) // 5)


def cut(data: bytes, rng: random.Random, low: float, high: float) -> bytes:
    start = start_of(data)
    return data[: start + int((len(data) - start) * rng.uniform(low, high))]


def zeroed(data: bytes, rng: random.Random, count: int, value: int = 0) -> bytes:
    start = start_of(data)
    count = min(count, (len(data) - start) // 2)
    at = rng.randrange(start, len(data) - count)
    return data[:at] + bytes([value]) * count + data[at + count :]


def noise(data: bytes, rng: random.Random, count: int) -> bytes:
    start = start_of(data)
    count = min(count, (len(data) - start) // 2)
    at = rng.randrange(start, len(data) - count)
    return data[:at] + rng.randbytes(count) + data[at + count :]


def flipped(data: bytes, rng: random.Random, count: int) -> bytes:
    garbled = bytearray(data)
    for _ in range(count):
        garbled[rng.randrange(start_of(data), len(data) - 2)] ^= 1 << rng.randrange(8)
    return bytes(garbled)


def lost(data: bytes, rng: random.Random, count: int) -> bytes:
    at = rng.randrange(start_of(data), len(data) - count - 2)
    return data[:at] + data[at + count :]


def swapped(data: bytes, rng: random.Random, count: int) -> bytes:
    count = min(count, (len(data) - start_of(data)) // 4)
    at = rng.randrange(start_of(data), len(data) - 2 * count)
    return data[:at] + data[at + count : at + 2 * count] + data[at : at + count] + data[at + 2 * count :]


def doubled(data: bytes, rng: random.Random, count: int) -> bytes:
    at = rng.randrange(start_of(data), len(data) - count)
    return data[: at + count] + data[at:]


def as_text(data: bytes, _: random.Random) -> bytes:
    """As a transfer that takes it for text leaves it."""
    return data.replace(b"\n", b"\r\n")


_HARM: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut early": partial(cut, low=0.02, high=0.3),
    "cut midway": partial(cut, low=0.3, high=0.8),
    "cut late": partial(cut, low=0.8, high=0.97),
    **{f"{count} zeros": partial(zeroed, count=count) for count in (512, 4096)},
    "512 ones": partial(zeroed, count=512, value=255),
    "64 of noise": partial(noise, count=64),
    "4096 of noise": partial(noise, count=4096),
    **{f"{count} bits": partial(flipped, count=count) for count in (1, 8, 64)},
    "1 lost": partial(lost, count=1),
    "512 lost": partial(lost, count=512),
    "4096 swapped": partial(swapped, count=4096),
    "512 doubled": partial(doubled, count=512),
    "as text": as_text,
}
_HARMED = (
    "quality 75.jpg", "quality 95.jpg", "4:4:4.jpg", "progressive.jpg", "restarts.jpg", "grey.jpg", ".png", ".webp",
    "lossless.webp", ".gif", "tiff_lzw.tif", "tiff_deflate.tif", ".jp2", ".avif",
)  # fmt: skip


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    at, found = 8, []
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def _join(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def taller(image: Image.Image, _: random.Random) -> bytes:
    (name, body), *rest = _chunks(encode(image, "PNG"))
    width, height = struct.unpack_from(">II", body)
    return _join([(name, struct.pack(">II", width, height * 5 // 4) + body[8:]), *rest])


def short_palette(image: Image.Image, _: random.Random) -> bytes:
    chunks = _chunks(encode(image.quantize(200), "PNG"))
    return _join([(name, body[: len(body) // 6 * 3] if name == b"PLTE" else body) for name, body in chunks])


def spliced(image: Image.Image, rng: random.Random) -> bytes:
    """The beginning of one file, the end of another."""
    one, other = encode(image), encode(image.rotate(180))
    share = rng.uniform(0.3, 0.7)
    return one[: int(len(one) * share)] + other[int(len(other) * share) :]


def resampled(image: Image.Image, _: random.Random) -> bytes:
    """A header that tells another sampling of the colours than the pixels have."""
    data = bytearray(encode(image, subsampling="4:2:0"))
    at = data.index(b"\xff\xc0")
    data[at + 11] = 0x11
    return bytes(data)


def between_scans(image: Image.Image, rng: random.Random) -> bytes:
    data = encode(image, progressive=True)
    scans = [at for at in range(len(data)) if data.startswith(b"\xff\xda", at)]
    return data[: rng.choice(scans[1:5])]


def swapped_tables(image: Image.Image, _: random.Random) -> bytes:
    data = encode(image, quality=30)
    at = data.index(b"\xff\xdb")
    return data[: at + 5] + bytes([99]) * 40 + data[at + 45 :]


def damage() -> dict[str, Make]:
    """Return the kinds of damage: each harm to each of some codings, and those that have one coding only."""
    kinds: dict[str, Make] = {
        f"{harm}, {coding}": lambda image, rng, harm=harm, coding=coding: _HARM[harm](CODINGS[coding](image), rng)
        for harm in _HARM
        for coding in _HARMED
    }
    own = {
        "taller.png": taller, "short palette.png": short_palette, "spliced.jpg": spliced, "resampled.jpg": resampled,
        "between scans.jpg": between_scans, "other tables.jpg": swapped_tables,
    }  # fmt: skip
    return kinds | own


def shown(data: bytes) -> np.ndarray | None:
    """Return the picture as a forgiving loader shows it; None when there is none to show."""
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"), np.int16)
    except Exception:
        return None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False


def is_lost(before: bytes, after: bytes) -> bool:
    """Whether a hundredth of the pixels and more are off by more than 24 levels."""
    old, new = shown(before), shown(after)
    return old is None or new is None or old.shape != new.shape or bool((abs(old - new).max(2) > 24).mean() >= 0.01)
