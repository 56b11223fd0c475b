"""What a layer is: a module that multiplies by one weight. Which of them a model has, and where."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from ftkit._heads.vocabulary import FEATURES, role, says
from ftkit._torch import children_of, is_convolution, parameters_of
from ftkit._wording import some

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Layer:
    """A module that multiplies by one weight matrix, kernel or table of directions.

    In a head it has ``times * classes + extra`` outputs.
    """

    names: tuple[str, ...]  # every dotted name of its modules in the model
    modules: tuple[nn.Module, ...]  # several where several have the same parameters
    inputs: int  # how many features or channels it takes
    outputs: int  # and how many it gives
    axis: int  # the axis of the weight that counts the outputs
    sure: bool = True  # whether the module itself tells that axis; otherwise it is the first until a run tells
    times: int = 1  # outputs for each class: anchors of a detector, coordinates of a box
    extra: int = 0  # outputs beside the classes, such as "no object"
    by_class: bool = False  # whether the outputs of one class are neighbors (boxes), or those of one anchor
    from_classes: bool = False  # whether it takes the classes too, and gives as many: a map of classes, a norm of them

    def __str__(self) -> str:
        return f"{self.name!r} ({type(self.module).__name__}, {self.inputs} -> {self.outputs})"

    @property
    def module(self) -> nn.Module:
        """The first of the modules."""
        return self.modules[0]

    @property
    def name(self) -> str:
        """The first of the names."""
        return self.names[0]

    @property
    def holder(self) -> str:
        """The name of the module that holds the first of them."""
        return self.name.rpartition(".")[0]

    def names_classes(self) -> bool:
        """Whether its name speaks of classes."""
        return role(self.name) == "class"

    def names_another(self) -> bool:
        """Whether its name speaks of something else."""
        return role(self.name) == "other"

    def names_features(self) -> bool:
        """Whether its name speaks of features that another layer takes."""
        return says(self.name.rpartition(".")[2], FEATURES)

    @property
    def classes(self) -> int:
        """How many classes its outputs are for."""
        return (self.outputs - self.extra) // self.times

    def outputs_for(self, classes: int) -> int:
        """How many outputs it has for so many classes."""
        return self.times * classes + self.extra

    def row(self, index: int, part: int, classes: int) -> int:
        """Which of its outputs is that of a class by index, for one of its anchors or coordinates."""
        return self.times * index + part if self.by_class else part * classes + index

    def turned(self) -> Layer:
        """Return the layer with inputs and outputs the other way round."""
        return replace(self, inputs=self.outputs, outputs=self.inputs, axis=1 - self.axis)


class Layers(list[Layer]):
    """Some layers of a model."""

    @property
    def names(self) -> list[str]:
        """All names of all of them."""
        return [name for layer in self for name in layer.names]

    def of_size(self, outputs: int) -> Layers:
        """Those with so many outputs."""
        return Layers(layer for layer in self if layer.outputs == outputs)

    def inside(self, name: str) -> Layers:
        """Those that are the module of that name, or in it."""
        return Layers(layer for layer in self if any(f"{known}.".startswith(f"{name}.") for known in layer.names))


def layers(model: nn.Module) -> Layers:
    """List the layers of a model in order of registration. Modules that compute with the same parameters are one."""
    found: dict[object, list[Layer]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        layer = as_layer(module, name)
        if layer is not None:
            found.setdefault((type(module), *map(id, own_parameters(module).values())), []).append(layer)
    return Layers(_as_one(several) if len(several) > 1 else several[0] for several in found.values())


def _as_one(several: list[Layer]) -> Layer:
    names, modules = (layer.name for layer in several), distinct(layer.module for layer in several)
    return replace(several[0], names=tuple(names), modules=tuple(modules))


def describe(several: Iterable[Layer]) -> str:
    """Write layers down for an error message."""
    return some(list(map(str, several)), 6)


def distinct(things: Iterable[T]) -> list[T]:
    """Keep each thing once. They are told apart by identity: ``==`` and ``hash`` of a module are up to its class."""
    return list({id(thing): thing for thing in things}.values())


def read(owner: object, name: str) -> Any:
    """Read an entry of a dictionary, or an attribute of anything else; None where there is none, or no answer."""
    if isinstance(owner, dict):
        return owner.get(name)
    with contextlib.suppress(Exception):  # whatever other people's __getattr__ raises
        return getattr(owner, name, None)
    return None


def self_description(model: nn.Module) -> Mapping[str, Any]:
    """What a model of timm, or of its followers, says of itself: its classifier's name, its images' size."""
    said = read(model, "pretrained_cfg") or read(model, "default_cfg")
    return said if isinstance(said, Mapping) else {}


def holders(model: nn.Module, *names: str) -> list[nn.Module]:
    """The modules on the way to some names, each once, the model first."""
    found = [model]
    for name in names:
        found += itertools.accumulate(name.split(".")[:-1], nn.Module.get_submodule, initial=model)
    return distinct(found)


def has_parameters(module: nn.Module) -> bool:
    """Whether there is a parameter anywhere in a module."""
    return next(module.parameters(), None) is not None


def has_shapes(module: nn.Module) -> bool:
    """Whether every parameter that a module itself has got its shape already, as those of a lazy one have not."""
    uninitialized = nn.parameter.UninitializedParameter
    return not any(isinstance(value, uninitialized) for value in parameters_of(module).values())


def own_tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    """The parameters and buffers of a module itself."""
    return itertools.chain(module.parameters(recurse=False), module.buffers(recurse=False))


def width_of_norm(norm: nn.Module) -> int | None:
    """How many features a norm has; None where it counts something else too."""
    told = read(norm, "num_features") or read(norm, "num_channels") or read(norm, "normalized_shape")
    width = told[0] if isinstance(told, tuple) and len(told) == 1 else told
    return width if isinstance(width, int) else None


def tensors_of(model: nn.Module) -> list[torch.Tensor]:
    """The parameters and buffers in a model, and tensors that are plain attributes of a module."""
    everything = ((*own_tensors(module), *vars(module).values()) for module in model.modules())
    return distinct(one for one in itertools.chain.from_iterable(everything) if isinstance(one, torch.Tensor))


def on_meta(model: nn.Module) -> nn.Module:
    """Copy a module, without the values of its tensors."""
    return copied(model, {id(tensor): like(tensor, tensor.detach().to("meta")) for tensor in tensors_of(model)})


def copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copy a module; ``memo`` has what takes the place of its tensors.

    Raises:
        TypeError: A module gave itself for its copy.
    """
    twin, parts = copy.deepcopy(model, memo), {id(part): part for part in model.modules()}
    for part in twin.modules():
        if id(part) in parts:
            raise TypeError(f"__deepcopy__ of its {type(part).__name__} returns the module itself")
    return twin


