"""A model of the user's own, what a file holds, the files of 2016, and when two state dicts are alike."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ftkit._formats import open_file
from ftkit._pickles.gate import load_pickle
from ftkit._pickles.torchfiles import PickleFile


class Custom(nn.Module):
    """A model of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)


def load(path: Path, **trust: Any) -> Any:
    """Return what a pickled file holds."""
    with open_file(path) as file:
        assert isinstance(file, PickleFile)
        return load_pickle(file, **trust)


def alike(back: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> bool:
    """Tell whether two state dicts hold the same."""
    return back.keys() == state.keys() and all(
        back[name].dtype == tensor.dtype
        and back[name].shape == tensor.shape
        and (name == "expanded" or torch.equal(back[name].to(torch.complex128), tensor.to(torch.complex128)))
        for name, tensor in state.items()
    )


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
