"""Layers described as plain values, and built again from them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection, Iterator
from typing import Any, Final, TypeAlias

import torch
from torch import nn

from ftkit._torch import children_of
from ftkit.errors import CheckpointError

Description: TypeAlias = list[Any]
"""The name of a layer's class, and the arguments that make it; a ``Sequential``'s are descriptions by name."""

_PLAIN: Final = (int, float, bool, str, type(None))
_MOST_AXES: Final = 8  # of an argument that has a number for each axis
_NOT_OURS: Final = frozenset(("self", "device", "dtype"))  # arguments that say where a layer is, not what it is
# What is made of other modules, or of as many parts as a number says.
_COMPOSED: Final = (nn.RNNBase, nn.modules.lazy.LazyModuleMixin)
#: What a rebuilt head fails with.
BUILD_ERRORS: Final = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError
)  # fmt: skip


def of_torch(kind: type[nn.Module]) -> bool:
    """Whether a class of modules is one of torch.nn's."""
    return kind.__module__.startswith("torch.nn.modules.") and getattr(nn, kind.__name__, None) is kind


def arguments_of(kind: type[nn.Module]) -> tuple[str, ...] | None:
    """The arguments of a plain layer's constructor; None of what is no plain layer of torch.nn.

    torch declares the attributes of its layers, for TorchScript. A plain layer declares what it was made from; what is
    made of other modules does not.
    """
    if not of_torch(kind) or kind is nn.Module or issubclass(kind, _COMPOSED):
        return None
    declared, taken = _declared(kind), _taken(kind)  # type: ignore[arg-type]  # mypy takes no class for hashable
    needed = {parameter.name for parameter in taken if parameter.default is parameter.empty}
    names = tuple(parameter.name for parameter in taken)
    return names if needed <= declared and (not names or not declared.isdisjoint(names)) else None


def settings_of(kind: type[nn.Module]) -> frozenset[str]:
    """The attributes by which a module of torch.nn may say how it computes: those declared, and its arguments."""
    taken = _taken(kind)  # type: ignore[arg-type]  # mypy takes no class for hashable
    return frozenset((*_declared(kind), *(parameter.name for parameter in taken)))


def _declared(kind: type[nn.Module]) -> set[str]:
    parts = [part for part in kind.__mro__ if part is not nn.Module]
    return {name for part in parts for name in (*_own(part, "__annotations__"), *_own(part, "__constants__"))}


@functools.cache
def _taken(kind: type[nn.Module]) -> list[inspect.Parameter]:
    """What a constructor takes by name, and is no place."""
    taken = inspect.signature(kind.__init__).parameters.values()
    named = [one for one in taken if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
    return [one for one in named if one.name not in _NOT_OURS]


def _own(kind: type, name: str) -> Collection[str]:
    found: Collection[str] = vars(kind).get(name, ())
    return found


def is_plain(value: object) -> bool:
    """Whether a value is a number, a text, a switch, nothing, or a few of these."""
    if isinstance(value, tuple | list):
        return len(value) <= _MOST_AXES and all(type(one) in _PLAIN for one in value)
    return type(value) in _PLAIN


def descriptions(model: nn.Module, changed: Collection[str], names: Collection[str]) -> dict[str, Description]:
    """Describe the largest parts of a model that changed whole and consist of plain layers.

    Example:
        >>> import torch
        >>> from ftkit._deltas.layers import descriptions
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> descriptions(model, {"1.weight", "1.bias"}, list(model.state_dict()))
        {'1': ['Linear', {'in_features': 4, 'out_features': 2}]}
    """
    return dict(_described(model, "", changed, names))


def _described(
    module: nn.Module, prefix: str, changed: Collection[str], names: Collection[str]
) -> Iterator[tuple[str, Description]]:
    here = {name for name in names if name.startswith(prefix)}
    same = here.difference(changed)
    if same == here:
        return
    description = _describe(module) if prefix and not same else None
    if description is not None:
        yield prefix[:-1], description
        return
    for name, child in module.named_children():
        yield from _described(child, f"{prefix}{name}.", changed, here)


def _describe(module: nn.Module) -> Description | None:
    """A module as plain values, or None if it is not made of plain layers alone."""
    kind = type(module).__name__
    if type(module) is nn.Sequential:
        # Not named_children(), which passes by what stands there a second time: an activation that is used twice.
        parts = {name: part and _describe(part) for name, part in children_of(module).items()}
        return None if None in parts.values() else [kind, parts]
    names = arguments_of(type(module))
    if names is None:
        return None
    # Another version of torch may not know an argument that is as it is by default.
    kept = {name: getattr(module, name, default) for name, default in _defaults(type(module)).items()}
    arguments = {
        name: _listed(value)
        for name, value in kept.items()
        if name != "bias" and is_plain(value) and value != _defaults(type(module))[name]
    }
    # No attribute keeps bias= as it was given.
    if "bias" in names and getattr(module, "bias", None) is None and getattr(module, "weight", None) is not None:
        arguments["bias"] = False
    description = [kind, arguments]
    return description if _makes(description, module) else None


def _defaults(kind: type[nn.Module]) -> dict[str, Any]:
    taken = _taken(kind)  # type: ignore[arg-type]  # mypy takes no class for hashable
    return {parameter.name: parameter.default for parameter in taken}


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, tuple | list) else value


def _makes(description: Description, module: nn.Module) -> bool:
    """Whether a layer is described in full: built from that, it has the same attributes, and tensors of its shapes."""
    try:
        with torch.device("meta"):
            again = build(description)
    except BUILD_ERRORS:
        return False
    own = {name: value for name, value in vars(again).items() if is_plain(value)}
    shapes = [{name: value.shape for name, value in one.state_dict().items()} for one in (again, module)]
    kept = all(vars(module).get(name) == value for name, value in own.items() if name != "training" and name[0] != "_")
    return kept and shapes[0] == shapes[1] and not (children_of(again) or children_of(module))


def build(description: Description) -> nn.Module:
    """Build the layer that a description describes.

    Raises:
        CheckpointError: It is a layer that this version does not know.
    """
    kind, arguments = description
    if kind == "Sequential":
        sequence = nn.Sequential()
        for name, part in arguments.items():
            sequence.add_module(name, build(part))
        return sequence
    known = getattr(nn, kind, None)
    names = arguments_of(known) if isinstance(known, type) and issubclass(known, nn.Module) else None
    if known is None or names is None:
        raise CheckpointError(f"The file describes a layer {kind!r} that this version of ftkit does not know.")
    for name, value in arguments.items():
        if name not in names or not is_plain(value):
            raise TypeError(f"{kind} takes no {name!r} of {type(value).__name__} that a file may give")
    return known(**arguments)  # type: ignore[no-any-return]
