"""The report on paper: text, JSON, CSV, Parquet, HTML, and as a filter."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
from pathlib import Path

import pytest

from ftkit import FtkitError, ScanReport, restore, scan_images
from ftkit.errors import FileWriteError


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
    text = " ".join(str(report).split())
    assert "14 files, 12 usable images in 2 classes" in text
    assert "2 unusable" in text
    assert "truncated" in text
    assert "fetch it again" in text
    assert "1 across splits" in text


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


def test_image_folder_filter(report: ScanReport, pets: Path) -> None:
    """ImageFolder with the filter takes the sound pictures alone, of the suffixes that it knows."""
    from torchvision.datasets import ImageFolder

    keep = pickle.loads(pickle.dumps(report.image_folder_filter()))
    data = ImageFolder(str(pets / "train"), is_valid_file=keep)
    assert len(data) == 9
    assert all(data[n][0].size == (320, 260) for n in range(len(data)))
    assert not report.image_folder_filter(["leaks"])(f"{pets}/train/dog/copy.jpg")
    assert report.image_folder_filter(["leaks"])(f"{pets}/train/cat/cut.jpg")


@pytest.mark.parametrize("is_scanned_by_link", [False, True])
def test_the_filter_knows_the_folder_by_any_name(
    pets: Path, jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch, is_scanned_by_link: bool
) -> None:
    """Through a link, by a relative path, with dots; a link inside counts as a folder; elsewhere it is an error."""
    (pets / "train/cat/cut.jpg").write_bytes(jpegs[10][:3000])
    (pets / "train/again").symlink_to("cat")
    link = pets.with_name("link")
    link.symlink_to(pets)
    report = scan_images(link if is_scanned_by_link else pets, workers=1, near_duplicates=False)
    keep = report.image_folder_filter(["unusable"])
    monkeypatch.chdir(pets / "train")
    for root in (pets, link, pets / "val/..", Path(".."), Path("../../link")):
        assert not keep(f"{root}/train/cat/cut.jpg")
        assert not keep(f"{root}/train/again/cut.jpg")
        assert keep(f"{root}/train/cat/1.jpg")
    assert not keep("cat/cut.jpg")
    with pytest.raises(FtkitError, match="the folder that was scanned"):
        keep(f"{pets.parent}/other/train/cat/cut.jpg")


@pytest.mark.parametrize("method", ["to_json", "to_csv", "to_parquet", "to_html"])
def test_a_report_is_written_to_this_machine(
    report: ScanReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """A URL is an error, and no folder of its name."""
    monkeypatch.chdir(tmp_path)
    for target in ("memory://there/report", Path("s3://bucket/report")):
        with pytest.raises(FileWriteError, match="is a URL"):
            getattr(report, method)(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pets"]


def test_a_report_is_about_the_folder_that_was_scanned(
    pets: Path, jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Wherever the caller goes afterwards, and whatever is called like that there."""
    (pets / "train/cat/cut.jpg").write_bytes(jpegs[10][:3000])
    (pets / "train/cat/photo.png").write_bytes(jpegs[11])
    (pets / "train/dog/copy.jpg").write_bytes(jpegs[5])
    (tmp_path / "there").mkdir()
    shutil.copytree(pets, tmp_path / "there/pets")
    monkeypatch.chdir(tmp_path)
    report = scan_images("pets", workers=1)
    assert report.root == "pets"
    found = [finding.path for finding in report.findings]
    assert found[0] == "pets/train/cat/cut.jpg"
    monkeypatch.chdir(tmp_path / "there")
    before = sorted(Path("pets").rglob("*"))
    report.to_html("page.html")
    assert "../pets/" in Path("page.html").read_text()
    assert "also at val/cat/5.jpg" in Path("page.html").read_text()
    with pytest.raises(FtkitError, match="inside the data set"):
        report.to_csv("../pets/findings.csv")
    with pytest.raises(FtkitError, match="inside the data set"):
        report.table.to_csv("../pets/table.csv")
    assert report.image_folder_filter()("../pets/train/cat/1.jpg")
    assert not report.image_folder_filter()("../pets/train/cat/cut.jpg")
    with pytest.raises(FtkitError, match="is not in"):
        report.image_folder_filter()("pets/train/cat/cut.jpg")
    made = report.repair("mended", only=["pets/train/cat/photo.png"]).made
    assert made == {"pets/train/cat/photo.png": str(tmp_path / "there/mended/train/cat/photo.jpg")}
    assert report.repair().folder == tmp_path / "pets-repaired"
    gone = report.quarantine("aside")
    assert (gone.root, list(gone.files)) == (pets, ["train/cat/cut.jpg"])
    assert "train/dog/copy.jpg" in report.quarantine("aside", only=["pets/train/dog/copy.jpg"]).files
    assert sorted(Path("pets").rglob("*")) == before
    monkeypatch.chdir("/")
    assert len(restore(gone.manifest)) == 1


def test_other_files_are_no_junk(pets: Path) -> None:
    """What a quarantine would leave is not said to be set aside by it."""
    (pets / "labels.csv").write_bytes(b"url,label")
    report = scan_images(pets, workers=1)
    assert [finding.kind for finding in report.findings] == ["other_file"]
    assert report.junk == []
    assert "quarantine" not in str(report)


@pytest.mark.parametrize("form", ["html", "csv", "json", "parquet"])
def test_no_report_is_written_into_the_data_set(report: ScanReport, pets: Path, tmp_path: Path, form: str) -> None:
    """Neither over a file of it, directly or through a link, nor as a new one that the next scan would meet."""
    if form == "parquet":
        pytest.importorskip("pyarrow")
    image, link = pets / "train/cat/1.jpg", tmp_path / "link"
    before = image.read_bytes()
    link.symlink_to(image)
    for path in (image, str(link)):
        with pytest.raises(FtkitError, match="is a file of the data set"):
            getattr(report, f"to_{form}")(path)
    assert image.read_bytes() == before
    with pytest.raises(FtkitError, match=r"is inside the data set .* such as .*pets-new\.$"):
        getattr(report, f"to_{form}")(pets / "new")
    assert not (pets / "new").exists()
    getattr(report, f"to_{form}")(tmp_path / "pets-new")
    assert (tmp_path / "pets-new").is_file()
