"""What was frozen, thawed and held comes back."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ftkit import (
    CheckpointManager,
    FreezeSchedule,
    freeze,
    freeze_except,
    load_checkpoint,
    save_checkpoint,
    trainable,
    unfreeze,
)
from ftkit._freezing.holding import is_held
from tests.checkpoints.runs import make


def shuffle_freezing(model: nn.Module, dice: random.Random) -> None:
    """Freeze and thaw parts at random, in all the ways there are."""
    parts = [name for name, module in model.named_modules() if name and list(module.parameters())]
    for _ in range(dice.randint(0, 3)):
        some = dice.sample(parts, dice.randint(1, 2))
        way = dice.randrange(4)
        if way == 0:
            freeze(model, *some, norm_stats=dice.random() < 0.8, keep_dropout=dice.random() < 0.2)
        elif way == 1:
            unfreeze(model, *some)
        elif way == 2:
            freeze_except(model, *some)
        else:
            for parameter in model.get_submodule(some[0]).parameters():
                parameter.requires_grad_(dice.random() < 0.5)


def freezing(model: nn.Module) -> tuple[set[str], set[str]]:
    """The trainable parameters, and the modules held in eval mode."""
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return trains, {name for name, module in model.named_modules() if is_held(module)}


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_what_is_frozen_comes_back_exactly(seed: int) -> None:
    """Whatever was frozen, thawed and held in whatever way is so again, whatever the new process did before."""

    def nested() -> nn.Module:
        inner = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Dropout(0.2))
        return nn.Sequential(make()[:4], inner, nn.Linear(8, 2))

    dice = random.Random(seed)
    model, other = nested(), nested()
    shuffle_freezing(model, dice)
    shuffle_freezing(other, dice)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.safetensors")
        save_checkpoint(path, model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1))
        load_checkpoint(path, model=other, optimizer=torch.optim.SGD(other.parameters(), 0.1))
    assert freezing(other) == freezing(model)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_turns_go_on_though_the_schedule_was_not_passed(tmp_path: Path, stop: int) -> None:
    """A script that begins with a schedule's first turn resumes amid any other, and each epoch trains what it says."""

    def run(folder: Path, end: int) -> dict[int, set[str]]:
        model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
        schedule = FreezeSchedule({0: ["0", "2"], 1: ["1", "2"]}, period=2)
        schedule.step(0, model=model)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        manager = CheckpointManager(folder)
        seen = {}
        for epoch in range(manager.resume(model=model, optimizer=optimizer), end):
            schedule.step(epoch, model=model, optimizer=optimizer)
            seen[epoch] = {name[0] for name in trainable(model)}
            manager.save(epoch, model=model, optimizer=optimizer)
        return seen

    assert {**run(tmp_path, stop), **run(tmp_path, 5)} == {epoch: {str(epoch % 2), "2"} for epoch in range(5)}
