"""Which folders are splits and classes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit import FtkitError, scan_images
from ftkit._images.layout import Arrangement, Layout, Place


def test_splits_by_other_names(pets: Path) -> None:
    """Folders of any name can be splits, and be named otherwise."""
    (pets / "val").rename(pets / "fold9")
    (pets / "train/dog/copy.jpg").write_bytes((pets / "fold9/dog/0.jpg").read_bytes())
    assert scan_images(pets, workers=1).leaks == []
    assert scan_images(pets, workers=1, splits={"train": "train", "fold9": "val"}).leaks[0].splits == ("train", "val")
    assert scan_images(pets, workers=1, splits=["train", "fold9"]).leaks[0].splits == ("fold9", "train")


NAMES = st.text("abc", min_size=1, max_size=2)


@given(st.lists(NAMES, min_size=1, max_size=4), st.sets(NAMES))
def test_a_place_puts_the_path_together(parts: list[str], splits: set[str]) -> None:
    """Split, class and rest are the path; a class is a folder, never the file itself."""
    place = Layout(dict.fromkeys(splits, "train")).place("/".join(parts))
    assert [part for part in (place.folder, place.label, *place.rest.split("/")) if part] == parts
    assert bool(place.folder) == (parts[0] in splits and len(parts) > 1)
    assert place.split == ("train" if place.folder else "")
    assert bool(place.label) == (len(parts) > 1 + bool(place.folder))


def test_splits_may_lie_deeper() -> None:
    """A split is any folder that is named."""
    layout = Layout.find(["data"], "pets", {"data/train/": "train"})
    assert layout.place("data/train/cat/1.jpg") == Place("data/train", "train", "cat", "1.jpg")
    assert Layout.find(["Train", "misc", "valid"], "pets", None).splits == {"Train": "train", "valid": "val"}


@pytest.mark.parametrize(
    ("tops", "inside", "splits"),
    [
        (["train2017", "val2017", "annotations"], {}, {"train2017": "train", "val2017": "val"}),
        (["training_set", "test_set"], {}, {"training_set": "train", "test_set": "test"}),
        (["test-images", "trains", "contest"], {"test-images": ["cat"]}, {"test-images": "test"}),
        (["test-images", "trains", "contest"], {"test-images": [".cache", "__MACOSX"]}, {}),
        (["Train", "Test", "samples", "annotations"], {}, {"Train": "train", "Test": "test"}),
        (["Train", "annotations", ".cache"], {}, {"Train": "train"}),
        (["images"], {"images": ["bus", "train"]}, {}),
        (["images", "labels"], {"images": ["train", "val"], "labels": ["train"]},
         {"images/train": "train", "images/val": "val", "labels/train": "train"}),
        (["JPEGImages", "Annotations", "ImageSets"], {}, {}),
        (["cat", "dog"], {"cat": ["train", "test"]}, {}),
    ],
)  # fmt: skip
def test_names_that_data_sets_use(tops: list[str], inside: dict[str, list[str]], splits: dict[str, str]) -> None:
    """Splits go by more names than three, and what tells of images is no class."""
    layout = Layout.find(tops, "pets", None, lambda top: inside.get(top, []))
    assert layout.splits == splits
    assert layout.place("train/images/1.jpg") == Place("", "", "train", "images/1.jpg")
    assert layout.place("JPEGImages/1.jpg").label == ""


def test_a_copy_in_two_folds_is_a_leak(pets: Path) -> None:
    """By whatever names; the first fold's copy is the one to take away."""
    for old, new in (("train", "fold0"), ("val", "fold1")):
        (pets / old).rename(pets / new)
    (pets / "fold0/dog/copy.jpg").write_bytes((pets / "fold1/dog/0.jpg").read_bytes())
    report = scan_images(pets, workers=1, splits=["fold0", "fold1"])
    assert [(f.path, f.kind) for f in report.findings] == [(f"{pets}/fold0/dog/copy.jpg", "leak")]


def arranged(*paths: str) -> dict[str, str]:
    """Return what is noted about images at these paths."""
    layout = Layout.find(sorted({path.partition("/")[0] for path in paths if "/" in path}), "x", None)
    arrangement = Arrangement(layout)
    for path in paths:
        arrangement.add(path, layout.place(path).folder)
    return {path: note.kind for path, note in arrangement.notes("x/")}


def test_what_image_folder_stumbles_over() -> None:
    """One class that holds the classes, no classes, images beside them, twins and hidden ones."""
    assert arranged("cat/1.jpg", "dog/2.jpg") == arranged("cat/a/1.jpg", "dog/b/2.jpg") == {}
    assert arranged("PetImages/Cat/1.jpg", "PetImages/Dog/2.jpg") == {"PetImages": "classes_deeper"}
    assert arranged("cat/a/1.jpg") == {}
    assert arranged("1.jpg", "2.jpg") == {"": "flat"}
    assert arranged("train/1.jpg", "train/cat/2.jpg", "val/cat/3.jpg") == {"train/": "beside_classes"}
    assert arranged("Cat/1.jpg", "cat/2.jpg", "dog/3.jpg") == dict.fromkeys(["Cat", "cat"], "class_twins")
    owls = ["b\u00fcho", "bu\u0308ho"]  # the same letters, in two ways
    assert arranged(*(f"{owl}/1.jpg" for owl in owls), "buho/2.jpg") == dict.fromkeys(owls, "class_twins")
    assert arranged("cat/1.jpg", ".cache/2.jpg") == {".cache": "hidden_class"}


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    """It is a wrong path more often than an empty data set."""
    (tmp_path / "cat").mkdir()
    with pytest.raises(FtkitError, match="allow_empty"):
        scan_images(tmp_path, workers=1)
    assert scan_images(tmp_path, workers=1, allow_empty=True).files == 0
    with pytest.raises(FtkitError, match="is empty"):
        scan_images("", workers=1)


def test_a_class_named_as_a_split_is_a_class(pets: Path) -> None:
    """As "train" is beside "bus"; a copy in both is a conflict of labels."""
    voc = pets.parent / "voc"
    voc.mkdir()
    (pets / "train/dog").rename(voc / "train")
    (pets / "val/dog").rename(voc / "bus")
    (voc / "bus/copy.jpg").write_bytes((voc / "train/2.jpg").read_bytes())
    report = scan_images(voc, workers=1)
    assert report.classes == {"bus": 2, "train": 4}
    assert report.splits == {}
    assert "splits:" not in str(report)
    assert [f.kind for f in report.findings] == ["label_conflict", "label_conflict"]


def test_the_report_names_the_splits(pets: Path) -> None:
    """Which folders they are is a guess, so it is said."""
    report = scan_images(pets, workers=1)
    assert report.splits == {"train": "train", "val": "val"}
    assert "splits: train, val" in str(report)


def test_folders_without_images_are_no_classes_in_the_headline(tmp_path: Path, jpegs: list[bytes]) -> None:
    """Hidden folders and those of tools are no classes at all."""
    for name in ("cat", "dog", ".ipynb_checkpoints", "__MACOSX"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "._x").write_bytes(b"x")
    (tmp_path / "cat/1.jpg").write_bytes(jpegs[0])
    report = scan_images(tmp_path, workers=1)
    assert report.classes == {"cat": 1, "dog": 0}
    assert "1 usable image in 1 class," in " ".join(str(report).split())
