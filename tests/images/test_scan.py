"""The scan as a whole: what it finds in a folder, and what it leaves alone."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partialmethod
from multiprocessing import get_context
from pathlib import Path

import pytest
from PIL import Image
from tqdm import tqdm

from ftkit import FtkitError, ScanReport, scan_images
from ftkit._images.suffixes import IMAGE_SUFFIXES

Encode = Callable[..., bytes]


def kinds(report: ScanReport, name: str) -> list[str]:
    """Return the kinds found for the file called ``name``."""
    return [finding.kind for finding in report.findings if Path(finding.path).name == name]


def test_a_clean_folder_has_no_findings(pets: Path) -> None:
    """Ten sound photographs give ten images and not one finding."""
    report = scan_images(pets, workers=1)
    assert report.findings == []
    assert (report.files, report.images) == (10, 10)
    assert report.classes == {"train/cat": 4, "train/dog": 4, "val/cat": 1, "val/dog": 1}
    assert "no problems found" in str(report)


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


def test_what_claims_to_be_no_image_is_left_alone(pets: Path, jpegs: list[bytes]) -> None:
    """Whatever its content, by default nothing moves that has no image's name; a sound picture is worth a word."""
    tiff = io.BytesIO()
    Image.radial_gradient("L").save(tiff, "TIFF")
    others = {
        "1.txt": b"", ".gitkeep": b"", "__init__.py": b"", "empty": b"", "zeros.bin": bytes(99),
        "sound.wav": b"RIFF\x24\0\0\0WAVEfmt " + bytes(range(99)), "film.avi": b"RIFF\x24\0\0\0AVI LIST" + bytes(99),
        "size.h": b"#define WIDTH 3\n", "x.h": b"#define x_width 0\n#define x_height 0\n",
        "photo.nef": b"MM\0*\0\0\0\x08" + bytes(range(99)), "photo.cr2": b"II*\0\x10\0\0\0CR\2\0" + bytes(range(99)),
        "photo.dng": b"II*\0\x08\0\0\0" + bytes(99), "raw.nef": tiff.getvalue(), "cut.part": jpegs[10][:3000],
        "page.html": b"<html>", "dump.psd": b"8BPS\0\1", "bomb.dat": b"BM" + bytes(12) + b"\x28\0\0\0" + b"\x7f" * 40,
    }  # fmt: skip
    for name, data in others.items():
        (pets / "train/cat" / name).write_bytes(data)
    os.mkfifo(pets / "train/cat/queue")
    (pets / "train/cat/latest.txt").symlink_to("gone")
    (pets / "train/cat/whole.part").write_bytes(jpegs[11])
    names = [*others, "queue", "latest.txt"]
    report = scan_images(pets, workers=1)
    assert {name: kinds(report, name) for name in names} == {name: ["other_file"] for name in names}
    assert kinds(report, "whole.part") == ["unlisted_suffix"]
    assert report.images == 11
    assert report.quarantine(pets.parent / "aside").moved == 0


def test_a_suffix_that_other_files_have_too_promises_no_image(pets: Path, jpegs: list[bytes], encode: Encode) -> None:
    """Metrics of fonts, plug-ins, drawings, films and fields of numbers stay, though Pillow knows their suffixes."""
    others = {
        "times.pfm": b"\0\1\x9c\2\0\0" + b"(c) Foundry".ljust(60, b"\0") + bytes(range(256)) * 2,
        "reverb.vst": b"MZ\x90\0\3\0\0\0" + bytes(range(256)) * 4,
        "plan.vst": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99),
        "door.vda": b"HDR = HEADER / 20\n*" + b" " * 60, "ice.icb": b"ICB\1" + bytes(range(99)), "empty.vst": b"",
        "shop.jpx": b'<?xml version="1.0"?><project/>', "site.jxl": b'<?xml version="1.0"?><JOBFile jobName="a"/>',
    }  # fmt: skip
    Image.init()
    for suffix in Image.registered_extensions().keys() - IMAGE_SUFFIXES:
        for name, data in (("page", b"<html>"), ("empty", b""), ("noise", b"\0\1" + bytes(range(256)) * 2)):
            others[f"{name}0{suffix}"] = data
    for name, data in others.items():
        (pets / "train/cat" / name).write_bytes(data)
    (pets / "train/cat/real.pfm").write_bytes(encode(Image.radial_gradient("L").convert("F"), "PPM"))
    (pets / "train/cat/photo.vst").write_bytes(jpegs[10])
    (pets / "train/cat/photo.tga").write_bytes(b"<html>")
    report = scan_images(pets, workers=1)
    assert {name: kinds(report, name) for name in others} == {name: ["other_file"] for name in others}
    assert kinds(report, "photo.vst") == ["unlisted_suffix"]
    assert "unlisted_suffix" in kinds(report, "real.pfm")
    assert kinds(report, "photo.tga") == ["not_an_image"]
    assert list(report.quarantine(pets.parent / "aside").files) == ["train/cat/photo.tga"]


