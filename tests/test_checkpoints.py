"""Training checkpoints: resumes are exact, failures change nothing, nothing good is ever lost."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ftkit import CheckpointManager, freeze_except, load_checkpoint, param_groups, save_checkpoint, unfreeze
from ftkit.errors import CheckpointError


def make() -> nn.Module:
    """A small model with everything that has a state of its own."""
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))


def steps(model: nn.Module, optimizer: Any, count: int = 3) -> None:
    """Train on random data; noise comes from every global generator."""
    model.train()
    for _ in range(count):
        batch = torch.randn(6, 4) + random.random() + float(np.random.rand())  # noqa: NPY002
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def flat(model: nn.Module) -> torch.Tensor:
    """All state of a model in one vector."""
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_resume_is_exact(tmp_path: Path, suffix: str) -> None:
    """Training after a resume is the same to the bit, with optimizer, scheduler, scaler and random numbers."""
    path = tmp_path / f"run{suffix}"
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    steps(model, optimizer)
    scheduler.step()
    save_checkpoint(
        path, model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler, epoch=4, metrics={"loss": 0.5}
    )
    steps(model, optimizer)
    torch.manual_seed(99)
    again = make()
    other = torch.optim.AdamW(again.parameters(), 1.0)
    plan = torch.optim.lr_scheduler.MultiStepLR(other, [2, 4])
    scale = torch.amp.GradScaler("cpu")
    checkpoint = load_checkpoint(path, model=again, optimizer=other, scheduler=plan, scaler=scale)
    steps(again, other)
    assert torch.equal(flat(again), flat(model))
    assert (checkpoint.epoch, checkpoint.metrics) == (4, {"loss": 0.5})
    assert plan.state_dict() == scheduler.state_dict()
    assert scale.state_dict() == scaler.state_dict()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_resume_after_an_unfreeze_is_exact(tmp_path: Path, suffix: str) -> None:
    """An optimizer built for fewer groups gets all of them back, and what was thawed is trainable."""

    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = make()
        freeze_except(model, "4")
        return model, torch.optim.AdamW(param_groups(model, lr=1e-2, weight_decay=0.1))

    model, optimizer = start()
    steps(model, optimizer)
    unfreeze(model, "0", "1", optimizer=optimizer)
    steps(model, optimizer)
    save_checkpoint(tmp_path / f"run{suffix}", model=model, optimizer=optimizer, epoch=1)
    steps(model, optimizer)
    again, other = start()
    load_checkpoint(tmp_path / f"run{suffix}", model=again, optimizer=other)
    steps(again, other)
    assert torch.equal(flat(again), flat(model))
    assert [g["lr"] for g in other.param_groups] == [g["lr"] for g in optimizer.param_groups]


def test_manager_tells_the_story(tmp_path: Path) -> None:
    """Best and newest stay; a new process goes on after the newest."""
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    manager = CheckpointManager(tmp_path, monitor="val_loss", keep_best=2)
    assert manager.resume(model=model, optimizer=optimizer) == 0
    for epoch, loss in enumerate([0.5, 0.3, 0.9, 0.4, 0.8]):
        manager.save(epoch, model=model, optimizer=optimizer, metrics={"val_loss": loss})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "1-0.3000.safetensors",
        "3-0.4000.safetensors",
        "4-0.8000.safetensors",
    ]
    manager = CheckpointManager(tmp_path, monitor="val_loss", keep_best=2)
    assert manager.best_path is not None
    assert manager.best_path.name == "1-0.3000.safetensors"
    assert manager.resume(model=model, optimizer=optimizer) == 5


def test_a_damaged_newest_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The newest intact file is taken, with a warning."""
    model = make()
    manager = CheckpointManager(tmp_path, keep_last=3)
    paths = [manager.save(epoch, model=model) for epoch in range(3)]
    raw = bytearray(paths[-1].read_bytes())
    raw[-5] ^= 1
    paths[-1].write_bytes(raw)
    assert CheckpointManager(tmp_path, keep_last=3).resume(model=model) == 2
    assert "damaged" in caplog.text


def test_load_changes_all_or_nothing(tmp_path: Path) -> None:
    """A state that does not fit leaves every object as it was."""
    model = make()
    optimizer = torch.optim.AdamW(model.parameters())
    steps(model, optimizer)
    save_checkpoint(tmp_path / "run.safetensors", model=model, optimizer=optimizer, scheduler=None, epoch=1)
    other = nn.Sequential(*make()[:4], nn.Linear(8, 3))
    opt = torch.optim.AdamW(other.parameters(), 0.7)
    before = flat(other)
    with pytest.raises(CheckpointError, match=r"'4.weight' has shape \[2, 8\]"):
        load_checkpoint(tmp_path / "run.safetensors", model=other, optimizer=opt)
    assert torch.equal(flat(other), before)
    assert opt.param_groups[0]["lr"] == 0.7
    assert not opt.state
