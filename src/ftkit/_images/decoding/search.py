"""The search for pictures that are nearly the same, among their fingerprints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from ftkit._images.decoding.alignment import are_two_colors, are_two_shapes, compare, peak, softened, stand_out
from ftkit._images.decoding.fingerprint import FLIP, MIRROR, STARTS, TRANSPOSED
from ftkit._images.decoding.picture import Pixels
from ftkit._images.verdict import COLOR_SIDE, SIDE

if TYPE_CHECKING:
    import numpy.typing as npt


_Hashes: TypeAlias = "npt.NDArray[np.uint64]"
_Indices: TypeAlias = "npt.NDArray[np.intp]"
_Pairs: TypeAlias = "Iterator[tuple[_Indices, _Indices]]"

_NEAR = 10  # of the 64 bits; by chance, one pair in 100 million comes as near as this
# Similarities from which on two pictures are copies: where others look alike and are no copies, and elsewhere. Of 60
# photos, copies of the same cut had 0.97 and more, cropped ones 0.9; of 300 pages of text, strangers had up to 0.89, of
# 1,797 digits, each with neighbours in plenty, up to 0.97.
_SAME_AMONG_MANY, _SAME = 0.98, 0.9
# The same for how much they differ in one place. Of 82 photos in 38 changes, copies had up to 3.4 in 95 of 100 cases
# and, but for clipped ones, up to 7.3; of pairs that fill in one template, 95 of 100 had more than 8.
_PEAK_AMONG_MANY, _PEAK = 3, 7.5
_MANY = 0.1  # of all pictures with such look-alikes, from which on the set is of one kind
_ENOUGH, _NEAREST = 4, 2  # look-alikes of a picture, after which only those are looked at that differ in so few bits
# Parts of a picture each way; levels of a color difference in one of them, which tell two pictures apart even where
# they are not yet laid over each other: in copies without 2% at each side, an edge of 200 levels makes 16.
_COARSE, _OTHER_COLOR = 4, 48
_PART = 4096  # pairs that are looked at before others are chosen by what was found
_OF_A_SHAPE, _SAME_COLOR = 32, 12  # in another color than so many, a picture is met by those alone that are less apart

#: A row of the table of pictures: `Prints.row`.
ROW = np.dtype([("words", "<u8", 6), ("small", "u1", (SIDE, SIDE)), ("colors", "u1", (2, COLOR_SIDE, COLOR_SIDE))])


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
    """Groups that grow by joining (union by the smaller number, paths halved)."""

    def __init__(self, number: int) -> None:
        self._parents: _Indices = np.arange(number)
        #: The pairs that joined two groups.
        self.pairs: list[tuple[int, int, float]] = []

    def root(self, member: int) -> int:
        """Return the number that a member's group goes by."""
        parents = self._parents
        while parents[member] != member:
            parents[member] = parents[parents[member]]
            member = int(parents[member])
        return member

    def apart(self, ones: _Indices, others: _Indices) -> Iterator[tuple[int, int]]:
        """Yield the pairs that are not joined. Most pairs of a big group are: they cost one comparison."""
        apart = np.flatnonzero(self._parents[ones] != self._parents[others])
        for one, other in zip(ones[apart].tolist(), others[apart].tolist(), strict=True):
            if self.root(one) != self.root(other):
                yield one, other

    def join(self, one: int, other: int, similarity: float) -> None:
        """Make one group of two, unless they are one."""
        root, other_root = sorted((self.root(one), self.root(other)))
        if root != other_root:
            self._parents[other_root] = root
            self.pairs.append((one, other, round(similarity, 3)))

    def groups(self) -> list[list[tuple[int, int, float]]]:
        """Return the pairs of each group."""
        groups: dict[int, list[tuple[int, int, float]]] = {}
        for pair in sorted(self.pairs):
            groups.setdefault(self.root(pair[0]), []).append(pair)
        return list(groups.values())


