"""Whether a convolution made for one channel gives on a gray image what the old one gave on equal channels."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from ftkit._heads.layers import copied, like, read, tensors_of
from ftkit._models.dryrun import untouched

_log = logging.getLogger("ftkit")

_CLOSE = 0.01  # of the length of the response: above what bfloat16 rounds off


def keeps_response(old: nn.Module, new: nn.Module) -> bool:
    """Whether ``new`` answers one channel as ``old`` does equal ones, which copies of both tell on random pixels.

    A layer that computes its filters from its weight, such as one that standardizes it, may not. If it has a gain for
    each filter, that of ``new`` is set so that it does, where it can.
    """
    weight = read(new, "weight")
    if not isinstance(weight, torch.Tensor) or weight.is_meta:
        return True  # there are no values yet that could be kept
    try:
        with untouched(), torch.no_grad():
            wanted, given = _response(old, weight), _response(new, weight)
            if _close(given, wanted):
                return True
            gain = read(new, "gain")
            if not isinstance(gain, torch.Tensor) or gain.numel() != given.shape[1]:
                return False
            over = [axis for axis in range(given.dim()) if axis != 1]
            ratio = ((wanted * given).sum(over) / given.square().sum(over)).nan_to_num(1, 1, 1)
            close = _close(given * ratio.view(-1, *[1] * (given.dim() - 2)), wanted)
            if close:
                gain.mul_(ratio.view(gain.shape).to(gain.dtype))
            return close
    except Exception as error:  # noqa: BLE001 -- someone's own layer may fail on its own in any way
        _log.info("Not compared with the layer before: the %s does not run alone: %r", type(new).__name__, error)
        return True


def _close(given: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((given - wanted).norm() <= _CLOSE * wanted.norm())


def _response(layer: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """What a copy of a convolution adds to its bias on random gray pixels."""
    memo = {id(tensor): like(tensor, tensor.detach().clone()) for tensor in tensors_of(layer)}
    twin: Any = copied(layer, memo).eval()
    sides = [
        step * (size - 1) + 1 + stride
        for size, step, stride in zip(twin.kernel_size, twin.dilation, twin.stride, strict=True)
    ]
    made = torch.randn(2, 1, *sides, generator=torch.Generator().manual_seed(0), device="cpu")
    pixels = made.to(weight.device, weight.dtype).expand(-1, twin.in_channels, *sides)
    response: torch.Tensor = twin.forward(pixels) - twin.forward(torch.zeros_like(pixels))  # hooks are the user's
    return response.to(torch.promote_types(response.dtype, torch.float32))
