"""Inputs that a model could take, made up from what it says of itself and from its first layers."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from ftkit._heads.layers import as_layer, read, self_description
from ftkit._models.dryrun import tensors_in

Inputs: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]

_COMBINATIONS, _LABELINGS = 64, 16  # at most so many, as each costs a run


def possible_inputs(model: nn.Module) -> Iterator[Inputs]:
    """Make up inputs that the model could take, the likeliest first."""
    named = [p for p in inspect.signature(model.forward).parameters.values() if p.kind not in _VARIADIC]
    required = [p.name for p in named if p.default is p.empty]
    yield from _by_known_names(model, [p.name for p in named], required)
    for tensor in itertools.chain(_as_told(model), _by_layers(model)):
        yield (tensor,) * max(1, len(required)), {}
    if len(required) > 1:
        several = itertools.product(*(_meant(name, model) for name in required))
        yield from zip(itertools.islice(several, _COMBINATIONS), itertools.repeat({}))


def labeled(model: nn.Module, inputs: Inputs, outputs: list[torch.Size]) -> Iterator[Inputs]:
    """Make up the labels, by the shapes of the outputs, with which a model that takes some would compute its loss."""
    args, kwargs = inputs
    free = list(inspect.signature(model.forward).parameters)[len(args) :]
    wanted = [name for name in free if name not in kwargs and _IS_LABELS.search(name)]
    shapes = list(map(_without_classes, outputs))
    images = (tensor for tensor in tensors_in(inputs) if tensor.dim() == 4)
    shapes += [(tensor.shape[0], *tensor.shape[-2:]) for tensor in images]  # of their masks
    kinds = [(shape, torch.long) for shape in [*dict.fromkeys(shapes)][:3]]
    kinds += [(tuple(shape), torch.float) for shape in outputs[:1]]
    for chosen in itertools.islice(itertools.product(kinds, repeat=len(wanted)), _LABELINGS) if wanted else ():
        labels = (torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in chosen)
        yield args, kwargs | dict(zip(wanted, labels, strict=True))


def _without_classes(shape: torch.Size) -> tuple[int, ...]:
    """The shape of class indices for such scores: classes are the second axis of images, or else the last one."""
    return (*shape[:1], *shape[2:]) if len(shape) > 3 else tuple(shape[:-1])


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_IS_LABELS = re.compile(r"(^|_)(labels?|targets?|target_values)$")

_Shapes: TypeAlias = Iterable[tuple[int, ...]]


def _numbers(shapes: _Shapes) -> Iterator[torch.Tensor]:
    return map(torch.zeros, shapes)


def _indices(*shapes: tuple[int, ...]) -> Iterator[torch.Tensor]:
    return (torch.zeros(shape, dtype=torch.long) for shape in shapes)


# ---- by the names of arguments that the transformers family uses


def _by_known_names(model: nn.Module, names: list[str], required: list[str]) -> Iterator[Inputs]:
    """Give a model those of its arguments that it must have, or one; then all that are known."""
    known = list(filter(_NAMED.__contains__, names))
    main = read(model, "main_input_name")
    least = [name for name in known if name in required] or ([main] if main in known else known[:1])
    most = [name for name in known if name != "attention_mask"]
    yield from _in_turn(model, least)
    if len(most) > len(least):
        yield from _in_turn(model, most)
    if "input_ids" in known:  # several texts to choose from
        yield (), {"input_ids": torch.zeros(2, 4, 8, dtype=torch.long)}


def _in_turn(model: nn.Module, names: list[str]) -> Iterator[Inputs]:
    """Give all that each argument could be, in parallel; the last of those with fewer stays."""
    made = [list(_NAMED[name](model)) for name in names]
    for turn in range(max(map(len, made), default=0)):
        yield (), {name: values[min(turn, len(values) - 1)] for name, values in zip(names, made, strict=True)}


def _told(model: nn.Module, key: str, default: Any) -> Any:
    """Read a size off a model's configuration."""
    config = read(model, "config")
    for part in (config, read(config, "vision_config"), read(config, "text_config")):
        told = read(part, key)
        if told is not None:
            return told
    return default


def _pixels(model: nn.Module) -> _Shapes:
    channels, frames = _told(model, "num_channels", 3), _told(model, "num_frames", 8)
    for side in _sides(model):
        yield 2, channels, *side
        yield 2, frames, channels, *side


def _waves(model: nn.Module) -> _Shapes:
    bins, length = _told(model, "num_mel_bins", 80), _told(model, "max_length", 1024)
    return (2, 16000), (2, length, bins), (2, 1, length, bins)


def _spectra(model: nn.Module) -> _Shapes:
    bins = _told(model, "num_mel_bins", _told(model, "feature_size", 80))
    return (2, bins, 2 * _told(model, "max_source_positions", 1500)), (2, 64, bins)


def _series(model: nn.Module) -> _Shapes:
    return ((2, _told(model, "context_length", 32), _told(model, "num_input_channels", 1)),)


