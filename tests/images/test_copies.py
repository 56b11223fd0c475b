"""Copies: duplicates, leaks and conflicts of labels."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ftkit import ScanReport, scan_images
from ftkit._images.copies import Copied, Copies, judge_group
from ftkit._images.folders import Folder, check_batch
from ftkit._images.journal import Journal
from ftkit._images.layout import Layout
from ftkit._images.verdict import Verdict, read_line


def kinds(report: ScanReport, name: str) -> list[str]:
    """Return the kinds found for the file called ``name``."""
    return [finding.kind for finding in report.findings if Path(finding.path).name == name]


def test_duplicates_and_leaks(pets: Path) -> None:
    """Copies are grouped; one across splits is a leak, and the training copy is the one to go."""
    leaked = (pets / "val/dog/0.jpg").read_bytes()
    (pets / "train/dog/copy.jpg").write_bytes(leaked)
    (pets / "train/cat/twin.jpg").write_bytes((pets / "train/cat/1.jpg").read_bytes())
    report = scan_images(pets, workers=1)
    assert [group.kind for group in report.duplicates] == ["exact", "exact"]
    assert [group.paths for group in report.leaks] == [(f"{pets}/train/dog/copy.jpg", f"{pets}/val/dog/0.jpg")]
    assert report.leaks[0].splits == ("train", "val")
    assert not report.leaks[0].crosses_classes
    assert kinds(report, "copy.jpg") == ["leak"]
    assert kinds(report, "twin.jpg") == ["duplicate"]
    assert kinds(report, "0.jpg") == kinds(report, "1.jpg") == []


def test_a_copy_in_two_classes_is_a_conflict_of_labels(pets: Path) -> None:
    """Which label is right can't be known: both files are named."""
    (pets / "train/dog/twin.jpg").write_bytes((pets / "train/cat/1.jpg").read_bytes())
    report = scan_images(pets, workers=1)
    assert report.duplicates[0].classes == ("cat", "dog")
    assert kinds(report, "twin.jpg") == kinds(report, "1.jpg") == ["label_conflict"]


def test_names_of_one_file() -> None:
    """They are no copies of each other, but a real copy is one of theirs; in two classes one label is wrong."""
    layout = Layout({"train": "train", "val": "val", "test": "test"})

    def judge(**files: int) -> dict[str, str]:
        paths = {name.replace("_", "/") + ".jpg": file for name, file in files.items()}
        _, notes = judge_group(Copied("exact", dict.fromkeys(paths, Verdict([]))), layout, "", paths)
        named: dict[str, str] = {}
        for path, note in notes:
            name = path.removesuffix(".jpg").replace("/", "_")
            named[name] = f"{named.get(name, '')} {note.kind}".strip()
        return named

    assert judge(train_cat_a=1, train_cat_b=1) == {}
    assert judge(train_cat_a=1, train_cat_b=1, train_cat_c=2) == {"train_cat_c": "duplicate"}
    assert judge(train_cat_a=1, val_cat_b=1) == {"train_cat_a": "same_file"}
    assert judge(val_cat_a=1, test_cat_b=1) == judge(val_cat_a=1, test_cat_b=2) == {"val_cat_a": "eval_leak"}
    assert judge(train_cat_a=1, train_cat_b=1, val_cat_c=2) == {"train_cat_a": "leak", "train_cat_b": "leak"}
    assert judge(train_cat_a=1, train_cat_b=2, val_cat_c=1) == {
        "train_cat_a": "same_file",
        "train_cat_b": "leak duplicate",
    }
    assert judge(train_cat_a=1, train_dog_b=1) == dict.fromkeys(["train_cat_a", "train_dog_b"], "label_conflict")


def test_a_folder_in_two_classes_through_a_link_is_in_no_doubt(pets: Path, jpegs: list[bytes]) -> None:
    """As in folds that share it; a copy of a file in it is a duplicate, and one in a class of its own in doubt."""
    root = pets.parent / "folds"
    root.mkdir()
    (pets / "train/cat").rename(root / "all")
    for fold in ("a", "b"):
        (root / fold).mkdir()
        (root / fold / "all").symlink_to("../all")
    report = scan_images(root, workers=1)
    assert report.classes == {"a": 4, "all": 4, "b": 4}
    assert (report.findings, report.duplicates) == ([], [])
    (root / "all/copy.jpg").write_bytes((root / "all/1.jpg").read_bytes())
    report = scan_images(root, workers=1)
    assert {finding.kind for finding in report.findings} == {"duplicate"}
    assert not report.duplicates[0].crosses_classes
    assert list(report.quarantine(pets.parent / "aside", ["duplicates"], dry_run=True).files) == ["all/copy.jpg"]
    (root / "all/copy.jpg").rename(root / "b/copy.jpg")
    report = scan_images(root, workers=1)
    assert {finding.kind for finding in report.findings} == {"duplicate"}
    (root / "dog").mkdir()
    (root / "b/copy.jpg").rename(root / "dog/copy.jpg")
    report = scan_images(root, workers=1)
    assert {finding.kind for finding in report.findings} == {"label_conflict"}
    assert report.duplicates[0].classes == ("a", "all", "b", "dog")


