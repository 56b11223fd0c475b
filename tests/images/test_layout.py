"""Which folders are splits and classes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ftkit import FtkitError, scan_images
from ftkit._images.folders import Folder
from ftkit._images.layout import Arrangement, Layout, Place

Encode = Callable[..., bytes]


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


def found(root: Path, *folders: str, splits: dict[str, str] | None = None) -> Layout:
    """Return the layout of a data set with these folders."""
    for name in folders:
        (root / name).mkdir(parents=True)
    folder = Folder(str(root))
    return Layout.find(folder.tops(), folder, splits)


def test_splits_may_lie_deeper(tmp_path: Path) -> None:
    """A split is any folder that is named."""
    layout = found(tmp_path / "a", "data/train", splits={"data/train/": "train"})
    assert layout.place("data/train/cat/1.jpg") == Place("data/train", "train", "cat", "1.jpg")
    assert found(tmp_path / "b", "Train", "misc", "valid").splits == {"Train": "train", "valid": "val"}


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


def classes(root: Path, *files: str) -> list[str]:
    """Return the classes of the images among these files."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    folder = Folder(str(root))
    layout = Layout.find(folder.tops(), folder, None)
    places = (layout.place(path) for path in files if path.endswith(("jpg", "png")))
    return sorted({"/".join(filter(None, (place.folder, place.label))) for place in places})


def several(*folders: str, names: Sequence[object] = range(20), suffix: str = "jpg") -> list[str]:
    """Return the paths of files with the same names in some folders."""
    return [f"{folder}/{name}.{suffix}" for folder in folders for name in names]


@pytest.mark.parametrize("split", ["", "train/"])
def test_a_class_may_be_called_as_what_tells_of_images(tmp_path: Path, split: str) -> None:
    """Beside images in folders by other names it is a class, as ImageFolder has it, whatever its files are called."""
    cases = [
        several(f"{split}gloves", f"{split}gowns", f"{split}masks"),
        [*several(f"{split}gloves", names=range(300)), *several(f"{split}gowns", names=range(3)),
         *several(f"{split}masks", suffix="png")],
        several(f"{split}masks", f"{split}no_masks", names=["ann", "bob", "eve"]),
        several(f"{split}Images/a", f"{split}Images/b", f"{split}tables/a", f"{split}tables/b"),
        several(f"{split}images", f"{split}labels", f"{split}tables", f"{split}text"),
        several(*(f"{split}{name}/{inner}" for name in ("images", "labels", "text") for inner in ("a", "b"))),
        [f"{split}{name}/{name}{number}.jpg" for name in ("imgs", "text") for number in range(20)],
        [*several(f"{split}masks", f"{split}none"), f"{split}.cache/x.jpg", f"{split}notes/x.md"],
    ]  # fmt: skip
    for number, files in enumerate(cases):
        wanted = {path.removeprefix(split).partition("/")[0] for path in files} - {"notes", ".cache"}
        got = classes(tmp_path / str(number), *files)
        assert [name for name in got if not name.endswith(".cache")] == [split + name for name in sorted(wanted)]


@pytest.mark.parametrize(
    "names", [("gloves", "masks"), ("label", "tag"), ("bmw", "gt"), ("bus", "train"), ("a", "test")]
)
@pytest.mark.parametrize("inside", ["", "images/", "train/", "images/train/", "train/images/"])
def test_any_class_may_be_in_a_folder_of_images(tmp_path: Path, inside: str, names: tuple[str, str]) -> None:
    """By whatever name, and wherever that folder is."""
    wanted = [f"{inside}{name}" for name in names]
    assert classes(tmp_path, *several(*wanted)) == wanted


