"""Colors that run over, as in lossless WebP whose bytes have changed."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from ftkit._images.decoding.overruns import runs_over

Photo = Callable[..., Image.Image]


def test_changed_bytes_that_leave_nothing_over(
    is_unusable: Callable[..., bool], photo: Photo, encode: Callable[..., bytes]
) -> None:
    """Codes that fall into step again shift all pixels behind them."""
    rng = random.Random(2)
    wholes = [encode(photo(seed, (320, 240)), "WEBP", lossless=True) for seed in range(3)]
    found = 0
    for number in range(24):
        whole = wholes[number % 3]
        at = rng.randrange(len(whole) // 8, len(whole) * 3 // 4)
        found += is_unusable(whole[:at] + rng.randbytes(64) + whole[at + 64 :], "x.webp")
    assert found >= 22  # 23 with the libwebp of newer Pillows
    assert not any(is_unusable(whole, "x.webp") for whole in wholes)


@pytest.fixture
def pixels(photo: Photo) -> np.ndarray:
    """Return a bright photo."""
    return np.asarray(photo(5, (320, 240)), np.int16) // 2 + 110


def test_only_what_begins_below_the_first_rows_does(pixels: np.ndarray) -> None:
    """A picture of which the numbers ran over before it was saved is as its maker left it."""
    offsets = np.array([70, 110, 40])
    cut = pixels.copy()
    cut[60:] += offsets
    assert runs_over(cut.astype(np.uint8))
    assert not runs_over((pixels + offsets).astype(np.uint8))
    assert not runs_over(pixels.astype(np.uint8))


def test_sound_pictures_of_extremes(pixels: np.ndarray, photo: Photo) -> None:
    """Clipped colors step as far, but from 255 or to 0; noise steps by anything; heights run over in one color."""
    strong = ImageEnhance.Contrast(ImageEnhance.Color(photo(5, (320, 240))).enhance(5)).enhance(5)
    noise = pixels.copy()
    noise[60:] = np.random.default_rng(0).integers(0, 256, noise[60:].shape)
    metres = (pixels[:, :, 0].astype(np.int64) - 110) * 40
    heights = np.stack((metres >> 16, metres >> 8 & 255, metres & 255), axis=2)
    heights[:60] = 0
    for picture in (np.asarray(strong), noise, heights, np.zeros((1, 1, 3)), np.zeros((20, 1, 3))):
        assert not runs_over(picture.astype(np.uint8))


def test_computed_pictures_below_a_plain_part() -> None:
    """Coordinates on a floor below a horizon, and a phase below a margin, run over by themselves."""
    y, x = np.mgrid[0:320, 0:480].astype(float)
    depth = 60 / np.maximum(y - 112, 2)
    across, along = (x - 240) * depth / 20, depth * 3
    across, along = across * 0.8 + along * 0.6, along * 0.8 - across * 0.6
    floor = np.stack([across % 1 * 255.99, along % 1 * 255.99, 0 * across + 40], -1)
    phase = np.stack([(x / 9 + y / 31) % 1 * 255.99, (y / 7 - x / 23) % 1 * 255.99, 0 * x], -1)
    for picture, plain in ((floor, 125), (phase, 60)):
        picture[:plain] = 90
        assert not runs_over(picture.astype(np.uint8))
