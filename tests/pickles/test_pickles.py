"""The trust gate: every format is read, nothing runs unasked, and damage is noticed."""

from __future__ import annotations

import collections
import contextlib
import decimal
import fractions
import io
import logging
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Self

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ftkit import freeze_except, load_model, save_model, trainable, unfreeze
from ftkit._formats import ObjectFormat, content_format
from ftkit._pickles.gate import load_pickle
from ftkit._pickles.machine import Foreign, Global, read_pickle
from ftkit._pickles.torchfiles import PickleFile
from ftkit.errors import CheckpointError, DamagedFileError, UntrustedFileError

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=9)
    | st.binary(max_size=9)
    | st.complex_numbers(allow_nan=False),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=4),
        st.sets(st.integers(), max_size=4),
        st.frozensets(st.text(max_size=3), max_size=4),
    ),
    max_leaves=20,
)


class Custom(nn.Module):
    """A model of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)


def rezip(source: Path, target: Path, compression: int = zipfile.ZIP_STORED) -> None:
    """Write a zip archive anew."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))


def write_tar(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a tar archive as torch did in 2016."""
    storages, descriptions = io.BytesIO(), io.BytesIO()
    pickle.dump(len(tensors), storages, 2)
    pickle.dump(len(tensors), descriptions, 2)
    for index, tensor in enumerate(tensors.values()):
        # The storage class, by name, as a pickle of that time had it.
        storages.write(b"\x80\x02K" + bytes([index]) + b"X\x03\x00\x00\x00cpuctorch\nFloatStorage\n\x87.")
        storages.write(struct.pack("<q", tensor.numel()) + tensor.contiguous().numpy().tobytes())
        descriptions.write(b"\x80\x02K" + bytes([100 + index]) + b"K" + bytes([index]) + b"ctorch\nFloatTensor\n\x87.")
        descriptions.write(struct.pack("<ixxxx", tensor.ndim) + struct.pack(f"<{tensor.ndim}q", *tensor.shape))
        descriptions.write(struct.pack(f"<{tensor.ndim}q", *tensor.stride()) + struct.pack("<q", 0))
    pickle.dump([], storages, 2)
    body = b"\x80\x02}(" + b"".join(
        b"X" + struct.pack("<I", len(name)) + name.encode() + b"K" + bytes([100 + index]) + b"Q"
        for index, name in enumerate(tensors)
    )
    with tarfile.open(path, "w") as archive:
        parts = {
            "sys_info": b"",
            "pickle": body + b"u.",
            "tensors": descriptions.getvalue(),
            "storages": storages.getvalue(),
        }
        for name, content in parts.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


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


def alike(back: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> bool:
    """Tell whether two state dicts hold the same."""
    return back.keys() == state.keys() and all(
        back[name].dtype == tensor.dtype
        and back[name].shape == tensor.shape
        and (name == "expanded" or torch.equal(back[name].to(torch.complex128), tensor.to(torch.complex128)))
        for name, tensor in state.items()
    )


@settings(deadline=None, max_examples=150)
@given(plain, st.integers(0, 5))
def test_machine_agrees_with_pickle(value, protocol):
    """The machine reads plain data of any protocol as pickle itself does."""
    assert read_pickle(io.BytesIO(pickle.dumps(value, protocol))).tree == value


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60), st.booleans())
def test_machine_survives_anything(data, after_protocol):
    """Whatever the bytes, the machine ends with data or with the one error."""
    with contextlib.suppress(DamagedFileError):
        read_pickle(io.BytesIO(b"\x80\x02" * after_protocol + data + b"."))


def test_machine_records_instead_of_running():
    """Calls, instances and their states become records; names are listed in order."""
    value = [
        collections.OrderedDict(a=1),
        collections.defaultdict(list, {1: [2]}),
        fractions.Fraction(1, 2),
        Custom,
        decimal.Decimal("1.5"),
    ]
    read = read_pickle(io.BytesIO(pickle.dumps(value, 2)))
    assert read.tree[:2] == [{"a": 1}, {1: [2]}]
    assert isinstance(read.tree[2], Foreign)
    assert isinstance(read.tree[3], Global)
    assert read.tree[4].args == ("1.5",)
    assert read.wanted[-2:] == [f"{Custom.__module__}.Custom", "decimal.Decimal"]


def test_machine_does_not_hash_forever():
    """A key of tuples inside tuples, whose hash would take 2**60 steps, is refused at once."""
    bomb = b"\x80\x02}(" + b")" + b"2\x86" * 60 + b"Nu."
    with pytest.raises(DamagedFileError, match="nested"):
        read_pickle(io.BytesIO(bomb))


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
    back = load_pickle(path)
    assert alike(back, state)
    assert back["w"].data_ptr() == back["turned"].data_ptr()
    targets = {
        name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in state.items() if name != "expanded"
    }
    with PickleFile(path) as file:
        assert file.verified == (kind != "legacy")
        assert file.wanted == []
        file.read_into((file.tree[name], target) for name, target in targets.items())
    assert alike(targets, {name: tensor for name, tensor in state.items() if name != "expanded"})


def test_reads_tar(tmp_path):
    """The format of 2016, which torch itself refuses unless trusted, is read."""
    tensors = {"w": torch.randn(3, 4), "b": torch.randn(4)}
    write_tar(tmp_path / "old.pth.tar", tensors)
    assert content_format(tmp_path / "old.pth.tar") is ObjectFormat.TAR
    assert alike(load_pickle(tmp_path / "old.pth.tar"), tensors)
    assert alike(torch.load(tmp_path / "old.pth.tar", weights_only=False), tensors)


def test_reads_plain_pickles(tmp_path, state):
    """Tensors that ``pickle.dump`` wrote, each a file of torch's old format inside the pickle, come back."""
    with (tmp_path / "x.pkl").open("wb") as file:
        pickle.dump({name: tensor for name, tensor in state.items() if name != "expanded"}, file)
    back = load_pickle(tmp_path / "x.pkl")
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
    back = load_pickle(tmp_path / "x.pt")
    for name in ("array", "fortran", "names"):
        assert np.array_equal(back.pop(name), whole.pop(name))
    assert back == whole


def test_reads_rarer_tensors(tmp_path):
    """Sparse and quantized tensors come back, built by torch."""
    whole = {"sparse": torch.eye(3).to_sparse(), "w": torch.ones(2)}
    torch.save(whole, tmp_path / "x.pt")
    assert torch.equal(load_pickle(tmp_path / "x.pt")["sparse"].to_dense(), torch.eye(3))


def test_self_reference(tmp_path):
    """A table that contains itself comes back containing itself."""
    table: dict[str, object] = {"w": torch.ones(2)}
    table["me"] = [table]
    torch.save(table, tmp_path / "x.pt")
    back = load_pickle(tmp_path / "x.pt")
    assert back["me"][0] is back


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_gate(tmp_path, options):
    """A whole model is refused with a list; admitting what is listed, or trusting, opens it."""
    path = tmp_path / "model.pt"
    model = Custom()
    model.layer.bias.requires_grad = False
    torch.save(model, path, **options)
    with pytest.raises(UntrustedFileError) as error:
        load_pickle(path)
    listed = [line.strip() for line in str(error.value).splitlines() if line.startswith("    ")]
    assert listed == [f"{Custom.__module__}.Custom", "torch.nn.modules.linear.Linear"]
    with pytest.raises(UntrustedFileError) as error:
        load_pickle(path, allow=[nn.Linear])
    assert "Custom" in str(error.value)
    assert "modules.linear" not in str(error.value)
    for opened in (load_pickle(path, allow=[Custom, nn.Linear]), load_pickle(path, trusted=True)):
        assert type(opened) is Custom
        assert alike(opened.state_dict(), model.state_dict())
        assert [parameter.requires_grad for parameter in opened.parameters()] == [True, False]
        assert torch.equal(opened.layer(torch.ones(3)), model.layer(torch.ones(3)))


@pytest.mark.parametrize("protocol", [2, 4])
def test_gate_opens_real_models(tmp_path, protocol):
    """Whole models of timm come back by their listed classes, with tied weights tied and the same outputs."""
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_vit", num_classes=3).eval()
    model.tied = nn.Linear(64, 64)
    model.tied.weight = model.blocks[0].attn.proj.weight
    torch.save(model, tmp_path / "x.pt", pickle_protocol=protocol)
    with PickleFile(tmp_path / "x.pt") as file:
        listed = file.wanted
    opened = load_pickle(tmp_path / "x.pt", allow=listed)
    picture = torch.randn(1, 3, *model.pretrained_cfg["input_size"][1:])
    assert torch.equal(opened(picture), model(picture))
    assert opened.tied.weight is opened.blocks[0].attn.proj.weight
    assert all(type(parameter) is nn.Parameter for parameter in opened.parameters())


def test_gate_opens_frozen_models(tmp_path):
    """A frozen model needs its own classes and no more; it is held as before; a hook is nothing to call."""
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_resnet", num_classes=3)
    freeze_except(model, "fc")
    save_model(model, tmp_path / "x.pt")
    opened = load_model(tmp_path / "x.pt", allow=[type(module) for module in model.modules()])
    assert list(trainable(opened)) == ["fc.weight", "fc.bias"]
    opened.train()
    opened(torch.randn(2, 3, 64, 64))
    assert alike(opened.state_dict(), model.state_dict())
    unfreeze(opened, "**")
    assert all(parameter.requires_grad for parameter in opened.parameters())
    (tmp_path / "y.pkl").write_bytes(b"\x80\x02cftkit._freezing.holding\nstay_in_eval\nNN\x86R.")
    with pytest.raises(CheckpointError, match="nothing that can be made"):
        load_pickle(tmp_path / "y.pkl")


class Keyworded:
    """An object that is made with keywords."""

    def __new__(cls, *, size: int) -> Self:
        made = super().__new__(cls)
        made.size = size
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, int]]:
        return (), {"size": self.size}


