"""JPEG files: the walk through their markers, and what the strict decoder's complaints mean."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

import simplejpeg  # type: ignore[import-untyped]  # it has no stubs for all Python versions

from ftkit._images.seams import confirm_seam, find_seams
from ftkit._images.verdict import Broken, Form, Notes, Pixels, judge_pixel_count, say_orientation

__all__ = ["JpegHeader", "check", "read_header"]

_ORIENTATION = 274


@dataclass(slots=True)
class JpegHeader:
    """What the segments before the first scan say.

    Attributes:
        frame: Where the frame's segment begins.
        scan: Where the coded pixels begin.
        process: 0 for baseline, 1 for extended, 2 for progressive coding, ...
        orientation: EXIF's, 1 to 8; None when EXIF can't be read.
        multiple: Whether the file holds several pictures (MPO).
        foreign: Slices of bytes that belong to no segment.
        restarts: Whether the coded pixels are cut into restart intervals.
    """

    frame: int = 0
    scan: int = 0
    process: int = 0
    precision: int = 8
    width: int = 0
    height: int = 0
    sampling: tuple[tuple[int, int], ...] = ()
    interleaved: bool = True
    orientation: int | None = 1
    multiple: bool = False
    restarts: bool = False
    foreign: tuple[tuple[int, int], ...] = ()

    @property
    def components(self) -> int:
        """How many components a pixel has."""
        return len(self.sampling)

    @property
    def unit(self) -> tuple[int, int]:
        """Width and height of a unit of the coding (an MCU) in pixels: 8 x 8 when there is but one component."""
        if self.components == 1:
            return 8, 8
        return 8 * max(width for width, _ in self.sampling), 8 * max(height for _, height in self.sampling)

    @property
    def colours(self) -> str:
        """What to have it decoded to."""
        return "CMYK" if self.components == 4 else "GRAY"


def read_header(data: bytes) -> JpegHeader | None:
    """Walk the markers up to the first scan (ITU-T T.81, annex B); None when they lead nowhere."""
    header = JpegHeader()
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:  # decoders skip to the next marker
            start, at = at, data.find(b"\xff", at)
            if at < 0:
                return None
            header.foreign += ((start, at),)
            continue
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        body, stop = at + 4, at + 2 + (data[at + 2] << 8 | data[at + 3])
        if stop > len(data):
            return None
        if marker == 0xDA:
            header.scan, header.interleaved = stop, data[body] == header.components
            return header if header.frame else None
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if stop < body + 6 or stop < body + 6 + 3 * data[body + 5]:
                return None
            header.frame, header.process = at, marker & 15
            header.precision, header.height, header.width, components = struct.unpack_from(">BHHB", data, body)
            header.sampling = tuple(divmod(data[body + 7 + 3 * n], 16) for n in range(components))
        elif marker == 0xE1 and data.startswith(b"Exif\0\0", body):
            header.orientation = _read_orientation(data[body + 6 : stop])
        elif marker == 0xE2 and data.startswith(b"MPF\0", body):
            header.multiple = True
        elif marker == 0xDD:
            header.restarts = data[body : body + 2] != b"\0\0"
        at = stop
    return None


def _read_orientation(tiff: bytes) -> int | None:
    """Return the orientation (1 to 8) that EXIF gives, 1 when it gives none, None when it is garbled."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return None
    (at,) = struct.unpack_from(order + "I", tiff, 4)
    if at + 2 > len(tiff):
        return None
    (count,) = struct.unpack_from(order + "H", tiff, at)
    if at + 2 + 12 * count > len(tiff):
        return None
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
        if tag == _ORIENTATION:
            return int(value) if 1 <= value <= 8 else 1
    return 1


def check(data: bytes, notes: Notes) -> tuple[Form, Pixels]:
    """Decode all of it, strictly, at an eighth of the size: every bit is read, which finds what a full decode finds."""
    header = read_header(data)
    if header is None or header.precision != 8 or header.components not in (1, 3, 4):
        from ftkit._images import pillow

        return pillow.check(data, notes)
    width, height = header.width, header.height
    judge_pixel_count(width, height, notes)
    scale = (1, 1, 8) if min(width, height) >= 256 else (32, 32, 1)
    grey: Pixels | None = None
    try:
        pixels = simplejpeg.decode_jpeg(data, header.colours, False, False, *scale)
        if header.components != 4:
            grey = pixels[:, :, 0]
            _look_for_seam(data, header, grey)
        if not data.endswith(b"\xff\xd9") and not header.multiple:
            after = len(data) - 2 - data.rfind(b"\xff\xd9")
            notes.append(("trailing_data", f"{after:,} bytes after the end marker"))
    except ValueError as error:
        _weigh(data, header, str(error), notes)
    if grey is None:
        from ftkit._images.pillow import shrunk_jpeg

        grey = shrunk_jpeg(data)
    if header.orientation is None:
        notes.append(("bad_exif", "the EXIF directory does not fit its segment"))
    elif header.orientation != 1:
        notes.append(("exif_rotated", say_orientation(header.orientation)))
    mode = {1: "L", 3: "RGB", 4: "CMYK"}[header.components]
    return ("MPO" if header.multiple else "JPEG", mode, width, height), grey


