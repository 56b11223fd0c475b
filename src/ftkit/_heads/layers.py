"""The layers of a model that multiply by a weight, and making one anew with another number of outputs."""

from __future__ import annotations

import copy
import inspect
import logging
import re
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from ftkit.errors import HeadError

__all__ = ["Layer", "Part", "layers", "own_tensors", "renewed", "sizes", "with_channels"]

_log = logging.getLogger("ftkit")


@dataclass(frozen=True, eq=False)
class Layer:
    """A module that multiplies by one weight matrix, kernel or table of directions.

    Attributes:
        names: Every dotted name of its modules in the model.
        modules: The module; several where several have the same parameters.
        inputs: How many features or channels it takes.
        outputs: How many it gives.
        axis: The axis of the weight that counts the outputs.
        sure: Whether the module itself tells which axis that is; otherwise it is the first until a run tells.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    inputs: int
    outputs: int
    axis: int
    sure: bool = True

    @property
    def module(self) -> nn.Module:
        """The first of the modules."""
        return self.modules[0]

    @property
    def name(self) -> str:
        """The first of the names."""
        return self.names[0]

    def turned(self) -> Layer:
        """Return the layer with inputs and outputs the other way round."""
        return replace(self, inputs=self.outputs, outputs=self.inputs, axis=1 - self.axis)


@dataclass(frozen=True, eq=False)
class Part:
    """One layer of a head: ``layer.outputs == times * classes + extra``.

    Attributes:
        layer: The layer.
        times: Outputs for each class: anchors of a detector, coordinates of a box.
        extra: Outputs beside the classes, such as "no object".
        by_class: Whether the outputs of one class are neighbours (boxes), or those of one anchor.
    """

    layer: Layer
    times: int = 1
    extra: int = 0
    by_class: bool = False


def layers(model: nn.Module) -> list[Layer]:
    """List the layers of a model in order of registration."""
    found: dict[object, tuple[list[str], dict[nn.Module, None], tuple[int, int, int, bool]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        known = sizes(module)
        if known is not None:
            same = (type(module), *map(id, own_tensors(module).values()))
            names, modules, _ = found.setdefault(same, ([], {}, known))
            names.append(name)
            modules[module] = None
    return [Layer(tuple(names), tuple(modules), *known) for names, modules, known in found.values()]


def own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters that a module itself computes with, under their names in its subtree."""
    found: dict[str, torch.Tensor] = {name: value for name, value in module._parameters.items() if value is not None}
    chain = module._modules.get("parametrizations")
    if chain is not None:
        found |= {f"parametrizations.{name}": value for name, value in chain.named_parameters()}
    return found


_NO_LAYERS = (
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    parametrize.ParametrizationList,
    torch.jit.ScriptModule,
)


def sizes(module: nn.Module) -> tuple[int, int, int, bool] | None:
    """Return inputs, outputs, the outputs' axis and whether that is sure; or None for what is no layer."""
    if isinstance(module, _NO_LAYERS):
        return None
    if any(isinstance(value, nn.parameter.UninitializedParameter) for value in module._parameters.values()):
        return None
    matrix = _weight(module)
    if matrix is None:
        return None
    shape = tuple(matrix.shape)
    if isinstance(module, nn.modules.conv._ConvNd):
        axis = 1 if module.transposed and module.groups == 1 else 0
        return module.in_channels, module.out_channels, axis, True
    if isinstance(module, nn.Linear) or len(shape) != 2:
        return shape[1], shape[0], 0, True
    told = {v for k in ("out_features", "nf", "out_channels") if isinstance(v := getattr(module, k, None), int)}
    told = told or {p.numel() for p in module._parameters.values() if p is not None and p.dim() == 1}  # a bias
    told &= set(shape)
    axis = 1 if told == {shape[1]} != {shape[0]} or hasattr(module, "nf") else 0
    return shape[1 - axis], shape[axis], axis, len(told) == 1 or shape[0] == shape[1]


def _weight(module: nn.Module) -> torch.Tensor | None:
    if any(
        name != "parametrizations" and any(True for _ in child.parameters()) for name, child in module.named_children()
    ):
        return None
    found = [v for k, v in module._parameters.items() if v is not None and v.dim() >= 2 and not k.endswith("_g")]
    chain = module._modules.get("parametrizations")
    if chain is not None:
        with torch.no_grad():
            found += [value for key in chain._modules if (value := getattr(module, key)).dim() >= 2]
    return found[0] if len(found) == 1 else None


# ------------------------------------------------------------------ a layer anew


