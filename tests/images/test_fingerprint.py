"""Fingerprints of pictures: what they survive, and that the search among them misses nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ftkit._images import fingerprint
from ftkit._images.checks import check_bytes
from ftkit._images.fingerprint import MIRROR, Prints, Unions, alike, fingerprints, near_pairs


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
    for fewest in (fingerprint._FEWEST, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fingerprint, "_FEWEST", fewest)  # all pairs; in bands, as big sets are searched
            assert found(near_pairs(left, right, distance)) == brute(left, right, distance)
            alone = found(near_pairs(left, distance=distance))
        assert {(min(pair), max(pair)) for pair in alone} == {(i, j) for i, j in brute(left, left, distance) if i < j}


@pytest.mark.parametrize("limits", [{}, {"_FEWEST": 0, "_FEW": 0}, {"_FEWEST": 0, "_AT_ONCE": 7}])
def test_big_sets_and_small_memory_make_no_difference(monkeypatch: pytest.MonkeyPatch, limits: dict[str, int]) -> None:
    """Several pieces of all pairs, the wider bands of big sets, and candidates taken in pieces find the same pairs."""
    hashes = clustered(400, 3)
    expected = {(i, j) for i, j in brute(hashes, hashes, 8) if i < j}
    for name, value in limits.items():
        monkeypatch.setattr(fingerprint, name, value)
    assert {(min(pair), max(pair)) for pair in found(near_pairs(hashes))} == expected
    assert expected


def test_many_equal_hashes_stay_cheap() -> None:
    """Groups join pair by pair without a question for those that are joined already."""
    asked = []
    unions = Unions(400, lambda one, other: not asked.append((one, other)))
    for ones, others in near_pairs(np.zeros(400, np.uint64)):
        unions.join(ones, others)
    assert [len(group) for group in unions.several()] == [400]
    assert len(asked) == 399


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
