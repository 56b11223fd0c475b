"""JPEG files: the walk through their markers, and what the strict decoder's complaints mean."""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import simplejpeg  # type: ignore[import-untyped]  # it has no stubs for all Python versions

from ftkit._images.decoding.codes import ZEROS, have_hole, read_codes
from ftkit._images.decoding.gaps import filled_share
from ftkit._images.decoding.picture import HOLE, ORIENTATION, Pixels, judge_orientation, judge_pixel_count
from ftkit._images.decoding.seams import find_seam, may_have_seam
from ftkit._images.verdict import Broken, Form, Note, Notes
from ftkit._wording import plural

# Markers (ITU-T T.81, table B.1).
MAGIC = b"\xff\xd8\xff"  # start of image, and the first byte of the next marker
EOI = b"\xff\xd9"  # end of image
_DNL = b"\xff\xdc\0\4"  # number of lines, and how long that segment is
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of a frame; in between are DHT, JPG and DAC
_LOSSLESS, _LS = 0xC3, 0xF7  # frames of lossless coding, the second by ITU-T T.87
_DEEP = frozenset((0xC1, 0xC2, 0xC9, 0xCA))  # frames that may have 12 bits
_SOS, _DRI = 0xDA, 0xDD  # start of a scan, restart interval
_APP0, _APP1, _APP2, _APP14 = 0xE0, 0xE1, 0xE2, 0xEE  # where JFIF, EXIF, MPF and Adobe's segment stand
_FAST = frozenset((0, 1, 2, 9, 10))  # processes that simplejpeg decodes; it crashes over lossless ones
_QUICK_BYTES, _QUICK_PIXELS = 1 << 20, 5_000_000  # of a file that is decoded in a few hundredths of a second
_ARITHMETIC = 9  # the first of the processes with that coding, which takes any bytes for pixels
_EXIF = b"Exif\0\0"
_NO_RESTART = re.compile(b"\xff[\x01-\xcf\xd8-\xfe]")


@dataclass(slots=True)
class JpegHeader:
    """What the segments before the first scan say.

    Attributes:
        frame: Where the frame's segment begins.
        scan: Where the coded pixels begin.
        process: 0 for baseline, 1 for extended, 2 for progressive coding, ...
        names: The number that each component goes by.
        sampling: Its sampling factors, horizontal and vertical.
        orientation: EXIF's, 1 to 8; None when EXIF can't be read.
        multiple: Whether the file holds several pictures (MPO).
        restarts: Whether the coded pixels are cut into restart intervals.
        jfif: Where JFIF's segment begins; 0 when there is none.
        transform: What the components are by Adobe's segment; 0 for red, green and blue. None when there is none.
        foreign: Slices of bytes that belong to no segment.
    """

    frame: int = 0
    scan: int = 0
    process: int = 0
    precision: int = 8
    width: int = 0
    height: int = 0
    names: bytes = b""
    sampling: tuple[tuple[int, int], ...] = ()
    interleaved: bool = True
    orientation: int | None = 1
    multiple: bool = False
    restarts: bool = False
    jfif: int = 0
    transform: int | None = None
    foreign: list[tuple[int, int]] = field(default_factory=list)

    @property
    def components(self) -> int:
        """How many components a pixel has."""
        return len(self.sampling)

    @property
    def mode(self) -> str:
        """Pillow's name for what the components stand for; empty when the strict decoder does not know."""
        return {1: "L", 3: "RGB", 4: "CMYK"}.get(self.components, "")

    @property
    def is_known(self) -> bool:
        """Whether the strict decoder takes such files."""
        return self.precision == 8 and bool(self.mode) and self.process in _FAST

    @property
    def is_luma_chroma(self) -> bool:
        """Whether the components are brightness and colour differences, as libjpeg decides it."""
        is_rgb = self.transform == 0 or (self.transform is None and self.names == b"RGB")
        return self.components == 3 and (self.jfif > 0 or not is_rgb)

    @property
    def colours(self) -> str:
        """What to have it decoded to."""
        return "CMYK" if self.mode == "CMYK" else "GRAY"

    @property
    def eighths(self) -> int:
        """How many eighths of its size are enough: 32 pixels a side, of a small one, for the fingerprints."""
        side = min(self.width, self.height)
        return 1 if side >= 256 else 2 if side >= 128 else 4 if side >= 64 else 8

    @property
    def unit(self) -> tuple[int, int]:
        """Width and height of a unit of the coding (an MCU) in pixels: 8 x 8 when there is but one component."""
        widths, heights = zip(*self.sampling, strict=True)
        return (8, 8) if self.components == 1 else (8 * max(widths), 8 * max(heights))

    @property
    def in_one_scan(self) -> bool:
        """Whether one scan codes all of every block, one after the other; else the last one only refines."""
        return self.process <= 1 and self.interleaved


