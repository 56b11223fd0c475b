"""Mended copies: sound by the scan's own judgement, and the originals untouched."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from ftkit import FtkitError, scan_images


@pytest.fixture
def odd(tmp_path: Path, photo: Callable[..., Image.Image], encode: Callable[..., bytes]) -> Path:
    """Return a folder with one of each that can be mended."""
    image = photo(5)
    exif = Image.Exif()
    exif[274] = 6
    png = encode(photo(9), "PNG")
    glass = photo(10)
    glass.putalpha(128)
    files = {
        "turned.jpg": encode(image, exif=exif, quality=95),
        "inks.jpg": encode(photo(6).convert("CMYK")),
        "named.jpg": encode(photo(7), "PNG"),
        "noext": encode(photo(8)),
        "crc.png": png[:-20] + png[-20:-16] + b"\0\0\0\0" + png[-12:],
        "glass.png": encode(glass, "PNG"),
        "deep.png": encode(Image.fromarray(np.asarray(photo(11).convert("L")).astype(np.uint16) * 257), "PNG"),
        "tail.jpg": encode(photo(12)) + b"<html>",
        "endless.jpg": encode(photo(13))[:-2],
        "moving.gif": encode(photo(15), "GIF"),
        "cut.jpg": encode(photo(14))[:5000],
    }
    (tmp_path / "odd/a").mkdir(parents=True)
    for name, data in files.items():
        (tmp_path / "odd/a" / name).write_bytes(data)
    return tmp_path / "odd"


def test_copies_are_sound_and_originals_untouched(odd: Path) -> None:
    """Every mended copy passes the scan; what is broken has none."""
    before = {path.name: path.read_bytes() for path in odd.rglob("*") if path.is_file()}
    report = scan_images(odd, workers=1)
    made = report.repair()
    assert made.failed == {}
    names = {Path(old).name: Path(new).name for old, new in made.made.items()}
    assert names == {
        "turned.jpg": "turned.jpg", "inks.jpg": "inks.jpg", "named.jpg": "named.png", "noext": "noext.jpg",
        "crc.png": "crc.png", "glass.png": "glass.png", "deep.png": "deep.png", "tail.jpg": "tail.jpg",
        "endless.jpg": "endless.jpg", "moving.gif": "moving.png",
    }  # fmt: skip
    assert {path.name: path.read_bytes() for path in odd.rglob("*") if path.is_file()} == before
    again = scan_images(made.folder, workers=1)
    assert [(f.path, f.kind) for f in again.findings if f.kind != "greyscale"] == []
    assert made.folder.name == "odd-repaired"
    assert "10 repaired copies" in str(made)


def test_the_picture_stands_upright(odd: Path, photo: Callable[..., Image.Image]) -> None:
    """Turned by EXIF 6: what was 320 x 260 is 260 x 320, turned clockwise."""
    (new,) = scan_images(odd, workers=1).repair(odd.parent / "upright", ["exif_rotated"]).made.values()
    with Image.open(new) as image:
        assert image.size == (260, 320)
        wanted = np.asarray(photo(5).transpose(Image.Transpose.ROTATE_270), np.int16)
        assert abs(np.asarray(image.convert("RGB"), np.int16) - wanted).mean() < 4


def test_pixels_are_left_alone_where_they_can_be(odd: Path) -> None:
    """A suffix, a tail, a missing end: the coded pixels are the same bytes."""
    made = scan_images(odd, workers=1).repair(kinds=["wrong_suffix", "trailing_data", "missing_eoi", "bad_crc"])
    for old, new in made.made.items():
        with Image.open(new) as mended:
            data = Path(old).read_bytes()
            assert data[40:-40] in Path(new).read_bytes()
            mended.load()
    assert len(made.made) == 4


def test_content_that_image_folder_skips_by_its_extension_is_converted(tmp_path: Path) -> None:
    """A GIF called .jpg is loaded, but by its own name it would not be."""
    (tmp_path / "set").mkdir()
    picture = Image.linear_gradient("L").resize((60, 40))
    for number, (form, suffix) in enumerate((("GIF", "jpg"), ("JPEG2000", "png"), ("TGA", "jpg"), ("WEBP", "jpg"))):
        picture.save(tmp_path / f"set/{number}.{suffix}", form)
    made = scan_images(tmp_path / "set", workers=1).repair().made
    assert [Path(new).name for new in made.values()] == ["0.png", "1.png", "2.png", "3.webp"]
    found = {finding.kind for finding in scan_images(tmp_path / "set-repaired", workers=1).findings}
    assert found.isdisjoint(("wrong_suffix", "unlisted_suffix"))


def test_exif_of_a_big_tiff_can_be_read(tmp_path: Path) -> None:
    """Its directory is of another kind than those of other formats."""
    (tmp_path / "set").mkdir()
    exif = Image.Exif()
    exif[0x10F] = "ftkit"
    Image.radial_gradient("L").convert("CMYK").save(tmp_path / "set/a.tif", big_tiff=True, exif=exif)
    ((_, copy),) = scan_images(tmp_path / "set", workers=1).repair().made.items()
    with Image.open(copy) as image:
        assert image.getexif()[0x10F] == "ftkit"


@pytest.mark.parametrize(
    ("levels", "mode"), [((0.0, 1.0), "F"), ((0, 255), "I"), ((0, 65535), "I;16"), ((0.0, 65535.0), "F")]
)
def test_deep_levels_of_gray_keep_their_range(tmp_path: Path, levels: tuple[float, float], mode: str) -> None:
    """Whether they go up to 1, 255 or 65535."""
    steps = np.linspace(*levels, 300 * 200).reshape(200, 300)
    kind = {"F": np.float32, "I": np.int32, "I;16": np.uint16}[mode]
    (tmp_path / "set").mkdir()
    Image.fromarray(steps.astype(kind)).save(tmp_path / "set/a.tif")
    done = scan_images(tmp_path / "set", workers=1).repair(kinds=["sixteen_bit"])
    (copy,) = done.made.values()
    with Image.open(copy) as image:
        assert np.abs(np.asarray(image, np.float64) - np.linspace(0, 255, 300 * 200).reshape(200, 300)).max() <= 1


@pytest.mark.parametrize("values", [(-9999.0, 2000.0), (0.0, 1e6), (0.0, float("nan"))])
def test_numbers_that_are_no_levels_of_gray_are_left_alone(tmp_path: Path, values: tuple[float, float]) -> None:
    """Heights and the like would come out black or white."""
    (tmp_path / "set").mkdir()
    Image.fromarray(np.linspace(*values, 3000, dtype=np.float32).reshape(50, 60)).save(tmp_path / "set/a.tif")
    done = scan_images(tmp_path / "set", workers=1).repair(kinds=["sixteen_bit"])
    assert not done.made
    assert "no levels of gray" in next(iter(done.failed.values()))


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_fewer_bits_in_16_are_never_made_black(tmp_path: Path, bits: int) -> None:
    """Where nothing says how many they are, the file is left alone, and the reason is given."""
    steps = np.linspace(0, 2**bits - 1, 60 * 50).reshape(50, 60).astype(np.uint16)
    (tmp_path / "set").mkdir()
    for name in ("a.png", "b.tif"):
        Image.fromarray(steps).save(tmp_path / "set" / name)
    done = scan_images(tmp_path / "set", workers=1).repair(kinds=["sixteen_bit"])
    assert not done.made
    assert not done.folder.exists()
    assert len(done.failed) == 2
    assert all(f"its levels end at {2**bits - 1}" in why for why in done.failed.values())


def test_the_bits_that_a_tiff_says_it_has_are_scaled_from(tmp_path: Path) -> None:
    """Twelve bits a sample, packed."""
    steps = np.linspace(0, 3000, 60 * 50).reshape(50, 60).astype(np.uint16)
    pairs = steps.reshape(-1, 2).astype(np.uint32)
    whole = pairs[:, 0] << 12 | pairs[:, 1]
    packed = np.stack([whole >> 16, whole >> 8 & 255, whole & 255], -1).astype(np.uint8).tobytes()
    tags = {256: 60, 257: 50, 258: 12, 259: 1, 262: 1, 273: 0, 277: 1, 278: 50, 279: len(packed)}
    size = 8 + 2 + 12 * len(tags) + 4
    entries = [struct.pack("<HHII", tag, 4, 1, size if tag == 273 else value) for tag, value in tags.items()]
    (tmp_path / "set").mkdir()
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(entries) + bytes(4)
    (tmp_path / "set/a.tif").write_bytes(head + packed)
    (copy,) = scan_images(tmp_path / "set", workers=1).repair(kinds=["sixteen_bit"]).made.values()
    with Image.open(copy) as image:
        assert np.abs(np.asarray(image, np.float64) - steps * (255 / 4095)).max() <= 0.5


def test_profile_and_exif_stay(tmp_path: Path, photo: Callable[..., Image.Image], encode: Callable[..., bytes]) -> None:
    """Turned and drawn anew, a picture keeps both; a profile for inks is none for RGB."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[274], exif[271] = 6, "Camera"
    (tmp_path / "set/a").mkdir(parents=True)
    inks = profile[:16] + b"CMYK" + profile[20:]
    for name, form in (("turned.jpg", "JPEG"), ("turned.png", "PNG"), ("web.webp", "WEBP")):
        (tmp_path / "set/a" / name).write_bytes(encode(photo(1), form, exif=exif, icc_profile=profile))
    (tmp_path / "set/a/inks.jpg").write_bytes(encode(photo(2).convert("CMYK"), exif=exif, icc_profile=inks))
    made = scan_images(tmp_path / "set", workers=1).repair().made
    assert len(made) == 4
    for new in made.values():
        with Image.open(new) as image:
            assert image.getexif().get(274, 1) == 1
            assert image.getexif()[271] == "Camera"
            assert image.info.get("icc_profile") == (None if "inks" in new else profile)
            assert image.size == (260, 320)


