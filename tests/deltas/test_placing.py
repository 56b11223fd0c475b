"""A base gets the layers of a delta, and is as it was if that fails."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ftkit._deltas.changes import split, tensors_of
from ftkit._deltas.placing import fill, place
from ftkit._models.undo import Undo
from ftkit.errors import CheckpointError


def base(classes: int = 5) -> Any:
    """A pretrained model: the same weights each time, and a configuration that counts its classes."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, classes))
    model.config = SimpleNamespace(num_labels=classes)
    return model


def delta_of(model: nn.Module, changed: set[str]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The record and the tensors of a delta."""
    tensors, _, record = split(model, tensors_of(model), changed)
    return record, {name: tensor.detach().clone() for name, tensor in tensors.items()}


def picture(model: Any) -> dict[str, Any]:
    """What must be as it was: the objects, and what counts the classes."""
    parts = {name: id(part) for name, part in [*model.named_modules(), *model.named_parameters()]}
    return parts | {"classes": model.config.num_labels, "outputs": model[2].out_features}


@pytest.mark.parametrize(
    "head", [nn.Linear(8, 3), nn.Linear(8, 3, bias=False), nn.Sequential(nn.Dropout(0.1), nn.Linear(8, 3))]
)
def test_layers_are_placed_and_taken_out_again(head: nn.Module) -> None:
    """A resized head and one that is built anew, their counters too."""
    tuned = base()
    tuned[2] = head
    record, tensors = delta_of(tuned, {name for name in tensors_of(tuned) if name.startswith("2.")})
    model = base()
    before = picture(model)
    undo = Undo()
    place(model, record, tensors, undo)
    assert model.config.num_labels == 3
    fill(model, tensors)
    assert all(map(torch.equal, model.state_dict().values(), tuned.state_dict().values()))
    undo.take_back()
    assert picture(model) == before


def test_an_attempt_that_leads_nowhere_leaves_nothing() -> None:
    """A layer that can't be fitted by another count of classes, nor built, is an error; the base is as it was."""
    tuned = base()
    tuned[2] = nn.Linear(6, 3)
    record, tensors = delta_of(tuned, {"2.weight", "2.bias"})
    record["layers"] = {}
    model = base()
    before = picture(model)
    with pytest.raises(CheckpointError, match=r"'2.weight'"), Undo() as undo:
        place(model, record, tensors, undo)
    assert picture(model) == before


def test_no_random_numbers_are_drawn() -> None:
    """New layers draw their first weights from a generator that is put back."""
    record, tensors = delta_of(base(3), {"2.weight", "2.bias"})
    model = base()
    before = torch.get_rng_state()
    place(model, record, tensors, Undo())
    assert torch.equal(torch.get_rng_state(), before)
