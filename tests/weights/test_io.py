"""Weights: what was saved comes back, anybody's files load, and nothing is lost without a word."""

from __future__ import annotations

import collections
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ftkit import (
    freeze_except,
    load_model,
    load_weights,
    save_checkpoint,
    save_delta,
    save_model,
    save_weights,
)
from ftkit.errors import CheckpointError, DamagedFileError, UntrustedFileError
from tests.weights.nets import Net, filled, holds, sevens


class Tied(nn.Module):
    """A language model in small: its output shares the weight of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 3)
        self.out = nn.Linear(3, 6, bias=False)
        self.out.weight = self.embed.weight


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.pth", "x.bin", "x.ckpt", "x.pth.tar", "x"])
def test_round_trip(tmp_path, name):
    """Saved weights come back under every name, in the format that the name suggests, verified."""
    model = filled(Net(), 7)
    save_weights(model, tmp_path / "new" / name)
    report = load_weights(other := Net(), tmp_path / "new" / name)
    assert holds(other, 7)
    assert report.verified
    assert report.loaded_keys == list(model.state_dict())
    assert (report.missing_keys, report.unexpected_keys, report.mismatched_keys, report.steps) == ([], [], [], [])
    if Path(name).suffix not in {".safetensors", ".bin", ""}:
        assert torch.load(tmp_path / "new" / name, weights_only=True).keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vit_b_32"])
def test_real_models(tmp_path, name):
    """Models of torchvision come back bit for bit, from both formats, and on meta too."""
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.get_model(name, weights=None)
    save_weights(model, tmp_path / "x.safetensors")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "x.pth")
    with torch.device("meta"):
        empty = torchvision.models.get_model(name, weights=None)
    for other, path in ((torchvision.models.get_model(name, weights=None), "x.pth"), (empty, "x.safetensors")):
        load_weights(other, tmp_path / path)
        state = other.state_dict()
        assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())


def test_strict_names_everything():
    """A misfit lists what is missing, left over and of another shape, with both shapes, and changes nothing."""
    source = sevens() | {"aux.w": torch.ones(2), "head.weight": torch.ones(5, 8)}
    del source["body.bias"]
    model = filled(Net(), 1)
    with pytest.raises(CheckpointError) as error:
        load_weights(model, source)
    for part in ("body.bias", "aux.w", "head.weight: [5, 8] in the file, [10, 8] in the model", "drop_mismatched"):
        assert part in str(error.value)
    with pytest.raises(CheckpointError, match=r"head\.weight"):
        load_weights(model, source, strict=False)
    assert holds(model, 1)


def test_drop_mismatched_keeps_the_new_head():
    """With a new head, all else loads and the head stays as it was; the report says so."""
    model = filled(Net(classes=5), 1)
    report = load_weights(model, sevens(), drop_mismatched=True)
    assert [mismatch.name for mismatch in report.mismatched_keys] == ["head.weight", "head.bias"]
    assert report.mismatched_keys[0].in_file == (10, 8)
    assert holds(model.body, 7)
    assert holds(model.head, 1)
    assert "head.weight: [10, 8] in the file, [5, 8] in the model" in str(report)


def test_not_strict_reports():
    """What does not fit is reported when it is allowed, in the report's lists and in print."""
    source = sevens() | {"aux.w": torch.ones(2)}
    del source["body.bias"]
    report = load_weights(Net(), source, strict=False)
    assert (report.missing_keys, report.unexpected_keys) == (["body.bias"], ["aux.w"])
    assert "body.bias" in repr(report)
    assert "aux.w" in repr(report)


def test_nothing_fits():
    """A source of which nothing fits is an error, strict or not."""
    for strict in (True, False):
        with pytest.raises(CheckpointError, match="0 of 12 tensors match"):
            load_weights(Net(), {"foo": torch.ones(3)}, strict=strict)
    with pytest.raises(CheckpointError, match="contains no tensors"):
        load_weights(Net(), {"epoch": 3})


def test_tied_weights(tmp_path):
    """A tied weight is stored once and stays tied; a file that has only one of its names is complete."""
    save_weights(filled(Tied(), 7), tmp_path / "x.safetensors")
    report = load_weights(model := Tied(), tmp_path / "x.safetensors")
    assert holds(model, 7)
    assert model.out.weight is model.embed.weight
    assert not report.missing_keys
    save_file({"embed.weight": torch.full((6, 3), 5.0)}, tmp_path / "one.safetensors")
    assert not load_weights(model, tmp_path / "one.safetensors").missing_keys
    assert holds(model, 5)
    with torch.device("meta"):
        empty = Tied()
    empty.out.weight = empty.embed.weight
    load_weights(empty, tmp_path / "x.safetensors")
    assert empty.out.weight is empty.embed.weight
    assert holds(empty, 7)


