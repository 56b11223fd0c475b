"""Losses and metrics that keep something for each class: as if built for another number of classes, or left as is."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
from torch import nn

from ftkit._heads.layers import has_parameters
from ftkit._models.undo import Undo
from ftkit._torch import buffers_of

_log = logging.getLogger("ftkit")

_PASSING = ("training", "_update_count", "_computed", "_forward_cache", "_cache", "_is_synced")  # comes with use
_PLAIN = (bool, int, float, str, tuple, type(None))


def counts_in_tensors(module: nn.Module, classes: int) -> bool:
    """Whether a module without parameters is to be built once more for another count: it has tensors that hang on it.

    A metric of torchmetrics always is: it adds up states, which are plain attributes, and knows where they begin.

    Example:
        >>> import torch
        >>> from ftkit._heads.metrics import counts_in_tensors
        >>> counts_in_tensors(torch.nn.CrossEntropyLoss(), 5)
        False
        >>> counts_in_tensors(torch.nn.CrossEntropyLoss(weight=torch.ones(5)), 5)
        True
    """
    tensors = _tensors(module).values()
    sized = any(isinstance(tensor, torch.Tensor) and classes in tensor.shape for tensor in tensors)
    return not has_parameters(module) and (sized or bool(_states(module)))


def rebuild(module: nn.Module, counter: str, count: int, undo: Undo) -> None:
    """Let a loss or a metric be as if it was built for another number of classes; states begin anew.

    Only where its constructor, with the arguments that its attributes tell, builds one that is just like it: then the
    same arguments with another count build the one that is wanted. Else it stays as it is, with a warning.

    Args:
        module: The loss or metric. It stays the same object, since others may know it.
        counter: The attribute that counts the classes.
        count: The new number of them.
        undo: What undoes it.
    """
    like_it, new = (_built_like(module, counter, number) for number in (vars(module)[counter], count))
    if like_it is None or new is None or not _are_alike(like_it, module):
        _log.warning(
            "The %s still counts %d classes, since nothing tells how it was built. Make one for %d in its place.",
            type(module).__name__,
            vars(module)[counter],
            count,
        )
        return
    undo.remember(module)
    vars(module).update(_plain(new))
    for table, other in zip(_tables(module), _tables(new), strict=True):
        for name, value in other.items():
            if isinstance(value, torch.Tensor):
                old = table.get(name)
                table[name] = value.to(old.device) if isinstance(old, torch.Tensor) else value
    for name, start in _states(module).items():
        vars(module)[name] = start.clone() if isinstance(start, torch.Tensor) else []
    reset = getattr(module, "reset", None)
    if _states(module) and callable(reset):
        reset()


def _tables(module: nn.Module) -> list[dict[str, Any]]:
    """Where a module has tensors."""
    return [vars(module), buffers_of(module), _states(module)]


def _states(module: nn.Module) -> dict[str, Any]:
    """How the states of a metric begin, by name: tensors, or lists that are empty."""
    found = vars(module).get("_defaults")
    return found if isinstance(found, dict) else {}


def _tensors(module: nn.Module) -> dict[str, Any]:
    """The tensors of a module that hang on how it was built."""
    own = {name: value for name, value in vars(module).items() if name not in _PASSING}
    found = {name: value for name, value in own.items() if isinstance(value, torch.Tensor)}
    return {**found, **buffers_of(module), **_states(module)}


def _built_like(module: nn.Module, counter: str, count: int) -> nn.Module | None:
    """Build a module once more with the arguments that one has kept, and another count; None where that fails."""
    known: dict[str, Any] = {}
    for name, parameter in inspect.signature(type(module)).parameters.items():
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            known[name] = getattr(module, name, parameter.default)
    unknown = [name for name, value in known.items() if value is inspect.Parameter.empty]
    known[counter if counter in known or len(unknown) != 1 else unknown[0]] = count
    try:
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            return type(module)(**known)
    except Exception as error:  # noqa: BLE001 -- whatever a constructor that wants something else raises
        _log.debug("%s can't be built once more: %s", type(module).__name__, error)
        return None


def _are_alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules have the same plain values and tensors; those on meta have no values."""
    ours, theirs = _tensors(one), _tensors(other)
    plain = _plain(one) == _plain(other) and ours.keys() == theirs.keys()
    return plain and all(_is_same(value, theirs[name]) for name, value in ours.items())


def _is_same(one: object, other: object) -> bool:
    if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)):
        return type(one) is type(other)
    return one.shape == other.shape and (one.is_meta or other.is_meta or torch.equal(one, other.to(one.device)))


def _plain(module: nn.Module) -> dict[str, object]:
    return {name: value for name, value in vars(module).items() if isinstance(value, _PLAIN) and name not in _PASSING}
