"""Weights: what was saved comes back, anybody's files load, and nothing is lost without a word."""

from __future__ import annotations

import collections
import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from ftkit import (
    diff_checkpoints,
    inspect_checkpoint,
    load_model,
    load_weights,
    save_model,
    save_weights,
)
from ftkit.errors import CheckpointError, DamagedFileError, UntrustedFileError


class Net(nn.Module):
    """A small model with all that models have: convolution, norm, buffers, a tied weight."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.body = nn.Linear(4, 8)
        self.head = nn.Linear(8, classes)
        self.register_buffer("scale", torch.ones(2))
        self.register_buffer("passing", torch.ones(2), persistent=False)


class Tied(nn.Module):
    """A language model in small: its output shares the weight of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 3)
        self.out = nn.Linear(3, 6, bias=False)
        self.out.weight = self.embed.weight


def filled(model: nn.Module, value: float) -> nn.Module:
    """The model with every value the same."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(value)
    return model


def holds(model: nn.Module, value: float) -> bool:
    """Tell whether every value of a model is this."""
    return all(bool((tensor == value).all()) for tensor in model.state_dict().values())


def sevens(prefix: str = "") -> dict[str, torch.Tensor]:
    """A state dict of sevens, with a prefix before every name."""
    return {prefix + name: tensor for name, tensor in filled(Net(), 7).state_dict().items()}


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


WRAPPED = {
    "module.": sevens("module."),
    "_orig_mod.": sevens("_orig_mod."),
    "_orig_mod.module.": sevens("_orig_mod.module."),
    "module._orig_mod.": sevens("module._orig_mod."),
    "model.": sevens("model."),
    "backbone.": sevens("backbone."),
    "_forward_module.model.": sevens("_forward_module.model."),
    "state_dict": {"state_dict": sevens(), "epoch": 1},
    "model": {"model": sevens(), "optimizer": {"state": {0: {"m": torch.ones(3)}}}},
    "state_dict: model.": {"state_dict": sevens("model."), "hyper_parameters": {"lr": 0.1}},
    "nests of nests": {"state": {"model": {"state_dict": sevens("module.")}}},
    "unknown nest": {"anything at all": sevens()},
    "in a list": [sevens(), {"lr": 0.1}],
    "hierarchical": {"stem": {k[5:]: v for k, v in sevens().items() if k.startswith("stem")}}
    | {k: v for k, v in sevens().items() if not k.startswith("stem")},
    "averaged model": sevens("module.") | {"n_averaged": torch.tensor(3)},
    "half": {name: tensor.half() for name, tensor in sevens().items()},
}


@pytest.mark.parametrize("case", WRAPPED)
@pytest.mark.parametrize("as_file", [True, False])
def test_peels(tmp_path, case, as_file):
    """Wrappers' prefixes and nests are peeled, strictly, and the report says which."""
    source: Any = WRAPPED[case]
    if as_file or not isinstance(source, dict):
        torch.save(source, tmp_path / "x.pt")
        source = tmp_path / "x.pt"
    report = load_weights(model := Net(), source)
    assert holds(model, 7)
    assert bool(report.steps) == (case not in {"half", "hierarchical"})
    assert "peeled" in str(report) or not report.steps


