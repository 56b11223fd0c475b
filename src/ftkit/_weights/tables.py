"""The tensors in anything: tables of them, at every level of nested dicts, lists, models and records of objects."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ftkit._pickles.machine import Foreign, StoredTensor
from ftkit._pickles.values import is_of_numpy, numpy_value
from ftkit._tensors.budget import Budget
from ftkit._tensors.file import TensorInfo
from ftkit.errors import CheckpointError

_MAX_BITS: Final = 10_000  # of a number: Python refuses to write one of more than 4,300 digits
_PART: Final = 64  # bytes that it takes to note a part
_NAME: Final = 512  # bytes that an entry takes, and its places in tables
MAX_DEPTH: Final = 12  # levels of a checkpoint, or of modules in modules, that are looked into
MAX_ITEMS: Final = 64  # of a list: optimizers and models in one are few, and numbers are many
_FREE_BYTES: Final = 1 << 20  # a tensor may repeat its storage up to this size: scalars are often expanded

# The tables in a pickled module that make up its state dict, and the set of names that it leaves out.
_REGISTERED: Final = ("_parameters", "_buffers", "_modules")
_PASSING: Final = "_non_persistent_buffers_set"

_Keys: TypeAlias = tuple[str | int, ...]

_Skipped: TypeAlias = tuple[_Keys, _Keys | None]
"""Where something is that a walk does not go into, and where it was met before, if that is why."""

Reader: TypeAlias = "Callable[[list[tuple[Entry, Tensor]]], None]"
"""Fills several targets at once with entries of one file."""


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One tensor of a source.

    Attributes:
        stored: Its description in a file, or the tensor itself.
        read: What fills targets with it and others of the same file.
        key: What that file calls it.
        budget: What pays for copies of it.
    """

    stored: TensorInfo | StoredTensor | Tensor
    read: Reader
    key: str
    budget: Budget

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.stored.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Its type."""
        return self.stored.dtype

    @property
    def nbytes(self) -> int:
        """The bytes that its values take."""
        return math.prod(self.shape) * self.dtype.itemsize

    def empty(self, dtype: torch.dtype | None = None) -> Tensor:
        """Make room for its values.

        Raises:
            CheckpointError: It repeats a few bytes of the file, to which a few bytes can claim any size.
            DamagedFileError: The file asks for it too often, under other names.
        """
        stored = self.stored
        if isinstance(stored, StoredTensor) and self.nbytes > max(stored.storage.nbytes, _FREE_BYTES):
            raise CheckpointError(
                f"{self.key!r} repeats {stored.storage.nbytes:,} bytes to {self.nbytes:,}: there is no room for that."
            )
        self.budget.charge(nbytes=self.nbytes)
        return torch.empty(self.shape, dtype=dtype or self.dtype)

    @property
    def digest(self) -> str | None:
        """The digest of its values, where the file holds one."""
        return self.stored.digest if isinstance(self.stored, TensorInfo) else None


@dataclass(frozen=True, slots=True)
class Table:
    """Tensors by name, somewhere inside a source.

    Attributes:
        path: The keys that lead to it; empty for the whole.
        entries: Its tensors, those of tables inside it under dotted names.
        numbered: Those in tables that are keyed by numbers, as optimizers keep what they know of each parameter. Nobody
            takes them for weights, unless there is nothing else.
        mapped: By what mapping they were made from others, in words; empty if they are as the source has them.
        unnamed: What no name stands for, in words: keys that are no text, and names that two tensors share.
        unread: Where there are more tensors, or other names for these, in words: what is too deep or too long to be
            looked into, and tables that were met under another name.
    """

    path: tuple[str, ...]
    entries: dict[str, Entry]
    numbered: dict[str, Entry] = field(default_factory=dict)
    mapped: str = ""
    unnamed: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


def copy_into(pairs: Iterable[tuple[Entry, Tensor]]) -> None:
    """Read what is in memory already."""
    for entry, target in pairs:
        if isinstance(entry.stored, Tensor):
            target.detach().copy_(entry.stored.detach())


def parts_of(entries: Mapping[str, Entry]) -> list[Table]:
    """The tables that the first components of dotted names stand for."""
    parts: dict[str, dict[str, Entry]] = {}
    for name, entry in entries.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = entry
    return [Table((part,), inside) for part, inside in parts.items()]


def tables_in(tree: Any, read: Reader = copy_into, budget: Budget | None = None) -> list[Table]:
    """Find every table that holds tensors, at any depth; the outermost first.

    Args:
        tree: A state dict, a checkpoint, a model, or what a pickle machine made of a file.
        read: What reads the tensors that are still in the file.
        budget: That of the file which the tree comes from, if it does.

    Example:
        >>> import torch
        >>> from ftkit._weights.tables import tables_in
        >>> [(table.path, list(table.entries)) for table in tables_in({"epoch": 3, "model": {"w": torch.ones(2)}})]
        [((), ['model.w']), (('model',), ['w'])]
    """
    tables: list[Table] = []
    walker = _Walker(budget or Budget(math.inf))
    inner = ((path, part) for path, part in walker.walk(tree) if not (path and _is_tensor(part)))
    for path, part in sorted(inner, key=lambda found: len(found[0])):
        if any(isinstance(key, int) for key in path):
            continue
        entries: dict[str, Entry] = {}
        numbered: dict[str, Entry] = {}
        unnamed: list[str] = []
        skipped: list[_Skipped] = []
        for keys, one in walker.walk(part, skipped):
            unnamed += map(repr, _unnamed(one))
            if _is_tensor(one):
                name = walker.name(keys)
                if name in entries or name in numbered:
                    unnamed.append(f"{name!r} twice")
                elif len(keys) == 1 and isinstance(keys[0], int):
                    unnamed.append(name)
                # What is in memory already, such as an array inside a pickle, needs no reading.
                entry = Entry(one, read if isinstance(one, StoredTensor) else copy_into, name, walker.budget)
                (numbered if any(isinstance(key, int) for key in keys) else entries)[name] = entry
        if entries or (numbered and not path):
            unread = tuple(_unread(skipped, entries.keys() | numbered.keys()))
            tables.append(Table(tuple(map(str, path)), entries or numbered, numbered, "", tuple(unnamed), unread))
    return tables


def _unread(skipped: list[_Skipped], names: Collection[str]) -> Iterator[str]:
    """Say in words what a walk has passed by that may hold tensors; of what it met twice, whether it does is known."""
    for keys, first in skipped:
        place, known = (".".join(map(str, way)) for way in (keys, first or ()))
        if first is None:
            yield f"{place!r} in part"
        elif any(f"{name}.".startswith(f"{known}.") for name in names):
            yield f"{place!r}, which is {known!r} too"


def plain_values(tree: Any) -> dict[str, Any]:
    """The numbers and texts in the outermost table, which say what its tensors are."""
    if not isinstance(tree, Mapping):
        return {}
    return {
        key: value
        for key, value in tree.items()
        if isinstance(key, str) and isinstance(value, str | int | float | None) and not _is_long(value)
    }


def _is_long(value: Any) -> bool:
    """Whether a number has more digits than Python writes."""
    return isinstance(value, int) and value.bit_length() > _MAX_BITS


class _Walker:
    """Goes through all parts of a tree, as often as it is asked; what that costs is paid by the budget."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._arrays: dict[int, Any] = {}
        self._overlong: dict[int, bool] = {}

    def walk(self, root: Any, skipped: list[_Skipped] | None = None) -> Iterator[tuple[_Keys, Any]]:
        """Every part below a root, itself included, with the keys that lead there; what is reached twice comes once.

        Arrays come as the tensors that they are. One tensor comes under each of its names. What is passed by is noted
        in ``skipped``, but for what leads back to where it lies in, which never ends.
        """
        seen: dict[int, _Keys] = {}
        skipped = [] if skipped is None else skipped
        stack: list[tuple[_Keys, Any]] = [((), root)]
        while stack:
            path, node = stack.pop()
            if _is_tensor(part := self._as_tensor(node)):
                yield path, part
            elif (first := seen.get(id(node))) is not None:
                if not _is_plain(node) and path[: len(first)] != first:
                    skipped.append((path, first))
            else:
                seen[id(node)] = path
                yield path, node
                if self._is_cut(node, len(path)):
                    skipped.append((path, None))
                if len(path) < MAX_DEPTH:
                    self.budget.charge(steps=1 + (count := _breadth(node)), nbytes=_PART * count)
                    stack += reversed([((*path, key), child) for key, child in _children(node)])

    def _is_cut(self, node: Any, depth: int) -> bool:
        """Whether parts of something are not looked at that may be or hold tensors."""
        if depth >= MAX_DEPTH:
            return next(_children(node), None) is not None
        if not isinstance(node, list | tuple) or len(node) <= MAX_ITEMS:
            return False
        if id(node) not in self._overlong:
            self._overlong[id(node)] = not all(map(_is_plain, node[MAX_ITEMS:]))
        return self._overlong[id(node)]

    def name(self, keys: _Keys) -> str:
        """The dotted name of what lies under these keys."""
        words = [*map(str, keys)]
        self.budget.charge(nbytes=_NAME + 4 * sum(map(len, words)))
        return ".".join(words)

    def _as_tensor(self, node: Any) -> Any:
        """The tensor that an array of numpy is, the same one each time; anything else as it is."""
        if not isinstance(node, Foreign | np.ndarray):
            return node
        if id(node) not in self._arrays:
            self._arrays[id(node)] = _as_tensor(node)
        return self._arrays[id(node)]


