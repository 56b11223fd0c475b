"""Quarantine and restore: what moves, what stays, and that nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ftkit import FtkitError, Quarantine, restore, scan_images
from ftkit._files import lock, open_folder
from ftkit._images import quarantine
from ftkit._images.findings import Finding
from ftkit._images.quarantine import move_away


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


def test_a_folder_with_another_name_is_the_same(dirty: Path) -> None:
    """As one that is mounted twice, or where case does not count."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom ftkit import FtkitError, scan_images\n"
        "root, twin = map(Path, sys.argv[1:])\nreport = scan_images(root, workers=1)\n"
        "calls = report.quarantine, report.repair, report.to_csv, lambda path: scan_images(root, journal=path)\n"
        "for call in calls:\n    try:\n        call(twin / 'new')\n"
        "    except FtkitError as error:\n        print(error)\n"
    )
    twin = dirty.parent / "twin"
    twin.mkdir()
    script = 'mount --bind "$0" "$1" 2> /dev/null || exit 77; exec "$2" -c "$3" "$0" "$1"'
    command = ["unshare", "-rm", "sh", "-c", script, str(dirty), str(twin), sys.executable, code]
    before = snapshot(dirty)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare")
    if done.returncode == 77 or done.stderr.startswith("unshare"):
        pytest.skip("nothing can be mounted here")
    assert done.stderr == ""
    errors = done.stdout.splitlines()
    assert len(errors) == 4
    assert all("inside the data set" in error or "among the images" in error for error in errors)
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
    with pytest.raises(FtkitError, match=r"3 files can be restored, but not all\. 1 can't be found .*page\.jpg"):
        restore(gone.manifest, dry_run=True)
    with pytest.raises(FtkitError, match=r"3 files restored, but not all\. 1 can't be found .*page\.jpg"):
        restore(gone.manifest)
    assert (dirty / "train/cat/cut.jpg").exists()


def test_restore_says_what_the_manifest_does_not_name(dirty: Path) -> None:
    """An entry that was lost leaves its file where it is, and the error says where; what a system left is no such."""
    before = snapshot(dirty)
    gone = scan_images(dirty, workers=1).quarantine(dirty.parent / "aside")
    facts = json.loads(gone.manifest.read_bytes())
    facts["entries"] = [entry for entry in facts["entries"] if not entry["path"].endswith(("page.jpg", "gone.jpg"))]
    gone.manifest.write_text(json.dumps(facts))
    (gone.folder / "Thumbs.db").touch()
    (gone.folder / ".bad.jpg.0123456789ab.ftkit-partial").touch()  # of a quarantine across disks that was killed
    named = r"not all\. The manifest does not name 2 files in .*aside/files: train/cat/gone\.jpg, train/cat/page\.jpg\."
    with pytest.raises(FtkitError, match=f"2 files can be restored, but {named}"):
        restore(gone.manifest, dry_run=True)
    for number in (2, 0):
        with pytest.raises(FtkitError, match=f"{number} files restored, but {named}"):
            restore(gone.manifest if number else dirty.parent / "aside")
    for name in ("page.jpg", "gone.jpg"):
        (gone.folder / "train/cat" / name).rename(dirty / "train/cat" / name)
    assert restore(gone.manifest) == []
    assert snapshot(dirty) == before


def test_two_quarantines_share_a_folder(dirty: Path) -> None:
    """A second one gets a manifest of its own and keeps the first."""
    before = snapshot(dirty)
    first = scan_images(dirty, workers=1).quarantine(dirty.parent / "aside")
    second = scan_images(dirty, workers=1).quarantine(dirty.parent / "aside", kinds=["wrong_suffix"])
    assert second.manifest.name == "manifest-2.json"
    with pytest.raises(FtkitError, match="2 manifests"):
        restore(dirty.parent / "aside")
    restore(second.manifest)
    assert len(restore(dirty.parent / "aside")) == first.moved
    assert snapshot(dirty) == before
    assert restore(dirty.parent / "aside") == []


def test_a_folder_of_which_all_but_one_is_back(dirty: Path) -> None:
    """That one is meant, also if only a folder was taken away; one that can't be read may be, too."""
    before, aside = snapshot(dirty), dirty.parent / "aside"
    files = scan_images(dirty, workers=1).quarantine(aside, kinds=["unusable", "litter"])
    empty = scan_images(dirty, workers=1).quarantine(aside, kinds=["empty_folder"])
    assert (empty.moved, empty.emptied) == (0, ["train/empty"])
    with pytest.raises(FtkitError, match="2 manifests"):
        restore(aside)
    restore(files.manifest)
    assert restore(aside, dry_run=True) == []
    assert restore(aside) == []
    assert snapshot(dirty) == before
    files.folder.symlink_to(files.folder.name)  # nobody can look into it
    empty.folder.mkdir()
    (dirty / "train/empty").rmdir()
    with pytest.raises(FtkitError, match="2 manifests"):
        restore(aside)
    files.folder.unlink()
    assert restore(aside) == []
    (aside / "manifest-3.json").write_bytes(b"{")
    with pytest.raises(FtkitError, match=r"manifest-3\.json is not a quarantine manifest"):
        restore(aside)


@pytest.mark.parametrize("number", ["", "-2"])
def test_what_lies_beside_a_manifest_is_taken_for_it(dirty: Path, number: str) -> None:
    """The error names the manifest."""
    aside = dirty.parent / "aside"
    scan_images(dirty, workers=1).quarantine(aside)
    scan_images(dirty, workers=1).quarantine(aside, kinds=["wrong_suffix"])
    manifest = aside / f"manifest{number}.json"
    for wrong in (manifest.with_suffix(".html"), manifest.with_suffix(""), aside / f"files{number}"):
        with pytest.raises(FtkitError, match=f"Did you mean '{manifest}'?"):
            restore(wrong)
    with pytest.raises(FtkitError, match=r"Did you mean .*manifest\.json"):
        restore(aside / "manifst.json")


