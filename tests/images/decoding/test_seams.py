"""The seam that a shift in brightness leaves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from ftkit._images.decoding.seams import confirm_seam

Encode = Callable[..., bytes]
Found = Callable[..., list[str]]


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_a_shift_that_no_decoder_complains_of(
    found: Found, subsampling: str, photo: Callable[..., Image.Image], encode: Encode
) -> None:
    """Changed bits can leave sound codes for blocks that are all too bright from one on; edges of a scene are not."""
    unit = 8 if subsampling == "4:4:4" else 16

    def shifted(seed: int, top: int, left: int, turn: int) -> bytes:
        pixels = np.asarray(photo(seed, (512, 384)), np.int16) // 2 + 40
        pixels[top:, left:] += 45
        pixels[top + turn :, :left] += 45
        return encode(Image.fromarray(pixels.astype(np.uint8)), quality=92, subsampling=subsampling)

    seen = [found(shifted(seed, 10 * unit, 7 * unit, unit)) for seed in range(10)]
    assert seen.count(["damaged"]) >= 8
    for seed in range(10):
        assert found(shifted(seed, 10 * unit, 7 * unit, 0)) == []  # a horizon
        assert found(shifted(seed, 10 * unit + 3, 7 * unit, unit)) == []  # off the grid
        assert found(shifted(seed, 10 * unit, 7 * unit, 3 * unit)) == []  # a building


def test_a_frame_on_a_line_of_blocks_is_no_seam() -> None:
    """An edge that ends at a column of blocks is a seam only if it goes on above the row from there."""
    turning = np.full((160, 160), 200, np.uint8)
    turning[112:, :96] = 100
    ending = turning.copy()
    turning[96:, 96:] = 100
    assert confirm_seam(turning, 6, 6, 16, 16)
    assert not confirm_seam(ending, 6, 6, 16, 16)


def test_rows_of_tiles_are_no_seam() -> None:
    """Tiles of many shades step under their rows, at one height here and another there."""
    shades = [20, 150, 10, 145, 140, 30, 150]
    sheet = np.full((192, 7 * 32), 160, np.uint8)
    for number, shade in enumerate(shades):
        sheet[:96, number * 32 : number * 32 + 32] = shade
    sheet[96:112, :32] = 30  # the last row, begun
    assert not confirm_seam(sheet, 6, 2, 16, 16)


def test_small_pictures(found: Found, photo: Callable[..., Image.Image], encode: Encode) -> None:
    """One whose fingerprints need more than an eighth of its size is looked at as closely."""
    seen = []
    for seed in range(10):
        pixels = np.asarray(photo(seed, (320, 240)), np.int16) // 2 + 40
        pixels[96:, 112:] += 45
        pixels[112:, :112] += 45
        seen.append(found(encode(Image.fromarray(pixels.astype(np.uint8)), quality=92)))
    assert seen.count(["damaged"]) >= 8
