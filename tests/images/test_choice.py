"""A list of paths: what it may look like, and what a quarantine and a repair make of it."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from ftkit import FtkitError, ScanReport, scan_images

NAMES = [
    "cut.jpg", "two\nlines.jpg", " spaces .jpg", '"quoted".jpg', "tab\t.jpg", "a'b\\c.jpg", "사진.jpg", "#1 %20.jpg",
    "feed\x0c.jpg", "line\u2028.jpg", os.fsdecode(b"\xb0\xb3.jpg"),
]  # fmt: skip


@pytest.fixture
def report(pets: Path, jpegs: list[bytes]) -> ScanReport:
    """Return the report on a folder with cut files of many names, and a copy."""
    for number, name in enumerate(NAMES):
        (pets / "train/cat" / name).write_bytes(jpegs[10][: 3000 + number])
    (pets / "train/dog/copy.jpg").write_bytes((pets / "val/dog/0.jpg").read_bytes())
    (pets / "train/dog/1.png").write_bytes(jpegs[11])
    return scan_images(pets, workers=1)


def test_every_name_in_every_way(report: ScanReport, pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to the data set, absolute, from here, through a link, with dots, as bytes and as paths."""
    link = pets.with_name("link")
    link.symlink_to(pets)
    monkeypatch.chdir(pets / "val")
    for name in NAMES:
        path = pets / "train/cat" / name
        for entry in (
            f"train/cat/{name}", f"./train//cat/../cat/{name}", str(path), path, os.fsencode(path),
            link / "train/cat" / name, Path("../train/cat", name),
        ):  # fmt: skip
            found = report.quarantine(pets.parent / "aside", only=[entry], dry_run=True)
            assert list(found.files) == [f"train/cat/{name}"], entry
    for entry in (r"train\cat\cut.jpg", r".\train\cat\cut.jpg"):
        assert report.quarantine(pets.parent / "aside", only=[entry], dry_run=True).moved == 1


def as_saved(name: str) -> str:
    """Return what the page writes: a JSON string for what a line can't hold."""
    return name if name.isprintable() and name == name.strip() and not name.startswith('"') else json.dumps(name)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_list_in_a_file(report: ScanReport, pets: Path, tmp_path: Path, encoding: str, end: str) -> None:
    """As the page saves it, and as editors save it again: with a mark, other line ends, empty lines, repeated."""
    lines = [as_saved(f"train/cat/{name}") for name in NAMES]
    (tmp_path / "list.txt").write_bytes(end.join(["", *lines, lines[0], ""]).encode(encoding))
    found = report.quarantine(tmp_path / "aside", only=tmp_path / "list.txt", dry_run=True)
    assert set(found.files) == {f"train/cat/{name}" for name in NAMES}
    assert report.quarantine(tmp_path / "aside", only=str(tmp_path / "list.txt"), dry_run=True).files == found.files


def test_a_list_of_raw_bytes(report: ScanReport, tmp_path: Path) -> None:
    """As ``find`` prints it."""
    (tmp_path / "list.txt").write_bytes(b"train/cat/\xb0\xb3.jpg\n")
    found = report.quarantine(tmp_path / "aside", only=tmp_path / "list.txt", dry_run=True)
    assert list(found.files) == [os.fsdecode(b"train/cat/\xb0\xb3.jpg")]


def test_what_is_listed_moves_whatever_was_found(report: ScanReport, pets: Path, tmp_path: Path) -> None:
    """Odd files, the copy that stays by default; with kinds, only those of them."""
    listed = ["val/dog/0.jpg", "train/dog/1.png", "train/cat/cut.jpg"]
    kinds = report.quarantine(tmp_path / "aside", ["odd"], only=listed, dry_run=True).files
    assert kinds == {"val/dog/0.jpg": ["leak"], "train/dog/1.png": ["wrong_suffix"]}
    gone = report.quarantine(tmp_path / "aside", only=listed)
    assert sorted(gone.files) == sorted(listed)
    assert not (pets / "val/dog/0.jpg").exists()


def test_a_changed_copy_stays(report: ScanReport, pets: Path, tmp_path: Path) -> None:
    """Also one without a finding of its own."""
    (pets / "val/dog/0.jpg").write_bytes(b"another picture")
    gone = report.quarantine(tmp_path / "aside", only=["val/dog/0.jpg"])
    assert gone.left == [("val/dog/0.jpg", "it has changed since the scan")]