def test_of_leaks_only_what_is_in_training_moves(pets: Path) -> None:
    """A copy in validation and test is reported, and moves when that is asked for by its name."""
    data = (pets / "val/cat/5.jpg").read_bytes()
    for name in ("train/cat/a.jpg", "test/cat/b.jpg"):
        (pets / name).parent.mkdir(parents=True, exist_ok=True)
        (pets / name).write_bytes(data)
    report = scan_images(pets, workers=1)
    assert kinds(report, "5.jpg") == ["eval_leak"]
    for kind, path in (("leaks", "train/cat/a.jpg"), ("eval_leaks", "val/cat/5.jpg")):
        assert list(report.quarantine(pets.parent / "aside", kind, dry_run=True).files) == [path]


def test_duplicates_go_from_each_split_and_leaks_stay(pets: Path) -> None:
    """What counts twice in training does so whether or not evaluation has it, too."""
    data = (pets / "val/cat/5.jpg").read_bytes()
    for name in ("train/cat/a.jpg", "train/cat/b.jpg", "val/cat/c.jpg"):
        (pets / name).write_bytes(data)
    report = scan_images(pets, workers=1)
    gone = report.quarantine(pets.parent / "aside", ["duplicates"], dry_run=True)
    assert list(gone.files) == ["train/cat/b.jpg", "val/cat/c.jpg"]
    assert [f.detail for f in report.findings if f.path.endswith("b.jpg")] == [
        f"also at {pets}/train/cat/a.jpg",
        f"also at {pets}/val/cat/5.jpg",
    ]


def test_the_best_of_near_copies_is_kept(pets: Path, photo: Callable[..., Image.Image]) -> None:
    """It is the one with the most pixels, then the least compressed, then the first by name; training gives way."""
    picture, cats = photo(40, (320, 260)), pets / "train/cat"
    picture.resize((160, 130)).save(cats / "a-small.jpg", quality=95)
    picture.save(cats / "b-poor.jpg", quality=40)
    picture.save(cats / "c.jpg", quality=90)
    report = scan_images(pets, workers=1)
    assert kinds(report, "a-small.jpg") == kinds(report, "b-poor.jpg") == ["near_duplicate"]
    assert kinds(report, "c.jpg") == []
    why = {Path(finding.path).name: finding.detail for finding in report.findings}
    assert why["a-small.jpg"].startswith(f"also at {cats / 'c.jpg'}, ")
    assert why["a-small.jpg"].endswith(", which has more pixels")
    assert why["b-poor.jpg"].endswith(", which has more bytes")
    (cats / "0-twin.jpg").write_bytes((cats / "c.jpg").read_bytes())
    assert kinds(scan_images(pets, workers=1), "c.jpg") == ["duplicate"]
    picture.resize((200, 162)).save(pets / "val/cat/d.jpg")
    report = scan_images(pets, workers=1)
    assert kinds(report, "d.jpg") == []
    assert "near_leak" in kinds(report, "c.jpg")


def test_of_a_picture_and_its_crop_the_picture_is_kept(pets: Path, photo: Callable[..., Image.Image]) -> None:
    """It has more pixels; a crop that somebody enlarged has more than it, and is kept."""
    picture, cats = photo(41, (320, 260)), pets / "train/cat"
    picture.save(cats / "whole.jpg", quality=90)
    picture.crop((16, 13, 304, 247)).save(cats / "crop.jpg", quality=90)
    report = scan_images(pets, workers=1)
    gone = report.quarantine(pets.parent / "aside", ["duplicates"], dry_run=True)
    assert list(gone.files) == ["train/cat/crop.jpg"]
    assert "the copy with the most pixels is kept" in " ".join(str(report).split())
    picture.crop((16, 13, 304, 247)).resize((640, 520)).save(cats / "crop.jpg", quality=90)
    gone = scan_images(pets, workers=1).quarantine(pets.parent / "aside", ["duplicates"], dry_run=True)
    assert list(gone.files) == ["train/cat/whole.jpg"]