def test_litter_is_told_by_its_content_too(pets: Path, jpegs: list[bytes]) -> None:
    """A photo, a checksum or notes under a name that systems use stay, and are judged as any other file."""
    litter = {
        "Thumbs.db": b"\xd0\xcf\x11\xe0" + bytes(600), "._1.jpg": b"\0\5\x16\7\0\2\0\0Mac OS X",
        ".DS_Store": b"\0\0\0\1Bud1\0\0\x10\0",
        "desktop.ini": b"\xff\xfe" + "\r\n[.ShellClassInfo]".encode("utf-16-le"),
        ".localized": b"", ".directory": b"[Dolphin]\nTimestamp=1", "~$list.xlsx": b"\x0ajane doe 2".ljust(165),
    }  # fmt: skip
    others = {
        "._2.jpg": jpegs[10], "._SUCCESS.crc": b"crc\0\0\0\2\0", "ehthumbs.db": b"SQLite format 3\0",
        "~$cost.txt": b"5 $", "._list.txt": b"a.jpg", "._3.jpg": jpegs[11][:3000],
    }  # fmt: skip
    for name, data in (litter | others).items():
        (pets / "train/cat" / name).write_bytes(data)
    report = scan_images(pets, workers=1)
    assert {name: kinds(report, name) for name in litter} == {name: ["litter"] for name in litter}
    assert kinds(report, "._2.jpg") == []
    assert kinds(report, "._3.jpg") == ["truncated"]
    stay = ("._SUCCESS.crc", "ehthumbs.db", "~$cost.txt", "._list.txt")
    assert {name: kinds(report, name) for name in stay} == {name: ["other_file"] for name in stay}
    assert report.images == 11
    assert report.files == 10 + len(litter) + len(others)


def test_a_name_that_is_all_suffix_claims_to_be_an_image(pets: Path, jpegs: list[bytes]) -> None:
    """Loaders, which look at how a name ends, take it."""
    for name in (".jpg", "..JPG"):
        (pets / "train/cat" / name).write_bytes(jpegs[10][:3000])
    report = scan_images(pets, workers=1)
    assert [kinds(report, name) for name in (".jpg", "..JPG")] == [["truncated"]] * 2


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
    with pytest.raises(FtkitError, match="is not a folder"):
        scan_images(pets / "nowhere")
    with pytest.raises(FtkitError, match="Did you mean 'train'"):
        scan_images(pets, splits=["trian"])
    with ThreadPoolExecutor(1) as executor, pytest.raises(FtkitError, match="not both"):
        scan_images(pets, executor=executor, workers=2)
    with pytest.raises(FtkitError, match=r"workers must be a whole number of at least 1.*not 0"):
        scan_images(pets, workers=0)
    for timeout in (0, -1, float("nan"), float("inf")):
        with pytest.raises(FtkitError, match="timeout must be a number of seconds"):
            scan_images(pets, timeout=timeout)


def test_a_script_without_a_main_guard_scans_and_no_process_imports_torch(pets: Path) -> None:
    """Workers don't run the caller's script again; caller and workers do without torch, the caller without decoders."""
    script = pets.parent / "script.py"
    script.write_text(
        f"import sys\nfrom ftkit import scan_images\nprint(scan_images({str(pets)!r}, workers=1).images)\n"
        "assert not {'torch', 'numpy', 'PIL', 'simplejpeg'} & set(sys.modules)\n"
        "import ftkit._images.decoding.verbs\nassert 'simplejpeg' in sys.modules and 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "10\n"), done.stderr


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


def test_progress_knows_how_many_files_there_are_or_says_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No total that grows with the scan, as if it were nearly done all the time."""
    for number in range(3000):
        place = tmp_path / f"many/{number % 7}/{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)
    monkeypatch.setattr("tqdm.tqdm.__init__", partialmethod(tqdm.__init__, mininterval=0, miniters=1))
    scan_images(tmp_path / "many", workers=1, progress=True)
    said = capsys.readouterr().err
    assert "3000/3000" in said
    assert set(re.findall(r"/(\d+) \[", said)) == {"3000"}
