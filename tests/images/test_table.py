"""The table of all images, and what stands out by its look."""

from __future__ import annotations

import csv
import io
import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ftkit import FtkitError, ScanReport, scan_images
from ftkit._files import digest
from ftkit._images.layout import Place
from ftkit._images.table import TableWriter
from ftkit._images.verdict import Form, Measures, Verdict
from ftkit.errors import FileWriteError


def test_a_row_for_each_usable_image(pets: Path, jpegs: list[bytes]) -> None:
    """In the order of the paths, whoever was first; what is broken has none."""
    (pets / "train/cat/cut.jpg").write_bytes(jpegs[10][:3000])
    (pets / "train/cat/a,\n'b'.jpg").write_bytes(jpegs[11])
    table = scan_images(pets, workers=2).table
    rows = list(table)
    assert len(table) == len(rows) == 11
    assert [row.path for row in rows] == sorted(str(p) for p in pets.rglob("*.jpg") if p.name != "cut.jpg")
    first = next(row for row in rows if row.path.endswith("val/dog/0.jpg"))
    assert (first.class_, first.split, first.width, first.height, first.mode) == ("dog", "val", 320, 260, "RGB")
    assert (first.bytes, first.hash) == (len(jpegs[0]), digest(jpegs[0]))
    grey = np.asarray(Image.open(io.BytesIO(jpegs[0])).convert("L"), float)
    assert first.brightness == pytest.approx(grey.mean(), abs=2)
    assert first.contrast == pytest.approx(grey.std(), rel=0.2)
    assert list(table) == rows
    assert list(pickle.loads(pickle.dumps(table))) == rows
    assert list(ScanReport("pets", []).table) == []


def test_csv_and_parquet(pets: Path, jpegs: list[bytes], tmp_path: Path) -> None:
    """Both hold what the rows hold, under the same names; a name that is not UTF-8 is escaped."""
    Path(os.fsdecode(os.fsencode(pets) + b"/train/cat/\xb0.jpg")).write_bytes(jpegs[10])
    table = scan_images(pets, workers=1).table
    table.to_csv(tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_bytes().decode() == table.to_csv()
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["hash"] for row in rows] == [row.hash for row in table]
    assert [float(row["sharpness"]) for row in rows] == [row.sharpness for row in table]
    assert sum(r"\udcb0.jpg" in row["path"] for row in rows) == 1
    parquet = pytest.importorskip("pyarrow.parquet")
    table.to_parquet(tmp_path / "table.parquet")
    read = parquet.read_table(tmp_path / "table.parquet").to_pylist()
    assert [{name: str(value) for name, value in row.items()} for row in read] == rows
    assert {type(row["width"]) for row in read} == {int}


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_it_replaces_no_file_of_the_data_set(pets: Path, tmp_path: Path, form: str) -> None:
    """Nor is it written to a URL; what can't be written says so."""
    pytest.importorskip("pyarrow")
    table, image = scan_images(pets, workers=1).table, pets / "train/cat/1.jpg"
    before = image.read_bytes()
    write: Callable[[object], None] = getattr(table, f"to_{form}")
    with pytest.raises(FtkitError, match="is a file of the data set"):
        write(image)
    assert image.read_bytes() == before
    with pytest.raises(FtkitError, match="is inside the data set"):
        write(pets / f"table.{form}")
    assert not (pets / f"table.{form}").exists()
    with pytest.raises(FileWriteError, match="is a URL"):
        write("memory://there/table")
    with pytest.raises(FileWriteError, match="it is a folder"):
        write(tmp_path)
    (tmp_path / "notes.py").write_text("kept")
    with pytest.raises(FileWriteError, match="ends with a slash, but is a file"):
        write(f"{tmp_path}/notes.py/")
    assert (tmp_path / "notes.py").read_text() == "kept"


def test_its_memory_is_flat(tmp_path: Path) -> None:
    """50,000 rows are on disk: memory holds their places, and for a moment their names to sort by."""
    tracemalloc.start()
    writer = TableWriter("pets")
    verdict = Verdict([], (), "0" * 32, Form("JPEG", "RGB", 500, 375), None, Measures(9, 99.5, 40.1, 20.2, 3, 250, 7.1))
    for number in range(50_000):
        writer.add(f"train/cat/{number * 7919 % 50_000:05}.jpg", Place("train", "train", "cat", "x.jpg"), verdict)
    with writer:
        table = writer.finish()
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    table.to_csv(tmp_path / "table.csv")
    assert sum(1 for _ in table) == 50_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert before < 2 << 20
    assert peak - before < 1 << 20
    names = [line.split(",")[0] for line in (tmp_path / "table.csv").read_text().splitlines()[1:]]
    assert names == sorted(names)


def looks(root: Path) -> dict[str, list[str]]:
    """Return what is said of the look of each picture."""
    found: dict[str, list[str]] = {}
    for finding in scan_images(root, workers=1, near_duplicates=False).findings:
        found.setdefault(Path(finding.path).name, []).append(finding.kind)
    return found


def test_dark_bright_blurry_and_plain_pictures_are_noted(
    pets: Path, photo: Callable[..., Image.Image], encode: Callable[..., bytes]
) -> None:
    """Each by its own kind, in any format, never moved by default; the sound ones are not."""
    picture = photo(20)
    levels = np.asarray(picture, float)
    plain = np.full((260, 320, 3), 90, np.uint8)
    plain[100:130, 100:140] = 200
    planted = {
        "dark": Image.fromarray((levels * 0.25).astype(np.uint8)),
        "bright": Image.fromarray((255 - (255 - levels) * 0.05).astype(np.uint8)),
        "blurry": picture.filter(ImageFilter.GaussianBlur(12)),
        "low_information": Image.fromarray(plain),
    }
    for kind, image in planted.items():
        (pets / f"train/cat/{kind}.jpg").write_bytes(encode(image, quality=95))
        (pets / f"train/dog/{kind}.png").write_bytes(encode(image, "PNG"))
    found = looks(pets)
    for kind in planted:
        for name in (f"{kind}.jpg", f"{kind}.png"):
            assert kind in found[name]
            assert set(found[name]) <= {kind, "low_information"}
    assert set(found) == {f"{kind}.{form}" for kind in planted for form in ("jpg", "png")}
    assert scan_images(pets, workers=1).quarantine(pets.parent / "aside").moved == 0


def test_a_look_that_most_have_is_no_finding(tmp_path: Path, jpegs: list[bytes]) -> None:
    """Digits are dark, documents bright: whoever made the set meant it."""
    for number, data in enumerate(jpegs):
        image = Image.open(io.BytesIO(data))
        (tmp_path / "night/a").mkdir(parents=True, exist_ok=True)
        image.point([level // (6 if number % 4 else 1) for level in range(256)] * 3).save(
            tmp_path / f"night/a/{number}.png"
        )
    assert looks(tmp_path / "night") == {}
    for number in (1, 2, 3, 5, 6):
        Image.open(io.BytesIO(jpegs[number])).save(tmp_path / f"night/a/{number}.png")
    assert set(looks(tmp_path / "night")) == {"7.png", "9.png", "10.png", "11.png"}
