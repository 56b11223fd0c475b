"""Damaged and lying files: every error is one of ftkit's, and nothing loads as garbage."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ftkit import inspect_checkpoint, load_checkpoint, load_weights, save_checkpoint
from ftkit.errors import CheckpointError, DamagedFileError, FtkitError
from tests.attacks.payloads import OPENERS, VALUES, Net, body, edited, entry, header, memory, tar, weights


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
