"""The table of formats: told apart by content, each by its own row."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from ftkit import extract_archive
from ftkit._archives.formats import _FORMATS
from ftkit._archives.packing import PACKINGS
from ftkit.errors import ArchiveError
from tests.archives.packers import GOOD, make_tar, make_zip, tar_info


def test_the_error_names_every_format(tmp_path: Path) -> None:
    """What can be read is told from the table itself."""
    (tmp_path / "a").write_bytes(b"neither")
    with pytest.raises(ArchiveError) as caught:
        extract_archive(tmp_path / "a", tmp_path / "out")
    assert {entry.name for entry in _FORMATS} == {"zip", "7z", "tar", *(f"tar.{packing}" for packing in PACKINGS)}
    assert "7z, tar, tar.bz2, tar.gz, tar.xz, tar.zst or zip): it starts with b'neither'" in str(caught.value)


@pytest.mark.parametrize("packing", ["", "gz", "bz2", "xz"])
def test_the_suffix_means_nothing(tmp_path: Path, packing: str) -> None:
    """A tar by the name of a zip is a tar."""
    report = extract_archive(make_tar(tmp_path / "a.zip", GOOD.items(), packing), tmp_path / "out")
    assert report.format == (f"tar.{packing}" if packing else "tar")


def test_a_mark_outranks_a_guess(tmp_path: Path) -> None:
    """What starts as 7z does is none other, though a tar might have such a first name, or hold a zip."""
    name = b"7z\xbc\xaf\x27\x1c".decode("latin-1")
    header = tar_info(name).tobuf(tarfile.USTAR_FORMAT, "latin-1", "strict")
    tarfile.TarInfo.frombuf(header, "latin-1", "strict")  # it is one
    (tmp_path / "a.tar").write_bytes(header + bytes(10240))
    with pytest.raises(ArchiveError, match=r"damaged|7z"):
        extract_archive(tmp_path / "a.tar", tmp_path / "out")
    whole = io.BytesIO(make_zip(tmp_path / "a.zip", GOOD.items()).read_bytes())
    outer = make_tar(tmp_path / "b.tar", [("a.zip", whole.getvalue())])
    assert extract_archive(outer, tmp_path / "other").format == "tar"
