"""Weights in another format: read without running code, written whole, and compared bit for bit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from ftkit._arguments import local_path
from ftkit._formats import CHECKPOINT_SUFFIXES
from ftkit._reports import Parts, Report
from ftkit._weights.inspection import diff_checkpoints
from ftkit._weights.io import reads_delta, save_weights
from ftkit._weights.sources import Source, open_source
from ftkit._weights.tables import MAX_DEPTH, MAX_ITEMS, Table
from ftkit._wording import in_bytes, plural, shown, some
from ftkit.errors import CheckpointError, DamagedFileError, FileWriteError, did_you_mean

_WRAPPERS: Final = ("state_dict", "model_state_dict")  # of a state dict; no attribute of a model is called that
_MODELS: Final = ("model", "state_dict", "model_state_dict")  # of a training checkpoint of ours, by its formats
_WHOLE: Final = "."


@dataclass(frozen=True, repr=False)
class Conversion(Report):
    """What was converted.

    Attributes:
        source: What was read.
        target: The file that was written.
        part: Where in the source the tensors were; empty for the whole.
        tensors: Number of tensors.
        nbytes: Size of their values in bytes.
        left: What else the source has, which no file of weights keeps.
    """

    source: str
    target: str
    part: str
    tensors: int
    nbytes: int
    left: tuple[str, ...]

    def _parts(self) -> Parts:
        size = f"{plural(self.tensors, 'tensor')}, {in_bytes(self.nbytes)}"
        yield f"{shown(self.source)} -> {shown(self.target)}: {size}, the same bit for bit"
        if self.part:
            yield f"  took {self.part!r}"
        if self.left:
            yield f"  left out: {some(self.left, 8)}"


def convert(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, part: str | None = None, force: bool = False
) -> Conversion:
    """Write the weights of a file in the format that another name asks for, and compare the two.

    Args:
        source: A weights file of any format, an index of shards, or a folder with either.
        target: The file to write: safetensors, or a torch file by its suffix.
        part: Which table in the source, by its keys (``"state_dict"``); ``"."`` for all. Can be omitted if it is clear;
            of a training checkpoint of ftkit's, it is the model.
        force: Whether to replace an existing file.

    Raises:
        CheckpointError: It is unclear which tensors are meant, or something would be lost.
        FileWriteError: The target exists, or can't be written.

    Example:
        >>> import torch
        >>> from ftkit._weights.convert import convert
        >>> torch.save({"state_dict": torch.nn.Linear(4, 2).state_dict(), "epoch": 3}, "last.ckpt")
        >>> convert("last.ckpt", "linear.safetensors")
        last.ckpt -> linear.safetensors: 2 tensors, 40 B, the same bit for bit
          took 'state_dict'
          left out: epoch
    """
    path = local_path("target", target, error=FileWriteError)
    if path.suffix not in CHECKPOINT_SUFFIXES:
        names = ", ".join(sorted(CHECKPOINT_SUFFIXES))
        raise CheckpointError(
            f"The format to write is told by the suffix, one of {names}: {shown(path.name)} has none."
        )
    if path.exists() and not force:
        raise FileWriteError(f"{path} exists. Use another name, or --force to replace it.")
    with open_source(source) as opened:
        _refuse_losses(opened)
        table = _table(opened, part)
        if table.unnamed:
            raise CheckpointError(
                f"{shown(opened.name)} has tensors that a file of weights has no names for: {some(table.unnamed, 8)}. "
                "Each needs a text of its own as its key."
            )
        if table.unread:
            raise CheckpointError(
                f"{shown(opened.name)} has more tensors, or names for them, than are read: {some(table.unread, 8)}. "
                f"Lists are read up to {MAX_ITEMS} items, tables up to {MAX_DEPTH} levels deep, each under one name. "
                "Save what you need as a plain state dict, or name a --part without these."
            )
        tensors = {name: entry.empty() for name, entry in table.entries.items()}
        opened.read_into((entry, tensors[name]) for name, entry in table.entries.items())
        left = tuple(sorted({*_plain(opened, table), *_beside(opened.tables[0], table)}))
    save_weights(tensors, path)
    if diff := diff_checkpoints(tensors, path):
        raise DamagedFileError(f"{path} does not contain what was written to it: {diff}")
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    taken = ".".join(table.path)
    return Conversion(os.fsdecode(source), str(path), taken, len(tensors), nbytes, left)


def _plain(source: Source, table: Table) -> set[str]:
    """What a source says beyond tensors; a checkpoint's metadata also describe its parts."""
    described = {one.path[0] for one in source.tables if one.path} if source.is_run else set()
    return source.metadata.keys() - described - set(table.path)


def _beside(whole: Table, table: Table) -> Iterator[str]:
    """Name what holds the tensors outside of a table, as far up as it is outside."""
    taken = ".".join(table.path).split(".") if table.path else []
    for name in whole.entries.keys() | whole.numbered.keys():
        keys = name.split(".")
        apart = next((at for at, key in enumerate(taken) if keys[at : at + 1] != [key]), None)
        if apart is not None:
            yield ".".join(keys[: apart + 1])
        elif name.removeprefix(".".join([*taken, ""]) if taken else "") not in table.entries:
            yield name


def _refuse_losses(source: Source) -> None:
    if source.rare:
        kinds = " and ".join(source.rare)
        raise CheckpointError(f"{shown(source.name)} also contains {kinds} tensors, which would be lost.")
    if call := reads_delta(source.metadata):
        raise CheckpointError(
            f"{shown(source.name)} is a delta, which is nothing without its base. Load it with {call}, then save the "
            "whole model with save_weights."
        )


def _table(source: Source, part: str | None) -> Table:
    tables: Mapping[str, Table] = {".".join(table.path): table for table in source.tables}
    if not tables:
        raise CheckpointError(f"{shown(source.name)} contains no tensors.")
    if part is not None:
        wanted = "" if part == _WHOLE else part
        if wanted not in tables:
            close = did_you_mean(part, list(tables))
            raise CheckpointError(f"{shown(source.name)} has no part {part!r}.{close}")
        return tables[wanted]
    inner = [name for name, table in tables.items() if len(table.path) == 1]
    if not inner:
        return tables[""]
    if len(inner) == 1 and inner[0] in _WRAPPERS:
        return tables[inner[0]]
    model = next((name for name in _MODELS if name in tables), None)
    if source.is_run and model:
        return tables[model]
    raise CheckpointError(
        f"{shown(source.name)} has several parts: {some(inner, 8)}. Say which with --part, or --part {_WHOLE} for all."
    )
