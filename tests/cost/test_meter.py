"""Which module an operator belongs to, forward and backward."""

from __future__ import annotations

import threading

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ftkit._cost.measure import StepCost, measure
from ftkit._cost.meter import Meter, ModuleCost
from ftkit._models.dryrun import untouched
from tests.cost.helpers import Calls, matmul, real_step


def test_recomputation_counts_as_backward():
    """What a checkpoint computes again is paid for in the backward pass; nothing inside it is kept."""
    from torch.utils.checkpoint import checkpoint

    block = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32))
    plain = measure(Calls(lambda self, x: self.block(x), block=block), (torch.randn(4, 32),), {})
    cost = measure(
        Calls(lambda self, x: checkpoint(self.block, x, use_reentrant=False), block=block), (torch.randn(4, 32),), {}
    )
    assert cost.forward_flops == plain.forward_flops
    assert cost.backward_flops == plain.backward_flops + matmul(4, 32, 32)  # it stops once it has what it needs
    assert cost.saved_bytes < plain.saved_bytes
    assert [part.calls for part in cost.modules] == [1, 1, 1, 1, 1]


def test_runs_the_hooks_of_the_model():
    """A hook that changes the output, or holds a norm in eval mode, counts as it would in a real step."""
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    model[0].register_forward_hook(lambda module, args, output: torch.cat([output, output]))
    model[1].register_forward_pre_hook(lambda module, args: module.eval() and None)
    cost = measure(model, (torch.randn(4, 8),), {})
    assert [part.output_shape for part in cost.modules] == [(8, 8)] * 3
    assert [part.training for part in cost.modules] == [True, True, False]
    assert model[1].training


def test_compiled_children_show_their_layers():
    """What torch.compile wraps is looked at from inside."""
    model = nn.Sequential(torch.compile(nn.Sequential(nn.Linear(8, 8))), nn.Linear(8, 8))
    model[1].compile()
    cost = measure(model, (torch.randn(4, 8),), {})
    assert [part.calls for part in cost.modules] == [1] * 5
    assert cost.forward_flops == 2 * matmul(4, 8, 8)


@st.composite
def trees(draw, depth=3):
    """Random trees of modules that keep a width of 8, some of them shared."""
    shared = [nn.Linear(8, 8), nn.ReLU()]

    def one(level):
        kind = draw(st.sampled_from(["linear", "norm", "act", "shared", "tree"] if level else ["linear", "act"]))
        if kind == "tree":
            return nn.Sequential(*[one(level - 1) for _ in range(draw(st.integers(0, 3)))])
        if kind == "shared":
            return draw(st.sampled_from(shared))
        return {"linear": nn.Linear(8, 8), "norm": nn.LayerNorm(8), "act": nn.GELU()}[kind]

    model = nn.Sequential(*[one(depth) for _ in range(draw(st.integers(1, 4)))])
    for parameter in model.parameters():
        parameter.requires_grad_(draw(st.booleans()))
    return model


@settings(max_examples=40, deadline=None)
@given(trees())
def test_costs_of_children_add_up(model):
    """What a container costs is what its children cost, where each is called from one place only."""
    cost: StepCost = measure(model, (torch.randn(4, 8),), {})
    parts = dict(zip(model.modules(), cost.modules, strict=True))
    parents = {}
    for module in model.modules():
        for child in module._modules.values():
            parents.setdefault(child, []).append(module)
    for module, part in parts.items():
        children = list(module.children())
        if children and all(len(parents[child]) == 1 for child in children):
            for name in ("forward_flops", "backward_flops", "saved_bytes"):
                assert getattr(part, name) == sum(getattr(parts[child], name) for child in children)
    assert parts[model].forward_flops == cost.forward_flops
    assert parts[model].backward_flops == cost.backward_flops
    assert (cost.forward_flops, cost.backward_flops, cost.saved_bytes) == real_or_nothing(model)


def real_or_nothing(model):
    x = torch.randn(4, 8)
    if any(parameter.requires_grad for parameter in model.parameters()) and model(x).requires_grad:
        return real_step(model, (x,))
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops(), 0, 0


def test_other_threads_are_not_measured():
    """They call modules as ever while one is measured, and find all as it was."""
    layer, x, call = nn.Linear(4, 4), torch.ones(1, 4), nn.Module.__call__
    meter = Meter(None)
    cost = meter.costs[id(layer)] = ModuleCost()
    with untouched([layer]), meter.running():
        thread = threading.Thread(target=layer, args=(x,))
        thread.start()
        thread.join()
        assert cost.calls == 0
        layer(x)
    assert cost.calls == 1
    assert nn.Module.__call__ is call
