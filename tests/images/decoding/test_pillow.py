"""What Pillow decodes: the other formats, and what is no image at all."""

from __future__ import annotations

import base64
import io
import random
import struct
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from ftkit._images.decoding.checks import check_bytes

Encode = Callable[..., bytes]
Found = Callable[..., list[str]]
Judge = Callable[..., bool]


@pytest.mark.parametrize("form", ["PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_other_formats_cut_off(is_unusable: Judge, form: str, image: Image.Image, encode: Encode) -> None:
    """Pillow decodes all of it, so that a missing end is seen."""
    data = encode(image, form)
    for share in (0.05, 0.3, 0.9):
        assert is_unusable(data[: int(len(data) * share)], f"a.{form.lower()}")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<!DOCTYPE html><title>404 Not Found</title>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "Git LFS"),
        (b"Access denied\n", "text"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (bytes(range(7, 200)) * 9, "unknown content"),
        (b"PK\x03\x04" + bytes(range(100)), "zip"),
    ],
)
def test_what_is_no_image(data: bytes, words: str) -> None:
    """It is unusable, and the detail says what it is."""
    ((kind, detail, _),) = check_bytes("x.png", data).notes
    assert kind == "not_an_image"
    assert words in detail


def test_a_pam_that_was_cut_off(found: Found) -> None:
    """It has fewer pixels than it says."""
    data = b"P7\nWIDTH 4\nHEIGHT 4\nDEPTH 1\nMAXVAL 255\nTUPLTYPE GRAYSCALE\nENDHDR\n" + bytes(range(15))
    assert found(data, "a.pnm") == ["truncated"]


def test_a_finding_does_not_quote_a_text() -> None:
    """A link may lead to any file, and a report may be shared."""
    (note,) = check_bytes("x.jpg", b"root:x:0:0:root:/root:/bin/bash\n").notes
    assert note == ("not_an_image", "text, 32 bytes", None)


def test_an_animation_of_very_many_frames(encode: Encode) -> None:
    """However small they are, no more than 2,000 of them are decoded."""
    data = encode(Image.new("L", (1, 1)), "GIF")
    start, end = data.index(b","), data.rindex(b";")
    frame = data[start:end]
    many = data[:start] + frame * 2500
    garbled = many + frame[:10] + b"\x0c\xff" + b";"
    assert [note.kind for note in check_bytes("a.gif", garbled).notes if note.kind in ("damaged", "truncated")] == []


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "ICO", "TGA"]), st.data())
def test_no_bytes_of_other_formats_raise(image: Image.Image, form: str, data: st.DataObject) -> None:
    """The same for what Pillow decodes."""
    buffer = io.BytesIO()
    image.resize((64, 48)).save(buffer, form)
    changed = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 20))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    check_bytes("x.png", bytes(changed[: data.draw(st.integers(1, len(changed)))]))


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("AVIF", {}),
        ("JPEG2000", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg"}),
        ("TIFF", {"compression": "tiff_deflate"}),
    ],
)
def test_zeros_in_the_midst_of_coded_pixels(
    is_unusable: Judge, form: str, options: dict[str, object], image: Image.Image, encode: Encode
) -> None:
    """A sector that was not written is seen, whether or not the decoder minds."""
    data = encode(image, form, **options)
    assert not is_unusable(data, f"a.{form.lower()}")
    for share in (0.4, 0.6):
        at = int(len(data) * share)
        assert is_unusable(data[:at] + bytes(512) + data[at + 512 :], f"a.{form.lower()}")


# A checkerboard of 128 x 128 pixels by opj_compress -M 1 -n 2: bits that bypass the coder.
BYPASS = (
    "c-s5#|38pHlK})8pcn>F`Hbw0jQ@iectA`BMiv$zFNT5L!NJ2L;C~8(Dg&c)QEFmIYKlTqrGkG!YMxhstGhy3YEf}!ex8Dno~fR}{|O9SAd|QbF)"
    ";q0+%Wm`AI6CiT*{0t2^u}DK&u4(JJ$cN|6l*T<$^qj9)+V2H(WIu1fy^?k&MF8L^2BLl1Lav!H5RHWN;Gzfew$p"
)


def test_zeros_that_a_jpeg_2000_may_have(is_unusable: Judge) -> None:
    """Bits that bypass the arithmetic coder are as they come: regular pictures have sectors of zeros."""
    data = zlib.decompress(base64.b85decode(BYPASS))
    assert bytes(512) in data
    assert not is_unusable(data, "a.jp2")


