"""Fingerprints of pictures: what they survive."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from ftkit._images.decoding.checks import check_bytes
from ftkit._images.decoding.fingerprint import FLIP, MIRROR, TRANSPOSED, fingerprints
from ftkit._images.decoding.search import ROW, near_groups
from ftkit._images.verdict import Prints


def test_turns_are_xors_and_an_order_of_bits(photo: Callable[..., Image.Image]) -> None:
    """The fingerprint of a mirrored or turned image is known without looking at it."""
    grey = np.asarray(photo(1, (256, 192)).convert("L"))
    seen = (grey, grey[:, ::-1], grey[::-1], grey.T)
    word, mirrored, flipped, turned = (
        prints.words[0] for prints in fingerprints([(pixels[None], pixels.shape) for pixels in seen])
    )
    assert (word ^ mirrored ^ MIRROR).bit_count() <= 1
    assert (word ^ flipped ^ FLIP).bit_count() <= 1
    transposed = sum((word >> bit & 1) << place for place, bit in enumerate(TRANSPOSED))
    assert (transposed ^ turned).bit_count() <= 1


def test_pictures_too_small_to_tell_apart_have_none(
    photo: Callable[..., Image.Image], encode: Callable[..., bytes]
) -> None:
    """Digits of 28 pixels are compared byte by byte only."""
    assert check_bytes("x.png", encode(photo(1, (28, 28)), "PNG")).prints is None
    assert check_bytes("x.png", encode(photo(1, (32, 32)), "PNG")).prints is not None


@pytest.mark.parametrize("seed", range(6))
def test_copies_are_alike_and_strangers_are_not(
    seed: int, photo: Callable[..., Image.Image], encode: Callable[..., bytes]
) -> None:
    """Resized, re-encoded, brighter, mirrored, cropped a little: alike. Another photo: not."""
    image = photo(seed, (400, 300))
    width, height = image.size

    def prints(picture: Image.Image, form: str = "JPEG", **options: object) -> Prints:
        made = check_bytes("x.jpg", encode(picture, form, **options)).prints
        assert made is not None
        return made

    original = prints(image, quality=90)
    copies = {
        "half": prints(image.resize((width // 2, height // 2))),
        "third, PNG": prints(image.resize((width // 3, height // 3)), "PNG"),
        "quality": prints(image, quality=35),
        "grey": prints(image.convert("L")),
        "brighter": prints(image.point(lambda value: min(255, int(value * 1.15)))),
        "squashed": prints(image.resize((224, 224)), "WEBP"),
        "mirrored": prints(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        "cropped": prints(image.crop((width // 16, height // 16, width - width // 16, height - height // 16))),
    }
    strangers = [prints(photo(other, (400, 300))) for other in range(20, 40)]
    rows = [made.row() for made in (original, *copies.values(), *strangers)]
    (group,) = near_groups(np.frombuffer(b"".join(rows), ROW))
    assert {row for pair in group.pairs for row in pair[:2]} == set(range(1 + len(copies)))


def test_a_last_row_that_stands_for_less(photo: Callable[..., Image.Image], encode: Callable[..., bytes]) -> None:
    """A picture whose size is no multiple of a block is, upside down, the same picture."""
    for seed in range(8):
        drawn = Image.new("L", (404, 300))
        drawn.paste(photo(seed, (200, 150)).convert("L").point(lambda value: 255 * (value > 120)), (90, 60))
        prints = [
            check_bytes("x.jpg", encode(seen, quality=90)).prints
            for seen in (drawn, drawn.transpose(Image.Transpose.ROTATE_180))
        ]
        assert prints[0]
        assert prints[1]
        assert (prints[0].words[0] ^ prints[1].words[0] ^ MIRROR ^ FLIP).bit_count() <= 2
