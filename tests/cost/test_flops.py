"""FLOPs by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ftkit._cost.measure import measure
from tests.cost.helpers import Calls, matmul


def mlp(*trained):
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    for index in range(0, 5, 2):
        model[index].requires_grad_(index in trained)
    return model


ONE, TWO, THREE = matmul(4, 32, 64), matmul(4, 64, 64), matmul(4, 64, 10)


@pytest.mark.parametrize(
    ("trained", "backward"),
    [
        ((0, 2, 4), ONE + 2 * TWO + 2 * THREE),
        ((4,), THREE),
        ((2, 4), TWO + 2 * THREE),
        ((0,), ONE + TWO + THREE),
        ((), 0),
    ],
)
def test_backward_flops_follow_what_is_trained(trained, backward):
    """A gradient is counted where it is computed: of weights that train, and through what lies above them."""
    cost = measure(mlp(*trained), (torch.randn(4, 32),), {})
    assert (cost.forward_flops, cost.backward_flops) == (ONE + TWO + THREE, backward)


def attention(self, x):
    q, k, v = self.qkv(x).view(2, 16, 3, 4, 16).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v)


SDPA = 2 * 2 * matmul(4 * 16, 16, 16)


def test_attention_is_counted_by_its_formula():
    """Torch's counter sees nothing of the fused kernel on the CPU; what it computes again is not counted."""
    cost = measure(Calls(attention, qkv=nn.Linear(64, 192)), (torch.randn(2, 16, 64),), {})
    linear = matmul(32, 64, 192)
    assert (cost.forward_flops, cost.backward_flops) == (linear + SDPA, linear + 2 * SDPA)


@pytest.mark.parametrize(
    ("build", "inputs", "flops"),
    [
        (lambda: nn.LSTM(32, 64, 2, batch_first=True), (4, 10, 32), 40 * 2 * 4 * (32 * 64 + 3 * 64 * 64)),
        (lambda: nn.GRU(32, 64, bidirectional=True), (10, 4, 32), 40 * 2 * 2 * 3 * (32 * 64 + 64 * 64)),
        (lambda: nn.RNN(32, 64), (10, 4, 32), 40 * 2 * (32 * 64 + 64 * 64)),
        (lambda: nn.TransformerEncoderLayer(64, 4, 128, batch_first=True).eval(), (2, 16, 64), None),
        (lambda: nn.ConvTranspose2d(16, 8, 2, stride=2), (1, 16, 8, 8), 2 * 16 * 8 * 4 * 64),
        (lambda: nn.Conv1d(8, 16, 3, groups=4), (2, 8, 10), 2 * 2 * 16 * 2 * 3 * 8),
    ],
)
def test_forward_flops_of_layers(build, inputs, flops):
    """Fused kernels count as what they compute."""
    if flops is None:
        flops = 4 * matmul(32, 64, 64) + SDPA + 2 * matmul(32, 64, 128)
    assert measure(build(), (torch.randn(inputs),), {}).forward_flops == flops


def test_bilinear_counts_a_multiply_add_for_each_product():
    """Also where torch multiplies and sums without a matrix product."""
    cost = measure(nn.Bilinear(5, 6, 7), (torch.randn(4, 5), torch.randn(4, 6)), {})
    assert cost.forward_flops == 2 * 4 * 5 * 6 * 7


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.LSTM(32, 64, 2, batch_first=True, bidirectional=True), (4, 10, 32)),
        (nn.GRU(32, 64, 3), (10, 4, 32)),
        (nn.LSTMCell(32, 64), (4, 32)),
        (nn.GRUCell(32, 64), (4, 32)),
        (nn.RNNCell(32, 64), (4, 32)),
    ],
)
def test_quantized_recurrent_layers_cost_what_the_layer_did(layer, shape):
    """Their weights are packed, so their sizes are read off the inputs."""
    quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), {type(layer)})
    x = torch.randn(shape)
    assert measure(quantized, (x,), {}).forward_flops == measure(layer, (x,), {}).forward_flops > 0


@pytest.mark.filterwarnings("ignore")
def test_a_quantized_layer_over_a_packed_sequence():
    """Only the steps that are there count."""

    def run(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return self.rnn(packed)[0].data

    model = Calls(run, rnn=nn.LSTM(32, 64, batch_first=True))
    model = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM})
    cost = measure(model, (torch.randn(3, 10, 32), torch.tensor([10, 4, 1])), {})
    assert cost.forward_flops == 15 * 2 * 4 * 64 * (32 + 64)


@pytest.mark.filterwarnings("ignore")
def test_half_precision_weights_are_not_unpacked():
    """Unpacking them brings the process down."""
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(32, 64)), {nn.Linear}, dtype=torch.float16)
    assert measure(model, (torch.randn(4, 32),), {}).forward_flops == matmul(4, 32, 64)
