"""The statements of a constructor that start weights, to be run once more on a copy of the model.

Not all of a constructor: it may download, read files and log. What is run again does nothing but start weights (calls
that write in place, as torch's own initializers do, and functions of which all the code is of that kind, or which are
named for it), and computes plain values for that. It did run when the model was built. Arguments that are needed are
taken from attributes of the same name, from what a library notes of them, from the call in the constructor of a
subclass or of the holder, and else from their defaults.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import functools
import inspect
import re
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from ftkit._heads.counters import counts_classes
from ftkit._heads.layers import read
from ftkit._torch import children_of

SAYS_INIT = re.compile(r"(^|_)init(ialize)?_weights?|weights?_init|_init$|(^|_)init_cnn$")
_WEIGHTS = {"weight", "bias", "parameters", "named_parameters", "reset_parameters"}  # of these the code of one speaks

# Calls that change nothing beyond what they are given: into these modules, of these functions, of these methods.
_MODULES = ("math", "torch", "nn", "init", "np", "numpy", "functools")
_FUNCTIONS = (
    *("abs", "enumerate", "float", "getattr", "hasattr", "int", "isinstance", "len", "list", "max", "min", "partial"),
    *("prod", "range", "reversed", "round", "sqrt", "sum", "tuple", "zip"),
)
_METHODS = (
    *("children", "dim", "get", "get_parameter", "get_submodule", "item", "items", "keys", "modules", "named_children"),
    *("named_modules", "named_parameters", "numel", "parameters", "size", "startswith", "endswith", "values", "view"),
)
_OUTSIDE = re.compile(r"load|save|hub|compile|hook|share|file|distributed|seed")
_LOADS = re.compile(r"load|pretrain|checkpoint|quantiz")  # what puts trained weights in place starts none
_PARAMETER = "Parameter"  # how torch calls a tensor that a layer learns
_DEEPEST = 5  # functions that call functions

_Inside: TypeAlias = tuple[object, ...]  # the functions that are being read


@dataclass(frozen=True)
class _Part:
    """The statements of one function that start weights: of a constructor, or of one that makes a layer for it."""

    function: types.FunctionType
    statements: tuple[tuple[types.CodeType, int], ...]  # each with its last line if it starts weights itself, or else 0
    registers: tuple[tuple[str, int, object], ...]  # names of modules, the lines that register them, their classes
    aliases: tuple[tuple[str, str], ...]  # names of local layers, and where the model keeps them
    left_out: tuple[tuple[str, int], ...]  # calls that may start weights and do other things too, and their lines
    passed: tuple[tuple[str, types.CodeType], ...]  # the arguments that its caller passes
    caller: types.FunctionType | None


def starts_weights(kind: type) -> bool:
    """Whether the constructors of a class have statements that start weights, or may do so."""
    return bool(_parts(kind))


def replay(
    shell: nn.Module, child: str, holder: nn.Module | None, name: str, classes: int
) -> Iterator[Callable[[], object]]:
    """The statements of the constructors of a module that start weights, in their order, as actions on the module.

    One that can't be run again, as it does other things too, is an action that fails.

    Args:
        shell: The module.
        child: The name of a child; what runs before that is registered is left out. Empty for all.
        holder: What holds the module in the model.
        name: Under which name.
        classes: How many classes there are, for an argument that counts them and that nothing has kept.
    """
    scopes: dict[types.FunctionType | None, dict[str, Any]] = {}
    modules: dict[str, nn.Module] = dict(shell.named_modules(remove_duplicate=False))
    kind: type = type(shell)
    parts = _parts(kind)
    passed = _passed_by(holder, name, parts[-1].function, classes) if parts and holder is not None else {}
    for part in reversed(parts):  # those who call first
        scope = scopes[part.function] = surroundings(part.function)
        passed = passed if part is parts[-1] else _values(part.passed, scopes.get(part.caller, {}))
        scope.update(_known_arguments(part.function, passed, shell, classes))
        scope.update((name, modules[place]) for name, place in part.aliases if place in modules)
        scope["self"] = shell
    lines = [min((line for known, line, _ in part.registers if known == child), default=0) for part in parts]
    last = max((index for index, line in enumerate(lines) if line), default=0)
    made = [kind for part in parts[last : last + 1] for known, _, kind in part.registers if known == child]
    if made and all(isinstance(kind, type) and not isinstance(read(shell, child), kind) for kind in made):
        return  # something else was put there from outside
    for index, part in enumerate(parts):
        early = index < last and not (part.caller is parts[last].function and part.function.__name__ != "__init__")
        for statement, line in part.statements:
            if line > lines[index] and not early:
                yield functools.partial(exec, statement, scopes[part.function])
            elif not line:
                with contextlib.suppress(Exception):  # a value that hangs on what nothing tells
                    exec(statement, scopes[part.function])  # noqa: S102 -- computes plain values, as it did when the model was built
        for call, line in part.left_out:
            named = {name for name in re.findall(r"self\.(\w+)", call) if name in children_of(shell)}
            if line > lines[index] and not early and (not named or child in named):
                yield functools.partial(_refuse, call)


def _refuse(call: str) -> None:
    raise RuntimeError(f"{call} does more than start weights")


def sets_weights(function: object) -> bool:
    """Whether a function's code speaks of the weights of a module."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    return not _WEIGHTS.isdisjoint(getattr(code, "co_names", ()))


