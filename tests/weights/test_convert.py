"""Tests for ``ftkit._weights.convert``: other formats, the same bits."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from ftkit import (
    CheckpointError,
    FileWriteError,
    freeze_except,
    load_weights,
    save_checkpoint,
    save_delta,
    save_weights,
)
from ftkit._weights.convert import convert


@pytest.fixture
def model() -> nn.Module:
    """Return a model whose weights are of two types, and one of them without a dimension."""
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    net[0].weight.data[0, 0] = float("nan")
    return net


@pytest.mark.parametrize("first", ["a.pt", "a.pth", "a.bin", "a.safetensors"])
@pytest.mark.parametrize("second", ["b.pt", "b.safetensors"])
def test_there_and_back(model: nn.Module, tmp_path: Path, first: str, second: str) -> None:
    """A state dict keeps its names, types and bits, NaN too."""
    torch.save(model.state_dict(), tmp_path / first)
    if first.endswith("safetensors"):
        save_weights(model, tmp_path / first)
    report = convert(tmp_path / first, tmp_path / second)
    assert (report.tensors, report.part, report.left) == (7, "", ("format",) if first.endswith("safetensors") else ())
    fresh = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    load_weights(fresh, tmp_path / second)
    for name, value in model.state_dict().items():
        assert fresh.state_dict()[name].numpy().tobytes() == value.numpy().tobytes()


def test_a_torch_file_is_one_that_torch_reads(model: nn.Module, tmp_path: Path) -> None:
    """What is written under ``.pt`` needs no ftkit."""
    save_weights(model, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.pt")
    assert list(torch.load(tmp_path / "b.pt", weights_only=True)) == list(model.state_dict())


def test_nothing_is_overwritten_unless_forced(model: nn.Module, tmp_path: Path) -> None:
    """An existing file stays as it was."""
    save_weights(model, tmp_path / "a.pt")
    (tmp_path / "b.safetensors").write_bytes(b"precious")
    with pytest.raises(FileWriteError, match="--force"):
        convert(tmp_path / "a.pt", tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == b"precious"
    assert convert(tmp_path / "a.pt", tmp_path / "b.safetensors", force=True).tensors == 7


def test_which_part_is_asked_for_where_it_is_not_clear(model: nn.Module, tmp_path: Path) -> None:
    """An average beside the weights is not chosen in silence."""
    torch.save({"state_dict": model.state_dict(), "ema": model.state_dict(), "epoch": 3}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"several parts: state_dict, ema\. Say which with --part"):
        convert(tmp_path / "a.pt", tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()
    report = convert(tmp_path / "a.pt", tmp_path / "b.safetensors", part="ema")
    assert (report.part, report.left) == ("ema", ("epoch", "state_dict"))
    load_weights(model, tmp_path / "b.safetensors")
    assert convert(tmp_path / "a.pt", tmp_path / "c.safetensors", part=".").tensors == 14
    with pytest.raises(CheckpointError, match="Did you mean 'ema'"):
        convert(tmp_path / "a.pt", tmp_path / "d.safetensors", part="emo")


def test_a_training_checkpoint(model: nn.Module, tmp_path: Path) -> None:
    """Its model is one part of several."""
    save_checkpoint(tmp_path / "a.safetensors", model=model, optimizer=torch.optim.Adam(model.parameters()), epoch=1)
    report = convert(tmp_path / "a.safetensors", tmp_path / "b.pt", part="model")
    assert report.tensors == 7
    assert "model" not in report.left
    assert len(set(report.left)) == len(report.left)
    load_weights(model, tmp_path / "b.pt")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_of_a_training_checkpoint_the_model_is_taken(model: nn.Module, tmp_path: Path, name: str) -> None:
    """It is what everybody means; the rest is listed."""
    average, optimizer = copy.deepcopy(model), torch.optim.Adam(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path / name, model=model, optimizer=optimizer, ema=average, epoch=1)
    report = convert(tmp_path / name, tmp_path / "b.safetensors")
    assert report.tensors == 7
    assert sum("ema" in left for left in report.left) == 1
    assert sum(left.startswith("optimizer") for left in report.left) == 1
    assert not any(left.startswith("model") for left in report.left)
    load_weights(model, tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    "state",
    [
        {0: torch.ones(2), "1": torch.zeros(2)},
        {0: torch.ones(2), "0": torch.zeros(2)},
        {0: torch.ones(2), 1: torch.zeros(2)},
        {("a", "b"): torch.ones(2), "a": torch.zeros(2)},
        {True: torch.ones(2), "a": torch.zeros(2)},
        {"a.b": torch.ones(2), "a": {"b": torch.zeros(2)}},
    ],
)
def test_tensors_without_a_name_of_their_own_are_not_dropped(tmp_path: Path, state: dict[object, object]) -> None:
    """Whatever no file of weights can hold is an error, not a shorter file."""
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="no names for"):
        convert(tmp_path / "a.pt", tmp_path / "b.safetensors", part=".")
    assert not (tmp_path / "b.safetensors").exists()


def test_numbered_tensors_are_listed(model: nn.Module, tmp_path: Path) -> None:
    """What an optimizer keeps of each parameter is left out, and said to be."""
    moments = {"state": {0: {"step": torch.ones(()), "exp_avg": torch.ones(3)}}}
    torch.save({"state_dict": model.state_dict(), "optimizer": moments}, tmp_path / "a.pt")
    assert convert(tmp_path / "a.pt", tmp_path / "b.safetensors").left == ("optimizer",)
    whole = convert(tmp_path / "a.pt", tmp_path / "c.safetensors", part=".")
    assert (whole.tensors, whole.left) == (7, ("optimizer.state.0.exp_avg", "optimizer.state.0.step"))


def test_what_would_lose_something_is_refused(model: nn.Module, tmp_path: Path) -> None:
    """Sparse tensors, a delta's recipe, a format that the name does not tell."""
    torch.save({"a": torch.ones(2), "b": torch.eye(3).to_sparse()}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="sparse tensors, which would be lost"):
        convert(tmp_path / "a.pt", tmp_path / "b.safetensors")
    freeze_except(model, "0")
    save_delta(model, tmp_path / "delta.safetensors")
    with pytest.raises(CheckpointError, match="is a delta"):
        convert(tmp_path / "delta.safetensors", tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="suffix"):
        convert(tmp_path / "a.pt", tmp_path / "b")
    save_checkpoint(tmp_path / "step.safetensors", model=model, delta=True)
    with pytest.raises(CheckpointError, match="is a delta"):
        convert(tmp_path / "step.safetensors", tmp_path / "b.pt", part="model")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="no tensors"):
        convert(tmp_path / "none.pt", tmp_path / "b.pt")
    assert not (tmp_path / "b.pt").exists()


