"""Hostile files, made here: nothing in them runs, nothing fills the memory, nothing loads as garbage.

Every payload would create a marker file. Each is tried against every call that opens a weights file.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import pickle
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ftkit import diff_checkpoints, inspect_checkpoint, load_checkpoint, load_model, load_weights, save_checkpoint
from ftkit.errors import CheckpointError, DamagedFileError, FtkitError, UntrustedFileError

resource = pytest.importorskip("resource")

VALUES = torch.arange(1, 4097, dtype=torch.float32) / 7


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


class Net(nn.Module):
    """The model that the files are for."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4096))


def body(extra: Any = None) -> dict[str, Any]:
    """A checkpoint of the usual kind, with something added."""
    return {"state_dict": {"w": VALUES.clone()}, "epoch": 0} | ({} if extra is None else {"x": extra})


def touch() -> str:
    """The command of the attacks; the working directory is the test's."""
    return "touch MARK"


def with_pickle(path: Path, raw: bytes) -> None:
    """Write a torch file whose pickle is this."""
    torch.save(body(), path)
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in entries.items():
            new.writestr(name, raw if name.endswith("data.pkl") else content)


def edited(path: Path, edit: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """Write a torch file anew with its entries edited."""
    with zipfile.ZipFile(path) as old:
        entries = {name: edit(name, old.read(name)) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, content in entries.items():
            new.writestr(name, content)


def text(value: str) -> bytes:
    """A short string, as a pickle has it."""
    return b"\x8c" + bytes([len(value)]) + value.encode()


def os_system(path: Path) -> None:
    torch.save(body(Call(os.system, touch())), path)


def eval_(path: Path) -> None:
    torch.save(body(Call(eval, "open('MARK', 'w').close()")), path)


def nested_reduce(path: Path) -> None:
    command = b"X" + struct.pack("<I", len(touch())) + touch().encode()
    imported = b"c__builtin__\n__import__\nX\x02\x00\x00\x00os\x85R"
    with_pickle(
        path, b"\x80\x02c__builtin__\ngetattr\n" + imported + b"X\x06\x00\x00\x00system\x86R" + command + b"\x85R."
    )


def stack_global(path: Path) -> None:
    with_pickle(path, b"\x80\x04" + text("posix") + text("system") + b"\x93" + text(touch()) + b"\x85R.")


def built_name(path: Path) -> None:
    """The name of the function is put together on the stack, and reached through an attribute."""
    with_pickle(path, b"\x80\x04" + text("torch") + text("os.system") + b"\x93" + text(touch()) + b"\x85R.")


def instance(path: Path) -> None:
    with_pickle(path, b"(S'touch MARK'\niposix\nsystem\n.")


def object_(path: Path) -> None:
    with_pickle(path, b"\x80\x02(cposix\nsystem\nS'touch MARK'\no.")


def setstate(path: Path) -> None:
    """The call hides in the state of an object that torch's own tables know."""
    with_pickle(path, b"\x80\x02ccollections\nOrderedDict\n)R}S'x'\ncposix\nsystem\nS'touch MARK'\n\x85Rsb.")


def storage_id(path: Path) -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            is_storage = isinstance(value, torch.UntypedStorage)
            return ("storage", Call(os.system, touch()), "0", "cpu", 4096) if is_storage else None

    file = io.BytesIO()
    tensor = Call(torch._utils._rebuild_tensor_v2, VALUES.untyped_storage(), 0, (4096,), (1,), False, {})
    Pickler(file, 2).dump({"state_dict": {"w": tensor}})
    with_pickle(path, file.getvalue())


def zip_in_zip(path: Path) -> None:
    inner = io.BytesIO()
    torch.save(Call(os.system, touch()), inner)
    torch.save(body(Call(torch.storage._load_from_bytes, inner.getvalue())), path)


def torch_gadget(path: Path) -> None:
    import torch.utils.collect_env

    torch.save(body(Call(torch.utils.collect_env.run, touch())), path)


def wrong_checksum(path: Path) -> None:
    os_system(path)
    with zipfile.ZipFile(path) as archive:
        checksum = next(entry.CRC for entry in archive.infolist() if entry.filename.endswith("data.pkl"))
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", checksum), struct.pack("<I", checksum ^ 1)))


def legacy(path: Path) -> None:
    torch.save(body(Call(os.system, touch())), path, _use_new_zipfile_serialization=False)


def legacy_header(path: Path) -> None:
    """The call stands where the old format keeps its description of the system."""
    torch.save(body(), path, _use_new_zipfile_serialization=False)
    raw = path.read_bytes()
    start = raw.index(b".", raw.index(b".") + 1) + 1
    path.write_bytes(raw[:start] + pickle.dumps(Call(os.system, touch()), 2) + raw[raw.index(b".", start) + 1 :])


def write_tar(path: Path, parts: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in parts.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def tar(path: Path) -> None:
    parts = {
        "storages": pickle.dumps(1, 2) + pickle.dumps(Call(os.system, touch()), 2),
        "tensors": pickle.dumps(0, 2),
        "pickle": pickle.dumps({}, 2),
        "sys_info": b"",
    }
    write_tar(path, parts)


def raw_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(body(Call(os.system, touch())), 2))


def extension_code(path: Path) -> None:
    with_pickle(path, b"\x80\x02\x82\x07S'touch MARK'\n\x85R.")


EXECUTING = [
    *(os_system, eval_, nested_reduce, stack_global, built_name, instance, object_, setstate, storage_id),
    *(zip_in_zip, torch_gadget, wrong_checksum, legacy, legacy_header, tar, raw_pickle, extension_code),
]


def weights(path: Path) -> Any:
    load_weights(model := Net(), path)
    return model.w


OPENERS = [weights, load_model, inspect_checkpoint, lambda path: diff_checkpoints(path, path)]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("make", EXECUTING, ids=lambda make: make.__name__)
def test_nothing_runs(tmp_path, monkeypatch, make, suffix):
    """Whatever call opens it and whatever its name says, the payload does not run; what loads is right."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"x{suffix}"
    make(path)
    for opener in OPENERS:
        try:
            result = opener(path)
        except CheckpointError:
            continue
        finally:
            assert not (tmp_path / "MARK").exists()
        assert opener is not load_model
        if opener is weights:
            assert torch.equal(result.detach(), VALUES)


@pytest.mark.parametrize("make", [os_system, stack_global, torch_gadget, nested_reduce], ids=lambda make: make.__name__)
def test_the_payloads_are_real(tmp_path, monkeypatch, make):
    """The same files do run when they are trusted: the tests above test something."""
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "x.pt")
    load_model(tmp_path / "x.pt", trusted=True)
    assert (tmp_path / "MARK").exists()


@pytest.mark.parametrize("name", ["posix.system", "builtins.eval"])
def test_commands_are_never_admitted(tmp_path, monkeypatch, name):
    """A name that runs commands can't be allowed one by one, only trusted with all else."""
    monkeypatch.chdir(tmp_path)
    (os_system if "posix" in name else eval_)(tmp_path / "x.pt")
    with pytest.raises(UntrustedFileError, match="this is how attacks look"):
        load_model(tmp_path / "x.pt", allow=[name])
    assert not (tmp_path / "MARK").exists()


def memory() -> int:
    """The highest memory this process has taken, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def bomb(path: Path) -> None:
    """256 MB of zeros in a quarter of one, declared and really there."""
    torch.save(body(torch.empty(1)), path)

    def blow(name: str, content: bytes) -> bytes:
        if name.endswith("data/1"):
            return bytes(1 << 28)
        return (
            content.replace(b"K\x01t", b"J" + struct.pack("<i", 1 << 26) + b"t") if name.endswith(".pkl") else content
        )

    edited(path, blow, zipfile.ZIP_DEFLATED)


def pickle_bomb(path: Path) -> None:
    """A pickle that is 256 MB once it is unpacked."""
    torch.save(body(), path)
    edited(path, lambda name, content: bytes(1 << 28) if name.endswith("data.pkl") else content, zipfile.ZIP_DEFLATED)


def overlapping(path: Path) -> None:
    """Two entries of a zip archive that share their bytes."""
    torch.save(body(torch.ones(4096)), path)
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        offsets = {entry.filename: entry.header_offset for entry in archive.infolist()}
        start = archive.start_dir
    first, second = (next(value for name, value in offsets.items() if name.endswith(f"data/{i}")) for i in (0, 1))
    at = raw.index(struct.pack("<I", second), start)
    raw[at : at + 4] = struct.pack("<I", first)
    path.write_bytes(raw)


def declares_terabytes(path: Path) -> None:
    torch.save(body(), path)
    edited(path, lambda _, content: content.replace(b"M\x00\x10", b"\x8a\x06" + (1 << 40).to_bytes(6, "little")))


def declares_terabytes_legacy(path: Path) -> None:
    torch.save(body(), path, _use_new_zipfile_serialization=False)
    raw = path.read_bytes()
    at = raw.rindex(struct.pack("<q", 4096))
    path.write_bytes(raw[:at] + struct.pack("<q", 1 << 40) + raw[at + 8 :])


def huge_memo(path: Path) -> None:
    """A memo slot so high that Python's own unpickler would take 64 GB for its table."""
    with_pickle(path, b"\x80\x02}r\xff\xff\xff\x7f.")


def huge_string(path: Path) -> None:
    with_pickle(path, b"\x80\x04\x8e" + struct.pack("<Q", 1 << 50) + b"x.")


def huge_string_alone(path: Path) -> None:
    path.write_bytes(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 50) + b"x.")


def long_string_alone(path: Path) -> None:
    """Two gigabytes are declared, which a reader could well make room for."""
    path.write_bytes(b"\x80\x04B" + struct.pack("<I", (1 << 31) - 1) + b"x.")


def long_strides(path: Path) -> None:
    """A tensor that reaches beyond its storage."""
    torch.save({"state_dict": {"w": VALUES.clone()[::2]}}, path)
    edited(path, lambda _, content: content.replace(b"K\x02\x85", b"K\x09\x85"))


def deep(path: Path) -> None:
    """Lists in lists in lists, a hundred thousand deep."""
    with_pickle(path, b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")


def laughing(path: Path) -> None:
    """Lists of the same list twice, sixty times over: tiny to keep, endless to walk."""
    with_pickle(path, b"\x80\x02]" + b"q\x000](h\x00h\x00e" * 60 + b".")


MEGABYTE = b"X" + struct.pack("<I", 1_000_000) + b"a" * 1_000_000 + b"q\x00"


def copied_strings(path: Path) -> None:
    """One megabyte, and six thousand calls of a few bytes that each make another one of it."""
    calls = b"c_codecs\nencode\nq\x01h\x00\x85R" + b"h\x01h\x00\x85R" * 6000
    with_pickle(path, b"\x80\x02](" + MEGABYTE + calls + b"e.")


def copied_arrays(path: Path) -> None:
    """Two thousand arrays of numpy that share a megabyte in the file, and would not in memory."""
    first = pickle.dumps(np.zeros(250_000, np.float32), 2)
    raw = first[:-1] + b"q\x7f"  # the whole array; its parts stand in the memo
    at = raw.index(b"(K\x01")  # the state of the array begins here
    state = raw[at : raw.rindex(b"b")] + b"r\x00\x01\x00\x00"
    again = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87Rj\x00\x01\x00\x00b"
    with_pickle(path, b"\x80\x04](" + raw[2:at] + state + b"b" + again * 2000 + b"e.")


def long_keys(path: Path) -> None:
    """A tuple of a million numbers, to be hashed again and again."""
    with_pickle(path, b"\x80\x02}((" + b"K\x01" * 1_000_000 + b"tq\x00N" + b"h\x00N" * 20_000 + b"u.")


def chained_calls(path: Path) -> None:
    """A call of what a call of what a call makes, thirty thousand times over."""
    with_pickle(path, b"\x80\x02cposix\nsystem\n" + b"X\x01\x00\x00\x00a\x85R" * 30_000 + b".")


def long_tar_header(path: Path) -> None:
    """A tar archive that declares sixteen gigabytes of notes on its first entry."""
    tar(path)
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 1 << 34
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT)[:512] + path.read_bytes())


