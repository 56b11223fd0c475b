"""Coded pixels whose last bytes a decoder can do without: changed bytes made it lose its place.

WebP, AVIF and GIF have no checksum, and their decoders take any bytes for pixels. But a changed byte changes how many
bytes the rest takes. When it takes more than there are, the decoder says so; when it takes fewer, nobody does. So the
last bytes are taken away: a sound file can't be decoded without them.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

# Bytes that may be left over. Of 1,300 sound WebP files, 120 AVIF, 72 GIF, none could do without more than 7 of lossy
# WebP (32 bits flush its coder), 4 of lossless (where one code may stand for all the rest), 2 of AVIF, and 2 of GIF.
# Of 2,900 more by cwebp, img2webp, gif2webp, avifenc, gifsicle, ImageMagick, ffmpeg and netpbm, none is called damaged.
_SPARE_LOSSY, _SPARE_LOSSLESS, _SPARE_AVIF, _SPARE_GIF = 16, 8, 8, 8


class _Coded(NamedTuple):
    """The coded pixels of a still image.

    Attributes:
        tail: How many bytes at their end are the same.
        size: How many bytes there are.
        spare: How many of them no encoder leaves over.
        shorten: Returns the file without so many of them.
    """

    tail: int
    size: int
    spare: int
    shorten: Callable[[int], bytes]


def has_leftover(form: str, data: bytes, loads: Callable[[bytes], bool], frame: int = 0) -> bool:
    """Whether the decoder of a file that loads can do without the last bytes of the pixels.

    Args:
        form: Pillow's name for its format.
        data: The file.
        loads: Whether Pillow loads the file that it is given, up to that frame.
        frame: Of an AVIF sequence, counted from 0; of other formats the first one is looked at.
    """
    find = {"WEBP": _in_webp, "GIF": _in_gif}.get(form)
    coded = _in_avif(data, frame) if form == "AVIF" else find(data) if find else None
    if coded is None or coded.size < 4 * coded.spare:
        return False
    # Somebody's padding, unless more of it than a sound file could do without is taken for pixels.
    if coded.tail >= coded.spare and loads(coded.shorten(max(coded.tail - coded.spare, coded.spare - 1))):
        return False
    # Twice, since a cut may chance to look like the end. Where what is cut is not what is shown, even next to nothing
    # would do.
    return all(loads(coded.shorten(count)) for count in (coded.spare, coded.spare - 1)) and not loads(
        coded.shorten(coded.size - 2)
    )


def _tail(content: bytes) -> int:
    return len(content) - len(content.rstrip(content[-1:]))


def is_lossless(webp: bytes) -> bool:
    """Whether the first picture of a WebP file is coded without loss."""
    lossy, lossless = (webp.find(name, 12) for name in (b"VP8 ", b"VP8L"))
    return lossless > 0 and not 0 < lossy < lossless


def stills(form: str, data: bytes) -> Iterator[bytes]:
    """Yield each frame of an animated WebP or GIF file as a file of its own, without its transparency."""
    find = {"WEBP": _stills_of_webp, "GIF": _stills_of_gif}.get(form)
    return find(data) if find else iter(())


def _stills_of_webp(webp: bytes) -> Iterator[bytes]:
    for name, start, stop in _chunks(webp, 12, len(webp)):
        if name == b"ANMF":
            for inner, at, end in _chunks(webp, start + 16, stop):  # behind its place and its time
                if inner in _CODED:
                    yield _as_webp(_chunk(inner, webp[at:end]))


_CODED = {b"VP8 ": _SPARE_LOSSY, b"VP8L": _SPARE_LOSSLESS}


def _in_webp(data: bytes) -> _Coded | None:
    end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    for name, start, stop in _chunks(data, 12, end):
        if name in _CODED:

            def shorten(count: int, name: bytes = name, start: int = start, stop: int = stop) -> bytes:
                after = data[stop + (stop - start) % 2 : end]
                return _as_webp(data[12 : start - 8] + _chunk(name, data[start : stop - count]) + after)

            spare = _CODED[name]
            return _Coded(_tail(data[start:stop]), stop - start, spare, shorten)
    return None


def _chunks(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and end of the content of each chunk of RIFF that is whole."""
    while at + 8 <= end:
        start = at + 8
        stop = start + int.from_bytes(data[at + 4 : start], "little")
        if stop > end:
            return
        yield data[at : at + 4], start, stop
        at = stop + (stop - start) % 2


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + len(content).to_bytes(4, "little") + content + bytes(len(content) % 2)


