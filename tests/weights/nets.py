"""Small models, and their weights under other names."""

from __future__ import annotations

import torch
from torch import nn


class Net(nn.Module):
    """A small model with all that models have: convolution, norm, buffers, a tied weight."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.body = nn.Linear(4, 8)
        self.head = nn.Linear(8, classes)
        self.register_buffer("scale", torch.ones(2))
        self.register_buffer("passing", torch.ones(2), persistent=False)


def filled(model: nn.Module, value: float) -> nn.Module:
    """The model with every value the same."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(value)
    return model


def holds(model: nn.Module, value: float) -> bool:
    """Tell whether every value of a model is this."""
    return all(bool((tensor == value).all()) for tensor in model.state_dict().values())


def sevens(prefix: str = "") -> dict[str, torch.Tensor]:
    """A state dict of sevens, with a prefix before every name."""
    return {prefix + name: tensor for name, tensor in filled(Net(), 7).state_dict().items()}
