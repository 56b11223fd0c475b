"""How a new layer starts: as the model's own code would have started it, as far as that can be known.

Three witnesses tell, and none is right alone. *The code* of the classes that hold the layer is run again, on copies
without values. What it needs may be gone (an argument that no attribute has kept), or stand outside of any class. *The
old layer*, if no training has moved it, shows by its own numbers how layers are drawn there, whoever did it; once
trained, it shows nothing. *The class* of the layer has a start of its own, which most models leave as it is. The code
is put to the test: if it does not start a layer of the old size as an untrained old one is, the old one is followed.
"""

from __future__ import annotations

import dis
import inspect
import logging
import types
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ftkit._heads.constructors import SAYS_INIT, own_classes, replay, sets_weights, starts_weights, surroundings
from ftkit._heads.layers import Layer, holders, layers, on_meta, read
from ftkit._heads.untrained import are_alike, draw_like, is_constant, is_untrained, shows_its_law, written
from ftkit._torch import is_norm

_log = logging.getLogger("ftkit")

_INPUTS = {"in_channels", "in_features", "in_planes"}  # arguments that may be kept under no such name
_FEWEST_AGAINST_CODE = 256  # numbers of an old layer that are believed against what the code says
_SMALL = 2e7  # parameters of a module that is built once more only to see how it starts


def start(model: nn.Module, layer: Layer, bare: nn.Module, *, as_started: bool) -> None:
    """Initialize a new layer as the model would have.

    Args:
        model: The model, with its old layer.
        layer: The old layer.
        bare: The new one, with plain weights.
        as_started: Whether the old layer is as the model's own code starts it.
    """
    told = start_by_code(model, layer, bare)
    if as_started:
        return
    untrained, is_plain = is_untrained(layer), type(bare) is type(layer.module)
    unknown: list[str] = []
    for name, value in bare.named_parameters():
        source = written(layer.module, name)
        if value.is_meta or source.is_meta or source.numel() < 2:
            continue
        if is_constant(source):  # a start that no training has moved yet
            value.fill_(source.flatten()[0])
        elif value.dim() > 1 and value.shape != source.shape and not are_alike(value, source):
            if name in told.started:
                followed = untrained and source.numel() >= _FEWEST_AGAINST_CODE
            else:
                followed = untrained or (is_plain and shows_its_law(source, surely=True))
            if followed:
                draw_like(source, value)
            elif told.failed and name not in told.started and is_plain:
                unknown.append(name)
        elif value.dim() == 1 and told.failed and name not in told.started and is_plain:
            unknown.append(name)
    if unknown:
        _log.warning(
            "The %s starts its layers in a way that could not be repeated for %r, whose %s starts like that of any %s. "
            "Initialize it yourself if that matters.",
            type(model).__name__,
            layer.name,
            " and ".join(unknown),
            type(layer.module).__name__,
        )


# ---- by the code


@dataclass
class _Told:
    """What a run of the model's own code told."""

    started: set[str] = field(default_factory=set)  # the parameters that it started
    failed: bool = False  # whether some of it could not be run


def start_by_code(model: nn.Module, layer: Layer, bare: nn.Module) -> _Told:
    """Initialize a new layer the way of its class, then by what the code of all that holds it does, outwards."""
    told = _Told()
    told.failed = not _reset(bare, layer.module)
    _try(_own_init(model, layer.name), bare, bare, told)
    steps = [] if any(value.is_meta for value in bare.parameters()) else layer.name.split(".")
    sizes = [value.shape[layer.axis] for value in bare.parameters() if value.dim() > layer.axis]
    classes = replace(layer, outputs=sizes[0]).classes if sizes else layer.classes
    for depth in range(len(steps), -1, -1) if steps else ():
        stem = ".".join(steps[:depth])
        holder = model.get_submodule(stem)
        shown = _own_method(model, stem) if depth < len(steps) else None  # it may start what is in what it is shown
        if not own_classes(holder) or not (shown or starts_weights(type(holder))):
            continue
        shell = bare if depth == len(steps) else _shell(model, stem, layer.name, bare)
        if shell is not None:
            _try(shown, shell, bare, told)
            outer, _, place = stem.rpartition(".")
            child = steps[depth] if depth < len(steps) else ""
            for action in replay(shell, child, model.get_submodule(outer) if stem else None, place, classes):
                told.failed |= not _try(lambda _, action=action: action(), shell, bare, told)
    if not (told.started or is_norm(bare)):
        for name, value in _as_constructed(model, layer, bare).items():
            bare.get_parameter(name).copy_(value)
            told.started.add(name)
    return told


