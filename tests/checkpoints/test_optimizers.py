"""Optimizers get their history back, whatever groups they were built with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from ftkit import CheckpointManager, freeze_except, load_checkpoint, param_groups, save_checkpoint, unfreeze
from ftkit.errors import CheckpointError
from tests.checkpoints.runs import flat, make, names, steps


def test_moments_of_another_type_stay_exact(tmp_path: Path) -> None:
    """32-bit moments of 16-bit parameters are not rounded, as torch's own loading does."""
    model = nn.Linear(4, 4).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for parameter in model.parameters():
        optimizer.state[parameter]["average"] = torch.rand_like(parameter, dtype=torch.float32)
    save_checkpoint(tmp_path / "a.safetensors", model=model, optimizer=optimizer)
    other = torch.optim.SGD(model.parameters(), 0.1)
    load_checkpoint(tmp_path / "a.safetensors", model=model, optimizer=other)
    for parameter in model.parameters():
        assert torch.equal(other.state[parameter]["average"], optimizer.state[parameter]["average"])


def test_a_parameter_the_checkpoint_did_not_train_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What the script thaws beyond the saved run goes on in the optimizer, trainable, with a warning."""
    model = make()
    freeze_except(model, "4")
    optimizer = torch.optim.AdamW(model[4].parameters())
    steps(model, optimizer)
    save_checkpoint(tmp_path / "a.safetensors", model=model, optimizer=optimizer)
    again = make()
    freeze_except(again, "4", "1")
    other = torch.optim.AdamW([*again[1].parameters(), *again[4].parameters()], 0.5)
    load_checkpoint(tmp_path / "a.safetensors", model=again, optimizer=other)
    assert "without optimizer state" in caplog.text
    assert "2 parameters frozen in the checkpoint stay trainable" in caplog.text
    assert "1.weight, 1.bias" in caplog.text
    assert [len(group["params"]) for group in other.param_groups] == [2, 2]
    assert [group["lr"] for group in other.param_groups] == [1e-3, 0.5]
    assert again[1].weight.requires_grad
    steps(again, other)


def test_groups_in_another_order_are_matched_by_name(tmp_path: Path) -> None:
    """Moments follow their parameters, however the new optimizer was built."""
    model = make()
    optimizer = torch.optim.AdamW([{"params": model[0].parameters(), "lr": 0.5}, {"params": model[4].parameters()}])
    steps(model, optimizer)
    save_checkpoint(tmp_path / "a.safetensors", model=model, optimizer=optimizer)
    steps(model, optimizer)
    again = make()
    other = torch.optim.AdamW(reversed(list(again[4].parameters())))
    load_checkpoint(tmp_path / "a.safetensors", model=again, optimizer=other)
    steps(again, other)
    assert torch.equal(flat(again), flat(model))


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
    "one lambda each": lambda optimizer: lr_scheduler.LambdaLR(
        optimizer, [lambda epoch: 0.9**epoch for _ in optimizer.param_groups]
    ),
    "MultiplicativeLR": lambda optimizer: lr_scheduler.MultiplicativeLR(optimizer, lambda _: 0.9),
    "ChainedScheduler": lambda optimizer: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch), lr_scheduler.StepLR(optimizer, 100)]
    ),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("parts", [(4, 1, 0), (1, 4)])
def test_a_scheduler_moves_the_groups_that_the_checkpoint_lacked(tmp_path: Path, kind: str, parts: Any) -> None:
    """Groups beyond those of the checkpoint go on at their own rates, and the others where they were."""
    model = make()
    optimizer = torch.optim.SGD(model[4].parameters(), 0.1)
    scheduler = SCHEDULERS[kind](optimizer)
    for _ in range(3):
        steps(model, optimizer, 1)
        scheduler.step()
    save_checkpoint(tmp_path / "a.safetensors", model=model, optimizer=optimizer, scheduler=scheduler)
    again = make()
    other = torch.optim.SGD([{"params": again[part].parameters(), "lr": 0.01 * (part + 1)} for part in parts])
    follower = SCHEDULERS[kind](other)
    load_checkpoint(tmp_path / "a.safetensors", model=again, optimizer=other, scheduler=follower)
    before = [group["lr"] for group in other.param_groups]
    steps(again, other, 1)
    follower.step()
    assert before[0] == pytest.approx(0.1 * 0.9**3)
    assert other.param_groups[0]["lr"] == pytest.approx(0.1 * 0.9**4)
    rates = [0.01 * (part + 1) for part in parts if part != 4]
    moved = 0.9 if kind == "MultiplicativeLR" else 0.9**4  # what multiplies starts from where a group is
    assert [group["lr"] for group in other.param_groups[1:]] == pytest.approx([rate * moved for rate in rates])


def test_a_scheduler_of_more_groups_than_the_checkpoint_had(tmp_path: Path) -> None:
    """A file whose optimizer had one group for all goes into one that was built with several."""
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = SCHEDULERS["LambdaLR"](optimizer)
    steps(model, optimizer, 1)
    scheduler.step()
    save_checkpoint(tmp_path / "a.safetensors", model=model, optimizer=optimizer, scheduler=scheduler)
    again = make()
    other = torch.optim.SGD([{"params": again[part].parameters()} for part in (0, 1, 4)])
    follower = SCHEDULERS["LambdaLR"](other)
    load_checkpoint(tmp_path / "a.safetensors", model=again, optimizer=other, scheduler=follower)
    steps(again, other, 1)
    follower.step()
    assert [group["lr"] for group in other.param_groups] == pytest.approx([0.1 * 0.9**2])


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel, torch.compile])
def test_an_optimizer_of_another_model_is_not_saved(tmp_path: Path, wrap: Any) -> None:
    """No resume could use it; one that holds nothing, or any part of the model, is saved."""
    optimizer = torch.optim.AdamW(make().parameters())
    model = wrap(make())
    with pytest.raises(CheckpointError, match="None of the 6 parameters of this AdamW is in the model"):
        save_checkpoint(tmp_path / "c.pt", model=model, optimizer=optimizer)
    manager = CheckpointManager(tmp_path)
    with pytest.raises(CheckpointError, match="None of the 6 parameters"):
        manager.save(0, model=model, optimizer=optimizer)
    assert not names(tmp_path)
    save_checkpoint(tmp_path / "x.pt", model=model, teacher=optimizer)  # under another name, it is nobody's
    optimizer.add_param_group({"params": next(model.parameters())})
    manager.save(0, model=model, optimizer=optimizer)
    optimizer.param_groups.clear()
    manager.save(1, model=model, optimizer=optimizer)


class Wrapped(nn.Module):
    """As a LightningModule holds its model."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name in names:
            self.add_module(name, nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))