def test_objects_made_with_keywords(tmp_path):
    """Objects that are made with keywords come back where their class is admitted."""
    torch.save([Keyworded(size=3)], tmp_path / "x.pt", pickle_protocol=4)
    assert load_pickle(tmp_path / "x.pt", allow=[Keyworded])[0].size == 3


def test_allow_by_name(tmp_path):
    """Names admit too; one that can't be imported is an error."""
    torch.save(nn.Linear(2, 2), tmp_path / "x.pt")
    assert isinstance(load_pickle(tmp_path / "x.pt", allow=["torch.nn.modules.linear.Linear"]), nn.Linear)
    with pytest.raises(CheckpointError, match="nowhere"):
        load_pickle(tmp_path / "x.pt", allow=["nowhere.Linear"])


def test_allow_ends_with_the_call(tmp_path):
    """What one call admits is not admitted to the next."""
    torch.save(nn.Linear(2, 2), tmp_path / "x.pt")
    load_pickle(tmp_path / "x.pt", allow=[nn.Linear])
    with pytest.raises(UntrustedFileError):
        load_pickle(tmp_path / "x.pt")
    assert nn.Linear not in torch.serialization.get_safe_globals()


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
                load_pickle(path, trusted=trusted)


@pytest.mark.parametrize("zipped", [True, False])
def test_cut_files_are_refused(tmp_path, zipped):
    """A file cut anywhere is refused."""
    path = tmp_path / "x.pt"
    torch.save({"w": torch.randn(4, 4)}, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    for end in range(0, len(data) - 1, 7):
        path.write_bytes(data[:end])
        with pytest.raises(CheckpointError):
            load_pickle(path)


def test_without_checksums(tmp_path):
    """A file that torch wrote without checksums is read, and not called verified."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(3)}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    with PickleFile(tmp_path / "x.pt") as file:
        assert not file.verified
    assert torch.equal(load_pickle(tmp_path / "x.pt")["w"], torch.ones(3))


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


def test_other_zips(tmp_path):
    """A zip archive that torch did not write is refused by what it lacks."""
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("pictures/ant.jpg", b"...")
    with pytest.raises(CheckpointError, match=r"no data\.pkl"):
        load_pickle(tmp_path / "x.pt")
    np.savez(tmp_path / "x.npz", w=np.ones(2))
    with pytest.raises(CheckpointError, match=r"dict\(numpy\.load\(path\)\)"):
        load_pickle(tmp_path / "x.npz")
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), tmp_path / "x.pt2")
    with pytest.raises(CheckpointError, match=r"torch\.export\.load"):
        load_pickle(tmp_path / "x.pt2")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_torchscript_is_named(tmp_path):
    """A TorchScript archive is refused whole with the right remedy; its tensors are in the tree."""
    torch.jit.script(nn.Linear(2, 3)).save(str(tmp_path / "x.pt"))
    with PickleFile(tmp_path / "x.pt") as file:
        assert file.script
        assert file.tree.state["weight"].shape == (3, 2)
    with pytest.raises(CheckpointError, match="TorchScript"):
        load_pickle(tmp_path / "x.pt", trusted=True)


def test_closes_its_files(tmp_path, caplog):
    """Refused files are closed: they can be deleted everywhere, and no warning is left behind."""
    (tmp_path / "x.pt").write_bytes(b"PK\x03\x04 and no more")
    with caplog.at_level(logging.WARNING), pytest.raises(DamagedFileError):
        load_pickle(tmp_path / "x.pt")
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
            PickleFile(path).close()
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
            back = load_pickle(path)
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
    assert content_format(path) is ObjectFormat.LEGACY
    with PickleFile(path) as file:
        assert not file.verified
    assert torch.equal(load_pickle(path)["w"], torch.ones(2))


def test_a_bare_pickle_is_not_called_verified(tmp_path):
    """Arrays inside a pickle have checksums only where the pickle lies in an archive."""
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"w": np.ones(2)}))
    torch.save({"w": np.ones(2)}, tmp_path / "x.pt")
    for name, verified in (("x.pkl", False), ("x.pt", True)):
        with PickleFile(tmp_path / name) as file:
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
    with PickleFile(tmp_path / "x.pt") as file:
        assert (file.rare, file.wanted) == (["quantized"], [])
    assert torch.equal(load_pickle(tmp_path / "x.pt")["w"].int_repr(), tensor.int_repr())


def test_rare_tensors_beside_what_torch_refuses(tmp_path):
    """Torch alone builds sparse tensors, and refuses numbers of numpy beside them: an error that says so."""
    torch.save({"w": torch.eye(2).to_sparse(), "best": np.float64(0.5)}, tmp_path / "x.pt")
    with pytest.raises(UntrustedFileError, match="sparse tensors, which torch alone"):
        load_pickle(tmp_path / "x.pt")
    assert load_pickle(tmp_path / "x.pt", trusted=True)["best"] == 0.5


def test_paths_of_any_system_are_plain(tmp_path):
    """Paths, which training scripts keep beside weights, need no trust, wherever they were written."""
    there = {"here": Path("a/b"), "posix": PurePosixPath("/a"), "windows": PureWindowsPath("C:/a")}
    torch.save(there, tmp_path / "x.pt")
    assert load_pickle(tmp_path / "x.pt") == there


def test_harmless_names_are_no_alarm(tmp_path):
    """A range or a slice in a configuration is refused like any class, and not called an attack."""
    torch.save({"epochs": range(3), "crop": slice(2), "rest": ...}, tmp_path / "x.pt")
    with pytest.raises(UntrustedFileError, match=r"builtins\.range") as caught:
        load_pickle(tmp_path / "x.pt")
    assert "attack" not in str(caught.value)
