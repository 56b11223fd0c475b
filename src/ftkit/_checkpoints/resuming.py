"""Load states into objects: all of them or, if one does not fit, none.

Everything is planned, which checks it, before anything changes. A plan is a function that makes its change and notes
how to undo it. Copying values into a module that loads as torch does can't fail once names, shapes and types have been
compared; so that is done last, and no second copy of all weights is needed just in case. What may still fail
comes first: objects with their own ``load_state_dict``, and modules that run custom code while they load.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from ftkit._checkpoints import frozen_parts, optimizers, random_numbers, ranks
from ftkit._checkpoints.optimizers import LOAD_ERRORS
from ftkit._checkpoints.runfile import Content
from ftkit._deltas.changes import tensors_of
from ftkit._deltas.placing import fill, place
from ftkit._heads.labels import plan_labels
from ftkit._models.undo import Undo
from ftkit._tensors.budget import Budget
from ftkit._torch import loads_plainly
from ftkit._weights.io import WeightsPlan, plan_weights
from ftkit._weights.sources import in_memory
from ftkit._wording import cause
from ftkit.errors import CheckpointError, FtkitError
from ftkit.selection import unwrap

_Plan: TypeAlias = Callable[[Undo], object]
_Targets: TypeAlias = list[tuple[str, Any, Any]]  # what objects are called, they themselves, and the states they get


def resume(
    content: Content, model: nn.Module | None, parts: Mapping[str, Any], objects: Mapping[str, Any], *, rng: bool
) -> None:
    """Restore what a checkpoint contains, as :func:`ftkit.load_checkpoint` does.

    The model, unwrapped, is the base if the checkpoint is a delta, and gets its layers. ``parts`` are named as their
    states are, ``objects`` were saved among the extra values.

    Raises:
        FtkitError: The checkpoint lacks something, or something does not fit. Nothing has changed then.
    """
    weights = {} if model is None else content.state("model")
    targets = [(name, part, content.state(name)) for name, part in parts.items()]
    targets += [(name, thing, content.value(name)) for name, thing in objects.items()]
    with Undo() as undo:
        with _reading(content):
            if model is not None and "delta" in content.run:  # all else is planned for a model that has its layers
                place(model, content.run["delta"], only_tensors(weights), undo)
            plans = _plans(content, model, weights, targets, rng)
        for change in plans:
            change(undo)


@contextlib.contextmanager
def _reading(content: Content) -> Iterator[None]:
    """Report as damage what goes wrong with values of a file, any of which may differ in type from what was written."""
    try:
        yield
    except LOAD_ERRORS as error:
        raise CheckpointError(
            f"{content.path} does not contain what save_checkpoint writes: {cause(error)}."
        ) from error


def _plans(
    content: Content, model: nn.Module | None, weights: Mapping[str, Any], targets: _Targets, rng: bool
) -> list[_Plan]:
    """Plan all changes, in the order in which to make them."""
    is_delta = model is not None and "delta" in content.run
    base = _base(model, weights) if model is not None and is_delta else {}
    objects: list[_Plan] = []
    states: list[tuple[str, nn.Module, Mapping[str, Any]]] = []
    if model is not None and not is_delta:
        states.append(("model", model, weights))
    with_it: dict[str, _Plan] = {}  # changes that belong to that of another object
    globally: list[_Plan] = []
    if rng and "rng" in content.states:
        globally.append(random_numbers.plan(content.states["rng"]))
    for name, thing, state in targets:
        if name == "optimizer" and isinstance(thing, Optimizer) and model is not None:
            known = content.run.get("optimizer") or {}
            scheduler = next((other for other_name, other, _ in targets if other_name == "scheduler"), None)
            load, follow = optimizers.plan(thing, state, known, dict(model.named_parameters()), scheduler)
            objects.append(load)
            with_it["scheduler"] = follow
            if "frozen" in content.run:
                trained = known.get("names", ()), optimizers.held(thing)
                globally.append(frozen_parts.plan(model, content.run["frozen"], *trained))
        elif not isinstance(thing, nn.Module):
            objects.append(_object_plan(name, thing, state, with_it.get(name)))
        else:
            module = _averaged(unwrap(thing), state)
            states.append((name, module, {**state, **_unchanged(module, state, base)}))
    modules = [
        _Weights(module, state, f"The {name} in {content.path}", content.budget) for name, module, state in states
    ]
    labels = content.run.get("delta", content.run).get("labels", {})
    saved = {*(tensors_of(model) if model is not None and is_delta else weights)}
    for (name, module, _), weights_of in zip(states, modules, strict=True):
        if name in ("model", "ema"):  # any other module has classes of its own
            objects.append(plan_labels(module, labels, weights_of.places_of(saved), str(content.path)))
    doubtful = [load.load_with_a_way_back for load in modules if not load.certain]
    sure: list[Callable[[], object]] = [load.load for load in modules if load.certain]
    if model is not None and is_delta:
        sure.append(partial(fill, model, only_tensors(weights)))
    return [*objects, *doubtful, *globally, lambda _: [load() for load in sure]]


# ---- anything with a state


def state_of(thing: Any) -> Any:
    """Return the state of a scheduler, scaler, sampler, generator, ...; a plain value is returned as is."""
    get, _ = _methods(thing)
    return get() if callable(get) else thing


def _methods(thing: Any) -> tuple[Any, Any]:
    """The methods that return and load an object's state."""
    if isinstance(thing, torch.Generator):
        return thing.get_state, thing.set_state
    return getattr(thing, "state_dict", None), getattr(thing, "load_state_dict", None)


