"""What kernels on the CPU hold besides tensors, against the events of the allocator."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ftkit._cost.fakes import memory_of
from ftkit._cost.measure import measure
from ftkit._cost.onednn import _row, scratch_bytes
from tests.cost.helpers import NEW, Calls, kept_besides, real_peak


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


def agrees(model, *shapes, loss=None):
    """Whether the predicted peak is what the allocator sees."""
    inputs, make = tuple(map(torch.randn, shapes)), functools.partial(torch.optim.SGD, lr=0.0)
    predicted = measure(model, inputs, {}, loss=loss).peak_training_bytes(make)
    return predicted == pytest.approx(real_peak(model, inputs, make, loss), rel=0.03)


@pytest.mark.skipif(not NEW, reason="the rules are those of its kernels")
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: nn.Conv2d(128, 128, 3, padding=4, dilation=4), (2, 128, 8, 8)),
        (lambda: nn.Conv2d(128, 32, 3, padding=12, dilation=12), (2, 128, 40, 40)),
        (lambda: nn.Conv2d(128, 32, 3, padding=12, dilation=12), (9, 128, 20, 20)),
        (lambda: nn.Conv2d(3, 256, 16, stride=16), (2, 3, 64, 64)),
        (lambda: nn.Conv2d(3, 256, 14, stride=14), (4, 3, 112, 112)),
        (lambda: nn.Conv2d(128, 128, 3, padding=1, groups=32), (4, 128, 28, 28)),
        (lambda: nn.Conv2d(64, 64, 31, padding=15, groups=64), (2, 64, 28, 28)),
        (lambda: nn.Conv1d(256, 256, 4, padding=3, groups=256), (4, 256, 400)),
        (lambda: nn.Conv1d(64, 64, 3, padding=16, dilation=16), (8, 64, 512)),
        (lambda: nn.Conv3d(32, 32, 3, padding=1), (2, 32, 8, 16, 16)),
        (lambda: nn.Conv3d(32, 32, 3, padding=1, groups=8), (2, 32, 8, 16, 16)),
        (lambda: nn.Conv3d(32, 32, 3, padding=4, dilation=4), (2, 32, 8, 16, 16)),
        (lambda: nn.Conv3d(32, 32, 3, padding=1).to(memory_format=torch.channels_last_3d), (2, 32, 8, 16, 16)),
        (lambda: nn.ConvTranspose2d(512, 16, 16, stride=16), (1, 512, 4, 4)),
        (lambda: nn.ConvTranspose3d(32, 32, 3, padding=1, groups=32), (2, 32, 8, 16, 16)),
        (lambda: nn.LSTM(64, 128), (40, 16, 64)),
    ],
)
def test_peak_of_layers_that_need_scratch_memory(layer, shape):
    """Unfolded inputs and copies in other layouts count while they last, on whatever processor this is."""
    first = nn.Conv1d(shape[1], shape[1], 1) if len(shape) == 3 and shape[0] == 40 else nn.PReLU()
    assert agrees(Calls(first_of, first=first, layer=layer()), shape)


@pytest.mark.skipif(not NEW, reason="older versions are foreseen too high")
@pytest.mark.parametrize(
    "run",
    [
        lambda self, x: self.pair(x, x),
        lambda self, x: self.layer(x).half() @ self.layer.weight.half(),
        lambda self, x: torch.complex(self.layer(x), x).abs(),
        lambda self, x: self.layer(x).T.log_softmax(1),
        lambda self, x: self.layer(x).kthvalue(3, 0).values[None],
    ],
    ids=["bilinear", "half", "complex", "transposed", "kth value"],
)
def test_peak_of_operators_that_hold_more_than_they_give(run):
    """A trial on zeros shows what."""
    assert agrees(Calls(run, layer=nn.Linear(96, 96), pair=nn.Bilinear(96, 96, 24)), (192, 96))


@pytest.mark.skipif(not NEW, reason="older versions are foreseen too high")
@pytest.mark.parametrize("loss", [F.mse_loss, F.smooth_l1_loss, F.soft_margin_loss, lambda a, b: F.huber_loss(a, b)])
def test_peak_of_losses_that_shrink_their_output(loss):
    """The one number that is left lies in memory for all."""
    assert agrees(nn.Linear(64, 1000), (512, 64), loss=lambda output: loss(output, torch.ones(512, 1000)))


def values_of(y):
    return y[y > 0][None]


@pytest.mark.skipif(not NEW, reason="older versions are foreseen too high")
@pytest.mark.parametrize(
    "run",
    [
        lambda self, x: self.layer(x).amax(1, keepdim=True),
        lambda self, x: self.layer(x).sum(1, keepdim=True, dtype=torch.double),
        lambda self, x: torch.linalg.pinv(self.layer(x)),
        lambda self, x: self.layer(x).nansum(1, keepdim=True),
        lambda self, x: torch.maximum(self.layer(x), x),
        lambda self, x: self.layer(x).take(torch.arange(1000))[None],
        lambda self, x: F.soft_margin_loss(self.layer(x), x, reduction="none"),
        lambda self, x: self.bag(torch.arange(1600).view(200, 8) % 100),
        lambda self, x: self.lrn(self.layer(x).view(16, 12, 8, 12)).flatten(1),
        lambda self, x: values_of(self.layer(x)),
    ],
    ids=["amax", "dtype", "pinv", "nansum", "maximum", "take", "margin", "bag", "lrn", "values"],
)
def test_peak_of_operators_that_have_no_rule(run):
    """Any of them is tried, or run, and does in place what it does where none looks."""
    bag, lrn = nn.EmbeddingBag(100, 96, mode="max"), nn.CrossMapLRN2d(3)
    model = Calls(run, layer=nn.Linear(96, 96), bag=bag, lrn=lrn)
    assert agrees(model, (192, 96), loss=lambda output: output.square().sum())


@pytest.mark.skipif(not NEW, reason="older versions are foreseen too high")
@pytest.mark.parametrize("options", [["pos_weight"], ["weight"], ["pos_weight", "weight"], []], ids=str)
def test_peak_of_a_loss_with_weights(options):
    """Its formula works in place with weights of positives only."""
    truth = torch.ones(512, 1000)
    loss = nn.BCEWithLogitsLoss(**dict.fromkeys(options, torch.ones(1000)))
    assert agrees(nn.Linear(64, 1000), (512, 64), loss=lambda output: loss(output, truth))


def test_peak_of_a_frozen_encoder_in_eval_mode():
    """Its attention is computed by a fused kernel, which holds all scores; the layers are shown all the same."""
    encoder = nn.TransformerEncoderLayer(64, 4, 64, batch_first=True).eval().requires_grad_(False)
    model = nn.Sequential(encoder, nn.Linear(64, 8))
    assert agrees(model, (8, 128, 64), loss=lambda output: output.square().sum())
    assert [part.calls for part in measure(model, (torch.randn(8, 128, 64),), {}).modules[:3]] == [1, 1, 1]


def test_the_gradient_of_a_sum_is_copied_for_a_product():
    """It has no memory of its own, and a product wants rows or columns."""
    assert agrees(nn.Linear(256, 512), (256, 256), loss=torch.sum)


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


@pytest.mark.filterwarnings("ignore")
def test_other_layouts_are_passed_by():
    """A sparse matrix lies neither in rows nor in columns."""
    model = Calls(lambda self, x: torch.sparse.mm(torch.eye(64).to_sparse_csr(), self.layer(x)), layer=nn.Linear(8, 8))
    assert measure(model, (torch.randn(64, 8),), {}).peak_bytes > 0


def test_a_sparse_tensor_is_as_large_as_its_parts():
    """Not as large as the dense one that it stands for."""
    eye = torch.eye(1000).to_sparse()
    assert memory_of(eye)[1] == 1000 * (2 * 8 + 4)
    assert memory_of(eye.to_sparse_csr())[1] == 1000 * (8 + 4) + 1001 * 8


def test_other_devices_are_not_known():
    """The rules are those of kernels on the CPU."""
    x = torch.empty(1, 16, 8, 8, device="meta")
    args = x, x, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1
    assert scratch_bytes(torch.ops.aten.convolution.default, args, {}, x) == 0