@pytest.mark.parametrize("compression", ["tiff_ccitt", "group4", "packbits", "jpeg"])
def test_what_libtiff_makes_up(
    is_unusable: Judge, compression: str, photo: Callable[..., Image.Image], encode: Encode
) -> None:
    """Pillow takes what libtiff only grumbles about; of PackBits, the runs of pixels don't add up to rows."""
    rng = random.Random(0)
    found = 0
    for seed in range(4):
        picture = photo(seed).convert("RGB" if compression in ("packbits", "jpeg") else "1")
        data = encode(picture, "TIFF", compression=compression)
        assert not is_unusable(data, "a.tif")
        for size in (64, 512):
            at = rng.randrange(len(data) // 4, len(data) // 2)
            found += is_unusable(data[:at] + rng.randbytes(size) + data[at + size :], "a.tif")
    assert found >= (4 if compression == "jpeg" else 7)


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("compression", ["jpeg", "tiff_lzw"])
def test_tags_that_are_cut_off(image: Image.Image, encode: Encode, compression: str) -> None:
    """Pillow reads no tag behind the first whose value is cut off; libtiff does, and loads every pixel."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[305] = 40 * "x"  # the software, which is written behind the pixels
    data = encode(image, "TIFF", compression=compression, tiffinfo=tags)
    at = data.index(b"\x31\x01\x02\0\x29\0\0\0")
    cut = data[: at + 8] + len(data).to_bytes(4, "little") + data[at + 12 :]
    assert [note[::2] for note in check_bytes("x.tif", cut).notes] == [("truncated", "odd")]
    assert Image.open(io.BytesIO(cut)).tobytes() == Image.open(io.BytesIO(data)).tobytes()


def test_a_later_page_that_is_cut_off_is_odd(image: Image.Image, encode: Encode, is_unusable: Judge) -> None:
    """Loaders read the first one, which is sound."""
    data = encode(
        image, "TIFF", save_all=True, append_images=[image.rotate(90), image.rotate(180)], compression="tiff_lzw"
    )
    # Of the last page, the pixels are garbled.
    with Image.open(io.BytesIO(data)) as pages:
        pages.seek(2)
        at = pages.tag_v2[273][0]
    garbled = data[:at] + b"\xff" * 3000 + data[at + 3000 :]
    notes = check_bytes("a.tif", garbled).notes
    assert [note.severity for note in notes if note.kind in ("damaged", "truncated")] == ["odd"]
    assert any("the first frame loads, but frame 3 does not" in note.detail for note in notes)
    assert not is_unusable(garbled, "a.tif")


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "jpeg"])
def test_a_file_of_pages_that_ends_early(
    image: Image.Image, encode: Encode, is_unusable: Judge, compression: str | None
) -> None:
    """It is as good as its first page, wherever behind that it ends: in the pixels of another, or in its directory."""
    pages = [image.rotate(90), image.rotate(180)]
    data = encode(image, "TIFF", save_all=True, append_images=pages, compression=compression)
    for share in (0.2, 0.4, 0.6, 0.8, 0.99):
        cut = data[: int(len(data) * share)]
        kinds = [note.kind for note in check_bytes("a.tif", cut).notes if note.severity == "odd"]
        loads = share > 1 / 3
        assert is_unusable(cut, "a.tif") != loads
        assert (kinds in (["damaged"], ["truncated"])) == loads


def test_an_animated_png_that_ends_early(image: Image.Image, encode: Encode, is_unusable: Judge) -> None:
    """The first frame loads, which is what loaders read."""
    data = encode(image, "PNG", save_all=True, append_images=[image.rotate(90), image.rotate(180)])
    _, second, third = (at for at in range(len(data)) if data.startswith(b"fcTL", at))
    for frame, cut in ((2, data[: second + 2000]), (3, data[: third + 2000])):
        details = [note.detail for note in check_bytes("a.png", cut).notes]
        assert any(f"the first frame loads, but frame {frame} does not" in detail for detail in details)
        assert not is_unusable(cut, "a.png")
    assert is_unusable(data[: second // 2], "a.png")


def test_what_needs_a_package_names_it() -> None:
    """Pillow has plug-ins for it."""
    (note,) = check_bytes("a.heic", b"\0\0\0\x18ftypheic" + bytes(200)).notes
    assert note.kind == "needs_package"
    assert "pillow-heif" in note.detail


@pytest.mark.parametrize(
    ("data", "package"),
    [
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(200), "pillow-jxl-plugin"),
        (b"PF\n4 4\n-1.0\n" + bytes(192), "imageio"),
        (b"P7\nWIDTH 4\nHEIGHT 4\nDEPTH 1\nMAXVAL 255\nTUPLTYPE GRAYSCALE\nENDHDR\n" + bytes(range(16)), "netpbm"),
    ],
    ids=["JPEG XL in a container", "colors in PFM", "PAM"],
)
def test_what_pillow_does_not_open_is_an_image(data: bytes, package: str) -> None:
    """It is not moved by default."""
    (note,) = check_bytes("a.img", data).notes
    assert note.kind == "needs_package"
    assert package in note.detail


def test_tga_of_15_bits(found: Found, is_unusable: Judge, image: Image.Image) -> None:
    """Of a pixel, which may be coded, or of a color in the palette; Pillow takes 16, where they would stand alike."""
    width, height = image.size
    size = struct.pack("<HH", width, height)
    rows = random.Random(0).randbytes(2 * width * height)
    runs = b"".join(bytes([127]) + rows[at : at + 256] for at in range(0, len(rows), 256))
    raw, coded = (bytes((0, 0, kind)) + bytes(9) + size + b"\x0f\0" for kind in (2, 10))
    palette = struct.pack("<BBBHHB", 0, 1, 1, 0, 256, 15) + bytes(4) + size + b"\x08\0" + rows[:512]
    for whole in (raw + rows, coded + runs, palette + rows[: len(rows) // 2]):
        assert found(whole, "a.tga") == ["needs_package"]
        assert is_unusable(whole[: len(whole) // 2], "a.tga")


def brands(*names: bytes) -> bytes:
    """Return the beginning of a file of these brands, the first one being its own."""
    told = names[0] + bytes(4) + b"".join(names[1:])
    return (8 + len(told)).to_bytes(4, "big") + b"ftyp" + told + bytes(300)


@pytest.mark.parametrize("names", [[b"hevm"], [b"avci"], [b"j2ki"], [b"mif2"], [b"isom", b"mif1", b"heic"]], ids=str)
def test_brands_of_heif(names: list[bytes]) -> None:
    """There are many, and the one that tells may be among those that a file is compatible with."""
    (note,) = check_bytes("a.heic", brands(*names)).notes
    assert note.kind == "needs_package"
    assert "pillow-heif" in note.detail


@pytest.mark.parametrize("size", [4, 12], ids=["32 bits", "64 bits"])
def test_boxes_that_were_cut_off(size: int, found: Found) -> None:
    """Without the package, the size of the last box tells; of what others have put behind the picture, nothing does."""
    told = (8 + size - 4 + 900).to_bytes(4, "big") if size == 4 else (1).to_bytes(4, "big")
    pixels = told + b"mdat" + ((16 + 900).to_bytes(8, "big") if size == 12 else b"") + bytes(900)
    for head in (b"\0\0\0\x10ftypheic" + bytes(4), b"\0\0\0\x0cJXL \r\n\x87\n"):
        data = head + b"\0\0\0\x18meta" + bytes(16) + pixels
        for whole in (data, data + b"\0\1\0\0SEFT", data + bytes(300)):
            assert found(whole, "a.img") == ["needs_package"]
        for stop in (len(data) - 1, len(data) // 2, len(head) + 20):
            assert found(data[:stop], "a.img") == ["truncated"]


def test_brands_of_what_is_no_still_image(found: Found) -> None:
    """Films have brands, too; an AVIF file that Pillow can't read stays damaged."""
    assert found(brands(b"isom", b"iso2", b"avc1", b"mp41"), "a.heic") == ["not_an_image"]
    for names in ([b"avif"], [b"mif1", b"avif", b"miaf"], [b"MA1B", b"mif1", b"avif"]):
        assert found(brands(*names), "a.avif") in (["damaged"], ["needs_package"])


def bitmap(coding: int, bits: int, pixels: bytes) -> bytes:
    """Return a BMP file of 64 x 48 pixels."""
    form = struct.pack("<IiiHHIIiiII", 40, 64, 48, 1, bits, coding, len(pixels), 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(pixels), 0, 0, 54) + form + pixels


@pytest.mark.parametrize("form", ["BMP", "PPM"])
def test_raw_pixels_that_were_sent_as_text(found: Found, image: Image.Image, encode: Encode, form: str) -> None:
    """Loaders take such a file, and shift its rows; but a picture in plain text may have any line ends."""
    name, plain = f"x.{form.lower()}", b"P3\n40 20\n255\n" + b"10 20 30\n40 50 255\n" * 400
    data = encode(image.resize((72, 51)), form)
    assert b"\n" in data[60:]
    assert found(data, name) == []
    assert found(data.replace(b"\n", b"\r\n"), name) == ["damaged"]
    assert found(plain.replace(b"\n", b"\r\n"), "x.ppm") == found(plain, "x.ppm") == []


def test_kinds_of_bmp_that_pillow_does_not_know(found: Found, image: Image.Image, encode: Encode) -> None:
    """They need another program, unless something is missing."""
    small = image.resize((64, 48))
    for data in (bitmap(0, 64, bytes(64 * 48 * 8)), bitmap(4, 0, encode(small)), bitmap(5, 0, encode(small, "PNG"))):
        assert found(data, "a.bmp") == ["needs_package"]
    assert found(bitmap(0, 64, bytes(64 * 48 * 4)), "a.bmp") == ["damaged"]
    assert found(bitmap(9, 24, bytes(64 * 48 * 3)), "a.bmp") == ["damaged"]


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
def test_remarks_that_pillow_finds_too_large(found: Found, image: Image.Image, encode: Encode, name: bytes) -> None:
    """As programs note down how they made a picture: it needs another, unless pixels are missing."""
    data = encode(image, "PNG")
    head = b"x\0\1\0\0\0" if name == b"iTXt" else b"x\0\0"
    body = name + head + zlib.compress(bytes(2_000_000))
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    whole = data[:33] + chunk + data[33:]
    assert found(whole, "a.png") == ["needs_package"]
    for cut in (whole[: len(whole) // 2], whole[:-60] + bytes(40) + whole[-20:]):
        kinds = found(cut, "a.png")
        assert "needs_package" not in kinds
        assert {"damaged", "truncated"} & set(kinds)


@pytest.mark.parametrize("profile", [b"", bytes(548)])
@pytest.mark.parametrize(
    ("bits", "masks"),
    [
        (16, (0xF00, 0xF0, 0xF, 0xF000)),
        (16, (0xF00, 0xF0, 0xF, 0)),
        (16, (0x7C00, 0x3E0, 0x1F, 0x8000)),
        (16, (0x1F, 0x7E0, 0xF800, 0)),
        (32, (0x3FF00000, 0xFFC00, 0x3FF, 0xC0000000)),
    ],
)
def test_bits_of_colors_that_pillow_does_not_know(
    found: Found, bits: int, masks: tuple[int, ...], profile: bytes
) -> None:
    """ImageMagick and games write them; one changed bit makes no such file of one that Pillow opens."""
    pixels = random.Random(0).randbytes(64 * 48 * bits // 8)
    form = struct.pack("<IiiHHIIiiII4I", 124, 64, 48, 1, bits, 3, len(pixels), 2835, 2835, 0, 0, *masks).ljust(
        124, b"\0"
    )
    data = b"BM" + struct.pack("<IHHI", 138 + len(pixels) + len(profile), 0, 0, 138) + form + pixels + profile
    is_known = masks[:3] == (0x7C00, 0x3E0, 0x1F)
    assert found(data, "a.bmp") == ([] if is_known else ["needs_package"])
    for cut in (data[: len(data) // 2], data[: -len(profile) - 1]):
        assert found(cut, "a.bmp") in (["damaged"], ["truncated"])
    known = (0xF800, 0x7E0, 0x1F, 0) if bits == 16 else (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    for place in range(4):
        for bit in range(bits):
            changed = list(known)
            changed[place] ^= 1 << bit
            assert "needs_package" not in found(data[:54] + struct.pack("<4I", *changed) + data[70:], "a.bmp")


@pytest.mark.parametrize("frames", [1, 3])
def test_an_animated_webp(image: Image.Image, encode: Encode, frames: int) -> None:
    """Some loaders refuse it, even if there is but one frame."""
    data = encode(image, "WEBP", save_all=True, append_images=[image.rotate(90), image.rotate(180)])
    if frames == 1:
        start = data.index(b"ANMF")
        data = data[12 : start + 8 + int.from_bytes(data[start + 4 : start + 8], "little")]
        data = b"RIFF" + (len(data) + 4).to_bytes(4, "little") + b"WEBP" + data
    (note,) = check_bytes("a.webp", data).notes
    assert note.kind == "animated"
    assert "torchvision" in note.detail
    assert check_bytes("a.webp", encode(image, "WEBP")).notes == []


def test_an_opaque_channel_is_no_transparency(found: Found, image: Image.Image, encode: Encode) -> None:
    """Only what shows something else in RGB."""
    assert found(encode(image.convert("RGBA"), "PNG"), "a.png") == []
    image = image.convert("RGBA")
    image.putpixel((3, 3), (0, 0, 0, 254))
    assert found(encode(image, "PNG"), "a.png") == ["transparency"]
