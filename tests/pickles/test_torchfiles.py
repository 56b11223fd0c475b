"""Torch's files of every age: all are read, and no damage goes unnoticed."""

from __future__ import annotations

import collections
import logging
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ftkit._formats import open_file
from ftkit._pickles.torchfiles import LegacyPickle, TarPickle
from ftkit.errors import CheckpointError, DamagedFileError
from tests.pickles.states import alike, load, write_tar


def rezip(source: Path, target: Path, compression: int = zipfile.ZIP_STORED) -> None:
    """Write a zip archive anew."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """A state dict with some of everything."""
    shared = torch.randn(4, 3)
    return {
        "w": shared,
        "turned": shared.T,
        "tied": shared,
        "half": torch.randn(5).half(),
        "bf16": torch.randn(5).bfloat16(),
        "f8": torch.ones(5).to(torch.float8_e4m3fn),
        "u16": torch.arange(4).to(torch.uint16),
        "flags": torch.tensor([True, False]),
        "complex": torch.complex(shared, shared).conj(),
        "negative": torch.complex(shared, shared).conj().imag,
        "empty": torch.empty(0, 7),
        "scalar": torch.tensor(3),
        "parameter": nn.Parameter(torch.randn(2)),
        "expanded": torch.ones(1).expand(10**10),
    }


@pytest.mark.parametrize("kind", ["zip", "compressed", "legacy", "protocol 4"])
def test_reads_every_format(tmp_path, state, kind):
    """Plain tensors come back from every format, sharing the memory they shared, and into targets too."""
    path = tmp_path / "x.pt"
    if kind == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(state, path, pickle_protocol=4 if kind == "protocol 4" else 2)
    if kind == "compressed":
        rezip(path, tmp_path / "y.pt", zipfile.ZIP_DEFLATED)
        path = tmp_path / "y.pt"
    back = load(path)
    assert alike(back, state)
    assert back["w"].data_ptr() == back["turned"].data_ptr()
    targets = {
        name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in state.items() if name != "expanded"
    }
    with open_file(path) as file:
        assert file.verified == (kind != "legacy")
        assert file.wanted == []
        file.read_into((file.tree[name], target) for name, target in targets.items())
    assert alike(targets, {name: tensor for name, tensor in state.items() if name != "expanded"})


def test_reads_tar(tmp_path):
    """The format of 2016, which torch itself refuses unless trusted, is read."""
    tensors = {"w": torch.randn(3, 4), "b": torch.randn(4)}
    write_tar(tmp_path / "old.pth.tar", tensors)
    with open_file(tmp_path / "old.pth.tar") as file:
        assert isinstance(file, TarPickle)
    assert alike(load(tmp_path / "old.pth.tar"), tensors)
    assert alike(torch.load(tmp_path / "old.pth.tar", weights_only=False), tensors)


def test_reads_plain_pickles(tmp_path, state):
    """Tensors that ``pickle.dump`` wrote, each a file of torch's old format inside the pickle, come back."""
    with (tmp_path / "x.pkl").open("wb") as file:
        pickle.dump({name: tensor for name, tensor in state.items() if name != "expanded"}, file)
    back = load(tmp_path / "x.pkl")
    assert alike(back, {name: tensor for name, tensor in state.items() if name != "expanded"})


def test_reads_numpy_and_plain_values(tmp_path):
    """What people keep beside weights needs no trust: numbers and arrays of numpy, sizes, devices, sets."""
    whole = {
        "best": np.float64(0.5),
        "array": np.arange(6, dtype=">i4").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "names": np.array(["ant", "bee"]),
        "size": torch.Size([2, 3]),
        "device": torch.device("cuda:1"),
        "dtype": torch.bfloat16,
        "set": {1, 2},
        "bytes": b"\xff\x00",
        "counter": collections.Counter("aab"),
    }
    torch.save(whole, tmp_path / "x.pt")
    back = load(tmp_path / "x.pt")
    for name in ("array", "fortran", "names"):
        assert np.array_equal(back.pop(name), whole.pop(name))
    assert back == whole


def test_reads_rarer_tensors(tmp_path):
    """Sparse and quantized tensors come back, built by torch."""
    whole = {"sparse": torch.eye(3).to_sparse(), "w": torch.ones(2)}
    torch.save(whole, tmp_path / "x.pt")
    assert torch.equal(load(tmp_path / "x.pt")["sparse"].to_dense(), torch.eye(3))


@pytest.mark.parametrize("trusted", [False, True])
def test_flipped_bytes_are_noticed(tmp_path, trusted):
    """Whichever byte of a tensor or of the pickle is flipped, the file is refused, trusted or not."""
    path = tmp_path / "x.pt"
    torch.save(nn.Linear(3, 3) if trusted else {"w": torch.randn(4, 4)}, path)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        spans = [
            (entry.header_offset, entry.file_size)
            for entry in archive.infolist()
            if entry.filename.split("/")[1] in {"data", "data.pkl"}
        ]
    for header, size in spans:
        names, extras = struct.unpack_from("<HH", data, header + 26)
        start = header + 30 + names + extras
        for position in range(start, start + size, 3 if trusted else 1):
            flipped = bytearray(data)
            flipped[position] ^= 1 << (position % 8)
            path.write_bytes(flipped)
            with pytest.raises(DamagedFileError):
                load(path, trusted=trusted)


