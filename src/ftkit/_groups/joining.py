"""Parameters that join a running optimizer, with the options that they would have had from the start."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ftkit._arguments import came
from ftkit._groups.recipe import Recipe, arrange
from ftkit._groups.schedulers import check_told, follow, schedulers_in
from ftkit._models.undo import Undo
from ftkit.errors import FtkitError, did_you_mean
from ftkit.selection import unwrap

# The options of a group that hold rates: the first is the optimizer's, the others come from schedulers of torch, timm.
_RATES = ("lr", "initial_lr", "max_lr", "min_lr")


def join(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    undo: Undo,
    scheduler: Any = None,
) -> tuple[str, ...]:
    """Add those of the parameters that ``optimizer`` lacks, by identity, with the options that they would have had.

    The recipe comes from the optimizer's groups; without one, the newest group's rate and the largest weight
    decay are the recipe. If a scheduler has moved the rates since, the newcomers' rates are moved by the same factor. A
    group with the same options takes them in; otherwise there is a new one, which ``scheduler``, one or several, moves
    from then on as it moves the group that lent its options.

    Returns:
        The names of the parameters that were added.

    Raises:
        FtkitError: The optimizer has a scheduler and none was given, or one of another optimizer. Nothing has changed.

    Example:
        >>> import torch
        >>> from ftkit._groups import join
        >>> from ftkit._models.undo import Undo
        >>> model = torch.nn.Linear(2, 2)
        >>> optimizer = torch.optim.SGD([model.weight], lr=0.1)
        >>> join(model, dict(model.named_parameters()), optimizer, Undo())
        ('bias',)
        >>> len(optimizer.param_groups)
        1
    """
    missing = _without(parameters, held(optimizer))
    schedulers = schedulers_in(scheduler, optimizer)
    if not missing:
        return ()
    check_told(optimizer, scheduler)
    lender = _Lender(model, optimizer)
    for group in lender.groups_for(missing):
        twin = _twin(group, optimizer)
        if twin is None:
            lender.add(group, schedulers, undo)
        else:
            _fill(twin, {**_named(twin), **_named(group)}, undo)
    return tuple(missing)


def layout(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """Return the names in ``model`` of the parameters in each group of ``optimizer``; others are passed over.

    Example:
        >>> import torch
        >>> from ftkit._groups import layout
        >>> model = torch.nn.Linear(2, 2)
        >>> layout(model, torch.optim.SGD([{"params": [model.weight]}, {"params": [model.bias]}], lr=0.1))
        [['weight'], ['bias']]
    """
    names = _names(model)
    return [[names[one] for one in group["params"] if one in names] for group in optimizer.param_groups]


def restore_layout(
    model: nn.Module,
    groups: list[list[str]],
    optimizer: torch.optim.Optimizer,
    undo: Undo | None = None,
    scheduler: Any = None,
) -> None:
    """Give ``optimizer`` the groups that :func:`layout` saw, so that it can load the ``state_dict`` of that time.

    Parameters that it lacks are added to the group that they were in, in their place; those that it has stay in theirs.

    Raises:
        FtkitError: The model has no parameter of such a name, or as in :func:`join`; the optimizer is untouched.

    Example:
        >>> import torch
        >>> from ftkit._groups import layout, restore_layout
        >>> model = torch.nn.Linear(2, 2)
        >>> optimizer = torch.optim.SGD([model.weight], lr=0.1)
        >>> restore_layout(model, [["weight"], ["bias"]], optimizer)
        >>> layout(model, optimizer)
        [['weight'], ['bias']]
    """
    undo, model = undo or Undo(), unwrap(model)
    parameters = dict(model.named_parameters())
    if lost := next((name for name in itertools.chain(*groups) if name not in parameters), None):
        raise FtkitError(
            f"The optimizer had the parameter {lost!r}, which the {type(model).__name__} lacks."
            f"{did_you_mean(lost, parameters)} Build the model as it was when the state was saved."
        )
    schedulers, own = schedulers_in(scheduler, optimizer), held(optimizer)
    if any(parameters[name] not in own for name in itertools.chain(*groups)):
        check_told(optimizer, scheduler)
    there: Iterable[dict[str, Any]] = itertools.chain(list(optimizer.param_groups), itertools.repeat({}))
    for names, group in zip(groups, there, strict=False):
        mine = _named(group)
        placed = _without({name: parameters[name] for name in names}, own - mine.keys())
        first = dict(zip(placed.values(), placed, strict=True))
        if first.keys() <= mine.keys():
            continue
        if group:
            _fill(group, {**first, **mine, **first}, undo)
        else:
            lender = _Lender(model, optimizer)
            new, *_ = lender.groups_for(placed)
            _fill(new, first, undo)
            lender.add(new, schedulers, undo)


class _Lender:
    """The group whose options newcomers get: the newest one of their model, or the optimizer's if it has none."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._model, self._optimizer = model, optimizer
        names = _names(model)
        own = [group for group in optimizer.param_groups if not names.keys().isdisjoint(group["params"])]
        self._options: dict[str, Any] = (own or optimizer.param_groups)[-1]
        self._planned = float(self._options.get("initial_lr", self._options["lr"]))
        recipe: Recipe | None = self._options.get("recipe") if own else None  # another model's names other layers
        if recipe is None:
            decay = max(float(group.get("weight_decay", 0.0)) for group in own or [self._options])
            recipe = Recipe(lr=self._planned, weight_decay=decay, layer_decay=None, rates=[])
        else:
            known = next(one for one in self._options["params"] if one in names)
            self._planned = arrange(model, {names[known]: known}, recipe)[0]["lr"]
        self._recipe = recipe

    def groups_for(self, missing: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
        """Sort newcomers into groups, with all options of this one, and no other that a scheduler may look for."""
        return list(map(self._lend, arrange(self._model, missing, self._recipe)))

    def _lend(self, planned: Mapping[str, Any]) -> dict[str, Any]:
        group = {key: planned.get(key, value) for key, value in self._options.items()}
        for key in group.keys() & _RATES:  # a schedule has come as far with this group as with the one that lends
            group[key] = self._options[key] * (planned["lr"] / self._planned) if self._planned else planned["lr"]
        return group

    def add(self, group: dict[str, Any], schedulers: list[Any], undo: Undo) -> None:
        """Add a group to the optimizer, and to the schedulers that move its rates, as they have this one."""
        count = len(self._optimizer.param_groups)
        place = list(map(id, self._optimizer.param_groups)).index(id(self._options))
        key = "initial_lr" if "initial_lr" in group else "lr"
        factor = group[key] / self._options[key] if self._options[key] else 1.0
        undo.remember(self._optimizer)
        self._optimizer.add_param_group(group)
        for scheduler in schedulers:
            follow(scheduler, count, place, factor, undo)


def _twin(group: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """The group of the optimizer that has the same options, if it may grow without being asked."""
    if type(optimizer).add_param_group is not torch.optim.Optimizer.add_param_group:
        return None  # ZeroRedundancyOptimizer has to see what joins
    return next((old for old in optimizer.param_groups if _options(old) == _options(group)), None)


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {**group, "params": None, "param_names": None}


def _fill(group: dict[str, Any], named: Mapping[nn.Parameter, str], undo: Undo) -> None:
    """Put these parameters into a group."""
    undo.set_item(group, "params", list(named))
    if "param_names" in group:
        undo.set_item(group, "param_names", list(named.values()))


def _named(group: Mapping[str, Any]) -> dict[nn.Parameter, str]:
    return dict(zip(group.get("params", ()), group.get("param_names") or itertools.repeat(""), strict=False))


def _without(parameters: Mapping[str, nn.Parameter], known: set[nn.Parameter]) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in parameters.items() if parameter not in known}


def _names(model: nn.Module) -> dict[nn.Parameter, str]:
    return {parameter: name for name, parameter in unwrap(model).named_parameters()}


def held(optimizer: torch.optim.Optimizer) -> set[nn.Parameter]:
    """Return all parameters of an optimizer."""
    groups = getattr(optimizer, "param_groups", None)
    if not isinstance(groups, list):
        raise FtkitError(f"optimizer must be a torch.optim.Optimizer, not {came(optimizer)}.")
    return set(itertools.chain.from_iterable(group["params"] for group in groups))
