"""The second run: what was unpacked before is known again."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
from PIL import Image

from ftkit import extract_archive, scan_images
from ftkit._archives.paths import RECORD_NAME
from ftkit.errors import ArchiveError, FileWriteError
from tests.archives.packers import GOOD, PICTURE, contents, link, make_tar, make_zip


@pytest.fixture(params=["attribute", "file"])
def kept_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the record is kept: as an attribute of the folder where there are such, else in a file."""

    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.ENOTSUP, "no attributes")

    if request.param == "file":
        monkeypatch.setattr(os, "setxattr", refuse, raising=False)
        monkeypatch.setattr(os, "getxattr", refuse, raising=False)
    elif not hasattr(os, "setxattr"):
        pytest.skip("needs attributes of files")
    return str(request.param)


def _own(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if name != RECORD_NAME}


def test_the_second_run(tmp_path: Path, kept_in: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does nothing, in no time, says so, and tells what the first one did."""
    archive = make_zip(tmp_path / "pets.zip", [*((f"pets/{name}", data) for name, data in GOOD.items())])
    first = extract_archive(archive, tmp_path / "data" / "pets", strip=True)
    assert not first.already_unpacked
    assert contents(tmp_path / "data").keys() - {f"pets/{name}" for name in GOOD} == (
        {f"pets/{RECORD_NAME}"} if kept_in == "file" else set()
    )
    monkeypatch.setattr("ftkit._archives.extract.open_archive", lambda _: pytest.fail("it was read"))
    monkeypatch.setattr("ftkit._archives.record._digest", lambda _: pytest.fail("it was read"))
    second = extract_archive(archive, tmp_path / "data" / "pets", strip=True)
    assert second.already_unpacked
    assert second.to_dict() == first.to_dict() | {"already_unpacked": True}
    assert "already unpacked, nothing was done" in str(second)
    assert json.loads(json.dumps(second.to_dict()))["stripped"] == "pets"


@pytest.mark.usefixtures("kept_in")
def test_the_folder_is_its_owners(tmp_path: Path) -> None:
    """Files moved, changed and added since stay so; the folder may be moved, too. Emptied, it is filled again."""
    archive = make_tar(tmp_path / "pets.tgz", GOOD.items(), "gz")
    extract_archive(archive, tmp_path / "pets")
    (tmp_path / "pets").rename(tmp_path / "moved")
    (tmp_path / "moved/train/ants/1.jpg").rename(tmp_path / "moved/mine.jpg")
    (tmp_path / "moved/train/bees/2.jpg").write_bytes(b"mine")
    assert extract_archive(archive, tmp_path / "moved").already_unpacked
    assert _own(tmp_path / "moved") == {"mine.jpg": PICTURE, "train/bees/2.jpg": b"mine"}
    shutil.rmtree(tmp_path / "moved/train")
    (tmp_path / "moved/mine.jpg").unlink()
    assert not extract_archive(archive, tmp_path / "moved").already_unpacked
    assert _own(tmp_path / "moved") == GOOD


def test_the_story_twice(tmp_path: Path) -> None:
    """Unpack, scan, set aside; and again."""
    picture = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(picture, "PNG")
    members = [("cats/tom.png", picture.getvalue()), ("cats/notes.jpg", b"no picture")]
    archive = make_zip(tmp_path / "pets.zip", members)
    for again in (False, True):
        assert extract_archive(archive, tmp_path / "data/pets").already_unpacked == again
        report = scan_images(tmp_path / "data/pets", workers=1)
        if not again:
            assert report.quarantine(tmp_path / "data/pets-quarantine").moved > 0


@pytest.mark.usefixtures("kept_in")
def test_what_is_another_archive(tmp_path: Path) -> None:
    """The same bytes by another name or time are the same; others are an error that says what is there."""
    archive = make_zip(tmp_path / "pets.zip", GOOD.items())
    extract_archive(archive, tmp_path / "pets")
    shutil.copy(archive, tmp_path / "copy.zip")
    os.utime(tmp_path / "copy.zip", (1, 1))
    assert extract_archive(tmp_path / "copy.zip", tmp_path / "pets").already_unpacked

    data = bytearray(archive.read_bytes())
    data[-30] ^= 1  # the same size
    archive.write_bytes(data)
    os.utime(archive, (2, 2))
    other = make_zip(tmp_path / "other.zip", [("x.jpg", PICTURE)])
    for changed in (archive, other):
        with pytest.raises(FileWriteError, match=r"files of 'pets\.zip' \(.*modified 20.*another archive, or it has"):
            extract_archive(changed, tmp_path / "pets")
    assert _own(tmp_path / "pets") == GOOD


@pytest.mark.usefixtures("kept_in")
def test_the_same_in_another_way(tmp_path: Path) -> None:
    """What was unpacked with other options is not what is asked for."""
    archive = make_zip(tmp_path / "pets.zip", [("pets/1.jpg", PICTURE)])
    extract_archive(archive, tmp_path / "pets")
    with pytest.raises(FileWriteError, match="unpacked with encoding=None, strip=False, not encoding='cp949', strip=T"):
        extract_archive(archive, tmp_path / "pets", strip=True, encoding="cp949")
    assert extract_archive(archive, tmp_path / "pets", max_files=1e9, password="x").already_unpacked


def test_a_folder_without_a_record(tmp_path: Path) -> None:
    """What something else unpacked, or copied without the record, is not known again."""
    archive = make_zip(tmp_path / "pets.zip", GOOD.items())
    extract_archive(archive, tmp_path / "pets")
    shutil.copytree(tmp_path / "pets/train", tmp_path / "copy")
    with pytest.raises(FileWriteError, match="not empty"):
        extract_archive(archive, tmp_path / "copy")


@pytest.mark.parametrize("record", ["", "{", "[]", '{"origin": 1}', '{"origin": {}, "report": {}}', "\xff", "files"])
def test_records_that_make_no_sense(tmp_path: Path, record: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that nobody can read is none: the folder is full."""
    monkeypatch.setattr(os, "setxattr", None, raising=False)
    monkeypatch.setattr(os, "getxattr", lambda *_: (tmp_path / "pets" / RECORD_NAME).read_bytes(), raising=False)
    monkeypatch.setattr(os, "setxattr", lambda path, _, raw: (path / RECORD_NAME).write_bytes(raw), raising=False)
    archive = make_zip(tmp_path / "pets.zip", GOOD.items())
    extract_archive(archive, tmp_path / "pets")
    kept: dict[str, Any] = json.loads((tmp_path / "pets" / RECORD_NAME).read_bytes())
    kept["report"]["files"] = "many"
    text = json.dumps(kept) if record == "files" else record
    (tmp_path / "pets" / RECORD_NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(FileWriteError, match="not empty"):
        extract_archive(archive, tmp_path / "pets")


def test_a_record_in_an_archive(tmp_path: Path) -> None:
    """It is of another folder, and left out."""
    archive = make_zip(tmp_path / "pets.zip", [*GOOD.items(), (RECORD_NAME, b"{}")])
    assert extract_archive(archive, tmp_path / "pets").left_out == {RECORD_NAME: 1}
    assert extract_archive(archive, tmp_path / "pets").already_unpacked


def test_an_archive_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read of two archives is no archive's."""
    archive = make_tar(tmp_path / "pets.tar", GOOD.items())

    def touch(*_: object) -> None:
        os.utime(archive, (5, 5))

    monkeypatch.setattr("ftkit._archives.tree.Tree.make_links", touch)
    with pytest.raises(ArchiveError, match="changed while it was being read"):
        extract_archive(archive, tmp_path / "pets")
    assert [path.name for path in tmp_path.iterdir()] == ["pets.tar"]


def test_many_processes_unpack_one_archive(tmp_path: Path) -> None:
    """As the ranks of one training do: one is first, and the others find its work."""
    archive = make_tar(tmp_path / "pets.tgz", [(f"{number}.jpg", PICTURE) for number in range(300)], "gz")
    code = (
        "import sys; from ftkit import extract_archive; sys.stdin.read();"
        "print(extract_archive(sys.argv[1], sys.argv[2]).already_unpacked)"
    )
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, archive, tmp_path / "data/pets"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.close()
        rank.stdin = None
    said = sorted(rank.communicate(timeout=60)[0].strip() for rank in ranks)
    assert said == ["False", *["True"] * 5]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["pets"]


def test_all_is_on_the_disk_before_it_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record promises whole files, so they are forced to the disk first; where Linux can't, one by one."""
    archive = make_tar(tmp_path / "a.tar", [*GOOD.items(), link("link", "train")])
    done: list[str] = []

    def sync(folder: Path) -> None:
        done.append(folder.name)
        assert not (tmp_path / "out").exists()
        monkeypatch.undo()
        monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())
        synced: list[int] = []
        monkeypatch.setattr(os, "fsync", lambda file: synced.append(stat.S_IFMT(os.fstat(file).st_mode)))
        staging.sync_tree(folder)
        assert synced.count(stat.S_IFREG) >= 2
        assert synced.count(stat.S_IFDIR) == 4
        monkeypatch.undo()

    from ftkit._archives import staging

    monkeypatch.setattr(staging, "sync_tree", sync)
    extract_archive(archive, tmp_path / "out")
    assert done == ["files"]
    assert extract_archive(archive, tmp_path / "out").already_unpacked
    (tmp_path / "a.tgz").write_bytes(gzip.compress(archive.read_bytes()))
    with pytest.raises(FileWriteError, match="another archive"):
        extract_archive(tmp_path / "a.tgz", tmp_path / "out")
