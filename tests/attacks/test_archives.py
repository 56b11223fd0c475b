"""Archives of a few bytes that fill a disk with folders, or a memory with names."""

from __future__ import annotations

import lzma
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftkit import FtkitError, extract_archive

CHILD = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
from ftkit import FtkitError, extract_archive
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    extract_archive(sys.argv[1], sys.argv[2], **eval(sys.argv[3]))
except FtkitError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""


def refused(archive: Path, **options: float) -> tuple[int, str]:
    """Return how many KiB of memory it took to refuse ``archive``, and why, in a process of its own."""
    out = archive.parent / "out"
    child = subprocess.run(
        [sys.executable, "-c", CHILD, archive, out, repr(options)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert os.listdir(archive.parent) == [archive.name]
    taken, _, why = child.stdout.partition(" ")
    return int(taken), why


def tar_of(path: Path, names: list[str]) -> None:
    with tarfile.open(path, "w:xz") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))


def zip_of(path: Path, names: list[str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")


def seven_zip_of(path: Path, names: list[str]) -> None:
    py7zr = pytest.importorskip("py7zr")
    with py7zr.SevenZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(b"", name)


MAKERS = pytest.mark.parametrize("make", [tar_of, zip_of, seven_zip_of])


@MAKERS
def test_folders_that_paths_imply(tmp_path: Path, make: Callable[[Path, list[str]], None]) -> None:
    """Two thousand members, each below a hundred folders of its own, are 200,000 folders."""
    make(tmp_path / "a", [f"{number}" + "/d" * 100 for number in range(2000)])
    assert "raise max_files" in refused(tmp_path / "a", max_files=2001)[1]


def test_folders_take_room(tmp_path: Path) -> None:
    """A few kilobytes that make a gigabyte of empty folders are a bomb, whatever the number of members."""
    tar_of(tmp_path / "a", [f"{number}" + "/d" * 120 for number in range(2000)])
    assert (tmp_path / "a").stat().st_size < 10_000
    assert "raise max_ratio" in refused(tmp_path / "a")[1]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=5).map("/".join), min_size=1, max_size=8),
    most=st.integers(0, 20),
    kind=st.sampled_from(["zip", "tar"]),
)
def test_every_inode_counts(tmp_path_factory: pytest.TempPathFactory, names: list[str], most: int, kind: str) -> None:
    """Whatever comes out, folders and all, is no more than was allowed; and what is allowed comes out."""
    folder = tmp_path_factory.mktemp("inodes")
    files = [f"{name}/f{number}" for number, name in enumerate(names)]
    {"zip": zip_of, "tar": tar_of}[kind](folder / "a", files)
    inodes = len({"/".join(name.split("/")[:depth]) for name in files for depth in range(1, name.count("/") + 2)})
    try:
        extract_archive(folder / "a", folder / "out", max_files=most)
    except FtkitError:
        assert inodes > most
        assert not (folder / "out").exists()
    else:
        assert sum(1 for _ in (folder / "out").rglob("*")) == inodes <= most
    shutil.rmtree(folder)


def write_7z(path: Path, directory: bytes) -> None:
    """Write a 7z of a packed directory and nothing else, as 7zFormat.txt describes it."""
    settings = {"id": lzma.FILTER_LZMA1, "dict_size": 1 << 20, "lc": 3, "lp": 0, "pb": 2}
    packed = lzma.compress(directory, lzma.FORMAT_RAW, filters=[settings])
    header = b"\x17\x06" + number(0) + number(1) + b"\x09" + number(len(packed)) + b"\0"
    header += b"\x07\x0b\x01\0\x01\x23\x03\x01\x01\x05\x5d" + struct.pack("<I", 1 << 20)
    header += b"\x0c" + number(len(directory)) + b"\0\0"
    start = struct.pack("<QQI", len(packed), len(header), zlib.crc32(header))
    path.write_bytes(b"7z\xbc\xaf\x27\x1c\0\x04" + struct.pack("<I", zlib.crc32(start)) + start + packed + header)


def number(value: int) -> bytes:
    return b"\xff" + struct.pack("<Q", value)


@pytest.mark.parametrize("count", [10, 3_000_000])
def test_a_list_of_millions(tmp_path: Path, count: int) -> None:
    """A directory of three million members, in a 7z of kilobytes, is refused before anybody makes a list of it."""
    pytest.importorskip("py7zr")
    names = "".join(chr(ord("a") + each % 26) + "\0" for each in range(count)).encode("utf-16-le")
    empty = b"\xff" * -(-count // 8)
    listed = b"\x01\x05" + number(count)
    for kind, content in ((b"\x0e", empty), (b"\x0f", empty), (b"\x11", b"\0" + names)):
        listed += kind + number(len(content)) + content
    write_7z(tmp_path / "a.7z", listed + b"\0\0")
    if count == 10:
        assert extract_archive(tmp_path / "a.7z", tmp_path / "out").files == count
        return
    assert (tmp_path / "a.7z").stat().st_size < 20_000
    taken, why = refused(tmp_path / "a.7z", max_files=2000)
    assert "raise max_files" in why
    assert taken < 200_000
