"""JPEG files: each kind of damage, what is harmless, and no alarm on what is sound."""

from __future__ import annotations

import io
import random
import re
import struct
import zlib
from base64 import b64decode, b85decode
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ftkit._images.decoding.checks import check_bytes
from ftkit._images.decoding.jpeg import JpegHeader, _has_all_scans

Encode = Callable[..., bytes]
Found = Callable[..., list[str]]
Judge = Callable[..., bool]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9, 0.99])
def test_a_cut_jpeg_is_truncated(
    is_unusable: Judge, share: float, progressive: bool, image: Image.Image, encode: Encode
) -> None:
    """Wherever it is cut."""
    data = encode(image, progressive=progressive)
    assert is_unusable(data[: int(len(data) * share)])


def test_a_missing_end_marker_alone_loses_no_pixels(found: Found, is_unusable: Judge, jpegs: list[bytes]) -> None:
    """It has a kind of its own: the file can be mended."""
    assert found(jpegs[0][:-2]) == found(jpegs[0][:-1]) == ["missing_eoi"]
    assert is_unusable(jpegs[0][:-2])


@pytest.mark.parametrize("progressive", [False, True])
def test_a_missing_end_marker_below_a_plain_area(
    found: Found, image: Image.Image, encode: Encode, progressive: bool
) -> None:
    """Grey as gaps are filled with: whether it is one is told by the pixels, which Pillow refuses to load."""
    padded = Image.new("RGB", (image.width, 2 * image.height), (128, 128, 128))
    padded.paste(image)
    whole = encode(padded, progressive=progressive)
    assert found(whole[:-2]) == found(whole[:-1]) == ["missing_eoi"]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [8, 16, 437, 4096, 9000])
def test_padding_in_place_of_the_end_marker(
    found: Found, is_unusable: Judge, image: Image.Image, encode: Encode, size: int, progressive: bool
) -> None:
    """Loaders get every pixel of such a file, unless Pillow refuses it; of one that was cut before, they do not."""
    data = encode(image, progressive=progressive)[:-2]
    assert found(data + bytes(size)) == ["missing_eoi"]
    assert is_unusable(data + bytes(size)) == progressive
    for share in (0.2, 0.5, 0.9, 0.97):
        assert found(data[: int(len(data) * share)] + bytes(size))[0] in ("truncated", "damaged")


