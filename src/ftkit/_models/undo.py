"""Changes that are undone if one of them fails."""

from __future__ import annotations

import contextlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, MutableMapping
from typing import Any, Self, TypeVar

import torch
from torch import nn

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_CONTAINERS = (dict, OrderedDict, defaultdict, list, set)


class Undo:
    """A block whose changes are all made, or none: an error undoes what was noted, the last change first.

    Example:
        >>> from ftkit._models.undo import Undo
        >>> table = {"a": 1}
        >>> try:
        ...     with Undo() as undo:
        ...         undo.set_item(table, "a", 2)
        ...         raise ValueError
        ... except ValueError:
        ...     table
        {'a': 1}
    """

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []
        self._remembered: dict[int, object] = {}  # the objects themselves, so that their identities stay taken

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            self.take_back()

    def take_back(self) -> None:
        """Undo all changes. A step that fails does not stop the others."""
        with contextlib.ExitStack() as stack:
            for step in self._steps:
                stack.callback(step)
            self._steps, self._remembered = [], {}

    def callback(self, function: Callable[..., object], /, *args: object) -> None:
        """Note a function that undoes the next change."""
        self._steps.append(lambda: function(*args))

    def set_item(self, table: MutableMapping[K, V], key: K, value: V) -> None:
        """Set an entry of a table; an existing entry keeps its place in the table's order."""
        if key in table:
            self.callback(table.__setitem__, key, table[key])
        else:
            self.callback(table.pop, key, None)  # it may be gone already
        table[key] = value

    def remember(self, owner: Any) -> None:
        """Note what a module, a configuration or a dict contains now.

        That is its attributes, the contents of the plain containers among them, and its class. The values of tensors
        are not kept, except those of TorchScript buffers, which can't be restored otherwise.
        """
        if id(owner) not in self._remembered:
            self._remembered[id(owner)] = owner
            self._steps.append(_restoring(owner))


def _restoring(owner: Any) -> Callable[[], None]:
    if isinstance(owner, torch.jit.ScriptModule):
        return _rewriting(owner)
    values: dict[str, Any] = owner if isinstance(owner, dict) else vars(owner)
    kind, before = type(owner), dict(values)
    containers = [(one, one.copy()) for one in before.values() if type(one) in _CONTAINERS]

    def restore() -> None:
        for container, content in containers:
            _refill(container, content)
        _refill(values, before)
        if type(owner) is not kind:  # a lazy module becomes another class
            object.__setattr__(owner, "__class__", kind)

    return restore


def _refill(container: Any, content: Any) -> None:
    """Let a container hold again what it held. Other threads may read it meanwhile, so what stays is never missing."""
    if isinstance(container, list):
        container[:] = content
    elif isinstance(container, set):
        container.intersection_update(content)
        container.update(content)
    else:
        for key in container.keys() - content.keys():
            container.pop(key, None)
        container.update(content)
        if list(map(id, container)) != list(map(id, content)):  # in another order
            container.clear()
            container.update(content)


def _rewriting(module: nn.Module) -> Callable[[], None]:
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers(recurse=False)]

    def rewrite() -> None:
        for buffer, before in buffers:
            if not torch.equal(buffer, before):
                buffer.detach().copy_(before)

    return rewrite
