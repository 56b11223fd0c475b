"""Sources: weights are found in files of every format, in folders, shards, whole models and arrays."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ftkit import (
    inspect_checkpoint,
    load_weights,
    save_weights,
)
from ftkit.errors import CheckpointError
from tests.weights.nets import Net, filled, holds, sevens


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
    with pytest.raises(CheckpointError, match="next to its index"):
        load_weights(Net(), tmp_path)
    index.write_text(json.dumps({"weight_map": files}))
    (tmp_path / files[names[0]]).unlink()
    with pytest.raises(CheckpointError, match="missing"):
        load_weights(Net(), tmp_path)


def shards(folder, contents, total_size=None):
    """Write shards and their index, in which the last shard that holds a name has it."""
    for file, state in contents.items():
        save_file(state, folder / file)
    homes = {name: file for file, state in contents.items() for name in state}
    index = {"metadata": {} if total_size is None else {"total_size": total_size}, "weight_map": homes}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_name_in_two_shards_is_an_error(tmp_path):
    """Shards of two models beside each other are noticed: nobody can say which values are meant."""
    one, two = {"a": torch.ones(2), "b": torch.ones(1)}, {"b": torch.zeros(1)}
    shards(tmp_path, {"1.safetensors": one, "2.safetensors": two})
    for call in (inspect_checkpoint, lambda path: load_weights(nn.ParameterDict(one), path)):
        with pytest.raises(CheckpointError, match=r"1\.safetensors and 2\.safetensors both contain 'b'"):
            call(tmp_path)


@pytest.mark.parametrize(("declared", "wrong"), [(12, False), (None, False), (12.0, False), (11, True), (2**70, True)])
def test_a_wrong_total_size_is_said(tmp_path, caplog, declared, wrong):
    """An index that declares another size than its shards have is not passed over."""
    shards(tmp_path, {"1.safetensors": {"a": torch.ones(2)}, "2.safetensors": {"b": torch.zeros(1)}}, declared)
    assert load_weights(nn.ParameterDict({"a": torch.ones(2), "b": torch.ones(1)}), tmp_path).loaded_keys == ["a", "b"]
    assert ("but its shards contain 12" in caplog.text) == wrong


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


def test_says_what_is_not_verified(tmp_path):
    """A file without digests is loaded, and the report says that damage would go unnoticed."""
    save_file(sevens(), tmp_path / "x.safetensors")
    report = load_weights(Net(), tmp_path / "x.safetensors")
    assert not report.verified
    assert "not verified" in str(report)


def test_tensors_that_are_not_dense_are_named(tmp_path):
    """Sparse tensors in a file are left out and reported; in memory, the error names the tensor."""
    state = {"weight": torch.eye(2).to_sparse(), "bias": torch.ones(2)}
    torch.save(state, tmp_path / "x.pt")
    model = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="skipped: sparse tensors"):
        load_weights(model, tmp_path / "x.pt")
    assert "skipped: sparse tensors" in str(load_weights(model, tmp_path / "x.pt", strict=False))
    assert "also contains sparse tensors" in str(inspect_checkpoint(tmp_path / "x.pt"))
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


def test_folders_of_trainers(tmp_path):
    """The model's file is found among a trainer's own, and a folder of folders is described as it is."""
    torch.save({"epoch": 3}, tmp_path / "training_args.bin")
    torch.save(filled(Net(), 7).state_dict(), tmp_path / "pytorch_model.bin")
    load_weights(model := Net(), tmp_path)
    assert holds(model, 7)
    (tmp_path / "runs" / "checkpoint-2").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="it contains checkpoint-2/"):
        load_weights(model, tmp_path / "runs")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="it has no 'weight_map'"):
        load_weights(model, tmp_path / "config.json")
