"""Deltas hold what changed, and make the fine-tuned model again to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from ftkit import freeze_except, load_delta, save_delta
from ftkit.errors import CheckpointError, DamagedFileError


def pretrained(name: str = "resnet18", **options: object) -> nn.Module:
    """A model as a hub would give it: the same weights each time."""
    torch.manual_seed(7)
    return timm.create_model(name, **options)


def train(model: nn.Module, steps: int = 2, size: int = 32) -> None:
    """Fine-tune on noise."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model.train()
    for _ in range(steps):
        model(torch.randn(2, 3, size, size)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def same_outputs(a: nn.Module, b: nn.Module, size: int = 32) -> bool:
    """Tell whether two models agree to the bit in eval mode."""
    batch = torch.randn(2, 3, size, size)
    with torch.no_grad():
        return torch.equal(a.eval()(batch), b.eval()(batch))


def test_head_is_rebuilt_and_outputs_are_the_same(tmp_path: Path) -> None:
    """A fresh base with its old head becomes the fine-tuned model; the file holds the head alone."""
    model = pretrained()
    model.fc = nn.Linear(512, 5)
    freeze_except(model, "fc")
    train(model)
    save_delta(model, tmp_path / "d.safetensors")
    changed = 4 * (512 * 5 + 5)
    assert (tmp_path / "d.safetensors").stat().st_size < changed + 1100
    fresh = pretrained()
    load_delta(fresh, tmp_path / "d.safetensors")
    assert fresh.fc.out_features == 5
    assert same_outputs(fresh, model)


def test_moved_statistics_are_part_of_a_delta(tmp_path: Path) -> None:
    """Plainly frozen BatchNorm moves in training mode; the delta has it even if saved in eval mode."""
    model = pretrained()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("fc."))
    train(model)
    model.eval()
    save_delta(model, tmp_path / "d.safetensors")
    fresh = pretrained()
    load_delta(fresh, tmp_path / "d.safetensors")
    assert same_outputs(fresh, model)


def test_a_base_tells_exactly_what_changed(tmp_path: Path) -> None:
    """What was trained first and frozen later is found by comparing."""
    model = pretrained()
    base = {name: value.clone() for name, value in model.state_dict().items()}
    freeze_except(model, "layer4")
    train(model)
    freeze_except(model, "fc")
    train(model)
    save_delta(model, tmp_path / "d.safetensors", base=base)
    fresh = pretrained()
    load_delta(fresh, tmp_path / "d.safetensors")
    assert same_outputs(fresh, model)


@pytest.mark.parametrize("what", ["weights", "architecture"])
def test_a_wrong_base_is_refused_and_untouched(tmp_path: Path, what: str) -> None:
    """Another base is told by its digest, and stays as it was."""
    model = pretrained()
    model.fc = nn.Linear(512, 5)
    freeze_except(model, "fc")
    save_delta(model, tmp_path / "d.safetensors")
    torch.manual_seed(8)
    other = timm.create_model("resnet18" if what == "weights" else "resnet34")
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=what):
        load_delta(other, tmp_path / "d.safetensors")
    after = other.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_any_flipped_byte_is_noticed(tmp_path: Path) -> None:
    """Whatever byte of a delta is wrong, it is refused."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    freeze_except(model, "1")
    path = tmp_path / "d.safetensors"
    save_delta(model, path)
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with pytest.raises(DamagedFileError):
            load_delta(model, path)
