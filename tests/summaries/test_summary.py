"""What a summary counts, exports and predicts."""

from __future__ import annotations

import csv
import io
import json

import pytest
import torch
from torch import nn

from ftkit import FtkitError, largest_batch, summary
from tests.cost.helpers import Calls
from tests.summaries.helpers import TOKENS, Network


def test_figures_of_a_tied_model():
    """Parameters, bytes and buffers count once, by module and in all."""
    model = Network(blocks=1)
    model.register_buffer("scale", torch.ones(3))
    found = summary(model)
    assert (found.total_params, found.buffers) == (1000 * 64 + 2 * 64 + 2 * (64 * 64 + 64), 3)
    assert found.param_bytes == 4 * found.total_params
    assert found.tied == ("head.weight",)
    assert {row.name: row.params for row in found.rows}["head"] == 64_000
    with pytest.raises(FtkitError, match="pass input_size or input_data"):
        found.peak_training_bytes(torch.optim.SGD)


def test_what_is_in_force_around_the_call_holds():
    """Under autocast, what is kept is what autocast keeps."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
    plain = summary(model, (32, 64))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        half = summary(model, (32, 64))
    assert half.forward_flops == plain.forward_flops
    assert half.backward_flops == plain.backward_flops
    assert half.saved_bytes != plain.saved_bytes


def test_a_loss_of_ones_own_counts():
    """What it keeps is kept by the step, and belongs to no module."""
    model = nn.Linear(8, 1000)
    target = torch.zeros(4, dtype=torch.long)
    found = summary(model, (4, 8), loss=lambda output: nn.functional.cross_entropy(output, target))
    assert found.saved_bytes >= 4 * 1000 * 4 > found.rows[0].saved_bytes
    assert summary(model, (4, 8), loss=torch.sum).saved_bytes == found.rows[0].saved_bytes


def test_exports_hold_all_figures():
    """JSON and CSV can be read back."""
    found = summary(Network(), **TOKENS)
    read = json.loads(found.to_json())
    assert read["total_params"] == found.total_params
    assert read["rows"][0]["output_shape"] == [2, 16, 1000]
    lines = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [line["name"] for line in lines] == [row.name for row in found.rows]
    assert sum(int(line["forward_flops"]) for line in lines if line["type"] == "Linear") == found.forward_flops


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("memory", [3_000_000, 20_000_000])
def test_largest_batch_is_the_largest(optimizer, memory):
    """One more example would not fit."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 900, 10))
    batch = largest_batch(model, (7, 3, 32, 32), memory=memory, optimizer=optimizer)
    peaks = [summary(model, (size, 3, 32, 32)).peak_training_bytes(optimizer) for size in (batch, batch + 1)]
    assert peaks[0] <= memory < peaks[1]


def test_memory_that_grows_with_the_square_of_the_batch_takes_few_runs():
    """As where every example is compared with every other: a line through two sizes bends far off."""
    sizes = set()

    def compared(self, x):
        sizes.add(len(x))
        z = self.layer(x)
        return z @ z.T

    model = Calls(compared, layer=nn.Linear(64, 64))
    assert largest_batch(model, (1, 64), memory="2MB", optimizer=torch.optim.SGD) == 336
    assert {336, 337} <= sizes
    assert len(sizes) <= 12


def test_largest_batch_can_be_none():
    """Where not even one example fits; where not even the parameters do, or nothing grows, it says so."""
    model = nn.Linear(100, 100)
    assert largest_batch(model, (1, 100), memory=40_500, optimizer=torch.optim.SGD) == 0
    with pytest.raises(FtkitError, match=r"parameters alone take 39\.5 KiB; memory is 8 B"):
        largest_batch(model, (1, 100), memory=8, optimizer=torch.optim.SGD)

    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(10))

        def forward(self, x):
            return self.weight.sum()

    with pytest.raises(FtkitError, match="does not grow with the batch"):
        largest_batch(Constant(), (1, 0), memory=10**9, optimizer=torch.optim.SGD)


def test_largest_batch_says_what_it_can_not_search():
    """A model for one batch size only, or that lacks inputs, or of which nothing trains; none is told of input_data."""

    def find(model, size=(8, 64)):
        with pytest.raises(FtkitError) as caught:
            largest_batch(model, size, memory="1GB", optimizer=torch.optim.SGD)
        assert "input_data" not in str(caught.value)
        return str(caught.value)

    fixed = Calls(lambda self, x: self.layer(x.view(8, -1, 64)), layer=nn.Linear(64, 64))
    assert "takes a first dimension of 8, not of 2" in find(fixed)
    assert "give the shape of each in input_size" in find(
        Calls(lambda self, x, y: self.layer(x + y), layer=nn.Linear(64, 64))
    )
    assert "pass dtypes=torch.long." in find(nn.Embedding(10, 4))
    assert "Nothing in the model trains" in find(nn.Linear(64, 64).requires_grad_(False))


def test_wrapped_models_are_looked_at_from_inside():
    """Names and figures are those of the model itself."""
    model = Network()
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        assert summary(wrapped, **TOKENS).to_dict() == summary(model, **TOKENS).to_dict()


def test_a_detection_model_takes_its_list(tmp_path):
    """Shapes that depend on values are found in one real step, which the summary tells."""
    import torchvision

    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    found = summary(model.eval(), input_data=([torch.rand(3, 64, 64)],))
    boxes, labels, scores = found.rows[0].output_shape
    assert boxes[0] == labels[0] == scores[0]
    assert "with real tensors" in str(found)


@pytest.mark.slow
def test_zoo_agrees_with_the_counter():
    """FLOPs and output shapes of a hundred networks, against torch's counter with plain attention."""
    import timm
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    for name in timm.list_models()[::12]:
        model = timm.create_model(name).eval()
        if sum(parameter.numel() for parameter in model.parameters()) > 30e6:
            continue
        x = torch.randn(1, *timm.data.resolve_model_data_config(model)["input_size"])
        found = summary(model, input_data=x)
        model.requires_grad_(False)  # the counter can't follow a parameter's view that has no history
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            output = model(x)
        assert found.forward_flops == counter.get_total_flops(), name
        assert found.rows[0].output_shape == tuple(output.shape), name
