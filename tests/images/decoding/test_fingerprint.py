"""Fingerprints of pictures: what they survive."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from ftkit._images.decoding.checks import check_bytes
from ftkit._images.decoding.fingerprint import MIRROR, fingerprints
from ftkit._images.decoding.search import alike
from ftkit._images.verdict import Prints


def test_mirror_is_one_xor(photo: Callable[..., Image.Image]) -> None:
    """The fingerprint of a mirror image is known without looking at it."""
    grey = np.asarray(photo(1, (256, 192)).convert("L"))
    prints = fingerprints(grey)
    mirrored = fingerprints(grey[:, ::-1])
    assert (prints.whole ^ mirrored.whole ^ MIRROR).bit_count() <= 1
    assert alike(prints, mirrored)


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
    assert [name for name, copy in copies.items() if not alike(original, copy)] == []
    strangers = [prints(photo(other, (400, 300))) for other in range(20, 40)]
    assert not any(alike(original, stranger) for stranger in strangers)
