"""The report on paper: text, JSON, CSV, Parquet, HTML, and as a filter."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path

import pytest

from ftkit import ScanReport, scan_images


@pytest.fixture
def report(pets: Path, jpegs: list[bytes]) -> ScanReport:
    """Return the report on a folder with a cut file, a hostile name, a leak and a photo without a suffix."""
    (pets / "train/cat/cut.jpg").write_bytes(jpegs[10][:3000])
    (pets / "train/cat/<script>alert(1)&.jpg").write_bytes(jpegs[10][:4000])
    (pets / "train/cat/nosuffix").write_bytes(jpegs[11])
    (pets / "train/dog/copy.jpg").write_bytes((pets / "val/dog/0.jpg").read_bytes())
    return scan_images(pets, workers=1)


def test_it_reads_well(report: ScanReport) -> None:
    """The text counts each kind and says what it does and what to do."""
    text = str(report)
    assert "14 files, 12 usable images in 2 classes" in text
    assert "2 unusable" in text
    assert "truncated" in text
    assert "fetch it again" in text
    assert "1 across splits" in text
    assert all(len(line) < 140 for line in text.splitlines()[1:])


def test_json_and_csv_hold_every_finding(report: ScanReport, tmp_path: Path) -> None:
    """What was found can be read back."""
    report.to_json(tmp_path / "report.json")
    facts = json.loads((tmp_path / "report.json").read_bytes())
    assert len(facts["findings"]) == len(report.findings) == 4
    assert facts["duplicates"][0]["crosses_splits"] is True
    report.to_csv(tmp_path / "report.csv")
    with (tmp_path / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [finding.path for finding in report.findings]


def test_parquet(report: ScanReport, tmp_path: Path) -> None:
    """The findings as a table, where pyarrow is installed."""
    parquet = pytest.importorskip("pyarrow.parquet")
    report.to_parquet(tmp_path / "report.parquet")
    table = parquet.read_table(tmp_path / "report.parquet")
    assert table.column("kind").to_pylist() == [finding.kind for finding in report.findings]


def test_html_stands_alone_and_escapes(report: ScanReport, tmp_path: Path) -> None:
    """The page holds its pictures, loads nothing, and runs no name as a script."""
    report.to_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 6
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page
    assert 'id="truncated"' in page
    assert "in train and val" in page


def test_image_folder_filter(report: ScanReport, pets: Path) -> None:
    """ImageFolder with the filter takes the sound pictures alone, of the suffixes that it knows."""
    from torchvision.datasets import ImageFolder

    keep = pickle.loads(pickle.dumps(report.image_folder_filter()))
    data = ImageFolder(str(pets / "train"), is_valid_file=keep)
    assert len(data) == 9
    assert all(data[n][0].size == (320, 260) for n in range(len(data)))
    assert not report.image_folder_filter(["leaks"])(f"{pets}/train/dog/copy.jpg")
    assert report.image_folder_filter(["leaks"])(f"{pets}/train/cat/cut.jpg")