def read_header(data: bytes) -> JpegHeader | None:
    """Walk the markers up to the first scan (ITU-T T.81, annex B); None when they lead nowhere."""
    header = JpegHeader()
    try:
        for marker, at, body in _segments(data, header.foreign):
            if marker == _SOS:
                header.scan, header.interleaved = at + 4 + len(body), body[0] == header.components
                return header if header.frame else None
            if marker in _SOF:
                header.frame, header.process = at, marker & 15
            elif marker == _APP0 and body.startswith(b"JFIF\0\1"):  # of others, the decoder complains
                header.jfif = at
            if read := _READERS.get(marker):
                read(header, body)
    except (struct.error, IndexError):  # a segment is too short for what it should hold
        pass
    return None


def _segments(data: bytes, foreign: list[tuple[int, int]]) -> Iterator[tuple[int, int, bytes]]:
    """Yield marker, place and body of the segments; add what stands between them to ``foreign``."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:  # decoders skip to the next marker
            start, at = at, data.find(b"\xff", at)
            if at < 0:
                return
            foreign.append((start, at))
        elif data[at + 1] == 0xFF:  # a fill byte
            at += 1
        elif data[at + 1] == EOI[1]:
            return
        else:
            stop = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            if stop > len(data):
                return
            yield data[at + 1], at, data[at + 4 : stop]
            at = _end_of_codes(data, stop) if data[at + 1] == _SOS else stop


def _end_of_codes(data: bytes, at: int) -> int:
    """Return where the next marker begins, but for those between restart intervals."""
    marker = _NO_RESTART.search(data, at)
    return marker.start() if marker else len(data)


def _read_frame(header: JpegHeader, body: bytes) -> None:
    header.precision, header.height, header.width, components = struct.unpack_from(">BHHB", body)
    header.names = body[6 : 6 + 3 * components : 3]
    header.sampling = tuple(divmod(factor, 16) for factor in struct.unpack_from(f"{3 * components}B", body, 6)[1::3])


def _read_exif(header: JpegHeader, body: bytes) -> None:
    if body.startswith(_EXIF):
        header.orientation = _read_orientation(body[6:])


def _read_mpf(header: JpegHeader, body: bytes) -> None:
    header.multiple |= body.startswith(b"MPF\0")


def _read_restart_interval(header: JpegHeader, body: bytes) -> None:
    header.restarts = body[:2] != b"\0\0"


def _read_adobe(header: JpegHeader, body: bytes) -> None:
    if body.startswith(b"Adobe") and len(body) >= 12:
        header.transform = body[11]


_READERS = {
    **dict.fromkeys(_SOF, _read_frame), _DRI: _read_restart_interval,
    _APP1: _read_exif, _APP2: _read_mpf, _APP14: _read_adobe,
}  # fmt: skip


def _read_orientation(tiff: bytes) -> int | None:
    """Return the orientation (1 to 8) that EXIF gives, 1 when it gives none, None when it is garbled."""
    try:
        order = {b"II*\0": "<", b"MM\0*": ">"}[tiff[:4]]
        (at,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, at)
    except (KeyError, struct.error):
        return None
    entries = tiff[at + 2 : at + 2 + 12 * count]
    if len(entries) < 12 * count:
        return None
    values = (value for tag, _, _, value in struct.iter_unpack(order + "HHIHxx", entries) if tag == ORIENTATION)
    orientation: int = next(values, 1)
    return orientation if 1 <= orientation <= 8 else 1


class Decoded(NamedTuple):
    """A JPEG of which the strict decoder has read every bit without a complaint.

    Attributes:
        header: Its header.
        pixels: The picture at `JpegHeader.eighths` of its size: height x width x components.
    """

    header: JpegHeader
    pixels: Pixels


def decode_quickly(data: bytes) -> Decoded | None:
    """Decode a file that is sure to take no time worth mentioning; None for what is not, or has a complaint."""
    header = read_header(data) if len(data) <= _QUICK_BYTES else None
    if header is None or not (header.is_known and header.in_one_scan) or header.width * header.height > _QUICK_PIXELS:
        return None
    try:
        return Decoded(header, _shrunk(data, header))
    except Exception:  # noqa: BLE001  (whatever it is, `check` meets it, too, and says so)
        return None


def check(data: bytes, notes: Notes, decoded: Decoded | None = None) -> tuple[Form, Pixels]:
    """Decode all of it, strictly, at an eighth of the size: every bit is read, which finds what a full decode finds."""
    header = decoded.header if decoded else read_header(data)
    if header is None or not header.is_known:
        from ftkit._images.decoding import pillow  # slow to import, and most files do without

        try:
            return pillow.check(data, notes)
        except Broken as broken:
            kind = _unsupported(data)
            if kind and broken.note.kind == "damaged":
                detail = f"{kind}, which Pillow can't open, but the package imagecodecs can"
                raise Broken("needs_package", detail) from None
            raise
    if not header.height and (mended := _with_height(data, header)):
        check(mended, [])
        detail = "JPEG whose height stands behind the pixels (DNL), which Pillow can't open, but pylibjpeg-libjpeg can"
        raise Broken("needs_package", detail)
    judge_pixel_count(header.width, header.height, notes)
    planes: Pixels | None = None
    try:
        planes = _judge(data, header, decoded.pixels if decoded else _shrunk(data, header))
        if header.process >= _ARITHMETIC:
            _judge_arithmetic(data, notes)
        elif _has_hole(data, header):
            raise Broken("damaged", _HOLED)
    except ValueError as error:
        _weigh(data, header, str(error), notes)
        with contextlib.suppress(ValueError):  # a kind of JPEG that only Pillow reads
            planes = _judge(data, header, _shrunk(data, header, strict=False))
    if planes is None:
        from ftkit._images.decoding.pillow import shrunk_jpeg

        planes = shrunk_jpeg(data)[None]
    end = data.rfind(EOI, header.scan)
    if header.multiple:
        from ftkit._images.decoding.pillow import judge_pictures

        judge_pictures(data, notes)
    elif 0 < end < len(data) - 2:
        notes.append(Note("trailing_data", f"{plural(len(data) - 2 - end, 'byte')} after the end marker"))
    if header.orientation is None:
        notes.append(Note("bad_exif", "the EXIF directory does not fit its segment"))
    judge_orientation(header.orientation, notes)
    return Form("MPO" if header.multiple else "JPEG", header.mode, header.width, header.height), planes


def _with_height(data: bytes, header: JpegHeader) -> bytes:
    """Return a file with the height where decoders look for it, if it stands behind the first scan (B.2.5)."""
    at = _end_of_codes(data, header.scan)
    height = data[at + 4 : at + 6]
    if data[at : at + 4] != _DNL or not any(height):
        return b""
    return data[: header.frame + 5] + height + data[header.frame + 7 : at] + data[at + 6 :]


def _judge_arithmetic(data: bytes, notes: Notes) -> None:
    """Note a sound file that Pillow can't decode, as it hands over the data piece by piece: one of 64 KiB or more."""
    from ftkit._images.decoding import pillow  # slow to import, and such files are rare

    if refusal := pillow.complaint(data):
        notes.append(_beyond_pillow(refusal))


