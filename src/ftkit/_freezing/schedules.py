"""Freezing by a plan: layers that thaw one after the other, or that train by turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ftkit._arguments import call, came, entries_of, flag, whole_number
from ftkit._freezing.freeze import (
    FreezeReport,
    freeze,
    freeze_except,
    note,
    trainable,
    unfreeze,
)
from ftkit._freezing.holding import keep_norms, kept_norms
from ftkit._freezing.parallel import parallel_wrappers, settle
from ftkit._groups import check_told, held, layout, restore_layout
from ftkit._models.undo import Undo
from ftkit._reports import to_text
from ftkit._wording import plural, some
from ftkit.errors import FtkitError, did_you_mean
from ftkit.selection import Selector, select, unwrap


class FreezeSchedule:
    """Schedule which parts of a model train when, in any training loop.

    For gradual unfreezing, pass a dict from epochs to what thaws then. Phase 0 says what trains at the start, and
    freezes the rest; each later phase adds to it. Without a phase 0 nothing is ever frozen: the phases thaw what you
    froze.

    For turns (alternating freezing), pass a dict with a ``period``: within every ``period`` epochs, from each key on,
    exactly the parts under it train. A function of the epoch returns exactly what trains in that epoch.

    You can count steps instead of epochs, as long as they are whole numbers that increase.

    Args:
        phases: What to train from which epoch on, as selectors (see :data:`ftkit.selection.Selector`; a list of them
            for several parts), or a function that returns them for an epoch.
        period: Number of epochs after which the phases repeat.
        norm_stats: Whether to freeze the running statistics of the frozen norms too.
        keep_dropout: Whether to let everything but norms follow ``model.train()``, so that Dropout stays active.
        thaw_norm_stats: Whether to thaw the running statistics of the thawed norms too.

    Raises:
        FtkitError: There are no phases, a phase starts before 0, or the phases don't fit the period.

    Example:
        >>> import torch
        >>> from ftkit import FreezeSchedule, param_groups, trainable
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> schedule = FreezeSchedule({0: "2", 2: "1"})
        >>> _ = schedule.step(0, model=model)
        >>> optimizer = torch.optim.SGD(param_groups(model, lr=0.1))
        >>> for epoch in range(3):
        ...     if report := schedule.step(epoch, model=model, optimizer=optimizer):
        ...         print(f"epoch {epoch}: {report}")
        epoch 2: thawed 2 parameter tensors: 1
        added to the optimizer: 2 parameter tensors
        trainable now: 30 of 50 parameters (60.0%)
        held in eval mode: 1 module

        Taking turns of two epochs each, with the head always training:

        >>> turns = FreezeSchedule({0: ["0", "2"], 2: ["1", "2"]}, period=4)
        >>> for epoch in (0, 1, 2, 3, 4):
        ...     _ = turns.step(epoch, model=model, optimizer=optimizer)
        ...     print(epoch, sorted({name[0] for name in trainable(model)}))
        0 ['0', '2']
        1 ['0', '2']
        2 ['1', '2']
        3 ['1', '2']
        4 ['0', '2']
    """

    def __init__(
        self,
        phases: Mapping[int, Selector] | Callable[[int], Selector],
        *,
        period: int | None = None,
        norm_stats: bool = True,
        keep_dropout: bool = False,
        thaw_norm_stats: bool = False,
    ) -> None:
        if isinstance(phases, Mapping):
            phases = {whole_number("The epoch of a phase", start, least=0): parts for start, parts in phases.items()}
            period = None if period is None else whole_number("period", period, least=1)
            _check(phases, period)
        elif not _is_function(phases):
            raise FtkitError(
                "phases must be a dict such as {0: 'head', 5: 'layer4'}, or a function of the epoch, not "
                f"{came(phases)}."
            )
        elif period is not None:
            raise FtkitError("period= applies only to a dict of phases; a function of the epoch can count on its own.")
        self.phases: Mapping[int, Selector] | Callable[[int], Selector] = phases
        self.period = period
        norm_stats, keep_dropout = flag("norm_stats", norm_stats), flag("keep_dropout", keep_dropout)
        self._freeze = partial(freeze, norm_stats=norm_stats, keep_dropout=keep_dropout)
        self._train = partial(
            freeze_except, norm_stats=norm_stats, keep_dropout=keep_dropout, thaw_norm_stats=thaw_norm_stats
        )
        self._thaw = partial(unfreeze, norm_stats=thaw_norm_stats)
        self._phase: int | None = None
        self._trainable: list[str] = []
        self._groups: list[list[str]] = []
        self._norms: list[str] | None = None
        self._loaded = False

    def __repr__(self) -> str:
        if isinstance(self.phases, Mapping):
            plan = some([f"{start}: {_said(parts)}" for start, parts in self.phases.items()], 8)
        else:
            plan = _said(self.phases)
        turns = f", repeated every {plural(self.period, 'epoch')}" if self.period else ""
        trains = f"phase {self._phase}, with {plural(len(self._trainable), 'trainable parameter tensor')}"
        return to_text([f"<FreezeSchedule {{{plan}}}{turns}: {'not started' if self._phase is None else trains}>"])

    def step(
        self, epoch: int, *, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, scheduler: Any = None
    ) -> FreezeReport | None:
        """Freeze and thaw the model, in place, as scheduled for ``epoch``; call this at the start of each epoch.

        The selectors of all phases of a dict are looked up each time, so that a mistake in a late one shows at once.

        Args:
            epoch: The epoch that begins, counted from 0.
            model: The model; ``DistributedDataParallel`` and ``torch.compile`` wrappers are looked through.
            optimizer: Optimizer to add what thaws to, if it is missing there, as in :func:`ftkit.unfreeze`. What is
                frozen again stays in it, with its state, and is not updated.
            scheduler: The optimizer's learning-rate scheduler, or a list of several, as in :func:`ftkit.unfreeze`.

        Returns:
            What changed, and the state of the model; None while the phase stays the same.

        Raises:
            SelectionError: A selector of any phase matches nothing; the model is untouched.
            FtkitError: A phase of a dict will add to an optimizer that has a scheduler, and ``scheduler`` was left out.
        """
        epoch = whole_number("epoch", epoch, least=0)
        if isinstance(self.phases, Mapping):
            parts = select(model, *self.phases.values()).parameters.values()
            if optimizer is not None and not set(parts) <= set(held(optimizer)):
                check_told(optimizer, scheduler)
        phase = self._phase_of(epoch)
        with Undo() as undo:
            report = self._restore(model, optimizer, scheduler, undo) if self._loaded else None
            if phase is not None and (phase != self._phase or self._turns_were_changed(model)):
                report = self._enter(phase, model, {"optimizer": optimizer, "scheduler": scheduler})
        self._phase, self._loaded = phase, False
        self._trainable = list(trainable(model))
        self._norms = kept_norms(unwrap(model))
        if optimizer is not None:
            self._groups = layout(model, optimizer)
        return report

    def state_dict(self) -> dict[str, Any]:
        """Return the phase and, by name, what trained at the last step, the optimizer's groups and the held norms."""
        return {
            "phase": self._phase,
            "trainable": list(self._trainable),
            "groups": [list(names) for names in self._groups],
            "norms": self._norms and list(self._norms),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from ``state_dict()``: the next :meth:`step` first restores the model and the optimizer's groups.

        A resumed script builds everything as at the start, loads this, calls :meth:`step` with the epoch of the
        checkpoint, and then loads the optimizer's state. :class:`ftkit.CheckpointManager` needs no such order.

        Raises:
            FtkitError: This is not the state of a schedule.

        Example:
            >>> import torch
            >>> from ftkit import FreezeSchedule, trainable
            >>> def build():
            ...     model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
            ...     return model, torch.optim.AdamW(model[1].parameters()), FreezeSchedule({0: "1", 5: "0"})
            >>> model, optimizer, schedule = build()
            >>> _ = schedule.step(5, model=model, optimizer=optimizer)
            >>> saved = schedule.state_dict(), optimizer.state_dict()

            >>> model, optimizer, schedule = build()
            >>> schedule.load_state_dict(saved[0])
            >>> _ = schedule.step(5, model=model, optimizer=optimizer)
            >>> optimizer.load_state_dict(saved[1])
            >>> len(trainable(model))
            4
        """
        state = entries_of("FreezeSchedule", state, ("phase", "trainable", "groups"))
        self._phase = state["phase"]
        self._trainable = list(state["trainable"])
        self._groups = [list(names) for names in state["groups"]]
        self._norms = state.get("norms")  # None before version 0.2
        self._loaded = True

    def _phase_of(self, epoch: int) -> int | None:
        if not isinstance(self.phases, Mapping):
            return epoch
        within = epoch % self.period if self.period else epoch
        return max((start for start in self.phases if start <= within), default=None)

    def _turns_were_changed(self, model: nn.Module) -> bool:
        """Whether something else, such as resuming, has set the model to another turn."""
        return bool(self.period) and list(trainable(model)) != self._trainable

    def _enter(self, phase: int, model: nn.Module, rates: dict[str, Any]) -> FreezeReport:
        if not isinstance(self.phases, Mapping):
            return self._train(model, call("phases", self.phases, phase, takes="epoch"), **rates)
        if self.period:
            return self._train(model, self.phases[phase], **rates)
        so_far = [selector for start, selector in self.phases.items() if start <= phase]
        if 0 not in self.phases:
            return self._thaw(model, *so_far, **rates)
        if self._phase is not None or not phase:
            return self._train(model, *so_far, **rates)
        first = self._train(model, self.phases[0])  # a late start freezes and thaws, so that norms are kept as usual
        rest = self._train(model, *so_far, **rates)
        return replace(rest, frozen=first.frozen, frozen_parts=first.frozen_parts)

    def _restore(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | None, scheduler: Any, undo: Undo
    ) -> FreezeReport:
        """Bring the model and the groups of the optimizer to the state that was loaded."""
        inner = unwrap(model)
        parameters = dict(inner.named_parameters())
        if lost := next((name for name in self._trainable if name not in parameters), None):
            raise FtkitError(
                f"The schedule's state lists {lost!r} as trainable, which the {type(inner).__name__} lacks."
                f"{did_you_mean(lost, parameters)} Build the model as it was when the state was saved."
            )
        for wrapper in parallel_wrappers(model):
            undo.callback(settle, wrapper)
        note(inner, undo)
        if optimizer is not None:
            restore_layout(model, self._groups, optimizer, undo, scheduler)
        if self._norms is not None:
            keep_norms(inner, self._norms)
        if not self._trainable:
            return self._freeze(model)
        return self._train(model, *(parameters[name] for name in self._trainable))


def _is_function(thing: object) -> bool:
    return callable(thing) and not isinstance(thing, type)


def _said(selector: object) -> str:
    """Write a selector in a few words: a name as is, several in brackets, anything else by its class."""
    if isinstance(selector, str):
        return repr(selector)
    if isinstance(selector, list | tuple):
        return f"[{some(list(map(_said, selector)), 4)}]"
    return getattr(selector, "__name__", type(selector).__name__)


def _check(phases: Mapping[int, Selector], period: int | None) -> None:
    if not phases:
        raise FtkitError("A schedule needs phases, such as {0: 'head', 5: 'layer4'}.")
    if period is not None and (0 not in phases or max(phases) >= period):
        raise FtkitError(
            f"With a period of {plural(period, 'epoch')}, the first phase must start at 0 and the last before "
            f"{period}, got {sorted(phases)}."
        )
