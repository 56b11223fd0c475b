"""7z, whole, encrypted, damaged and hostile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftkit import extract_archive
from ftkit.errors import ArchiveError
from tests.archives.packers import GOOD, PICTURE, contents


@pytest.fixture
def seven_zip(tmp_path: Path) -> Callable[..., Path]:
    """Return a maker of 7z archives of a folder with everything in it."""
    py7zr = pytest.importorskip("py7zr")
    folder = tmp_path / "in"
    for name, data in {**GOOD, "학습/사진.jpg": PICTURE, "empty": b"", "train/.DS_Store": b"junk"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "void").mkdir()
    (folder / "train" / "link.jpg").symlink_to("ants/1.jpg")

    def make(name: str = "a.7z", **options: Any) -> Path:
        with py7zr.SevenZipFile(tmp_path / name, "w", **options) as archive:
            for path in sorted(folder.iterdir()):
                archive.writeall(path, path.name)
        return tmp_path / name

    return make


SEVEN_ZIP = {**GOOD, "학습/사진.jpg": PICTURE, "empty": b"", "train/link.jpg": PICTURE}


def test_7z_comes_out_whole(tmp_path: Path, seven_zip: Callable[..., Path]) -> None:
    """Files, empty ones, folders and links of a 7z."""
    report = extract_archive(seven_zip(), tmp_path / "out")
    assert contents(tmp_path / "out") == SEVEN_ZIP
    assert (tmp_path / "out/train/link.jpg").is_symlink()
    assert (tmp_path / "out/void").is_dir()
    assert (report.format, report.files, report.left_out) == ("7z", 5, {".DS_Store": 1})


@pytest.mark.parametrize("header", [False, True])
def test_7z_with_a_password(
    tmp_path: Path, header: bool, seven_zip: Callable[..., Path], nothing_left: Callable[..., str]
) -> None:
    """Encrypted content, and encrypted names, too."""
    archive = seven_zip(password="비밀", header_encryption=header)
    nothing_left(archive, "password=")
    nothing_left(archive, "password is wrong", password="wrong")
    extract_archive(archive, tmp_path / "out", password="비밀")
    assert contents(tmp_path / "out") == SEVEN_ZIP


def test_7z_damage_limits_and_ways_out(
    tmp_path: Path, seven_zip: Callable[..., Path], nothing_left: Callable[..., str]
) -> None:
    """A 7z is held to the same rules."""
    archive = seven_zip()
    nothing_left(archive, "raise max_bytes", max_bytes=100)
    nothing_left(archive, "raise max_files", max_files=2)
    (tmp_path / "in/train/out").symlink_to("../../a.7z")
    nothing_left(seven_zip(), "'train/out'", "leads out")
    (tmp_path / "in/train/out").unlink()
    whole = seven_zip().read_bytes()
    for damaged in (whole[:-5], whole[: len(whole) // 2], whole[:100] + b"xxxx" + whole[104:]):
        archive.write_bytes(damaged)
        nothing_left(archive, "damaged")


@pytest.mark.parametrize("encrypted", [False, True])
def test_7z_is_counted_before_it_is_listed(
    tmp_path: Path, encrypted: bool, monkeypatch: pytest.MonkeyPatch, nothing_left: Callable[..., str]
) -> None:
    """A directory of thousands takes a few bytes, and a list of it would take megabytes."""
    py7zr = pytest.importorskip("py7zr")
    options = {"password": "x", "header_encryption": True} if encrypted else {}
    with py7zr.SevenZipFile(tmp_path / "a.7z", "w", **options) as archive:
        for number in range(2000):
            archive.writestr(b"", f"{number}.jpg")
    assert extract_archive(tmp_path / "a.7z", tmp_path / "out", max_files=2000, password="x").files == 2000
    monkeypatch.setattr(py7zr, "SevenZipFile", lambda *_, **__: pytest.fail("it was listed"))
    nothing_left(tmp_path / "a.7z", "more than 1,999 files", max_files=1999, password="x")


def test_7z_with_a_password_of_bytes(tmp_path: Path, seven_zip: Callable[..., Path]) -> None:
    """Its password is text."""
    archive = seven_zip(password="비밀")
    with pytest.raises(ArchiveError, match="as a str"):
        extract_archive(archive, tmp_path / "out", password=b"\xff")
    extract_archive(archive, tmp_path / "out", password="비밀".encode())
