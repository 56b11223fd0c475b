"""What goes with images, as labels and masks do, and what is a class all the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ftkit import scan_images
from ftkit._images.names import is_images

from .trees import classes, found, laid, several

Encode = Callable[..., bytes]


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
    right = [name.replace("left", "right") for name in cities if name.startswith("left")]
    cameras = [f"camera/{split}/aachen/1.json" for split in splits]
    layout = laid(tmp_path / "cameras", *cities, *right, *cameras)
    photos = [name for name in cities if name.startswith("left")] + right
    assert {layout.place(name).label for name in (*photos, *cameras)} == {""}
    assert not [split for split in layout.splits if split.startswith("camera")]
    seen = found(tmp_path / "seen", *(f"{top}/{split}" for top in ("leftImg8bit", "gtFine") for split in splits))
    assert seen.of_images == {f"leftImg8bit/{split}": split for split in sorted(splits)}


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
    """Nobody takes it for a class, and some loaders list it; neither that of a split without images."""
    (tmp_path / "images/val").mkdir(parents=True)
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


@pytest.mark.parametrize("images", ["images", "img", "JPEGImages", "image_2"])
def test_masks_are_told_by_the_names_of_the_images_beside_them(tmp_path: Path, images: str, encode: Encode) -> None:
    """Whatever their folder is called, if they are gray; in color, if its name tells of them."""
    gray, color = (encode(Image.new(mode, (9, 9)), "PNG") for mode in ("L", "RGB"))
    for number, (name, data, ends) in enumerate(
        [
            ("depth", gray, ""),
            ("alpha", encode(Image.new("P", (9, 9)), "PNG"), ""),
            ("target", encode(Image.new("P", (9, 9)), "GIF"), ""),
            ("masks_png", color, ""),
            ("masks_human", color, ""),
            ("indexLabel", color, ""),
            ("instances", color, ""),
            ("people", color, "_mask"),
            ("labelsTr", color, ""),
        ]
    ):
        at = tmp_path / str(number)
        files = several(f"train/{images}", f"val/{images}", "test/cat")
        masks = several(f"train/{name}", f"val/{name}", names=[f"{one}{ends}" for one in range(20)], suffix="png")
        for file in masks:
            (at / file).parent.mkdir(parents=True, exist_ok=True)
            (at / file).write_bytes(data)
        assert classes(at, *files, *masks) == ["test/cat", "train", "val"], name


def test_masks_of_a_suffix_with_the_images_are_told_by_the_name_of_their_folder(tmp_path: Path) -> None:
    """As in LoveDA and in KITTI; beside classes, too, and in folders that go by splits or are split."""
    loveda = several("Train/Urban/images_png", "Train/Urban/masks_png", suffix="png")
    layout = laid(tmp_path / "loveda", *loveda)
    assert layout.place("Train/Urban/masks_png/1.png").label == "Urban"
    assert [layout.tells_of_images(f"Train/Urban/{name}_png/1.png") for name in ("masks", "images")] == [True, False]
    kitti = several("training/image_2", "training/semantic", "training/semantic_rgb", "training/instance", suffix="png")
    assert classes(tmp_path / "kitti", *kitti) == ["training"]
    for number, name in enumerate(("images/{}", "{}/images", "{}_images")):
        files = several(*(name.format(split) for split in ("train", "val")))
        masks = [file.replace("images", "masks_png").replace("jpg", "png") for file in files]
        layout = laid(tmp_path / str(number), *files, *masks)
        assert [file for file in (*files, *masks) if layout.tells_of_images(file)] == masks


def test_photos_may_be_numbered_as_others_are(tmp_path: Path, encode: Encode) -> None:
    """In color, by the same names, or in a folder that is called as one of images or a class."""
    gray, color = (encode(Image.new(mode, (9, 9)), "PNG") for mode in ("L", "RGB"))
    for number, (name, suffix, data) in enumerate(
        [
            ("night", "png", color),
            ("depth", "jpg", gray),
            ("images_night", "png", gray),
            ("with_mask", "jpg", color),
        ]
    ):
        files = [*several("images"), *several(name, suffix=suffix)]
        for file in files:
            (tmp_path / f"{number}/{file}").parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / f"{number}/{file}").write_bytes(data)
        assert name in classes(tmp_path / str(number), *files)
    loose = [*several("train", "train/with_mask", "train/without_mask", suffix="png")]
    assert classes(tmp_path / "loose", *loose) == ["train", "train/with_mask", "train/without_mask"]
    pairs = [*several("train/A", "train/B"), *several("train/low", suffix="png")]
    assert classes(tmp_path / "pairs", *pairs) == ["train/A", "train/B", "train/low"]


@pytest.mark.parametrize(
    ("images", "masks", "ends"),
    [
        (["A", "B"], ["label"], ""),
        (["rgb"], ["mask"], ""),
        (["Original"], ["Ground Truth"], ""),
        (["images", "thermal"], ["masks"], ""),
        (["tissue photos"], ["mask binary"], ""),
        (["rgb"], ["semantic"], ""),
        (["images"], ["v1.2/labels", "v1.2/panoptic"], ""),
        (["images"], ["targets"], "_target"),
        (["img_dir"], ["ann_dir"], ""),
    ],
)
def test_gray_masks_beside_colored_photos(
    tmp_path: Path, images: list[str], masks: list[str], ends: str, encode: Encode
) -> None:
    """By the same names and suffix, and beside several folders of them; beside gray ones, they may be photos."""
    gray, color = (encode(Image.new(mode, (9, 9)), "PNG") for mode in ("L", "RGB"))
    photos = several(*(f"{split}/{name}" for split in ("train", "val") for name in images), suffix="png")
    tops = [f"{split}/{name}" for split in ("train", "val") for name in masks]
    labels = several(*tops, names=[f"{number}{ends}" for number in range(20)], suffix="png")
    for kind, data in (("color", color), ("gray", gray)):
        for file in (*photos, *labels):
            (tmp_path / kind / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / kind / file).write_bytes(data if file in photos else gray)
    layout = laid(tmp_path / "color", *photos, *labels)
    assert [file for file in (*photos, *labels) if layout.tells_of_images(file)] == labels
    if not any(map(is_images, images)):
        assert not any(map(laid(tmp_path / "gray", *photos, *labels).tells_of_images, labels))


def test_masks_in_folders_by_the_names_of_splits(tmp_path: Path, encode: Encode) -> None:
    """Beside these, as COCO-Stuff's, or beside a folder that has them, as those of MMSegmentation."""
    gray = encode(Image.new("L", (9, 9)), "PNG")
    for name, images, masks in (("coco", "{}", "stuffthingmaps/{}"), ("mmseg", "img_dir/{}", "ann_dir/{}")):
        photos = several(*(images.format(split) for split in ("train", "val")))
        labels = several(*(masks.format(split) for split in ("train", "val")), suffix="png")
        for file in labels:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_bytes(gray)
        layout = laid(tmp_path / name, *photos, *labels)
        assert [file for file in (*photos, *labels) if layout.tells_of_images(file)] == labels


