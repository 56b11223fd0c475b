"""The trust gate: files that torch or pickle wrote, opened without running the code in them.

This is the only place that calls ``torch.load``, and it does so only where the user said the file
is trusted, or where a kind of tensor needs it. Everything else is read by a machine that can
run nothing (:mod:`ftkit._pickles.machine`), and tensors straight from where their bytes are.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import pickle
import types
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, MutableSequence
from typing import Any, BinaryIO, Final

import torch
from torch import Tensor

from ftkit._files import atomic_write
from ftkit._pickles.admission import HOOKS, Allowed, admitted, alarm, may_be_called
from ftkit._pickles.machine import Foreign, Global, StorageRef, StoredTensor
from ftkit._pickles.torchfiles import PickleFile, PlainPickle, tensor_in
from ftkit._pickles.values import CALLED, NAMED, is_of_numpy, numpy_value
from ftkit._tensors.budget import Budget
from ftkit._wording import cause, shown, some
from ftkit.errors import CheckpointError, UntrustedFileError

_ERRORS: Final = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What making something raises whose description makes no sense."""


def load_pickle(file: PickleFile, *, allow: Iterable[Allowed] = (), trusted: bool = False) -> Any:
    """Return what a file of ``torch.save`` or ``pickle`` holds, with its tensors on the CPU.

    Plain data and tensors are read without running anything. A file that needs more is refused,
    and the error lists what it asks for.

    Args:
        file: The file.
        allow: Classes and functions to admit: themselves, or their full dotted names. Functions are admitted as values
            alone, and never called; what is never admitted is listed in :mod:`ftkit._pickles.admission`.
        trusted: Admit everything. Code in the file then runs with your permissions.

    Raises:
        UntrustedFileError: The file asks for more than was admitted.
        DamagedFileError: It is incomplete, or some bytes are not the ones that were written.

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
    unsafe = (one for one in _parts(file.tree, file.budget) if isinstance(one, Foreign | Global))
    if trusted and (file.wanted or file.rare or any(unsafe)):
        with file.verified_whole() as whole:
            if isinstance(file, PlainPickle):
                return pickle.load(whole)  # noqa: S301  (the caller trusts it)
            return torch.load(whole, map_location="cpu", weights_only=False)
    return _load(file, admitted((*allow, *HOOKS.intersection(file.wanted))))


def load_parts(file: PickleFile) -> tuple[Any, dict[str, list[str]]]:
    """Return what a file holds, as :func:`load_pickle` does, but leave out what only code could make.

    Returns:
        What it holds. If that is a table, the entries that need no code; and for each of the others, what it wants. Of
        tensors, what was set on them is left out in the same way.

    Raises:
        UntrustedFileError: It is not a dict, and asks for code.
        DamagedFileError: It is incomplete, or some bytes are not the ones that were written.

    Example:
        >>> import torch
        >>> from ftkit._formats import open_file
        >>> from ftkit._pickles.gate import load_parts
        >>> torch.save({"epoch": 3, "layer": torch.nn.Identity()}, "theirs.pt")
        >>> with open_file("theirs.pt") as file:
        ...     load_parts(file)
        ({'epoch': 3}, {'layer': ['torch.nn.modules.linear.Identity']})
    """
    if file.script or not isinstance(file.tree, dict):
        return load_pickle(file), {}
    if file.rare and not file.wanted:
        with contextlib.suppress(UntrustedFileError):
            return load_pickle(file), {}
    return _Maker(file, {}).make_parts(file)


def _parts(node: Any, budget: Budget) -> Iterator[Any]:
    """All that a part of a file is made of, itself included, each once."""
    seen: dict[int, Any] = {}
    rest = [node]
    while rest:
        one = rest.pop()
        if isinstance(one, str | bytes | int | float) or id(one) in seen:
            continue
        seen[id(one)] = one
        budget.charge(steps=1 + (len(one) if isinstance(one, dict | list | tuple | set | frozenset) else 0))
        yield one
        if isinstance(one, Foreign):
            rest += [one.function, *one.args, one.state, *one.items, *one.keywords.values()]
        elif isinstance(one, dict):
            rest += [*one.keys(), *one.values()]
            rest += [one.default_factory] if isinstance(one, defaultdict) else []
        elif isinstance(one, list | tuple | set | frozenset):
            rest += one


def _wanted_by(node: Any, file: PickleFile) -> list[str]:
    """Which of the names that a file wants a part of it refers to. What was set on tensors can be left out."""
    found = {one.name for one in _parts(node, file.budget) if isinstance(one, Global)}
    return [name for name in file.wanted if name in found]


def _load(file: PickleFile, known: Mapping[str, Any]) -> Any:
    """Make what a file holds, by calls of what was admitted and no others."""
    if refused := [name for name in file.wanted if name not in known]:
        raise UntrustedFileError(_refusal(file.path, refused))
    calls = (one for one in _parts(file.tree, file.budget) if isinstance(one, Foreign)) if known else ()
    if called := {one.name: None for one in calls if not _is_made(one, known)}:
        raise UntrustedFileError(
            f"{file.path} would call {some([*called], 6)}, and allow= admits only making instances of classes. "
            "If you made the file, load_model(path, trusted=True) opens it."
        )
    if file.rare:
        return _load_by_torch(file, known)
    try:
        return _Maker(file, known).make(file.tree)
    except (RecursionError, *_ERRORS) as error:
        raise CheckpointError(
            f"The objects in {file.path} can't be rebuilt: {type(error).__name__}: {shown(error)}. It is damaged, or "
            "was written with other versions of its classes. load_weights(model, path) reads only its weights."
        ) from error


def _is_made(call: Foreign, known: Mapping[str, Any]) -> bool:
    """Whether a call in a file makes an object of a class that was admitted, or a plain value."""
    if not isinstance(call.function, Global):
        return False
    thing = known.get(call.function.name)
    return thing is None or may_be_called(thing, bare=call.new)


def _load_by_torch(file: PickleFile, known: Mapping[str, Any]) -> Any:
    """Have torch make what holds rarer kinds of tensors. It would call functions, so it gets to know classes alone."""
    safe: list[Any] = [(known[name], name) for name in file.wanted if isinstance(known[name], type)]
    with file.verified_whole() as whole, torch.serialization.safe_globals(safe), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it checks sparse tensors
        try:
            return torch.load(whole, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, AssertionError, EOFError, MemoryError, *_ERRORS) as error:
            raise UntrustedFileError(
                f"{file.path} contains {' and '.join(file.rare)} tensors, which only torch can build, and something "
                "else that torch.load(weights_only=True) refuses. If you know where the file comes from, "
                "load_model(path, trusted=True) opens it. Dense weights need no trust: load_weights(model, path)."
            ) from error


def save_pickle(thing: object, path: str | os.PathLike[str], *, plain: bool = False) -> None:
    """Write anything as ``torch.save`` does, whole or not at all.

    Args:
        thing: What to write.
        path: The file.
        plain: Refuse what ``torch.load(path, weights_only=True)`` would refuse to open.

    Raises:
        FileWriteError: The file could not be written. Any existing file is left intact.
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
                f"A {kind} can't be pickled: {cause(error)}. save_weights saves only its tensors."
            ) from error
        except RuntimeError as error:
            raise sink.error or error from error
        if plain:
            file.seek(0)
            try:
                unsafe = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
            except pickle.UnpicklingError:  # an instruction that torch has not learned
                unsafe = ["a very large number or text"]
            if unsafe:
                raise CheckpointError(
                    f"{shown(path)} would contain {some(unsafe, 8)}, which torch.load(weights_only=True) "
                    "refuses to open. Use a name that ends in .safetensors, or plain values."
                )