def _deep(levels: int) -> dict[str, object]:
    nested: dict[str, object] = {"w": torch.ones(1)}
    for _ in range(levels):
        nested = {"m": nested}
    return nested


_ENCODER = {"w": torch.ones(2)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"encoder": _ENCODER, "decoder": _ENCODER}, r"'decoder', which is 'encoder' too"),
        ({"encoder": {"x": _ENCODER}, "decoder": [_ENCODER]}, r"'decoder.0', which is 'encoder.x' too"),
        ({"layers": [torch.ones(1)] * 65}, r"'layers' in part"),
        ({"layers": ({"w": torch.ones(1)},) * 64 + (1, 2, [torch.ones(1)])}, r"'layers' in part"),
        ({"a": torch.ones(1), "m": _deep(12)}, r"'m(\.m){11}' in part"),
    ],
)
def test_what_is_not_read_is_refused(content: object, words: str, tmp_path: Path) -> None:
    """Else the file would lack it in silence."""
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=rf"than are read: .*{words}.* --part without these"):
        convert(tmp_path / "a.pt", tmp_path / "b.safetensors", part=".")
    assert not (tmp_path / "b.safetensors").exists()


def test_what_has_no_tensors_may_be_long_or_shared(tmp_path: Path) -> None:
    """Histories of numbers, one table of options in two places, a table that holds itself."""
    options, tensor = {"lr": 0.1, "betas": [0.9, 0.99]}, torch.ones(2)
    content = {
        "a": tensor,
        "b": tensor,
        "history": [0.5] * 1000,
        "one": options,
        "two": options,
        "deep": {"x": _deep(9)},
    }
    content["self"] = content
    torch.save(content, tmp_path / "a.pt")
    assert convert(tmp_path / "a.pt", tmp_path / "b.safetensors", part=".").tensors == 3
