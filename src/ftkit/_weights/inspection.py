"""Looking into checkpoints without loading them: what a file holds, and what changed between two."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from ftkit._arguments import local_path
from ftkit._weights.sources import Source, WeightsSource, open_source
from ftkit._weights.tables import Entry, Table
from ftkit._wording import in_bytes, some
from ftkit.errors import CheckpointError

_ENDS: Final = 20  # tensors at the beginning and at the end of a long list that are shown
_SHOWN: Final = 30  # changes of a kind that are shown


@dataclass(frozen=True, repr=False)
class CheckpointInfo:
    """What a file of weights holds. Prints well.

    Attributes:
        path: The file.
        format: How it is kept: ``safetensors``, ``zip``, ``legacy``, ``tar``, ``pickle``, ``torchscript``, or shards.
        tensors: Shape and type of every tensor, by its dotted name.
        nbytes: The bytes that their values take.
        metadata: What the file says beyond tensors.
        wanted: Classes and functions that opening it as a whole would run or look up; empty for safe files.
        verified: Whether it has digests or checksums, so that any damage to the tensors is noticed on loading.
        rare: The kinds of tensors in it that are not dense, and not listed: ``sparse``, ``quantized``, ...
    """

    path: str
    format: str
    tensors: dict[str, tuple[tuple[int, ...], torch.dtype]]
    nbytes: int
    metadata: dict[str, Any] = field(default_factory=dict)
    wanted: list[str] = field(default_factory=list)
    verified: bool = True
    rare: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return "\n".join(self._lines())

    def to_dict(self) -> dict[str, Any]:
        """Return the same as JSON can hold it: tensors as dicts of ``shape`` and ``dtype``, None for NaN."""
        tensors = {
            name: {"shape": list(shape), "dtype": _short(dtype)} for name, (shape, dtype) in self.tensors.items()
        }
        return vars(self) | {"tensors": tensors, "metadata": _finite(self.metadata)}

    def _lines(self) -> Iterator[str]:
        kind = "with checks for damage" if self.verified else "without digests"
        yield f"{self.path}: {len(self.tensors)} tensors, {in_bytes(self.nbytes)}, {self.format}, {kind}"
        for key, value in list(self.metadata.items())[:12]:
            text = str(value)
            yield f"  {key} = {text if len(text) <= 60 else text[:57] + '...'}"
        if self.wanted:
            yield f"  opening it whole would run code: {some(self.wanted, 8)}"
        if self.rare:
            yield f"  besides, {' and '.join(self.rare)} tensors, which load_model(path) opens"
        width = max(map(len, self.tensors), default=0)
        rows = [f"  {name:{width}}  {_short(dtype):9} {list(shape)}" for name, (shape, dtype) in self.tensors.items()]
        if len(rows) > 2 * _ENDS:
            rows[_ENDS:-_ENDS] = [f"  ... {len(rows) - 2 * _ENDS} more ..."]
        yield from rows


def inspect_checkpoint(path: str | os.PathLike[str]) -> CheckpointInfo:
    """Tell what a file of weights holds, running nothing in it and reading no tensor.

    Args:
        path: A file of any format, an index of shards, or a folder with either.

    Raises:
        CheckpointError: It is no weights file, or a damaged one.

    Example:
        >>> import torch
        >>> from ftkit import inspect_checkpoint, save_weights
        >>> save_weights(torch.nn.Linear(4, 2), "linear.safetensors")
        >>> inspect_checkpoint("linear.safetensors")
        linear.safetensors: 2 tensors, 40 B, safetensors, with checks for damage
          format = pt
          weight  float32   [2, 4]
          bias    float32   [2]
    """
    with open_source(local_path("path", path, error=CheckpointError)) as source:
        entries = source.tables[0].entries if source.tables else {}
        return CheckpointInfo(
            path=source.name,
            format=source.format,
            tensors={name: (entry.shape, entry.dtype) for name, entry in entries.items()},
            nbytes=sum(entry.nbytes for entry in entries.values()),
            metadata=source.metadata,
            wanted=source.wanted,
            verified=source.verified,
            rare=source.rare,
        )


class TensorChange(NamedTuple):
    """How much one tensor changed.

    Attributes:
        name: Its name.
        largest: The largest change of any value.
        relative: The norm of the change, relative to the norm before.

    Example:
        >>> from ftkit import TensorChange
        >>> print(TensorChange("fc.weight", 0.25, 0.031))
        fc.weight  by up to 0.25, 3.10% of its norm
    """

    name: str
    largest: float
    relative: float

    def __str__(self) -> str:
        return f"{self.name}  by up to {self.largest:.3g}, {self.relative:.2%} of its norm"


@dataclass(frozen=True, repr=False)
class CheckpointDiff:
    """What differs between two checkpoints. Prints well; false when nothing does.

    Attributes:
        changed: The tensors whose values differ, the most changed first.
        same: The names of those that are identical, bit for bit.
        reshaped: Names in both with another shape or type, with what they were and are.
        only_in_a: Names that went.
        only_in_b: Names that came.
    """

    a: str
    b: str
    changed: list[TensorChange]
    same: list[str]
    reshaped: list[tuple[str, str, str]]
    only_in_a: list[str]
    only_in_b: list[str]

    def __bool__(self) -> bool:
        return bool(self.changed or self.reshaped or self.only_in_a or self.only_in_b)

    def __repr__(self) -> str:
        return "\n".join(self._lines())

    def to_dict(self) -> dict[str, Any]:
        """Return the same as JSON can hold it; the ``relative`` size of a change from zero is None."""
        changed = [_finite(change._asdict()) for change in self.changed]
        reshaped = [dict(zip(("name", "was", "is"), row, strict=True)) for row in self.reshaped]
        return vars(self) | {"changed": changed, "reshaped": reshaped}

    def _lines(self) -> Iterator[str]:
        yield f"{self.a} -> {self.b}: {len(self.same)} tensors identical, {len(self.changed)} changed"
        yield from _first([f"  {change}" for change in self.changed])
        yield from _first([f"  {name}  was {was}, is {now}" for name, was, now in self.reshaped])
        yield from _first([f"  {name}  went" for name in self.only_in_a])
        yield from _first([f"  {name}  came" for name in self.only_in_b])


def diff_checkpoints(a: WeightsSource, b: WeightsSource) -> CheckpointDiff:
    """Tell which tensors changed between two checkpoints, by how much, and which came and went.

    This is the proof that freezing worked: what was frozen is identical, bit for bit.

    Args:
        a: The earlier one: a file of any format, a folder, a state dict, or a model.
        b: The later one.

    Raises:
        CheckpointError: One of them is no weights file, or they have not a single name in common.
        DamagedFileError: Some bytes are not the ones that were written.

    Example:
        >>> import torch
        >>> from ftkit import diff_checkpoints, save_weights
        >>> model = torch.nn.Linear(4, 2)
        >>> save_weights(model, "before.safetensors")
        >>> with torch.no_grad():
        ...     _ = model.bias.fill_(0).add_(0.5)
        >>> diff = diff_checkpoints("before.safetensors", model)
        >>> diff.same, [change.name for change in diff.changed]
        (['weight'], ['bias'])
    """
    with open_source(a) as first, open_source(b) as second:
        left, right = _counterparts(first, second)
        both = {name: (old, right[name]) for name, old in left.items() if name in right}
        alike = {name: pair for name, pair in both.items() if _kind(pair[0]) == _kind(pair[1])}
        changes = {name: _change(name, old, new) for name, (old, new) in alike.items()}
        moved = [change for change in changes.values() if change is not None]
        return CheckpointDiff(
            a=first.name,
            b=second.name,
            changed=sorted(moved, key=lambda change: change.relative, reverse=True),
            same=[name for name, change in changes.items() if change is None],
            reshaped=[(name, _kind(old), _kind(new)) for name, (old, new) in both.items() if name not in alike],
            only_in_a=[name for name in left if name not in right],
            only_in_b=[name for name in right if name not in left],
        )


def _counterparts(first: Source, second: Source) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """The two tables that have most names in common; the outermost of equals."""

    def common(pair: tuple[Table, Table]) -> int:
        return len(pair[0].entries.keys() & pair[1].entries.keys())

    pairs = ((left, right) for left in first.tables for right in second.tables)
    best = max(pairs, key=common, default=None)
    if best is None or not common(best):
        raise CheckpointError(f"{first.name} and {second.name} have not a single tensor's name in common.")
    return best[0].entries, best[1].entries


def _change(name: str, old: Entry, new: Entry) -> TensorChange | None:
    """How much a tensor changed, or ``None`` if it is the same, bit for bit."""
    if old.digest is not None and old.digest == new.digest:
        return None
    before, after = _read(old), _read(new)
    if torch.equal(_bits(before), _bits(after)):
        return None
    wide = torch.complex128 if before.is_complex() else torch.float64
    was = before.to(wide)
    step = after.to(wide) - was
    norm = float(torch.linalg.vector_norm(was))
    moved = float(torch.linalg.vector_norm(step))
    return TensorChange(name, float(step.abs().max()), moved / norm if norm else math.inf if moved else 0.0)


def _read(entry: Entry) -> Tensor:
    values = entry.empty()
    Source.read_into([(entry, values)])
    return values


def _bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _kind(entry: Entry) -> str:
    return f"{_short(entry.dtype)} {list(entry.shape)}"


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without those that JSON has no number for."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _first(lines: list[str]) -> list[str]:
    return lines if len(lines) <= _SHOWN else [*lines[:_SHOWN], f"  ... and {len(lines) - _SHOWN} more"]
