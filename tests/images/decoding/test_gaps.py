"""The grey of a decoder, and greys that only look like it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFile

from ftkit import scan_images

Encode = Callable[..., bytes]
Found = Callable[..., list[str]]
GREY = (128, 128, 128)


def padded(image: Image.Image, right: int, bottom: int, fill: tuple[int, int, int] = GREY) -> Image.Image:
    """Return a picture with a margin, which begins on a line between blocks."""
    whole = Image.new("RGB", (320 + right, 256 + bottom), fill)
    whole.paste(image.crop((0, 0, 320, 256)))
    return whole


def half(data: bytes, monkeypatch: pytest.MonkeyPatch) -> Image.Image:
    """Return what Pillow shows of a file that lacks its second half."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    image = Image.open(io.BytesIO(data[: int(len(data) * 0.55)])).convert("RGB")
    monkeypatch.undo()
    return image


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_a_photo_that_was_cut_off_and_saved_again(
    subsampling: str, photo: Callable[..., Image.Image], encode: Encode, found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is saved as; not found is one that ends with a row of blocks, which padding does, too."""
    seen = []
    for seed in range(6):
        grey = half(encode(photo(seed, (640, 480)), subsampling=subsampling, quality=88), monkeypatch)
        files = encode(grey, quality=60), encode(grey, quality=95), encode(grey, "PNG")
        seen += [found(data, "x.png" if data.startswith(b"\x89PNG") else "x.jpg") for data in files]
    assert seen.count(["half_grey"]) + seen.count([]) == len(seen)
    assert seen.count(["half_grey"]) >= 12


@pytest.mark.parametrize("quality", [5, 20, 90])
def test_grey_that_was_meant(quality: int, photo: Callable[..., Image.Image], encode: Encode, found: Found) -> None:
    """Padding, frames, cut-outs, captions, tiles and charts are none of a decoder's doing."""
    image = photo(1)
    caption = padded(image, 0, 96)
    ImageDraw.Draw(caption).text((8, 260), "a line of words on grey, and more", fill="black")
    cut_out = Image.new("RGB", (320, 256), GREY)
    cut_out.paste(image.crop((0, 0, 200, 160)), (60, 40))
    tiles = Image.new("RGB", (320, 256), GREY)
    rng = np.random.default_rng(0)
    for at in range(200):
        tile = Image.new("RGB", (16, 16), tuple(rng.integers(0, 256, 3).tolist()))
        tiles.paste(tile, (at % 20 * 16, at // 20 * 16))
    ground = image.copy()
    ground.paste(GREY, (0, 160, 320, 260))
    bars = Image.new("RGB", (320, 256), GREY)
    bars.paste(image.crop((0, 0, 96, 224)), (16, 0))
    meant = [padded(image, 0, 64, (level,) * 3) for level in (127, 128)]
    meant += [padded(image, 64, 0), padded(image, 64, 64), caption, cut_out, tiles, ground, bars]
    for picture in meant:
        assert "half_grey" not in found(encode(picture, quality=quality))


@pytest.mark.parametrize("degrees", [0.5, 1, 2])
def test_a_photo_on_grey_that_was_turned(
    degrees: float, photo: Callable[..., Image.Image], encode: Encode, found: Found
) -> None:
    """It ends in a slanted line, which crosses rows of blocks: that is no place where a decoder stopped."""
    for seed in range(3):
        grain = np.random.default_rng(seed).normal(0, 30, (224, 224, 1))
        whole = Image.new("RGB", (224, 284), GREY)
        whole.paste(Image.fromarray((np.asarray(photo(seed, (224, 224))) + grain).clip(0, 255).astype(np.uint8)))
        turned = whole.rotate(degrees, fillcolor=GREY)
        assert "half_grey" not in found(encode(turned, quality=95))
        assert "half_grey" not in found(encode(turned, "PNG"), "x.png")


@pytest.mark.parametrize("label", [127, 128])
def test_a_mask_with_a_label_that_is_grey(label: int, encode: Encode, found: Found) -> None:
    """Wherever that ends, a mask has fewer levels than a photo that was decoded."""
    rng = np.random.default_rng(0)
    down, right = np.mgrid[:240, :320]
    for corner in range(16, 320, 16):
        places, classes = rng.integers(0, (240, 320), (12, 2)), rng.integers(0, 21, 12, np.uint8)
        nearest = ((down[..., None] - places[:, 0]) ** 2 + (right[..., None] - places[:, 1]) ** 2).argmin(-1)
        labels = classes[nearest]
        labels[160:] = labels[144:, corner:] = label
        assert "half_grey" not in found(encode(Image.fromarray(labels), "PNG"), "mask.png")


def test_where_many_end_in_grey_it_is_odd_only(
    pets: Path, photo: Callable[..., Image.Image], encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is set aside; a third of the data set is how it was made."""
    for number in range(6):
        data = encode(half(encode(photo(40 + number), quality=88), monkeypatch), quality=95)
        (pets / f"train/cat/grey{number}.jpg").write_bytes(data)
        report = scan_images(pets, workers=1)
        kinds = {(finding.kind, finding.severity) for finding in report.findings}
        assert kinds == {("half_grey", "unusable" if number < 2 else "odd")}
        assert report.images == 10 + (0 if number < 2 else number + 1)
        if number == 2:
            break
