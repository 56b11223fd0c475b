"""The scan as a whole: what it finds in a folder, and what it leaves alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from ftkit import FtkitError, ScanReport, scan_images
from ftkit._images import folders


def kinds(report: ScanReport, name: str) -> list[str]:
    """Return the kinds found for the file called ``name``."""
    return [finding.kind for finding in report.findings if Path(finding.path).name == name]


def test_a_clean_folder_has_no_findings(pets: Path) -> None:
    """Ten sound photographs give ten images and not one finding."""
    report = scan_images(pets, workers=1)
    assert report.findings == []
    assert (report.files, report.images) == (10, 10)
    assert report.classes == {"train/cat": 4, "train/dog": 4, "val/cat": 1, "val/dog": 1}
    assert "nothing to complain of" in str(report)


def test_the_main_kinds_are_found(pets: Path, jpegs: list[bytes]) -> None:
    """Each common accident is found under its own kind, and the path of a finding opens as it stands."""
    cat = pets / "train" / "cat"
    whole = jpegs[10]
    garbled = bytearray(whole)
    garbled[len(whole) // 2 : len(whole) // 2 + 512] = bytes(512)
    wanted = {
        "cut.jpg": (whole[: len(whole) // 2], "truncated"),
        "rot.jpg": (bytes(garbled), "damaged"),
        "nothing.jpg": (b"", "empty"),
        "zeros.jpg": (bytes(5000), "empty"),
        "page.jpg": (b"<!DOCTYPE html><title>404</title>", "not_an_image"),
        "lfs.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "not_an_image"),
        "photo.png": (jpegs[11], "wrong_suffix"),
        "Thumbs.db": (b"\xd0\xcf\x11\xe0" + bytes(600), "litter"),
        "._a.jpg": (b"\0\5\x16\7" + bytes(90), "litter"),
        "labels.csv": (b"url,label\n", "other_file"),
    }
    for name, (data, _) in wanted.items():
        (cat / name).write_bytes(data)
    report = scan_images(pets, workers=1)
    assert {name: kinds(report, name) for name in wanted} == {name: [kind] for name, (_, kind) in wanted.items()}
    assert all(Path(finding.path).exists() for finding in report.findings)
    assert report.images == 11


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


def test_any_executor_gives_the_same_report(pets: Path, jpegs: list[bytes]) -> None:
    """Threads, spawned processes and the default agree to the last detail."""
    (pets / "train/cat/cut.jpg").write_bytes(jpegs[10][:3000])
    report = scan_images(pets, workers=2)
    for executor in (ThreadPoolExecutor(2), ProcessPoolExecutor(1, mp_context=get_context("spawn"))):
        with executor:
            other = scan_images(pets, executor=executor)
        assert other.findings == report.findings
        assert other.to_dict() | {"seconds": 0} == report.to_dict() | {"seconds": 0}


def test_names_that_are_not_utf8(pets: Path, jpegs: list[bytes]) -> None:
    """A name in another encoding is odd, and its path opens."""
    with open(os.fsencode(pets / "train/cat") + b"/\xb0\xb3.jpg", "wb") as file:
        file.write(jpegs[10])
    report = scan_images(pets, workers=1)
    (finding,) = report.findings
    assert finding.kind == "name_not_utf8"
    assert Path(finding.path).read_bytes() == jpegs[10]
    str(report).encode()


def test_wrong_arguments_are_errors_with_a_hint(pets: Path) -> None:
    """The message names the closest folder."""
    with pytest.raises(FtkitError, match="no folder"):
        scan_images(pets / "nowhere")
    with pytest.raises(FtkitError, match="Did you mean 'train'"):
        scan_images(pets, splits=["trian"])
    with ThreadPoolExecutor(1) as executor, pytest.raises(FtkitError, match="not both"):
        scan_images(pets, executor=executor, workers=2)
    with pytest.raises(FtkitError, match="workers=0"):
        scan_images(pets, workers=0)
    for timeout in (0, -1, float("nan"), float("inf")):
        with pytest.raises(FtkitError, match="timeout="):
            scan_images(pets, timeout=timeout)


def test_splits_by_other_names(pets: Path) -> None:
    """Folders of any name can be splits, and be named otherwise."""
    (pets / "val").rename(pets / "fold9")
    (pets / "train/dog/copy.jpg").write_bytes((pets / "fold9/dog/0.jpg").read_bytes())
    assert scan_images(pets, workers=1).leaks == []
    assert scan_images(pets, workers=1, splits={"train": "train", "fold9": "val"}).leaks[0].splits == ("train", "val")
    assert scan_images(pets, workers=1, splits=["train", "fold9"]).leaks[0].splits == ("fold9", "train")


def test_a_script_without_a_main_guard_scans_and_no_process_imports_torch(pets: Path) -> None:
    """Workers don't run the caller's script again; caller and workers do without torch, the caller without decoders."""
    script = pets.parent / "script.py"
    script.write_text(
        f"import sys\nfrom ftkit import scan_images\nprint(scan_images({str(pets)!r}, workers=1).images)\n"
        "assert not {'torch', 'PIL', 'simplejpeg'} & set(sys.modules)\n"
        "import ftkit._images.checks\nassert 'simplejpeg' in sys.modules and 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "10\n"), done.stderr


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


def test_a_folder_behind_a_url(pets: Path, jpegs: list[bytes]) -> None:
    """Fsspec's files are read by the caller and judged by the workers; the findings' paths open as they stand."""
    fsspec = pytest.importorskip("fsspec")
    (pets / "train/cat/cut.jpg").write_bytes(jpegs[10][:3000])
    (pets / "train/dog/copy.jpg").write_bytes((pets / "val/dog/0.jpg").read_bytes())
    (pets / "train/cat/Thumbs.db").write_bytes(b"x")
    memory = fsspec.filesystem("memory")
    memory.put(str(pets), "/scan-test", recursive=True)
    journal = pets.parent / "scan.journal"
    try:
        local = scan_images(pets, workers=2)
        for resume in (None, journal, journal):
            remote = scan_images("memory://scan-test", workers=2, resume=resume)
            assert [(f.kind, f.path.removeprefix("memory://scan-test/")) for f in remote.findings] == [
                (f.kind, f.path.removeprefix(f"{pets}/")) for f in local.findings
            ]
            assert len(remote.leaks) == 1
            assert remote.classes == local.classes
        with fsspec.open(remote.unusable[0].path) as file:
            assert file.read() == jpegs[10][:3000]
        with pytest.raises(FtkitError, match="no folder"):
            scan_images("memory://nowhere")
        with pytest.raises(FtkitError, match="image_folder_filter"):
            remote.quarantine(pets.parent / "aside")
        remote.to_html(pets.parent / "page.html")
        assert (pets.parent / "page.html").read_text().count("data:image") == 4
    finally:
        memory.rm("/scan-test", recursive=True)


def test_an_unknown_protocol_is_an_error() -> None:
    """What fsspec can't open raises one of ours."""
    pytest.importorskip("fsspec")
    with pytest.raises(FtkitError, match="can't open"):
        scan_images("nosuch://bucket/pets")


def test_dask_gives_the_same_report(pets: Path, jpegs: list[bytes]) -> None:
    """A cluster of processes does the work through its executor."""
    distributed = pytest.importorskip("distributed")
    (pets / "train/cat/cut.jpg").write_bytes(jpegs[10][:3000])
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        far = scan_images(pets, executor=client.get_executor())
    assert far.to_dict() | {"seconds": 0} == scan_images(pets).to_dict() | {"seconds": 0}
