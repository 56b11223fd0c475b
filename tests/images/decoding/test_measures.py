"""What a picture looks like, in figures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ftkit._images.decoding.measures import measure


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 2), (3, 1000), (4000, 1), (63, 127), (64, 128), (501, 377)])
def test_any_shape(shape: tuple[int, int]) -> None:
    """Mean and quantiles are those of the pixels, of a line and of a single pixel, too."""
    grey = np.tile(np.arange(shape[1]) % 2 * 40 + 100, (shape[0], 1)).astype(np.uint8)
    (seen,) = measure([(grey, 7)])
    assert seen.bytes == 7
    assert seen.brightness == pytest.approx(float(grey.mean()), abs=1)
    assert grey.min() <= seen.dark <= seen.light <= grey.max()


def test_figures_of_known_pictures() -> None:
    """Half black and half white: one bit, the greatest contrast; two levels above all of it are no outliers."""
    grey = np.zeros((60, 60), np.uint8)
    grey[:, 30:] = 255
    (seen,) = measure([(grey, 1)])
    assert (seen.brightness, seen.contrast, seen.information) == (127.5, 127.5, 1.0)
    assert (seen.dark, seen.light) == (0, 255)
    assert seen.sharpness == pytest.approx((2 * 255**2 / 58 / 2 * 60 / 64) ** 0.5, abs=0.1)


def test_sharpness_does_not_depend_on_the_resolution(photo: Callable[..., Image.Image]) -> None:
    """The same photo at any size comes to about the same; blurred, it comes to much less at every size."""
    picture = photo(3, (1200, 900)).convert("L")
    sizes = [(side, side * 3 // 4) for side in (48, 64, 95, 96, 127, 128, 300)]

    def sharpness(picture: Image.Image) -> list[float]:
        sized = [np.asarray(picture.resize(size, Image.Resampling.BOX)) for size in sizes]
        return [seen.sharpness for seen in measure([(pixels, 1) for pixels in sized])]

    sharp, blurred = sharpness(picture), sharpness(picture.filter(ImageFilter.GaussianBlur(24)))
    assert max(sharp) < 1.3 * min(sharp)
    assert max(blurred) < min(sharp) / 3
