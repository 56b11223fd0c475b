"""What may be admitted from a pickle, judged by what a name is: classes that models are made of, and no other code.

Whoever makes a file chooses the arguments of every call in it. So no function is ever called, whoever wrote it;
functions are admitted as values alone, as a layer keeps its activation. Of Python, torch and numpy, only
what is known to be harmless is admitted. Everything else is the user's own code, and the user's decision.
"""

from __future__ import annotations

import pkgutil
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

from torch import nn

from ftkit._arguments import came
from ftkit._pickles.values import PLAIN_NAMES
from ftkit._torch import is_function_of_nn
from ftkit._wording import shown
from ftkit.errors import CheckpointError

Allowed: TypeAlias = str | type[Any] | Callable[..., Any]
"""A class or function to admit: itself, or its full dotted name."""

HOOKS: Final = frozenset(
    f"ftkit._freezing.holding.{name}" for name in ("stay_in_eval", "stay_in_eval_alone", "keep_running_stats")
)
"""What holds frozen modules: it only switches train mode off and keeps statistics, so it needs no more trust."""

# Whose code everyone has, so that any file can name it.
_EVERYBODYS: Final = sys.stdlib_module_names | {"torch", "numpy", "ftkit", "pip", "pkg_resources", "setuptools"}
# Of these, classes that hold what they are given, and ...
_HOLDERS: Final = PLAIN_NAMES | {"functools.partial"}
# ... parts of torch whose classes compute, and do nothing else. These and ours are made bare, without a constructor.
_PARTS: Final = (
    "ftkit.",
    *("torch.nn.", "torch.optim.", "torch.distributions.", "torch.amp.", "torch.cuda.amp."),
    *("torch.ao.nn.", "torch.ao.quantization.fake_quantize.", "torch.ao.quantization.observer."),
    *("torch.ao.quantization.qconfig.", "torch.ao.quantization.stubs.", "torch.utils.data.sampler."),
)
_FUNCTIONS: Final = ("torch.nn.functional.", "torch._C._nn.", "ftkit._freezing.")  # of tensors and models


def admitted(allow: Iterable[Allowed]) -> dict[str, Any]:
    """What is allowed, by its full dotted name. A name that is never admitted is left out, and not imported either.

    Raises:
        CheckpointError: A name can't be imported, or something is neither a name nor a class or function.
    """
    return {name: thing for name, thing in map(_named, allow) if may_be(name, thing)}


def may_be(name: str, thing: object) -> bool:
    """Whether something that a file calls by this name may be admitted."""
    if name in HOOKS:
        return True
    names = name, f"{getattr(thing, '__module__', None)}.{getattr(thing, '__qualname__', None)}"
    if isinstance(thing, type):
        own_module = issubclass(thing, nn.Module) and not names[1].startswith("torch.")
        return own_module or all(_is_users(one) or one in _HOLDERS or one.startswith(_PARTS) for one in names)
    if isinstance(thing, types.FunctionType):
        return all(_is_users(one) or one.startswith(_FUNCTIONS) for one in names)
    return (
        isinstance(thing, types.BuiltinFunctionType)
        and names[0].startswith(_FUNCTIONS)
        and is_function_of_nn(thing, name.rpartition(".")[2])
    )


def may_be_called(thing: object, *, bare: bool) -> bool:
    """Whether something admitted may be called by a file, or made bare, without its constructor."""
    if not isinstance(thing, type):
        return False
    return bare or not (issubclass(thing, nn.Module) or thing.__module__.partition(".")[0] in {"torch", "ftkit"})


def alarm(name: str) -> str:
    """What to say beside a name that is never admitted, as far as can be told without importing anything."""
    thing = _loaded(name)
    harmless = _may_be_by_name(name) if thing is None else may_be(name, thing)
    return "" if harmless else "  <- this is how attacks look"


def _named(thing: Allowed) -> tuple[str, Any]:
    """The full dotted name of something to admit, and the thing."""
    if isinstance(thing, str):
        try:
            return thing, pkgutil.resolve_name(thing) if _may_be_by_name(thing) else None
        except (AttributeError, ImportError, ValueError) as error:
            raise CheckpointError(
                f"allow names {shown(thing)!r}, which can't be imported. Pass its full dotted name, or the class."
            ) from error
    name = getattr(thing, "__qualname__", None)
    if name is None:
        raise CheckpointError(f"allow takes classes, functions and their full dotted names, not {came(thing)}.")
    return f"{thing.__module__}.{name}", thing


def _is_users(name: str) -> bool:
    return name.partition(".")[0] not in _EVERYBODYS


def _may_be_by_name(name: str) -> bool:
    return _is_users(name) or name in _HOLDERS | HOOKS or name.startswith((*_PARTS, *_FUNCTIONS))


def _loaded(name: str) -> Any:
    """What a name means in the modules that are there; nothing is imported, and no code runs."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        thing: Any = sys.modules.get(".".join(parts[:end]))
        if thing is not None:
            for part in parts[end:]:
                thing = thing.__dict__.get(part) if isinstance(thing, types.ModuleType | type) else None
            return thing
    return None
