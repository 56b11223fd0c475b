"""Tars, plain and packed, whole and damaged."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftkit import extract_archive
from ftkit.errors import ArchiveError
from tests.archives.packers import GOOD, PICTURE, contents, make_tar, tar_info


@pytest.mark.parametrize("packing", ["", "gz", "bz2", "xz"])
def test_tar_comes_out_whole(tmp_path: Path, packing: str) -> None:
    """Every packing of tar is told by content, here against a lying suffix."""
    archive = make_tar(tmp_path / "pets.zip", GOOD.items(), packing)
    report = extract_archive(archive, tmp_path / "pets")
    assert contents(tmp_path / "pets") == GOOD
    assert report.format == ("tar." + packing).rstrip(".")
    assert (tmp_path / "pets/train/ants/1.jpg").stat().st_mtime == 1_700_000_000


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


@pytest.mark.skipif(not shutil.which("tar"), reason="needs tar")
@pytest.mark.parametrize(
    "way", ["--format=gnu", "--sparse-version=0.0", "--sparse-version=0.1", "--sparse-version=1.0"]
)
def test_sparse_files(tmp_path: Path, way: str) -> None:
    """Files with holes, in all the ways in which GNU tar writes them, come out whole."""
    with (tmp_path / "holes").open("wb") as file:
        for number in range(1, 30):
            file.seek(number * 40_000)
            file.write(PICTURE)
        file.truncate(2_000_000)
    whole = (tmp_path / "holes").read_bytes()
    format = [way] if way.startswith("--format") else ["--format=pax", way]
    subprocess.run(["tar", "-S", *format, "-cf", "a.tar", "holes"], cwd=tmp_path, check=True)
    extract_archive(tmp_path / "a.tar", tmp_path / "out")
    assert contents(tmp_path / "out") == {"holes": whole}


_number = st.integers(-600, 3000) | st.sampled_from([-(1 << 40), 1 << 40])


@pytest.fixture
def alarm() -> Iterator[None]:
    """Fail what goes on for ever."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it goes on for ever"))
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarm")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    extents=st.lists(st.tuples(_number, _number), max_size=4)
    | st.permutations([(0, 300), (512, 512), (1024, 100)])
    | st.permutations([(-5, 5), (0, 300), (1500, 0)]),
    size=_number | st.just(1500),
    stored=st.integers(0, 2000) | st.sampled_from([300, 912]),
    pax=st.booleans(),
)
def test_maps_of_sparse_files(
    tmp_path_factory: pytest.TempPathFactory, extents: list[tuple[int, int]], size: int, stored: int, pax: bool
) -> None:
    """A map of extents that overlap, point back or beyond the file ends in an error: no loop, no raw error."""
    folder = tmp_path_factory.mktemp("sparse")
    if pax:
        numbers = ",".join(f"{offset},{length}" for offset, length in extents)
        info = tar_info("a", pax_headers={"GNU.sparse.map": numbers, "GNU.sparse.size": str(size)})
        make_tar(folder / "a", [(info, b"x" * stored), *GOOD.items()])
    else:
        header = bytearray(tar_info("a", type=tarfile.GNUTYPE_SPARSE, size=stored).tobuf(tarfile.GNU_FORMAT))
        for at, number in enumerate([number for extent in extents for number in extent]):
            header[386 + 12 * at : 398 + 12 * at] = tarfile.itn(number, 12, tarfile.GNU_FORMAT)
        header[483:495] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        rest = make_tar(folder / "a", GOOD.items()).read_bytes()
        (folder / "a").write_bytes(bytes(header) + b"x" * stored + bytes(-stored % 512) + rest)
    try:
        report = extract_archive(folder / "a", folder / "out")
    except ArchiveError:
        assert [path.name for path in folder.iterdir()] == ["a"]
    else:
        assert report.files == 3
        wanted, packed = bytearray(size), io.BytesIO(b"x" * stored + bytes(-stored % 512))
        for offset, length in extents:
            wanted[offset : offset + length] = packed.read(length)
        assert (folder / "out/a").read_bytes() == wanted
        assert len(wanted) == size
        assert len(packed.read()) < 512
    shutil.rmtree(folder)


def test_damage_at_the_end_of_a_packed_tar(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """The checksum of gzip, behind the tar's end, is read, too."""
    archive = make_tar(tmp_path / "a.tgz", GOOD.items())
    data = bytearray(gzip.compress(archive.read_bytes() + bytes(3 << 20)))  # what pads it fills blocks of its own
    data[-8] ^= 1
    archive.write_bytes(data)
    nothing_left(archive, "damaged")


@pytest.mark.parametrize("type", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"V"])
def test_what_is_no_file(tmp_path: Path, type: bytes, nothing_left: Callable[..., str]) -> None:
    """Devices, FIFOs and types unheard of are refused by name."""
    nothing_left(make_tar(tmp_path / "a.tar", [*GOOD.items(), (tar_info("odd", type=type), b"")]), "'odd' is a")


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
