"""Zips: their several ways to say a name, a size, a time and a packing."""

from __future__ import annotations

import base64
import lzma
import os
import stat
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from ftkit import extract_archive
from ftkit.errors import ArchiveError
from tests.archives.packers import GOOD, PICTURE, contents, make_zip, zip_info


def test_zip_comes_out_whole(tmp_path: Path) -> None:
    """An ordinary zip: bytes, names, times, and a report that says it."""
    archive = make_zip(tmp_path / "pets.zip", [*GOOD.items(), ("empty/", b"")])
    report = extract_archive(archive, tmp_path / "new" / "pets")
    assert contents(tmp_path / "new" / "pets") == GOOD
    assert (tmp_path / "new" / "pets" / "empty").is_dir()
    assert (report.format, report.files, report.bytes, report.encoding) == ("zip", 2, 2 * len(PICTURE), None)
    assert str(report).endswith("2 files, 2.01 KiB")
    assert os.listdir(tmp_path / "new") == ["pets"]


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


@pytest.mark.parametrize("type", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_what_is_no_file_in_a_zip(tmp_path: Path, type: int, nothing_left: Callable[..., str]) -> None:
    """Zip can hold devices, too."""
    nothing_left(make_zip(tmp_path / "a.zip", [*GOOD.items(), (zip_info("odd", type | 0o644), b"")]), "'odd' is a")


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
