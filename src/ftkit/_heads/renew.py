"""A layer made anew with another number of outputs or inputs, and started as the model would have started it."""

from __future__ import annotations

import ast
import contextlib
import copy
import dis
import inspect
import logging
import operator
import re
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from ftkit._heads.layers import Layer, holders, layers, like, on_meta, read
from ftkit._models.dryrun import quiet
from ftkit._models.slots import own_slots
from ftkit._torch import buffers_of, is_convolution, is_norm, parameters_of, power_iterate, pre_hooks_of
from ftkit.errors import HeadError

_log = logging.getLogger("ftkit")

_COUNTS = (
    *("out_features", "out_channels", "nf", "num_classes", "num_labels", "n_classes", "num_embeddings"),
    *("num_features", "num_channels"),  # of norms
)
_POWER_ITERATIONS = 15  # as many as torch's own spectral norm does at its start
_SAYS_INIT = re.compile(r"(^|_)init(ialize)?_weights?|weights?_init|_init$|(^|_)init_cnn$")
# What a method is called that a model's constructor calls, and a loop in that:
_METHOD = re.compile(r"_*(init(ialize)?_(weights?|params|parameters|cnn)|weights?_init)_*")
_OVER_ALL = re.compile(r"(enumerate\()?self\.(named_)?modules\(\)")
_WEIGHTS = {"weight", "bias", "parameters", "named_parameters", "reset_parameters"}  # of these the code of one speaks
_INPUTS = {"in_channels", "in_features", "in_planes"}  # arguments that may be kept under no such name
_SMALL = 2e7  # parameters of a module that is built once more only to see how it starts


def renewed(model: nn.Module, layer: Layer, outputs: int, rows: Mapping[int, int], thaw: bool) -> nn.Module:
    """Return a layer like the old one, initialized, with another number of outputs.

    Args:
        model: The model that holds it.
        layer: The old layer.
        outputs: How many outputs the new one has.
        rows: Which of them are carried over: each one's index to its old index.
        thaw: Whether it trains even where the old one was frozen.

    Raises:
        HeadError: Something that hangs on the layer fits the old number alone.
    """
    old = layer.module
    _check_free(layer, "another count would not fit them", outputs)
    new = _twin(old, layer.outputs, outputs, layer.axis)
    vars(new).update({name: outputs for name in _COUNTS if vars(new).get(name) == layer.outputs})
    if layer.from_classes and is_convolution(old):
        new = _twin(new, layer.inputs, outputs, 1 - layer.axis, vectors=False)
        vars(new)["in_channels"] = outputs
    if vars(new).get("normalized_shape") == (layer.outputs,):
        vars(new)["normalized_shape"] = (outputs,)
    padding = vars(new).get("padding_idx")
    if padding is not None and padding >= layer.outputs - layer.extra:
        vars(new)["padding_idx"] = padding + outputs - layer.outputs
    with torch.no_grad(), _resting(old):
        _start(model, layer, new, outputs)
        if rows:
            _carry(layer, new, rows)
    _need_gradients_like(old, new, thaw)
    return new


def with_channels(entry: Layer, channels: int) -> nn.Module:
    """Return a convolution like the old one for another number of channels, with its filters."""
    _check_free(entry, "its channels are fixed")
    old, axis = entry.module, 1 - entry.axis
    new = _twin(old, entry.inputs, channels, axis, vectors=False)
    vars(new)["in_channels"] = channels
    with torch.no_grad(), _resting(old):
        source: torch.Tensor = getattr(old, "weight").detach()  # noqa: B009 -- it may be parametrized
        turn = torch.arange(channels, device=source.device) % entry.inputs
        taken = source.index_select(axis, turn) * (entry.inputs / channels)
        _assign(new, "weight", source.sum(axis, keepdim=True) if channels == 1 else taken)
    _need_gradients_like(old, new, thaw=False)
    return new


