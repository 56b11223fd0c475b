"""What an old layer shows of how it started, as long as no training has moved it."""

from __future__ import annotations

import math

import torch
from torch import nn

from ftkit._heads.layers import Layer

_FEWEST, _ENOUGH, _MOST = 64, 2000, 200_000  # numbers that show a law, show it for sure, and are looked at
_ALIKE = 1.3  # the ratio of the spreads of two layers that are drawn alike
# How far a sample is from its own distribution, times the root of its count: in 98 cases of 100 at most, in 89.
_STRAYS, _STRAYS_LITTLE = 1.5, 1.2
_MOST_WORK = 2e9  # multiplications, to see whether a matrix is orthogonal
_UNEVEN = 4.0  # standard errors: how much more than by chance rows or columns differ
_TAIL = math.erfc(math.sqrt(2)) / 2  # of the normal distribution, beyond two deviations
_CUT = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / (1 - 2 * _TAIL))  # what cutting leaves of its spread


def is_constant(tensor: torch.Tensor) -> bool:
    """Whether all numbers of a tensor are the same."""
    return not tensor.is_meta and bool((tensor == tensor.flatten()[0]).all())


def written(module: nn.Module, name: str) -> torch.Tensor:
    """A parameter as it was started: of a weight that is computed, what it is computed from, if of its shape."""
    value: torch.Tensor = getattr(module, name).detach()
    for key in (f"parametrizations.{name}.original", f"{name}_orig"):
        found = dict(module.named_parameters()).get(key)
        if found is not None and found.shape == value.shape:
            return found.detach()
    return value


def is_untrained(layer: Layer) -> bool:
    """Whether a layer shows that no training has moved it: its bias is one number, its weight too, or by a law."""
    if getattr(layer.module, "weight", None) is None:
        return False
    weight, bias = written(layer.module, "weight"), getattr(layer.module, "bias", None)
    if weight.is_meta:
        return False
    if is_constant(weight):
        return True
    unmoved = bias is not None and is_constant(bias) and (bias.numel() > 1 or not bias.any())
    return unmoved and (weight.numel() < _FEWEST or shows_its_law(weight))


def are_alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two starts are of one kind: the same number everywhere, or numbers of like spread."""
    if one.is_meta or other.is_meta:
        return False
    if is_constant(one) or is_constant(other):
        alike: bool = torch.allclose(one.flatten()[0], other.flatten()[0]) and is_constant(one) is is_constant(other)
        return alike
    spreads = [float(values.float().std(correction=0)) for values in (one, other)]
    return one.dim() < 2 or max(spreads) <= _ALIKE * min(spreads)


def shows_its_law(weight: torch.Tensor, *, surely: bool = False) -> bool:
    """Whether the numbers of a matrix could be drawn independently: uniform, or normal, cut at two deviations or not.

    Training leaves rows and columns of different spreads, and soft edges. Of a few normal numbers one can't be sure.
    """
    rows = weight.detach().flatten(1).double()
    rows = rows[: max(1, _MOST // rows.shape[1])]
    ordered = rows[rows != 0].sort().values  # what a sparse start left out is left out
    ordered, squares = ordered / ordered.square().mean().sqrt(), rows.square() - rows.square().mean()
    count = ordered.numel()
    reach = float(ordered.abs().max()) * (1 + 1 / count)
    laws = [
        (ordered / reach + 1) / 2,
        torch.special.ndtr(ordered),
        (torch.special.ndtr(ordered * _CUT) - _TAIL) / (1 - 2 * _TAIL),
    ]
    expected = (torch.arange(count, dtype=ordered.dtype, device=ordered.device) + 0.5) / count
    strays = [float((law.clamp(0, 1) - expected).abs().max()) * count**0.5 for law in laws]
    fits = strays[0] < _STRAYS_LITTLE if surely and count < _ENOUGH else min(strays) < _STRAYS
    return count >= _FEWEST and fits and all(_is_even(values, axis) for values in (rows, squares) for axis in (0, 1))


def _is_even(values: torch.Tensor, axis: int) -> bool:
    """Whether sums along an axis differ no more than those of independent numbers."""
    sums = values.sum(axis).square() / (values.shape[axis] * values.var(correction=0))
    return bool((sums.sum() - sums.numel()) / (2 * sums.numel()) ** 0.5 < _UNEVEN)


def draw_like(source: torch.Tensor, into: torch.Tensor) -> None:
    """Draw numbers from those of an untrained layer: so their law is kept, whatever it is.

    Two kinds of start hang on the number of outputs, and are known by their spread: Xavier's, and He's by the outputs.
    """
    if _is_orthogonal(source):
        nn.init.orthogonal_(into, gain=float(source.float().square().sum() / min(source.flatten(1).shape)) ** 0.5)
        return
    picked = torch.randint(source.numel(), (into.numel(),), device=source.device)
    into.copy_(source.flatten()[picked].view(into.shape))
    spread, error = float(source.float().std(correction=0)), 3 / (2 * source.numel()) ** 0.5
    for law in (_xavier, _by_outputs):
        if abs(spread / law(source) - 1) < error:
            into.mul_(law(into) / law(source))
            return


def _is_orthogonal(weight: torch.Tensor) -> bool:
    """Whether the rows, or else the columns, of a matrix are at right angles, and of one length."""
    rows = weight.flatten(1).double()
    rows = rows if len(rows) <= rows.shape[1] else rows.T
    if len(rows) * rows.numel() > _MOST_WORK:
        return False
    angles = rows @ rows.T
    square = angles.diagonal().mean()
    return torch.allclose(angles / square, torch.eye(len(rows), dtype=rows.dtype, device=rows.device), atol=1e-3)


def _xavier(weight: torch.Tensor) -> float:
    return math.sqrt(2 / (weight[0].numel() + weight[:, 0].numel()))


def _by_outputs(weight: torch.Tensor) -> float:
    return math.sqrt(2 / weight[:, 0].numel())
