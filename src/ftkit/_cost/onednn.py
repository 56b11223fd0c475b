"""The scratch memory of kernels on the CPU, which no tensor shows: most of it oneDNN's.

oneDNN copies the operands of convolutions and LSTMs into layouts of its own, and documents no size of them. Common
kernels have a rule, so that a summary computes nothing. Where no source is named, it is read off the events of torch's
allocator around single layers (torch 2.14, AVX-512). What differs from processor to processor, and what is rare, is
tried instead.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from ftkit._cost.trials import ENOUGH, tried
from ftkit._models.dryrun import tensors_in
from ftkit._torch import fused_attention, gives_views, operator_name, writes


def scratch_bytes(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> int:
    """The most bytes that an operator holds while it runs, besides its arguments and its results; 0 if unknown."""
    name = operator_name(func)
    tensors = [one for one in tensors_in((args, kwargs)) if one.dim()]
    if func.namespace != "aten" or not tensors or not all(map(_can_be_tried, tensors)):
        return 0
    if not any(one.dtype is torch.half or one.is_complex() for one in tensors):  # copied and cast behind the scenes
        if name in _RULES and not (name.startswith(_FLASH) and tensors[0].dtype is torch.bfloat16):
            return _RULES[name](func, args, output)
        if _holds_nothing(func, name, tensors, output):
            return 0
    return tried(func, args, kwargs, output)


def _can_be_tried(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.layout is torch.strided and not tensor.is_quantized


def _holds_nothing(func: Any, name: str, tensors: Sequence[torch.Tensor], output: Any) -> bool:
    """Whether an operator is known to hold nothing: the commonest are, so that a summary computes next to nothing."""
    if name in _HOLDS_NOTHING or torch.Tag.nondeterministic_seeded in func.tags:
        return True
    if torch.Tag.pointwise in func.tags or writes(func) or name in _SUMS:  # these cast what has another dtype
        results = {one.dtype for one in tensors_in(output)} - {torch.bool}
        return len({one.dtype for one in tensors} | results) == 1
    return gives_views(func) or (name in _HOLDS_NOTHING_IF_PLAIN and _lie_plainly(tensors))


def _lie_plainly(tensors: Sequence[torch.Tensor]) -> bool:
    return tensors[0].dim() > 2 and all(one.is_contiguous() for one in tensors)


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


def fast_attention_scratch(
    module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
) -> int:
    """What the fused kernel holds that torch takes for attention of a part in eval mode that needs no gradients.

    It is 0 where torch does not take it, by ``nn.MultiheadAttention.forward``. That may be because of its inputs too.
    """
    if type(module).forward is not nn.MultiheadAttention.forward:
        return 0
    given = dict(zip(("query", "key", "value", "key_padding_mask", "need_weights"), args, strict=False)) | dict(kwargs)
    query = given["query"]
    weights: list[Any] = [module.in_proj_weight, module.in_proj_bias, *module.out_proj.parameters()]
    plain = module.batch_first and module.num_heads % 2 == 0 and module.bias_k is None and not module.add_zero_attn
    if module.training or not plain or query is not given["key"] or query is not given["value"]:
        return 0
    if any(one is None or one.dtype != query.dtype for one in weights) or query.dim() != 3 or query.is_nested:
        return 0
    if torch.is_autocast_enabled("cpu") or query.device.type != "cpu" or len(weights) != 4:
        return 0
    if torch.is_grad_enabled() and any(one.requires_grad for one in (query, *weights)):
        return 0
    sizes = module.embed_dim, module.num_heads
    call = (query, query, query, *sizes, *weights, None, given.get("need_weights", True), True)
    fused = fused_attention()
    return tried(fused, call, {}, output) if fused else 0


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
        self.x_bytes, self.w_bytes, self.y_bytes = (one.numel() * self.size for one in (self.x, self.w, self.y))
        self.bias = self.y.shape[1] * self.size
        self.examples, self.channels = self.x.shape[:2]
        self.kernel, self.places = math.prod(self.w.shape[2:]), math.prod(self.y.shape[2:])
        self.depthwise = self.groups == self.channels == self.y.shape[1] > 1

    @property
    def known(self) -> bool:
        """Whether what it holds is the same on every processor."""
        return True

    @property
    def taken_by_onednn(self) -> bool:
        """Whether torch leaves it to oneDNN: ``use_mkldnn`` in ATen/native/Convolution.cpp."""
        several = self.kernel > 1 or max(self.stride) > 1 or max(self.dilation) > 1
        worthwhile = several or torch.get_num_threads() > 1 or self.examples >= 16
        wide = self.w.dim() > 3 and min(self.w.shape[-2:]) > 3
        large = wide or self.groups > 1 or self.examples > 1 or math.prod(self.x.shape[:4]) > 20480
        built_in = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        return built_in and (self.size == 2 or (self.size == 4 and worthwhile and large))

    @property
    def format(self) -> torch.memory_format:
        """The order of dimensions in which torch hands the operands over."""
        last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(self.x.dim(), torch.contiguous_format)
        found = any(one.is_contiguous(memory_format=last) and not one.is_contiguous() for one in (self.x, self.w))
        return last if found else torch.contiguous_format

    def forward(self) -> int:
        """What is alive at the worst moment, besides x, w and y."""
        unfolded = self.examples * self.channels * self.kernel * self.places * self.size
        return 0 if self.kernel == 1 and self.stride[0] == 1 else unfolded

    def backward(self, to_x: bool, to_w: bool, *, packed: bool) -> int:  # noqa: ARG002  (others need them)
        """What is alive at the worst moment, besides x, w, y's gradient (copied unless ``packed``) and the results."""
        return self.forward()


