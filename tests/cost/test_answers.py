"""What operators give back on fake tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ftkit._cost.answers import Answer, question
from ftkit._cost.fakes import Fakes, TensorSpec
from ftkit._cost.measure import measure
from ftkit._torch import storage_id
from tests.cost.helpers import Calls, matmul, real_step


@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="a product of groups came with torch 2.8")
def test_experts_are_followed_in_single_precision():
    """Products of groups count each token once, with data and without."""

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 16, 32))

        def forward(self, x, ends):
            return torch._grouped_mm(x, self.weight, offs=ends).tanh()

    inputs = (torch.randn(24, 16), torch.tensor([8, 8, 16, 24], dtype=torch.int32))
    cost = measure(Experts(), inputs, {})
    assert cost.real is None
    assert (cost.forward_flops, cost.backward_flops) == (matmul(24, 16, 32), matmul(24, 16, 32))
    assert cost.modules[0].output_shape == (24, 32)


ATEN = torch.ops.aten
OPERATORS = [
    (ATEN.add.Tensor, lambda a, b: (a, a)),
    (ATEN.mm.default, lambda a, b: (a, b)),
    (ATEN.t.default, lambda a, b: (a,)),
    (ATEN.view.default, lambda a, b: (a, [3, 2])),
    (ATEN.slice.Tensor, lambda a, b: (a, 1, 1, 3)),
    (ATEN.relu_.default, lambda a, b: (a,)),
    (ATEN.max.dim, lambda a, b: (a, 0)),
    (ATEN.split.Tensor, lambda a, b: (a, 1, 1)),
    (ATEN.cat.default, lambda a, b: ([a, a], 1)),
    (ATEN.native_layer_norm.default, lambda a, b: (a, [3], None, None, 1e-5)),
    (ATEN.convolution_backward.default, None),
]


def arguments(given):
    if given is None:
        x, w = torch.ones(1, 2, 4, 4), torch.ones(3, 2, 1, 1)
        return torch.ones(1, 3, 4, 4), x, w, [3], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, False, True]
    return given(torch.ones(2, 3), torch.ones(3, 2))


def described(output, args):
    outputs = [output] if isinstance(output, torch.Tensor) else output
    given = [storage_id(arg) for arg in args if isinstance(arg, torch.Tensor)]
    return [
        one if one is None else (TensorSpec.of(one), storage_id(one) in given, any(one is a for a in args))
        for one in outputs
    ]


@pytest.mark.parametrize(("func", "given"), OPERATORS)
def test_an_answer_given_again_is_the_one_of_torch(func, given):
    """In shape, strides, dtype, device, offset, and in whose memory it is."""
    fakes = Fakes()
    if fakes.dress is None:
        pytest.skip("This torch makes fake tensors in another way, and is asked each time.")
    with fakes.mode:
        first, second = arguments(given), arguments(given)
        output = func(*first)
        answer = Answer.of(func, first, output, 0, 0)
        assert described(answer.again(second, fakes), second) == described(func(*second), second)
    assert question(func, first, {}) == question(func, second, {}) is not None


def test_answers_that_shapes_do_not_decide_are_not_kept():
    """Values, complex numbers, constants, outputs given by keyword, and operators of others."""
    fakes = Fakes()
    with fakes.mode:
        x, constant = torch.ones(3), torch.tensor(3)
        spectrum = torch.fft.fft(x)
    assert question(ATEN.add.Tensor, (x, constant), {}) is None
    assert question(ATEN.conj.default, (spectrum,), {}) is None
    assert question(ATEN.add.out, (x, x), {"out": x}) is None
    assert question(ATEN.add.Tensor, (x, torch.ones(3)), {}) is None
    assert Answer.of(ATEN.view_as_real.default, (spectrum,), spectrum, 0, 0) is not None  # it gives its argument
    assert Answer.of(ATEN._fft_r2c.default, (x,), spectrum, 0, 0) is None
    assert Answer.of(ATEN.nonzero.default, (x,), x.clone(), 0, 0) is None
    assert Answer.of(ATEN.alias.default, (x,), [x.detach(), torch.ones(3)], 0, 0) is None


def test_scratch_memory_depends_on_threads():
    """So an answer given on one is no answer on two."""
    fakes = Fakes()
    x = fakes.make(TensorSpec((2,), (1,), torch.float32, torch.device("cpu")))
    threads = torch.get_num_threads()
    asked = question(ATEN.relu.default, (x,), {})
    try:
        torch.set_num_threads(threads + 1)
        assert question(ATEN.relu.default, (x,), {}) != asked
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(32), nn.GroupNorm(4, 32)], ids=["batch", "group"])
@pytest.mark.parametrize("form", ["transposed", "channels last", "contiguous"])
def test_a_norm_gives_the_layout_that_it_gives_on_real_tensors(norm: nn.Module, form: str) -> None:
    """What comes after copies a layout that it can't take, and keeps the copy: here is whether it must."""
    images = form == "channels last"
    if images and isinstance(norm, nn.BatchNorm1d):
        norm = nn.BatchNorm2d(32)

    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = x.movedim(-1, 1) if form != "contiguous" else x.transpose(1, 2).contiguous()
        x = self.norm(x)
        return self.second(x.movedim(1, -1)).flatten(1).tanh()

    model = Calls(forward, first=nn.Linear(16, 32), norm=norm, second=nn.Linear(32, 8))
    x = torch.randn((4, 6, 10, 16) if images else (4, 10, 16))
    flops, backward, saved = real_step(model, [x])
    cost = measure(model, (x,), {})
    assert (cost.forward_flops, cost.backward_flops, cost.saved_bytes) == (flops, backward, saved)