def test_the_order_of_the_verdicts_does_not_matter(pets: Path, photo: Callable[..., Image.Image]) -> None:
    """The same pairs are found, each as similar, whichever worker was faster."""
    for seed in range(50, 56):
        picture = photo(seed, (320, 260))
        for number, edge in enumerate((0, 6, 12, 18)):
            part = picture.crop((edge, edge, 320 - edge // 2, 260 - edge))
            part.save(pets / f"train/cat/{seed}-{number}.jpg", quality=90 - 20 * number)
    folder = Folder(str(pets))
    paths = list(folder.walk(lambda _path, _note: None, lambda _folder: None))
    lines = check_batch(str(pets), paths, 10.0)

    def groups(lines: Sequence[bytes]) -> list[tuple[str, dict[tuple[str, str], float]]]:
        with Journal(None, folder) as journal, Copies(journal, near_duplicates=True) as copies:
            for line in lines:
                copies.add(*read_line(line), journal.append(line))
            return [(copied.kind, copied.pairs) for copied in copies.groups()]

    first = groups(lines)
    assert len(first) == 6
    for seed in range(4):
        assert sorted(groups(random.Random(seed).sample(lines, len(lines))), key=str) == sorted(first, key=str)


FOLDERS = [f"{split}/{label}" for split in ("train", "val", "test") for label in ("cat", "dog")]
LEAKS = {"leak", "eval_leak"}
PATHS = st.sets(st.builds("{}/{}.jpg".format, st.sampled_from(FOLDERS), st.integers(0, 9)), min_size=2, max_size=8)


@given(PATHS, st.sampled_from(["exact", "near"]))
def test_the_copy_that_scores_rest_on_is_kept(paths: set[str], kind: Literal["exact", "near"]) -> None:
    """Without the leaks, one split is left; without the duplicates, one file in each, unless a label is in doubt."""
    layout = Layout({name: name for name in ("train", "val", "test")})
    group, notes = judge_group(Copied(kind, dict.fromkeys(sorted(paths, reverse=True), Verdict([]))), layout, "pets/")
    assert group.paths == tuple(f"pets/{path}" for path in sorted(paths))
    assert group.crosses_splits == (len({path.partition("/")[0] for path in paths}) > 1)
    assert {note.kind.startswith("near_") for _, note in notes} == {kind == "near"}
    named = {path: {note.kind.removeprefix("near_") for at, note in notes if at == path} for path in paths}
    assert all(path.startswith("train") == ("leak" in named[path]) for path in paths if named[path] & LEAKS)
    kept = [path for path in paths if not named[path] & LEAKS]
    best = max(("train", "val", "test").index(path.partition("/")[0]) for path in paths)
    assert {path.partition("/")[0] for path in kept} == {("train", "val", "test")[best]}
    if group.crosses_classes:
        assert all("label_conflict" in names and "duplicate" not in names for names in named.values())
    else:
        assert sum(not names for names in named.values()) == 1
        left = sorted(path.partition("/")[0] for path in paths if "duplicate" not in named[path])
        assert left == sorted({path.partition("/")[0] for path in paths})


@given(PATHS, st.randoms(use_true_random=False), st.floats(0, 1))
def test_only_copies_of_what_stays_go(paths: set[str], chance: random.Random, share: float) -> None:
    """Whatever is alike: a leak is a copy of a file that is no leak; a duplicate, of one that stays; neither by way."""
    order = sorted(paths)
    alike = {(one, other): 0.95 for at, other in enumerate(order) for one in order[:at] if chance.random() < share}

    def ask(path: str, others: Sequence[str]) -> dict[str, float]:
        return {other: 0.95 for other in others if (min(path, other), max(path, other)) in alike}

    copied = Copied("near", dict.fromkeys(paths, Verdict([])), ask=ask)
    group, notes = judge_group(copied, Layout({name: name for name in ("train", "val", "test")}), "")
    named = {path: {note.kind.removeprefix("near_") for at, note in notes if at == path} for path in paths}
    near = {path: set(ask(path, [*paths - {path}])) for path in paths}
    split, label = ({path: path.split("/")[at] for path in paths} for at in (0, 1))
    assert {pair[:2] for pair in group.pairs} <= alike.keys()
    for path in paths:
        others = {other for other in near[path] if label[other] != label[path]}
        assert ("label_conflict" in named[path]) == bool(others)
        is_leak = split[path] == "train" and any(split[other] != "train" for other in near[path])
        assert ("leak" in named[path]) == is_leak
        is_copied = split[path] == "val" and any(split[other] == "test" for other in near[path])
        assert ("eval_leak" in named[path]) == is_copied
        kept = {other for other in near[path] if split[other] == split[path] and not named[other] - LEAKS}
        if "duplicate" in named[path]:
            assert kept
            assert named[path] & LEAKS or any(not named[other] for other in kept)
        elif "label_conflict" not in named[path]:
            assert not kept


@given(st.lists(st.integers(0, 3), min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_of_folds_one_keeps_each_picture(folds: list[int], chance: random.Random) -> None:
    """Whatever is alike, a leak is a copy of a file in a later fold that is none."""
    paths = [f"fold{fold}/cat/{number}.jpg" for number, fold in enumerate(folds)]
    alike = {(one, other) for one in paths for other in paths if chance.random() < 0.5}

    def ask(path: str, others: Sequence[str]) -> dict[str, float]:
        return {other: 0.95 for other in others if (min(path, other), max(path, other)) in alike}

    layout = Layout({f"fold{fold}": f"fold{fold}" for fold in range(4)})
    _, notes = judge_group(Copied("near", dict.fromkeys(paths, Verdict([])), ask=ask), layout, "")
    leaks = {path: note.detail for path, note in notes if note.kind == "near_leak"}
    for path in paths:
        later = [other for other in ask(path, paths) if other[:5] > path[:5] and other not in leaks]
        assert (path in leaks) == bool(later)
        assert path not in leaks or any(other in leaks[path] for other in later)


def test_the_first_and_the_last_of_a_pan_are_no_copies(pets: Path, photo: Callable[..., Image.Image]) -> None:
    """Frames that are each shifted a little are copies of the next, and only copies of what stays go."""
    picture = photo(42, (640, 260))
    frames = [picture.crop((at * 20, 0, at * 20 + 320, 260)) for at in range(8)]
    for number, frame in enumerate(frames):
        frame.save(pets / f"train/cat/pan{number}.jpg", quality=90)
    report = scan_images(pets, workers=1)
    (group,) = report.duplicates
    ends = {(Path(one).stem, Path(other).stem) for one, other, _ in group.pairs}
    assert len(group.paths) == 8
    assert ("pan0", "pan7") not in ends
    gone = report.quarantine(pets.parent / "aside", ["duplicates"], dry_run=True).files
    left = {f"train/cat/pan{number}.jpg" for number in range(8)} - {*gone}
    assert len(left) > 2
    for path, detail in ((Path(f.path), f.detail) for f in report.findings if f.kind == "near_duplicate"):
        kept = next(one for one in left if one in detail)
        assert (path.stem, Path(kept).stem) in ends or (Path(kept).stem, path.stem) in ends
    frames[7].save(pets / "val/cat/pan.jpg", quality=90)
    report = scan_images(pets, workers=1)
    leaks = list(report.quarantine(pets.parent / "aside", ["leaks"], dry_run=True).files)
    assert "train/cat/pan6.jpg" in leaks
    assert "train/cat/pan0.jpg" not in leaks


def pan(photo: Callable[..., Image.Image], root: Path, *names: str) -> None:
    """Save frames of which each is a copy of the next one, and of no other."""
    picture = photo(42, (640, 260))
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture.crop((number * 20, 0, number * 20 + 320, 260)).save(root / name, quality=90)


def test_kinds_together_leave_a_copy(pets: Path, photo: Callable[..., Image.Image]) -> None:
    """What is to go as a copy of a file that goes as well stays, whether in one call or the next; a list is obeyed."""
    pan(photo, pets, "test/cat/0.jpg", "val/cat/x.jpg", "train/cat/y.jpg")
    report, aside = scan_images(pets, workers=1), pets.parent / "aside"
    both = report.quarantine(aside, ["leaks", "eval_leaks"], dry_run=True)
    assert list(both.files) == ["val/cat/x.jpg"]
    assert both.left == [("train/cat/y.jpg", "no copy of it would stay")]
    keep = report.image_folder_filter(["leaks", "eval_leaks"])
    assert keep(f"{pets}/train/cat/y.jpg")
    assert not keep(f"{pets}/val/cat/x.jpg")
    listed = report.quarantine(aside, only=["val/cat/x.jpg", "train/cat/y.jpg"], dry_run=True)
    assert listed.moved == 2
    assert report.quarantine(aside, "eval_leaks").moved == 1
    assert report.quarantine(aside, "leaks").left == both.left


def test_a_copy_of_what_goes_for_another_reason_stays(pets: Path, photo: Callable[..., Image.Image]) -> None:
    """The better one of two goes because it is CMYK, so the other one is left."""
    picture = photo(40, (320, 260))
    picture.convert("CMYK").save(pets / "train/cat/a.jpg", quality=95)
    picture.resize((160, 130)).save(pets / "train/cat/b.jpg", quality=95)
    report = scan_images(pets, workers=1)
    assert kinds(report, "b.jpg") == ["near_duplicate"]
    gone = report.quarantine(pets.parent / "aside", ["duplicates", "cmyk"], dry_run=True)
    assert list(gone.files) == ["train/cat/a.jpg"]


def test_files_outside_of_the_splits_are_no_leaks_and_have_no_class(pets: Path, jpegs: list[bytes]) -> None:
    """Such a copy is noted: the folder may be a pool, or an evaluation; only the user knows. None of them moves."""
    (pets / "raw/mixed").mkdir(parents=True)
    (pets / "raw/mixed/a.jpg").write_bytes((pets / "train/cat/1.jpg").read_bytes())
    (pets / "raw/b.jpg").write_bytes((pets / "val/cat/5.jpg").read_bytes())
    report = scan_images(pets, workers=1)
    assert {name.rpartition("/")[0] for name in report.classes} == {"train", "val"}
    assert {(Path(f.path).name, f.kind) for f in report.findings} == {
        ("a.jpg", "outside_copy"),
        ("b.jpg", "outside_copy"),
    }
    for family in ("leaks", "eval_leaks", "duplicates", "label_conflicts"):
        assert not report.quarantine(pets.parent / "aside", family, dry_run=True).moved


def test_splits_linked_into_a_folder_beside_them(pets: Path) -> None:
    """The folder's name is no class that both have in common."""
    (pets / "train/dog/copy.jpg").write_bytes((pets / "train/cat/1.jpg").read_bytes())
    for label in ("cat", "dog"):
        (pets / "all").mkdir(exist_ok=True)
        (pets / "train" / label).rename(pets / "all" / f"train-{label}")
        (pets / "train" / label).symlink_to(f"../all/train-{label}")
    report = scan_images(pets, workers=1)
    assert {finding.kind for finding in report.findings} == {"label_conflict"}


def test_calls_one_after_the_other_leave_a_copy(pets: Path, photo: Callable[..., Image.Image]) -> None:
    """What was moved as a copy of a file keeps that file from going as a copy of another."""
    pan(photo, pets, "test/cat/0.jpg", "val/cat/x.jpg", "train/cat/y.jpg")
    report, aside = scan_images(pets, workers=1), pets.parent / "aside"
    assert list(report.quarantine(aside, "leaks").files) == ["train/cat/y.jpg"]
    after = report.quarantine(aside, "eval_leaks")
    assert after.left == [("val/cat/x.jpg", "no other copy of train/cat/y.jpg, which is gone or changed, would stay")]


def test_a_copy_whose_content_was_replaced_is_none(pets: Path) -> None:
    """Size and time may be the same."""
    kept, leak = pets / "val/cat/5.jpg", pets / "train/cat/leak.jpg"
    leak.write_bytes(kept.read_bytes())
    report, state = scan_images(pets, workers=1), kept.stat()
    kept.write_bytes(bytes(100) + kept.read_bytes()[100:])
    os.utime(kept, ns=(state.st_atime_ns, state.st_mtime_ns))
    moved = report.quarantine(pets.parent / "aside", "leaks")
    assert moved.left == [("train/cat/leak.jpg", "no copy of it would stay")]


@pytest.mark.parametrize("comment", [False, True], ids=["exact", "near"])
def test_one_picture_in_many_classes(tmp_path: Path, photo: Callable[..., Image.Image], comment: bool) -> None:
    """The pairs are as many as the files, and a detail doesn't name all classes."""
    picture = photo(43, (64, 48))
    for number in range(40):
        (tmp_path / f"set/c{number:02}").mkdir(parents=True)
        picture.save(tmp_path / f"set/c{number:02}/none.jpg", comment=f"{number}" if comment else "")
    report = scan_images(tmp_path / "set", workers=1)
    (group,) = report.duplicates
    assert len(group.classes) == len(group.paths) == 40
    assert len(group.pairs) < 80
    assert [finding.kind.removeprefix("near_") for finding in report.findings] == ["label_conflict"] * 40
    assert max(len(finding.detail) for finding in report.findings) < 80