def _beyond_pillow(refusal: str) -> Note:
    detail = f"arithmetic coding, at which Pillow fails ({refusal}); torchvision and OpenCV open it"
    return Note("needs_package", detail)


def _unsupported(data: bytes) -> str:
    """Return the kind of a file that few decoders take, if it is whole as far as its markers tell; else nothing."""
    frame, precision, components, foreign = 0, 8, 0, list[tuple[int, int]]()
    for marker, at, body in _segments(data, foreign):
        if marker in _SOF or marker == _LS:
            frame, precision = marker, body[0] if body else 0
            components = body[5] if len(body) > 5 and len(body) == 6 + 3 * body[5] else 0
        elif marker == _SOS:
            is_whole = not foreign and data.find(EOI, at + 4 + len(body)) > 0
            # Lossless scans name a predictor, and no band of a spectrum.
            is_lossless = len(body) > 3 and 1 <= body[-3] <= 7 and not body[-2]
            if frame == _LS:
                kind = "JPEG-LS"
            elif frame == _LOSSLESS and is_lossless:
                kind = "lossless JPEG"
            else:
                kind = "12-bit JPEG" if precision == 12 and frame in _DEEP else ""
                if precision == 8 and components not in (0, 1, 3, 4) and frame & 15 in _FAST:
                    kind = f"JPEG with {components} components"
            return kind if is_whole else ""
    return ""