def own_classes(module: nn.Module) -> list[type]:
    """The classes of a module, the nearest first, without torch's own."""
    return [kind for kind in type(module).__mro__ if not kind.__module__.startswith("torch.nn.")]


# ---- reading


@functools.lru_cache(maxsize=128)
def _parts(kind: type) -> tuple[_Part, ...]:
    """What the constructors of a class do to start weights, that of the class it inherits from first."""
    found: list[_Part] = []
    caller: tuple[types.FunctionType, list[ast.stmt]] | None = None
    for one in kind.__mro__:
        function = (
            inspect.unwrap(vars(one).get("__init__", object)) if not one.__module__.startswith("torch.") else None
        )
        body = _body(function)
        if isinstance(function, types.FunctionType) and body is not None:
            names = surroundings(function) | {"self": kind} | _local_functions(body)
            passed = () if caller is None else _passed(_call_of_super(caller[1]), function)
            found.append(_part(function, body, names, _kept_names(body), passed, caller and caller[0]))
            found += _makers(function, body, names)
            caller = (function, body)
    return tuple(reversed(found)) if any(part.statements or part.left_out for part in found) else ()


def _part(
    function: types.FunctionType,
    body: list[ast.stmt],
    names: Mapping[str, object],
    aliases: Iterable[tuple[str, str]],
    passed: tuple[tuple[str, types.CodeType], ...],
    caller: types.FunctionType | None,
) -> _Part:
    kept = {part: any(_does_start(tree, names) for tree in ast.walk(part)) for part in _kept(body, names)}
    codes = [
        (
            compile(ast.fix_missing_locations(ast.Module([part], [])), "<a start>", "exec"),
            starts * (part.end_lineno or 0),
        )
        for part, starts in (kept if any(kept.values()) else {}).items()
    ]
    registers = [] if function.__name__ != "__init__" else list(_registered(body, names))
    left_out = tuple(_left_out(body, [*kept], names))
    return _Part(function, tuple(codes), tuple(registers), tuple(aliases), left_out, passed, caller)


def _left_out(body: list[ast.stmt], kept: list[ast.stmt], names: Mapping[str, object]) -> Iterator[tuple[str, int]]:
    """What may start weights and was not kept, as it does other things too, each with its line."""
    kinds = ast.Call | ast.Assign | ast.AugAssign
    known = {ast.unparse(tree) for one in kept for tree in ast.walk(one) if isinstance(tree, kinds)}
    for tree in ast.walk(ast.Module(body, [])):
        may = _may_start(tree, names) if isinstance(tree, ast.Call) else _does_start(tree, names)
        if may and isinstance(tree, kinds) and ast.unparse(tree) not in known:
            yield ast.unparse(tree), tree.lineno


def _writes(call: ast.Call) -> bool:
    """Whether a call writes in place, by its name."""
    last = ast.unparse(call.func).rpartition(".")[2]
    return last.endswith("_") and not last.endswith("__") and last != "requires_grad_"


