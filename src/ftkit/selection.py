"""Selectors: the one place that turns "which part of the model?" into modules and parameters."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar, cast, runtime_checkable

import torch
from torch import nn

from ftkit.errors import FtkitError, SelectionError, did_you_mean

__all__ = ["HasModules", "Selection", "Selector", "compile_pattern", "select", "tied", "unwrap"]


@runtime_checkable
class HasModules(Protocol):
    """What a :class:`~ftkit.Head` is to a selector: a bundle of modules of the model."""

    @property
    def modules(self) -> Collection[nn.Module]:
        """The modules themselves."""


Selector: TypeAlias = (
    str
    | re.Pattern[str]
    | type[nn.Module]
    | nn.Module
    | nn.Parameter
    | HasModules
    | Callable[[str, nn.Module], bool]
    | Iterable["Selector"]
)
"""Which part of a model is meant.

- ``"layer4"``, ``"features.*"``, ``"**.norm?"``: a pattern over dotted names. ``*`` and ``?`` stay
  inside one component, ``**`` crosses dots. A matched module means its whole subtree, a matched
  parameter or buffer means itself. ``layer1`` never matches ``layer10``.
- ``re.compile(r"blocks\\.([89]|1\\d)\\.")``: ``search`` in the dotted names of parameters and buffers.
- ``nn.BatchNorm2d``: every module of that type. A module, a parameter or a ``Head``: that.
- ``lambda name, module: ...``: every module for which it is true, the model itself included, under
  the name ``""``.
- A list or tuple of selectors: what any of them selects.
"""

T = TypeVar("T")


@dataclass(frozen=True)
class Selection:
    """What selectors picked out of a model, under each thing's first name, in the model's order.

    Attributes:
        modules: The modules that lie wholly inside the selection: the matched ones with their
            subtrees, and those of which every parameter is selected.
        parameters: The selected parameters. A tied one counts once.
        buffers: The selected buffers.
    """

    modules: dict[str, nn.Module]
    parameters: dict[str, nn.Parameter]
    buffers: dict[str, torch.Tensor]


def select(model: nn.Module, *selectors: Selector) -> Selection:
    """Find the modules, parameters and buffers that any of the selectors means.

    A wrapped model (``torch.compile``, ``DistributedDataParallel``, ``DataParallel``) is looked at
    through its wrapper: names are those of the model inside. Tied parameters, and modules shared by
    several parents, are one thing that any of its names selects.

    Args:
        model: Any module.
        *selectors: See :data:`~ftkit.selection.Selector`. None at all selects nothing.

    Raises:
        SelectionError: One of the selectors matches nothing; the message names the closest names.

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
    parts = _Parts(unwrap(model))
    modules: set[int] = set()
    tensors: set[int] = set()
    for selector in selectors:
        parts.match(selector, modules, tensors)
    return parts.close(modules, tensors)