def renewed(model: nn.Module, part: Part, outputs: int, rows: dict[int, int], thaw: bool) -> nn.Module:
    """Return a layer like the old one with ``outputs`` outputs, initialised."""
    layer = part.layer
    old = layer.module
    pruned = next((hook for hook in old._forward_pre_hooks.values() if hasattr(hook, "apply_mask")), None)
    if pruned is not None:
        raise HeadError(
            f"{layer.name!r} is pruned ({type(pruned).__name__}); end that with torch.nn.utils.prune.remove."
        )
    if isinstance(old, nn.modules.conv._ConvNd) and old.groups > 1:
        raise HeadError(f"{layer.name!r} is a convolution in {old.groups} groups: another count would not fit them.")
    new = _twin(old, layer.outputs, outputs, layer.axis)
    _count_outputs(new, layer.outputs, outputs)
    padding = vars(new).get("padding_idx")
    if padding is not None and padding >= layer.outputs - part.extra:
        vars(new)["padding_idx"] = padding + outputs - layer.outputs
    with torch.no_grad():
        _start(model, part, new)
        if rows:
            _carry(layer, new, rows)
    pairs = zip(old.parameters(), new.parameters(), strict=True)
    for before, after in pairs:
        after.requires_grad_(before.requires_grad or thaw)
    if thaw:  # what freezing hung on the old layer
        for key in [key for key in new._forward_pre_hooks if str(key).startswith("ftkit.")]:
            del new._forward_pre_hooks[key]
        for name in [name for name in vars(new) if name.startswith("_ftkit_")]:
            del new.__dict__[name]
    return new


def _carry(layer: Layer, new: nn.Module, rows: dict[int, int]) -> None:
    """Carry the rows of outputs that stay over from the old layer."""
    fresh, taken = list(rows), list(rows.values())
    computed = {"weight", "bias"} & {name for name in dir(layer.module) if name not in layer.module._parameters}
    for name in (*computed, *layer.module._parameters):
        source, value = getattr(layer.module, name), getattr(new, name)
        axis = 0 if source is not None and source.dim() == 1 else layer.axis
        if source is None or name.endswith(("_g", "_v", "_orig")) or source.shape[axis : axis + 1] != (layer.outputs,):
            continue
        kept = source.detach().index_select(axis, torch.tensor(taken, device=source.device)).to(value.dtype)
        _assign(new, name, value.detach().index_copy(axis, torch.tensor(fresh, device=value.device), kept))


def _count_outputs(layer: nn.Module, before: int, after: int) -> None:
    """Let the attributes of a layer that count its outputs follow."""
    for name in ("out_features", "out_channels", "nf", "num_classes", "num_labels", "n_classes", "num_embeddings"):
        if vars(layer).get(name) == before:
            setattr(layer, name, after)


def _twin(old: nn.Module, before: int, after: int, axis: int) -> nn.Module:
    """Copy a layer with all that hangs on it; where a tensor counts the outputs it has the new count."""
    new = old.__class__.__new__(old.__class__)
    for key, value in vars(old).items():
        if isinstance(value, types.MethodType) and value.__self__ is old:
            new.__dict__[key] = types.MethodType(value.__func__, new)
        else:
            new.__dict__[key] = copy.copy(value) if isinstance(value, dict) and key.startswith("_") else value

    def sized(name: str, tensor: torch.Tensor) -> torch.Tensor:
        shape = list(tensor.shape)
        along = 0 if tensor.dim() == 1 else axis
        inward = tensor.dim() == 1 and name.endswith(
            "_v"
        )  # what a spectral norm iterates on, on the side of the inputs
        if tensor.dim() > along and shape[along] == before and not inward:
            shape[along] = after
            # A vector that a spectral norm iterates on must not be zero; whatever else is set later.
            return torch.full_like(tensor.detach().new_empty(shape), after**-0.5)
        return tensor.detach().clone()

    new.__dict__["_parameters"] = {
        name: None if value is None else nn.Parameter(sized(name, value), requires_grad=value.requires_grad)
        for name, value in old._parameters.items()
    }
    new.__dict__["_buffers"] = {
        name: None if value is None else sized(name, value) for name, value in old._buffers.items()
    }
    new.__dict__["_modules"] = {
        name: None if child is None else _twin(child, before, after, axis) for name, child in old._modules.items()
    }
    for key, value in vars(old).items():  # the weight that old-style weight norm computes before each forward
        if isinstance(value, torch.Tensor):
            new.__dict__[key] = sized(key, value)
    return new


