"""What the code of a module reads beside its inputs and registered tensors: attributes, what they lead to, globals."""

from __future__ import annotations

import argparse
import builtins
import collections
import copy
import dataclasses
import dis
import enum
import functools
import hashlib
import inspect
import operator
import random
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import numpy as np
import torch
import xxhash
from torch import nn

from ftkit._models.contents import bytes_of
from ftkit._precompute.stands import own_forward
from ftkit._torch import hooks_of, pre_hooks_of, tree_leaves, version_of

_PLAIN: Final = (type(None), bool, int, float, complex, str, bytes)
_KNOWN: Final = {"torch", "numpy", "functorch", "ftkit", "builtins"} | set(sys.stdlib_module_names) - {"__main__"}
_OWN: Final = frozenset(vars(nn.Module())) | {"forward", "training"}
_HOLDERS: Final = (types.SimpleNamespace, argparse.Namespace, threading.local)  # of what anyone puts there
_RUN: Final = {"forward", "setup_context"}  # what autograd's functions run in a forward pass
_CONTAINERS: Final = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_OVER_ALL: Final = frozenset(
    {"children", "modules", "named_children", "named_modules", "_modules", "get_submodule", "apply"}
)
_BESIDE: Final = (vars(object).keys() - {"__getattribute__"}) | {
    "__setstate__",
    "__copy__",
    "__deepcopy__",
    "__del__",
    "__post_init__",
}
_ASKED: Final = {"__getattr__", "__getattribute__"}
_BY_ANY_NAME: Final = {
    "getattr", "hasattr", "vars", "__dict__", "__getattribute__", "attrgetter", "methodcaller", "getattr_static",
    "getmembers", "eval", "exec",
}  # fmt: skip
_BUILTINS: Final = frozenset(vars(builtins))
_CALLED: Final = 2  # values that are put on the stack for what is called next
_NAMED: Final = 2  # those that are there once the owner of an attribute is, and its name
_MISSING: Final = object()
_PIECE: Final = 1 << 20  # bytes
_MOST: Final = 2000  # places that are looked at for one module
_DRAW: Final = frozenset({
    "Generator", "default_rng", "RandomState", "Random", "SystemRandom", "urandom", "token_bytes", "uuid4",
})  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Code:
    """What the forward of a class, and the functions that it may lead to, mention.

    Attributes:
        names: All names: of attributes, functions and globals; and texts that may name some, as for ``getattr``.
        places: Where globals and class attributes lie: what to call them, their table (or class, or module) and key.
        kept: Containers that functions keep from call to call: defaults, and variables of enclosing functions.
        draws: Whether it makes a generator of random numbers, of which no state is seen from outside.
        reads_any: Whether it reads attributes by names that only a run tells.
        functions: Those that were read, by identity.
    """

    names: frozenset[str]
    places: tuple[tuple[str, Any, str], ...]
    kept: tuple[tuple[str, Any], ...]
    draws: bool
    reads_any: bool
    functions: frozenset[tuple[int, ...]]


