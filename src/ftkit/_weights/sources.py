"""Anything that people keep weights in, opened: its tables of tensors with shapes and types, and bytes on demand."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Self, TypeAlias, assert_never

from torch import Tensor, nn

from ftkit._formats import SUFFIXES, ObjectFormat, TensorFormat, content_format
from ftkit._pickles.machine import StoredTensor
from ftkit._pickles.torchfiles import PickleFile
from ftkit._tensors.file import TensorFile
from ftkit._weights.tables import Entry, Reader, Table, parts_of, tables_in
from ftkit.errors import CheckpointError, did_you_mean
from ftkit.selection import unwrap

__all__ = ["Source", "WeightsSource"]

WeightsSource: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | nn.Module
"""A weights file of any format, an index of shards, a folder with either, a state dict, or a model."""

_MAX_INDEX: Final = 100_000_000  # bytes, as many as a header of safetensors may have

# What a folder is searched for, in this order: an index speaks for the shards beside it.
_SEARCHED: Final = (".safetensors.index.json", ".safetensors", ".bin.index.json", *SUFFIXES)
_TRAINERS_WEIGHTS: Final = "pytorch_model.bin"  # a trainer's own state lies beside it, under the same suffix


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
            self.tables: list[Table] = tables_in(unwrap(source).state_dict())
        elif isinstance(source, Mapping):
            self.name = "a state dict"
            self.tables = tables_in(source)
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
        by_file: dict[Reader, list[tuple[Entry, Tensor]]] = {}
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
            self.tables += parts_of(entries)

    def _open_object(self, file: PickleFile, kind: str) -> None:
        def read(pairs: list[tuple[Entry, Tensor]]) -> None:
            file.read_into([(entry.stored, out) for entry, out in pairs if isinstance(entry.stored, StoredTensor)])

        self.format = "torchscript" if file.script else kind
        self.verified, self.wanted, self.rare = file.verified, file.wanted, file.rare
        self.metadata = _plain_values(file.tree)
        self.tables = tables_in(file.tree, read)

    def _open_shards(self, path: Path) -> None:
        files, self.metadata = _index(path)
        shards = {file: self._shard(path, file) for file in dict.fromkeys(files.values())}
        if lost := [name for name, file in files.items() if name not in shards[file]]:
            raise CheckpointError(f"{files[lost[0]]} does not hold {lost[0]!r}, which {path.name} says is there.")
        self.format = f"{len(shards)} shards"
        self.tables = [Table((), {name: shards[file][name] for name, file in files.items()})]

    def _shard(self, index: Path, file: str) -> dict[str, Entry]:
        """Open one shard and take over what it says of itself; return its tensors."""
        if Path(file).name != file or file in {"", ".", ".."} or file.endswith(".json"):
            raise CheckpointError(f"{index} names a shard {file!r}; a shard is a weights file beside its index.")
        if not (index.parent / file).is_file():
            raise CheckpointError(f"The shard {file} that {index.name} names is missing from {index.parent}.")
        shard = self._files.enter_context(Source(index.parent / file))
        self.verified &= shard.verified
        self.wanted = list(dict.fromkeys(self.wanted + shard.wanted))
        self.rare = list(dict.fromkeys(self.rare + shard.rare))
        return shard.tables[0].entries if shard.tables else {}


def _index(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Read an index of shards: the file that holds each tensor, and the metadata."""
    try:
        if path.stat().st_size > _MAX_INDEX:
            raise ValueError("it is too long")
        index = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(index, dict) and "weight_map" in index):
            raise ValueError("it has no 'weight_map'")
        files = {str(name): str(file) for name, file in index["weight_map"].items()}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is no index of shards, as save_pretrained writes: {error}.") from error
    metadata = index.get("metadata")
    return files, metadata if isinstance(metadata, dict) else {}


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
    alike = ([name for name in names if name.endswith(suffix)] for suffix in _SEARCHED)
    found = next(filter(None, alike), [])
    if _TRAINERS_WEIGHTS in found:
        found = [_TRAINERS_WEIGHTS]
    if not found:
        raise CheckpointError(f"{path} holds no weights file; it holds {', '.join(names[:6]) or 'nothing'}.")
    if len(found) > 1:
        raise CheckpointError(f"{path} holds several weights files: {', '.join(found[:6])}. Name one of them.")
    return path / found[0]


def _plain_values(tree: Any) -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {}
    return {
        key: value
        for key, value in tree.items()
        if isinstance(key, str) and isinstance(value, str | int | float | None)
    }