@contextlib.contextmanager
def _resting(layer: nn.Module) -> Iterator[None]:
    """Keep a layer in eval mode, in which nothing moves where a weight is computed to be read."""
    training = [module for module in layer.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _check_free(layer: Layer, what: str, outputs: int = 0) -> None:
    """Refuse a layer that something fits to its sizes as they are.

    Groups do not, where each of them gives every class.
    """
    if _hooks_that(layer.module, "apply_mask"):
        raise HeadError(f"{layer.name!r} is pruned; end the pruning with torch.nn.utils.prune.remove first.")
    groups = getattr(layer.module, "groups", 1)
    if groups != 1 and (not outputs or layer.times % groups or layer.extra or layer.by_class):
        raise HeadError(f"{layer.name!r} is a convolution with {groups} groups: {what}.")
    groups = getattr(layer.module, "num_groups", 1)
    if outputs % groups:
        raise HeadError(f"{layer.name!r} is a norm of {groups} groups, which can't share {outputs} class scores.")


def _twin(old: nn.Module, before: int, after: int, axis: int, *, vectors: bool = True) -> nn.Module:
    """Copy a layer with all that hangs on it; tensors that count ``before`` along ``axis`` count ``after``.

    So do ``vectors``, such as a bias, where the axis is that of the outputs.
    """
    new: nn.Module = old.__class__.__new__(old.__class__)
    for key, value in vars(old).items():
        new.__dict__[key] = _own(key, value, old, new)
        if isinstance(value, torch.Size) and value[axis : axis + 1] == (before,):  # a parametrization's, of its weight
            new.__dict__[key] = torch.Size((*value[:axis], after, *value[axis + 1 :]))
        if isinstance(value, torch.Tensor):  # the weight that old-style weight norm computes before each forward
            new.__dict__[key] = _sized(key, value, before if vectors or value.dim() > 1 else 0, after, axis)
    for slot in own_slots(new):  # its tables are new, and hold what the old one's do
        if isinstance(slot.content, nn.Module):
            slot.table[slot.name] = _twin(slot.content, before, after, axis, vectors=vectors)
        else:
            counting = before if vectors or slot.content.dim() > 1 else 0
            slot.table[slot.name] = _sized(slot.name, slot.content, counting, after, axis)
    return new


def _own(key: str, value: Any, old: nn.Module, new: nn.Module) -> Any:
    """Give a copy of a module a table, or a forward that was set on it, of its own."""
    if isinstance(value, types.MethodType) and value.__self__ is old:
        return types.MethodType(value.__func__, new)
    return copy.copy(value) if isinstance(value, dict) and key.startswith("_") else value


def _sized(name: str, tensor: torch.Tensor, before: int, after: int, axis: int) -> torch.Tensor:
    """Copy a tensor; where it counts ``before`` along the axis, it counts ``after`` and has no values yet."""
    along, copied = _along(tensor, axis), tensor.detach().clone()
    inward = tensor.dim() == 1 and name.endswith("_v")  # what a spectral norm iterates on, on the side of the inputs
    if tensor.shape[along : along + 1] == (before,) and not inward:
        # A vector that a spectral norm iterates on must not be zero; whatever else is set later.
        copied = copied.new_full((*tensor.shape[:along], after, *tensor.shape[along + 1 :]), after**-0.5)
    return like(tensor, copied)


def _along(tensor: torch.Tensor, axis: int) -> int:
    """The axis of a tensor that counts what ``axis`` of the weight counts: a bias has but one."""
    return min(axis, tensor.dim() - 1)


def _carry(layer: Layer, new: nn.Module, rows: Mapping[int, int]) -> None:
    """Carry the rows of outputs that stay over from the old layer; of one that takes the classes too, no others."""
    names = dict.fromkeys(("weight", "bias", *parameters_of(layer.module)))  # these two may be computed from others
    if is_norm(layer.module):
        names |= dict.fromkeys(buffers_of(layer.module))
    for name in [name for name in names if not name.endswith(("_g", "_v", "_orig"))]:
        source, value = getattr(layer.module, name, None), getattr(new, name, None)
        if not isinstance(source, torch.Tensor) or not isinstance(value, torch.Tensor):
            continue
        axis = _along(source, layer.axis)
        if source.shape[axis : axis + 1] == (layer.outputs,):
            axes = (axis, 1 - axis) if layer.from_classes and source.dim() > 1 else (axis,)
            kept = _chosen(source.detach(), axes, rows.values()).to(value.dtype)
            first = _chosen(value.detach(), axes[:-1], rows)
            first = first.index_copy(axes[-1], torch.tensor([*rows], device=value.device), kept)
            carried = first
            if len(axes) > 1:
                carried = value.detach().index_copy(axis, torch.tensor([*rows], device=value.device), first)
            _assign(new, name, carried)
            now: torch.Tensor = getattr(new, name)
            if not (now.is_meta or torch.allclose(_chosen(now, axes, rows), kept, atol=1e-4)):
                raise HeadError(
                    f"The {name} of {layer.name!r} is computed by a parametrization that can't carry rows over. "
                    "Leave keep= out, or remove the parametrization first."
                )


def _chosen(tensor: torch.Tensor, axes: Iterable[int], places: Iterable[int]) -> torch.Tensor:
    """Take the same places along some axes."""
    index = torch.tensor([*places], device=tensor.device)
    for axis in axes:
        tensor = tensor.index_select(axis, index)
    return tensor


def _need_gradients_like(old: nn.Module, new: nn.Module, thaw: bool) -> None:
    """Let new parameters need gradients where the old ones did; to thaw takes off what freezing hung on the layer."""
    for before, after in zip(old.parameters(), new.parameters(), strict=True):
        after.requires_grad_(before.requires_grad or thaw)
    if thaw:
        _drop("ftkit.", pre_hooks_of(new))
        _drop("_ftkit_", vars(new))


def _drop(prefix: str, table: dict[Any, Any]) -> None:
    for key in [key for key in table if str(key).startswith(prefix)]:
        del table[key]


# ---- how a new layer starts


def _start(model: nn.Module, layer: Layer, new: nn.Module, outputs: int) -> None:
    """Initialize a new layer as the model would have: its class's way, then by what the model's own code does."""
    old, bare = layer.module, _bare(new, layer, outputs)
    _reset(bare, old)
    own = _own_init(model, layer.name)
    if own is not None:
        _initialize(own, bare, bare, layer.name)
        shell = _shell(model, layer.name.rpartition(".")[0], layer.name, bare)
        if shell is not None:  # some code starts a layer when it is shown what holds it
            _initialize(own, shell, bare, layer.name)
    elif not (_start_all(model, layer.name, bare) or is_norm(bare)):
        for name, value in _as_constructed(model, layer, bare).items():
            bare.get_parameter(name).copy_(value)
    for name, value in bare.named_parameters():
        source: torch.Tensor = getattr(old, name)
        constant = source.flatten()[0]
        if not value.is_meta and source.numel() > 1 and bool((source == constant).all()):
            value.fill_(constant)  # a start that no training has moved yet
        if bare is not new:
            _assign(new, name, value.detach())


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


def _start_all(model: nn.Module, name: str, bare: nn.Module) -> bool:
    """Start a layer by code that starts all layers of a module around it, if there is any; tell whether it did.

    That is a method without arguments, or a loop in a constructor. All the others are copies without values.
    """
    steps = [] if any(value.is_meta for value in bare.parameters()) else name.split(".")
    for depth in reversed(range(len(steps))):
        stem = ".".join(steps[:depth])
        holder = model.get_submodule(stem)
        methods = (operator.methodcaller(key) for key, _ in _methods(holder, takes=0))
        own = next(methods, None) or next(
            filter(None, (_in_constructor(kind, steps[depth:]) for kind in _own_classes(holder))), None
        )
        shell = None if own is None else _shell(model, stem, name, bare)
        before = [value.clone() for value in bare.parameters()]
        if own is not None and shell is not None:
            _initialize(own, shell, bare, name)
            if not all(map(torch.equal, before, bare.parameters())):
                return True
    return False


def _in_constructor(kind: type, path: list[str]) -> Callable[[nn.Module], object] | None:
    """What a constructor does to start its layers, as a function: loops over all, and what sets the one at a path.

    So torchvision's models start theirs. Nothing else of the constructor runs.
    """
    constructor = vars(kind).get("__init__")
    if not inspect.isfunction(constructor):
        return None
    try:
        written = ast.parse(textwrap.dedent(inspect.getsource(constructor))).body[0]
    except (OSError, SyntaxError):  # a class of a notebook, or made by code
        return None
    place = "".join(rf"\[({step}|-\d+)\]" if step.isdigit() else rf"\.{re.escape(step)}" for step in path)
    alone = re.compile(rf"((torch\.)?(nn\.)?init\.\w+_\(self{place}\.|self{place}\.(weight|bias)\.(data\.)?\w+_\()")
    parts: list[ast.stmt] = [
        part
        for part in ast.walk(written)
        if (isinstance(part, ast.For) and _OVER_ALL.match(ast.unparse(part.iter)))
        or (isinstance(part, ast.Expr) and alone.match(ast.unparse(part)))
    ]
    parts.sort(key=lambda part: part.lineno)
    if not (parts and isinstance(written, ast.FunctionDef)):
        return None
    written.name, written.body, written.decorator_list, written.returns = "start", parts, [], None
    written.args = ast.arguments(posonlyargs=[], args=written.args.args[:1], kwonlyargs=[], kw_defaults=[], defaults=[])
    made: dict[str, Any] = {}
    code = compile(ast.fix_missing_locations(ast.Module([written], [])), constructor.__code__.co_filename, "exec")
    exec(code, constructor.__globals__, made)  # noqa: S102 -- a part of what has run when the model was built
    start: Callable[[nn.Module], object] = made["start"]
    return start if _sets_weights(start) else None


def _shell(model: nn.Module, stem: str, name: str, bare: nn.Module) -> nn.Module | None:
    """Copy a module by name that holds a layer without values, with a new layer in the old one's place."""
    holder = model.get_submodule(stem)
    if type(holder).__module__.startswith("torch.nn."):
        return None
    try:
        shell = on_meta(holder)
    except Exception as error:  # noqa: BLE001 -- a model may refuse to be copied in any way it likes
        _log.debug("%s can't be copied: %s", type(holder).__name__, error)
        return None
    inner, _, child = name[len(stem) :].lstrip(".").rpartition(".")
    shell.get_submodule(inner).add_module(child, bare)
    return shell


def _initialize(own: Callable[[nn.Module], object], shown: nn.Module, bare: nn.Module, name: str) -> None:
    """Initialize a layer by the model's own code. Where that was written for other layers, nothing changes."""
    before = [value.detach().clone() for value in bare.parameters()]
    try:
        own(shown)
    except Exception as error:  # noqa: BLE001 -- it may fail in any way on a layer that it does not know
        _log.debug("the model's own %r does not initialize %r: %s", own, name, error)
        for value, previous in zip(bare.parameters(), before, strict=True):
            value.copy_(previous)


def _own_init(model: nn.Module, name: str) -> Callable[[nn.Module], object] | None:
    """Find how the model's own code initializes a layer.

    That is the method ``_init_weights(module)`` of the classes of what holds the layer (the habit of transformers and
    timm), or one that their constructors call by such a name, or the one function that such a class calls by a name
    like ``_xavier_init``, if that sets weights. Nothing else is called: a function that merely stands in the same file
    may do anything.
    """
    nearest = _own_holders(model, name)
    methods = (one for holder in (*nearest, model) for _, one in _methods(holder, takes=1))
    return next(methods, None) or next((found[0] for found in map(_initializers, nearest) if len(found) == 1), None)


def _methods(holder: nn.Module, takes: int) -> Iterator[tuple[str, Callable[..., object]]]:
    """The methods of a module's own classes that initialize, by name: the usual one, and what constructors call so.

    Args:
        holder: The module.
        takes: How many arguments they take.
    """
    kinds = _own_classes(holder)
    code = [vars(kind).get("__init__") for kind in kinds]
    called = {name: None for one in code if inspect.isfunction(one) for name in one.__code__.co_names}
    usual = ["_init_weights"] * takes
    for name in dict.fromkeys([*usual, *filter(_METHOD.fullmatch, called)]):
        entry: Any = next((vars(kind)[name] for kind in kinds if name in vars(kind)), None)
        method = entry.__get__(holder, type(holder)) if hasattr(entry, "__get__") else None
        if callable(method) and _takes(method, takes) and (name in usual or _sets_weights(method)):
            yield name, method


def _initializers(holder: nn.Module) -> list[types.FunctionType]:
    """The functions that the code of a module's class refers to and that initialize one module, the nearest class's."""
    for kind in _own_classes(holder):
        code = [getattr(entry, "__func__", entry) for entry in vars(kind).values()]
        known = [_referred_to(function) for function in code if inspect.isfunction(function)]
        named = {name: value for names in known for name, value in names.items() if _SAYS_INIT.search(name)}
        if found := [value for value in named.values() if _takes(value, 1) and _sets_weights(value)]:
            return found
    return []


def _own_classes(holder: nn.Module) -> list[type]:
    return [kind for kind in type(holder).__mro__ if not kind.__module__.startswith("torch.nn.")]


def _referred_to(function: types.FunctionType) -> dict[str, types.FunctionType]:
    """The functions to which the code of a function refers by a name."""
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    found = {name: function.__globals__.get(name) for name in _global_names(function.__code__)}
    for name, cell in cells.items():
        with contextlib.suppress(ValueError):  # it has no value yet
            found[name] = cell.cell_contents
    return {name: value for name, value in found.items() if isinstance(value, types.FunctionType)}


def _global_names(code: types.CodeType) -> set[str]:
    """The names that a function's code looks up in its module, also inside the functions that it makes."""
    own = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    inner = (_global_names(part) for part in code.co_consts if isinstance(part, types.CodeType))
    return own.union(*inner)


def _sets_weights(function: Callable[..., object]) -> bool:
    """Whether a function's code speaks of the weights of a module."""
    return not _WEIGHTS.isdisjoint(getattr(read(function, "__code__"), "co_names", ()))


def _own_holders(model: nn.Module, name: str) -> list[nn.Module]:
    """The modules that hold a layer, the nearest first, without torch's own containers."""
    return [module for module in reversed(holders(model, name)) if not type(module).__module__.startswith("torch.nn.")]


def _takes(function: Callable[..., object], count: int) -> bool:
    """Whether a function needs one argument, the first; or for a ``count`` of 0, takes none."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return False
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(needed) == count and needed == (parameters[:1] if count else parameters)


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


# ---- weights that are computed: weight norm, spectral norm, parametrizations

_COMPUTES = "compute_weight"  # the method of a hook that does


def _bare(new: nn.Module, layer: Layer, outputs: int) -> nn.Module:
    """Return a new layer itself, or if its weight is computed (weight norm), a plain layer of its class."""
    names = ("weight", "bias")
    if not (_hooks_that(new, _COMPUTES) or any(parametrize.is_parametrized(new, name) for name in names)):
        return new
    kind: type[nn.Module] = type(new).__bases__[0] if parametrize.is_parametrized(new) else type(new)
    bare: nn.Module = kind.__new__(kind)
    nn.Module.__init__(bare)
    bare.__dict__.update({key: value for key, value in vars(new).items() if not key.startswith("_")})
    for name in names:
        value = getattr(layer.module, name, None)  # of the old layer: what the new one computes from has no values yet
        bare.__dict__.pop(name, None)
        made = None if value is None else _sized(name, value.detach(), layer.outputs, outputs, layer.axis)
        if made is not None and made.dim() > 1 and layer.from_classes:
            made = _sized(name, made, layer.inputs, outputs, 1 - layer.axis)
        setattr(bare, name, None if made is None else nn.Parameter(made))
    return bare


def _hooks_that(layer: nn.Module, method: str) -> list[Any]:
    """The hooks of ``torch.nn.utils`` that mask a weight (pruning), or compute it (weight norm, spectral norm)."""
    return [hook for hook in pre_hooks_of(layer).values() if hasattr(hook, method)]


def _assign(layer: nn.Module, name: str, value: torch.Tensor) -> None:
    """Set a weight, through weight norm or a parametrization where there is one."""
    hooks = {hook.name: hook for hook in _hooks_that(layer, _COMPUTES)}
    if name in hooks:
        _assign_normed(layer, hooks[name], value)
    elif parametrize.is_parametrized(layer, name):
        _assign_parametrized(layer, name, value)
    else:
        getattr(layer, name).copy_(value)


def _assign_normed(layer: nn.Module, hook: Any, value: torch.Tensor) -> None:
    """Set what a hook computes a weight from, and the weight: a spectral norm has a plain one, a weight norm two."""
    plain, direction, length = (getattr(layer, f"{hook.name}_{part}", None) for part in ("orig", "v", "g"))
    if plain is not None:
        plain.copy_(value)
        for _ in range(_POWER_ITERATIONS):
            hook.compute_weight(layer, do_power_iteration=True)
        setattr(layer, hook.name, hook.compute_weight(layer, do_power_iteration=False))
    elif direction is not None and length is not None:
        direction.copy_(value)
        length.copy_(torch.norm_except_dim(value, 2, hook.dim))
        setattr(layer, hook.name, hook.compute_weight(layer))
    else:
        raise HeadError(f"The {type(hook).__name__} on the head can't be set to another weight; remove it first.")


def _assign_parametrized(layer: nn.Module, name: str, value: torch.Tensor) -> None:
    """Set what parametrizations compute a weight from; one without an inverse starts from the weight, as torch does."""
    computed: nn.ModuleList = layer.parametrizations[name]  # type: ignore[index, assignment]  # a ModuleDict of lists
    steps, original = list(computed), parameters_of(computed).get("original")
    try:
        with quiet():
            try:
                setattr(layer, name, value)
            except (NotImplementedError, RuntimeError):
                if original is None or original.shape != value.shape:
                    raise
                original.copy_(value)
        if getattr(layer, name).shape != value.shape:
            raise ValueError(f"{tuple(value.shape)} became {tuple(getattr(layer, name).shape)}")
        for step in steps:
            power_iterate(step, value, _POWER_ITERATIONS)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        kinds = ", ".join(type(step).__name__ for step in steps)
        raise HeadError(
            f"The {name} of the head is computed by {kinds}, which accepts no other shape ({error}). Remove it with "
            "torch.nn.utils.parametrize.remove_parametrizations, replace the head, and add it again."
        ) from error