def _as_webp(chunks: bytes) -> bytes:
    return _chunk(b"RIFF", b"WEBP" + chunks)


# Types of the units of an AV1 stream (AV1, 6.2.2).
_FIRST = frozenset((1, 2))  # sequence header, temporal delimiter
_FRAME_HEADER, _TILES, _FRAME, _PADDING = 3, 4, 6, 15


def _in_avif(data: bytes, frame: int) -> _Coded | None:
    start, size = next(islice(samples(data), frame, None), _primary_item(data))
    end = start + size
    units = list(_units(data, start, end)) if end <= len(data) else []
    kinds = [kind for kind, *_ in units]
    frames = sum(kind in (_FRAME_HEADER, _FRAME) for kind in kinds)
    if not units or kinds[0] not in _FIRST or kinds[-1] not in (_TILES, _FRAME) or (frames != 1 and not frame):
        return None
    if frames > 1:  # all but one are not shown by themselves
        units = sorted((unit for unit in units if unit[0] == _FRAME), key=lambda unit: unit[3] - unit[2])
    if not units:
        return None
    _, at, body, end = units[-1]

    def shorten(count: int) -> bytes:
        """Say a smaller size of the unit, and make a unit of padding of the rest."""
        rest = bytes([_PADDING << 3 | 2]) + _as_size(count - 5, 4) + bytes(count - 5)
        return data[:at] + _as_size(end - body - count, body - at) + data[body : end - count] + rest + data[end:]

    return _Coded(_tail(data[body:end]), end - body, _SPARE_AVIF, shorten)


def _as_size(size: int, width: int) -> bytes:
    """Return a size as AV1 writes it (leb128), in so many bytes."""
    return bytes(size >> 7 * place & 127 | (128 if place < width - 1 else 0) for place in range(width))


