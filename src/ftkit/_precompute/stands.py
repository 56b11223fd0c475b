"""What stands in the place of a module's forward for a while."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import nn

from ftkit._models.dryrun import turn
from ftkit._torch import is_exporting, uncompiled

_OF_FUNCTIONS: Final = frozenset({"__closure__", "__code__", "__globals__"})  # which torch.export reads


class Stand:
    """What is called instead of a module's ``forward`` for a while; copies and pickles of the module are free of it."""

    def __init__(self, module: nn.Module, instead_of: Callable[..., Any] | None = None) -> None:
        self.module = module
        self.before = vars(module).get("forward")
        self.over = instead_of is None
        self._instead_of = instead_of

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() and not self.over and not is_exporting():
            return uncompiled(self._call, args, kwargs)
        return self._call(args, kwargs)

    def _call(self, args: Any, kwargs: Any) -> Any:
        forward = self.before or functools.partial(type(self.module).forward, self.module)
        if self._instead_of is None or self.over or is_exporting():
            return forward(*args, **kwargs)
        return self._instead_of(forward, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "__signature__":  # by which frameworks decide what to pass
            return inspect.signature(self.before or functools.partial(type(self.module).forward, self.module))
        if name.startswith("__") and name not in _OF_FUNCTIONS:
            raise AttributeError(name)
        return getattr(type(self.module).forward, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return Stand(copy.deepcopy(self.module, memo))

    def __reduce__(self) -> Any:
        return functools.partial, (type(self.module).forward, self.module)


def install(forwards: Mapping[int, Callable[..., Any]], model: nn.Module) -> Callable[[], None]:
    """Put functions in the place of the forward of some modules, by identity; return what takes them away."""
    stands = []
    for module in list(model.modules()):
        if id(module) in forwards and not isinstance(module, torch.jit.ScriptModule):
            stands.append((module, Stand(module, forwards[id(module)])))
    for module, stand in stands:
        vars(module)["forward"] = stand

    def remove() -> None:
        for module, stand in stands:
            stand.over = True
            top = vars(module).get("forward")
            while isinstance(top, Stand) and top.over:  # those under one that is still needed go with it
                top = top.before
                if top is None:
                    del vars(module)["forward"]
                else:
                    vars(module)["forward"] = top

    return remove


def instead(
    forwards: Mapping[int, Callable[..., Any]],
    model: nn.Module,
    elsewhere: Mapping[int, Callable[..., Any]] = MappingProxyType({}),
) -> contextlib.AbstractContextManager[None]:
    """Put functions in the place of the forward of some modules for the block, where this thread calls them.

    Other threads may use the same modules, as may processes that are forked meanwhile: for them nothing changes, but
    that ``elsewhere`` are called in other threads.
    """
    here = threading.local()
    here.process = os.getpid()

    def by_thread(key: int) -> Callable[..., Any]:
        def forward(original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            process = getattr(here, "process", None)
            if process == os.getpid():
                return forwards[key](original, args, kwargs)
            if process is None and key in elsewhere:
                return elsewhere[key](original, args, kwargs)
            return original(*args, **kwargs)

        return forward

    return _installed({key: by_thread(key) for key in forwards}, model)


def others_wait(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Have other threads that call a model in the block, which has the turn, wait until it ends.

    They would meet the model in another mode. Those that call a part of it don't wait: the model may wait for them.
    """

    def forward(original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        with turn():
            return original(*args, **kwargs)

    return _installed({id(model): forward}, model)


@contextlib.contextmanager
def _installed(forwards: Mapping[int, Callable[..., Any]], model: nn.Module) -> Iterator[None]:
    remove = install(forwards, model)
    try:
        yield
    finally:
        remove()


def own_forward(module: nn.Module) -> Any:
    """The forward that someone has given a module instead of that of its class; None for most."""
    forward = vars(module).get("forward")
    while isinstance(forward, Stand):
        forward = forward.before
    return forward