def many_sides(path: Path) -> None:
    """A tensor of two thousand million sides, in the format of 2016."""
    storage = b"\x80\x02K\x00X\x03\x00\x00\x00cpuctorch\nFloatStorage\n\x87." + struct.pack("<q", 1) + bytes(4)
    tensor = b"\x80\x02KdK\x00ctorch\nFloatTensor\n\x87." + struct.pack("<i4x", 0x7FFFFFFF)
    parts = {
        "storages": pickle.dumps(1, 2) + storage + pickle.dumps([], 2),
        "tensors": pickle.dumps(1, 2) + tensor,
        "pickle": b"\x80\x02}.",
    }
    write_tar(path, parts)


def squeezed_checkpoint(path: Path) -> None:
    """A training checkpoint that unpacks 20,000 times 256 KB of zeros, each from a few hundred bytes."""
    zeros = base64.b64encode(zlib.compress(bytes((1 << 18) - 4), 9)).decode()
    one = f'{{"$small":["uint8",[{(1 << 18) - 4}],true,"{zeros}"]}}'
    metadata = {"ftkit.checkpoint": "{}", "model": "{}", "extra": f"[{','.join([one] * 20_000)}]"}
    path.write_bytes(header({"__metadata__": metadata}))


def huge_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")


EXPLODING = [
    *(bomb, pickle_bomb, overlapping, declares_terabytes, declares_terabytes_legacy, huge_memo, huge_string),
    *(huge_string_alone, long_string_alone, long_strides, deep, laughing, huge_header),
    *(copied_strings, copied_arrays, long_keys, chained_calls, long_tar_header, many_sides),
]


