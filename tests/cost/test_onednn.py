"""What kernels on the CPU hold besides tensors, against the events of the allocator."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ftkit._cost.measure import measure
from ftkit._cost.onednn import _row, scratch_bytes
from tests.cost.helpers import AVX512, NEW, Calls, kept_besides, real_peak


@pytest.mark.skipif(not (NEW and torch.backends.mkldnn.is_available()), reason="the rules are those of its oneDNN")
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_what_an_lstm_keeps(batch_first, half):
    """The workspace of its kernel, which torch's fake kernel leaves out, is most of it."""
    model = nn.LSTM(20, 33, 2, batch_first=batch_first, bidirectional=True)
    x = torch.randn(5, 7, 20)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        cost = measure(model, (x,), {}, loss=lambda output: output[0].sum())
        with kept_besides(model, x) as kept:
            output, _ = model(x)
            output.sum()
    assert cost.saved_bytes == sum(storage.nbytes() for storage in kept.values())


def first_of(self, x):
    y = self.layer(self.first(x))
    return (y[0] if isinstance(y, tuple) else y).flatten(1)


def unfolding(layer, shape, capfd):
    """Which of a convolution's kernels multiply an unfolded input; oneDNN chooses by the processor."""
    capfd.readouterr()
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        output = layer(torch.randn(shape, requires_grad=True))
        (output[0] if isinstance(output, tuple) else output).sum().backward()
    lines = [line.split(",") for line in capfd.readouterr().out.splitlines() if "exec,cpu" in line]
    return {line[7] for line in lines if "convolution" in line[5] and "gemm" in line[6]}


@pytest.mark.skipif(not (NEW and AVX512), reason="the rules are those of its kernels")
@pytest.mark.parametrize(
    ("layer", "shape", "unfolds"),
    [
        (lambda: nn.Conv2d(128, 128, 3, padding=4, dilation=4), (2, 128, 8, 8), {"backward_weights"}),
        (lambda: nn.Conv2d(128, 32, 3, padding=12, dilation=12), (2, 128, 40, 40), {"backward_data"}),
        (lambda: nn.Conv2d(3, 256, 16, stride=16), (2, 3, 64, 64), {"backward_weights"}),
        (lambda: nn.Conv3d(32, 32, 3, padding=1), (1, 32, 8, 16, 16), set()),
        (lambda: nn.ConvTranspose2d(512, 16, 16, stride=16), (1, 512, 4, 4), {"backward_weights"}),
        (lambda: nn.LSTM(64, 128), (40, 16, 64), set()),
    ],
)
def test_peak_of_layers_that_need_scratch_memory(layer, shape, unfolds, capfd):
    """Unfolded inputs and copies in other layouts count while they last."""
    found = unfolding(layer(), shape, capfd)
    if found != unfolds:
        pytest.skip(f"oneDNN unfolds {found or 'nothing'} on this processor, where the rules expect {unfolds}")
    model = Calls(
        first_of,
        first=nn.Conv1d(shape[1], shape[1], 1) if len(shape) == 3 else nn.PReLU(),
        layer=layer(),
    )
    inputs, make = (torch.randn(shape),), functools.partial(torch.optim.SGD, lr=0.0)
    predicted = measure(model, inputs, {}).peak_training_bytes(make)
    assert predicted == pytest.approx(real_peak(model, inputs, make), rel=0.02)


@pytest.mark.skipif(not (NEW and torch.backends.mkl.is_available()), reason="the rule is that of its transforms")
@pytest.mark.parametrize("sizes", [(16, 40, 32), (1, 40, 32), (4, 3, 40, 32)])
@pytest.mark.parametrize(
    "transform",
    [
        lambda x: torch.fft.rfft(x, dim=1),
        lambda x: torch.fft.rfft(x),
        lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=1), n=x.shape[1], dim=1),
    ],
    ids=["first", "last", "back"],
)
def test_a_fourier_transform_copies_what_does_not_lie_in_rows(transform, sizes):
    """Its kernel takes the transformed dimensions last."""
    model = Calls(lambda self, x: transform(self.first(x)).abs().flatten(1), first=nn.PReLU())
    inputs, make = (torch.randn(sizes),), functools.partial(torch.optim.SGD, lr=0.0)
    predicted = measure(model, inputs, {}).peak_training_bytes(make)
    assert predicted == pytest.approx(real_peak(model, inputs, make), rel=0.02)


@given(st.integers(1, 5000), st.sampled_from([2, 4]))
def test_rows_are_whole_lines_of_the_cache_that_do_not_collide(columns, size):
    """As few as hold the row."""
    row = _row(columns, size)
    assert row % 64 == 0
    assert columns * size <= row < columns * size + 128
    assert (row // size) % 256


def test_other_devices_are_not_known():
    """The rules are those of kernels on the CPU."""
    x = torch.empty(1, 16, 8, 8, device="meta")
    args = x, x, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1
    assert scratch_bytes(torch.ops.aten.convolution.default, args, x) == 0
