"""The search for near copies: it misses nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit._images.decoding import search
from ftkit._images.decoding.fingerprint import MIRROR, MIRROR_FINE
from ftkit._images.decoding.search import Unions, near_groups, near_pairs
from ftkit._images.verdict import Prints


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
    expected = {(i, j) for i, j in brute(hashes, hashes, 8) if i < j}
    for name, value in limits.items():
        monkeypatch.setattr(search, name, value)
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


def test_groups_of_near_copies_among_rows_of_words() -> None:
    """The whole of one picture may meet the inner part or the mirror image of another."""
    prints = Prints(0x0F0F_1234_5678_9ABC, 0xFFFF_0000_FFFF_0000, 3 << 90, 5 << 70)
    others = (
        Prints(prints.inner, 0x5555_AAAA_5555_AAAA, prints.inner_fine, 7 << 100),
        Prints(prints.whole ^ MIRROR, 0x3333_CCCC_3333_CCCC, prints.whole_fine ^ MIRROR_FINE, 9 << 60),
        Prints(0x1111_2222_4444_8888, 0x7777_0123_4567_89AB, (1 << 128) - 1, 0),
    )
    table = np.array([row.words() for row in (prints, *others)], np.uint64)
    assert near_groups(table) == [[0, 1, 2]]
