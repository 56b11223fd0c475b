"""torch.compile before precompute() and after it, of all or a part: what does not run is no part of a graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ftkit import FtkitError, freeze_except, precompute

X = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(X, torch.arange(24) % 3)


@torch.compile(backend="eager")
def doubled(x: Tensor) -> Tensor:
    return torch.relu(x) * 2


class Model(nn.Module):
    """Does something between its frozen parts, and behind them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.after = nn.Sequential(nn.Linear(8, 16), nn.ReLU()), nn.Linear(16, 16)
        self.head = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
        freeze_except(self, "head")

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head(self.after(torch.relu(x)) + x)


class Calls(Model):
    """Calls a function that is compiled, on what is not there when rows are."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.after(doubled(self.body(x))))


class Straight(Model):
    """Leaves nothing to do before its head."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.after(self.body(x)))


def wrapped(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


def frozen_part(model: Any) -> Any:
    model.body = torch.compile(model.body, backend="eager")
    return model


def frozen_part_in_place(model: Any) -> Any:
    model.body.compile(backend="eager")
    return model


def head(model: Any) -> Any:
    model.head = torch.compile(model.head, backend="eager")
    return model


def head_in_place(model: Any) -> Any:
    model.head.compile(backend="eager")
    return model


def only_forward(model: Any) -> Any:
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def step_around(model: Any) -> Any:
    return torch.compile(lambda x: model(x) * 1, backend="eager")


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    """No graph of another test is left."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def trains_alike(used: Any, model: nn.Module, plain: nn.Module, batches: Any) -> None:
    for _ in range(3):
        for inputs, _ in batches():
            model.zero_grad()
            given = used(inputs)
            given.sum().backward()
    plain.zero_grad()
    wanted = plain(X[12:])
    wanted.sum().backward()
    torch.testing.assert_close(given, wanted)
    grads = [[one.grad for one in each.parameters() if one.grad is not None] for each in (model, plain)]
    torch.testing.assert_close(*grads)


BEFORE = wrapped, in_place, frozen_part, frozen_part_in_place, head, head_in_place, only_forward, step_around


CASES = [
    *((one, True, "index", Model) for one in BEFORE),
    *((one, False, keys, Model) for one in (wrapped, in_place, head_in_place) for keys in ("index", "content")),
    (wrapped, True, "content", Calls),
    (only_forward, False, "index", Calls),
    (head, True, "content", Straight),
    (step_around, True, "content", Straight),
]


@pytest.mark.slow  # dynamo takes seconds to trace
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo looks whether there is one
@pytest.mark.parametrize(("compiled", "is_first", "keys", "kind"), CASES)
def test_what_is_compiled_trains_as_what_is_not(
    compiled: Callable[[Any], Any], is_first: bool, keys: str, kind: type[Model], tmp_path: Path
) -> None:
    """By rows and by plain inputs, in the block and behind it; and a change is noticed."""
    model = kind()
    plain = copy.deepcopy(model)
    used: Any = compiled(model) if is_first else model
    if is_first:
        torch.testing.assert_close(used(X[12:]), plain(X[12:]))
    loader = DataLoader(DATA, 12)
    given = used if isinstance(used, nn.Module) else model
    cached = precompute(given, DATA if keys == "index" else loader, tmp_path, batch_size=12)
    used = used if is_first else compiled(model)
    rows: Any = (lambda: cached.loader(batch_size=12)) if keys == "index" else (lambda: loader)
    with cached:
        trains_alike(used, model, plain, rows)
        with torch.no_grad():
            torch.testing.assert_close(used(X), plain(X))
    torch.testing.assert_close(used(X[12:]), plain(X[12:]))

    def changed() -> None:
        with cached:
            for inputs, _ in rows():
                used(inputs)
            next(model.body.parameters()).data.mul_(2)
            for inputs, _ in rows():
                used(inputs)

    with pytest.raises(FtkitError, match="changed since"):
        changed()
    next(plain.body.parameters()).data.mul_(2)
    torch.testing.assert_close(used(X[12:]), plain(X[12:]))


@pytest.mark.parametrize("compiled", [frozen_part, head])
def test_another_module_in_the_place_of_one_is_refused(compiled: Callable[[Any], Any], tmp_path: Path) -> None:
    """As torch.compile puts one there."""
    model = Model()
    cached = precompute(model, DATA, tmp_path)
    compiled(model)
    with pytest.raises(FtkitError, match=r"other submodules.*Call precompute\(\) again"), cached:
        pass


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("keys", ["index", "content"])
def test_a_compiled_model_takes_rows(keys: str, tmp_path: Path) -> None:
    """The quick one of the tests above."""
    model, loader = Model(), DataLoader(DATA, 12)
    plain, used = copy.deepcopy(model), wrapped(model)
    with precompute(used, DATA if keys == "index" else loader, tmp_path, batch_size=12) as cached:
        for inputs, _ in cached.loader(batch_size=12) if keys == "index" else loader:
            given = used(inputs)
    torch.testing.assert_close(given, plain(X[12:]))