class NearGroup(NamedTuple):
    """Pictures that are nearly the same, or joined by such as are.

    Attributes:
        pairs: Those that join them: numbers of rows, and the similarity.
        is_of_many: Whether there are look-alikes that are no copies, so that copies must be more than just alike.
    """

    pairs: list[tuple[int, int, float]]
    is_of_many: bool


def near_groups(table: npt.NDArray[np.void]) -> list[NearGroup]:
    """Return the groups of pictures that are nearly the same.

    What looks alike by its words is compared by its pixels, for what is fine in them and for what differs in a few
    places, and then by its colors. Where a picture has look-alikes that are no copies, as have pages of text and
    digits, its copies must be more than just alike.

    Args:
        table: A row for each picture, of the type `ROW`.
    """
    unions = Unions(len(table))
    words, colors = table["words"], table["colors"]
    side = COLOR_SIDE // _COARSE
    coarse = colors.reshape(-1, 2, _COARSE, side, _COARSE, side).mean((3, 5), dtype=np.float32)
    coarse[(colors == 128).all((1, 2, 3))] = np.nan  # which is not unlike any color
    soft: tuple[Pixels, Pixels] | None = None
    seen: dict[tuple[int, int], float] = {}
    refused: Counter[int] = Counter()
    unlike: set[tuple[int, int]] = set()
    tinted = np.zeros(len(table), np.intp)  # how often each was in another color, or shape, than its look-alike
    filled = np.zeros(len(table), np.intp)  # how often each differed from its look-alike in one place
    for here, met, turn, start in _meetings(words):
        turned = here if met is None else met
        for ones, others in _in_parts(near_pairs(here, met)):
            # Much else of one shape is in other colors, such as signs and goods, or fills in one template, such as
            # bills: this spares it the comparison. Whether one is a part of another isn't asked of the latter.
            is_filled = np.minimum(filled[ones], filled[others]) >= _ENOUGH
            keep = ~is_filled
            if start is STARTS[0]:
                differ = abs(_turned(coarse[others], turn) - coarse[ones]).max((1, 2, 3), initial=0)
                is_of_many = np.minimum(tinted[ones], tinted[others]) >= _OF_A_SHAPE
                keep = ~(differ > np.where(is_of_many, _SAME_COLOR, _OTHER_COLOR))  # not a number: no color
                if (asked := np.flatnonzero(keep & is_filled)).size:
                    levels, slack = soft = soft or softened(table["small"])
                    mine, theirs = _turned(levels[others[asked]], turn), levels[ones[asked]]
                    keep[asked] = ~stand_out(mine, theirs, slack[ones[asked]], _PEAK_AMONG_MANY)
            ones, others = ones[keep], others[keep]  # noqa: PLW2901
            for large, small in unions.apart(ones, others):
                pair = min(small, large), max(small, large)
                is_known = max(refused[small], refused[large]) >= _ENOUGH
                if is_known and (int(here[large]) ^ int(turned[small])).bit_count() > _NEAREST:
                    continue
                look = _look(table[small], table[large], turn, start)
                if look is None:
                    tinted[[small, large]] += 1
                    continue
                similarity, highest = look
                if highest > _PEAK:
                    filled[[small, large]] += 1
                    unlike.add(pair)
                    continue
                if _are_copies(*look, is_of_many=True):
                    unions.join(*pair, similarity)
                elif similarity < _SAME:
                    refused.update(pair)
                seen[pair] = max(seen.get(pair, 0), similarity)
    common = {row for pair, similarity in seen.items() if similarity < _SAME for row in pair}
    if len(common) >= _MANY * len(table):
        common = {*range(len(table))}
    common.update(row for pair in unlike - seen.keys() for row in pair)
    for pair, similarity in sorted(seen.items(), key=lambda item: -item[1]):
        if similarity >= _SAME and common.isdisjoint(pair):
            unions.join(*pair, similarity)
    return [NearGroup(pairs, not all(common.isdisjoint(pair[:2]) for pair in pairs)) for pairs in unions.groups()]


