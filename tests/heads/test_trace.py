"""A run on fakes leaves no trace."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn

from ftkit import find_head
from tests.heads.nets import TwoOutputs, features


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
