"""PNG files: checksums, and bombs."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

from PIL import Image

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


def test_bombs(found: Found, encode: Encode) -> None:
    """More pixels than Pillow takes are refused by the header alone."""
    parts = chunks(encode(Image.new("RGB", (8, 8)), "PNG"))
    parts[0] = (b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    assert found(joined(parts), "a.png") == ["bomb"]