def test_does_not_peel_what_the_model_has():
    """A name that starts like a wrapper's is left alone where the model has it so."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(2, 2)
            self.module = nn.Linear(2, 2)

    report = load_weights(model := Outer(), filled(Outer(), 7))
    assert holds(model, 7)
    assert not report.steps


def test_looks_through_wrappers_of_the_model(tmp_path):
    """Compiled and data-parallel models save plain names, and load them."""
    inner = filled(Net(), 7)
    save_weights(nn.DataParallel(inner), tmp_path / "x.safetensors")
    assert inspect_checkpoint(tmp_path / "x.safetensors").tensors.keys() == inner.state_dict().keys()
    compiled = torch.compile(Net())
    load_weights(compiled, tmp_path / "x.safetensors")
    assert holds(compiled, 7)


def test_looks_through_inner_wrappers(tmp_path):
    """A model of which only a part is compiled loads plain weights, and the other way round."""
    model = Net()
    model.body = torch.compile(model.body)
    load_weights(model, sevens())
    assert holds(model, 7)
    load_weights(plain := Net(), model)
    assert holds(plain, 7)


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema", "ema_state_dict"])
def test_ema(key):
    """The averaged weights are taken where there are both, or the last ones where asked."""
    source = {"state_dict": filled(Net(), 3).state_dict(), key: sevens()}
    report = load_weights(model := Net(), source)
    assert holds(model, 7)
    assert key in str(report)
    load_weights(model, source, ema=False)
    assert holds(model, 3)


def test_ema_by_prefix():
    """Averaged weights that stand beside the last ones in one table are found by their prefix."""
    source = sevens("model_ema.") | {f"model.{name}": tensor for name, tensor in filled(Net(), 3).state_dict().items()}
    load_weights(model := Net(), source, strict=False)
    assert holds(model, 7)
    load_weights(model, source, strict=False, ema=False)
    assert holds(model, 3)


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
    with pytest.raises(CheckpointError, match="holds no tensors"):
        load_weights(Net(), {"epoch": 3})


@pytest.mark.parametrize(
    ("prefix", "hint"),
    [("encoder.", {"encoder.": ""}), ("a.b.", {"a.b.": ""}), ("student_", [("^student_", "")])],
)
def test_suggests_a_renaming(prefix, hint):
    """A strict failure names the likeliest renaming; passed on, it loads."""
    with pytest.raises(CheckpointError) as error:
        load_weights(Net(), sevens(prefix))
    assert f"did you mean rename={hint}? Then 12 of 12" in str(error.value)
    load_weights(model := Net(), sevens(prefix), rename=hint)
    assert holds(model, 7)


def test_suggests_a_prefix_to_add():
    """Weights of the part of a model load into the whole with the prefix that the error suggests."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = Net()

    with pytest.raises(CheckpointError) as error:
        load_weights(Outer(), sevens())
    assert "rename={'': 'features.'}" in str(error.value)
    load_weights(model := Outer(), sevens(), rename={"": "features."})
    assert holds(model, 7)


@pytest.mark.parametrize(
    "rename",
    [
        {"fc": "head", "trunk.stem": "stem"},
        {"fc.": "head.", "trunk.": ""},
        [(r"^fc\.", "head."), (r"^trunk\.", "")],
        lambda name: name.replace("fc.", "head.").replace("trunk.", ""),
    ],
)
def test_rename(rename):
    """Names are mapped by prefix, by pattern or by a function; names are whole components."""
    source = {name.replace("head.", "fc.").replace("stem.", "trunk.stem."): tensor for name, tensor in sevens().items()}
    load_weights(model := Net(), source, rename=rename)
    assert holds(model, 7)


@pytest.mark.parametrize("rename", ["backbone.", 3, [("(", "")]])
def test_what_is_no_renaming(rename):
    """It is an error that says what would be one."""
    with pytest.raises(CheckpointError, match="no dict of prefixes"):
        load_weights(Net(), Net().state_dict(), rename=rename)


def test_rename_to_none_leaves_out():
    """A function that gives ``None`` leaves a tensor out without a complaint."""
    source = sevens() | {"aux.w": torch.ones(2)}
    report = load_weights(Net(), source, rename=lambda name: None if name.startswith("aux") else name)
    assert not report.unexpected_keys


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["module", "_orig_mod", "model", "backbone"]), max_size=3), st.integers(0, 3))
def test_any_pile_of_wrappers(wrappers, depth):
    """Any pile of wrappers' prefixes, in any depth of nests, is peeled."""
    source: dict[str, Any] = sevens("".join(f"{wrapper}." for wrapper in wrappers))
    for level in range(depth):
        source = {f"level{level}": source, "epoch": 1}
    report = load_weights(model := Net(), source)
    assert holds(model, 7)
    assert bool(report.steps) == bool(wrappers or depth)


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