def _shrunk(data: bytes, header: JpegHeader, strict: bool = True) -> Pixels:
    """Decode at `JpegHeader.eighths` of the size; raise ValueError when the decoder complains, and is to be strict."""
    scale = -(-header.height * header.eighths // 8), -(-header.width * header.eighths // 8), 1
    return _components(data, header, strict, *scale)


def _judge(data: bytes, header: JpegHeader, pixels: Pixels) -> Pixels | None:
    """Return it in planes, None for inks; raise Broken when blocks have shifted in brightness or color."""
    if header.mode == "CMYK":
        return None
    planes: Pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    if header.interleaved:
        width, height = header.unit
        doubtful = may_have_seam(_shrink(planes, header.eighths), width // 8, height // 8)
        if doubtful and not filled_share(planes[0]):  # else see half_grey
            _look_for_seam(data, header, doubtful)
    return planes


def _components(data: bytes, header: JpegHeader, strict: bool, *scale: int) -> Pixels:
    """Return brightness and color differences as they are, or else inks, or grey: height x width x components."""
    if header.is_luma_chroma:
        data, colours = _as_components(data, header), "RGB"
    else:
        colours = header.colours
    pixels: Pixels = simplejpeg.decode_jpeg(data, colours, False, True, *scale, strict=strict)
    return pixels


_AS_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"  # Adobe's segment, with no transform


def _as_components(data: bytes, header: JpegHeader) -> bytes:
    """Return a file that decodes to its components as they are."""
    at, name = header.jfif + 4, b"JFIF" if header.jfif else b""
    rest = memoryview(data)[header.frame :]  # most of it, which is copied once
    return b"".join((data[:at], name.lower(), data[at + len(name) : header.frame], _AS_RGB, rest))


def _shrink(planes: Pixels, by: int) -> Pixels:
    """Return the means over squares of pixels."""
    if by == 1:
        return planes
    components, rows, columns = len(planes), planes.shape[1] // by, planes.shape[2] // by
    whole = planes[:, : rows * by, : columns * by].reshape(components, rows, by, columns, by)
    means: Pixels = whole.mean(axis=(2, 4), dtype=np.float32).round().astype(np.uint8)
    return means


def _complaint_of(data: bytes, header: JpegHeader) -> str:
    """Decode at an eighth of the size, where every bit is still read; return the decoder's last complaint."""
    try:
        simplejpeg.decode_jpeg(data, header.colours, min_height=1, min_width=1, min_factor=8)
    except ValueError as error:
        return str(error)
    return ""


def _look_for_seam(data: bytes, header: JpegHeader, doubtful: list[int]) -> None:
    """Raise Broken when blocks have shifted in brightness or color without a complaint of the decoder."""
    if doubtful == [0]:  # its colors need no look
        whole: Pixels = simplejpeg.decode_jpeg(data, "GRAY", False, True, strict=False)
    else:
        whole = _components(data, header, strict=False)
    sampling = header.sampling if header.components > 1 else ((1, 1),)
    widest, highest = (max(factors) for factors in zip(*sampling, strict=True))
    for which in doubtful:
        across, down = sampling[which]
        plane = np.ascontiguousarray(whole[:: highest // down, :: widest // across, which])
        place = find_seam(plane, 8 * across, 8 * down, is_color=which > 0)
        if place:
            row, column = place
            what = "a color difference" if which else "brightness"
            raise Broken("damaged", f"from row {row * 8 * highest}, column {column * 8 * widest} on, {what} is shifted")


# Complaints of libjpeg that leave every pixel as it was (jerror.h): about the header, which come first and hide none;
# and about the head of a scan, which may, and which bytes that have moved bring about as well.
_HARMLESS = re.compile("unknown JFIF revision|Adobe color transform")
_HIDING = re.compile("Invalid SOS parameters|Inconsistent progression")


def _weigh(data: bytes, header: JpegHeader, complaint: str, notes: Notes) -> None:
    """Note a complaint of the strict decoder that is harmless; raise Broken for one that cost pixels."""
    from ftkit._images.decoding import pillow  # slow to import, and most files are sound

    refusal = pillow.complaint(data)
    is_arithmetic = header.process >= _ARITHMETIC and complaint.startswith("tj")
    if "Premature end of JPEG file" in complaint:
        whole = with_end(data)
        rest = _complaint_of(whole, header)
        weighed = _harmless(whole, header, rest) if rest else None
        if (rest and (not weighed or weighed.kind == "damaged")) or not _has_all_scans(data, header):
            raise Broken("truncated", "the data ends before the image does")
        if not rest and _has_hole(whole, header):
            raise Broken("damaged", _HOLED)
        is_replaced = _LEFT_OVER.search(rest)
        what = "other bytes stand in place of the end marker" if is_replaced else "the end marker is missing"
        note = Note("missing_eoi", f"every pixel is there, but {what}")
        notes.append(note if refusal else note._replace(severity="odd"))
    elif refusal and is_arithmetic and not pillow.complaint(data, at_once=True):
        notes.append(_beyond_pillow(refusal))
    elif refusal:
        raise pillow.broken(refusal)
    elif harmless := _harmless(data, header, complaint):
        notes.append(harmless)
    elif not complaint.startswith("tj"):
        raise Broken("damaged", complaint)
    elif is_damaged(data):  # of a kind that simplejpeg can't read and Pillow can
        raise Broken("damaged", "the pixels are coded as no encoder does it")


def is_damaged(data: bytes) -> bool:
    """Whether a JPEG within another file, or one that the strict decoder does not take, has lost pixels."""
    header = read_header(data)
    if header is None or not header.is_known:
        return False
    complaint = _complaint_of(data, header)
    if complaint.startswith("tj"):
        is_readable = header.process < _ARITHMETIC and _is_read_soon(data, header)
        return is_readable and (_goes_on(data, header) is None or not _has_all_scans(data, header))
    if complaint:
        return (HOLE in data and not _HARMLESS.search(complaint)) or not _harmless(data, header, complaint)
    return _has_hole(data, header)


_HOLED = "zeros stand among the coded pixels, as no encoder writes them"


def _has_hole(data: bytes, header: JpegHeader) -> bool:
    """Whether zeros stand in place of codes, in a file of which the decoder has left no bytes over."""
    return header.process < _ARITHMETIC and data.find(ZEROS, header.scan) > 0 and have_hole(_coded(data))


def _has_all_scans(data: bytes, header: JpegHeader) -> bool:
    """Whether the scans of a file that lacks its end code all bits of all coefficients.

    A progressive file that ends behind a scan decodes without a complaint, and is blurred. One in arithmetic coding
    does so wherever it ends: its decoder makes up what is missing.
    """
    if header.process >= _ARITHMETIC:
        return False
    if header.in_one_scan:
        return True
    missing = {(component, order) for component in header.names for order in range(64)}
    at = data.find(b"\xff\xda", header.frame)
    while at >= 0:
        count = data[at + 4]
        names, (first, last, bits) = (
            data[at + 5 : at + 5 + 2 * count : 2],
            data[at + 5 + 2 * count : at + 8 + 2 * count],
        )
        if bits & 15 == 0:
            missing -= {(name, order) for name in names for order in range(first, last + 1)}
        at = data.find(b"\xff\xda", at + 2)
    return not missing


def without_exif(data: bytes) -> bytes:
    """Take the EXIF out, and touch nothing else."""
    for marker, at, body in reversed(list(_segments(data, []))):
        if marker == _APP1 and body.startswith(_EXIF) and at < data.find(b"\xff\xda"):
            data = data[:at] + data[at + 4 + len(body) :]
    return data


def with_end(data: bytes) -> bytes:
    """Put the end marker behind a file that lacks it, or half of it."""
    return data + (EOI[1:] if data.endswith(EOI[:1]) else EOI)


def _harmless(data: bytes, header: JpegHeader, complaint: str) -> Note | None:
    """Return what to note of a complaint that cost no pixels, or may have cost none; None for others.

    It may be of bytes between segments, or behind the last pixel, that nothing is missing for.
    """
    note = Note("decoder_warning", complaint)
    is_read = header.process < _ARITHMETIC
    if _HARMLESS.search(complaint):
        return None if _has_hole(data, header) else note
    if _HIDING.search(complaint):
        if not (is_read and _is_read_soon(data, header)):
            return note._replace(kind="damaged", detail=f"{complaint}, which may hide more", severity="odd")
        return None if _goes_on(data, header) is None else note
    if "extraneous bytes before marker" not in complaint:
        return None
    if header.foreign:
        kept = bytearray(data)
        for start, stop in reversed(header.foreign):
            if data[start - 1] == 0xFF:  # a segment that has lost a byte ends with the first one of the next marker
                return None
            del kept[start:stop]
        if _complaint_of(bytes(kept), header):
            return None
        is_readable = is_read and _is_read_soon(bytes(kept), header)
        return None if is_readable and _goes_on(bytes(kept), header) is None else note
    left = _LEFT_OVER.search(complaint)
    if left is None or (is_read and not _has_all_scans(data, header)):
        return None
    count, stop = int(left[1]), len(data)
    for _, at, body in _segments(data, []):
        stop = _end_of_codes(data, at + 4 + len(body))
    tail = stop - len(data[:stop].rstrip(data[stop - 1 : stop]))
    is_padding = count <= tail <= count + _MOST_PADDED and is_read
    if is_padding and count > _MOST_PADDED:  # somebody's, of which no more than a few bytes were taken for pixels
        return note
    if tail >= count > _MOST_FOREIGN:
        return None
    rest = _complaint_of(data[: stop - count] + data[stop:], header)  # each complaint hides those before it
    if (rest and not _LEFT_OVER.search(rest)) or _fits_another_sampling(data, header):
        return None
    may_be_pixels = note._replace(kind="damaged", detail=f"{complaint}, which may be pixels", severity="odd")
    is_text = _is_text(data[stop - max(count, _LEAST_TEXT) : stop])  # the decoder has read some bytes ahead
    if not is_read:
        return may_be_pixels if count <= _MOST_FOREIGN or is_text else None
    goes_on = _goes_on(data, header, is_text, is_padding)
    return None if goes_on is None else may_be_pixels if goes_on else note


def _is_text(left: bytes) -> bool:
    """Whether bytes are text, which coded pixels look like by chance only when they are few."""
    return len(left) >= _LEAST_TEXT and not left.translate(None, _TEXT)


def _is_read_soon(data: bytes, header: JpegHeader) -> bool:
    """Whether all codes can be read in some seconds, far from the timeout."""
    blocks = header.width * header.height // 64
    return len(data) + blocks * data.count(b"\xff\xda") <= _MOST_READ


def _goes_on(data: bytes, header: JpegHeader, is_text: bool = False, is_padding: bool = False) -> bool | None:
    """Read the codes as `read_codes` does."""
    is_thorough = _is_read_soon(data, header)
    return read_codes(_coded(data), is_thorough=is_thorough, is_text=is_text, is_padding=is_padding)


def _coded(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield marker and body of each segment, and the coded pixels behind it."""
    for marker, at, body in _segments(data, []):
        start = at + 4 + len(body)
        yield marker, body, data[start : _end_of_codes(data, start)] if marker == _SOS else b""


def _fits_another_sampling(data: bytes, header: JpegHeader) -> bool:
    """Whether the coded pixels come out even when the header tells another size of the first component's blocks."""
    changed, at = bytearray(data), header.frame + 11
    for sampling in (0x11, 0x12, 0x21, 0x22):
        changed[at] = sampling
        if sampling != data[at] and not _complaint_of(bytes(changed), header):
            return True
    return False


_LEFT_OVER = re.compile("([0-9]+) extraneous bytes before marker 0xd9$")
_MOST_FOREIGN = 4096  # bytes, where nothing tells them from pixels, or that are all the same
_MOST_PADDED = 8  # bytes of pixels that look like the padding behind them, at most
_LEAST_TEXT, _TEXT = 8, bytes((9, 10, 13, *range(32, 127)))
_MOST_READ = 3_000_000  # bytes, and blocks of all scans
