"""The folder that appears whole or not at all."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ftkit import extract_archive
from ftkit._archives import staging
from ftkit.errors import FileWriteError, FtkitError
from tests.archives.packers import GOOD, contents, make_tar, make_zip


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


def test_folder_without_permission(tmp_path: Path) -> None:
    """What the system refuses is an error of ftkit that still is an OSError."""
    archive = make_zip(tmp_path / "a.zip", GOOD.items())
    (tmp_path / "file").touch()
    with pytest.raises(FileWriteError, match="Can't unpack into") as caught:
        extract_archive(archive, tmp_path / "file" / "out")
    assert isinstance(caught.value, OSError)


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


@pytest.mark.parametrize("inside", [None, "made-by-me"])
def test_folders_of_others_stay(tmp_path: Path, inside: str | None) -> None:
    """A folder that ftkit did not make is nobody's litter, whatever its name."""
    for name in (".x.ftkit-unpacking", ".x.0123456789ab.ftkit-unpacking"):
        (tmp_path / name).mkdir()
        if inside:
            (tmp_path / name / inside).touch()
    before = sorted(tmp_path.rglob("*"))
    extract_archive(make_zip(tmp_path / "a.zip", GOOD.items()), tmp_path / "out")
    assert set(before) <= set(tmp_path.rglob("*"))


def test_every_moment_of_a_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other calls look for litter between any two steps of one that begins: none of them takes its folder away."""
    looks = []

    def watch(call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(path: Any, *arguments: Any, **options: Any) -> Any:
            result = call(path, *arguments, **options)
            if "ftkit-unpacking" in str(path) and (not looks or looks[-1] != "looking"):
                looks.append("looking")
                staging._remove_litter(tmp_path)
                looks[-1] = str(path)
            return result

        return watched

    archive = make_zip(tmp_path / "a.zip", GOOD.items())
    with monkeypatch.context() as patched:
        patched.setattr(os, "mkdir", watch(os.mkdir))
        patched.setattr(os, "open", watch(os.open))
        extract_archive(archive, tmp_path / "out")
    assert len(looks) >= 4
    assert contents(tmp_path / "out") == GOOD


MANY = """
import os, sys, time
from ftkit import extract_archive
archive, parent, me, until = *sys.argv[1:4], time.time() + 4
while time.time() < until:
    number = int(time.time() * 1e9)
    extract_archive(archive, os.path.join(parent, f"{me}-{number}"))
    try:
        extract_archive(parent + ".broken", os.path.join(parent + "-made", "deep", str(number)))
    except Exception as error:
        assert "damaged" in str(error), error
"""


def test_many_processes_in_one_folder(tmp_path: Path) -> None:
    """Calls into one parent don't take each other's folders for litter, nor the parents that they made."""
    archive = make_zip(tmp_path / "a.zip", [("1.jpg", b"1")])
    (tmp_path / "place.broken").write_bytes(archive.read_bytes().replace(b"1.jpg", b"1.jpx", 1)[:-30])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MANY, archive, tmp_path / "place", str(number)], stderr=subprocess.PIPE, text=True
        )
        for number in range(8)
    ]
    assert [process.communicate(timeout=120)[1] for process in processes] == [""] * 8
    made = list((tmp_path / "place").iterdir())
    assert len(made) > 8
    assert all((path / "1.jpg").read_bytes() == b"1" for path in made)


def test_a_nul_and_a_url_in_the_destination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be no folder is an error of ftkit, and makes none."""
    archive = make_zip(tmp_path / "a.zip", GOOD.items())
    monkeypatch.chdir(tmp_path)
    for dest, word in (("a\0b", "NUL"), ("s3://bucket/pets", "URL")):
        with pytest.raises(FileWriteError, match=word):
            extract_archive(archive, dest)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``~`` is the home folder, of the archive and of the destination."""
    monkeypatch.setenv("HOME", str(tmp_path))
    make_zip(tmp_path / "a.zip", GOOD.items())
    assert extract_archive("~/a.zip", "~/pets").dest == tmp_path / "pets"
    assert contents(tmp_path / "pets") == GOOD


@pytest.fixture
def as_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The branches of Windows, with a lock of this system behind its calls."""

    def locking(descriptor: int, mode: int, _: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if mode == 2 else 0))

    monkeypatch.setattr(staging, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_LOCK=1, LK_NBLCK=2, locking=locking))


def test_litter_on_windows(tmp_path: Path, as_windows: None) -> None:
    """What a killed writer left is deleted, what a live one has open is not, nor what is not ours."""
    archive = make_zip(tmp_path / "a.zip", GOOD.items())
    dead, others = (tmp_path / f".{name}.0123456789ab.ftkit-unpacking" for name in ("dead", "others"))
    (dead / "files").mkdir(parents=True)
    (dead / "made-by-ftkit").touch()
    others.mkdir()
    with staging.staged(tmp_path / "slow") as folder:
        (folder / "1.jpg").write_bytes(b"1")
        assert extract_archive(archive, tmp_path / "out").files == len(GOOD)
        assert not dead.exists()
        assert (folder / "1.jpg").is_file()
        staging.publish(folder, tmp_path / "slow")
    assert contents(tmp_path / "slow") == {"1.jpg": b"1"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [others.name, "a.zip", "out", "slow"]


def test_an_error_on_windows_leaves_nothing(tmp_path: Path, as_windows: None) -> None:
    """Its folder goes, lock and all."""
    broken = make_zip(tmp_path / "a.zip", GOOD.items()).read_bytes()[:-30]
    (tmp_path / "a.zip").write_bytes(broken)
    (tmp_path / "empty").mkdir()
    for dest in ("empty", "new"):
        with pytest.raises(FtkitError):
            extract_archive(tmp_path / "a.zip", tmp_path / dest)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "empty"]


def test_an_empty_folder_on_windows(tmp_path: Path, as_windows: None) -> None:
    """It makes way, as no rename takes its place there."""
    archive = make_zip(tmp_path / "a.zip", GOOD.items())
    (tmp_path / "out").mkdir()
    extract_archive(archive, tmp_path / "out")
    assert contents(tmp_path / "out") == GOOD
