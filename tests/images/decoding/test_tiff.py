"""TIFF files that Pillow does not open: sound ones are told from damaged ones."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from ftkit._images.decoding.checks import check_bytes

_FORMATS = {"u": 1, "i": 2, "f": 3, "c": 6}


def tiff(pixels: np.ndarray, coding: int = 1, meaning: int = 1) -> bytes:
    """Return a TIFF file of one strip with the numbers as they are, of shape (rows, columns, channels)."""
    rows, columns, channels = pixels.shape
    tags: dict[int, tuple[int, ...]] = {
        256: (columns,), 257: (rows,), 258: (8 * pixels.itemsize,) * channels, 259: (coding,), 262: (meaning,),
        273: (8,), 277: (channels,), 278: (rows,), 279: (pixels.nbytes,), 338: (0,) * (channels - 1),
        339: (_FORMATS[pixels.dtype.kind],) * channels,
    }  # fmt: skip
    tags = {tag: values for tag, values in tags.items() if values}
    at = 8 + pixels.nbytes + 2 + 12 * len(tags) + 4
    directory, more = struct.pack("<H", len(tags)), b""
    for tag, values in tags.items():
        value = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            more, value = more + value, struct.pack("<I", at + len(more))
        directory += struct.pack("<HHI", tag, 4, len(values)) + value
    return b"II*\0" + struct.pack("<I", 8 + pixels.nbytes) + pixels.tobytes() + directory + bytes(4) + more


@pytest.mark.parametrize(
    ("kind", "channels", "coding", "words"),
    [
        ("f8", 1, 1, "1 channel of 64-bit floating-point numbers"),
        ("f2", 1, 1, "1 channel of 16-bit floating-point numbers"),
        ("f4", 3, 1, "3 channels of 32-bit floating-point numbers"),
        ("u2", 13, 1, "13 channels of 16-bit unsigned numbers"),
        ("u2", 4, 1, "4 channels of 16-bit unsigned numbers"),
        ("c8", 1, 1, "1 channel of 64-bit complex numbers"),
        ("f4", 1, 34887, "32-bit floating-point numbers in LERC"),
    ],
)
def test_numbers_that_pillow_does_not_open(kind: str, channels: int, coding: int, words: str) -> None:
    """They are no damage, unless the file was cut off."""
    data = tiff(np.random.default_rng(0).random((20, 30, channels)).astype(kind), coding)
    (note,) = check_bytes("x.tif", data).notes
    assert (note.kind, note.severity) == ("needs_package", None)
    assert words in note.detail
    pixels = 20 * 30 * channels * np.dtype(kind).itemsize
    for cut in (data[: pixels // 2], data[: pixels + 20], data[:6]):
        (note,) = check_bytes("x.tif", cut).notes
        assert note.kind in ("damaged", "truncated")


def test_a_coding_that_this_pillow_was_built_without(image: Image.Image, encode: Callable[..., bytes]) -> None:
    """Nothing tells whether the pixels are sound."""
    try:
        encode(image.convert("L"), "TIFF", compression="webp")
    except OSError:
        (note,) = check_bytes("x.tif", tiff(np.ones((20, 30, 1), np.uint8), coding=50001)).notes
        assert note.kind == "needs_package"
        assert "TIFF in WEBP" in note.detail
    else:
        pytest.skip("this one has it")


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "jpeg"])
def test_a_directory_that_was_damaged_is_no_kind_of_its_own(
    image: Image.Image, encode: Callable[..., bytes], compression: str | None
) -> None:
    """Of flipped bits in the tags, none turns a picture that Pillow opened into one that it can't."""
    data = encode(image.resize((40, 30)), "TIFF", compression=compression)
    start = int.from_bytes(data[4:8], "little")
    number = int.from_bytes(data[start : start + 2], "little")
    for at in range(start, start + 2 + 12 * number):
        for bit in range(0, 8, 2):
            changed = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
            assert "needs_package" not in [note.kind for note in check_bytes("x.tif", changed).notes]
