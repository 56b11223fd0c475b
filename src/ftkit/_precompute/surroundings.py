"""What the code of a module reads beside its inputs and registered tensors: attributes, what they lead to, globals."""

from __future__ import annotations

import argparse
import collections
import copy
import datetime as dt
import decimal
import enum
import fractions
import functools
import operator
import pathlib
import random
import re
import threading
import types
import uuid
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import numpy as np
import torch
import xxhash
from torch import nn

from ftkit._models.contents import bytes_of
from ftkit._precompute.mentions import (
    CODE,
    OVER_ALL,
    PLAIN,
    Code,
    called_of,
    class_attributes,
    code_of,
    defined_by,
    digest_of,
    functions_of,
    identity_of,
    is_known,
    item,
    led_to,
    methods_of,
    plain_function,
    said,
    texts_in,
)
from ftkit._precompute.stands import own_forward
from ftkit._torch import hooks_of, pre_hooks_of, tree_leaves, version_of

_OWN: Final = frozenset(vars(nn.Module())) | {"forward", "training"}
_HOLDERS: Final = (types.SimpleNamespace, argparse.Namespace, threading.local)  # of what anyone puts there
_CONTAINERS: Final = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_MISSING: Final = object()
_PIECE: Final = 1 << 20  # bytes
_MOST: Final = 2000  # places that are looked at for one module
_MANY: Final = 500  # values in a container, of more of which only numbers and the like are looked at
_LONG: Final = 60  # characters
_SAID: Final = (
    int, float, complex, str, bytes, bytearray, slice, range, array, enum.Enum, re.Pattern, pathlib.PurePath,
    decimal.Decimal, fractions.Fraction, dt.date, dt.time, dt.timedelta, uuid.UUID, np.generic,
    np.dtype, torch.dtype, torch.device, torch.Size,
)  # fmt: skip
"""What tells what it is, in a few words and the same ones in another process."""


