"""Anything that people keep weights in, opened: its tables of tensors with shapes and types, and bytes on demand."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

from torch import Tensor, nn

from ftkit._arguments import local_path
from ftkit._formats import SUFFIXES, open_file
from ftkit._pickles.machine import StoredTensor
from ftkit._pickles.torchfiles import PickleFile
from ftkit._tensors.budget import Budget
from ftkit._tensors.file import TensorFile
from ftkit._weights.tables import Entry, Reader, Table, parts_of, plain_values, tables_in
from ftkit._wording import shown, some
from ftkit.errors import CheckpointError, did_you_mean
from ftkit.selection import unwrap

_log: Final = logging.getLogger("ftkit")

WeightsSource: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | nn.Module
"""A weights file of any format, an index of shards, a folder with either, a state dict, or a model."""

_MAX_INDEX: Final = 100_000_000  # bytes, as many as a header of safetensors may have

_RUN: Final = "ftkit.checkpoint"  # in the metadata of a training checkpoint, or in its torch dict

# What a folder is searched for, in this order: an index speaks for the shards beside it.
_SEARCHED: Final = (".safetensors.index.json", ".safetensors", ".bin.index.json", *SUFFIXES)
_TRAINERS_WEIGHTS: Final = "pytorch_model.bin"  # a trainer's own state lies beside it, under the same suffix


@dataclass(eq=False)
class Source:
    """Weights, opened: a context manager that closes the files behind them.

    Attributes:
        name: What to call it in a message.
        format: How it is kept.
        tables: Every table in it that holds tensors, the whole first.
        metadata: What it says beyond tensors: a file's metadata, or the plain values of its outermost table.
        verified: Whether any damage to the tensors will be noticed.
        wanted: The classes and functions it names, which were not looked up and did not run.
        rare: The kinds of tensors in it that are not dense and are skipped: ``sparse``, ``quantized``, ...
        budget: What working on its names may cost.
        is_run: Whether it is a training checkpoint of ours.
        files: What is closed with it.
        path: The file that was opened, if it is one.
    """

    name: str
    format: str
    tables: list[Table]
    metadata: dict[str, Any]
    verified: bool = True
    wanted: list[str] = field(default_factory=list)
    rare: list[str] = field(default_factory=list)
    budget: Budget = field(default_factory=partial(Budget, math.inf))
    is_run: bool = False
    files: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    path: Path | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.files.close()

    @staticmethod
    def read_into(pairs: Iterable[tuple[Entry, Tensor]]) -> None:
        """Fill tensors in place, each file's in one go."""
        by_file: dict[Reader, list[tuple[Entry, Tensor]]] = {}
        for entry, target in pairs:
            by_file.setdefault(entry.read, []).append((entry, target))
        for read, its_pairs in by_file.items():
            read(its_pairs)


def open_source(source: WeightsSource) -> Source:
    """Open any source of weights.

    Raises:
        CheckpointError: It is not a weights file, or it is damaged.

    Example:
        >>> import torch
        >>> from ftkit._weights.sources import open_source
        >>> torch.save({"epoch": 3, "model": {"w": torch.ones(2)}}, "c.pt")
        >>> with open_source("c.pt") as source:
        ...     source.metadata, [(table.path, list(table.entries)) for table in source.tables]
        ({'epoch': 3}, [((), ['model.w']), (('model',), ['w'])])
    """
    if isinstance(source, nn.Module):
        return in_memory(unwrap(source).state_dict(), f"a {type(source).__name__}")
    if isinstance(source, Mapping):
        return in_memory(source)
    return _on_disk(source)


def in_memory(state: Mapping[str, Any], name: str = "a state dict", budget: Budget | None = None) -> Source:
    """The weights that a state dict holds, at any depth; the budget is that of the file which it was read from."""
    paying = budget or Budget(math.inf)
    return Source(name, "state dict", tables_in(state, budget=paying), plain_values(state), budget=paying)


def _on_disk(given: str | os.PathLike[str]) -> Source:
    otherwise = ", a state dict or a model"
    path = _file_in(local_path("the weights", given, error=CheckpointError, otherwise=otherwise))
    with contextlib.ExitStack() as files:  # closes them all if one can't be opened
        source = _of_shards(path, files) if path.name.endswith(".json") else _of_file(path, files)
        return replace(source, name=os.fsdecode(given), files=files.pop_all(), path=path)


