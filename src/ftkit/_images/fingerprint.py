"""Fingerprints that survive resizing, re-encoding, mirroring and a slight crop, and the search among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["MIRROR", "Prints", "Unions", "alike", "fingerprints", "near_groups", "near_pairs"]

Hashes: TypeAlias = "npt.NDArray[np.uint64]"
Indices: TypeAlias = "npt.NDArray[np.intp]"

Matrix: TypeAlias = "npt.NDArray[np.float32]"

_COARSE, _FINE = 64, 128
_REACH = 18  # frequencies 0 to 17 hold the lowest 192
# The lowest spatial frequencies but the mean, in the order of their distance from it.
_ORDER = sorted(
    ((u, v) for u in range(_REACH) for v in range(_REACH) if u + v), key=lambda c: (c[0] ** 2 + c[1] ** 2, c)
)[: _COARSE + _FINE]
# Where they stand in the spectra of the whole (the upper left of a matrix of 36 x 36) and of the inner part.
_WHOLE = np.array([u * 2 * _REACH + v for u, v in _ORDER])
_PLACES = np.stack((_WHOLE, _WHOLE + 2 * _REACH * _REACH + _REACH))
_MIRRORED = sum(1 << bit for bit, (_, v) in enumerate(_ORDER) if v % 2)

#: XOR with it turns a coarse fingerprint into that of the mirror image.
MIRROR = _MIRRORED & (1 << _COARSE) - 1
_NEAR = 8  # of the 64 coarse bits: an eighth
_NEAR_FINE = 44  # of the 128 fine bits; those of two different pictures differ in 64, give or take 6


class Prints(NamedTuple):
    """The fingerprints of a picture.

    Attributes:
        whole: 64 bits for the coarse structure of the picture.
        inner: The same without a sixteenth at each side, to meet the ``whole`` of a cropped copy.
        whole_fine: 128 bits for the finer structure, to confirm what the coarse bits suggest.
        inner_fine: The same without a sixteenth at each side.
    """

    whole: int
    inner: int
    whole_fine: int
    inner_fine: int


def fingerprints(pixels: npt.NDArray[np.uint8]) -> Prints:
    """Return the fingerprints of a grey image, given as its rows.

    A bit is the sign of one of the 192 lowest frequencies of the picture's cosine transform (as in the
    pHash of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, with
    zero for the median). Mirroring changes the sign of the odd horizontal frequencies and nothing else.
    """
    height, width = pixels.shape
    spectra = _waves(height) @ pixels.astype(np.float32) @ _waves(width).T
    packed = np.packbits(spectra.take(_PLACES) > 0, bitorder="little").tobytes()
    first, second = packed[:24], packed[24:]
    cut = _COARSE // 8
    return Prints(*(int.from_bytes(bits, "little") for bits in (first[:cut], second[:cut], first[cut:], second[cut:])))


@lru_cache(64)  # a data set has few sizes
def _waves(length: int) -> Matrix:
    """Return the cosines over a row of pixels: first over all of it, then without a sixteenth at each side.

    Each value is the integral over a pixel, so that pictures of different sizes compare.
    """
    edges = np.arange(length + 1)
    orders = np.arange(_REACH)[:, None]
    rows = []
    for margin in (0, length / 16):
        # The integral of cos(pi k x) over x in [0, 1] is sin(pi k x) / (pi k), and x itself for k = 0.
        x = np.clip((edges - margin) / (length - 2 * margin), 0, 1)
        integral = np.where(orders, np.sin(np.pi * orders * x) / np.maximum(np.pi * orders, 1), x)
        rows.append(np.diff(integral, axis=1))
    return np.concatenate(rows).astype(np.float32)


def alike(one: Prints, other: Prints) -> bool:
    """Whether two pictures are nearly the same, possibly mirrored, or one of them cropped a little.

    Example:
        >>> from ftkit._images.fingerprint import MIRROR, Prints, alike
        >>> prints = Prints(whole=0x5555, inner=0x0FF0_0000_0000_FFFF, whole_fine=3, inner_fine=5)
        >>> alike(prints, prints._replace(whole=0x5554)), alike(prints, prints._replace(whole=0xFFFF_0000_FFFF))
        (True, False)
        >>> mirrored = 0x5555 ^ MIRROR  # the coarse bits are those of a mirror image, the fine ones are not
        >>> alike(prints, prints._replace(whole=mirrored, inner=mirrored))
        False
    """
    pairs = (
        (one.whole, other.whole, one.whole_fine, other.whole_fine),
        (one.inner, other.whole, one.inner_fine, other.whole_fine),
        (one.whole, other.inner, one.whole_fine, other.inner_fine),
    )
    return any(
        (coarse ^ coarse_other ^ (mirror and MIRROR)).bit_count() <= _NEAR
        and (fine ^ fine_other ^ (mirror and _MIRRORED >> _COARSE)).bit_count() <= _NEAR_FINE
        for mirror in (0, 1)
        for coarse, coarse_other, fine, fine_other in pairs
    )


# ------------------------------------------------------------------------------------------------ search

_FEWEST = 1 << (23 if hasattr(np, "bitwise_count") else 18)  # pairs that cost less to look at than to sort into bands
_FEW = 500_000
_AT_ONCE = 1 << 21  # candidates in memory at a time


def near_pairs(
    hashes: Hashes, others: Hashes | None = None, distance: int = _NEAR
) -> Iterator[tuple[Indices, Indices]]:
    """Yield all the pairs ``(i, j)`` with ``hashes[i]`` and ``others[j]`` at most ``distance`` bits apart.

    Without ``others``, the pairs among ``hashes`` with i != j, each in one order. A pair may come
    more than once. Exact, by the pigeonhole principle: when the bits are cut into bands, a near pair
    has a band in which it differs by no more than the band's radius, if the radii plus one sum to
    ``distance`` plus one; so only buckets that near in one band are looked at (M. Norouzi et al.,
    "Fast Exact Search in Hamming Space with Multi-Index Hashing", 2014). Above half a million hashes
    three wider bands keep the buckets small, so that time grows nearly with the number.

    Example:
        >>> import numpy as np
        >>> from ftkit._images.fingerprint import near_pairs
        >>> hashes = np.array([0, 2**63, 7, 2**40 - 1], np.uint64)
        >>> sorted({(min(i, j), max(i, j)) for a, b in near_pairs(hashes) for i, j in zip(a.tolist(), b.tolist())})
        [(0, 1), (0, 2), (1, 2)]
    """
    alone = others is None
    right = hashes if others is None else others
    if len(hashes) * len(right) <= _FEWEST:
        yield from _all_pairs(hashes, right, alone, distance)
        return
    widths = (16, 16, 16, 16) if max(len(hashes), len(right)) < _FEW else (22, 21, 21)
    radii = [(distance + 1) // len(widths) - 1 + (band < (distance + 1) % len(widths)) for band in range(len(widths))]
    low = 0
    for width, radius in zip(widths, radii, strict=True):
        if radius >= 0:
            yield from _band_pairs(hashes, right, alone, low, width, radius, distance)
        low += width


def _all_pairs(left: Hashes, right: Hashes, alone: bool, distance: int) -> Iterator[tuple[Indices, Indices]]:
    step = max(1, (1 << 17) // max(1, len(right)))  # what stays in the cache
    for start in range(0, len(left), step):
        near = np.flatnonzero(_count_bits(left[start : start + step, None] ^ right) <= distance)
        ones, others = np.divmod(near, len(right))
        ones += start
        kept = ones < others if alone else slice(None)
        yield ones[kept], others[kept]


def _band_pairs(
    left: Hashes, right: Hashes, alone: bool, low: int, width: int, radius: int, distance: int
) -> Iterator[tuple[Indices, Indices]]:
    """Yield the near pairs whose bits ``low`` to ``low + width`` differ in at most ``radius``."""
    keys, order, sorted_left = _sort_by_band(left, low, width)
    right_keys, right_order, sorted_right = (keys, order, sorted_left) if alone else _sort_by_band(right, low, width)
    starts = np.searchsorted(right_keys, np.arange((1 << width) + 1)).astype(np.int32)
    for mask in (
        sum(1 << bit for bit in bits) for size in range(radius + 1) for bits in combinations(range(width), size)
    ):
        if alone and mask:  # take each pair from the side whose highest differing bit is 0
            mine = np.flatnonzero((keys & (1 << (mask.bit_length() - 1))) == 0)
            wanted = keys[mine] ^ mask
        else:
            mine = np.arange(len(keys))
            wanted = keys ^ mask
        first = starts[wanted]
        number = starts[wanted + 1] - first
        if alone and not mask:  # in a bucket of its own, each pairs with those behind it
            first = np.arange(1, len(keys) + 1, dtype=np.int32)
            number = starts[wanted + 1] - first
        some = np.flatnonzero(number)
        mine, first, number = mine[some], first[some], number[some]
        ends = np.cumsum(number, dtype=np.int64)
        cut = 0
        while cut < len(mine):
            before = ends[cut - 1] if cut else 0
            stop = max(cut + 1, int(np.searchsorted(ends, before + _AT_ONCE, "right")))
            here = number[cut:stop]
            a = np.repeat(mine[cut:stop], here)
            b = np.arange(len(a)) + np.repeat(first[cut:stop] - (ends[cut:stop] - here - before), here)
            near = np.flatnonzero(_count_bits(sorted_left[a] ^ sorted_right[b]) <= distance)
            if len(near):
                yield order[a[near]], right_order[b[near]]
            cut = stop


def _sort_by_band(hashes: Hashes, low: int, width: int) -> tuple[npt.NDArray[np.int32], Indices, Hashes]:
    keys = (hashes >> np.uint64(low) & np.uint64((1 << width) - 1)).astype(np.int32)
    order = np.argsort(keys, kind="stable")
    return keys[order], order, hashes[order]


def _count_bits(values: Hashes) -> npt.NDArray[np.uint8]:
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
        self._parents: Indices = np.arange(number)
        self._agree = agree
        self._refused: set[tuple[int, int]] = set()

    def _root(self, member: int) -> int:
        parents = self._parents
        while parents[member] != member:
            parents[member] = parents[parents[member]]
            member = int(parents[member])
        return member

    def join(self, ones: Indices, others: Indices) -> None:
        """Join each pair that agrees. Most pairs of a big group are joined already: they cost one comparison."""
        apart = np.flatnonzero(self._parents[ones] != self._parents[others])
        for one, other in zip(ones[apart].tolist(), others[apart].tolist(), strict=True):
            root, other_root = self._root(one), self._root(other)
            if root == other_root:
                continue
            pair = (min(one, other), max(one, other))
            if pair in self._refused:
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


def near_groups(table: Hashes) -> list[list[int]]:
    """Return the groups of pictures that are nearly the same, as numbers of rows.

    Args:
        table: A row for each picture: whole, inner, and the halves of whole_fine and inner_fine, the lower first.
    """
    whole, inner = np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 1])
    mirrored = whole ^ np.uint64(MIRROR)

    def prints(row: int) -> Prints:
        first, second, *halves = table[row].tolist()
        return Prints(first, second, halves[0] | halves[1] << 64, halves[2] | halves[3] << 64)

    unions = Unions(len(table), lambda one, other: alike(prints(one), prints(other)))
    for left, right in ((whole, None), (whole, mirrored), (inner, whole), (inner, mirrored)):
        for ones, others in near_pairs(left, right):
            unions.join(ones, others)
    return unions.several()
