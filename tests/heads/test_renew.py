"""A new layer is like the old one, and starts as the model starts its own."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.utils.prune
from torch import nn

from ftkit import freeze, is_frozen, replace_head
from ftkit.errors import HeadError
from tests.heads.nets import Net


def test_keep_carries_rows_over() -> None:
    """Rows of classes that stay are those of the old layer, weight-normed or not."""
    for layer in (nn.Linear(8, 10), nn.utils.parametrizations.weight_norm(nn.Linear(8, 10))):
        old = copy.deepcopy(layer)
        model = Net(fc=layer)
        replace_head(model, 4, keep={2: 9, 0: 1})
        torch.testing.assert_close(model.fc.weight[[2, 0]], old.weight[[9, 1]])
        torch.testing.assert_close(model.fc.bias[[2, 0]], old.bias[[9, 1]])


def test_device_dtype_mode_bias_and_gradients_are_kept() -> None:
    """The new layer is like the old one."""
    model = Net(fc=nn.Linear(8, 10, bias=False)).double().eval()
    replace_head(model, 3)
    assert model.fc.weight.dtype == torch.float64
    assert model.fc.bias is None
    assert not model.fc.training
    model = Net(fc=nn.Linear(8, 10))
    model.fc.weight.requires_grad_(False)
    replace_head(model, 3)
    assert [p.requires_grad for p in model.fc.parameters()] == [False, True]
    model = Net(fc=nn.Linear(8, 10))
    freeze(model, "**")
    replace_head(model, 3)
    assert all(p.requires_grad for p in model.fc.parameters())
    assert not is_frozen(model, "fc")
    assert not model.fc._forward_pre_hooks


@pytest.mark.parametrize(
    "wrap",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.spectral_norm,
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("width", [12, 10])
def test_normed_weights_stay_normed(wrap: object, width: int) -> None:
    """A computed weight is computed for the new count too, and trains."""
    model = nn.Sequential(nn.Flatten(), wrap(nn.Linear(width, 10)))
    replace_head(model, 4)
    out = model(torch.randn(2, width))
    assert out.shape == (2, 4)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    if "spectral" in str(wrap):
        assert torch.linalg.matrix_norm(model.eval()[1].weight.detach(), 2).item() == pytest.approx(1.0, abs=0.05)


def test_a_parametrization_of_one_shape_is_an_error() -> None:
    """The message says how to take it off."""
    model = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.orthogonal(nn.Linear(12, 10)))
    with pytest.raises(HeadError, match="remove_parametrizations"):
        replace_head(model, 4)
    assert model[1].out_features == 10


def test_a_pruned_head_is_an_error() -> None:
    """A mask of the old shape can't follow; the message says how to end it."""
    model = Net(fc=nn.Linear(8, 10))
    nn.utils.prune.l1_unstructured(model.fc, "weight", amount=3)
    with pytest.raises(HeadError, match=r"prune\.remove"):
        replace_head(model, 4)


def test_a_cosine_head_keeps_its_temperature() -> None:
    """A layer of the user's own is resized by its shape."""

    class Cosine(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(outputs, inputs))
            self.scale = nn.Parameter(torch.tensor(16.0))
            self.out_features = outputs

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.scale * nn.functional.linear(nn.functional.normalize(x), nn.functional.normalize(self.weight))

    model = Net(last=Cosine(8, 10))
    replace_head(model, 3)
    assert (model.last.out_features, model.last.scale.item()) == (3, 16.0)
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 3)
    assert 0 < model.last.weight.abs().max() < 2


def test_retinanet_starts_with_its_prior_and_keeps_rows_by_anchor() -> None:
    """The focal loss's prior comes along; the row of a class that stays does so for each anchor."""
    from torchvision.models.detection import retinanet_resnet50_fpn

    model = retinanet_resnet50_fpn(weights=None, weights_backbone=None)
    layer = model.head.classification_head.cls_logits
    with torch.no_grad():
        layer.bias.copy_(torch.arange(819.0))
    replace_head(model, 5, keep={2: 90})
    new = model.head.classification_head
    assert new.num_classes == 5
    bias = new.cls_logits.bias.detach().view(9, 5)
    assert bias[:, 2].tolist() == [91.0 * anchor + 90 for anchor in range(9)]
    assert bias[:, 0].tolist() == pytest.approx([-4.595] * 9, abs=1e-3)
    torch.testing.assert_close(new.cls_logits.weight.view(9, 5, -1)[:, 2], layer.weight.view(9, 91, -1)[:, 90])
