"""The trust gate: files that torch or pickle wrote, opened without running what they bring along.

This is the only place that calls ``torch.load``, and it does so only where the user said the file
is trusted, or where a kind of tensor needs it. Everything else is read by a machine that can
run nothing (:mod:`ftkit._pickles.machine`), and tensors straight from where their bytes lie.
"""

from __future__ import annotations

import functools
import os
import pickle
import pkgutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO, Final, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ftkit._files import atomic_write
from ftkit._pickles.machine import Foreign, Global, StorageRef, StoredTensor
from ftkit._pickles.torchfiles import PickleFile, PlainPickle, tensor_in
from ftkit.errors import CheckpointError, UntrustedFileError

Allowed: TypeAlias = str | type[Any] | Callable[..., Any]
"""A class or function to admit: itself, or its full dotted name."""

# Nothing that describes a model has a use for these; a file that names one is an attack.
_ALARMING: Final = frozenset(
    (
        *("builtins", "ctypes", "importlib", "nt", "os", "pickle", "posix", "pty", "runpy"),
        *("shutil", "socket", "subprocess", "sys", "webbrowser"),
    )
)
_HARMLESS: Final = frozenset(f"builtins.{name}" for name in ("range", "slice", "object", "Ellipsis"))

# What values of another kind than expected raise.
_ODD: Final = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)

# The hooks of frozen modules: they only switch train mode off, so a frozen model needs no more trust than another.
_HOOKS: Final = frozenset(f"ftkit._freezing.holding.{name}" for name in ("stay_in_eval", "stay_in_eval_alone"))


def load_pickle(file: PickleFile, *, allow: Iterable[Allowed] = (), trusted: bool = False) -> Any:
    """Return what a file of ``torch.save`` or ``pickle`` holds, with its tensors on the CPU.

    Plain data and tensors are read without running anything. A file that needs more is refused,
    and the error lists what it wants.

    Args:
        file: The file.
        allow: Classes and functions to admit: themselves, or their full dotted names.
        trusted: Admit everything. Code that the file brings along then runs with your rights.

    Raises:
        UntrustedFileError: The file wants more than was admitted.
        DamagedFileError: It is not whole, or some bytes are not the ones that were written.

    Example:
        >>> import torch
        >>> from ftkit._formats import open_file
        >>> from ftkit._pickles.gate import load_pickle
        >>> torch.save(torch.nn.Linear(2, 1), "layer.pt")
        >>> with open_file("layer.pt") as file:
        ...     load_pickle(file, allow=[torch.nn.Linear])
        Linear(in_features=2, out_features=1, bias=True)
    """
    if file.script:
        raise CheckpointError(
            f"{file.path} is a TorchScript archive: its code runs in torch.jit.load. "
            "load_weights(model, path) reads its weights without running any."
        )
    if trusted and (file.wanted or file.rare):
        with file.verified_whole() as whole:
            if isinstance(file, PlainPickle):
                return pickle.load(whole)  # noqa: S301  (the caller trusts it)
            return torch.load(whole, map_location="cpu", weights_only=False)
    return _load(file, dict(map(_named, (*allow, *_HOOKS.intersection(file.wanted)))))


def load_parts(file: PickleFile) -> tuple[Any, dict[str, list[str]]]:
    """Return what a file holds, as :func:`load_pickle` does, but leave out what only code could make.

    Returns:
        What it holds. If that is a table, the entries that need no code; and for each of the others, the classes and
        functions that it wants.

    Raises:
        UntrustedFileError: It is no table, and wants code.
        DamagedFileError: It is not whole, or some bytes are not the ones that were written.

    Example:
        >>> import argparse, torch
        >>> from ftkit._formats import open_file
        >>> from ftkit._pickles.gate import load_parts
        >>> torch.save({"epoch": 3, "args": argparse.Namespace(lr=0.1)}, "theirs.pt")
        >>> with open_file("theirs.pt") as file:
        ...     load_parts(file)
        ({'epoch': 3}, {'args': ['argparse.Namespace']})
    """
    if not file.wanted or not isinstance(file.tree, dict) or file.script or file.rare:
        return load_pickle(file), {}
    left_out = {key: wanted for key, node in file.tree.items() if (wanted := _wanted_by(node, file))}
    return _make({key: node for key, node in file.tree.items() if key not in left_out}, file, {}), left_out