class Surroundings:
    """Where a module's code finds what is no registered tensor, with the values that are there.

    Args:
        module: The module; what is registered in it, other modules and tensors, is left out.
        name: What to call it.
        named: What other code mentions, which may read attributes of the module, or call its methods.
        every: Whether to look at attributes that no code mentions, too.
        forward: What stands for the class's own ``forward``, or None; by default what does so now.
        others: What the code of other modules reads, if it is only about that: objects and dicts in attributes.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str = "",
        named: frozenset[str] = frozenset(),
        others: frozenset[str] | None = None,
        *,
        every: bool = True,
        forward: Any = _MISSING,
    ) -> None:
        self.name = name
        """What to call the module."""
        kind: Any = type(module)
        forward = own_forward(module) if forward is _MISSING else forward
        code = code_of(kind, next(iter(functions_of(forward)), None))
        held = [
            function
            for key, one in vars(module).items()
            if key != "forward" and (every or key in named) and isinstance(one, types.FunctionType | types.MethodType)
            if (function := plain_function(one)) is not None
        ]
        self.names = code.names.union(*(code_of(kind, one).names for one in held))
        """Which the code mentions."""
        self.mentioned = set(self.names) if others is None else set()
        """The same, with what that code mentions that it comes by: functions, and methods of objects."""
        self.reads_any = others is None and any(one.reads_any for one in (code, *(code_of(nn.Module, f) for f in held)))
        """Whether some of that code reads attributes by names that only a run tells."""
        self.modules: list[nn.Module] = []
        """Those that are in attributes without being registered."""
        self.draws = code.draws
        """Whether the code, or that of a function in an attribute, makes a generator of random numbers."""
        self.tables: list[Any] = []
        """Containers that may change, and tables of the attributes of objects."""
        self.places: list[functools.partial[Any]] = []
        """What gives the value of each global, class attribute, or attribute of an object, and how many that has."""
        self.values: dict[str, Any] = {}
        """What is there, by where it was found: numbers and the like as they are, of all else what tells it apart."""
        self._attributes: list[tuple[dict[str, Any], frozenset[str]]] = []  # of objects, and those that the code names
        self.generators: list[Any] = []
        self.tensors: list[torch.Tensor] = []
        """Those that are in attributes without being registered."""
        self.arrays: list[Any] = []
        """Those of NumPy, which count no writes."""
        self._seen: set[int] = {id(module)}
        self._read_of: dict[int, frozenset[str]] = {}  # objects, and which of their names were read
        self._read = set(code.functions)
        prefix = f"{name}." if name else ""
        if others is not None:
            self.names = others
            for key in sorted(vars(module).keys() & others - _OWN):
                if isinstance(value := vars(module)[key], dict) or is_object(value):
                    self.places.append(functools.partial(item, vars(module), key))
                    self._visit(prefix + key, value)
            return
        own = self.names
        for key, value in list(vars(module).items()):
            # Frameworks note their own state in private attributes of a model, as Lightning what it runs now.
            noted = key.startswith("_") and type(value) in (type(None), bool, complex, str, bytes)
            if (
                key not in _OWN
                and not key.startswith("_ftkit")
                and (key in self.names or key in named or (every and not noted))
            ):
                self.names = own | named if key in named else own
                self._visit(prefix + key, value)
        self.names = own
        for hook in (*pre_hooks_of(module).values(), *hooks_of(module).values()):
            read = code_of(nn.Module, plain_function(hook) or plain_function(vars(type(hook)).get("__call__")))
            self.mentioned |= read.names
            self.reads_any = self.reads_any or read.reads_any
        self._visit_code(code)
        for one in called_of(kind, named - {"forward"}):
            self._visit_code(one)
        self._visit_places(class_attributes(kind, named))

    def _visit_code(self, code: Code) -> None:
        self._read |= code.functions
        self.mentioned |= code.names
        self.reads_any = self.reads_any or code.reads_any
        self._visit_places(code.places)
        for where, one in code.kept:
            if isinstance(one, types.CellType):
                self.places.append(functools.partial(_content, one))
                self._visit(where, _content(one))
            else:
                self._visit(where, one)

    def _visit_places(self, places: Iterable[tuple[str, Any, str]]) -> None:
        for where, table, key in places:
            if (found := item(table, key, _MISSING)) is not _MISSING:
                self.places.append(functools.partial(item, table, key))
                self._visit(where, found)

    def _visit_function(self, function: types.FunctionType) -> None:
        """Visit what a function reads that is held somewhere: as a value in a table, say."""
        before, code = self.names, code_of(nn.Module, function)
        self.names = before | code.names
        self.draws |= code.draws
        self._visit_code(code)
        self.names = before

    def _visit_object(self, where: str, value: Any) -> None:
        """Visit what the code names of an object, or the methods of the object that it names."""
        kind: Any = type(value)
        self._note(where, said(kind))
        before, methods = self.names, called_of(kind, self.names)
        self.names = before.union(*(one.names for one in methods))
        table = getattr(value, "__dict__", {})
        self._attributes.append((table, self.names))
        self.places.append(functools.partial(len, table))
        names = self.names
        if self.reads_any and where.rpartition(".")[2] != "config":
            names = names.union(key for key in table if isinstance(key, str) and key[:2] != "__")
        for key in sorted(names & table.keys()):
            self.places.append(functools.partial(item, table, key))
            self._visit(f"{where}.{key}", table[key])
        for key in sorted({slot for one in kind.__mro__ for slot in _slots(one)} & self.names):
            self.places.append(functools.partial(_slot, value, key))
            self._visit(f"{where}.{key}", getattr(value, key, None))
        self._visit_places(class_attributes(kind, self.names))
        for code in methods:
            self.draws |= code.draws
            self._visit_code(code)
        self.names = before

    def _note(self, where: str, what: Any) -> None:
        """Note what is at a place; at another one by the same name, beside it."""
        while where in self.values and (type(self.values[where]), self.values[where]) != (type(what), what):
            where += "'"
        self.values[where] = what

    def _visit(self, where: str, value: Any) -> None:
        if type(value) in PLAIN:
            self._note(where, value)
            self.mentioned.update(texts_in([value]))  # as ``getattr(self, self.kind)`` reads
            return
        if isinstance(value, _SAID):
            self._note(where, _short(repr(value)))
            if isinstance(value, enum.Enum) or not is_object(value):
                return
        # What one came by with few names is read once more with others, as where two share a configuration.
        is_seen = id(value) in self._seen and self._read_of.get(id(value), self.names).issuperset(self.names)
        if is_seen or len(self._seen) > _MOST:
            return
        self._seen.add(id(value))
        if is_object(value) or (isinstance(value, dict | list | tuple) and len(value) <= _MANY):
            self._read_of[id(value)] = self._read_of.get(id(value), frozenset()) | self.names
        if isinstance(value, torch.Tensor):
            if value.layout is torch.strided and not value.is_meta and type(value) is torch.Tensor:
                self.tensors.append(value)
                self._note(where, f"{value.dtype} {list(value.shape)} {digest_of(bytes_of(value))}")
        elif isinstance(value, np.ndarray):
            self._note(where, f"{value.dtype} {value.shape} {digest_of(_bytes_of(value))}")
            self.arrays.append(value)
            self.places.append(functools.partial(_Pieces.next_differs, _Pieces(value)))
        elif (state := state_of(value)) is not None:
            self.generators.append(value)
            self._note(where, digest_of(state))
        elif isinstance(value, collections.ChainMap):
            self._visit(where, value.maps)
        elif isinstance(value, collections.UserDict | collections.UserList):
            self._visit(where, value.data)
            if is_object(value):  # of a class of its own, with attributes
                self._visit_object(where, value)
        elif isinstance(value, types.MappingProxyType):
            self._visit(where, dict(value))
        elif isinstance(value, dict):
            self.tables.append(value)
            keys = [(str(key) if type(key) in PLAIN else said(key))[:_LONG] for key in value]
            count = collections.Counter(keys)
            for at, (key, one) in enumerate(zip(keys, list(value.values()), strict=True)):
                self._visit(f"{where}[{key if count[key] == 1 else f'{key} {at}'}]", one)
            self._note(f"{where}:", len(value))
        elif isinstance(value, list | tuple | collections.deque):
            self.tables.append(value)
            if len(value) > _MANY:
                self._note(where, _short(repr(_flat(value))))
            else:
                for at, one in enumerate(list(value)):
                    self._visit(f"{where}[{at}]", one)
            self._note(f"{where}:", len(value))
        elif isinstance(value, set | frozenset):
            self.tables.append(value)
            self._note(where, _short(str(sorted(map(repr, value)))))
        elif isinstance(value, functools.partial):
            self._visit(where, value.func)
            before = self.names
            if (function := plain_function(value.func)) is not None:
                self.names = before | code_of(nn.Module, function).names
            self._visit(f"{where}()", [value.args, value.keywords])
            self.names = before
        elif isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
            # As a decorator keeps that lets the model's own forward run.
            self.modules.append(value.__self__)
            kind: Any = type(value.__self__)
            self._visit_code(code_of(kind, plain_function(value)))
        elif isinstance(value, CODE):
            self._note(where, said(value))
            function = plain_function(value)
            if function is not None and identity_of(function) not in self._read:
                self._visit_function(function)
            self._visit_places(
                (f"{where}.{key}", function, key)
                for key in sorted(self.names & getattr(function, "__dict__", {}).keys())
            )
            if isinstance(value, types.MethodType):
                self._visit(f"{where}.__self__", value.__self__)
        elif isinstance(value, operator.attrgetter | operator.methodcaller):
            self.mentioned.update(texts_in(tree_leaves(value.__reduce__()[1])))
        elif isinstance(value, nn.Module):
            self.modules.append(value)
        elif is_object(value):
            self._visit_object(where, value)

    def to_restore(self) -> Iterator[Callable[[], object]]:
        """What gives generators, containers, arrays and attributes of objects the state again that they have now."""
        yield from map(_restarting, self.generators)
        for one in self.arrays:
            yield functools.partial(_write_back, one, one.copy())
        for table in self.tables:
            if not isinstance(table, tuple | frozenset):
                yield functools.partial(_refill, table, copy.copy(table))
        for get in self.places:
            if get.func in _PUTS:
                yield functools.partial(_PUTS[get.func], *get.args, get())
        for table, names in self._attributes:
            yield functools.partial(_forget, table, names - table.keys())

    def contents(self) -> list[Any]:
        """What is in the containers now."""
        return [one for table in self.tables for one in (table.values() if isinstance(table, dict) else table)]

    def now(self) -> list[Any]:
        """What is there, by identity; to compare with what was there before."""
        return [
            [*map(id, self.contents())],
            [len(one) for one in self.tables],
            [_identity(get()) for get in self.places if get.func is not len],
            [state_of(one) for one in self.generators],
            [version_of(one) for one in self.tensors],
            [xxhash.xxh3_64_intdigest(_bytes_of(one)) for one in self.arrays],
            [len(names & table.keys()) for table, names in self._attributes],
        ]


def _short(text: str) -> str:
    return text if len(text) < 20 * _LONG else digest_of(text.encode())


def _flat(value: Any, around: tuple[int, ...] = ()) -> Any:
    """What is in a container, and in those in it, but of objects the class alone."""
    if isinstance(value, list | tuple | collections.deque) and id(value) not in around:
        return [_flat(one, (*around, id(value))) for one in value]
    return value if isinstance(value, PLAIN) else type(value).__name__


def is_object(value: Any) -> bool:
    """Whether something is an object in whose attributes settings may be."""
    return not isinstance(value, nn.Module) and (isinstance(value, _HOLDERS) or not is_known(type(value).__module__))


class _Pieces:
    """An array in pieces, one of which is looked at each time: that takes no longer for a large one."""

    def __init__(self, array: Any) -> None:
        self._array, self._turn = array, 0
        step = max(_PIECE // max(array.itemsize, 1), 1)
        self._parts = [slice(at, at + step) for at in range(0, array.size, step)]
        self._then = [self._hash(part) for part in self._parts]

    def _hash(self, part: slice) -> int:
        flat = self._array.ravel(order="K")  # a view, where it lies in one piece
        return xxhash.xxh3_64_intdigest(_bytes_of(flat[part]))

    def next_differs(self) -> bool:
        """Whether the piece whose turn it is has changed."""
        at = self._turn = (self._turn + 1) % max(len(self._parts), 1)
        return bool(self._parts) and self._hash(self._parts[at]) != self._then[at]


def _bytes_of(array: Any) -> bytes:
    data: bytes = b"" if array.dtype.hasobject else array.tobytes()
    return data


def _write_back(array: Any, before: Any) -> None:
    if _bytes_of(array) != _bytes_of(before):
        array[...] = before


def plain_attributes(module: nn.Module, name: str, names: frozenset[str]) -> dict[str, functools.partial[Any]]:
    """What gives the numbers and the like that code finds which mentions some names, and comes by a module with them.

    They are attributes of the module and its class, and what its methods and properties read of other places.
    """
    kind: Any = type(module)
    places = [(f"{name}.{key}", vars(module), key) for key in vars(module).keys() & names - _OWN]
    places += class_attributes(kind, names)
    places += (one for code in methods_of(kind, names & defined_by(kind)) for one in code.places)
    found = {where: functools.partial(item, table, key) for where, table, key in places}
    return {where: get for where, get in found.items() if type(get()) in PLAIN}


def of_torch() -> dict[str, Any]:
    """What torch itself is told, for the whole process, about what operators give and by which kernels."""
    made = torch.empty(0)
    flags: Any = torch.backends.cuda
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # it was told for some backends only
        precision = ""
    return {
        "torch's default dtype": made.dtype,
        "torch's default device": made.device,
        "torch.are_deterministic_algorithms_enabled()": torch.are_deterministic_algorithms_enabled(),
        "torch.get_float32_matmul_precision()": precision,
        "torch.backends.cuda.flash_sdp_enabled()": flags.flash_sdp_enabled(),
        "torch.backends.cuda.mem_efficient_sdp_enabled()": flags.mem_efficient_sdp_enabled(),
        "torch.backends.cuda.math_sdp_enabled()": flags.math_sdp_enabled(),
        "torch.backends.cuda.cudnn_sdp_enabled()": flags.cudnn_sdp_enabled(),
    }


def _identity(value: Any) -> Any:
    return value if type(value) in PLAIN else id(value)


def _slot(value: Any, key: str) -> Any:
    return getattr(value, key, None)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _put_item(table: Any, key: str, value: Any) -> None:
    if not isinstance(table, dict):
        if item(table, key, value) is not value:
            setattr(table, key, value)
    elif key in table and table[key] is not value:
        table[key] = value


def _put_slot(owner: Any, key: str, value: Any) -> None:
    if _slot(owner, key) is not value:
        object.__setattr__(owner, key, value)


def _forget(table: dict[str, Any], names: frozenset[str]) -> None:
    for key in names & table.keys():
        del table[key]


_PUTS: Final[dict[Any, Callable[..., None]]] = {item: _put_item, _slot: _put_slot}


def _restarting(generator: Any) -> Callable[[], object]:
    """What gives a generator the state again that it has now."""
    if isinstance(generator, torch.Generator):
        return functools.partial(generator.set_state, generator.get_state())
    if isinstance(generator, np.random.RandomState):
        state: Any = generator.get_state()
        return functools.partial(generator.set_state, state)
    if isinstance(generator, random.Random):
        return functools.partial(generator.setstate, generator.getstate())
    return functools.partial(setattr, generator.bit_generator, "state", generator.bit_generator.state)


def restoring(value: Any) -> Iterator[Callable[[], object]]:
    """What gives an object, and what it leads to, the state again that it has now: attributes, and generators."""
    todo, seen = collections.deque([value]), dict[int, Any]()
    while todo and len(seen) < _MOST:
        one = todo.popleft()
        if id(one) in seen or isinstance(one, (*PLAIN, *CODE, torch.Tensor, nn.Module, np.ndarray)):
            continue
        seen[id(one)] = one
        if state_of(one) is not None:
            yield _restarting(one)
            continue
        table = one if isinstance(one, dict | list | collections.deque) else getattr(one, "__dict__", None)
        if isinstance(one, tuple):
            todo.extend(one[:_MOST])
        elif table is not None and len(table) < _MOST:
            yield functools.partial(_refill, table, copy.copy(table))
            todo.extend(table.values() if isinstance(table, dict) else table)


def _refill(table: Any, before: Any) -> None:
    """Let a container have the items again that it had."""
    if isinstance(table, dict):
        if list(map(id, table.values())) != list(map(id, before.values())):
            table.clear()
            table.update(before)
    elif isinstance(table, set):
        table.clear()
        table.update(before)
    elif list(map(id, table)) != list(map(id, before)):
        table.clear()
        table.extend(before)


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


PYTHON_GENERATORS: Final = (np.random.Generator, np.random.RandomState, random.Random)


def read_in(model: nn.Module) -> tuple[dict[nn.Module, Surroundings], frozenset[str], bool]:
    """What the code mentions that a forward pass may come by.

    Modules without parameters count only if code names them: metrics that a loop feeds stand beside what runs.

    Returns:
        The modules that it may come by, and what is around each; the names that their code, and what they call,
        mentions; whether it reads attributes of modules by names that only a run tells.
    """
    names, every, loose = frozenset[str](), False, set[nn.Module]()
    while True:
        around = {
            part: Surroundings(part, name, names, every=every)
            for name, part in model.named_modules()
            if every or part in loose or any(True for _ in part.parameters()) or _may_reach(model, name, names)
        }
        found = led_to(set(map(type, around)), names.union(*(one.mentioned for one in around.values())))
        any_name = any(one.reads_any for one in around.values())
        others = {each for one in around.values() for module in one.modules for each in module.modules()}
        if (found, any_name, others) == (names, every, loose):
            return around, names, every
        names, every, loose = found, any_name, others


def names_child(module: nn.Module, key: str, names: frozenset[str]) -> bool:
    """Whether code that mentions some names may come by a part of a module: by its name, or by going over all."""
    return key in names or isinstance(module, _CONTAINERS) or not names.isdisjoint(OVER_ALL)


def _may_reach(model: nn.Module, name: str, names: frozenset[str]) -> bool:
    steps = name.split(".") if name else []
    return all(names_child(model.get_submodule(".".join(steps[:at])), step, names) for at, step in enumerate(steps))


def state_of(value: Any) -> bytes | None:
    """The state of a generator of random numbers; None for anything else."""
    if isinstance(value, torch.Generator):
        return bytes(bytes_of(value.get_state()))
    if isinstance(value, np.random.Generator | np.random.RandomState):
        bits: Any = value.bit_generator if isinstance(value, np.random.Generator) else value
        return repr(bits.state if isinstance(value, np.random.Generator) else value.get_state()).encode()
    if isinstance(value, random.Random):
        return repr(value.getstate()).encode()
    return None