def tied(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the tied parameters of a model: each one's first name, and its other names.

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
        FtkitError: This is no model.

    Example:
        >>> import torch
        >>> from ftkit.selection import unwrap
        >>> layer = torch.nn.Linear(2, 2)
        >>> unwrap(torch.nn.DataParallel(layer)) is layer
        True
    """
    if not isinstance(model, nn.Module):
        came = f"the class {model.__name__}: call it" if isinstance(model, type) else f"a {type(model).__name__}"
        raise FtkitError(f"The model must be a torch.nn.Module, but this is {came}.")
    while True:
        inner = None if isinstance(model, torch.jit.ScriptModule) else model._modules.get("_orig_mod")
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


@functools.lru_cache(maxsize=256)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Translate a pattern over dotted names into a regular expression for ``fullmatch``.

    ``?`` stands for one character and ``*`` for any run of characters, of one component; ``**`` for
    any run of characters, dots included. As a whole component ``*`` is exactly one component, and
    ``**`` any number of them, none included.

    Example:
        >>> from ftkit.selection import compile_pattern
        >>> [bool(compile_pattern("**.norm?").fullmatch(name)) for name in ("norm1", "a.b.norm2", "a.norm10")]
        [True, True, False]
    """
    pieces: list[str] = []
    components = re.sub(r"\*{3,}", "**", pattern).split(".")
    for index, component in enumerate(components):
        last = index == len(components) - 1
        if component == "**" and not last:
            pieces.append(r"(?:[^.]+\.)*")
            continue
        if component == "**":
            # "a.**" means a itself too, so the dot before it belongs to what may be missing.
            if pieces and pieces[-1] == r"\.":
                pieces[-1] = r"(?:\.[^.]+)*"
            else:
                pieces.append(r"(?:[^.]+(?:\.[^.]+)*)?")
            continue
        pieces.append(r"[^.]+" if component == "*" else _component(component))
        if not last:
            pieces.append(r"\.")
    return re.compile("".join(pieces), re.DOTALL)


def _component(text: str) -> str:
    tokens = re.findall(r"\*{2,}|\*|\?|[^*?]+", text, re.DOTALL)
    wild = {"*": "[^.]*", "?": "[^.]"}
    return "".join(".*" if token.startswith("**") else wild.get(token) or re.escape(token) for token in tokens)


class _Parts:
    """Every module, parameter and buffer of a model, under all of its names."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = list(model.named_modules(remove_duplicate=False))
        self.parameters = list(model.named_parameters(remove_duplicate=False))
        self.buffers = list(model.named_buffers(remove_duplicate=False))

    def match(self, selector: Selector, modules: set[int], tensors: set[int]) -> None:
        """Add what ``selector`` matches, as identities; subtrees are not followed here."""
        found_modules: Iterable[nn.Module] = ()
        found_tensors: Iterable[torch.Tensor] = ()
        if isinstance(selector, str):
            pattern = compile_pattern(selector)
            if selector:  # an empty string is a slip, not the whole model
                found_modules = [module for name, module in self.modules if pattern.fullmatch(name)]
            found_tensors = [tensor for name, tensor in self._tensors() if pattern.fullmatch(name)]
        elif isinstance(selector, re.Pattern):
            found_tensors = [tensor for name, tensor in self._tensors() if selector.search(name)]
        elif isinstance(selector, nn.Parameter):
            found_tensors = [tensor for _, tensor in self.parameters if tensor is selector]
        elif isinstance(selector, nn.Module):
            inner = unwrap(selector)
            found_modules = [module for _, module in self.modules if module is inner or module is selector]
        elif isinstance(selector, type):
            kind = cast("type[nn.Module]", selector)
            found_modules = [module for _, module in self.modules if isinstance(module, kind)]
        elif callable(selector):
            found_modules = [module for name, module in self.modules if selector(name, module)]
        elif isinstance(selector, HasModules | Iterable):
            several = list(selector.modules if isinstance(selector, HasModules) else selector)
            if not several:
                raise SelectionError(f"An empty {type(selector).__name__} selects nothing: leave it out.")
            for one in several:
                self.match(one, modules, tensors)
            return
        else:
            raise SelectionError(
                f"{selector!r} is no selector: expected a name or pattern, re.compile(...), a module type, "
                "a module or parameter of the model, a Head, or a function of (name, module)."
            )
        chosen_modules = {id(module) for module in found_modules}
        chosen_tensors = {id(tensor) for tensor in found_tensors}
        if not chosen_modules and not chosen_tensors:
            raise SelectionError(self._nothing(selector))
        modules |= chosen_modules
        tensors |= chosen_tensors

    def close(self, modules: set[int], tensors: set[int]) -> Selection:
        """Follow subtrees down, and full subtrees up; name everything by its first name."""
        inside: set[int] = set()
        for _, module in self.modules:
            if id(module) in modules and id(module) not in inside:
                for part in module.modules():
                    inside.add(id(part))
                    tensors |= {id(tensor) for tensor in _own_tensors(part)}
        for _, module in self.modules:
            wanted = list(module.parameters()) or list(module.buffers())
            if wanted and all(id(tensor) in tensors for tensor in wanted):
                inside |= {id(part) for part in module.modules()}
        return Selection(
            dict(_first_names(self.modules, inside)),
            dict(_first_names(self.parameters, tensors)),
            dict(_first_names(self.buffers, tensors)),
        )

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.parameters
        yield from self.buffers

    def _nothing(self, selector: Selector) -> str:
        kind = type(self.model).__name__
        names = [name for name, _ in self.modules if name] + [name for name, _ in self._tensors()]
        if isinstance(selector, str):
            hint = did_you_mean(selector, names)
            if not hint and "[" in selector:
                hint = " For character classes use re.compile(...)."
            if not hint:
                top = [name for name, _ in self.model.named_children()]
                hint = (
                    f" Its children are {', '.join(map(repr, top[:8]))}{', ...' if len(top) > 8 else ''}."
                    if top
                    else ""
                )
            return f"{selector!r} matches no module, parameter or buffer of the {kind}.{hint}"
        if isinstance(selector, re.Pattern):
            example = next((name for name, _ in self._tensors()), None)
            hint = f" Its names look like {example!r}." if example else " It has none."
            return f"The regular expression {selector.pattern!r} finds no parameter or buffer of the {kind}.{hint}"
        if isinstance(selector, type):
            types = {type(module).__name__: None for _, module in self.modules}
            hint = did_you_mean(selector.__name__, types) or f" It is made of {', '.join(sorted(types)[:8])}."
            return f"The {kind} has no module of type {selector.__name__}.{hint}"
        if isinstance(selector, nn.Module):
            return (
                f"This {type(selector).__name__} is no part of the {kind}: it belongs to another model or was "
                "replaced since. Select by name, or take the module from this model."
            )
        if isinstance(selector, nn.Parameter):
            return f"This parameter of shape {tuple(selector.shape)} is no part of the {kind}."
        return f"The predicate {getattr(selector, '__name__', selector)!r} is true for no module of the {kind}."


def _own_tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


def _first_names(named: Iterable[tuple[str, T]], wanted: set[int]) -> Iterator[tuple[str, T]]:
    seen: set[int] = set()
    for name, thing in named:
        if id(thing) in wanted and id(thing) not in seen:
            seen.add(id(thing))
            yield name, thing