@pytest.mark.parametrize("saved", ["", "model"])
@pytest.mark.parametrize("built", ["", "model"])
@pytest.mark.parametrize("loaded", ["", "model"])
def test_groups_of_a_part_are_found_in_the_whole(saved: str, built: str, loaded: str, tmp_path: Path) -> None:
    """A checkpoint of Lightning has the groups under the names that configure_optimizers gave them."""
    module = Wrapped("model")
    optimizer = torch.optim.SGD(param_groups(module.get_submodule(saved), 0.1, layer_decay=0.5), momentum=0.9)
    module.get_submodule("model")(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    torch.save({"state_dict": module.state_dict(), "optimizer_states": [optimizer.state_dict()]}, tmp_path / "l.ckpt")
    fresh = Wrapped("model")
    other = torch.optim.SGD(param_groups(fresh.get_submodule(built), 0.1, layer_decay=0.5), momentum=0.9)
    load_checkpoint(tmp_path / "l.ckpt", model=fresh.get_submodule(loaded), optimizer=other)
    for (name, ours), theirs in zip(fresh.named_parameters(), module.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
        assert torch.equal(other.state[ours]["momentum_buffer"], optimizer.state[theirs]["momentum_buffer"])


def test_groups_of_one_of_two_like_parts_are_that_of_the_optimizer(tmp_path: Path) -> None:
    module, fresh = Wrapped("a", "b"), Wrapped("a", "b")
    optimizer = torch.optim.SGD(param_groups(module.get_submodule("b"), 0.1), momentum=0.9)
    module.get_submodule("b")(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    torch.save({"state_dict": module.state_dict(), "optimizer_states": [optimizer.state_dict()]}, tmp_path / "l.ckpt")
    other = torch.optim.SGD(param_groups(fresh.get_submodule("b"), 0.1), momentum=0.9)
    load_checkpoint(tmp_path / "l.ckpt", model=fresh, optimizer=other)
    assert set(other.state) == set(fresh.get_submodule("b").parameters())
    unnamed = torch.optim.SGD(fresh.parameters(), 0.1, momentum=0.9)
    with pytest.raises(CheckpointError, match="which the model lacks"):
        load_checkpoint(tmp_path / "l.ckpt", model=fresh, optimizer=unnamed)


@pytest.mark.frameworks
def test_wrappers_of_accelerate_resume_after_a_thaw(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")

    def build() -> tuple[Any, Any, Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        freeze_except(model, "1")
        optimizer = torch.optim.AdamW(param_groups(model, 0.01, layer_decay=0.5))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
        prepared: tuple[Any, Any, Any] = accelerate.Accelerator(cpu=True).prepare(model, optimizer, scheduler)
        return prepared

    def step(model: Any, optimizer: Any, scheduler: Any) -> None:
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()

    run, again = build(), build()
    step(*run)
    unfreeze(run[0], "0", optimizer=run[1], scheduler=run[2])
    step(*run)
    names = ("model", "optimizer", "scheduler")
    save_checkpoint(tmp_path / "run.safetensors", **dict(zip(names, run, strict=True)))
    load_checkpoint(tmp_path / "run.safetensors", **dict(zip(names, again, strict=True)))
    step(*run)
    step(*again)
    assert all(torch.equal(*pair) for pair in zip(run[0].parameters(), again[0].parameters(), strict=True))
    assert run[2].get_last_lr() == again[2].get_last_lr()
