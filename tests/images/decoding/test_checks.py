"""The verdict on a single file, whatever it is."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from ftkit._images.decoding.checks import check_bytes, check_file, judge, open_bytes
from ftkit._images.decoding.pillow import thumbnail
from ftkit._images.verdict import Note

Encode = Callable[..., bytes]
Found = Callable[..., list[str]]
Judge = Callable[..., bool]


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


def test_odd_forms(found: Found, image: Image.Image, encode: Encode) -> None:
    """Inks, 16 bits, transparency, animation, orientation, size and shape each have their kind."""
    exif = Image.Exif()
    exif[274] = 6
    sixteen = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    frames = [image.rotate(turn).convert("P") for turn in (0, 30, 60)]
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE)
    assert found(encode(image.convert("CMYK"))) == ["cmyk"]
    assert found(encode(sixteen, "PNG"), "a.png") == ["sixteen_bit"]
    assert found(encode(palette, "PNG", transparency=bytes(range(256))), "a.png") == ["transparency"]
    assert found(encode(image.convert("RGBA"), "PNG"), "a.png") == []
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


@pytest.mark.parametrize("side", [1, 3, 7])
def test_small_pictures_of_inks(found: Found, image: Image.Image, encode: Encode, side: int) -> None:
    """An eighth of their sides is less than a pixel."""
    small = image.resize((side, 40)).convert("CMYK")
    assert set(found(encode(small))) <= {"tiny", "cmyk", "constant", "extreme_aspect"}
    assert "cmyk" in found(encode(small))


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_fault_of_a_check_condemns_no_file(
    monkeypatch: pytest.MonkeyPatch, image: Image.Image, encode: Encode, form: str, is_unusable: Judge
) -> None:
    """A file that loads is not damaged because the check went wrong; one that doesn't is, whatever else happens."""

    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr("ftkit._images.decoding.jpeg.judge_orientation", fail)
    monkeypatch.setattr("ftkit._images.decoding.jpeg._weigh", fail)
    monkeypatch.setattr("ftkit._images.decoding.pillow.has_leftover", fail)
    data = encode(image, form)
    assert check_bytes(f"a.{form.lower()}", data).notes == [Note("unjudged", "ZeroDivisionError: a fault")]
    assert is_unusable(data[: len(data) // 2], f"a.{form.lower()}")


def test_files_judged_together_come_to_what_each_comes_to(
    photo: Callable[..., Image.Image], encode: Callable[..., bytes]
) -> None:
    """Sound ones of any size and shape, a plain one, a tiny one, a broken one, none at all: none changes another's."""
    sizes = [(400, 300), (300, 400), (64, 1000), (20, 20)]
    sound = [encode(photo(seed, size), form) for seed, size in enumerate(sizes) for form in ("JPEG", "PNG")]
    plain = encode(Image.new("RGB", (200, 100), "teal"), "JPEG")
    files = [*sound[:3], b"", plain, sound[0][:2000], b"text", *sound[3:]]
    together = judge([open_bytes("x.jpg", data) for data in files])
    assert together == [check_bytes("x.jpg", data) for data in files]
    assert sum(verdict.prints is not None for verdict in together) == 6
    assert sum(verdict.measures is not None for verdict in together) == 9
    assert judge([]) == []


def test_a_cut_photo_that_was_saved_again(
    found: Found, monkeypatch: pytest.MonkeyPatch, jpegs: list[bytes], encode: Encode
) -> None:
    """Its lower part has the grey of a decoder; a grey that was photographed does not pass for that."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for data in jpegs[:4]:
        grey = Image.open(io.BytesIO(data[: int(len(data) * 0.6)])).convert("RGB")
        assert found(encode(grey, quality=95)) == ["half_grey"]
    pixels = np.asarray(Image.open(io.BytesIO(jpegs[0])).convert("RGB")).copy()
    pixels[150:] = (128, 130, 90)
    assert "half_grey" not in found(encode(Image.fromarray(pixels), quality=95))


def test_places_that_can_not_be_read(tmp_path: Path) -> None:
    """A file that is not there, a link to nothing, a folder."""
    assert check_file(str(tmp_path / "x.jpg")).notes[0].kind == "vanished"
    (tmp_path / "link.jpg").symlink_to("gone")
    assert check_file(str(tmp_path / "link.jpg")).notes[0].kind == "broken_link"
    assert check_file(str(tmp_path)).notes == [Note("special_file", "a folder")]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_bytes_raise_and_no_harm_goes_by_unseen(is_unusable: Judge, jpegs: list[bytes], data: st.DataObject) -> None:
    """However a file is cut or its bytes changed, there is a verdict; a cut is never called usable."""
    whole = data.draw(st.sampled_from(jpegs))
    if data.draw(st.booleans()):
        cut = whole[: data.draw(st.integers(0, len(whole) - 3))]
        assert is_unusable(cut)
        thumbnail("x.jpg", 64, cut)
    else:
        changed = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 40))):
            changed[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
        check_bytes("x.jpg", bytes(changed))
        thumbnail("x.jpg", 64, bytes(changed))


@pytest.mark.parametrize("form", ["PCX", "SGI", "DDS"])
def test_any_format_under_the_extension_of_another_is_noted(
    photo: Callable[..., Image.Image], encode: Callable[..., bytes], form: str
) -> None:
    """Also of a format that is not in the list of extensions."""
    (note,) = check_bytes("x.jpg", encode(photo(1, (64, 64)), form)).notes
    assert note == Note("wrong_suffix", f"{form} content with the extension .jpg")


@pytest.mark.parametrize(
    ("form", "start"),
    [("OpenEXR", b"\x76\x2f\x31\x01\x02\0\0\0"), ("DPX", b"SDPX\0\0\x08\0V2.0\0"), ("DPX", b"XPDS\0\x08\0\0V1.0\0")],
)
def test_images_that_pillow_does_not_know_are_named(form: str, start: bytes) -> None:
    """They are no junk."""
    (note,) = check_bytes("x.jpg", start + bytes(range(256)) * 8).notes
    assert note.kind == "needs_package"
    assert note.detail.startswith(form)
