"""What opening a hostile file of less than a megabyte costs: under 500 MiB and five seconds, whatever it says."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from ftkit.errors import FtkitError
from tests.attacks.bombs import BOMBS, call, name, put, tensor, text, torch_file
from tests.attacks.fuzz import Search
from tests.attacks.opening import OPENERS, cost
from tests.attacks.payloads import Net, entry, header


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * bomb.slow) for name, bomb in BOMBS.items()]
)
def test_no_bomb_goes_off(tmp_path, name):
    """What took gigabytes or minutes ends in an error, or in an answer, and soon."""
    path = BOMBS[name].write(tmp_path)
    taken = cost(OPENERS[BOMBS[name].opener], path)
    assert taken.fine, taken


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_no_bomb_goes_off_in_any_call(tmp_path, name):
    """So it is with every call that opens a file."""
    path = BOMBS[name].write(tmp_path)
    costs = {opener: cost(call, path) for opener, call in OPENERS.items()}
    assert all(taken.fine for taken in costs.values()), costs


def test_the_search_finds_nothing(tmp_path):
    """A short search for files that cost; ``nox -s attacks`` makes long ones."""
    search = Search(tmp_path, seed=0)
    for _ in range(12):
        search.step()
    assert search.tried
    assert not list(tmp_path.glob("*.txt"))


# ---- what is no error of ftkit


def words(*parts: bytes) -> Any:
    return lambda path: torch_file(path, *parts)


def checkpoint(**entries: Any) -> Any:
    """A torch checkpoint some of whose entries are of a kind that nobody writes."""

    def write(path: Path) -> None:
        optimizer = torch.optim.AdamW(Net().parameters()).state_dict()
        whole = {"model_state_dict": Net().state_dict(), "optimizer_state_dict": optimizer} | entries
        torch.save(whole, path)

    return write


def written(**states: str) -> Any:
    """A checkpoint of ftkit's format, some of whose states are other values."""
    metadata = {"ftkit.checkpoint": '{"order":0}', "model": "{}", "optimizer": '{"state":{},"param_groups":[]}'}
    return lambda path: path.write_bytes(header({"__metadata__": metadata | states}))


def delta(record: str) -> Any:
    """A delta whose record is this."""
    entries = {"__metadata__": {"ftkit.delta": record}, "fc.bias": entry(0, 8, [2])}
    return lambda path: path.write_bytes(header(entries, bytes(8)))


LONG = b"\x8b" + struct.pack("<i", 3000) + b"\x7f" * 3000  # a number of more digits than Python writes

RAW = {
    "a device that torch lacks": words(call(name("torch", "device"), text("cuea"))),
    "a long epoch": words(b"}(", text("epoch"), LONG, text("state_dict"), b"}", text("w"), tensor(), b"su"),
    "a long size": words(b"(", text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), LONG, b"tQ"),
    "a long side": words(tensor(shape=LONG + b"\x85")),
    "a long key": words(b"(", text("storage"), name("torch", "FloatStorage"), LONG, text("cpu"), b"K\x01tQ"),
    "a run that is a number": checkpoint(**{"ftkit.checkpoint": 3}),
    "frozen parts that are a number": checkpoint(**{"ftkit.checkpoint": {"frozen": 3}}),
    "frozen parts of lists": checkpoint(**{"ftkit.checkpoint": {"frozen": {"trainable": [[]], "held": [3]}}}),
    "an optimizer that is named by a list": checkpoint(**{"ftkit.checkpoint": {"optimizer": [1]}}),
    "an optimizer whose names are lists": checkpoint(**{"ftkit.checkpoint": {"optimizer": {"names": [[]]}}}),
    "random numbers of text": checkpoint(rng_state={"python": "a", "numpy": "b", "torch": "c"}),
    "a state of numbers": checkpoint(optimizer_state_dict={"state": {0: 3}, "param_groups": [{"params": [0]}]}),
    "groups of lists": checkpoint(optimizer_state_dict={"state": {}, "param_groups": [{"params": [[]]}]}),
    "extra values that are a number": written(extra="5"),
    "a model that is a list": written(model="[]"),
    "an epoch of text": written(**{"ftkit.checkpoint": '{"epoch":"a"}'}),
    "metrics that are a list": written(**{"ftkit.checkpoint": '{"metrics":[1]}'}),
    "a delta of nothing": delta("{}"),
    "a delta of a list": delta("[]"),
    "a delta without a base": delta('{"layers":{}}'),
    "a delta of a base of lists": delta('{"layers":{},"base":{"tensors":[],"shapes":[],"contents":[]}}'),
    "a delta that is no JSON": delta("{"),
}


@pytest.mark.parametrize("what", RAW)
def test_no_raw_errors(tmp_path, what):
    """Whatever a file says, a call ends in an answer or in an error of ftkit."""
    path = tmp_path / "x.pt"
    RAW[what](path)
    for opener in OPENERS.values():
        try:
            opener(path)
        except FtkitError:
            continue


LAYERS = [
    *(["Linear"], ["Linear", {}], ["Linear", {"in_features": "a", "out_features": 2}], "Linear", 3, [[], {}]),
    *(["Linear", {"in_features": 1 << 40, "out_features": 1 << 40}], ["Conv2d", {"in_channels": 1, "groups": 0}]),
    *(["Sequential", [1]], ["Sequential", {"a.b": ["ReLU", {}]}], ["LayerNorm", {"normalized_shape": [-1]}]),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_malformed_layers(tmp_path, layer):
    """A layer of a delta that can't be built, or isn't that of its tensors, changes nothing."""
    from ftkit import load_delta
    from ftkit._deltas.changes import fingerprint, tensors_of
    from ftkit._tensors.pytree import pack
    from ftkit._tensors.safetensors import write_tensors
    from tests.attacks.bombs import Headed

    model = Headed()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    base = fingerprint({key: value for key, value in tensors_of(model).items() if not key.startswith("fc.")})
    record = pack({"base": base, "layers": {"fc": layer}})[1]
    write_tensors(tmp_path / "x.safetensors", {"fc.bias": torch.zeros(3)}, {"ftkit.delta": record})
    with pytest.raises(FtkitError, match="fc"):
        load_delta(model, tmp_path / "x.safetensors")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


# ---- names are looked up in tables


def test_no_name_imports_anything(tmp_path):
    """A name in a file is looked up among torch's types: asking torch itself for it would import what it names."""
    import sys

    before = {*sys.modules}
    torch_file(tmp_path / "a.pt", b"](", *(name("torch", lazy) for lazy in ("_inductor", "onnx", "_export")), b"e")
    torch_file(
        tmp_path / "b.pt", call(name("torch.serialization", "_get_layout"), b"C\x01a", text("idna")), put(0), b"0N"
    )
    metadata = {"ftkit.checkpoint": '{"$dtype":"_inductor"}'}
    (tmp_path / "c.safetensors").write_bytes(header({"__metadata__": metadata}))
    for path in tmp_path.iterdir():
        for opener in ("inspect", "load_checkpoint", "load_model"):
            with pytest.raises(FtkitError) if opener != "inspect" else _either():
                OPENERS[opener](path)
    new = {*sys.modules} - before
    assert not [module for module in new if module.startswith(("torch._inductor", "torch.onnx", "encodings.idna"))]


def _either() -> Any:
    import contextlib

    return contextlib.suppress(FtkitError)
