"""What is frozen and moves all the same is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ftkit._freezing.freeze import freeze, freeze_except, unfreeze
from ftkit._freezing.verifying import verify_frozen
from ftkit.errors import FtkitError, SelectionError
from tests.freezing.models import Net, images, step


def test_a_step_of_a_frozen_model_passes() -> None:
    """With frozen parts, thawed norms that keep their statistics, and norms that are meant to move."""
    model = Net()
    freeze_except(model, "head")
    with verify_frozen(model):
        step(model, images())
    unfreeze(model, "backbone.4")
    with verify_frozen(model):
        step(model, images())
    freeze(model, "backbone", norm_stats=False)
    with verify_frozen(model):
        step(model, images())


class Contrast(nn.Module):
    """A root with a queue, a mean teacher, an embedding that rewrites itself and an observer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.zeros(2))
        self.words = nn.Embedding(4, 3, max_norm=0.1)
        self.observer = torch.ao.quantization.FakeQuantize()
        self.body, self.teacher = nn.Linear(3, 3), nn.Linear(3, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.observer(self.body(self.words(x)))
        self.queue = self.queue + 1
        with torch.no_grad():
            self.teacher.weight += 1
        return self.head(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_all_that_moves_in_spite_of_freezing_is_named() -> None:
    """Buffers of a root that trains in part, max_norm, averages and observers; and selectors narrow it down."""
    model = Contrast()
    freeze_except(model, "head")
    with pytest.raises(FtkitError) as caught, verify_frozen(model):
        step(model, torch.tensor([0, 1]))
    for name in ("queue", "words.weight", "teacher.weight", "observer."):
        assert name in str(caught.value)
    assert "body." not in str(caught.value)
    assert "head." not in str(caught.value)
    with verify_frozen(model, "body"):
        step(model, torch.tensor([0, 1]))


def test_what_was_frozen_by_hand_is_checked_too() -> None:
    """The usual loop, which leaves the statistics of norms moving."""
    model = Net()
    model.backbone.requires_grad_(False)
    with (
        pytest.raises(FtkitError, match=r"6 of 14 frozen tensors changed: backbone\.1\.running_mean"),
        verify_frozen(model),
    ):
        step(model, images())


def test_what_an_optimizer_moves_or_somebody_takes_away_is_named() -> None:
    """A change of the last bit counts; so does a parameter that is gone."""
    model = Net()
    freeze_except(model, "head")
    bias = model.backbone[0].bias.data
    with pytest.raises(FtkitError, match=r"1 of \d+ frozen tensors changed: backbone\.0\.bias"), verify_frozen(model):
        bias[:1] = torch.nextafter(bias[:1], torch.tensor(9.0))
    with pytest.raises(FtkitError, match=r"backbone\.0\.bias"), verify_frozen(model):
        model.backbone[0].bias = None


def test_an_error_inside_is_not_hidden_and_nothing_frozen_is_an_error() -> None:
    """A selector that matches nothing too."""
    model = Net()
    with pytest.raises(FtkitError, match="Nothing selected in the Net is frozen"), verify_frozen(model):
        pass
    with pytest.raises(SelectionError, match="backbone"), verify_frozen(model, "backbon"):
        pass
    freeze(model, "backbone")
    with pytest.raises(ZeroDivisionError), verify_frozen(model):
        model.backbone[0].bias.data += 1
        1 / 0  # noqa: B018


def test_a_weight_with_two_names_is_one() -> None:
    """It is checked once, and hasn't changed because it goes by another name."""
    words, scores = nn.Embedding(4, 3), nn.Linear(3, 4, bias=False)
    scores.weight = words.weight
    model = nn.Sequential(words, nn.Linear(3, 3), scores)
    freeze(model, "0")
    with verify_frozen(model):
        step(model, torch.tensor([0, 1]))
    with pytest.raises(FtkitError, match=r"1 of 1 frozen tensor changed: 0\.weight"), verify_frozen(model):
        scores.weight.data += 1


def estimated() -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))


def whitened() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, affine=False))


@pytest.mark.parametrize("make", [estimated, whitened])
def test_what_has_no_parameters_is_frozen_with_what_it_is_in(make: Callable[[], nn.Module]) -> None:
    """A spectral norm of a frozen weight, a norm without weights of its own; but not one that stands by itself."""
    torch.manual_seed(0)
    model = nn.Sequential(make().requires_grad_(False), nn.BatchNorm1d(8, affine=False), nn.Linear(8, 2)).train()
    with pytest.raises(FtkitError, match=r"frozen tensors changed: 0\.") as caught, verify_frozen(model):
        model(torch.randn(8, 8))
    assert " 1." not in str(caught.value)


def test_looking_changes_nothing() -> None:
    """Memory that could be resized before can be resized after: observers do so with their ranges."""
    layer, ranges = nn.Linear(3, 3), torch.zeros(1)
    layer.register_buffer("ranges", ranges)
    model = nn.Sequential(layer, nn.Linear(3, 2))
    freeze(model, "0")
    with verify_frozen(model):
        pass
    assert ranges.resize_(5).shape == (5,)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(3, device="meta"),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.zeros(3, dtype=torch.float8_e4m3fn),
        lambda: torch.zeros(1).expand(5),
    ],
)
def test_tensors_of_all_kinds_are_compared(make: Callable[[], torch.Tensor]) -> None:
    """Whatever a frozen module has."""
    layer = nn.Linear(3, 3)
    layer.register_buffer("odd", make())
    model = nn.Sequential(layer, nn.Linear(3, 2))
    freeze(model, "0")
    with verify_frozen(model):
        step(model, torch.randn(4, 3))
