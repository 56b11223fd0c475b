"""A model that would not run with its new head keeps the old one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ftkit import replace_head
from ftkit.errors import HeadError
from tests.heads.nets import Wired, features, wired


def test_a_count_hidden_in_the_forward_is_an_error_that_changes_nothing() -> None:
    """A head whose outputs are reshaped to the old count: the proof run fails, and the old layer stays."""

    class Reshaped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.out = features(), nn.Linear(8, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.body(x)).view(-1, 5, 2)

    model = Reshaped()
    old = model.out
    with pytest.raises(HeadError, match="does not run any more"):
        replace_head(model, 3)
    assert model.out is old


def test_a_view_that_swallows_the_new_count_is_an_error() -> None:
    """The model runs, but what were rows are classes now."""
    model = wired(lambda self, x: self.out(self.body(x)).view(-1, 2), body=features(), out=nn.Linear(8, 2))
    with pytest.raises(HeadError, match="does not run any more as before"):
        replace_head(model, 3)
    assert model.out.out_features == 2


def test_a_loss_of_its_own_that_counts_the_classes_is_an_error() -> None:
    """The model takes labels, and its loss a count that is written in the code."""

    def forward(self: Wired, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        scores = self.out(self.body(x))
        given = {"scores": scores}
        if labels is not None:
            given["loss"] = nn.functional.cross_entropy(scores.view(-1, 2), labels)
        return given

    model = wired(forward, body=features(), out=nn.Linear(8, 2))
    with pytest.raises(HeadError, match="batch_size"):
        replace_head(model, 3)
    assert model.out.out_features == 2