def _breadth(node: Any) -> int:
    """How many parts of something are looked at."""
    if isinstance(node, Mapping):
        return len(node)
    if isinstance(node, Foreign):
        state = _slotless(node.state)
        inside = sum(_breadth(part) for name in _REGISTERED if (part := state.get(name)) is not None)
        return len(node.items) + len(state) + inside
    return MAX_ITEMS if isinstance(node, list | tuple) else 0


def _is_tensor(node: Any) -> bool:
    return isinstance(node, StoredTensor) or (isinstance(node, Tensor) and not (node.is_nested or is_lazy(node)))


def _as_tensor(node: Any) -> Any:
    """The tensor that an array of numpy is, one in a pickle included; anything else as it is."""
    array = node
    if isinstance(node, Foreign) and is_of_numpy(node.name) and len(node.args) > 2:  # a number has fewer
        with contextlib.suppress(LookupError, TypeError, ValueError):  # an array that makes no sense is no tensor
            array = numpy_value(node)
    if isinstance(array, np.ndarray) and array.dtype.kind in "biuf":
        with contextlib.suppress(TypeError):  # torch lacks some types
            return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C", copy=False))
    return node


def _children(node: Any) -> Iterator[tuple[str | int, Any]]:
    """The named parts of a dict, a list, a model, or of a record of what would have been an object."""
    if isinstance(node, nn.Module):
        node = node.state_dict()
    if isinstance(node, Mapping):
        yield from ((key, part) for key, part in node.items() if _is_name(key) and not _is_plain(part))
    elif isinstance(node, list | tuple):
        yield from ((str(at), part) for at, part in enumerate(node[:MAX_ITEMS]) if not _is_plain(part))
    elif isinstance(node, Foreign):
        yield from _children(_attributes(node.state))
        pairs = (item for item in node.items if isinstance(item, tuple) and len(item) == 2)
        yield from ((key, value) for key, value in pairs if isinstance(key, str))


