"""What a layer is."""

from __future__ import annotations

import torch
from torch import nn

from ftkit import replace_head
from tests.heads.nets import Wired, features, wired


class Turned(nn.Module):
    """A layer that keeps its weight as inputs by outputs, and doesn't say so."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        return x @ self.weight


def test_a_run_tells_which_axis_counts_the_outputs() -> None:
    """Found and named alike; where no run is possible, the model's counter tells."""
    for at in (None, "1"):
        model = nn.Sequential(Turned(12, 8), Turned(8, 5))
        assert replace_head(model, 3, at=at, keep={0: 4}).in_features == 8
        assert model(torch.zeros(2, 12)).shape == (2, 3)
    model = wired(lambda self, x, y, z: x.no_such_method(), last=Turned(8, 5))
    model.num_classes = 5
    assert replace_head(model, 3, at="last").in_features == 8


def test_layers_that_share_their_parameters_are_one() -> None:
    """Two modules around the same tensors, as tied weights of transformers are: both follow, and stay tied."""
    first, second = nn.Linear(8, 5), nn.Linear(8, 5)
    second.weight, second.bias = first.weight, first.bias

    def forward(self: Wired, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        return torch.stack([layer(x) for layer in self.class_embed], 1)

    model = wired(forward, body=features(), class_embed=nn.ModuleList([first, second]))
    assert replace_head(model, 3).names == ("class_embed.0", "class_embed.1")
    assert model.class_embed[0].weight is model.class_embed[1].weight
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 2, 3)
