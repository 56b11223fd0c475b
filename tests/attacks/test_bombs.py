"""Files that declare or unpack to far more than they are: none fills the memory."""

from __future__ import annotations

import base64
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ftkit import diff_checkpoints, load_checkpoint, load_weights
from ftkit.errors import CheckpointError, DamagedFileError
from tests.attacks.payloads import (
    OPENERS,
    VALUES,
    Net,
    body,
    edited,
    header,
    memory,
    tar,
    weights,
    with_pickle,
    write_tar,
)


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


def test_a_checkpoint_does_not_explode(tmp_path):
    """What is compressed in a checkpoint's text unpacks up to a limit."""
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