def test_garbled_exif_goes_without_a_touch_to_the_pixels(
    tmp_path: Path, photo: Callable[..., Image.Image], encode: Callable[..., bytes]
) -> None:
    """Only its segment is missing in the copy."""
    (tmp_path / "set/a").mkdir(parents=True)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(range(40))
    (tmp_path / "set/a/x.jpg").write_bytes(encode(photo(3), exif=exif))
    (new,) = scan_images(tmp_path / "set", workers=1).repair().made.values()
    assert Path(new).read_bytes() == encode(photo(3))


def test_a_copy_never_has_the_name_of_another_image(
    tmp_path: Path, photo: Callable[..., Image.Image], encode: Callable[..., bytes]
) -> None:
    """Neither of one in the data set, such as a mask, nor of another copy, in whatever case; labels are no images."""
    folder = tmp_path / "set/a"
    folder.mkdir(parents=True)
    glass = photo(1)
    glass.putalpha(128)
    files = {
        "0.webp": encode(glass, "WEBP"), "0.png": encode(photo(2), "PNG"), "1.webp": encode(glass, "WEBP"),
        "1.txt": b"0 0.5 0.5 1 1", "2.webp": encode(glass, "WEBP"), "2.tga": encode(glass, "TGA"),
        "Three.webp": encode(glass, "WEBP"), "three.PNG": encode(photo(3), "PNG"), "4": encode(photo(4)),
        "4.JPG": encode(photo(5)), "5.jpg": encode(photo(6), "PNG"), "5.png": encode(photo(7), "PNG"),
        "0.webp.png": encode(photo(8), "PNG"), "inks.jpg": encode(photo(9).convert("CMYK")), "inks.png": b"<html>",
    }  # fmt: skip
    for name, data in files.items():
        (folder / name).write_bytes(data)
    report = scan_images(tmp_path / "set", workers=1, near_duplicates=False)
    plan, done = report.repair(dry_run=True), report.repair()
    assert plan.made == done.made
    assert done.failed == {}
    assert {Path(old).name: Path(new).name for old, new in done.made.items()} == {
        "0.webp": "0.webp-2.png", "1.webp": "1.png", "2.webp": "2.webp.png", "2.tga": "2.tga.png",
        "Three.webp": "Three.webp.png", "4": "4-2.jpg", "5.jpg": "5.jpg.png", "inks.jpg": "inks.jpg",
    }  # fmt: skip
    said = next(line for line in str(done).replace("\n    ", " ").splitlines() if "another image has" in line)
    assert said.endswith("and 3 more")
    assert report.repair().made == {}


