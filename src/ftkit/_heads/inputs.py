"""Inputs that a model could take, made up from what it says of itself and from its first layers."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

from ftkit._heads.layers import read, sizes

__all__ = ["Inputs", "labeled", "possible_inputs"]

Inputs: TypeAlias = tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]


def possible_inputs(model: nn.Module) -> Iterator[Inputs]:
    """Make up inputs that the model could take, the likeliest first."""
    signature = inspect.signature(model.forward).parameters.values()
    named = [p for p in signature if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    required = [p.name for p in named if p.default is p.empty]
    yield from _by_known_names(model, [p.name for p in named], required)
    for tensor in _by_layers(model):
        yield (tensor,) * max(1, len(required)), {}
    if len(required) > 1:
        several = itertools.product(*(_meant(name, model) for name in required))
        yield from ((values, {}) for values in itertools.islice(several, _COMBINATIONS))


def labeled(model: nn.Module, inputs: Inputs, outputs: list[torch.Size]) -> Iterator[Inputs]:
    """Make up the labels, by the shapes of the outputs, with which a model that takes some would compute its loss."""
    args, kwargs = inputs
    free = list(inspect.signature(model.forward).parameters)[len(args) :]
    wanted = [n for n in free if n not in kwargs and re.search(r"(^|_)(labels?|targets?|target_values)$", n)]
    if not wanted:
        return
    images = [value for value in (*args, *kwargs.values()) if value.dim() == 4]
    shapes = [_without_classes(shape) for shape in outputs]
    shapes += [(image.shape[0], *image.shape[-2:]) for image in images]
    kinds = [(shape, torch.long) for shape in [*dict.fromkeys(shapes)][:3]]
    kinds += [(tuple(shape), torch.float) for shape in outputs[:1]]
    for chosen in itertools.islice(itertools.product(kinds, repeat=len(wanted)), _LABELINGS):
        labels = (torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in chosen)
        yield args, kwargs | dict(zip(wanted, labels, strict=True))


def _without_classes(shape: torch.Size) -> tuple[int, ...]:
    """The shape of class indices for such scores: classes are the second axis of images, or else the last one."""
    return (*shape[:1], *shape[2:]) if len(shape) > 3 else tuple(shape[:-1])


# Each attempt costs a run on fakes, so there is an end to what several arguments are combined to.
_COMBINATIONS, _LABELINGS = 64, 16


# ---- by the names of arguments that the transformers family uses


def _by_known_names(model: nn.Module, names: list[str], required: list[str]) -> Iterator[Inputs]:
    known = [name for name in names if name in _MAKERS]
    if not known:
        return
    main = getattr(model, "main_input_name", None)
    least = [name for name in known if name in required] or [main if main in known else known[0]]
    most = [name for name in known if name != "attention_mask"]
    for chosen in [least, most] if len(most) > len(least) else [least]:
        made = [list(_MAKERS[name](model)) for name in chosen]
        for turn in range(max(map(len, made))):
            yield (), {name: values[min(turn, len(values) - 1)] for name, values in zip(chosen, made, strict=True)}
    if "input_ids" in known:  # several texts to choose from
        yield (), {"input_ids": torch.zeros(2, 4, 8, dtype=torch.long)}


def _tell(model: nn.Module, key: str, default: Any) -> Any:
    """Read a size off a model's configuration."""
    config = getattr(model, "config", None)
    told = (read(part, key) for part in (config, read(config, "vision_config"), read(config, "text_config")))
    return next((value for value in told if value is not None), default)


def _ids(_: nn.Module) -> Iterator[torch.Tensor]:
    yield torch.zeros(2, 8, dtype=torch.long)


def _mask(_: nn.Module) -> Iterator[torch.Tensor]:
    yield torch.ones(2, 8, dtype=torch.long)


def _pixels(model: nn.Module) -> Iterator[torch.Tensor]:
    channels, frames = _tell(model, "num_channels", 3), _tell(model, "num_frames", 8)
    for height, width in _sides(model):
        yield torch.zeros(2, channels, height, width)
        yield torch.zeros(2, frames, channels, height, width)


def _waves(model: nn.Module) -> Iterator[torch.Tensor]:
    bins, length = _tell(model, "num_mel_bins", 80), _tell(model, "max_length", 1024)
    yield torch.zeros(2, 16000)
    yield torch.zeros(2, length, bins)
    yield torch.zeros(2, 1, length, bins)


def _series(model: nn.Module) -> Iterator[torch.Tensor]:
    yield torch.zeros(2, _tell(model, "context_length", 32), _tell(model, "num_input_channels", 1))


def _spectra(model: nn.Module) -> Iterator[torch.Tensor]:
    bins = _tell(model, "num_mel_bins", _tell(model, "feature_size", 80))
    yield torch.zeros(2, bins, 2 * _tell(model, "max_source_positions", 1500))
    yield torch.zeros(2, 64, bins)


_MAKERS: dict[str, Callable[[nn.Module], Iterator[torch.Tensor]]] = {
    "input_ids": _ids,
    "decoder_input_ids": _ids,
    "attention_mask": _mask,
    "pixel_values": _pixels,
    "input_values": _waves,
    "input_features": _spectra,
    "past_values": _series,
}