class _Sink:
    """A file for torch to write to, which remembers why a write failed: torch only says that it did."""

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
    listed = "".join(f"\n    {shown(name)}{alarm(name)}" for name in wanted[:40])
    more = f"\n    ... and {len(wanted) - 40} more" if len(wanted) > 40 else ""
    if any(map(alarm, wanted)):
        advice = "No model needs some of these: don't open the file, and report it where you got it."
    else:
        advice = (
            "If you know where it comes from, load_model(path, allow=[...]) admits these, and trusted=True everything. "
            "Weights alone need no trust: load_weights(model, path)."
        )
    return f"Opening {path} would run code. Besides plain data and tensors it asks for:{listed}{more}\n{advice}"


class _Maker:
    """Makes the objects and tensors of a tree, each part once, calling nothing but what was admitted."""

    def __init__(self, file: PickleFile, known: Mapping[str, Any]) -> None:
        self._memory = file.read_storages()
        self._budget = file.budget
        self._known = known
        self._made: dict[int, Any] = {}
        self._left_out: dict[str, list[str]] | None = None
        self._place = ""

    def make(self, node: Any) -> Any:
        if id(node) not in self._made:
            made = self._new(node)
            self._made.setdefault(id(node), made)  # a tuple may have been made on the way to itself
        return self._made[id(node)]

    def make_parts(self, file: PickleFile) -> tuple[dict[Any, Any], dict[str, list[str]]]:
        """Make the entries of a table that need no code; and tell what the others want."""
        whole: dict[Any, Any] = {}
        self._made[id(file.tree)] = whole
        self._left_out = {}
        for index, (key, node) in enumerate(file.tree.items()):
            self._place = key if isinstance(key, str) else f"entry {index + 1}"
            if file.wanted and (code := _wanted_by((key, node), file)):
                self._left_out[self._place] = code
                continue
            with self._or_left_out():
                whole[self._key(key)] = self.make(node)
        return whole, self._left_out

    @contextlib.contextmanager
    def _or_left_out(self, part: str = "") -> Iterator[None]:
        """Where parts may be left out, leave out what can't be made, and all that was made of it."""
        known = len(self._made)
        try:
            yield
        except _ERRORS as error:
            if self._left_out is None:
                raise
            self._left_out.setdefault(f"{self._place}: {part}" if part else self._place, []).append(str(error))
            for half_made in [*self._made][known:]:
                del self._made[half_made]

    def _new(self, node: Any) -> Any:
        match node:
            case StoredTensor():
                return self._tensor(node)
            case StorageRef():
                return self._memory[node].untyped_storage()
            case dict():
                # A table or list is known before its parts, which may refer back to it.
                table = self._made[id(node)] = node.copy()
                table.clear()
                for key, value in node.items():
                    table[self._key(key)] = self.make(value)
                return table
            case list():
                items: list[Any] = []
                self._made[id(node)] = items
                items.extend(map(self.make, node))
                return items
            case torch.Size():
                return node
            case tuple():
                return tuple(map(self.make, node))
            case set() | frozenset():
                return type(node)(map(self._key, node))
            case Global(name):
                if name in self._known or name in NAMED:
                    return self._known.get(name, NAMED.get(name))
                raise TypeError(name)
            case Foreign():
                return numpy_value(node, self.make) if is_of_numpy(node.name) else self._call(node)
        return node

    def _key(self, node: Any) -> Any:
        """Make a key of a table or a member of a set, if hashing it takes no longer than reading it did."""
        (key,) = self._budget.keys([self.make(node)])
        return key

    def _tensor(self, node: StoredTensor) -> Tensor:
        made = self._made[id(node)] = tensor_in(self._memory[node.storage], node)
        if node.kind:
            with self._or_left_out("the class of a tensor"):
                made = self._made[id(node)] = made.as_subclass(self._new(Global(node.kind)))
        state = node.state if isinstance(node.state, tuple) else (node.state, None)
        for attributes in state:
            for name, value in (attributes or {}).items():
                with self._or_left_out(f"{name} of a tensor"):
                    _set_state(made, {name: self.make(value)})
        return made

    def _call(self, node: Foreign) -> Any:
        function = self._known.get(node.name, CALLED.get(node.name))
        if function is None or not _is_made(node, self._known):
            raise TypeError(f"{node.name[:80]!r} in it describes nothing that can be made")
        args = self.make(node.args)
        keywords = {name: self.make(value) for name, value in node.keywords.items()}
        call = functools.partial(function.__new__, function) if node.new else function
        made = self._made[id(node)] = call(*args, **keywords)
        state = self.make(node.state)
        if hasattr(made, "__setstate__"):
            if state is not None:
                made.__setstate__(state)
        else:
            _set_state(made, state)
        for item in node.items:
            if isinstance(made, dict):
                made[self.make(item[0])] = self.make(item[1])
            elif isinstance(made, MutableSequence):
                made.append(self.make(item))
            else:
                raise TypeError(f"items for a {type(made).__name__}")
        return made


def _set_state(made: object, state: Any) -> None:
    """Set an object's attributes, as pickle does, but run none of its class's properties."""
    attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    if attributes:
        vars(made).update(attributes)
    for name, value in (slots or {}).items():
        slot = inspect.getattr_static(type(made), name, None)
        if not isinstance(slot, types.MemberDescriptorType):
            raise TypeError(f"{name!r} of a {type(made).__name__} is no slot")
        slot.__set__(made, value)
