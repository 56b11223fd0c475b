"""What a training run is besides its weights: optimizers by parameter name, random numbers, what is trainable.

Each kind of state has a function that takes it down as plain values and one that plans to bring it back. A
plan has checked everything it can before it changes anything, and can be undone.
"""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ftkit._checkpoints import ranks
from ftkit._freezing import holding
from ftkit.errors import CheckpointError, FtkitError, did_you_mean
from ftkit.selection import Selection, unwrap

__all__ = [
    "Step",
    "carry_out",
    "frozen_plan",
    "frozen_state",
    "object_plan",
    "object_state",
    "optimizer_plan",
    "optimizer_state",
    "random_plan",
    "random_state",
]

_log: Final = logging.getLogger("ftkit")


# What people's load_state_dict raise when they are given something else than their own state.
_NO_STATE: Final = (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError)


class Step(NamedTuple):
    """One checked change: how to make it, and how to take it back."""

    apply: Callable[[], object]
    undo: Callable[[], object]


def carry_out(steps: Iterable[Step]) -> None:
    """Make all changes or, where one fails, none."""
    done: list[Step] = []
    try:
        for step in steps:
            done.append(step)
            step.apply()
    except BaseException:
        for step in reversed(done):
            step.undo()
        raise


# ---- optimizers


