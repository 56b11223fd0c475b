"""Calls from the docs that a strict type checker accepts; ``nox -s types`` checks them, and nothing runs them."""

from __future__ import annotations

import torch
from torch import nn

from ftkit import param_groups


def rates_by_selector(model: nn.Module, head: nn.Linear) -> torch.optim.Optimizer:
    """A dict is invariant in its keys: one of names is no dict of selectors."""
    by_name = {"layer4": 1e-4}
    by_type = {nn.BatchNorm2d: 1e-4}
    param_groups(model, 1e-3, rates={"layer4": 1e-4})
    param_groups(model, 1e-3, rates=by_name)
    param_groups(model, 1e-3, rates=by_type)
    param_groups(model, 1e-3, rates={"layer4": 1e-4, nn.Linear: 0.3, head: 0.4})
    param_groups(model, 1e-3, rates=[("layer4", 1e-4), (nn.Linear, 0.3)])
    return torch.optim.AdamW(param_groups(model, lr=1e-3, layer_decay=0.75))
