"""The tree of a summary's modules, with consecutive identical ones as one line."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ftkit._cost.meter import Shapes
from ftkit._summaries.rows import SummaryRow
from ftkit._wording import in_bytes, in_counts, in_units

_SUMMED = ("params", "trainable", "forward_flops", "backward_flops", "saved_bytes", "calls")
_MOST_LINES = 40  # of a tree whose depth was not set: a screen or two


@dataclass
class Node:
    """A row in its place; or several equal rows as one line, with their totals."""

    row: SummaryRow
    label: str
    children: list[Node]
    count: int = 1

    def alike(self) -> Any:
        """Equal for modules that a reader need not tell apart."""
        return vars(self.row) | {"name": ""}, [(child.label, child.alike()) for child in self.children]

    def heading(self) -> str:
        """Its class, and how many they are, or how often it is called."""
        kind = f"{self.count} x {self.row.type}" if self.count > 1 else self.row.type
        again = self.row.calls // self.count
        return f"{kind} (called {again}x)" if again > 1 else kind

    def ran(self) -> bool:
        """Whether it was called, or a module in it."""
        return self.row.calls > 0 or any(child.ran() for child in self.children)

    def cells(self, nothing: str) -> dict[str, str]:
        """What is shown of it, by column; ``nothing`` for zeros."""

        def figure(show: Callable[[float], str], count: int) -> str:
            return show(count) if count else nothing

        return {
            "output": _shape(self.row.output_shape) if self.ran() else "not called",
            "params": figure(in_counts, self.row.params),
            "state": self.row.status,
            "mode": self.row.mode,
            "forward": figure(in_units, self.row.forward_flops),
            "backward": figure(in_units, self.row.backward_flops),
            "saved": figure(in_bytes, self.row.saved_bytes),
        }

    def lines(self, depth: int, lead: str = "", branch: str = "") -> Iterator[tuple[str, Node]]:
        """Walk the tree with the lines that draw it."""
        yield lead + branch, self
        if depth > 0:
            lead += {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
            for index, child in enumerate(self.children, 1):
                yield from child.lines(depth - 1, lead, "└─ " if index == len(self.children) else "├─ ")

    def leaves(self, depth: int, place: str = "") -> Iterator[tuple[str, SummaryRow]]:
        """The lowest rows of so many levels, by their dotted places."""
        place = f"{place}.{self.label}".lstrip(".")
        if depth == 0 or not self.children:
            yield place or self.row.type, self.row
            return
        for child in self.children:
            yield from child.leaves(depth - 1, place)

    def depth_that_fits(self) -> int:
        """As many levels as come to some forty lines, but one at least."""
        depth, level, lines = 1, self.children, 1 + len(self.children)
        while level := [below for node in level for below in node.children]:
            lines += len(level)
            if lines > _MOST_LINES:
                break
            depth += 1
        return depth


def tree(rows: list[SummaryRow], *, fold: bool = True) -> Node:
    """Make the tree of all modules."""
    nodes: dict[str, Node] = {}
    for row in rows:
        parent, _, label = row.name.rpartition(".")
        nodes[row.name] = Node(row, label, [])
        if row.name:
            nodes[parent].children.append(nodes[row.name])
    return _folded(nodes[""]) if fold else nodes[""]


def _folded(node: Node) -> Node:
    """Merge runs of equal siblings, all the way down."""
    runs = itertools.groupby(node.children, key=Node.alike)
    return replace(node, children=[_folded(_merged(list(run))) for _, run in runs])


def _merged(run: list[Node]) -> Node:
    if len(run) == 1:
        return run[0]
    first = run[0]
    row = replace(first.row, **{name: len(run) * getattr(first.row, name) for name in _SUMMED})
    children = [
        replace(_merged(list(same)), label=same[0].label) for same in zip(*(one.children for one in run), strict=True)
    ]
    return Node(row, f"{first.label} … {run[-1].label}", children, len(run) * first.count)


def _shape(shapes: Shapes) -> str:
    if not shapes:
        return "()" if shapes == () else "-"
    if isinstance(shapes[0], tuple):
        more = f" +{len(shapes) - 2}" if len(shapes) > 2 else ""
        return " ".join(map(str, shapes[:2])) + more
    return str(shapes)