@pytest.mark.parametrize("progressive", [False, True])
def test_text_in_place_of_the_end_marker(
    found: Found, jpegs: list[bytes], image: Image.Image, encode: Encode, progressive: bool
) -> None:
    """So it is with what a server adds."""
    text = b"\r\n\r\n<!-- served by x -->"
    data = encode(image, progressive=progressive)[:-2]
    assert found(data + text) == ["missing_eoi"]
    assert found(data[: len(data) // 2] + text) == ["truncated"]


def test_a_byte_left_over_where_sectors_changed_places(photo: Callable[..., Image.Image], encode: Encode) -> None:
    """Being one, it is the same byte all along, and yet no padding."""
    verdicts = []
    for seed in (79, 83, 201, 823, 904):
        data = encode(photo(seed, (160, 130)), quality=60, subsampling="4:4:4")
        for at in range(1024, len(data) - 1024, 256):
            moved = data[:at] + data[at + 512 : at + 1024] + data[at : at + 512] + data[at + 1024 :]
            notes = check_bytes("x.jpg", moved).notes
            verdicts += [note.kind for note in notes if re.search(": [12] extraneous", note.detail)]
    assert len(verdicts) >= 5
    assert set(verdicts) == {"damaged"}


def test_a_progressive_file_that_has_lost_a_scan(is_unusable: Judge, image: Image.Image, encode: Encode) -> None:
    """The decoder only complains of the head of a later one, which is harmless by itself."""
    data = encode(image, progressive=True)
    at = data.index(b"\x01\x3f\x21") - 7  # where the next but last bit of brightness is
    assert data[at : at + 2] == b"\xff\xda"
    stop = data.index(b"\xff\xda", at + 2)
    stop = data.find(b"\xff\xc4", at, stop) if b"\xff\xc4" in data[at:stop] else stop
    assert is_unusable(data[:at] + data[stop:])


def test_zeros_in_a_file_of_unusual_sampling(
    is_unusable: Judge, found: Found, photo: Callable[..., Image.Image], encode: Encode
) -> None:
    """The fast decoder does not take it, and Pillow takes anything for pixels."""
    for seed in range(3):
        data = plane_by_plane(photo(seed, (320, 240)), encode, (0x22, 0x11, 0x22))
        assert found(data) == []
        for foreign in FOREIGN.values():
            assert found(data[:2] + b"\xff\xe5\x03\xea" + bytes(1000) + data[2:-2] + foreign + data[-2:]) == []
        scan = data.index(b"\xff\xda") + 10
        assert is_unusable(data[: scan + 500] + bytes(1024) + data[scan + 1524 :])


def test_a_file_of_unusual_sampling_that_ends_too_early(
    is_unusable: Judge, found: Found, photo: Callable[..., Image.Image], encode: Encode
) -> None:
    """An end marker behind it makes it no whole one; what stands behind the marker of a whole one is told."""
    for seed in range(3):
        data = plane_by_plane(photo(seed, (160, 120)), encode, (0x22, 0x11, 0x22))
        assert found(data + b"x" * 9) == ["trailing_data"]
        for stop in (*(int(share * len(data)) for share in (0.3, 0.6, 0.9, 0.99)), data.rindex(b"\xff\xda")):
            assert is_unusable(data[:stop].rstrip(b"\xff") + b"\xff\xd9")


@pytest.mark.parametrize(
    "options",
    [{"quality": 75}, {"quality": 90}, {"optimize": True}, {"progressive": True}, {"subsampling": 0}],
    ids=str,
)
def test_zeros_in_a_small_file(
    is_unusable: Judge, photo: Callable[..., Image.Image], encode: Encode, options: dict[str, object]
) -> None:
    """Decoders take them for coefficients of a few blocks, and complain of nothing where as many blocks were lost."""
    for seed in range(5):
        data = encode(photo(seed, (200, 150)), **options)
        scan = data.rindex(b"\xff\xda") + 20
        for size in (256, 512) if "progressive" in options else (128, 512):
            for at in range(scan, len(data) - size - 20, 400):
                assert is_unusable(data[:at] + bytes(size) + data[at + size :])


def test_zeros_beside_what_is_harmless(is_unusable: Judge, photo: Callable[..., Image.Image], encode: Encode) -> None:
    """A complaint about the header, or of a missing end marker, hides none."""
    for seed in range(4):
        data = encode(photo(seed, (200, 150)), quality=90)
        at = data.index(b"\xff\xda") + 700
        for whole in (data[:11] + b"\7\x09" + data[13:], data[:-2]):
            assert is_unusable(whole[:at] + bytes(1024) + whole[at + 1024 :])


PLAIN = {
    "of one color": lambda x, _: 0 * x + 90,
    "getting darker": lambda x, _: 255 - x // 8,
    "getting brighter downwards": lambda _, y: y / 4,
    "in stripes": lambda x, _: 128 + 3 * np.cos(np.pi * x / 4),
    "in a pattern": lambda x, y: 128 + 30 * np.cos((2 * (x % 8) + 1) * np.pi / 4) * np.cos((y % 8 + 0.5) * np.pi / 2),
    "in dots": lambda x, y: 128 - 24 * ((x % 8 == 0) & (y % 8 == 0)),
    "half plain": lambda x, y: np.where(y < 300, 120, x * y % 251),
}


@pytest.mark.parametrize("sort", PLAIN)
def test_zeros_that_encoders_write(found: Found, encode: Encode, sort: str) -> None:
    """By tables that were made for it, a plain picture may be coded as nothing but zeros."""
    y, x = np.mgrid[:600, :1600].astype(np.float64)
    image = Image.fromarray(np.broadcast_to(PLAIN[sort](x, y), x.shape).round().astype(np.uint8))
    files = [
        encode(image.convert(mode), quality=quality, **how)
        for mode in ("L", "RGB")
        for quality in (10, 75, 100)
        for how in ({"optimize": True}, {"progressive": True})
    ]
    assert any(bytes(64) in data[data.index(b"\xff\xda") :] for data in files)
    assert not [kind for data in files for kind in found(data) if kind in ("damaged", "decoder_warning")]


def test_a_later_picture_that_was_cut(found: Found, is_unusable: Judge, jpegs: list[bytes]) -> None:
    """Loaders take the first one, which is whole."""
    first, second, third = (Image.open(io.BytesIO(data)) for data in jpegs[:3])
    buffer = io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second, third])
    data = buffer.getvalue()
    end = data.index(b"\xff\xd9") + 2
    assert found(data) == found(data + bytes(99)) == []
    assert found(data[:-3000]) == found(data[: end + 3000]) == ["truncated"]
    assert found(data[:end]) == ["damaged"]
    assert not is_unusable(data[:-3000])
    assert not is_unusable(data[:end])
    assert is_unusable(data[: end - 3000])