def test_a_folder_with_several_manifests_or_none(dirty: Path, jpegs: list[bytes]) -> None:
    """The latest comes first, by its number; where there is none, it is said what to pass."""
    aside, names = dirty.parent / "aside", []
    for number in range(11):
        (dirty / f"train/cat/bad{number}.jpg").write_bytes(jpegs[number][:2000])
        names.insert(0, str(scan_images(dirty, workers=1).quarantine(aside).manifest))
    with pytest.raises(FtkitError, match=re.escape(f"({', '.join(names)}). Pass one, the latest first.")):
        restore(aside)
    (dirty.parent / "nothing").mkdir()
    with pytest.raises(FtkitError, match=r"no manifest in .*Nothing was moved\. Pass the \.manifest of what"):
        restore(dirty.parent / "nothing")


def test_no_quarantine_loses_or_scans_another(dirty: Path) -> None:
    """One below the scanned folder is passed over, and said to be; what lies in a used folder stays."""
    before = snapshot(dirty)
    aside = dirty.parent / "aside"
    first = scan_images(dirty, workers=1).quarantine(aside)
    second_report = scan_images(dirty.parent, workers=1)
    assert [finding.kind for finding in second_report.findings if "aside" in finding.path] == ["quarantine"]
    assert not any("aside" in name for name in second_report.classes)
    (dirty / "train/cat/new.jpg").write_bytes(b"<html>")
    second = scan_images(dirty.parent, workers=1).quarantine(dirty.parent.with_name(dirty.parent.name + "-2"))
    assert second.moved == 1
    assert [path for path, _ in second.left] == ["aside"]
    (first.folder / "train/cat/cut.jpg").rename(first.folder / "kept.jpg")
    (first.folder / "kept.jpg").rename(first.folder / "train/cat/cut.jpg")
    restore(second.manifest)
    (dirty / "train/cat/new.jpg").unlink()
    assert restore(first.manifest)
    assert snapshot(dirty) == before
    first.manifest.unlink()
    first.folder.mkdir()
    (first.folder / "mine.jpg").write_bytes(b"mine")
    third = scan_images(dirty, workers=1).quarantine(aside)
    assert third.manifest.name == "manifest-2.json"
    assert (first.folder / "mine.jpg").read_bytes() == b"mine"


def test_a_quarantine_among_data_sets_hides_nothing_else(dirty: Path) -> None:
    """What was set aside right into the folder above is passed over, the data set beside it is not."""
    first = scan_images(dirty, workers=1).quarantine(dirty.parent)
    report = scan_images(dirty.parent, workers=1)
    assert [f.path for f in report.findings if f.kind == "quarantine"] == [str(first.folder)]
    assert report.images == 12
    assert report.files == 13
    assert list(report.classes) == ["pets"]
    assert len(restore(first.manifest)) == first.moved


def test_a_quarantine_that_can_not_be_begun_leaves_nothing(dirty: Path) -> None:
    """Neither to a file, nor to a URL, which would make a folder of its name."""
    report = scan_images(dirty, workers=1)
    before = snapshot(dirty.parent)
    (dirty.parent / "file").touch()
    for dest in (dirty.parent / "file", dirty.parent / "file/aside"):
        with pytest.raises(FtkitError, match=r"Can't quarantine to .*Nothing was moved"):
            report.quarantine(dest)
    (dirty.parent / "file").unlink()
    for act in (report.quarantine, lambda dest: report.repair(dest=dest)):
        with pytest.raises(FtkitError, match="is a URL"):
            act("memory://aside")
    assert snapshot(dirty.parent) == before
    assert not Path("memory:").exists()


def test_a_quarantine_that_fails_leaves_no_folder(dirty: Path) -> None:
    """It removes those that it made, and no other."""
    resource = pytest.importorskip("resource")
    report = scan_images(dirty, workers=1)
    (dirty.parent / "mine").mkdir()
    before = snapshot(dirty.parent)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as on a disk that is full
    try:
        for dest in ("aside", "mine", "mine/deep/aside"):
            with pytest.raises(FtkitError, match="too large"):
                report.quarantine(dirty.parent / dest)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert snapshot(dirty.parent) == before
    report.quarantine(dirty.parent / "mine")
    assert len(restore(dirty.parent / "mine")) == 4


