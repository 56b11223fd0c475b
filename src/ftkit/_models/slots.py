"""Every place in a model where a tensor or a module is registered."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from ftkit._models.undo import Undo
from ftkit._torch import buffers_of, children_of, parameters_of


class Slot(NamedTuple):
    """A place where something is registered: an entry of one of a module's tables."""

    module: nn.Module
    table: dict[str, Any]
    name: str
    content: torch.Tensor | nn.Module


def slots(model: nn.Module) -> Iterator[Slot]:
    """Yield every place where a parameter, a buffer or a module is registered, module by module.

    What is registered several times is yielded as often.

    Example:
        >>> import torch
        >>> from ftkit._models.slots import slots
        >>> layer = torch.nn.Linear(2, 2, bias=False)
        >>> [slot.name for slot in slots(torch.nn.Sequential(layer, layer))]
        ['0', '1', 'weight']
    """
    return own_slots(*model.modules())


def own_slots(*modules: nn.Module) -> Iterator[Slot]:
    """Yield the places of some modules themselves: their parameters, buffers and children.

    TorchScript modules, which can't be looked into, are skipped.
    """
    for module in modules:
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for table in (parameters_of(module), buffers_of(module), children_of(module)):
            for name, content in list(table.items()):
                if content is not None:
                    yield Slot(module, table, name, content)


def replace(
    model: nn.Module,
    old: torch.Tensor | nn.Module | Collection[nn.Module],
    new: torch.Tensor | nn.Module,
    undo: Undo,
) -> None:
    """Put ``new`` wherever ``old``, or one of several modules, is registered. The model itself can't be replaced.

    They are compared by identity: ``==`` is up to each class, and a torchmetrics metric may equal anything.
    """
    several = [old] if isinstance(old, torch.Tensor | nn.Module) else old
    wanted = set(map(id, several))
    for slot in slots(model):
        if id(slot.content) in wanted:
            undo.set_item(slot.table, slot.name, new)
