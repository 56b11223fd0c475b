"""How reports look: the same content as text for a terminal, HTML for a notebook, JSON for a program."""

from __future__ import annotations

import dataclasses
import functools
import html
import itertools
import json
import math
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar, overload

from ftkit._files import atomic_write
from ftkit._wording import shown

_TOP, _BOTTOM = 20, 10  # rows of a long table that are shown
_LONGEST = 2000  # characters of one line, however long someone's file names are
_NARROWEST = 12  # columns of text

_PLAIN: Final = str.maketrans({"─": "-", "│": "|", "├": "+", "└": "+", "…": "~"})


class Grid(NamedTuple):
    """Rows of cells in columns. Where they don't fit, names lose their middle, and other cells wrap.

    Attributes:
        rows: The cells.
        titles: The column titles.
        names: The columns of names, which are never wrapped.
        right: The columns of numbers, which are right-aligned.
    """

    rows: Sequence[Sequence[object]]
    titles: Sequence[str] = ()
    names: Collection[int] = (0,)
    right: Collection[int] = ()

    def lines(self, show: Callable[[object], str]) -> list[list[str]]:
        """Return the titles, where there are any, and the rows; a long table loses its middle."""
        rows = list(self.rows)
        if (hidden := len(rows) - _TOP - _BOTTOM) > 0:
            rows[_TOP:-_BOTTOM] = [[f"... {hidden:,} more ...", *[""] * (len(rows[0]) - 1)]]
        return [[show(shown(cell)) for cell in row] for row in [*[self.titles] * bool(self.titles), *rows]]


Parts: TypeAlias = Iterable["str | Grid"]
Target = TypeVar("Target", bound="str | os.PathLike[str] | None")


class Report:
    """The result of a call. Its ``repr`` is the report as text; a notebook shows it as HTML."""

    __slots__ = ()

    def _parts(self) -> Parts:
        """Yield the lines and tables of the report; the first line is its headline."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return to_text(self._parts())

    def _repr_html_(self) -> str:
        return _to_html(self._parts())

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, ready for JSON; NaN and infinity become None."""
        return _fields(self)

    @overload
    def to_json(self, path: None = None) -> str: ...

    @overload
    def to_json(self, path: str | os.PathLike[str]) -> None: ...

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """Return ``to_dict()`` as JSON, or write it to the file ``path``."""
        return delivered(json.dumps(self.to_dict(), indent=1), self._target(path))

    def _target(self, path: Target) -> Target:
        """Return the path of a file to write, if it may be written."""
        return path


def delivered(text: str, path: str | os.PathLike[str] | None) -> str | None:
    """Return the text if ``path`` is None, else write it to that file."""
    if path is None:
        return text
    with atomic_write(path) as file:
        file.write(text.encode())
    return None