def test_visible_bit_rot_is_found(is_unusable: Judge, jpegs: list[bytes]) -> None:
    """Of changes that show in a hundredth of the pixels, nine of ten and more are found; Pillow finds few."""
    rng = random.Random(7)
    visible = found_some = pillow = 0
    for data in jpegs:
        before = np.asarray(Image.open(io.BytesIO(data)), np.int16)
        for size in (1, 8, 64, 512):
            garbled = bytearray(data)
            at = rng.randrange(1000, len(data) - 600)
            garbled[at : at + size] = rng.randbytes(size)
            try:
                after = np.asarray(Image.open(io.BytesIO(garbled)), np.int16)
                raised = False
            except OSError:
                raised = True
            if raised or (abs(after - before).max(2) > 24).mean() >= 0.01:
                visible += 1
                pillow += raised
                found_some += is_unusable(bytes(garbled))
    assert visible > 30
    assert found_some >= 0.9 * visible
    assert pillow < 0.7 * visible


def test_harmless_complaints_are_only_odd(found: Found, jpegs: list[bytes]) -> None:
    """An odd JFIF revision and foreign bytes, between segments or before the end, cost no pixel."""
    for data in jpegs[:4]:
        revision = bytearray(data)
        assert revision[6:11] == b"JFIF\0"
        revision[11:13] = b"\x07\x09"
        assert found(bytes(revision)) == ["decoder_warning"]
        assert found(data[:-2] + bytes(1153) + data[-2:]) == ["decoder_warning"]
        assert found(data[:20] + b"stray" + data[20:]) == ["decoder_warning"]


def test_bits_that_shift_the_blocks_are_no_foreign_bytes(jpegs: list[bytes]) -> None:
    """When bits change, blocks get lost and bytes are left over; that is told from foreign bytes."""
    rng = random.Random(4)
    missed = shifted = 0
    for data in jpegs:
        for _ in range(6):
            garbled = bytearray(data)
            for _ in range(12):
                garbled[rng.randrange(1000, len(data) - 400)] ^= 1 << rng.randrange(8)
            notes = check_bytes("x.jpg", bytes(garbled)).notes
            said = " ".join(note.detail for note in notes)
            if "extraneous bytes before marker 0xd9" in said:
                shifted += 1
                missed += notes[0].kind != "damaged"
    assert shifted >= 10
    assert missed == 0


def test_foreign_bytes_are_told_from_pixels(found: Found, jpegs: list[bytes]) -> None:
    """What an encoder never writes is foreign; of what may be pixels, nobody says that all is well."""
    page = b"<!DOCTYPE html><title>504 Gateway Time-out</title><p>The server did not answer in time.</p>" * 9
    for data in jpegs[:6]:
        whole = data[:-2] + page + data[-2:]
        assert not [note for note in check_bytes("x.jpg", whole).notes if note.kind == "damaged" and not note.severity]
    assert [found(data[:-2] + page + data[-2:]) for data in jpegs].count(["decoder_warning"]) >= 8


