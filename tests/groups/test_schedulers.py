"""Schedulers go on with newcomers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.scheduler
import torch
from torch import nn
from torch.optim import lr_scheduler

from ftkit import CheckpointManager
from ftkit._freezing.freeze import freeze_except, unfreeze
from ftkit._freezing.schedules import FreezeSchedule
from ftkit._groups import param_groups
from ftkit._groups.schedulers import schedulers_in
from ftkit._torch import LISTS_BY_GROUP
from ftkit.errors import FtkitError
from tests.groups.models import stack

SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch)),
    "lambdas": lambda optimizer: lr_scheduler.LambdaLR(
        optimizer, [lambda epoch: 0.8**epoch] * len(optimizer.param_groups)
    ),
    "multiplicative": lambda optimizer: lr_scheduler.MultiplicativeLR(optimizer, lambda epoch: 0.9),
    "steps": lambda optimizer: lr_scheduler.StepLR(optimizer, 3, 0.5),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 20),
    "restarts": lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 4),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, [g["lr"] for g in optimizer.param_groups], 20),
    "cyclic": lambda optimizer: lr_scheduler.CyclicLR(
        optimizer, [g["lr"] / 9 for g in optimizer.param_groups], [g["lr"] for g in optimizer.param_groups], 3
    ),
    "plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(
        optimizer, patience=0, min_lr=[1e-9] * len(optimizer.param_groups)
    ),
    "sequential": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, 0.1), lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch)],
        [5],
    ),
    "chained": lambda optimizer: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(optimizer, 0.5, 3), lr_scheduler.ExponentialLR(optimizer, 0.9)], optimizer
    ),
    "timm": lambda optimizer: timm.scheduler.CosineLRScheduler(optimizer, t_initial=12, warmup_t=2),
}


def advance(scheduler: Any, epoch: int) -> None:
    """Step a scheduler of any kind."""
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(1.0)
    elif isinstance(scheduler, lr_scheduler.LRScheduler):
        scheduler.step()
    else:
        scheduler.step(epoch + 1)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")  # torch warns of itself
def test_newcomers_follow_the_scheduler(name: str) -> None:
    """They come in at the rate where the schedule is, and have from then on what they would have had from the start."""
    courses = []
    for late in (False, True):
        model = stack()
        if late:
            freeze_except(model, "2")
        optimizer = torch.optim.SGD(param_groups(model, 0.1, layer_decay=0.5), momentum=0.9)
        scheduler = SCHEDULERS[name](optimizer)
        rates = []
        for epoch in range(10):
            if late and epoch == 4:
                unfreeze(model, "1", optimizer=optimizer, scheduler=scheduler)
                unfreeze(model, "0", optimizer=optimizer, scheduler=[scheduler])
            optimizer.step()
            advance(scheduler, epoch)
            rates.append(sorted(float(group["lr"]) for group in optimizer.param_groups))
        courses.append(rates[4:])
        if isinstance(scheduler, lr_scheduler.LRScheduler):
            assert sorted(scheduler.get_last_lr()) == rates[-1]
    assert [len(rates) for rates in courses[1]] == [3] * 6
    torch.testing.assert_close(torch.tensor(courses[1]), torch.tensor(courses[0]))


def test_a_scheduler_resumes_with_the_newcomers() -> None:
    """A run that starts anew has its groups and its scheduler's lists back before their states are loaded."""

    def start() -> tuple[nn.Module, torch.optim.Optimizer, FreezeSchedule, lr_scheduler.LambdaLR]:
        model = stack()
        schedule = FreezeSchedule({0: "2", 2: "1"})
        schedule.step(0, model=model)
        optimizer = torch.optim.SGD(param_groups(model, 0.1, layer_decay=0.5))
        return model, optimizer, schedule, lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch))

    model, optimizer, schedule, scheduler = start()
    for epoch in range(3):
        schedule.step(epoch, model=model, optimizer=optimizer, scheduler=scheduler)
        optimizer.step()
        scheduler.step()
    states = optimizer.state_dict(), schedule.state_dict(), scheduler.state_dict()
    optimizer.step()
    scheduler.step()
    expected = scheduler.get_last_lr()
    model, optimizer, schedule, scheduler = start()
    schedule.load_state_dict(states[1])
    schedule.step(2, model=model, optimizer=optimizer, scheduler=scheduler)
    optimizer.load_state_dict(states[0])
    scheduler.load_state_dict(states[2])
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == expected == pytest.approx([0.02, 0.01])


