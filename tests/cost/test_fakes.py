"""What a model runs on instead of its tensors, and that it leaves no trace."""

from __future__ import annotations

import gc
import hashlib
import random

import numpy as np
import pytest
import torch
from torch import nn

from ftkit import FtkitError
from ftkit._cost.fakes import Fakes, Substitutes
from ftkit._cost.measure import measure
from ftkit._models.dryrun import untouched
from ftkit._torch import FakeTensor
from tests.cost.helpers import Calls


def fingerprint(model):
    """All that a caller could see of a model and of the process around it."""
    digest = hashlib.sha256()
    for tensor in [*model.parameters(), *model.buffers()]:
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return (
        digest.hexdigest(),
        [sorted(vars(module)) for module in model.modules()],
        [type(module) for module in model.modules()],
        [module.training for module in model.modules()],
        [(id(parameter), parameter.requires_grad, parameter.grad is None) for parameter in model.parameters()],
        [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
        torch.get_rng_state().numpy().tobytes(),
        random.getstate(),
        np.random.get_state()[1].tobytes(),  # noqa: NPY002
        torch.is_grad_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.get_default_dtype(),
        nn.Module.__call__,
        gc.isenabled(),
    )


def nosy():
    """A model that changes all it can when it runs."""

    def forward(self, x):
        random.random(), np.random.rand(), torch.rand(3)  # noqa: NPY002
        self.counter = getattr(self, "counter", 0) + 1
        self.log.append(x)
        self.cache["x"] = x
        self.norm.eval()
        torch.set_default_dtype(torch.float64)
        return self.drop(self.norm(self.layer(x).relu_()))

    model = Calls(forward, layer=nn.Linear(8, 8), norm=nn.BatchNorm1d(8), drop=nn.Dropout())
    model.log, model.cache = [], {}
    return model


@pytest.mark.parametrize("mode", [None, "train", "eval"])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("real", [False, True])
def test_leaves_no_trace(mode, fails, real):
    """Whatever the model does, and however it ends, nothing is changed."""
    model = nosy()
    model.norm.eval()
    run = model.function

    def forward(self, x):
        y = run(self, x)
        if real:
            y.sum().item()
        if fails:
            raise ValueError("boom")
        return y

    model.function = forward
    x = torch.randn(4, 8)
    before, given_input = fingerprint(model), x.clone()
    if fails:
        with pytest.raises(FtkitError, match="ValueError: boom"):
            measure(model, (x,), {}, mode=mode)
    else:
        assert bool(measure(model, (x,), {}, mode=mode).real) == real
    after = fingerprint(model)
    torch.set_default_dtype(torch.float32)  # so that no other test fails with this one
    assert after == before
    assert torch.equal(x, given_input)
    assert (model.log, model.cache) == ([], {})


# ---------------------------------------------------------------- torch as it may become


class Recurrent(nn.Module):
    """Recurrent layers and attention, whose kernels keep more than their outputs."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.LSTM(16, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, x):
        y, _ = self.layer(x)
        return self.head(nn.functional.scaled_dot_product_attention(y, y, y)[:, -1])


def convolutional():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(392, 4)
    )


@pytest.mark.parametrize(("build", "shape"), [(convolutional, (2, 3, 16, 16)), (Recurrent, (2, 5, 16)), (nosy, (4, 8))])
def test_figures_are_the_same_without_the_shortest_way_to_fakes(build, shape, monkeypatch):
    """Where torch makes fake tensors in another way than ours, its mode is asked each time."""
    model, x = build(), torch.randn(shape)
    measure(model, (x,), {})  # from here on torch answers from its cache, which before 2.7 keeps some bytes of an LSTM
    before = measure(model, (x,), {})
    init = FakeTensor.__init__

    def numbered(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.number = object()

    monkeypatch.setattr(FakeTensor, "__init__", numbered)
    assert Fakes().dress is None
    after = measure(model, (x,), {})
    assert after == before
    for make in (torch.optim.AdamW, torch.optim.SGD):
        assert after.peak_training_bytes(make) == before.peak_training_bytes(make)


def test_what_torch_has_no_more_is_named(monkeypatch):
    """Without blaming the model."""
    monkeypatch.delattr(torch._C._autograd, "_get_sequence_nr")
    with pytest.raises(
        FtkitError, match=r"^torch .* has no torch\._C\._autograd\._get_sequence_nr, which ftkit needs to"
    ):
        measure(nn.Linear(2, 2), (torch.ones(2, 2),), {})


@pytest.mark.parametrize("on_fakes", [True, False])
def test_substitutes_stand_for_each_tensor_once(on_fakes):
    """Tied weights stay tied, and so do lists of them; a parameter stays one, with its marks."""
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(2, 2))
    model.weight.mark = "mine"
    model.tied, model.every, model.plain = model.weight, [model.weight], torch.ones(3)
    with untouched([model]):
        made = Substitutes(model, Fakes() if on_fakes else None, {}, train_all=False)
        (given,), _ = made.install([model], (model.plain,), {})
        assert model.weight is model.tied is model.every[0]
        assert isinstance(model.weight, nn.Parameter)
        assert model.weight.mark == "mine"
        assert given is model.plain
        assert isinstance(given, FakeTensor) == on_fakes
        assert made.held_bytes() == 4 * 4 + 3 * 4
    assert type(model.every[0]) is nn.Parameter