@pytest.mark.parametrize(
    ("only", "message"),
    [
        (["train/cat/cot.jpg"], r"no finding about 'train/cat/cot.jpg'\. Did you mean 'train/cat/cut.jpg'"),
        (["cut.jpg", "x", "y"], r"'cut.jpg' \(and 2 more paths\)\. Did you mean 'train/cat/cut.jpg'"),
        (["train/cat/1.jpg", "y"], r"no finding about 'train/cat/1.jpg' \(and 1 more path\)"),
        (["/etc/passwd"], "no finding about '/etc/passwd'"),
        (["../pets2/cut.jpg"], "no finding about"),
        ([3], "3 is not a path"),
        (3, "must be a list of paths, or the file that lists them, not 3"),
        ("missing.txt", r"Can't read the list missing\.txt: No such file"),
        ("", "is empty"),
        ([], "only lists no path"),
        ([" ", "\n"], "only lists no path"),
        (["val/cat/5.jpg"], r"The file is in .*pets, and nothing was found about it"),
        ("train/cat/cut.jpg", r"is a file of the data set, not a list. Pass only=\['train/cat/cut.jpg'\]"),
        (["# the bad ones", "train/cat/cut.jpg"], "a list has no comments"),
        (["path,kind,severity,detail", "train/cat/cut.jpg,truncated"], "the head of a table: pass the paths in it"),
        (["train/cat/fead.jpg"], "Did you mean 'train/cat/"),
    ],
    ids=str,
)
def test_a_mistake_is_an_error_and_moves_nothing(
    report: ScanReport, pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only: object, message: str
) -> None:
    """The closest name is offered."""
    monkeypatch.chdir(tmp_path)
    for call in (report.quarantine, report.repair):
        with pytest.raises(FtkitError, match=message):
            call(tmp_path / "aside", only=only)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pets"]


def test_an_image_is_no_list(report: ScanReport, pets: Path, tmp_path: Path) -> None:
    """Its path alone, where a list is due, is an error that says so; so are a folder and other binary files."""
    for image in (pets / "train/cat/cut.jpg", pets / "train/cat/1.jpg"):
        with pytest.raises(FtkitError, match=r"is not a list of paths.*only=\[\.\.\.\]"):
            report.quarantine(tmp_path / "aside", only=image)
    with pytest.raises(FtkitError, match="Is a directory"):
        report.quarantine(tmp_path / "aside", only=pets)


def test_repair_takes_a_list(report: ScanReport, pets: Path, tmp_path: Path) -> None:
    """And says what of it can't be mended; a dry run says the same and writes nothing."""
    listed = ["train/dog/1.png", "train/cat/cut.jpg"]
    plan = report.repair(tmp_path / "mended", only=listed, dry_run=True)
    assert plan.made == {str(pets / "train/dog/1.png"): str(tmp_path / "mended/train/dog/1.jpg")}
    assert list(plan.failed) == [str(pets / "train/cat/cut.jpg")]
    assert "1 repaired copy would be written" in str(plan)
    assert not (tmp_path / "mended").exists()
    made = report.repair(tmp_path / "mended", only=listed)
    assert (made.made, made.failed) == (plan.made, plan.failed)
    again = report.repair(tmp_path / "mended", only=listed[:1], dry_run=True)
    assert "already exists" in again.failed[str(pets / "train/dog/1.png")]


def test_what_moved_before_is_gone_already(report: ScanReport, pets: Path, tmp_path: Path) -> None:
    """The same list again, after a part of it or all has moved, with the old report or a new one."""
    listed = ["train/cat/cut.jpg", "train/dog/1.png"]
    report.quarantine(tmp_path / "aside", only=listed[:1])
    again = scan_images(pets, workers=1)
    with pytest.raises(FtkitError, match="no finding about"):  # that was another quarantine
        again.quarantine(tmp_path / "other", only=listed)
    rest = again.quarantine(tmp_path / "aside", only=listed)
    assert (list(rest.files), rest.left) == (["train/dog/1.png"], [("train/cat/cut.jpg", "gone already")])
    for known in (report, again, scan_images(pets, workers=1)):
        nothing = known.quarantine(tmp_path / "aside", only=listed)
        assert (nothing.moved, nothing.left) == (0, [(path, "gone already") for path in listed])


