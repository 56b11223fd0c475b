"""Small models that the tests of heads are about."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from ftkit._heads.layers import Layer, as_layer


def features(width: int = 8) -> nn.Sequential:
    """A small body for images."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


class Net(nn.Module):
    """A body and layers under the names given."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        self.body = features()
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sum what the layers give."""
        x = self.body(x)
        return sum(layer(x) for name, layer in self.named_children() if name != "body")


class TwoOutputs(nn.Module):
    """A body and two layers whose outputs leave apart."""

    def __init__(
        self, first: str, second: str, sizes: tuple[int, int] = (10, 10), *, training_only: bool = False
    ) -> None:
        super().__init__()
        self.body = features()
        self.add_module(first, nn.Linear(8, sizes[0]))
        self.add_module(second, nn.Linear(8, sizes[1]))
        self.names = first, second
        self.training_only = training_only

    def forward(self, x: torch.Tensor) -> object:
        """Give a dictionary, or in eval mode the first output alone."""
        x = self.body(x)
        first, second = (getattr(self, name)(x) for name in self.names)
        return first if self.training_only and not self.training else {"first": first, "second": second}


class Wired(nn.Module):
    """Layers under the names given, and a forward that calls ``wiring`` with the model and its inputs."""

    wiring: object

    def __init__(self, **parts: object) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def wired(wiring: object, **parts: object) -> Wired:
    """Build a model whose forward has the arguments of ``wiring`` after its first."""
    kind = type("Wired", (Wired,), {"forward": wiring})
    return kind(**parts)


def on_meta(build: object) -> nn.Module:
    """Build a model without memory."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build()


def as_a_layer(module: nn.Module) -> Layer:
    """A module as a layer of a head."""
    layer = as_layer(module, "fc")
    assert layer is not None
    return layer
