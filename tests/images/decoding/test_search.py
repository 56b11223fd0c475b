"""The search for near copies: it misses nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from ftkit._images.decoding import search
from ftkit._images.decoding.checks import check_bytes
from ftkit._images.decoding.fingerprint import fingerprints
from ftkit._images.decoding.search import Unions, near_groups, near_pairs


def brute(left: np.ndarray, right: np.ndarray, distance: int) -> set[tuple[int, int]]:
    """Return all near pairs by comparing each with each."""
    return {
        (i, j)
        for i, one in enumerate(left.tolist())
        for j, other in enumerate(right.tolist())
        if (one ^ other).bit_count() <= distance
    }


def found(pairs: object) -> set[tuple[int, int]]:
    """Return what the search yields as a set of pairs."""
    return {pair for ones, others in pairs for pair in zip(ones.tolist(), others.tolist(), strict=True)}


def clustered(count: int, seed: int) -> np.ndarray:
    """Return hashes around a few centres, at distances on both sides of the limit."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**64, 5, dtype=np.uint64)
    hashes = centres[rng.integers(0, 5, count)]
    for _ in range(7):
        hashes ^= np.uint64(1) << rng.integers(0, 64, count).astype(np.uint64)
    return hashes


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 10**6), st.sampled_from([0, 1, 3, 7, 8, 11]))
def test_the_search_is_exact(count: int, others: int, seed: int, distance: int) -> None:
    """It finds the pairs that comparing each with each finds, within one set and between two."""
    left, right = clustered(count, seed), clustered(others, seed)[::-1].copy()
    for fewest in (search._FEWEST, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(search, "_FEWEST", fewest)  # all pairs; in bands, as big sets are searched
            assert found(near_pairs(left, right, distance)) == brute(left, right, distance)
            alone = found(near_pairs(left, distance=distance))
        assert {(min(pair), max(pair)) for pair in alone} == {(i, j) for i, j in brute(left, left, distance) if i < j}


@pytest.mark.parametrize("limits", [{}, {"_FEWEST": 0, "_FEW": 0}, {"_FEWEST": 0, "_AT_ONCE": 7}])
def test_big_sets_and_small_memory_make_no_difference(monkeypatch: pytest.MonkeyPatch, limits: dict[str, int]) -> None:
    """Several pieces of all pairs, the wider bands of big sets, and candidates taken in pieces find the same pairs."""
    hashes = clustered(400, 3)
    expected = {(i, j) for i, j in brute(hashes, hashes, search._NEAR) if i < j}
    for name, value in limits.items():
        monkeypatch.setattr(search, name, value)
    assert {(min(pair), max(pair)) for pair in found(near_pairs(hashes))} == expected
    assert expected


def test_many_equal_hashes_stay_cheap() -> None:
    """Groups join pair by pair without a look at those that are joined already."""
    looks = 0
    unions = Unions(400)
    for ones, others in near_pairs(np.zeros(400, np.uint64)):
        for one, other in unions.apart(ones, others):
            unions.join(one, other, 1.0)
            looks += 1
    assert [len(pairs) for pairs in unions.groups()] == [399]
    assert looks == 399


def table(pictures: list[np.ndarray]) -> np.ndarray:
    """Return the table of pictures that are given as rows of grey."""
    prints = fingerprints([(picture[None], picture.shape) for picture in pictures])
    return np.frombuffer(b"".join(one.row() for one in prints), search.ROW)


def cropped(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """Return a picture without these shares of it."""
    width, height = image.size
    return image.crop((int(width * left), int(height * top), int(width * (1 - right)), int(height * (1 - bottom))))


TURNS = [*Image.Transpose]
CROPS = [(0.1, 0, 0, 0), (0, 0.1, 0, 0), (0, 0, 0.1, 0), (0, 0, 0, 0.1), (0.05,) * 4, (0.02,) * 4]


@pytest.mark.parametrize("change", [*TURNS, *CROPS], ids=str)
def test_turned_and_cropped_copies_meet(photo: Callable[..., Image.Image], change: Any) -> None:
    """Of 22 pictures, 20 and more find their copy, and none another."""
    photos = [photo(seed, (400, 300)).convert("L") for seed in range(22)]
    copies = [cropped(image, *change) if isinstance(change, tuple) else image.transpose(change) for image in photos]
    grey = [np.asarray(image.resize((image.width // 8, image.height // 8), 4)) for image in photos + copies]
    pairs = [pair for group in near_groups(table(grey)) for pair in group.pairs]
    assert len(pairs) >= 20
    assert all(other == one + 22 and 0.9 <= similarity <= 1 for one, other, similarity in pairs)


def test_pages_and_digits_are_no_copies_of_each_other() -> None:
    """Pages have the layout in common, digits all but a few strokes; the same again is found among them, too."""
    rng = np.random.default_rng(0)
    pages = []
    for _ in range(60):
        page = np.full((100, 75), 255, np.uint8)
        for line in range(8, 92, 3):
            end = 68 if rng.random() > 0.1 else rng.integers(20, 68)
            page[line, 7:end] = rng.integers(90, 200, end - 7)
        pages.append(page)
    assert near_groups(table(pages)) == []
    shapes = rng.random((6, 8, 8))
    digits = [np.kron((shapes[at % 6] + 0.45 * rng.random((8, 8))) * 170, np.ones((4, 4))) for at in range(120)]
    assert near_groups(table([digit.astype(np.uint8) for digit in digits])) == []
    again = near_groups(table([*pages, pages[7] // 2 + 90]))
    assert [(one, other) for group in again for one, other, _ in group.pairs] == [(7, 60)]


@pytest.fixture(scope="module")
def masks() -> list[Image.Image]:
    """Return masks with one random ellipse each."""
    rng = np.random.default_rng(1)
    made = []
    for _ in range(20):
        mask = Image.new("L", (256, 256))
        x, y, width, height = (*rng.integers(20, 150, 2), *rng.integers(30, 90, 2))
        ImageDraw.Draw(mask).ellipse((x, y, x + width, y + height), fill=255)
        made.append(mask)
    return made


def test_masks_are_no_copies_of_each_other(masks: list[Image.Image]) -> None:
    """An ellipse scaled and shifted is any other ellipse."""
    assert near_groups(table([np.asarray(mask) for mask in masks])) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda mask: mask.resize((128, 100)),
        lambda mask: mask.resize((600, 600), Image.Resampling.BICUBIC),
        lambda mask: mask.resize((100, 100), Image.Resampling.NEAREST),
        lambda mask: mask.quantize(4).convert("L").point(lambda level: level * 3 // 4),
        lambda mask: mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    ],
    ids=["smaller", "larger", "nearest", "dimmer", "mirrored"],
)
def test_copies_of_masks_meet(masks: list[Image.Image], change: Any) -> None:
    """Among other masks, too."""
    pictures = [np.asarray(mask) for mask in masks]
    for number in (0, 7, 13):
        (((pair,), _),) = near_groups(table([*pictures, np.asarray(change(masks[number]))]))
        assert pair[:2] == (number, 20)


def prints(image: Image.Image, encode: Callable[..., bytes], **options: object) -> bytes:
    """Return the row of a picture that was saved as a file."""
    made = check_bytes("x", encode(image, **options)).prints
    assert made is not None
    return made.row()


def meet(*rows: bytes) -> bool:
    """Whether pictures are called copies of each other."""
    return bool(near_groups(np.frombuffer(b"".join(rows), search.ROW)))


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_what_differs_in_color_only_is_no_copy(
    photo: Callable[..., Image.Image], encode: Callable[..., bytes], form: str
) -> None:
    """A light that is red, green or amber, as bright each, in one scene; and turned, or cropped a little."""
    rows = []
    for color in [(220, 30, 30), (30, 120, 30), (150, 85, 10)]:
        scene = photo(3, (240, 200))
        drawn = ImageDraw.Draw(scene)
        drawn.rectangle((80, 60, 160, 140), fill=(20, 20, 20))
        drawn.ellipse((90, 70, 150, 130), fill=color)
        rows.append(
            [
                prints(seen, encode, form=form)
                for seen in (scene, scene.transpose(Image.Transpose.ROTATE_90), cropped(scene, 0.1, 0, 0, 0))
            ]
        )
    for number, mine in enumerate(rows):
        assert all(meet(mine[0], copy) for copy in mine[1:])
        for theirs in rows[:number] + rows[number + 1 :]:
            assert not any(meet(mine[0], copy) for copy in theirs)


def bill(seed: int, picture: Image.Image) -> Image.Image:
    """Return a page of ten items, each with its amount."""
    rng, page = np.random.default_rng(seed), Image.new("RGB", (420, 594), "white")
    drawn = ImageDraw.Draw(page)
    drawn.text((30, 30), "INVOICE", "black", font_size=22)
    for item in range(10):
        drawn.text((30, 100 + item * 36), f"item {item}", "black", font_size=13)
        drawn.text((300, 100 + item * 36), f"{rng.integers(100, 999999) / 100:.2f}", "black", font_size=13)
    return page


def dial(seed: int, picture: Image.Image) -> Image.Image:
    """Return the picture with a dial in it, whose hand may point anywhere."""
    seen, angle = picture.copy(), seed * 0.37
    drawn = ImageDraw.Draw(seen)
    drawn.ellipse((90, 60, 270, 240), (240, 240, 235), (20, 20, 20), 6)
    drawn.line((180, 150, 180 + 70 * np.cos(angle), 150 + 70 * np.sin(angle)), (200, 0, 0), 5)
    return seen


def passer(seed: int, picture: Image.Image) -> Image.Image:
    """Return the picture with somebody in it, in the same clothes, but elsewhere."""
    seen, (x, y) = picture.copy(), np.random.default_rng(seed).integers(20, 220, 2).tolist()
    ImageDraw.Draw(seen).rectangle((x, y, x + 20, y + 50), (180, 60, 40))
    return seen


@pytest.mark.parametrize("part", [4096, 16])  # of the pairs, before those of a template are known as such
@pytest.mark.parametrize("fill_in", [bill, dial, passer])
def test_what_fills_in_one_template_is_no_copy(
    photo: Callable[..., Image.Image],
    encode: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
    fill_in: Callable[..., Image.Image],
    part: int,
) -> None:
    """What differs in one place is another picture, and the same again is found among such pictures."""
    monkeypatch.setattr(search, "_PART", part)
    made = [fill_in(seed, photo(3, (360, 300))) for seed in range(16)]
    rows = [prints(picture, encode, quality=90 - number) for number, picture in enumerate(made)]
    again = [prints(made[number], encode, quality=quality) for number, quality in ((5, 50), (9, 30))]
    groups = near_groups(np.frombuffer(b"".join(rows + again), search.ROW))
    assert [(one, other) for group in groups for one, other, _ in group.pairs] == [(5, 16), (9, 17)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "options"),
    [
        *((lambda image: image, {"quality": quality}) for quality in (30, 60, 95)),
        (lambda image: image.resize((120, 90)), {"quality": 30}),
        (lambda image: image, {"form": "GIF"}),
        (lambda image: image.convert("L"), {}),
        (lambda image: image.convert("L").convert("RGB"), {}),
        (lambda image: image.convert("CMYK"), {}),
        *((lambda image, crop=crop: cropped(image, *crop), {"quality": 60}) for crop in CROPS),
        *((lambda image, turn=turn: image.transpose(turn), {"quality": 60}) for turn in TURNS),
    ],
)
def test_copies_of_colored_pictures_meet(
    photo: Callable[..., Image.Image], encode: Callable[..., bytes], change: Any, options: dict[str, Any]
) -> None:
    """Of 22 pictures, 20 and more find their copy: stained, re-encoded, turned, cropped, in grey or in ink."""
    found = 0
    for seed in range(22):
        picture, drawn = photo(seed, (320, 240)), np.random.default_rng(seed)
        for _ in range(4):
            x, y = drawn.integers(0, 250, 2).tolist()
            place = (x, y * 2 // 3, x + 60, y * 2 // 3 + 50)
            ImageDraw.Draw(picture).ellipse(place, fill=tuple(drawn.integers(0, 256, 3).tolist()))
        found += meet(prints(picture, encode, quality=90), prints(change(picture), encode, **options))
    assert found >= 20
