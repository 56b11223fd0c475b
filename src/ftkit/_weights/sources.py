"""Whatever people keep weights in, seen as one thing: names, shapes and types, and bytes on demand."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeAlias, assert_never

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ftkit._formats import SUFFIXES, ObjectFormat, TensorFormat, content_format
from ftkit._pickles.gate import numpy_value
from ftkit._pickles.machine import Foreign, StoredTensor
from ftkit._pickles.torchfiles import PickleFile
from ftkit._tensors.file import TensorFile, TensorInfo
from ftkit.errors import CheckpointError, did_you_mean
from ftkit.selection import unwrap

__all__ = ["Entry", "Source", "Table", "WeightsSource"]

WeightsSource: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | nn.Module
"""A weights file of any format, an index of shards, a folder with either, a state dict, or a model."""

_MAX_DEPTH: Final = 12
_MAX_INDEX: Final = 100_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One tensor of a source.

    Attributes:
        stored: Its description in a file, or the tensor itself.
        shape: Its shape.
        dtype: Its type.
        read: Fills several targets at once with entries of the same file.
        key: What that file calls it.
    """

    stored: TensorInfo | StoredTensor | Tensor
    read: Callable[[list[tuple[Entry, Tensor]]], None]
    key: str

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
        """
        stored = self.stored
        if isinstance(stored, StoredTensor) and self.nbytes > max(stored.storage.nbytes, 1 << 20):
            raise CheckpointError(
                f"{self.key!r} repeats {stored.storage.nbytes:,} bytes to {self.nbytes:,}: there is no room for that."
            )
        return torch.empty(self.shape, dtype=dtype or self.dtype)

    @property
    def digest(self) -> str | None:
        """The digest of its values, where the file holds one."""
        return self.stored.digest if isinstance(self.stored, TensorInfo) else None


@dataclass(frozen=True, slots=True)
class Table:
    """A table of tensors inside a source, at a path of keys.

    Attributes:
        path: The keys that lead to it; empty for the whole.
        entries: Its tensors, those of tables inside it under dotted names.
    """

    path: tuple[str, ...]
    entries: dict[str, Entry]


class Source:
    """Weights, opened: a context manager that closes the files behind them.

    Attributes:
        name: What to call it in a message.
        format: How it is kept.
        tables: Every table in it that holds tensors, the whole first.
        verified: Whether any damage to the tensors will be noticed.
        wanted: The classes and functions it names, which were not looked up and did not run.
        rare: The kinds of tensors in it that are not dense, and left out: ``sparse``, ``quantized``, ...
        metadata: What it says beyond tensors: a file's metadata, or the plain values of its outermost table.

    Example:
        >>> import torch
        >>> from ftkit._weights.sources import Source
        >>> torch.save({"epoch": 3, "model": {"w": torch.ones(2)}}, "c.pt")
        >>> with Source("c.pt") as source:
        ...     source.metadata, [(table.path, list(table.entries)) for table in source.tables]
        ({'epoch': 3}, [((), ['model.w']), (('model',), ['w'])])
    """

    def __init__(self, source: WeightsSource) -> None:
        self.format: str = "state dict"
        self.verified: bool = True
        self.wanted: list[str] = []
        self.rare: list[str] = []
        self.metadata: dict[str, Any] = {}
        self._files = contextlib.ExitStack()
        if isinstance(source, nn.Module):
            self.name: str = f"a {type(source).__name__}"
            self.tables: list[Table] = _tables(unwrap(source).state_dict(), _copy)
        elif isinstance(source, Mapping):
            self.name = "a state dict"
            self.tables = _tables(source, _copy)
            self.metadata = _plain_values(source)
        else:
            self.name = os.fspath(source)
            with self._files as files:  # closes them all if one can't be opened
                self._open(_file_in(Path(source)))
                self._files = files.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._files.close()

    @staticmethod
    def read_into(pairs: Iterable[tuple[Entry, Tensor]]) -> None:
        """Fill tensors in place, each file's in one go."""
        by_file: dict[Callable[[list[tuple[Entry, Tensor]]], None], list[tuple[Entry, Tensor]]] = {}
        for entry, target in pairs:
            by_file.setdefault(entry.read, []).append((entry, target))
        for read, some in by_file.items():
            read(some)

    def _open(self, path: Path) -> None:
        if path.name.endswith(".json"):
            self._open_shards(path)
            return
        match content_format(path):
            case TensorFormat() as kind:
                self._open_tensors(self._files.enter_context(kind.open(path)), kind.label)
            case ObjectFormat() as kind:
                self._open_object(self._files.enter_context(PickleFile(path)), kind.label)
            case other:
                assert_never(other)

    def _open_tensors(self, file: TensorFile, kind: str) -> None:
        def read(pairs: list[tuple[Entry, Tensor]]) -> None:
            file.read_into({entry.key: target for entry, target in pairs})

        entries = {name: Entry(info, read, name) for name, info in file.tensors.items()}
        self.format, self.verified, self.metadata = kind, file.verified, dict(file.metadata)
        self.tables = [Table((), entries)]
        if "ftkit.checkpoint" in file.metadata:  # a training checkpoint: its parts are tables of their own
            self.tables += _parts(entries)

    def _open_object(self, file: PickleFile, kind: str) -> None:
        def read(pairs: list[tuple[Entry, Tensor]]) -> None:
            file.read_into([(entry.stored, out) for entry, out in pairs if isinstance(entry.stored, StoredTensor)])

        self.format = "torchscript" if file.script else kind
        self.verified, self.wanted, self.rare = file.verified, file.wanted, file.rare
        self.metadata = _plain_values(file.tree)
        self.tables = _tables(file.tree, read)

    def _open_shards(self, path: Path) -> None:
        try:
            if path.stat().st_size > _MAX_INDEX:
                raise ValueError("it is too long")
            index = json.loads(path.read_text(encoding="utf-8"))
            if not (isinstance(index, dict) and "weight_map" in index):
                raise ValueError("it has no 'weight_map'")
            files = {str(name): str(file) for name, file in index["weight_map"].items()}
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} is no index of shards, as save_pretrained writes: {error}.") from error
        shards: dict[str, dict[str, Entry]] = {}
        for file in dict.fromkeys(files.values()):
            if Path(file).name != file or file in {"", ".", ".."} or file.endswith(".json"):
                raise CheckpointError(f"{path} names a shard {file!r}; a shard is a weights file beside its index.")
            if not (path.parent / file).is_file():
                raise CheckpointError(f"The shard {file} that {path.name} names is missing from {path.parent}.")
            shard = self._files.enter_context(Source(path.parent / file))
            shards[file] = shard.tables[0].entries if shard.tables else {}
            self.verified &= shard.verified
            self.wanted += [name for name in shard.wanted if name not in self.wanted]
            self.rare += [kind for kind in shard.rare if kind not in self.rare]
        if lost := [name for name, file in files.items() if name not in shards[file]]:
            raise CheckpointError(f"{files[lost[0]]} does not hold {lost[0]!r}, which {path.name} says is there.")
        self.format = f"{len(shards)} shards"
        self.metadata = index["metadata"] if isinstance(index.get("metadata"), dict) else {}
        self.tables = [Table((), {name: shards[file][name] for name, file in files.items()})]


