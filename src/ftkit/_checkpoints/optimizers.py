"""Optimizers, whose parameters a checkpoint identifies by their names in the model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ftkit._checkpoints import ranks
from ftkit._groups import Lists, Root, catch_up, root_of
from ftkit._models.undo import Undo
from ftkit._torch import storage_id
from ftkit._wording import plural, some
from ftkit.errors import CheckpointError, DamagedFileError, did_you_mean

_log: Final = logging.getLogger("ftkit")

LOAD_ERRORS: Final = (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError)
"""What ``load_state_dict`` methods raise when they get something other than their own state."""

# What moments may take beyond the memory that holds them, where several of them are one.
_FREE_BYTES: Final = 64 << 20
_MAX_RATIO: Final = 4

_Groups: TypeAlias = list[Mapping[str, Any]]
_Plan: TypeAlias = Callable[[Undo], None]


def describe(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    """Return an optimizer's type, and the names of its parameters in its own order.

    A parameter that is not in the model has the name ``None``.

    Raises:
        CheckpointError: None of them is in the model.
    """
    kind, known = type(optimizer).__name__, {id(parameter): name for name, parameter in parameters.items()}
    names = [known.get(id(parameter)) for parameter in held(optimizer)]
    if names and not any(name is not None for name in names):
        raise CheckpointError(
            f"None of the {plural(len(names), 'parameter')} of this {kind} is in the model, so no resume could use its "
            "state. Build the optimizer after the model is built, changed or sharded; pass one of another model under "
            "a name of your own."
        )
    return {"type": kind, "names": names}


def held(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return an optimizer's parameters, in its own order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def plan(
    optimizer: Optimizer,
    state: Mapping[str, Any],
    known: Mapping[str, Any],
    parameters: Mapping[str, nn.Parameter],
    scheduler: Any = None,
) -> tuple[_Plan, _Plan]:
    """Plan to load a ``state_dict`` into an optimizer, whatever groups it was built with.

    With names, the groups become the saved ones, each parameter found in the model by its name.
    Parameters in this optimizer that were not in the saved one keep their own groups, at the end.
    Its ``scheduler`` is told of the groups that joined after the start, before its own state is loaded, and of those
    that the saved one did not have, after that: this is what the second plan is for.
    ``known`` is what :func:`describe` returned for it, which checkpoints of other programs lack.

    Raises:
        CheckpointError: The state belongs to other parameters or another kind of optimizer.
    """
    groups = _saved_groups(state)
    _refuse_bomb(state["state"])
    _check_kind(optimizer, groups, known.get("type"))
    names = known.get("names") or _names_in(groups)
    if names and any(names) and not known.get("names"):
        names = _in_model(names, optimizer, parameters)
    found = _in_order(optimizer, groups) if names is None else _by_name(optimizer, groups, names, parameters)
    rest = iter(found)
    targets = [[next(rest) for _ in group["params"]] for group in groups]
    others = _groups_of_others(optimizer, set(map(id, found)))
    moved = getattr(scheduler, "optimizer", None) is optimizer
    lists = Lists(scheduler if moved else None, optimizer)
    owners = dict(zip((index for group in groups for index in group["params"]), found, strict=True))

    def load(undo: Undo) -> None:
        for one in (optimizer, *(part for part in vars(optimizer).values() if isinstance(part, Optimizer))):
            undo.remember(one)
        before = len(optimizer.param_groups)
        # In place: an optimizer around another one, such as Lookahead, has its list of groups.
        optimizer.param_groups[:] = [{"params": params} for params in targets]
        try:
            optimizer.load_state_dict({**state, "state": _spread(state["state"], owners)})
        except LOAD_ERRORS as error:
            kind = type(optimizer).__name__
            raise CheckpointError(f"The checkpoint's optimizer state does not fit this {kind}: {error!r}.") from error
        _keep_types(optimizer, state["state"], owners)
        if moved:
            catch_up(scheduler, optimizer, before, parameters.values(), undo)
        optimizer.param_groups.extend(others.values())

    return load, lambda undo: lists.extend(len(groups), others, undo)


def _saved_groups(state: Mapping[str, Any]) -> _Groups:
    groups: Any = state.get("param_groups")
    whole = isinstance(groups, list) and isinstance(state.get("state"), Mapping)
    if not whole or not all(isinstance(group, Mapping) and isinstance(group.get("params"), list) for group in groups):
        raise CheckpointError("The checkpoint's optimizer state is not what an optimizer's state_dict() returns.")
    return list(groups)


def _refuse_bomb(saved: Mapping[Any, Any]) -> None:
    """Refuse a state that torch's casts would make far larger than it is: a few bytes stand for many values in it."""
    tables = [values for values in saved.values() if isinstance(values, Mapping)]
    tensors = [value for values in tables for value in values.values() if isinstance(value, Tensor)]
    dense = [value for value in tensors if value.layout is torch.strided]
    held = {storage_id(value): value.untyped_storage().nbytes() for value in dense}
    if sum(value.nbytes for value in dense) > _FREE_BYTES + _MAX_RATIO * sum(held.values()):
        raise DamagedFileError("The checkpoint's optimizer state expands a few bytes to far more: a bomb, not moments.")