def test_meta(tmp_path):
    """A model on meta gets memory: its types, trainability and classes stay; a half-empty one stays half-empty."""
    save_weights(filled(Net(), 7).half(), tmp_path / "x.safetensors")
    with torch.device("meta"):
        model = Net()
    model.stem.weight.requires_grad = False
    load_weights(model, tmp_path / "x.safetensors")
    assert holds(model, 7)
    assert model.stem.weight.dtype == torch.float32
    assert not model.stem.weight.requires_grad
    assert isinstance(model.body.weight, nn.Parameter)
    with torch.device("meta"):
        model = Net()
    load_weights(model, {"body.bias": torch.ones(8)}, strict=False)
    assert not model.body.bias.is_meta
    assert model.body.weight.is_meta


def test_keeps_what_training_needs(tmp_path):
    """Loading keeps the parameters themselves, so that an optimizer made before goes on training them."""
    model = Net()
    before = {name: (parameter, parameter.data_ptr()) for name, parameter in model.named_parameters()}
    save_weights(filled(Net(), 7), tmp_path / "x.safetensors")
    load_weights(model, tmp_path / "x.safetensors")
    assert all(before[name] == (parameter, parameter.data_ptr()) for name, parameter in model.named_parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_models_that_load_themselves(tmp_path):
    """A model with its own way of loading is loaded its way, or left as it was."""

    class Renaming(Net):
        def _load_from_state_dict(self, state_dict, prefix, *args):
            for name in list(state_dict):
                if name.startswith("old_head."):
                    state_dict[name.removeprefix("old_")] = state_dict.pop(name)
            super()._load_from_state_dict(state_dict, prefix, *args)

    load_weights(model := Renaming(), {name.replace("head.", "old_head."): value for name, value in sevens().items()})
    assert holds(model, 7)
    model = filled(Renaming(), 1)
    source = {name.replace("head.", "old_head."): value for name, value in sevens().items()} | {
        "old_head.bias": torch.ones(3)
    }
    with pytest.raises(CheckpointError, match="refuses"):
        load_weights(model, source)
    assert holds(model, 1)
    del source["old_head.bias"]
    with pytest.raises(CheckpointError, match=r"missing in the source: head\.bias"):
        load_weights(model, source)
    assert holds(model, 1)
    assert load_weights(model, source, strict=False).missing_keys == ["head.bias"]
    assert holds(model.body, 7)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_modules():
    """A layer that does not know its shape yet takes it from the weights, with and without a prefix."""
    for prefix in ("", "module."):
        model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
        source = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        report = load_weights(model, {prefix + name: tensor for name, tensor in source.state_dict().items()})
        assert torch.equal(model[0].weight, source[0].weight)
        assert len(report.loaded_keys) == 4


def test_damage_is_refused(tmp_path):
    """A flipped bit in either format is an error that names the place."""
    for name in ("x.safetensors", "x.pt"):
        save_weights(filled(Net(), 7), tmp_path / name)
        data = bytearray((tmp_path / name).read_bytes())
        at = data.index(np.full(8, 7, np.float32).tobytes())
        data[at + 2] ^= 0x40
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DamagedFileError):
            load_weights(Net(), tmp_path / name)


