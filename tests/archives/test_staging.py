"""The folder that appears whole or not at all."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ftkit import extract_archive
from ftkit.errors import FileWriteError
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
