"""Folders: what is looked at, here and behind a URL."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from ftkit import FtkitError, ScanReport, scan_images


def kinds(report: ScanReport, name: str) -> list[str]:
    """Return the kinds found for the file called ``name``."""
    return [finding.kind for finding in report.findings if Path(finding.path).name == name]


def test_places_that_are_no_plain_files(pets: Path) -> None:
    """Links to nothing, loops, pipes and empty folders are named; the scan goes on."""
    cat = pets / "train/cat"
    (cat / "gone.jpg").symlink_to("/nonexistent/x.jpg")
    (cat / "self.jpg").symlink_to("self.jpg")
    (cat / "loop").symlink_to("..")
    os.mkfifo(cat / "pipe.jpg")
    (pets / "train/empty").mkdir()
    (cat / "folder.jpg").mkdir()
    (pets / ".git").mkdir()
    (pets / ".git/index").write_bytes(b"DIRC")
    report = scan_images(pets, workers=1)
    assert kinds(report, "gone.jpg") == kinds(report, "self.jpg") == ["broken_link"]
    assert kinds(report, "loop") == ["link_loop"]
    assert kinds(report, "pipe.jpg") == ["special_file"]
    assert kinds(report, "empty") == ["empty_folder"]
    assert kinds(report, "folder.jpg") == ["empty_folder", "folder_named_image"]
    assert not any(".git" in finding.path for finding in report.findings)
    assert report.images == 10


def test_a_folder_behind_a_url(pets: Path, jpegs: list[bytes]) -> None:
    """Fsspec's files are read by the caller and judged by the workers; the findings' paths open as they stand."""
    fsspec = pytest.importorskip("fsspec")
    (pets / "train/cat/cut.jpg").write_bytes(jpegs[10][:3000])
    (pets / "train/dog/copy.jpg").write_bytes((pets / "val/dog/0.jpg").read_bytes())
    (pets / "train/cat/Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (pets / "train/cat/._1.jpg").write_bytes(jpegs[10])
    memory = fsspec.filesystem("memory")
    memory.put(str(pets), "/scan-test", recursive=True)
    memory.pipe("/scan-test/train/old/manifest-2.json", b'{\n "ftkit": "quarantine", ')
    memory.pipe("/scan-test/train/old/files-2/a.jpg", jpegs[11])
    (pets / "train/old").mkdir()
    (pets / "train/old/manifest-2.json").write_bytes(b'{\n "ftkit": "quarantine", ')
    (pets / "train/old/files-2").mkdir()
    journal = pets.parent / "scan.journal"
    try:
        local = scan_images(pets, workers=2)
        for resume in (None, journal, journal):
            remote = scan_images("memory://scan-test", workers=2, journal=resume)
            assert [(f.kind, f.path.removeprefix("memory://scan-test/")) for f in remote.findings] == [
                (f.kind, f.path.removeprefix(f"{pets}/")) for f in local.findings
            ]
            assert len(remote.leaks) == 1
            assert remote.classes == local.classes
        with fsspec.open(remote.unusable[0].path) as file:
            assert file.read() == jpegs[10][:3000]
        with pytest.raises(FtkitError, match="is not a folder"):
            scan_images("memory://nowhere")
        with pytest.raises(FtkitError, match="image_folder_filter"):
            remote.quarantine(pets.parent / "aside")
        keep = remote.image_folder_filter()
        assert keep("memory://scan-test/train/cat/1.jpg")
        assert not keep("memory://scan-test/train/cat/cut.jpg")
        remote.to_html(pets.parent / "page.html")
        thumbnails = re.findall(r"[>\n]/9j/", (pets.parent / "page.html").read_text())
        assert len(thumbnails) == 3  # JPEG files in Base64, each on a line
    finally:
        memory.rm("/scan-test", recursive=True)


def test_an_unknown_protocol_is_an_error() -> None:
    """What fsspec can't open raises one of ours."""
    pytest.importorskip("fsspec")
    with pytest.raises(FtkitError, match="can't open"):
        scan_images("nosuch://bucket/pets")
