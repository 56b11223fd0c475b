"""Limits against bombs."""

from __future__ import annotations

import gzip
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ftkit import extract_archive
from tests.archives.packers import GOOD, PICTURE, make_tar, make_zip


def test_limits(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """Every limit is kept, and its error names the way to raise it."""
    archive = make_zip(tmp_path / "a.zip", GOOD.items())
    nothing_left(archive, "raise max_bytes", max_bytes=2 * len(PICTURE) - 1)
    nothing_left(archive, "raise max_files", max_files=1)
    nothing_left(archive, "raise max_files", max_files=4)  # two files, and three folders that nobody listed
    extract_archive(archive, tmp_path / "out", max_bytes=2 * len(PICTURE), max_files=5)
    tar = make_tar(tmp_path / "a.tar", GOOD.items())
    nothing_left(tar, "raise max_files", max_files=1)
    nothing_left(tar, "raise max_bytes", max_bytes=2 * len(PICTURE) - 1)


@pytest.mark.parametrize("packing", ["zip", "zip-bz2", "gz", "bz2", "xz"])
def test_bombs(tmp_path: Path, packing: str, nothing_left: Callable[..., str]) -> None:
    """A few kilobytes that unpack to 80 MB are refused; who trusts them says so."""
    zeros = bytes(80 << 20)
    if packing.startswith("zip"):
        archive = tmp_path / "a.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_BZIP2 if packing == "zip-bz2" else zipfile.ZIP_DEFLATED) as file:
            file.writestr("zeros.npy", zeros)
    else:
        archive = make_tar(tmp_path / "a.tar", [("zeros.npy", zeros)], packing)
    nothing_left(archive, "raise max_ratio")
    assert extract_archive(archive, tmp_path / "out", max_ratio=1e7).bytes == len(zeros)


def test_bomb_behind_the_end(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """What follows a tar's end mark is only read, but that can take for ever, too."""
    archive = make_tar(tmp_path / "a.tar", GOOD.items())
    archive.write_bytes(gzip.compress(archive.read_bytes() + bytes(80 << 20)))
    nothing_left(archive, "raise max_ratio")


def test_masks_are_no_bombs(tmp_path: Path) -> None:
    """Volumes of labels pack several hundred times, and are what people send."""
    volume = bytearray(40 << 20)
    for _ in range(20_000):
        volume[random.randrange(len(volume))] = random.randrange(8)
    archive = make_zip(tmp_path / "a.zip", [("labels.nii", bytes(volume))])
    assert len(volume) > 200 * archive.stat().st_size
    extract_archive(archive, tmp_path / "out")


def test_bomb_of_empty_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: Callable[..., str]) -> None:
    """A packed tar of nothing but headers fills a disk, too."""
    monkeypatch.setattr("ftkit._archives.members._HARMLESS", 1 << 18)  # else it takes 65,536 files
    archive = make_tar(tmp_path / "a.tar", [(str(number), b"") for number in range(1000)], "xz")
    nothing_left(archive, "raise max_ratio", max_ratio=50)
