"""What single operators cost: FLOPs, and the scratch memory that no tensor shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch.utils.flop_counter import flop_registry

__all__ = ["flops", "recurrent_bytes", "scratch_bytes"]


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


def _rnn_flops(source: torch.Tensor, weights: Iterable[torch.Tensor | None]) -> int:
    """Every step multiplies by every weight matrix."""
    steps = math.prod(source.shape[:-1])
    matrices = [weight for weight in weights if weight is not None and weight.dim() > 1]
    return int(2 * steps * sum(weight.numel() for weight in matrices))


def _is_state(value: Any) -> bool:
    return isinstance(value, list | tuple) or bool(value.is_floating_point())


def _stacked_rnn_flops(args: tuple[Any, ...], gates: int) -> int:
    """Likewise, of packed weights: input, (batch sizes,) state, weights, biased, layers, dropout, train, two ways."""
    source, state, *_, layers, _, _, two_ways = args[:8] if _is_state(args[1]) else (args[0], *args[2:9])
    directions = 2 if two_ways else 1
    hidden = (state[0] if isinstance(state, list | tuple) else state).shape[-1]
    columns = source.shape[-1] + (layers - 1) * directions * hidden + layers * hidden
    return int(2 * math.prod(source.shape[:-1]) * directions * gates * hidden * columns)


def _quantized_flops(args: tuple[Any, ...], output: torch.Tensor) -> int:
    """Each output is the sum of as many products as one of its weight's filters has elements."""
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
    "aten::_cudnn_rnn": lambda args, _: _rnn_flops(args[0], args[1]),
    "aten::_cudnn_rnn_backward": lambda args, _: 2 * _rnn_flops(args[0], args[1]),
    "aten::quantized_lstm": lambda args, _: _stacked_rnn_flops(args, gates=4),
    "aten::quantized_gru": lambda args, _: _stacked_rnn_flops(args, gates=3),
    "aten::miopen_rnn": lambda args, _: _rnn_flops(args[0], args[1]),
    "aten::miopen_rnn_backward": lambda args, _: 2 * _rnn_flops(args[0], args[1]),
}
for _kernel in ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention"):
    _FORMULAS[f"aten::_scaled_dot_product_{_kernel}"] = lambda args, _: _attention_flops(args, 0)
    _FORMULAS[f"aten::_scaled_dot_product_{_kernel}_backward"] = lambda args, _: 2 * _attention_flops(args, 1)
_FORMULAS["aten::_scaled_dot_product_fused_attention_overrideable"] = lambda args, _: _attention_flops(args, 0)
_FORMULAS["aten::_scaled_dot_product_fused_attention_overrideable_backward"] = lambda args, _: (
    2 * _attention_flops(args, 1)
)


def _trilinear_flops(args: tuple[Any, ...]) -> int:
    """A multiply-add for each element of the three operands' common shape."""
    shapes = []
    for operand, expanded in zip(args[:3], args[3:6], strict=True):
        shape = list(operand.shape)
        for dim in sorted(expanded):
            shape.insert(dim, 1)
        shapes.append(shape)
    return 2 * math.prod(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]


def flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
    """Count the FLOPs of an operator: as torch does, and by formulas of our own where it is silent."""
    packet = getattr(func, "_overloadpacket", func)
    name = func._schema.name if hasattr(func, "_schema") else ""
    if name in _FORMULAS:
        return _FORMULAS[name](args, output)
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=output))
    if name.startswith("quantized::linear") and isinstance(output, torch.Tensor):
        return int(2 * output.numel() * args[0].shape[-1])
    if name.startswith("quantized::conv") and isinstance(output, torch.Tensor):
        return _quantized_flops(args, output)
    if name.startswith("quantized::quantized_") and name.endswith("_cell_dynamic"):
        state = args[1][0] if isinstance(args[1], list | tuple) else args[1]
        return int(2 * args[0].shape[0] * args[4].numel() * (args[0].shape[-1] + state.shape[-1]))
    return 0


# ---------------------------------------------------------------- scratch memory


def recurrent_bytes(args: tuple[Any, ...]) -> int:
    """Bytes of the workspace that oneDNN's LSTM keeps for its backward pass; torch's fake kernel gives none.

    For each step the gates, the hidden state and the cell, and, in single precision, gradients of the states.
    """
    size, hidden = args[0].element_size(), args[2].shape[1]
    steps, batch, columns = args[0].shape
    states, wide = 2 * (steps + 1) * batch, max(columns, hidden)
    regions = [steps * batch * _padded(4 * hidden, size), steps * batch * _padded(hidden, size)]
    regions += [states * _padded(wide, size), states * _padded(wide, 4), states * _padded(wide, 4)]
    return sum(map(_paged, [*regions, states * hidden * size, states * hidden * 4]))


