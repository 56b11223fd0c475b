"""What is frozen and moves all the same is named."""

from __future__ import annotations

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
