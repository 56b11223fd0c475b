"""What a model is measured on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ftkit import FtkitError, summary
from tests.summaries.helpers import Network


@pytest.mark.parametrize(
    ("given", "shape"),
    [
        ({"input_size": (4, 8)}, (4, 8)),
        ({"input_size": [(4, 8), (4, 1)]}, ((4, 8), (4, 1))),
        ({"input_size": (4, 8), "dtypes": torch.float64}, (4, 8)),
        ({"input_data": torch.ones(4, 8)}, (4, 8)),
        ({"input_data": (torch.ones(4, 8), torch.ones(4, 1))}, ((4, 8), (4, 1))),
        ({"input_data": {"x": torch.ones(4, 8)}}, (4, 8)),
        ({"input_data": ((torch.ones(4, 8),), {"scale": torch.ones(4, 1)})}, ((4, 8), (4, 1))),
    ],
)
def test_inputs_come_in_many_ways(given, shape):
    """Shapes or data, positional or by keyword."""

    class Scaled(nn.Module):
        def forward(self, x, scale=None):
            return x if scale is None else x * scale

    assert summary(Scaled(), **given).rows[0].input_shape == shape


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"input_size": (2, 8), "input_data": torch.ones(2, 8)}, "got both"),
        ({"input_size": (2, -8)}, r"not \(2, -8\)"),
        ({"input_size": "2x8"}, "not '2x8'"),
        ({"input_size": (2, 8), "dtypes": [torch.float32] * 2}, "as many dtypes as shapes, got 2 for 1"),
        ({"dtypes": torch.float32}, "dtypes belong to input_size"),
        ({"input_data": [torch.ones(2, 8)]}, "got list: if that is the model's only argument"),
        ({"input_size": (2, 8), "mode": "trian"}, "Did you mean 'train'"),
        ({"input_size": (2, 9)}, "mat1 and mat2 shapes cannot be multiplied"),
    ],
)
def test_bad_arguments_say_what_was_expected(given, said):
    """Each error names what came."""
    with pytest.raises(FtkitError, match=said):
        summary(nn.Linear(8, 8), **given)
    with pytest.raises(FtkitError, match=r"must be a torch\.nn\.Module, but this is the class Linear"):
        summary(nn.Linear, (2, 8))


def test_tokens_given_as_floats_are_explained():
    """The mistake that input_size invites."""
    with pytest.raises(FtkitError, match=r"Tokens are integers: pass dtypes=torch\.long"):
        summary(Network(), (2, 16))


def test_a_missing_batch_dimension_is_named():
    """Where one in front would help, and nowhere else."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    with pytest.raises(FtkitError, match=r"batch dimension seems to be missing: pass \(1, 3, 8, 8\)"):
        summary(model, (3, 8, 8))
    for size, loss in (((1, 3, 8), None), ((1, 8, 8, 3), None), ((2, 3, 8, 8), lambda _: None)):
        with pytest.raises(FtkitError) as caught:
            summary(model, size, loss=loss)
        assert "batch dimension" not in str(caught.value)
