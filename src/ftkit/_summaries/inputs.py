"""The inputs that a model is measured on, from what the user gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ftkit.errors import FtkitError

__all__ = ["blanks", "given_inputs"]


def given_inputs(
    model: nn.Module, input_size: Any, input_data: Any, dtypes: torch.dtype | Sequence[torch.dtype] | None
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Return positional and keyword inputs, however they were given; None if they were not."""
    if input_size is not None and input_data is not None:
        raise FtkitError("Expected input_size or input_data, got both: leave one out.")
    if dtypes is not None and input_size is None:
        raise FtkitError("dtypes belong to input_size; input_data has its own.")
    match input_data:
        case None:
            return None if input_size is None else (blanks(model, input_size, dtypes), {})
        case torch.Tensor():
            return (input_data,), {}
        case (tuple(), dict()) if isinstance(input_data, tuple):
            return input_data
        case tuple():
            return input_data, {}
        case Mapping():
            return (), dict(input_data)
    raise FtkitError(
        "Expected input_data to be a tensor, a tuple of positional arguments, a dict of keyword arguments or a pair "
        f"of both, got {type(input_data).__name__}: if that is the model's only argument, pass a tuple of it, (input,)."
    )


def blanks(
    model: nn.Module, input_size: Any, dtypes: torch.dtype | Sequence[torch.dtype] | None
) -> tuple[torch.Tensor, ...]:
    """Return tensors on the meta device in the shape, or the shapes, of ``input_size``."""
    sizes = list(input_size) if isinstance(input_size, Sequence) else [input_size]
    shapes = [sizes] if all(isinstance(size, int) for size in sizes) else sizes
    if not all(map(_is_shape, shapes)):
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


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, Sequence) and all(isinstance(size, int) and size >= 0 for size in shape)
