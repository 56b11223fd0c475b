"""Colors that no picture has: a shift of one component that no decoder complains of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

Encode = Callable[..., bytes]
Found = Callable[..., list[str]]


@pytest.mark.parametrize("options", [{}, {"subsampling": "4:4:4"}, {"progressive": True}, {"quality": 20}])
def test_a_shift_in_color(
    found: Found, photo: Callable[..., Image.Image], encode: Encode, options: dict[str, object]
) -> None:
    """Brightness and color differences that fit no red, green and blue are found, wherever they begin."""
    for size in ((400, 300), (200, 150)):
        luma, blue, red = (np.asarray(plane).copy() for plane in photo(1, size).convert("YCbCr").split())
        assert found(encode(Image.merge("YCbCr", [Image.fromarray(plane) for plane in (luma, blue, red)]))) == []
        blue[size[1] // 2 :] = red[size[1] // 2 :] = 230
        luma[size[1] // 2 :] //= 4
        shifted = Image.merge("YCbCr", [Image.fromarray(plane) for plane in (luma, blue, red)])
        assert found(encode(shifted, **({"quality": 90} | options))) == ["odd_colors"]


@pytest.mark.parametrize("quality", [1, 5, 20, 75, 100])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_the_brightest_colors(found: Found, encode: Encode, quality: int, subsampling: str) -> None:
    """Colors at the edge of what is possible, side by side, stay within it whatever the coding does to them."""
    rng = np.random.default_rng(0)
    for side in (1, 3, 8, 16):
        small = rng.integers(0, 2, (320 // side, 320 // side, 3), np.uint8) * 255
        sheet = Image.fromarray(np.kron(small, np.ones((side, side, 1), np.uint8)))
        assert "odd_colors" not in found(encode(sheet, quality=quality, subsampling=subsampling))


def test_video_that_is_laxer(found: Found, photo: Callable[..., Image.Image], encode: Encode) -> None:
    """A frame may have colors a little beyond what a screen can show, as it never was red, green and blue."""
    luma, *colours = (np.asarray(plane, np.float32) for plane in photo(1, (400, 300)).convert("YCbCr").split())
    colours = [np.clip(128 + (plane - 128) * 1.2, 0, 255) for plane in colours]
    planes = [Image.fromarray(plane.astype(np.uint8)) for plane in (np.clip(luma * 1.1 - 10, 0, 255), *colours)]
    assert found(encode(Image.merge("YCbCr", planes), quality=85)) == []


def test_colors_that_were_strengthened(found: Found, photo: Callable[..., Image.Image], encode: Encode) -> None:
    """Video whose saturation was raised looks like a shift, and is a picture all the same: it is no damage."""
    luma, *colours = (np.asarray(plane, np.float32) for plane in photo(1, (400, 300)).convert("YCbCr").split())
    colours = [np.clip(128 + (plane - 128) * 6, 0, 255) for plane in colours]
    planes = [Image.fromarray(plane.astype(np.uint8)) for plane in (luma, *colours)]
    assert found(encode(Image.merge("YCbCr", planes), quality=90)) == ["odd_colors"]


def test_pixels_that_are_red_green_and_blue(found: Found, photo: Callable[..., Image.Image], encode: Encode) -> None:
    """Files that say so are taken at their word."""
    for quality in (30, 90):
        assert found(encode(photo(2, (400, 300)), quality=quality, keep_rgb=True)) == []
