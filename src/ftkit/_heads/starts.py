"""How a new layer starts: as the model's own code would have started it, as far as that can be known.

Three witnesses tell, and none is right alone. *The code* of the classes that hold the layer is run again on copies without
values: not all of a constructor, which may download, read and log, but those of its statements that do nothing except
start weights. What it needs may be gone (an argument that no attribute has kept), or stand outside of any class. *The old
layer*, if no training has moved it, shows by its own numbers how layers are drawn there, whoever did it; once trained, it
shows nothing. *The class* of the layer has a start of its own, which most models leave as it is. The code is put to the
test: if it does not start a layer of the old size like an old one that nobody trained, the old layer is followed.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import dis
import functools
import inspect
import logging
import math
import re
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ftkit._heads.layers import Layer, holders, layers, on_meta, read

_log = logging.getLogger("ftkit")

_SAYS_INIT = re.compile(r"(^|_)(re)?init(ialize)?_?(weights?|params?|parameters|layers?|cnn)|weights?_init|_init_?$")
_WEIGHTS = {"weight", "bias", "parameters", "named_parameters", "reset_parameters"}  # of these the code of one speaks
_INPUTS = {"in_channels", "in_features", "in_planes"}  # arguments that may be kept under no such name
_SMALL = 2e7  # parameters of a module that is built once more only to see how it starts


def starts_alike(model: nn.Module, layer: Layer, twin: nn.Module) -> bool:
    """Whether an old layer that seems untrained is as the model's code starts a ``twin`` of its size.

    So the code can be trusted with another size. To be asked before the model counts other classes, on which a start
    may hang.
    """
    if not _is_untrained(layer):
        return False
    with torch.random.fork_rng(devices=[]):
        _start_by_code(model, layer, twin)
    return all(_are_alike(value, getattr(layer.module, name)) for name, value in twin.named_parameters())


def start(model: nn.Module, layer: Layer, bare: nn.Module, *, as_started: bool) -> None:
    """Initialize a new layer as the model would have.

    Args:
        model: The model, with its old layer.
        layer: The old layer.
        bare: The new one, with plain weights.
        as_started: Whether the old layer is as the model's own code starts it.
    """
    told = _start_by_code(model, layer, bare)
    if as_started:
        return
    untrained = _is_untrained(layer)
    for name, value in bare.named_parameters():
        source: torch.Tensor = getattr(layer.module, name).detach()
        if value.is_meta or source.is_meta or source.numel() < 2:
            continue
        if _is_constant(source):  # a start that no training has moved yet
            value.fill_(source.flatten()[0])
        elif value.dim() > 1 and value.shape != source.shape and not _are_alike(value, source):
            if untrained or (name not in told.started and _shows_its_law(source, surely=True)):
                _draw_like(source, value)
            elif told.failed and not told.started:
                _log.warning(
                    "The %s starts its layers in a way that could not be repeated for %r, which starts like any %s. "
                    "Initialize it yourself if that matters.",
                    type(model).__name__,
                    layer.name,
                    type(layer.module).__name__,
                )


# ---- by the old layer

_FEWEST, _ENOUGH, _MOST = 64, 2000, 200_000  # numbers that show a law, show it for sure, and are looked at
_ALIKE = 1.3  # the ratio of the spreads of two layers that are drawn alike
# How far a sample is from its own distribution, times the root of its count: in 98 cases of 100 at most, in 89.
_STRAYS, _STRAYS_LITTLE = 1.5, 1.2
_UNEVEN = 4.0  # standard errors: how much more than by chance rows or columns differ


def _is_constant(tensor: torch.Tensor) -> bool:
    return not tensor.is_meta and bool((tensor == tensor.flatten()[0]).all())


def _is_untrained(layer: Layer) -> bool:
    """Whether a layer shows that no training has moved it: its bias is one number, its weight one, or drawn by a law."""
    weight, bias = getattr(layer.module, "weight", None), getattr(layer.module, "bias", None)
    if weight is None or weight.is_meta:
        return False
    if _is_constant(weight):
        return True
    unmoved = bias is not None and _is_constant(bias) and (bias.numel() > 1 or not bias.any())
    return unmoved and (weight.numel() < _FEWEST or _shows_its_law(weight.detach()))


def _are_alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two starts are of one kind: the same number everywhere, or numbers of like spread."""
    if one.is_meta or other.is_meta:
        return False
    if _is_constant(one) or _is_constant(other):
        alike: bool = torch.allclose(one.flatten()[0], other.flatten()[0]) and _is_constant(one) is _is_constant(other)
        return alike
    spreads = [float(values.float().std(correction=0)) for values in (one, other)]
    return one.dim() < 2 or max(spreads) <= _ALIKE * min(spreads)