class Trainer:
    """A bystander that refers to an optimizer, and has lists of its own."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.base_lrs, self.lr_lambdas = optimizer, [0.1], ["mine"]


def test_a_bystander_is_left_alone() -> None:
    """Only what is passed as a scheduler is told, however much else looks like one."""
    model, optimizer, scheduler = thawing()
    trainer = Trainer(optimizer)
    other = lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)
    unfreeze(model, "1", optimizer=optimizer, scheduler=scheduler)
    assert (trainer.base_lrs, trainer.lr_lambdas) == ([0.1], ["mine"])
    assert len(scheduler.base_lrs) == len(optimizer.param_groups) == 2
    assert len(other.base_lrs) == 1


def thawing() -> tuple[nn.Module, torch.optim.Optimizer, lr_scheduler.LambdaLR]:
    """A model whose head trains, under a schedule."""
    model = stack()
    freeze_except(model, "2")
    optimizer = torch.optim.SGD(param_groups(model, 0.1, layer_decay=0.5))
    return model, optimizer, lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch)


def unfreeze_one(model: nn.Module, **given: Any) -> object:
    return unfreeze(model, "1", **given)


def train_one(model: nn.Module, **given: Any) -> object:
    return freeze_except(model, "1", **given)


def enter_a_phase(model: nn.Module, **given: Any) -> object:
    return FreezeSchedule({1: "1"}).step(1, model=model, **given)


def look_ahead(model: nn.Module, **given: Any) -> object:
    return FreezeSchedule({9: "1"}).step(0, model=model, **given)


def call_a_function(model: nn.Module, **given: Any) -> object:
    return FreezeSchedule(lambda epoch: "1").step(0, model=model, **given)


def restore(model: nn.Module, **given: Any) -> object:
    schedule = FreezeSchedule(lambda epoch: "1")
    schedule.load_state_dict({"phase": 0, "trainable": ["1.weight"], "groups": [["2.weight", "2.bias"], ["1.weight"]]})
    return schedule.step(0, model=model, **given)


CALLS = [unfreeze_one, train_one, enter_a_phase, look_ahead, call_a_function, restore]


@pytest.mark.parametrize("call", CALLS)
def test_a_scheduler_that_is_not_told_of_is_an_error_before_anything_changes(call: Callable[..., object]) -> None:
    """It would fail at its next step; the error says what to pass. A phase that comes late shows it at the start."""
    model, optimizer, scheduler = thawing()
    before = [p.requires_grad for p in model.parameters()]
    for given in ({}, {"scheduler": lr_scheduler.StepLR(torch.optim.SGD(model.parameters()), 1)}, {"scheduler": "cos"}):
        if call is look_ahead and given:
            continue
        with pytest.raises(FtkitError, match="scheduler="):
            call(model, optimizer=optimizer, **given)
        assert [p.requires_grad for p in model.parameters()] == before
        assert (len(optimizer.param_groups), len(scheduler.base_lrs)) == (1, 1)
    call(model, optimizer=optimizer, scheduler=scheduler)
    optimizer.step()
    scheduler.step()


def test_a_scheduler_without_an_optimizer_is_an_error() -> None:
    """Nothing would join, and nobody would know."""
    model, _, scheduler = thawing()
    with pytest.raises(FtkitError, match="optimizer="):
        unfreeze(model, "1", scheduler=scheduler)
    assert not model[1].weight.requires_grad


def test_a_schedule_that_has_ended_is_said_to_have() -> None:
    """Its mark stays in the groups; an empty list says that none moves them any more."""
    model, optimizer, _ = thawing()
    assert unfreeze(model, "1", optimizer=optimizer, scheduler=[]).added == ("1.weight", "1.bias")


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")  # torch warns of itself
def test_a_manager_resumes_what_had_thawed_under_a_scheduler(name: str, tmp_path: Path) -> None:
    """The script builds all as at its start; the run goes on to the bit, and does not fail at the next step."""

    def start() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        torch.manual_seed(0)
        model = stack()
        freeze_except(model, "2")
        optimizer = torch.optim.SGD(param_groups(model, 0.1, layer_decay=0.5), momentum=0.9)
        return model, optimizer, SCHEDULERS[name](optimizer)

    def go_on(optimizer: torch.optim.Optimizer, scheduler: Any) -> list[float]:
        rates = []
        for epoch in range(3, 9):
            optimizer.step()
            advance(scheduler, epoch)
            rates += [float(group["lr"]) for group in optimizer.param_groups]
        return rates

    model, optimizer, scheduler = start()
    for epoch in range(3):
        if epoch == 1:
            unfreeze(model, "1", optimizer=optimizer, scheduler=scheduler)
        optimizer.step()
        advance(scheduler, epoch)
    CheckpointManager(tmp_path).save(2, model=model, optimizer=optimizer, scheduler=scheduler)
    expected = go_on(optimizer, scheduler)
    model, optimizer, scheduler = start()
    CheckpointManager(tmp_path).resume(model=model, optimizer=optimizer, scheduler=scheduler)
    assert go_on(optimizer, scheduler) == expected
    assert unfreeze(model, "0", optimizer=optimizer, scheduler=scheduler).added
    go_on(optimizer, scheduler)


@pytest.mark.frameworks
@pytest.mark.parametrize("name", ["linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt"])
def test_the_warm_up_of_transformers_resumes_after_a_thaw(name: str, tmp_path: Path) -> None:
    """Those of get_scheduler keep a function for each group, which no state contains."""
    transformers = pytest.importorskip("transformers")

    def start() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        torch.manual_seed(0)
        model = stack()
        freeze_except(model, "2")
        optimizer = torch.optim.AdamW(param_groups(model, 0.1, layer_decay=0.5))
        return model, optimizer, transformers.get_scheduler(name, optimizer, num_warmup_steps=4, num_training_steps=12)

    def go_on(model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> list[float]:
        rates = []
        for _ in range(6):
            model(torch.ones(4, 2)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            rates += [float(group["lr"]) for group in optimizer.param_groups]
        return [*rates, *(float(parameter.detach().sum()) for parameter in model.parameters())]

    model, optimizer, scheduler = start()
    unfreeze(model, "1", optimizer=optimizer, scheduler=scheduler)
    go_on(model, optimizer, scheduler)
    CheckpointManager(tmp_path).save(0, model=model, optimizer=optimizer, scheduler=scheduler)
    expected = go_on(model, optimizer, scheduler)
    again = start()
    assert CheckpointManager(tmp_path).resume(model=again[0], optimizer=again[1], scheduler=again[2]) == 1
    assert go_on(*again) == expected


def test_groups_made_before_freezing_take_any_scheduler() -> None:
    """An optimizer built over the whole model needs nothing to join it, and frozen parameters in it do not move."""
    model = stack()
    optimizer = torch.optim.AdamW(param_groups(model, 0.1, weight_decay=0.1, layer_decay=0.5))
    schedule = lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch)
    freeze_except(model, "2")
    before = model[1].weight.clone()
    for epoch in range(4):
        if epoch == 2:
            assert torch.equal(before, model[1].weight)
            assert unfreeze(model, "1", optimizer=optimizer).added == ()
        optimizer.zero_grad()
        model(torch.randn(4, 2)).square().sum().backward()
        optimizer.step()
        schedule.step()
    assert not torch.equal(before, model[1].weight)


def test_every_list_by_group_is_some_schedulers() -> None:
    """A name that torch or timm has given up would be looked for in vain, without a word."""
    optimizer = torch.optim.SGD(param_groups(stack(), 0.1, layer_decay=0.5), momentum=0.9)
    schedulers = [make(optimizer) for make in SCHEDULERS.values()]
    found = {name for scheduler in schedulers_in(schedulers, optimizer) for name in vars(scheduler)}
    assert set(LISTS_BY_GROUP) <= found
    assert len(schedulers_in(schedulers, optimizer)) == len(schedulers) + 4  # two in a sequence, and two in a chain
