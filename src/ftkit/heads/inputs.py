"""Inputs that a model could take, made up from what it says of itself and from its first layers."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["stand_in_inputs"]

_SIDES = (224, 64, 32, 299, 28, 128, 96, 256, 384, 512, 48, 16)


def stand_in_inputs(model: nn.Module) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Make up inputs that the model could take, the likeliest first."""
    signature = inspect.signature(model.forward).parameters
    usual = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    names = [n for n, p in signature.items() if p.kind in usual]
    required = [n for n in names if signature[n].default is inspect.Parameter.empty]
    makers = _named_inputs(model)
    known = [n for n in names if n in makers]
    main = getattr(model, "main_input_name", None)
    if known:
        least = [n for n in known if n in required] or [main if main in known else known[0]]
        wanted = [least, [n for n in known if n not in ("input_embeds", "attention_mask")]]
        for chosen in wanted if len(wanted[1]) > len(least) else wanted[:1]:
            for values in itertools.zip_longest(*(makers[n]() for n in chosen)):
                yield (), {n: v for n, v in zip(chosen, values, strict=True) if v is not None}
    for tensor in _plain_inputs(model):
        yield (tensor,) * max(1, len(required)), {}


def _named_inputs(model: nn.Module) -> dict[str, Any]:
    """Return makers of inputs for the argument names that the transformers family uses."""
    config = getattr(model, "config", None)

    def tell(key: str, default: Any) -> Any:
        for holder in (config, getattr(config, "vision_config", None), getattr(config, "text_config", None)):
            value = holder.get(key) if isinstance(holder, dict) else getattr(holder, key, None)
            if value is not None:
                return value
        return default

    def ids() -> Iterator[torch.Tensor]:
        yield torch.zeros(2, 8, dtype=torch.long)

    def ones() -> Iterator[torch.Tensor]:
        yield torch.ones(2, 8, dtype=torch.long)

    def pixels() -> Iterator[torch.Tensor]:
        channels, frames = tell("num_channels", 3), tell("num_frames", 8)
        for height, width in _sides(model):
            yield torch.zeros(2, channels, height, width)
            yield torch.zeros(2, frames, channels, height, width)

    def waves() -> Iterator[torch.Tensor]:
        bins, length = tell("num_mel_bins", 80), tell("max_length", 1024)
        yield torch.zeros(2, 16000)
        yield torch.zeros(2, length, bins)
        yield torch.zeros(2, 1, length, bins)

    def spectra() -> Iterator[torch.Tensor]:
        bins = tell("num_mel_bins", tell("feature_size", 80))
        yield torch.zeros(2, bins, 2 * tell("max_source_positions", 1500))
        yield torch.zeros(2, 64, bins)

    return {
        "input_ids": ids,
        "decoder_input_ids": ids,
        "attention_mask": ones,
        "pixel_values": pixels,
        "input_values": waves,
        "input_features": spectra,
    }


def _sides(model: nn.Module) -> list[tuple[int, int]]:
    """List image sizes to try: what the model says of itself, then common ones."""
    found: dict[tuple[int, int], None] = {}
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    holders: list[Any] = [
        getattr(model, "config", None),
        getattr(getattr(model, "config", None), "vision_config", None),
    ]
    told = [config.get("input_size")] if isinstance(config, Mapping) else []
    for holder in itertools.chain(holders, model.modules()):
        told += [
            getattr(holder, "__dict__", {}).get(key)
            for key in ("image_size", "img_size", "input_size", "input_resolution", "in_size")
        ]
    for size in told:
        if type(size) is int and size > 3:
            found[size, size] = None
        elif isinstance(size, list | tuple) and len(size) >= 2 and all(type(s) is int for s in size[-2:]):
            found[size[-2], size[-1]] = None
        elif isinstance(size, Mapping) and {"height", "width"} <= set(size):
            found[size["height"], size["width"]] = None
    return list(dict.fromkeys([*found, *((s, s) for s in _SIDES)]))


def _plain_inputs(model: nn.Module) -> Iterator[torch.Tensor]:
    """Make one tensor for the model, guessed from the first of its layers of each kind."""
    first: dict[str, int] = {}
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            key, width = f"conv{module.weight.dim() - 2}", module.in_channels
        elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
            key, width = "embedding", module.num_embeddings
        elif isinstance(module, nn.RNNBase):
            key, width = "rows", module.input_size
        elif isinstance(module, nn.Linear):
            key, width = "rows", module.in_features
        else:
            continue
        first.setdefault(key, width)
    for key, width in sorted(first.items(), key=lambda item: item[0] == "rows"):
        if key == "conv2":  # many channels are patches that the model cuts itself
            for channels in dict.fromkeys((width, 3) if width <= 4 else (3, width, 1)):
                for height, breadth in _sides(model):
                    yield torch.zeros(2, channels, height, breadth)
        elif key == "conv3":
            for frames, side in ((16, 112), (8, 224), (16, 224), (32, 32), (64, 64)):
                yield torch.zeros(2, width, frames, side, side)
        elif key == "conv1":
            for length in (16000, 1024, 128):
                yield torch.zeros(2, width, length)
            yield torch.zeros(2, 16000)
            yield torch.zeros(2, 128, width)
        elif key == "embedding":
            yield torch.zeros(2, 8, dtype=torch.long)
        else:
            yield torch.zeros(2, width)
            yield torch.zeros(2, 8, width)
    if "conv2" not in first:  # a model may cut images into rows by itself
        for height, breadth in _sides(model):
            yield torch.zeros(2, 3, height, breadth)
        for frames, side in ((8, 224), (8, 64), (16, 224), (16, 128)):
            yield torch.zeros(2, 3, frames, side, side)