def _file_in(path: Path) -> Path:
    """The file to open: the path itself, or the one in a folder."""
    if path.is_file():
        return path
    if not path.is_dir():
        near = [str(other) for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise CheckpointError(f"There is no file {path}.{did_you_mean(str(path), near)}")
    if (path / ".metadata").is_file():
        raise CheckpointError(f"{path} was written by torch.distributed.checkpoint: load it with dcp.load.")
    names = sorted(child.name + "/" * child.is_dir() for child in path.iterdir())
    for suffix in (".safetensors.index.json", ".safetensors", ".bin.index.json", *SUFFIXES):
        found = [name for name in names if name.endswith(suffix)]
        if "pytorch_model.bin" in found:  # a trainer's own state lies beside it, under the same suffix
            found = ["pytorch_model.bin"]
        if len(found) == 1:
            return path / found[0]
        if found:
            raise CheckpointError(f"{path} holds several weights files: {', '.join(found[:6])}. Name one of them.")
    raise CheckpointError(f"{path} holds no weights file; it holds {', '.join(names[:6]) or 'nothing'}.")


def _parts(entries: Mapping[str, Entry]) -> list[Table]:
    """The tables that the first components of names stand for."""
    parts: dict[str, dict[str, Entry]] = {}
    for name, entry in entries.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = entry
    return [Table((part,), inside) for part, inside in parts.items()]


def _copy(pairs: list[tuple[Entry, Tensor]]) -> None:
    for entry, target in pairs:
        if isinstance(entry.stored, Tensor):
            target.detach().copy_(entry.stored.detach())


def _tables(tree: Any, read: Callable[[list[tuple[Entry, Tensor]]], None]) -> list[Table]:
    """Find every table that holds tensors, at any depth; the outermost first."""
    tables: list[Table] = []
    seen: set[int] = set()
    level: list[tuple[tuple[str, ...], Any]] = [((), tree)]
    for _ in range(_MAX_DEPTH):
        inner: list[tuple[tuple[str, ...], Any]] = []
        for path, node in level:
            if id(node) in seen:
                continue
            seen.add(id(node))
            tensors = dict(_flatten(node))
            if tensors:
                # What is in memory already, such as an array inside a pickle, needs no reading.
                pairs = ((name, one, read if isinstance(one, StoredTensor) else _copy) for name, one in tensors.items())
                tables.append(Table(path, {name: Entry(one, how, name) for name, one, how in pairs}))
                inner += [((*path, key), child) for key, child in _children(node) if _tensor(child) is None]
        level = inner
    return tables


def _flatten(root: Any) -> Iterator[tuple[str, StoredTensor | Tensor]]:
    """The tensors below a node, under dotted names; a part that is reached twice counts once."""
    seen: set[int] = set()
    stack: list[tuple[str, Any, int]] = [("", root, 0)]
    while stack:
        name, node, depth = stack.pop()
        if (tensor := _tensor(node)) is not None:
            yield name, tensor
        elif depth < _MAX_DEPTH and id(node) not in seen:
            seen.add(id(node))
            children = [(f"{name}.{key}" if name else key, child, depth + 1) for key, child in _children(node)]
            stack += reversed(children)


def _tensor(node: Any) -> StoredTensor | Tensor | None:
    """The tensor that a node is, an array of numpy included."""
    if isinstance(node, StoredTensor | Tensor):
        shapeless = isinstance(node, Tensor) and (node.is_nested or is_lazy(node))
        return None if shapeless else node
    if isinstance(node, Foreign) and node.name.startswith("numpy.") and node.state is not None:
        with contextlib.suppress(TypeError, ValueError):  # an array that makes no sense is no tensor
            node = numpy_value(node)
    if isinstance(node, np.ndarray) and node.dtype.kind in "biuf":
        with contextlib.suppress(TypeError):  # torch lacks some types
            return torch.from_numpy(node.astype(node.dtype.newbyteorder("="), order="C", copy=False))
    return None


def _children(node: Any) -> Iterator[tuple[str, Any]]:
    """The named parts of a table, of a model, or of a record of what would have been an object."""
    if isinstance(node, nn.Module):
        node = node.state_dict()
    if isinstance(node, Foreign):
        yield from _foreign_children(node)
    elif isinstance(node, Mapping):
        yield from ((key, value) for key, value in node.items() if isinstance(key, str))
    elif isinstance(node, list | tuple):
        yield from (
            (str(index), part) for index, part in enumerate(node[:64]) if not isinstance(part, str | int | float)
        )


def _foreign_children(node: Foreign) -> Iterator[tuple[str, Any]]:
    state = node.state
    if isinstance(state, tuple) and state and isinstance(state[0], dict):  # an object with slots
        state = state[0]
    if isinstance(state, dict):
        if isinstance(state.get("_parameters"), dict) and isinstance(state.get("_modules"), dict):
            passing = state.get("_non_persistent_buffers_set")
            passing = passing if isinstance(passing, set) else set()
            tables = (state["_parameters"], state.get("_buffers"), state["_modules"])
            kept = {
                key: value
                for table in tables
                if isinstance(table, dict)
                for key, value in table.items()
                if key not in passing
            }
            yield from _children(kept)
        else:
            yield from _children(state)
    yield from _children(
        {pair[0]: pair[1] for pair in node.items if isinstance(pair, tuple) and isinstance(pair[0], str)}
    )


def _plain_values(tree: Any) -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {}
    return {
        key: value
        for key, value in tree.items()
        if isinstance(key, str) and isinstance(value, str | int | float | None)
    }