@functools.lru_cache(maxsize=4096)
def code_of(kind: type, own: Any = None) -> Code:
    """Read the code of a class of modules, or of a function that stands for its ``forward``."""
    names, called = {"forward"}, set[str]()
    places: dict[tuple[int, str], tuple[str, Any, str]] = {}
    kept: list[tuple[str, Any]] = []
    reads_any = False
    read = [one for one in kind.__mro__ if _is_read(one)]
    classes = [one for one in read if not _known(one.__module__)]
    todo = [own or getattr(kind, "forward", None)]
    seen: set[tuple[int, ...]] = set()
    while todo:
        *around, function = _functions(todo.pop()) or (None,)
        if function is None or _identity_of(function) in seen:
            continue
        known = _known(function.__module__ or "")
        if known and not any(_plain_function(vars(one).get(function.__name__)) is function for one in read):
            continue
        seen.add(_identity_of(function))
        mentioned = {*_names(function.__code__), *_texts(function.__code__.co_consts)}
        for decorator in around:
            mentioned |= {*_names(decorator.__code__), *_texts(decorator.__code__.co_consts)}
        told = mentioned - _BUILTINS | {name for one in (*around, function) for name in _attributes(one.__code__)}
        names |= told - _OVER_ALL if known else told
        todo += [vars(one)[name] for name in told for one in read if name in vars(one)]
        if known:  # of torch's modules what they read of themselves; its containers go over what is in them alone
            continue
        called |= {*_names(function.__code__)}
        owners = set[str | None]().union(*map(_read_by_any_name, (*around, function))) - {"config"}
        first, *others = function.__code__.co_varnames[: function.__code__.co_argcount] or ("",)
        if not issubclass(kind, nn.Module) or (kind is nn.Module and first == "self"):
            owners &= {*others}  # a method of an object is called with modules, if at all
        reads_any = reads_any or bool(owners)
        for cell, name in zip(function.__closure__ or (), function.__code__.co_freevars, strict=False):
            try:
                found = cell.cell_contents
            except ValueError:
                continue
            todo.append(found)
            kept.append((f"{function.__qualname__}: {name}", cell))
        kept += [(f"{function.__qualname__}: a default", one) for one in function.__defaults__ or ()]
        for name in mentioned:
            if name not in function.__globals__:
                continue
            value = function.__globals__[name]
            if isinstance(value, types.ModuleType | type):
                if not _known(value.__name__ if isinstance(value, types.ModuleType) else value.__module__):
                    run = _RUN if isinstance(value, type) and issubclass(value, torch.autograd.Function) else set[str]()
                    for inner in (mentioned | run) & vars(value).keys():
                        todo.append(vars(value)[inner])
                        places[id(value), inner] = f"{value.__name__}.{inner}", value, inner
            else:
                todo.append(value)
                places[id(function.__globals__), name] = f"{function.__module__}.{name}", function.__globals__, name
    for one in classes:
        for name in names & vars(one).keys():
            places[id(one), name] = f"{one.__qualname__}.{name}", one, name
    telling = tuple(one for one in places.values() if not isinstance(_item(*one[1:]), types.ModuleType | type))
    return Code(frozenset(names), telling, tuple(kept), not _DRAW.isdisjoint(called), reads_any, frozenset(seen))


def _is_read(kind: type) -> bool:
    """Whether the code of a class is read: of a module's, and of what is in no package that is known."""
    if issubclass(kind, nn.Module):
        return kind is not nn.Module and not issubclass(kind, torch.jit.ScriptModule)
    return not _known(kind.__module__)


@functools.lru_cache(maxsize=4096)
def _defined_by(kind: type) -> frozenset[str]:
    """What a class, and those that it inherits from, define; but for those whose code is not read."""
    return frozenset[str]().union(*(vars(one) for one in kind.__mro__ if _is_read(one)))


@functools.lru_cache(maxsize=4096)
def _methods_of(kind: type, names: frozenset[str]) -> tuple[Code, ...]:
    """The code of the methods and properties of a class that some names may call."""
    found = (inspect.getattr_static(kind, name, None) for name in sorted(names))
    return tuple(code_of(kind, one) for each in found if (one := _plain_function(each)) is not None)


def _called(kind: type, names: frozenset[str]) -> tuple[Code, ...]:
    """The code of the methods of a class that some names may call, and of those that operators and syntax call."""
    if not _is_read(kind):
        return ()
    special = {name for name in _defined_by(kind) if name[:2] == "__"} - _BESIDE
    return _methods_of(kind, names & _defined_by(kind) | special)


def _class_attributes(kind: type, names: frozenset[str]) -> Iterator[tuple[str, Any, str]]:
    """Where those lie that have one of some names."""
    for one in kind.__mro__ if not names.isdisjoint(_defined_by(kind)) else ():
        for name in sorted(names & vars(one).keys()) if not _known(one.__module__) else ():
            if not isinstance(vars(one)[name], types.ModuleType | type | types.MemberDescriptorType):
                yield f"{one.__qualname__}.{name}", one, name


def led_to(kinds: Iterable[type], names: frozenset[str]) -> frozenset[str]:
    """Some names, and those that code mentions which they may lead to: methods and properties of some classes.

    Not that of ``forward``: a module that is called is watched itself, or trains.
    """
    found, new = {"forward"}, names - {"forward"}
    while new:
        found |= new
        codes = (code for kind in kinds for code in _methods_of(kind, new & _defined_by(kind)))
        new = frozenset[str]().union(*(code.names for code in codes)) - found
    return frozenset(found - {"forward"})


