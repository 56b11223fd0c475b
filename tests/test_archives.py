"""Tests for ``ftkit.archives``: what comes out, what is refused, and that nothing is ever left half done."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from ftkit import FtkitError, extract_archive
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


def make_unmarked_zip(path: Path, names: Iterable[str], encoding: str) -> Path:
    """Write a zip as old Windows tools do: names in a local code page, and nothing that says so."""
    blob, renamed = io.BytesIO(), []
    with zipfile.ZipFile(blob, "w") as archive:
        for number, name in enumerate(names):
            raw = name.encode(encoding)
            stand_in = f"{number:0{len(raw)}d}"
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
    assert str(report).endswith("2 files, 2.1 kB")
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


def test_damage_in_the_last_member(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """A checksum that fails at the very end leaves nothing of the members before it."""
    names = [f"{number}.jpg" for number in range(20)]
    archive = make_zip(tmp_path / "a.zip", [(name, os.urandom(2000)) for name in names])
    data = bytearray(archive.read_bytes())
    data[data.rfind(b"PK\3\4") + 100] ^= 1
    archive.write_bytes(data)
    nothing_left(archive, "'19.jpg'", "damaged")


@pytest.mark.parametrize("packing", ["", "gz", "bz2", "xz"])
def test_cut_off_tars(tmp_path: Path, packing: str, nothing_left: Callable[..., str]) -> None:
    """A tar that ends too early is refused wherever the cut is, even between two members."""
    archive = make_tar(tmp_path / "a.tar", [(f"{number}.jpg", os.urandom(2000)) for number in range(20)], packing)
    whole = archive.read_bytes()
    for size in {len(whole) // 2, 2560 * 3, len(whole) - len(whole) // 3}:
        archive.write_bytes(whole[:size])
        nothing_left(archive, "cut off")


def test_korean_names(tmp_path: Path) -> None:
    """Names in CP949, as Windows in Korea writes them, come out in Hangul."""
    names = ["학습/개미/사진.jpg", "학습/벌/사진.jpg"]
    report = extract_archive(make_unmarked_zip(tmp_path / "a.zip", names, "cp949"), tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == names
    assert report.encoding == "cp949"
    assert "cp949" in str(report)


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
