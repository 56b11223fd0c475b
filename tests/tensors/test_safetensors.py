"""Tensor files: what is written comes back, others can read it, and no damage goes unnoticed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ftkit._formats import open_file
from ftkit._tensors.safetensors import SafetensorsFile, write_tensors
from ftkit.errors import CheckpointError, DamagedFileError, FileWriteError

DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
]


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """A tensor of any type that the format knows, of up to three sides, laid out in some way."""
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    seed = draw(st.integers(0, 99))
    made = torch.randint(0, 9, shape, generator=torch.Generator().manual_seed(seed)).to(draw(st.sampled_from(DTYPES)))
    layout = draw(st.sampled_from(["as it is", "transposed", "sliced", "conjugate", "parameter"]))
    if layout == "transposed" and made.ndim > 1:
        return made.mT
    if layout == "sliced" and made.ndim:
        return made[::2]
    if layout == "conjugate" and made.is_complex():
        return made.conj()
    if layout == "parameter" and made.is_floating_point():
        return torch.nn.Parameter(made)
    return made


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__")


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Tell whether two tensors of small whole numbers are equal in shape, type and values."""
    return a.dtype == b.dtype and torch.equal(a.to(torch.complex128), b.to(torch.complex128))


def read(path: Path) -> dict[str, torch.Tensor]:
    """Everything in a file."""
    with open_file(path) as file:
        return file.read()


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A small file with a bit of everything."""
    shared = torch.randn(2, 3)
    write_tensors(
        tmp_path / "small.safetensors",
        {
            "a": shared,
            "b": shared,
            "empty": torch.empty(0, 2),
            "half": torch.ones(3).half(),
            "flag": torch.tensor(True),
        },
        {"note": "hello"},
    )
    return tmp_path / "small.safetensors"


@settings(deadline=None, max_examples=80)
@given(st.dictionaries(names, tensors(), max_size=5), st.dictionaries(names, st.text(max_size=9), max_size=2))
def test_round_trip(tmp_path_factory, given_tensors, metadata):
    """Any names, types, shapes and layouts come back, bit for bit; so does the metadata."""
    metadata = {key: value.encode(errors="ignore").decode() for key, value in metadata.items() if "ftkit" not in key}
    path = tmp_path_factory.mktemp("round") / "x.safetensors"
    write_tensors(path, given_tensors, metadata)
    with open_file(path) as file:
        back = file.read()
        assert {key: file.metadata[key] for key in metadata} == metadata
        assert file.verified
        file.verify()
    assert back.keys() == given_tensors.keys()
    assert all(same(back[name], tensor) for name, tensor in given_tensors.items())


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(names, tensors(), max_size=4))
def test_safetensors_reads_it(tmp_path_factory, given_tensors):
    """The safetensors library reads our files and gives the same values and a format it knows."""
    path = tmp_path_factory.mktemp("theirs") / "x.safetensors"
    write_tensors(path, given_tensors)
    theirs = load_file(path)
    assert all(same(theirs[name], given_tensors[name]) for name in theirs)
    assert len(theirs) >= len({id(tensor) for tensor in given_tensors.values()})
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["format"] == "pt"


def test_reads_files_of_others(tmp_path):
    """A file that the safetensors library wrote is read, and says that it can't be verified."""
    save_file({"w": torch.arange(6.0).reshape(2, 3)}, tmp_path / "theirs.safetensors", metadata={"by": "them"})
    with open_file(tmp_path / "theirs.safetensors") as file:
        assert not file.verified
        assert file.metadata == {"by": "them"}
        assert torch.equal(file.read()["w"], torch.arange(6.0).reshape(2, 3))
        with pytest.raises(DamagedFileError, match="no digests"):
            file.verify()


def test_any_flipped_byte_is_noticed(small):
    """Whichever byte of a file is changed, in whichever bit: opening or reading it is an error."""
    data = small.read_bytes()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << (position % 8)
        small.write_bytes(flipped)
        with pytest.raises(CheckpointError):
            read(small)


def test_any_cut_is_noticed(small):
    """A file that ends early or late is an error, wherever it ends."""
    data = small.read_bytes()
    for end in range(len(data)):
        small.write_bytes(data[:end])
        with io.FileIO(small) as file, pytest.raises(DamagedFileError):
            SafetensorsFile(file)
    small.write_bytes(data + b"\0")
    with pytest.raises(DamagedFileError, match="data was appended"):
        read(small)


