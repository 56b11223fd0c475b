"""``extract_archive``: what it takes for an archive, what it tells, and that nothing is ever left half done."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftkit import FtkitError, extract_archive
from ftkit.errors import ArchiveError, FileWriteError
from tests.archives.packers import GOOD, NAMES, PICTURE, contents, link, make_tar, make_unmarked_zip, make_zip, zip_info


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


def test_missing_archive(tmp_path: Path) -> None:
    """A misspelled archive is told by the closest name."""
    make_zip(tmp_path / "pets.zip", GOOD.items())
    with pytest.raises(ArchiveError, match=r"no file .*pet\.zip\. Did you mean 'pets\.zip'"):
        extract_archive(tmp_path / "pet.zip", tmp_path / "out")


def test_what_is_no_file(tmp_path: Path) -> None:
    """A folder, a URL, a folder that is missing: each is told as what it is, with the closest name."""
    make_zip(tmp_path / "pets.zip", GOOD.items())
    (tmp_path / "pets").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for source, words in {
        tmp_path / "pets": r"pets is a folder, not an archive\. Did you mean 'pets\.zip'",
        tmp_path / "pest" / "x.zip": r"There is no folder .*pest\. Did you mean 'pets'",
        tmp_path / "pets" / "x.zip": r"There is no file .*x\.zip\.$",
        tmp_path / "pipe": "is not a regular file",
        tmp_path / ("x" * 300): "can't be read",
        "https://example.org/pets.zip": r"https://example\.org/pets\.zip is a URL\. Download",
        "a\0b": r"got 'a\\x00b', which contains a NUL",
        "~nobody-at-all/x.zip": "There is no folder .*~nobody-at-all",
        "": "which is empty",
    }.items():
        with pytest.raises(ArchiveError, match=words):
            extract_archive(source, tmp_path / "out")


def test_words_of_strangers_do_nothing_to_a_terminal(tmp_path: Path) -> None:
    """Names that clear the screen or turn the line around are shown as what they are, and not at any length."""
    evil = "\x1b[2J\u202egpj\x9b\n\u2066"
    members = [
        [("../" + evil, b"")],
        [(evil, b""), (evil, b"")],
        [link(evil, "/" + evil)],
        [link(evil, "/" + "x" * 50_000)],
        [link(evil, evil, hard=True)],
        [(evil, b""), (evil + "/" + evil, b"")],
        [link("a", "."), (f"{evil}{evil}/b", b"")],
        [(evil * 40, b"")],
    ]
    for number, made in enumerate(members):
        with pytest.raises(FtkitError) as caught:
            extract_archive(make_tar(tmp_path / str(number), made), tmp_path / "out")
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 1000
    source = make_zip(tmp_path / f"{evil}.zip", [(evil + "/a.jpg", PICTURE)])
    report = extract_archive(source, tmp_path / f"{evil}-out", strip=True)
    assert all(line.isprintable() for line in str(report).split("\n"))
    assert report.stripped == evil
    with pytest.raises(FtkitError) as caught:
        extract_archive(source, tmp_path / f"{evil}-out")
    assert str(caught.value).isprintable()
    damaged = bytearray(source.read_bytes())
    damaged[60] ^= 1
    source.write_bytes(damaged)
    with pytest.raises(FtkitError) as caught:
        extract_archive(source, tmp_path / "out")
    assert str(caught.value).isprintable()


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


def test_no_torch() -> None:
    """Cleaning data must not cost an import of torch."""
    code = "import sys, ftkit; ftkit.extract_archive; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz", "tar.xz"])
def test_progress_is_of_a_true_total(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """The bar is full at the end, and never before: whatever is left out, and however little a tar says of itself."""
    from tqdm import tqdm

    seen: list[tuple[float, float | None]] = []

    class Bar(tqdm):  # type: ignore[type-arg]
        def update(self, n: float = 1) -> bool | None:
            moved = super().update(n)
            seen.append((self.n, self.total))
            return moved

    monkeypatch.setattr(
        "ftkit._archives.extract.tqdm", lambda **options: Bar(**options | {"disable": False, "file": io.StringIO()})
    )
    folder = tmp_path / "data"
    for number in range(30):
        (folder / f"{number}").mkdir(parents=True)
        (folder / f"{number}/file").write_bytes(os.urandom(3000))
        (folder / f"{number}/.DS_Store").write_bytes(os.urandom(5000))
    archive = shutil.make_archive(
        str(tmp_path / "made"), {"tar.gz": "gztar", "tar.xz": "xztar"}.get(form, form), folder
    )
    assert extract_archive(archive, tmp_path / "out").files == 30
    (total,) = {total for _, total in seen}
    assert total
    assert seen[-1][0] == total
    assert all(done <= total for done, _ in seen)
