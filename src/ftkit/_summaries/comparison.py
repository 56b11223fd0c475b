"""Two summaries side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import starmap

from ftkit._arguments import came
from ftkit._reports import Grid, Parts, Report
from ftkit._summaries.rows import SummaryRow
from ftkit._summaries.summary import ModelSummary
from ftkit._wording import in_bytes, in_counts, in_units
from ftkit.errors import FtkitError


@dataclass(repr=False)
class Comparison(Report):
    """Two summaries side by side, as :func:`~ftkit.compare` returns them."""

    a: ModelSummary
    b: ModelSummary

    def _parts(self) -> Parts:
        names = (self.a.model, self.b.model) if self.a.model != self.b.model else ("first", "second")
        top = [(name, *map(_brief, pair), "") for name, pair in self.differing().items() if "." not in name]
        rows = [row for row in top if row[1] != row[2]]
        yield Grid([*starmap(self._total, _TOTALS), *rows], ("", *names, ""), right=(1, 2, 3))

    def differing(self) -> dict[str, tuple[SummaryRow | None, SummaryRow | None]]:
        """Return the rows that differ, by name; None where a model has no such module."""
        left, right = ({row.name: row for row in found.rows} for found in (self.a, self.b))
        names = [*left, *(name for name in right if name not in left)]
        return {name: (left.get(name), right.get(name)) for name in names if name and left.get(name) != right.get(name)}

    def _total(self, title: str, show: Callable[[float], str], name: str) -> tuple[str, ...]:
        one, other = getattr(self.a, name), getattr(self.b, name)
        return title, show(one), show(other), _change(one, other)


_TOTALS = (
    ("parameters", in_counts, "total_params"),
    ("trainable", in_counts, "trainable_params"),
    ("parameter bytes", in_bytes, "param_bytes"),
    ("forward FLOPs", in_units, "forward_flops"),
    ("backward FLOPs", in_units, "backward_flops"),
    ("kept for backward", in_bytes, "saved_bytes"),
)


def _change(one: int, other: int) -> str:
    if not one or one == other:
        return ""
    return f"{100 * (other - one) / one:+.1f}%" if other < 10 * one else f"x {other / one:,.0f}"


def _brief(row: SummaryRow | None) -> str:
    if row is None:
        return "-"
    said = [row.status or row.type]
    if row.backward_flops:
        said.append(f"{in_units(row.backward_flops)} backward")
    if row.saved_bytes:
        said.append(in_bytes(row.saved_bytes))
    return ", ".join(said)


def compare(a: ModelSummary, b: ModelSummary) -> Comparison:
    """Compare two summaries side by side: one model frozen in two ways, or two models.

    Example:
        >>> import torch
        >>> from ftkit import compare, summary
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2))
        >>> before = summary(model, (16, 8))
        >>> _ = model[0].requires_grad_(False)
        >>> compare(before, summary(model, (16, 8)))
                                                first                     second
          ──────────────────────────────────────────────────────────────────────────────
          parameters                               46                         46
          trainable                                46                         10  -78.3%
          parameter bytes                       184 B                      184 B
          forward FLOPs                        1.28 K                     1.28 K
          backward FLOPs                       1.54 K                        256  -83.3%
          kept for backward                     516 B                      516 B
          0                   trains, 1.02 K backward                     frozen
          1                     trains, 512 backward,      trains, 256 backward,
                                                256 B                      256 B
    """
    both: Iterable[object] = (a, b)
    for given in both:
        if not isinstance(given, ModelSummary):
            raise FtkitError(f"compare takes two summaries, not {came(given)}: summary(model, input_size) makes one.")
    return Comparison(a, b)
