"""Which folders are splits."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftkit import scan_images
from ftkit._images.folders import Folder, open_folder
from ftkit._images.layout import Layout, Place
from ftkit._images.splits import is_fold
from ftkit.errors import FtkitError

from .trees import classes, found, laid, several


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
    is_complete = len({*splits.values()}) > 1
    outside = ("", "train/images/1.jpg") if is_complete else ("train", "images/1.jpg")
    assert layout.place("train/images/1.jpg") == Place("", "", *outside)
    assert layout.place("JPEGImages/1.jpg").label == ""


@pytest.mark.parametrize(
    ("tops", "splits"),
    [
        (["cars_train", "cars_test", "devkit"], {"cars_train": "train", "cars_test": "test"}),
        (["bounding_box_train", "bounding_box_test", "gt_query"],
         {"bounding_box_train": "train", "bounding_box_test": "test"}),
        (["DIV2K_train_HR", "DIV2K_valid_HR", "docs"], {"DIV2K_train_HR": "train", "DIV2K_valid_HR": "val"}),
        (["trainA", "trainB", "testA", "testB"],
         {"trainA": "train", "trainB": "train", "testA": "test", "testB": "test"}),
        (["train_v2", "val_v2"], {"train_v2": "train", "val_v2": "val"}),
        (["imagesTr", "imagesTs", "labelsTr"], {"imagesTr": "train", "imagesTs": "test"}),
        (["VOCtrainval_2007", "VOCtest_2007"], {"VOCtrainval_2007": "train", "VOCtest_2007": "test"}),
        (["train", "testA", "testB", "masks"], {"train": "train", "testA": "test", "testB": "test"}),
        (["train", "val", "test-dev", "holdout", "more", "minival", "val_semantic"],
         {"train": "train", "val": "val", "test-dev": "test", "holdout": "test"}),
        (["me-2017_Training_Data", "me-2017_Validation_Data", "me-2017_Test_v2_Data"],
         {"me-2017_Training_Data": "train", "me-2017_Validation_Data": "val", "me-2017_Test_v2_Data": "test"}),
        (["train", "testA", "bus"], {}),
        (["train_station", "test_tube"], {}),
        (["testA", "testB"], {}),
        (["freight_train", "night_train"], {}),
        (["freight_train", "drug_test"], {}),
    ],
)  # fmt: skip
def test_splits_with_names_that_are_alike(tmp_path: Path, tops: list[str], splits: dict[str, str]) -> None:
    """Two of them, of which one is no training."""
    assert found(tmp_path, *tops).splits == splits


def test_the_first_word_for_a_split_counts(tmp_path: Path) -> None:
    """So test-dev is for testing, and a train_mini for training."""
    names = {
        "d-train": "train",
        "d-val": "val",
        "d-test-dev": "test",
        "d-test-challenge": "test",
        "d-train-mini": "train",
    }
    assert found(tmp_path / "flat", *names).splits == names
    assert found(tmp_path / "images", *(f"{name}/images" for name in names)).splits == names
    assert found(tmp_path / "classes", *(f"{name}/cat" for name in names)).splits == names


def test_other_forms_of_the_images_in_a_split_are_none(tmp_path: Path) -> None:
    """They would be copies of them all."""
    files = several("train", "train_hq", "test", "train_results")
    assert laid(tmp_path / "a", *files).splits == {"train": "train", "test": "test"}
    more = several("train", "test", names=range(20)) + several("train_more", names=range(30, 50))
    assert laid(tmp_path / "b", *more).splits == {"train": "train", "test": "test", "train_more": "train"}


def test_folds_are_splits_if_they_have_classes(tmp_path: Path) -> None:
    """Several, or else they are classes."""
    folds = [f"fold{number}/{name}" for number in (1, 2) for name in ("cat", "dog")]
    assert found(tmp_path / "a", *folds).splits == {"fold1": "fold1", "fold2": "fold2"}
    assert found(tmp_path / "b", "fold1", "fold2").splits == {}
    assert found(tmp_path / "d", "fold1/images", "fold2/images").splits == {}
    images = [f"fold{number}/images/{name}" for number in (1, 2) for name in ("cat", "dog")]
    assert found(tmp_path / "h", *images).splits == {"fold1": "fold1", "fold2": "fold2"}
    yolo = [f"fold{number}/{name}" for number in (1, 2) for name in ("images", "labels")]
    assert found(tmp_path / "g", *yolo).splits == {"fold1": "fold1", "fold2": "fold2"}
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


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("holdout", "test"), ("held-out", "test"), ("test_A", "test"), ("test-clean", "test"), ("val_small", "val"),
        ("minival", "val"), ("train_extra", "train"), ("extra", "extra"), ("unseen", "unseen"),
    ],
)  # fmt: skip
def test_what_has_the_folders_of_the_splits_beside_it_is_one(tmp_path: Path, name: str, split: str) -> None:
    """By its own name, unless that says which; what has other folders is none, nor what has none."""
    inner = [f"{top}/{label}" for top in ("train", "val", name) for label in ("cat", "dog")]
    assert found(tmp_path / "a", *inner, f"{name}/none", "docs/figures", "assets").splits == {
        "train": "train",
        "val": "val",
        name: split,
    }
    folds = [f"fold{number}/{label}" for number in (1, 2) for label in ("cat", "dog")]
    assert found(tmp_path / "b", *folds, f"{name}/cat").splits == {"fold1": "fold1", "fold2": "fold2", name: split}
    yolo = [f"{top}/images" for top in ("train", "val", name)]
    assert (name in found(tmp_path / "d", *yolo).splits) == (split != name)
    views = [f"{top}/{view}" for top in ("bus", "car", "train") for view in ("front", "side")]
    assert "bus" not in found(tmp_path / "c", *views).splits


@pytest.mark.parametrize(("name", "leaks"), [("holdout", "train/dog/copy.jpg"), ("extra", "extra/dog/0.jpg")])
def test_a_copy_in_a_further_split_is_a_leak(pets: Path, jpegs: list[bytes], name: str, leaks: str) -> None:
    """What is held out keeps its own; of another, whatever it is for, the known splits do."""
    for label, data in (("cat", jpegs[10]), ("dog", jpegs[11])):
        (pets / name / label).mkdir(parents=True)
        (pets / name / label / "0.jpg").write_bytes(data)
    (pets / "train/dog/copy.jpg").write_bytes(jpegs[11])
    assert [(f.path, f.kind) for f in scan_images(pets, workers=1).findings] == [(f"{pets}/{leaks}", "leak")]


def test_splits_in_each_class(tmp_path: Path, jpegs: list[bytes]) -> None:
    """A copy in training and evaluation is a leak; one in two classes, whatever the split, is a conflict."""
    names = ["cat/train/1.jpg", "cat/val/2.jpg", "dog/train/3.jpg", "dog/val/4.jpg"]
    for name, data in zip([*names, "cat/train/leak.jpg", "dog/val/cat.jpg"], [*jpegs[:4], *jpegs[1:3]], strict=True):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "dog/val/cat.jpg").write_bytes(jpegs[0])
    report = scan_images(tmp_path, workers=1)
    assert report.splits == {"cat/train": "train", "cat/val": "val", "dog/train": "train", "dog/val": "val"}
    assert report.classes == {"cat": 3, "dog": 3}
    assert [(f.path.removeprefix(f"{tmp_path}/"), f.kind) for f in report.findings] == [
        ("cat/train/1.jpg", "label_conflict"),
        ("cat/train/1.jpg", "leak"),
        ("cat/train/leak.jpg", "leak"),
        ("dog/val/cat.jpg", "label_conflict"),
    ]
    assert {(row.split, row.class_) for row in report.table} == {
        (split, label) for split in ("train", "val") for label in ("cat", "dog")
    }


def test_splits_of_several_sites(tmp_path: Path) -> None:
    """Each has classes; what is beside two of them without splits is apart."""
    files = several(*(f"{site}/{split}/{name}" for site in "ab" for split in ("train", "test") for name in "xy"))
    layout = laid(tmp_path / "a", *files, "docs/readme.md")
    assert layout.splits == {"a/train": "train", "a/test": "test", "b/train": "train", "b/test": "test"}
    assert layout.place("b/test/x/1.jpg") == Place("b/test", "test", "x", "1.jpg")
    for name in ("c", "c/x", "images", "annotations"):
        beside = laid(tmp_path / name.replace("/", "_") / "all", *files, *several(name))
        assert (beside.splits, beside.place(f"{name}/1.jpg").label) == (layout.splits, "")
    assert laid(tmp_path / "test", *files, "test/1.jpg").splits == {**layout.splits, "test": "test"}
    classes = several("cat/train", "cat/val", "dog/train", "dog/val")
    assert len(laid(tmp_path / "classes", *classes, *several("background")).splits) == 4
    toys = several(*(f"{kind}/{name}" for kind in ("toy", "real") for name in ("train", "bus")))
    assert laid(tmp_path / "d", *toys).splits == {}


@pytest.mark.parametrize("above", ["data", "images", "images/100k", "bdd100k/images/100k", "ILSVRC/Data/CLS-LOC"])
def test_splits_in_the_only_folder_with_images(tmp_path: Path, above: str) -> None:
    """They are found below all that wraps them, with classes in them or beside each other."""
    plain = several(f"{above}/train", f"{above}/val")
    wanted = {f"{above}/train": "train", f"{above}/val": "val"}
    assert laid(tmp_path / "plain", *plain, "docs/readme.md").splits == wanted
    classes = several(*(f"{above}/{split}/{name}" for split in ("train", "val") for name in "ab"))
    layout = laid(tmp_path / "classes", *classes)
    assert (layout.splits, layout.place(f"{above}/val/b/1.jpg").label) == (wanted, "b")
    inside = laid(
        tmp_path / "inside", *several(*(f"{above}/{name}/{split}" for name in "ab" for split in ("train", "val")))
    )
    assert inside.place(f"{above}/b/val/1.jpg") == Place(above, "val", "b", "val/1.jpg")
    assert laid(tmp_path / "data", *several("data/train", "data/val", "other")).splits == {}


def test_folders_of_labels_alone_may_lie_deeper(tmp_path: Path) -> None:
    """Then the images have no splits."""
    labels = several("annotations/things/train", "annotations/things/val", suffix="png")
    assert laid(tmp_path, *several("images"), *labels).splits == {}


def test_a_split_in_a_folder_of_the_same_name(tmp_path: Path) -> None:
    """As archives have it; alone there, or else it is a class."""
    flat = [*several("train/train"), *several("test1/test1"), "train.csv"]
    assert laid(tmp_path / "flat", *flat).splits == {"train/train": "train", "test1/test1": "test"}
    cars = laid(tmp_path / "cars", *several("cars_train/cars_train/bmw", "cars_test/cars_test/bmw"))
    assert cars.place("cars_train/cars_train/bmw/1.jpg") == Place("cars_train/cars_train", "train", "bmw", "1.jpg")
    voc = several("train/bus", "train/train", "val/bus", "val/train")
    assert laid(tmp_path / "voc", *voc).splits == {"train": "train", "val": "val"}
    single = several("train/cat", "val/cat")
    assert laid(tmp_path / "single", *single).splits == {"train": "train", "val": "val"}


def test_cameras_with_splits_of_their_own_are_no_classes(tmp_path: Path) -> None:
    """Where there are labels beside their images; without, they are classes."""
    files = several(*(f"images/{camera}/{split}" for camera in "ab" for split in ("train", "val")))
    assert laid(tmp_path / "classes", *files).place("images/a/train/1.jpg").label == "a"
    place = laid(tmp_path / "cameras", *files, "labels/a.json").place("images/a/train/1.jpg")
    assert place == Place("images/a/train", "train", "", "1.jpg")


@pytest.mark.parametrize(
    "name",
    ["fold_{}/{}", "{1}/fold{0}", "split{}/{}", "pets_fold{}/{}", "fold_{}_of_3/{}", "{}fold/{}", "seed{}/{}", "{}/{}"],
)
def test_folds_with_splits_of_their_own_have_the_same_images(tmp_path: Path, jpegs: list[bytes], name: str) -> None:
    """So copies are looked for in each of them, and in what goes with all of them."""
    for fold in range(3):
        for number, data in enumerate(jpegs[:6]):
            split = name.format(fold, "val" if number % 3 == fold else "train")
            file = tmp_path / split / "ab"[number % 2] / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
    assert scan_images(tmp_path, workers=1).findings == []
    leak, other = (tmp_path / name.format(1, split) / "a/twin.jpg" for split in ("train", "val"))
    leak.write_bytes(jpegs[7])
    other.write_bytes(jpegs[7])
    assert [(f.path, f.kind) for f in scan_images(tmp_path, workers=1).findings] == [(f"{leak}", "leak")]


def test_what_is_called_as_a_fold_is() -> None:
    """With a number or letter, and no other word."""
    names = ("fold1", "Fold 2", "fold_a", "folds_10", "fold1of3", "fold(3)", "3-fold", "exp_fold_1", "kfold1", "split9")
    assert [name for name in names if not is_fold(name)] == []
    others = ("fold", "unfold1", "scaffold_3", "folding_chair_1", "fold_of_cloth", "split_second", "x100fold")
    assert [name for name in others if is_fold(name)] == []


def test_only_folders_with_the_same_images_are_folds(tmp_path: Path) -> None:
    """Sites, which have their own, are not; neither are classes that number theirs alike."""
    names = [(site, split, range(at, at + 9)) for site, base in (("a", 0), ("b", 50), ("c", 50))
             for split, at in (("train", base), ("val", base + 9))]  # fmt: skip
    sites = [name for site, split, own in names for name in several(f"{site}/{split}/cat", names=own)]
    folds = laid(tmp_path / "sites", *sites).folds
    assert folds == {f"{site}/{split}": site for site in "bc" for split in ("train", "val")}
    inside = [name for site, split, own in names for name in several(f"{site}/{split}", names=own)]
    assert laid(tmp_path / "classes", *inside).folds == {}


def test_folds_and_sites_behind_a_url(jpegs: list[bytes]) -> None:
    """They are told as in a folder here, where not all have the same folders."""
    memory = pytest.importorskip("fsspec").filesystem("memory")
    try:
        for number, name in enumerate(
            ("1/train/a/0", "1/val/a/1", "2/train/a/1", "2/val/a/0", "3/train/b/0", "3/val/c/0")
        ):
            memory.pipe(f"/sites-test/{name}.jpg", jpegs[number])
        layout = Layout.find(["1", "2", "3"], open_folder("memory://sites-test"), None)
        assert len(layout.splits) == 6
        assert {*layout.folds.values()} == {"1", "2"}
    finally:
        memory.rm("/sites-test", recursive=True)


def test_a_test_set_beside_folds_with_splits_of_their_own(tmp_path: Path, jpegs: list[bytes]) -> None:
    """It goes with each of them."""
    for fold in (1, 2):
        for split in ("train", "val"):
            file = tmp_path / f"fold{fold}/{split}/a/0.jpg"
            file.parent.mkdir(parents=True)
            file.write_bytes(jpegs[(split == "val") != (fold == 2)])
    (tmp_path / "test/a").mkdir(parents=True)
    for number in (1, 5, 6):
        (tmp_path / f"test/a/{number}.jpg").write_bytes(jpegs[min(number, 5)])
    report = scan_images(tmp_path, workers=1)
    assert len(report.duplicates) == 3
    assert [(f.path.removeprefix(f"{tmp_path}/"), f.kind) for f in report.findings] == [
        ("fold1/val/a/0.jpg", "eval_leak"),
        ("fold2/train/a/0.jpg", "leak"),
        ("test/a/6.jpg", "duplicate"),
    ]


def test_folds_of_the_training_are_splits(tmp_path: Path) -> None:
    """Beside a test set, as they are at the top; with splits in them, they are none."""
    files = [f"train/fold{number}/{label}" for number in (0, 1) for label in ("cat", "dog")]
    layout = found(tmp_path, *files, "test/cat", "test/dog")
    assert layout.splits == {"train/fold0": "fold0", "train/fold1": "fold1", "test": "test"}
    assert layout.place("train/fold0/cat/1.jpg") == Place("train/fold0", "fold0", "cat", "1.jpg")


def test_splits_in_some_folders_only_are_noted(pets: Path, jpegs: list[bytes]) -> None:
    """The finding says what to pass, and nothing moves for it."""
    site = pets.parent / "site"
    (site / "a").mkdir(parents=True)
    pets.rename(site / "c")
    for number in (10, 11):
        (site / f"a/{number}.jpg").write_bytes(jpegs[number])
    report = scan_images(site, workers=1)
    (found,) = report.findings
    assert (found.kind, found.detail) == (
        "splits_deeper",
        "if these are splits, pass them all: splits={'c/train': 'train', 'c/val': 'val'}",
    )
    assert report.splits == {}
    assert report.quarantine(pets.parent / "aside", kinds=["odd"]).moved == 0
    assert scan_images(site, workers=1, splits={"c/train": "train", "c/val": "val"}).findings == []


@pytest.mark.parametrize(
    "names",
    [("valid", "not_valid"), ("train", "bullet_train"), ("test", "test_strip"), ("valid_id", "test_id", "fake_id")],
    ids=str,
)
def test_classes_may_have_a_word_for_a_split_in_their_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    """With no other split to tell them from, or beside a class without such a word, they are no splits."""
    assert classes(tmp_path, *several(*names, names=range(3))) == sorted(names)


@pytest.mark.parametrize("name", ["split_{}/images/{}", "fold{}/data/{}/a", "fold_{}/dataset/images/{}", "run{}/{}/a"])
@pytest.mark.parametrize("more", [[], ["run1_more/train/a", "run1_more/val/a"]], ids=["alone", "another between"])
def test_each_fold_is_a_data_set_of_its_own(tmp_path: Path, name: str, more: list[str]) -> None:
    """Wherever the splits are in it, and whatever else is beside."""
    files = [
        f"{name.format(fold, 'val' if number % 3 == fold else 'train')}/{number}.jpg"
        for fold in range(3)
        for number in range(9)
    ]
    others = several(*more, names=range(90, 95)) if name.startswith("run") else []
    parts = laid(tmp_path, *files, *others).apart(files)
    assert sorted(len(part) for part in parts) == [9, 9, 9]


def test_splits_by_their_folders_again(tmp_path: Path) -> None:
    """The splits that a report names may be passed: folds, and classes that have splits in them, are as before."""
    folds = several(*(f"fold_{fold}/{split}/a" for fold in (1, 2) for split in ("train", "val")), names=range(3))
    pets = several(*(f"{pet}/{split}" for pet in ("cat", "dog") for split in ("train", "val")), names=range(3))
    for root, files in ((tmp_path / "folds", folds), (tmp_path / "pets", pets)):
        guessed = laid(root, *files)
        folder = Folder(str(root))
        again = Layout.find(folder.tops(), folder, guessed.splits)
        assert again == guessed
        assert again.apart(files) == guessed.apart(files)
    two = found(tmp_path / "two", "fold0/a", "fold1/a", splits={"fold0": "train", "fold1": "val"})
    assert len(two.apart(["fold0/a/1.jpg", "fold1/a/1.jpg"])) == 1


def test_training_in_one_folder_and_tests_in_another(tmp_path: Path) -> None:
    """It may be splits of one data set, or two of them: the note says what to pass."""
    layout = laid(tmp_path, *several("source/train/a", "source/val/a", "target/test/a", names=range(3)))
    assert layout.splits == {}
    assert layout.unsure == {"source/train": "train", "source/val": "val", "target/test": "test"}


@pytest.mark.parametrize("told", ["annotations/train", "masks/val"])
def test_labels_in_splits_beside_classes(tmp_path: Path, told: str) -> None:
    """Splits of labels alone are none."""
    files = several("cat", "dog", names=range(3))
    assert classes(tmp_path, *files, *several(told, names=range(3), suffix="json")) == ["cat", "dog"]


def test_classes_beside_a_single_split(tmp_path: Path) -> None:
    """They are what is trained on."""
    files = several("cat", "dog", "val/cat", "val/dog", names=range(3))
    assert classes(tmp_path, *files) == ["cat", "dog", "val/cat", "val/dog"]


def test_classes_with_splits_may_have_a_folder_of_images(tmp_path: Path) -> None:
    """That these are numbered alike makes no folds of the classes."""
    files = several(*(f"{pet}/{split}/images" for pet in ("cat", "dog") for split in ("train", "val")), names=range(3))
    assert classes(tmp_path, *files) == ["cat", "dog"]


@pytest.mark.parametrize(("photos", "told", "suffix"), [("photos", "masks", "png"), ("data", "labels", "txt")])
def test_labels_in_splits_beside_photos_in_splits(tmp_path: Path, photos: str, told: str, suffix: str) -> None:
    """The photos' folder need not be called as one of images."""
    files = several(f"{photos}/train", f"{photos}/val", names=range(3))
    labels = several(f"{told}/train", f"{told}/val", names=range(3), suffix=suffix)
    assert laid(tmp_path, *files, *labels).of_images == {f"{photos}/train": "train", f"{photos}/val": "val"}


def test_a_list_of_splits(tmp_path: Path) -> None:
    """Names that say which split they are do so; of several alike, each is a fold. All of them must be there."""
    for name in ("images/train", "images/val", "train1", "train2"):
        (tmp_path / name).mkdir(parents=True)
    folder = Folder(str(tmp_path))

    def named(*splits: str) -> dict[str, str]:
        return dict(Layout.find(folder.tops(), folder, splits).splits)

    assert named("images/val", "images/train") == {"images/val": "val", "images/train": "train"}
    assert named("train1", "train2") == {"train1": "train1", "train2": "train2"}
    with pytest.raises(FtkitError, match=r"Did you mean 'images/val'"):
        named("images/train", "images/vall")
