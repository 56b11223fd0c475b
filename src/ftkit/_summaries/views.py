"""How a summary looks: as text, as HTML, as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftkit._arguments import local_path
from ftkit._files import atomic_write
from ftkit._reports import columns as terminal
from ftkit._reports import cut, encodable, padded, printable, width_of, wrapped
from ftkit._summaries.rows import SummaryData
from ftkit._summaries.tree import Node, tree
from ftkit._wording import in_bytes, in_counts, in_units
from ftkit.errors import FileWriteError, FtkitError, MissingPackageError

if TYPE_CHECKING:
    import os


# ---------------------------------------------------------------- text

_WIDTH = 110  # columns where there is no terminal: all that there are, for most models


def to_text(found: SummaryData, depth: int | None, fold: bool, width: int | None) -> str:
    """Draw the tree with its figures, in as many columns as fit, and what they come to."""
    root = tree(found.rows, fold=fold)
    width = width or terminal(_WIDTH)
    names, cells = ["module"], []
    for lead, node in root.lines(root.depth_that_fits() if depth is None else depth):
        names.append(lead + printable("  ".join(filter(None, (node.label, node.heading())))))
        cells.append(node.cells("-"))
    columns = {title: [title, *(line[title] for line in cells)] for title in _titles(found)}
    first = _narrowed(columns, max(map(width_of, names[1:])), width)
    table = [
        "  ".join([padded(cut(name, first), first, right=False), *line]).rstrip()
        for name, *line in zip(names, *columns.values(), strict=True)
    ]
    rule = "─" * (first + _taken(columns))
    closing = [line for title, text in _closing(found) for line in wrapped(title.ljust(12) + text, width, " " * 12)]
    return encodable("\n".join([table[0], rule, *table[1:], rule, *closing]))


def _titles(found: SummaryData) -> list[str]:
    """The columns that say something."""
    titles = ["output", "params", "state", "mode", "forward", "backward", "saved"]
    if not found.measured:
        titles = ["params", "state", "mode"]
    if len({row.mode for row in found.rows}) == 1:
        titles.remove("mode")
    return titles


_GIVE_WAY = (("mode", 24), ("output", 24), ("forward", 24), ("backward", 24), ("state", 24), ("params", 16))
"""The columns that a narrow terminal goes without, in this order, until names have so much room."""
_SHORT = {"frozen, passes gradients": "passes"}
_ON_THE_LEFT = ("output", "state")


def _narrowed(columns: dict[str, list[str]], longest: int, width: int) -> int:
    """Leave out what does not fit, pad each column to its width, and return the width left for names."""
    for title, least in _GIVE_WAY:
        if width - _taken(columns) >= min(longest, least):
            break
        if title == "state":
            columns[title] = [_SHORT.get(cell, cell) for cell in columns[title]]
        else:
            columns.pop(title, None)
    for title, cells in columns.items():
        size = max(map(len, cells))
        columns[title] = [padded(cell, size, right=title not in _ON_THE_LEFT) for cell in cells]
    return min(longest, max(12, width - _taken(columns)))


def _taken(columns: dict[str, list[str]]) -> int:
    return sum(2 + max(map(len, cells)) for cells in columns.values())


# ---------------------------------------------------------------- what is said under the table


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


def _closing(found: SummaryData) -> list[tuple[str, str]]:
    """What is said under the table: titles and sentences."""
    said = [("Parameters", _parameters(found))]
    if not found.measured:
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


def _parameters(found: SummaryData) -> str:
    text = f"{in_counts(found.total_params)} in {in_bytes(found.param_bytes)}"
    if found.frozen_params:
        text += f", of which {in_counts(found.trainable_params)} train and {in_counts(found.frozen_params)} are frozen"
    if found.tied:
        text += f"; {', '.join(found.tied)} tied, counted once"
    return text + (f"; {in_counts(found.buffers)} in buffers." if found.buffers else ".")


def _savings(found: SummaryData) -> str:
    if not found.backward_flops and not found.saved_bytes:
        return "Nothing that this input reaches is trainable: there is no backward pass."
    flops = _share(found.unfrozen_backward_flops - found.backward_flops, found.unfrozen_backward_flops)
    saved = _share(found.unfrozen_saved_bytes - found.saved_bytes, found.unfrozen_saved_bytes)
    frozen = _share(found.frozen_params, found.total_params)
    return (
        f"{frozen[0].upper()}{frozen[1:]} of the parameters are frozen. Compared with training "
        f"everything, that saves {flops} of the backward FLOPs and {saved} of the bytes kept."
    )


def _false_economy(found: SummaryData) -> str:
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
        f"A false economy: {lowest or 'a low layer'} trains, so everything after it still keeps its activations. "
        "Freeze from the input upwards."
    )


# ---------------------------------------------------------------- HTML

_PAGE = """
<div class="ftkit-summary">
<style>
.ftkit-summary { font: 13px/1.6 system-ui, sans-serif; max-width: 74rem; overflow-x: auto;
  --line: #8884; --bar: #4c8dd6; --quiet: #888; }
.ftkit-summary .row { display: grid; column-gap: .6rem; min-width: 51rem;
  grid-template-columns: minmax(13rem, 1fr) 9rem 4rem minmax(7rem, 11rem) 4.5rem 4.5rem 5.5rem;
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
<span class="shape" title="{{ node.output }}">{{ node.output }}</span>
<span class="number">{{ node.params }}</span>
<span class="state {{ node.state.split(',')[0] }}" title="{{ node.state }}">
{{- node.state }} <span class="type">{{ node.mode }}</span></span>
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


def to_html(found: SummaryData) -> str:
    """Lay the tree out as a page that a notebook shows: it unfolds without a script."""
    import jinja2

    def view(node: Node, level: int) -> dict[str, Any]:
        special = node.row.mode != found.rows[0].mode
        return node.cells("") | {
            "output": node.cells("")["output"] if found.measured else "",
            "level": level,
            "title": node.row.name,
            "label": node.label,
            "type": node.heading(),
            "mode": node.row.mode if special else "",
            "share": round(100 * node.row.saved_bytes / max(found.saved_bytes, 1), 1),
            "children": [view(child, level + 1) for child in node.children],
        }

    template = jinja2.Environment(autoescape=True).from_string(_PAGE)
    return template.render(root=view(tree(found.rows), 0), closing=_closing(found))


# ---------------------------------------------------------------- pictures

_COLORS = {
    "trains": "#2e9e5b",
    "partial": "#8bc34a",
    "frozen, passes gradients": "#e0a030",
    "frozen": "#7aa6d8",
    "": "#b0b0b0",
}


def to_picture(found: SummaryData, path: str | os.PathLike[str]) -> None:
    """Draw the bytes and FLOPs of every layer as bars."""
    if not found.measured:
        raise FtkitError("There is nothing to draw without an input: pass input_size or input_data to summary().")
    target = local_path("path", path, error=FileWriteError)
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        raise MissingPackageError("plot() needs matplotlib: pip install 'ftkit[plot]'.") from error
    root = tree(found.rows)
    shown = {
        place: row
        for place, row in root.leaves(root.depth_that_fits())
        if row.calls and (row.forward_flops or row.saved_bytes or row.params)
    }
    rows, places = list(shown.values()), range(len(shown))
    figure = Figure(figsize=(10, 1.2 + 0.26 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    colors = [_COLORS[row.status] for row in rows]
    left.barh(places, [row.saved_bytes / 2**20 for row in rows], color=colors)
    left.set(title=f"kept for backward: {in_bytes(found.saved_bytes)}", xlabel="MiB")
    left.set_yticks(list(places), list(shown), fontsize=8)
    left.invert_yaxis()
    forward = [row.forward_flops / 1e9 for row in rows]
    right.barh(places, forward, color="#c8c8c8")
    right.barh(places, [row.backward_flops / 1e9 for row in rows], left=forward, color=colors)
    right.set(
        title=f"forward {in_units(found.forward_flops)}FLOP (gray), backward {in_units(found.backward_flops)}FLOP",
        xlabel="GFLOP",
    )
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
    named = {row.status: row.status or "no parameters" for row in rows}
    patches = [Patch(color=_COLORS[status], label=named[status]) for status in _COLORS if status in named]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)
    figure.suptitle(found.model)
    kind = target.suffix.removeprefix(".")
    kinds = figure.canvas.get_supported_filetypes()
    if kind not in kinds:
        raise FtkitError(f"{target} has no image file extension: {', '.join(f'.{known}' for known in kinds)}.")
    with atomic_write(target) as file:
        figure.savefig(file, dpi=150, format=kind)
