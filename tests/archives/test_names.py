"""Names without an encoding, and those that say theirs."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from ftkit import extract_archive
from ftkit._archives.names import find_encoding
from tests.archives.packers import (
    GOOD,
    NAMES,
    PICTURE,
    contents,
    make_tar,
    make_unmarked_zip,
    make_zip,
    tar_info,
    zip_info,
)


@pytest.mark.parametrize("encoding", NAMES)
@pytest.mark.parametrize("format", ["zip", "tar", "tar.xz"])
def test_names_without_an_encoding(tmp_path: Path, encoding: str, format: str) -> None:
    """The evidence of all the names finds how they are written; a forced encoding does the same."""
    names = NAMES[encoding]
    if format == "zip":
        archive = make_unmarked_zip(tmp_path / "a", [name.encode(encoding) for name in names])
    else:
        archive = tmp_path / "a"
        with tarfile.open(archive, "w:" + format[4:], format=tarfile.GNU_FORMAT, encoding=encoding) as tar:
            for name in ["readme.txt", *names]:
                info = tar_info(name, size=len(PICTURE))
                tar.addfile(info, io.BytesIO(PICTURE))
    for forced in (None, encoding):
        report = extract_archive(archive, tmp_path / f"out{forced}", encoding=forced)
        assert sorted(set(contents(tmp_path / f"out{forced}")) - {"readme.txt"}) == sorted(names)
        assert report.encoding == encoding
        assert f"names read as {encoding}" in str(report)


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        *((name, "cp949") for name in ("사진.jpg", "새 폴더", "정상.png", "불량.png", "훈련", "A고양이.jpg")),
        *((name, "cp932") for name in ("写真.jpg", "テスト.txt", "ﾃｽﾄ.txt", "新しいフォルダー", "検証")),
        *((name, "gbk") for name in ("图片.jpg", "测试.jpg", "标签.json", "新建文件夹", "缺陷")),
        *((name, "cp437") for name in ("café.jpg", "Größe.png", "El Niño.png", "Ångström.txt", "Übung.jpg")),
        *((name, "utf-8") for name in ("사진.jpg", "猫", "café.jpg", "котята.jpg", "γάτα.jpg", "قطة.jpg", "🐱.jpg")),
    ],
)
def test_evidence_of_one_name(name: str, encoding: str) -> None:
    """One short name is often evidence enough."""
    assert find_encoding([name.encode(encoding), b"readme.txt"]) == encoding


def test_names_that_say_their_encoding(tmp_path: Path) -> None:
    """The UTF-8 flag, Info-ZIP's Unicode path and pax headers decide; nothing is guessed, nothing forced on them."""
    flagged = make_zip(tmp_path / "a.zip", [("학습.jpg", PICTURE)])
    assert extract_archive(flagged, tmp_path / "a", encoding="cp437").encoding is None
    assert list(contents(tmp_path / "a")) == ["학습.jpg"]

    info, raw = zip_info("hak-sup.jpg"), b"hak-sup.jpg"
    path = "학습.jpg".encode()
    info.extra = struct.pack("<HHBI", 0x7075, 5 + len(path), 1, zlib.crc32(raw)) + path
    extract_archive(make_zip(tmp_path / "b.zip", [(info, PICTURE)]), tmp_path / "b")
    assert list(contents(tmp_path / "b")) == ["학습.jpg"]

    pax = make_tar(tmp_path / "c.tar", [("학습.jpg", PICTURE)])
    assert extract_archive(pax, tmp_path / "c", encoding="cp949").encoding is None
    assert list(contents(tmp_path / "c")) == ["학습.jpg"]


def test_one_broken_name_does_not_spoil_the_rest(tmp_path: Path) -> None:
    """A name cut in the middle of a character is shown byte by byte, the others in Hangul."""
    whole, broken = {"학습/개미.jpg", "학습/벌.jpg"}, "검증.jp".encode("cp949") + b"\xb0"
    archive = make_unmarked_zip(tmp_path / "a.zip", [*(name.encode("cp949") for name in whole), broken])
    extract_archive(archive, tmp_path / "out")
    assert set(contents(tmp_path / "out")) == {*whole, "░╦┴⌡.jp░"}


@pytest.mark.parametrize("format", ["zip", "tar"])
def test_names_of_several_tools(tmp_path: Path, format: str) -> None:
    """Names that are UTF-8 for sure stay right beside names in an old code page."""
    names = {"사진.jpg": "utf-8", "学習/写真.jpg": "utf-8", "검증/개미.jpg": "cp949", "검증/고양이.jpg": "cp949"}
    raw = [name.encode(encoding) for name, encoding in names.items()]
    archive = tmp_path / "a"
    if format == "zip":
        make_unmarked_zip(archive, raw)
    else:
        with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape") as tar:
            for name in raw:
                tar.addfile(tar_info(name.decode("utf-8", "surrogateescape")))
    report = extract_archive(archive, tmp_path / "out")
    assert set(contents(tmp_path / "out")) == set(names)
    assert report.encoding == "cp949"


def test_forced_encoding_that_does_not_fit(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """A forced encoding in which a name can't be written is an error, not a guess."""
    archive = make_unmarked_zip(tmp_path / "a.zip", [name.encode("cp949") for name in NAMES["cp949"]])
    nothing_left(archive, "not valid utf-8", encoding="utf-8")


def test_unknown_encoding(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """An encoding that Python does not know is said before anything is read."""
    nothing_left(make_zip(tmp_path / "a.zip", GOOD.items()), "no encoding 'cp9949'", encoding="cp9949")