def plane_by_plane(image: Image.Image, encode: Encode, sampling: tuple[int, ...] = (0x11, 0x11, 0x11)) -> bytes:
    """Return a picture in baseline coding, with a scan for each component."""
    widest = max(sampling) >> 4
    sampled = zip(image.convert("YCbCr").split(), sampling, strict=True)
    planes = [encode(plane.reduce(widest // (factors >> 4))) for plane, factors in sampled]
    frame, scan = planes[0].index(b"\xff\xc0"), planes[0].index(b"\xff\xda")
    size = planes[0][frame + 5 : frame + 9]
    heads = b"".join(bytes((name, factors, 0)) for name, factors in enumerate(sampling, 1))
    data = planes[0][:frame] + b"\xff\xc0\0\x11\x08" + size + b"\x03" + heads + planes[0][frame + 13 : scan]
    for name, plane in enumerate(planes, 1):
        head = bytes((0, 8, 1, name, 0, 0, 63, 0))
        data += b"\xff\xda" + head + plane[plane.index(b"\xff\xda") + 10 : -2]
    return data + b"\xff\xd9"


FOREIGN = {
    "a line end": b"\r\n\r\n",
    "a remark": b"Created with foo 1.0",
    "a page": b"<title>504 Gateway Time-out</title>" * 200,
    "numbers": random.Random(6).randbytes(300).replace(b"\xff", b"\xfe"),
    "few numbers": random.Random(8).randbytes(9).replace(b"\xff", b"\xfe"),
}
SORTS: dict[str, Callable[[Image.Image, Encode], bytes]] = {
    "progressive": lambda image, encode: encode(image, progressive=True),
    "small": lambda image, encode: encode(image.resize((37, 21)), progressive=True),
    "full colors": lambda image, encode: encode(image, progressive=True, subsampling="4:4:4"),
    "grey": lambda image, encode: encode(image.convert("L"), progressive=True),
    "inks": lambda image, encode: encode(image.convert("CMYK"), progressive=True),
    "restarts": lambda image, encode: encode(image, progressive=True, restart_marker_blocks=7),
    "plane by plane": plane_by_plane,
    "arithmetic": lambda _, __: ARITHMETIC,
}


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN)
def test_foreign_bytes_at_the_end_of_any_sort_of_file(
    found: Found, is_unusable: Judge, image: Image.Image, encode: Encode, sort: str, foreign: bytes
) -> None:
    """Nothing is lost, and the file stays; also where another picture follows, as in photos of phones."""
    data = SORTS[sort](image, encode)
    whole = data[:-2] + foreign + data[-2:]
    assert set(found(data)) <= {"cmyk", "tiny"}
    for file in (whole, whole + encode(image.resize((64, 48)))):
        assert not is_unusable(file)
    assert "damaged" not in found(whole) or sort not in ("progressive", "small", "full colors", "grey", "inks")


@pytest.mark.parametrize("sort", [sort for sort in SORTS if sort not in ("small", "arithmetic")])
def test_changed_bytes_in_the_last_scan(
    is_unusable: Judge, photo: Callable[..., Image.Image], encode: Encode, sort: str
) -> None:
    """Pixels that are left over then are no foreign bytes."""
    rng = random.Random(2)
    found = total = 0
    for seed in range(4):
        data = SORTS[sort](photo(seed), encode)
        scan = data.rindex(b"\xff\xda") + 10
        for change in (lambda old: bytes([old[0] ^ 4, *old[1:]]), lambda old: rng.randbytes(len(old)), lambda _: b""):
            for size in (1, 60):
                at = rng.randrange(scan, (scan + len(data)) // 2)
                spoiled = data[:at] + change(data[at : at + size]) + data[at + size :]
                total += check_bytes("x.jpg", spoiled).notes not in ([], check_bytes("x.jpg", data).notes)
                found += is_unusable(spoiled)
        holed = data[: scan + 300] + bytes(2000) + data[scan + 2300 :]
        assert len(data) < scan + 3000 or is_unusable(holed)
    assert found >= 0.9 * total


def test_foreign_bytes_in_a_file_that_is_too_long_to_be_read(is_unusable: Judge, encode: Encode) -> None:
    """Its codes would take until the timeout: what can't be told then is no damage."""
    noise = np.random.default_rng(0).integers(0, 256, (1700, 1800, 3), np.uint8)
    for progressive in (False, True):
        data = encode(Image.fromarray(noise), quality=96, progressive=progressive)
        assert len(data) > 3_000_000
        assert not is_unusable(data[:-2] + FOREIGN["numbers"] + data[-2:])
    data = encode(Image.fromarray(noise), quality=96)
    assert is_unusable(data[:1_000_000] + data[1_000_500:])


@pytest.mark.parametrize("change", [(b"\r", b"\n"), (b"\r", b""), (b"\n", b"\r\n")], ids=repr)
@pytest.mark.parametrize("seed", [2, 3, 5])
def test_files_that_were_sent_as_text(
    is_unusable: Judge, photo: Callable[..., Image.Image], encode: Encode, seed: int, change: tuple[bytes, bytes]
) -> None:
    """However few bytes are left over: on the way, blocks get more coefficients than there are."""
    assert is_unusable(encode(photo(seed, (500, 400))).replace(*change))


@pytest.mark.parametrize("quality", [75, 92])
def test_another_part_of_a_photo_at_its_end(photo: Callable[..., Image.Image], encode: Encode, quality: int) -> None:
    """What is left over then goes on as pixels do: nobody says that they are intact."""
    rng = random.Random(0)
    for seed in range(6):
        data = encode(photo(seed, (500, 400)), quality=quality)
        for _ in range(4):
            at = rng.randrange(len(data) // 4, len(data) // 2)
            spliced = data[:at] + data[2048 : 2048 + len(data) - at - 2] + data[-2:]
            assert "decoder_warning" not in [note.kind for note in check_bytes("x.jpg", spliced).notes]


def test_a_segment_that_has_lost_a_byte(is_unusable: Judge, jpegs: list[bytes]) -> None:
    """It takes in a byte of the next marker, the rest of which is then no foreign byte."""
    for data in jpegs[:4]:
        at = data.index(b"\xff\xdb") + 30
        assert is_unusable(data[:at] + data[at + 1 :])


def test_zeros_that_make_plain_blocks(is_unusable: Judge, photo: Callable[..., Image.Image], encode: Encode) -> None:
    """By the tables of a coarse photo they may, more of them than those that they have replaced."""
    for seed in (2, 4, 5, 7):
        data = encode(photo(seed, (240, 180)), quality=10, optimize=True)
        scan = data.index(b"\xff\xda") + 14
        for foreign in FOREIGN.values():
            assert not is_unusable(data[:-2] + foreign + data[-2:])
        for share in (0.1, 0.2, 0.3, 0.5):
            at = scan + int(share * (len(data) - scan))
            assert is_unusable(data[:at] + bytes(512) + data[at + 512 :])


def test_foreign_bytes_behind_a_plain_picture(found: Found, encode: Encode) -> None:
    """Its codes may be zeros."""
    plain = Image.new("RGB", (1200, 900), (250, 240, 230))
    data = encode(plain, optimize=True)
    assert bytes(256) in data
    for foreign in (bytes(20), bytes(500), *FOREIGN.values()):
        assert set(found(data[:-2] + foreign + data[-2:])) <= {"constant", "decoder_warning"}


def test_zeros_up_to_the_end_marker(is_unusable: Judge, photo: Callable[..., Image.Image], encode: Encode) -> None:
    """Padding begins where the pixels end."""
    found = 0
    for seed in range(6):
        data = encode(photo(seed, (500, 400)), quality=92)
        for share in (0.5, 0.8, 0.95):
            kept = int(share * len(data))
            holed = data[:kept] + bytes(len(data) - kept - 2) + data[-2:]
            assert "decoder_warning" not in [note.kind for note in check_bytes("x.jpg", holed).notes]
            found += is_unusable(holed)
    assert found >= 10


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(10, 90), st.integers(10, 90), st.integers(5, 100), st.booleans(),
    st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
)  # fmt: skip
def test_no_clean_jpeg_is_called_unusable(
    is_unusable: Judge,
    photo: Callable[..., Image.Image],
    encode: Encode,
    seed: int,
    width: int,
    height: int,
    quality: int,
    progressive: bool,
    subsampling: str,
) -> None:
    """Of any size, quality and coding."""
    picture = photo(seed, (4 * width, 3 * height))
    data = encode(picture, quality=quality, progressive=progressive, subsampling=subsampling)
    assert not is_unusable(data)


def test_a_progressive_file_that_ends_behind_a_scan(found: Found, image: Image.Image, encode: Encode) -> None:
    """It decodes without a complaint, blurred; only the last scan's end lacks nothing but the marker."""
    data = encode(image, progressive=True)
    scans = [at for at in range(len(data)) if data.startswith(b"\xff\xda", at)]
    for at in scans[1:]:
        assert found(data[:at]) == found(data[:at] + b"\xff") == ["truncated"]
    assert found(data[:-2]) == ["missing_eoi"]


def test_a_header_that_tells_another_sampling(is_unusable: Judge, jpegs: list[bytes]) -> None:
    """What is left over then are pixels, no foreign bytes."""
    for data in jpegs:
        garbled = bytearray(data)
        at = data.index(b"\xff\xc0") + 11
        for sampling in {0x11, 0x21, 0x22} - {data[at]}:
            garbled[at] = sampling
            assert is_unusable(bytes(garbled))


def test_arithmetic_coding_makes_up_what_is_missing() -> None:
    """So that no end can be believed that is not there."""
    assert not _has_all_scans(b"", JpegHeader(process=9, names=b"\x01"))
    assert _has_all_scans(b"", JpegHeader(process=0, names=b"\x01"))


# 64 x 48 pixels of grey by jpegtran -arithmetic, since Pillow writes no such files.
ARITHMETIC = b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABsSFBcUERsXFhceHBsgKEIrKCUlKFE6PTBCYFVlZF9VXVtqeJmBanGQc1tdhbWGkJ6jq62rZ4C8ybqm"
    "x5moq6T/yQALCAAwAEABAREA/8wABgAQEAX/2gAIAQEAAD8Aodn1tpVmK+/Q68Az00e1ZOwqu2iZECsgzuUcvAyWo08bLtXIHgACsaKSV8ABO6Uh"
    "HhGZHePWcV6IV3h57ngTlnsxCOOfxX33rEA5mk8ZEIel4ssqD7K8h1lMRnh1hQpgF1oSoKGTV3gQWHCE+D15TonqhXv/AKc+3tJeWOtg/wC3nBBT"
    "07ynYmvjMEOZ+iTQGVKXsk5T5iWkunGt7xUjBVhgkJFzri6s6R5XUxZlKqaBGMueXbeHM7JC7V2UHOUiJ3ZUosF/5/nxWdx//wC/cgw+R6nGafpT"
    "1kO4WqyL2sLy3+/ygr3HlXPqkluCgeNMVw8WTZAnHpjeySqNRnWpzxObcaW72kRgfEUdOABJP5Lh1m1GP+MG8boIa03u1k7tEsvL1xgQ34dn0yFb"
    "U8gC/wCgTBecYhlA0UpcjjQdDPYtjRgwebmtCttuIY65Etar18miN32ng9/hnDqMDBr5Dy9PTzSfIVIz9BWG5oI/kWyqA4DqWyEx1TOLPIqlemfH"
    "RQsLcJGAAePhbBCPP7DA/9k="
)


@given(st.integers(ARITHMETIC.index(b"\xff\xda") + 10, len(ARITHMETIC) - 1))
def test_a_file_in_arithmetic_coding(found: Found, end: int) -> None:
    """It is sound as a whole, and truncated wherever it ends."""
    assert found(ARITHMETIC) == []
    assert found(ARITHMETIC[:end]) == ["truncated"]


def test_an_odd_head_of_a_scan_whose_codes_are_not_read() -> None:
    """The decoder's last complaint hides others, so nobody can say that all pixels are there."""
    at = ARITHMETIC.index(b"\xff\xda") + 8
    assert ARITHMETIC[at] == 63
    (note,) = check_bytes("x.jpg", ARITHMETIC[:at] + b"\x3e" + ARITHMETIC[at + 1 :]).notes
    assert (note.kind, note.severity) == ("damaged", "odd")
    assert "may hide more" in note.detail


# 24 x 16 pixels by cjpeg -arithmetic -sample 3x1, which the strict decoder does not take.
WIDELY_SAMPLED = b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19iZ2hnPk1xeXBk"
    "eFxlZ2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2P/yQARCAAQABgD"
    "ATEAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/AHhv7UNhlDGbPC+4cfwwZEVxHlHlLn7BlR9E3YXp9S8DNgbxN4e6Jqj7J224yOhM"
    "JeSQ/9k="
)


@pytest.mark.parametrize("whole", [ARITHMETIC, WIDELY_SAMPLED], ids=["gray", "sampled"])
def test_a_file_in_arithmetic_coding_that_pillow_does_not_open(whole: bytes) -> None:
    """It fails where the pixels do not come in one of the pieces that it reads; other decoders don't."""
    size = (1 << 16) + 28 - len(whole)  # the first piece ends 30 bytes before the end
    data = whole[:2] + b"\xff\xfe" + struct.pack(">H", size) + bytes(size - 2) + whole[2:]
    with pytest.raises(OSError, match="broken data stream"), Image.open(io.BytesIO(data)) as image:
        image.load()
    (note,) = check_bytes("x.jpg", data).notes
    assert note.kind == "needs_package"
    assert "torchvision" in note.detail
    (note,) = check_bytes("x.jpg", data[:-40]).notes
    assert note.kind in ("truncated", "damaged")


def lossless(grey: Image.Image) -> bytes:
    """Return a picture in lossless coding (ITU-T T.81, annex H), each pixel predicted by the one before."""
    width, height = grey.size
    levels = np.asarray(grey, int)
    before = np.roll(levels, 1, axis=1)
    before[1:, 0], before[0, 0] = levels[:-1, 0], 128
    bits = ""
    for step in (levels - before).ravel().tolist():
        size = abs(step).bit_length()
        bits += f"{size:04b}" + (f"{step if step > 0 else step + (1 << size) - 1:0{size}b}" if size else "")
    bits += "1" * (-len(bits) % 8)
    coded = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)).replace(b"\xff", b"\xff\0")
    segments = (
        (0xC3, struct.pack(">BHHB3B", 8, height, width, 1, 1, 0x11, 0)),
        (0xC4, bytes((0, 0, 0, 0, 9, *[0] * 12, *range(9)))),  # nine codes, all of 4 bits
        (0xDA, bytes((1, 1, 0, 1, 0, 0))),
    )
    head = b"".join(bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body for marker, body in segments)
    return b"\xff\xd8" + head + coded + b"\xff\xd9"


