"""The seam that a shift in brightness or color leaves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from ftkit._images.decoding.seams import find_seam

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
    rng = np.random.default_rng(0)
    turning = rng.integers(195, 205, (160, 160), np.uint8)
    turning[112:, :96] -= 100
    ending = turning.copy()
    turning[96:, 96:] -= 100
    assert find_seam(turning, 16, 16, is_color=False) == (6, 6)
    assert find_seam(ending, 16, 16, is_color=False) is None


@pytest.mark.parametrize("fill", [0, 60, 255])
@pytest.mark.parametrize("seed", [3, 16, 24])
def test_what_is_missing_of_a_render_is_no_seam(
    found: Found, encode: Encode, photo: Callable[..., Image.Image], seed: int, fill: int
) -> None:
    """It ends within a row of blocks, and from there on it is of one color, where no picture has shifted."""
    pixels = np.array(photo(seed, (320, 320)))
    pixels[160:] = fill
    pixels[144:160, 16 * (2 + seed % 8) :] = fill
    assert found(encode(Image.fromarray(pixels), quality=75)) == []


def test_rows_of_tiles_are_no_seam() -> None:
    """Tiles of many shades step under their rows, at one height here and another there."""
    shades = [20, 150, 10, 145, 140, 30, 150]
    sheet = np.full((192, 7 * 32), 160, np.uint8)
    for number, shade in enumerate(shades):
        sheet[:96, number * 32 : number * 32 + 32] = shade
    sheet[96:112, :32] = 30  # the last row, begun
    sheet += np.random.default_rng(0).integers(0, 5, sheet.shape, np.uint8)
    assert find_seam(sheet, 16, 16, is_color=False) is None


def test_a_drawing_that_ends_within_a_row_is_no_seam(found: Found, encode: Encode) -> None:
    """What is filled row by row, as a bar that shows progress or the text of a terminal, is plain: it was drawn so."""
    sheet = np.full((240, 320, 3), (20, 30, 90), np.uint8)
    sheet[:112] = sheet[112:128, :160] = (200, 210, 120)
    for subsampling in ("4:4:4", "4:2:0"):
        assert "damaged" not in found(encode(Image.fromarray(sheet), subsampling=subsampling))


@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize("options", [{"subsampling": "4:4:4"}, {"subsampling": "4:2:0"}, {"progressive": True}])
def test_a_shift_in_color(
    found: Found, which: int, options: dict[str, object], photo: Callable[..., Image.Image], encode: Encode
) -> None:
    """The same of a color difference, by less than would do in brightness."""
    unit = 8 if options.get("subsampling") == "4:4:4" else 16

    def shifted(seed: int, turn: int) -> bytes:
        planes = [np.asarray(plane, np.int16) // 2 + 64 for plane in photo(seed, (512, 384)).convert("YCbCr").split()]
        planes[which][10 * unit :, 7 * unit :] += 20
        planes[which][10 * unit + turn :, : 7 * unit] += 20
        whole = Image.merge("YCbCr", [Image.fromarray(plane.astype(np.uint8)) for plane in planes])
        return encode(whole, quality=92, **options)

    assert [found(shifted(seed, unit)) for seed in range(10)].count(["damaged"]) >= 8
    assert all(found(shifted(seed, turn)) == [] for seed in range(10) for turn in (0, 3 * unit))


def test_colors_that_were_strengthened(found: Found, photo: Callable[..., Image.Image], encode: Encode) -> None:
    """Frames of video may have colors that no screen shows."""
    luma, *colours = (np.asarray(plane, np.float32) for plane in photo(1, (400, 300)).convert("YCbCr").split())
    for gain in (1.2, 3, 6):
        planes = [luma, *(np.clip(128 + (plane - 128) * gain, 0, 255) for plane in colours)]
        frame = Image.merge("YCbCr", [Image.fromarray(plane.astype(np.uint8)) for plane in planes])
        assert found(encode(frame, quality=85)) == []


def test_small_pictures(found: Found, photo: Callable[..., Image.Image], encode: Encode) -> None:
    """One whose fingerprints need more than an eighth of its size is looked at as closely."""
    seen = []
    for seed in range(10):
        pixels = np.asarray(photo(seed, (320, 240)), np.int16) // 2 + 40
        pixels[96:, 112:] += 45
        pixels[112:, :112] += 45
        seen.append(found(encode(Image.fromarray(pixels.astype(np.uint8)), quality=92)))
    assert seen.count(["damaged"]) >= 8