def _padded(columns: int, size: int) -> int:
    """Bytes of a row in whole lines of the cache, and not of a length at which rows would collide in it."""
    line = 64 // size
    columns = -(-columns // line) * line
    return (columns + line if columns % 256 == 0 else columns) * size


def _paged(size: int) -> int:
    return -(-size // 4096) * 4096


def _lstm_scratch(args: tuple[Any, ...], grads: tuple[torch.Tensor | None, ...] | None = None) -> int:
    """Weights in oneDNN's layouts, and the gates: of all steps in single precision."""
    source, size = args[0], int(args[0].element_size())
    gates: int = args[1].shape[0]
    columns, hidden = int(args[1].shape[1]), int(args[2].shape[1])
    rows, batch = int(source.numel()) // columns, int(source.shape[1])
    packed = (columns + hidden) * _padded(gates, size)
    held = _paged((rows if size == 4 else batch) * _padded(gates, 4)) + 2 * _paged(batch * _padded(hidden, 4)) + 4664
    if grads is None:
        return packed + gates * size + held
    if size == 2:
        return 2 * packed + (columns + hidden) * gates * 2 + (rows + 2 * batch) * hidden * 4 + 2 * gates * 4 + held
    copied = sum(gates * _padded(side, 4) for side in (columns, hidden) if _padded(side, 4) != 4 * side)
    given, *states = grads
    copied += 0 if given is not None and given.is_contiguous() else rows * hidden * 4
    copied += sum(batch * hidden * 4 for state in states if state is None)
    return packed + copied + 2 * gates * 4 + held


def _attention_scratch(query: torch.Tensor, key: torch.Tensor, gradient: torch.Tensor | None = None) -> int:
    """A block of scores for each thread, and of their gradients; the output's gradient by tokens."""
    length, size = query.shape[-2], query.element_size()
    rows = min(length, 256 if length >= 768 else 64 if length >= 192 else 32)
    columns, threads = min(key.shape[-2], 512), torch.get_num_threads()
    halves = threads * rows * columns * size if size == 2 else 0
    if gradient is None:
        return threads * rows * (columns + 2 + query.shape[-1]) * 4 + halves
    copied = 0 if gradient.transpose(1, 2).is_contiguous() else gradient.numel() * size
    return threads * rows * columns * 2 * 4 + 2 * halves + copied


def scratch_bytes(func: Any, args: tuple[Any, ...], output: Any) -> int:
    """The most bytes that an operator holds while it runs, besides its arguments and its results.

    Known on the CPU for convolutions, LSTM and attention, where it matters: oneDNN copies their operands into
    layouts of its own. The rules are read off the allocator's events (torch 2.14, AVX-512).
    """
    rule = _SCRATCH.get(func)
    return rule(args, output) if rule and args[0].device.type == "cpu" else 0


def _convolution_scratch(args: tuple[Any, ...], output: Any) -> int:
    x, w, _, stride, padding, dilation, transposed, _, groups = args[:9]
    if transposed:  # it is how a convolution from its output to its input sends gradients back
        found = _Convolution(output, w, x, stride, padding, dilation, groups=groups)
        return found.backward(True, False, packed=x.is_contiguous(memory_format=found.format))
    return _Convolution(x, w, output, stride, padding, dilation, groups=groups).forward()


def _convolution_backward_scratch(args: tuple[Any, ...], _: Any) -> int:
    dy, x, w, _, stride, padding, dilation, transposed, _, groups, (to_x, to_w, _) = args
    if transposed:
        found = _Convolution(dy, w, x, stride, padding, dilation, groups=groups)
        through = found.forward() - (found.w if to_w else 0) if to_x else 0
        return max(through, found.backward(False, to_w, packed=True))
    found = _Convolution(x, w, dy, stride, padding, dilation, groups=groups)
    return found.backward(to_x, to_w, packed=dy.is_contiguous(memory_format=found.format))


_aten = torch.ops.aten
_SCRATCH: dict[Any, _Formula] = {
    _aten.convolution.default: _convolution_scratch,
    _aten.convolution_backward.default: _convolution_backward_scratch,
    _aten.mkldnn_rnn_layer.default: lambda args, _: _lstm_scratch(args),
    _aten.mkldnn_rnn_layer_backward.default: lambda args, _: _lstm_scratch(args, args[10:13]),
    _aten._scaled_dot_product_flash_attention_for_cpu.default: lambda args, _: _attention_scratch(args[0], args[1]),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward.default: lambda args, _: _attention_scratch(
        args[1], args[2], args[0]
    ),
}


class _Convolution:
    """Bytes of x * w = y, and of the copies of x, w and y in oneDNN's blocks of 16 channels."""

    def __init__(
        self,
        x: torch.Tensor,
        w: torch.Tensor,
        y: torch.Tensor,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        *,
        groups: int,
    ) -> None:
        size = x.element_size()
        self.x, self.w, self.y = (one.numel() * size for one in (x, w, y))
        self.bias = y.shape[1] * size
        self.half = size == 2
        self.strided = max(stride) > 1 and groups == 1  # its gradient is reordered twice
        self.kernel = math.prod(w.shape[2:])
        self.examples = x.shape[0]
        self.depthwise = groups == x.shape[1] == y.shape[1] > 1
        self.columns = self.kernel * math.prod(y.shape[2:]) * size  # of one channel of one example
        self.unfolded = 0 if self.kernel == 1 and stride[0] == 1 else x.shape[0] * x.shape[1] * self.columns
        narrow = groups == 1 and x.shape[1] < 4
        self.copied_x = 0 if narrow else self.x // x.shape[1] * _blocked(x.shape[1])
        self.copied_y = self.y // y.shape[1] * _blocked(y.shape[1])
        if self.depthwise:
            self.copied_w = self.w // groups * _blocked(groups)
        else:
            inner = w.shape[1] if narrow else _blocked(w.shape[1])
            self.copied_w = groups * _blocked(w.shape[0] // groups) * inner * self.kernel * size
        last = x.dim() == 4 and any(
            one.is_contiguous(memory_format=torch.channels_last) and not one.is_contiguous() for one in (x, w)
        )
        self.format = torch.channels_last if last else torch.contiguous_format
        self.repacked = 0 if w.is_contiguous(memory_format=self.format) else self.w
        threads = torch.get_num_threads()
        self.threads = threads if math.prod(y.shape[2:]) < 256 * threads else 1
        # use_mkldnn in ATen/native/Convolution.cpp
        moves = max(stride) > 1 or max(dilation) > 1 or self.kernel > 1 or threads > 1 or x.shape[0] >= 16
        large = groups > 1 or (w.dim() > 3 and min(w.shape[-2:]) > 3) or x.shape[0] > 1
        large = large or math.prod(x.shape[:4]) > 20480
        built_in = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        self.fast = built_in and (self.half or (size == 4 and moves and large))
        # What its kernels refuse is unfolded, example by example, and multiplied.
        reach = [(side - 1) * step for side, step in zip(w.shape[2:], dilation, strict=True)]
        dilated = size == 4 and max(dilation) > 1
        outgrown = dilated and any(far >= side for far, side in zip(reach, x.shape[2:], strict=True))
        self.unfolds_for_w = outgrown or (size == 4 and max(w.shape[2:]) > 14)
        self.unfolds_for_x = dilated and reach[-1] - padding[-1] > 7 and x.shape[-1] > 28
        self.busy = min(self.examples, threads)
        self.example = x.shape[1] // groups * self.columns

    def _single(self, half: int) -> int:
        """Sums in single precision, of one example for each thread."""
        return 0 if self.depthwise else 2 * half * torch.get_num_threads() // self.examples

    def forward(self) -> int:
        """What is alive at the worst moment, besides x, w and y."""
        if not self.fast:
            return self.unfolded
        if self.format is torch.channels_last:
            return self.repacked + self.copied_w
        sums = self._single(self.y) if self.half and self.kernel == 1 else 0
        copies = self.copied_x + self.copied_w + self.copied_y + sums
        return max(copies - self.y, self.copied_y)

    def backward(self, to_x: bool, to_w: bool, *, packed: bool) -> int:
        """What is alive at the worst moment, besides x, w, y's gradient and the results."""
        if not self.fast:
            return self.unfolded
        dx, dw = self.x if to_x else 0, self.w + self.bias if to_w else 0
        last = self.format is torch.channels_last
        moments = [0]
        if to_x and self.unfolds_for_x:
            moments.append(dx + self.busy * self.example)
        elif to_x:
            sums = self._single(self.x) if self.half and self.kernel == 1 else 0
            moments.append(self.x + self.copied_w if last else self.copied_x + self.copied_w + self.copied_y + sums)
            moments.append(self.x + (0 if last else (1 + self.strided) * self.copied_x))
        if to_w and self.unfolds_for_w:
            moments.append(dx + self.w + self.bias + self.busy * (4 * self.w + self.example))
        elif to_w:
            copied, operands = self.copied_w, 0 if last else self.copied_x + self.copied_y
            sums = 0
            if self.depthwise and self.kernel > 9:
                if last:
                    copied = 256 * self.w  # one channel takes a block of 16 x 16
                else:  # unfolded, channel by channel
                    operands, sums = 0, self.threads * (self.columns + 4 * self.w)
            if self.half:
                much = self.x + self.y > (16 if self.depthwise else 3) * self.w  # examples are shared out then
                busy = self.busy if much else 1
                sums = busy * (2 * copied + (0 if self.kernel == 1 else (self.x + self.y) // self.examples))
            moments.append(dx + operands + copied + self.bias + sums)
            moments.append(dx + copied + self.w + 2 * self.bias + (self.w if last else 0))
        return max(moments) - dx - dw + self.repacked + (0 if packed else self.y)


def _blocked(channels: int) -> int:
    return -(-channels // 16) * 16
