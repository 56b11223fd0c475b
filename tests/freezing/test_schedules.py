"""Freeze schedules: gradual, by turns, by a function, and resumed."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import nn

from ftkit._freezing.freeze import freeze, freeze_except, is_frozen, trainable
from ftkit._freezing.schedules import FreezeSchedule
from ftkit._groups import layout, param_groups
from ftkit.errors import FtkitError, SelectionError


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 2))


def parts(model: nn.Module) -> set[str]:
    return {name.partition(".")[0] for name in trainable(model)}


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model.train()(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()


def test_gradual_unfreezing_adds_a_part_at_a_time() -> None:
    """Phase 0 freezes all but itself, later ones add to it, and epochs between change nothing."""
    model = small()
    schedule = FreezeSchedule({0: "3", 2: "2", 3: ["0", "1"]})
    seen = []
    for epoch in range(5):
        report = schedule.step(epoch, model=model)
        seen.append((sorted(parts(model)), report is not None))
    assert seen == [
        (["3"], True),
        (["3"], False),
        (["2", "3"], True),
        (["0", "1", "2", "3"], True),
        (["0", "1", "2", "3"], False),
    ]


def test_without_a_phase_0_nothing_is_frozen() -> None:
    """Phases only thaw what the caller froze himself."""
    model = small()
    freeze(model, "0", "1", "2")
    schedule = FreezeSchedule({1: "2"})
    assert schedule.step(0, model=model) is None
    assert parts(model) == {"3"}
    schedule.step(1, model=model)
    assert parts(model) == {"2", "3"}


def test_a_jump_over_phases_makes_up_for_them() -> None:
    """Starting late leaves the same trainable set as having stepped through all epochs."""
    model = small()
    FreezeSchedule({0: "3", 2: "2", 3: "0", 9: "1"}).step(7, model=model)
    assert parts(model) == {"0", "2", "3"}


def test_turns_train_exactly_what_their_phase_says() -> None:
    """Frozen parts keep still while the others move, and go on with their optimizer state when their turn comes."""
    model = small()
    optimizer = torch.optim.AdamW(param_groups(model, 0.01))
    schedule = FreezeSchedule({0: ["0", "3"], 1: ["2", "3"]}, period=2)
    for epoch in range(4):
        schedule.step(epoch, model=model, optimizer=optimizer)
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        train(model, optimizer)
        moved = {name.partition(".")[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert moved == ({"0", "3"} if epoch % 2 == 0 else {"2", "3"})
    assert optimizer.state[model[0].weight]["step"] == 2
    assert optimizer.state[model[3].weight]["step"] == 4
    assert model[1].num_batches_tracked == 0


def test_a_function_of_the_epoch_may_choose() -> None:
    """What it returns for an epoch is what trains, and what thaws first joins the optimizer once."""
    model = small()
    freeze_except(model, "3")
    optimizer = torch.optim.SGD(param_groups(model, 0.1, layer_decay=0.5))
    schedule = FreezeSchedule(lambda epoch: ["3", str(epoch % 2 * 2)])
    for epoch in range(4):
        schedule.step(epoch, model=model, optimizer=optimizer)
        assert parts(model) == {"3", str(epoch % 2 * 2)}
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(held) == len(set(held)) == 6
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    assert (rates["3.weight"], rates["2.weight"], rates["0.weight"]) == (0.1, 0.05, 0.025)


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_resumed_run_ends_as_an_unbroken_one(stop: int) -> None:
    """The same trainable set, groups, optimizer state and weights, with momentum and layer-wise rates."""

    def build() -> tuple[nn.Module, torch.optim.Optimizer, FreezeSchedule]:
        torch.manual_seed(0)
        model = small()
        freeze_except(model, "3")
        optimizer = torch.optim.AdamW(param_groups(model, 0.01, weight_decay=0.1, layer_decay=0.5))
        return model, optimizer, FreezeSchedule({0: "3", 1: "2", 4: "0"})

    def run(model: nn.Module, optimizer: torch.optim.Optimizer, schedule: FreezeSchedule, epochs: range) -> None:
        for epoch in epochs:
            schedule.step(epoch, model=model, optimizer=optimizer)
            torch.manual_seed(epoch)
            train(model, optimizer)

    whole, whole_optimizer, schedule = build()
    run(whole, whole_optimizer, schedule, range(6))

    model, optimizer, schedule = build()
    run(model, optimizer, schedule, range(stop + 1))
    saved = model.state_dict(), optimizer.state_dict(), schedule.state_dict()
    model, optimizer, schedule = build()
    model.load_state_dict(saved[0])
    schedule.load_state_dict(saved[2])
    schedule.step(stop, model=model, optimizer=optimizer)
    optimizer.load_state_dict(saved[1])
    run(model, optimizer, schedule, range(stop + 1, 6))

    assert list(trainable(model)) == list(trainable(whole))
    assert layout(model, optimizer) == layout(whole, whole_optimizer)
    for group, other in zip(optimizer.param_groups, whole_optimizer.param_groups, strict=True):
        assert (group["lr"], group["weight_decay"]) == (other["lr"], other["weight_decay"])
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_resuming_asks_no_function_for_the_past() -> None:
    """What a function chose at random is in the state; the next epoch asks it again."""
    asked: list[int] = []

    def choose(epoch: int) -> str:
        asked.append(epoch)
        return str(torch.randint(0, 4, ()).item())

    model = small()
    schedule = FreezeSchedule(choose)
    schedule.step(7, model=model)
    chosen, state = parts(model), schedule.state_dict()
    model, schedule = small(), FreezeSchedule(choose)
    schedule.load_state_dict(state)
    schedule.step(7, model=model)
    assert parts(model) == chosen
    assert asked == [7]
    schedule.step(8, model=model)
    assert asked == [7, 8]


def test_a_slip_in_a_late_phase_shows_at_the_start() -> None:
    """No run fails after five epochs because of a name."""
    model = timm.create_model("resnet18")
    with pytest.raises(SelectionError, match="Did you mean 'layer4'"):
        FreezeSchedule({0: "fc", 5: "layer44"}).step(0, model=model)
    assert not any(is_frozen(model, name) for name in ("conv1", "fc"))


@pytest.mark.parametrize(
    ("phases", "period", "message"),
    [
        ({}, None, "needs phases"),
        ({-1: "fc"}, None, "whole number of at least 0, not -1"),
        ({0.5: "fc"}, None, "not 0.5"),
        ({0: "fc", 4: "layer4"}, 4, "the last before 4"),
        ({1: "fc"}, 4, "must start at 0"),
        (lambda epoch: "fc", 4, "count on its own"),
    ],
)
def test_phases_that_make_no_sense_are_errors(phases: object, period: int | None, message: str) -> None:
    """The message says what was expected and what came."""
    with pytest.raises(FtkitError, match=message):
        FreezeSchedule(phases, period=period)


def test_phases_may_be_counted_by_numpy() -> None:
    """Its whole numbers become plain ones, which any checkpoint keeps."""
    schedule = FreezeSchedule({np.int64(0): "3", np.int64(2): "2"})
    assert schedule.step(2, model=small()) is not None
    assert type(schedule.state_dict()["phase"]) is int


def test_a_foreign_state_is_an_error() -> None:
    """A state of something else, or of another model, is told apart, and nothing changes."""
    schedule = FreezeSchedule({0: "3"})
    with pytest.raises(FtkitError, match="lacks 'phase'"):
        schedule.load_state_dict({"step": 3})
    schedule.load_state_dict({"phase": 0, "trainable": ["3.wieght"], "groups": []})
    model = small()
    with pytest.raises(FtkitError, match=r"3\.weight"):
        schedule.step(0, model=model)
    assert parts(model) == {"0", "1", "2", "3"}
