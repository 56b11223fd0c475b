"""Which folders are splits."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftkit import scan_images
from ftkit._images.layout import Place

from .trees import classes, found, several


def test_splits_by_other_names(pets: Path) -> None:
    """Folders of any name can be splits, and be named otherwise."""
    (pets / "val").rename(pets / "fold9")
    (pets / "train/dog/copy.jpg").write_bytes((pets / "fold9/dog/0.jpg").read_bytes())
    assert scan_images(pets, workers=1).leaks == []
    assert scan_images(pets, workers=1, splits={"train": "train", "fold9": "val"}).leaks[0].splits == ("train", "val")
    assert scan_images(pets, workers=1, splits=["train", "fold9"]).leaks[0].splits == ("fold9", "train")


@pytest.mark.parametrize(
    ("tops", "inside", "splits"),
    [
        (["train2017", "val2017", "annotations"], {}, {"train2017": "train", "val2017": "val"}),
        (["training_set", "test_set"], {}, {"training_set": "train", "test_set": "test"}),
        (["train_image", "val_img", "test_imgs"], {}, {"train_image": "train", "val_img": "val", "test_imgs": "test"}),
        (["train_val", "TEST"], {}, {"train_val": "train", "TEST": "test"}),
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
def test_names_that_data_sets_use(
    tmp_path: Path, tops: list[str], inside: dict[str, list[str]], splits: dict[str, str]
) -> None:
    """Splits go by more names than three, and what tells of images is no class."""
    deeper = [f"{top}/{name}" for top in tops for name in inside.get(top, ())]
    layout = found(tmp_path, *(top for top in tops if top not in inside), *deeper)
    assert layout.splits == splits
    assert layout.place("train/images/1.jpg") == Place("", "", "train", "images/1.jpg")
    assert layout.place("JPEGImages/1.jpg").label == ""


@pytest.mark.parametrize(
    ("tops", "splits"),
    [
        (["cars_train", "cars_test", "devkit"], {"cars_train": "train", "cars_test": "test"}),
        (["bounding_box_train", "bounding_box_test", "gt_query"],
         {"bounding_box_train": "train", "bounding_box_test": "test"}),
        (["freight_train", "night_train"], {}),
        (["freight_train", "drug_test"], {}),
    ],
)  # fmt: skip
def test_splits_with_names_that_begin_alike(tmp_path: Path, tops: list[str], splits: dict[str, str]) -> None:
    """Two of them, of which one is no training."""
    assert found(tmp_path, *tops).splits == splits


def test_folds_are_splits_if_they_have_classes(tmp_path: Path) -> None:
    """Several, or else they are classes."""
    folds = [f"fold{number}/{name}" for number in (1, 2) for name in ("cat", "dog")]
    assert found(tmp_path / "a", *folds).splits == {"fold1": "fold1", "fold2": "fold2"}
    assert found(tmp_path / "b", "fold1", "fold2").splits == {}
    assert (
        found(tmp_path / "d", *(f"fold{number}/{name}" for number in (1, 2) for name in ("train", "val"))).splits == {}
    )
    assert found(tmp_path / "c", "fold1/cat", "train/cat").splits == {"train": "train"}
    assert found(tmp_path / "e", *folds, "test/cat", "test/dog").splits == {
        "fold1": "fold1",
        "fold2": "fold2",
        "test": "test",
    }
    many = [f"images/fold{number}/{name}" for number in range(1, 12) for name in ("cat", "dog")]
    assert list(found(tmp_path / "f", *many).splits) == [f"images/fold{number}" for number in range(1, 12)]


def test_splits_of_images_and_masks_beside_other_images(tmp_path: Path) -> None:
    """What a training leaves there makes no classes of them; folders of classes that all have splits are classes."""
    inner = ("images/train", "images/val", "masks/train", "masks/val")
    for name in (*several(*inner), *several("runs/detect/train")):
        (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / name).touch()
    assert list(found(tmp_path / "a").splits) == list(inner)
    files = several(*(f"{name}/{split}" for name in ("gloves", "gowns", "masks") for split in ("train", "test")))
    assert classes(tmp_path / "b", *files) == ["gloves", "gowns", "masks"]


def test_a_copy_in_two_folds_is_a_leak(pets: Path) -> None:
    """By whatever names; the first fold's copy is the one to take away."""
    for old, new in (("train", "fold0"), ("val", "fold1")):
        (pets / old).rename(pets / new)
    (pets / "fold0/dog/copy.jpg").write_bytes((pets / "fold1/dog/0.jpg").read_bytes())
    report = scan_images(pets, workers=1, splits=["fold0", "fold1"])
    assert [(f.path, f.kind) for f in report.findings] == [(f"{pets}/fold0/dog/copy.jpg", "leak")]


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