def _check_kind(optimizer: Optimizer, groups: _Groups, kind: str | None) -> None:
    """Refuse another class, unless the saved groups have all the options that this one needs."""
    own = type(optimizer).__name__
    if kind not in (None, own) and not optimizer.defaults.keys() <= {key for group in groups for key in group}:
        raise CheckpointError(
            f"The checkpoint's optimizer is of class {kind}, this one of class {own}. Build the same kind."
        )


def _names_in(groups: _Groups) -> list[str | None] | None:
    """The names that an optimizer keeps itself if it was built from named parameters."""
    named = all("param_names" in group for group in groups)
    return [name for group in groups for name in group["param_names"]] if named else None


def _in_model(
    names: list[str | None], optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]
) -> list[str | None]:
    """What the model calls parameters whose names start elsewhere: the groups may have been made of a part of it."""
    given = [name for name in names if name is not None]
    likely = [*[root_of(parameters.items(), group) for group in optimizer.param_groups][:1], Root()]
    others = [Root(inside=name.removesuffix(given[0])) for name in parameters if name.endswith(f".{given[0]}")]
    others += [Root(around=given[0].removesuffix(name)) for name in parameters if given[0].endswith(f".{name}")]

    def fits(root: Root) -> bool:
        return all(root.absolute(name) in parameters for name in given)

    found = list(filter(fits, likely)) or list(filter(fits, others))
    if not found or (len(found) > 1 and not any(map(fits, likely))):
        return names  # several parts look like it: which is meant can't be told
    return [name if name is None else found[0].absolute(name) for name in names]


def _in_order(optimizer: Optimizer, groups: _Groups) -> list[nn.Parameter]:
    """The parameters of the saved groups, if there are no names."""
    shape, saved_shape = ([len(group["params"]) for group in both] for both in (optimizer.param_groups, groups))
    if shape != saved_shape:
        raise CheckpointError(
            f"The checkpoint's optimizer has groups of {saved_shape} parameters, this one of {shape}, and the "
            "file names no parameters to match them by. Build the optimizer as it was when the file was saved."
        )
    return held(optimizer)


def _by_name(
    optimizer: Optimizer, groups: _Groups, names: list[str | None], parameters: Mapping[str, nn.Parameter]
) -> list[nn.Parameter]:
    """The parameters of the saved groups; those without a name are in the optimizer but not in the model."""
    own = {id(parameter) for parameter in parameters.values()}
    strangers = [parameter for parameter in held(optimizer) if id(parameter) not in own]
    count = sum(len(group["params"]) for group in groups)
    if len(names) != count or len(strangers) != names.count(None):
        raise CheckpointError(
            f"The checkpoint's optimizer has {count} parameters, {names.count(None)} of them outside the "
            f"model; this one has {len(strangers)} outside the model. Build it over the same modules."
        )
    if lost := [name for name in names if name is not None and name not in parameters]:
        raise CheckpointError(
            f"The checkpoint's optimizer contains {some([repr(lost[0]), *lost[1:]], 1)}, which the model lacks."
            f"{did_you_mean(lost[0], parameters)} Build the model as it was when the file was saved."
        )
    outside = iter(strangers)
    return [next(outside) if name is None else parameters[name] for name in names]


def _groups_of_others(optimizer: Optimizer, taken: set[int]) -> dict[int, dict[str, Any]]:
    """The optimizer's groups without the parameters that a saved group takes, by their places."""
    groups = {place: _without(group, taken) for place, group in enumerate(optimizer.param_groups)}
    if count := sum(len(group["params"]) for group in groups.values()):
        _log.warning(
            "The optimizer contains %s that the checkpoint's did not; they start without optimizer state.",
            plural(count, "parameter"),
        )
    return {place: group for place, group in groups.items() if group["params"]}


def _without(group: Mapping[str, Any], taken: set[int]) -> dict[str, Any]:
    kept = [index for index, parameter in enumerate(group["params"]) if id(parameter) not in taken]
    lists = group.keys() & {"params", "param_names"}
    return {**group, **{key: [group[key][index] for index in kept] for key in lists}}


def _spread(saved: Mapping[Any, Any], owners: Mapping[Any, nn.Parameter]) -> dict[Any, Any]:
    """Shard the state of a sharded parameter as the parameter is sharded."""
    return {
        index: ranks.spread(values, dict.fromkeys(values, owners[index])) if index in owners else values
        for index, values in saved.items()
    }


def _keep_types(optimizer: Optimizer, saved: Mapping[Any, Any], owners: Mapping[Any, nn.Parameter]) -> None:
    """Undo torch's cast of an optimizer's state to the type of the parameter, which rounds 32-bit moments."""
    for index, parameter in owners.items():
        loaded = optimizer.state.get(parameter, {})
        for key, value in saved.get(index, {}).items():
            now = loaded.get(key)
            if isinstance(value, Tensor) and isinstance(now, Tensor) and now.dtype != value.dtype:
                loaded[key] = value.to(now.device)