def _shows_its_law(weight: torch.Tensor, *, surely: bool = False) -> bool:
    """Whether the numbers of a matrix could be drawn independently: uniform, or normal, cut at two deviations or not.

    Training leaves rows and columns of different spreads, and soft edges. Of a few normal numbers one can't be sure.
    """
    rows = weight.detach().flatten(1).double()
    rows = rows[: max(1, _MOST // rows.shape[1])] / rows.square().mean().sqrt()
    count, squares = rows.numel(), rows.square() - rows.square().mean()
    ordered = rows.flatten().sort().values
    reach = float(ordered.abs().max()) * (1 + 1 / count)
    laws = [
        (ordered / reach + 1) / 2,
        torch.special.ndtr(ordered),
        (torch.special.ndtr(ordered * _CUT) - _TAIL) / (1 - 2 * _TAIL),
    ]
    expected = (torch.arange(count, dtype=ordered.dtype, device=ordered.device) + 0.5) / count
    strays = [float((law.clamp(0, 1) - expected).abs().max()) * count**0.5 for law in laws]
    fits = strays[0] < _STRAYS_LITTLE if surely and count < _ENOUGH else min(strays) < _STRAYS
    return count >= _FEWEST and fits and all(_is_even(values, axis) for values in (rows, squares) for axis in (0, 1))


_TAIL = math.erfc(math.sqrt(2)) / 2  # of the normal distribution, beyond two deviations
_CUT = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / (1 - 2 * _TAIL))  # what cutting leaves of its spread


def _is_even(values: torch.Tensor, axis: int) -> bool:
    """Whether sums along an axis differ no more than those of independent numbers."""
    sums = values.sum(axis).square() / (values.shape[axis] * values.var(correction=0))
    return bool((sums.sum() - sums.numel()) / (2 * sums.numel()) ** 0.5 < _UNEVEN)


def _draw_like(source: torch.Tensor, into: torch.Tensor) -> None:
    """Draw numbers from those of an untrained layer: so their law is kept, whatever it is.

    Two kinds of start hang on the number of outputs, and are known by their spread: Xavier's, and He's by the outputs.
    """
    rows = source.flatten(1)
    gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    square = gram.diagonal().mean()
    if torch.allclose(
        gram, square * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), atol=1e-3 * float(square)
    ):
        nn.init.orthogonal_(into, gain=float(square.sqrt()))
        return
    picked = torch.randint(source.numel(), (into.numel(),), device=source.device)
    into.copy_(source.flatten()[picked].view(into.shape))
    spread, error = float(source.float().std(correction=0)), 2 / (2 * source.numel()) ** 0.5
    for law in (_xavier, _by_outputs):
        if abs(spread / law(source) - 1) < error:
            into.mul_(law(into) / law(source))
            return


def _xavier(weight: torch.Tensor) -> float:
    return (2 / (weight[0].numel() + weight[:, 0].numel())) ** 0.5


def _by_outputs(weight: torch.Tensor) -> float:
    return (2 / weight[:, 0].numel()) ** 0.5


# ---- by the code


@dataclass
class _Told:
    """What a run of the model's own code told."""

    started: set[str] = field(default_factory=set)  # the parameters that it started
    failed: bool = False  # whether some of it could not be run


