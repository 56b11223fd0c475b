"""What lies behind the end of an archive: nothing is passed over in silence."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftkit import extract_archive
from ftkit.errors import ArchiveError
from tests.archives.packers import GOOD, PICTURE, contents, make_tar, make_zip

BLOCK = 512
PACKERS = {"": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
_quick = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _files(number: int, size: int = 700) -> list[tuple[str, bytes]]:
    return [(f"{index}.jpg", bytes([index + 1]) * size) for index in range(number)]


@_quick
@given(lost=st.integers(0, 9), size=st.sampled_from([1, 700, 3000]), packing=st.sampled_from(sorted(PACKERS)))
def test_a_lost_header(tmp_path_factory: pytest.TempPathFactory, lost: int, size: int, packing: str) -> None:
    """A header overwritten by zeros is no end, whichever member it was of."""
    folder = tmp_path_factory.mktemp("lost")
    data = bytearray(make_tar(folder / "a", _files(10, size)).read_bytes())
    at = lost * (BLOCK + -(-size // BLOCK) * BLOCK)
    data[at : at + BLOCK] = bytes(BLOCK)
    (folder / "a").write_bytes(PACKERS[packing](bytes(data)))
    with pytest.raises(ArchiveError, match=rf"zeros at byte {at:,}, .*, and more data at byte {at + BLOCK:,}\."):
        extract_archive(folder / "a", folder / "out")
    assert [path.name for path in folder.iterdir()] == ["a"]


@_quick
@given(seed=st.integers(0, 1 << 32), start=st.floats(0, 1, exclude_max=True), length=st.integers(1, 8))
def test_holes_lose_no_file(tmp_path_factory: pytest.TempPathFactory, seed: int, start: float, length: int) -> None:
    """A hole of any size anywhere before the last file: all names come, or an error does."""
    folder = tmp_path_factory.mktemp("holes")
    made = random.Random(seed)
    files = [(f"{index}.bin", made.randbytes(made.randint(1, 2000))) for index in range(6)]
    files.append(("last.bin", made.randbytes(5000)))
    data = bytearray(make_tar(folder / "a", files).read_bytes())
    at = int(start * (data.index(b"last.bin") // BLOCK)) * BLOCK
    data[at : at + length * BLOCK] = bytes(length * BLOCK)
    (folder / "a").write_bytes(data)
    try:
        extract_archive(folder / "a", folder / "out")
    except ArchiveError:
        assert not (folder / "out").exists()
    else:
        assert set(contents(folder / "out")) == {name for name, _ in files}


def test_ends_as_their_makers_leave_them(tmp_path: Path) -> None:
    """The end of a tar that is as its makers leave it: two blocks, or padded to any size."""
    data = make_tar(tmp_path / "a", GOOD.items()).read_bytes().rstrip(b"\0")
    data += bytes(-len(data) % BLOCK)
    for number, padding in enumerate([2 * BLOCK, 3 * BLOCK, 10240, 1 << 20, 2 * BLOCK + 100]):
        (tmp_path / "a").write_bytes(data + bytes(padding))
        extract_archive(tmp_path / "a", tmp_path / str(number))
        assert contents(tmp_path / str(number)) == GOOD
    (tmp_path / "a").write_bytes(data + bytes(BLOCK))
    with pytest.raises(ArchiveError, match="half an end mark"):
        extract_archive(tmp_path / "a", tmp_path / "out")


@_quick
@given(
    counts=st.lists(st.integers(0, 3), min_size=2, max_size=4).filter(lambda counts: any(counts[1:])),
    padding=st.sampled_from([2 * BLOCK, 10240]),
    packing=st.sampled_from(sorted(PACKERS)),
    together=st.booleans(),
)
def test_joined_tars(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], padding: int, packing: str, together: bool
) -> None:
    """``cat a.tar b.tar``, packed before or after: refused, with where the next one begins."""
    folder = tmp_path_factory.mktemp("joined")
    tars = []
    for part, count in enumerate(counts):
        files = [(f"{part}/{name}", data) for name, data in _files(count)]
        data = make_tar(folder / "a", files).read_bytes().rstrip(b"\0")
        tars.append(data + bytes(-len(data) % BLOCK) + bytes(padding))
    pack = PACKERS[packing]
    (folder / "a").write_bytes(pack(b"".join(tars)) if together else b"".join(map(pack, tars)))
    with pytest.raises(ArchiveError, match=r"another tar begins at byte [\d,]+, with '\d/0.jpg'.* --ignore-zeros"):
        extract_archive(folder / "a", folder / "out")
    assert [path.name for path in folder.iterdir()] == ["a"]


@pytest.mark.skipif(not shutil.which("tar"), reason="needs tar")
def test_tars_joined_by_tar(tmp_path: Path) -> None:
    """``tar -A`` leaves one archive, which is read whole."""
    make_tar(tmp_path / "a.tar", _files(2))
    make_tar(tmp_path / "b.tar", [("b/1.jpg", PICTURE)])
    subprocess.run(["tar", "-A", "-f", "a.tar", "b.tar"], cwd=tmp_path, check=True)
    extract_archive(tmp_path / "a.tar", tmp_path / "out")
    assert contents(tmp_path / "out") == dict(_files(2)) | {"b/1.jpg": PICTURE}


@pytest.mark.parametrize("second", [GOOD, {}])
def test_joined_zips(tmp_path: Path, second: dict[str, bytes], nothing_left: Callable[..., str]) -> None:
    """The directory of the second zip says nothing of the first."""
    first = make_zip(tmp_path / "a", [("lost.jpg", PICTURE)]).read_bytes()
    whole = make_zip(tmp_path / "b", second.items()).read_bytes()
    (tmp_path / "a.zip").write_bytes(first + whole)
    nothing_left(tmp_path / "a.zip", "another zip begins", "each separately")
    (tmp_path / "sfx.exe").write_bytes(b"MZ a program that unpacks itself" + whole)
    extract_archive(tmp_path / "sfx.exe", tmp_path / "out")
    assert contents(tmp_path / "out") == second


def test_joined_7z(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """The second of two would be passed over."""
    py7zr = pytest.importorskip("py7zr")
    for name in ("a", "b"):
        with py7zr.SevenZipFile(tmp_path / name, "w") as archive:
            archive.writestr(PICTURE, f"{name}.jpg")
    (tmp_path / "a.7z").write_bytes((tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes())
    nothing_left(tmp_path / "a.7z", "more bytes follow", "each separately")
