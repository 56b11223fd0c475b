"""What ftkit uses of torch beyond what torch promises: all of it is in this room.

Each is looked up when it is first used. Where a torch has dropped one, either a second way is taken, or the error says
what is missing and which versions have it.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, TypeGuard, cast

import torch
from torch import nn

from ftkit.errors import FtkitError

__all__ = [
    "FAKE_TENSOR_LOG",
    "answers_for_fakes",
    "buffers_of",
    "children_of",
    "fake_tensors",
    "hooks_of",
    "is_convolution",
    "needed",
    "parameters_of",
    "power_iterate",
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


# ---- layers, and runs on fake tensors


def is_convolution(module: object) -> TypeGuard[nn.modules.conv._ConvNd]:
    """Whether a module is a convolution of torch's, or of a class made from one; transposed ones too."""
    usual = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return isinstance(module, getattr(nn.modules.conv, "_ConvNd", usual))


def hooks_of(module: nn.Module) -> dict[Any, Callable[..., Any]]:
    """The hooks that run after a module's forward, by torch's keys."""
    return cast("dict[Any, Callable[..., Any]]", needed(module, "_forward_hooks", "leave a user's hooks alone"))


def power_iterate(parametrization: object, weight: torch.Tensor, times: int) -> None:
    """Fit the estimate of a spectral norm to a weight. Any other parametrization is left as it is."""
    iterate = getattr(parametrization, "_power_method", None)
    if iterate is not None:
        matrix = needed(parametrization, "_reshape_weight_to_matrix", "give a layer under a spectral norm its weight")
        iterate(matrix(weight), times)


def fake_tensors() -> AbstractContextManager[Any]:
    """Return a mode in which new tensors are fakes: they have shapes and a graph, and no memory."""
    fakes = importlib.import_module("torch._subclasses.fake_tensor")
    mode = needed(fakes, "FakeTensorMode", "run a model without memory")(allow_non_fake_inputs=True)
    return cast("AbstractContextManager[Any]", mode)


def answers_for_fakes(answer: Callable[[str, Callable[..., Any], Sequence[Any]], Any]) -> AbstractContextManager[Any]:
    """Return a mode in which ``answer`` is asked where an operator needs the values that fakes don't have.

    Args:
        answer: Called with the operator's name, the operator and its positional arguments. Where it gives None too, the
            operator fails as it would have.
    """
    fakes = importlib.import_module("torch._subclasses.fake_tensor")
    unanswered = tuple(
        needed(fakes, name, "run a model without memory")
        for name in ("DataDependentOutputException", "DynamicOutputShapeException")
    )
    base = needed(importlib.import_module("torch.utils._python_dispatch"), "TorchDispatchMode", "follow operators")

    def dispatch(_: object, func: Any, _types: object, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except unanswered:
            answered = answer(func.__name__.partition(".")[0], func, args)
            if answered is None:
                raise
            return answered

    return cast("AbstractContextManager[Any]", type("Answers", (base,), {"__torch_dispatch__": dispatch})())
