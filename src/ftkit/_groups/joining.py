"""Parameters that join a running optimizer, with the options that they would have had from the start."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import torch
from torch import nn

from ftkit._arguments import came
from ftkit._groups.recipe import Recipe, arrange
from ftkit._groups.roots import Root, root_of
from ftkit._groups.schedulers import check_told, follow, inner_optimizer, one_peak, schedulers_in
from ftkit._models.undo import Undo
from ftkit.errors import FtkitError, did_you_mean
from ftkit.selection import unwrap

_log: Final = logging.getLogger("ftkit")

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
    decay are the recipe. Groups may have been made of a part of the model: their recipe is that of this part, and what
    is outside of it gets its base rate. If a scheduler has moved the rates since, the newcomers' rates are moved by the
    same factor; if it gives all groups the same rates, as ``OneCycleLR`` does, they get these. A group with the same
    options takes them in; otherwise there is a new one, which ``scheduler``, one or several, moves from then on as it
    moves the group that lent its options.

    Returns:
        The names of the parameters that were added.

    Raises:
        FtkitError: The optimizer has a scheduler and none was given, or one of another optimizer; or it has no
            parameter of the model, so that its recipe may be for another one. Nothing has changed.

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
    optimizer = inner_optimizer(optimizer)
    missing = _without(parameters, held(optimizer))
    schedulers = schedulers_in(scheduler, optimizer)
    if not missing:
        return ()
    check_told(optimizer, scheduler)
    _check_shared(unwrap(model), optimizer)
    for lender, share in _lenders(unwrap(model), optimizer, missing, schedulers):
        for group in lender.groups_for(share):
            twin = _twin(group, optimizer)
            if twin is None:
                lender.add(group, schedulers, undo)
            else:
                _fill(twin, {**_named(twin), **_named(group)}, undo)
    return tuple(missing)


def _check_shared(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Refuse a model of which the optimizer has nothing: what its parameters would get can't be told."""
    if held(optimizer).isdisjoint(model.parameters()):
        raise FtkitError(
            f"The optimizer has no parameter of this {type(model).__name__}, so what rates its parameters should get "
            "can't be told. If it is a part of the model that the groups were made of, pass that model, and names that "
            "start from there: unfreeze(model, 'backbone.layer4', optimizer=optimizer). If it is a copy, or was built "
            "anew, pass the model that the optimizer trains. Any other model's go in by optimizer.add_param_group."
        )