def _unnamed(node: Any) -> Iterator[Any]:
    """The keys of a table that are no names, and under which there may be tensors."""
    items = node.items if isinstance(node, Foreign) else node.items() if isinstance(node, Mapping) else ()
    for item in items:
        if isinstance(item, tuple) and len(item) == 2 and not (_is_name(item[0]) or _is_plain(item[1])):
            yield item[0]


def _is_name(key: Any) -> bool:
    """Whether a key is a name, or the number of something that may hold tensors."""
    return isinstance(key, str) or (type(key) is int and 0 <= key < 1 << 32)


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | bytes | int | float | None)


def _slotless(state: Any) -> dict[Any, Any]:
    """The table in a state; of an object with slots, that of its attributes."""
    if isinstance(state, tuple) and state and isinstance(state[0], dict):
        state = state[0]
    return state if isinstance(state, dict) else {}


def _attributes(state: Any) -> dict[Any, Any]:
    """What an object would have as attributes; for a module, what its state dict would hold."""
    table = _slotless(state)
    if not all(isinstance(table.get(name), dict) for name in _REGISTERED):
        return table
    kept = {key: value for name in _REGISTERED for key, value in table[name].items()}
    passing = table.get(_PASSING)
    return {key: value for key, value in kept.items() if not (isinstance(passing, set) and key in passing)}
