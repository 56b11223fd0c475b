"""What code mentions: names of attributes, methods and globals, read from functions without running them."""

from __future__ import annotations

import builtins
import dataclasses
import dis
import functools
import hashlib
import inspect
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any, Final

import torch
from torch import nn

PLAIN: Final = (type(None), bool, int, float, complex, str, bytes)
_KNOWN: Final = {"torch", "numpy", "functorch", "ftkit", "builtins"} | set(sys.stdlib_module_names) - {"__main__"}
_RUN: Final = {"forward", "setup_context"}  # what autograd's functions run in a forward pass
OVER_ALL: Final = frozenset(
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
    "getmembers", "eval", "exec", "fields", "asdict", "astuple",
}  # fmt: skip
_BUILTINS: Final = frozenset(vars(builtins))
_CALLED: Final = 2  # values that are put on the stack for what is called next
_NAMED: Final = 2  # those that are there once the owner of an attribute is, and its name
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
    classes = [one for one in read if not is_known(one.__module__)]
    todo = [own or getattr(kind, "forward", None)]
    seen: set[tuple[int, ...]] = set()
    functions: list[types.FunctionType] = []
    entered: list[type] = []

    def enter(value: types.ModuleType | type, mentioned: set[str]) -> None:
        if is_known(value.__name__ if isinstance(value, types.ModuleType) else value.__module__):
            return
        run = set[str]()
        if isinstance(value, type):
            entered.append(value)
            run = _RUN if issubclass(value, torch.autograd.Function) else {"__call__", "__enter__"}
        for inner in (mentioned | run) & vars(value).keys():
            todo.append(vars(value)[inner])
            places[id(value), inner] = f"{value.__name__}.{inner}", value, inner

    while todo:
        *around, function = functions_of(todo.pop()) or (None,)
        if function is None or identity_of(function) in seen:
            continue
        known = is_known(function.__module__ or "")
        if known and not any(plain_function(vars(one).get(function.__name__)) is function for one in read):
            continue
        seen.add(identity_of(function))
        functions.append(function)
        mentioned = {*_names(function.__code__), *texts_in(function.__code__.co_consts)}
        for decorator in around:
            mentioned |= {*_names(decorator.__code__), *texts_in(decorator.__code__.co_consts)}
        told = mentioned - _BUILTINS | {name for one in (*around, function) for name in _attributes(one.__code__)}
        names |= told - OVER_ALL if known else told
        todo += [vars(one)[name] for name in told for one in (*read, *entered) if name in vars(one)]
        if known:  # of torch's modules what they read of themselves; its containers go over what is in them alone
            continue
        called |= {*_names(function.__code__)}
        owners = set[str | None]().union(*map(_read_by_any_name, (*around, function))) - {"config"}
        first, *others = function.__code__.co_varnames[: function.__code__.co_argcount] or ("",)
        is_method = any(plain_function(vars(one).get(function.__name__)) is function for one in entered)
        if not issubclass(kind, nn.Module) or (kind is nn.Module and first == "self") or is_method:
            owners &= {*others}  # a method of an object is called with modules, if at all
        reads_any = reads_any or bool(owners)
        for cell, name in zip(function.__closure__ or (), function.__code__.co_freevars, strict=False):
            try:
                found = cell.cell_contents
            except ValueError:
                continue
            if isinstance(found, type):
                enter(found, mentioned)
            todo.append(found)
            kept.append((f"{function.__qualname__}: {name}", cell))
        kept += [(f"{function.__qualname__}: a default", one) for one in function.__defaults__ or ()]
        by_globals = {name for one in (*around, function) for name in _globals(one.__code__)}
        for name in mentioned:
            if name in told and name not in by_globals:  # an attribute, of whatever
                continue
            if name in function.__globals__:
                value = function.__globals__[name]
            elif name in by_globals and name in sys.modules:  # which the function itself imports
                value = sys.modules[name]
            else:
                continue
            if isinstance(value, types.ModuleType | type):
                enter(value, mentioned)
            else:
                todo.append(value)
                places[id(function.__globals__), name] = f"{function.__module__}.{name}", function.__globals__, name
    owners_of: list[Any] = [*classes, *entered, *functions]
    for one in owners_of:
        for name in names & vars(one).keys():
            places[id(one), name] = f"{one.__qualname__}.{name}", one, name
    telling = tuple(one for one in places.values() if not isinstance(item(*one[1:]), types.ModuleType | type))
    return Code(frozenset(names), telling, tuple(kept), not _DRAW.isdisjoint(called), reads_any, frozenset(seen))


