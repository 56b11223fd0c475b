"""What a model is, and what a training step with it costs, before paying for it."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import nn

from ftkit._arguments import byte_count, came, flag, one_of, whole_number
from ftkit._cost.measure import OptimizerLike, StepCost, measure
from ftkit._cost.search import last_within
from ftkit._models.dryrun import alone, as_call
from ftkit._reports import Report, delivered
from ftkit._summaries.rows import SummaryData, elements, rows_of
from ftkit._summaries.views import to_html, to_picture, to_text
from ftkit._wording import in_bytes
from ftkit.errors import FtkitError
from ftkit.selection import tied, unwrap

if TYPE_CHECKING:
    import os


@dataclass(repr=False)
class ModelSummary(SummaryData, Report):
    """What :func:`~ftkit.summary` found: a tree of the modules, expandable in a notebook.

    Attributes:
        model: The name of the model's class.
        total_params: Number of parameters, tied ones counted once.
        trainable_params: Number of trainable parameters.
        frozen_params: Number of frozen parameters.
        buffers: Number of elements in buffers.
        param_bytes: Size of the parameters in bytes.
        rows: One row for each module; the first is the model itself.
        forward_flops: FLOPs of one forward pass; a multiply-add counts as 2. 0 without an input.
        backward_flops: FLOPs of one backward pass with what is trainable now.
        saved_bytes: Bytes kept from the forward pass for the backward pass, by the loss too; parameters,
            buffers and inputs aside.
        unfrozen_backward_flops: ``backward_flops`` if everything were trainable.
        unfrozen_saved_bytes: ``saved_bytes`` if everything were trainable.
        tied: The additional names of tied parameters.
        real: Why the step had to be computed with real tensors, or None if it did not.
    """

    _depth: int | None = field(default=None, init=False, repr=False)
    _cost: StepCost | None = field(default=None, init=False, repr=False)

    def peak_training_bytes(self, optimizer: OptimizerLike) -> int:
        """Predict the peak memory of a training step, in bytes.

        This counts parameters, buffers, inputs, gradients, what is kept for the backward pass, the
        optimizer's state and its scratch memory, but not what else the process holds.

        Args:
            optimizer: An optimizer, its class, or a function that makes one from a list of parameters.

        Raises:
            FtkitError: The summary was made without an input, or the optimizer can't step on parameters alone.

        Example:
            >>> import torch
            >>> from ftkit import summary
            >>> found = summary(torch.nn.Linear(1000, 1000), (8, 1000))
            >>> found.peak_training_bytes(torch.optim.SGD) < found.peak_training_bytes(torch.optim.AdamW)
            True
        """
        if self._cost is None:
            raise FtkitError("The memory of a step depends on its input: pass input_size or input_data to summary().")
        return self._cost.peak_training_bytes(optimizer)

    def text(self, *, depth: int | None = None, fold: bool = True, width: int | None = None) -> str:
        """Return the summary as a tree.

        Args:
            depth: Levels to show; by default as many as fit on a screen or two.
            fold: Show consecutive identical blocks as one line with their totals.
            width: Number of columns; by default that of the terminal.
        """
        depth, width = _optional("depth", depth, 0), _optional("width", width, 1)
        return to_text(self, self._depth if depth is None else depth, flag("fold", fold), width)

    def __repr__(self) -> str:
        return self.text()

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw FLOPs and saved bytes, layer by layer, as a chart.

        The file extension sets the format: ``.png``, ``.svg``, ``.pdf``. Needs matplotlib.

        Raises:
            FtkitError: matplotlib is missing, or the summary was made without an input.
        """
        to_picture(self, path)

    def _repr_html_(self) -> str:
        return to_html(self)

    @overload
    def to_csv(self, path: None = None) -> str: ...

    @overload
    def to_csv(self, path: str | os.PathLike[str]) -> None: ...

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """Return the rows as CSV, with a header line, or write them to the file ``path``."""
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, list(vars(self.rows[0])))
        writer.writeheader()
        writer.writerows(vars(row) for row in self.rows)
        return delivered(out.getvalue(), path)