@pytest.mark.parametrize("split", ["", "train/"])
def test_what_goes_with_images_is_no_class(tmp_path: Path, split: str) -> None:
    """Alone, beside such folders only, beside folders without images, or with masks for the images beside it."""
    images, masks, labels = (f"{split}{name}" for name in ("images", "masks", "labels"))
    pets = [*several(f"{split}cats", names=["tom", "kit"]), *several(f"{split}dogs", names=["rex", "ace"])]
    for number, files in enumerate(
        [
            several(images),
            [*several(images), *several(masks, suffix="png")],
            [
                *several(f"{split}JPEGImages"),
                *several(f"{split}Annotations", suffix="xml"),
                *several(f"{split}SegmentationClass"),
            ],
            [*several(images), *several(labels, suffix="txt"), f"{split}notebooks/1.ipynb", f"{split}src/a/b.py"],
        ]
    ):
        assert classes(tmp_path / str(number), *files) == [split.rstrip("/")]
    names = ["tom", "kit", "rex", "ace"]
    for number, files in enumerate(
        [
            several(masks, names=names),
            several(masks, names=names, suffix="png"),
            several(masks, names=[f"{name}_mask" for name in names], suffix="png"),
            several(f"{masks}/cats", f"{masks}/dogs", suffix="png"),
            several(masks, names=names[:2], suffix="png"),
            several(labels, names=names, suffix="txt"),
        ]
    ):
        got = classes(tmp_path / f"pets{number}", *pets, *files)
        assert [name for name in got if name != split.rstrip("/")] == [f"{split}cats", f"{split}dogs"]
    cub = [
        *several(f"{images}/1", f"{images}/2"),
        *several(f"{split}segmentations/1", f"{split}segmentations/2", suffix="png"),
    ]
    assert classes(tmp_path / "cub", *cub) == sorted([split.rstrip("/"), f"{images}/1", f"{images}/2"])
    more = [*several(images, f"{split}more"), *several(labels, suffix="txt")]
    assert classes(tmp_path / "more", *more) == sorted([split.rstrip("/"), f"{split}more"])
    mixed = [*several(images), *several(labels, suffix="txt"), *several(f"{split}samples", names=["a", "b"])]
    assert classes(tmp_path / "mixed", *mixed) == sorted([split.rstrip("/"), f"{split}samples"])


@pytest.mark.parametrize("split", ["", "train/"])
def test_folders_of_images_are_classes_unless_each_image_has_labels(tmp_path: Path, split: str) -> None:
    """CUB, Food-101, DTD and Stanford Dogs have classes there; YOLO, VOC and labelme have cameras or days."""
    images, alone = f"{split}images", [split.rstrip("/")]
    cases = {
        ("001.Albatross", "002.Auk"): [f"{split}parts/parts.txt", f"{split}attributes/1.txt", f"{split}classes.txt"],
        ("pie", "waffles"): [f"{split}meta/train.json", f"{split}meta/classes.txt"],
        ("banded", "dotted"): several(f"{split}labels", suffix="txt", names=["train1", "val1"]),
        ("Akita", "Pug"): [f"{split}Annotation/Akita/1", f"{split}Annotation/Pug/1"],
        ("cat", "dog"): [f"{images}/.DS_Store", f"{images}/readme.md"],
    }
    for (one, other), files in cases.items():
        wanted = [f"{images}/{one}", f"{images}/{other}"]
        assert classes(tmp_path / one, *several(*wanted), *files) == wanted
    for number, (inner, labels, suffix) in enumerate(
        [
            (("cam1", "cam2"), ("labels/cam1", "labels/cam2"), "txt"),
            (("cam1", "cam2"), ("Annotations",), "xml"),
            (("cam1", "cam2"), ("images/cam1", "images/cam2"), "json"),
            (("2024/a", "2025/b"), ("labels/2024/a", "labels/2025/b"), "txt"),
        ]
    ):
        groups = several(*(f"{images}/{name}" for name in inner))
        told = several(*(f"{split}{name}" for name in labels), suffix=suffix)
        assert classes(tmp_path / f"groups{number}", *groups, *told) == alone
    assert classes(tmp_path / "flat", *several(images, f"{images}/thumbs", f"{images}/more")) == alone
    assert classes(tmp_path / "one", *several(f"{images}/2024/a", f"{images}/2024/b")) == alone


def test_folders_in_splits_of_images_are_groups_where_each_image_has_labels(tmp_path: Path) -> None:
    """They are classes, too, without."""
    images = several(*(f"images/{split}/{name}" for split in ("train", "val") for name in ("a", "b")))
    assert classes(tmp_path / "classes", *images) == [
        "images/train/a", "images/train/b", "images/val/a", "images/val/b",
    ]  # fmt: skip
    labels = [name.replace("images", "labels", 1).replace("jpg", "txt") for name in images]
    assert classes(tmp_path / "groups", *images, *labels) == ["images/train", "images/val"]


