"""Learning-rate schedulers that also cover a group added to their optimizer late."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ftkit._models.undo import Undo
from ftkit._torch import LISTS_BY_GROUP, RATES_BY_GROUP, SCHEDULERS_INSIDE
from ftkit.errors import FtkitError


def inner_optimizer(optimizer: Any) -> Any:
    """Return the optimizer inside the wrappers of Accelerate, Lightning and fastai; anything else as it is."""
    inner: Any = optimizer
    while hasattr(inner, "zero_grad"):  # schedulers and trainers have an optimizer, and are none
        optimizer, own = inner, getattr(inner, "__dict__", {})
        wrapped = (own.get(name) for name in ("optimizer", "_optimizer", "opt"))
        inner = next((one for one in wrapped if isinstance(one, torch.optim.Optimizer)), None)
    return optimizer


def inner_scheduler(scheduler: Any) -> Any:
    """Return the scheduler that Accelerate has wrapped; any other as it is."""
    while hasattr(scheduler, "optimizers") and hasattr(scheduler, "scheduler"):
        scheduler = scheduler.scheduler
    return scheduler


def one_peak(optimizer: torch.optim.Optimizer, schedulers: list[Any]) -> float | None:
    """Return the highest rate if a scheduler gives the same ones to all groups, whatever they were built with.

    ``OneCycleLR`` and ``CyclicLR`` do, unless they were given a list.
    """
    peaks = [group["max_lr"] for group in optimizer.param_groups if "max_lr" in group]
    for one in schedulers:
        peaks = peaks or list(getattr(one, "max_lrs", ()))
    starts = {group.get("initial_lr") for group in optimizer.param_groups}
    return float(peaks[0]) if len(peaks) == len(optimizer.param_groups) and len({*peaks}) == len(starts) == 1 else None


def schedulers_in(given: Any, optimizer: torch.optim.Optimizer | None) -> list[Any]:
    """Return the schedulers that were passed, one, several or none, and those that they run in turn.

    Raises:
        FtkitError: One of them is not a scheduler of this optimizer.
    """
    if given is None:
        return []
    found: list[Any] = []
    optimizer = inner_optimizer(optimizer) if optimizer is not None else None
    for one in map(inner_scheduler, given if isinstance(given, Iterable) else [given]):
        theirs = getattr(getattr(one, "optimizer", None), "param_groups", None)
        if optimizer is None or theirs is not optimizer.param_groups:
            wrong = "came without optimizer=" if optimizer is None else "is not one of this optimizer's"
            raise FtkitError(
                "scheduler= takes the learning-rate scheduler of the optimizer passed as optimizer=, or a list of "
                f"several, but the {type(one).__name__} {wrong}."
            )
        found += [one, *schedulers_in(getattr(one, SCHEDULERS_INSIDE, None), optimizer)]
    return found


def check_told(optimizer: torch.optim.Optimizer, given: Any) -> None:
    """Refuse to add to an optimizer whose scheduler would not know of it, and fail or skip the newcomers.

    Raises:
        FtkitError: A scheduler has left its mark in the groups, and none was given.
    """
    optimizer = inner_optimizer(optimizer)
    if given is None and any("initial_lr" in group for group in optimizer.param_groups):
        raise FtkitError(
            f"A learning-rate scheduler sets the rates of this {type(optimizer).__name__}, and would not know about "
            "the parameters being added. Pass scheduler= along with optimizer=, a list if there are several; or "
            "scheduler=[] if none sets them any more."
        )


def follow(scheduler: Any, count: int, like: int, factor: float, undo: Undo) -> None:
    """Let a scheduler of ``count`` groups move one more as the group at ``like``, at ``factor`` times its rates."""
    undo.remember(scheduler)
    for name in LISTS_BY_GROUP:
        values: Any = getattr(scheduler, name, None)
        if _is_by_group(name, values, count):
            setattr(scheduler, name, [*values, values[like] * factor if name in RATES_BY_GROUP else values[like]])


def _is_by_group(name: str, values: Any, count: int) -> bool:
    return name in LISTS_BY_GROUP and isinstance(values, list) and len(values) == count


def catch_up(
    scheduler: Any, optimizer: torch.optim.Optimizer, count: int, model: Iterable[nn.Parameter], undo: Undo
) -> None:
    """Make a scheduler of the first ``count`` groups cover the others, each as the model's newest group before it.

    It must know them before it loads a ``state_dict``, which holds its lists by group, but not the functions in them.
    """
    own = set(model)
    theirs = [not own.isdisjoint(group["params"]) for group in optimizer.param_groups]
    for joined in range(count, len(theirs)):
        like = max((place for place in range(joined) if theirs[place]), default=joined - 1)
        for one in schedulers_in(scheduler, optimizer):
            follow(one, joined, like, 1.0, undo)


class Lists:
    """What schedulers keep for each group of an optimizer, before they load a state of other groups."""

    def __init__(self, scheduler: Any, optimizer: torch.optim.Optimizer) -> None:
        count = len(optimizer.param_groups)
        self._before = [
            (one, {name: list(values) for name, values in vars(one).items() if _is_by_group(name, values, count)})
            for one in schedulers_in(scheduler, optimizer)
        ]

    def extend(self, count: int, kept: Iterable[int], undo: Undo) -> None:
        """Let them go on, after the ``count`` groups of the state, with groups that they moved before, at ``kept``."""
        for one, before in self._before:
            undo.remember(one)
            for name, values in before.items():
                setattr(one, name, [*getattr(one, name)[:count], *(values[place] for place in kept)])