def _wanted_by(node: Any, file: PickleFile) -> list[str]:
    """Which of the names that a file wants a part of it refers to."""
    found: set[str] = set()
    seen: dict[int, Any] = {}
    rest = [node]
    while rest:
        one = rest.pop()
        if isinstance(one, str | bytes | int | float | StoredTensor) or id(one) in seen:
            continue
        seen[id(one)] = one
        file.budget.charge(steps=1 + (len(one) if isinstance(one, dict | list | tuple | set | frozenset) else 0))
        if isinstance(one, Global):
            found.add(one.name)
        elif isinstance(one, Foreign):
            rest += [one.function, *one.args, one.state, *one.items, *one.keywords.values()]
        elif isinstance(one, dict):
            rest += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            rest += one
    return [name for name in file.wanted if name in found]


def _load(file: PickleFile, admitted: Mapping[str, Any]) -> Any:
    """Make what a file holds, by calls of what was admitted and no others."""
    if refused := [name for name in file.wanted if name not in admitted or _alarm(name)]:
        raise UntrustedFileError(_refusal(file.path, refused))
    if file.rare:
        safe: list[Any] = [(admitted[name], name) for name in file.wanted]
        with file.verified_whole() as whole, torch.serialization.safe_globals(safe), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch tells that it checks sparse tensors
            try:
                return torch.load(whole, map_location="cpu", weights_only=True)
            except (pickle.UnpicklingError, AssertionError, EOFError, MemoryError, RuntimeError, *_ODD) as error:
                raise UntrustedFileError(
                    f"{file.path} holds {' and '.join(file.rare)} tensors, which torch alone can build, and something "
                    "else that torch.load(weights_only=True) refuses. If you know where the file comes from, "
                    "load_model(path, trusted=True) opens it. Dense weights need no trust: load_weights(model, path)."
                ) from error
    return _make(file.tree, file, admitted)


def _make(tree: Any, file: PickleFile, admitted: Mapping[str, Any]) -> Any:
    try:
        return _Maker(file.read_storages(), admitted).make(tree)
    except (RecursionError, *_ODD) as error:
        raise CheckpointError(
            f"{file.path} can't be made into objects: {type(error).__name__}: {error}. It is damaged, or was "
            "written with other versions of its classes. load_weights(model, path) reads its weights alone."
        ) from error


def save_pickle(thing: object, path: str | os.PathLike[str], *, plain: bool = False) -> None:
    """Write anything as ``torch.save`` does, whole or not at all.

    Args:
        thing: What to write.
        path: The file.
        plain: Refuse what ``torch.load(path, weights_only=True)`` would refuse to open.

    Raises:
        FileWriteError: The file could not be written. What stood there is intact.
        CheckpointError: Something in it can't be pickled, or needs more trust than ``plain`` allows.

    Example:
        >>> import torch
        >>> from ftkit._pickles.gate import save_pickle
        >>> save_pickle({"w": torch.zeros(2)}, "x.pt")
        >>> torch.load("x.pt")
        {'w': tensor([0., 0.])}
    """
    with atomic_write(path) as file:
        sink = _Sink(file)
        try:
            torch.save(thing, sink)  # type: ignore[arg-type]  # it asks for no more than write and flush
            sink.flush()
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            kind = type(thing).__name__
            raise CheckpointError(
                f"A {kind} can't be pickled: {error}. save_weights keeps its tensors alone."
            ) from error
        except RuntimeError as error:
            raise sink.error or error from error
        if plain:
            file.seek(0)
            if unsafe := torch.serialization.get_unsafe_globals_in_checkpoint(file):
                raise CheckpointError(
                    f"{os.fspath(path)} would hold {', '.join(sorted(unsafe))}, which torch.load(weights_only=True) "
                    "refuses to open. Use a name that ends in .safetensors, or plain values."
                )


