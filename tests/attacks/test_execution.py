"""Files that would run code, made here: nothing in them runs.

Every payload would create a marker file. Each is tried against every call that opens a weights file.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from ftkit import load_model
from ftkit.errors import CheckpointError, UntrustedFileError
from tests.attacks.payloads import OPENERS, VALUES, Call, body, tar, touch, weights, with_pickle


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


def raw_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(body(Call(os.system, touch())), 2))


def extension_code(path: Path) -> None:
    with_pickle(path, b"\x80\x02\x82\x07S'touch MARK'\n\x85R.")


EXECUTING = [
    *(os_system, eval_, nested_reduce, stack_global, built_name, instance, object_, setstate, storage_id),
    *(zip_in_zip, torch_gadget, wrong_checksum, legacy, legacy_header, tar, raw_pickle, extension_code),
]


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
