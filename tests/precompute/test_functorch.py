"""Transforms of torch.func around a model that takes rows: of what trains they work, others are refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.utils.data import DataLoader, TensorDataset

from ftkit import FtkitError, freeze_except, precompute

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(X, torch.arange(24))


class Straight(nn.Module):
    """A frozen part and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.after, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        freeze_except(self, "head")

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.after(torch.relu(self.body(x))))


class Around(Straight):
    """With something between, and around."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.body(x))
        return self.head(self.after(torch.tanh(x)) + x)


def weight(model: Any, part: str = "head") -> dict[str, Tensor]:
    return {f"{part}.weight": getattr(model, part).weight.detach()}


def several(model: Any) -> dict[str, Tensor]:
    return {"head.weight": torch.stack([model.head.weight.detach() * at for at in range(3)])}


def dual(model: Any, x: Tensor) -> Any:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(model(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


OF_WHAT_TRAINS: dict[str, Callable[[Any, Tensor], Any]] = {
    "grad": lambda m, x: grad(lambda p: functional_call(m, p, (x,)).pow(2).sum())(weight(m))["head.weight"],
    "jacrev": lambda m, x: jacrev(lambda p: functional_call(m, p, (x,)).sum(0))(weight(m))["head.weight"],
    "jvp": lambda m, x: jvp(lambda p: functional_call(m, p, (x,)), (weight(m),), (weight(m),))[1],
    "vmap": lambda m, x: vmap(lambda p: functional_call(m, p, (x,)))(several(m)),
    "functional_call": lambda m, x: functional_call(m, {"head.weight": m.head.weight * 2}, (x,)),
}
OF_SAMPLES: dict[str, Callable[[Any, Tensor], Any]] = {
    "vmap": lambda m, x: vmap(lambda sample: m(sample[None])[0])(x),
    "grads of samples": lambda m, x: vmap(
        grad(lambda p, one: functional_call(m, p, (one[None],)).pow(2).sum()), in_dims=(None, 0)
    )(weight(m), x)["head.weight"],
}
OF_INPUTS: dict[str, Callable[[Any, Tensor], Any]] = {
    "jacrev": lambda m, x: jacrev(lambda z: m(z).sum(0))(x),
    "jvp": lambda m, x: jvp(m, (x,), (torch.ones_like(x),))[1],
    "dual": dual,
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning")  # by torch's own forward-mode derivatives
@pytest.mark.parametrize("kind", [Straight, Around])
@pytest.mark.parametrize("keys", ["index", "content"])
@pytest.mark.parametrize("way", OF_WHAT_TRAINS)
def test_what_trains_is_transformed(way: str, keys: str, kind: type[Straight], tmp_path: Path) -> None:
    """In the first step, and when it is known what comes."""
    model = kind()
    plain, loader = copy.deepcopy(model), DataLoader(DATA, 12)
    with precompute(model, DATA if keys == "index" else loader, tmp_path, batch_size=12) as cached:
        for _ in range(3):
            inputs = next(iter(cached.loader(batch_size=12)))[0] if keys == "index" else X[:12]
            torch.testing.assert_close(OF_WHAT_TRAINS[way](model, inputs), OF_WHAT_TRAINS[way](plain, X[:12]))
            torch.testing.assert_close(model(inputs), plain(X[:12]))


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning")
@pytest.mark.parametrize("way", [*OF_SAMPLES.values(), *OF_INPUTS.values()])
def test_inputs_that_are_transformed_are_computed_as_before(way: Callable[[Any, Tensor], Any], tmp_path: Path) -> None:
    """Rows would leave out what a transform adds to them."""
    model = Around()
    plain = copy.deepcopy(model)
    with precompute(model, DataLoader(DATA, 12), tmp_path) as cached:
        for _ in range(3):
            torch.testing.assert_close(way(model, X[:12]), way(plain, X[:12]))
            torch.testing.assert_close(model(X[:12]), plain(X[:12]))
    assert "inputs that torch.func transforms" in str(cached)


@pytest.mark.parametrize("way", OF_SAMPLES)
def test_rows_are_not_taken_apart_by_transforms(way: str, tmp_path: Path) -> None:
    """Whether the model takes them, or a part of it."""
    model = Straight()
    with precompute(model, DATA, tmp_path) as cached:
        rows, _ = next(iter(cached.loader(batch_size=12)))
        with pytest.raises(FtkitError, match=r"rows inside of torch\.func\.vmap .* Call it with whole batches"):
            OF_SAMPLES[way](model, rows)
        plain = OF_SAMPLES[way](copy.deepcopy(model), X[:12])
        torch.testing.assert_close(OF_SAMPLES[way](model, X[:12]), plain)


def test_what_is_frozen_is_not_transformed(tmp_path: Path) -> None:
    """Its gradient is not that of what is kept."""
    model = Straight()
    with precompute(model, DATA, tmp_path) as cached:
        rows, _ = next(iter(cached.loader(batch_size=12)))
        with pytest.raises(FtkitError, match=r"body\.weight is in a transform of torch\.func"):
            grad(lambda p: functional_call(model, p, (rows,)).sum())(weight(model, "body"))
        model(rows)