def _reset(bare: nn.Module, old: nn.Module) -> bool:
    """Initialize a layer the way of its class, or of torch's linear layer where its class has none; tell which."""
    reset = read(bare, "reset_parameters")
    if callable(reset):
        reset()
        for name, value in bare.named_parameters():  # what a subclass adds (LoRA), and this does not know, adds nothing
            if value.dim() > 1 and value.shape != getattr(old, name).shape and not value.is_meta:
                value.copy_(torch.where((value == value.flatten()[0]).all(), 0, value))
        return True
    for name, value in bare.named_parameters():
        if value.shape != getattr(old, name).shape:  # not a temperature or a scale, which the classes have no part in
            nn.init.zeros_(value) if value.dim() < 2 else nn.init.kaiming_uniform_(value, a=5**0.5)
    return False


def _try(own: Callable[..., object] | None, shown: nn.Module, bare: nn.Module, told: _Told) -> bool:
    """Initialize a layer by the model's own code. Where that fails, as it was written for others, nothing changes."""
    mine = dict(bare.named_parameters())
    before = {name: value.detach().clone() for name, value in mine.items()}
    try:
        if own is not None:
            own(shown)
        for name, value in list(bare.named_parameters()):
            if value.shape != before[name].shape or value.is_meta is not before[name].is_meta:
                raise ValueError(f"{name} became {tuple(value.shape)}")
            if value is not mine[name]:  # a parameter was put in its place
                mine[name].copy_(value)
                _put_back(bare, name, mine[name])
    except Exception as error:  # noqa: BLE001 -- it may fail in any way on a layer that it does not know
        _log.debug("the model's own %r does not initialize the layer: %s", own, error)
        for name, previous in before.items():
            _put_back(bare, name, mine[name])
            mine[name].data = previous
        return False
    told.started |= {n for n, value in bare.named_parameters() if not (value.is_meta or torch.equal(value, before[n]))}
    return True


