"""The scratch memory of kernels on the CPU, which no tensor shows: most of it oneDNN's.

oneDNN copies the operands of convolutions and LSTMs into layouts of its own, and documents no size of them. Where no
source is named, a rule is read off the events of torch's allocator around single layers (torch 2.14, AVX-512), as
``torch.profiler.profile(profile_memory=True)`` records them; tests measure some layers anew in that way.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from ftkit._torch import operator_name


def scratch_bytes(func: Any, args: tuple[Any, ...], output: Any) -> int:
    """The most bytes that an operator holds while it runs, besides its arguments and its results; 0 if unknown."""
    rule = _RULES.get(operator_name(func))
    return rule(args, output) if rule and args[0].device.type == "cpu" else 0


# ---------------------------------------------------------------- LSTM

_PAGE: Final = 4096  # bytes: oneDNN starts each large region of memory on a page of its own
_LSTM_REST: Final = 4664  # bytes of an LSTM's scratch memory besides its regions: the same for any size (measured)


def lstm_workspace(args: tuple[Any, ...]) -> int:
    """Bytes of the workspace that oneDNN's LSTM keeps for its backward pass.

    For each step the gates, the hidden state and the cell, and, in single precision, gradients of the states.
    """
    size, hidden = args[0].element_size(), args[2].shape[1]
    steps, batch, columns = args[0].shape
    states, wide = 2 * (steps + 1) * batch, max(columns, hidden)
    regions = [steps * batch * _row(4 * hidden, size), steps * batch * _row(hidden, size)]
    regions += [states * _row(wide, size), states * _row(wide, 4), states * _row(wide, 4)]
    return sum(map(_paged, [*regions, states * hidden * size, states * hidden * 4]))


def _lstm_scratch(args: tuple[Any, ...], grads: Sequence[torch.Tensor | None] | None = None) -> int:
    """Weights in oneDNN's layouts, and the gates: of all steps in single precision."""
    source, half = args[0], args[0].element_size() == 2
    gates, columns = args[1].shape
    hidden, batch = args[2].shape[1], source.shape[1]
    rows = source.numel() // columns
    packed = (columns + hidden) * _row(gates, source.element_size())
    held = _paged((batch if half else rows) * _row(gates, 4)) + 2 * _paged(batch * _row(hidden, 4)) + _LSTM_REST
    if grads is None:
        return int(packed + gates * source.element_size() + held)
    if half:  # gradients of weights, states and biases in single precision
        singles = (rows + 2 * batch) * hidden * 4 + 2 * gates * 4
        return int(2 * packed + (columns + hidden) * gates * 2 + singles + held)
    of_output, *of_states = grads
    copied = sum(gates * _row(side, 4) for side in (columns, hidden) if _row(side, 4) != 4 * side)
    copied += 0 if of_output is not None and of_output.is_contiguous() else rows * hidden * 4
    copied += sum(batch * hidden * 4 for state in of_states if state is None)
    return int(packed + copied + 2 * gates * 4 + held)


def _row(columns: int, size: int) -> int:
    """Bytes of a row in whole lines of the cache, and not of a length at which rows would collide in it.

    It is oneDNN's ``rnn_utils::get_good_ld``.
    """
    line = 64 // size
    columns = _rounded_up(columns, line)
    return (columns + line if columns % 256 == 0 else columns) * size


def _paged(size: int) -> int:
    return _rounded_up(size, _PAGE)


