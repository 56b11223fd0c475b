"""What precompute() gives back: loaders of what is kept, a block in which the model takes it, a report."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch.utils.data import DataLoader, Dataset

from ftkit._models.dryrun import turn
from ftkit._precompute import samples
from ftkit._precompute.lookup import Lookup
from ftkit._precompute.replay import Player
from ftkit._precompute.rows import Batches, Rows
from ftkit._reports import Grid, Parts, Report
from ftkit._wording import in_bytes, plural, some
from ftkit.errors import FtkitError, did_you_mean

_AT_A_TIME = 256


def _as_it_is(batch: Any) -> Any:
    return batch


@dataclass(repr=False)
class Precomputed(Report):
    """What :func:`precompute` returns: the frozen part of a model, computed once for each sample.

    Use its :meth:`loader` in the place of yours, or your own loader if :func:`precompute` got that, and call the model
    in a ``with`` block. It is a report, too.

    Attributes:
        path: The file that keeps it.
        samples: How many samples there are.
        views: How many draws of each sample are kept.
        skipped: The modules that need not run any more.
        kept: The tensors that are kept for each sample: where they go, their shapes, types and sizes in bytes.
        bytes_per_sample: What the file takes for one draw of one sample.
        share: The share of the FLOPs of a forward pass that is saved; None if they can't be counted.
        rounding: The largest and the mean relative error of the values that are kept in less precision, of the first
            samples; None if they are kept as computed.
        not_skipped: Frozen modules that run as before, and why.
        computed: How many samples (with ``views=``, draws) were computed by this call; the others were in the file.
            With a loader of your own, how many were computed in the block.
        seconds: How long that took.
    """

    path: Path
    samples: int
    views: int
    skipped: list[str]
    kept: list[tuple[str, tuple[int, ...], str, int]]
    bytes_per_sample: int
    share: float | None
    rounding: tuple[float, float] | None
    not_skipped: dict[str, str]
    computed: int
    seconds: float
    _player: Player = field(init=False, repr=False)
    _source: Any = field(init=False, repr=False)
    _rows: Rows | None = field(default=None, init=False, repr=False)
    _fingerprint: str | None = field(default=None, init=False, repr=False)
    _lookup: Lookup | None = field(default=None, init=False, repr=False)
    _blocks: list[Callable[[], object]] = field(default_factory=list, init=False, repr=False)

    @property
    def dataset(self) -> Dataset[Any]:
        """The samples, each with a row of bytes (uint8) in the place of the model's input, for a loader of your own.

        Raises:
            FtkitError: There is none, as :func:`precompute` got a loader; or the data set, or the frozen part of the
                model, has changed since.
        """
        return self._checked()

    def loader(self, **options: Any) -> DataLoader[Any]:
        """Return a loader of the samples, for the model in a ``with`` block.

        Args:
            **options: As for ``torch.utils.data.DataLoader``: ``batch_size``, ``shuffle``, ``num_workers`` and so on.

        Raises:
            FtkitError: The data set, or the frozen part of the model, has changed since; or torch does not take these
                options; or :func:`precompute` got a loader.
        """
        rows = self._checked()
        try:
            if options.get("collate_fn") is not None or options.get("batch_size", 1) is None:
                return DataLoader(rows, **options)
            return DataLoader(Batches(rows), **{**options, "collate_fn": _as_it_is})
        except (TypeError, ValueError) as error:
            unknown = [one for one in options if one not in inspect.signature(DataLoader).parameters]
            hint = did_you_mean(unknown[0], inspect.signature(DataLoader).parameters) if unknown else ""
            raise FtkitError(f"torch can't build a DataLoader from these arguments: {error}.{hint}") from error

    def features(self, kept: str | None = None) -> Any:
        """Return all samples as one batch, in the order of the data set, with what is kept as tensors of the CPU.

        The samples look as they do otherwise, ``(features, labels)`` for instance, with the kept tensor in the place of
        the model's input: one row for each sample (with ``views=``, for each draw, those of a sample one after the
        other). That is what a linear probe or a nearest-neighbour search needs.

        Args:
            kept: Which kept tensor, by the name that the report gives it; the only one by default.

        Raises:
            FtkitError: Several are kept and none was named; what is kept has changed since.
        """
        rows = self._checked()
        cut, offsets = self._player.cut, self._player.offsets
        names = [name for name, *_ in self.kept]
        if kept is None and len(names) > 1:
            raise FtkitError(f"Several tensors are kept for each sample: choose one of {some(names, 6)} with kept=.")
        if kept is not None and kept not in names:
            hint = did_you_mean(str(kept), names)
            raise FtkitError(f"kept must be one of {some(names, 6)}, not {kept!r}.{hint}")
        number = list(offsets)[0 if kept is None else names.index(kept)]
        layout, at = cut.layouts[number], offsets[number]

        def decode(some_rows: torch.Tensor) -> torch.Tensor:
            parts = layout.parts(layout.decode(some_rows[:, at : at + layout.nbytes]))
            dim = layout.dim or 0
            return parts.squeeze(dim + 1) if layout.shape[dim] == 1 else parts

        return rows.every(_AT_A_TIME, decode)

    def _indexed(self) -> Rows:
        if self._rows is None:
            raise FtkitError(
                "precompute() got a loader, so samples are known by their content and have no order: go on with that "
                "loader, and call the model with its batches in the block. Pass a data set for a loader of rows."
            )
        return self._rows

    def _checked(self) -> Rows:
        rows = self._indexed()
        if self._fingerprint is not None and samples.fingerprint(self._source) != self._fingerprint:
            raise FtkitError(
                "The data set has changed since the frozen part was computed: its files, its transform or its samples. "
                "Call precompute() again."
            )
        guard = self._player.guard
        with turn():
            guard.check(thoroughly=not self._player.entered or guard.is_rested)
        return rows

    def __enter__(self) -> Self:
        self._player.__enter__()
        if self._lookup is not None:
            self._blocks += [self._told_if_nothing_is_looked_up(), self._lookup.install()]
        return self

    def __exit__(self, *exception: object) -> None:
        if self._blocks:
            self._blocks.pop()()
        try:
            self._player.__exit__(*exception)
        finally:
            if self._blocks:
                self._blocks.pop()()

    def _told_if_nothing_is_looked_up(self) -> Callable[[], None]:
        lookup = self._lookup
        assert lookup is not None
        before = lookup.found + lookup.computed, dict(lookup.as_before)

        def tell() -> None:
            new = {why: n for why, count in lookup.as_before.items() if (n := count - before[1].get(why, 0))}
            if new and lookup.found + lookup.computed == before[0]:
                warnings.warn(
                    "Nothing was looked up in the block, so nothing was saved: each call of the "
                    f"{type(self._player.model).__name__} ran as before, as it was not like the first batch of the "
                    f"loader: {some([f'{why} ({count:,})' for why, count in new.items()], 4)}.",
                    stacklevel=4,
                )

        return tell

    def _count(self, there: int, computed: int, seconds: float) -> None:
        self.samples, self.computed, self.seconds = there, computed, seconds

    def _parts(self) -> Parts:
        saved = "" if self.share is None else f", which saves {math.floor(1000 * self.share) / 10}% of a forward pass"
        yield f"{type(self._player.model).__name__}: the frozen part is computed once{saved}."
        yield f"  skipped: {some(self.skipped, 6)}"
        rows = [(name, "x".join(map(str, shape)) or "1", kind, in_bytes(size)) for name, shape, kind, size in self.kept]
        yield Grid(rows, titles=("kept per sample", "shape", "type", "size"), right=(3,))
        if self.rounding is not None:
            yield f"  rounded: at most {self.rounding[0]:.2%} of a value, {self.rounding[1]:.2%} on average"
        yield f"  {self._amount()}; {self._time()}"
        for why, count in (self._lookup.as_before if self._lookup else {}).items():
            yield f"  {plural(count, 'call')} ran as before: {why}"
        yield f"  file: {self.path}"
        around = {name for name in self.not_skipped if any(one.startswith(f"{name}.") for one in self.skipped)}
        for why in dict.fromkeys(self.not_skipped.values()):
            names = [name for name, reason in self.not_skipped.items() if name and reason == why]
            if whole := [name for name in names if name not in around]:
                yield f"  runs as before: {some(whole, 3)}: {why}"
            if parts := [name for name in names if name in around]:
                yield f"  runs as before, but for what is skipped in it: {some(parts, 3)}: {why}"

    def _amount(self) -> str:
        draws = f", {self.views} draws of each" if self.views > 1 else ""
        size, whole = self.bytes_per_sample, self.bytes_per_sample * self.samples * self.views
        if self._lookup is not None and not self.samples:
            return f"{in_bytes(size)} for each sample, which is computed when it first comes"
        return f"{plural(self.samples, 'sample')} of {in_bytes(size)}{draws}, {in_bytes(whole)} in all"

    def _time(self) -> str:
        if self._lookup is not None and self._lookup.found:
            return f"{self.computed:,} computed in {self.seconds:.1f} s, {self._lookup.found:,} looked up"
        if self.computed:
            return f"{self.computed:,} computed in {self.seconds:.1f} s"
        return "none computed yet" if self._lookup is not None else "nothing left to compute"
