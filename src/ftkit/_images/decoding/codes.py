"""The codes of a baseline JPEG, read one by one: decoders take many for pixels that no encoder writes.

When bytes have changed, Huffman codes fall into step again after a few symbols, and a decoder complains of nothing. But
on the way, nearly always, some block gets more coefficients than the 64 it has, or a mean that no picture has. Decoders
do not look. This one does, and takes a second for a megabyte, so that only doubtful files are read by it.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

_DQT, _DHT, _DRI, _SOF0, _SOF1, _SOS = 0xDB, 0xC4, 0xDD, 0xC0, 0xC1, 0xDA
_ZIGZAG = 64
_ENDLESS = 1 << 62
_BEYOND = bytes(256)  # that the last block may be read on into: no block is longer
_MOST_MEAN = 2 * 1024  # of what 8 bits need: editors may have gone beyond it
_RESTART = re.compile(b"\xff+[\xd0-\xd7]")
_OTHER = re.compile(b"\xff+[\x01-\xcf\xd8-\xfe]")
# By the next 16 bits: how many a code takes, with what follows it; how many coefficients further it leads, and how many
# bits of a number follow. 0 for no code.
_Table: TypeAlias = list[tuple[int, int, int]]


class _Component(NamedTuple):
    blocks: int  # in a unit of the coding
    scale: int  # of its means
    means: _Table
    rest: _Table


def read_codes(segments: Iterable[tuple[int, bytes]], coded: bytes) -> bool | None:
    """Read the codes of a file in one scan of Huffman codes, and what is left over behind its last block.

    Args:
        segments: Marker and body of those before the pixels, the head of the scan being the last.
        coded: What follows it.

    Returns:
        None unless the codes make just as many blocks as the picture has; else whether what is left over goes on like
        that to its end, as pixels do, but foreign bytes only by chance, when they are few.
    """
    try:
        return _read_codes(segments, coded)
    except (IndexError, KeyError, ValueError, ZeroDivisionError):  # what is told of the codes does not fit together
        return None


def _read_codes(segments: Iterable[tuple[int, bytes]], coded: bytes) -> bool | None:
    scales, tables = dict[int, int](), dict[int, _Table]()
    interval = 0
    frame = head = b""
    for marker, body in segments:
        if marker == _DQT:
            scales |= _scales(body)
        elif marker == _DHT:
            tables |= _tables(body)
        elif marker == _DRI:
            interval = int.from_bytes(body[:2], "big")
        elif marker in (_SOF0, _SOF1):
            frame = body
        elif marker == _SOS:
            head = body
    kinds = {frame[at]: (frame[at + 1] >> 4, frame[at + 1] & 15, frame[at + 2]) for at in range(6, 6 + 3 * frame[5], 3)}
    used = {head[at]: head[at + 1] for at in range(1, 1 + 2 * head[0], 2)}
    across, down = max(kind[0] for kind in kinds.values()), max(kind[1] for kind in kinds.values())
    if len(kinds) == 1:
        across = down = 1
        kinds = {name: (1, 1, kind[2]) for name, kind in kinds.items()}
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    units = -(-width // (8 * across)) * -(-height // (8 * down))
    components = [
        _Component(kinds[name][0] * kinds[name][1], scales[kinds[name][2]], tables[which >> 4], tables[16 | which & 15])
        for name, which in used.items()
    ]
    if other := _OTHER.search(coded):
        coded = coded[: other.start()]
    parts = _RESTART.split(coded) if interval else [coded]
    counts = [min(interval, units - at) for at in range(0, units, interval)] if interval else [units]
    if len(parts) < len(counts) or not all(map(_fits, parts, counts, [components] * len(counts))):
        return None
    try:
        return _fits(parts[len(counts) - 1], _ENDLESS, components)
    except IndexError:  # no code
        return False


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
    tables, at = {}, 0
    while at < len(body):
        counts, symbols = body[at + 1 : at + 17], at + 17
        table: _Table = []
        for length, count in enumerate(counts, 1):
            for symbol in body[symbols : symbols + count]:
                run, size = symbol >> 4, symbol & 15
                step = 0 if body[at] < 16 or (size == 0 and run < 15) else run + 1
                table += [(length + size, step, size)] * (1 << 16 - length)
            symbols += count
        if symbols > len(body) or len(table) > 1 << 16:
            raise ValueError
        tables[body[at]] = table
        at = symbols
    return tables


def _fits(part: bytes, units: int, components: Sequence[_Component]) -> bool:
    """Whether what begins with no block before it makes so many units, or all of it does."""
    plain = np.frombuffer(part.replace(b"\xff\0", b"\xff") + _BEYOND, np.uint8).astype(np.uint32)
    ahead = array("I", (plain[:-2] << 16 | plain[1:-1] << 8 | plain[2:]).tobytes())  # 24 bits from each byte on
    end = 8 * (len(plain) - len(_BEYOND))
    at = 0
    levels = [0] * len(components)
    blocks = [(which, part) for which, part in enumerate(components) for _ in range(part.blocks)]
    for _ in range(units):
        for which, (_, scale, means, rest) in blocks:
            taken, _, size = means[ahead[at >> 3] >> 8 - (at & 7) & 0xFFFF]
            at += taken
            if size:
                start = at - size
                value = (ahead[start >> 3] >> 24 - size - (start & 7)) & (1 << size) - 1
                levels[which] += value if value >> size - 1 else value - (1 << size) + 1
                if abs(levels[which]) * scale > _MOST_MEAN + scale:
                    return False
            place = 1
            while place < _ZIGZAG:
                taken, step, _ = rest[ahead[at >> 3] >> 8 - (at & 7) & 0xFFFF]
                at += taken
                if not step:
                    break
                place += step
            if at > end:
                return units == _ENDLESS
            if place > _ZIGZAG:
                return False
    return True