def _units(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield the type of each unit, where its size stands, its body's start and end; nothing where they don't fit."""
    found, at = [], start
    while at < end:
        head = data[at]
        place = at + 1 + (head >> 2 & 1)
        size = shift = 0
        body = place
        while body < end and shift < 56:
            size |= (data[body] & 127) << shift
            shift += 7
            body += 1
            if data[body - 1] < 128:
                break
        if not head & 2:  # it has no size of its own
            return
        at = body + size
        found.append((head >> 3 & 15, place, body, at))
    if at == end:
        yield from found


def boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and end of the content of each box (ISO/IEC 14496-12, 4.2) that says its size in 32 bits."""
    while start + 8 <= end:
        size = int.from_bytes(data[start : start + 4], "big")
        if not 8 <= size <= end - start:
            return
        yield data[start + 4 : start + 8], start + 8, start + size
        start += size


def is_cut_off(data: bytes) -> bool:
    """Whether a file of boxes ends within one of those that hold a picture, or what tells of it."""
    *_, stop = 0, *(stop for _, _, stop in boxes(data, 0, len(data)))
    size = int.from_bytes(data[stop : stop + 4], "big")
    if size == 1:  # it says its size in 64 bits
        size = int.from_bytes(data[stop + 8 : stop + 16], "big")
    return data[stop + 4 : stop + 8] in _OF_PICTURES and len(data) - stop < size


_OF_PICTURES = frozenset((b"meta", b"mdat", b"moov", b"jxlc", b"jxlp"))


def samples(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield start and size of each frame of a sequence that is shown from its track (ISO/IEC 14496-12, 8.7)."""
    tracks = () if data[8:12] == b"avif" else _within(data, (0, len(data)), b"moov", b"trak", b"mdia")
    for track in tracks:
        if not any(data[start + 8 : start + 12] == b"pict" for start, _ in _within(data, track, b"hdlr")):
            continue  # its transparency
        for table in _within(data, track, b"minf", b"stbl"):
            inner = {name: data[start:end] for name, start, end in boxes(data, *table)}
            sizes = _numbers(inner.get(b"stsz", b"")[12:], 4)
            chunks = _numbers(inner.get(b"stco", b"")[8:], 4) or _numbers(inner.get(b"co64", b"")[8:], 8)
            runs = _numbers(inner.get(b"stsc", b"")[8:], 4)
            counts = dict(zip(runs[::3], runs[1::3], strict=False))  # of samples in a chunk, from which chunk on
            done = count = 0
            for number, start in enumerate(chunks, 1):
                count = counts.get(number, count)
                for size in sizes[done : done + count]:
                    yield start, size
                    start += size  # noqa: PLW2901
                done += count
        return


def _within(data: bytes, span: tuple[int, int], *path: bytes) -> Iterator[tuple[int, int]]:
    """Yield start and end of the content of each box that is in others of these names."""
    for name, start, end in boxes(data, *span):
        if name == path[0]:
            yield from _within(data, (start, end), *path[1:]) if path[1:] else ((start, end),)


def _numbers(table: bytes, width: int) -> list[int]:
    return [int.from_bytes(table[at : at + width], "big") for at in range(0, len(table), width)]


def _primary_item(data: bytes) -> tuple[int, int]:
    """Return start and size of the picture that is shown; (0, 0) when it does not lie in one piece."""
    inner = _meta(data)
    primary = int.from_bytes(inner.get(b"pitm", b"")[4:], "big")
    pieces = next((pieces for item, pieces in _items(inner.get(b"iloc", b"")) if item == primary), [])
    return pieces[0] if len(pieces) == 1 else (0, 0)


def coded_parts(avif: bytes) -> Iterator[tuple[int, int]]:
    """Yield start and end of what is coded as AV1 for the first frame: all items, tiles and transparency too."""
    if shown := next(samples(avif), None):
        yield shown[0], sum(shown)
        return
    inner = _meta(avif)
    entries, coded = inner.get(b"iinf", b"")[6:], set()
    for _, start, _ in boxes(entries, 0, len(entries)):
        at = start + 4
        stop = at + (4 if entries[start : start + 1] == b"\3" else 2)  # where an item's number ends
        if entries[stop + 2 : stop + 6] == b"av01":
            coded.add(int.from_bytes(entries[at:stop], "big"))
    for item, pieces in _items(inner.get(b"iloc", b"")):
        if item in coded:
            yield from ((start, start + size) for start, size in pieces)


def _meta(avif: bytes) -> dict[bytes, bytes]:
    """Return the content of the boxes that tell of a file's items, by their names."""
    whole = next(((start + 4, end) for name, start, end in boxes(avif, 0, len(avif)) if name == b"meta"), (0, 0))
    return {name: avif[start:end] for name, start, end in boxes(avif, *whole)}


def _items(places: bytes) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Yield the number of each item that lies in the file itself, with start and size of its pieces (8.11.3)."""
    if not places:
        return
    version, at = places[0], 6
    wide = 4 if version == 2 else 2

    def read(size: int) -> int:
        nonlocal at
        at += size
        return int.from_bytes(places[at - size : at], "big")

    offsets, lengths, bases, indexes = places[4] >> 4, places[4] & 15, places[5] >> 4, places[5] & 15
    for _ in range(min(read(wide), len(places))):
        item, method = read(wide), read(2) & 15 if version else 0
        read(2)
        base, count = read(bases), read(2)
        pieces = []
        for _ in range(min(count, len(places))):
            read(indexes if version else 0)
            pieces.append((base + read(offsets), read(lengths)))
        if not method:
            yield item, pieces


def _in_gif(data: bytes) -> _Coded | None:
    _, start, stop = next(gif_frames(data), (0, 0, 0))
    if not start:
        return None
    packed = _unpacked(data, start, stop)

    def shorten(count: int) -> bytes:
        return data[:start] + _in_blocks(packed[: len(packed) - count]) + b"\0;"

    return _Coded(_tail(packed), len(packed), _SPARE_GIF, shorten)


def _unpacked(gif: bytes, start: int, stop: int) -> bytes:
    """Return what is in the blocks of a frame."""
    content = bytearray()
    while start < stop - 1:
        content += gif[start + 1 : start + 1 + gif[start]]
        start += 1 + gif[start]
    return bytes(content)


def _in_blocks(content: bytes) -> bytes:
    blocks = (content[at : at + 255] for at in range(0, len(content), 255))
    return b"".join(bytes([len(block)]) + block for block in blocks)


class InTwo(io.BytesIO):
    """A GIF file of one frame; no read goes beyond the bytes without which no sound one can be decoded.

    So a decoder that needs no more of it has lost its place, which is seen in a single pass.
    """

    def __init__(self, still: bytes) -> None:
        _, start, stop = next(gif_frames(still))
        packed = _unpacked(still, start, stop)
        first, last = packed[:-_SPARE_GIF], packed[-_SPARE_GIF:]
        is_judged = len(packed) >= 4 * _SPARE_GIF and len(set(last)) > 1
        self._edge = start + len(_in_blocks(first)) if is_judged else 0
        super().__init__(still[:start] + _in_blocks(first) + _in_blocks(last) + still[stop - 1 :])

    def read(self, size: int | None = -1) -> bytes:
        """Read as much, or up to the edge."""
        left = self._edge - self.tell()
        return super().read(left if left > 0 and not 0 <= (size or 0) <= left else size)

    def is_left(self) -> bool:
        """Whether the last bytes were not asked for."""
        return self.tell() <= self._edge


def gif_frames(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield where each frame begins, and where its coded pixels do and end (GIF89a, 20 to 22)."""
    at = 13 + _colours(data[10])
    while True:
        while data[at : at + 1] == b"!":
            at = _after_blocks(data, at + 2)
        if data[at : at + 1] != b"," or at + 10 >= len(data):
            return
        start = at + 11 + _colours(data[at + 9])
        stop = _after_blocks(data, start)
        yield at, start, stop
        at = stop


def gif_end(data: bytes) -> int | None:
    """Return where the last block of a GIF file ends, if something else than the trailer follows, or nothing.

    None where there is a trailer, or more than that is missing. An extension that was cut off is no block.
    """
    end = max((stop for _, _, stop in gif_frames(data)), default=0)
    while data[end : end + 1] == b"!" and end + 2 < len(data):
        stop = _after_blocks(data, end + 2)
        if stop > len(data) + 1:
            break
        end = stop
    # The last byte of a block may be missing, too, which is zero.
    rest = data[end:]
    is_nothing = rest.startswith(b"!") or b"," not in rest  # with which a frame begins
    return end if 0 < end <= len(data) + 1 and not rest.startswith(b";") and is_nothing else None


def _stills_of_gif(gif: bytes) -> Iterator[bytes]:
    colours = gif[10:13] + gif[13 : 13 + _colours(gif[10])]
    for at, _, stop in gif_frames(gif):
        size = gif[at + 5 : at + 9]
        if stop > len(gif) or 0 in struct.unpack("<HH", size):  # cut off, or none
            return
        yield gif[:6] + size + colours + b"," + bytes(4) + size + gif[at + 9 : stop] + b";"


def _colours(flags: int) -> int:
    """Return how many bytes the table of colours has that the flags tell of."""
    return 3 << (flags & 7) + 1 if flags & 128 else 0


def _after_blocks(data: bytes, at: int) -> int:
    while at < len(data) and data[at]:
        at += 1 + data[at]
    return at + 1