def test_no_kinds_choose_nothing(report: ScanReport, tmp_path: Path) -> None:
    """That is an error, not a success that moved nothing; so is an empty list in a file."""
    (tmp_path / "list.txt").write_text("\n  \n")
    for call in (report.quarantine, report.repair):
        with pytest.raises(FtkitError, match="kinds is empty"):
            call(tmp_path / "aside", kinds=[])
        with pytest.raises(FtkitError, match="only lists no path"):
            call(tmp_path / "aside", only=tmp_path / "list.txt")
    with pytest.raises(FtkitError, match="kinds is empty"):
        report.image_folder_filter([])


@pytest.mark.parametrize("form", ["csv", "parquet", "json", "table csv", "table parquet"])
def test_a_name_that_is_not_utf8_is_found_again(pets: Path, jpegs: list[bytes], tmp_path: Path, form: str) -> None:
    """Whichever file its path was read from."""
    sound, cut = (os.fsdecode(name) for name in (b"\xb1 \xed\x95\x9c.jpg", b"\xb0\xb3\n.jpg"))
    (pets / "train/cat" / sound).write_bytes(jpegs[10])
    (pets / "train/cat" / cut).write_bytes(jpegs[11][:3000])
    report, file = scan_images(pets, workers=1), tmp_path / "report"
    source = report.table if form.startswith("table") else report
    kind = form.rpartition(" ")[2]
    getattr(source, f"to_{kind}")(file)
    if kind == "csv":
        with file.open(newline="", encoding="utf-8") as lines:
            paths = [row["path"] for row in csv.DictReader(lines)]
    elif kind == "parquet":
        paths = pytest.importorskip("pyarrow.parquet").read_table(file).column("path").to_pylist()
    else:
        paths = [finding["path"] for finding in json.loads(file.read_bytes())["findings"]]
    hers = dict.fromkeys(path for path in paths if "udcb" in ascii(path))
    found = [list(report.quarantine(tmp_path / "aside", only=[path], dry_run=True).files) for path in hers]
    wanted = [sound] if form.startswith("table") else [cut, sound]
    assert found == [[f"train/cat/{name}"] for name in wanted]


def test_an_escaped_name_that_is_another_files_is_refused(pets: Path, jpegs: list[bytes], tmp_path: Path) -> None:
    """Which of the two is meant can't be told."""
    names = [os.fsdecode(b"\xb0.jpg"), r"\udcb0.jpg"]
    for number, name in enumerate(names):
        (pets / "train/cat" / name).write_bytes(jpegs[10][: 3000 + number])
    report = scan_images(pets, workers=1)
    with pytest.raises(FtkitError, match="stands for two files"):
        report.quarantine(tmp_path / "aside", only=[rf"train/cat/{names[1]}"])
    gone = report.quarantine(tmp_path / "aside", only=[pets / "train/cat" / names[0]])
    assert list(gone.files) == [f"train/cat/{names[0]}"]


@pytest.mark.parametrize(("other", "kind"), [("train", "leak"), ("test", "eval_leak"), ("val", "duplicate")])
def test_the_copy_that_stays_by_default_moves_as_what_the_pair_is(pets: Path, other: str, kind: str) -> None:
    """The report calls it a leak across splits, and a duplicate in one."""
    kept = "test/cat/b.jpg" if other == "test" else "val/cat/5.jpg"
    copy = pets / (f"{other}/cat/a.jpg" if other != "test" else kept)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes((pets / "val/cat/5.jpg").read_bytes())
    report = scan_images(pets, workers=1)
    assert f"{pets}/{kept}" not in {finding.path for finding in report.findings}
    gone = report.quarantine(pets.parent / "aside", only=[kept], dry_run=True)
    assert gone.files == {kept: [kind]}


def test_the_copy_that_stays_moves_as_a_leak_between_folds(pets: Path) -> None:
    """As its copy in another fold does: any may be trained on."""
    for old, new in (("train", "fold0"), ("val", "fold1")):
        (pets / old).rename(pets / new)
    (pets / "fold0/dog/copy.jpg").write_bytes((pets / "fold1/dog/0.jpg").read_bytes())
    report = scan_images(pets, workers=1, splits=["fold0", "fold1"])
    gone = report.quarantine(pets.parent / "aside", only=["fold1/dog/0.jpg"], dry_run=True)
    assert gone.files == {"fold1/dog/0.jpg": ["leak"]}
