"""What Pillow decodes: the other formats, and what is no image at all."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ftkit._images.decoding.checks import check_bytes

Encode = Callable[..., bytes]
Found = Callable[..., list[str]]
Judge = Callable[..., bool]


@pytest.mark.parametrize("form", ["PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_other_formats_cut_off(is_unusable: Judge, form: str, image: Image.Image, encode: Encode) -> None:
    """Pillow decodes all of it, so that a missing end is seen."""
    data = encode(image, form)
    for share in (0.05, 0.3, 0.9):
        assert is_unusable(data[: int(len(data) * share)], f"a.{form.lower()}")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<!DOCTYPE html><title>404 Not Found</title>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "Git LFS"),
        (b"Access denied\n", "text"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (bytes(range(7, 200)) * 9, "unknown content"),
        (b"PK\x03\x04" + bytes(range(100)), "zip"),
    ],
)
def test_what_is_no_image(data: bytes, words: str) -> None:
    """It is unusable, and the detail says what it is."""
    ((kind, detail, _),) = check_bytes("x.png", data).notes
    assert kind == "not_an_image"
    assert words in detail


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "ICO", "TGA"]), st.data())
def test_no_bytes_of_other_formats_raise(image: Image.Image, form: str, data: st.DataObject) -> None:
    """The same for what Pillow decodes."""
    buffer = io.BytesIO()
    image.resize((64, 48)).save(buffer, form)
    changed = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 20))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    check_bytes("x.png", bytes(changed[: data.draw(st.integers(1, len(changed)))]))