def _may_start(call: ast.Call, names: Mapping[str, object]) -> bool:
    """Whether a call writes into weights, or calls a function that does."""
    if _writes(call):
        return True
    name = ast.unparse(call.func)
    given = [part for one in call.args for part in ast.walk(one) if isinstance(part, ast.Name | ast.Attribute)]
    for meant in (name, *map(ast.unparse, given)):
        found = _meant(meant, names)
        inner = found.body if isinstance(found, ast.FunctionDef) else _body(found) if sets_weights(found) else None
        calls = (tree for tree in ast.walk(ast.Module(inner or [], [])) if isinstance(tree, ast.Call))
        if any(map(_writes, calls)) and not _LOADS.search(meant):
            return True
    return False


def _registered(body: list[ast.stmt], names: Mapping[str, object]) -> Iterator[tuple[str, int, object]]:
    """The attributes that a constructor sets, each with the line in which it does, or makes what it sets; its class."""
    trees = list(ast.walk(ast.Module(body, [])))
    made: dict[str, int] = {}  # the lines in which local names get their values
    for tree in trees:
        if isinstance(tree, ast.Assign) and isinstance(tree.targets[0], ast.Name):
            made.setdefault(tree.targets[0].id, tree.lineno)
    for tree in trees:
        if isinstance(tree, ast.Assign) and isinstance(tree.targets[0], ast.Attribute):
            target, value = ast.unparse(tree.targets[0]), tree.value
        elif isinstance(tree, ast.Call) and ast.unparse(tree.func) == "self.add_module" and len(tree.args) == 2:
            target, value = f"self.{getattr(tree.args[0], 'value', '')}", tree.args[1]
        else:
            continue
        if target not in ast.unparse(value):  # else it is what it was, with something around it
            lines = [made[name] for name, _ in _names_in(value, "") if name in made]
            kind = _meant(ast.unparse(value.func), names) if isinstance(value, ast.Call) else None
            yield target.removeprefix("self."), min([*lines, tree.lineno]), getattr(kind, "cls_to_become", kind)


def _does_start(tree: ast.AST, names: Mapping[str, object]) -> bool:
    if isinstance(tree, ast.Assign | ast.AugAssign):
        return any(_is_weight(one, tree.value) for one in _targets(tree))
    return isinstance(tree, ast.Call) and _starts(tree, names)


@functools.lru_cache(maxsize=512)
def _body(function: object) -> list[ast.stmt] | None:
    """The statements of a function as they are written."""
    if not isinstance(function, types.FunctionType):
        return None
    try:
        written = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, SyntaxError, TypeError):  # made by code
        return None
    if not isinstance(written, ast.FunctionDef):
        return None
    own = [argument.arg for argument in (*written.args.posonlyargs, *written.args.args)][:1]
    if function.__name__ == "__init__" and own and own != ["self"]:
        _Renamed(own[0], "self").visit(written)
    return written.body


class _Renamed(ast.NodeTransformer):
    """Gives a name another one, in what a function does and in the functions in it."""

    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = old, new

    def visit_Name(self, node: ast.Name) -> ast.Name:
        node.id = self._new if node.id == self._old else node.id
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.arg = self._new if node.arg == self._old else node.arg
        return node


def _kept(body: Iterable[ast.stmt], names: Mapping[str, object]) -> Iterator[ast.stmt]:
    """Leave of some statements what starts weights or computes plain values, in loops and under conditions too."""
    for one in body:
        if isinstance(one, ast.For | ast.If | ast.With):
            inner, other = (list(_kept(getattr(one, part, []), names)) for part in ("body", "orelse"))
            heads = [one.iter] if isinstance(one, ast.For) else [one.test] if isinstance(one, ast.If) else one.items
            if (inner or other) and all(_is_harmless(head, names) for head in heads):
                left = copy.copy(one)
                left.body = inner or [ast.Pass()]
                if not isinstance(left, ast.With):
                    left.orelse = other
                yield left
        elif isinstance(one, ast.FunctionDef):
            if _does_nothing_else(one.body, names):
                yield one
        elif isinstance(one, ast.Expr):
            if _is_harmless(one, names) and any(_does_start(tree, names) for tree in ast.walk(one)):
                yield one
        elif isinstance(one, ast.Assign | ast.AugAssign) and _is_harmless(one.value, names):
            value = one.value
            if all(isinstance(target, ast.Name | ast.Tuple) or _is_weight(target, value) for target in _targets(one)):
                yield one


def _targets(tree: ast.Assign | ast.AugAssign) -> list[ast.expr]:
    return tree.targets if isinstance(tree, ast.Assign) else [tree.target]


