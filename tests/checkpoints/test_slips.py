"""A misspelled argument is no extra value."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ftkit import CheckpointManager, load_checkpoint, save_checkpoint
from ftkit._checkpoints.slips import _ARGUMENTS, _slips, refuse_slips
from ftkit.errors import FtkitError
from tests.checkpoints.runs import names

HONEST = """
    classes config cfg args history epochs steps hparams params best best_acc best_loss best_epoch best_model_2
    loss losses lr notes labels label_map vocab tokenizer stopping early_stopping schedule scale mean std seed
    git_hash version run_id dataset data samples mode models optimizers optimizer_d optimizer2 d_optimizer
    lr_scheduler warmup_scheduler model_ema ema_decay epoch_time total_steps min_epoch stop temperature setup
    criterion generator discriminator amp mae meta gamma beta image_size transform normalizer matrices elapsed
    name task time threshold weights
"""
SLIPS = {
    "optimiser": "optimizer",
    "optimzer": "optimizer",
    "optimizr": "optimizer",
    "otpimizer": "optimizer",
    "optmizer": "optimizer",
    "optimizier": "optimizer",
    "Optimizer": "optimizer",
    "epcoh": "epoch",
    "epoc": "epoch",
    "eopch": "epoch",
    "epohc": "epoch",
    "Epoch": "epoch",
    "sheduler": "scheduler",
    "schduler": "scheduler",
    "shceduler": "scheduler",
    "schedular": "scheduler",
    "scheduller": "scheduler",
    "scalar": "scaler",
    "scalerr": "scaler",
    "sacler": "scaler",
    "smapler": "sampler",
    "sampelr": "sampler",
    "metric": "metrics",
    "mertics": "metrics",
    "metircs": "metrics",
    "stpe": "step",
    "stp": "step",
    "step_": "step",
    "modle": "model",
    "modl": "model",
    "EMA": "ema",
    "eam": "ema",
    "rgn": "rng",
    "dleta": "delta",
    "midepoch": "mid_epoch",
}


@pytest.mark.parametrize("name", HONEST.split())
def test_usual_names_are_kept(name: str) -> None:
    """Also those that lie close to an argument's: plurals, words of their own, one of several."""
    refuse_slips("save_checkpoint", [name])


@pytest.mark.parametrize("name", SLIPS)
def test_slips_are_refused(name: str) -> None:
    """With what was meant."""
    with pytest.raises(FtkitError, match=f"'{name}'.*Did you mean '{SLIPS[name]}'"):
        refuse_slips("save_checkpoint", ["classes", name])


def test_all_four_calls_refuse_alike_and_write_nothing(tmp_path: Path) -> None:
    """Before anything is written or changed."""
    model, manager = torch.nn.Linear(1, 1), CheckpointManager(tmp_path / "runs")
    save_checkpoint(tmp_path / "a.safetensors", model=model, epochs=3)
    calls: list[Callable[..., Any]] = [
        lambda **extra: save_checkpoint(tmp_path / "b.safetensors", model=model, **extra),
        lambda **extra: load_checkpoint(tmp_path / "a.safetensors", model=model, **extra),
        lambda **extra: manager.save(0, model=model, **extra),
        lambda **extra: manager.resume(model=model, **extra),
    ]
    for call in calls:
        with pytest.raises(FtkitError, match="Did you mean 'optimizer'"):
            call(optimiser=torch.optim.SGD(model.parameters()))
        assert names(tmp_path) == ["a.safetensors", "runs"]
        assert names(tmp_path / "runs") == []
    with pytest.raises(FtkitError, match="takes no delta="):
        manager.save(0, model=model, delta=True)
    with pytest.raises(FtkitError, match="takes no mid_epoch="):
        save_checkpoint(tmp_path / "b.safetensors", model=model, mid_epoch=True)


def test_the_arguments_are_those_of_the_four_calls() -> None:
    """A new one must be known to the others."""
    calls: list[Callable[..., Any]] = [
        save_checkpoint,
        load_checkpoint,
        CheckpointManager.save,
        CheckpointManager.resume,
    ]
    parameters = [one for call in calls for one in inspect.signature(call).parameters.values()]
    named = {one.name for one in parameters if one.kind is not one.VAR_KEYWORD}
    assert named - {"self", "path"} == set(_ARGUMENTS)


@pytest.mark.parametrize(
    ("name", "known", "count"),
    [("", "abc", 3), ("abc", "", 3), ("ca", "ac", 1), ("abcd", "acbd", 1), ("kitten", "sitting", 3)],
)
def test_slips_are_counted(name: str, known: str, count: int) -> None:
    """As letters missing, too many, wrong, or swapped."""
    assert _slips(name, known) == count