def _is_read(kind: type) -> bool:
    """Whether the code of a class is read: of a module's, and of what is in no package that is known."""
    if issubclass(kind, nn.Module):
        return kind is not nn.Module and not issubclass(kind, torch.jit.ScriptModule)
    return not is_known(kind.__module__)


@functools.lru_cache(maxsize=4096)
def defined_by(kind: type) -> frozenset[str]:
    """What a class, and those that it inherits from, define; but for those whose code is not read."""
    return frozenset[str]().union(*(vars(one) for one in kind.__mro__ if _is_read(one)))


@functools.lru_cache(maxsize=4096)
def methods_of(kind: type, names: frozenset[str]) -> tuple[Code, ...]:
    """The code of the methods and properties of a class that some names may call."""
    found = (inspect.getattr_static(kind, name, None) for name in sorted(names))
    return tuple(code_of(kind, one) for each in found if (one := plain_function(each)) is not None)


def called_of(kind: type, names: frozenset[str]) -> tuple[Code, ...]:
    """The code of the methods of a class that some names may call, and of those that operators and syntax call."""
    if not _is_read(kind):
        return ()
    special = {name for name in defined_by(kind) if name[:2] == "__"} - _BESIDE
    return methods_of(kind, names & defined_by(kind) | special)


def class_attributes(kind: type, names: frozenset[str]) -> Iterator[tuple[str, Any, str]]:
    """Where those lie that have one of some names."""
    for one in kind.__mro__ if not names.isdisjoint(defined_by(kind)) else ():
        for name in sorted(names & vars(one).keys()) if not is_known(one.__module__) else ():
            if not isinstance(vars(one)[name], types.ModuleType | type | types.MemberDescriptorType):
                yield f"{one.__qualname__}.{name}", one, name


def led_to(kinds: Iterable[type], names: frozenset[str]) -> frozenset[str]:
    """Some names, and those that code mentions which they may lead to: methods and properties of some classes.

    Not that of ``forward``: a module that is called is watched itself, or trains.
    """
    found, new = {"forward"}, names - {"forward"}
    while new:
        found |= new
        codes = (code for kind in kinds for code in methods_of(kind, new & defined_by(kind)))
        new = frozenset[str]().union(*(code.names for code in codes)) - found
    return frozenset(found - {"forward"})


CODE = (
    types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType, type, staticmethod, classmethod,
    property,
)  # fmt: skip


def functions_of(value: Any) -> list[types.FunctionType]:
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


def plain_function(value: Any) -> types.FunctionType | None:
    """The function that is called in the end; None where it is not written in Python."""
    functions = functions_of(value)
    return functions[-1] if functions else None


def identity_of(function: types.FunctionType) -> tuple[int, ...]:
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


def _globals(code: types.CodeType) -> Iterator[str]:
    """Those names that are of globals, or of what is imported; and texts, as ``globals()["cap"]`` has one."""
    yield from texts_in(code.co_consts)
    for one in dis.get_instructions(code):
        if isinstance(one.argval, types.CodeType):
            yield from _globals(one.argval)
        elif one.opname.startswith(("LOAD_GLOBAL", "LOAD_NAME", "IMPORT_")):
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


def texts_in(consts: Iterable[Any]) -> Iterator[str]:
    """The names among constants: what ``getattr(config, "scale", 1)`` reads, say."""
    for one in consts:
        if isinstance(one, str) and (parts := one.split(".")) and all(map(str.isidentifier, parts)):
            yield from parts
        elif isinstance(one, tuple | frozenset):
            yield from texts_in(one)
        elif isinstance(one, types.CodeType):
            yield from texts_in(one.co_consts)


def is_known(module: str | None) -> bool:
    """Whether a module is of torch, NumPy, Python or ftkit, whose code is not read."""
    return (module or "").partition(".")[0] in _KNOWN


def said(value: Any) -> str:
    """What tells a function or class from others, in another process too."""
    function = plain_function(value)
    name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__name__)}"
    if function is None or is_known(function.__module__):
        return name
    return f"{name} {_digest_of_code(function.__code__)}"


@functools.lru_cache(maxsize=4096)
def _digest_of_code(code: types.CodeType) -> str:
    consts = [one for one in code.co_consts if type(one) in PLAIN]
    return digest_of(code.co_code + repr((consts, code.co_names)).encode())


def digest_of(data: Any) -> str:
    """What tells bytes from others, in few characters."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def item(table: Any, key: str, default: Any = None) -> Any:
    """What a dict has under a key; of a class or module, the attribute of its own."""
    return (table if isinstance(table, dict) else vars(table)).get(key, default)