@alone()
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
    """Show every layer of a model, what trains, and what a training step costs.

    Nothing is computed, and nothing in or around the model changes: the model runs on tensors that
    have shapes but no data. If it can't, one real step is computed on copies, and the summary says
    so. Frozen parts are counted as frozen: see :class:`ModelSummary`. Hooks run as well, since they can
    change what a step costs: one that keeps outputs gets tensors without data. Until it returns, no other thread
    may run the model, or another one that shares a part of it.

    Context managers around the call apply to the step, too: for mixed precision, call it under
    ``torch.autocast``.

    Args:
        model: Any module. Wrappers (``torch.compile``, data parallel) are looked through.
        input_size: The shape of the input, batch included, or several inputs' shapes. Without it, and
            without ``input_data``, only parameters are counted.
        input_data: The input itself: a tensor, a tuple of positional arguments, a dict of keyword
            arguments, or a pair of such a tuple and such a dict.
        depth: Levels that ``print`` shows; by default as many as fit on a screen or two.
        dtypes: Dtypes for ``input_size``; by default that of the model's first floating-point parameter.
        mode: ``"train"`` or ``"eval"``; by default each module's current mode.
        loss: Maps the model's output to the scalar that is differentiated. By default the output's own
            ``loss`` if it has one. Otherwise the cross-entropy of its ``logits``, or of its only tensor
            if that has several classes (the last dimension of a 3-D tensor, else the second), plus the
            sum of everything else in it that is differentiable.

    Raises:
        FtkitError: An argument is invalid, or the model fails on the inputs.

    Example:
        >>> import torch
        >>> from ftkit import summary
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> _ = model[0].requires_grad_(False)
        >>> found = summary(model, (16, 8))
        >>> found.total_params, found.trainable_params, found.forward_flops, found.backward_flops
        (46, 10, 1280, 256)
    """
    inner = unwrap(model)
    mode, depth = _mode(mode), _optional("depth", depth, 0)
    inputs = _inputs(inner, input_size, input_data, dtypes)
    try:
        cost = None if inputs is None else measure(inner, *inputs, loss=loss, mode=mode)
    except FtkitError as error:
        raise FtkitError(f"{error}{_batch_missing(inner, input_size, dtypes, loss, mode)}") from error.__cause__
    found = ModelSummary(**_counted(inner, cost))
    found._depth, found._cost = depth, cost
    if cost is not None and inputs is not None:
        unfrozen = measure(inner, *inputs, loss=loss, mode=mode, train_all=True) if found.frozen_params else cost
        found.unfrozen_backward_flops, found.unfrozen_saved_bytes = unfrozen.backward_flops, unfrozen.saved_bytes
    return found


def _batch_missing(model: nn.Module, input_size: Any, dtypes: Any, loss: Any, mode: str | None) -> str:
    """A hint, with a space before it, where the model would run if the shape had a batch dimension in front."""
    shapes = [] if input_size is None else _shapes(input_size)
    with contextlib.suppress(FtkitError):
        if len(shapes) == 1:
            measure(model, _blanks(model, (2, *shapes[0]), dtypes), {}, loss=loss, mode=mode)
            return f" The batch dimension seems to be missing: pass {(1, *shapes[0])}."
    return ""