# ---- by words in the names of several arguments

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
    modules = list(model.modules())
    tables = sum(isinstance(module, nn.Embedding) for module in modules)
    found = [torch.zeros(2, 8, dtype=torch.long), torch.zeros(2, tables, dtype=torch.long)] if tables else []
    rows = [module.num_features for module in modules if isinstance(module, nn.BatchNorm1d)][:1]
    rows += [*dict.fromkeys(module.in_features for module in modules if isinstance(module, nn.Linear))][:4]
    found += [torch.zeros(2, width) for width in rows]
    for tensor in _by_layers(model):
        if all((tensor.dim(), tensor.shape[:2]) != (other.dim(), other.shape[:2]) for other in found):
            found.append(tensor)
    return found


# ---- by the first layer of each kind


def _images(model: nn.Module, width: int) -> Iterator[torch.Tensor]:
    # Many channels are patches that the model cuts itself.
    for channels in dict.fromkeys((width, 3) if width <= 4 else (3, width, 1)):
        for height, breadth in _sides(model):
            yield torch.zeros(2, channels, height, breadth)


def _clips(_: nn.Module, width: int) -> Iterator[torch.Tensor]:
    for frames, side in ((16, 112), (8, 224), (16, 224), (32, 32), (64, 64)):
        yield torch.zeros(2, width, frames, side, side)


def _sounds(_: nn.Module, width: int) -> Iterator[torch.Tensor]:
    for length in (16000, 1024, 128):
        yield torch.zeros(2, width, length)
    yield torch.zeros(2, 16000)
    yield torch.zeros(2, 128, width)


def _texts(_: nn.Module, __: int) -> Iterator[torch.Tensor]:
    yield torch.zeros(2, 8, dtype=torch.long)
    yield torch.zeros(8, dtype=torch.long)


def _rows(_: nn.Module, width: int) -> Iterator[torch.Tensor]:
    yield torch.zeros(2, width)
    yield torch.zeros(2, 8, width)


def _cut_into_rows(model: nn.Module) -> Iterator[torch.Tensor]:
    """What a model without a convolution may cut into rows by itself."""
    for height, breadth in _sides(model):
        yield torch.zeros(2, 3, height, breadth)
    for frames, side in ((8, 224), (8, 64), (16, 224), (16, 128)):
        yield torch.zeros(2, 3, frames, side, side)


_Maker: TypeAlias = Callable[[nn.Module, int], Iterator[torch.Tensor]]
_ENTRIES: tuple[tuple[type[nn.Module], str, _Maker], ...] = (  # each with the attribute that says how much it takes
    (nn.Conv1d, "in_channels", _sounds),
    (nn.Conv2d, "in_channels", _images),
    (nn.Conv3d, "in_channels", _clips),
    (nn.Embedding, "num_embeddings", _texts),
    (nn.EmbeddingBag, "num_embeddings", _texts),
    (nn.RNNBase, "input_size", _rows),
)


def _by_layers(model: nn.Module) -> Iterator[torch.Tensor]:
    """Make one tensor for the model, guessed from the first of its layers of each kind; rows come last."""
    first: dict[tuple[_Maker, bool], int] = {}
    for module in model.modules():
        for maker, width, turned in _taken_by(module):
            first.setdefault((maker, turned), width)
    for (maker, _), width in sorted(first.items(), key=lambda item: item[0][0] is _rows):
        yield from maker(model, width)
    if (_images, False) not in first:
        yield from _cut_into_rows(model)


def _taken_by(module: nn.Module) -> Iterator[tuple[_Maker, int, bool]]:
    """What a module takes, and how much; both ways round where it doesn't tell its inputs from its outputs."""
    for kind, attribute, maker in _ENTRIES:
        if isinstance(module, kind):
            yield maker, getattr(module, attribute), False
            return
    layer = sizes(module)
    if layer is not None:
        yield _rows, layer.inputs, False
        if not layer.sure:
            yield _rows, layer.outputs, True


# ---- sizes of images

_SIDES = (224, 64, 32, 299, 28, 128, 96, 256, 384, 512, 48, 16)
_SIZE_KEYS = ("image_size", "img_size", "input_size", "input_resolution", "in_size")


def _sides(model: nn.Module) -> list[tuple[int, int]]:
    """List image sizes to try, height and width: what the model says of itself, then common ones."""
    said = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    config = getattr(model, "config", None)
    told = [said.get("input_size")] if isinstance(said, Mapping) else []
    for holder in itertools.chain((config, getattr(config, "vision_config", None)), model.modules()):
        told += map(getattr(holder, "__dict__", {}).get, _SIZE_KEYS)
    return list(dict.fromkeys([*filter(None, map(_as_side, told)), *zip(_SIDES, _SIDES, strict=True)]))


def _as_side(size: Any) -> tuple[int, int] | None:
    """Read height and width from what a model calls its image size; None if it is something else."""
    if type(size) is int and size > 3:
        return size, size
    if isinstance(size, list | tuple) and len(size) >= 2 and all(type(side) is int for side in size[-2:]):
        return size[-2], size[-1]
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return size["height"], size["width"]
    return None