def _start_by_code(model: nn.Module, layer: Layer, bare: nn.Module) -> _Told:
    """Initialize a new layer the way of its class, then by what the code of all that holds it does, outwards."""
    _reset(bare, layer.module)
    told = _Told()
    if any(value.is_meta for value in bare.parameters()):
        _try(_own_init(model, layer.name), bare, bare, told)
        return told
    _try(_own_init(model, layer.name), bare, bare, told)
    steps = layer.name.split(".")
    for depth in reversed(range(len(steps))):
        stem = ".".join(steps[:depth])
        holder = model.get_submodule(stem)
        if type(holder).__module__.startswith("torch.nn."):
            continue
        shown = _own_method(model, stem)  # some code starts a layer when it is shown what holds it
        kinds = reversed(_own_classes(holder))
        parts = [part for kind in kinds for part in _starting(type(holder), vars(kind).get("__init__"))]
        shell = _shell(model, stem, layer.name, bare) if shown or parts else None
        if shell is not None:
            _try(shown, shell, bare, told)
            _play(parts, shell, bare, told)
    if not told.started:
        for name, value in _as_constructed(model, layer, bare).items():
            bare.get_parameter(name).copy_(value)
            told.started.add(name)
    return told


def _reset(bare: nn.Module, old: nn.Module) -> None:
    """Initialize a layer the way of its class, or of torch's linear layer where its class has none."""
    reset = read(bare, "reset_parameters")
    if callable(reset):
        reset()
        for name, value in bare.named_parameters():  # what a subclass adds (LoRA), and this does not know, adds nothing
            if value.dim() > 1 and value.shape != getattr(old, name).shape and not value.is_meta:
                value.copy_(torch.where((value == value.flatten()[0]).all(), 0, value))
        return
    for name, value in bare.named_parameters():
        if value.shape != getattr(old, name).shape:  # not a temperature or a scale, which the classes have no part in
            nn.init.zeros_(value) if value.dim() < 2 else nn.init.kaiming_uniform_(value, a=5**0.5)


def _try(own: Callable[..., object] | None, shown: nn.Module, bare: nn.Module, told: _Told) -> None:
    """Initialize a layer by the model's own code. Where that was written for other layers, nothing changes."""
    before = {name: value.detach().clone() for name, value in bare.named_parameters()}
    try:
        if own is not None:
            own(shown)
    except Exception as error:  # noqa: BLE001 -- it may fail in any way on a layer that it does not know
        _log.debug("the model's own %r does not initialize the layer: %s", own, error)
        told.failed = True
        for name, previous in before.items():
            bare.get_parameter(name).copy_(previous)
    told.started |= {n for n, value in bare.named_parameters() if not (value.is_meta or torch.equal(value, before[n]))}


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


# ---- the statements of a constructor that start weights

# Calls that change nothing beyond what they are given: into these modules, of these functions, of these methods.
_MODULES = {"math", "torch", "nn", "init", "np", "numpy", "functools"}
_FUNCTIONS = set(
    "abs enumerate float getattr hasattr int isinstance len list max min partial prod range reversed round sqrt sum tuple zip".split()
)
_METHODS = set(
    "children dim get get_parameter get_submodule item items keys modules named_children named_modules named_parameters numel "
    "parameters size startswith endswith values view".split()
)
_OUTSIDE = re.compile(r"load|save|hub|compile|hook|share|file|distributed|seed")


@dataclass(frozen=True)
class _Part:
    """A statement of a constructor, to be run again."""

    code: types.CodeType
    constructor: types.FunctionType
    aliases: tuple[tuple[str, str], ...]  # names of local layers, and where the model keeps them


@functools.lru_cache(maxsize=128)
def _starting(kind: type, constructor: object) -> tuple[_Part, ...]:
    """The statements of a constructor that start weights, and those that compute plain values for them.

    Args:
        kind: The class of the model.
        constructor: Its ``__init__``, or that of a class that it inherits from.
    """
    function = inspect.unwrap(constructor) if callable(constructor) else None
    if not isinstance(function, types.FunctionType):
        return ()
    try:
        written = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, SyntaxError, TypeError):  # a class made by code
        return ()
    body = written.body if isinstance(written, ast.FunctionDef) else []
    names = _surroundings(function) | {"self": kind}
    kept = list(_kept(body, names))
    if not any(isinstance(one, ast.Call) and _starts(one, names) for part in kept for one in ast.walk(part)):
        return ()
    aliases = tuple(_aliases(body))
    return tuple(_Part(_compiled(part, function), function, aliases) for part in kept)