@pytest.mark.parametrize("make", EXPLODING, ids=lambda make: make.__name__)
def test_nothing_explodes(tmp_path, make):
    """Files that declare or unpack to far more than they are take no memory, and no wrong value loads."""
    make(tmp_path / "x.pt")
    before = memory()
    for opener in OPENERS:
        try:
            result = opener(tmp_path / "x.pt")
        except CheckpointError:
            continue
        if opener is weights:
            assert torch.equal(result.detach(), VALUES)
    assert memory() - before < 150e6


def test_a_checkpoint_does_not_explode(tmp_path, monkeypatch):
    """What is compressed in a checkpoint's text unpacks up to a limit."""
    monkeypatch.setattr("ftkit._tensors.pytree._FREE_BYTES", 1 << 26)
    squeezed_checkpoint(tmp_path / "x.safetensors")
    before = memory()
    with pytest.raises(DamagedFileError, match="a bomb"):
        load_checkpoint(tmp_path / "x.safetensors", model=Net())
    assert memory() - before < 500e6


class LoadsItself(Net):
    """A model with a way of its own to load."""

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)


def test_a_tensor_that_claims_any_size(tmp_path):
    """A tensor that repeats one number 64 billion times is not made room for, whoever asks for it."""
    torch.save({"w": VALUES, "z": torch.zeros(1).expand(1 << 36)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="no room"):
        load_weights(LoadsItself(), tmp_path / "x.pt", strict=False)
    with pytest.raises(CheckpointError, match="no room"):
        diff_checkpoints(tmp_path / "x.pt", {"z": torch.ones(1).expand(1 << 36)})
    load_weights(model := Net(), tmp_path / "x.pt", strict=False)
    assert torch.equal(model.w.detach(), VALUES)


def test_an_index_of_itself(tmp_path):
    """An index of shards that names an index is refused instead of followed."""
    path = tmp_path / "x.index.json"
    path.write_text(json.dumps({"weight_map": {"w": path.name}}))
    with pytest.raises(CheckpointError, match="names a shard"):
        load_weights(Net(), path)


def in_zip(path: Path) -> None:
    torch.save(body({"numbers": np.arange(3), "rate": np.float64(0.1)}), path)


def in_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(body(), 4))