def layout(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """Return the names in ``model`` of the parameters in each group of ``optimizer``; others are passed over.

    Example:
        >>> import torch
        >>> from ftkit._groups import layout
        >>> model = torch.nn.Linear(2, 2)
        >>> layout(model, torch.optim.SGD([{"params": [model.weight]}, {"params": [model.bias]}], lr=0.1))
        [['weight'], ['bias']]
    """
    names, groups = _names(model), inner_optimizer(optimizer).param_groups
    return [[names[one] for one in group["params"] if one in names] for group in groups]


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
    undo, model, optimizer = undo or Undo(), unwrap(model), inner_optimizer(optimizer)
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
        if set(placed.values()) <= mine.keys():
            continue
        if group:
            root = root_of(model.named_parameters(remove_duplicate=False), group)
            first = {parameter: root.relative(name) for name, parameter in placed.items()}
            _fill(group, {**first, **mine, **first}, undo)
        else:
            lender, _ = next(_lenders(model, optimizer, placed, schedulers))
            new, *_ = lender.groups_for(placed)
            _fill(new, {parameter: lender.relative(name) for name, parameter in placed.items()}, undo)
            lender.add(new, schedulers, undo)


def _lenders(
    model: nn.Module, optimizer: torch.optim.Optimizer, missing: Mapping[str, nn.Parameter], schedulers: list[Any]
) -> Iterator[tuple[_Lender, dict[str, nn.Parameter]]]:
    """Yield the groups that lend newcomers their options, each with its share: the newest one of the smallest part of
    the model around a newcomer; for what is in no such part, the newest one of the model, or of the optimizer.
    """
    names = _names(model)
    own = [group for group in optimizer.param_groups if not names.keys().isdisjoint(group["params"])]
    roots = [
        root_of(model.named_parameters(remove_duplicate=False), group) if "recipe" in group else Root() for group in own
    ]
    shares: dict[int | None, dict[str, nn.Parameter]] = {}
    for name, parameter in missing.items():
        around = [(len(root.inside), place) for place, root in enumerate(roots) if root.holds(name)]
        shares.setdefault(max(around)[1] if around else None, {})[name] = parameter
    for place, share in shares.items():
        if place is not None:
            yield _Lender(model, optimizer, own[place], roots[place], schedulers, own=own), share
        else:
            lender = own[-1] if own else optimizer.param_groups[-1]
            root = roots[-1] if own else Root()
            yield _Lender(model, optimizer, lender, root, schedulers, own=own, outside=True), share


class _Lender:
    """The group whose options newcomers get, and the recipe by which they differ from them."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        options: dict[str, Any],
        root: Root,
        schedulers: list[Any],
        *,
        own: list[dict[str, Any]],
        outside: bool = False,
    ) -> None:
        self._model, self._optimizer, self._options = model, optimizer, options
        self._planned = float(options.get("initial_lr", options["lr"]))
        self._root = root
        names = _names(root.module(model))
        recipe: Recipe | None = options.get("recipe") if own else None  # another model's names other layers
        if recipe is None:
            decay = max(float(group.get("weight_decay", 0.0)) for group in own or [options])
            recipe = Recipe(lr=self._planned, weight_decay=decay, layer_decay=None, rates=[])
        else:
            recipe = root.recipe(recipe)
            known = next(one for one in options["params"] if one in names)
            self._planned = arrange(root.module(model), {names[known]: known}, recipe)[0]["lr"]
        peak = one_peak(optimizer, schedulers)
        in_it = {name: one for one, name in names.items() if peak is not None and one in held(optimizer)}
        plans = {group["lr"] for group in (arrange(root.module(model), in_it, recipe) if in_it else ())}
        self._unsure = peak is not None and len(plans) == 1 and math.isclose(peak, self._planned)
        self._alike = peak is not None and not self._unsure
        if outside:
            self._root = Root()
            recipe = Recipe(lr=recipe["lr"], weight_decay=recipe["weight_decay"], layer_decay=None, rates=[])
        self._recipe = recipe

    def relative(self, name: str) -> str:
        """A name of the model as the groups that this one makes have it."""
        return self._root.relative(name)

    def groups_for(self, missing: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
        """Sort newcomers into groups, with all options of this one, and no other that a scheduler may look for."""
        inside = {name.removeprefix(self._root.inside): parameter for name, parameter in missing.items()}
        groups = arrange(self._root.module(self._model), inside, self._recipe)
        kept = self._options.get("recipe") if self._root.around else self._recipe
        for group in groups:
            group["param_names"] = [self._root.around + name for name in group["param_names"]]
            group["recipe"] = kept
        return list(map(self._lend, groups))

    def _lend(self, planned: Mapping[str, Any]) -> dict[str, Any]:
        group = {key: planned.get(key, value) for key, value in self._options.items()}
        if self._alike:
            return group | {key: self._options[key] for key in self._options.keys() & set(_RATES)}
        if self._unsure and planned["lr"] != self._planned:
            _log.warning(
                "OneCycleLR and CyclicLR set the rates of all groups alike if they are given one number, and by a list "
                "if they are given one; with max_lr equal to the rate of the only layer so far, that can't be told. %s "
                "gets a rate by its own layer, as from a list.",
                ", ".join(planned["param_names"]),
            )
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
    groups = getattr(inner_optimizer(optimizer), "param_groups", None)
    if type(inner_optimizer(optimizer)).__module__.startswith("fastai."):
        raise FtkitError(
            "optimizer= got one of fastai's own, to which nothing can be added. Wrap one of torch: "
            "Learner(..., opt_func=partial(OptimWrapper, opt=torch.optim.AdamW))."
        )
    if not isinstance(groups, list):
        raise FtkitError(f"optimizer must be a torch.optim.Optimizer, not {came(optimizer)}.")
    return set(itertools.chain.from_iterable(group["params"] for group in groups))
