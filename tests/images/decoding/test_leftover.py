"""Formats without checksums: bytes that have changed are found by what the decoder leaves over."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ftkit._images.decoding.checks import check_bytes
from ftkit._images.decoding.leftover import gif_frames, samples
from ftkit._images.decoding.mending import mend
from ftkit._images.verdict import Note

Encode = Callable[..., bytes]
Judge = Callable[..., bool]

CODINGS: dict[str, tuple[str, dict[str, object]]] = {
    "lossy WebP": ("WEBP", {"quality": 80}),
    "lossless WebP": ("WEBP", {"lossless": True}),
    "AVIF": ("AVIF", {"speed": 10}),
    "GIF": ("GIF", {}),
}


def coded(image: Image.Image, encode: Encode, coding: str) -> bytes:
    form, options = CODINGS[coding]
    return encode(image.quantize(64) if form == "GIF" else image, form, **options)


@pytest.mark.parametrize(("coding", "least"), [("lossy WebP", 20), ("lossless WebP", 12), ("AVIF", 20), ("GIF", 19)])
def test_changed_bytes(is_unusable: Judge, image: Image.Image, encode: Encode, coding: str, least: int) -> None:
    """Of 20 files with noise within the pixels, all or nearly all are found."""
    rng = random.Random(1)
    whole = coded(image.resize((160, 120)), encode, coding)
    found = 0
    for _ in range(20):
        at = rng.randrange(len(whole) // 4, len(whole) // 2)
        count = len(whole) // 4
        found += is_unusable(whole[:at] + rng.randbytes(count) + whole[at + count :], "x." + coding[-4:].strip())
    assert found >= least


@pytest.mark.parametrize("byte", [0, 0xFF])
@pytest.mark.parametrize("coding", CODINGS)
def test_an_end_that_was_never_written(
    is_unusable: Judge, image: Image.Image, encode: Encode, coding: str, byte: int
) -> None:
    """As a download leaves it that was interrupted, in a file that was made in full size before."""
    whole = coded(image.resize((160, 120)), encode, coding)
    for share in (0.3, 0.5, 0.7, 0.9):
        kept = int(share * len(whole))
        assert is_unusable(whole[:kept] + bytes([byte]) * (len(whole) - kept), "x." + coding[-4:].strip()), share


@pytest.mark.parametrize("byte", [0, 0xCC])
@pytest.mark.parametrize("share", [0.15, 0.4, 0.65])
def test_a_hole_in_any_tile_of_an_avif(
    is_unusable: Judge, photo: Callable[..., Image.Image], encode: Encode, share: float, byte: int
) -> None:
    """Each is coded by itself, so that the last one says nothing of the others."""
    whole = encode(photo(2, (512, 512)), "AVIF", speed=10, quality=90, tile_rows=1, tile_cols=1)
    assert not is_unusable(whole, "x.avif")
    at = int(share * len(whole))
    assert is_unusable(whole[:at] + bytes([byte]) * 512 + whole[at + 512 :], "x.avif")


@pytest.mark.parametrize("options", [{"quality": 100}, {"lossless": True, "quality": 0}], ids=["lossy", "lossless"])
def test_pixels_that_are_coded_as_zeros(
    is_unusable: Judge, image: Image.Image, encode: Encode, options: dict[str, object]
) -> None:
    """Plain parts of a picture are, in WebP that was written in haste."""
    for where in ((0, 0), (0, 600), (0, 1200)):
        page = Image.new("RGB", (900, 1500), "white")
        page.paste(image, where)
        data = encode(page, "WEBP", method=0, **options)
        assert bytes(512) in data
        assert not is_unusable(data, "x.webp")


def sound(image: Image.Image) -> dict[str, Image.Image]:
    """Return pictures whose last pixels take few bytes, or many."""
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    half = image.resize((160, 120))
    half.paste("white", (0, 60, 160, 120))
    return {
        "photo": image.resize((160, 120)),
        "noise": Image.fromarray(noise),
        "plain": Image.new("RGB", (300, 200), "red"),
        "half": half,
        "pixel art": image.resize((40, 30)).resize((400, 300), Image.Resampling.NEAREST),
        "dark": image.resize((120, 90)).point(lambda value: value // 12),
        "tiny": image.resize((3, 2)),
    }


@pytest.mark.parametrize("coding", CODINGS)
def test_sound_files(is_unusable: Judge, image: Image.Image, encode: Encode, coding: str) -> None:
    """None is taken for damaged, not even one whose pixels are coded as zeros."""
    for name, picture in sound(image).items():
        for method in (0, 4):
            form, options = CODINGS[coding]
            more: dict[str, object] = {"method": method} if form == "WEBP" else {}
            seen = picture.quantize(64) if form == "GIF" else picture
            assert not is_unusable(encode(seen, form, **options, **more), "x." + form.lower()), name


def test_padding_is_no_damage(is_unusable: Judge, image: Image.Image, encode: Encode) -> None:
    """A writer may have padded the pixels."""
    data = encode(image.resize((160, 120)), "WEBP", quality=80)
    padded = data[:12] + b"VP8 " + (len(data) - 20 + 64).to_bytes(4, "little") + data[20:] + bytes(64)
    padded = b"RIFF" + (len(padded) - 8).to_bytes(4, "little") + padded[8:]
    assert not is_unusable(padded, "x.webp")


def test_markers_among_the_pixels(is_unusable: Judge, image: Image.Image, encode: Encode) -> None:
    """Pixels in JPEG 2000 never look like a marker."""
    whole = encode(image.resize((160, 120)), "JPEG2000")
    assert not is_unusable(whole, "x.jp2")
    at = len(whole) * 3 // 4
    assert is_unusable(whole[:at] + b"\xff\xff\xff" + whole[at + 3 :], "x.jp2")
    tiled = encode(image, "JPEG2000", tile_size=(64, 64))
    assert not is_unusable(tiled, "x.jp2")


def assert_frame_is_named(notes: Sequence[Note], spoiled: int | None) -> None:
    """See that a spoiled first frame makes a file unusable, and a later one is odd."""
    assert [(note.kind, note.severity) for note in notes] == {
        None: [],
        0: [("damaged", None)],
    }.get(spoiled, [("damaged", "odd")])
    assert not spoiled or f"frame {spoiled + 1}" in notes[0].detail


@pytest.mark.parametrize("options", [{"quality": 80}, {"lossless": True}], ids=["lossy", "lossless"])
@pytest.mark.parametrize("spoiled", [None, 0, 2])
def test_zeros_in_an_animated_webp(
    image: Image.Image, encode: Encode, options: dict[str, object], spoiled: int | None
) -> None:
    """In the first frame, which loaders take, they make it unusable, and odd in a later one."""
    frames = [image.resize((160, 120)).rotate(90 * turn) for turn in range(4)]
    frames[3].putalpha(100)
    data = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], **options)
    if spoiled is not None:
        at = -1
        for _ in range(spoiled + 1):
            at = data.index(b"ANMF", at + 1)
        at += 8 + int.from_bytes(data[at + 4 : at + 8], "little") // 2
        data = data[:at] + bytes(512) + data[at + 512 :]
    notes = [note for note in check_bytes("x.webp", data).notes if note.kind != "animated"]
    assert_frame_is_named(notes, spoiled)


@pytest.mark.parametrize("spoiled", [None, 0, 1, 3])
def test_zeros_in_an_avif_sequence(photo: Callable[..., Image.Image], encode: Encode, spoiled: int | None) -> None:
    """In the first frame, which loaders take, they make it unusable, and odd in a later one."""
    view = photo(1, (200, 120))
    frames = [view.crop((3 * step, 0, 3 * step + 160, 120)) for step in range(5)]
    data = encode(frames[0], "AVIF", save_all=True, append_images=frames[1:], speed=8)
    assert len(list(samples(data))) == 5
    if spoiled is not None:
        start, size = list(samples(data))[spoiled]
        at = start + size // 3
        data = data[:at] + bytes(size // 8) + data[at + size // 8 :]
    notes = [note for note in check_bytes("x.avif", data).notes if note.kind in ("damaged", "truncated")]
    assert_frame_is_named(notes, spoiled)


@pytest.mark.parametrize("frames", [1, 3])
def test_an_avif_that_ends_early(image: Image.Image, encode: Encode, frames: int) -> None:
    """Pillow does not know it for one; it is an image all the same."""
    pictures = [image.resize((80, 60)).rotate(90 * turn) for turn in range(frames)]
    data = encode(pictures[0], "AVIF", save_all=True, append_images=pictures[1:], speed=10)
    for share in (0.3, 0.6, 0.99):
        (note,) = check_bytes("x.avif", data[: int(len(data) * share)]).notes
        assert note.kind in ("damaged", "truncated")


@pytest.mark.parametrize("options", [{}, {"interlace": 0}, {"optimize": True, "disposal": 2}], ids=str)
@pytest.mark.parametrize("spoiled", [None, 0, 2])
def test_an_animated_gif_whose_pixels_do_not_fit(
    image: Image.Image, encode: Encode, options: dict[str, object], spoiled: int | None
) -> None:
    """More pixels than a frame has are a sign of changed bytes: unusable in the first frame, odd in a later one."""
    frames = [image.resize((160, 120)).rotate(90 * turn).quantize(64) for turn in range(4)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], **options)
    if spoiled is not None:
        starts = [at for at, _, _ in gif_frames(data)]
        height = starts[spoiled] + 7
        data = data[:height] + (100).to_bytes(2, "little") + data[height + 2 :]
    notes = [note for note in check_bytes("x.gif", data).notes if note.kind in ("damaged", "truncated")]
    assert_frame_is_named(notes, spoiled)


def test_an_animated_gif_that_ends_early(image: Image.Image, encode: Encode, is_unusable: Judge) -> None:
    """The first frame loads, which is what loaders read."""
    frames = [image.resize((80, 60)).rotate(90 * turn) for turn in range(3)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    for frame, (at, start, stop) in enumerate(gif_frames(data), 1):
        for cut in (data[: start + 300], data[: stop - 20], data[: at + 7] + bytes(2) + data[at + 9 :]):
            notes = [note for note in check_bytes("x.gif", cut).notes if note.kind in ("damaged", "truncated")]
            assert [note.severity for note in notes] == [None if frame == 1 else "odd"]
            assert frame == 1 or f"frame {frame} " in notes[0].detail
            assert is_unusable(cut, "x.gif") == (frame == 1)


@pytest.mark.parametrize("frames", [1, 3])
def test_a_gif_without_its_trailer(
    tmp_path: Path, image: Image.Image, encode: Encode, found: Callable[..., list[str]], frames: int
) -> None:
    """Pillow does not miss it, other loaders do; a copy gets it."""
    more = [image.resize((80, 60)).rotate(90 * turn) for turn in range(1, frames)]
    data = encode(image.resize((80, 60)), "GIF", save_all=True, append_images=more, comment=b"a bee")
    assert "missing_end" not in found(data, "x.gif") + found(data + b"more", "x.gif")
    assert data.endswith(b"\0;")
    for lacking in (data[:-1], data[:-2], data[:-1] + bytes(600)):
        assert set(found(lacking, "x.gif")) == {"missing_end", *found(data, "x.gif")}
        (tmp_path / "x.gif").write_bytes(lacking)
        copy = mend(str(tmp_path / "x.gif"), ["missing_end"], str(tmp_path / f"{len(lacking)}.gif"), [], dry_run=False)
        assert Path(copy).read_bytes() == data


def _mended(folder: Path, data: bytes) -> bytes:
    """Return the copy of a GIF file that gets its end."""
    (folder / "x.gif").write_bytes(data)
    (folder / "copy.gif").unlink(missing_ok=True)
    return Path(mend(str(folder / "x.gif"), ["missing_end"], str(folder / "copy.gif"), [], dry_run=False)).read_bytes()


@pytest.mark.parametrize(
    "extension",
    [b"!\xfe\x28" + b"c" * 40 + b"\0", b"!\xff\x0bXMP DataXMP\x3c" + b"x" * 60 + b"\0"],
    ids=["comment", "XMP"],
)
def test_a_gif_that_ends_within_an_extension(
    tmp_path: Path, image: Image.Image, encode: Encode, found: Callable[..., list[str]], extension: bytes
) -> None:
    """No pixels are missing, but the trailer is; a copy has the extension only where all of it is there."""
    data = encode(image.resize((80, 60)), "GIF")
    assert "missing_end" not in found(data[:-1] + extension + b";", "x.gif")
    for cut in range(2, len(extension) + 1):
        spoiled = data[:-1] + extension[:cut]
        assert "missing_end" in found(spoiled, "x.gif")
        copy = _mended(tmp_path, spoiled)
        assert copy in (data, spoiled + b";", spoiled + b"\0;")
        assert copy == data or extension[cut - 1 :].startswith((b"c\0", b"x\0", b"P<")) or cut == len(extension)


def test_a_gif_with_something_else_than_its_trailer(
    tmp_path: Path, image: Image.Image, encode: Encode, found: Callable[..., list[str]]
) -> None:
    """Pillow looks for more frames and finds none; other loaders raise."""
    data = encode(image.resize((80, 60)), "GIF")
    for end in (b"\xff", b":", b"no end" * 20, b"\x3a;"):
        spoiled = data[:-1] + end
        assert "missing_end" in found(spoiled, "x.gif")
        assert _mended(tmp_path, spoiled) == data
