"""Which folders are splits and classes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit import FtkitError, scan_images
from ftkit._images.layout import Layout, Place

from .trees import classes, found, several

NAMES = st.text("abc", min_size=1, max_size=2)


@given(st.lists(NAMES, min_size=1, max_size=4), st.sets(NAMES))
def test_a_place_puts_the_path_together(parts: list[str], splits: set[str]) -> None:
    """Split, class and rest are the path; a class is a folder, never the file itself."""
    place = Layout(dict.fromkeys(splits, "train")).place("/".join(parts))
    assert [part for part in (place.folder, place.label, *place.rest.split("/")) if part] == parts
    assert bool(place.folder) == (parts[0] in splits and len(parts) > 1)
    assert place.split == ("train" if place.folder else "")
    assert bool(place.label) == (len(parts) > 1 + bool(place.folder))


def test_splits_may_lie_deeper(tmp_path: Path) -> None:
    """A split is any folder that is named."""
    layout = found(tmp_path / "a", "data/train", splits={"data/train/": "train"})
    assert layout.place("data/train/cat/1.jpg") == Place("data/train", "train", "cat", "1.jpg")
    assert found(tmp_path / "b", "Train", "misc", "valid").splits == {"Train": "train", "valid": "val"}


@pytest.mark.parametrize(
    "names", [("gloves", "masks"), ("label", "tag"), ("bmw", "gt"), ("bus", "train"), ("a", "test")]
)
@pytest.mark.parametrize("inside", ["", "images/", "train/", "images/train/", "train/images/"])
def test_any_class_may_be_in_a_folder_of_images(tmp_path: Path, inside: str, names: tuple[str, str]) -> None:
    """By whatever name, and wherever that folder is."""
    wanted = [f"{inside}{name}" for name in names]
    assert classes(tmp_path, *several(*wanted)) == wanted


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    """It is a wrong path more often than an empty data set."""
    (tmp_path / "cat").mkdir()
    with pytest.raises(FtkitError, match="allow_empty"):
        scan_images(tmp_path, workers=1)
    assert scan_images(tmp_path, workers=1, allow_empty=True).files == 0
    with pytest.raises(FtkitError, match="is empty"):
        scan_images("", workers=1)


def test_folders_without_images_are_no_classes_in_the_headline(tmp_path: Path, jpegs: list[bytes]) -> None:
    """Hidden folders and those of tools are no classes at all."""
    for name in ("cat", "dog", ".ipynb_checkpoints", "__MACOSX"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "._x").write_bytes(b"x")
    (tmp_path / "cat/1.jpg").write_bytes(jpegs[0])
    report = scan_images(tmp_path, workers=1)
    assert report.classes == {"cat": 1, "dog": 0}
    assert "1 usable image in 1 class," in " ".join(str(report).split())
