"""What ftkit uses of torch beyond what torch promises: all of it is in this room.

Each is looked up when it is first used. Where a torch has dropped one, either a second way is taken, or the error says
what is missing and which versions have it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, cast

import torch
from torch import nn

from ftkit.errors import FtkitError

__all__ = [
    "FAKE_TENSOR_LOG",
    "buffers_of",
    "children_of",
    "compiled_from",
    "needed",
    "parameters_of",
    "pre_hooks_of",
    "storage_id",
]

FAKE_TENSOR_LOG: Final = logging.getLogger("torch._subclasses.fake_tensor")
"""Where fake tensors report each operator that they can't follow, as an error."""


def needed(owner: object, name: str, purpose: str) -> Any:
    """Return something that torch keeps to itself.

    Raises:
        FtkitError: This torch has it no more. The message says what it was needed for.

    Example:
        >>> import torch
        >>> from ftkit._torch import needed
        >>> needed(torch.nn.Linear(1, 1), "_paramters", "list parameters")
        Traceback (most recent call last):
            ...
        ftkit.errors.FtkitError: ... has no Linear._paramters, which ftkit needs to list parameters. ...
    """
    try:
        return getattr(owner, name)
    except AttributeError:
        place = getattr(owner, "__name__", type(owner).__name__)
        raise FtkitError(
            f"torch {torch.__version__} has no {place}.{name}, which ftkit needs to {purpose}. ftkit is tested with "
            "torch 2.6 to 2.14: install one of these, or a newer ftkit."
        ) from None


# ---- the tables of a module: live dicts, whose order is that of registration


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """The parameters that a module itself has registered."""
    return cast("dict[str, nn.Parameter | None]", needed(module, "_parameters", "read a module's parameters"))


def buffers_of(module: nn.Module) -> dict[str, torch.Tensor | None]:
    """The buffers that a module itself has registered."""
    return cast("dict[str, torch.Tensor | None]", needed(module, "_buffers", "read a module's buffers"))


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """The modules that a module itself has registered."""
    return cast("dict[str, nn.Module | None]", needed(module, "_modules", "read a module's children"))


def pre_hooks_of(module: nn.Module) -> dict[Any, Callable[..., Any]]:
    """The hooks that run before a module's forward, by torch's keys and our own."""
    return cast("dict[Any, Callable[..., Any]]", needed(module, "_forward_pre_hooks", "hold modules in eval mode"))


# ---- storages


def storage_id(tensor: torch.Tensor) -> int:
    """What tells the memory under a tensor from all other memory that is alive."""
    return int(needed(tensor.untyped_storage(), "_cdata", "tell storages apart"))


# ---- wrappers around a model


def compiled_from(wrapper: nn.Module) -> nn.Module | None:
    """The module that torch.compile has wrapped; None for any other module."""
    if isinstance(wrapper, torch.jit.ScriptModule):  # its table of children is no dict
        return None
    return children_of(wrapper).get("_orig_mod")