def test_labels_by_the_names_of_data_sets(tmp_path: Path) -> None:
    """CamVid, Carvana, Cityscapes and those in the singular."""
    splits = ("train", "val", "test")
    camvid = several(*splits, *(f"{split}annot" for split in splits), suffix="png")
    assert classes(tmp_path / "camvid", *camvid) == ["", *sorted(splits)]
    carvana = [*several("train", "test"), *several("train_masks", names=[f"{n}_mask" for n in range(20)], suffix="png")]
    assert classes(tmp_path / "carvana", *carvana) == ["", "test", "train"]
    for number, (images, labels) in enumerate(
        [
            ("image", "mask"),
            ("img", "gt"),
            ("image", "label"),
            ("images", "annot"),
            ("images", "gt_masks"),
            ("images", "mask_images"),
            ("images", "seg"),
        ]
    ):
        files = [*several(images), *several(labels, suffix="png")]
        assert classes(tmp_path / f"{number}", *files) == [""]
        assert classes(tmp_path / f"split{number}", *(f"train/{name}" for name in files)) == ["train"]
    tasks = (("Training", range(20)), ("Validation", range(20, 30)))
    isic = [name for task, numbers in tasks for name in several(f"ISIC_{task}_Input", names=numbers)]
    isic += [
        name
        for task, numbers in tasks
        for name in several(f"ISIC_{task}_GroundTruth", names=[f"{n}_segmentation" for n in numbers], suffix="png")
    ]
    assert classes(tmp_path / "isic", *isic) == ["", "ISIC_Training_Input", "ISIC_Validation_Input"]
    depth = [*several("images", "depth"), *several("masks", suffix="png")]
    assert classes(tmp_path / "depth", *depth) == ["", "depth"]
    named = several("image", "mask", "gloves", names=["a", "b", "c"])
    assert classes(tmp_path / "named", *named) == ["gloves", "image", "mask"]
    cities = [
        *several("leftImg8bit/train/aachen", "leftImg8bit/val/ulm", suffix="png"),
        *several("gtFine/train/aachen", "gtFine/val/ulm", suffix="png"),
    ]
    images = [name for name in classes(tmp_path / "cities", *cities) if not name.startswith("gtFine")]
    assert images == ["leftImg8bit/train", "leftImg8bit/val"]
    seen = found(tmp_path / "seen", *(f"{top}/{split}" for top in ("leftImg8bit", "gtFine") for split in splits))
    assert seen.of_images == {f"leftImg8bit/{split}": split for split in sorted(splits)}


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


def test_masks_are_no_copies_of_each_other(tmp_path: Path, jpegs: list[bytes], encode: Encode) -> None:
    """They are labels, and with nothing in the photos all the same; damaged ones are damaged still."""
    black = encode(Image.new("L", (320, 260)), "PNG")
    tops = ["train", "train_masks", "val/image", "val/mask", "val/cat/images", "val/cat/masks"]
    for at, top in enumerate(tops):
        for number in range(2):
            data = black if "mask" in top else jpegs[2 * at + number]
            (tmp_path / top).mkdir(parents=True, exist_ok=True)
            (tmp_path / top / f"{number}.png").write_bytes(data)
    (tmp_path / "train_masks/2.png").write_bytes(black[:-20])
    (tmp_path / "train_masks/3.png").write_bytes(encode(Image.new("I;16", (320, 260), 700), "PNG"))
    report = scan_images(tmp_path, workers=1)
    assert report.duplicates == []
    labels = [finding for finding in report.findings if Path(finding.path).parent.name.endswith(("masks", "mask"))]
    assert [(Path(finding.path).name, finding.severity) for finding in labels] == [("2.png", "unusable")]
    assert report.classes == {"val/cat": 2}


def test_an_empty_folder_of_labels_stays(tmp_path: Path, jpegs: list[bytes]) -> None:
    """Nobody takes it for a class, and some loaders list it."""
    for number, split in enumerate(("train", "test")):
        (tmp_path / "images" / split).mkdir(parents=True)
        (tmp_path / "images" / split / "1.jpg").write_bytes(jpegs[number])
        (tmp_path / "labels" / split).mkdir(parents=True)
    (tmp_path / "labels/train/1.txt").write_text("0 0.5 0.5 1 1")
    assert scan_images(tmp_path, workers=1).junk == []


def test_masks_with_no_images_beside_them_may_be_copies(pets: Path) -> None:
    """They are photos, of masks."""
    for split in ("train", "val"):
        (pets / split / "cat").rename(pets / split / "masks")
        shutil.rmtree(pets / split / "dog")
    (pets / "train/masks/copy.jpg").write_bytes((pets / "val/masks/5.jpg").read_bytes())
    assert [finding.kind for finding in scan_images(pets, workers=1).findings if finding.kind == "leak"] == ["leak"]


