"""Checkpoints of timm's training script, and timm's readers on those of ftkit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import timm.optim
import torch
from timm.utils import CheckpointSaver, ModelEmaV2, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ftkit import freeze_except, inspect_checkpoint, load_checkpoint, param_groups, save_checkpoint, unfreeze
from ftkit.errors import CheckpointError


def build(seed: int) -> tuple[nn.Module, Any]:
    torch.manual_seed(seed)
    model = timm.create_model("test_resnet", num_classes=3)
    return model, timm.optim.create_optimizer_v2(model, opt="adamw", lr=1e-3)


def train(model: nn.Module, optimizer: Any, ema: Any, update: str = "update") -> None:
    for _ in range(2):
        model(torch.randn(2, 3, 32, 32)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        getattr(ema, update)(model)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(*pair) for pair in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("kind", [ModelEmaV2, ModelEmaV3])
def test_reads_what_timm_saves_with_its_average(kind: Any, tmp_path: Path) -> None:
    model, optimizer = build(0)
    ema = kind(model, decay=0.9)
    train(model, optimizer, ema)
    saver = CheckpointSaver(model, optimizer, model_ema=ema, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path))
    saver.save_checkpoint(4, metric=0.5)
    again, other = build(1)
    average = kind(again, decay=0.9)
    checkpoint = load_checkpoint(tmp_path / "last.pth.tar", model=again, optimizer=other, ema=average)
    assert (checkpoint.epoch, checkpoint.extra["metric"]) == (4, 0.5)
    assert same(again, model)
    assert same(average.module, ema.module)
    for theirs, ours in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(optimizer.state[theirs]["exp_avg"], other.state[ours]["exp_avg"])
    with pytest.raises(CheckpointError, match="n_averaged"):  # without the count, the next update would copy the model
        load_checkpoint(tmp_path / "last.pth.tar", ema=AveragedModel(again))


def test_lookahead_resumes_after_a_thaw(tmp_path: Path) -> None:
    """It has an optimizer inside, whose list of groups is its own; a checkpoint that does not fit changes neither."""

    class Picky:
        def state_dict(self) -> dict[str, int]:
            return {}

        def load_state_dict(self, state: dict[str, int]) -> None:
            raise ValueError

    def start() -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
        freeze_except(model, "2")
        return model, timm.optim.create_optimizer_v2(param_groups(model, 0.1), opt="lookahead_adamw", lr=0.1)

    def steps(model: nn.Module, optimizer: Any) -> None:
        for _ in range(7):
            optimizer.zero_grad()
            model(torch.ones(3, 4)).square().sum().backward()
            optimizer.step()

    model, optimizer = start()
    unfreeze(model, "0", optimizer=optimizer)
    steps(model, optimizer)
    save_checkpoint(tmp_path / "run.safetensors", model=model, optimizer=optimizer)
    steps(model, optimizer)
    again, other = start()
    load_checkpoint(tmp_path / "run.safetensors", model=again, optimizer=other)
    assert other.param_groups is other._base_optimizer.param_groups
    steps(again, other)
    assert same(again, model)
    third, last = start()
    before = list(map(id, last.param_groups))
    save_checkpoint(tmp_path / "more.safetensors", model=model, optimizer=optimizer, picky=Picky())
    with pytest.raises(CheckpointError, match="does not fit this Picky"):
        load_checkpoint(tmp_path / "more.safetensors", model=third, optimizer=last, picky=Picky())
    assert list(map(id, last._base_optimizer.param_groups)) == before
    assert last.param_groups is last._base_optimizer.param_groups
    assert not last._base_optimizer.state


@pytest.mark.parametrize("suffix", [".pth", ".pth.tar"])
def test_timm_reads_a_torch_file_with_its_average(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"run{suffix}"
    model, optimizer = build(0)
    ema = ModelEmaV3(model, decay=0.9)
    train(model, optimizer, ema)
    save_checkpoint(path, model=model, optimizer=optimizer, ema=ema, epoch=4, note="mine")
    again, other = build(1)
    timm.models.load_checkpoint(again, str(path), use_ema=True)
    assert same(again, ema.module)
    assert timm.models.resume_checkpoint(again, str(path), other, log_info=False) == 4
    assert same(again, model)
    assert len(other.state) == len(optimizer.state)
    count = len(model.state_dict())
    assert sum(name.startswith("model_state_dict.") for name in inspect_checkpoint(path).tensors) in {0, count}
    assert load_checkpoint(path, model=again, optimizer=other).extra == {"note": "mine"}


def test_timm_reads_a_torch_file_without_the_average_of_torch(tmp_path: Path) -> None:
    """It has no place for the counter in it, and takes the weights."""
    model, optimizer = build(0)
    ema = AveragedModel(model)
    train(model, optimizer, ema, "update_parameters")
    save_checkpoint(tmp_path / "run.pth", model=model, ema=ema)
    again, _ = build(1)
    timm.models.load_checkpoint(again, str(tmp_path / "run.pth"))
    assert same(again, model)
    average = AveragedModel(again)
    load_checkpoint(tmp_path / "run.pth", ema=average)
    assert same(average, ema)


def test_the_second_names_take_no_space(tmp_path: Path) -> None:
    model, optimizer = build(0)
    train(model, optimizer, ModelEmaV3(model))
    save_checkpoint(tmp_path / "run.pth", model=model, optimizer=optimizer)
    parts = {"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    torch.save(parts, tmp_path / "plain.pth")
    assert (tmp_path / "run.pth").stat().st_size < (tmp_path / "plain.pth").stat().st_size + 30_000
    assert (
        len(inspect_checkpoint(tmp_path / "run.pth").tensors)
        <= len(inspect_checkpoint(tmp_path / "plain.pth").tensors) + 9
    )
