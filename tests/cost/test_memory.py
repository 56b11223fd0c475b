"""Peaks, against the events of the allocator."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ftkit._cost.measure import measure
from ftkit._cost.memory import Memory
from tests.cost.helpers import NEW, Calls, real_peak


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), torch.optim.AdamW])
@pytest.mark.parametrize("frozen", [0, 1, 3])
def test_peak_agrees_with_the_allocator(make, frozen):
    """The predicted peak of a step is what the allocator saw, within a hundredth."""
    model = nn.Sequential(
        *[nn.Linear(512, 512), nn.Tanh()], *[nn.Linear(512, 512), nn.Sigmoid()], nn.LayerNorm(512), nn.Linear(512, 64)
    )
    for child in list(model)[:frozen]:
        child.requires_grad_(False)
    inputs = (torch.randn(1024, 512),)
    predicted = measure(model, inputs, {}).peak_training_bytes(make)
    assert predicted == pytest.approx(real_peak(model, inputs, make), rel=0.01)


ROWS = torch.arange(0, 1000, 3)


def used_twice(self, x):
    y = self.a(x)
    return y[:500] * y[500:]


@pytest.mark.parametrize(
    "run",
    [
        lambda self, x: self.a(x)[ROWS],
        lambda self, x: self.a(x)[self.a.weight.sum().item() < x[:, 0]],
        lambda self, x: self.a(x).max(0).values[None],
        used_twice,
        lambda self, x: self.a(x).view(1000, 4, 64).transpose(0, 1).contiguous().view(4000, 64),
        lambda self, x: F.scaled_dot_product_attention(*self.a(x).view(2, 500, 4, 64).unbind(2)[:3]).flatten(0, 1),
    ],
)
def test_peak_of_gradients_made_in_place(run):
    """What autograd adds up, or writes, in place where no mode watches it takes no memory twice."""
    torch.manual_seed(0)
    model, inputs = Calls(run, a=nn.Linear(256, 256)), (torch.randn(1000, 256),)
    make = functools.partial(torch.optim.SGD, lr=0.0)
    predicted, real = measure(model, inputs, {}).peak_training_bytes(make), real_peak(model, inputs, make)
    assert predicted >= 0.98 * real
    assert not NEW or predicted <= 1.02 * real  # older versions are foreseen too high


def test_memory_is_alive_until_it_is_freed():
    """Views share it; scratch memory comes on top for a moment; what was there before costs nothing."""
    memory, maker = Memory(), SimpleNamespace(saved=0)
    before = torch.ones(100)
    memory.adopt([before])
    memory.watch(before[:2], maker)
    x = torch.ones(10)
    memory.watch(x, maker)
    memory.watch(x[:2], maker)
    memory.spend(7)
    del x
    assert (memory.peak, memory.restart(), memory.peak) == (47, 0, 0)


def test_memory_is_kept_by_who_keeps_it_first_and_if_a_backward_pass_comes():
    """What is freed before is not kept after all."""
    memory, first, second = Memory(), SimpleNamespace(saved=0), SimpleNamespace(saved=0)
    before, dropped, kept = torch.ones(100), torch.ones(10), torch.ones(20)
    memory.adopt([before])
    for tensor in (before, dropped, kept):
        memory.watch(tensor, first)
        memory.keep(tensor, first)
        memory.keep(tensor, second)
    del dropped, tensor
    memory.settle()
    del kept
    assert (first.saved, second.saved) == (80, 0)


def test_all_that_is_alive_can_be_taken_for_kept():
    """But what is there anyway."""
    memory, maker = Memory(), SimpleNamespace(saved=0)
    tensors = [torch.ones(size) for size in (1, 2, 4)]
    memory.adopt(tensors[:1])
    for tensor in tensors:
        memory.watch(tensor, maker)
    memory.keep_all_but([tensors[1], "no tensor"])
    assert maker.saved == 16
