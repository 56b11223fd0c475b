"""The layers of a model, as learning rates rise along them from its input to its head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized

from ftkit._heads.decide import find_layers
from ftkit._heads.inputs import Inputs
from ftkit._heads.layers import Layer
from ftkit._heads.refusals import DoubtError
from ftkit._models.dryrun import alone
from ftkit._torch import is_norm
from ftkit.errors import HeadError
from ftkit.selection import unwrap


def is_kernel(parameter: nn.Parameter) -> bool:
    """Tell a weight, of two dimensions and more, from biases, scales and the like; what is lazy will be a weight."""
    return isinstance(parameter, UninitializedParameter) or parameter.ndim >= 2


def layers_of(model: nn.Module, head: list[nn.Parameter] | None = None) -> list[list[nn.Parameter]]:
    """Return the parameters by layer, in the order in which the model registers its parts, the head on top.

    A norm goes with the layer before it, as in timm; so do the tokens and positions that a module of parts holds. What
    comes before the first layer goes with that.

    Args:
        model: The model, not wrapped.
        head: The parameters of its head, where they are known already.

    Example:
        >>> import torch
        >>> from ftkit._groups.layers import layers_of
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 1))
        >>> [[tuple(parameter.shape) for parameter in layer] for layer in layers_of(model)]
        [[(3, 2), (3,), (3,), (3,)], [(1, 3), (1,)]]
    """
    layers: list[list[nn.Parameter]] = [[]]
    begun = False
    for parameters, begins in _pieces(model, head_of(model) if head is None else head):
        if begins and begun:
            layers.append([])
        begun |= begins
        layers[-1] += parameters
    return layers


def _pieces(model: nn.Module, head: list[nn.Parameter]) -> Iterator[tuple[list[nn.Parameter], bool]]:
    """Yield all parameters of a model, and with each few of them whether a layer begins there; the head comes last."""
    inside = set(head)
    for parameters, is_layer in parts_of(model):
        rest = [parameter for parameter in parameters if parameter not in inside]
        yield rest, is_layer and any(map(is_kernel, rest))
    yield head, bool(head)


def parts_of(model: nn.Module, *, rows: bool = False) -> Iterator[tuple[list[nn.Parameter], bool]]:
    """Yield the parameters of a model, part by part, each time with whether they are one that stays whole.

    With ``rows``, a row of blocks is taken apart like a list. The order of registration does without: optimizers in
    files of older versions have groups of such layers, which newcomers join.
    """
    return _taken_apart(_Part(model, kernels_of(model), inside_list=False, rows=rows))


@alone()
def head_of(model: nn.Module, given: Inputs | None = None) -> list[nn.Parameter]:
    """The parameters of all layers that make the outputs, none where the model has no head or hides it."""
    try:
        layers: list[Layer] = find_layers(unwrap(model), given).layers
    except DoubtError as several:  # a head for each task
        layers = several.layers
    except HeadError:
        return []
    return [parameter for layer in layers for parameter in layer.module.parameters()]


class _Part(NamedTuple):
    """A module on the way down from the model, which has ``total`` kernels."""

    module: nn.Module
    total: int
    inside_list: bool
    rows: bool
    in_pieces: bool = False  # whether it is one of the blocks that a list has in pieces


def _taken_apart(part: _Part) -> Iterator[tuple[list[nn.Parameter], bool]]:
    """Yield the parameters of a part, or of those inside it, each time with whether they are a layer."""
    opens = not any(rule(part) for rule in _ONE_LAYER) and any(rule(part) for rule in _SEVERAL_LAYERS)
    yield list(part.module.parameters(recurse=not opens)), not opens
    inside_list = part.inside_list or is_list(part.module)
    in_pieces = part.rows and _lists_blocks_in_pieces(part.module)
    for child in _children(part.module) if opens else ():
        yield from _taken_apart(_Part(child, part.total, inside_list, part.rows, in_pieces))


def _has_no_parts(part: _Part) -> bool:
    """A ``Linear``: no child has parameters."""
    return not _children(part.module)


def _is_parametrized(part: _Part) -> bool:
    """A weight-normed ``Linear``: its weight lies in children, its bias does not."""
    return is_parametrized(part.module)


def _has_one_kernel(part: _Part) -> bool:
    """A convolution with its norm; not a list of norms, which are used in turn, where rows count."""
    return kernels_of(part.module) < 2 and not (part.rows and isinstance(part.module, nn.ModuleList))


def _is_in_pieces(part: _Part) -> bool:
    """A list of attention and feed-forward in the list of such blocks, where rows count: vit-pytorch's transformers."""
    return part.in_pieces


def _is_most_of_the_model(part: _Part) -> bool:
    """The model itself, and the backbone in it."""
    return 2 * kernels_of(part.module) >= part.total


def _is_list_of_parts(part: _Part) -> bool:
    """ResNet's ``layer1``, the ``blocks`` of a ViT."""
    return is_list(part.module)


def _is_stage(part: _Part) -> bool:
    """A stage of Swin or ConvNeXt, which holds a list of blocks; a block itself does not.

    Deep inside a block there may be lists too, but of branches or experts that work side by side. So once inside a
    list, only a list of blocks that the module itself holds counts.
    """
    return any(map(_lists_blocks, part.module.children() if part.inside_list else part.module.modules()))


def _is_row_to_open(part: _Part) -> bool:
    """A stage of timm's RegNet, where rows count."""
    return part.rows and is_row(part.module)


# A part opens if none of the first and one of the second is true of it.
_ONE_LAYER = (_has_no_parts, _is_parametrized, _has_one_kernel, _is_in_pieces)
_SEVERAL_LAYERS = (_is_most_of_the_model, _is_list_of_parts, _is_stage, _is_row_to_open)


def _children(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.children() if next(child.parameters(), None) is not None]


def kernels_of(module: nn.Module) -> int:
    """How many weights a module has, biases and scales left out."""
    return sum(map(is_kernel, module.parameters()))


def is_list(module: nn.Module) -> bool:
    """Tell a module of torch's that only holds others."""
    return isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)


def is_row(module: nn.Module) -> bool:
    """Tell a module that is no list, but consists of blocks of one kind under names of their own."""
    children = [] if is_list(module) else _children(module)
    kinds = set(map(type, children))
    return len(children) > 1 == len(kinds) and all(map(_is_block, children)) and not list(module.parameters(False))


def _lists_blocks(module: nn.Module) -> bool:
    """Tell whether a module is a list with two blocks of a kind."""
    kinds = Counter(map(type, filter(_is_block, module.children()))) if is_list(module) else Counter()
    return max(kinds.values(), default=0) >= 2


def _lists_blocks_in_pieces(module: nn.Module) -> bool:
    """Tell whether a list has lists alike, each of parts of different kinds; a stage has several of one kind."""
    pieces = [[*map(type, child)] if isinstance(child, nn.ModuleList) else [] for child in module.children()]
    distinct = all(len(kinds) > 1 and len(kinds) == len({*kinds}) for kinds in pieces)
    return isinstance(module, nn.ModuleList) and len(pieces) > 1 and distinct and pieces.count(pieces[0]) == len(pieces)


def _is_block(module: nn.Module) -> bool:
    return not is_list(module) and kernels_of(module) >= 2 and any(map(is_norm, module.modules()))