_CODE = (
    types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType, type, staticmethod, classmethod,
    property,
)  # fmt: skip


def _functions(value: Any) -> list[types.FunctionType]:
    """A function, or what a property or the like calls, with the decorators around it that say what they wrap."""
    around: list[Any] = []

    def note(one: Any) -> bool:
        around.append(one)
        return False

    while True:
        if isinstance(value, staticmethod | classmethod | types.MethodType):
            value = value.__func__
        elif isinstance(value, property):
            value = value.fget
        elif isinstance(value, functools.partial):
            value = value.func
        elif hasattr(value, "__wrapped__") and not isinstance(value, type):
            value = inspect.unwrap(value, stop=note)
        else:
            return [one for one in (*around, value) if isinstance(one, types.FunctionType)]


def _plain_function(value: Any) -> types.FunctionType | None:
    functions = _functions(value)
    return functions[-1] if functions else None


def _identity_of(function: types.FunctionType) -> tuple[int, ...]:
    """Tells functions apart that differ in their code or in the variables of the function around."""
    return id(function.__code__), *map(id, function.__closure__ or ())


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for one in code.co_consts:
        if isinstance(one, types.CodeType):
            yield from _names(one)


def _attributes(code: types.CodeType) -> Iterator[str]:
    """Those names that are of attributes."""
    for one in dis.get_instructions(code):
        if isinstance(one.argval, types.CodeType):
            yield from _attributes(one.argval)
        elif "ATTR" in one.opname or "METHOD" in one.opname:
            yield one.argval


def _read_by_any_name(function: types.FunctionType) -> set[str | None]:
    """Of what a function reads attributes whose names its code does not have, by the last name on the way there.

    What ``__getattr__`` is asked for, other code names.
    """
    asked = {"getattr", "hasattr", "__getattribute__"} if function.__name__ in _ASKED else set[str]()
    return {*_owners(function.__code__, asked)}


def _owners(code: types.CodeType, asked: set[str]) -> Iterator[str | None]:
    steps = [*dis.get_instructions(code)] if not _BY_ANY_NAME.isdisjoint(code.co_names) else []
    for at, one in enumerate(steps):
        if one.argval not in _BY_ANY_NAME - asked or not one.opname.startswith("LOAD"):
            continue
        if "ATTR" in one.opname or "METHOD" in one.opname:
            yield steps[at - 1].argval
        elif (owner := _owner_in_call(one, steps[at + 1 :])) != "":
            yield owner
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _owners(inner, asked)


def _owner_in_call(function: dis.Instruction, steps: list[dis.Instruction]) -> str | None:
    """Of what ``getattr`` and the like read, by the last name there; "" if the attribute's name is known.

    It is if it is a text in the code, or in an attribute.
    """
    depth, is_text, owner = 0, False, None
    for one in steps if dis.stack_effect(function.opcode, function.arg) == _CALLED else ():
        if one.opname in ("PRECALL", "CALL") and one.arg == depth:
            return "" if is_text and function.argval in ("getattr", "hasattr") else owner
        if one.opcode in dis.hasjrel or one.opcode in dis.hasjabs:
            return None
        before, depth = depth, depth + dis.stack_effect(one.opcode, one.arg)
        if depth <= _NAMED:  # else it is about the default
            is_text = (before, depth, one.opname) == (1, _NAMED, "LOAD_CONST") and isinstance(one.argval, str)
            is_text = is_text or (depth == _NAMED and one.opname == "LOAD_ATTR")
        if depth == 1:
            owner = one.argval if isinstance(one.argval, str) else None
        if depth < 1:
            return None
    return None


def _texts(consts: Iterable[Any]) -> Iterator[str]:
    """The names among constants: what ``getattr(config, "scale", 1)`` reads, say."""
    for one in consts:
        if isinstance(one, str) and (parts := one.split(".")) and all(map(str.isidentifier, parts)):
            yield from parts
        elif isinstance(one, tuple | frozenset):
            yield from _texts(one)
        elif isinstance(one, types.CodeType):
            yield from _texts(one.co_consts)


