"""Inspect checkpoints without loading them: what a file contains, and what changed between two."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from ftkit._arguments import local_path
from ftkit._reports import Grid, Parts, Report, printable
from ftkit._weights.sources import Source, WeightsSource, open_source
from ftkit._weights.tables import Entry, Table
from ftkit._wording import in_bytes, plural, shown, some
from ftkit.errors import CheckpointError

_ENTRIES: Final = 12  # of the metadata that are shown


@dataclass(frozen=True, repr=False)
class CheckpointInfo(Report):
    """What a weights file contains. Prints well.

    Attributes:
        path: The file.
        format: The file format: ``safetensors``, ``zip``, ``legacy``, ``tar``, ``pickle``, ``torchscript``, or shards.
        tensors: Shape and dtype of every tensor, by dotted name.
        nbytes: Size of the tensors' values in bytes.
        metadata: What the file contains besides tensors.
        wanted: Classes and functions that unpickling the whole file would run or look up; empty for safe files.
        verified: Whether the file has digests or checksums, so that loading detects any damage to the tensors.
        rare: Kinds of tensors in the file that are not dense, and therefore not listed: ``sparse``, ``quantized``, ...
    """

    path: str
    format: str
    tensors: dict[str, tuple[tuple[int, ...], torch.dtype]]
    nbytes: int
    metadata: dict[str, Any] = field(default_factory=dict)
    wanted: list[str] = field(default_factory=list)
    verified: bool = True
    rare: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible values: tensors as dicts of ``shape`` and ``dtype``, NaN as None."""
        tensors = {
            name: {"shape": list(shape), "dtype": _short(dtype)} for name, (shape, dtype) in self.tensors.items()
        }
        return super().to_dict() | {"tensors": tensors}

    def _parts(self) -> Parts:
        kind = "with checks for damage" if self.verified else "without digests"
        yield f"{self.path}: {plural(len(self.tensors), 'tensor')}, {in_bytes(self.nbytes)}, {self.format}, {kind}"
        for key, value in list(self.metadata.items())[:_ENTRIES]:
            yield f"  {shown(key, 60)} = {shown(value, 60)}"
        if self.wanted:
            yield f"  unpickling the whole file would run code: {some(self.wanted, 8)}"
        if self.rare:
            yield f"  also contains {' and '.join(self.rare)} tensors, which load_model(path) opens"
        yield Grid([(name, _short(dtype), list(shape)) for name, (shape, dtype) in self.tensors.items()])


def inspect_checkpoint(path: str | os.PathLike[str]) -> CheckpointInfo:
    """Show what a weights file contains, without running its code or reading its tensors.

    Args:
        path: A file of any format, an index of shards, or a folder with either.

    Raises:
        CheckpointError: It is not a weights file, or it is damaged.

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
        entries = source.tables[0].entries | source.tables[0].numbered if source.tables else {}
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
        relative: The norm of the change, relative to the norm before; infinite if every value was zero.

    Example:
        >>> from ftkit import TensorChange
        >>> print(TensorChange("fc.weight", 0.25, 0.031))
        fc.weight  by up to 0.25, 3.10% of its norm
    """

    name: str
    largest: float
    relative: float

    def __str__(self) -> str:
        return printable("  ".join(self._cells()))

    def _cells(self) -> tuple[str, str]:
        share = f"{self.relative:.2%} of its norm" if math.isfinite(self.relative) else "was zero"
        return self.name, f"by up to {self.largest:.3g}, {share}"


@dataclass(frozen=True, repr=False)
class CheckpointDiff(Report):
    """The differences between two checkpoints. Prints well; false if there are none.

    Attributes:
        changed: The tensors whose values differ, the most changed first.
        same: Names of the tensors that are bit-for-bit identical.
        reshaped: Tensors in both whose shape or dtype differs: name, before, after.
        only_in_a: Names that only the first has.
        only_in_b: Names that only the second has.
        unverified: Which of the two have no digests or checksums, so that damage would look like a change.
    """

    a: str
    b: str
    changed: list[TensorChange]
    same: list[str]
    reshaped: list[tuple[str, str, str]]
    only_in_a: list[str]
    only_in_b: list[str]
    unverified: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.changed or self.reshaped or self.only_in_a or self.only_in_b)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible values; the ``relative`` size of a change from zero is None."""
        reshaped = [dict(zip(("name", "was", "is"), row, strict=True)) for row in self.reshaped]
        return super().to_dict() | {"reshaped": reshaped}

    def _parts(self) -> Parts:
        doubt = f" (not verified: no digests in {some(self.unverified, 2)})" if self.unverified else ""
        counts = f"{plural(len(self.same), 'tensor')} identical, {len(self.changed)} changed"
        yield f"{self.a} -> {self.b}: {counts}{doubt}"
        yield Grid([change._cells() for change in self.changed if math.isfinite(change.relative)])
        if from_zero := [change for change in self.changed if not math.isfinite(change.relative)]:
            yield f"  were zero: {some([change.name for change in from_zero], 3)}, by up to {_largest(from_zero):.3g}"
        yield Grid([(name, f"was {was}, is {now}") for name, was, now in self.reshaped])
        yield Grid([(name, "removed") for name in self.only_in_a] + [(name, "added") for name in self.only_in_b])


def diff_checkpoints(a: WeightsSource, b: WeightsSource) -> CheckpointDiff:
    """Show which tensors changed between two checkpoints and by how much, and which were added or removed.

    This proves that freezing worked: frozen tensors are bit-for-bit identical. Everything that is compared is read, and
    verified if the files have digests or checksums; if one has none, the first line says so.

    Args:
        a: The earlier one: a file of any format, a folder, a state dict, or a model.
        b: The later one.

    Raises:
        CheckpointError: One of them is not a weights file, or they have no name in common.
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
            unverified=list(dict.fromkeys(source.name for source in (first, second) if not source.verified)),
        )


def _counterparts(first: Source, second: Source) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """The two tables that have most names in common; the outermost of equals."""

    def common(pair: tuple[Table, Table]) -> int:
        for budget in (first.budget, second.budget):
            budget.charge(steps=1 + min(len(table.entries) for table in pair) // 16)
        return len(pair[0].entries.keys() & pair[1].entries.keys())

    pairs = ((left, right) for left in first.tables for right in second.tables)
    best = max(pairs, key=common, default=None)
    if best is None or not common(best):
        raise CheckpointError(f"{shown(first.name)} and {shown(second.name)} have no tensor name in common.")
    return best[0].entries, best[1].entries


def _change(name: str, old: Entry, new: Entry) -> TensorChange | None:
    """How much a tensor changed, or ``None`` if it is bit-for-bit identical. Digests prove nothing about bytes."""
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


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _largest(changes: list[TensorChange]) -> float:
    return max(change.largest for change in changes)
