"""TIFF files that Pillow does not open: sound ones are told from damaged ones."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from ftkit._images.decoding.checks import check_bytes

_FORMATS = {"u": 1, "i": 2, "f": 3, "c": 6}


Tags = dict[int, tuple[int, ...]]


def assemble(
    pieces: list[bytes], tags: Tags, tiled: bool = False, large: bool = False, is_big_first: bool = False
) -> bytes:
    """Return a TIFF file of these strips or tiles, as a big-endian BigTIFF if large; an empty one is left out."""
    order = ">" if large or is_big_first else "<"
    number, unit, of_unit, start = (order + "Q", "Q", 16, 16) if large else (order + "H", "I", 4, 8)
    size = struct.calcsize(unit)
    at, places, pixels = start, [], b"".join(pieces)
    for piece in pieces:
        places.append(at if piece else 0)
        at += len(piece)
    offsets, sizes = (324, 325) if tiled else (273, 279)
    tags = tags | {offsets: tuple(places), sizes: tuple(map(len, pieces))}
    tags = {tag: values for tag, values in sorted(tags.items()) if values}
    end = at + struct.calcsize(number) + (4 + 2 * size) * len(tags) + size
    directory, more = struct.pack(number, len(tags)), b""
    for tag, values in tags.items():
        value = struct.pack(f"{order}{len(values)}{unit}", *values)
        if len(values) > 1:
            more, value = more + value, struct.pack(order + unit, end + len(more))
        directory += struct.pack(f"{order}HH{unit}", tag, of_unit, len(values)) + value
    head = b"MM\0+\0\x08\0\0" if large else b"MM\0*" if is_big_first else b"II*\0"
    return head + struct.pack(order + unit, at) + pixels + directory + bytes(size) + more


def tiff(pixels: np.ndarray, coding: int = 1, meaning: int = 1) -> bytes:
    """Return a TIFF file of one strip with the numbers as they are, of shape (rows, columns, channels)."""
    rows, columns, channels = pixels.shape
    form = _FORMATS[pixels.dtype.kind]
    tags = form_of(columns, rows, 8 * pixels.itemsize, channels, meaning) | {259: (coding,), 339: (form,) * channels}
    return assemble([pixels.tobytes()], tags | {338: (0,) * (channels - 1)})


def form_of(columns: int, rows: int, bits: int, channels: int, meaning: int) -> Tags:
    """Return the tags that tell the form of raw pixels in one strip."""
    return {
        256: (columns,), 257: (rows,), 258: (bits,) * channels, 259: (1,), 262: (meaning,), 277: (channels,),
        278: (rows,),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "channels", "coding", "words"),
    [
        ("f8", 1, 1, "1 channel of 64-bit floating-point numbers"),
        ("f2", 1, 1, "1 channel of 16-bit floating-point numbers"),
        ("f4", 3, 1, "3 channels of 32-bit floating-point numbers"),
        ("u2", 13, 1, "13 channels of 16-bit unsigned numbers"),
        ("u2", 4, 1, "4 channels of 16-bit unsigned numbers"),
        ("c8", 1, 1, "1 channel of 64-bit complex numbers"),
        ("f4", 1, 34887, "32-bit floating-point numbers in LERC"),
        ("u1", 3, 34933, "3 channels of 8-bit unsigned numbers in PNG"),
        ("u1", 3, 33004, "in JPEG 2000"),
        ("u1", 3, 34892, "in JPEG"),
        ("u1", 3, 34926, "in Zstandard"),
        ("u1", 3, 34927, "in WebP"),
        ("u1", 3, 50013, "in Pixtiff"),
        ("u1", 1, 60201, "in coding 60201"),
    ],
)
def test_numbers_that_pillow_does_not_open(kind: str, channels: int, coding: int, words: str) -> None:
    """They are no damage, unless the file was cut off."""
    data = tiff(np.random.default_rng(0).random((20, 30, channels)).astype(kind), coding)
    (note,) = check_bytes("x.tif", data).notes
    assert (note.kind, note.severity) == ("needs_package", None)
    assert words in note.detail
    pixels = 20 * 30 * channels * np.dtype(kind).itemsize
    for cut in (data[: pixels // 2], data[: pixels + 20], data[:6]):
        (note,) = check_bytes("x.tif", cut).notes
        assert note.kind in ("damaged", "truncated")


SIDE = 32


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


PLANES = {284: (2,)}
BANDS = form_of(SIDE, SIDE, 16, 4, 1) | PLANES | {338: (0, 0, 0)}
SQUARES = form_of(SIDE, SIDE, 8, 1, 1) | {278: (), 322: (16,), 323: (16,)}
TILES = [noise(256), b"", noise(256), noise(256)]
SOUND = {
    "bands one by one": assemble([noise(2048)] * 4, BANDS),
    "tiles left out": assemble([zlib.compress(tile) if tile else b"" for tile in TILES], SQUARES | {259: (8,)}, True),
    "raw tiles left out": assemble([tile * 8 for tile in TILES], SQUARES | {258: (64,), 339: (3,)}, True),
    "a last strip that is padded": assemble([noise(5120)] * 2, form_of(SIDE, SIDE, 64, 1, 1) | {278: (20,), 339: (3,)}),
    "10 bits": assemble([noise(1280)], form_of(SIDE, SIDE, 10, 1, 1)),
    "6 bits, deflated": assemble([zlib.compress(noise(768))], form_of(SIDE, SIDE, 6, 1, 1) | {259: (8,)}),
    "24 bits": assemble([noise(3072)], form_of(SIDE, SIDE, 24, 1, 1)),
    "12-bit colors": assemble([noise(4608)], form_of(SIDE, SIDE, 12, 3, 2)),
    "4-bit colors": assemble([noise(1536)], form_of(SIDE, SIDE, 4, 3, 2)),
    "bands of no said purpose": assemble([noise(4096)], form_of(SIDE, SIDE, 8, 4, 1)),
    "signed, white is zero": assemble([noise(2048)], form_of(SIDE, SIDE, 16, 1, 0) | {339: (2,)}),
    "mosaic of colors": assemble([noise(1024)], form_of(SIDE, SIDE, 8, 1, 32803) | {33422: (0, 1, 1, 2)}),
    "linear colors": assemble([noise(6144)], form_of(SIDE, SIDE, 16, 3, 34892)),
    "mask": assemble([noise(128)], form_of(SIDE, SIDE, 1, 1, 4)),
    "mask of bytes": assemble([noise(1024)], form_of(SIDE, SIDE, 8, 1, 4)),
    "32 bits, big end first": assemble([noise(4096)], form_of(SIDE, SIDE, 32, 1, 1), is_big_first=True),
    "white is zero, big end first": assemble([noise(2048)], form_of(SIDE, SIDE, 16, 1, 0), is_big_first=True),
    "heights as a plane": assemble([noise(1024)] * 2, form_of(SIDE, SIDE, 16, 1, 1) | PLANES | {278: (16,), 339: (2,)}),
    "4 bits in tiles, as a plane": assemble([noise(128)] * 4, SQUARES | PLANES | {256: (28,), 258: (4,)}, True),
    "two channels in planes": assemble([noise(1024)] * 2, form_of(SIDE, SIDE, 8, 2, 1) | PLANES | {338: (0,)}),
    "a fourth plane": assemble([noise(1024)] * 4, form_of(SIDE, SIDE, 8, 4, 2) | PLANES | {338: (0,)}),
    "bits the other way round": assemble([noise(6144)], form_of(SIDE, SIDE, 16, 3, 2) | {266: (2,)}),
    "4-bit colors in LZMA": assemble([noise(300)], form_of(SIDE, SIDE, 4, 3, 2) | {259: (34925,)}),
    "1-bit colors in Zstandard": assemble([noise(300)], form_of(SIDE, SIDE, 1, 3, 2) | {259: (50000,)}),
    "JPEG in planes, with transparency": assemble(
        [noise(300)] * 4, form_of(SIDE, SIDE, 8, 4, 6) | PLANES | {259: (7,), 338: (2,)}
    ),
    "large palette": assemble([noise(2048)], form_of(SIDE, SIDE, 16, 1, 3) | {320: tuple(range(1 << 16)) * 3}),
}


@pytest.mark.parametrize("data", SOUND.values(), ids=SOUND)
def test_what_pillow_does_not_take(data: bytes) -> None:
    """It needs a package; so long as bytes are missing it is damaged, whatever its form."""
    (note,) = check_bytes("x.tif", data).notes
    assert note.kind == "needs_package"
    assert "tifffile" in note.detail
    directory = struct.unpack_from("<I" if data.startswith(b"II") else ">I", data, 4)[0]
    for stop in (directory // 3, directory + 20, len(data) - 1):
        (note,) = check_bytes("x.tif", data[:stop]).notes
        assert note.kind in ("damaged", "truncated")


@pytest.mark.parametrize("name", [name for name in SOUND if "deflated" in name or name == "tiles left out"])
def test_coded_bytes_that_are_garbled(name: str) -> None:
    """They are decoded, whatever the samples stand for."""
    data = bytearray(SOUND[name])
    data[300:330] = bytes(30)
    (note,) = check_bytes("x.tif", bytes(data)).notes
    assert note.kind in ("damaged", "truncated")


LARGE = {
    "grey": ([noise(1024)], form_of(SIDE, SIDE, 8, 1, 1)),
    "colors": ([noise(1536)] * 2, form_of(SIDE, SIDE, 8, 3, 2) | {278: (16,)}),
    "deep": ([zlib.compress(noise(2048))], form_of(SIDE, SIDE, 16, 1, 1) | {259: (8,)}),
    "black and white, untold": ([zlib.compress(noise(128))], form_of(SIDE, SIDE, 1, 1, 1) | {258: (), 259: (8,)}),
    "black and white": ([noise(64)], form_of(SIDE, SIDE, 1, 1, 1) | {259: (4,)}),
    "some tiles": ([zlib.compress(tile) if tile else b"" for tile in TILES], SQUARES | {259: (8,)}, True),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # a worker takes no notice of warnings
@pytest.mark.parametrize("name", LARGE)
def test_large_files_with_the_big_end_first(name: str) -> None:
    """Pillow does not know them for BigTIFF; they are sound unless bytes are missing or garbled."""
    data = assemble(*LARGE[name], large=True)
    (note,) = check_bytes("x.tif", data).notes
    assert note.kind == "needs_package"
    is_checked = name in ("deep", "some tiles", "black and white, untold")
    data = data[:100] + bytes(30) + data[130:] if is_checked else data[: len(data) // 2]
    (note,) = check_bytes("x.tif", data).notes
    assert note.kind in ("damaged", "truncated")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("coding", [1, 8, 50000])
@pytest.mark.parametrize("is_tiled", [False, True])
def test_a_picture_of_which_all_was_left_out(large: bool, coding: int, is_tiled: bool) -> None:
    """As GDAL and tifffile write what has no data yet: sound, unless pixels are there whose places were lost."""
    if coding == 50000:
        try:
            Image.new("L", (8, 8)).save(io.BytesIO(), "TIFF", compression="zstd")
        except (OSError, KeyError):
            pytest.skip("this Pillow was built without Zstandard")
    tags = (SQUARES if is_tiled else form_of(SIDE, SIDE, 8, 1, 1) | {278: (8,)}) | {259: (coding,)}
    data = assemble([b""] * 4, tags | {42112: (97,) * 3000}, is_tiled, large)
    (note,) = check_bytes("x.tif", data).notes
    assert note.kind == "needs_package"
    assert "all tiles of which were left out" in note.detail
    for size in (600, 9000):
        (note,) = check_bytes("x.tif", data + noise(size)).notes
        assert note.kind == "damaged"


@pytest.mark.parametrize("coding", [1, 8])
def test_a_strip_that_ends_early(coding: int) -> None:
    """Its size is checked against that of the picture, once it is decoded."""
    code: Callable[[bytes], bytes] = zlib.compress if coding > 1 else bytes
    for bits in (10, 12, 24, 64):
        tags = form_of(SIDE, SIDE, bits, 1, 1) | {259: (coding,), 339: (3 if bits > 24 else 1,)}
        data = assemble([code(noise(SIDE * SIDE * bits // 8 - 64))], tags)
        assert "needs_package" not in [note.kind for note in check_bytes("x.tif", data).notes]


@pytest.mark.parametrize("is_tiled", [False, True])
def test_a_coding_that_this_pillow_was_built_without(
    is_tiled: bool, image: Image.Image, encode: Callable[..., bytes]
) -> None:
    """Nothing tells whether the pixels are sound, but that they are not all there."""
    try:
        encode(image.convert("L"), "TIFF", compression="webp")
    except OSError:
        tags = (SQUARES if is_tiled else form_of(SIDE, SIDE, 8, 1, 1) | {278: (8,)}) | {259: (50001,)}
        data = assemble([noise(200)] * 4, tags, is_tiled)
        (note,) = check_bytes("x.tif", data).notes
        assert note.kind == "needs_package"
        assert "TIFF in WEBP" in note.detail
        last = struct.pack("<I", 8 + 3 * 200)
        assert data.count(last) == 1
        (note,) = check_bytes("x.tif", data.replace(last, struct.pack("<I", len(data) - 199))).notes
        assert note.kind == "truncated"
    else:
        pytest.skip("this one has it")


@pytest.mark.parametrize("sharing", [(2, 2), (2, 1), (4, 1), (1, 2), ()], ids=str)
@pytest.mark.parametrize("is_tiled", [False, True])
def test_colors_that_pixels_share(sharing: tuple[int, ...], is_tiled: bool) -> None:
    """Raw ones, as ffmpeg writes them, which Pillow refuses, or garbles where enough bytes follow."""
    across, down = sharing or (2, 2)
    size = -(-(16 if is_tiled else 30) // across) * (across * down + 2) * 16 // down
    tags = form_of(30, 32, 8, 3, 6) | {530: sharing} | ({278: (), 322: (16,), 323: (16,)} if is_tiled else {278: (16,)})
    for more in (b"", noise(9000)):
        data = assemble([noise(size)] * (4 if is_tiled else 2), tags, is_tiled) + more
        (note,) = check_bytes("x.tif", data).notes
        assert note.kind == "needs_package"
        assert f"a color for {across} x {down} pixels" in note.detail
        (note,) = check_bytes("x.tif", data[: size + 8]).notes
        assert note.kind in ("damaged", "truncated")
    (note,) = check_bytes("x.tif", assemble([noise(size - 20)] * (4 if is_tiled else 2), tags, is_tiled)).notes
    assert note.kind == "truncated"


def test_planes_that_pillow_opened_before_they_were_garbled(image: Image.Image, encode: Callable[..., bytes]) -> None:
    """No package opens them."""
    planes = [encode(plane, quality=90) for plane in image.split()]
    tags = form_of(*image.size, 8, 3, 2) | {259: (7,), 284: (2,)}
    assert check_bytes("x.tif", assemble(planes, tags)).notes == []
    garbled = bytearray(assemble(planes, tags))
    garbled[200:900] = random.Random(0).randbytes(700)
    (note,) = check_bytes("x.tif", bytes(garbled)).notes
    assert note.kind == "damaged"


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"])
def test_a_directory_that_was_damaged_is_no_kind_of_its_own(
    image: Image.Image, encode: Callable[..., bytes], compression: str | None
) -> None:
    """Of flipped bits in the tags, none turns a picture that Pillow opened into one that it can't."""
    data = encode(image.resize((40, 30)), "TIFF", compression=compression)
    start = int.from_bytes(data[4:8], "little")
    number = int.from_bytes(data[start : start + 2], "little")
    for at in range(start, start + 2 + 12 * number):
        for bit in range(0, 8, 2):
            changed = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
            assert "needs_package" not in [note.kind for note in check_bytes("x.tif", changed).notes]


