"""Temporary files: where there is no room for them, a clear error, and no file is blamed for it."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from ftkit import FtkitError, scan_images
from ftkit._images.decoding.checks import check_bytes
from ftkit.errors import FileWriteError


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes, as on a disk that is full."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder for temporary files."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


# The journal has 17 kB, the fingerprints 11, twice, the table 1.
@pytest.mark.parametrize(
    ("size", "is_kept"), [(0, False), (500, False), (9_000, False), (13_000, False), (9_000, True)]
)
def test_a_full_folder_is_a_clear_error(pets: Path, scratch: Path, size: int, is_kept: bool) -> None:
    """It says which folder, how much goes there, and what to set; nothing stays there, and the next scan works."""
    journal = pets.parent / "scan.journal" if is_kept else None
    report = scan_images(pets, workers=1, journal=journal)
    with (
        files_of_at_most(size),
        pytest.raises(
            FileWriteError, match=rf"file in {scratch} can't be written: .*4 kB there for each .* set TMPDIR"
        ),
    ):
        scan_images(pets, workers=1, journal=journal)
    assert list(scratch.iterdir()) == []
    again = scan_images(pets, workers=1, journal=journal)
    assert again.to_dict() | {"seconds": 0} == report.to_dict() | {"seconds": 0}


def test_a_table_that_does_not_fit_in_any_more(pets: Path, scratch: Path) -> None:
    """A report that is unpickled needs room for its table."""
    pickled = pickle.dumps(scan_images(pets, workers=1))
    with files_of_at_most(100), pytest.raises(FileWriteError, match=f"file in {scratch} can't be written"):
        pickle.loads(pickled)
    assert len(pickle.loads(pickled).table) == 10


def test_no_folder_at_all_is_a_clear_error(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python finds none that it can write to, that is said."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(pets / "nowhere")])
    with pytest.raises(FtkitError, match="A temporary file can't be written: No usable temporary directory"):
        scan_images(pets, workers=1)


def test_no_image_is_condemned_for_a_full_disk(
    photo: Callable[..., Image.Image], encode: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A TIFF file is loaded with an ear to libtiff, which takes a temporary file."""
    data = encode(photo(1), "TIFF", compression="tiff_lzw")
    assert check_bytes("a.tif", data).notes == []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    (note,) = check_bytes("a.tif", data).notes
    assert note.kind == "unjudged"
    assert "no temporary file" in note.detail
