"""The rows of a summary."""

from __future__ import annotations

import json

import torch
from torch import nn

from ftkit import summary


def test_a_module_called_often_is_one_row():
    """With its calls, and the sum of its costs."""
    layer = nn.Linear(8, 8)
    found = summary(nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), layer), (4, 8))
    assert [(row.name, row.calls) for row in found.rows] == [("", 1), ("0", 3), ("1", 1), ("3", 1)]
    assert found.rows[1].forward_flops == found.forward_flops == 3 * 2 * 4 * 8 * 8
    assert "0  Linear (called 3x)" in str(found)


def test_a_list_of_layers_costs_what_they_cost():
    """Though it is never called itself."""

    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)])

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    found = summary(Listed(), (4, 8))
    whole, listed = found.rows[:2]
    assert (listed.calls, listed.output_shape) == (0, None)
    for name in ("forward_flops", "backward_flops", "saved_bytes"):
        assert getattr(listed, name) == getattr(whole, name) > 0
    assert "not called" not in str(found)


def test_a_ragged_dimension_has_no_size():
    """It is -1 wherever shapes are written."""

    class Ragged(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            return self.layer(torch.nested.nested_tensor([x[0], x[1][:3]], layout=torch.jagged)).values()

    found = summary(Ragged(), input_data=torch.randn(2, 5, 8))
    assert found.rows[1].output_shape == (2, -1, 8)
    assert found.forward_flops == found.backward_flops == 2 * (5 + 3) * 8 * 8
    assert json.loads(found.to_json())["rows"][1]["output_shape"] == [2, -1, 8]


def test_mode_is_as_it_ran():
    """By default as it stands; else as asked, and the model is left alone."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout()).eval()
    assert {row.mode for row in summary(model, (2, 8)).rows} == {"eval"}
    assert {row.mode for row in summary(model, (2, 8), mode="train").rows} == {"train"}
    assert not any(module.training for module in model.modules())


def test_a_shared_module_counts_in_each_of_its_parents():
    """Also where it is registered above them first: parameters of every row, and the costs of lists."""

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.every = nn.ModuleList([nn.Linear(8, 8)])
            self.block = nn.ModuleList([self.every])

        def forward(self, x):
            return self.block[0][0](x)

    rows = {row.name: row for row in summary(Shared(), (4, 8)).rows}
    for name in ("params", "trainable", "forward_flops", "backward_flops"):
        assert getattr(rows["block"], name) == getattr(rows["every"], name) == getattr(rows["every.0"], name) > 0
