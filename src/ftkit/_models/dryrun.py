"""Runs of a model that leave no trace, and the tensors in its inputs and outputs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import itertools
import os
import random
import sys
import threading
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ftkit._models.undo import Undo
from ftkit._torch import FAKE_TENSOR_LOG, tree_leaves
from ftkit.errors import FtkitError

_LOCK = threading.RLock()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let one thread at a time into such blocks, and into functions that are decorated with it.

    Random numbers, warning filters, logs and ``nn.Module.__call__`` belong to the whole process: code that changes
    one of them for a while does so in here, and restores it before the next thread comes in. And a model that runs on
    fake tensors contains those meanwhile, so code that reads or changes a model waits here until its own are back.
    """
    with turn():
        yield


def turn() -> contextlib.AbstractContextManager[object]:
    """As :func:`alone`, for what each step does: it costs next to nothing, and Ctrl-C can't leave it taken."""
    return _LOCK


def _forget_other_threads() -> None:
    """Take the turn from threads that a forked process does not have, so that they could never end theirs."""
    global _LOCK  # noqa: PLW0603
    if _LOCK.acquire(blocking=False):
        _LOCK.release()
    else:
        _LOCK = threading.RLock()


if hasattr(os, "register_at_fork"):  # Windows forks none
    os.register_at_fork(after_in_child=_forget_other_threads)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Show no warnings in the block, which one thread at a time may enter."""
    with alone(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def untouched(modules: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Run models in the block; then restore, whatever happens, all that this can change in them and around them.

    That is the attributes of the modules, random numbers, modes and logs of the process. One thread at a time may run
    such a block; the others wait.

    Args:
        modules: Every module that runs, unless it is a copy that no one else sees.
    """
    modules = list(modules)
    with alone(), contextlib.ExitStack() as after:
        undo = Undo()
        after.callback(undo.take_back)
        if gc.isenabled():
            undo.callback(gc.enable)
            gc.disable()  # a collection in between would take longer than all the rest, and blur what is alive when
        for module in modules:
            undo.remember(module)
        remember_random(undo)
        undo.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        undo.callback(torch.set_default_dtype, torch.get_default_dtype())
        undo.callback(torch.clear_autocast_cache)
        undo.callback(setattr, FAKE_TENSOR_LOG, "disabled", FAKE_TENSOR_LOG.disabled)
        FAKE_TENSOR_LOG.disabled = True
        torch.backends.mha.set_fastpath_enabled(False)  # training never takes it, and it hides the layers
        with caches_apart(modules), quiet(), torch.inference_mode(False), torch.enable_grad():
            yield


@contextlib.contextmanager
def caches_apart(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let nothing from outside of the block into it, or out of it, by a cache of functools in the code of some modules.

    Else a fake tensor in one, such as a table of positions, would be in the next run of any model that shares it.
    """
    caches = list(_caches(modules))
    for cache in caches:
        cache.cache_clear()
    try:
        yield
    finally:
        for cache in caches:
            cache.cache_clear()


_CACHE = type(functools.cache(lambda: None))


def _caches(modules: Iterable[nn.Module]) -> Iterator[Any]:
    """The caches in the methods of modules, and in functions beside their classes, decorated once more or not."""
    kinds = {
        kind for one in modules for kind in type(one).__mro__ if not kind.__module__.startswith(("torch.", "builtins"))
    }
    homes = {sys.modules[kind.__module__] for kind in kinds if kind.__module__ in sys.modules}
    for entry in itertools.chain.from_iterable(list(vars(place).values()) for place in (*kinds, *homes)):
        function = entry.__func__ if isinstance(entry, staticmethod | classmethod) else entry
        if isinstance(function, _CACHE):
            yield function
        elif isinstance(function, types.FunctionType):
            for cell in function.__closure__ or ():
                with contextlib.suppress(ValueError):  # it has no value yet
                    if isinstance(cell.cell_contents, _CACHE):
                        yield cell.cell_contents


def remember_random(undo: Undo) -> None:
    """Note the state of all random numbers of the process."""
    undo.callback(torch.set_rng_state, torch.get_rng_state())
    undo.callback(random.setstate, random.getstate())
    if numpy_random := sys.modules.get("numpy.random"):
        undo.callback(numpy_random.set_state, numpy_random.get_state())
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        undo.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())


def as_call(given: Any, name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword inputs that an argument called ``name`` stands for, in whatever form.

    Example:
        >>> from ftkit._models.dryrun import as_call
        >>> as_call((1, 2), "input_data"), as_call({"a": 1}, "input_data"), as_call(((1,), {"a": 2}), "input_data")
        (((1, 2), {}), ((), {'a': 1}), ((1,), {'a': 2}))
    """
    match given:
        case torch.Tensor():
            return (given,), {}
        case (tuple(), dict()) if isinstance(given, tuple):
            return given
        case tuple():
            return given, {}
        case Mapping():
            return (), dict(given)
    raise FtkitError(
        f"Expected {name} to be a tensor, a tuple of positional arguments, a dict of keyword arguments or a pair "
        f"of both, got {type(given).__name__}: if that is the model's only argument, pass it in a tuple, (input,)."
    )


def named_tensors(tree: Any, path: tuple[object, ...] = ()) -> Iterator[tuple[tuple[object, ...], torch.Tensor]]:
    """Yield the tensors in nested lists, tuples, mappings, dataclasses and registered pytrees, each with its path.

    Example:
        >>> import torch
        >>> from ftkit._models.dryrun import named_tensors
        >>> [(path, tuple(t.shape)) for path, t in named_tensors({"a": [torch.ones(2)], "b": (None, torch.ones(3, 4))})]
        [(('a', 0), (2,)), (('b', 1), (3, 4))]
    """
    if isinstance(tree, torch.Tensor):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from named_tensors(value, (*path, key))
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from named_tensors(value, (*path, index))
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for field in dataclasses.fields(tree):
            yield from named_tensors(getattr(tree, field.name, None), (*path, field.name))
    elif tree is not None and not isinstance(tree, str | int | float):
        leaves = tree_leaves(tree)
        if leaves and leaves[0] is not tree:
            yield from named_tensors(leaves, path)


def tensors_in(tree: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in a nested structure, in order."""
    return (tensor for _, tensor in named_tensors(tree))
