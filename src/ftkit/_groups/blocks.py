"""The last blocks of a model, as a selector."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn

from ftkit._arguments import whole_number
from ftkit._groups.layers import head_of, is_list, is_row, kernels_of
from ftkit._groups.order import order_of
from ftkit._heads.replace import as_inputs
from ftkit._models.dryrun import alone
from ftkit._models.outline import outermost
from ftkit._torch import is_norm
from ftkit._wording import plural
from ftkit.errors import SelectionError
from ftkit.selection import unwrap


@alone()
def last_blocks(model: nn.Module, count: int, *, example_inputs: Any = None) -> list[str]:
    """Return the names of a model's last blocks and everything after them, including the head, for use as a selector.

    Blocks are the repeated parts of a network, such as ``layer4.1`` or ``blocks.11``; in a network without any, its
    layers. Their order is that in which data pass them, found as in :func:`param_groups`.

    Args:
        model: Any module; ``DistributedDataParallel`` and ``torch.compile`` wrappers are looked through.
        count: Number of blocks, at least 1.
        example_inputs: Inputs of the model, if they can't be made up, as for :func:`find_head`.

    Returns:
        Names of modules, and of parameters outside of them.

    Raises:
        SelectionError: The model has fewer blocks, or its last ones run in parallel with others, so none is the last.
        HeadError: The model does not run on ``example_inputs``.
        FtkitError: ``count`` is not a whole number of at least 1.

    Example:
        >>> import torch
        >>> from ftkit import freeze_except, last_blocks
        >>> block = lambda: torch.nn.TransformerEncoderLayer(4, nhead=1, dim_feedforward=8)
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), *(block() for _ in range(6)), torch.nn.Linear(4, 2))
        >>> last_blocks(model, 2)
        ['5', '6', '7']
        >>> print(freeze_except(model, last_blocks(model, 2)))
        froze 50 parameter tensors: 0, 1, 2, 3, 4
        trainable now: 354 of 1,058 parameters (33.5%)
        held in eval mode: 41 modules
    """
    model = unwrap(model)
    count = whole_number("The number of blocks", count, least=1)
    given = as_inputs(example_inputs)
    layers, head = order_of(model, given, trust=False).layers, set(head_of(model, given))
    places = {parameter: place for place, layer in enumerate(layers) for parameter in layer}
    blocks = [set(block.parameters()) for block in _blocks(model, kernels_of(model))]
    blocks = [block for block in blocks if not block & head] or [set(layer) for layer in layers if not head & {*layer}]
    spans = [(min(found), max(found)) for found in ({places[one] for one in block} for block in blocks)]
    starts = sorted({start for start, _ in spans})
    if count > len(starts):
        raise SelectionError(
            f"Expected a {type(model).__name__} with {plural(count, 'block')} or more, found {len(starts)}. "
            "Name the parts to train instead."
        )
    first = starts[-count]
    if any(start < first <= end for start, end in spans):
        raise SelectionError(
            f"The last {plural(count, 'block')} of this {type(model).__name__} can't be told from others, which run "
            "in parallel with them. Name the parts to train instead."
        )
    chosen = {id(parameter) for layer in layers[first:] for parameter in layer}
    names = outermost(model, {name: p for name, p in model.named_parameters() if id(p) in chosen})
    if names != [""]:
        return names
    own = (name for name, _ in model.named_parameters(recurse=False))
    return [*own, *(name for name, child in model.named_children() if any(True for _ in child.parameters()))]


def _blocks(module: nn.Module, total: int, *, in_stage: bool = False) -> list[nn.Module]:
    """The members of the lists in a module, unless they are stages, or most of the ``total`` kernels of the model."""
    found: list[nn.Module] = []
    for child in (child for child in module.children() if kernels_of(child) > 1):
        if not (is_list(module) or is_row(module)) or 2 * kernels_of(child) >= total:
            found += _blocks(child, total, in_stage=in_stage) or ([child] if is_list(module) or is_row(module) else [])
        elif is_list(child) or is_row(child):
            found += _blocks(child, total, in_stage=in_stage) if _has_two_of_a_kind(child) else [child]
        else:
            stage = None if in_stage else _list_that_fills(child)
            found += _blocks(stage, total, in_stage=True) if stage else [child]
    return found


def _list_that_fills(stage: nn.Module) -> nn.Module | None:
    """The list of blocks that makes up most of a module, as in a stage of Swin; experts have no norms."""
    for table in filter(is_list, stage.children()):
        normed = [block for block in table.children() if not is_list(block) and any(map(is_norm, block.modules()))]
        if _has_two_of_a_kind(table) and normed and 2 * kernels_of(table) >= kernels_of(stage):
            return table
    return None


def _has_two_of_a_kind(table: nn.Module) -> bool:
    kinds = Counter(type(child) for child in table.children() if kernels_of(child) > 1)
    return max(kinds.values(), default=0) > 1
