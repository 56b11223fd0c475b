"""The FLOPs of single operators, by formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch.utils.flop_counter import flop_registry

from ftkit._torch import operator_name


def flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
    """Count the FLOPs of an operator: as torch does, and by our own formulas where it has none."""
    name = operator_name(func)
    if name in _FORMULAS:
        return int(_FORMULAS[name](args, output))
    counted = flop_registry.get(getattr(func, "overloadpacket", func))
    if counted is not None:
        return int(counted(*args, **kwargs, out_val=output))
    if name.startswith(("quantized::linear", "quantized::conv")) and isinstance(output, torch.Tensor):
        return _quantized_flops(name, args, output)
    return 0


def _matmul_flops(args: tuple[Any, ...], at: int) -> int:
    """2 * m * k * n of ``args[at] @ args[at + 1]``, batches and grouped products included."""
    left, right = args[at], args[at + 1]
    columns = 1 if right.dim() == 1 else right.shape[-1]
    groups = left.shape[0] if left.dim() == 3 and right.dim() == 2 else 1  # each group has its own columns
    return int(2 * left.numel() * columns // groups)


def _attention_flops(args: tuple[Any, ...], at: int) -> int:
    """The two products of attention, queries at ``args[at]``; what a kernel computes again is not counted."""
    query, key, value = args[at : at + 3]
    rows = math.prod(query.shape[:-1])
    return int(2 * rows * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


def _trilinear_flops(args: tuple[Any, ...]) -> int:
    """A multiply-add for each element of the three operands' common shape."""
    shapes = []
    for operand, expanded in zip(args[:3], args[3:6], strict=True):
        shape = list(operand.shape)
        for dim in sorted(expanded):
            shape.insert(dim, 1)
        shapes.append(shape)
    return 2 * math.prod(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]


def _rnn_flops(source: torch.Tensor, weights: Iterable[torch.Tensor | None]) -> int:
    """Every step multiplies by every weight matrix."""
    steps = math.prod(source.shape[:-1])
    matrices = [weight for weight in weights if weight is not None and weight.dim() > 1]
    return int(2 * steps * sum(weight.numel() for weight in matrices))


def _packed_rnn_flops(args: tuple[Any, ...], gates: int) -> int:
    """The same for packed weights, which do not show their sizes.

    The arguments are: input, (batch sizes,) state, weights, biased, layers, dropout, train, two ways.
    """
    has_batch_sizes = isinstance(args[1], torch.Tensor) and not args[1].is_floating_point()
    source, state, *_, layers, _, _, two_ways = (args[0], *args[2:9]) if has_batch_sizes else args[:8]
    directions = 2 if two_ways else 1
    hidden = (state[0] if isinstance(state, list | tuple) else state).shape[-1]
    columns = source.shape[-1] + (layers - 1) * directions * hidden + layers * hidden
    return int(2 * math.prod(source.shape[:-1]) * directions * gates * hidden * columns)


def _packed_cell_flops(args: tuple[Any, ...]) -> int:
    """Of one step; the bias of the input's weights has an element for each of their rows."""
    source, state, _, _, bias = args[:5]
    hidden = (state[0] if isinstance(state, list | tuple) else state).shape[-1]
    return int(2 * source.shape[0] * bias.numel() * (source.shape[-1] + hidden))


def _quantized_flops(name: str, args: tuple[Any, ...], output: torch.Tensor) -> int:
    """Each output is the sum of as many products as one of its weight's filters has elements."""
    if name.startswith("quantized::linear"):
        return int(2 * output.numel() * args[0].shape[-1])  # unpacking weights of half precision ends the process
    return int(2 * output.numel() * math.prod(args[1].unpack()[0].shape[1:]))


_Formula: TypeAlias = Callable[[tuple[Any, ...], Any], int]

_FORMULAS: dict[str, _Formula] = {
    "aten::mv": lambda args, _: _matmul_flops(args, 0),
    "aten::addmv": lambda args, _: _matmul_flops(args, 1),
    "aten::dot": lambda args, _: 2 * args[0].numel(),
    "aten::vdot": lambda args, _: 2 * args[0].numel(),
    "aten::addbmm": lambda args, _: _matmul_flops(args, 1),
    "aten::_addmm_activation": lambda args, _: _matmul_flops(args, 1),
    "aten::_int_mm": lambda args, _: _matmul_flops(args, 0),
    "aten::_grouped_mm": lambda args, _: _matmul_flops(args, 0),
    "aten::_scaled_grouped_mm": lambda args, _: _matmul_flops(args, 0),
    "aten::linear": lambda args, output: 2 * output.numel() * args[1].shape[-1],  # whole only on ragged tensors
    "aten::matmul": lambda args, output: 2 * output.numel() * args[0].shape[-1],
    "aten::_trilinear": lambda args, _: _trilinear_flops(args),
    "aten::mkldnn_rnn_layer": lambda args, _: _rnn_flops(args[0], args[1:5]),
    "aten::mkldnn_rnn_layer_backward": lambda args, _: 2 * _rnn_flops(args[0], args[1:5]),
    "aten::quantized_lstm": lambda args, _: _packed_rnn_flops(args, gates=4),
    "aten::quantized_gru": lambda args, _: _packed_rnn_flops(args, gates=3),
}
for _library in ("_cudnn", "miopen"):
    _FORMULAS[f"aten::{_library}_rnn"] = lambda args, _: _rnn_flops(args[0], args[1])
    _FORMULAS[f"aten::{_library}_rnn_backward"] = lambda args, _: 2 * _rnn_flops(args[0], args[1])
for _cell in ("lstm", "gru", "rnn_relu", "rnn_tanh"):
    _FORMULAS[f"quantized::quantized_{_cell}_cell_dynamic"] = lambda args, _: _packed_cell_flops(args)
for _kernel in (
    "flash_attention",
    "flash_attention_for_cpu",
    "efficient_attention",
    "cudnn_attention",
    "fused_attention_overrideable",
):
    _FORMULAS[f"aten::_scaled_dot_product_{_kernel}"] = lambda args, _: _attention_flops(args, 0)
    _FORMULAS[f"aten::_scaled_dot_product_{_kernel}_backward"] = lambda args, _: 2 * _attention_flops(args, 1)
