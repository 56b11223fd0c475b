"""Rows of values of every kind, in every form in which loops hand them on."""

from __future__ import annotations

import io
import pickle
import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ftkit import FtkitError, freeze_except
from ftkit._precompute.precompute import precompute


class Model(nn.Module):
    """A frozen part that gives what a function makes of it, and a head that takes what another makes of that."""

    def __init__(self, made: Callable[[Tensor], Tensor], taken: Callable[[Tensor], Tensor], width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = Body(made), Head(taken, width)
        freeze_except(self, "head")

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(x))
        return scores


class Body(nn.Module):
    def __init__(self, made: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self._made = nn.Linear(6, 8), made

    def forward(self, x: Tensor) -> Tensor:
        return self._made(self.layer(x))


class Head(nn.Module):
    def __init__(self, taken: Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.layer, self._taken = nn.Linear(width, 3), taken

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layer(self._taken(x))
        return scores


def data(samples: int = 12) -> TensorDataset:
    torch.manual_seed(1)
    return TensorDataset(torch.randn(samples, 6))


def as_float(x: Tensor) -> Tensor:
    return x.float()


def parts(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj()).float().flatten(1)


KINDS: dict[str, tuple[Any, Any, int]] = {
    "zeros": (lambda x: x * 0, as_float, 8),
    "negative zeros": (lambda x: x.abs() * -0.0, lambda x: torch.ones_like(x).copysign(x), 8),
    "not numbers": (lambda x: x * torch.nan, lambda x: x.nan_to_num(), 8),
    "all bits": (lambda x: (0 * x).long() - 1, as_float, 8),
    "of one byte": (lambda x: (10 * x[:, 0]).to(torch.int8), lambda x: x.float()[:, None], 1),
    "one truth value": (lambda x: x[:, 0] > 0, lambda x: x.float()[:, None], 1),
    "float8": (lambda x: x.to(torch.float8_e4m3fn), as_float, 8),
    "halves of complex numbers": (lambda x: torch.complex(x.half(), x.half()), parts, 16),
    "conjugated": (lambda x: torch.complex(x, x + 1).conj(), parts, 16),
    "no element": (lambda x: x[:, :0], lambda x: nn.functional.pad(x, (0, 8)), 8),
}


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("by_content", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_values_of_every_kind(kind: str, by_content: bool, narrow: bool, tmp_path: Path) -> None:
    if kind == "float8":
        try:
            torch.zeros(2).to(torch.float8_e4m3fn)[torch.tensor([0])]
        except RuntimeError:
            pytest.skip("this torch takes no samples out of a batch of float8")
    model, loader = Model(*KINDS[kind]), DataLoader(data(), 4)
    plain = [model(inputs) for (inputs,) in loader]
    cached = precompute(
        model, loader if by_content else data(), tmp_path, batch_size=4, dtype=torch.bfloat16 if narrow else None
    )
    with cached:
        for _ in range(3):
            for (given,), expected in zip(loader if by_content else cached.loader(batch_size=4), plain, strict=True):
                scores = model(given)
                torch.testing.assert_close(scores, expected, rtol=0, atol=0.05 if narrow else 0)
    assert not cached._lookup or not cached._lookup.as_before


def through_a_queue(rows: Tensor) -> Tensor:
    several = queue.Queue[Tensor]()
    several.put(rows)
    return several.get()


def through_a_file(rows: Tensor) -> Tensor:
    torch.save(rows, file := io.BytesIO())
    file.seek(0)
    loaded: Tensor = torch.load(file)
    return loaded


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "one": lambda rows: rows[:1],
    "none": lambda rows: rows[:0],
    "none of a mask": lambda rows: rows[torch.zeros(len(rows), dtype=torch.bool)],
    "each second": lambda rows: rows[::2],
    "joined": lambda rows: torch.cat([rows, rows[:3]]),
    "permuted": lambda rows: rows[torch.tensor([3, 0, 2, 1])],
    "stacked": lambda rows: torch.stack([*rows]),
    "through NumPy": lambda rows: torch.from_numpy(rows.numpy().copy()),
    "laid out otherwise": lambda rows: rows.t().contiguous().t(),
    "expanded": lambda rows: rows[:1].expand(4, -1),
    "through a queue": through_a_queue,
    "through a file": through_a_file,
    "pickled": lambda rows: pickle.loads(pickle.dumps(rows)),
}


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_rows_on_their_way_to_the_model(way: str, gradients: bool, tmp_path: Path) -> None:
    """As loops and queues pass them on; a batch of none gives a batch of none, as of plain inputs."""
    model, samples = Model(torch.relu, as_float), data()
    plain = model(WAYS[way](samples.tensors[0][:4]))
    cached = precompute(model, samples, tmp_path)
    with cached, torch.inference_mode(not gradients):
        rows = next(iter(cached.loader(batch_size=4)))[0]
        for _ in range(3):
            scores = model(WAYS[way](rows))
            torch.testing.assert_close(scores, plain)
            assert scores.requires_grad == gradients
            model(rows)


def test_a_last_batch_of_none_leaves_the_one_before_to_be_checked(tmp_path: Path) -> None:
    model = Model(torch.relu, as_float)
    cached = precompute(model, data(), tmp_path)
    with cached:
        rows = next(iter(cached.loader(batch_size=4)))[0]
        model(rows)
        model(rows)
        model(rows[:0])
    assert cached._player.spots is not None
    assert cached._player.spots.done == 2


@pytest.mark.parametrize("reshaped", [lambda rows: rows[0], lambda rows: rows[None], lambda rows: rows.view(4, 1, -1)])
def test_rows_of_another_shape(reshaped: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    """They are known for what they are."""
    model = Model(torch.relu, as_float)
    with precompute(model, data(), tmp_path) as cached, pytest.raises(FtkitError, match="changed on the way"):
        model(reshaped(next(iter(cached.loader(batch_size=4)))[0]))
