"""Layers described as plain values, and built again from them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final, TypeAlias

from torch import nn

from ftkit._torch import children_of
from ftkit.errors import CheckpointError

Description: TypeAlias = list[Any]
"""The name of a layer's class, and the arguments that make it; a ``Sequential``'s are descriptions by name."""

_CONV: Final = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_BATCH_NORM: Final = ("num_features", "eps", "momentum", "affine", "track_running_stats")

# The layers that heads are made of, with the arguments of their constructors that are attributes too.
_LAYERS: Final[dict[str, tuple[str, ...]]] = {
    "Linear": ("in_features", "out_features"),
    "Conv1d": _CONV,
    "Conv2d": _CONV,
    "Conv3d": _CONV,
    "BatchNorm1d": _BATCH_NORM,
    "BatchNorm2d": _BATCH_NORM,
    "LayerNorm": ("normalized_shape", "eps", "elementwise_affine"),
    "Dropout": ("p", "inplace"),
    "Flatten": ("start_dim", "end_dim"),
    "AdaptiveAvgPool1d": ("output_size",),
    "AdaptiveAvgPool2d": ("output_size",),
    "ReLU": ("inplace",),
    "SiLU": ("inplace",),
    "Hardswish": ("inplace",),
    "GELU": ("approximate",),
    "Tanh": (),
    "Sigmoid": (),
    "Identity": (),
}
# Those whose constructors take ``bias``, which no attribute keeps as it was given.
_WITH_BIAS: Final = {"Linear", "Conv1d", "Conv2d", "Conv3d", "LayerNorm"}


def descriptions(model: nn.Module, changed: Collection[str], names: Collection[str]) -> dict[str, Description]:
    """Describe the largest parts of a model that changed whole and consist of plain layers.

    Example:
        >>> import torch
        >>> from ftkit._deltas.layers import descriptions
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> descriptions(model, {"1.weight", "1.bias"}, list(model.state_dict()))
        {'1': ['Linear', {'in_features': 4, 'out_features': 2, 'bias': True}]}
    """
    return dict(_described(model, "", changed, names))


def _described(
    module: nn.Module, prefix: str, changed: Collection[str], names: Collection[str]
) -> Iterator[tuple[str, Description]]:
    here = {name for name in names if name.startswith(prefix)}
    same = here.difference(changed)
    if same == here:
        return
    description = _describe(module) if prefix and not same else None
    if description is not None:
        yield prefix[:-1], description
        return
    for name, child in module.named_children():
        yield from _described(child, f"{prefix}{name}.", changed, here)


def _describe(module: nn.Module) -> Description | None:
    """A module as plain values, or None if it is not made of plain layers alone."""
    kind = type(module).__name__
    if type(module) is nn.Sequential:
        # Not named_children(), which passes by what stands there a second time: an activation that is used twice.
        parts = {name: part and _describe(part) for name, part in children_of(module).items()}
        return None if None in parts.values() else [kind, parts]
    if kind not in _LAYERS or type(module) is not getattr(nn, kind):
        return None
    arguments = {name: getattr(module, name) for name in _LAYERS[kind]}
    if kind in _WITH_BIAS:
        arguments["bias"] = module.bias is not None
    return [kind, arguments]


def build(description: Description) -> nn.Module:
    """Build the layer that a description describes.

    Raises:
        CheckpointError: It is a layer that this version does not know.
    """
    kind, arguments = description
    if kind == "Sequential":
        sequence = nn.Sequential()
        for name, part in arguments.items():
            sequence.add_module(name, build(part))
        return sequence
    if kind not in _LAYERS:
        raise CheckpointError(f"The file describes a layer {kind!r} that this version of ftkit does not know.")
    return getattr(nn, kind)(**arguments)  # type: ignore[no-any-return]