def like(old: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Wrap new values as the old ones are: as a parameter, or not."""
    return nn.Parameter(values, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else values


_PARAMETRIZATIONS = "parametrizations"  # the child in which torch.nn.utils.parametrize keeps what it computes from


def own_parameters(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters that a module itself computes with, under their names in its subtree."""
    found: dict[str, torch.Tensor] = {name: value for name, value in parameters_of(module).items() if value is not None}
    computed = children_of(module).get(_PARAMETRIZATIONS)
    return found if computed is None else found | dict(computed.named_parameters(_PARAMETRIZATIONS))


# ---- one module as a layer

_NO_LAYERS = (
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    parametrize.ParametrizationList,
    torch.jit.ScriptModule,
)


def as_layer(module: nn.Module, name: str = "") -> Layer | None:
    """Return a module as a layer, or None where it is none."""
    weight = None if isinstance(module, _NO_LAYERS) or not has_shapes(module) else _weight(module)
    if weight is None:
        return None
    if is_convolution(module):
        axis = int(module.transposed and module.groups == 1)
        return Layer((name,), (module,), module.in_channels, module.out_channels, axis)
    if isinstance(module, nn.Linear) or weight.dim() != 2:
        return Layer((name,), (module,), weight.shape[1], weight.shape[0], axis=0)
    return _as_told(module, name, weight)


def _as_told(module: nn.Module, name: str, matrix: torch.Tensor) -> Layer:
    """A layer of someone else's: an attribute tells which axis counts the outputs, or else a bias does."""
    first, second = matrix.shape
    told = {value for value in (read(module, key) for key in _OUTPUTS) if isinstance(value, int)}
    told = told or {value.numel() for value in module.parameters(recurse=False) if value.dim() == 1}
    told &= {first, second}
    layer = Layer((name,), (module,), second, first, axis=0, sure=first == second or len(told) == 1)
    # nf is an attribute of transformers' Conv1D, whose weight is inputs by outputs
    return layer.turned() if read(module, "nf") is not None or told == {second} != {first} else layer


_OUTPUTS = ("out_features", "nf", "out_channels")


def _computed(steps: nn.Module) -> torch.Tensor:
    """What parametrizations make, without values: to compute it with them may move a spectral norm's estimate."""
    with torch.no_grad(), torch.device("meta"):
        made: torch.Tensor = on_meta(steps).eval()()
    return made


def _weight(module: nn.Module) -> torch.Tensor | None:
    """The one weight that a module itself multiplies by; None where there are several, or layers inside.

    A linear layer of someone's own (LoRA) is known by its ``weight``, whatever matrices it adds to that.
    """
    children = children_of(module)
    computed = children.get(_PARAMETRIZATIONS)
    if any(has_parameters(child) for child in children.values() if child is not None and child is not computed):
        return None
    found: list[torch.Tensor] = [v for n, v in parameters_of(module).items() if v is not None and not n.endswith("_g")]
    if computed is not None:
        found += [_computed(steps) for steps in children_of(computed).values() if steps is not None]
    main = parameters_of(module).get("weight")
    if main is not None and (isinstance(module, nn.Linear) or is_convolution(module)):
        return main
    matrices = [value for value in found if value.dim() >= 2]
    return matrices[0] if len(matrices) == 1 else None