def test_blank_masks_by_any_name_are_neither_leaks_nor_odd(tmp_path: Path, jpegs: list[bytes], encode: Encode) -> None:
    """A copy among the photos is one still, and a damaged mask is damaged."""
    black = encode(Image.new("L", (320, 260)), "PNG")
    for number in range(6):
        split = "train" if number < 3 else "val"
        for name, data in ((f"images/{number}.jpg", jpegs[number % 5]), (f"depth/{number}.png", black)):
            (tmp_path / split / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / split / name).write_bytes(data)
    (tmp_path / "train/depth/1.png").write_bytes(black[:-20])
    report = scan_images(tmp_path, workers=1)
    assert [(f.path.removeprefix(f"{tmp_path}/"), f.kind) for f in report.findings if f.kind != "flat"] == [
        ("train/depth/1.png", "truncated"),
        ("train/images/0.jpg", "leak"),
    ]
    assert {row.class_ for row in report.table} == {""}


def test_a_folder_of_text_for_each_image_is_no_class(tmp_path: Path, jpegs: list[bytes]) -> None:
    """As KITTI's; one of text that goes with nothing may be one whose images are missing."""
    for number in range(4):
        for name in ("image_2/{}.png", "label_2/{}.txt", "calib/{}.txt", "velodyne/{}.bin", "dog/a{}.txt"):
            file = tmp_path / "training" / name.format(number)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(jpegs[number] if "image" in name else b"Car 0.00 0 -1.5")
    found = [(f.path, f.kind) for f in scan_images(tmp_path, workers=1).findings]
    assert [path for path, kind in found if kind == "no_images"] == [f"{tmp_path}/training/dog"]
