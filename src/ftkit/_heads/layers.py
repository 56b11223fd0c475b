"""What a layer is: a module that multiplies by one weight. Which of them a model has, and where."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from ftkit._heads.vocabulary import Role, role
from ftkit._torch import children_of, is_convolution, parameters_of
from ftkit._wording import some

__all__ = [
    "HeadLayer",
    "Layer",
    "Sizes",
    "describe",
    "distinct",
    "has_parameters",
    "has_shapes",
    "holders",
    "layers",
    "own_tensors",
    "read",
    "sizes",
]

T = TypeVar("T")


class Sizes(NamedTuple):
    """How many features or channels a layer takes and gives, and which axis of its weight counts what it gives.

    Where the module does not tell which axis that is, it is not ``sure``: the first, until a run tells.
    """

    inputs: int
    outputs: int
    axis: int
    sure: bool = True


@dataclass(frozen=True, eq=False)
class Layer:
    """A module that multiplies by one weight matrix, kernel or table of directions.

    Attributes:
        names: Every dotted name of its modules in the model.
        modules: The module; several where several have the same parameters.
        sizes: What it takes and gives.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    sizes: Sizes

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

    @property
    def role(self) -> Role | None:
        """What its name says of it."""
        return role(self.name)

    @property
    def inputs(self) -> int:
        """How many features or channels it takes."""
        return self.sizes.inputs

    @property
    def outputs(self) -> int:
        """How many it gives."""
        return self.sizes.outputs

    @property
    def axis(self) -> int:
        """The axis of the weight that counts the outputs."""
        return self.sizes.axis

    def turned(self) -> Layer:
        """Return the layer with inputs and outputs the other way round."""
        return replace(self, sizes=Sizes(self.outputs, self.inputs, 1 - self.axis, self.sizes.sure))

    def is_in(self, name: str) -> bool:
        """Whether the layer is the module of that name, or inside it."""
        return any(known == name or known.startswith(f"{name}.") for known in self.names)


@dataclass(frozen=True, eq=False)
class HeadLayer:
    """One layer of a head: ``layer.outputs == times * classes + extra``.

    Attributes:
        layer: The layer.
        times: Outputs for each class: anchors of a detector, coordinates of a box.
        extra: Outputs beside the classes, such as "no object".
        by_class: Whether the outputs of one class are neighbors (boxes), or those of one anchor.
    """

    layer: Layer
    times: int = 1
    extra: int = 0
    by_class: bool = False

    @property
    def classes(self) -> int:
        """How many classes it has."""
        return (self.layer.outputs - self.extra) // self.times

    def outputs_for(self, classes: int) -> int:
        """How many outputs it has for so many classes."""
        return self.times * classes + self.extra


def layers(model: nn.Module) -> list[Layer]:
    """List the layers of a model in order of registration. Modules that compute with the same parameters are one."""
    found: dict[object, tuple[list[str], list[nn.Module], Sizes]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        known = sizes(module)
        if known is not None:
            same = (type(module), *map(id, own_tensors(module).values()))
            names, modules, _ = found.setdefault(same, ([], [], known))
            names.append(name)
            modules.append(module)
    return [Layer(tuple(names), tuple(distinct(modules)), known) for names, modules, known in found.values()]


def describe(several: Iterable[Layer]) -> str:
    """Write layers down for an error message."""
    return some([f"{one.name!r} ({type(one.module).__name__}, {one.inputs} -> {one.outputs})" for one in several], 6)


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


def holders(model: nn.Module, *names: str) -> list[nn.Module]:
    """The modules on the way to some names, each once, the model first."""
    stems = [name.split(".")[:-1] for name in ("", *names)]
    return distinct(model.get_submodule(".".join(stem[:depth])) for stem in stems for depth in range(len(stem) + 1))


def has_parameters(module: nn.Module) -> bool:
    """Whether there is a parameter anywhere in a module."""
    return next(module.parameters(), None) is not None


def has_shapes(module: nn.Module) -> bool:
    """Whether every parameter that a module itself has got its shape already, as those of a lazy one have not."""
    uninitialized = nn.parameter.UninitializedParameter
    return not any(isinstance(value, uninitialized) for value in parameters_of(module).values())


# ---- the weight and the sizes of one module

_NO_LAYERS = (
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    parametrize.ParametrizationList,
    torch.jit.ScriptModule,
)
_PARAMETRIZATIONS = "parametrizations"  # the child in which torch.nn.utils.parametrize keeps what it computes from


def sizes(module: nn.Module) -> Sizes | None:
    """Return what a layer takes and gives, or None for a module that is no layer."""
    matrix = _weight(module) if not isinstance(module, _NO_LAYERS) and has_shapes(module) else None
    if matrix is None:
        return None
    if is_convolution(module):
        return Sizes(module.in_channels, module.out_channels, int(module.transposed and module.groups == 1))
    if isinstance(module, nn.Linear) or matrix.dim() != 2:
        return Sizes(matrix.shape[1], matrix.shape[0], 0)
    return _sizes_told(module, matrix)


def _sizes_told(module: nn.Module, matrix: torch.Tensor) -> Sizes:
    """Sizes of a layer of someone else's: an attribute tells which axis counts the outputs, or else a bias does."""
    first, second = matrix.shape
    told = {value for key in ("out_features", "nf", "out_channels") if isinstance(value := read(module, key), int)}
    told = told or {value.numel() for value in module.parameters(recurse=False) if value.dim() == 1}
    told &= {first, second}
    sure = len(told) == 1 or first == second
    if read(module, "nf") is not None or told == {second} != {
        first
    }:  # nf: transformers' Conv1D, which is inputs by outputs
        return Sizes(first, second, 1, sure)
    return Sizes(second, first, 0, sure)


def _weight(module: nn.Module) -> torch.Tensor | None:
    """The one weight that a module itself multiplies by; None where there are several, or layers inside."""
    children = children_of(module)
    if any(
        child is not None and name != _PARAMETRIZATIONS and has_parameters(child) for name, child in children.items()
    ):
        return None
    own = parameters_of(module).items()
    found = [value for name, value in own if value is not None and value.dim() >= 2 and not name.endswith("_g")]
    computed = children.get(_PARAMETRIZATIONS)
    if computed is not None:
        with torch.no_grad():
            found += [value for name in children_of(computed) if (value := getattr(module, name)).dim() >= 2]
    return found[0] if len(found) == 1 else None


def own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters that a module itself computes with, under their names in its subtree."""
    found: dict[str, torch.Tensor] = dict(module.named_parameters(recurse=False))
    computed = children_of(module).get(_PARAMETRIZATIONS)
    if computed is not None:
        found |= computed.named_parameters(_PARAMETRIZATIONS)
    return found
