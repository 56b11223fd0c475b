"""Optimizers get their history back, whatever groups they were built with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ftkit import freeze_except, load_checkpoint, save_checkpoint
from tests.checkpoints.runs import flat, make, steps


def test_moments_of_another_type_stay_exact(tmp_path: Path) -> None:
    """32-bit moments of 16-bit parameters are not rounded, as torch's own loading does."""
    model = nn.Linear(4, 4).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for parameter in model.parameters():
        optimizer.state[parameter]["average"] = torch.rand_like(parameter, dtype=torch.float32)
    save_checkpoint(tmp_path / "a.safetensors", model=model, optimizer=optimizer)
    other = torch.optim.SGD(model.parameters(), 0.1)
    load_checkpoint(tmp_path / "a.safetensors", model=model, optimizer=other)
    for parameter in model.parameters():
        assert torch.equal(other.state[parameter]["average"], optimizer.state[parameter]["average"])


def test_a_parameter_the_checkpoint_did_not_train_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What the script thaws beyond the saved run goes on in the optimizer, trainable, with a warning."""
    model = make()
    freeze_except(model, "4")
    optimizer = torch.optim.AdamW(model[4].parameters())
    steps(model, optimizer)
    save_checkpoint(tmp_path / "a.safetensors", model=model, optimizer=optimizer)
    again = make()
    freeze_except(again, "4", "1")
    other = torch.optim.AdamW([*again[1].parameters(), *again[4].parameters()], 0.5)
    load_checkpoint(tmp_path / "a.safetensors", model=again, optimizer=other)
    assert "without a history" in caplog.text
    assert [len(group["params"]) for group in other.param_groups] == [2, 2]
    assert [group["lr"] for group in other.param_groups] == [1e-3, 0.5]
    assert again[1].weight.requires_grad
    steps(again, other)


def test_groups_in_another_order_are_matched_by_name(tmp_path: Path) -> None:
    """Moments follow their parameters, however the new optimizer was built."""
    model = make()
    optimizer = torch.optim.AdamW([{"params": model[0].parameters(), "lr": 0.5}, {"params": model[4].parameters()}])
    steps(model, optimizer)
    save_checkpoint(tmp_path / "a.safetensors", model=model, optimizer=optimizer)
    steps(model, optimizer)
    again = make()
    other = torch.optim.AdamW(reversed(list(again[4].parameters())))
    load_checkpoint(tmp_path / "a.safetensors", model=again, optimizer=other)
    steps(again, other)
    assert torch.equal(flat(again), flat(model))
