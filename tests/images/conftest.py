"""Photographs made of noise that looks like them to a decoder, and a dirty data set built of these."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Encode = Callable[..., bytes]


def make_photo(seed: int, size: tuple[int, int] = (320, 260)) -> Image.Image:
    """Return a picture with the spectrum of a photograph (amplitude falls with frequency) and with edges."""
    rng = np.random.default_rng(seed)
    width, height = size
    fy, fx = np.meshgrid(np.fft.fftfreq(height), np.fft.rfftfreq(width), indexing="ij")
    fall = 1 / np.maximum(np.hypot(fx, fy), 1 / max(size)) ** 1.3
    planes = []
    for _ in range(3):
        phase = rng.uniform(0, 2 * np.pi, fall.shape)
        plane = np.fft.irfft2(fall * np.exp(1j * phase), s=(height, width))
        planes.append((plane - plane.mean()) / plane.std())
    grey = planes[0]
    y, x = np.mgrid[:height, :width]
    for _ in range(4):
        cx, cy, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(20, 70)
        grey = grey + rng.normal(0, 1.2) * (np.hypot(x - cx, y - cy) < r)
    rgb = np.stack([grey, grey + 0.4 * planes[1], grey + 0.4 * planes[2]], -1)
    return Image.fromarray(np.clip(rgb * 45 + 120, 0, 255).astype(np.uint8))


def encode_image(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    """Return the picture's file as bytes."""
    Image.init()
    if form not in Image.SAVE:
        pytest.skip(f"This Pillow writes no {form}.")
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def photo() -> Callable[..., Image.Image]:
    """Return the function that makes a picture from a seed."""
    return make_photo


@pytest.fixture(scope="session")
def encode() -> Encode:
    """Return the function that makes a picture's bytes."""
    return encode_image


@pytest.fixture(scope="session")
def jpegs() -> list[bytes]:
    """Return a dozen different photographs as JPEG files."""
    return [encode_image(make_photo(seed), quality=88) for seed in range(12)]


@pytest.fixture
def pets(tmp_path: Path, jpegs: list[bytes]) -> Path:
    """Return a small clean data set: train and val, two classes, ten pictures."""
    root = tmp_path / "pets"
    for number, data in enumerate(jpegs[:10]):
        folder = root / ("val" if number % 5 == 0 else "train") / ("cat" if number % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(data)
    return root