def test_damage_names_the_tensor(tmp_path):
    """The error says which tensor is damaged, by reading and by verifying, for big ones too."""
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"first": torch.zeros(1_000_000), "second": torch.zeros(1_000_000)})
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)
    with open_file(path) as file:
        with pytest.raises(DamagedFileError, match="'second'"):
            file.read()
        with pytest.raises(DamagedFileError, match="'second'"):
            file.verify()
        assert file.read(["first"])["first"].sum() == 0


def test_file_cut_while_open(small):
    """A file that shrinks under the reader's hands is an error, not garbage."""
    with open_file(small) as file:
        with small.open("r+b") as other:
            other.truncate(small.stat().st_size - 3)
        with pytest.raises(DamagedFileError, match="cut short"):
            file.read()


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="no positional reads here")
def test_a_disk_that_fails_is_damage(small, monkeypatch):
    """A sector that can't be read says which tensor is lost; autograd knows that the targets may have changed."""

    def broken(*_):
        raise OSError(5, "Input/output error")

    with open_file(small) as file:
        target = torch.zeros(file.tensors["a"].shape)
        before = target._version
        monkeypatch.setattr(os, "preadv", broken)
        with pytest.raises(DamagedFileError, match="'a': Input/output error"):
            file.read_into({"a": target})
    assert target._version > before


def test_tied_tensors_are_stored_once(tmp_path):
    """One memory under two names takes the room of one, and comes back as one memory."""
    weight = torch.nn.Parameter(torch.randn(100, 100))
    write_tensors(tmp_path / "x.safetensors", {"in": weight, "out": weight, "other": weight.detach().clone()})
    assert (tmp_path / "x.safetensors").stat().st_size < 2.1 * weight.numel() * 4
    with open_file(tmp_path / "x.safetensors") as file:
        assert file.tensors["out"].name == "in"
        back = file.read()
    assert back["in"] is back["out"]
    assert torch.equal(back["other"], weight)


def test_views_of_one_memory_keep_their_values(tmp_path):
    """Two different views of one memory are two tensors, each with its own values."""
    whole = torch.arange(12.0)
    write_tensors(
        tmp_path / "x.safetensors", {"half": whole[:6], "shaped": whole.reshape(3, 4), "turned": whole.reshape(3, 4).T}
    )
    back = read(tmp_path / "x.safetensors")
    assert torch.equal(back["half"], whole[:6])
    assert torch.equal(back["shaped"], whole.reshape(3, 4))
    assert torch.equal(back["turned"], whole.reshape(3, 4).T)


@pytest.mark.parametrize(
    "target",
    [
        torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.zeros(2, 3, 4, 4, dtype=torch.float64),
        torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16),
        torch.zeros(4, 4, 3, 2).permute(3, 2, 0, 1),
        torch.nn.Parameter(torch.zeros(2, 3, 4, 4)),
    ],
)
def test_reads_into_any_target(tmp_path, target):
    """A target of another type or layout gets the values, and keeps its type and layout."""
    values = torch.randint(-9, 9, (2, 3, 4, 4)).float()
    write_tensors(tmp_path / "x.safetensors", {"w": values})
    stride, dtype = target.stride(), target.dtype
    with open_file(tmp_path / "x.safetensors") as file:
        file.read_into({"w": target})
    assert torch.equal(target.detach().float(), values)
    assert (target.stride(), target.dtype) == (stride, dtype)


def test_misfit_touches_nothing(small):
    """When one shape differs or one name is unknown, no target changes."""
    good = torch.zeros(2, 3)
    with open_file(small) as file:
        with pytest.raises(CheckpointError, match=r"'half' has shape \[3\].*\[4\]"):
            file.read_into({"a": good, "half": torch.zeros(4)})
        with pytest.raises(CheckpointError, match="Did you mean 'half'"):
            file.read_into({"a": good, "hald": torch.zeros(3)})
        with pytest.raises(CheckpointError, match="meta"):
            file.read_into({"a": torch.zeros(2, 3, device="meta")})
    assert good.sum() == 0


