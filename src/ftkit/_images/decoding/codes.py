"""The codes of a JPEG, read one by one: decoders take many for pixels that no encoder writes.

When bytes have changed, Huffman codes fall into step again after a few symbols, and a decoder complains of nothing. But
on the way, nearly always, some block gets more coefficients than the 64 it has, or a mean that no picture has. Decoders
do not look. This one does, and takes a second or two for a megabyte, so that only doubtful files are read by it.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count as count_from
from typing import NamedTuple, TypeAlias

import numpy as np

_DQT, _DHT, _DRI, _SOS = 0xDB, 0xC4, 0xDD, 0xDA
_SOF0, _SOF1, _SOF2 = 0xC0, 0xC1, 0xC2
_ZIGZAG = 64
_BEYOND = bytes(256)  # that the last block may be read on into: no block is longer
_MOST_MEAN = 2 * 1024  # of what 8 bits need: editors may have gone beyond it
_TAIL = 6000  # bytes: far more than codes need to fall into step
#: Zeros in a row: more than are codes of sound pixels, of progressive coding too, and what tells that zeros go on.
ZEROS, _MANY_ZEROS, _FEW_ZEROS = bytes(64), bytes(256), bytes(16)
_ALIKE = 8  # coefficients of a block, at most, that are the same number: of dots or lines that come again in each block
_COMPLAINTS = (IndexError, KeyError, ValueError, ZeroDivisionError)  # when what is told of codes doesn't fit together
_RESTART = re.compile(b"\xff+[\xd0-\xd7]")
# By the next 16 bits: how many a code takes, with what follows it; how many coefficients further it leads, and how many
# bits of a number follow. 0 for no code.
_Table: TypeAlias = list[tuple[int, int, int]]


class _Component(NamedTuple):
    blocks: int  # in a unit of the coding
    scale: int  # of its means
    means: _Table
    rest: _Table


class _Scan(NamedTuple):
    """What is coded in a scan.

    Attributes:
        units: How many there are.
        components: What each unit is made of.
        first: The first coefficient of a block, in the order of the coding.
        last: The last one.
        refines: Whether there is but one more bit of each.
        known: For each block, the bits of a number tell which coefficients are not 0; of progressive coding only.
    """

    units: int
    components: Sequence[_Component]
    first: int
    last: int
    refines: bool
    known: list[int]


class _Bits:
    """Coded bits, the bytes that are stuffed in taken out."""

    def __init__(self, part: bytes) -> None:
        self.plain = part.replace(b"\xff\0", b"\xff")
        self.end = 8 * len(self.plain)
        wide = np.frombuffer(self.plain + _BEYOND, np.uint8).astype(np.uint32)
        self.ahead = array("I", (wide[:-2] << 16 | wide[1:-1] << 8 | wide[2:]).tobytes())  # 24 bits from each byte on

    def blocks_before(self, at: int, size: int) -> int:
        """Return of how many blocks a band ends, which the last bits before a place tell (G.1.2.2)."""
        start = at - size
        return (1 << size) + ((self.ahead[start >> 3] >> 24 - size - (start & 7)) & (1 << size) - 1)

    def is_filled(self, at: int) -> bool:
        """Whether what follows up to the next byte are bits that fill it: all the same."""
        count = -at % 8
        return self.ahead[at >> 3] >> 16 & (1 << count) - 1 in (0, (1 << count) - 1)


class _MisfitError(ValueError):
    """The codes make what no encoder writes."""


def read_codes(
    segments: Iterable[tuple[int, bytes, bytes]],
    *,
    is_thorough: bool = True,
    is_text: bool = False,
    is_padding: bool = False,
) -> bool | None:
    """Read the Huffman codes of all scans, and what is left over behind the last block of the last one.

    Args:
        segments: Marker and body of each, and what follows up to the next one: coded pixels, or nothing.
        is_thorough: Whether to read all; else only the end, of which something is left over.
        is_text: Whether what is left over is text, and no pixels.
        is_padding: Whether it is equal bytes, a few: pixels only if they end a block, and even then by chance.

    Returns:
        None unless the codes make just as many blocks as the picture has, or when what is left over ends with the end
        of a block: these are pixels. Else whether what is left over goes on like pixels to its end, as foreign bytes do
        only by chance, when they are few.
    """
    try:
        return _read_codes(segments, is_thorough, is_text, is_padding)
    except _COMPLAINTS:
        return None


def have_hole(segments: Iterable[tuple[int, bytes, bytes]]) -> bool:
    """Whether more zeros stand in a row than any encoder writes, where no codes are left over.

    Args:
        segments: As for `read_codes`. Only the first codes of tables are looked at, which takes no time.
    """
    steps = dict[int, int]()
    try:
        for marker, body, coded in segments:
            if marker == _DHT:
                steps |= {which: _step(symbols[0]) for which, _, symbols in _codings(body) if symbols}
            elif marker == _SOS and ZEROS in coded:
                *used, first, last, bits = body[2::2][: body[0]] + body[1 + 2 * body[0] :]
                if _has_hole(coded, (steps[16 | which & 15] for which in used), first, last, bits > 15):
                    return True
    except _COMPLAINTS:
        pass
    return False


def _read_codes(
    segments: Iterable[tuple[int, bytes, bytes]], is_thorough: bool, is_text: bool, is_padding: bool
) -> bool | None:
    scales, tables, known = dict[int, int](), dict[int, _Table](), dict[int, list[int]]()
    interval, process, frame = 0, 0, b""
    left: tuple[_Scan, bytes] | None = None
    for marker, body, coded in segments:
        if marker == _DQT:
            scales |= _scales(body)
        elif marker == _DHT:
            tables |= _tables(body)
        elif marker == _DRI:
            interval = int.from_bytes(body[:2], "big")
        elif marker in (_SOF0, _SOF1, _SOF2):
            process, frame = marker, body
        elif marker == _SOS:
            scan = _scan(process == _SOF2, frame, body, scales, tables, known)
            parts = iter(_RESTART.split(coded) if interval else [coded])
            for start in range(0, scan.units, interval or scan.units):
                part = next(parts, b"")
                stop = min(scan.units, start + (interval or scan.units))
                left = (scan, part) if not is_thorough or _read(scan, part, range(start, stop), is_text) else None
    if left is None or (is_text and is_thorough):
        return False
    scan, part = left
    is_all = process != _SOF2 and len(scan.components) == frame[5]
    ends = is_all and not is_text and _ends_with_a_block(scan, part)  # of one component, blocks end in any byte
    if is_padding and is_thorough:
        return ends
    if ends:
        return None
    return _goes_on(scan, part) if is_thorough else True


def _scan(
    is_progressive: bool,
    frame: bytes,
    head: bytes,
    scales: dict[int, int],
    tables: dict[int, _Table],
    known: dict[int, list[int]],
) -> _Scan:
    """Put together what frame, head of the scan and tables tell (ITU-T T.81, B.2.2 and B.2.3)."""
    kinds = {frame[at]: (frame[at + 1] >> 4, frame[at + 1] & 15, frame[at + 2]) for at in range(6, 6 + 3 * frame[5], 3)}
    across, down = max(kind[0] for kind in kinds.values()), max(kind[1] for kind in kinds.values())
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    used = {head[at]: head[at + 1] for at in range(1, 1 + 2 * head[0], 2)}
    if len(used) == 1:  # a unit is a block, and there are none beyond the edges (A.2.2)
        (name,) = used
        width, height = -(-width * kinds[name][0] // across), -(-height * kinds[name][1] // down)
        across = down = 1
        kinds = {name: (1, 1, kinds[name][2])}
    units = -(-width // (8 * across)) * -(-height // (8 * down))
    first, last, bits = head[1 + 2 * head[0] :] if is_progressive else (0, _ZIGZAG - 1, 0)
    components = [
        _Component(
            kinds[name][0] * kinds[name][1],
            scales[kinds[name][2]] << (bits & 15),
            tables.get(which >> 4, []),
            tables.get(16 | which & 15, []),
        )
        for name, which in used.items()
    ]
    if not (first <= last < _ZIGZAG and components and all(component.blocks for component in components)):
        raise _MisfitError
    of_blocks = known.setdefault(min(used), [0] * units) if first else []
    return _Scan(units, components, first, last, bits > 15, of_blocks)


def _scales(body: bytes) -> dict[int, int]:
    """Return by what the means are scaled, by the number of each table."""
    scales, at = {}, 0
    while at < len(body):
        deep = body[at] >> 4
        scales[body[at] & 15] = int.from_bytes(body[at + 1 : at + 2 + deep], "big")
        at += 1 + _ZIGZAG * (1 + deep)
    if at != len(body):
        raise ValueError
    return scales


def _tables(body: bytes) -> dict[int, _Table]:
    tables = {}
    for which, counts, symbols in _codings(body):
        table: _Table = []
        lengths = (length for length, count in enumerate(counts, 1) for _ in range(count))
        for length, symbol in zip(lengths, symbols, strict=True):
            step = _step(symbol) if which > 15 else 0
            size = symbol & 15 if step or which < 16 else symbol >> 4
            table += [(length + size, step, size)] * (1 << 16 - length)
        if len(table) > 1 << 16:
            raise ValueError
        tables[which] = table
    return tables


def _codings(body: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield the number of each table, how many codes it has of each length, and what they stand for (B.2.4.2)."""
    at = 0
    while at < len(body):
        counts, symbols = body[at + 1 : at + 17], at + 17
        stop = symbols + sum(counts)
        yield body[at], counts, body[symbols:stop]
        at = stop


