"""The journal: a scan goes on where it was."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from ftkit import FtkitError, scan_images
from ftkit._images import folders
from ftkit._images.folders import open_folder
from ftkit._images.journal import Journal
from ftkit._images.verdict import Note, Verdict, read_line, write_line


def test_a_scan_goes_on_from_its_journal(pets: Path, jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Known files are not read again; changed and new ones are; a torn last line is no harm."""
    journal = pets.parent / "scan.journal"
    first = scan_images(pets, workers=1, resume=journal)
    with journal.open("ab") as file:
        file.write(b'["train/cat/half')
    (pets / "train/cat/1.jpg").write_bytes(jpegs[10][:3000])
    (pets / "train/cat/new.jpg").write_bytes(jpegs[11])
    asked: list[str] = []
    check = folders.check_batch
    monkeypatch.setattr(
        folders, "check_batch", lambda root, paths, timeout: asked.extend(paths) or check(root, paths, timeout)
    )
    second = scan_images(pets, workers=1, resume=journal)
    assert sorted(asked) == ["train/cat/1.jpg", "train/cat/new.jpg"]
    assert second.to_dict() | {"seconds": 0} == scan_images(pets, workers=1).to_dict() | {"seconds": 0}
    assert (first.images, second.images) == (10, 10)
    asked.clear()
    assert scan_images(pets, workers=1, resume=journal).findings == second.findings
    assert asked == []


def test_a_killed_scan_goes_on(pets: Path, jpegs: list[bytes]) -> None:
    """What a killed process had found out is not lost."""
    for number in range(300):
        (pets / f"train/cat/copy{number}.jpg").write_bytes(jpegs[number % 12])
    journal = pets.parent / "scan.journal"
    script = f"from ftkit import scan_images; scan_images({str(pets)!r}, workers=1, resume={str(journal)!r})"
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 30
    while (not journal.exists() or journal.read_bytes().count(b"\n") < 40) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait()
    lines = journal.read_bytes().count(b"\n")
    report = scan_images(pets, workers=1, resume=journal)
    assert lines >= 40
    assert report.to_dict() | {"seconds": 0} == scan_images(pets, workers=1).to_dict() | {"seconds": 0}


def test_a_journal_of_something_else_is_left_alone(pets: Path) -> None:
    """A file that is no journal, or one of another folder, is neither used nor touched."""
    other = pets.parent / "notes.txt"
    other.write_text("dear diary\n")
    with pytest.raises(FtkitError, match="something else"):
        scan_images(pets, workers=1, resume=other)
    assert other.read_text() == "dear diary\n"
    journal = pets.parent / "scan.journal"
    scan_images(pets / "train", workers=1, resume=journal)
    with pytest.raises(FtkitError, match="holds the scan of"):
        scan_images(pets, workers=1, resume=journal)
    with pytest.raises(FtkitError, match="among the images"):
        scan_images(pets, workers=1, resume=pets / "scan.journal")


def test_what_may_pass_is_looked_at_again(pets: Path) -> None:
    """A verdict counts as long as the file stays as it is, but for one that may come out otherwise at the next try."""
    journal, folder = pets.parent / "scan.journal", open_folder(pets)
    paths = ["train/cat/1.jpg", "train/cat/3.jpg", "train/dog/2.jpg"]
    kinds = ["truncated", "timeout", "cmyk"]
    with Journal(journal, folder) as first:
        for path, kind in zip(paths, kinds, strict=True):
            first.append(write_line(path, Verdict([Note(kind, "")], folder.stamp(path)).to_json()))
    (pets / paths[2]).write_bytes(b"changed")
    with Journal(journal, folder) as second:
        line, place = second.recall(paths[0]) or (b"", 0)
        assert read_line(line)[0] == second.read(place)[0] == paths[0]
        assert second.recall(paths[1]) is second.recall(paths[2]) is second.recall("train/cat/5.jpg") is None