class _Sink:
    """A file for torch to write to, which remembers why a write failed: torch tells only that it did."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.error = error
            raise
        return len(data)

    def flush(self) -> None:
        self._file.flush()


def _refusal(path: str, wanted: list[str]) -> str:
    listed = "".join(f"\n    {name}{_alarm(name)}" for name in wanted[:40])
    more = f"\n    ... and {len(wanted) - 40} more" if len(wanted) > 40 else ""
    if any(map(_alarm, wanted)):
        advice = "A model has no use for some of these: don't open the file, and tell where it came from."
    else:
        advice = (
            "If you know where it comes from, load_model(path, allow=[...]) admits these, and trusted=True everything. "
            "Weights alone need no trust: load_weights(model, path)."
        )
    return f"Opening {path} would run code. Beyond plain data and tensors it wants:{listed}{more}\n{advice}"


def _alarm(name: str) -> str:
    alarming = name.partition(".")[0] in _ALARMING and name not in _HARMLESS
    return "  <- this is how attacks look" if alarming else ""


def _named(thing: Allowed) -> tuple[str, Any]:
    """The full dotted name of something to admit, and the thing."""
    if not isinstance(thing, str):
        return f"{thing.__module__}.{thing.__qualname__}", thing
    try:
        return thing, pkgutil.resolve_name(thing)
    except (AttributeError, ImportError, ValueError) as error:
        raise CheckpointError(
            f"allow names {thing!r}, which can't be imported. Give the full dotted name, or the class itself."
        ) from error


class _Maker:
    """Makes the objects and tensors of a tree, each part once, calling nothing but what was admitted."""

    def __init__(self, memory: Mapping[StorageRef, Tensor], admitted: Mapping[str, Any]) -> None:
        self._memory = memory
        self._admitted = admitted
        self._made: dict[int, Any] = {}

    def make(self, node: Any) -> Any:
        if id(node) not in self._made:
            self._made[id(node)] = self._new(node)
        return self._made[id(node)]

    def _new(self, node: Any) -> Any:
        match node:
            case StoredTensor(storage):
                return tensor_in(self._memory[storage], node)
            case StorageRef():
                return self._memory[node].untyped_storage()
            case dict():
                # A table or list is known before its parts, which may refer back to it.
                table = self._made[id(node)] = node.copy()
                table.clear()
                for key, value in node.items():
                    table[self.make(key)] = self.make(value)
                return table
            case list():
                items: list[Any] = []
                self._made[id(node)] = items
                items.extend(map(self.make, node))
                return items
            case tuple():
                return tuple(map(self.make, node))
            case Global(name):
                return self._admitted.get(name, name)
            case Foreign():
                return numpy_value(node) if node.name.startswith("numpy.") else self._call(node)
        return node

    def _call(self, node: Foreign) -> Any:
        function = self.make(node.function)
        args = self.make(node.args)
        if not callable(function) or node.name in _HOOKS:
            raise TypeError(f"{node.name[:80]!r} in it describes nothing that can be made")
        keywords = {name: self.make(value) for name, value in node.keywords.items()}
        call = functools.partial(function.__new__, function) if node.new else function
        made = self._made[id(node)] = call(*args, **keywords)
        state = self.make(node.state)
        if hasattr(made, "__setstate__"):
            if state is not None:
                made.__setstate__(state)
        else:
            attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
            if attributes:
                vars(made).update(attributes)
            for name, value in (slots or {}).items():
                setattr(made, name, value)
        for item in node.items:
            if isinstance(made, dict):
                made[self.make(item[0])] = self.make(item[1])
            else:
                made.append(self.make(item))
        return made


def numpy_value(node: Foreign) -> Any:
    """Make the numpy scalar or array that a call of numpy's own builders stands for."""
    if node.name.endswith(".scalar") and len(node.args) == 2:
        return np.frombuffer(node.args[1], _numpy_dtype(node.args[0]), count=1)[0]
    if node.name.endswith("._reconstruct") and isinstance(node.state, tuple) and len(node.state) == 5:
        _, shape, dtype, fortran, data = node.state
        array = np.frombuffer(data, _numpy_dtype(dtype)).copy()
        return array.reshape(shape, order="F" if fortran else "C")
    raise TypeError(f"{node.name[:80]!r} in it describes nothing that can be made")


def _numpy_dtype(node: Any) -> np.dtype[Any]:
    if not (isinstance(node, Foreign) and node.name == "numpy.dtype" and node.args and isinstance(node.args[0], str)):
        raise TypeError("an array in it has no type")
    dtype = np.dtype(node.args[0])
    if dtype.kind not in "biufcSU":  # others hold pointers
        raise TypeError(f"an array in it is of type {dtype}")
    order: Any = node.state[1] if isinstance(node.state, tuple) and len(node.state) > 1 else "="
    return dtype.newbyteorder(order) if order in {"<", ">"} else dtype