def test_save_refuses_meta_and_objects(tmp_path):
    """A model without values, or a state that is no tensor, is an error, and no file appears."""
    with torch.device("meta"):
        model = Net()
    for name in ("x.safetensors", "x.pt"):
        with pytest.raises(CheckpointError, match="meta"):
            save_weights(model, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"\.pt"):
        save_weights({"w": torch.ones(1), "extra": [1]}, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_whole_models(tmp_path):
    """A whole model is refused with the list of its classes, and opens where they are admitted or all is trusted."""
    save_model(filled(Net(), 7), tmp_path / "x.pt")
    with pytest.raises(UntrustedFileError, match=r"Net\n"):
        load_model(tmp_path / "x.pt")
    assert holds(load_model(tmp_path / "x.pt", allow=[Net, nn.Conv2d, nn.BatchNorm2d, nn.Linear]), 7)
    assert holds(load_model(tmp_path / "x.pt", trusted=True), 7)


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_a_full_disk_keeps_the_old_file(tmp_path, name):
    """When the disk is full, the error says so in either format, and the old file is whole."""
    pytest.importorskip("resource")
    code = """
        import resource, signal, sys, torch
        from ftkit import FtkitError, save_weights
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        save_weights({"w": torch.ones(3)}, sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))
        try:
            save_weights({"w": torch.zeros(10_000_000)}, sys.argv[1])
        except FtkitError as error:
            print(type(error).__name__, error)
    """
    arguments = [sys.executable, "-c", textwrap.dedent(code), tmp_path / name]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("FileWriteError Can't write")
    assert os.listdir(tmp_path) == [name]
    target = {"w": torch.zeros(3)}
    load_weights(module := nn.ParameterDict(target), tmp_path / name)
    assert holds(module, 1)


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
@pytest.mark.parametrize("ema", [True, False])
def test_training_checkpoints(tmp_path, name, ema):
    """The weights of a training checkpoint load by themselves, strictly, the averaged ones where it has them."""
    from ftkit import save_checkpoint

    model = filled(Net(), 3)
    averaged = torch.optim.swa_utils.AveragedModel(filled(Net(), 7))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    save_checkpoint(tmp_path / name, model=model, optimizer=optimizer, ema=averaged if ema else None, epoch=1)
    report = load_weights(other := Net(), tmp_path / name)
    assert holds(other, 7 if ema else 3)
    assert report.steps
    load_weights(other, tmp_path / name, ema=False)
    assert holds(other, 3)


def test_deltas_are_pointed_out(tmp_path):
    """A file that holds only what fine-tuning changed is refused with the right call."""
    from ftkit import freeze_except, save_delta

    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18(weights=None)
    freeze_except(model, "fc")
    save_delta(model, tmp_path / "d.safetensors")
    with pytest.raises(CheckpointError, match="load_delta"):
        load_weights(model, tmp_path / "d.safetensors")


def test_whole_model_that_cannot_be_pickled(tmp_path):
    """What can't be pickled is an error that leaves the old file alone."""
    save_model(Net(), tmp_path / "x.pt")
    before = (tmp_path / "x.pt").read_bytes()
    model = Net()
    model.act = lambda x: x
    with pytest.raises(CheckpointError, match="save_weights"):
        save_model(model, tmp_path / "x.pt")
    assert (tmp_path / "x.pt").read_bytes() == before
    assert os.listdir(tmp_path) == ["x.pt"]


def test_a_state_dict_is_never_refused(tmp_path, caplog):
    """A plain state dict needs no trust: it comes back as it is, with a word on what to do."""
    torch.save(collections.OrderedDict(sevens()), tmp_path / "x.pt")
    assert load_model(tmp_path / "x.pt").keys() == sevens().keys()
    assert "load_weights" in caplog.text


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_damage_met_on_the_way_says_what_became_of_the_model(tmp_path, name):
    """The model holds a part of the file then, and the error says so; one that got no memory yet stays without."""
    model = nn.Linear(40, 40)
    save_weights(model, tmp_path / name)
    data = bytearray((tmp_path / name).read_bytes())
    at = data.find(model.weight.detach().numpy().tobytes())
    data[at + 100] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DamagedFileError, match="The Linear is partly loaded by now"):
        load_weights(model, tmp_path / name)
    with torch.device("meta"):
        empty = nn.Linear(40, 40)
    with pytest.raises(DamagedFileError) as caught:
        load_weights(empty, tmp_path / name)
    assert "by now" not in str(caught.value)
    assert empty.weight.is_meta


def test_nothing_fits_a_model_that_loads_itself():
    """A model with a way of its own to load is no excuse for loading nothing in silence."""

    class Own(nn.Linear):
        def _load_from_state_dict(self, *args):
            super()._load_from_state_dict(*args)

    with pytest.raises(CheckpointError, match="does not fit the Own"):
        load_weights(Own(2, 2), {"other": torch.ones(2)}, strict=False)


@pytest.mark.parametrize("head", [2, 5])
def test_a_delta_names_its_own_reader(tmp_path, head):
    """A delta, or a checkpoint that is one, is read by what compares the base; nobody is told how to get round that."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    base = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, head))
    freeze_except(model, "1")
    save_delta(model, tmp_path / "delta.safetensors")
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    save_checkpoint(tmp_path / "run.safetensors", model=model, optimizer=optimizer, delta=True)
    readers = {"delta": r"load_delta\(model, path\)", "run": r"load_checkpoint\(path, model=model\)"}
    for name, reader in readers.items():
        with pytest.raises(CheckpointError, match=reader) as caught:
            load_weights(base, tmp_path / f"{name}.safetensors")
        assert "strict=" not in str(caught.value)
        assert "drop_mismatched" not in str(caught.value)
    save_checkpoint(tmp_path / "whole.safetensors", model=model, optimizer=optimizer)
    assert len(load_weights(model, tmp_path / "whole.safetensors").loaded_keys) == 4
