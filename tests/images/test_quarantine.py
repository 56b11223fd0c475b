"""Quarantine and restore: what moves, what stays, and that nothing is lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ftkit import FtkitError, restore, scan_images


def snapshot(root: Path) -> dict[str, object]:
    """Return every path below ``root`` with its content and times."""
    seen: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            seen[name] = ("link", os.readlink(path))
        elif path.is_file():
            seen[name] = (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_mode)
        else:
            seen[name] = "folder" if path.is_dir() else "other"
    return seen


@pytest.fixture
def dirty(pets: Path, jpegs: list[bytes]) -> Path:
    """Return the data set with one of each that a quarantine must deal with."""
    cat = pets / "train/cat"
    (cat / "cut.jpg").write_bytes(jpegs[10][:3000])
    os.utime(cat / "cut.jpg", ns=(10**18, 10**18 + 123_456_789))
    (cat / "page.jpg").write_bytes(b"<html>")
    (cat / "gone.jpg").symlink_to("nowhere.jpg")
    (cat / "photo.png").write_bytes(jpegs[11])
    (cat / "labels.csv").write_bytes(b"url,label\n")
    (pets / "train/__MACOSX").mkdir()
    (pets / "train/__MACOSX/._1.jpg").write_bytes(b"\0\5\x16\7")
    (pets / "train/empty").mkdir(mode=0o750)
    (pets / "train/dog/copy.jpg").write_bytes((pets / "val/dog/0.jpg").read_bytes())
    return pets


def test_what_is_unusable_and_junk_moves_and_comes_back(dirty: Path) -> None:
    """By default the unusable and the junk go, odd files and other files stay, restore brings all back as it was."""
    before = snapshot(dirty)
    gone = scan_images(dirty, workers=1).quarantine(dirty.parent / "aside")
    assert gone.moved == 4
    assert gone.kinds == {"truncated": 1, "not_an_image": 1, "broken_link": 1, "litter": 1}
    assert sorted(gone.emptied) == ["train/__MACOSX", "train/empty"]
    assert (gone.folder / "train/cat/cut.jpg").stat().st_mtime_ns == 10**18 + 123_456_789
    assert gone.gallery.is_file()
    left = snapshot(dirty)
    assert set(before) - set(left) == {
        "train/cat/cut.jpg", "train/cat/page.jpg", "train/cat/gone.jpg", "train/__MACOSX", "train/__MACOSX/._1.jpg",
        "train/empty",
    }  # fmt: skip
    assert len(restore(gone.manifest)) == 4
    assert snapshot(dirty) == before
    assert restore(gone.manifest) == []


def test_leaks_and_duplicates_move_by_name(dirty: Path) -> None:
    """``kinds=["leaks"]`` takes the training copy and nothing else."""
    before = snapshot(dirty)
    gone = scan_images(dirty, workers=1).quarantine(dirty.parent / "aside", kinds=["leaks"])
    assert set(before) - set(snapshot(dirty)) == {"train/dog/copy.jpg"}
    assert "1  leak" in str(gone)
    restore(gone.folder.parent)
    assert snapshot(dirty) == before


def test_the_folder_loads_afterwards(dirty: Path) -> None:
    """After a quarantine ImageFolder loads every picture."""
    from torchvision.datasets import ImageFolder

    with pytest.raises(FileNotFoundError):
        ImageFolder(str(dirty / "train"))
    scan_images(dirty, workers=1).quarantine(dirty.parent / "aside")
    data = ImageFolder(str(dirty / "train"))
    assert data.classes == ["cat", "dog"]
    assert [data[n][0].size for n in range(len(data))] == [(320, 260)] * 10


def test_a_quarantine_inside_the_data_set_is_refused(dirty: Path) -> None:
    """It would become a class; the message names another place."""
    before = snapshot(dirty)
    with pytest.raises(FtkitError, match="pets-quarantine"):
        scan_images(dirty, workers=1).quarantine(dirty / "aside")
    assert snapshot(dirty) == before


def test_an_unknown_kind_is_an_error_with_a_hint(dirty: Path) -> None:
    """A misspelt kind moves nothing."""
    report = scan_images(dirty, workers=1)
    with pytest.raises(FtkitError, match="Did you mean 'truncated'"):
        report.quarantine(dirty.parent / "aside", kinds=["truncatd"])
    assert not (dirty.parent / "aside").exists()


def test_restore_never_overwrites(dirty: Path) -> None:
    """A new file in an old place stops the restore before anything moves."""
    gone = scan_images(dirty, workers=1).quarantine(dirty.parent / "aside")
    (dirty / "train/cat/cut.jpg").write_bytes(b"a new one")
    during = snapshot(dirty.parent)
    with pytest.raises(FtkitError, match=r"cut\.jpg"):
        restore(gone.manifest)
    assert snapshot(dirty.parent) == during


def test_restore_says_what_is_lost(dirty: Path) -> None:
    """A file that somebody removed from the quarantine is named; the others come back."""
    gone = scan_images(dirty, workers=1).quarantine(dirty.parent / "aside")
    (gone.folder / "train/cat/page.jpg").unlink()
    with pytest.raises(FtkitError, match=r"3 files are back, but 1 are neither.*page\.jpg"):
        restore(gone.manifest)
    assert (dirty / "train/cat/cut.jpg").exists()


def test_two_quarantines_share_a_folder(dirty: Path) -> None:
    """A second one gets a manifest of its own and keeps the first."""
    before = snapshot(dirty)
    first = scan_images(dirty, workers=1).quarantine(dirty.parent / "aside")
    second = scan_images(dirty, workers=1).quarantine(dirty.parent / "aside", kinds=["wrong_suffix"])
    assert second.manifest.name == "manifest-2.json"
    with pytest.raises(FtkitError, match="2 manifests"):
        restore(dirty.parent / "aside")
    restore(second.manifest)
    restore(first.manifest)
    assert snapshot(dirty) == before


def test_what_is_no_manifest_is_refused(tmp_path: Path) -> None:
    """A wrong or missing file raises before anything happens."""
    with pytest.raises(FtkitError, match="no manifest"):
        restore(tmp_path / "manifest.json")
    (tmp_path / "manifest.json").write_text('{"a": 1}')
    with pytest.raises(FtkitError, match="no manifest of a quarantine"):
        restore(tmp_path / "manifest.json")