def test_lossless_files_go_to_pillow(found: Found, image: Image.Image) -> None:
    """The fast decoder would crash over them."""
    picture = image.convert("L").resize((64, 48))
    data = lossless(picture)
    with Image.open(io.BytesIO(data)) as decoded:
        assert decoded.tobytes() == picture.tobytes()
    assert found(data) == []
    for share in (0.3, 0.6, 0.9):
        assert found(data[: int(share * len(data))]) == ["truncated"]


def test_a_header_that_makes_no_image(image: Image.Image, encode: Encode) -> None:
    """What is said of it is the same each time."""
    data, places = encode(image), random.Random(0)
    details = set()
    for _ in range(100):
        spoiled = bytearray(data)
        for _ in range(3):
            spoiled[places.randrange(2, 600)] = places.randrange(256)
        details |= {note.detail for note in check_bytes("x.jpg", bytes(spoiled)).notes}
    assert "cannot identify image file" in details
    assert not [detail for detail in details if "object at" in detail]


# Small test pictures by ffmpeg: JPEG-LS in grey, and lossless JPEG in YCbCr.
JPEG_LS = "|JeWc01F5J2mlZP0TBTI+5iXv0RR9100001oR$B1|8oXc4dj@9lq5&$B9ZGPbL}J7W}dx2fdAP"
LOSSLESS = (
    "c-pm+SxggA6o$`qrWDXPrS3~iP;en8rdHh0P83BUHHav<C3VLo5yb_U(4wfQFGK+m(G<mvC8?;WsL7ype{kGIjnazP(pIQW!OpbIcx%u|d@(NP"
    "KHQuC-1DFBE@G`{26<deYz$x$01OQfZ(_&MQi^>GXb((+6Vd=#U{G);3~=mw{F0P|1jBI&flH+Xfif8=2SkWe5vrUR&^2L^Y{0s1Bew597C3NH"
    "<@N3}AGyL*i_>-l1^4LLt9PI9L4$`3jTjj@YV??~<Dw@|iJ3YrHZF12?4;y5bLTBtx@>vMij}L@Z`imgee;&BSvz;_&fc?k-+|n`{DTFD3J)JI"
    "IdSsT=`*Ee=gwcKx_Iew^_3f@o40P?xqI*a<0ns_J%3UA@|ERX{riRwR$HU}(`VM*()z{2@gWFVLJ&A1^CM%DbpLrm2x+J?Krt~vwrE|~0VB2t"
    "cAK>SSmpJgfvTCV?u*kN1@{OWX$k-2r~U^0d(1oj2>J)}4`k5<A%P$VIgTknq5xb0;w$KkV<3^^a`Y;k4}jFTnLIAOP6R!Wac<*5F4dy7Bp#s3"
    "$d9QSmdfR68)<cc$KljAi(n@6`C@Q0DlWc4$Q1lFZ@5%cy=%N*)^PE8NY3=XH>u&72DR~v2v!kNs3a<rjAXT?yrGG1ItwhN;^}fh@3*Mb-4Z|m"
    "-dF~tilr)e234S*tTvK2lnQpi4rGOou?t2QSwqq_0A3&N_{rcee34$x(=`;bM98!tLI;a~;f%s7LbIz~>9ErwIG}^>?djB-Ni$i7uG!y_sptS="
    "Y$|RC@!>A`Z^WcVJ)_Onw9R1PL@3~N^_S6X;PeHrUz^RGHs54&PatzVzG1_oA9_T{S*<H-yk?AeL!b3_(QVr#&<>9Ctm$i0XW4b9vn@iFO<iJF"
    "Dx<tYx&6}U@gh)8wJANFVFi=3UvnX6NPbqDST9f|#jMKC)I{Z4nS!Vs4QiUl>FZh_;0+oo&aIwbk3QPk>fzCR30hSZeb7&D(IvBO=bc^B>S}4N"
    "4`W&uDBZHBN2tO!+4GF4tPuJ(Bcb}L72Q&6|D;B%VPVu0bxOkott~kF&QY28@+%QNaS8"
)