def in_legacy(path: Path) -> None:
    torch.save(body(), path, _use_new_zipfile_serialization=False)


def in_safetensors(path: Path) -> None:
    save_checkpoint(path.with_suffix(".safetensors"), model=Net(), epoch=1, more=[1, (2, {"a": 3})])
    path.with_suffix(".safetensors").replace(path)


@pytest.mark.parametrize("make", [in_zip, in_pickle, in_legacy, tar, in_safetensors], ids=lambda make: make.__name__)
def test_any_damage_is_told_as_such(tmp_path, make):
    """Whatever bytes are changed, cut out or doubled, an error is one of ftkit's, and no call hangs."""
    path = tmp_path / "x.pt"
    make(path)
    whole = path.read_bytes()
    dice = random.Random(make.__name__)
    openers = [*OPENERS, lambda path: load_checkpoint(path, model=Net())]
    for trial in range(150):
        data = bytearray(whole)
        for _ in range(dice.choice((1, 2, 8))):
            # The descriptions are what there is to break; the values are but numbers.
            at = dice.randrange(len(data)) if trial % 3 else dice.randrange(min(len(data), 1500))
            many = dice.randrange(1, 40)
            match dice.randrange(4):
                case 0:
                    data[at] ^= 1 << dice.randrange(8)
                case 1:
                    data[at] = dice.choice(b"\0\1\xff\x7f.Rt(0qhQbe9[")
                case 2:
                    del data[at : at + many]
                case 3:
                    data[at:at] = data[at : at + many]
        path.write_bytes(rezipped(bytes(data)) if make is in_zip and trial % 2 else data)
        for opener in openers:
            with contextlib.suppress(FtkitError):
                opener(path)