def _put_back(bare: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Let a layer have a parameter of its own again."""
    holder, _, child = name.rpartition(".")
    setattr(bare.get_submodule(holder), child, parameter)


def _shell(model: nn.Module, stem: str, name: str, bare: nn.Module) -> nn.Module | None:
    """Copy a module by name that holds a layer without values, with a new layer in the old one's place."""
    holder = model.get_submodule(stem)
    try:
        shell = on_meta(holder)
    except Exception as error:  # noqa: BLE001 -- a model may refuse to be copied in any way it likes
        _log.debug("%s can't be copied: %s", type(holder).__name__, error)
        return None
    inner, _, child = name[len(stem) :].lstrip(".").rpartition(".")
    shell.get_submodule(inner).add_module(child, bare)
    return shell


# ---- functions and methods that start a layer that they are shown


def _own_init(model: nn.Module, name: str) -> Callable[[nn.Module], object] | None:
    """Find how the model's own code initializes a layer.

    That is the method ``_init_weights(module)`` of the classes of what holds the layer (the habit of transformers and
    timm), or the one function that such a class calls by a name like ``_xavier_init``, if that sets weights. Nothing
    else is called: a function that merely stands in the same file may do anything.
    """
    nearest = _own_holders(model, name)
    method = _own_method(model, name)
    return method or next((found[0] for found in map(_initializers, nearest) if len(found) == 1), None)


def _own_method(model: nn.Module, name: str) -> Callable[[nn.Module], object] | None:
    """The method of a module's own classes, or of what holds it, that initializes what it is shown."""
    module = model.get_submodule(name)
    for holder in (module, *_own_holders(model, name)):
        kind = next((kind for kind in own_classes(holder) if "_init_weights" in vars(kind)), None)
        entry: Any = None if kind is None else vars(kind)["_init_weights"]
        method: object = entry.__get__(holder, type(holder)) if hasattr(entry, "__get__") else None
        if callable(method) and _takes_one(method):
            return method
    return None


def _initializers(holder: nn.Module) -> list[types.FunctionType]:
    """The functions that the code of a module's class refers to and that initialize one module, the nearest class's."""
    for kind in own_classes(holder):
        code = [getattr(entry, "__func__", entry) for entry in vars(kind).values()]
        known = [_referred_to(function) for function in code if inspect.isfunction(function)]
        named = {name: value for names in known for name, value in names.items() if SAYS_INIT.search(name)}
        if found := [value for value in named.values() if _takes_one(value) and sets_weights(value)]:
            return found
    return []


def _referred_to(function: types.FunctionType) -> dict[str, types.FunctionType]:
    """The functions to which the code of a function refers by a name."""
    names = {*_global_names(function.__code__), *function.__code__.co_freevars}
    known = surroundings(function)
    return {name: known[name] for name in names if isinstance(known.get(name), types.FunctionType)}


def _global_names(code: types.CodeType) -> set[str]:
    """The names that a function's code looks up in its module, also inside the functions that it makes."""
    own = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    inner = (_global_names(part) for part in code.co_consts if isinstance(part, types.CodeType))
    return own.union(*inner)


def _own_holders(model: nn.Module, name: str) -> list[nn.Module]:
    """The modules that hold a layer, the nearest first, without torch's own containers."""
    return [module for module in reversed(holders(model, name)) if not type(module).__module__.startswith("torch.nn.")]


def _takes_one(function: Callable[..., object]) -> bool:
    """Whether a function needs one argument, the first."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return False
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(needed) == 1 and needed == parameters[:1]


def _as_constructed(model: nn.Module, layer: Layer, bare: nn.Module) -> dict[str, nn.Parameter]:
    """Build the module that holds the layer once more, and return how its constructor starts the layer, or nothing.

    So a focal-loss detector's prior comes along, which is written nowhere else. Only for a small holder below the
    model, all of whose arguments are numbers that can be read off it.
    """
    name = layer.name
    holder = next(iter(_own_holders(model, name)), model)
    wanted = dict(bare.named_parameters())
    on_meta = any(value.is_meta for value in wanted.values())
    if holder is model or on_meta or sum(value.numel() for value in holder.parameters()) > _SMALL:
        return {}
    stem = next(known for known, module in model.named_modules() if module is holder)
    arguments = _arguments(holder)
    counts = [key for key, value in arguments.items() if layer.outputs_for(value) == layer.outputs]
    if len(counts) != 1:
        return {}
    outputs = wanted["weight"].shape[layer.axis]
    arguments[counts[0]] = (outputs - layer.extra) // layer.times
    try:
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            again = type(holder)(**arguments).get_submodule(name.removeprefix(stem).lstrip("."))
    except Exception as error:  # noqa: BLE001 -- a constructor that wants more than its attributes tell
        _log.debug("%s can't be rebuilt: %s", type(holder).__name__, error)
        return {}
    made = dict(again.named_parameters())
    fits = made.keys() == wanted.keys() and all(made[key].shape == value.shape for key, value in wanted.items())
    return made if fits else {}


def _arguments(holder: nn.Module) -> dict[str, int]:
    """Read what it can of the arguments of its constructor off a module; nothing if one of them is no number."""
    names = inspect.signature(type(holder).__init__).parameters
    told = {name: vars(holder).get(name) for name in names} | dict.fromkeys(
        _INPUTS & names.keys(), layers(holder)[0].inputs
    )
    plain = {name: value for name, value in told.items() if isinstance(value, int | float | str)}
    return {name: int(value) for name, value in plain.items()} if set(map(type, plain.values())) == {int} else {}