def optimizer_state(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    """Return an optimizer's ``state_dict`` and the names of its parameters in the model, in its own order.

    A parameter that is none of the model's has the name ``None``.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    return {
        "type": type(optimizer).__name__,
        "names": [names.get(id(parameter)) for parameter in _held(optimizer)],
        "state": optimizer.state_dict(),
    }


def optimizer_plan(
    optimizer: Optimizer, state: Mapping[str, Any], names: list[str | None] | None, kind: str | None, model: nn.Module
) -> Step:
    """Plan to load a ``state_dict`` into an optimizer, whatever groups it was built with.

    With names, the groups become the saved ones, each parameter found in the model by its name.
    Parameters that the optimizer holds and the saved one did not keep their own groups, behind.

    Raises:
        CheckpointError: The state belongs to other parameters or another kind of optimizer.
    """
    groups: Any = state.get("param_groups")
    whole = isinstance(groups, list) and isinstance(state.get("state"), Mapping)
    if not whole or not all(isinstance(group, Mapping) and isinstance(group.get("params"), list) for group in groups):
        raise CheckpointError("The checkpoint's optimizer state is not what an optimizer's state_dict() gives.")
    saved_options = {key for group in groups for key in group} - {"params", "param_names"}
    own = type(optimizer).__name__
    if kind is not None and kind != own and not set(optimizer.defaults) <= saved_options:
        raise CheckpointError(f"The checkpoint's optimizer is a {kind}, this one a {own}. Build the same kind.")
    if names is None and all("param_names" in group for group in groups):
        names = [name for group in groups for name in group["param_names"]]
    if names is None:
        shape, saved_shape = ([len(group["params"]) for group in some] for some in (optimizer.param_groups, groups))
        if shape != saved_shape:
            raise CheckpointError(
                f"The checkpoint's optimizer has groups of {saved_shape} parameters, this one of {shape}, and the "
                "file names no parameters to match them by. Build the optimizer as it was when the file was saved."
            )
        targets = [list(group["params"]) for group in optimizer.param_groups]
    else:
        targets = _targets(optimizer, groups, names, model)
    extra = _extra_groups(optimizer, targets)
    before = optimizer.param_groups, optimizer.state

    def apply() -> None:
        optimizer.param_groups = [{"params": params} for params in targets]
        try:
            optimizer.load_state_dict({**state, "state": _spread(targets, groups, state["state"])})
        except _NO_STATE as error:
            raise CheckpointError(f"The checkpoint's optimizer does not fit this {own}: {error!r}.") from error
        _keep_types(optimizer, targets, groups, state["state"])
        optimizer.param_groups.extend(extra)

    def undo() -> None:
        optimizer.param_groups, optimizer.state = before

    return Step(apply, undo)


def _targets(
    optimizer: Optimizer, groups: list[dict[str, Any]], names: list[str | None], model: nn.Module
) -> list[list[nn.Parameter]]:
    """The parameters that the saved groups mean."""
    parameters = _parameters(model)
    own = {id(parameter) for parameter in parameters.values()}
    strangers = [parameter for parameter in _held(optimizer) if id(parameter) not in own]
    indices = [index for group in groups for index in group["params"]]
    if len(names) != len(indices) or len(strangers) != names.count(None):
        raise CheckpointError(
            f"The checkpoint's optimizer holds {len(indices)} parameters, {names.count(None)} of them outside the "
            f"model; this one holds {len(strangers)} outside the model. Build it over the same modules."
        )
    lost = [name for name in names if name is not None and name not in parameters]
    if lost:
        raise CheckpointError(
            f"The checkpoint's optimizer holds {lost[0]!r}"
            f"{f' and {len(lost) - 1} more' if len(lost) > 1 else ''}, which the model lacks."
            f"{did_you_mean(lost[0], parameters)} Build the model as it was when the file was saved."
        )
    outside = iter(strangers)
    found = iter([next(outside) if name is None else parameters[name] for name in names])
    return [[next(found) for _ in group["params"]] for group in groups]


def _extra_groups(optimizer: Optimizer, targets: list[list[nn.Parameter]]) -> list[dict[str, Any]]:
    """The optimizer's groups without the parameters that a saved group takes."""
    taken = {id(parameter) for params in targets for parameter in params}
    extra = []
    for group in optimizer.param_groups:
        kept = [index for index, parameter in enumerate(group["params"]) if id(parameter) not in taken]
        if kept:
            rest = {**group, "params": [group["params"][index] for index in kept]}
            if "param_names" in group:
                rest["param_names"] = [group["param_names"][index] for index in kept]
            extra.append(rest)
    if extra:
        _log.warning(
            "The optimizer holds %d parameters that the checkpoint's did not: they start without a history.",
            sum(len(group["params"]) for group in extra),
        )
    return extra


def _spread(
    targets: list[list[nn.Parameter]], groups: list[dict[str, Any]], saved: Mapping[Any, Any]
) -> dict[Any, Any]:
    """Spread what belongs to a parameter that is spread over several processes as that is."""
    owners = {
        index: parameter
        for params, group in zip(targets, groups, strict=True)
        for parameter, index in zip(params, group["params"], strict=True)
    }
    return {
        index: ranks.spread(values, dict.fromkeys(values, owners[index])) if index in owners else values
        for index, values in saved.items()
    }


def _keep_types(
    optimizer: Optimizer, targets: list[list[nn.Parameter]], groups: list[dict[str, Any]], saved: Mapping[Any, Any]
) -> None:
    """Undo torch's cast of an optimizer's state to the type of the parameter, which rounds 32-bit moments."""
    for params, group in zip(targets, groups, strict=True):
        for parameter, index in zip(params, group["params"], strict=True):
            loaded = optimizer.state.get(parameter, {})
            for key, value in saved.get(index, {}).items():
                now = loaded.get(key)
                if isinstance(value, Tensor) and isinstance(now, Tensor) and now.dtype != value.dtype:
                    loaded[key] = value.to(now.device)


def _held(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(unwrap(model).named_parameters())


# ---- random numbers


def random_state() -> dict[str, Any]:
    """Return the state of every global random generator: python, numpy, torch, and each accelerator in use."""
    version, words, gauss = random.getstate()
    numbers: dict[str, Any] = dict(np.random.get_state(legacy=False))  # noqa: NPY002
    inner = dict(numbers["state"])
    if "key" in inner:
        inner["key"] = torch.from_numpy(inner["key"].view(np.int32).copy())
    numbers["state"] = inner
    state: dict[str, Any] = {
        "python": {
            "version": version,
            "words": torch.from_numpy(np.array(words, np.uint32).view(np.int32)),
            "gauss": gauss,
        },
        "numpy": numbers,
        "torch": torch.get_rng_state().view(torch.int64),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def random_plan(state: Mapping[str, Any]) -> Step:
    """Plan to set every global random generator to what :func:`random_state` took down.

    Raises:
        CheckpointError: This is no such state.
    """
    try:
        python = state["python"]
        words = tuple(python["words"].numpy().view(np.uint32).tolist())
        python_state = (python["version"], words, python["gauss"])
        random.Random().setstate(python_state)  # noqa: S311
        numbers = {**state["numpy"], "state": dict(state["numpy"]["state"])}
        if "key" in numbers["state"]:
            numbers["state"]["key"] = numbers["state"]["key"].numpy().view(np.uint32)
            np.random.RandomState().set_state(numbers)
        torch_state = state["torch"].view(torch.uint8)
        torch.Generator().set_state(torch_state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"The checkpoint's random state is not one this version can use: {error}.") from error
    cuda = state.get("cuda", [])
    usable = min(len(cuda), torch.cuda.device_count()) if cuda else 0
    if usable < len(cuda):
        _log.warning(
            "The checkpoint holds random states of %d CUDA devices; this machine has %d: the others are left out, "
            "so training will not repeat bit for bit.",
            len(cuda),
            usable,
        )
    before: list[dict[str, Any]] = []

    def put(values: Mapping[str, Any]) -> None:
        random.setstate(values["python"])
        np.random.set_state(values["numpy"])  # noqa: NPY002
        torch.set_rng_state(values["torch"])
        for device, one in enumerate(values["cuda"]):
            torch.cuda.set_rng_state(one, device)
        if "mps" in values and torch.backends.mps.is_available():
            torch.mps.set_rng_state(values["mps"])

    def apply() -> None:
        now = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}  # noqa: NPY002
        before.append(now | {"cuda": [torch.cuda.get_rng_state(device) for device in range(usable)]})
        put({**state, "python": python_state, "numpy": numbers, "torch": torch_state, "cuda": cuda[:usable]})

    return Step(apply, lambda: put(before[0]) if before else None)


# ---- what is frozen


def frozen_state(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, list[str]]:
    """Return the names of the trainable parameters, and of what ``freeze`` holds in eval mode."""
    held = _held_modules(model)
    return {
        "trainable": [name for name, parameter in parameters.items() if parameter.requires_grad],
        # A part all of which is held is named once, with a dot behind: a frozen backbone has hundreds of modules.
        "held": list(_held_parts(model, "", held)) if held else [],
    }


def frozen_plan(
    model: nn.Module, state: Mapping[str, list[str]], optimizer: Optimizer, saved: Collection[str | None]
) -> Step:
    """Plan to freeze and thaw until the model stands as it did.

    What the optimizer holds beyond the ``saved`` one stays trainable: somebody thawed it on purpose.
    """
    if not all(isinstance(state.get(key), list) for key in ("trainable", "held")):
        raise CheckpointError("The checkpoint does not say what was frozen in a way that this version knows.")
    inner = unwrap(model)
    wanted = set(state["trainable"])
    parameters = _parameters(inner)
    before = {name: parameter.requires_grad for name, parameter in parameters.items()}
    restore = holding.snapshot(inner)

    def apply() -> None:
        held = {id(parameter) for parameter in _held(optimizer)}
        new = {name for name, parameter in parameters.items() if id(parameter) in held and name not in saved}
        trains = {name: name in wanted or (before[name] and name in new) for name in parameters}
        thawed = {id(parameters[name]) for name in parameters if trains[name] and not before[name]}
        frozen = {name: id(parameters[name]) for name in parameters if before[name] and not trains[name]}
        for name, parameter in parameters.items():
            parameter.requires_grad_(trains[name])
        if thawed or frozen:
            holding.remember(inner, holding.switched_off(inner) - thawed | set(frozen.values()))
        _hold(inner, state["held"])
        if frozen:
            names = list(frozen)
            _log.warning("%d parameters are frozen again, as in the checkpoint: %s, ...", len(names), names[0])

    def undo() -> None:
        restore()
        for name, parameter in parameters.items():
            parameter.requires_grad_(before[name])

    return Step(apply, undo)


def _held_modules(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if holding.is_held(module)}


def _held_parts(module: nn.Module, name: str, held: Collection[str]) -> Iterator[str]:
    prefix = f"{name}." if name else ""
    if all((f"{prefix}{inside}" if inside else name) in held for inside, _ in module.named_modules()):
        yield f"{name}."
        return
    if name in held:
        yield name
    for child_name, child in module.named_children():
        yield from _held_parts(child, f"{prefix}{child_name}", held)


def _hold(model: nn.Module, parts: Collection[str]) -> None:
    """Hold exactly these modules in eval mode."""
    modules = dict(model.named_modules())
    whole = tuple(part for part in parts if part.endswith("."))
    wanted = {name for name in modules if name in parts or "." in whole or f"{name}.".startswith(whole)}

    def free_others() -> None:
        others = {name: modules[name] for name in _held_modules(model) - wanted}
        if others:
            holding.release(model, Selection(others, {}, {}))

    free_others()
    if lacking := {name: modules[name] for name in wanted - _held_modules(model)}:
        holding.hold(model, Selection(lacking, {}, {}), set())
        free_others()  # what stood between two of them was held too


# ---- anything else with a state


def object_state(thing: Any) -> Any:
    """Return the state of a scheduler, scaler, sampler, generator, ...; plain values stand for themselves."""
    if isinstance(thing, torch.Generator):
        return thing.get_state()
    if callable(getattr(thing, "state_dict", None)):
        return thing.state_dict()
    return thing


def object_plan(name: str, thing: Any, state: Any) -> Step:
    """Plan to load ``state`` into an object, which gets its former state back if a later step fails.

    Raises:
        FtkitError: The object can't load a state.
    """
    if isinstance(thing, torch.Generator):
        former = thing.get_state()
        return Step(lambda: thing.set_state(state), lambda: thing.set_state(former))
    if not callable(getattr(thing, "load_state_dict", None)):
        raise FtkitError(
            f"{name}= got a {type(thing).__name__}, which has no load_state_dict(). Read the value from the "
            "Checkpoint that comes back instead."
        )
    before = copy.deepcopy(object_state(thing)) if hasattr(thing, "state_dict") else None

    def apply() -> None:
        try:
            thing.load_state_dict(state)
        except _NO_STATE as error:
            raise CheckpointError(
                f"The checkpoint's {name} does not fit this {type(thing).__name__}: {error}. Nothing was changed."
            ) from error

    return Step(apply, lambda: thing.load_state_dict(before) if before is not None else None)