def test_a_plane_that_pillow_passes_over() -> None:
    """It takes the first of two; if the second was cut off, the picture is not whole all the same."""
    plane = zlib.compress(noise(1024))
    data = assemble([plane] * 2, form_of(SIDE, SIDE, 8, 2, 1) | PLANES | {259: (8,), 338: (0,)})
    assert check_bytes("x.tif", data).notes == []
    second = struct.pack("<I", 8 + len(plane))
    assert data.count(second) == 1
    (note,) = check_bytes("x.tif", data.replace(second, struct.pack("<I", len(data)))).notes
    assert note.kind == "truncated"


@pytest.mark.parametrize("channels", [1, 3])
def test_zeros_that_jpeg_may_have(
    channels: int, photo: Callable[..., Image.Image], encode: Callable[..., bytes]
) -> None:
    """A tile without data is coded as zeros, by tables made for it; in the place of other codes, they are a hole."""
    picture = Image.new("RGB", (1024, 1024), (40, 60, 90))
    picture.paste(photo(2, (1024, 80)))
    tile = encode(picture if channels == 3 else picture.convert("L"), quality=80, optimize=True)
    tags = form_of(*picture.size, 8, channels, 6 if channels == 3 else 1) | {259: (7,)}
    assert bytes(3000) in tile
    assert check_bytes("x.tif", assemble([tile], tags)).notes == []
    for size in (512, 4096):
        for share in (0.1, 0.3, 0.5):
            at = int(share * len(tile))
            holed = tile[:at] + bytes(size) + tile[at + size :]
            (note,) = check_bytes("x.tif", assemble([holed], tags)).notes
            assert note.kind == "damaged"


@pytest.mark.parametrize("coding", ["packbits", "deflate"])
def test_the_lowest_bit_first(coding: str, photo: Callable[..., Image.Image], encode: Callable[..., bytes]) -> None:
    """As tiffcp and ImageMagick write it: decoders turn the bytes before they unpack them."""
    grey = photo(3, (64, 48)).convert("L")
    rows = [grey.crop((0, y, 64, y + 1)).tobytes() for y in range(48)]
    packed = zlib.compress(b"".join(rows)) if coding == "deflate" else b"".join(bytes([63]) + row for row in rows)
    turned = bytes(int(f"{byte:08b}"[::-1], 2) for byte in packed)
    tags = form_of(64, 48, 8, 1, 1) | {259: (8 if coding == "deflate" else 32773,), 266: (2,)}
    whole = assemble([turned], tags)
    assert Image.open(io.BytesIO(whole)).tobytes() == grey.tobytes()
    assert check_bytes("x.tif", whole).notes == []
    (note,) = check_bytes("x.tif", assemble([turned[:600] + bytes(600) + turned[1200:]], tags)).notes
    assert note.kind == "damaged"
