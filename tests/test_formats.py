"""Formats: a file is what its content says, and what is no weights file is named for what it is."""

from __future__ import annotations

import contextlib
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ftkit import load_model
from ftkit._formats import Format, ObjectFormat, TensorFormat, content_format
from ftkit._tensors.file import TensorFile
from ftkit.errors import CheckpointError


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"\xfd7zXZ\x00", "xz"),
        (b"\0" * 600, "begins with zeros"),
        (b'{"error": "Repository Not Found"}', "JSON"),
        (b"\x93NUMPY\x01\x00", "numpy.load"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"hello", "starts with b'hello'"),
    ],
)
def test_says_what_a_wrong_file_is(tmp_path, content, says):
    """A file that holds no weights is named for what it is."""
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=says):
        content_format(tmp_path / "model.pt")


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"w": [1]}, 4))


def tarred(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))


WRITERS: dict[Format, Callable[[Path], object]] = {
    TensorFormat.SAFETENSORS: lambda path: save_file({"w": torch.ones(2)}, path),
    ObjectFormat.ZIP: lambda path: torch.save({"w": torch.ones(2)}, path),
    ObjectFormat.LEGACY: lambda path: torch.save([torch.ones(2)], path, _use_new_zipfile_serialization=False),
    ObjectFormat.TAR: tarred,
    ObjectFormat.PICKLE: pickled,
}


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x"])
@pytest.mark.parametrize("kind", [*TensorFormat, *ObjectFormat])
def test_the_content_alone_decides(tmp_path, kind, name):
    """Every format is known by what a writer of it writes, under any name."""
    WRITERS[kind](tmp_path / name)
    assert content_format(tmp_path / name) is kind


@pytest.mark.parametrize("kind", TensorFormat)
def test_files_of_tensors_open_alike(tmp_path, kind):
    """Every format of tensors by name has a reader that does what all do."""
    WRITERS[kind](tmp_path / "x")
    with kind.open(tmp_path / "x") as file:
        assert isinstance(file, TensorFile)
        assert torch.equal(file.read()["w"], torch.ones(2))
        file.read_into({"w": (target := torch.zeros(2))})
    assert torch.equal(target, torch.ones(2))


def test_files_of_tensors_hold_no_objects(tmp_path):
    """Who wants an object of a file of tensors is told what to call instead."""
    save_file({"w": torch.ones(2)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"is a safetensors file.*load_weights"):
        load_model(tmp_path / "x.pt")


@given(st.binary(max_size=600))
def test_any_bytes_are_told_by_name(tmp_path_factory, data):
    """Whatever a file begins with, it is of a known format, or an error says that it is none."""
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(data)
    with contextlib.suppress(CheckpointError):
        assert content_format(path) in WRITERS


def test_a_file_that_is_not_there(tmp_path):
    """A missing file and a folder are named as such."""
    with pytest.raises(CheckpointError, match="There is no file"):
        content_format(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="Can't open"):
        content_format(tmp_path)
