"""The verdict on a single file: each kind of damage and oddity, and no alarm on what is sound."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from ftkit._images.checks import check_bytes, check_file, do_thumbnail
from ftkit._images.findings import KINDS
from ftkit._images.seams import confirm_seam

Encode = Callable[..., bytes]


def found(data: bytes, name: str = "x.jpg") -> list[str]:
    """Return the kinds of the findings on these bytes."""
    return [note[0] for note in check_bytes(name, data).notes]


def is_unusable(data: bytes, name: str = "x.jpg") -> bool:
    """Whether any finding says so."""
    notes = check_bytes(name, data).notes
    return any((note[2] if len(note) > 2 else KINDS[note[0]].severity) == "unusable" for note in notes)


@pytest.fixture(scope="session")
def image(photo: Callable[..., Image.Image]) -> Image.Image:
    """Return a photograph."""
    return photo(3)


@pytest.mark.parametrize(
    ("form", "options", "suffix"),
    [
        ("JPEG", {"quality": 60}, ".jpg"),
        ("JPEG", {"progressive": True}, ".JPEG"),
        ("JPEG", {"subsampling": "4:4:4", "restart_marker_rows": 2}, ".jpg"),
        ("PNG", {}, ".png"),
        ("WEBP", {"lossless": True}, ".webp"),
        ("BMP", {}, ".bmp"),
        ("TIFF", {"compression": "tiff_lzw"}, ".tif"),
        ("PPM", {}, ".ppm"),
    ],
)
def test_sound_files_of_all_forms_are_clean(
    form: str, options: dict[str, object], suffix: str, image: Image.Image, encode: Encode
) -> None:
    """No finding, the right format and size, and fingerprints."""
    verdict = check_bytes(f"a{suffix}", encode(image, form, **options))
    assert verdict.notes == []
    assert verdict.form == (form, "RGB", *image.size)
    assert verdict.prints is not None


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9, 0.99])
def test_a_cut_jpeg_is_truncated(share: float, progressive: bool, image: Image.Image, encode: Encode) -> None:
    """Wherever it is cut."""
    data = encode(image, progressive=progressive)
    assert is_unusable(data[: int(len(data) * share)])


def test_a_missing_end_marker_alone_loses_no_pixels(jpegs: list[bytes]) -> None:
    """It has a kind of its own: the file can be mended."""
    assert found(jpegs[0][:-2]) == found(jpegs[0][:-1]) == ["missing_eoi"]
    assert is_unusable(jpegs[0][:-2])


def test_visible_bit_rot_is_found(jpegs: list[bytes]) -> None:
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


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_a_shift_that_no_decoder_complains_of(
    subsampling: str, photo: Callable[..., Image.Image], encode: Encode
) -> None:
    """Changed bits can leave sound codes for blocks that are all too bright from one on; edges of a scene are not."""
    unit = 8 if subsampling == "4:4:4" else 16

    def shifted(seed: int, top: int, left: int, turn: int) -> bytes:
        pixels = np.asarray(photo(seed, (512, 384)), np.int16) // 2 + 40
        pixels[top:, left:] += 45
        pixels[top + turn :, :left] += 45
        return encode(Image.fromarray(pixels.astype(np.uint8)), quality=92, subsampling=subsampling)

    seen = [found(shifted(seed, 10 * unit, 7 * unit, unit)) for seed in range(10)]
    assert seen.count(["damaged"]) >= 8
    for seed in range(10):
        assert found(shifted(seed, 10 * unit, 7 * unit, 0)) == []  # a horizon
        assert found(shifted(seed, 10 * unit + 3, 7 * unit, unit)) == []  # off the grid
        assert found(shifted(seed, 10 * unit, 7 * unit, 3 * unit)) == []  # a building


def test_a_frame_on_a_line_of_blocks_is_no_seam() -> None:
    """An edge that ends at a column of blocks is a seam only if it goes on above the row from there."""
    turning = np.full((160, 160), 200, np.uint8)
    turning[112:, :96] = 100
    ending = turning.copy()
    turning[96:, 96:] = 100
    assert confirm_seam(turning, 6, 6, 16, 16)
    assert not confirm_seam(ending, 6, 6, 16, 16)


def test_harmless_complaints_are_only_odd(jpegs: list[bytes]) -> None:
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
            said = " ".join(note[1] for note in notes)
            if "extraneous bytes before marker 0xd9" in said:
                shifted += 1
                missed += notes[0][0] != "damaged"
    assert shifted >= 10
    assert missed == 0


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Take a PNG file apart."""
    parts, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        parts.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return parts


def joined(parts: list[tuple[bytes, bytes]], spoil: bytes = b"") -> bytes:
    """Put a PNG file together, with a wrong CRC on the chunks called ``spoil``."""
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in parts:
        crc = zlib.crc32(name + body) ^ (name == spoil)
        data += struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)
    return data


