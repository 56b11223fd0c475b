"""A step that fails takes back all steps before it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler

from ftkit import FreezeSchedule, freeze, freeze_except, frozen, param_groups, trainable, unfreeze
from tests.freezing.models import modes, trees_and_parts

VERBS: dict[str, Callable[..., object]] = {
    "freeze": lambda model, *_: freeze(model, "2"),
    "freeze without dropout": lambda model, *_: freeze(model, "0", keep_dropout=True),
    "unfreeze": lambda model, optimizer, scheduler: unfreeze(model, "0", "1", optimizer=optimizer, scheduler=scheduler),
    "freeze_except": lambda model, optimizer, scheduler: freeze_except(
        model, "0", "1", optimizer=optimizer, scheduler=scheduler
    ),
}
STEPS = ["freeze.join", "freeze.remember", "freeze.release", "freeze.hold"]
STEPS += ["holding._set_hook", "holding._set_memory", "holding._set_modes", "holding._set_depths"]


class Sudden(Exception):
    """No error that anybody expects."""


def start() -> tuple[nn.Sequential, torch.optim.Optimizer, Any]:
    """A model of which a part trains, with gradients, under way with its optimizer and its scheduler."""
    body = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 3))
    model = nn.Sequential(body, nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), nn.Linear(3, 2))
    freeze_except(model, "2", "3")
    optimizer = torch.optim.SGD(param_groups(model, 0.1, weight_decay=0.1, layer_decay=0.5), momentum=0.9)
    scheduler = lr_scheduler.LambdaLR(optimizer, [lambda epoch: 0.9**epoch] * len(optimizer.param_groups))
    model(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    scheduler.step()
    return model, optimizer, scheduler


def standing(model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> list[object]:
    """All that freezing may change."""
    lists = {name: list(value) for name, value in vars(scheduler).items() if isinstance(value, list)}
    groups = [{**group, "params": list(map(id, group["params"]))} for group in optimizer.param_groups]
    names = [list(group["param_names"]) for group in optimizer.param_groups]
    return [modes(model), [id(parameter.grad) for parameter in model.parameters()], groups, names, lists]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("done", [False, True])
def test_each_step_fails_in_turn(verb: str, step: str, done: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags, gradients, modes, hooks, groups and schedules are as before, whether the step had done its work or not."""
    model, optimizer, scheduler = start()
    before = standing(model, optimizer, scheduler)
    room, name = step.split(".")
    whole: Any = getattr(importlib.import_module(f"ftkit._freezing.{room}"), name)

    def fail(*args: Any, **options: Any) -> None:
        if done:
            whole(*args, **options)
        monkeypatch.undo()
        raise Sudden

    monkeypatch.setattr(f"ftkit._freezing.{step}", fail)
    try:
        VERBS[verb](model, optimizer, scheduler)
    except Sudden:
        assert standing(model, optimizer, scheduler) == before
    else:
        assert (verb, step) in UNUSED
    VERBS[verb](model, optimizer, scheduler)
    assert standing(model, optimizer, scheduler) != before


UNUSED = {
    *((verb, "freeze.join") for verb in VERBS if verb.startswith("freeze") and verb != "freeze_except"),
    *((verb, "freeze.release") for verb in VERBS if verb.startswith("freeze") and verb != "freeze_except"),
    ("unfreeze", "freeze.hold"),
}


def test_an_optimizer_that_refuses_the_second_group_gives_back_the_first() -> None:
    """Parameters in an optimizer that don't train would be listed as added by nobody."""
    model, optimizer, scheduler = start()
    before = standing(model, optimizer, scheduler)
    add, calls = optimizer.add_param_group, []

    def refuse_second(group: dict[str, Any]) -> None:
        calls.append(group)
        if len(calls) > 1:
            raise Sudden
        add(group)

    optimizer.add_param_group = refuse_second  # type: ignore[method-assign]
    with pytest.raises(Sudden):
        unfreeze(model, "0", "1", optimizer=optimizer, scheduler=scheduler)
    assert len(calls) == 2
    assert standing(model, optimizer, scheduler) == before


def test_a_schedule_whose_phase_fails_takes_its_restored_state_back() -> None:
    """A function of the epoch may fail after the loaded state was restored; the next step can start anew."""
    model, optimizer, scheduler = start()
    done = FreezeSchedule(lambda epoch: ["1", "3"])
    done.step(0, model=model, optimizer=optimizer, scheduler=scheduler)
    again, other, scheduler = start()
    answers: list[Any] = [Sudden, "3"]

    def phases(epoch: int) -> str:
        answer = answers.pop(0)
        if answer is Sudden:
            raise Sudden
        return answer

    schedule = FreezeSchedule(phases)
    schedule.load_state_dict(done.state_dict())
    before, state = standing(again, other, scheduler), schedule.state_dict()
    with pytest.raises(Sudden):
        schedule.step(1, model=again, optimizer=other, scheduler=scheduler)
    assert standing(again, other, scheduler) == before
    assert schedule.state_dict() == state
    schedule.step(1, model=again, optimizer=other, scheduler=scheduler)
    assert list(trainable(again)) == ["3.weight", "3.bias"]
    assert len(other.param_groups) == len(optimizer.param_groups)


@given(trees_and_parts(), st.booleans(), st.booleans(), st.booleans())
def test_the_context_manager_leaves_no_trace_whatever_it_lets_go(
    case: tuple[nn.Module, list[str]], whole: bool, norm_stats: bool, keep_dropout: bool
) -> None:
    """Over a model that is frozen whole, too, of which the block sets norms or Dropout free."""
    model, parts = case
    freeze(model, *([] if whole else parts[:1]))
    before = modes(model)
    with frozen(model, *parts, norm_stats=norm_stats, keep_dropout=keep_dropout):
        pass
    assert modes(model) == before