_NAMED: dict[str, Callable[[nn.Module], Iterable[torch.Tensor]]] = {
    "input_ids": lambda _: _indices((2, 8), (1, 8)),
    "decoder_input_ids": lambda _: _indices((2, 8)),
    "attention_mask": lambda _: [torch.ones(2, 8, dtype=torch.long)],
    "pixel_values": lambda model: _numbers(_pixels(model)),
    "input_values": lambda model: _numbers(_waves(model)),
    "input_features": lambda model: _numbers(_spectra(model)),
    "task_inputs": lambda model: _indices((2, _told(model, "task_seq_len", 77))),
    "past_values": lambda model: _numbers(_series(model)),
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


def _meant(name: str, model: nn.Module) -> list[torch.Tensor]:
    """List what an argument of that name could be: what a word in it says, or else all that a layer could take."""
    parts = re.split(r"_|(?<=\D)(?=\d)", name.lower())
    said = [make() for wording, make in _WORDS.items() if any(re.fullmatch(wording, part) for part in parts)]
    return said[:1] or _for_several_arguments(model)


def _for_several_arguments(model: nn.Module) -> list[torch.Tensor]:
    """List texts, categories and rows as there are layers for them, then one tensor of each other kind."""
    modules = list(model.modules())
    tables = sum(isinstance(module, nn.Embedding) for module in modules)
    widths = [module.num_features for module in modules if isinstance(module, nn.BatchNorm1d)][:1]
    widths += [*dict.fromkeys(module.in_features for module in modules if isinstance(module, nn.Linear))][:4]
    found = [*_indices((2, 8), (2, tables))] if tables else []
    found += _numbers((2, width) for width in widths)
    for tensor in _by_layers(model):
        if (tensor.dim(), tensor.shape[:2]) not in [(other.dim(), other.shape[:2]) for other in found]:
            found.append(tensor)
    return found


# ---- by what the model says of recordings: so many channels, for so many steps

_CHANNELS = ("n_chans", "n_channels", "in_chans", "in_channels", "c_in")
_STEPS = ("n_times", "n_timesteps", "n_samples", "seq_len", "seq_length")


def _as_told(model: nn.Module) -> Iterator[torch.Tensor]:
    """Make the recording whose channels and steps the model has noted, such as an EEG."""
    channels, steps = (
        next((told for key in keys if type(told := read(model, key)) is int and told > 0), None)
        for keys in (_CHANNELS, _STEPS)
    )
    return _numbers([(2, channels, steps)] if channels and steps else [])


# ---- by the first layer of each kind

_Maker: TypeAlias = Callable[[nn.Module, int], Iterable[torch.Tensor]]

_LENGTHS = (16000, 1024, 128)  # of sounds: a second, and features of one
_CLIPS = ((16, 112), (8, 224), (16, 224), (32, 32), (64, 64))  # frames, and their side
_CLIPS_IN_ROWS = ((8, 224), (8, 64), (16, 224), (16, 128))


def _images(model: nn.Module, width: int) -> Iterator[torch.Tensor]:
    channels = (width, 3) if width <= 4 else (3, width, 1)  # many channels are patches that the model cuts itself
    return _numbers((2, count, *side) for count in dict.fromkeys(channels) for side in _sides(model))


def _sounds(_: nn.Module, width: int) -> Iterator[torch.Tensor]:
    return _numbers([*((2, width, length) for length in _LENGTHS), (2, 16000), (2, 128, width)])


def _texts(_: nn.Module, __: int) -> Iterator[torch.Tensor]:
    return _indices((2, 8), (8,))


def _clips(_: nn.Module, width: int) -> Iterator[torch.Tensor]:
    return _numbers((2, width, frames, side, side) for frames, side in _CLIPS)


def _rows(_: nn.Module, width: int) -> Iterator[torch.Tensor]:
    return _numbers([(2, width), (2, 8, width)])


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
        for maker, turned, width in _taken_by(module):
            first.setdefault((maker, turned), width)
    for (maker, _), width in sorted(first.items(), key=lambda item: item[0][0] is _rows):
        yield from maker(model, width)
    if (_images, False) not in first:  # a model may cut images or clips into rows by itself
        yield from _images(model, 3)
        yield from _numbers((2, 3, frames, side, side) for frames, side in _CLIPS_IN_ROWS)
        yield from _numbers([(2, 3, 128), (2, 1, 128)])


def _taken_by(module: nn.Module) -> Sequence[tuple[_Maker, bool, int]]:
    """What a module takes, and how much; both ways round where it doesn't tell its inputs from its outputs."""
    for kind, attribute, maker in _ENTRIES:
        if isinstance(module, kind):
            return [(maker, False, getattr(module, attribute))]
    layer = as_layer(module)
    if layer is None:
        return []
    return [(_rows, False, layer.inputs), (_rows, True, layer.outputs)][: 1 if layer.sure else 2]


# ---- sizes of images

_SIDES = (224, 64, 32, 299, 28, 128, 96, 256, 384, 512, 48, 16)
_SIZE_KEYS = ("image_size", "img_size", "input_size", "input_resolution", "in_size")


def _sides(model: nn.Module) -> list[tuple[int, int]]:
    """List image sizes to try, height and width: what the model says of itself, then common ones."""
    config = read(model, "config")
    places = (config, read(config, "vision_config"), *model.modules())
    told = [self_description(model).get("input_size")]
    told += [getattr(place, "__dict__", {}).get(key) for place in places for key in _SIZE_KEYS]
    return list(dict.fromkeys([*filter(None, map(_as_side, told)), *zip(_SIDES, _SIDES, strict=True)]))


def _as_side(size: Any) -> tuple[int, int] | None:
    """Read height and width from what a model calls its image size; None if it is something else."""
    if isinstance(size, Mapping):
        size = [size.get("height"), size.get("width")]
    sides = [size, size] if type(size) is int and size > 3 else size
    if not isinstance(sides, list | tuple) or any(type(side) is not int for side in sides[-2:]) or len(sides) < 2:
        return None
    return sides[-2], sides[-1]
