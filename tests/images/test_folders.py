"""Folders: what is looked at, here and behind a URL."""

from __future__ import annotations

import os
import re
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from ftkit import FtkitError, ScanReport, restore, scan_images
from ftkit._files import digest


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


def test_a_folder_that_many_links_lead_to_is_no_loop(tmp_path: Path, jpegs: list[bytes]) -> None:
    """Its files are found under all of their names, and move once by the plain one."""
    root = tmp_path / "folds"
    (root / "images").mkdir(parents=True)
    (root / "images/cut.jpg").write_bytes(jpegs[0][:3000])
    (root / "images/whole.jpg").write_bytes(jpegs[0])
    for number in range(20):
        (root / f"fold{number}").mkdir()
        (root / f"fold{number}/images").symlink_to("../images")
    report = scan_images(root, workers=1)
    assert (report.files, {finding.kind for finding in report.findings}) == (42, {"truncated"})
    gone = report.quarantine(tmp_path / "aside", ["truncated"])
    assert (list(gone.files), gone.left) == (["images/cut.jpg"], [])
    assert (root / "fold19/images").is_symlink()


def test_links_that_multiply_end(tmp_path: Path, jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty folders with a billion names: each is scanned, and that names were left out is said of the data set."""
    root, limit = tmp_path / "tree", 500
    monkeypatch.setattr("ftkit._images.folders._MOST_AGAIN", limit)
    monkeypatch.setattr("ftkit._images.folders._TIMES_AGAIN", 1)
    for number in range(30):
        (root / f"{number:02}").mkdir(parents=True)
        for link in ("a", "b"):
            (root / f"{number:02}" / link).symlink_to(f"../{number + 1:02}")
    (root / "30").mkdir()
    (root / "30/1.jpg").write_bytes(jpegs[0])
    report = scan_images(root, workers=1)
    assert report.table.to_csv().count(f"{root}/30/1.jpg") == 1
    assert report.files < limit
    (finding,) = [finding for finding in report.findings if finding.kind == "many_links"]
    assert finding.path == f"{root}/"
    assert {finding.kind for finding in report.findings if finding.severity in ("unusable", "junk")} == set()
    gone = report.quarantine(tmp_path / "aside", ["many_links"])
    assert (gone.moved, gone.left) == (0, [])


def test_a_cache_of_the_hugging_face_hub(pets: Path, jpegs: list[bytes]) -> None:
    """Its blobs and snapshots are no classes: an error or a finding names the snapshot, which is scanned as any."""
    hub = pets.parent / "hub"
    cache = hub / "datasets--me--pets"
    files = {path.relative_to(pets): path.read_bytes() for path in pets.rglob("*.jpg")}
    files[Path("train/cat/bad.jpg")] = b"<html>"
    for revision, number in (("1" * 40, 3), ("2" * 40, 11), ("3" * 40, 2)):
        for name, data in list(files.items())[-number:]:
            blob, link = cache / "blobs" / digest(data), cache / "snapshots" / revision / name
            for path in (blob, link):
                path.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(data)
            link.symlink_to(os.path.relpath(blob, link.parent))
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("2" * 40)
    snapshot = cache / "snapshots" / ("2" * 40)
    with pytest.raises(FtkitError, match=f"Pass the snapshot: {snapshot}$"):
        scan_images(cache, workers=1)
    (hub / "version.txt").write_text("1")
    report = scan_images(hub, workers=1)
    assert [(f.path, f.kind, f.detail) for f in report.findings if f.severity == "odd"] == [
        (str(cache), "hub_cache", f"did you mean {snapshot}?")
    ]
    assert report.classes == {}
    assert (report.files, report.quarantine(pets.parent / "aside").moved) == (1, 0)
    report = scan_images(snapshot, workers=1)
    assert (report.images, list(report.splits)) == (10, ["train", "val"])
    gone = report.quarantine(pets.parent / "aside")
    assert list(gone.files) == ["train/cat/bad.jpg"]
    assert len(list((cache / "blobs").iterdir())) == 11
    assert len(restore(gone.manifest)) == 1
    with pytest.raises(FtkitError, match=f"Pass the snapshot: {snapshot}$"):
        scan_images(cache.as_uri(), workers=1)
    (hub / "version.txt").unlink()
    with pytest.raises(FtkitError, match=re.escape(f"{cache} (did you mean {snapshot}?)")):
        scan_images(hub, workers=1)
    (cache / "refs/main").unlink()
    with pytest.raises(FtkitError, match=r"Pass the snapshot: .*3333$"):
        scan_images(cache, workers=1)


@pytest.mark.parametrize("deeper", ["", "one/"])
def test_classes_that_are_called_as_the_hub_calls_its_folders(tmp_path: Path, jpegs: list[bytes], deeper: str) -> None:
    """Folders of images are classes, whatever they are called."""
    root = tmp_path / "my--pets"
    for number, name in enumerate(("blobs", "refs", "snapshots")):
        place = root / name / f"{deeper}{number}.jpg"
        place.parent.mkdir(parents=True)
        place.write_bytes(jpegs[number])
    assert scan_images(root, workers=1).classes == {"blobs": 1, "refs": 1, "snapshots": 1}


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
        for url in ("memory://scan-test", "memory://scan-test/", "memory://"):
            (found,) = scan_images(url, workers=2).unusable
            with fsspec.open(found.path) as file:
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


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nosuch://bucket/pets", "Protocol not known: nosuch"),
        ("htp://x.org/pets", "Did you mean 'http'"),
        ("ftp://127.0.0.1:9/pets", "Connection refused. Check the URL"),
        ("http://127.0.0.1:9/pets", "Cannot connect to host 127.0.0.1:9"),
        ("simplecache::http://127.0.0.1:9/pets", "Cannot connect to host 127.0.0.1:9"),
        ("http://", "can't open"),
        ("zip://pets::{here}/none.zip", "No such file"),
        ("zip://pets::{here}/bad.zip", "not a zip file"),
        ("reference://x", "can't open"),
        ("memory://", "There is no file in 'memory://'"),
        ("file://{here}/none", "none' is not a folder"),
    ],
)
def test_a_url_that_cannot_be_opened_is_an_error_of_ours(tmp_path: Path, url: str, message: str) -> None:
    """Whatever a plugin of fsspec raises."""
    pytest.importorskip("fsspec")
    if "http:" in url:
        pytest.importorskip("aiohttp")
    (tmp_path / "bad.zip").write_bytes(b"x")
    with pytest.raises(FtkitError, match=re.escape(message)):
        scan_images(url.format(here=tmp_path), workers=1)


@pytest.mark.parametrize("scheme", ["file://", "FILE://localhost", "local://"])
def test_the_url_of_a_folder_of_this_machine(pets: Path, jpegs: list[bytes], scheme: str) -> None:
    """It is that folder: what was found there can be moved and comes back."""
    home = pets.rename(pets.with_name("my pets"))
    (home / "train/cat/cut.jpg").write_bytes(jpegs[10][:3000])
    for path in (str(home), home.as_uri().removeprefix("file://")):
        report = scan_images(scheme + path, workers=1)
        assert [finding.path for finding in report.unusable] == [str(home / "train/cat/cut.jpg")]
        gone = report.quarantine(pets.parent / "aside")
        assert restore(gone.manifest) == [str(home / "train/cat/cut.jpg")]


def test_a_folder_on_a_web_server(pets: Path) -> None:
    """Its pages list files; what the server refuses is found to be unreadable, and the scan goes on."""
    pytest.importorskip("aiohttp")

    class Server(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            refused = self.path.endswith(("/1.jpg", "/val/cat/", "/val/cat"))
            self.send_error(503) if refused else super().do_GET()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    (pets / "?C=N;O=D").write_bytes(b"")  # how pages of Apache link to themselves in another order
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(pets.parent))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        report = scan_images(f"{url}/pets", workers=1)
        with pytest.raises(FtkitError, match="503"):
            scan_images(f"{url}/pets/val/cat")
        with pytest.raises(FtkitError, match="is not a folder"):
            scan_images(f"{url}/nowhere")
        server.shutdown()
    assert [(f.path.removeprefix(url), f.kind) for f in report.unusable] == [
        ("/pets/train/cat/1.jpg", "unreadable"),
        ("/pets/val/cat", "unreadable"),
    ]
    assert "503" in report.unusable[0].detail
    assert "nothing in this folder was checked" in report.unusable[1].detail
    assert report.classes == {"train/cat": 3, "train/dog": 4, "val/dog": 1}
