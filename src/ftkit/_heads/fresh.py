"""Which tensors a new head brought: nobody else has them, whether they are trained or not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import torch
from torch import nn

from ftkit._models.undo import Undo
from ftkit._torch import buffers_of, parameters_of

# The attribute of a module that names those of its own tensors that a new head brought. On the module, not on the
# tensors, which lose their attributes when they are copied.
_FRESH: Final = "_ftkit_fresh"


def mark(modules: Iterable[nn.Module], undo: Undo) -> None:
    """Note that all tensors of these modules themselves are new."""
    for module in modules:
        if not isinstance(module, torch.jit.ScriptModule):
            mark_tensors(module, [*parameters_of(module), *buffers_of(module)], undo)


def mark_tensors(module: nn.Module, names: Iterable[str], undo: Undo) -> None:
    """Note that some tensors of a module itself are new."""
    undo.remember(module)
    vars(module)[_FRESH] = tuple(sorted({*vars(module).get(_FRESH, ()), *names}))


def fresh_names(model: nn.Module) -> Iterator[str]:
    """Yield the names of all tensors in a model that a new head brought."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name in vars(module).get(_FRESH, ()):
            yield f"{prefix}.{name}" if prefix else name