def _object_plan(name: str, thing: Any, state: Any, then: _Plan | None = None) -> _Plan:
    get, put = _methods(thing)
    if not callable(put):
        raise FtkitError(
            f"{name}= got a {type(thing).__name__}, which has no load_state_dict(). Read the value from the "
            "returned Checkpoint instead."
        )
    before = copy.deepcopy(get()) if callable(get) else None

    def put_back() -> None:
        if before is not None:
            with contextlib.suppress(FtkitError, *LOAD_ERRORS):  # one that refuses any state has not taken the new one
                put(before)

    def load(undo: Undo) -> None:
        if hasattr(thing, "__dict__"):
            undo.remember(thing)
        undo.callback(put_back)  # what its attributes hold may have changed too
        try:
            put(state)
        except LOAD_ERRORS as error:
            raise CheckpointError(
                f"The checkpoint's {name} does not fit this {type(thing).__name__}: {cause(error)}. Nothing was "
                "changed."
            ) from error
        if then is not None:
            then(undo)

    return load


# ---- modules


class _Weights:
    """A module's state, compared with it.

    Attributes:
        certain: Whether loading it can no longer fail.

    Raises:
        CheckpointError: It does not fit.
    """

    def __init__(self, module: nn.Module, state: Mapping[str, Any], source: str, budget: Budget) -> None:
        self.module, self.state = module, state
        self.own: dict[str, Any] = module.state_dict()
        names_fit = self.own.keys() == state.keys()
        self.foreign: WeightsPlan | None = None
        if not (names_fit and all(_fits(value, state[name]) for name, value in self.own.items())):
            with _spoken_of():  # another program's names, or another model
                self.foreign = plan_weights(module, in_memory(state, source, budget=budget), ema=False)
        self.certain = _loads_as_torch_does(module) and (self.foreign is None or self.foreign.certain)

    def places_of(self, saved: AbstractSet[str]) -> dict[str, str]:
        """For each tensor of a model in the file, its name in the module, be that an average of the model."""
        places = {name: name for name in self.own} if self.foreign is None else self.foreign.places
        ends = {_end(name, saved): place for name, place in places.items()}
        return {end: place for end, place in ends.items() if end}

    def load(self) -> None:
        """Give the module its state."""
        if self.foreign is None:
            on_meta = any(isinstance(value, Tensor) and value.is_meta for value in self.own.values())
            self.module.load_state_dict(ranks.spread(self.state, self.own), assign=on_meta)
        else:
            with _spoken_of():
                self.foreign.load()

    def load_with_a_way_back(self, undo: Undo) -> None:
        """Load the state, after noting the current one."""
        for part in self.module.modules():
            undo.remember(part)
        for tensor in (*self.module.parameters(), *self.module.buffers()):
            if not (tensor.is_meta or is_lazy(tensor)):
                undo.callback(_put_back, tensor, tensor.detach().clone())
        self.load()


def _put_back(tensor: Tensor, before: Tensor) -> None:
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        tensor.copy_(before)


def _base(model: nn.Module, delta: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a delta leaves unchanged in its model."""
    return {name: tensor for name, tensor in tensors_of(model).items() if name not in delta}


def _unchanged(module: nn.Module, state: Mapping[str, Any], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the state of an average lacks because it is the same in the base of a delta."""
    found = {name: by_suffix(base, name) for name in module.state_dict() if base and name not in state}
    return only_tensors(found)


def _averaged(module: nn.Module, state: Mapping[str, Any]) -> nn.Module:
    """The module of an average that a state is of: timm saves what is inside its ``ModelEma``."""
    inner = getattr(module, "module", None)
    if isinstance(inner, nn.Module) and module.state_dict().keys() == {f"module.{name}" for name in state}:
        return inner
    return module


def _loads_as_torch_does(module: nn.Module) -> bool:
    """Whether a module's values can be, and are, only copied, by torch's code alone."""
    return (
        getattr(module.load_state_dict, "__func__", None) is nn.Module.load_state_dict
        and all(type(part).set_extra_state is nn.Module.set_extra_state for part in module.modules())
        and all(map(loads_plainly, module.modules()))
        and not any(tensor.is_inference() for tensor in (*module.parameters(), *module.buffers()))
    )


def _fits(own: object, saved: object) -> bool:
    """Whether a value has a type and shape that torch copies without complaint."""
    if not isinstance(own, Tensor) or is_lazy(own):
        return not isinstance(own, Tensor)
    return (
        isinstance(saved, Tensor)
        and not saved.is_meta
        and (own.shape, own.layout, own.is_quantized) == (saved.shape, saved.layout, saved.is_quantized)
        and torch.can_cast(saved.dtype, own.dtype)
    )


@contextlib.contextmanager
def _spoken_of() -> Iterator[None]:
    """Say whose arguments an error of ``load_weights`` suggests."""
    try:
        yield
    except CheckpointError as error:
        if not re.search(r"\b(rename|strict|drop_mismatched)=", str(error)):
            raise
        raise CheckpointError(
            f"{error}\n(These are arguments of load_weights, which reads only the weights.)"
        ) from error


def only_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return only the tensors of a state."""
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _end(name: str, names: AbstractSet[str]) -> str:
    """The longest end of a name that is among some names; if these are unknown, what stands after a ``module``."""
    if not names:
        return "" if name == "n_averaged" else name.removeprefix("module.")
    while name and name not in names:
        name = name.partition(".")[2]
    return name


def by_suffix(tensors: Mapping[str, Tensor], name: str) -> Tensor | None:
    """Find a tensor by its name, or by its name without leading components, which wrappers add.

    Example:
        >>> import torch
        >>> from ftkit._checkpoints.resuming import by_suffix
        >>> by_suffix({"fc.bias": torch.ones(1)}, "module.fc.bias")
        tensor([1.])
    """
    while name:
        if name in tensors:
            return tensors[name]
        name = name.partition(".")[2]
    return None
