"""The search for pictures that are nearly the same, among their fingerprints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ftkit._images.decoding.fingerprint import MIRROR, MIRROR_FINE
from ftkit._images.verdict import Prints

if TYPE_CHECKING:
    import numpy.typing as npt


_Hashes: TypeAlias = "npt.NDArray[np.uint64]"
_Indices: TypeAlias = "npt.NDArray[np.intp]"
_Pairs: TypeAlias = "Iterator[tuple[_Indices, _Indices]]"

_NEAR = 8  # of the 64 coarse bits: an eighth
# Of the 128 fine bits. Those of two different pictures differ in 64, give or take 6 (half the root of 128): by chance,
# one pair in 4,000 comes as near as this.
_NEAR_FINE = 44


def alike(one: Prints, other: Prints) -> bool:
    """Whether two pictures are nearly the same, possibly mirrored, or one of them cropped a little.

    Example:
        >>> from ftkit._images.decoding.fingerprint import MIRROR
        >>> from ftkit._images.decoding.search import alike
        >>> from ftkit._images.verdict import Prints
        >>> prints = Prints(whole=0x5555, inner=0x0FF0_0000_0000_FFFF, whole_fine=3, inner_fine=5)
        >>> alike(prints, prints._replace(whole=0x5554)), alike(prints, prints._replace(whole=0xFFFF_0000_FFFF))
        (True, False)
        >>> mirrored = 0x5555 ^ MIRROR  # the coarse bits are those of a mirror image, the fine ones are not
        >>> alike(prints, prints._replace(whole=mirrored, inner=mirrored))
        False
    """
    meetings = (
        (one.whole, one.whole_fine, other.whole, other.whole_fine),
        (one.inner, one.inner_fine, other.whole, other.whole_fine),
        (one.whole, one.whole_fine, other.inner, other.inner_fine),
    )
    return any(
        (coarse ^ other_coarse ^ mirror).bit_count() <= _NEAR
        and (fine ^ other_fine ^ mirror_fine).bit_count() <= _NEAR_FINE
        for mirror, mirror_fine in ((0, 0), (MIRROR, MIRROR_FINE))
        for coarse, fine, other_coarse, other_fine in meetings
    )


# Where one way to search overtakes the other; "benchmarks/images.py index" times the search, to set them anew.
_FEWEST = 1 << (23 if hasattr(np, "bitwise_count") else 18)  # pairs that cost less to look at than to sort into bands
_FEW = 500_000  # hashes from which on three wide bands beat four
_AT_ONCE = 1 << 21  # candidates in memory at a time


def near_pairs(hashes: _Hashes, others: _Hashes | None = None, distance: int = _NEAR) -> _Pairs:
    """Yield all the pairs ``(i, j)`` with ``hashes[i]`` and ``others[j]`` at most ``distance`` bits apart.

    Without ``others``, the pairs among ``hashes`` with i != j, each in one order. A pair may come
    more than once. Exact, by the pigeonhole principle: when the bits are cut into bands, a near pair
    has a band in which it differs by no more than the band's radius, if the radii plus one sum to
    ``distance`` plus one; so only buckets that near in one band are looked at (M. Norouzi et al.,
    "Fast Exact Search in Hamming Space with Multi-Index Hashing", 2014). Above half a million hashes
    three wider bands keep the buckets small, so that time grows nearly with the number.

    Example:
        >>> import numpy as np
        >>> from ftkit._images.decoding.search import near_pairs
        >>> hashes = np.array([0, 2**63, 7, 2**40 - 1], np.uint64)
        >>> sorted({(min(i, j), max(i, j)) for a, b in near_pairs(hashes) for i, j in zip(a.tolist(), b.tolist())})
        [(0, 1), (0, 2), (1, 2)]
    """
    right = hashes if others is None else others
    alone = others is None
    if len(hashes) * len(right) <= _FEWEST:
        yield from _all_pairs(hashes, right, alone, distance)
        return
    widths = (16, 16, 16, 16) if max(len(hashes), len(right)) < _FEW else (22, 21, 21)
    each, more = divmod(distance + 1, len(widths))
    low = 0
    for band, width in enumerate(widths):
        yield from _band_pairs(hashes, right, alone, (low, width), each - 1 + (band < more), distance)
        low += width


def _all_pairs(left: _Hashes, right: _Hashes, alone: bool, distance: int) -> _Pairs:
    step = max(1, (1 << 17) // max(1, len(right)))  # what stays in the cache
    for start in range(0, len(left), step):
        near = np.flatnonzero(_count_bits(left[start : start + step, None] ^ right) <= distance)
        ones, others = np.divmod(near, len(right))
        ones += start
        kept = ones < others if alone else slice(None)
        yield ones[kept], others[kept]


def _band_pairs(
    left: _Hashes, right: _Hashes, alone: bool, band: tuple[int, int], radius: int, distance: int
) -> _Pairs:
    """Yield the near pairs whose bits within the band (the lowest, how many) differ in at most ``radius``."""
    keys, order, sorted_left = _sort_by_band(left, *band)
    right_keys, right_order, sorted_right = (keys, order, sorted_left) if alone else _sort_by_band(right, *band)
    starts = np.searchsorted(right_keys, np.arange((1 << band[1]) + 1)).astype(np.int32)
    for mask in _masks(band[1], radius):
        # The candidates of the hash at each place ``mine`` stand one after the other, from ``first`` to ``end``.
        mine = np.arange(len(keys))
        if alone and mask:  # take each pair from the side whose highest differing bit is 0
            mine = np.flatnonzero((keys & (1 << (mask.bit_length() - 1))) == 0)
        wanted = keys[mine] ^ mask
        first, end = starts[wanted], starts[wanted + 1]
        if alone and not mask:  # in a bucket of its own, each pairs with those behind it
            first = np.arange(1, len(keys) + 1, dtype=np.int32)
        for a, b in _spread(mine, first, end - first):
            near = np.flatnonzero(_count_bits(sorted_left[a] ^ sorted_right[b]) <= distance)
            if len(near):
                yield order[a[near]], right_order[b[near]]


def _masks(width: int, radius: int) -> Iterator[int]:
    """Yield the numbers of ``width`` bits with at most ``radius`` of them set; none for a radius below 0."""
    for size in range(radius + 1):
        yield from (sum(1 << bit for bit in bits) for bits in combinations(range(width), size))


def _spread(mine: _Indices, first: npt.NDArray[np.int32], number: npt.NDArray[np.int32]) -> _Pairs:
    """Yield each of ``mine`` with ``number`` places from ``first`` on, as two arrays of `_AT_ONCE` or a few more."""
    some = np.flatnonzero(number)
    mine, first, number = mine[some], first[some], number[some]
    ends = np.cumsum(number, dtype=np.int64)
    start = before = 0
    while start < len(mine):
        stop = max(start + 1, int(np.searchsorted(ends, before + _AT_ONCE, "right")))
        here = number[start:stop]
        ones = np.repeat(mine[start:stop], here)
        yield ones, np.arange(len(ones)) + np.repeat(first[start:stop] - (ends[start:stop] - here - before), here)
        start, before = stop, int(ends[stop - 1])


def _sort_by_band(hashes: _Hashes, low: int, width: int) -> tuple[npt.NDArray[np.int32], _Indices, _Hashes]:
    keys = (hashes >> np.uint64(low) & np.uint64((1 << width) - 1)).astype(np.int32)
    order = np.argsort(keys, kind="stable")
    return keys[order], order, hashes[order]


def _count_bits(values: _Hashes) -> npt.NDArray[np.uint8]:
    counts: npt.NDArray[np.uint8]
    if hasattr(np, "bitwise_count"):  # numpy 2
        counts = np.bitwise_count(values)
    else:
        counts = np.unpackbits(values.reshape(-1, 1).view(np.uint8), axis=1).sum(axis=1, dtype=np.uint8)
        counts = counts.reshape(values.shape)
    return counts


class Unions:
    """Groups that grow by joining, where both members agree (union by the smaller number, paths halved)."""

    def __init__(self, number: int, agree: Callable[[int, int], bool]) -> None:
        self._parents: _Indices = np.arange(number)
        self._agree = agree
        self._refused: set[tuple[int, int]] = set()

    def _root(self, member: int) -> int:
        parents = self._parents
        while parents[member] != member:
            parents[member] = parents[parents[member]]
            member = int(parents[member])
        return member

    def join(self, ones: _Indices, others: _Indices) -> None:
        """Join each pair that agrees. Most pairs of a big group are joined already: they cost one comparison."""
        apart = np.flatnonzero(self._parents[ones] != self._parents[others])
        for one, other in zip(ones[apart].tolist(), others[apart].tolist(), strict=True):
            root, other_root = self._root(one), self._root(other)
            pair = (min(one, other), max(one, other))
            if root == other_root or pair in self._refused:
                continue
            if self._agree(*pair):
                self._parents[max(root, other_root)] = min(root, other_root)
            else:
                self._refused.add(pair)

    def several(self) -> list[list[int]]:
        """Return the groups of two members and more."""
        groups: dict[int, list[int]] = {}
        for member in range(len(self._parents)):
            if (root := self._root(member)) != member:
                groups.setdefault(root, [root]).append(member)
        return list(groups.values())


def near_groups(table: _Hashes) -> list[list[int]]:
    """Return the groups of pictures that are nearly the same, as numbers of rows.

    Args:
        table: A row for each picture: its `Prints.words`.
    """
    whole, inner = np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 1])
    mirrored = whole ^ np.uint64(MIRROR)

    def prints(row: int) -> Prints:
        return Prints.from_words(table[row].tolist())

    unions = Unions(len(table), lambda one, other: alike(prints(one), prints(other)))
    for left, right in ((whole, None), (whole, mirrored), (inner, whole), (inner, mirrored)):
        for ones, others in near_pairs(left, right):
            unions.join(ones, others)
    return unions.several()