def _of_file(path: Path, files: contextlib.ExitStack) -> Source:
    file = open_file(path)
    files.callback(file.close)
    match file:
        case TensorFile():

            def read(pairs: list[tuple[Entry, Tensor]]) -> None:
                file.read_into({entry.key: target for entry, target in pairs})

            entries = {name: Entry(info, read, name, file.budget) for name, info in file.tensors.items()}
            # A training checkpoint's parts are tables of their own.
            is_run = _RUN in file.metadata
            parts = parts_of(entries) if is_run else []
            tables, metadata = [Table((), entries), *parts], dict(file.metadata)
            return Source(file.path, file.format, tables, metadata, file.verified, budget=file.budget, is_run=is_run)
        case PickleFile():

            def read_stored(pairs: list[tuple[Entry, Tensor]]) -> None:
                file.read_into([(entry.stored, out) for entry, out in pairs if isinstance(entry.stored, StoredTensor)])

            tables, values = tables_in(file.tree, read_stored, file.budget), plain_values(file.tree)
            kind = "torchscript" if file.script else file.format
            is_run = isinstance(file.tree, Mapping) and _RUN in file.tree
            told = file.verified, file.wanted, file.rare, file.budget
            return Source(file.path, kind, tables, values, *told, is_run=is_run)


def _of_shards(path: Path, files: contextlib.ExitStack) -> Source:
    homes, metadata = _index(path)
    shards = {file: _of_file(_shard(path, file), files) for file in dict.fromkeys(homes.values())}
    entries = {file: shard.tables[0].entries if shard.tables else {} for file, shard in shards.items()}
    if lost := [name for name, file in homes.items() if name not in entries[file]]:
        raise CheckpointError(
            f"{shown(homes[lost[0]])} does not contain {lost[0]!r}, although {shown(path.name)} says so."
        )
    for file, inside in entries.items():
        if doubled := next((name for name in inside if homes.get(name, file) != file), None):
            raise CheckpointError(
                f"{shown(file)} and {shown(homes[doubled])} both contain {doubled!r}, which {shown(path.name)} says is "
                "in the latter: the shards come from two models, or from two ways to split one. Use one set of shards."
            )
    table = {name: entries[file][name] for name, file in homes.items()}
    _check_size(path, metadata.get("total_size"), table.values())
    return Source(
        str(path),
        f"{len(shards)} shards",
        [Table((), table)],
        metadata,
        all(shard.verified for shard in shards.values()),
        list(dict.fromkeys(name for shard in shards.values() for name in shard.wanted)),
        list(dict.fromkeys(kind for shard in shards.values() for kind in shard.rare)),
        Budget(sum(_shard(path, file).stat().st_size for file in shards)),
    )


def _check_size(path: Path, declared: object, entries: Iterable[Entry]) -> None:
    """Say that an index declares another size than its shards have. A tied tensor may count once, or once a name."""
    sizes = [((entry.read, getattr(entry.stored, "storage", entry.stored)), entry.nbytes) for entry in entries]
    least, most = sum(dict(sizes).values()), sum(nbytes for _, nbytes in sizes)
    if isinstance(declared, int | float) and not least <= declared <= most:
        _log.warning(
            "%s declares %s bytes, but its shards contain %s: it was written for other files, or some were replaced.",
            *(shown(path), shown(declared), f"{most:,}"),
        )


def _shard(index: Path, file: str) -> Path:
    if Path(file).name != file or file in {"", ".", ".."} or file.endswith(".json"):
        raise CheckpointError(f"{shown(index)} names a shard {file!r}; a shard is a weights file next to its index.")
    if not (index.parent / file).is_file():
        raise CheckpointError(
            f"The shard {shown(file)} that {shown(index.name)} names is missing from {shown(index.parent)}."
        )
    return index.parent / file


def _index(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Read an index of shards: the file that holds each tensor, and the metadata."""
    try:
        if path.stat().st_size > _MAX_INDEX:
            raise ValueError("it is too large")
        index = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(index, dict) and "weight_map" in index):
            raise ValueError("it has no 'weight_map'")
        files = {str(name): str(file) for name, file in index["weight_map"].items()}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{shown(path)} is not an index of shards such as save_pretrained writes: {error}."
        ) from error
    metadata = index.get("metadata")
    return files, metadata if isinstance(metadata, dict) else {}


def _file_in(path: Path) -> Path:
    """The file to open: the path itself, or the one in a folder."""
    if path.is_file():
        return path
    if not path.is_dir():
        near = [str(other) for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise CheckpointError(f"There is no file {shown(path)}.{did_you_mean(str(path), near)}")
    if (path / ".metadata").is_file():
        raise CheckpointError(f"{shown(path)} was written by torch.distributed.checkpoint: load it with dcp.load.")
    names = sorted(child.name + "/" * child.is_dir() for child in path.iterdir())
    alike = ([name for name in names if name.endswith(suffix)] for suffix in _SEARCHED)
    found = next(filter(None, alike), [])
    if _TRAINERS_WEIGHTS in found:
        found = [_TRAINERS_WEIGHTS]
    if not found:
        raise CheckpointError(f"{shown(path)} contains no weights file; it contains {some(names, 6) or 'nothing'}.")
    if len(found) > 1:
        raise CheckpointError(f"{shown(path)} contains several weights files: {some(found, 6)}. Pass one of them.")
    return path / found[0]