def test_a_repair_that_makes_no_copy_leaves_no_folder(odd: Path, tmp_path: Path) -> None:
    """As on a disk that is full."""
    resource = pytest.importorskip("resource")
    report = scan_images(odd, workers=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # the workers that start now have it, too
    try:
        done = report.repair(tmp_path / "deep/copies", ["cmyk"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not done.made
    assert "too large" in next(iter(done.failed.values()))
    assert not (tmp_path / "deep").exists()


def test_a_copy_never_replaces_a_file(odd: Path) -> None:
    """A second repair into the same folder fails file by file, and says so."""
    report = scan_images(odd, workers=1)
    report.repair(kinds=["cmyk"])
    again = report.repair(kinds=["cmyk"])
    assert list(again.failed) == [str(odd / "a/inks.jpg")]
    assert "already exists" in str(again)
    with pytest.raises(FtkitError, match="inside the data set"):
        report.repair(dest=odd / "mended")


@pytest.mark.parametrize("kinds", [["cmyk"], ("odd",), "cmyk", "odd"])
def test_kinds_in_the_place_of_the_folder_are_refused(odd: Path, kinds: object) -> None:
    """The folder comes first, as for a quarantine: nobody means to fill a folder named cmyk."""
    report = scan_images(odd, workers=1)
    with pytest.raises(FtkitError, match=r"Kinds come second: repair\(kinds=...\)"):
        report.repair(kinds)  # type: ignore[arg-type]


def test_nothing_to_mend_names_no_folder(pets: Path) -> None:
    """It isn't made."""
    made = scan_images(pets, workers=1).repair()
    assert str(made) == "nothing to mend"
    assert not made.folder.exists()


def test_what_was_asked_for_and_is_beyond_repair_is_named(odd: Path) -> None:
    """With what can be done about it; what is mendable in a truncated file is not mended either."""
    made = scan_images(odd, workers=1).repair(kinds=["truncated", "cmyk"])
    assert list(made.failed) == [str(odd / "a/cut.jpg")]
    assert "truncated can't be mended (fetch it again)" in " ".join(str(made).split())
    assert len(made.made) == 1


def test_what_was_replaced_since_the_scan_is_not_mended(odd: Path) -> None:
    """It is not what was judged; nor is what has gone."""
    report = scan_images(odd, workers=1)
    for name in ("inks.jpg", "turned.jpg"):
        (odd / "a" / name).write_bytes((odd / "a/noext").read_bytes())
    (odd / "a/glass.png").unlink()
    made = report.repair(kinds=["cmyk", "exif_rotated", "transparency", "wrong_suffix"])
    assert made.failed == {
        str(odd / "a/glass.png"): "gone already",
        str(odd / "a/inks.jpg"): "it has changed since the scan",
        str(odd / "a/turned.jpg"): "it has changed since the scan",
    }
    assert [Path(path).name for path in made.made] == ["named.jpg"]