def test_autograd_sees_the_change(tmp_path):
    """A backward pass that needs the values from before the load is an error, not a wrong gradient."""
    write_tensors(tmp_path / "x.safetensors", {"w": torch.ones(3)})
    weight = torch.nn.Parameter(torch.full((3,), 5.0))
    loss = (weight * weight).sum()
    with open_file(tmp_path / "x.safetensors") as file:
        file.read_into({"w": weight})
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.ones(2, device="meta"), "meta"),
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.ones(2, dtype=torch.complex128), "complex128"),
        (torch.nn.parameter.UninitializedParameter(), "run the model once"),
        ([1, 2], "list"),
    ],
)
def test_refuses_what_it_cannot_keep(tmp_path, tensor, says):
    """What has no values or does not fit the format is an error that names it, and no file appears."""
    with pytest.raises(CheckpointError, match=says) as error:
        write_tensors(tmp_path / "x.safetensors", {"fine": torch.ones(1), "odd.one": tensor})
    assert "odd.one" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_refuses_reserved_names(tmp_path):
    """Names that the format or ftkit keeps for itself, and metadata that is no text, are errors."""
    for bad in ({"ftkit.tensors": ""}, {"ftkit.header": ""}, {"epoch": 3}):
        with pytest.raises(CheckpointError):
            write_tensors(tmp_path / "x.safetensors", {}, bad)
    with pytest.raises(CheckpointError, match="__metadata__"):
        write_tensors(tmp_path / "x.safetensors", {"__metadata__": torch.ones(1)})
    with pytest.raises(CheckpointError, match="Unicode"):
        write_tensors(tmp_path / "x.safetensors", {"\ud800": torch.ones(1)})


def test_rewritten_by_others(small):
    """A file that another program rewrote with ftkit's metadata kept is refused, with the remedy."""
    raw = small.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    metadata = json.loads(raw[8 : 8 + length])["__metadata__"]
    save_file({"a": torch.zeros(2, 3)}, small, metadata=metadata)
    with pytest.raises(DamagedFileError, match="must drop"):
        open_file(small)


def test_without_digests(tmp_path):
    """Digests can be left out; the header stays guarded, and tied names come back."""
    weight = torch.ones(4)
    write_tensors(tmp_path / "x.safetensors", {"a": weight, "b": weight}, digests=False)
    with open_file(tmp_path / "x.safetensors") as file:
        assert not file.verified
        assert file.read()["b"].sum() == 4


def test_a_full_disk_keeps_the_old_file(tmp_path):
    """When the disk is full, the error says so, the old file is whole and nothing is left behind."""
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"w": torch.ones(10)})
    code = """
        import resource, signal, sys, torch
        from ftkit.errors import FileWriteError
        from ftkit._tensors.safetensors import write_tensors
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, 20_000_000))
        try:
            write_tensors(sys.argv[1], {"w": torch.zeros(10_000_000)})
        except FileWriteError as error:
            print(error)
    """
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), path], capture_output=True, text=True, check=True
    )
    assert "intact" in done.stdout
    assert torch.equal(read(path)["w"], torch.ones(10))
    assert list(tmp_path.iterdir()) == [path]


def test_a_lost_flush_is_an_error(tmp_path, monkeypatch):
    """When the disk reports that what it was given before is lost, the save fails."""

    def broken(_descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(FileWriteError, match="Input/output error"):
        write_tensors(tmp_path / "x.safetensors", {f"w{i}": torch.zeros(2_000_000) for i in range(20)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no hints here")
def test_a_refused_hint_costs_no_save(tmp_path, monkeypatch):
    """A file system that takes no hints holds files all the same."""

    def refused(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "posix_fadvise", refused)
    write_tensors(tmp_path / "x.safetensors", {"w": torch.ones(5_000_000)})
    assert read(tmp_path / "x.safetensors")["w"].sum() == 5_000_000


@pytest.mark.slow
def test_no_second_copy_in_memory(tmp_path):
    """Saving and loading 400 MB adds less than a twentieth of that to the peak of memory."""
    code = """
        import resource, sys, torch
        from ftkit._formats import open_file
        from ftkit._tensors.safetensors import write_tensors
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        write_tensors(sys.argv[1], {"warm": torch.ones(1_000_000)})
        tensors = {f"w{i}": torch.full((5_000_000,), float(i)) for i in range(20)}
        before = peak()
        write_tensors(sys.argv[1], tensors)
        with open_file(sys.argv[1]) as file:
            file.read_into(tensors)
        print((peak() - before) * 1024 / 400e6)
    """
    pytest.importorskip("resource")
    arguments = [sys.executable, "-c", textwrap.dedent(code), tmp_path / "x.safetensors"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.05