def _rounded_up(count: int, step: int) -> int:
    return -(-count // step) * step


# ---------------------------------------------------------------- attention


def _attention_scratch(query: torch.Tensor, key: torch.Tensor, gradient: torch.Tensor | None = None) -> int:
    """A block of scores for each thread, and of their gradients; the output's gradient by tokens.

    The sizes of a block are those in ATen/native/cpu/FlashAttentionKernel.cpp.
    """
    length, size = query.shape[-2], query.element_size()
    rows = min(length, 256 if length >= 768 else 64 if length >= 192 else 32)
    columns, threads = min(key.shape[-2], 512), torch.get_num_threads()
    halves = threads * rows * columns * size if size == 2 else 0
    if gradient is None:
        return threads * rows * (columns + 2 + query.shape[-1]) * 4 + halves
    copied = 0 if gradient.transpose(1, 2).is_contiguous() else gradient.numel() * size
    return threads * rows * columns * 2 * 4 + 2 * halves + copied


# ---------------------------------------------------------------- convolutions

_BLOCK: Final = 16  # channels in a block of oneDNN's layouts: what a register of AVX-512 holds in single precision


@dataclass
class _Unfolded:
    """x * w = y as torch computes it: a product of matrices, of w and of x unfolded. All in bytes."""

    x: torch.Tensor
    w: torch.Tensor
    y: torch.Tensor
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    def __post_init__(self) -> None:
        self.size = self.x.element_size()
        self.half = self.size == 2
        self.x_bytes, self.w_bytes, self.y_bytes = (one.numel() * self.size for one in (self.x, self.w, self.y))
        self.bias = self.y.shape[1] * self.size
        self.examples, self.channels = self.x.shape[:2]
        self.kernel, self.places = math.prod(self.w.shape[2:]), math.prod(self.y.shape[2:])
        self.column = self.kernel * self.places * self.size  # one channel of one example, unfolded
        self.threads = torch.get_num_threads()
        self.depthwise = self.groups == self.channels == self.y.shape[1] > 1
        self.large_depthwise = self.depthwise and self.kernel > 9  # 3 x 3 has a kernel of its own
        self.dilated = self.size == 4 and max(self.dilation) > 1
        self.reach = [(side - 1) * step for side, step in zip(self.w.shape[2:], self.dilation, strict=True)]

    @property
    def taken_by_onednn(self) -> bool:
        """Whether torch leaves it to oneDNN: ``use_mkldnn`` in ATen/native/Convolution.cpp."""
        several = self.kernel > 1 or max(self.stride) > 1 or max(self.dilation) > 1
        worthwhile = several or self.threads > 1 or self.examples >= 16
        wide = self.w.dim() > 3 and min(self.w.shape[-2:]) > 3
        large = wide or self.groups > 1 or self.examples > 1 or math.prod(self.x.shape[:4]) > 20480
        built_in = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        return built_in and (self.half or (self.size == 4 and worthwhile and large))

    @property
    def format(self) -> torch.memory_format:
        """The order of dimensions in which torch hands the operands over."""
        last = torch.channels_last
        tensors = (self.x, self.w) if self.x.dim() == 4 else ()
        found = any(one.is_contiguous(memory_format=last) and not one.is_contiguous() for one in tensors)
        return last if found else torch.contiguous_format

    def forward(self) -> int:
        """What is alive at the worst moment, besides x, w and y."""
        return 0 if self.kernel == 1 and self.stride[0] == 1 else self.examples * self.channels * self.column

    def backward(self, to_x: bool, to_w: bool, *, packed: bool) -> int:  # noqa: ARG002  (others need them)
        """What is alive at the worst moment, besides x, w, y's gradient (copied unless ``packed``) and the results."""
        return self.forward()


class _Blocked(_Unfolded):
    """x * w = y as oneDNN computes it, on copies in blocks of channels."""

    def forward(self) -> int:
        copies = self.copied_x + self.copied_w + self.copied_y + self._sums(self.y_bytes)
        return max(copies - self.y_bytes, self.copied_y)

    def backward(self, to_x: bool, to_w: bool, *, packed: bool) -> int:
        x_grad = w_grad = for_x = for_w = 0
        if to_x:
            x_grad, for_x = self.x_bytes, self._unfolded_for_x() or self._for_x()
        if to_w:
            w_grad, for_w = self.w_bytes + self.bias, x_grad + (self._unfolded_for_w() or self._for_w())
        return max(for_x, for_w) - x_grad - w_grad + self.repacked + (0 if packed else self.y_bytes)

    # ---- the gradient of x, and what is held with it

    def _unfolded_for_x(self) -> int:
        """Where a dilated kernel reaches too far over the edge of a row, oneDNN's refuse (7 and 28 are measured)."""
        far = self.reach[-1] - self.padding[-1] > 7 and self.x.shape[-1] > 28
        return self.x_bytes + self.columns if self.dilated and far else 0

    def _for_x(self) -> int:
        computed = self.copied_x + self.copied_w + self.copied_y + self._sums(self.x_bytes)
        reorders = 2 if max(self.stride) > 1 and self.groups == 1 else 1
        return max(computed, self.x_bytes + reorders * self.copied_x)

    # ---- the gradients of w and of the bias, and what is held with them

    def _unfolded_for_w(self) -> int:
        """A kernel that reaches beyond x is refused, and one of more than 14 (``jcp.kw > 14`` in oneDNN's source)."""
        outgrown = any(far >= side for far, side in zip(self.reach, self.x.shape[2:], strict=True))
        wide = self.size == 4 and max(self.w.shape[2:]) > 14
        taken = self.w_bytes + self.bias + 4 * self.busy * self.w_bytes + self.columns
        return taken if wide or (self.dilated and outgrown) else 0

    def _for_w(self) -> int:
        held = self.copied_x + self.copied_y
        if self.large_depthwise:  # unfolded, channel by channel
            threads = self.threads if self.places < 256 * self.threads else 1
            held = 0 if self.half else threads * (self.column + 4 * self.w_bytes)
        summed = held + self.copied_w + self.bias + self._sums_for_w(self.copied_w)
        return max(summed, self.copied_w + self.w_bytes + 2 * self.bias)

    # ---- copies, and sums

    def __post_init__(self) -> None:
        super().__post_init__()
        filters, inner = self.w.shape[0] // self.groups, self.w.shape[1]
        first = self.groups == 1 and self.channels < 4  # images and the like are too narrow for blocks
        self.copied_x = 0 if first else _blocked(self.x_bytes, self.channels)
        self.copied_y = _blocked(self.y_bytes, self.y.shape[1])
        self.copied_w = (
            _blocked(self.w_bytes, self.groups)
            if self.depthwise
            else _blocked(self.w_bytes, filters)
            if first
            else _blocked(_blocked(self.w_bytes, filters), inner)
        )
        self.repacked = 0 if self.w.is_contiguous(memory_format=self.format) else self.w_bytes
        self.busy = min(self.examples, self.threads)
        self.columns = self.busy * self.channels // self.groups * self.column  # unfolded at one time, of each a group

    def _sums(self, halves: int) -> int:
        """In single precision, of one example for each thread: for kernels of one element in half precision."""
        taken = self.half and self.kernel == 1 and not self.depthwise
        return 2 * halves * self.threads // self.examples if taken else 0

    def _sums_for_w(self, copied: int) -> int:
        """In single precision for half, for each thread if examples are shared out: where they are large (measured)."""
        if not self.half:
            return 0
        shared_out = self.x_bytes + self.y_bytes > (16 if self.depthwise else 3) * self.w_bytes
        operands = 0 if self.kernel == 1 else (self.x_bytes + self.y_bytes) // self.examples
        return (self.busy if shared_out else 1) * (2 * copied + operands)


class _ChannelsLast(_Blocked):
    """x * w = y as oneDNN computes it where channels come last: x and y are taken as they are."""

    def forward(self) -> int:
        return self.repacked + self.copied_w

    def _for_x(self) -> int:
        return self.x_bytes + self.copied_w

    def _for_w(self) -> int:
        copied = 256 * self.w_bytes if self.large_depthwise else self.copied_w  # a channel in 16 x 16
        return copied + self.bias + max(self._sums_for_w(copied), 2 * self.w_bytes + self.bias)


def _convolution(*given: Any) -> _Unfolded:
    """The kernel that runs."""
    found = _Unfolded(*given)
    if not found.taken_by_onednn:
        return found
    return (_ChannelsLast if found.format is torch.channels_last else _Blocked)(*given)


def _blocked(size: int, channels: int) -> int:
    """The bytes of a tensor in whole blocks of channels."""
    return size // channels * _rounded_up(channels, _BLOCK)


def _convolution_scratch(args: tuple[Any, ...], y: Any) -> int:
    x, w, _, stride, padding, dilation, transposed, _, groups = args[:9]
    if transposed:  # it is how a convolution from its output to its input sends gradients back
        found = _convolution(y, w, x, stride, padding, dilation, groups)
        return found.backward(True, False, packed=x.is_contiguous(memory_format=found.format))
    return _convolution(x, w, y, stride, padding, dilation, groups).forward()


def _convolution_backward_scratch(args: tuple[Any, ...]) -> int:
    y_grad, x, w, _, stride, padding, dilation, transposed, _, groups, (to_x, to_w, _) = args
    if transposed:
        found = _convolution(y_grad, w, x, stride, padding, dilation, groups)
        through = found.forward() - (found.w_bytes if to_w else 0) if to_x else 0
        return max(through, found.backward(False, to_w, packed=True))
    found = _convolution(x, w, y_grad, stride, padding, dilation, groups)
    return found.backward(to_x, to_w, packed=y_grad.is_contiguous(memory_format=found.format))


# ---------------------------------------------------------------- Fourier transforms


def _transform_scratch(args: tuple[Any, ...], _: Any) -> int:
    """A copy of what is transformed, unless its other dimensions lie in memory as one.

    So it is in ATen/native/mkl/SpectralOps.cpp.
    """
    x, dims = args[:2]
    transformed = {dim % x.dim() for dim in dims}
    others = sorted(
        ((x.stride(dim), x.shape[dim]) for dim in range(x.dim()) if dim not in transformed and x.shape[dim] > 1),
        reverse=True,
    )
    as_one = all(outer == inner * size for (outer, _), (inner, size) in itertools.pairwise(others))
    return 0 if as_one else x.numel() * x.element_size()


_FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"
_RULES: dict[str, Callable[[tuple[Any, ...], Any], int]] = {
    "aten::convolution": _convolution_scratch,
    "aten::convolution_backward": lambda args, _: _convolution_backward_scratch(args),
    "aten::mkldnn_rnn_layer": lambda args, _: _lstm_scratch(args),
    "aten::mkldnn_rnn_layer_backward": lambda args, _: _lstm_scratch(args, args[10:13]),
    **dict.fromkeys(("aten::_fft_r2c", "aten::_fft_c2c", "aten::_fft_c2r"), _transform_scratch),
    _FLASH: lambda args, _: _attention_scratch(args[0], args[1]),
    f"{_FLASH}_backward": lambda args, _: _attention_scratch(args[1], args[2], args[0]),
}
