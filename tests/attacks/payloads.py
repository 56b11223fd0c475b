"""Hostile files and the calls that open files."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ftkit import diff_checkpoints, inspect_checkpoint, load_model, load_weights

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


def weights(path: Path) -> Any:
    load_weights(model := Net(), path)
    return model.w


OPENERS = [weights, load_model, inspect_checkpoint, lambda path: diff_checkpoints(path, path)]


def memory() -> int:
    """The highest memory this process has taken, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def header(entries: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file with this header."""
    raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(begin: int, end: int, shape: list[Any], dtype: str = "F32") -> dict[str, Any]:
    """The description of a tensor in a safetensors header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
