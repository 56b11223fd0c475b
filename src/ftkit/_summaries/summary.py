"""What a model is, and what a training step with it costs, before paying for it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ftkit._cost.measure import OptimizerLike, StepCost, measure
from ftkit._cost.meter import Part
from ftkit._summaries.views import Row, to_html, to_picture, to_text
from ftkit._wording import in_bytes, in_counts, in_units
from ftkit.errors import FtkitError, did_you_mean
from ftkit.selection import tied, unwrap

if TYPE_CHECKING:
    import os

__all__ = ["Comparison", "ModelSummary", "Row", "compare", "largest_batch", "summary"]


@dataclass
class ModelSummary:
    """What :func:`~ftkit.summary` found; ``print`` it, or let a notebook show it.

    Attributes:
        model: The name of the model's class.
        total_params: Parameters, tied ones counted once.
        trainable_params: Those that train.
        frozen_params: Those that don't.
        buffers: Elements of buffers.
        param_bytes: Bytes of the parameters.
        rows: One for each module; the first is the model itself.
        forward_flops: Of one forward pass; a multiply-add is 2. 0 without an input.
        backward_flops: Of one backward pass with what is trainable now.
        saved_bytes: Kept from the forward for the backward pass, by the loss too; parameters, buffers and
            inputs aside.
        unfrozen_backward_flops: ``backward_flops`` if all were trainable.
        unfrozen_saved_bytes: ``saved_bytes`` if all were trainable.
        tied: The further names of parameters that have several.
        real: Why the step had to be computed with real tensors, or None if it was not.
    """

    model: str
    total_params: int
    trainable_params: int
    frozen_params: int
    buffers: int
    param_bytes: int
    rows: list[Row]
    forward_flops: int = 0
    backward_flops: int = 0
    saved_bytes: int = 0
    unfrozen_backward_flops: int = 0
    unfrozen_saved_bytes: int = 0
    tied: tuple[str, ...] = ()
    real: str | None = None
    depth: int | None = field(default=None, repr=False)
    _cost: StepCost | None = field(default=None, repr=False)

    def peak_training_bytes(self, optimizer: OptimizerLike) -> int:
        """Predict the most bytes that a training step holds at any moment.

        Counted are parameters, buffers, inputs, gradients, what is kept for the backward pass, the
        optimizer's state and its scratch memory; not what the process holds besides.

        Args:
            optimizer: An optimizer, its class, or a function that makes one of a list of parameters.

        Raises:
            FtkitError: There was no input, or the optimizer can't step on parameters alone.

        Example:
            >>> import torch
            >>> from ftkit import summary
            >>> found = summary(torch.nn.Linear(1000, 1000), (8, 1000))
            >>> found.peak_training_bytes(torch.optim.SGD) < found.peak_training_bytes(torch.optim.AdamW)
            True
        """
        if self._cost is None:
            raise FtkitError("What a step needs depends on its input: give summary() an input_size or input_data.")
        return self._cost.peak_training_bytes(optimizer)

    def text(self, *, depth: int | None = None, fold: bool = True, width: int | None = None) -> str:
        """Return the summary as a tree.

        Args:
            depth: Levels to show; by default as many as fit on a screen or two.
            fold: Show equal blocks that follow one another as one line with their sums.
            width: Columns; by default those of the terminal.
        """
        return to_text(self, depth if depth is not None else self.depth, fold, width)

    def __str__(self) -> str:
        return self.text()

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw where FLOPs and saved bytes sit, layer by layer, into a picture file.

        The suffix says the format: ``.png``, ``.svg``, ``.pdf``. Needs matplotlib.

        Raises:
            FtkitError: matplotlib is missing, or there was no input.
        """
        to_picture(self, path)

    def _repr_html_(self) -> str:
        return to_html(self)

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain numbers, strings, lists and dicts."""
        own = {name: value for name, value in vars(self).items() if not name.startswith("_") and name != "depth"}
        return own | {"rows": [dict(vars(row)) for row in self.rows]}

    def to_json(self) -> str:
        """Return all figures as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def to_csv(self) -> str:
        """Return the rows as comma-separated values, under a line of names."""
        out = io.StringIO()
        writer = csv.DictWriter(out, list(vars(self.rows[0])))
        writer.writeheader()
        writer.writerows(vars(row) for row in self.rows)
        return out.getvalue()