def _start(model: nn.Module, part: Part, new: nn.Module) -> None:
    """Initialise a new layer as the model would have: its class's way, then by what the model's own code does."""
    old = part.layer.module
    bare = _bare(new)
    reset = getattr(bare, "reset_parameters", None)
    if callable(reset):
        reset()
    else:
        for name, value in bare.named_parameters():
            if value.shape == getattr(old, name).shape:
                continue  # a temperature or a scale, which the classes have no part in
            nn.init.zeros_(value) if value.dim() < 2 else nn.init.kaiming_uniform_(value, a=5**0.5)
    own = _own_init(model, part.layer.name)
    if own is not None:
        before = [value.detach().clone() for value in bare.parameters()]
        try:
            own(bare)
        except Exception as error:  # noqa: BLE001 -- it was written for other layers; the class's way stands
            _log.debug("the model's own %r does not initialise %r: %s", own, part.layer.name, error)
            for value, previous in zip(bare.parameters(), before, strict=True):
                value.copy_(previous)
    made = _as_constructed(model, part, bare)
    if made is not None and own is None:
        for name, value in bare.named_parameters():
            value.copy_(made[name].to(value.device, value.dtype))
    for name, value in bare.named_parameters():
        source = getattr(old, name)
        if value.device.type != "meta" and source.numel() > 1 and bool((source == source.flatten()[0]).all()):
            value.fill_(source.flatten()[0])  # a constant start that no training has moved yet
    if bare is not new:
        for name, value in bare.named_parameters():
            _assign(new, name, value.detach())


def _bare(layer: nn.Module) -> nn.Module:
    """Return the layer itself, or if its weight is computed (weight norm), a plain layer of its class."""
    computed = [name for name in ("weight", "bias") if parametrize.is_parametrized(layer, name)]
    computed += [hook.name for hook in _norm_hooks(layer)]
    if not computed:
        return layer
    kind = type(layer)
    if parametrize.is_parametrized(layer):
        kind = kind.__bases__[0]
    bare: nn.Module = kind.__new__(kind)
    nn.Module.__init__(bare)
    bare.__dict__.update({key: value for key, value in vars(layer).items() if not key.startswith("_")})
    bare.__dict__.pop("parametrizations", None)
    for name in ("weight", "bias"):
        value = getattr(layer, name, None)
        bare.__dict__.pop(name, None)
        setattr(bare, name, None if value is None else nn.Parameter(value.detach().clone()))
    return bare


def _norm_hooks(layer: nn.Module) -> list[Any]:
    """The hooks of ``torch.nn.utils.weight_norm``, which keep a weight as length and direction."""
    return [hook for hook in layer._forward_pre_hooks.values() if hasattr(hook, "compute_weight")]


def _assign(layer: nn.Module, name: str, value: torch.Tensor) -> None:
    """Set a weight, through weight norm or a parametrization where there is one."""
    hook = next((hook for hook in _norm_hooks(layer) if hook.name == name), None)
    if hook is not None:
        plain = getattr(layer, f"{name}_orig", None)
        if plain is not None:
            plain.copy_(value)
            for _ in range(15):  # a spectral norm improves its estimate with each forward in training
                hook.compute_weight(layer, do_power_iteration=True)
            setattr(layer, name, hook.compute_weight(layer, do_power_iteration=False))
            return
        direction, length = getattr(layer, f"{name}_v", None), getattr(layer, f"{name}_g", None)
        if direction is None or length is None:
            raise HeadError(f"The {type(hook).__name__} on the head can't be set to another weight; remove it first.")
        direction.copy_(value)
        length.copy_(torch.norm_except_dim(value, 2, hook.dim))
        setattr(layer, name, hook.compute_weight(layer))
    elif parametrize.is_parametrized(layer, name):
        steps = list(layer.parametrizations[name])  # type: ignore[index]  # a ModuleDict of lists
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                setattr(layer, name, value)
            if getattr(layer, name).shape != value.shape:
                raise ValueError(f"{tuple(value.shape)} became {tuple(getattr(layer, name).shape)}")
            for step in steps:
                iterate = getattr(step, "_power_method", None)
                if iterate is not None:  # as a spectral norm does at its start
                    iterate(step._reshape_weight_to_matrix(value), 15)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            kinds = ", ".join(type(step).__name__ for step in steps)
            raise HeadError(
                f"The {name} of the head is made by {kinds}, which takes no other shape ({error}). Undo it with "
                "torch.nn.utils.parametrize.remove_parametrizations, replace the head, and put it on again."
            ) from error
    else:
        getattr(layer, name).copy_(value)


