"""Copies: duplicates, leaks and conflicts of labels."""

from __future__ import annotations

from pathlib import Path

from ftkit import ScanReport, scan_images


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