def _compiled(part: ast.stmt, function: types.FunctionType) -> types.CodeType:
    return compile(ast.fix_missing_locations(ast.Module([part], [])), function.__code__.co_filename, "exec")


def _kept(body: Iterable[ast.stmt], names: Mapping[str, object]) -> Iterator[ast.stmt]:
    """Leave of some statements what starts weights or computes plain values, in loops and under conditions too."""
    for one in body:
        if isinstance(one, ast.For | ast.If | ast.With):
            inner, other = (list(_kept(getattr(one, part, []), names)) for part in ("body", "orelse"))
            heads = [one.iter] if isinstance(one, ast.For) else [one.test] if isinstance(one, ast.If) else one.items
            if (inner or other) and all(_is_harmless(head, names) for head in heads):
                left = copy.copy(one)
                left.body = inner or [ast.Pass()]
                if not isinstance(left, ast.With):
                    left.orelse = other
                yield left
        elif isinstance(one, ast.Expr):
            calls = [call for call in ast.walk(one) if isinstance(call, ast.Call)]
            if any(_starts(call, names) for call in calls) and _is_harmless(one, names):
                yield one
        elif isinstance(one, ast.Assign | ast.AugAssign) and _is_harmless(one.value, names):
            targets = one.targets if isinstance(one, ast.Assign) else [one.target]
            if all(isinstance(target, ast.Name | ast.Tuple) or _is_weight(target) for target in targets):
                yield one


def _is_weight(target: ast.expr) -> bool:
    return re.search(r"\.(weight|bias)\b", ast.unparse(target)) is not None


def _is_harmless(tree: ast.AST, names: Mapping[str, object]) -> bool:
    """Whether an expression calls nothing but what starts weights, computes, or looks at modules and tensors."""
    for call in (one for one in ast.walk(tree) if isinstance(one, ast.Call)):
        owner, _, last = ast.unparse(call.func).rpartition(".")
        known = owner.partition(".")[0] in _MODULES or last in (_METHODS if owner else _FUNCTIONS)
        if _OUTSIDE.search(last) or not ((known and last[:1].islower()) or _starts(call, names)):
            return False
    return True


def _starts(call: ast.Call, names: Mapping[str, object]) -> bool:
    """Whether a call starts weights: in place, as torch's own initializers do, or by a function that does so.

    A method or function is known by its name and by its code, which speaks of weights.
    """
    name = ast.unparse(call.func)
    last = name.rpartition(".")[2]
    if last == "apply":
        given = [part for one in call.args for part in ast.walk(one)]
        named = [ast.unparse(part) for part in given if isinstance(part, ast.Name | ast.Attribute)]
        return any(isinstance(one, ast.Lambda) for one in given) or any(_sets_weights(_meant(n, names)) for n in named)
    in_place = last.endswith("_") and not last.endswith("__") and last != "requires_grad_"
    return in_place or (_SAYS_INIT.search(last) is not None and _sets_weights(_meant(name, names)))


def _meant(name: str, names: Mapping[str, object]) -> object:
    """What a dotted name means, without computing anything."""
    first, *rest = name.split(".")
    found = names.get(first)
    for step in rest:
        found = None if found is None else inspect.getattr_static(found, step, None)
    return getattr(found, "__func__", found)


def _surroundings(function: types.FunctionType) -> dict[str, Any]:
    """The names that a function's code sees around it."""
    found = dict(function.__globals__)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # it has no value yet
            found[name] = cell.cell_contents
    return found