def _inputs(
    model: nn.Module, input_size: Any, input_data: Any, dtypes: torch.dtype | Sequence[torch.dtype] | None
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Return positional and keyword inputs, however they were given; None if they were not."""
    if input_size is not None and input_data is not None:
        raise FtkitError("Expected input_size or input_data, got both: leave one out.")
    if dtypes is not None and input_size is None:
        raise FtkitError("dtypes belong to input_size; input_data has its own.")
    if input_data is not None:
        return as_call(input_data, "input_data")
    return None if input_size is None else (_blanks(model, input_size, dtypes), {})


def _blanks(
    model: nn.Module, input_size: Any, dtypes: torch.dtype | Sequence[torch.dtype] | None
) -> tuple[torch.Tensor, ...]:
    """Return tensors on the meta device in the shape, or the shapes, of ``input_size``."""
    shapes = _shapes(input_size)
    if dtypes is None or isinstance(dtypes, torch.dtype):
        floats = (tensor.dtype for tensor in model.parameters() if tensor.dtype.is_floating_point)
        dtypes = [dtypes or next(floats, torch.get_default_dtype())] * len(shapes)
    several: object = dtypes
    if not isinstance(several, Sequence) or not all(isinstance(dtype, torch.dtype) for dtype in several):
        raise FtkitError(f"dtypes must be a torch.dtype such as torch.float16, or one per shape, not {came(dtypes)}.")
    if len(dtypes) != len(shapes):
        raise FtkitError(f"Expected as many dtypes as shapes, got {len(dtypes)} for {len(shapes)}.")
    return tuple(
        torch.empty(tuple(shape), dtype=dtype, device="meta") for shape, dtype in zip(shapes, dtypes, strict=True)
    )


def _shapes(input_size: Any) -> list[tuple[int, ...]]:
    """Return the shape, or the shapes, that were given."""

    def shape(sizes: Any) -> tuple[int, ...]:
        return tuple(whole_number("a size", size, least=0) for size in sizes)

    sizes = [input_size]
    with contextlib.suppress(TypeError):  # one number, or none
        sizes = list(input_size)
    with contextlib.suppress(FtkitError):
        return [shape(sizes)]
    try:
        return list(map(shape, sizes))
    except (FtkitError, TypeError):
        advice = ": pass it as input_data" if isinstance(input_size, torch.Tensor) else ""
        raise FtkitError(
            f"input_size must be a shape such as (32, 3, 224, 224), or several, not {came(input_size)}{advice}."
        ) from None


def _mode(mode: str | None) -> str | None:
    return None if mode is None else one_of("mode", mode, ("train", "eval"))


def _optional(what: str, value: int | None, least: int) -> int | None:
    return None if value is None else whole_number(what, value, least=least)


def _counted(model: nn.Module, cost: StepCost | None) -> dict[str, Any]:
    """The figures of a model, and of a step if it was measured."""
    lazy = cost.lazy if cost else {}
    parameters = list(model.parameters())
    trainable = [one for one in parameters if one.requires_grad]
    scripted = isinstance(model, torch.jit.ScriptModule)
    counts = {
        "model": type(model).__name__,
        "total_params": elements(parameters, lazy),
        "trainable_params": elements(trainable, lazy),
        "frozen_params": elements(parameters, lazy) - elements(trainable, lazy),
        "buffers": elements(model.buffers(), lazy),
        "param_bytes": sum(elements([one], lazy) * one.dtype.itemsize for one in parameters),
        "rows": rows_of(model, cost),
        "tied": () if scripted else tuple(name for others in tied(model).values() for name in others),
    }
    shared = ("forward_flops", "backward_flops", "saved_bytes", "real")
    return counts | {name: getattr(cost, name) for name in shared if cost}


@alone()
def largest_batch(
    model: nn.Module,
    input_size: Sequence[int] | Sequence[Sequence[int]],
    *,
    memory: float | str,
    optimizer: OptimizerLike,
    dtypes: torch.dtype | Sequence[torch.dtype] | None = None,
    mode: str | None = None,
    loss: Callable[[Any], torch.Tensor] | None = None,
) -> int:
    """Predict the largest batch whose training step fits into ``memory``.

    Args:
        model: Any module.
        input_size: The shape of the input, or several inputs' shapes. Their first dimension is the batch;
            its size is ignored.
        memory: Bytes, or a size such as ``"80GB"`` (of 1000**3) or ``"24GiB"`` (of 1024**3).
        optimizer: An optimizer, its class, or a function that makes one from a list of parameters.
        dtypes: Dtypes of the inputs; by default that of the model's first floating-point parameter.
        mode: ``"train"`` or ``"eval"``; by default each module's current mode.
        loss: Maps the model's output to the scalar that is differentiated; by default that of
            :func:`~ftkit.summary`.

    Returns:
        The batch size, or 0 if not even one example fits.

    Raises:
        FtkitError: An argument is invalid, the parameters alone take more memory, memory does not grow with the
            batch, the model does not take any batch, or nothing in it trains.

    Example:
        >>> import torch
        >>> from ftkit import largest_batch
        >>> model = torch.nn.Sequential(torch.nn.Linear(100, 100), torch.nn.ReLU())
        >>> largest_batch(model, (1, 100), memory=1_000_000, optimizer=torch.optim.SGD)
        479
        >>> largest_batch(model, (1, 100), memory="1 MB", optimizer=torch.optim.SGD)
        479
    """
    inner = unwrap(model)
    room, mode = int(byte_count("memory", memory)), _mode(mode)
    examples = _blanks(inner, input_size, dtypes)
    own = sum(elements([one], {}) * one.dtype.itemsize for one in inner.parameters())
    if room < own:
        raise FtkitError(f"The model's parameters alone take {in_bytes(own)}; memory is {in_bytes(room)}.")
    if not all(one.dim() for one in examples):
        raise FtkitError(f"Expected shapes whose first dimension is the batch, got {input_size!r}.")

    @functools.cache
    def predicted(batch: int) -> int:
        inputs = tuple(torch.empty((batch, *one.shape[1:]), dtype=one.dtype, device="meta") for one in examples)
        try:
            cost = measure(inner, inputs, {}, loss=loss, mode=mode, sizes_only=True)
        except FtkitError as error:
            raise FtkitError(f"{error}{_batch_fixed(inner, examples, batch, loss, mode)}") from error.__cause__
        return cost.peak_training_bytes(optimizer)

    fits, too_many = 2, 4  # not 1: batch normalization refuses it
    if predicted(fits) > room:
        return _one_if_it_fits(predicted, room)
    while predicted(too_many) <= room:  # a line through the last two points; it bends a little where layers take turns
        grown = predicted(too_many) - predicted(fits)
        if grown <= 0:
            raise FtkitError("The memory of a step does not grow with the batch: is the first dimension the batch?")
        missing = room - predicted(too_many)
        fits, too_many = too_many, too_many + missing * (too_many - fits) // grown + 1
    return last_within(predicted, room, fits, too_many)


def _batch_fixed(model: nn.Module, examples: tuple[torch.Tensor, ...], tried: int, loss: Any, mode: str | None) -> str:
    """A hint, with a space before it, where the model runs on the sizes as they were given, but not on others."""
    given = ", ".join(str(len(one)) for one in examples)
    with contextlib.suppress(FtkitError):
        if any(len(one) != tried for one in examples):
            measure(model, examples, {}, loss=loss, mode=mode)
            return f" It takes a first dimension of {given}, not of {tried}: largest_batch needs a model for any batch."
    return ""


def _one_if_it_fits(predicted: Callable[[int], int], memory: float) -> int:
    try:
        return int(predicted(1) <= memory)
    except FtkitError:  # batch normalization in train mode takes no single value
        return 0
