"""A plain loop, and what it ends with."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def train(model: nn.Module, loader: Iterable[Any], epochs: int = 3) -> dict[str, Tensor]:
    """Train what requires gradients; the state in the end."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    model.train()
    torch.manual_seed(2)
    for _ in range(epochs):
        for inputs, labels in loader:
            loss = nn.functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two states are equal to the last bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def at_once(*jobs: Callable[[], Any], seconds: float = 60) -> list[Any]:
    """What jobs give that run in threads of their own, or the errors that they end with.

    Python lets one after the other run for much shorter than it usually does, so that they meet.
    """
    results: list[Any] = [TimeoutError()] * len(jobs)
    interval = sys.getswitchinterval()

    def run(at: int, job: Callable[[], Any]) -> None:
        try:
            results[at] = job()
        except BaseException as error:
            results[at] = error

    threads = [threading.Thread(target=run, args=one, daemon=True) for one in enumerate(jobs)]
    sys.setswitchinterval(1e-5)
    try:
        for one in threads:
            one.start()
        for one in threads:
            one.join(seconds)
    finally:
        sys.setswitchinterval(interval)
    return results
