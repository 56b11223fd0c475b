"""What operators give back on fake tensors: asked of torch once, and then known."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import torch

from ftkit._cost.fakes import Fakes, TensorSpec
from ftkit._cost.onednn import lstm_workspace
from ftkit._torch import FakeTensor, below_dispatch, gives_views, holds_value, is_zero, operator_name, storage_id


class Answer(NamedTuple):
    """What an operator gives back on arguments like those that it was once called with."""

    flops: int
    scratch: int
    single: bool  # one tensor, not several
    outputs: tuple[TensorSpec | None, ...] = ()
    same: int | None = None  # it gives back this argument
    base: int | None = None  # its outputs are views of this argument

    @staticmethod
    def of(func: Any, args: tuple[Any, ...], output: Any, flops: int, scratch: int) -> Answer | None:
        """What to remember; None if it is not safe to give again."""
        single = isinstance(output, torch.Tensor)
        outputs = (output,) if single else output
        if _decided_by_values(func) or not isinstance(outputs, list | tuple):
            return None
        for index, arg in enumerate(args):
            if arg is output:
                return Answer(flops, scratch, single, same=index)
        made = [one for one in outputs if one is not None]
        if not all(map(_is_plain, made)):
            return None
        base = None
        storages = [storage_id(one) for one in made]
        if gives_views(func):
            if not (args and _is_plain(args[0]) and set(storages) == {storage_id(args[0])}):
                return None
            base = 0
        elif not _are_new(storages, args):
            return None
        specs = tuple(None if one is None else TensorSpec.of(one) for one in outputs)
        return Answer(flops, scratch, single, specs, base=base)

    def again(self, args: tuple[Any, ...], fakes: Fakes) -> Any:
        """Give it once more, in new tensors."""
        assert fakes.dress is not None
        if self.same is not None:
            return args[self.same]
        with below_dispatch():
            storage = None if self.base is None else args[self.base].untyped_storage()
            made = [
                None if spec is None else fakes.dress(spec.on_meta(storage), spec.device, False)
                for spec in self.outputs
            ]
        return made[0] if self.single else made


_VALUES_DECIDE = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view}


def _decided_by_values(func: Any) -> bool:
    """Whether more than shapes may decide what an operator gives back; of one that is not torch's, it is unknown."""
    return func.namespace not in ("aten", "prims") or not _VALUES_DECIDE.isdisjoint(func.tags)


def _is_plain(tensor: Any) -> bool:
    """Whether a tensor is a fake that its shape, strides, dtype and device describe."""
    return (
        type(tensor) is FakeTensor
        and not holds_value(tensor)
        and tensor.layout is torch.strided
        and not tensor.dtype.is_complex  # which may be conjugated
        and not tensor.is_neg()
        and not is_zero(tensor)
    )


def _are_new(storages: list[int], args: tuple[Any, ...]) -> bool:
    """Whether each output has memory of its own, and none that of an argument."""
    given = {storage_id(arg) for arg in args if type(arg) is FakeTensor and arg.layout is torch.strided}
    return len(set(storages)) == len(storages) and given.isdisjoint(storages)


def question(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable | None:
    """What decides the answer of an operator; None if values could, too."""
    if operator_name(func) in _DECIDED_BY_MORE:
        return None
    for value in kwargs.values():
        if isinstance(value, torch.Tensor):  # such as the output of one that gives it back
            return None
    try:
        asked = func, torch.get_num_threads(), *map(_asked, args), *kwargs.items()
        hash(asked)
    except (RuntimeError, TypeError):  # a layout without strides; a value that can't be hashed
        return None
    return asked


def _asked(value: Any) -> Hashable:
    """What an answer can depend on of an argument.

    Raises:
        TypeError: Its values.
    """
    kind = type(value)
    if kind is list or kind is tuple:
        return tuple(map(_asked, value))
    if kind is FakeTensor and not holds_value(value) and not value.dtype.is_complex and not is_zero(value):
        return value.shape, value.stride(), value.storage_offset(), value.dtype, value.device
    if isinstance(value, torch.Tensor):
        raise TypeError
    return kind, value


def ask(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], fakes: Fakes | None) -> Any:
    """Ask torch, which runs the operator on real tensors, and foresees it on fake ones; there it is mended."""
    mend = _MENDED.get(operator_name(func))
    return mend(fakes, func, args, kwargs) if mend and fakes else func(*args, **kwargs)


def _grouped_product(fakes: Fakes, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Products of groups, as layers of experts take them: torch's own fake kernel refuses single precision."""
    left, right = args[:2]
    offsets = args[2] if len(args) > 2 else kwargs.get("offs")
    groups = left.shape[:1] if offsets is None else offsets.shape if left.dim() == right.dim() == 2 else ()
    shape = (*groups, left.shape[-2], right.shape[-1])
    stride = (shape[-2] * shape[-1], shape[-1], 1)[-len(shape) :]
    return fakes.make(TensorSpec(shape, stride, left.dtype, left.device))


def _lstm(fakes: Fakes, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """OneDNN's LSTM with the workspace that it keeps for the backward pass: torch's own fake kernel gives none."""
    output, hidden, cell, workspace = func(*args, **kwargs)
    if torch.is_grad_enabled():
        workspace = fakes.make(TensorSpec((lstm_workspace(args),), (1,), torch.uint8, args[0].device))
    return output, hidden, cell, workspace


def _norm(fakes: Fakes, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """A norm on the CPU, whose output and whose input's gradient are contiguous, or channels last where the input is.

    Torch's own fake kernels keep the strides of a transposed input, or give none back that is channels last.
    """
    output, *rest = func(*args, **kwargs)
    image = args[int("backward" in operator_name(func))]
    if output is not None and output.device.type == "cpu":
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        last = formats.get(image.dim(), torch.contiguous_format)
        kept = last if image.is_contiguous(memory_format=last) else torch.contiguous_format
        strides = torch.empty(image.shape, device="meta", memory_format=kept).stride()
        if strides != output.stride():
            output = fakes.make(TensorSpec(tuple(output.shape), strides, output.dtype, output.device))
    return output, *rest


def _loss(fakes: Fakes, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """A loss whose one number lies in memory for all that it was reduced from: the kernel has shrunk its output."""
    output: torch.Tensor = func(*args, **kwargs)
    if output.dim() or output.device.type != "cpu":
        return output
    size = torch.broadcast_shapes(args[0].shape, args[1].shape).numel()  # type: ignore[no-untyped-call]
    return fakes.make(TensorSpec((size,), (1,), output.dtype, output.device))[0]


_SHRUNK = "aten::binary_cross_entropy", "aten::mse_loss", "aten::smooth_l1_loss", "aten::soft_margin_loss"

_MENDED = {
    **dict.fromkeys(_SHRUNK, _loss),
    "aten::_grouped_mm": _grouped_product,
    "aten::mkldnn_rnn_layer": _lstm,
    "aten::native_batch_norm": _norm,
    "aten::native_batch_norm_backward": _norm,
    "aten::native_group_norm": _norm,
}
# By more than shapes: by whether gradients are needed, or by memory that shapes don't show.
_DECIDED_BY_MORE = {"aten::_grouped_mm", "aten::mkldnn_rnn_layer", *_SHRUNK}
