"""Inputs that a model could take, made up from what it says of itself and from its first layers."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

from ftkit._heads.layers import sizes

__all__ = ["Inputs", "labelled", "stand_in_inputs"]

Inputs: TypeAlias = tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]

_SIDES = (224, 64, 32, 299, 28, 128, 96, 256, 384, 512, 48, 16)


def stand_in_inputs(model: nn.Module) -> Iterator[Inputs]:
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
            made = [list(makers[n]()) for n in chosen]
            for turn in range(max(map(len, made))):
                yield (), {n: values[min(turn, len(values) - 1)] for n, values in zip(chosen, made, strict=True)}
        if "input_ids" in known:  # several texts to choose from
            yield (), {"input_ids": torch.zeros(2, 4, 8, dtype=torch.long)}
    for tensor in _plain_inputs(model):
        yield (tensor,) * max(1, len(required)), {}
    if len(required) > 1:
        several = itertools.product(*(_meant(name, model) for name in required))
        yield from ((values, {}) for values in itertools.islice(several, 64))


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

    def series() -> Iterator[torch.Tensor]:
        yield torch.zeros(2, tell("context_length", 32), tell("num_input_channels", 1))

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
        "past_values": series,
    }


_WORDS: dict[str, Callable[[], torch.Tensor]] = {
    r"len(gth)?s?": lambda: torch.full((2,), 8),
    r"offsets?": lambda: torch.tensor([0, 4]),
    r"mask": lambda: torch.ones(2, 8, dtype=torch.bool),
    r"index|indices": lambda: torch.zeros(2, 2, dtype=torch.long),
    r"adj(acency)?|edges?": lambda: torch.zeros(2, 2),
    r"batch|labels?|targets?": lambda: torch.zeros(2, dtype=torch.long),
}


def _meant(name: str, model: nn.Module) -> Iterable[torch.Tensor]:
    """List what an argument of that name could be, besides others of other kinds."""
    parts = re.split(r"_|(?<=\D)(?=\d)", name.lower())
    for words, make in _WORDS.items():
        if any(re.fullmatch(words, part) for part in parts):
            return [make()]
    tables = sum(isinstance(module, nn.Embedding) for module in model.modules())
    found = [torch.zeros(2, 8, dtype=torch.long), torch.zeros(2, tables, dtype=torch.long)] if tables else []
    norm = next((module for module in model.modules() if isinstance(module, nn.BatchNorm1d)), None)
    found += [] if norm is None else [torch.zeros(2, norm.num_features)]
    widths = {module.in_features: None for module in model.modules() if isinstance(module, nn.Linear)}
    found += [torch.zeros(2, width) for width in itertools.islice(widths, 4)]
    for tensor in _plain_inputs(model):
        if all(tensor.shape[:2] != other.shape[:2] or tensor.dim() != other.dim() for other in found):
            found.append(tensor)
    return found


def labelled(model: nn.Module, inputs: Inputs, outputs: Iterable[torch.Size]) -> Iterator[Inputs]:
    """Make up the labels, by the shapes of the outputs, with which a model that takes some would compute its loss."""
    args, kwargs = inputs
    free = list(inspect.signature(model.forward).parameters)[len(args) :]
    wanted = [n for n in free if n not in kwargs and re.search(r"(^|_)(labels?|targets?|target_values)$", n)]
    if not wanted:
        return
    shapes: dict[tuple[int, ...], None] = {}
    for shape in outputs:
        shapes[tuple(shape[:1] + shape[2:] if len(shape) > 3 else shape[:-1])] = None
    shapes |= {(value.shape[0], *value.shape[-2:]): None for value in (*args, *kwargs.values()) if value.dim() == 4}
    kinds = [(shape, torch.long) for shape in itertools.islice(shapes, 3)]
    kinds += [(tuple(shape), torch.float) for shape in itertools.islice(outputs, 1)]
    several = itertools.product(kinds, repeat=len(wanted))
    for chosen in itertools.islice(several, 16):
        labels = (torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in chosen)
        yield args, kwargs | dict(zip(wanted, labels, strict=True))


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
        elif (layer := sizes(module)) is not None:
            key, width = "rows", layer[0]
            if not layer[3]:
                first.setdefault("turned rows", layer[1])
        else:
            continue
        first.setdefault(key, width)
    for key, width in sorted(first.items(), key=lambda item: item[0].endswith("rows")):
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
            yield torch.zeros(8, dtype=torch.long)
        else:
            yield torch.zeros(2, width)
            yield torch.zeros(2, 8, width)
    if "conv2" not in first:  # a model may cut images into rows by itself
        for height, breadth in _sides(model):
            yield torch.zeros(2, 3, height, breadth)
        for frames, side in ((8, 224), (8, 64), (16, 224), (16, 128)):
            yield torch.zeros(2, 3, frames, side, side)