def _step(symbol: int) -> int:
    """Return how many coefficients further a code leads; 0 if it ends the block, or so many as a number tells."""
    run, size = symbol >> 4, symbol & 15
    return run + 1 if size or run == 15 else 0


def _read(scan: _Scan, part: bytes, units: range, is_text: bool) -> bool:
    """Read these units, which a part begins with; return whether something is left over."""
    bits = _Bits(part)
    units_read = _reader(scan)(scan, bits, units.start, True)
    at, number = next((read for read in units_read if read[1] >= units.stop), (0, 0))
    if number != units.stop or at > bits.end or not bits.is_filled(at):
        raise _MisfitError
    end = -(-at // 8)
    codes, left = bits.plain[:end], bits.plain[end:]
    if _has_hole(codes, (part.rest[0][1] for part in scan.components), scan.first, scan.last, scan.refines):
        raise _MisfitError
    # Zeros that make plain blocks make more of them than those whose place they took: these are left over.
    is_cut = codes.endswith(_FEW_ZEROS) and left.startswith(_FEW_ZEROS)
    if (is_cut or (_MANY_ZEROS in codes and len(left) > len(bits.plain) // 4)) and not is_text and left.strip(left[:1]):
        raise _MisfitError
    return bool(left)


def _has_hole(codes: bytes, steps: Iterable[int], first: int, last: int, refines: bool) -> bool:
    """Whether more zeros than any encoder writes are among codes, by how far zeros lead in a block of each component.

    By tables that were made for a plain picture, or one that gets brighter steadily, zeros are blocks of it, of which
    only the means differ. In progressive coding, means may be plain by themselves, plain blocks take no bits of the
    rest, and of bits for others, codes stand among 1000; where few coefficients are coded, those of a pattern may be.
    """
    if (_MANY_ZEROS if first else ZEROS) not in codes or not last:
        return False
    return refines or any(step and (last - first) // step >= _ALIKE for step in steps)


def _goes_on(scan: _Scan, part: bytes) -> bool:
    """Whether all of a part makes blocks, of which a decoder has some left over."""
    if scan.refines:  # what its codes mean depends on the blocks, and there are none
        return False
    bits = _Bits(part)
    try:
        return any(at > bits.end for at, _ in _reader(scan)(scan._replace(known=[]), bits, 0, True))
    except (IndexError, ValueError):
        return False


def _ends_with_a_block(scan: _Scan, part: bytes) -> bool:
    """Whether the last byte is the end of a block, and filled.

    When bits have changed, a decoder loses its place, takes too many blocks for too few bytes, falls into step again
    and has the last blocks left over. So the last bytes, read by themselves, tell: pixels end with a block, foreign
    bytes in the midst of one.
    """
    tail = part[-_TAIL:]
    bits = _Bits(tail[tail[:1] == b"\0" :])  # what is stuffed in behind a byte that was cut off
    done = 0
    try:
        for at, _ in _reader(scan)(scan._replace(known=[]), bits, 0, False):
            if at > bits.end:
                break
            done = at
    except IndexError:  # no code
        return False
    return bits.end - done < 8 and bits.is_filled(done)


_Reader: TypeAlias = Callable[[_Scan, _Bits, int, bool], Iterator[tuple[int, int]]]


def _reader(scan: _Scan) -> _Reader:
    """Return what yields where each unit ends, and how many there are by then, for ever; if strict, until a misfit."""
    if scan.first:
        return _refine if scan.refines else _read_band
    return _refine_means if scan.refines else _read_units


def _refine_means(scan: _Scan, _bits: _Bits, number: int, _is_strict: bool) -> Iterator[tuple[int, int]]:
    """Read one more bit of each mean."""
    blocks = sum(component.blocks for component in scan.components)
    return zip(count_from(blocks, blocks), count_from(number + 1), strict=True)


def _read_units(scan: _Scan, bits: _Bits, number: int, is_strict: bool) -> Iterator[tuple[int, int]]:
    """Read blocks of all coefficients, or of means alone."""
    ahead, at, beyond = bits.ahead, 0, scan.last + 1
    levels = [0] * len(scan.components)
    blocks = [(which, part) for which, part in enumerate(scan.components) for _ in range(part.blocks)]
    for done in count_from(number + 1):
        for which, (_, scale, means, rest) in blocks:
            taken, _, size = means[ahead[at >> 3] >> 8 - (at & 7) & 0xFFFF]
            at += taken
            if size:
                start = at - size
                value = (ahead[start >> 3] >> 24 - size - (start & 7)) & (1 << size) - 1
                levels[which] += value if value >> size - 1 else value - (1 << size) + 1
                if is_strict and abs(levels[which]) * scale > _MOST_MEAN + scale:
                    raise _MisfitError
            place = 1
            while place < beyond:
                taken, step, _ = rest[ahead[at >> 3] >> 8 - (at & 7) & 0xFFFF]
                at += taken
                if not step:
                    break
                place += step
            if is_strict and place > beyond > 1 and at <= bits.end:
                raise _MisfitError
        yield at, done


def _read_band(scan: _Scan, bits: _Bits, number: int, is_strict: bool) -> Iterator[tuple[int, int]]:
    """Read some coefficients of progressive coding for the first time (G.1.2.2)."""
    ahead, at, beyond = bits.ahead, 0, scan.last + 1
    ((_, _, _, rest),) = scan.components
    while True:
        place, found, run = scan.first, 0, 1
        while place < beyond:
            taken, step, size = rest[ahead[at >> 3] >> 8 - (at & 7) & 0xFFFF]
            at += taken
            if not step:
                run = bits.blocks_before(at, size)
                break
            place += step
            if size:
                found |= 1 << place - 1
        if is_strict and place > beyond and at <= bits.end:
            raise _MisfitError
        if number < len(scan.known):
            scan.known[number] |= found
        number += run
        yield at, number


def _refine(scan: _Scan, bits: _Bits, number: int, _is_strict: bool) -> Iterator[tuple[int, int]]:
    """Read one more bit of some coefficients (G.1.2.3)."""
    ahead, at, last = bits.ahead, 0, scan.last
    ((_, _, _, rest),) = scan.components
    band = (2 << last) - (1 << scan.first)
    run = 0
    for block in range(number, len(scan.known)):
        known, place, found = scan.known[block] & band, scan.first, 0
        while not run and place <= last:
            taken, step, size = rest[ahead[at >> 3] >> 8 - (at & 7) & 0xFFFF]
            at += taken
            if not step:
                run = bits.blocks_before(at, size)
                break
            while step:  # zeros, of which the last one becomes a number; on the way, others get their bit
                if place > last:
                    raise _MisfitError
                if known >> place & 1:
                    at += 1
                else:
                    step -= 1
                place += 1
            if size:
                found |= 1 << place - 1
        if run:
            at += (known >> place).bit_count()
            run -= 1
        scan.known[block] |= found
        yield at, block + 1 + (run if block + 1 == len(scan.known) else 0)