def test_png_checksums(image: Image.Image, encode: Encode) -> None:
    """A wrong CRC over sound pixels is odd; over changed pixels the file is unusable."""
    parts = chunks(encode(image, "PNG"))
    assert found(joined(parts), "a.png") == []
    assert found(joined(parts, spoil=b"IDAT"), "a.png") == ["bad_crc"]
    text = joined([*parts[:1], (b"tEXt", b"a\0b"), *parts[1:]], spoil=b"tEXt")
    assert found(text, "a.png") == ["bad_crc"]
    assert is_unusable(text, "a.png")  # Pillow refuses it
    assert found(joined(parts)[:-12], "a.png") == ["missing_end"]
    whole = bytearray(joined(parts))
    whole[len(whole) // 2] ^= 4
    assert found(bytes(whole), "a.png") == ["damaged"]
    short = [(name, body[: len(body) // 2] if name == b"IDAT" else body) for name, body in parts]
    assert is_unusable(joined(short), "a.png")


@pytest.mark.parametrize("form", ["PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_other_formats_cut_off(form: str, image: Image.Image, encode: Encode) -> None:
    """Pillow decodes all of it, so that a missing end is seen."""
    data = encode(image, form)
    for share in (0.05, 0.3, 0.9):
        assert is_unusable(data[: int(len(data) * share)], f"a.{form.lower()}")


def test_odd_forms(image: Image.Image, encode: Encode) -> None:
    """Inks, 16 bits, transparency, animation, orientation, size and shape each have their kind."""
    exif = Image.Exif()
    exif[274] = 6
    sixteen = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    frames = [image.rotate(turn).convert("P") for turn in (0, 30, 60)]
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE)
    assert found(encode(image.convert("CMYK"))) == ["cmyk"]
    assert found(encode(sixteen, "PNG"), "a.png") == ["sixteen_bit"]
    assert found(encode(palette, "PNG", transparency=bytes(range(256))), "a.png") == ["transparency"]
    assert found(encode(image.convert("RGBA"), "PNG"), "a.png") == ["transparency"]
    gif = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert found(gif, "a.gif") == ["animated", "unlisted_suffix"]
    assert found(encode(image, exif=exif)) == found(encode(image, "PNG", exif=exif), "a.png") == ["exif_rotated"]
    assert found(encode(image, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(20))) == ["bad_exif"]
    assert found(encode(image) + bytes(99)) == ["trailing_data"]
    assert found(encode(image, "PNG"), "a.jpg") == ["wrong_suffix"]
    assert found(encode(image), "a.jfif") == found(encode(image), "noext") == ["unlisted_suffix"]
    assert found(encode(Image.new("RGB", (1, 1)))) == ["tiny", "constant"]
    assert found(encode(image.resize((2000, 40)))) == ["extreme_aspect"]
    assert found(encode(Image.new("RGB", (300, 200), (9, 90, 9)))) == ["constant"]


def test_a_cut_photo_that_was_saved_again(monkeypatch: pytest.MonkeyPatch, jpegs: list[bytes], encode: Encode) -> None:
    """Its lower part has the grey of a decoder; a grey that was photographed does not pass for that."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for data in jpegs[:4]:
        grey = Image.open(io.BytesIO(data[: int(len(data) * 0.6)])).convert("RGB")
        assert found(encode(grey, quality=95)) == ["half_grey"]
    pixels = np.asarray(Image.open(io.BytesIO(jpegs[0])).convert("RGB")).copy()
    pixels[150:] = (128, 130, 90)
    assert "half_grey" not in found(encode(Image.fromarray(pixels), quality=95))


def test_bombs(encode: Encode) -> None:
    """More pixels than Pillow takes are refused by the header alone."""
    parts = chunks(encode(Image.new("RGB", (8, 8)), "PNG"))
    parts[0] = (b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    assert found(joined(parts), "a.png") == ["bomb"]


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
    """Under an image's name it is unusable, and the detail says what it is; under another it is another file."""
    ((kind, detail),) = check_bytes("x.png", data).notes
    assert kind == "not_an_image"
    assert words in detail
    assert found(data, "notes.txt") == ["other_file"]


def test_places_that_can_not_be_read(tmp_path: Path) -> None:
    """A file that is not there, a link to nothing, a folder."""
    assert check_file(str(tmp_path / "x.jpg")).notes[0][0] == "vanished"
    (tmp_path / "link.jpg").symlink_to("gone")
    assert check_file(str(tmp_path / "link.jpg")).notes[0][0] == "broken_link"
    assert check_file(str(tmp_path)).notes == [("special_file", "a folder")]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_bytes_raise_and_no_harm_goes_by_unseen(jpegs: list[bytes], data: st.DataObject) -> None:
    """However a file is cut or its bytes changed, there is a verdict; a cut is never called usable."""
    whole = data.draw(st.sampled_from(jpegs))
    if data.draw(st.booleans()):
        cut = whole[: data.draw(st.integers(0, len(whole) - 3))]
        assert is_unusable(cut)
        do_thumbnail("x.jpg", 64, cut)
    else:
        changed = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 40))):
            changed[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
        check_bytes("x.jpg", bytes(changed))
        do_thumbnail("x.jpg", 64, bytes(changed))


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


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(10, 90), st.integers(10, 90), st.integers(5, 100), st.booleans(),
    st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
)  # fmt: skip
def test_no_clean_jpeg_is_called_unusable(
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
