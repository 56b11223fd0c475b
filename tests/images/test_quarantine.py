"""Quarantine and restore: what moves, what stays, and that nothing is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

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


SCRIPT = """
import os, sys
from pathlib import Path
from ftkit._images import quarantine, report
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
report.write_gallery = lambda *a: None
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
