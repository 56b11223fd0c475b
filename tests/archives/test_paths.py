"""Paths that leave, and names that no disk can hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit import extract_archive
from ftkit._archives.paths import is_absolute, split_path
from ftkit.errors import ArchiveError
from tests.archives.packers import GOOD, PICTURE, contents, make_tar, make_zip


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil", "\\evil", "..\\evil", "C:\\evil", "c:evil"])
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_paths_that_leave(
    tmp_path: Path, make: Callable[..., Path], name: str, nothing_left: Callable[..., str]
) -> None:
    """A path out of the folder is refused by name, in whatever spelling."""
    nothing_left(make(tmp_path / "a", [*GOOD.items(), (name, b"evil")]), f"'{name}'")


def test_windows_paths(tmp_path: Path) -> None:
    """Backslashes between folders are what old Windows tools wrote for slashes; a trailing one marks a folder."""
    extract_archive(make_zip(tmp_path / "a.zip", [("train\\a\\1.jpg", PICTURE), ("void\\", b"")]), tmp_path / "out")
    assert list(contents(tmp_path / "out")) == ["train/a/1.jpg"]
    assert (tmp_path / "out/void").is_dir()


def test_names_no_disk_can_hold(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """Names too long, too deep or with a NUL are refused by name."""
    nothing_left(make_tar(tmp_path / "a", [("x" * 300, b"")]), "xxx", "can't store")
    nothing_left(make_tar(tmp_path / "b", [("d/" * 300 + "x", b"")]), "deep")
    nothing_left(make_tar(tmp_path / "c", [(("y" * 200 + "/") * 40 + "x", b"")]), "can't store")
    nothing_left(make_zip(tmp_path / "d", [("a\0b.jpg", b"")]), "can't store")


@given(st.text("a./\\:", max_size=12))
def test_a_path_leads_down_or_is_refused(path: str) -> None:
    """Its parts are names, and make the same path again."""
    try:
        parts = split_path(path)
    except ArchiveError:
        assert path[:1] in ("/", "\\") or path[1:2] == ":" or ".." in path.replace("\\", "/").split("/")
    else:
        assert not {"", ".", ".."} & set(parts)
        assert is_absolute("/".join(parts)) or split_path("/".join(parts)) == parts
        assert "".join(parts) == "".join(part for part in path.replace("\\", "/").split("/") if part != ".")
