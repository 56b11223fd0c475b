"""A small data set as found in practice: scikit-learn's handwritten digits in a zip, with real dirt in it."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

KOREAN = "숫자.png"  # packed by a Korean Windows: CP949 bytes, and no flag that says so


def encode(pixels: np.ndarray, suffix: str) -> bytes:
    """Return an 8 x 8 digit as an image file of 64 x 64 pixels."""
    image = Image.fromarray((255 - pixels * 15.9375).astype(np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, format={"jpg": "JPEG", "png": "PNG"}[suffix])
    return buffer.getvalue()


def make_zip(path: Path) -> Path:
    """Write the zip: train/ and val/, one folder per digit, PNG and JPEG files, and the dirt of a shared folder."""
    digits = load_digits()
    placeholder = "=" * len(KOREAN.encode("cp949"))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for index, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            split, suffix = "val" if index % 5 == 0 else "train", "jpg" if index % 2 else "png"
            archive.writestr(f"digits/{split}/{label}/{index:04}.{suffix}", encode(pixels, suffix))
        jpeg, png = encode(digits.images[1], "jpg"), encode(digits.images[2], "png")
        archive.writestr("digits/train/1/half-a-download.jpg", jpeg[: len(jpeg) // 2])
        archive.writestr("digits/train/2/nothing.png", b"")
        archive.writestr("digits/train/3/error-page.jpg", b"<!DOCTYPE html><html><title>404 Not Found</title></html>")
        archive.writestr("digits/train/2/really-a-png.jpg", png)
        for index in (5, 10, 15):  # copies of validation images that slipped into the training set
            suffix = "jpg" if index % 2 else "png"
            data = encode(digits.images[index], suffix)
            archive.writestr(f"digits/train/{digits.target[index]}/copy-of-{index:04}.{suffix}", data)
        archive.writestr("digits/train/7/Thumbs.db", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504))
        archive.writestr("__MACOSX/digits/train/7/._0007.jpg", b"\x00\x05\x16\x07\x00\x02\x00\x00")
        archive.writestr(f"digits/train/{digits.target[4]}/{placeholder}", encode(digits.images[4], "png"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue().replace(placeholder.encode(), KOREAN.encode("cp949")))
    return path
