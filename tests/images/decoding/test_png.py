"""PNG files: checksums, and bombs."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ftkit._images.decoding import png

Encode = Callable[..., bytes]
Found = Callable[..., list[str]]
Judge = Callable[..., bool]


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Take a PNG file apart."""
    parts, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        parts.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return parts


def joined(parts: list[tuple[bytes, bytes]], spoil: bytes = b"") -> bytes:
    """Put a PNG file together, with a wrong CRC on the chunks called ``spoil``."""
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in parts:
        crc = zlib.crc32(name + body) ^ (name == spoil)
        data += struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)
    return data


def test_png_checksums(found: Found, is_unusable: Judge, image: Image.Image, encode: Encode) -> None:
    """A wrong CRC over sound pixels is odd; over changed pixels the file is unusable."""
    parts = chunks(encode(image, "PNG"))
    assert found(joined(parts), "a.png") == []
    assert found(joined(parts, spoil=b"IDAT"), "a.png") == ["bad_crc"]
    text = joined([*parts[:1], (b"tEXt", b"a\0b"), *parts[1:]], spoil=b"tEXt")
    assert found(text, "a.png") == ["bad_crc"]
    assert is_unusable(text, "a.png")  # Pillow refuses it
    assert found(joined(parts)[:-12], "a.png") == ["missing_end"]
    whole = bytearray(joined(parts))
    whole[len(whole) // 2] ^= 4
    assert found(bytes(whole), "a.png") == ["damaged"]
    short = [(name, body[: len(body) // 2] if name == b"IDAT" else body) for name, body in parts]
    assert is_unusable(joined(short), "a.png")


def test_a_kind_of_chunk_can_be_left_out(image: Image.Image, encode: Encode) -> None:
    """The others stay byte for byte."""
    exif = Image.Exif()
    exif[271] = "Camera"
    assert png.mend(encode(image, "PNG", exif=exif), b"eXIf") == encode(image, "PNG")


def test_bombs(found: Found, encode: Encode) -> None:
    """More pixels than Pillow takes are refused by the header alone."""
    parts = chunks(encode(Image.new("RGB", (8, 8)), "PNG"))
    parts[0] = (b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    assert found(joined(parts), "a.png") == ["bomb"]


def test_fewer_pixels_than_the_header_promises(found: Found, image: Image.Image, encode: Encode) -> None:
    """Pillow leaves the rest black; a picture that ends in black is sound."""
    for mode in ("RGB", "L", "P", "1"):
        (name, header), *rest = chunks(encode(image.convert(mode), "PNG"))
        width, height = struct.unpack_from(">II", header)
        taller = struct.pack(">II", width, height + 60) + header[8:]
        assert found(joined([(name, taller), *rest]), "a.png") == ["truncated"]
    black = image.copy()
    black.paste("black", (0, 200, *image.size))
    assert found(encode(black, "PNG"), "a.png") == []


@pytest.mark.parametrize("colours", [0, 21], ids=["no palette", "a short one"])
@pytest.mark.parametrize("labels", [2, 40])
def test_labels_without_a_color_are_no_damage(found: Found, encode: Encode, colours: int, labels: int) -> None:
    """Masks are saved so, with 255 for what is no class."""
    values = (np.mgrid[0:300, 0:800][1] * labels // 800).astype(np.uint8)
    values[100:120] = 255
    small = np.kron(np.arange(16, 25, dtype=np.uint8).reshape(3, 3), np.ones((4, 4), np.uint8))
    for shown in (values, small):
        mask = Image.fromarray(shown)
        mask.putpalette([0, 128, 64] * max(1, colours))
        assert "damaged" not in found(encode(mask, "PNG"), "mask.png")


def test_a_palette_that_lost_colours(found: Found, image: Image.Image, encode: Encode) -> None:
    """Pixels of colours that are not there come out black."""
    parts = chunks(encode(image.quantize(200), "PNG"))
    cut = [(name, body[:90] if name == b"PLTE" else body) for name, body in parts]
    assert found(joined(parts), "a.png") == []
    assert found(joined(cut), "a.png") == ["damaged"]


@pytest.mark.parametrize(("side", "objects"), [(28, 60), (64, 60), (128, 120)])
def test_small_masks_of_objects(is_unusable: Judge, encode: Encode, side: int, objects: int) -> None:
    """Objects are numbered beyond a palette for classes; in a small picture, their outlines are a good part of it."""
    for seed in range(5):
        rng = random.Random(seed)
        mask = Image.new("L", (side, side))
        for number in range(1, objects):
            x, y, radius = rng.randrange(side), rng.randrange(side), rng.randrange(2, max(3, side // 6))
            ImageDraw.Draw(mask).ellipse([x - radius, y - radius, x + radius, y + radius], number)
        mask.putpalette([0, 128, 64] * 21)
        assert not is_unusable(encode(mask, "PNG"), "mask.png")


@pytest.mark.parametrize("side", [28, 64, 128])
def test_small_pictures_whose_palette_lost_colours(
    is_unusable: Judge, photo: Callable[..., Image.Image], encode: Encode, side: int
) -> None:
    """Photos have edges everywhere."""
    for seed in range(6):
        for colours in (32, 64, 200):
            parts = chunks(encode(photo(seed).resize((side, side)).quantize(colours), "PNG"))
            cut = [(name, body[: len(body) // 6 * 3] if name == b"PLTE" else body) for name, body in parts]
            assert is_unusable(joined(cut), "a.png")


def test_a_png_of_xcode(found: Found, image: Image.Image, encode: Encode) -> None:
    """Its pixels are bare Deflate; a cut or changed one is damaged all the same."""
    parts = chunks(encode(image.convert("RGBA"), "PNG"))
    pixels = zlib.decompress(b"".join(body for name, body in parts if name == b"IDAT"))
    packed = zlib.compress(pixels)[2:-4]
    apples = [(b"CgBI", b"P\0\x20\2"), parts[0], (b"IDAT", packed), (b"IEND", b"")]
    assert found(joined(apples), "a.png") == ["needs_package"]
    for spoilt in (packed[:-100], packed[:100] + bytes(50) + packed[150:]):
        spoilt_parts = [(name, spoilt if name == b"IDAT" else body) for name, body in apples]
        assert found(joined(spoilt_parts), "a.png") in (["damaged"], ["truncated"])