def _is_weight(target: ast.expr, value: ast.expr | None) -> bool:
    """Whether an assignment writes into a weight, ``layer.bias.data[0] = 1``, or puts one into another module."""
    written = ast.unparse(target)
    if isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] == _PARAMETER:
        return written.endswith((".weight", ".bias")) and written not in ("self.weight", "self.bias")
    return re.search(
        r"\.data$" if isinstance(target, ast.Attribute) else r"\.(data|weight|bias)\b.*\]$", written
    ) is not None and (written != "self.data")


def _does_nothing_else(body: list[ast.stmt], names: Mapping[str, object], inside: _Inside = ()) -> bool:
    """Whether all that some statements do is to start weights."""
    said = [one for one in body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))]
    trees = [tree for one in said for tree in ast.walk(one)]
    wrong = (ast.Global, ast.Nonlocal, ast.Import, ast.ImportFrom, ast.Delete, ast.ClassDef, ast.Yield, ast.Await)
    sets = [tree for tree in trees if isinstance(tree, ast.Assign | ast.AugAssign)]
    targets: list[tuple[ast.expr, ast.expr | None]]
    targets = [(target, tree.value) for tree in sets for target in _targets(tree)]
    targets += [(tree.target, tree.value) for tree in trees if isinstance(tree, ast.AnnAssign)]
    return (
        all(_is_harmless(one, names, inside) for one in said)
        and not any(isinstance(tree, wrong) for tree in trees)
        and all(isinstance(target, ast.Name | ast.Tuple) or _is_weight(target, value) for target, value in targets)
        and (
            any(isinstance(tree, ast.Call) and _starts(tree, names, inside) for tree in trees)
            or any(_is_weight(target, value) for target, value in targets)
        )
    )


def _is_harmless(tree: ast.AST, names: Mapping[str, object], inside: _Inside = ()) -> bool:
    """Whether an expression calls nothing but what starts weights, computes, or looks at modules and tensors."""
    for call in (one for one in ast.walk(tree) if isinstance(one, ast.Call)):
        owner, _, last = ast.unparse(call.func).rpartition(".")
        known = owner.partition(".")[0] in _MODULES and last.lstrip("_")[:1].islower()
        known = known or last in (_METHODS if owner else _FUNCTIONS) or last.endswith("Error") or last == _PARAMETER
        if _OUTSIDE.search(last) or not (known or _starts(call, names, inside)):
            return False
    return True


def _starts(call: ast.Call, names: Mapping[str, object], inside: _Inside = ()) -> bool:
    """Whether a call starts weights: in place, as torch's own initializers do, or by a function that does so."""
    name = ast.unparse(call.func)
    last = name.rpartition(".")[2]
    if last in ("apply", "named_apply"):  # of torch, and of timm
        given = [part for one in call.args for part in ast.walk(one)]
        named = [ast.unparse(part) for part in given if isinstance(part, ast.Name | ast.Attribute)]
        inline = any(isinstance(one, ast.Lambda) for one in given)
        return inline or any(_is_start(_meant(one, names), one, names, inside) for one in named)
    return _writes(call) or _is_start(_meant(name, names), last, names, inside)


def _is_start(found: object, name: str, names: Mapping[str, object], inside: _Inside) -> bool:
    """Whether a function starts weights: by its name and as its code speaks of them, or as it does nothing else."""
    if any(found is one for one in inside) or len(inside) == _DEEPEST:
        return len(inside) < _DEEPEST  # one that calls itself adds nothing
    if isinstance(found, ast.FunctionDef):
        return _does_nothing_else(found.body, names, (*inside, found))
    if SAYS_INIT.search(name.rpartition(".")[2]) and sets_weights(found):
        return True
    body = _body(found)
    around = (surroundings(found) if isinstance(found, types.FunctionType) else {}) | {"self": names.get("self")}
    return body is not None and _does_nothing_else(body, around, (*inside, found))


def _meant(name: str, names: Mapping[str, object]) -> object:
    """What a dotted name means, without computing anything."""
    first, *rest = name.split(".")
    found = names.get(first)
    for step in rest:
        found = None if found is None else inspect.getattr_static(found, step, None)
    return getattr(found, "__func__", found)


def surroundings(function: types.FunctionType) -> dict[str, Any]:
    """The names that a function's code sees around it."""
    found = dict(function.__globals__)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # it has no value yet
            found[name] = cell.cell_contents
    return found