def plain(value: Any) -> Any:
    """Convert a value to what JSON supports: dicts, lists, strings, numbers, and None for NaN and infinity.

    Example:
        >>> from pathlib import Path
        >>> from ftkit._reports import plain
        >>> plain({"path": Path("runs"), "shape": (3, 4), "loss": float("nan")})
        {'path': 'runs', 'shape': [3, 4], 'loss': None}
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Report):
        return value.to_dict()
    if dataclasses.is_dataclass(value):
        return _fields(value)
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(one) for one in value]
    if hasattr(value, "tolist"):  # of NumPy and torch
        return plain(value.tolist())
    return str(value)


def _fields(thing: Any) -> dict[str, Any]:
    names = _names(type(thing))  # type: ignore[arg-type]  # mypy takes no class for hashable
    return {name: plain(getattr(thing, name)) for name in names}


@functools.lru_cache
def _names(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if not field.name.startswith("_")]


# ---------------------------------------------------------------- text


def columns(otherwise: int = 80) -> int:
    """Return the width of the terminal, or ``otherwise`` if there is none."""
    return shutil.get_terminal_size((otherwise, 24)).columns


def printable(text: object) -> str:
    r"""Return a text that is safe to print on this terminal; characters that it lacks become ASCII or escapes.

    Example:
        >>> from ftkit._reports import printable
        >>> print(printable("cat\x1b[2J.jpg"))
        cat\x1b[2J.jpg
    """
    return encodable(shown(text, most=_LONGEST))


def encodable(text: str) -> str:
    """Return a text in characters that the terminal supports: ASCII for drawn lines, escapes for the rest."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_PLAIN).encode(encoding, "backslashreplace").decode(encoding)
    return text


def width_of(text: str) -> int:
    """Return how many columns a text takes: a Korean character takes two.

    Example:
        >>> from ftkit._reports import width_of
        >>> width_of("tom"), width_of("고양이")
        (3, 6)
    """
    return len(text) if text.isascii() else sum(map(_width, text))


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _fitting(text: Iterable[str], size: int) -> int:
    """Return how many of the characters fit into ``size`` columns."""
    return sum(1 for end in itertools.accumulate(map(_width, text)) if end <= size)


def cut(name: str, size: int) -> str:
    """Return a name in at most ``size`` columns: a long one loses its middle.

    Example:
        >>> from ftkit._reports import cut
        >>> cut("layer4.2.conv3.weight", 16)
        'layer4.2….weight'
    """
    if width_of(name) <= size:
        return name
    head = name[: _fitting(name, size // 2)]
    tail = _fitting(reversed(name), size - 1 - width_of(head))
    return f"{head}…{name[len(name) - tail :]}"


def wrapped(text: str, width: int, hang: str = "") -> list[str]:
    """Wrap a text at ``width`` columns; lines after the first start with ``hang``.

    Example:
        >>> from ftkit._reports import wrapped
        >>> wrapped("one two three", 9, "  ")
        ['one two', '  three']
    """
    lines, line = [], ""
    for word in re.findall(r" *[^ ]+(?:(?<=\d) (?=[A-Z])[^ ]+)*", text):  # a number stays with its unit
        if line.strip() and width_of(line + word) > width:
            lines.append(line)
            line = hang + word.lstrip(" ")
        else:
            line += word
        while width_of(line) > width:  # a word that no line holds
            end = max(_fitting(line, width), len(hang) + 1)
            lines.append(line[:end])
            line = hang + line[end:]
    return [*lines, line]


def to_text(parts: Parts, width: int | None = None) -> str:
    """Lay out lines and tables in ``width`` columns, by default those of the terminal."""
    size = max(width or columns(), 2 * _NARROWEST)
    lines: list[str] = []
    for part in _filled(parts):
        lines += _rows(part, size) if isinstance(part, Grid) else _hanging(printable(part), size)
    return encodable("\n".join(line.rstrip() for line in lines))


def _filled(parts: Parts) -> Parts:
    return (part for part in parts if not isinstance(part, Grid) or part.rows)


def _hanging(line: str, width: int) -> list[str]:
    return wrapped(line, width, " " * (len(line) - len(line.lstrip(" ")) + 2))


def _rows(grid: Grid, width: int) -> Iterator[str]:
    """Yield the lines of a table, indented."""
    rows = grid.lines(printable)
    widths = _narrowed([max(map(width_of, cells)) for cells in zip(*rows, strict=True)], width)
    for number, row in enumerate(rows):
        cells = [
            [cut(cell, size)] if at in grid.names else wrapped(cell, size)
            for at, (cell, size) in enumerate(zip(row, widths, strict=True))
        ]
        for line in itertools.zip_longest(*cells, fillvalue=""):
            sized = enumerate(zip(line, widths, strict=True))
            yield "  " + "  ".join(padded(cell, size, right=at in grid.right) for at, (cell, size) in sized)
        if grid.titles and not number:
            yield "  " + "─" * (sum(widths) + 2 * len(widths) - 2)


def padded(cell: str, size: int, *, right: bool) -> str:
    """Return a cell padded to ``size`` columns, right- or left-aligned."""
    blank = " " * (size - width_of(cell))
    return blank + cell if right else cell + blank


def _narrowed(widths: list[int], width: int) -> list[int]:
    """Narrow the widest column, again and again, until all fit side by side."""
    while sum(widths) + 2 * len(widths) > width and max(widths) > _NARROWEST // 2:
        widest = widths.index(max(widths))
        widths[widest] -= 1
    return widths


# ---------------------------------------------------------------- HTML

_STYLE: Final = """
.ftkit { font: 13px/1.6 system-ui, sans-serif; overflow-x: auto; }
.ftkit style + p { font-weight: 600; }
.ftkit p { margin: 0; overflow-wrap: anywhere; }
.ftkit p.in { padding-left: 1rem; }
.ftkit table { border-collapse: collapse; margin: .2rem 0 .2rem 1rem; font: inherit; }
.ftkit table th, .ftkit table td { padding: 0 .8rem 0 0; text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }
.ftkit table th { border-bottom: 1px solid #8888; font-weight: 600; }
.ftkit table td + td { min-width: 4rem; }
.ftkit table .n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
"""


def _to_html(parts: Parts) -> str:
    shown_parts = ("".join(_table(part)) if isinstance(part, Grid) else _paragraph(part) for part in _filled(parts))
    return f'<div class="ftkit"><style>{_STYLE}</style>{"".join(shown_parts)}</div>'


def _paragraph(line: str) -> str:
    inside = ' class="in"' if line.startswith(" ") else ""
    return f"<p{inside}>{_escaped(line.strip())}</p>"


def _table(grid: Grid) -> Iterator[str]:
    yield "<table>"
    for number, row in enumerate(grid.lines(_escaped)):
        kind = "th" if grid.titles and not number else "td"
        marks = (' class="n"' if at in grid.right else "" for at in range(len(row)))
        yield f"<tr>{''.join(f'<{kind}{mark}>{cell}</{kind}>' for cell, mark in zip(row, marks, strict=True))}</tr>"
    yield "</table>"


def _escaped(text: object) -> str:
    return html.escape(shown(text, most=_LONGEST))
