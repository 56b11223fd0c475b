"""Tests for ``ftkit._archives``: what comes out, what is refused, and that nothing is ever left half done."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import itertools
import json
import lzma
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import unicodedata
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftkit import FtkitError, extract_archive
from ftkit._archives.members import Limits, Member
from ftkit._archives.names import find_encoding
from ftkit._archives.tree import Tree
from ftkit.errors import ArchiveError, FileWriteError

PICTURE = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 4 + b"\xff\xd9"
GOOD = {"train/ants/1.jpg": PICTURE, "train/bees/2.jpg": PICTURE[::-1]}


def zip_info(name: str, mode: int = stat.S_IFREG | 0o644, *, system: int = 3) -> zipfile.ZipInfo:
    """Return an entry whose name zipfile has not had its way with."""
    info = zipfile.ZipInfo("x", (2024, 5, 6, 7, 8, 10))
    info.filename, info.external_attr, info.create_system = name, mode << 16, system
    return info


def make_zip(path: Path, entries: Iterable[tuple[str | zipfile.ZipInfo, bytes]]) -> Path:
    """Write a zip, with one name twice if need be."""
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, data in entries:
            info = name if isinstance(name, zipfile.ZipInfo) else zip_info(name)
            archive.writestr(info, data, zipfile.ZIP_DEFLATED)
    return path


def make_unmarked_zip(path: Path, names: Iterable[bytes]) -> Path:
    """Write a zip as old Windows tools do: names in a local code page, and nothing that says so."""
    blob, renamed = io.BytesIO(), []
    with zipfile.ZipFile(blob, "w") as archive:
        for number, raw in enumerate(names):
            stand_in = chr(ord("A") + number) * len(raw)
            archive.writestr(zip_info(stand_in, system=0), PICTURE)
            renamed.append((stand_in.encode(), raw))
    data = blob.getvalue()
    for stand_in, raw in renamed:
        assert data.count(stand_in) == 2
        data = data.replace(stand_in, raw)
    path.write_bytes(data)
    return path


def tar_info(name: str, **fields: object) -> tarfile.TarInfo:
    """Return a tar header."""
    info = tarfile.TarInfo(name)
    info.mtime = 1_700_000_000
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def make_tar(path: Path, members: Iterable[tuple[str | tarfile.TarInfo, bytes]], packing: str = "") -> Path:
    """Write a tar."""
    with tarfile.open(path, f"w:{packing}") as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tar_info(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def link(name: str, target: str, *, hard: bool = False) -> tuple[tarfile.TarInfo, bytes]:
    """Return a link for ``make_tar``."""
    return tar_info(name, type=tarfile.LNKTYPE if hard else tarfile.SYMTYPE, linkname=target), b""


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files below ``folder``."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def nothing_left(tmp_path: Path) -> Callable[..., str]:
    """Return a check that unpacking fails, says why, and leaves the disk as it was."""

    def check(archive: Path, *words: str, error: type[FtkitError] = ArchiveError, **options: object) -> str:
        for existing in (False, True):
            jail = tmp_path / f"jail{existing}"
            dest = jail / "data"
            (dest if existing else jail).mkdir(parents=True, exist_ok=True)
            before = sorted(jail.rglob("*"))
            with pytest.raises(error) as caught:
                extract_archive(archive, dest, **options)  # type: ignore[arg-type]
            assert sorted(jail.rglob("*")) == before
            for word in words:
                assert word in str(caught.value)
        return str(caught.value)

    return check


def test_zip_comes_out_whole(tmp_path: Path) -> None:
    """An ordinary zip: bytes, names, times, and a report that says it."""
    archive = make_zip(tmp_path / "pets.zip", [*GOOD.items(), ("empty/", b"")])
    report = extract_archive(archive, tmp_path / "new" / "pets")
    assert contents(tmp_path / "new" / "pets") == GOOD
    assert (tmp_path / "new" / "pets" / "empty").is_dir()
    assert (report.format, report.files, report.bytes, report.encoding) == ("zip", 2, 2 * len(PICTURE), None)
    assert str(report).endswith("2 files, 2.01 KiB")
    assert os.listdir(tmp_path / "new") == ["pets"]


@pytest.mark.parametrize("packing", ["", "gz", "bz2", "xz"])
def test_tar_comes_out_whole(tmp_path: Path, packing: str) -> None:
    """Every packing of tar is told by content, here against a lying suffix."""
    archive = make_tar(tmp_path / "pets.zip", GOOD.items(), packing)
    report = extract_archive(archive, tmp_path / "pets")
    assert contents(tmp_path / "pets") == GOOD
    assert report.format == ("tar." + packing).rstrip(".")
    assert (tmp_path / "pets/train/ants/1.jpg").stat().st_mtime == 1_700_000_000


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil", "\\evil", "..\\evil", "C:\\evil", "c:evil"])
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_paths_that_leave(
    tmp_path: Path, make: Callable[..., Path], name: str, nothing_left: Callable[..., str]
) -> None:
    """A path out of the folder is refused by name, in whatever spelling."""
    nothing_left(make(tmp_path / "a", [*GOOD.items(), (name, b"evil")]), repr(name))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a.jpg", "a.jpg"], "twice"),
        (["a", "a/b.jpg"], "file and a folder"),
        (["a/b.jpg", "a"], "file and a folder"),
        (["caf\u00e9.jpg", "cafe\u0301.jpg"], "Unicode"),
        (["caf\u00e9/1.jpg", "cafe\u0301/2.jpg"], "Unicode"),
    ],
)
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_collisions(
    tmp_path: Path, make: Callable[..., Path], names: list[str], words: str, nothing_left: Callable[..., str]
) -> None:
    """Two members for one place are refused: one would be lost."""
    nothing_left(make(tmp_path / "a", [(name, PICTURE) for name in names]), repr(names[1]), words)


def test_cases_live_side_by_side_where_the_disk_can(tmp_path: Path) -> None:
    """Names that differ by case alone come out on a disk that tells them apart, and are refused on one that can't."""
    names = ["A.jpg", "a.JPG"]
    archive = make_zip(tmp_path / "a.zip", [(name, name.encode()) for name in names])
    (tmp_path / "Probe").touch()
    if (tmp_path / "pROBE").exists():
        with pytest.raises(ArchiveError, match="by case"):
            extract_archive(archive, tmp_path / "out")
    else:
        extract_archive(archive, tmp_path / "out")
        assert contents(tmp_path / "out") == {name: name.encode() for name in names}