def summary(
    model: nn.Module,
    input_size: Sequence[int] | Sequence[Sequence[int]] | None = None,
    *,
    input_data: Any = None,
    depth: int | None = None,
    dtypes: torch.dtype | Sequence[torch.dtype] | None = None,
    mode: str | None = None,
    loss: Callable[[Any], torch.Tensor] | None = None,
) -> ModelSummary:
    """Say what every layer of a model is, what trains, and what a training step costs.

    Nothing is computed, and nothing of the model or around it changes: the model runs on tensors
    that have shapes and no data. Where these can't be followed, one real step is computed on copies,
    and the summary says so. Frozen parts count as what they are: see :class:`ModelSummary`.

    What is in force around the call holds for the step, too: for mixed precision, call it under
    ``torch.autocast``.

    Args:
        model: Any module. A wrapped one (``torch.compile``, data parallel) is looked at from inside.
        input_size: The shape of the input, batch included, or several inputs' shapes. Without it, and
            without ``input_data``, only parameters are counted.
        input_data: The input itself: a tensor, a tuple of positional arguments, a dict of keyword
            arguments, or a pair of such a tuple and such a dict.
        depth: Levels that ``print`` shows; by default as many as fit on a screen or two.
        dtypes: Of the inputs of ``input_size``; by default that of the model's first parameter.
        mode: ``"train"`` or ``"eval"``; by default every module as it stands.
        loss: From the model's output to the scalar that is differentiated. By default the output's own
            ``loss`` if it has one. Otherwise the cross-entropy of its ``logits``, or of its only tensor
            if that has several classes (the last dimension of three, the second of two or of more),
            and the sum of whatever else is differentiable in it.

    Raises:
        FtkitError: The arguments are not what they should be, or the model fails on them.

    Example:
        >>> import torch
        >>> from ftkit import summary
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> _ = model[0].requires_grad_(False)
        >>> found = summary(model, (16, 8))
        >>> found.total_params, found.trainable_params, found.forward_flops, found.backward_flops
        (46, 10, 1280, 256)
    """
    if not isinstance(model, nn.Module):
        raise FtkitError(f"Expected a torch.nn.Module, got {type(model).__name__}: pass the model itself.")
    if mode not in (None, "train", "eval"):
        raise FtkitError(f"Expected mode 'train' or 'eval', got {mode!r}.{did_you_mean(str(mode), ['train', 'eval'])}")
    inner = unwrap(model)
    inputs = _inputs(inner, input_size, input_data, dtypes)
    cost = None if inputs is None else measure(inner, *inputs, loss=loss, mode=mode)
    found = _counted(inner, cost)
    found.depth = depth
    if cost is not None and inputs is not None:
        unfrozen = measure(inner, *inputs, loss=loss, mode=mode, train_all=True) if found.frozen_params else cost
        found.unfrozen_backward_flops, found.unfrozen_saved_bytes = unfrozen.backward_flops, unfrozen.saved_bytes
    return found