@pytest.mark.parametrize("zipped", [True, False])
def test_cut_files_are_refused(tmp_path, zipped):
    """A file cut anywhere is refused."""
    path = tmp_path / "x.pt"
    torch.save({"w": torch.randn(4, 4)}, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    for end in range(0, len(data) - 1, 7):
        path.write_bytes(data[:end])
        with pytest.raises(CheckpointError):
            load(path)


def test_without_checksums(tmp_path):
    """A file that torch wrote without checksums is read, and not called verified."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(3)}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    with open_file(tmp_path / "x.pt") as file:
        assert not file.verified
    assert torch.equal(load(tmp_path / "x.pt")["w"], torch.ones(3))


def test_other_zips(tmp_path):
    """A zip archive that torch did not write is refused by what it lacks."""
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("pictures/ant.jpg", b"...")
    with pytest.raises(CheckpointError, match=r"no data\.pkl"):
        load(tmp_path / "x.pt")
    np.savez(tmp_path / "x.npz", w=np.ones(2))
    with pytest.raises(CheckpointError, match=r"dict\(numpy\.load\(path\)\)"):
        load(tmp_path / "x.npz")
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), tmp_path / "x.pt2")
    with pytest.raises(CheckpointError, match=r"torch\.export\.load"):
        load(tmp_path / "x.pt2")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_torchscript_is_named(tmp_path):
    """A TorchScript archive is refused whole with the right remedy; its tensors are in the tree."""
    torch.jit.script(nn.Linear(2, 3)).save(str(tmp_path / "x.pt"))
    with open_file(tmp_path / "x.pt") as file:
        assert file.script
        assert file.tree.state["weight"].shape == (3, 2)
    with pytest.raises(CheckpointError, match="TorchScript"):
        load(tmp_path / "x.pt", trusted=True)


def test_closes_its_files(tmp_path, caplog):
    """Refused files are closed: they can be deleted everywhere, and no warning is left behind."""
    (tmp_path / "x.pt").write_bytes(b"PK\x03\x04 and no more")
    with caplog.at_level(logging.WARNING), pytest.raises(DamagedFileError):
        load(tmp_path / "x.pt")
    (tmp_path / "x.pt").unlink()
    assert not caplog.records


def test_a_flipped_bit_in_the_directory_is_damage(tmp_path):
    """Where the zip's directory points somewhere else, even before the file, the error says that it is damaged."""
    path = tmp_path / "x.pt"
    torch.save({"w": torch.zeros(3)}, path)
    data = path.read_bytes()
    end = data.rindex(b"PK\x01\x02")
    pointed = 0
    for position in range(end, len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x80
        path.write_bytes(damaged)
        try:
            open_file(path).close()
        except DamagedFileError as error:
            pointed += "points to byte -" in str(error)
        except CheckpointError:
            pass
    assert pointed


def test_whatever_byte_is_flipped_the_values_are_right(tmp_path):
    """Any flipped bit of a torch file, its zip headers and padding included, is noticed or does no harm."""
    path = tmp_path / "x.pt"
    state = {"w": torch.randn(3, 2), "epoch": 3, "names": ["a", "b"]}
    torch.save(state, path)
    data = path.read_bytes()
    noticed = 0
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        try:
            back = load(path)
        except CheckpointError:
            noticed += 1
            continue
        assert torch.equal(back["w"], state["w"])
        assert (back["epoch"], back["names"]) == (3, ["a", "b"])
    assert noticed > 300


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_old_format_of_any_protocol(tmp_path, protocol):
    """The old format begins with a number in a pickle, which newer protocols put into a frame; nothing checks it."""
    path = tmp_path / "x.pt"
    torch.save({"w": torch.ones(2)}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    with open_file(path) as file:
        assert isinstance(file, LegacyPickle)
        assert not file.verified
    assert torch.equal(load(path)["w"], torch.ones(2))


def test_a_bare_pickle_is_not_called_verified(tmp_path):
    """Arrays inside a pickle have checksums only where the pickle lies in an archive."""
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"w": np.ones(2)}))
    torch.save({"w": np.ones(2)}, tmp_path / "x.pt")
    for name, verified in (("x.pkl", False), ("x.pt", True)):
        with open_file(tmp_path / name) as file:
            assert file.verified == verified


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor")
@pytest.mark.parametrize("dtype", [torch.quint8, torch.qint8, torch.qint32, torch.quint4x2])
def test_quantized_tensors(tmp_path, dtype):
    """They are none of weights' business, but no damage either."""
    if dtype is torch.quint4x2:
        ones = torch.ones(4)
        tensor = torch.quantize_per_channel(torch.ones(4, 2), ones * 0.1, torch.zeros(4), 0, dtype)
    else:
        tensor = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, dtype)
    torch.save({"w": tensor}, tmp_path / "x.pt")
    with open_file(tmp_path / "x.pt") as file:
        assert (file.rare, file.wanted) == (["quantized"], [])
    assert torch.equal(load(tmp_path / "x.pt")["w"].int_repr(), tensor.int_repr())


def test_negatives_without_a_view_of_them(tmp_path, monkeypatch):
    """Where a torch has no view of negatives, they are copied."""
    turned = torch.complex(torch.ones(2), torch.arange(2.0)).conj().imag
    assert turned.is_neg()
    torch.save({"w": turned}, tmp_path / "x.pt")
    monkeypatch.delattr(torch, "_neg_view")
    assert load(tmp_path / "x.pt")["w"].tolist() == [0, -1]


def test_a_read_that_fails_marks_its_targets(tmp_path):
    """What damage left half read is changed too: a backward pass over the old values is an error."""
    torch.save({"w": torch.ones(4096)}, tmp_path / "x.pt")
    data = bytearray((tmp_path / "x.pt").read_bytes())
    data[data.index(torch.ones(4096).numpy().tobytes())] ^= 1
    (tmp_path / "x.pt").write_bytes(data)
    weight = torch.zeros(4096, requires_grad=True)
    loss = (weight * weight).sum()
    with open_file(tmp_path / "x.pt") as file, pytest.raises(DamagedFileError):
        file.read_into([(file.tree["w"], weight)])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
