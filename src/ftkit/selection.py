"""Selectors: the one place that turns "which part of the model?" into modules and parameters."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from torch import nn

from ftkit._arguments import call, came
from ftkit._reports import to_text
from ftkit._torch import compiled_from
from ftkit._wording import plural, some
from ftkit.errors import FtkitError, SelectionError, did_you_mean

__all__ = ["HasModules", "Selection", "Selector", "compile_pattern", "select", "tied", "unwrap"]


@runtime_checkable
class HasModules(Protocol):
    """A group of modules of the model, such as a :class:`~ftkit.Head`, that can be used as a selector."""

    @property
    def modules(self) -> Collection[nn.Module]:
        """The modules in the group."""


Selector: TypeAlias = (
    str
    | Iterable["Selector"]
    | re.Pattern[str]
    | type[nn.Module]
    | nn.Module
    | nn.Parameter
    | HasModules
    | Callable[[str, nn.Module], bool]
)
"""Which part of a model to select.

- ``"layer4"``, ``"features.*"``, ``"**.norm?"``: a pattern over dotted names. ``*`` and ``?`` stay
  within one component, ``**`` crosses dots. A matched module selects its whole subtree, a matched
  parameter or buffer only itself. ``layer1`` never matches ``layer10``.
- ``re.compile(r"blocks\\.([89]|1\\d)\\.")``: every parameter and buffer in whose dotted name it finds a match.
- ``nn.BatchNorm2d``: every module of that type.
- A module, a parameter or a ``Head``: exactly that.
- ``lambda name, module: ...``: every module for which it returns true. The model itself has the name ``""``.
- A list or tuple of selectors: whatever any of them selects.
"""

T = TypeVar("T")
_Thing: TypeAlias = nn.Module | torch.Tensor


@dataclass(frozen=True, repr=False)
class Selection:
    """What selectors match in a model, each under its first name, in the model's order.

    Attributes:
        modules: The modules that are entirely selected: the matched ones with their subtrees, and
            those whose parameters are all selected.
        parameters: The selected parameters. A tied one appears once.
        buffers: The selected buffers.
    """

    modules: dict[str, nn.Module]
    parameters: dict[str, nn.Parameter]
    buffers: dict[str, torch.Tensor]

    def __repr__(self) -> str:
        modules, parameters = plural(len(self.modules), "module"), plural(len(self.parameters), "parameter")
        return to_text([f"<Selection of {modules}, {parameters} and {plural(len(self.buffers), 'buffer')}>"])


def select(model: nn.Module, *selectors: Selector) -> Selection:
    """Find the modules, parameters and buffers that any of the selectors matches.

    A wrapped model (``torch.compile``, ``DistributedDataParallel``, ``DataParallel``) is unwrapped
    first: names are those of the model inside. A tied parameter, or a module shared by several
    parents, can be selected by any of its names.

    Args:
        model: Any module.
        *selectors: What to select: patterns, types, modules, ... (:data:`~ftkit.selection.Selector`). Without
            any, nothing is selected.

    Raises:
        SelectionError: One of the selectors matches nothing; the message suggests the closest names.

    Example:
        >>> import torch
        >>> from ftkit.selection import select
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
        >>> list(select(model, "1").parameters)
        ['1.weight', '1.bias']
        >>> list(select(model, "**.bias", torch.nn.Linear).parameters)
        ['0.weight', '0.bias', '1.bias']
        >>> select(model, "1.wieght")
        Traceback (most recent call last):
            ...
        ftkit.errors.SelectionError: '1.wieght' matches no module, parameter or buffer ... Did you mean '1.weight' ...
    """
    parts = _Inventory(unwrap(model))
    chosen: set[int] = set()
    for selector in selectors:
        chosen |= _ids(parts.find(selector))
    return parts.close(chosen)


def tied(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the tied parameters of a model: the first name of each, with its other names.

    Example:
        >>> import torch
        >>> from ftkit.selection import tied
        >>> model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(5, 3), "out": torch.nn.Linear(3, 5)})
        >>> model["out"].weight = model["embed"].weight
        >>> tied(model)
        {'embed.weight': ('out.weight',)}
    """
    names: dict[int, list[str]] = {}
    for name, parameter in unwrap(model).named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {first: tuple(others) for first, *others in names.values() if others}