def _inputs(
    model: nn.Module, input_size: Any, input_data: Any, dtypes: torch.dtype | Sequence[torch.dtype] | None
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if input_size is not None and input_data is not None:
        raise FtkitError("Expected input_size or input_data, got both: leave one out.")
    if dtypes is not None and input_size is None:
        raise FtkitError("dtypes belong to input_size; input_data has its own.")
    if input_size is not None:
        return _blanks(model, input_size, dtypes), {}
    if input_data is None:
        return None
    if isinstance(input_data, torch.Tensor):
        return (input_data,), {}
    if isinstance(input_data, tuple):
        if len(input_data) == 2 and isinstance(input_data[0], tuple) and isinstance(input_data[1], dict):
            return input_data
        return input_data, {}
    if isinstance(input_data, Mapping):
        return (), dict(input_data)
    raise FtkitError(
        "Expected input_data to be a tensor, a tuple of positional arguments, a dict of keyword arguments or a pair "
        f"of both, got {type(input_data).__name__}: if that is the model's only argument, pass a tuple of it, (input,)."
    )


def _blanks(
    model: nn.Module, input_size: Any, dtypes: torch.dtype | Sequence[torch.dtype] | None
) -> tuple[torch.Tensor, ...]:
    sizes = list(input_size) if isinstance(input_size, Sequence) else [input_size]
    shapes = [sizes] if all(isinstance(size, int) for size in sizes) else sizes
    good = all(
        isinstance(shape, Sequence) and all(isinstance(size, int) and size >= 0 for size in shape) for shape in shapes
    )
    if not good:
        raise FtkitError(
            f"Expected input_size to be a shape such as (32, 3, 224, 224), or several, got {input_size!r}."
        )
    if dtypes is None or isinstance(dtypes, torch.dtype):
        floats = (tensor.dtype for tensor in model.parameters() if tensor.dtype.is_floating_point)
        dtypes = [dtypes or next(floats, torch.get_default_dtype())] * len(shapes)
    if len(dtypes) != len(shapes):
        raise FtkitError(f"Expected as many dtypes as shapes, got {len(dtypes)} for {len(shapes)}.")
    return tuple(
        torch.empty(tuple(shape), dtype=dtype, device="meta") for shape, dtype in zip(shapes, dtypes, strict=True)
    )


def _counted(model: nn.Module, cost: StepCost | None) -> ModelSummary:
    lazy = cost.lazy if cost else {}

    def count(tensor: torch.Tensor) -> int:
        if nn.parameter.is_lazy(tensor):
            return lazy[id(tensor)].numel() if id(tensor) in lazy else 0
        return tensor.numel()

    scripted = isinstance(model, torch.jit.ScriptModule)
    parameters = list(model.parameters())
    total = sum(map(count, parameters))
    trainable = sum(count(one) for one in parameters if one.requires_grad)
    named = list(model.named_modules())
    parts = cost.parts if cost else [Part() for _ in named]
    inside: dict[int, dict[int, tuple[int, bool]]] = {}
    done = {id(module): part for (_, module), part in zip(named, parts, strict=True)}
    for _, module in reversed(named):  # children come after their parents
        if not done[id(module)].calls:  # a list of layers costs what they cost
            _add_up(done[id(module)], [done[id(child)] for child in module.children()])
        own = {id(one): (count(one), one.requires_grad) for one in module._parameters.values() if one is not None}
        for child in module.children():
            own |= inside.get(id(child), {})
        inside[id(module)] = own
    rows = [
        _row(name, module, part, inside[id(module)].values()) for (name, module), part in zip(named, parts, strict=True)
    ]
    return ModelSummary(
        model=type(model).__name__,
        total_params=total,
        trainable_params=trainable,
        frozen_params=total - trainable,
        buffers=sum(map(count, model.buffers())),
        param_bytes=sum(count(one) * one.dtype.itemsize for one in parameters),
        rows=rows,
        forward_flops=cost.forward_flops if cost else 0,
        backward_flops=cost.backward_flops if cost else 0,
        saved_bytes=cost.saved_bytes if cost else 0,
        tied=() if scripted else tuple(name for others in tied(model).values() for name in others),
        real=cost.real if cost else None,
        _cost=cost,
    )


def _add_up(part: Part, children: list[Part]) -> None:
    part.forward_flops = sum(child.forward_flops for child in children)
    part.backward_flops = sum(child.backward_flops for child in children)
    part.saved_bytes = sum(child.saved_bytes for child in children)
    part.differentiable = any(child.differentiable for child in children)


def _row(name: str, module: nn.Module, part: Part, params: Iterable[tuple[int, bool]]) -> Row:
    total = sum(size for size, _ in params)
    trainable = sum(size for size, trains in params if trains)
    flags = {trains for _, trains in params}
    status = ""
    if flags:
        status = "partial" if len(flags) == 2 else "trains" if True in flags else "frozen"
    if status == "frozen" and part.differentiable:
        status = "frozen, passes gradients"
    kind = getattr(module, "original_name", None) if isinstance(module, torch.jit.ScriptModule) else None
    return Row(
        name=name,
        type=kind or type(module).__name__,
        input_shape=part.input_shape,
        output_shape=part.output_shape,
        params=total,
        trainable=trainable,
        forward_flops=part.forward_flops,
        backward_flops=part.backward_flops,
        saved_bytes=part.saved_bytes,
        mode="train" if (module.training if part.training is None else part.training) else "eval",
        calls=part.calls,
        status=status,
    )


# ---------------------------------------------------------------- side by side


@dataclass
class Comparison:
    """Two summaries side by side, as :func:`~ftkit.compare` makes it; ``print`` it."""

    a: ModelSummary
    b: ModelSummary

    def __str__(self) -> str:
        names = (self.a.model, self.b.model) if self.a.model != self.b.model else ("first", "second")
        lines = [("", *names, "")]
        for title, show, one, other in self._totals():
            lines.append((title, show(one), show(other), _change(one, other)))
        rows = [
            (name, *(_brief(row) if row else "-" for row in pair), "")
            for name, pair in self.differing().items()
            if "." not in name
        ]
        rows = [row for row in rows if row[1] != row[2]]
        widths = [max(len(line[index]) for line in lines + rows) for index in range(4)]
        shown = [
            "  ".join(
                [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
            ).rstrip()
            for line in lines + rows
        ]
        rule = "─" * max(map(len, shown))
        shown.insert(1, rule)
        if rows:
            shown.insert(len(lines) + 1, rule)
        return "\n".join(shown)

    def differing(self) -> dict[str, tuple[Row | None, Row | None]]:
        """The rows that differ, by name; None where a model has no such module."""
        left, right = ({row.name: row for row in found.rows} for found in (self.a, self.b))
        names = [*left, *(name for name in right if name not in left)]
        return {name: (left.get(name), right.get(name)) for name in names if name and left.get(name) != right.get(name)}

    def _totals(self) -> Iterator[tuple[str, Callable[[float], str], int, int]]:
        for title, show, name in (
            ("parameters", in_counts, "total_params"),
            ("trainable", in_counts, "trainable_params"),
            ("parameter bytes", in_bytes, "param_bytes"),
            ("forward FLOPs", in_units, "forward_flops"),
            ("backward FLOPs", in_units, "backward_flops"),
            ("kept for backward", in_bytes, "saved_bytes"),
        ):
            yield title, show, getattr(self.a, name), getattr(self.b, name)


def _change(one: int, other: int) -> str:
    if not one or one == other:
        return ""
    return f"{100 * (other - one) / one:+.1f}%" if other < 10 * one else f"x {other / one:,.0f}"


def _brief(row: Row) -> str:
    figures = [f"{in_units(row.backward_flops)} backward"] if row.backward_flops else []
    figures += [in_bytes(row.saved_bytes)] if row.saved_bytes else []
    return ", ".join([row.status or row.type, *figures])


def compare(a: ModelSummary, b: ModelSummary) -> Comparison:
    """Set two summaries side by side: one model frozen in two ways, or two models.

    Example:
        >>> import torch
        >>> from ftkit import compare, summary
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2))
        >>> before = summary(model, (16, 8))
        >>> _ = model[0].requires_grad_(False)
        >>> print(compare(before, summary(model, (16, 8))))
                                                 first                       second
        ───────────────────────────────────────────────────────────────────────────────────
        parameters                                  46                           46
        trainable                                   46                           10  -78.3%
        parameter bytes                          184 B                        184 B
        forward FLOPs                           1.28 K                       1.28 K
        backward FLOPs                          1.54 K                          256  -83.3%
        kept for backward                        516 B                        516 B
        ───────────────────────────────────────────────────────────────────────────────────
        0                      trains, 1.02 K backward                       frozen
        1                  trains, 512 backward, 256 B  trains, 256 backward, 256 B
    """
    both: Iterable[object] = (a, b)
    for given in both:
        if not isinstance(given, ModelSummary):
            came = type(given).__name__
            raise FtkitError(
                f"compare takes two summaries, but this is a {came}: summary(model, input_size) makes one."
            )
    return Comparison(a, b)


def largest_batch(
    model: nn.Module,
    input_size: Sequence[int] | Sequence[Sequence[int]],
    *,
    memory: float,
    optimizer: OptimizerLike,
    dtypes: torch.dtype | Sequence[torch.dtype] | None = None,
    mode: str | None = None,
    loss: Callable[[Any], torch.Tensor] | None = None,
) -> int:
    """Find the largest batch whose training step fits into ``memory``, by prediction.

    Args:
        model: Any module.
        input_size: Shape or shapes as for :func:`~ftkit.summary`; their first dimension is the batch,
            whatever it is now.
        memory: Bytes.
        optimizer: As for :meth:`ModelSummary.peak_training_bytes`.
        dtypes: As for :func:`~ftkit.summary`.
        mode: As for :func:`~ftkit.summary`.
        loss: As for :func:`~ftkit.summary`.

    Returns:
        The size, or 0 if not even one example fits.

    Raises:
        FtkitError: The arguments are not what they should be, or memory does not grow with the batch.

    Example:
        >>> import torch
        >>> from ftkit import largest_batch
        >>> model = torch.nn.Sequential(torch.nn.Linear(100, 100), torch.nn.ReLU())
        >>> largest_batch(model, (1, 100), memory=1_000_000, optimizer=torch.optim.SGD)
        479
    """
    inner = unwrap(model)
    shapes = [tuple(blank.shape) for blank in _blanks(inner, input_size, dtypes)]
    if not all(shapes):
        raise FtkitError(f"Expected shapes whose first dimension is the batch, got {input_size!r}.")

    def peak(batch: int) -> int:
        sizes = [(batch, *shape[1:]) for shape in shapes]
        inputs = _inputs(inner, sizes, None, dtypes)
        assert inputs is not None
        return measure(inner, *inputs, loss=loss, mode=mode).peak_training_bytes(optimizer)

    fits, too_many = (2, peak(2)), (4, peak(4))  # not 1: batch normalization refuses it
    if fits[1] > memory:
        return 0 if _peak_of_one(peak) > memory else 1
    while too_many[1] <= memory:  # a line through the last two points; it bends a little where layers take turns
        slope = (too_many[1] - fits[1]) / (too_many[0] - fits[0])
        if slope <= 0:
            raise FtkitError("The memory of a step does not grow with the batch: is the first dimension the batch?")
        guess = int(too_many[0] + (memory - too_many[1]) / slope) + 1
        fits, too_many = too_many, (guess, peak(guess))
    while too_many[0] - fits[0] > 1:
        slope = (too_many[1] - fits[1]) / (too_many[0] - fits[0])
        guess = int(fits[0] + (memory - fits[1]) / slope)
        guess = min(max(guess, fits[0] + 1), too_many[0] - 1)
        here = guess, peak(guess)
        fits, too_many = (here, too_many) if here[1] <= memory else (fits, here)
    return fits[0]


def _peak_of_one(peak: Callable[[int], int]) -> float:
    try:
        return peak(1)
    except FtkitError:  # batch normalization in train mode takes no single value
        return float("inf")
