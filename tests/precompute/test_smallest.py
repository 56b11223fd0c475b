"""The judge of what is kept: what it takes for possible, and what not."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ftkit import freeze_except
from tests.precompute.smallest import smallest


class Model(nn.Module):
    """A frozen layer, something, and a head."""

    def __init__(self, between: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(4, 16), nn.Linear(16, 2)
        self._between = between
        freeze_except(self, "head")

    def forward(self, x: Tensor, mask: Tensor) -> Any:
        return self.head(self._between(self.layer(x), mask))


CASES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "nothing": (lambda y, mask: y, 64),
    "narrower": (lambda y, mask: y.view(-1, 4, 4).sum(2).repeat(1, 4), 16),
    "what Python decides by, as a whole": (lambda y, mask: y * 2 if mask.bool().all() else y, 64 + 32),
    "behind a number that Python reads": (lambda y, mask: (y * y.max().item())[:, :4].repeat(1, 4), 64),
    "behind a draw of Python's": (lambda y, mask: (y * random.random())[:, :4].repeat(1, 4), 64),
    "samples that mix": (lambda y, mask: (y - y.mean())[:, :4].repeat(1, 4), 64),
}


@pytest.mark.parametrize("case", CASES)
def test_the_least(case: str) -> None:
    """In bytes of one sample: of 16 features, and of a mask of 4 whole numbers."""
    between, least = CASES[case]
    model = Model(between)
    assert smallest(model, {("layer", 0)}, torch.randn(3, 4), torch.ones(3, 4, dtype=torch.int64)) == least