def rezipped(data: bytes) -> bytes:
    """The same archive with right checksums, so that what is inside is met; as it is if it is beyond that."""
    target = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(target, "w") as new:
            for entry in old.infolist():
                start = entry.header_offset + 30 + sum(struct.unpack_from("<HH", data, entry.header_offset + 26))
                new.writestr(entry.filename, data[start : start + entry.file_size])
    except Exception:
        return data
    return target.getvalue()


def test_compressed_weights_are_not_garbage(tmp_path):
    """A torch file that was zipped anew with compression loads right, or not at all."""
    torch.save(body(), tmp_path / "x.pt")
    edited(tmp_path / "x.pt", lambda _, content: content, zipfile.ZIP_DEFLATED)
    assert torch.equal(weights(tmp_path / "x.pt").detach(), VALUES)
    edited(tmp_path / "x.pt", lambda _, content: content, zipfile.ZIP_BZIP2)
    with pytest.raises(CheckpointError, match="compressed"):
        weights(tmp_path / "x.pt")


def header(entries: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file with this header."""
    raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(begin: int, end: int, shape: list[Any], dtype: str = "F32") -> dict[str, Any]:
    """The description of a tensor in a safetensors header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HEADERS = {
    "too long": header({}, length=100),
    "not JSON": header(b"{not json}"),
    "a list": header(b"{}"[:1] + b"[]" + b"}"),
    "not UTF-8": header(b'{"\xff": 1}'),
    "deep": header(b'{"a":' * 200_000),
    "overlap": header({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)),
    "same bytes": header({"a": entry(0, 8, [2]), "b": entry(0, 8, [2])}, bytes(8)),
    "gap": header({"a": entry(0, 8, [2]), "b": entry(12, 20, [2])}, bytes(20)),
    "hole at the start": header({"a": entry(4, 12, [2])}, bytes(12)),
    "beyond the end": header({"a": entry(0, 1 << 40, [1 << 38])}, bytes(8)),
    "more behind": header({"a": entry(0, 8, [2])}, bytes(9)),
    "backwards": header({"a": entry(8, 0, [2])}, bytes(8)),
    "negative": header({"a": entry(-8, 0, [2])}, bytes(8)),
    "negative side": header({"a": entry(0, 8, [-1, -2])}, bytes(8)),
    "true side": header({"a": entry(0, 4, [True])}, bytes(4)),
    "fraction": header({"a": entry(0, 8, [2.0])}, bytes(8)),
    "endless side": header({"a": entry(0, 0, [0, 1 << 70])}),
    "wrapping product": header({"a": entry(0, 0, [1 << 32, 1 << 32])}),
    "huge number": header(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}', bytes(4)),
    "wrong size": header({"a": entry(0, 8, [3])}, bytes(8)),
    "unknown type": header({"a": entry(0, 8, [2], "F33")}, bytes(8)),
    "more keys": header({"a": entry(0, 8, [2]) | {"run": "me"}}, bytes(8)),
    "no shape": header({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)),
    "metadata of numbers": header({"__metadata__": {"a": 1}}),
    "metadata of a list": header({"__metadata__": []}),
    "twice": header(b'{"a":%s,"a":%s}' % ((json.dumps(entry(0, 8, [2])).encode(),) * 2), bytes(8)),
    "a tie to nothing": header({"__metadata__": {"ftkit.tensors": '{"tied":{"b":"a"}}', "ftkit.header": "0" * 32}}),
    "digests of nonsense": header({"__metadata__": {"ftkit.tensors": "[1]", "ftkit.header": "0" * 32}}),
}


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_headers(tmp_path, name):
    """A safetensors header that lies or is malformed is refused before anything is allocated."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(HEADERS[name])
    before = memory()
    for opener in OPENERS:
        with pytest.raises(CheckpointError):
            opener(path)
    assert memory() - before < 100e6


def test_signed_nonsense(tmp_path):
    """A header whose digest is right but whose own records are nonsense is refused too."""
    from ftkit._files import digest

    for own in ('{"tied":{"b":"a"}}', '{"xxh3_128":[1]}', '{"tied":3}', "[1]", "null", "{", '{"xxh3_128":{"a":1}}'):
        entries = {"__metadata__": {"ftkit.tensors": own, "ftkit.header": "0" * 32}, "a": entry(0, 8, [2])}
        if "tied" in own:
            del entries["a"]
        raw = json.dumps(entries, separators=(",", ":")).encode()
        raw = raw.replace(b"0" * 32, digest(raw).encode())
        (tmp_path / "x.safetensors").write_bytes(header(raw, bytes(0 if "tied" in own else 8)))
        with pytest.raises(DamagedFileError):
            inspect_checkpoint(tmp_path / "x.safetensors")
