"""Formats: a file is what its content says, and what is no weights file is named for what it is."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ftkit import load_model
from ftkit._formats import FORMATS, open_file
from ftkit._pickles.gate import load_pickle
from ftkit._pickles.torchfiles import PickleFile
from ftkit._tensors.file import TensorFile
from ftkit.errors import CheckpointError
from tests.pickles.states import write_tar


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
        open_file(tmp_path / "model.pt")


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"w": torch.ones(2)}, 4))


def tarred(path: Path) -> None:
    write_tar(path, {"w": torch.ones(2)})


WRITERS: dict[str, Callable[[Path], object]] = {
    "safetensors": lambda path: save_file({"w": torch.ones(2)}, path),
    "zip": lambda path: torch.save({"w": torch.ones(2)}, path),
    "legacy": lambda path: torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False),
    "tar": tarred,
    "pickle": pickled,
}


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x"])
@pytest.mark.parametrize("reader", [reader for _, reader in FORMATS])
def test_the_content_alone_decides(tmp_path, reader, name):
    """Every format is known by what a writer of it writes, under any name, and its file says what it is."""
    WRITERS[reader.format](tmp_path / name)
    with open_file(tmp_path / name) as file:
        assert (type(file), file.path, file.format) == (reader, str(tmp_path / name), reader.format)
    with pytest.raises(ValueError, match="closed file"):
        file._file.fileno()


@pytest.mark.parametrize("reader", [reader for _, reader in FORMATS if issubclass(reader, TensorFile)])
def test_files_of_tensors_read_alike(tmp_path, reader):
    """Every format of tensors by name has a reader that does what all do."""
    WRITERS[reader.format](tmp_path / "x")
    with open_file(tmp_path / "x") as file:
        assert torch.equal(file.read()["w"], torch.ones(2))
        file.read_into({"w": (target := torch.zeros(2))})
    assert torch.equal(target, torch.ones(2))


@pytest.mark.parametrize("reader", [reader for _, reader in FORMATS if issubclass(reader, PickleFile)])
def test_files_of_objects_read_alike(tmp_path, reader):
    """Every format of pickles has a reader that does what all do."""
    WRITERS[reader.format](tmp_path / "x")
    with open_file(tmp_path / "x") as file:
        file.read_into([(file.tree["w"], target := torch.zeros(2))])
    assert (torch.equal(target, torch.ones(2)), file.wanted, file.rare) == (True, [], [])


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_is_replaced_stays_the_one_it_was(tmp_path, kind):
    """A file is opened by its name once: what takes its place later, while it is read, is another file."""
    path = tmp_path / "x"
    WRITERS[kind](path)
    with open_file(path) as file:
        (tmp_path / "other").write_bytes(b"another file")
        (tmp_path / "other").replace(path)
        if isinstance(file, TensorFile):
            assert torch.equal(file.read()["w"], torch.ones(2))
        else:
            assert torch.equal(load_pickle(file)["w"], torch.ones(2))
            with file.verified_whole() as whole:
                assert whole.read(12) != b"another file"


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
        open_file(path).close()


def test_a_file_that_is_not_there(tmp_path):
    """A missing file and a folder are named as such."""
    with pytest.raises(CheckpointError, match="There is no file"):
        open_file(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="Can't open"):
        open_file(tmp_path)