def test_old_batch_norm():
    """Files from before batch norm counted its batches are complete."""
    source = {name: tensor for name, tensor in sevens().items() if "num_batches" not in name}
    assert not load_weights(Net(), source).missing_keys


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards(tmp_path, kind):
    """An index of shards loads by its name or its folder; a shard that is missing or elsewhere is an error."""
    state = sevens()
    names = list(state)
    prefix = "model" if kind == "safetensors" else "pytorch_model"
    files = {name: f"{prefix}-0000{1 + index % 2}-of-00002.{kind}" for index, name in enumerate(names)}
    for file in set(files.values()):
        part = {name: state[name] for name in names if files[name] == file}
        if kind == "safetensors":
            save_file(part, tmp_path / file)
        else:
            torch.save(part, tmp_path / file)
    index = tmp_path / f"{prefix}.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 3}, "weight_map": files}))
    for source in (index, tmp_path):
        load_weights(model := Net(), source)
        assert holds(model, 7)
    assert inspect_checkpoint(tmp_path).format == "2 shards"
    index.write_text(json.dumps({"weight_map": files | {"more": files[names[0]]}}))
    with pytest.raises(CheckpointError, match="'more'"):
        load_weights(Net(), tmp_path)
    index.write_text(json.dumps({"weight_map": {"w": "../../etc/passwd"}}))
    with pytest.raises(CheckpointError, match="beside its index"):
        load_weights(Net(), tmp_path)
    index.write_text(json.dumps({"weight_map": files}))
    (tmp_path / files[names[0]]).unlink()
    with pytest.raises(CheckpointError, match="missing"):
        load_weights(Net(), tmp_path)


def test_folders(tmp_path):
    """A folder with one weights file means that file; with several or none, the error lists them."""
    save_weights(filled(Net(), 7), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    load_weights(model := Net(), tmp_path)
    assert holds(model, 7)
    save_weights(model, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors, other\.safetensors"):
        load_weights(Net(), tmp_path)
    with pytest.raises(CheckpointError, match=r"Did you mean '.*model\.safetensors'"):
        load_weights(Net(), tmp_path / "modle.safetensors")


def test_reads_whole_models_without_running_them(tmp_path, caplog):
    """The weights of a pickled model load without trust: its classes are not even looked up."""
    torch.save({"model": filled(Net(), 7), "args": np.float64(3)}, tmp_path / "x.pt")
    report = load_weights(model := Net(), tmp_path / "x.pt")
    assert holds(model, 7)
    assert report.loaded_keys == list(model.state_dict())
    assert f"{Net.__module__}.Net" in report.not_run
    assert "was not run" in caplog.text


def test_reads_pickled_arrays(tmp_path):
    """Weights as arrays of numpy, in a pickle or a table, load like tensors."""
    arrays = {"model": {name: tensor.numpy() for name, tensor in sevens().items()}, "__author__": "somebody"}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(arrays))
    for source in (tmp_path / "x.pkl", arrays):
        load_weights(model := Net(), source)
        assert holds(model, 7)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_reads_torchscript(tmp_path):
    """The weights of a TorchScript archive load into the model it was made from."""
    torch.jit.script(filled(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), 7)).save(str(tmp_path / "x.pt"))
    load_weights(model := nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), tmp_path / "x.pt")
    assert holds(model, 7)


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


def test_a_source_without_values(tmp_path):
    """A source on the meta device, or one that can't be opened, is an error, and the model is as it was."""
    with torch.device("meta"):
        empty = Net()
    model = filled(Net(), 1)
    with pytest.raises(CheckpointError, match="meta"):
        load_weights(model, empty)
    assert holds(model, 1)
    (tmp_path / "x.pt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no file"):
        load_weights(model, tmp_path / "x.pt")


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


def test_says_what_is_not_verified(tmp_path):
    """A file without digests is loaded, and the report says that damage would go unnoticed."""
    save_file(sevens(), tmp_path / "x.safetensors")
    report = load_weights(Net(), tmp_path / "x.safetensors")
    assert not report.verified
    assert "not verified" in str(report)


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


def test_inspect(tmp_path):
    """Looking into a file lists its tensors, its metadata and the code it names, in every format."""
    model = Net()
    save_weights(model, tmp_path / "x.safetensors")
    torch.save({"epoch": 3, "model": model}, tmp_path / "x.pt")
    info = inspect_checkpoint(tmp_path / "x.safetensors")
    assert info.tensors["stem.weight"] == ((4, 3, 3, 3), torch.float32)
    assert info.nbytes == sum(tensor.nbytes for tensor in model.state_dict().values())
    assert "stem.weight" in str(info)
    info = inspect_checkpoint(tmp_path / "x.pt")
    assert info.metadata == {"epoch": 3}
    assert info.tensors["model.stem.weight"] == ((4, 3, 3, 3), torch.float32)
    assert f"{Net.__module__}.Net" in info.wanted
    assert "would run code" in str(info)


def test_inspect_is_short(tmp_path):
    """A file of thousands of tensors prints in a few dozen lines."""
    save_weights({f"w{index}": torch.ones(1) for index in range(3000)}, tmp_path / "x.safetensors")
    assert len(str(inspect_checkpoint(tmp_path / "x.safetensors")).splitlines()) < 60