def copies_of(
    table: npt.NDArray[np.void], one: int, others: Sequence[int], is_of_many: bool
) -> list[tuple[int, float]]:
    """Return which of some pictures are copies of one, each with its similarity.

    Args:
        table: As for `near_groups`.
        one: A row of it.
        others: Other rows.
        is_of_many: As of the group that all of them are in.
    """
    rows = table[[one, *others]]
    found: dict[int, float] = {}
    for here, met, turn, start in _meetings(rows["words"]):
        turned = here if met is None else met
        pairs = [(0, at) for at in np.flatnonzero(_count_bits(here[0] ^ turned) <= _NEAR).tolist()]
        if met is not None:
            pairs += [(at, 0) for at in np.flatnonzero(_count_bits(here ^ turned[0]) <= _NEAR).tolist()]
        for large, small in pairs:
            other = max(large, small)
            if other and found.get(other, 0) < _SAME_AMONG_MANY:
                look = _look(rows[small], rows[large], turn, start)
                if look and _are_copies(*look, is_of_many=is_of_many):
                    found[other] = max(found.get(other, 0), look[0])
    return [(others[at - 1], round(similarity, 3)) for at, similarity in found.items()]


def _look(small: np.void, large: np.void, turn: int, start: tuple[float, ...]) -> tuple[float, float] | None:
    """Return how similar two rows of the table are, and, if they are, how much they differ in one place at most.

    None for what differs in the shape or the color of some part.
    """
    mine, theirs = _turned(small["small"], turn), large["small"]
    if are_two_shapes(mine, theirs, start):
        return None
    similarity, place = compare(mine, theirs, start)
    highest = peak(mine, theirs, place) if similarity >= _SAME else 0.0
    is_tinted = (
        similarity >= _SAME
        and highest <= _PEAK
        and are_two_colors(_turned(small["colors"], turn), large["colors"], place)
    )
    return None if is_tinted else (similarity, highest)


def _are_copies(similarity: float, highest: float, *, is_of_many: bool) -> bool:
    if is_of_many:
        return similarity >= _SAME_AMONG_MANY and highest < _PEAK_AMONG_MANY
    return similarity >= _SAME and highest <= _PEAK


def _in_parts(pairs: _Pairs) -> _Pairs:
    for ones, others in pairs:
        for at in range(0, len(ones), _PART):
            yield ones[at : at + _PART], others[at : at + _PART]


def _meetings(words: _Hashes) -> Iterator[tuple[_Hashes, _Hashes | None, int, tuple[float, ...]]]:
    """Yield which words may meet which: of all pictures or their parts, and of all pictures turned, with turn and part.

    A turn is a sum: 1 for mirrored, 2 for upside down, 4 for transposed before that.
    """
    whole, *parts = (np.ascontiguousarray(column) for column in words.T)
    bits = np.unpackbits(whole.view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")[:, TRANSPOSED]
    transposed = np.packbits(bits, axis=1, bitorder="little").reshape(-1).view(np.uint64)
    mirror, flip = np.uint64(MIRROR), np.uint64(FLIP)
    yield whole, None, 0, STARTS[0]
    yield whole, whole ^ mirror, 1, STARTS[0]
    yield whole, whole ^ flip, 2, STARTS[0]
    yield whole, whole ^ mirror ^ flip, 3, STARTS[0]
    yield whole, transposed, 4, STARTS[0]
    yield whole, transposed ^ mirror, 5, STARTS[0]  # to the right; who is turned to the left is the other one
    yield whole, transposed ^ mirror ^ flip, 7, STARTS[0]
    for part, start in zip(parts, STARTS[1:], strict=True):
        yield part, whole, 0, start
    yield parts[0], whole ^ mirror, 1, STARTS[1]


def _turned(pixels: Pixels, turn: int) -> Pixels:
    turned = pixels.swapaxes(-1, -2) if turn & 4 else pixels
    return turned[..., :: -1 if turn & 2 else 1, :: -1 if turn & 1 else 1]