def _aliases(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Local names of what a constructor then registers: itself, or in an ``nn.Sequential``."""
    for one in body:
        if isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Attribute):
            place = ast.unparse(one.targets[0]).removeprefix("self.")
            if isinstance(one.value, ast.Name):
                yield one.value.id, place
            elif isinstance(one.value, ast.Call) and ast.unparse(one.value.func).endswith("Sequential"):
                for index, part in enumerate(one.value.args):
                    if isinstance(part, ast.Name):
                        yield part.id, f"{place}.{index}"


def _play(parts: list[_Part], shell: nn.Module, bare: nn.Module, told: _Told) -> None:
    """Run statements of constructors on a copy of their model, one by one: what fails leaves the others."""
    scopes: dict[types.FunctionType, dict[str, Any]] = {}
    for part in parts:
        scope = scopes.get(part.constructor)
        if scope is None:
            scope = _surroundings(part.constructor) | _known_arguments(part.constructor, shell)
            modules = dict(shell.named_modules(remove_duplicate=False))
            scope |= {name: modules[place] for name, place in part.aliases if place in modules}
            scope["self"] = shell
            scopes[part.constructor] = scope
        _try(lambda _, code=part.code, scope=scope: exec(code, scope), shell, bare, told)  # noqa: S102 -- ran before


def _known_arguments(constructor: types.FunctionType, holder: nn.Module) -> dict[str, Any]:
    """What is known of the arguments of a constructor: by attributes, by what a library notes of them, by defaults."""
    own = vars(holder)
    noted = [value for value in own.values() if isinstance(value, Mapping)]
    found: dict[str, Any] = {}
    for name, parameter in list(inspect.signature(constructor).parameters.items())[1:]:
        places = [own, *noted]
        values = [place[key] for place in places for key in (name, f"_{name}") if key in place]
        values += [] if parameter.default is parameter.empty else [parameter.default]
        if values or name in own.get("_modules", {}):
            found[name] = values[0] if values else read(holder, name)
    return found


# ---- functions and methods that start a layer that they are shown


def _own_init(model: nn.Module, name: str) -> Callable[[nn.Module], object] | None:
    """Find how the model's own code initializes a layer.

    That is the method ``_init_weights(module)`` of the classes of what holds the layer (the habit of transformers and
    timm), or the one function that such a class calls by a name like ``_xavier_init``, if that sets weights. Nothing else
    is called: a function that merely stands in the same file may do anything.
    """
    nearest = _own_holders(model, name)
    method = _own_method(model, name)
    return method or next((found[0] for found in map(_initializers, nearest) if len(found) == 1), None)


def _own_method(model: nn.Module, name: str) -> Callable[[nn.Module], object] | None:
    """The method of a module's own classes, or of what holds it, that initializes what it is shown."""
    module = model.get_submodule(name)
    for holder in (module, *_own_holders(model, name)):
        kind = next((kind for kind in _own_classes(holder) if "_init_weights" in vars(kind)), None)
        entry: Any = None if kind is None else vars(kind)["_init_weights"]
        method = entry.__get__(holder, type(holder)) if hasattr(entry, "__get__") else None
        if callable(method) and _takes_one(method):
            return method
    return None


def _initializers(holder: nn.Module) -> list[types.FunctionType]:
    """The functions that the code of a module's class refers to and that initialize one module, the nearest class's."""
    for kind in _own_classes(holder):
        code = [getattr(entry, "__func__", entry) for entry in vars(kind).values()]
        known = [_referred_to(function) for function in code if inspect.isfunction(function)]
        named = {name: value for names in known for name, value in names.items() if _SAYS_INIT.search(name)}
        if found := [value for value in named.values() if _takes_one(value) and _sets_weights(value)]:
            return found
    return []


def _own_classes(holder: nn.Module) -> list[type]:
    return [kind for kind in type(holder).__mro__ if not kind.__module__.startswith("torch.nn.")]


def _referred_to(function: types.FunctionType) -> dict[str, types.FunctionType]:
    """The functions to which the code of a function refers by a name."""
    names = {*_global_names(function.__code__), *function.__code__.co_freevars}
    known = _surroundings(function)
    return {name: known[name] for name in names if isinstance(known.get(name), types.FunctionType)}


def _global_names(code: types.CodeType) -> set[str]:
    """The names that a function's code looks up in its module, also inside the functions that it makes."""
    own = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    inner = (_global_names(part) for part in code.co_consts if isinstance(part, types.CodeType))
    return own.union(*inner)


def _sets_weights(function: object) -> bool:
    """Whether a function's code speaks of the weights of a module."""
    return not _WEIGHTS.isdisjoint(getattr(read(function, "__code__"), "co_names", ()))


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
