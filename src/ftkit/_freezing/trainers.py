"""A schedule in the hands of a trainer, which makes the optimizers, saves and resumes by itself."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ftkit._arguments import came
from ftkit._freezing.schedules import FreezeSchedule
from ftkit._groups import held
from ftkit._wording import some
from ftkit.errors import FtkitError
from ftkit.selection import select, unwrap


def checked(schedule: object) -> FreezeSchedule:
    """Return what a callback was given, if that is a schedule.

    Raises:
        FtkitError: It isn't.
    """
    if not isinstance(schedule, FreezeSchedule):
        raise FtkitError(
            "The callback takes a FreezeSchedule, such as FreezeSchedule({0: 'head', 5: 'layer4'}), not "
            f"{came(schedule)}."
        )
    return schedule


class Run:
    """A schedule during one run of a trainer.

    The trainer has made its optimizers from the whole model before anything is frozen. So they have the same groups in
    every epoch of every run, resumed or not: no scheduler has to be told of what thaws, and the trainer can load its
    optimizers' states without help. What is frozen has no gradient, and optimizers pass over it.

    Args:
        schedule: What trains when. It stays as it is: the next run may be of another model.
        model: What the trainer trains.
        optimizers: All of the trainer's.

    Raises:
        SelectionError: A selector of the schedule matches nothing.
        FtkitError: Something that will thaw is in no optimizer.
    """

    def __init__(self, schedule: FreezeSchedule, model: nn.Module, optimizers: Iterable[Any]) -> None:
        self._schedule, self._model = copy.copy(schedule), model
        self._held = {id(parameter) for optimizer in optimizers for parameter in held(optimizer)}
        if isinstance(schedule.phases, Mapping):
            self._check(select(model, *schedule.phases.values()).parameters)

    def step(self, epoch: int) -> None:
        """Freeze and thaw for an epoch."""
        report = self._schedule.step(epoch, model=self._model)
        if report is not None:
            self._check({name: unwrap(self._model).get_parameter(name) for name in report.thawed})

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule's state."""
        return self._schedule.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore, at the next step, what trained when the state was saved."""
        self._schedule.load_state_dict(state)

    def _check(self, thawing: Mapping[str, nn.Parameter]) -> None:
        lacking = [name for name, parameter in thawing.items() if id(parameter) not in self._held]
        if self._held and lacking:
            raise FtkitError(
                f"The schedule trains {some(lacking, 3)}, which no optimizer has. Build the optimizer from all that "
                "will ever train, before anything is frozen: the callback freezes when training starts. If the model "
                "was frozen before that, leave it out, and let phase 0 of the schedule say what trains first."
            )
