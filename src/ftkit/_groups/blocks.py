"""The last blocks of a model, as a selector."""

from __future__ import annotations

from collections import Counter

from torch import nn

from ftkit._groups.layers import is_list, kernels_of, layers_of
from ftkit._models.outline import outermost
from ftkit._monitor import whole_number
from ftkit._torch import is_norm
from ftkit._wording import plural
from ftkit.errors import SelectionError
from ftkit.selection import unwrap


def last_blocks(model: nn.Module, count: int) -> list[str]:
    """Name the last blocks of a model and all that comes after them, the head included: a selector for every function.

    Blocks are the repeated parts of a network, such as ``layer4.1`` or ``blocks.11``; in a network without any, its
    layers. Their order is the one by which :func:`param_groups` lowers the rates.

    Args:
        model: Any module; ``DistributedDataParallel`` and ``torch.compile`` wrappers are looked through.
        count: How many blocks, 1 or more.

    Returns:
        Names of modules, and of parameters that stand alone.

    Raises:
        SelectionError: The model has fewer blocks, or its last ones run beside others, so that none is the last.
        FtkitError: ``count`` is no whole number of 1 or more.

    Example:
        >>> import torch
        >>> from ftkit import freeze_except, last_blocks
        >>> block = lambda: torch.nn.TransformerEncoderLayer(4, nhead=1, dim_feedforward=8)
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), *(block() for _ in range(6)), torch.nn.Linear(4, 2))
        >>> last_blocks(model, 2)
        ['5', '6', '7']
        >>> print(freeze_except(model, last_blocks(model, 2)))
        froze 50 parameters: 0, 1, 2, 3, 4
        trainable now: 354 of 1,058 numbers (33.5%)
        held in eval mode: 41 modules
    """
    model = unwrap(model)
    count = whole_number("The number of blocks", count, least=1)
    layers = layers_of(model)
    places = {parameter: place for place, layer in enumerate(layers) for parameter in layer}
    blocks = [{places[parameter] for parameter in block.parameters()} for block in _blocks(model, kernels_of(model))]
    blocks = [block for block in blocks if len(layers) - 1 not in block] or [{place} for place in range(len(layers) - 1)]
    starts = sorted(min(block) for block in blocks)
    if count > len(starts):
        raise SelectionError(
            f"Expected a {type(model).__name__} with {plural(count, 'block')} or more, and found {len(starts)}. "
            "Name the parts to train instead."
        )
    start = starts[-count]
    if starts.count(start) > 1 or any(min(block) < start <= max(block) for block in blocks):
        raise SelectionError(
            f"The last {plural(count, 'block')} of this {type(model).__name__} can't be told from the others, which "
            "run beside them. Name the parts to train instead."
        )
    chosen = {id(parameter) for layer in layers[start:] for parameter in layer}
    return outermost(model, {name: p for name, p in model.named_parameters() if id(p) in chosen})


def _blocks(module: nn.Module, total: int) -> list[nn.Module]:
    """The blocks in a module of a model that has ``total`` kernels: the members of its lists, unless they are stages."""
    found: list[nn.Module] = []
    members = [child for child in module.children() if kernels_of(child) > 1]
    kinds = Counter(map(type, members))
    for child in members:
        inside = _blocks(child, total)
        if is_list(module) and not is_list(child) and 2 * kernels_of(child) < total:
            stage = kinds[type(child)] > 1 and _are_one_list(child, inside)
            found += inside if stage else [child]
        else:
            found += inside or ([child] if is_list(module) else [])
    return found


def _are_one_list(stage: nn.Module, blocks: list[nn.Module]) -> bool:
    """Tell whether blocks with norms, as those of Swin and unlike experts, fill one list inside a module."""
    lists = [table for table in stage.modules() if is_list(table) and not set(blocks).isdisjoint(table.children())]
    return len(lists) == 1 and len(blocks) > 1 and all(any(map(is_norm, block.modules())) for block in blocks)
