"""A run on fakes comes to its end where it can, and leaves no trace."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn

from ftkit import find_head
from ftkit._heads.layers import layers
from ftkit._heads.trace import trace
from tests.heads.nets import TwoOutputs, features, wired


def test_find_head_leaves_no_trace() -> None:
    """The run changes neither the model's tensors nor its mode, calls no hook of the user's and draws no numbers."""
    model = TwoOutputs("classifier", "box", (10, 4)).train()
    seen: list[object] = []
    hook = model.body.register_forward_hook(lambda *args: seen.append(args))
    model.body.register_forward_pre_hook(lambda *args: seen.append(args))
    drawn = torch.get_rng_state()
    before = copy.deepcopy(model.state_dict())
    find_head(model)
    assert model.training
    assert seen == []
    assert hook.id in model.body._forward_hooks
    assert not model.body[0]._forward_hooks
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_frozen_script_in_the_body_is_no_matter() -> None:
    """The head is found beside it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(torch.jit.script(features()), nn.Linear(8, 5))
    assert find_head(model).names == ("1",)


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x * x.sum().item(),
        lambda x: x if bool((x > 0).all()) else None,
        lambda x: x[x > 0].view(-1, 12)[:2],
        lambda x: x[(x > 0).nonzero()[:, 0]][:2],
        lambda x: x + len(x.unique()),
        lambda x: x + torch.unique_consecutive(x)[0],
        lambda x: x.masked_select(x > 0).view(-1, 12),
        lambda x: x[torchvision.ops.nms(x[:, :4], x[:, 0], 0.5)],
    ],
)
def test_a_model_that_asks_for_values_runs_on_fakes(ask: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """It gets an answer, and comes to its end."""
    model = nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 5))
    type_ = type("Asking", (nn.Sequential,), {"forward": lambda self, x: nn.Sequential.forward(self, ask(x))})
    model.__class__ = type_
    told = trace(model, layers(model))
    assert told.run.failure == ""
    assert told.run.complete


def test_a_run_without_end_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that the answers never leave."""
    monkeypatch.setattr("ftkit._heads.trace._FEWEST_CALLS", 500)

    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        while bool((x < 1).all()):
            x = x + 1
        return self.out(x)

    model = wired(forward, out=nn.Linear(3, 2))
    assert "too many operations" in trace(model, layers(model)).run.failure