def unwrap(model: object) -> nn.Module:
    """Return the model inside ``torch.compile`` and data-parallel wrappers, or the model itself.

    Raises:
        FtkitError: ``model`` is not a module.

    Example:
        >>> import torch
        >>> from ftkit.selection import unwrap
        >>> layer = torch.nn.Linear(2, 2)
        >>> unwrap(torch.nn.DataParallel(layer)) is layer
        True
    """
    if not isinstance(model, nn.Module):
        advice = next((advice for kind, advice in _NO_MODELS if isinstance(model, kind)), "")
        raise FtkitError(f"The model must be a torch.nn.Module, but this is {came(model)}{advice}.")
    inner: nn.Module | None = model
    while inner is not None:
        model, inner = inner, _wrapped_by(inner)
    return model


# What people pass for a model, and what they do instead.
_NO_MODELS: Final[tuple[tuple[type, str], ...]] = (
    (type, ": call it"),
    (Mapping, ": load_weights puts a state dict into a model, and save_weights saves one"),
    (str, ": load or build the model first"),
)


def _wrapped_by(module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner: nn.Module = module.module
        return inner
    return compiled_from(module)


@functools.lru_cache(maxsize=256)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Translate a pattern over dotted names into a regular expression for ``fullmatch``.

    ``?`` matches one character and ``*`` any run of characters, both within one component; ``**``
    matches any run of characters, including dots. As a whole component, ``*`` matches exactly one
    component and ``**`` any number of them, including none.

    Example:
        >>> from ftkit.selection import compile_pattern
        >>> [bool(compile_pattern("**.norm?").fullmatch(name)) for name in ("norm1", "a.b.norm2", "a.norm10")]
        [True, True, False]
    """
    if not isinstance(pattern, str):
        raise SelectionError(f"A pattern is a string such as 'layer4.*', not {came(pattern)}.")
    return re.compile(_TOKEN.sub(_translated, re.sub(r"\*{3,}", "**", pattern)), re.DOTALL)


# What is wild in a pattern, and the regular expression for it; the first that fits counts. A component starts where no
# other character than a dot stands before, and ends where none stands behind.
_WILD: Final = {
    r"(?<![^.])\*\*\.": r"(?:[^.]+\.)*",  # "**.a": each component with the dot behind it
    r"\.\*\*\Z": r"(?:\.[^.]+)*",  # "a.**": with the dot before it, as "a" itself is meant too
    r"(?<![^.])\*\*\Z": r"(?:[^.]+(?:\.[^.]+)*)?",  # "**"
    r"(?<![^.])\*(?![^.])": r"[^.]+",  # "a.*"
    r"\*\*": r".*",  # "enc**weight"
    r"\*": r"[^.]*",  # "norm*"
    r"\?": r"[^.]",  # "norm?"
}
_MEANINGS: Final = tuple(_WILD.values())
_TOKEN: Final = re.compile("|".join(f"({token})" for token in _WILD) + "|.", re.DOTALL)


def _translated(token: re.Match[str]) -> str:
    return _MEANINGS[token.lastindex - 1] if token.lastindex else re.escape(token[0])


def _ids(things: Iterable[object]) -> set[int]:
    """What tells modules and tensors apart; their ``==`` is up to each class."""
    return set(map(id, things))


class _Inventory:
    """Every module, parameter and buffer of a model, under all of its names."""

    def __init__(self, model: nn.Module) -> None:
        self.kind = type(model).__name__
        self.children = [repr(name) for name, _ in model.named_children()]
        self.modules = list(model.named_modules(remove_duplicate=False))
        self.parameters = list(model.named_parameters(remove_duplicate=False))
        self.buffers = list(model.named_buffers(remove_duplicate=False))
        self.tensors: list[tuple[str, torch.Tensor]] = [*self.parameters, *self.buffers]

    def find(self, selector: Selector) -> list[_Thing]:
        """Find what ``selector`` matches; subtrees are not followed here."""
        kind = next(kind for kind in _KINDS if isinstance(selector, kind.type))
        found = kind.find(self, selector)
        if not found:
            raise SelectionError(kind.nothing(self, selector))
        return found

    def close(self, chosen: set[int]) -> Selection:
        """Follow subtrees down, and full subtrees up; name everything by its first name."""
        inside: set[int] = set()
        for _, module in self.modules:
            if id(module) in chosen and id(module) not in inside:
                inside |= _ids((*module.modules(), *module.parameters(), *module.buffers()))
        inside |= chosen
        for _, module in self.modules:
            own = _ids(module.parameters()) or _ids(module.buffers())
            if own and own <= inside:
                inside |= _ids(module.modules())
        return Selection(*(_first_names(named, inside) for named in (self.modules, self.parameters, self.buffers)))


def _first_names(named: Iterable[tuple[str, T]], wanted: set[int]) -> dict[str, T]:
    first: dict[int, tuple[str, T]] = {}
    for name, thing in named:
        first.setdefault(id(thing), (name, thing))
    return dict(pair for one, pair in first.items() if one in wanted)


# ---- the kinds of selectors: what each finds, and what is said where that is nothing


def _where(named: Iterable[tuple[str, _Thing]], test: Callable[[str, Any], object]) -> list[_Thing]:
    return [thing for name, thing in named if test(name, thing)]


def _find_by_pattern(parts: _Inventory, pattern: str) -> list[_Thing]:
    # An empty string is a slip, not the whole model, though that is the model's own name.
    named = [*parts.modules, *parts.tensors] if pattern else parts.tensors
    return _where(named, lambda name, _: compile_pattern(pattern).fullmatch(name))


def _find_module(parts: _Inventory, module: nn.Module) -> list[_Thing]:
    wanted = _ids((module, unwrap(module)))
    return _where(parts.modules, lambda _, one: id(one) in wanted)


def _find_by_predicate(parts: _Inventory, predicate: Callable[[str, nn.Module], bool]) -> list[_Thing]:
    def is_meant(name: str, module: nn.Module) -> object:
        return call("A selector", predicate, name, module, takes="name, module", error=SelectionError)

    return _where(parts.modules, is_meant)


def _find_each(parts: _Inventory, selectors: Iterable[Selector]) -> list[_Thing]:
    return list(itertools.chain.from_iterable(map(parts.find, selectors)))


def _no_name(parts: _Inventory, pattern: str) -> str:
    hint = did_you_mean(pattern, (name for name, _ in (*parts.modules, *parts.tensors) if name))
    if not hint and "[" in pattern:
        hint = " For character classes use re.compile(...)."
    if not hint and parts.children:
        hint = f" Its children are {some(parts.children, 8)}."
    return f"{pattern!r} matches no module, parameter or buffer of the {parts.kind}.{hint}"


def _no_tensor(parts: _Inventory, expression: re.Pattern[str]) -> str:
    hint = f" Its names look like {parts.tensors[0][0]!r}." if parts.tensors else " It has none."
    return f"The regular expression {expression.pattern!r} matches no parameter or buffer of the {parts.kind}.{hint}"


def _no_such_type(parts: _Inventory, kind: type[nn.Module]) -> str:
    types = sorted({type(module).__name__ for _, module in parts.modules})
    hint = did_you_mean(kind.__name__, types) or f" It contains {', '.join(types[:8])}."
    return f"The {parts.kind} has no module of type {kind.__name__}.{hint}"


def _foreign_parameter(parts: _Inventory, parameter: nn.Parameter) -> str:
    return f"This parameter of shape {tuple(parameter.shape)} is not part of the {parts.kind}."


def _foreign_module(parts: _Inventory, module: nn.Module) -> str:
    return (
        f"This {type(module).__name__} is not part of the {parts.kind}: it belongs to another model or has been "
        "replaced. Select by name, or take the module from this model."
    )


def _never_true(parts: _Inventory, predicate: object) -> str:
    return f"The predicate {getattr(predicate, '__name__', predicate)!r} is true for no module of the {parts.kind}."


def _empty(_: _Inventory, several: object) -> str:
    return f"An empty {type(several).__name__} selects nothing: leave it out."


def _no_selector(_: _Inventory, thing: object) -> str:
    return (
        f"{came(thing)} is not a selector: expected a name or pattern, re.compile(...), a module type, "
        "a module or parameter of the model, a Head, or a function of (name, module)."
    )


class _Kind(NamedTuple):
    type: Any
    find: Callable[[_Inventory, Any], list[_Thing]]
    nothing: Callable[[_Inventory, Any], str]


# The first that fits counts: modules and types can be called too, and some modules are iterable.
_KINDS: Final = (
    _Kind(str, _find_by_pattern, _no_name),
    _Kind(re.Pattern, lambda parts, text: _where(parts.tensors, lambda name, _: text.search(name)), _no_tensor),
    _Kind(nn.Parameter, lambda parts, it: _where(parts.parameters, lambda _, one: one is it), _foreign_parameter),
    _Kind(nn.Module, _find_module, _foreign_module),
    _Kind(type, lambda parts, kind: _where(parts.modules, lambda _, one: isinstance(one, kind)), _no_such_type),
    _Kind((bytes, Mapping, torch.Tensor), lambda *_: [], _no_selector),
    _Kind(Callable, _find_by_predicate, _never_true),
    _Kind(HasModules, lambda parts, bundle: _find_each(parts, bundle.modules), _empty),
    _Kind(Iterable, _find_each, _empty),
    _Kind(object, lambda *_: [], _no_selector),
)