def _known(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _KNOWN


class Surroundings:
    """Where a module's code finds what is no registered tensor, with the values that are there.

    Args:
        module: The module; what is registered in it, other modules and tensors, is left out.
        name: What to call it.
        named: What other code mentions, which may read attributes of the module, or call its methods.
        every: Whether to look at attributes that no code mentions, too.
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
    ) -> None:
        kind: Any = type(module)
        code = code_of(kind, next(iter(_functions(own_forward(module))), None))
        held = (
            function
            for key, one in vars(module).items()
            if (every or key in named) and isinstance(one, types.FunctionType | types.MethodType)
            if (function := _plain_function(one)) is not None
        )
        self.names = code.names.union(*(code_of(kind, one).names for one in held))
        """Which the code mentions."""
        self.mentioned = set(self.names) if others is None else set()
        """The same, with what that code mentions that it comes by: functions, and methods of objects."""
        self.reads_any = code.reads_any and others is None
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
        self._read = set(code.functions)
        prefix = f"{name}." if name else ""
        if others is not None:
            self.names = others
            for key in sorted(vars(module).keys() & others - _OWN):
                if isinstance(value := vars(module)[key], dict) or _is_object(value):
                    self.places.append(functools.partial(_item, vars(module), key))
                    self._visit(prefix + key, value)
            return
        for key, value in list(vars(module).items()):
            # Frameworks note their own state in private attributes of a model, as Lightning what it runs now.
            noted = key.startswith("_") and type(value) in (type(None), bool, complex, str, bytes)
            if (
                key not in _OWN
                and not key.startswith("_ftkit")
                and (key in self.names or key in named or (every and not noted))
            ):
                self._visit(prefix + key, value)
        for hook in (*pre_hooks_of(module).values(), *hooks_of(module).values()):
            read = code_of(nn.Module, _plain_function(hook) or _plain_function(vars(type(hook)).get("__call__")))
            self.mentioned |= read.names
            self.reads_any = self.reads_any or read.reads_any
        self._visit_code(code)
        for one in _called(kind, named - {"forward"}):
            self._visit_code(one)
        self._visit_places(_class_attributes(kind, named))

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
            if (found := _item(table, key, _MISSING)) is not _MISSING:
                self.places.append(functools.partial(_item, table, key))
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
        self.values[where] = said(kind)
        before, methods = self.names, _called(kind, self.names)
        self.names = before.union(*(one.names for one in methods))
        table = getattr(value, "__dict__", {})
        self._attributes.append((table, self.names))
        self.places.append(functools.partial(len, table))
        for key in sorted(self.names & table.keys()):
            self.places.append(functools.partial(_item, table, key))
            self._visit(f"{where}.{key}", table[key])
        for key in sorted({slot for one in kind.__mro__ for slot in _slots(one)} & self.names):
            self.places.append(functools.partial(_slot, value, key))
            self._visit(f"{where}.{key}", getattr(value, key, None))
        self._visit_places(_class_attributes(kind, self.names))
        for code in methods:
            self.draws |= code.draws
            self._visit_code(code)
        self.names = before

    def _visit(self, where: str, value: Any) -> None:
        if type(value) in _PLAIN:
            self.values[where] = value
            self.mentioned.update(_texts([value]))  # as ``getattr(self, self.kind)`` reads
            return
        if isinstance(value, enum.Enum | torch.dtype | torch.device | torch.Size | np.dtype):
            self.values[where] = str(value)
            return
        if id(value) in self._seen or len(self._seen) > _MOST:
            return
        self._seen.add(id(value))
        if isinstance(value, torch.Tensor):
            if value.layout is torch.strided and not value.is_meta and type(value) is torch.Tensor:
                self.tensors.append(value)
                self.values[where] = f"{value.dtype} {list(value.shape)} {_digest(bytes_of(value))}"
        elif isinstance(value, np.ndarray):
            self.values[where] = f"{value.dtype} {value.shape} {_digest(_bytes_of(value))}"
            self.arrays.append(value)
            self.places.append(functools.partial(_Pieces.next_differs, _Pieces(value)))
        elif (state := state_of(value)) is not None:
            self.generators.append(value)
            self.values[where] = _digest(state)
        elif isinstance(value, dict):
            self.tables.append(value)
            for key, one in list(value.items()):
                self._visit(f"{where}[{str(key) if type(key) in _PLAIN else type(key).__name__:.60}]", one)
            self.values[f"{where}:"] = len(value)
        elif isinstance(value, list | tuple | collections.deque):
            self.tables.append(value)
            for at, one in enumerate(list(value)):
                self._visit(f"{where}[{at}]", one)
            self.values[f"{where}:"] = len(value)
        elif isinstance(value, set | frozenset):
            self.tables.append(value)
            self.values[where] = str(sorted(map(repr, value)))[:1000]
        elif isinstance(value, functools.partial):
            self._visit(f"{where}()", [value.args, value.keywords])
            self._visit(where, value.func)
        elif isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
            # As a decorator keeps that lets the model's own forward run.
            self.modules.append(value.__self__)
            kind: Any = type(value.__self__)
            self._visit_code(code_of(kind, _plain_function(value)))
        elif isinstance(value, _CODE):
            self.values[where] = said(value)
            function = _plain_function(value)
            if function is not None and _identity_of(function) not in self._read:
                self._visit_function(function)
            if isinstance(value, types.MethodType):
                self._visit(f"{where}.__self__", value.__self__)
        elif isinstance(value, operator.attrgetter | operator.methodcaller):
            self.mentioned.update(_texts(tree_leaves(value.__reduce__()[1])))
        elif isinstance(value, nn.Module):
            self.modules.append(value)
        elif _is_object(value):
            self._visit_object(where, value)

    def to_restore(self) -> Iterator[Callable[[], object]]:
        """What gives generators, containers, arrays and attributes of objects the state again that they have now."""
        yield from map(_restarting, self.generators)
        for array in self.arrays:
            yield functools.partial(_write_back, array, array.copy())
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


def _is_object(value: Any) -> bool:
    """Whether something is an object in whose attributes settings may be."""
    return not isinstance(value, nn.Module) and (isinstance(value, _HOLDERS) or not _known(type(value).__module__))


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
    places += _class_attributes(kind, names)
    places += (one for code in _methods_of(kind, names & _defined_by(kind)) for one in code.places)
    found = {where: functools.partial(_item, table, key) for where, table, key in places}
    return {where: get for where, get in found.items() if type(get()) in _PLAIN}


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
    return value if type(value) in _PLAIN else id(value)


def _item(table: Any, key: str, default: Any = None) -> Any:
    return (table if isinstance(table, dict) else vars(table)).get(key, default)


def _slot(value: Any, key: str) -> Any:
    return getattr(value, key, None)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _put_item(table: Any, key: str, value: Any) -> None:
    if not isinstance(table, dict):
        if _item(table, key, value) is not value:
            setattr(table, key, value)
    elif key in table and table[key] is not value:
        table[key] = value


def _put_slot(owner: Any, key: str, value: Any) -> None:
    if _slot(owner, key) is not value:
        object.__setattr__(owner, key, value)


def _forget(table: dict[str, Any], names: frozenset[str]) -> None:
    for key in names & table.keys():
        del table[key]


_PUTS: Final[dict[Any, Callable[..., None]]] = {_item: _put_item, _slot: _put_slot}


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
        if id(one) in seen or isinstance(one, (*_PLAIN, *_CODE, torch.Tensor, nn.Module, np.ndarray)):
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
    return key in names or isinstance(module, _CONTAINERS) or not names.isdisjoint(_OVER_ALL)


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


def _digest(data: Any) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def said(value: Any) -> str:
    """What tells a function or class from others, in another process too."""
    function = _plain_function(value)
    name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__name__)}"
    if function is None or _known(function.__module__):
        return name
    return f"{name} {_digest_of_code(function.__code__)}"


@functools.lru_cache(maxsize=4096)
def _digest_of_code(code: types.CodeType) -> str:
    consts = [one for one in code.co_consts if type(one) in _PLAIN]
    return _digest(code.co_code + repr((consts, code.co_names)).encode())