class _Blocked(_Unfolded):
    """x * w = y as oneDNN computes it, on copies in blocks of channels."""

    @property
    def known(self) -> bool:
        """Whether it is one of the plain ones, for which oneDNN has the same kernels on all that has AVX-512.

        For others they depend on sizes of caches and on instructions: some multiply an unfolded input.
        """
        small = max(self.w.shape[2:]) <= 7 and self.kernel <= 49
        plain = self.size == 4 and max(self.dilation) == 1 and small and self.x.dim() < 5
        small_depthwise = self.depthwise and self.x.dim() == 4 and self.kernel <= 9
        return plain and (self.groups == 1 or small_depthwise) and torch.backends.cpu.get_cpu_capability() == "AVX512"

    def forward(self) -> int:
        copies = self.copied_x + self.copied_w + self.copied_y
        return max(copies - self.y_bytes, self.copied_y)

    def backward(self, to_x: bool, to_w: bool, *, packed: bool) -> int:
        x_grad = w_grad = for_x = for_w = 0
        if to_x:
            x_grad, for_x = self.x_bytes, self._for_x()
        if to_w:
            w_grad, for_w = self.w_bytes + self.bias, x_grad + self._for_w()
        return max(for_x, for_w) - x_grad - w_grad + self.repacked + (0 if packed else self.y_bytes)

    def _for_x(self) -> int:
        """The gradient of x, and what is held with it."""
        reorders = 2 if max(self.stride) > 1 and self.groups == 1 else 1
        return max(self.copied_x + self.copied_w + self.copied_y, self.x_bytes + reorders * self.copied_x)

    def _for_w(self) -> int:
        """The gradients of w and of the bias, and what is held with them."""
        summed = self.copied_x + self.copied_y + self.copied_w + self.bias
        return max(summed, self.copied_w + self.w_bytes + 2 * self.bias)

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


class _ChannelsLast(_Blocked):
    """x * w = y as oneDNN computes it where channels come last: x and y are taken as they are."""

    @property
    def known(self) -> bool:
        return super().known and self.x.dim() == 4

    def forward(self) -> int:
        return self.repacked + self.copied_w

    def _for_x(self) -> int:
        return self.x_bytes + self.copied_w

    def _for_w(self) -> int:
        return self.copied_w + 2 * self.bias + 2 * self.w_bytes


def _convolution(*given: Any) -> _Unfolded:
    """The kernel that runs."""
    found = _Unfolded(*given)
    if not found.taken_by_onednn:
        return found
    return (_Blocked if found.format is torch.contiguous_format else _ChannelsLast)(*given)


def _blocked(size: int, channels: int) -> int:
    """The bytes of a tensor in whole blocks of channels."""
    return size // channels * _rounded_up(channels, _BLOCK)


def _convolution_scratch(func: Any, args: tuple[Any, ...], y: Any) -> int:
    x, w, _, stride, padding, dilation, transposed, _, groups = args[:9]
    if transposed:  # it is how a convolution from its output to its input sends gradients back
        found = _convolution(y, w, x, stride, padding, dilation, groups)
        foreseen = found.backward(True, False, packed=x.is_contiguous(memory_format=found.format))
    else:
        found = _convolution(x, w, y, stride, padding, dilation, groups)
        foreseen = found.forward()
    return foreseen if found.known else _tried_convolution(found, foreseen, func, args, y, [0])


def _convolution_backward_scratch(func: Any, args: tuple[Any, ...], output: Any) -> int:
    y_grad, x, w, _, stride, padding, dilation, transposed, _, groups, (to_x, to_w, _) = args
    if transposed:
        found = _convolution(y_grad, w, x, stride, padding, dilation, groups)
        through = found.forward() - (found.w_bytes if to_w else 0) if to_x else 0
        foreseen = max(through, found.backward(False, to_w, packed=True))
    else:
        found = _convolution(x, w, y_grad, stride, padding, dilation, groups)
        foreseen = found.backward(to_x, to_w, packed=y_grad.is_contiguous(memory_format=found.format))
    return foreseen if found.known else _tried_convolution(found, foreseen, func, args, output, [0, 1])