def test_case_collision_on_a_disk_that_folds_case(tmp_path: Path) -> None:
    """The rule for Windows and macOS, tried here: folders that would merge are refused, too."""
    tree = Tree(tmp_path, Limits(1e9, 1e9, 1e9, 0), lambda _: None)
    tree.folds_case = True
    assert tree.claim(Member("Cat/1.jpg", "file"))
    assert tree.claim(Member("Cat/2.jpg", "file"))
    with pytest.raises(ArchiveError, match=r"'cat/3\.jpg' collides with 'Cat', which differs by case alone"):
        tree.claim(Member("cat/3.jpg", "file"))


@pytest.mark.parametrize("packing", ["", "gz", "bz2", "xz"])
def test_cut_off_tars(tmp_path: Path, packing: str, nothing_left: Callable[..., str]) -> None:
    """A tar that ends too early is refused wherever the cut is, even between two members."""
    archive = make_tar(tmp_path / "a.tar", [(f"{number}.jpg", os.urandom(2000)) for number in range(20)], packing)
    whole = archive.read_bytes()
    for size in (len(whole) // 2, 2560 * 3, len(whole) - len(whole) // 3):
        archive.write_bytes(whole[:size])
        nothing_left(archive, "cut off")


def test_damaged_tars(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """A header in the middle that makes no sense is damage, not the end, as tarfile has it."""
    archive = make_tar(tmp_path / "a.tar", [(f"{number}.jpg", PICTURE) for number in range(4)])
    data = bytearray(archive.read_bytes())
    data[2 * 2048 + 10] ^= 1
    archive.write_bytes(data)
    nothing_left(archive, "end mark")


@pytest.mark.parametrize("size", [-512, -1, 1 << 60])
@pytest.mark.parametrize("type", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME])
def test_sizes_that_lead_back_or_nowhere(
    tmp_path: Path, size: int, type: bytes, nothing_left: Callable[..., str]
) -> None:
    """A negative size sends old releases of tarfile round in circles (CVE-2025-8194); a huge one fills the memory."""
    header = bytearray(tar_info("a", type=type).tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (b"\xff" if size < 0 else b"\x80") + (size % (1 << 88)).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    archive = make_tar(tmp_path / "a.tar", GOOD.items())
    archive.write_bytes(bytes(header) + archive.read_bytes())
    nothing_left(archive)


def test_pax_header_for_all(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """A global header can give every member a way out."""
    with tarfile.open(tmp_path / "a.tar", "w", pax_headers={"path": "../evil"}) as archive:
        archive.addfile(tar_info("good"))
    nothing_left(tmp_path / "a.tar", "'../evil'")


def test_sparse_bomb(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """A terabyte of holes in two blocks."""
    header = bytearray(tar_info("a", type=tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"00000000000\0" * 2
    header[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(1024))
    nothing_left(tmp_path / "a.tar", "max_ratio")


def test_cut_off_zips(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """A download that broke off has lost the directory at its end."""
    archive = make_zip(tmp_path / "a.zip", [(f"{number}.jpg", os.urandom(2000)) for number in range(20)])
    whole = archive.read_bytes()
    for size in (20, len(whole) // 2, len(whole) - 10):
        archive.write_bytes(whole[:size])
        nothing_left(archive, "cut off")


def test_damage_in_the_last_member(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """A checksum that fails at the very end leaves nothing of the members before it."""
    names = [f"{number}.jpg" for number in range(20)]
    archive = make_zip(tmp_path / "a.zip", [(name, os.urandom(2000)) for name in names])
    data = bytearray(archive.read_bytes())
    data[data.rfind(b"PK\3\4") + 100] ^= 1
    archive.write_bytes(data)
    nothing_left(archive, "'19.jpg'", "damaged")


def test_damage_at_the_end_of_a_packed_tar(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """The checksum of gzip, behind the tar's end, is read, too."""
    archive = make_tar(tmp_path / "a.tgz", GOOD.items())
    data = bytearray(gzip.compress(archive.read_bytes() + bytes(3 << 20)))  # what pads it fills blocks of its own
    data[-8] ^= 1
    archive.write_bytes(data)
    nothing_left(archive, "damaged")


# --- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hard", [False, True])
def test_links_that_stay(tmp_path: Path, hard: bool) -> None:
    """Links inside the archive are made, through folders and other links, too."""
    members = [
        *GOOD.items(),
        link("val/1.jpg", "train/ants/1.jpg" if hard else "../train/ants/1.jpg", hard=hard),
        link("folder", "train/./bees//"),
        link("chain/2.jpg", "../folder/2.jpg"),
    ]
    report = extract_archive(make_tar(tmp_path / "a.tar", members), tmp_path / "out")
    assert (tmp_path / "out/val/1.jpg").read_bytes() == PICTURE
    assert (tmp_path / "out/chain/2.jpg").read_bytes() == PICTURE[::-1]
    assert (tmp_path / "out/val/1.jpg").is_symlink() != hard
    assert report.files == 5


@pytest.mark.parametrize(
    ("format", "target"),
    [
        *itertools.product(
            ["zip", "tar"], ["../out", "/etc/passwd", "x/../../..", "C:\\windows", "..\\..\\up", "me", ""]
        ),
        ("tar", "folder/../../.."),
        ("tar", "folder/up"),
    ],
)
def test_links_that_leave(tmp_path: Path, target: str, format: str, nothing_left: Callable[..., str]) -> None:
    """A link that leads out is refused, on whatever detour; so is one in a circle."""
    detours = {"me": "me", "folder": "a/b", "a/b/up": "../../.."}
    if format == "tar":
        members = [*GOOD.items(), *(link(name, to) for name, to in detours.items()), link("me", target)]
        if target == "me":
            members.pop()
        archive = make_tar(tmp_path / "a.tar", members)
    else:
        mode = stat.S_IFLNK | 0o777
        entries: list[tuple[str | zipfile.ZipInfo, bytes]] = [*GOOD.items(), (zip_info("me", mode), target.encode())]
        archive = make_zip(tmp_path / "a.zip", entries)
    nothing_left(archive, "link")


@pytest.mark.parametrize("target", ["../secret", "/etc/passwd", "later.jpg", "me.jpg", "soft.jpg", "folder"])
def test_hard_links_that_leave(tmp_path: Path, target: str, nothing_left: Callable[..., str]) -> None:
    """A hard link must lead to a file that came before it."""
    members = [
        link("soft.jpg", "train"),
        ("folder/1.jpg", PICTURE),
        link("me.jpg", target, hard=True),
        ("later.jpg", PICTURE),
    ]
    (tmp_path / "secret").write_text("secret")
    nothing_left(make_tar(tmp_path / "a.tar", members), "'me.jpg'")


def test_files_below_a_link(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """Nothing is written through a link, in whatever order the two come."""
    inside, below = link("door", "train"), ("door/evil.jpg", PICTURE)
    nothing_left(make_tar(tmp_path / "a.tar", [inside, below]), "through the link")
    nothing_left(make_tar(tmp_path / "b.tar", [below, inside]), "file and a folder")


def test_realpath_trick(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """Links whose path is too long for realpath, which then calls them safe (CVE-2025-4517)."""
    long, members, path = "d" * 247, [], ""
    for step in "abcdefghijklmnop":
        members += [(tar_info(path + long, type=tarfile.DIRTYPE), b""), link(path + step, long)]
        path += long + "/"
    chain = "/".join("abcdefghijklmnop") + "/" + "l" * 254
    members += [link(chain, "../" * 16), link("escape", chain + "/../../up"), ("escape/evil.jpg", PICTURE)]
    nothing_left(make_tar(tmp_path / "a.tar", members))


def test_long_chain_of_links(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """The check of links takes linear time where following them would take exponential time."""
    doubling = [link(f"l{number}", f"l{number - 1}/l{number - 1}") for number in range(1, 60)]
    nothing_left(make_tar(tmp_path / "a.tar", [link("l0", "."), *doubling]), "circle")


@pytest.mark.parametrize("type", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"V"])
def test_what_is_no_file(tmp_path: Path, type: bytes, nothing_left: Callable[..., str]) -> None:
    """Devices, FIFOs and types unheard of are refused by name."""
    nothing_left(make_tar(tmp_path / "a.tar", [*GOOD.items(), (tar_info("odd", type=type), b"")]), "'odd' is a")


@pytest.mark.parametrize("type", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_what_is_no_file_in_a_zip(tmp_path: Path, type: int, nothing_left: Callable[..., str]) -> None:
    """Zip can hold devices, too."""
    nothing_left(make_zip(tmp_path / "a.zip", [*GOOD.items(), (zip_info("odd", type | 0o644), b"")]), "'odd' is a")


# --- modes, times -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packed", "wanted"),
    [(0o644, 0o644), (0o755, 0o755), (0o777, 0o755), (0o000, 0o600), (0o6777, 0o755), (0o606, 0o604)],
)
@pytest.mark.parametrize("format", ["zip", "tar"])
def test_modes(tmp_path: Path, packed: int, wanted: int, format: str) -> None:
    """Modes are kept as far as they are safe; set-uid bits are dropped, and the report says so."""
    if format == "zip":
        archive = make_zip(tmp_path / "a", [(zip_info("a.jpg", stat.S_IFREG | packed), PICTURE)])
    else:
        archive = make_tar(tmp_path / "a", [(tar_info("a.jpg", mode=packed), PICTURE)])
    before = os.umask(0o022)
    try:
        report = extract_archive(archive, tmp_path / "out")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out/a.jpg").stat().st_mode) == wanted
    assert report.set_uid == (packed > 0o777)
    assert ("set-uid" in str(report)) == (packed > 0o777)


@pytest.mark.parametrize("mtime", [-5, 1e12, 1e30, float("nan"), float("inf")])
def test_times_that_make_no_sense(tmp_path: Path, mtime: float) -> None:
    """A time before 1970 or to come becomes now."""
    info = tar_info("a.jpg", pax_headers={"mtime": str(mtime)})
    extract_archive(make_tar(tmp_path / "a.tar", [(info, PICTURE)]), tmp_path / "out")
    assert abs((tmp_path / "out/a.jpg").stat().st_mtime - time.time()) < 60


def test_times_of_a_zip(tmp_path: Path) -> None:
    """The exact field in UTC counts before the local time; a date of zeros is no date."""
    exact, local, zeros = zip_info("exact"), zip_info("local"), zip_info("zeros")
    exact.extra = struct.pack("<HHBi", 0x5455, 5, 1, 1_600_000_001)
    zeros.date_time = (1980, 0, 0, 0, 0, 0)
    extract_archive(make_zip(tmp_path / "a.zip", [(exact, b""), (local, b""), (zeros, b"")]), tmp_path / "out")
    times = {path.name: path.stat().st_mtime for path in (tmp_path / "out").iterdir()}
    assert times["exact"] == 1_600_000_001
    assert times["local"] == time.mktime((2024, 5, 6, 7, 8, 10, 0, 0, -1))
    assert abs(times["zeros"] - time.time()) < 60


# --- bombs ------------------------------------------------------------------------------------------------------------


def test_limits(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """Every limit is kept, and its error names the way to raise it."""
    archive = make_zip(tmp_path / "a.zip", GOOD.items())
    nothing_left(archive, "raise max_bytes", max_bytes=2 * len(PICTURE) - 1)
    nothing_left(archive, "raise max_files", max_files=1)
    extract_archive(archive, tmp_path / "out", max_bytes=2 * len(PICTURE), max_files=2)
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


def test_overlapping_members(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """Members that share their bytes are refused."""
    archive = make_zip(tmp_path / "a.zip", [("a.jpg", PICTURE)])
    data = archive.read_bytes()
    start, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    entry = data[start:end]
    twice = entry + entry.replace(b"a.jpg", b"b.jpg")
    tail = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 2, 2, len(twice), start, 0)
    archive.write_bytes(data[:start] + twice + tail)
    nothing_left(archive, "overlaps")


def test_member_that_lies_about_its_size(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """A member larger than its directory says is cut short at the first byte too many."""
    archive = make_zip(tmp_path / "a.zip", [("a.jpg", PICTURE)])
    data = bytearray(archive.read_bytes())
    struct.pack_into("<I", data, data.rfind(b"PK\1\2") + 24, 10)
    archive.write_bytes(data)
    nothing_left(archive, "more than the 10 bytes")


# --- names ------------------------------------------------------------------------------------------------------------

NAMES = {
    "cp949": ["학습/개미/사진.jpg", "학습/벌/사진 (2).jpg", "검증/고양이.png"],
    "cp932": ["学習/蟻/写真.jpg", "テスト/ミツバチ.jpg", "ソース表.txt"],
    "gbk": ["训练/蚂蚁/图片.jpg", "验证/蜜蜂.jpg", "数据集说明.txt"],
    "cp437": ["Größe/Mädchen.jpg", "été/forêt.jpg", "niño.jpg"],
    "utf-8": ["학습/사진.jpg", "写真/猫.jpg", "Größe.txt"],
}


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


def test_windows_paths(tmp_path: Path) -> None:
    """Backslashes between folders are what old Windows tools wrote for slashes; a trailing one marks a folder."""
    extract_archive(make_zip(tmp_path / "a.zip", [("train\\a\\1.jpg", PICTURE), ("void\\", b"")]), tmp_path / "out")
    assert list(contents(tmp_path / "out")) == ["train/a/1.jpg"]
    assert (tmp_path / "out/void").is_dir()


def test_names_no_disk_can_hold(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """Names too long, too deep or with a NUL are refused by name."""
    nothing_left(make_tar(tmp_path / "a", [("x" * 300, b"")]), "xxx", "can't hold")
    nothing_left(make_tar(tmp_path / "b", [("d/" * 300 + "x", b"")]), "deep")
    nothing_left(make_tar(tmp_path / "c", [(("y" * 200 + "/") * 40 + "x", b"")]), "can't hold")
    nothing_left(make_zip(tmp_path / "d", [("a\0b.jpg", b"")]), "can't hold")


def test_forced_encoding_that_does_not_fit(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """A forced encoding in which a name can't be written is an error, not a guess."""
    archive = make_unmarked_zip(tmp_path / "a.zip", [name.encode("cp949") for name in NAMES["cp949"]])
    nothing_left(archive, "not written in utf-8", encoding="utf-8")


def test_unknown_encoding(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """An encoding that Python does not know is said before anything is read."""
    nothing_left(make_zip(tmp_path / "a.zip", GOOD.items()), "no encoding 'cp9949'", encoding="cp9949")


# --- what is left out or stripped --------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_junk_is_left_out(tmp_path: Path, make: Callable[..., Path]) -> None:
    """What macOS and Windows leave in archives is counted, not written; a real file that looks alike is."""
    double = b"\x00\x05\x16\x07" + bytes(78)
    members = [
        *GOOD.items(),
        ("__MACOSX/train/ants/._1.jpg", double),
        ("train/.DS_Store", b"junk"),
        ("train/ants/.DS_Store", b"junk"),
        ("train/ants/Thumbs.db", b"junk"),
        ("train/ants/._1.jpg", double),
        ("train/ants/._real.jpg", PICTURE),
    ]
    report = extract_archive(make(tmp_path / "a", members), tmp_path / "out")
    assert contents(tmp_path / "out") == {**GOOD, "train/ants/._real.jpg": PICTURE}
    assert report.left_out == {"__MACOSX": 1, ".DS_Store": 2, "Thumbs.db": 1, "._*": 1}
    assert "left out: .DS_Store (2), ._* (1), Thumbs.db (1), __MACOSX (1)" in str(report)
    assert (report.files, report.bytes) == (3, 3 * len(PICTURE))


def test_junk_is_no_loophole(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """A name that leaves the folder is refused below __MACOSX, too."""
    nothing_left(make_zip(tmp_path / "a.zip", [("__MACOSX/../../evil", b"evil")]), "'..'")


def test_strip(tmp_path: Path) -> None:
    """The one folder that holds everything is taken away on demand, junk beside it or not."""
    members = [
        *((f"pets/{name}", data) for name, data in GOOD.items()),
        ("__MACOSX/pets/x", b""),
        link("pets/l", "train"),
    ]
    archive = make_tar(tmp_path / "a.tar", members)
    assert extract_archive(archive, tmp_path / "kept").stripped is None
    report = extract_archive(archive, tmp_path / "out", strip=True)
    assert report.stripped == "pets"
    assert "'pets' was taken away" in str(report)
    assert {name for name in contents(tmp_path / "out") if not name.startswith("l")} == set(GOOD)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "kept", "out"]


def test_strip_without_a_wrapping_folder(tmp_path: Path) -> None:
    """Two folders, a file beside the folder, or a link to it: there is nothing to strip."""
    for number, extra in enumerate([("other/x", b""), ("x", b""), link("x", "train")]):
        archive = make_tar(tmp_path / "a.tar", [*GOOD.items(), extra])
        report = extract_archive(archive, tmp_path / str(number), strip=True)
        assert report.stripped is None
        assert GOOD.items() <= contents(tmp_path / str(number)).items()


def test_strip_must_not_open_a_way_out(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """A link that stays in the archive may leave what is left of it without its wrapping folder."""
    archive = make_tar(tmp_path / "a.tar", [("pets/1.jpg", PICTURE), link("pets/l", "../pets/1.jpg")])
    extract_archive(archive, tmp_path / "out")
    nothing_left(archive, "'pets/l'", strip=True)


# --- passwords and methods --------------------------------------------------------------------------------------------


def raw_zip(path: Path, payload: bytes, content: bytes, *, method: int, flags: int = 0) -> Path:
    """Write a zip whose one member ``1.txt`` unpacks from ``payload`` to ``content``."""
    fields = (20, flags, method, 0, 0x5821, zlib.crc32(content), len(payload), len(content), 5)
    local = struct.pack("<I5H3I2H", 0x04034B50, *fields, 0) + b"1.txt" + payload
    entry = struct.pack("<I6H3I5H2I", 0x02014B50, 20, *fields, 0, 0, 0, 0, 0, 0) + b"1.txt"
    path.write_bytes(local + entry + struct.pack("<I4H2IH", 0x06054B50, 0, 0, 1, 1, len(entry), len(local), 0))
    return path


def old_cipher(data: bytes, password: bytes) -> bytes:
    """Encrypt as PKWARE's APPNOTE 6.1 says; the byte before the data is the one that tells a wrong password."""
    keys = [0x12345678, 0x23456789, 0x34567890]

    def update(byte: int) -> None:
        keys[0] = ~zlib.crc32(bytes([byte]), ~keys[0] & 0xFFFFFFFF) & 0xFFFFFFFF
        keys[1] = ((keys[1] + (keys[0] & 0xFF)) * 134775813 + 1) & 0xFFFFFFFF
        keys[2] = ~zlib.crc32(bytes([keys[1] >> 24]), ~keys[2] & 0xFFFFFFFF) & 0xFFFFFFFF

    for byte in password:
        update(byte)
    out = bytearray()
    for byte in bytes(11) + bytes([zlib.crc32(data) >> 24]) + data:
        mask = keys[2] | 2
        out.append(byte ^ (mask * (mask ^ 1) >> 8 & 0xFF))
        update(byte)
    return bytes(out)


# Made by pyzipper 0.3 (WinZip AE-2, AES-128 and AES-256), password "비밀".
AES_ZIPS = [
    (
        "UEsDBBQAAQBjAM98eF0AAAAAJgAAAIIAAAAKAAsAcGV0cy8xLnR4dAGZBwACAEFFAQgAc+cJKInr025c3YZiaRw9k82Cxh5eqIrHRfKHvwE+HYMJcIES+dtQ"
        "SwECFAMUAAEAYwDPfHhdAAAAACYAAACCAAAACgALAAAAAAAAAAAAgAEAAAAAcGV0cy8xLnR4dAGZBwACAEFFAQgAUEsFBgAAAAABAAEAQwAAAFkAAAAAAA=="
    ),
    (
        "UEsDBBQAAQBjAM98eF0AAAAALgAAAIIAAAAKAAsAcGV0cy8xLnR4dAGZBwACAEFFAwgAh3IIOqkscQcWi4LRf80LoRIRd7qcDypuIiAKgjnjHIl8LytQ3NFC"
        "Ozsu4tpgJ1BLAQIUAxQAAQBjAM98eF0AAAAALgAAAIIAAAAKAAsAAAAAAAAAAACAAQAAAABwZXRzLzEudHh0AZkHAAIAQUUDCABQSwUGAAAAAAEAAQBDAAAA"
        "YQAAAAAA"
    ),
]


def test_old_cipher(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """Zip's old cipher, which most programs still write."""
    payload = old_cipher(PICTURE, "비밀".encode())
    archive = raw_zip(tmp_path / "a.zip", payload, PICTURE, method=0, flags=1)
    nothing_left(archive, "'1.txt'", "password=")
    nothing_left(archive, "'1.txt'", "password is wrong", password="wrong")
    extract_archive(archive, tmp_path / "out", password="비밀")
    assert contents(tmp_path / "out") == {"1.txt": PICTURE}


@pytest.mark.parametrize("number", [0, 1])
def test_aes(tmp_path: Path, number: int, nothing_left: Callable[..., str]) -> None:
    """WinZip's AES."""
    pytest.importorskip("Cryptodome")
    archive = tmp_path / "a.zip"
    archive.write_bytes(base64.b64decode(AES_ZIPS[number]))
    nothing_left(archive, "'pets/1.txt'", "password=")
    nothing_left(archive, "'pets/1.txt'", "password is wrong", password="wrong")
    extract_archive(archive, tmp_path / "out", password="비밀".encode())
    assert contents(tmp_path / "out") == {"pets/1.txt": b"ants and bees" * 10}
    data = bytearray(archive.read_bytes())
    data[75] ^= 1
    archive.write_bytes(data)
    nothing_left(archive, "damaged", password="비밀")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_of_zip(tmp_path: Path, method: int) -> None:
    """The methods that the standard library writes, over more than one block."""
    content = PICTURE * 5000
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        archive.writestr("1.txt", content)
        archive.writestr("empty", b"")
    extract_archive(tmp_path / "a.zip", tmp_path / "out")
    assert contents(tmp_path / "out") == {"1.txt": content, "empty": b""}


def test_newer_methods_of_zip(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """Deflate64 (Windows, over 2 GB), xz and Zstandard; an unknown method is named."""
    inflate64, zstd = pytest.importorskip("inflate64"), pytest.importorskip("backports.zstd")
    content = PICTURE * 3000
    deflater = inflate64.Deflater()
    payloads = {9: deflater.deflate(content) + deflater.flush(), 93: zstd.compress(content), 95: lzma.compress(content)}
    for method, payload in payloads.items():
        extract_archive(raw_zip(tmp_path / "a.zip", payload, content, method=method), tmp_path / str(method))
        assert contents(tmp_path / str(method)) == {"1.txt": content}
    nothing_left(raw_zip(tmp_path / "a.zip", b"xxxx", content, method=97), "method 97")


def test_zstd_tar(tmp_path: Path) -> None:
    """A tar.zst, in two frames."""
    zstd = pytest.importorskip("backports.zstd")
    data = make_tar(tmp_path / "a.tar", GOOD.items()).read_bytes()
    (tmp_path / "a.zst").write_bytes(zstd.compress(data[:3000]) + zstd.compress(data[3000:]))
    assert extract_archive(tmp_path / "a.zst", tmp_path / "out").format == "tar.zst"
    assert contents(tmp_path / "out") == GOOD


def test_packed_streams_in_parts(tmp_path: Path) -> None:
    """Gzip may come in several streams and with zeros at its end, as parallel packers and tapes leave it."""
    data = make_tar(tmp_path / "a.tar", GOOD.items()).read_bytes()
    (tmp_path / "a.tgz").write_bytes(gzip.compress(data[:3000]) + gzip.compress(data[3000:]) + bytes(2_000_000))
    extract_archive(tmp_path / "a.tgz", tmp_path / "out")
    assert contents(tmp_path / "out") == GOOD


def test_zip64(tmp_path: Path) -> None:
    """The sizes of zip64, as streaming writers use them for small files, too."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, data in GOOD.items():
            with archive.open(zip_info(name), "w", force_zip64=True) as file:
                file.write(data)
    extract_archive(tmp_path / "a.zip", tmp_path / "out")
    assert contents(tmp_path / "out") == GOOD


def test_large_zip_of_macos(tmp_path: Path) -> None:
    """Archive Utility writes offsets over 4 GiB modulo 2**32, here with a hole between two members."""
    archive = make_zip(tmp_path / "a.zip", GOOD.items())
    data = archive.read_bytes()
    second, directory = data.rfind(b"PK\3\4"), data.find(b"PK\1\2")
    with archive.open("wb") as file:
        file.write(data[:second])
        file.seek((1 << 32) + second)
        file.write(data[second:])
    assert struct.unpack_from("<I", data, data.rfind(b"PK\5\6") + 16) == (directory,)
    extract_archive(archive, tmp_path / "out")
    assert contents(tmp_path / "out") == GOOD


def test_zip_behind_a_program(tmp_path: Path) -> None:
    """A zip that unpacks itself has a program before it."""
    archive = make_zip(tmp_path / "a.zip", GOOD.items())
    archive.write_bytes(b"MZ" + os.urandom(5000) + archive.read_bytes())
    extract_archive(archive, tmp_path / "out")
    assert contents(tmp_path / "out") == GOOD


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff\xe0 a picture", gzip.compress(b"a text"), b"PK\3\4 cut"])
def test_what_is_no_archive(tmp_path: Path, data: bytes, nothing_left: Callable[..., str]) -> None:
    """Other files are refused, and the error says what they look like."""
    (tmp_path / "a.zip").write_bytes(data)
    nothing_left(tmp_path / "a.zip", "a.zip")


def test_empty_archives(tmp_path: Path) -> None:
    """An archive of nothing makes an empty folder."""
    for number, archive in enumerate([make_zip(tmp_path / "a", []), make_tar(tmp_path / "b", [], "gz")]):
        assert extract_archive(archive, tmp_path / str(number)).files == 0
        assert list((tmp_path / str(number)).iterdir()) == []


# --- 7z ---------------------------------------------------------------------------------------------------------------


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


# --- the folder -------------------------------------------------------------------------------------------------------


def test_full_folder_is_not_touched(tmp_path: Path) -> None:
    """Nothing is overwritten: a folder that holds something, or a file, is an error."""
    archive = make_zip(tmp_path / "a.zip", GOOD.items())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(FileWriteError, match="not empty"):
        extract_archive(archive, tmp_path / "full")
    with pytest.raises(FileWriteError, match="is a file"):
        extract_archive(archive, tmp_path / "full" / "mine.txt")
    assert contents(tmp_path / "full") == {"mine.txt": b"mine"}


def test_empty_folder_is_filled(tmp_path: Path) -> None:
    """An existing empty folder is as good as none, by a link, too, and keeps its mode."""
    archive = make_zip(tmp_path / "a.zip", GOOD.items())
    (tmp_path / "empty").mkdir(mode=0o750)
    (tmp_path / "link").symlink_to("empty")
    extract_archive(archive, tmp_path / "link")
    assert contents(tmp_path / "empty") == GOOD
    assert (tmp_path / "link").is_symlink()
    assert stat.S_IMODE((tmp_path / "empty").stat().st_mode) == 0o750


def test_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replacing the current folder would leave the program in a folder without a name."""
    archive = make_zip(tmp_path / "a.zip", GOOD.items())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(FileWriteError, match="current folder"):
        extract_archive(archive, ".")
    extract_archive(archive, "pets")
    assert contents(tmp_path / "here" / "pets") == GOOD


def test_missing_archive(tmp_path: Path) -> None:
    """A misspelled archive is told by the closest name."""
    make_zip(tmp_path / "pets.zip", GOOD.items())
    with pytest.raises(ArchiveError, match=r"no file .*pet\.zip\. Did you mean 'pets\.zip'"):
        extract_archive(tmp_path / "pet.zip", tmp_path / "out")


def test_folder_without_permission(tmp_path: Path) -> None:
    """What the system refuses is an error of ftkit that still is an OSError."""
    archive = make_zip(tmp_path / "a.zip", GOOD.items())
    (tmp_path / "file").touch()
    with pytest.raises(FileWriteError, match="Can't unpack into") as caught:
        extract_archive(archive, tmp_path / "file" / "out")
    assert isinstance(caught.value, OSError)


def test_disk_too_small(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """What can't fit is refused before the disk is full."""
    archive = make_zip(tmp_path / "a.zip", [(f"{number}.jpg", PICTURE) for number in range(2000)])
    announced, grown = struct.pack("<I", len(PICTURE)), struct.pack("<I", 0xFFFFFFF0)
    archive.write_bytes(archive.read_bytes().replace(announced, grown))
    nothing_left(archive, "the disk has", max_ratio=1e9, max_bytes=1e15, error=FileWriteError)


def test_report(tmp_path: Path) -> None:
    """The report is plain data for whoever wants JSON."""
    report = extract_archive(make_zip(tmp_path / "a.zip", GOOD.items()), tmp_path / "out")
    assert json.loads(json.dumps(report.to_dict()))["files"] == 2


KILLED = """
import os, sys
from ftkit._archives import tree
whole = tree.Tree.write
def write(self, member):
    whole(self, member)
    print("written", flush=True)
    sys.stdin.read()
tree.Tree.write = write
from ftkit import extract_archive
extract_archive(sys.argv[1], sys.argv[2])
"""


def test_kill_in_the_middle(tmp_path: Path) -> None:
    """A killed call leaves one hidden folder, which the next call deletes, but not while its writer lives."""
    archive = make_tar(tmp_path / "a.tar", GOOD.items())
    dest = tmp_path / "place" / "out"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, archive, dest], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        (litter,) = (tmp_path / "place").iterdir()
        assert litter.name.startswith(".out.")
        assert litter.name.endswith(".ftkit-unpacking")
        extract_archive(archive, tmp_path / "place" / "other")
        assert litter.exists()
        process.kill()
    assert litter.exists()
    extract_archive(archive, dest)
    assert sorted(path.name for path in (tmp_path / "place").iterdir()) == ["other", "out"]
    assert contents(dest) == GOOD


def test_no_torch() -> None:
    """Cleaning data must not cost an import of torch."""
    code = "import sys, ftkit; ftkit.extract_archive; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- rules ------------------------------------------------------------------------------------------------------------

_part = st.text(
    st.characters(codec="utf-8", exclude_characters="/\\\0:", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12
).filter(lambda part: part.strip(". ") == part and part.lower() not in ("__macosx", "thumbs.db"))
_trees = st.dictionaries(
    st.lists(_part, min_size=1, max_size=4).map("/".join), st.binary(max_size=3000), min_size=1, max_size=8
)


def _makes_sense(tree: dict[str, bytes]) -> bool:
    """Return whether a disk can hold the tree: no name is a file and a folder, or like another one."""
    folders = {str(parent) for name in tree for parent in Path(name).parents}
    plain = {unicodedata.normalize("NFC", name).casefold() for name in {*tree, *folders}}
    return not folders & set(tree) and len(plain) == len(folders | set(tree))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=_trees.filter(_makes_sense), format=st.sampled_from(["zip", "tar", "tar.gz", "tar.xz"]))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, bytes], format: str) -> None:
    """Whatever tree is packed comes out again, byte by byte."""
    folder = tmp_path_factory.mktemp("trip")
    if format == "zip":
        archive = make_zip(folder / "a", tree.items())
    else:
        archive = make_tar(folder / "a", tree.items(), format[4:])
    report = extract_archive(archive, folder / "out")
    assert contents(folder / "out") == tree
    assert report.files == len(tree)


def _samples() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        entries = [*GOOD.items(), ("empty/", b""), (zip_info("link", stat.S_IFLNK | 0o777), b"train/ants/1.jpg")]
        samples = [make_zip(path, entries).read_bytes()]
        members = [*GOOD.items(), link("soft", "train/ants"), link("hard", "train/ants/1.jpg", hard=True)]
        samples += [make_tar(path, members, packing).read_bytes() for packing in ("", "gz", "bz2", "xz")]
        samples.append(make_unmarked_zip(path, [name.encode("cp949") for name in NAMES["cp949"]]).read_bytes())
        with contextlib.suppress(ImportError):
            import py7zr

            path.unlink()
            with py7zr.SevenZipFile(path, "w") as archive:
                for name, data in GOOD.items():
                    archive.writestr(data, name)
            samples.append(path.read_bytes())
    return samples


SAMPLES = _samples()


def test_a_link_that_claims_to_be_packed_otherwise(tmp_path: Path) -> None:
    """A flipped bit that names another packing is damage, whatever that packing's decoder raises."""
    link = zipfile.ZipInfo("link.jpg")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, b"photo.jpg")
    data = bytearray((tmp_path / "a.zip").read_bytes())
    for method in (8, 12, 14, 93, 95):
        data[8] = data[data.index(b"PK\x01\x02") + 10] = method
        (tmp_path / "a.zip").write_bytes(data)
        with pytest.raises(ArchiveError, match=r"link\.jpg"):
            extract_archive(tmp_path / "a.zip", tmp_path / "out")


@settings(max_examples=200, deadline=None)
@given(
    sample=st.integers(0, len(SAMPLES) - 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    cut=st.none() | st.floats(0, 1),
)
def test_damage_never_hurts(
    tmp_path_factory: pytest.TempPathFactory,
    sample: int,
    flips: list[tuple[float, int]],
    cut: float | None,
) -> None:
    """Bytes changed or cut at random: a whole result or one error of ftkit, and never anything outside."""
    jail = tmp_path_factory.mktemp("jail")
    data = bytearray(SAMPLES[sample])
    for where, value in flips:
        data[int(where * len(data))] = value
    (jail / "a").write_bytes(data if cut is None else data[: int(cut * len(data))])
    dest = jail / "deep" / "out"
    try:
        report = extract_archive(jail / "a", dest, max_bytes=1e8)
    except FtkitError:
        assert [path.name for path in jail.iterdir()] == ["a"]
    else:
        assert sorted(path.name for path in jail.iterdir()) == ["a", "deep"]
        assert [path.name for path in (jail / "deep").iterdir()] == ["out"]
        found = [path for path in dest.rglob("*") if path.is_symlink() or not path.is_dir()]
        assert len(found) == report.files
        assert all(path.resolve().is_relative_to(dest.resolve()) for path in found)
    shutil.rmtree(jail)