@pytest.mark.parametrize("names", [("a.safetensors", "b.safetensors"), ("a.pt", "b.safetensors"), ("a.pt", "b.pt")])
def test_diff(tmp_path, names):
    """A diff tells what changed and by how much, what is identical, and what came and went."""
    model = filled(Net(), 7)
    save_weights(model, tmp_path / names[0])
    with torch.no_grad():
        model.body.weight[0, 0] += 0.5
    model.head = nn.Linear(8, 3)
    model.extra = nn.Linear(1, 1, bias=False)
    del model.scale
    save_weights(model, tmp_path / names[1])
    diff = diff_checkpoints(tmp_path / names[0], tmp_path / names[1])
    assert [change.name for change in diff.changed] == ["body.weight"]
    assert diff.changed[0].largest == 0.5
    assert diff.changed[0].relative == pytest.approx(0.5 / (7 * 32**0.5))
    assert diff.reshaped[0] == ("head.weight", "float32 [10, 8]", "float32 [3, 8]")
    assert (diff.only_in_a, diff.only_in_b) == (["scale"], ["extra.weight"])
    assert "stem.weight" in diff.same
    assert bool(diff)
    assert "by up to 0.5" in str(diff)


def test_diff_sees_the_smallest_bit(tmp_path):
    """A change of one bit, of a sign of zero or inside a NaN is a change; equal NaNs are none."""
    a = {"nan": torch.tensor(float("nan")), "zero": torch.tensor(0.0), "one": torch.tensor(1.0)}
    b = {"nan": torch.tensor(float("nan")), "zero": torch.tensor(-0.0), "one": torch.nextafter(a["one"], a["zero"])}
    diff = diff_checkpoints(a, b)
    assert diff.same == ["nan"]
    assert {change.name for change in diff.changed} == {"zero", "one"}


def test_diff_across_nests(tmp_path):
    """Weights alone are compared with the same weights inside a checkpoint."""
    model = filled(Net(), 7)
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, tmp_path / "x.ckpt")
    assert not diff_checkpoints(model, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="in common"):
        diff_checkpoints(model, {"foo": torch.ones(1)})


def test_tensors_that_are_not_dense_are_named(tmp_path):
    """Sparse tensors in a file are left out and reported; in memory, the error names the tensor."""
    state = {"weight": torch.eye(2).to_sparse(), "bias": torch.ones(2)}
    torch.save(state, tmp_path / "x.pt")
    model = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="left out: sparse tensors"):
        load_weights(model, tmp_path / "x.pt")
    assert "left out: sparse tensors" in str(load_weights(model, tmp_path / "x.pt", strict=False))
    assert "besides, sparse tensors" in str(inspect_checkpoint(tmp_path / "x.pt"))
    with pytest.raises(CheckpointError, match="'weight' is sparse_coo"):
        load_weights(model, state)
    torch.save({"weight": torch.eye(2).to_sparse()}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="no tensors but sparse ones"):
        load_weights(model, tmp_path / "x.pt")
    bits = torch.zeros(2, 2, dtype=torch.uint8).view(torch.bits8)
    before = model.bias.clone()
    with pytest.raises(CheckpointError, match="torch can't convert"):
        load_weights(model, {"weight": bits, "bias": torch.zeros(2)})
    assert torch.equal(model.bias, before)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_damage_met_on_the_way_says_what_became_of_the_model(tmp_path, name):
    """The model holds a part of the file then, and the error says so; one that got no memory yet stays without."""
    model = nn.Linear(40, 40)
    save_weights(model, tmp_path / name)
    data = bytearray((tmp_path / name).read_bytes())
    at = data.find(model.weight.detach().numpy().tobytes())
    data[at + 100] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DamagedFileError, match="The Linear holds a part of it by now"):
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


def test_folders_of_trainers(tmp_path):
    """The model's file is found among a trainer's own, and a folder of folders is described as it is."""
    torch.save({"epoch": 3}, tmp_path / "training_args.bin")
    torch.save(filled(Net(), 7).state_dict(), tmp_path / "pytorch_model.bin")
    load_weights(model := Net(), tmp_path)
    assert holds(model, 7)
    (tmp_path / "runs" / "checkpoint-2").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="it holds checkpoint-2/"):
        load_weights(model, tmp_path / "runs")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="it has no 'weight_map'"):
        load_weights(model, tmp_path / "config.json")
