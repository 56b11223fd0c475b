"""JPEG 2000 files that Pillow refuses: sound ones are told from damaged ones."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from PIL import Image

from ftkit._images.decoding.checks import check_bytes
from ftkit._images.decoding.jpeg2000 import has_hole

Encode = Callable[..., bytes]
GREY = b"\0\0\0\x11"  # the number of that space of colors


def of_no_color(image: Image.Image, encode: Encode, **options: object) -> bytes:
    """Return three components in a file that says they are grey, as GDAL writes bands without a colour."""
    data = encode(image, "JPEG2000", **options)
    at = data.index(b"colr") + 7
    return data[:at] + GREY + data[at + 4 :]


def of_five(image: Image.Image, encode: Encode, **options: object) -> bytes:
    """Return a file that says there are five components; Pillow looks at none of them."""
    data = of_no_color(image, encode, **options)
    header, stream = data.index(b"ihdr"), data.index(b"\xff\x4f\xff\x51")
    head = data[: header + 12] + b"\0\5" + data[header + 14 : stream - 8]
    parts = data[stream : stream + 4], struct.pack(">H", 53), data[stream + 6 : stream + 40], b"\0\5"
    bare = b"".join((*parts, data[stream + 42 : stream + 51], b"\7\1\1" * 2, data[stream + 51 :]))
    return head + struct.pack(">I4s", 8 + len(bare), b"jp2c") + bare


def see_damage(data: bytes) -> None:
    """See that a file is told from one that was cut anywhere, or has other bytes in a sector."""
    for share in (0.01, 0.1, 0.5, 0.9, 0.999):
        (note,) = check_bytes("x.jp2", data[: int(share * len(data))]).notes
        assert note.kind in ("damaged", "truncated")
    for share in (0.3, 0.6, 0.9):
        at = int(share * len(data))
        for other in (bytes(512), b"\xff" * 512):
            (note,) = check_bytes("x.jp2", data[:at] + other + data[at + 512 :]).notes
            assert note.kind == "damaged"


@pytest.mark.parametrize("make", [of_no_color, of_five])
@pytest.mark.parametrize("options", [{}, {"tile_size": (128, 128)}], ids=["whole", "tiles"])
def test_components_that_pillow_does_not_take(
    make: Callable[..., bytes], options: dict[str, object], image: Image.Image, encode: Encode
) -> None:
    """They need a package, unless something is missing or has changed."""
    data = make(image, encode, **options)
    (note,) = check_bytes("x.jp2", data).notes
    assert (note.kind, note.severity) == ("needs_package", None)
    assert f"{5 if make is of_five else 3} components" in note.detail
    see_damage(data)
    head = data.index(b"\xff\x4f\xff\x51")
    for place in (15, 17, 35, 42, data.index(b"ihdr") + 13, head - 1, head - 5, head + 11, head + 41):
        changed = data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]
        assert check_bytes("x.jp2", changed).notes[0].kind in ("damaged", "truncated")


def on_a_grid(data: bytes, across: int, down: int) -> bytes:
    """Return a file that says its pixels are so many points of its grid apart, of which Pillow writes one for each."""
    spread, header, start = bytearray(data), data.index(b"ihdr") + 4, data.index(b"\xff\x4f\xff\x51")
    sizes = zip(struct.unpack_from(">8I", data, start + 8), (across, down) * 4, strict=True)
    struct.pack_into(">8I", spread, start + 8, *(size * step for size, step in sizes))
    components = data[start + 41]
    spread[start + 43 : start + 42 + 3 * components : 3] = bytes([across]) * components
    spread[start + 44 : start + 42 + 3 * components : 3] = bytes([down]) * components
    struct.pack_into(">II", spread, header, *(int.from_bytes(spread[start + at :][:4], "big") for at in (12, 8)))
    return bytes(spread)


@pytest.mark.parametrize("mode", ["L", "LA"])
@pytest.mark.parametrize("options", [{}, {"tile_size": (128, 128)}], ids=["whole", "tiles"])
def test_fewer_pixels_than_points_of_the_grid(
    options: dict[str, object], mode: str, image: Image.Image, encode: Encode
) -> None:
    """In gray, Pillow does not take them; they need a package, unless something is missing or has changed."""
    plain = encode(image.convert(mode), "JPEG2000", **options)
    for step in ((2, 2), (2, 1), (1, 2), (4, 4), (3, 3), (3, 1), (1, 9)):
        data = on_a_grid(plain, *step)
        for whole in (data, data[data.index(b"\xff\x4f\xff\x51") :]):
            (note,) = check_bytes("x.jp2", whole).notes
            assert (note.kind, note.severity) == ("needs_package", None)
            assert f"{step[0]} x {step[1]}" in note.detail
    data = on_a_grid(plain, 2, 2)
    see_damage(data)


def test_a_changed_bit_may_make_another_grid(image: Image.Image, encode: Encode) -> None:
    """All sizes on it still fit together, so it is said."""
    data = bytearray(encode(image.convert("L"), "JPEG2000"))
    at = data.index(b"\xff\x4f\xff\x51") + 43
    for place in (at, at + 1):
        for bit in range(8):
            changed = data.copy()
            changed[place] ^= 1 << bit
            (note,) = check_bytes("x.jp2", bytes(changed)).notes
            assert note.kind == "damaged" or "unless a bit has changed" in note.detail


@pytest.mark.parametrize("progression", ["LRCP", "RPCL"])
@pytest.mark.parametrize("side", [64, 256])
def test_zeros_in_precincts(
    side: int, progression: str, image: Image.Image, encode: Encode, is_unusable: Callable[..., bool]
) -> None:
    """As many as there are packets may be empty ones; more are a hole."""
    options = {"precinct_size": (side, side), "tile_size": (256, 256), "progression": progression}
    data = encode(image, "JPEG2000", **options)
    assert not is_unusable(data, "x.jp2")
    for size in (512, 4096):
        for share in (0.1, 0.5, 0.9):
            at = int(share * len(data))
            assert is_unusable(data[:at] + bytes(size) + data[at + size :], "x.jp2")


def of_empty_packets(encode: Encode) -> bytes:
    """Return a picture in grey as other coders write it: OpenJPEG sets a bit of each packet, even if it is empty."""
    options = {"precinct_size": (16, 16), "num_resolutions": 3}
    data = encode(Image.new("L", (320, 320), 128), "JPEG2000", **options)
    at = data.index(b"\xff\x93") + 2
    assert set(data[at:-2]) == {0x80}  # one that has nothing of any block
    return data[:at] + bytes(len(data) - at - 2) + data[-2:]


def of_blocks_without_a_layer(encode: Encode) -> bytes:
    """Return a picture whose second and third layer add nothing to any block."""
    options = {"quality_mode": "rates", "quality_layers": [40, 20, 10]}
    flat = Image.new("RGB", (320, 320), (200, 100, 50))
    return encode(flat, "JPEG2000", num_resolutions=1, codeblock_size=(4, 4), **options)


@pytest.mark.parametrize("make", [of_empty_packets, of_blocks_without_a_layer])
def test_zeros_that_coders_write(
    make: Callable[[Encode], bytes], encode: Encode, found: Callable[..., list[str]]
) -> None:
    """A picture of one color may have many in a row."""
    data = make(encode)
    assert bytes(512) in data
    assert "damaged" not in found(data, "x.jp2")
    at = data.index(bytes(512)) + 400
    assert "damaged" in found(data[:at] + bytes(3000) + data[at:], "x.jp2")


@pytest.mark.parametrize("remark", [b"\xff\x64\0\x10\0\1Lavc59.37.10", b""], ids=["named", "bit-exact"])
def test_markers_of_a_coder_that_is_not_strict(
    remark: bytes, image: Image.Image, encode: Encode, found: Callable[..., list[str]]
) -> None:
    """As ffmpeg leaves them between layers, unless there is but one; told to be bit-exact, it leaves no name."""
    for rates, kind in (([20, 5], "unlisted_suffix"), ([5], "damaged")):
        data = encode(image, "JPEG2000", quality_mode="rates", quality_layers=rates)
        at = len(data) * 2 // 3
        data = data[:at] + b"\xff\xf9" + data[at + 2 :]
        assert found(data, "x.jp2") == ["damaged"]
        start = data.index(b"\xff\x64")
        stop = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        data = data[:start] + remark + data[stop:]
        box = data.index(b"jp2c") - 4
        data = data[:box] + (len(data) - box).to_bytes(4, "big") + data[box + 4 :]
        assert found(data, "x.jp2") == [kind]


def test_more_packets_than_memory(image: Image.Image, encode: Encode) -> None:
    """A header may tell of any number, so nothing of that size is made."""
    data = bytearray(encode(image, "JPEG2000", precinct_size=(16, 16), num_resolutions=3))
    start, style = data.index(b"\xff\x4f\xff\x51"), data.index(b"\xff\x52")
    for at in (8, 12, 24, 28):  # width and height of the picture and of a tile
        data[start + at : start + at + 4] = b"\x7f\xff\xff\xff"
    data[style + 6 : style + 8] = b"\xff\xff"  # layers
    data[-1000:-400] = bytes(600)
    assert not has_hole(bytes(data))