def test_a_disk_that_is_full_in_the_middle(dirty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fits has moved, what does not is left, and the manifest brings all of it back."""
    resource = pytest.importorskip("resource")
    (dirty / "train/cat/long.jpg").write_bytes(b"text" * 5000)
    before, report = snapshot(dirty), scan_images(dirty, workers=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    show = type(report)._show

    def fill(self: object, *args: object) -> None:
        show(self, *args)
        resource.setrlimit(resource.RLIMIT_FSIZE, (15000, hard))

    def far_away(*_: object) -> None:
        raise OSError(errno.EXDEV, "far away")

    monkeypatch.setattr(type(report), "_show", fill)
    monkeypatch.setattr(Path, "rename", far_away)
    try:
        gone = report.quarantine(dirty.parent / "aside")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert gone.moved == 4
    assert [path for path, _ in gone.left] == ["train/cat/long.jpg"]
    assert "too large" in gone.left[0][1]
    assert len(restore(gone.manifest)) == 4
    assert snapshot(dirty) == before


@pytest.mark.parametrize("refused", ["train", "cat"])
def test_a_disk_that_is_read_only(dirty: Path, monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    """What can be copied to another disk, but not taken away, has not moved, and no manifest says so."""
    before, report = snapshot(dirty), scan_images(dirty, workers=1)
    unlink = Path.unlink

    def far_away(*_: object) -> None:
        raise OSError(errno.EXDEV, "far away")

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.is_relative_to(dirty) and refused in path.parts:
            raise OSError(errno.EROFS, "Read-only file system")
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", far_away)
        patch.setattr(Path, "unlink", refuse)
        gone = report.quarantine(dirty.parent / "aside")
    assert {why for path, why in gone.left if refused in path.split("/")} == {"Read-only file system"}
    assert gone.moved == len(gone.files) == 4 - len(gone.left)
    if gone.manifest:
        there = [path for path in gone.folder.rglob("*") if path.is_file()]
        assert len(there) == len(restore(gone.manifest)) == gone.moved
    assert not (dirty.parent / "aside/files").exists()
    assert snapshot(dirty) == before


def test_a_folder_of_which_nothing_may_be_taken(dirty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others move, and the quarantine has no folder for what did not."""
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.parent.name == "cat":
            raise PermissionError(errno.EACCES, "Permission denied")
        return rename(path, target)

    report = scan_images(dirty, workers=1)
    monkeypatch.setattr(Path, "rename", refuse)
    gone = report.quarantine(dirty.parent / "aside")
    assert {path.split("/")[-2] for path, _ in gone.left} == {"cat"}
    assert gone.moved > 0
    assert [path for path in gone.folder.rglob("*") if path.is_dir() and not any(path.iterdir())] == []


def test_a_disk_that_is_full_as_files_come_back(dirty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit stays in the quarantine, and another restore brings it once there is room."""
    resource = pytest.importorskip("resource")
    (dirty / "train/cat/long.jpg").write_bytes(b"text" * 5000)
    before = snapshot(dirty)
    gone = scan_images(dirty, workers=1).quarantine(dirty.parent / "aside")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def far_away(*_: object) -> None:
        raise OSError(errno.EXDEV, "far away")

    monkeypatch.setattr(Path, "rename", far_away)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15000, hard))
    try:
        with pytest.raises(FtkitError) as error:
            restore(gone.manifest)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(error.value) == (
        f"4 files restored, but not all. 1 can't be moved: {dirty}/train/cat/long.jpg (File too large). "
        f"What is not back is still in {gone.folder}. Free some space, and restore again."
    )
    assert [path.name for path in gone.folder.rglob("*") if path.is_file()] == ["long.jpg"]
    assert not [*dirty.rglob("*-partial")]
    assert len(restore(gone.manifest)) == 1
    assert snapshot(dirty) == before


def test_a_file_replaced_since_the_scan_stays(dirty: Path, jpegs: list[bytes]) -> None:
    """By size, by time, or by its bytes alone: it is not the file that was judged; the report says so."""
    cat = dirty / "train/cat"
    report = scan_images(dirty, workers=1)
    status = (cat / "cut.jpg").stat()
    (cat / "cut.jpg").write_bytes(jpegs[11][:3000])
    os.utime(cat / "cut.jpg", ns=(status.st_atime_ns, status.st_mtime_ns))
    (cat / "page.jpg").write_bytes(jpegs[10])
    (cat / "nowhere.jpg").write_bytes(jpegs[9])  # what gone.jpg leads to
    gone = report.quarantine(dirty.parent / "aside")
    assert dict(gone.left) == dict.fromkeys(
        ["train/cat/cut.jpg", "train/cat/gone.jpg", "train/cat/page.jpg"], "it has changed since the scan"
    )
    assert "train/cat/cut.jpg left in place: it has changed since the scan" in " ".join(str(gone).split())
    assert gone.moved == 1
    assert (cat / "page.jpg").read_bytes() == jpegs[10]
    before = snapshot(dirty)
    restore(gone.manifest)
    assert snapshot(dirty).items() >= before.items()


def test_a_pipe_replaced_since_the_scan_stays(pets: Path, jpegs: list[bytes]) -> None:
    """As every file; and a leak counts as judged like what is unusable."""
    os.mkfifo(pets / "train/cat/pipe.jpg")
    (pets / "train/dog/copy.jpg").write_bytes((pets / "val/dog/0.jpg").read_bytes())
    report = scan_images(pets, workers=1)
    (pets / "train/cat/pipe.jpg").unlink()
    for name in ("cat/pipe.jpg", "dog/copy.jpg"):
        (pets / "train" / name).write_bytes(jpegs[10])
    gone = report.quarantine(pets.parent / "aside", ["unusable", "leaks"])
    assert (gone.moved, len(gone.left)) == (0, 2)


def test_nothing_moves_through_a_linked_folder(pets: Path, jpegs: list[bytes]) -> None:
    """Two splits that link to one folder of a store: it leaks, and the store stays as it is."""
    store = pets.parent / "store"
    store.mkdir()
    (store / "1.jpg").write_bytes(jpegs[10])
    (store / "cut.jpg").write_bytes(jpegs[11][:3000])
    for split in ("train", "val"):
        (pets / split / "bird").symlink_to(store)
    report = scan_images(pets, workers=1)
    assert [(Path(f.path).name, f.kind) for f in report.findings if f.severity == "odd"] == [("1.jpg", "same_file")]
    before = snapshot(pets.parent)
    gone = report.quarantine(pets.parent / "aside", ["leaks", "unusable", "duplicates"])
    assert gone.moved == 0
    assert {why for _, why in gone.left} == {"train/bird is a link", "val/bird is a link"}
    assert {path: what for path, what in snapshot(pets.parent).items() if "aside" not in path} == before


def test_a_file_that_is_found_through_a_linked_folder_too_moves_once(pets: Path, jpegs: list[bytes]) -> None:
    """By its own name; nothing is left then that could be done. One that is listed only by the other name stays."""
    (pets / "train/cat/cut.jpg").write_bytes(jpegs[11][:3000])
    (pets / "linked").symlink_to("train")
    before, report = snapshot(pets), scan_images(pets, workers=1)
    assert len(report.unusable) == 2
    gone = report.quarantine(pets.parent / "aside", only=["linked/cat/cut.jpg"])
    assert (gone.moved, gone.left) == (0, [("linked/cat/cut.jpg", "linked is a link")])
    gone = report.quarantine(pets.parent / "aside")
    assert (list(gone.files), gone.left) == (["train/cat/cut.jpg"], [])
    assert len(restore(gone.manifest)) == 1
    assert snapshot(pets) == before


def test_a_finding_about_the_whole_data_set_moves_nothing(tmp_path: Path, jpegs: list[bytes]) -> None:
    """It is no file of that which could be left."""
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets/1.jpg").write_bytes(jpegs[0])
    report = scan_images(tmp_path / "pets", workers=1)
    assert [finding.kind for finding in report.findings] == ["flat"]
    for choice in ({"kinds": ["odd"]}, {"only": [tmp_path / "pets"]}):
        for dry_run in (True, False):
            gone = report.quarantine(tmp_path / "aside", **choice, dry_run=dry_run)
            assert (gone.moved, gone.left) == (0, [])


def test_a_name_that_no_manifest_can_record_is_left(pets: Path, jpegs: list[bytes]) -> None:
    """It would be a place of its own on another system."""
    if os.sep == "\\":
        pytest.skip("Windows has no such names.")
    (pets / "train/cat/..\\cut.jpg").write_bytes(jpegs[11][:3000])
    gone = scan_images(pets, workers=1).quarantine(pets.parent / "aside")
    assert gone.left == [("train/cat/..\\cut.jpg", "a manifest can't record its name")]


def test_a_link_keeps_its_time_on_the_way_to_another_disk(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There, a new link takes its place."""
    if os.utime not in os.supports_follow_symlinks:
        pytest.skip("No link has a time here.")
    link = pets / "train/cat/gone.jpg"
    link.symlink_to("nowhere.jpg")
    os.utime(link, ns=(10**18, 10**18), follow_symlinks=False)

    def far_away(*_: object) -> None:
        raise OSError(errno.EXDEV, "far away")

    monkeypatch.setattr(Path, "rename", far_away)
    gone = scan_images(pets, workers=1).quarantine(pets.parent / "aside")
    assert len(restore(gone.manifest)) == 1
    assert link.lstat().st_mtime_ns == 10**18


@pytest.mark.parametrize("link", ["symbolic", "hard"])
def test_a_file_is_no_duplicate_of_itself(pets: Path, link: str) -> None:
    """Within a class it is nothing at all, across splits a leak of its own kind; the link goes, its target stays."""
    cat = pets / "train/cat"
    for place, target in ((cat / "0-again.jpg", cat / "1.jpg"), (cat / "leak.jpg", pets / "val/cat/5.jpg")):
        place.symlink_to(target) if link == "symbolic" else os.link(target, place)
    report = scan_images(pets, workers=1)
    assert [(Path(finding.path).name, finding.kind) for finding in report.findings] == [("leak.jpg", "same_file")]
    assert [group.paths for group in report.leaks] == [(f"{cat}/leak.jpg", f"{pets}/val/cat/5.jpg")]
    assert len(report.duplicates) == 1
    before = snapshot(pets)
    gone = report.quarantine(pets.parent / "aside", ["leaks", "duplicates"])
    assert (gone.moved, gone.kinds) == (1, {"same_file": 1})
    assert set(before) - set(snapshot(pets)) == {"train/cat/leak.jpg"}
    restore(gone.manifest)
    assert snapshot(pets) == before


def test_what_a_link_leads_to_stays(pets: Path, jpegs: list[bytes]) -> None:
    """Unless the link goes too: none is left that leads nowhere, over other links neither."""
    cat = pets / "train/cat"
    (cat / "a.jpg").write_bytes(jpegs[10])
    (cat / "b.jpg").write_bytes(jpegs[10])
    (pets / "val/cat/first.jpg").symlink_to("second.jpg")
    (pets / "val/cat/second.jpg").symlink_to("../../train/cat/1.jpg")
    (cat / "cut.jpg").write_bytes(jpegs[11][:3000])
    (cat / "cut-link.jpg").symlink_to("cut.jpg")
    (cat / "cut-link-to-link.jpg").symlink_to("cut-link.jpg")
    (cat / "late-link.jpg").symlink_to("cut-link.jpg")
    (cat / "early.jpg").write_bytes(jpegs[10][:3000])
    (cat / "relinked.jpg").symlink_to("late.jpg")
    for folder in (cat, pets / "val/cat", pets / ".dvc"):
        folder.mkdir(exist_ok=True)
        (folder / "long.jpg").symlink_to("x" * 300)
    (pets / "train/sub").mkdir()
    (pets / "train/sub/cut.jpg").write_bytes(jpegs[11][:2000])
    (pets / ".dvc/kept").symlink_to("../train/cat/b.jpg")
    (pets / ".dvc/sub").symlink_to("../train/sub")
    report = scan_images(pets, workers=1)
    (cat / "relinked.jpg").unlink()
    (cat / "relinked.jpg").symlink_to("early.jpg")
    gone = report.quarantine(pets.parent / "aside", ["leaks", "duplicates", "unusable"])
    left_alone = pets / ".dvc/long.jpg"
    assert [path for path in pets.rglob("*") if path.is_symlink() and not os.path.exists(path)] == [left_alone]
    left = dict(gone.left)
    assert left["train/cat/1.jpg"].endswith(".jpg is a link to it")
    assert left["train/cat/b.jpg"] == ".dvc/kept is a link to it"
    assert not (cat / "cut.jpg").exists()
    assert left["train/cat/early.jpg"] == "train/cat/relinked.jpg is a link to it"
    assert left["train/cat/relinked.jpg"] == "it has changed since the scan"
    assert not [name for name in ("cut-link", "cut-link-to-link", "late-link") if os.path.lexists(cat / f"{name}.jpg")]
    assert (pets / "train/sub").is_dir()


def test_with_a_folder_left_empty_go_the_links_to_it(tmp_path: Path, jpegs: list[bytes]) -> None:
    """A second quarantine has nothing to do, and both together come back: be it a class, or a split."""
    root = tmp_path / "pets"
    for number, name in enumerate(("train/cat", "train/dog", "shared/owl", "real/cat")):
        (root / name).mkdir(parents=True)
        (root / name / "1.jpg").write_bytes(jpegs[number] if number < 2 else b"")
    (root / "deep/in/it").mkdir(parents=True)
    (root / "train/owl").symlink_to("../shared/owl")
    (root / "deep/in/it/owls").symlink_to(root / "train/owl")
    (root / "val").symlink_to("real")
    before = snapshot(root)
    gone = scan_images(root, workers=1).quarantine(tmp_path / "aside")
    assert sorted(os.listdir(root)) == ["train"]
    assert gone.left == []
    assert {path for path, kinds in gone.files.items() if kinds == ["empty_folder"]} == {
        "train/owl", "deep/in/it/owls", "val",
    }  # fmt: skip
    again = scan_images(root, workers=1)
    assert again.findings == []
    assert again.quarantine(tmp_path / "aside").manifest is None
    restore(gone.manifest)
    assert snapshot(root) == before


def test_a_folder_left_empty_stays_if_no_manifest_can_record_a_link_to_it(pets: Path) -> None:
    """What could not come back must not go."""
    for name in ("owl", "crow"):
        (pets / "train" / name).mkdir()
        (pets / "train" / name / "1.jpg").touch()
    (pets / "a\\..\\b").symlink_to("train/owl")
    gone = scan_images(pets, workers=1).quarantine(pets.parent / "aside")
    assert gone.emptied == ["train/crow"]
    assert (pets / "a\\..\\b").is_dir()
    restore(gone.manifest)


def test_a_link_to_a_folder_with_images_stays(pets: Path) -> None:
    """Its name is odd, what it leads to belongs to the data set."""
    (pets / "train/birds.jpg").symlink_to("cat")
    gone = scan_images(pets, workers=1).quarantine(pets.parent / "aside")
    assert (gone.files, gone.left) == (
        {},
        [("train/birds.jpg", "only empty folders move (folder_named_image: rename it)")],
    )


def test_links_that_lead_to_themselves_move_and_come_back(pets: Path) -> None:
    """Such a link holds nothing, and ImageFolder can't list classes beside one; in a class, one may stay."""
    from torchvision.datasets import ImageFolder

    cat = pets / "train/cat"
    (cat / "self.jpg").symlink_to("self.jpg")
    (cat / "there.jpg").symlink_to("back.jpg")
    (cat / "back.jpg").symlink_to("there.jpg")
    (pets / "train/loop").symlink_to("loop")
    (cat / "through").symlink_to("../loop/..")
    before = snapshot(pets)
    report = scan_images(pets, workers=1)
    assert {finding.kind for finding in report.findings} == {"broken_link", "other_file"}
    for dry_run in (True, False):
        gone = report.quarantine(pets.parent / "aside", dry_run=dry_run)
        assert (gone.kinds, gone.left) == ({"broken_link": 4}, [])
    assert [path.name for path in pets.rglob("*") if path.is_symlink()] == ["through"]
    assert len(ImageFolder(pets / "train")) == 8
    assert len(restore(gone.manifest)) == 4
    assert snapshot(pets) == before


def test_a_target_that_leads_to_itself_is_an_error(dirty: Path) -> None:
    """Nothing can be written there."""
    loop, before = dirty.parent / "loop", snapshot(dirty)
    loop.symlink_to("loop")
    report = scan_images(dirty, workers=1)
    for call in (
        lambda: report.quarantine(loop),
        lambda: report.to_csv(loop / "findings.csv"),
        lambda: report.to_html(loop / "page.html"),
        lambda: scan_images(dirty, journal=loop),
        lambda: restore(loop),
    ):
        with pytest.raises(FtkitError, match="loop"):
            call()
    assert report.repair(loop / "copies", ["wrong_suffix"]).failed
    assert snapshot(dirty) == before


def test_a_folder_that_can_not_be_read_is_left(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scan notes it, the quarantine leaves it and says why."""
    (pets / "train/secret").mkdir()
    for name in ("scandir", "listdir"):
        real = getattr(os, name)

        def closed(path: object, real: object = real) -> object:
            if str(path).endswith("secret"):
                raise PermissionError(13, "Permission denied")
            return real(path)

        monkeypatch.setattr(os, name, closed)
    report = scan_images(pets, workers=1)
    assert [(Path(finding.path).name, finding.kind) for finding in report.findings if finding.severity != "odd"] == [
        ("secret", "unreadable")
    ]
    gone = report.quarantine(pets.parent / "aside")
    assert gone.left == [("train/secret", "Permission denied")]
    with pytest.raises(FtkitError, match="Can't read "):
        scan_images(pets / "train/secret")


def test_what_is_no_manifest_is_refused(tmp_path: Path) -> None:
    """A wrong or missing file raises before anything happens."""
    with pytest.raises(FtkitError, match="no manifest"):
        restore(tmp_path / "manifest.json")
    (tmp_path / "manifest.json").write_text('{"a": 1}')
    with pytest.raises(FtkitError, match="not a quarantine manifest"):
        restore(tmp_path / "manifest.json")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_what_a_quarantine_leaves_that_was_killed_before_it_moved_anything(dirty: Path) -> None:
    """The next one clears it away; in between, restore says that nothing was moved."""
    aside = dirty.parent / "aside"
    script = """
import os, sys
from ftkit import scan_images
from ftkit._files import atomic_write
from ftkit._images import gallery
def write(page, *rest):
    with atomic_write(page):
        os.kill(os.getpid(), 9)
gallery.write_gallery = write
scan_images(sys.argv[1], workers=1).quarantine(sys.argv[2])
"""
    before = snapshot(dirty)
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", script, str(dirty), str(aside)], check=False)
        assert done.returncode == -9
        assert len(os.listdir(aside)) == 2
    with pytest.raises(FtkitError, match="before it moves anything"):
        restore(aside)
    assert snapshot(dirty) == before
    (aside / "files-to-do").mkdir()  # somebody's own
    scan_images(dirty, workers=1).quarantine(aside)
    assert sorted(os.listdir(aside)) == ["files", "files-to-do", "manifest.html", "manifest.json"]
    restore(aside)
    assert snapshot(dirty) == before


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_the_page_of_a_quarantine_that_was_killed(dirty: Path) -> None:
    """It goes with the empty folder, however far it had come; a page of somebody's own stays."""
    aside = dirty.parent / "aside"
    script = """
import os, sys
from ftkit import scan_images
from ftkit._images.manifest import Manifest
Manifest.write = lambda self: os.kill(os.getpid(), 9)
scan_images(sys.argv[1], workers=1).quarantine(sys.argv[2])
"""
    subprocess.run([sys.executable, "-c", script, str(dirty), str(aside)], check=False)
    assert sorted(os.listdir(aside)) == ["files", "manifest.html"]
    (aside / "files-3").mkdir()
    report = scan_images(dirty, workers=1)
    report.to_html(aside / "manifest-3.html")
    first = report.quarantine(aside)
    assert sorted(os.listdir(aside)) == ["files", "manifest-3.html", "manifest.html", "manifest.json"]
    restore(first.manifest)
    (aside / "manifest-2.html").write_text("mine")
    assert report.quarantine(aside).manifest.name == "manifest-4.json"
    assert (aside / "manifest-2.html").read_text() == "mine"


def test_a_quarantine_that_is_alive_is_not_cleared_away(tmp_path: Path) -> None:
    """Another one to the same folder waits until it has its manifest."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "bad.jpg").write_text(name)

    def away(name: str, show: Callable[[Path, str, Collection[str]], None]) -> Quarantine:
        finding = Finding(str(tmp_path / name / "bad.jpg"), "damaged", "unusable", "")
        return move_away(str(tmp_path / name), [finding], tmp_path / "aside", {}, show)

    with ThreadPoolExecutor(1) as pool:
        others: list[Future[Quarantine]] = []

        def show(_page: Path, folder: str, _paths: Collection[str]) -> None:
            others.append(pool.submit(away, "two", lambda *_: None))
            time.sleep(0.2)
            assert (tmp_path / "aside" / folder).is_dir()

        first, second = away("one", show), others[0].result()
    assert (first.folder / "bad.jpg").read_text() == "one"
    assert (second.folder / "bad.jpg").read_text() == "two"
    assert first.manifest != second.manifest


SCRIPT = """
import os, sys
from pathlib import Path
from ftkit._images import gallery, quarantine, report
from ftkit._images.findings import Finding

moves, work, kill_at = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
steps = 0
def step(*_):
    global steps
    steps += 1
    if steps == kill_at:
        os.kill(os.getpid(), 9)
move = quarantine._move
unlink = Path.unlink
def stepping(source, target):
    step()
    move(source, target)
quarantine._move = stepping
if sys.argv[4] == "far":  # as between two file systems: copy, then remove
    def rename(self, target):
        raise OSError(quarantine.errno.EXDEV, "far away")
    Path.rename = rename
    def slow(self, *args, **kwargs):
        step()
        unlink(self, *args, **kwargs)
    Path.unlink = slow
gallery.write_gallery = lambda page, *a: Path(page).touch()
if moves:
    names = sorted(str(path) for path in Path(work, "data").rglob("*") if path.name.startswith("bad"))
    found = report.ScanReport(os.path.join(work, "data"), [Finding(name, "damaged", "unusable", "") for name in names])
    found.quarantine(os.path.join(work, "aside"))
else:
    manifests = Path(work, "aside").glob("manifest*.json")
    for manifest in sorted(manifests, key=lambda path: (len(path.name), path), reverse=True):  # the latest first
        quarantine.restore(manifest)
"""


class KilledQuarantine(RuleBasedStateMachine):
    """However often quarantines and restores are killed with -9, a restore in the end brings everything back."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.work = Path(self.folder.name)
        for number in range(3):
            for kind in ("good", "bad"):
                place = self.work / f"data/class{number % 2}/{kind}{number}.jpg"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(f"{kind} {number}".encode() * 50)
                os.utime(place, ns=(10**18 + number, 10**18 + number))
        (self.work / "data/class2").mkdir()
        (self.work / "data/class2/bad.jpg").symlink_to("../class0/good0.jpg")
        self.before = snapshot(self.work / "data")

    def teardown(self) -> None:
        """Restore without a kill, and compare."""
        with self.folder:
            self.run(0, 0, "near")
            assert snapshot(self.work / "data") == self.before

    def run(self, moves: int, kill_at: int, distance: str) -> None:
        """Quarantine or restore in a process of its own that kills itself at a step (0: at none)."""
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(moves), str(self.work), str(kill_at), distance],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode in (0, -9), done.stderr

    @rule(kill_at=st.integers(0, 6), distance=st.sampled_from(["near", "far"]))
    def quarantine(self, kill_at: int, distance: str) -> None:
        """Move what is bad, or what is left of it."""
        self.run(1, kill_at, distance)

    @rule(kill_at=st.integers(0, 6), distance=st.sampled_from(["near", "far"]))
    def restore(self, kill_at: int, distance: str) -> None:
        """Bring back, perhaps not all."""
        self.run(0, kill_at, distance)

    @invariant()
    def no_byte_is_lost(self) -> None:
        """At any moment each content is somewhere, whole."""
        contents = [path.read_bytes() for path in self.work.rglob("*") if path.is_file() and not path.is_symlink()]
        for name, wanted in self.before.items():
            if isinstance(wanted[0], bytes):
                assert wanted[0] in contents, name


TestKilledQuarantine = KilledQuarantine.TestCase
TestKilledQuarantine.settings = settings(
    max_examples=5, stateful_step_count=4, deadline=None, phases=(Phase.explicit, Phase.generate)
)


def test_empty_folders_in_each_other_go_at_once(dirty: Path) -> None:
    """ImageFolder takes the outermost for a class; the next quarantine has nothing to do, and restore finds the one."""
    for name in ("val/z1/z2/z3", "val/z1/z4", "val/dog/z5/z6", "z7/z8"):
        (dirty / name).mkdir(parents=True)
    before, aside = snapshot(dirty), dirty.parent / "aside"
    gone = scan_images(dirty, workers=1).quarantine(aside)
    assert set(gone.emptied) > {"val/z1", "val/dog/z5", "z7", "train/empty"}
    assert not {"val", "val/dog"} & set(gone.emptied)
    assert scan_images(dirty, workers=1).quarantine(aside).manifest is None
    assert len(restore(aside)) == gone.moved
    assert snapshot(dirty) == before


def test_a_folder_that_is_called_an_image_and_is_not_empty(dirty: Path, jpegs: list[bytes]) -> None:
    """It stays, with what to do about it; so does one that was empty when it was scanned."""
    owl = dirty / "train/owl.jpg"
    owl.mkdir()
    (owl / "1.jpg").write_bytes(jpegs[11])
    report = scan_images(dirty, workers=1)
    (dirty / "train/empty/late.txt").touch()
    gone = report.quarantine(dirty.parent / "aside")
    assert gone.left == [
        ("train/empty", "it has changed since the scan"),
        ("train/owl.jpg", "only empty folders move (folder_named_image: rename it)"),
    ]
    owl.rename(owl.with_name("owl"))
    assert scan_images(dirty, workers=1).quarantine(dirty.parent / "aside").left == []


def test_names_that_differ_in_case_or_encoding(dirty: Path, jpegs: list[bytes]) -> None:
    """Each file is its own, moves and comes back as such, and one is a duplicate of the other where it is."""
    cat = dirty / "train/cat"
    for name, data in (("\u00e9.jpg", jpegs[10]), ("e\u0301.jpg", jpegs[10]), ("\u00c9.jpg", jpegs[10][:2000])):
        (cat / name).write_bytes(data)
    if len({"\u00e9.jpg", "e\u0301.jpg", "\u00c9.jpg"} & {path.name for path in cat.iterdir()}) < 3:
        pytest.skip("To this file system, these names are the same.")
    before, report = snapshot(dirty), scan_images(dirty, workers=1)
    gone = report.quarantine(dirty.parent / "aside", ["duplicates", "truncated"])
    assert {"train/cat/\u00e9.jpg", "train/cat/\u00c9.jpg"} <= gone.files.keys()
    assert "train/cat/e\u0301.jpg" not in gone.files
    assert len(restore(gone.manifest)) == gone.moved
    assert snapshot(dirty) == before


def test_folders_that_were_removed_come_back_with_their_times(dirty: Path) -> None:
    """And with what is in them, although that changes a folder's time."""
    for number, name in enumerate(("val/z1/z2", "val/z1", "train/empty", "train/__MACOSX")):
        (dirty / name).mkdir(parents=True, exist_ok=True)
        os.utime(dirty / name, ns=(10**18, 10**18 + number))
    gone = scan_images(dirty, workers=1).quarantine(dirty.parent / "aside")
    restore(gone.manifest)
    times = {name: (dirty / name).stat().st_mtime_ns - 10**18 for name in gone.emptied}
    assert times == {"val/z1/z2": 0, "val/z1": 1, "train/empty": 2, "train/__MACOSX": 3}


def test_nothing_to_move_writes_nothing(dirty: Path) -> None:
    """No manifest that would bring back nothing; and what has gone by now isn't left."""
    report = scan_images(dirty, workers=1)
    gone = report.quarantine(dirty.parent / "none", kinds=["cmyk"])
    assert (gone.moved, gone.manifest, gone.gallery) == (0, None, None)
    assert "0 files moved" in str(gone)
    assert "manifest" not in str(gone)
    report.quarantine(dirty.parent / "aside")
    again = report.quarantine(dirty.parent / "none")
    assert again.manifest is None
    assert {why for _, why in again.left} == {"gone already"}
    assert "left in place" not in str(again)
    assert not (dirty.parent / "none").exists()


def test_a_dry_run_says_what_would_move_and_changes_nothing(dirty: Path) -> None:
    """The same files, kinds and folders as the run itself; so for a restore."""
    report = scan_images(dirty, workers=1)
    (dirty / "train/cat/page.jpg").write_bytes(b"another page")
    before = snapshot(dirty.parent)
    plan = report.quarantine(dirty.parent / "aside", dry_run=True)
    assert snapshot(dirty.parent) == before
    assert (plan.dry_run, plan.manifest) == (True, None)
    assert "3 files would be moved" in str(plan)
    assert "train/cat/cut.jpg" in str(plan)
    gone = report.quarantine(dirty.parent / "aside")
    assert (gone.files, gone.kinds, gone.moved) == (plan.files, plan.kinds, plan.moved)
    assert (gone.emptied, gone.left) == (plan.emptied, plan.left)
    during = snapshot(dirty.parent)
    planned = restore(gone.manifest, dry_run=True)
    assert snapshot(dirty.parent) == during
    assert restore(gone.manifest) == planned
    assert restore(gone.folder.parent / "manifest.json", dry_run=True) == []


def test_a_data_set_that_has_moved_is_an_error(dirty: Path) -> None:
    """Not a list of thousands of files that are gone."""
    report = scan_images(dirty, workers=1)
    dirty.rename(dirty.parent / "elsewhere")
    for call in (report.quarantine, report.repair):
        with pytest.raises(FtkitError, match="scan it where it is now"):
            call(dirty.parent / "aside")
    assert [path.name for path in dirty.parent.iterdir()] == ["elsewhere"]


def test_two_quarantines_at_once(dirty: Path, tmp_path: Path) -> None:
    """Each manifest lists what is in its own folder, so that both restore in any order."""
    before = snapshot(dirty)
    code = (
        "import sys\nfrom ftkit import scan_images\n"
        "report = scan_images(sys.argv[1], workers=1)\nprint('ready', flush=True)\ninput()\n"
        "gone = report.quarantine(sys.argv[2])\nprint(gone.moved, gone.manifest)\n"
    )
    command = [sys.executable, "-c", code, str(dirty), str(tmp_path / "aside")]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for one in both:
        assert one.stdout
        assert one.stdout.readline() == "ready\n"
    for one in both:
        assert one.stdin
        one.stdin.write("\n")
        one.stdin.flush()
    said = [one.communicate(timeout=60)[0].split(" ", 1) for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert sum(int(moved) for moved, _ in said) == 4
    for moved, manifest in said:
        if manifest != "None\n" or int(moved):
            assert len(restore(manifest.strip())) == int(moved)
    assert snapshot(dirty) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
def test_a_process_that_was_forked_meanwhile_holds_up_no_other_quarantine(tmp_path: Path) -> None:
    """However long it lives."""
    reading, writing = os.pipe()
    with quarantine._alone(tmp_path):
        child = os.fork()
        if not child:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
    descriptor = open_folder(tmp_path)
    assert lock(descriptor)
    for one in (descriptor, reading, writing):
        os.close(one)
    os.waitpid(child, 0)


@pytest.mark.parametrize("step", ["_is_there", "_move"])
def test_two_restores_at_once(dirty: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """What another process brings back between a look at a file and its move is back, and no failure."""
    before = snapshot(dirty)
    manifest = scan_images(dirty, workers=1).quarantine(dirty.parent / "aside").manifest
    assert manifest
    plain = getattr(quarantine, step)
    others: list[list[str]] = []

    def be_slow(*args: object) -> object:
        seen = plain(*args) if step == "_is_there" else None
        if not others:
            others.append([])
            others[0] = restore(manifest)
        return seen if step == "_is_there" else plain(*args)

    monkeypatch.setattr(quarantine, step, be_slow)
    assert restore(manifest) == []
    assert len(others[0]) == 4
    assert snapshot(dirty) == before


def test_one_that_comes_too_late_leaves_nothing(dirty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process has moved all of it between the plan and the first move."""
    first, second = (scan_images(dirty, workers=1) for _ in range(2))
    show = second._show

    def be_slow(*args: object) -> None:
        show(*args)
        first.quarantine(dirty.parent / "first")

    monkeypatch.setattr(type(second), "_show", lambda self, *args: be_slow(*args) if self is second else show(*args))
    late = second.quarantine(dirty.parent / "second")
    assert (late.moved, late.manifest, late.gallery) == (0, None, None)
    assert {why for _, why in late.left} == {"gone already"}
    assert not (dirty.parent / "second").exists()
    assert len(restore(dirty.parent / "first")) == 4


def test_a_leak_in_a_folder_that_splits_share_by_links_stays(jpegs: list[bytes], tmp_path: Path) -> None:
    """Moved by its own name, it would be gone from the split that keeps its copy; what is broken goes."""
    root = tmp_path / "pets"
    for number, name in enumerate(("pool/p0/ant/0.jpg", "pool/p0/ant/1.jpg", "pool/p1/ant/2.jpg")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpegs[number])
    (root / "pool/p1/ant/copy.jpg").write_bytes(jpegs[0])
    (root / "pool/p1/ant/cut.jpg").write_bytes(jpegs[3][:500])
    (root / "train").symlink_to("pool/p0")
    (root / "val").symlink_to("pool/p1")
    report = scan_images(root, workers=1)
    moved = report.quarantine(tmp_path / "aside", kinds=["leaks"])
    assert (root / "val/ant/copy.jpg").exists()
    assert (root / "train/ant/0.jpg").exists()
    assert any("is a link to a folder around it" in why for _, why in moved.left)
    assert not report.quarantine(tmp_path / "aside", kinds=["duplicates"]).moved
    assert report.quarantine(tmp_path / "aside").moved == 1
    assert not (root / "pool/p1/ant/cut.jpg").exists()


def test_with_a_link_that_stays_stays_what_it_leads_to(jpegs: list[bytes], tmp_path: Path) -> None:
    """Here a leak, by a link in a folder that another split links to."""
    root = tmp_path / "pets"
    files = {
        "train/ant/0.jpg": 0,
        "train/bee/1.jpg": 1,
        "train/bee/2.jpg": 2,
        "val/ant/3.jpg": 3,
        "val/bee/copy.jpg": 1,
    }
    for name, number in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpegs[number])
    (root / "train/ant/link.jpg").symlink_to("../bee/1.jpg")
    (root / "val/shared").symlink_to("../train/ant")
    moved = scan_images(root, workers=1).quarantine(tmp_path / "aside", kinds=["leaks"])
    assert ("train/bee/1.jpg", "train/ant/link.jpg is a link to it") in moved.left
    assert (root / "train/ant/link.jpg").exists()


@pytest.mark.parametrize(("kinds", "stays"), [("leaks", True), ("label_conflicts", True), ("duplicates", False)])
def test_a_link_to_a_file_in_a_folder_that_others_link_to_stays(
    jpegs: list[bytes], tmp_path: Path, kinds: str, stays: bool
) -> None:
    """As a file does: it would go from all of them. What counts twice goes, since they all keep the other."""
    root = tmp_path / "pets"
    copy = {"leaks": "val/ant/copy.jpg", "duplicates": "train/ant/copy.jpg", "label_conflicts": "train/bee/copy.jpg"}
    files = {"train/ant/0.jpg": 0, "train/bee/1.jpg": 1, "val/ant/2.jpg": 2, "val/bee/3.jpg": 3, copy[kinds]: 4}
    for name, number in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpegs[number])
    (tmp_path / "4.jpg").write_bytes(jpegs[4])
    (root / "train/ant/link.jpg").symlink_to(tmp_path / "4.jpg")
    (root / "train/ant/cut.jpg").write_bytes(jpegs[5][:500])
    (root / "more").mkdir()
    (root / "more/shared").symlink_to("../train/ant")
    moved = scan_images(root, workers=1).quarantine(tmp_path / "aside", kinds=[kinds, "truncated"])
    assert (root / "train/ant/link.jpg").exists() == stays
    assert not (root / "train/ant/cut.jpg").exists()
    why = "more/shared is a link to a folder around it"
    assert [path for path, reason in moved.left if reason == why] == ["train/ant/link.jpg"] * stays