def _own_init(model: nn.Module, name: str) -> Callable[[nn.Module], object] | None:
    """Find how the model's own code initialises a layer.

    That is the method ``_init_weights(module)`` of what holds the layer (the habit of transformers and timm), or the
    one function of the source file that holds its class whose name says so (``_init_weights``, ``_xavier_init``).
    """
    holders = _holders(model, name)
    for holder in (*holders, model):
        method: Callable[[nn.Module], object] | None = getattr(holder, "_init_weights", None)
        if method is not None and _takes_one(method):
            return method
    for holder in holders:
        namespace = vars(inspect.getmodule(type(holder)) or object)
        found: list[Callable[[nn.Module], object]] = [
            value
            for key, value in namespace.items()
            if inspect.isfunction(value)
            and value.__module__ == type(holder).__module__
            and re.search(r"(^|_)init(ialize)?_weights?|weights?_init|_init$", key)
            and _takes_one(value)
        ]
        if len(found) == 1:
            return found[0]
    return None


def _holders(model: nn.Module, name: str) -> list[nn.Module]:
    """The modules that hold a layer, the nearest first, without torch's own containers."""
    steps = name.split(".")[:-1]
    chain = [model]
    for step in steps:
        chain.append(chain[-1]._modules[step])  # type: ignore[arg-type]  # a name of a module leads past modules
    return [module for module in reversed(chain) if not type(module).__module__.startswith("torch.nn.")]


def _takes_one(function: Callable[..., object]) -> bool:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return False
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(needed) == 1 and parameters[0] is needed[0]


def _as_constructed(model: nn.Module, part: Part, bare: nn.Module) -> dict[str, torch.Tensor] | None:
    """Build the module that holds the layer once more, and return how its constructor starts the layer.

    So a focal-loss detector's prior comes along, which is written nowhere else. Only for a small holder below the
    model, all of whose arguments can be read off it.
    """
    name = part.layer.name
    holder = next(iter(_holders(model, name)), model)
    if (
        holder is model
        or next(bare.parameters()).device.type == "meta"
        or sum(p.numel() for p in holder.parameters()) > 2e7
    ):
        return None
    stem = next(n for n, module in model.named_modules() if module is holder)
    arguments: dict[str, Any] = {}
    for key, parameter in inspect.signature(type(holder).__init__).parameters.items():
        if key == "self" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        told = vars(holder).get(key)
        if key in ("in_channels", "in_features", "in_planes"):
            arguments[key] = layers(holder)[0].inputs
        elif type(told) in (int, float, bool, str):
            arguments[key] = told
        elif parameter.default is parameter.empty:
            return None
    counts = (
        [key for key, value in arguments.items() if part.times * value + part.extra == part.layer.outputs]
        if all(type(v) is int for v in arguments.values())
        else []
    )
    outputs = dict(bare.named_parameters())["weight"].shape[part.layer.axis]
    if len(counts) != 1:
        return None
    arguments[counts[0]] = (outputs - part.extra) // part.times
    try:
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            again = type(holder)(**arguments).get_submodule(name.removeprefix(stem).lstrip("."))
    except Exception as error:  # noqa: BLE001 -- a constructor that wants more than its attributes tell
        _log.debug("%s can't be built once more: %s", type(holder).__name__, error)
        return None
    made = dict(again.named_parameters())
    wanted = dict(bare.named_parameters())
    if made.keys() != wanted.keys() or any(made[key].shape != wanted[key].shape for key in made):
        return None
    return {key: value.detach() for key, value in made.items()}


def with_channels(entry: Layer, channels: int) -> nn.Module:
    """Return a convolution like the old one for another number of channels, with its filters."""
    old = entry.module
    axis = 1 - entry.axis
    if getattr(old, "groups", 1) != 1:
        raise HeadError(f"{entry.name!r} is a convolution in {old.groups} groups: its channels are fixed.")
    new = _twin(old, entry.inputs, channels, axis)
    vars(new)["in_channels"] = channels
    with torch.no_grad():
        source: torch.Tensor = getattr(old, "weight").detach()  # noqa: B009 -- it may be parametrized
        turn = torch.arange(channels, device=source.device) % entry.inputs
        taken = source.index_select(axis, turn) * (entry.inputs / channels)
        _assign(new, "weight", source.sum(axis, keepdim=True) if channels == 1 else taken)
    for before, after in zip(old.parameters(), new.parameters(), strict=True):
        after.requires_grad_(before.requires_grad)
    return new
