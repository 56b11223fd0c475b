"""Models to freeze, and what of them is compared."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import torch
from torch import nn


class Net(nn.Module):
    """A backbone with a norm and noise, and a head."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, *noise: nn.Module) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), *noise, nn.Conv2d(8, 8, 3), norm(8))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8) * 3 + 1


def step(model: nn.Module, x: torch.Tensor) -> None:
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(x).square().sum().backward()
    optimizer.step()


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(before: dict[str, torch.Tensor], module: nn.Module) -> bool:
    now = module.state_dict()
    return before.keys() == now.keys() and all(torch.equal(tensor, now[name]) for name, tensor in before.items())


def modes(model: nn.Module) -> list[object]:
    """All that freezing may change, to compare before and after."""
    return [
        *((part.training, list(part._forward_pre_hooks.items()), sorted(vars(part))) for part in model.modules()),
        *(p.requires_grad for p in model.parameters()),
    ]


LEAVES: list[Callable[[], nn.Module]] = [
    lambda: nn.Linear(2, 2),
    lambda: nn.BatchNorm1d(2),
    lambda: nn.BatchNorm1d(2, affine=False),
    lambda: nn.LayerNorm(2),
    lambda: nn.Dropout(0.5),
    lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)),
]


@st.composite
def trees(draw: st.DrawFn) -> nn.Module:
    """Nested Sequentials of layers on two features, with shared layers, fixed parameters, in either mode."""
    layers: list[nn.Module] = [LEAVES[0]()]
    for kind in draw(st.lists(st.integers(0, len(LEAVES)), min_size=1, max_size=8)):
        again = draw(st.integers(0, len(layers) - 1))
        layers.append(LEAVES[kind]() if kind < len(LEAVES) else layers[again])
    while len(layers) > 1 and draw(st.booleans()):
        start = draw(st.integers(0, len(layers) - 2))
        stop = draw(st.integers(start + 1, len(layers)))
        layers[start:stop] = [nn.Sequential(*layers[start:stop])]
    model = nn.Sequential(*layers).train(draw(st.booleans()))
    for parameter in model.parameters():
        parameter.requires_grad_(draw(st.integers(0, 3)) > 0)
    return model


@st.composite
def trees_and_parts(draw: st.DrawFn) -> tuple[nn.Module, list[str]]:
    """A tree and some names in it."""
    model = draw(trees())
    names = [name for name, _ in model.named_modules() if name] + [name for name, _ in model.named_parameters()]
    return model, draw(st.lists(st.sampled_from(names), min_size=1, max_size=3))