@pytest.mark.parametrize("kind", ["JPEG-LS", "lossless JPEG", "12-bit JPEG"])
def test_kinds_that_pillow_does_not_open(found: Found, image: Image.Image, encode: Encode, kind: str) -> None:
    """They need a package, unless an end is missing."""
    deep = bytearray(encode(image, progressive=True))
    deep[deep.index(b"\xff\xc2") + 4] = 12
    lossless = zlib.decompress(b85decode(LOSSLESS))
    data = {"JPEG-LS": b85decode(JPEG_LS), "lossless JPEG": lossless, "12-bit JPEG": bytes(deep)}[kind]
    (note,) = check_bytes("x.jpg", data).notes
    assert note.kind == "needs_package"
    assert kind in note.detail
    assert "imagecodecs" in note.detail
    for stop in (30, len(data) - 20, len(data) - 2):
        assert found(data[:stop]) in (["damaged"], ["truncated"])


def test_a_number_of_components_that_pillow_does_not_open(found: Found, image: Image.Image, encode: Encode) -> None:
    """Two make no picture to Pillow, and no damage; a changed bit does not make two of three."""
    data = encode(image.convert("L"))
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    coded = data[scan + 10 : -2]
    start = data[:frame] + b"\xff\xc0\0\x0e" + data[frame + 4 : frame + 9] + b"\2\1\x11\0\2\x11\0"
    scans = b"".join(b"\xff\xda\0\x08\1" + bytes((name, 0, 0, 63, 0)) + coded for name in (1, 2))
    whole = start + data[frame + 13 : scan] + scans + b"\xff\xd9"
    assert found(whole) == ["needs_package"]
    assert found(whole[:-400]) in (["damaged"], ["truncated"])
    changed = bytearray(encode(image))
    changed[changed.index(b"\xff\xc0") + 9] ^= 1
    assert found(bytes(changed)) == ["damaged"]


def test_a_changed_bit_makes_no_lossless_file(found: Found, image: Image.Image, encode: Encode) -> None:
    """Its pixels are coded otherwise, which the head of the scan tells."""
    assert found(encode(image).replace(b"\xff\xc0", b"\xff\xc3", 1)) == ["damaged"]


@pytest.mark.parametrize("progressive", [False, True])
def test_a_height_behind_the_pixels(
    progressive: bool, found: Found, is_unusable: Judge, image: Image.Image, encode: Encode
) -> None:
    """As coders write it that don't know it before; it is judged as if it stood where decoders look for it."""
    data = encode(image, progressive=progressive)
    at = data.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5
    scan = data.index(b"\xff\xda")
    end = data.index(b"\xff\xc4", scan) if progressive else len(data) - 2
    whole = data[:at] + b"\0\0" + data[at + 2 : end] + b"\xff\xdc\0\4" + data[at : at + 2] + data[end:]
    assert found(whole) == ["needs_package"]
    for share in (0.3, 0.6, 0.9):
        assert is_unusable(whole[: int(share * len(whole))])
    assert is_unusable(whole[: scan + 400] + bytes(600) + whole[scan + 1000 :])
    assert is_unusable(data[:at] + b"\0\0" + data[at + 2 :])