def _tried_convolution(
    found: _Unfolded, foreseen: int, func: Any, args: tuple[Any, ...], output: Any, rows: list[int]
) -> int:
    """What a trial shows; or, of a few examples only, what is foreseen, if there is more: copies outgrow the rest."""
    held = tried(func, args, {}, output, rows=rows, otherwise=foreseen)
    copied = found.groups == 1 and found.size == 4 and found.format is torch.contiguous_format
    return max(held, foreseen) if copied and _operands(args) > ENOUGH else held


def _operands(args: tuple[Any, ...]) -> int:
    return sum(one.numel() * one.element_size() for one in args if isinstance(one, torch.Tensor))


# ---------------------------------------------------------------- Fourier transforms


def _transform_scratch(_: Any, args: tuple[Any, ...], __: Any) -> int:
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


# ---------------------------------------------------------------- products


def _product_scratch(_: Any, args: tuple[Any, ...], __: Any) -> int:
    """Copies of the matrices that lie in memory neither row by row nor column by column, such as a sum's gradient."""
    matrices = [one for one in args if isinstance(one, torch.Tensor)][-2:]
    return sum(one.numel() * one.element_size() for one in matrices if not _lies_in_lines(one))


def _lies_in_lines(matrix: torch.Tensor) -> bool:
    (rows, columns), (row, column) = matrix.shape[-2:], matrix.stride()[-2:]
    return (column == 1 and row >= max(1, columns)) or (row == 1 and column >= max(1, rows))


def _trilinear_scratch(func: Any, args: tuple[Any, ...], output: Any) -> int:
    """By a trial; a dimension that is expanded in an operand is none of its rows."""
    return tried(func, args, {}, output, rows=[place for place in range(3) if 0 not in args[3 + place]])


def _bag_backward_scratch(func: Any, args: tuple[Any, ...], output: Any) -> int:
    """By a trial; of maxima three times what is not empty, of which zeros have nothing."""
    return int(3 * args[0].numel() * args[0].element_size()) if args[8] == 2 else tried(func, args, {}, output)


def _exponential_scratch(_: Any, args: tuple[Any, ...], __: Any) -> int:
    """Powers of the matrix, as many as its largest values need (measured)."""
    return int(12 * args[0].numel() * args[0].element_size())


_FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"
_RULES: dict[str, Callable[[Any, tuple[Any, ...], Any], int]] = {
    "aten::convolution": _convolution_scratch,
    "aten::convolution_backward": _convolution_backward_scratch,
    "aten::mkldnn_rnn_layer": lambda _, args, __: _lstm_scratch(args),
    "aten::mkldnn_rnn_layer_backward": lambda _, args, __: _lstm_scratch(args, args[10:13]),
    **dict.fromkeys(("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"), _product_scratch),
    "aten::_embedding_bag_backward": _bag_backward_scratch,
    "aten::_trilinear": _trilinear_scratch,
    "aten::linalg_matrix_exp": _exponential_scratch,
    **dict.fromkeys(("aten::_fft_r2c", "aten::_fft_c2c", "aten::_fft_c2r"), _transform_scratch),
    _FLASH: lambda _, args, __: _attention_scratch(args[0], args[1]),
    f"{_FLASH}_backward": lambda _, args, __: _attention_scratch(args[1], args[2], args[0]),
}


_HOLDS_NOTHING = {
    f"aten::{name}" for name in (
        "_log_softmax_backward_data", "_native_batch_norm_legit", "_softmax_backward_data", "_to_copy",
        "_unsafe_view", "avg_pool2d", "cat", "clone", "constant_pad_nd", "copy_", "dot", "elu_backward",
        "embedding", "embedding_dense_backward", "empty_like", "fill_", "full_like", "hardtanh_backward",
        "leaky_relu_backward", "masked_fill", "max_pool2d_with_indices", "native_batch_norm",
        "native_group_norm", "new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros",
        "nll_loss2d_backward", "nll_loss2d_forward", "nll_loss_backward", "nll_loss_forward", "ones_like",
        "select_backward", "slice_backward", "stack", "where", "zeros_like",
    )
}  # fmt: skip
_SUMS = {"aten::mean", "aten::sum"}
# Those that hold nothing where their arguments lie in memory in the order of their dimensions.
_HOLDS_NOTHING_IF_PLAIN = {
    "aten::_adaptive_avg_pool2d_backward",
    "aten::_log_softmax",
    "aten::_softmax",
    "aten::avg_pool2d_backward",
    "aten::max_pool2d_with_indices_backward",
    "aten::native_batch_norm_backward",
    "aten::native_group_norm_backward",
    "aten::native_layer_norm",
    "aten::native_layer_norm_backward",
    "aten::reflection_pad2d_backward",
}