def test_splits_of_images_and_masks_beside_other_images(tmp_path: Path) -> None:
    """What a training leaves there makes no classes of them; folders of classes that all have splits are classes."""
    inner = ("images/train", "images/val", "masks/train", "masks/val")
    for name in (*several(*inner), *several("runs/detect/train")):
        (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / name).touch()
    assert list(found(tmp_path / "a").splits) == list(inner)
    files = several(*(f"{name}/{split}" for name in ("gloves", "gowns", "masks") for split in ("train", "test")))
    assert classes(tmp_path / "b", *files) == ["gloves", "gowns", "masks"]


def test_a_class_in_one_split_is_one_in_all(tmp_path: Path) -> None:
    """Even where the others are missing."""
    files = several("train/masks", "train/gloves", "val/masks")
    assert classes(tmp_path, *files, "masks/1.png") == ["", "train/gloves", "train/masks", "val/masks"]


def test_a_photo_in_a_class_called_masks_and_another_is_a_conflict(pets: Path) -> None:
    """Not a duplicate, of which one moves."""
    for split in ("train", "val"):
        (pets / split / "cat").rename(pets / split / "masks")
    (pets / "train/dog/twin.jpg").write_bytes((pets / "train/masks/1.jpg").read_bytes())
    report = scan_images(pets, workers=1)
    assert report.classes == {"train/dog": 5, "train/masks": 4, "val/dog": 1, "val/masks": 1}
    assert [finding.kind for finding in report.findings] == ["label_conflict", "label_conflict"]
    assert {row.class_ for row in report.table} == {"dog", "masks"}


def test_a_class_called_masks_behind_a_url(tmp_path: Path, jpegs: list[bytes]) -> None:
    """It is told as in a folder here."""
    memory = pytest.importorskip("fsspec").filesystem("memory")
    try:
        for number, name in enumerate(("train/masks/1.jpg", "train/gloves/1.jpg", "masks/train/1.png")):
            memory.pipe(f"/masks-test/a/{name}", jpegs[number])
            memory.pipe(f"/masks-test/b/train/{'cat' if number else 'masks'}/{max(number, 1)}.jpg", jpegs[number])
        memory.pipe("/masks-test/b/train/dog/3.jpg", jpegs[3])
        memory.pipe("/masks-test/b/train/masks/3.jpg", jpegs[4])
        assert scan_images("memory://masks-test/a", workers=1).classes == {"train/gloves": 1, "train/masks": 1}
        assert scan_images("memory://masks-test/b", workers=1).classes == {"train/cat": 2, "train/dog": 1}
    finally:
        memory.rm("/masks-test", recursive=True)


def test_a_copy_in_two_folds_is_a_leak(pets: Path) -> None:
    """By whatever names; the first fold's copy is the one to take away."""
    for old, new in (("train", "fold0"), ("val", "fold1")):
        (pets / old).rename(pets / new)
    (pets / "fold0/dog/copy.jpg").write_bytes((pets / "fold1/dog/0.jpg").read_bytes())
    report = scan_images(pets, workers=1, splits=["fold0", "fold1"])
    assert [(f.path, f.kind) for f in report.findings] == [(f"{pets}/fold0/dog/copy.jpg", "leak")]


def arranged(*paths: str) -> dict[str, str]:
    """Return what is noted about images at these paths."""
    layout = Layout({top: top for top in ("train", "val") if any(path.startswith(f"{top}/") for path in paths)})
    arrangement = Arrangement(layout)
    for path in paths:
        arrangement.add(path, layout.place(path).folder)
    return {path: note.kind for path, note in arrangement.notes("x/")}


def test_what_image_folder_stumbles_over() -> None:
    """One class that holds the classes, no classes, images beside them, twins and hidden ones."""
    assert arranged("cat/1.jpg", "dog/2.jpg") == arranged("cat/a/1.jpg", "dog/b/2.jpg") == {}
    assert arranged("PetImages/Cat/1.jpg", "PetImages/Dog/2.jpg") == {"PetImages": "classes_deeper"}
    assert arranged("cat/a/1.jpg") == {}
    assert arranged("ILSVRC/Data/CLS-LOC/train/1.jpg", "ILSVRC/Data/CLS-LOC/test/2.jpg") == {
        "ILSVRC/Data/CLS-LOC": "classes_deeper"
    }
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