def _complaint_of(data: bytes, colours: str = "GRAY") -> str:
    """Decode at an eighth of the size, where every bit is still read; return the decoder's last complaint."""
    try:
        simplejpeg.decode_jpeg(data, colours, min_height=1, min_width=1, min_factor=8)
    except ValueError as error:
        return str(error)
    return ""


def _look_for_seam(data: bytes, header: JpegHeader, grey: Pixels) -> None:
    """Raise Broken when blocks have shifted in brightness without a complaint of the decoder."""
    if header.process > 1 or not header.interleaved or grey.shape[0] != -(-header.height // 8):
        return
    width, height = header.unit
    seams = find_seams(grey, width // 8, height // 8)
    if not seams or grey[-1].max() - grey[-1].min() <= 2:  # a gap filled with grey begins alike and has its own kind
        return
    for row, column in seams:
        full = simplejpeg.decode_jpeg(data, header.colours)[:, :, 0]
        if confirm_seam(full, row, column, width, height):
            raise Broken("damaged", f"from row {row * height}, column {column * width} on, all pixels have shifted")


# Complaints of libjpeg about the header that leave every pixel as it was (jerror.h).
_HARMLESS = re.compile("unknown JFIF revision|Adobe color transform|Invalid SOS parameters|Inconsistent progression")


def _weigh(data: bytes, header: JpegHeader, complaint: str, notes: Notes) -> None:
    """Note a complaint of the strict decoder that is harmless; raise Broken for one that cost pixels."""
    from ftkit._images.pillow import complaint as pillow_complaint  # Pillow is slow to import, and most files are sound

    refused = pillow_complaint(data)
    if "Premature end of JPEG file" in complaint:
        rest = _complaint_of(data + (b"\xd9" if data.endswith(b"\xff") else b"\xff\xd9"), header.colours)
        if rest and not _HARMLESS.search(rest):
            raise Broken("truncated", "the data end before the picture does")
        severity = "unusable" if refused else "odd"
        notes.append(("missing_eoi", "every pixel is there, the end marker is not", severity))
    elif refused:
        raise Broken("truncated" if "runcated" in refused else "damaged", refused)
    elif _HARMLESS.search(complaint) or _is_about_foreign_bytes(data, header, complaint):
        notes.append(("decoder_warning", complaint))
    elif not complaint.startswith("tj"):  # else a kind of JPEG that simplejpeg can't read and Pillow can
        raise Broken("damaged", complaint)


def _is_about_foreign_bytes(data: bytes, header: JpegHeader, complaint: str) -> bool:
    """Whether the complaint is of bytes between segments, or behind the last pixel, that nothing is missing for."""
    if "extraneous bytes before marker" not in complaint:
        return False
    if header.foreign:
        kept, at = [], 0
        for start, stop in header.foreign:
            kept.append(data[at:start])
            at = stop
        return not _complaint_of(b"".join((*kept, data[at:])), header.colours)
    if not complaint.endswith("0xd9"):
        return False
    if header.process > 1 or not header.interleaved:
        return True  # the last scan only refines what is there
    return not _end_is_pixels(data, header)


def _end_is_pixels(data: bytes, header: JpegHeader) -> bool:
    """Whether the coded data end with the end of a block.

    Bytes that a decoder has left over can be foreign, put there by whoever wrote the file. Or they
    are pixels: when bits have changed, the decoder loses its place, takes too many blocks for too
    few bytes, falls into step again and has the last blocks left over. Huffman codes fall into step
    after a few symbols, so the last few thousand bytes, decoded by themselves as a column of
    blocks, tell: pixels end with a block in the last byte, foreign bytes in the midst of one.
    """
    stop = data.rfind(b"\xff\xd9")
    start = max(header.scan, stop - 6000)
    if header.restarts:
        start = max(start, 2 + max(data.rfind(bytes((0xFF, 0xD0 + n)), start, stop) for n in range(8)))
    tail = data[start + (data[start] == 0) : stop]
    unit_width, unit_height = header.unit
    head = bytearray(data[: header.scan])

    def holds(blocks: int, tail: bytes) -> bool:
        struct.pack_into(">HH", head, header.frame + 5, blocks * unit_height, unit_width)
        return "premature" not in _complaint_of(bytes(head) + tail + b"\xff\xd9", header.colours)

    low, high = 0, 65_000 // unit_height
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle, tail) else (low, middle - 1)
    return low > 0 and not holds(low, tail[: -2 if tail.endswith(b"\xff\x00") else -1])
