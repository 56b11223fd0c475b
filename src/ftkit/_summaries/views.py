"""How a summary looks: as text, as HTML, as a picture."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftkit._cost.meter import Shapes
from ftkit._wording import in_bytes, in_counts, in_units
from ftkit.errors import FtkitError

if TYPE_CHECKING:
    import os

    from ftkit._summaries.summary import ModelSummary

__all__ = ["Row", "to_html", "to_picture", "to_text"]


@dataclass
class Row:
    """One module of a model, its children included.

    Attributes:
        name: Dotted, empty for the model itself. A shared module has its first name.
        type: The name of its class.
        input_shape: Of its first call; a tuple of shapes for several tensors, None if it was not called.
        output_shape: Likewise.
        params: Parameters, tied ones counted once.
        trainable: Those of them that train.
        forward_flops: Over all of its calls; a multiply-add is 2.
        backward_flops: For the gradients of its inputs and of its parameters.
        saved_bytes: What it keeps from the forward for the backward pass.
        mode: ``"train"`` or ``"eval"``, as it ran.
        calls: How often the forward pass calls it.
        status: ``"trains"``, ``"partial"``, ``"frozen"``, ``"frozen, passes gradients"``, or nothing
            if it has no parameters.
    """

    name: str
    type: str
    input_shape: Shapes = None
    output_shape: Shapes = None
    params: int = 0
    trainable: int = 0
    forward_flops: int = 0
    backward_flops: int = 0
    saved_bytes: int = 0
    mode: str = "train"
    calls: int = 0
    status: str = ""


@dataclass
class _Node:
    """A row in its place; or several equal rows in a line, with their sums."""

    row: Row
    label: str
    children: list[_Node]
    count: int = 1

    def alike(self) -> Any:
        """Equal for modules that a reader need not tell apart."""
        figures = {name: value for name, value in vars(self.row).items() if name != "name"}
        return tuple(figures.values()), tuple((child.label, child.alike()) for child in self.children)


_SUMMED = ("params", "trainable", "forward_flops", "backward_flops", "saved_bytes", "calls")


def _tree(rows: list[Row]) -> _Node:
    nodes: dict[str, _Node] = {}
    for row in rows:
        parent, _, label = row.name.rpartition(".")
        nodes[row.name] = _Node(row, label, [])
        if row.name:
            nodes[parent].children.append(nodes[row.name])
    return nodes[""]


def _folded(node: _Node) -> _Node:
    """Merge runs of equal siblings, all the way down."""
    runs: list[list[_Node]] = []
    alike: Any = None
    for child in node.children:
        mine = child.alike()
        if runs and mine == alike:
            runs[-1].append(child)
        else:
            runs.append([child])
        alike = mine
    return _Node(node.row, node.label, [_folded(_merged(run)) for run in runs], node.count)


def _merged(run: list[_Node]) -> _Node:
    if len(run) == 1:
        return run[0]
    first = run[0]
    row = Row(**vars(first.row) | {name: len(run) * getattr(first.row, name) for name in _SUMMED})
    children = [_merged(list(same)) for same in zip(*(one.children for one in run), strict=True)]
    for child in children:
        child.label = child.label.split(" … ")[0]
    return _Node(row, f"{first.label} … {run[-1].label}", children, len(run) * first.count)


def _lines(node: _Node, depth: int, lead: str = "", branch: str = "") -> Iterator[tuple[str, _Node]]:
    """Walk the tree with the lines that draw it."""
    yield lead + branch, node
    if depth > 0:
        lead += {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
        for index, child in enumerate(node.children):
            yield from _lines(child, depth - 1, lead, "└─ " if index == len(node.children) - 1 else "├─ ")


_FITS = 40


def _depth_that_fits(tree: _Node) -> int:
    depth = 1
    while (more := sum(1 for _ in _lines(tree, depth + 1))) <= _FITS and more > sum(1 for _ in _lines(tree, depth)):
        depth += 1
    return depth


def to_text(found: ModelSummary, depth: int | None, fold: bool, width: int | None) -> str:
    """Draw the tree with its figures, in as many columns as fit, and what they come to."""
    tree = _folded(_tree(found.rows)) if fold else _tree(found.rows)
    lines = list(_lines(tree, _depth_that_fits(tree) if depth is None else depth))
    width = width or shutil.get_terminal_size((110, 24)).columns
    names = [_heading(lead, node) for lead, node in lines]
    columns = _columns(found)
    cells = {title: [title, *(show(node) for _, node in lines)] for title, show in columns.items()}
    sizes = {title: max(map(len, cells[title])) for title in columns}
    first = max(map(len, names))

    def room() -> int:
        return width - sum(2 + size for size in sizes.values())

    for title in ("mode", "output", "forward", "backward"):  # what a narrow terminal goes without
        if room() < min(first, 24):
            sizes.pop(title, None)
    if room() < min(first, 24):
        cells["state"] = [_SHORT.get(cell, cell) for cell in cells["state"]]
        sizes["state"] = max(map(len, cells["state"]))
    if room() < min(first, 16):
        sizes.pop("params")
    first = min(first, max(12, room()))
    table = []
    for index, name in enumerate(["module", *names]):
        line = [(name if len(name) <= first else name[: first - 1] + "…").ljust(first)]
        line += [getattr(cells[title][index], _SIDES.get(title, "rjust"))(size) for title, size in sizes.items()]
        table.append("  ".join(line).rstrip())
    rule = "─" * (first + sum(2 + size for size in sizes.values()))
    closing = [
        textwrap.fill(_glued(text), width, initial_indent=title.ljust(12), subsequent_indent=" " * 12)
        for title, text in _closing(found)
    ]
    return "\n".join([table[0], rule, *table[1:], rule, *closing]).replace(_GLUE, " ")


_GLUE = "\u00a0"  # a no-break space; by its name, it would take a table of all names


def _glued(text: str) -> str:
    """Keep numbers and their units on one line."""
    return re.sub(r"(?<=\d) (?=[A-Z])", _GLUE, text)


_SHORT = {"frozen, passes gradients": "passes"}
_SIDES = {"output": "ljust", "state": "ljust"}


def _heading(lead: str, node: _Node) -> str:
    kind = f"{node.count} x {node.row.type}" if node.count > 1 else node.row.type
    again = node.row.calls // node.count
    return f"{lead}{node.label}{'  ' if node.label else ''}{kind}{f' (called {again}x)' if again > 1 else ''}"


def _columns(found: ModelSummary) -> dict[str, Callable[[_Node], str]]:
    columns: dict[str, Callable[[_Node], str]] = {
        "output": lambda node: _shape(node.row.output_shape) if _ran(node) else "not called",
        "params": lambda node: in_counts(node.row.params) if node.row.params else "-",
        "state": lambda node: node.row.status,
        "mode": lambda node: node.row.mode,
        "forward": lambda node: in_units(node.row.forward_flops) if node.row.forward_flops else "-",
        "backward": lambda node: in_units(node.row.backward_flops) if node.row.backward_flops else "-",
        "saved": lambda node: in_bytes(node.row.saved_bytes) if node.row.saved_bytes else "-",
    }
    if found._cost is None:
        columns = {title: columns[title] for title in ("params", "state", "mode")}
    if len({row.mode for row in found.rows}) == 1:
        del columns["mode"]
    return columns


def _ran(node: _Node) -> bool:
    return node.row.calls > 0 or any(map(_ran, node.children))


def _shape(shapes: Shapes) -> str:
    if not shapes:
        return "()" if shapes == () else "-"
    if isinstance(shapes[0], tuple):
        return " ".join(map(str, shapes[:2])) + (f" +{len(shapes) - 2}" if len(shapes) > 2 else "")
    return str(shapes)


def _share(part: float, whole: float) -> str:
    """A percentage that says 100 or 0 only where it is so."""
    if not whole:
        return "0%"
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return "less than 0.1%"
    if 99.9 < percent < 100:
        return "more than 99.9%"
    return f"{percent:.3g}%"


def _closing(found: ModelSummary) -> list[tuple[str, str]]:
    """What is said under the table: titles and sentences."""
    said = [("Parameters", _parameters(found))]
    if found._cost is None:
        return said
    step = f"{_flop(found.forward_flops)} forward, {_flop(found.backward_flops)} backward; "
    step += f"{in_bytes(found.saved_bytes)} kept for the backward pass"
    if by_loss := found.saved_bytes - found.rows[0].saved_bytes:
        step += f" ({in_bytes(by_loss)} by the loss)"
    said.append(("One step", step + "."))
    if found.real:
        said.append(("Note", f"It was computed once, with real tensors: {found.real}."))
    if found.frozen_params:
        said.append(("Freezing", _savings(found)))
        if economy := _false_economy(found):
            said.append(("", economy))
    return said


def _flop(count: int) -> str:
    text = in_units(count)
    return f"{text}{'' if ' ' in text else ' '}FLOP"


def _parameters(found: ModelSummary) -> str:
    text = f"{in_counts(found.total_params)} in {in_bytes(found.param_bytes)}"
    if found.frozen_params:
        text += f", of which {in_counts(found.trainable_params)} train and {in_counts(found.frozen_params)} are frozen"
    if found.tied:
        text += f"; {', '.join(found.tied)} tied, counted once"
    return text + (f"; {in_counts(found.buffers)} in buffers." if found.buffers else ".")


def _savings(found: ModelSummary) -> str:
    if not found.backward_flops and not found.saved_bytes:
        return "It leaves nothing to train on this input: there is no backward pass."
    flops = _share(found.unfrozen_backward_flops - found.backward_flops, found.unfrozen_backward_flops)
    saved = _share(found.unfrozen_saved_bytes - found.saved_bytes, found.unfrozen_saved_bytes)
    frozen = _share(found.frozen_params, found.total_params)
    return (
        f"{frozen[0].upper()}{frozen[1:]} of the parameters are frozen. Against training all, that "
        f"saves {flops} of the backward FLOPs and {saved} of the bytes kept."
    )


def _false_economy(found: ModelSummary) -> str:
    """Warn where much is frozen, and nearly as much memory is needed."""
    saved = found.unfrozen_saved_bytes - found.saved_bytes
    if (
        not found.saved_bytes
        or found.frozen_params <= found.total_params / 2
        or saved > found.unfrozen_saved_bytes / 10
    ):
        return ""
    lowest = next((row.name for row in found.rows if row.status == "trains" and row.calls), "")
    return (
        f"A false economy: {lowest or 'a low layer'} trains, so what lies above it keeps its activations all the same. "
        "Freeze from the input upwards."
    )


_PAGE = """
<div class="ftkit-summary">
<style>
.ftkit-summary { font: 13px/1.6 system-ui, sans-serif; max-width: 74rem; overflow-x: auto;
  --line: #8884; --bar: #4c8dd6; --quiet: #888; }
.ftkit-summary .row { display: grid; column-gap: .8rem; min-width: 62rem;
  grid-template-columns: minmax(14rem, 1fr) 11rem 4.5rem 14rem 5rem 5rem 7rem;
  border-bottom: 1px solid var(--line); align-items: baseline; }
.ftkit-summary .row > * { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.ftkit-summary .number { text-align: right; font-variant-numeric: tabular-nums; }
.ftkit-summary .head { font-weight: 600; border-bottom: 2px solid var(--line); }
.ftkit-summary summary { cursor: pointer; list-style: none; }
.ftkit-summary summary::-webkit-details-marker { display: none; }
.ftkit-summary summary .name::before { content: "▸ "; color: var(--quiet); }
.ftkit-summary details[open] > summary .name::before { content: "▾ "; }
.ftkit-summary .leaf .name::before { content: "  "; white-space: pre; }
.ftkit-summary .type, .ftkit-summary .shape { color: var(--quiet); }
.ftkit-summary .trains::before { content: "● "; color: #2e9e5b; }
.ftkit-summary .partial::before { content: "◐ "; color: #2e9e5b; }
.ftkit-summary .frozen::before { content: "❄ "; color: #4c8dd6; }
.ftkit-summary .saved { background: linear-gradient(to left,
  color-mix(in srgb, var(--bar) 30%, transparent) var(--share), transparent 0); }
.ftkit-summary p { margin: .3rem 0; }
</style>
<div class="row head"><span>module</span><span>output</span><span class="number">params</span><span>state</span>
<span class="number">forward</span><span class="number">backward</span><span class="number">saved</span></div>
{%- macro cells(node) -%}
<span class="name" style="padding-left: {{ node.level * 1.1 }}em" title="{{ node.title }}">
{{- node.label }} <span class="type">{{ node.type }}</span></span>
<span class="shape" title="{{ node.shape }}">{{ node.shape }}</span>
<span class="number">{{ node.params }}</span>
<span class="state {{ node.status.split(',')[0] }}">{{ node.status }} <span class="type">{{ node.mode }}</span></span>
<span class="number">{{ node.forward }}</span>
<span class="number">{{ node.backward }}</span>
<span class="number saved" style="--share: {{ node.share }}%">{{ node.saved }}</span>
{%- endmacro -%}
{%- macro tree(node) -%}
{%- if node.children -%}
<details{{ " open" if node.level < 2 }}><summary class="row">{{ cells(node) }}</summary>
{%- for child in node.children %}{{ tree(child) }}{% endfor -%}
</details>
{%- else -%}<div class="row leaf">{{ cells(node) }}</div>{%- endif -%}
{%- endmacro -%}
{{ tree(root) }}
{% for title, text in closing %}<p><b>{{ title }}</b> {{ text }}</p>{% endfor %}
</div>
"""


def to_html(found: ModelSummary) -> str:
    """Lay the tree out as a page that a notebook shows: it unfolds without a script."""
    import jinja2

    def view(node: _Node, level: int) -> dict[str, Any]:
        row = node.row
        status = row.status
        return {
            "level": level,
            "title": row.name,
            "label": node.label,
            "type": _heading("", _Node(row, "", [], node.count)),
            "shape": _shape(row.output_shape) if _ran(node) else "not called",
            "params": in_counts(row.params) if row.params else "",
            "status": status,
            "mode": row.mode if row.mode != found.rows[0].mode else "",
            "forward": in_units(row.forward_flops) if row.forward_flops else "",
            "backward": in_units(row.backward_flops) if row.backward_flops else "",
            "saved": in_bytes(row.saved_bytes) if row.saved_bytes else "",
            "share": round(100 * row.saved_bytes / max(found.saved_bytes, 1), 1),
            "children": [view(child, level + 1) for child in node.children],
        }

    template = jinja2.Environment(autoescape=True).from_string(_PAGE)
    return template.render(root=view(_folded(_tree(found.rows)), 0), closing=_closing(found))


_COLOURS = {
    "trains": "#2e9e5b",
    "partial": "#8bc34a",
    "frozen, passes gradients": "#e0a030",
    "frozen": "#7aa6d8",
    "": "#b0b0b0",
}


def to_picture(found: ModelSummary, path: str | os.PathLike[str]) -> None:
    """Draw the bytes and FLOPs of every layer as bars."""
    if found._cost is None:
        raise FtkitError("There is nothing to draw without an input: give summary() an input_size or input_data.")
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        raise FtkitError("plot() needs matplotlib: pip install 'ftkit[plot]'.") from error
    tree = _folded(_tree(found.rows))
    nodes = [node for _, node in _lines(tree, _depth_that_fits(tree))]
    named, shown = _places(tree), set(map(id, nodes))
    leaves = [node for node in nodes if not any(id(child) in shown for child in node.children)]
    rows = [(node, node.row) for node in leaves if node.row.calls]
    rows = [(node, row) for node, row in rows if row.forward_flops or row.saved_bytes or row.params]
    figure = Figure(figsize=(10, 1.2 + 0.26 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    places = range(len(rows))
    colours = [_COLOURS[row.status] for _, row in rows]
    left.barh(places, [row.saved_bytes / 2**20 for _, row in rows], color=colours)
    left.set(title=f"kept for backward: {in_bytes(found.saved_bytes)}", xlabel="MiB")
    left.set_yticks(list(places), [named[id(node)] for node, _ in rows], fontsize=8)
    left.invert_yaxis()
    forward = [row.forward_flops / 1e9 for _, row in rows]
    right.barh(places, forward, color="#c8c8c8")
    right.barh(places, [row.backward_flops / 1e9 for _, row in rows], left=forward, color=colours)
    right.set(
        title=f"forward {in_units(found.forward_flops)}FLOP (grey), backward {in_units(found.backward_flops)}FLOP",
        xlabel="GFLOP",
    )
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
    used = [status for status in _COLOURS if any(row.status == status for _, row in rows)]
    figure.legend(
        handles=[Patch(color=_COLOURS[status], label=status or "no parameters") for status in used],
        loc="outside lower center",
        ncols=len(used),
        frameon=False,
    )
    figure.suptitle(found.model)
    figure.savefig(path, dpi=150)


def _places(node: _Node, place: str = "") -> dict[int, str]:
    """The dotted names of a node and of all below it, those of folded ones too."""
    place = f"{place}.{node.label}" if place else node.label
    found = {id(node): place or node.row.type}
    for child in node.children:
        found |= _places(child, place)
    return found
