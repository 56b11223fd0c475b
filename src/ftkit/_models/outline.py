"""Name many parameters in few words."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


def outermost(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Return the names of the outermost modules whose parameters are all among these, and of the parameters left over.

    Example:
        >>> import torch
        >>> from ftkit._models.outline import outermost
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        >>> outermost(model, {name: p for name, p in model.named_parameters() if name != "1.bias"})
        ['0', '1.weight']
        >>> outermost(model, dict(model.named_parameters()))
        ['']
    """
    wanted = set(parameters.values())
    names: list[str] = []
    covered: set[nn.Parameter] = set()
    for name, module in model.named_modules():
        own = set(module.parameters())
        if own <= wanted and not own <= covered:
            names.append(name)
            covered |= own
    return [*names, *(name for name, parameter in parameters.items() if parameter not in covered)]