def _local_functions(body: list[ast.stmt]) -> dict[str, object]:
    return {one.name: one for one in body if isinstance(one, ast.FunctionDef)}


# ---- where local layers go


def _kept_names(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Local names of what a constructor then registers, and the names under which it does."""
    for one in body:
        if isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Attribute):
            yield from _names_in(one.value, ast.unparse(one.targets[0]).removeprefix("self."))


def _names_in(value: ast.expr | None, place: str) -> Iterator[tuple[str, str]]:
    """A local name, or those that an ``nn.Sequential`` is made of."""
    if isinstance(value, ast.Name):
        yield value.id, place
    elif isinstance(value, ast.Call) and ast.unparse(value.func).endswith("Sequential"):
        for index, part in enumerate(value.args):
            yield from _names_in(part, f"{place}.{index}")


def _makers(caller: types.FunctionType, body: list[ast.stmt], names: Mapping[str, object]) -> Iterator[_Part]:
    """The functions by which a constructor makes what it registers: ``self.head = make_head(32, classes)``."""
    for one in body:
        if (
            isinstance(one, ast.Assign)
            and isinstance(one.targets[0], ast.Attribute)
            and isinstance(one.value, ast.Call)
        ):
            function = _meant(ast.unparse(one.value.func), names)
            inner = _body(function)
            if isinstance(function, types.FunctionType) and inner is not None and function is not caller:
                place = ast.unparse(one.targets[0]).removeprefix("self.")
                returned = [tree.value for tree in ast.walk(ast.Module(inner, [])) if isinstance(tree, ast.Return)]
                aliases = [pair for value in returned for pair in _names_in(value, place)]
                around = surroundings(function) | {"self": names["self"]} | _local_functions(inner)
                yield _part(function, inner, around, aliases, _passed(one.value, function), caller)


# ---- arguments


def _call_of_super(body: list[ast.stmt]) -> ast.Call | None:
    calls = (one.value for one in body if isinstance(one, ast.Expr) and isinstance(one.value, ast.Call))
    return next((call for call in calls if re.fullmatch(r"super\(.*\)\.__init__", ast.unparse(call.func))), None)


def _passed(call: ast.Call | None, function: types.FunctionType) -> tuple[tuple[str, types.CodeType], ...]:
    """The arguments that a call passes to a function, by name, as far as they are plain."""
    if call is None:
        return ()
    names = [*inspect.signature(function).parameters]
    free = names[1:] if function.__name__ == "__init__" else [name for name in names if name != "self"]
    given = [*zip(free, call.args, strict=False), *((one.arg, one.value) for one in call.keywords if one.arg)]
    plain = [(name, value) for name, value in given if _is_harmless(value, {}) and not isinstance(value, ast.Starred)]
    return tuple((name, compile(ast.Expression(value), "<an argument>", "eval")) for name, value in plain)


def _values(passed: Iterable[tuple[str, types.CodeType]], scope: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, code in passed:
        with contextlib.suppress(Exception):  # a name that nothing tells
            found[name] = eval(code, dict(scope))  # noqa: S307 -- a plain value of a constructor that has run
    return found


def _passed_by(holder: nn.Module, name: str, function: types.FunctionType, classes: int) -> dict[str, Any]:
    """The arguments with which the constructor of a holder makes the module of that name: plain ones."""
    for kind in own_classes(holder):
        caller = inspect.unwrap(vars(kind).get("__init__", object))
        for one in _body(caller) or ():
            made = isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == f"self.{name}" and one.value
            if isinstance(made, ast.Call) and isinstance(caller, types.FunctionType):
                known = _known_arguments(caller, {}, holder, classes)
                return _values(_passed(made, function), surroundings(caller) | known)
    return {}


def _known_arguments(
    function: types.FunctionType, passed: Mapping[str, Any], holder: nn.Module, classes: int
) -> dict[str, Any]:
    """What is known of the arguments of a function that makes a module, or a part of it."""
    own = vars(holder)
    places = [own, *(value for value in own.values() if isinstance(value, Mapping))]
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        values = [] if parameter.default is parameter.empty else [parameter.default]
        values += [classes] if counts_classes(name) else []
        values += [passed[name]] if name in passed else []
        values += [place[key] for place in places for key in (f"_{name}", name) if key in place]
        if values or name in own.get("_modules", {}):
            found[name] = values[-1] if values else read(holder, name)
    return found
