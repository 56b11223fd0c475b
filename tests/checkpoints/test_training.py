"""Training goes on after a checkpoint as if it had never stopped."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ftkit import (
    CheckpointManager,
    EarlyStopping,
    freeze_except,
    load_checkpoint,
    param_groups,
    save_checkpoint,
    unfreeze,
)
from ftkit._formats import open_file
from ftkit.errors import CheckpointError, FtkitError
from tests.checkpoints.runs import flat, make, steps


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_resume_is_exact(tmp_path: Path, suffix: str) -> None:
    """Training after a resume is the same to the bit, with optimizer, scheduler, scaler and random numbers."""
    path = tmp_path / f"run{suffix}"
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    steps(model, optimizer)
    scheduler.step()
    save_checkpoint(
        path, model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler, epoch=4, metrics={"loss": 0.5}
    )
    steps(model, optimizer)
    torch.manual_seed(99)
    again = make()
    other = torch.optim.AdamW(again.parameters(), 1.0)
    plan = torch.optim.lr_scheduler.MultiStepLR(other, [2, 4])
    scale = torch.amp.GradScaler("cpu")
    checkpoint = load_checkpoint(path, model=again, optimizer=other, scheduler=plan, scaler=scale)
    steps(again, other)
    assert torch.equal(flat(again), flat(model))
    assert (checkpoint.epoch, checkpoint.metrics) == (4, {"loss": 0.5})
    assert plan.state_dict() == scheduler.state_dict()
    assert scale.state_dict() == scaler.state_dict()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_resume_after_an_unfreeze_is_exact(tmp_path: Path, suffix: str) -> None:
    """An optimizer built for fewer groups gets all of them back, and what was thawed is trainable."""

    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = make()
        freeze_except(model, "4")
        return model, torch.optim.AdamW(param_groups(model, lr=1e-2, weight_decay=0.1))

    model, optimizer = start()
    steps(model, optimizer)
    unfreeze(model, "0", "1", optimizer=optimizer)
    steps(model, optimizer)
    save_checkpoint(tmp_path / f"run{suffix}", model=model, optimizer=optimizer, epoch=1)
    steps(model, optimizer)
    again, other = start()
    load_checkpoint(tmp_path / f"run{suffix}", model=again, optimizer=other)
    steps(again, other)
    assert torch.equal(flat(again), flat(model))
    assert [g["lr"] for g in other.param_groups] == [g["lr"] for g in optimizer.param_groups]


def test_ema_sampler_extras_and_objects(tmp_path: Path) -> None:
    """Everything with a state comes back into its object, plain values into extra."""
    model = make()
    ema = torch.optim.swa_utils.AveragedModel(model)
    stopping = EarlyStopping(patience=3, mode="min")
    stopping.step(0.5)
    generator = torch.Generator().manual_seed(5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    steps(model, optimizer)
    ema.update_parameters(model)
    path = tmp_path / "run.safetensors"
    save_checkpoint(
        path,
        model=model,
        optimizer=optimizer,
        ema=ema,
        epoch=0,
        step=7,
        metrics={"acc": torch.tensor(0.25)},
        stopping=stopping,
        generator=generator,
        history={"loss": [0.5, float("nan")]},
    )
    number = torch.rand(1, generator=generator)
    again = make()
    average = torch.optim.swa_utils.AveragedModel(make())
    counter = EarlyStopping(patience=3, mode="min")
    dice = torch.Generator()
    checkpoint = load_checkpoint(path, model=again, ema=average, stopping=counter, generator=dice)
    assert torch.equal(flat(average), flat(ema))
    assert counter.state_dict() == stopping.state_dict()
    assert torch.equal(torch.rand(1, generator=dice), number)
    assert (checkpoint.epoch, checkpoint.step, checkpoint.metrics) == (0, 7, {"acc": 0.25})
    assert list(checkpoint.extra) == ["history"]


def test_tables_that_count_come_back_as_they_are(tmp_path: Path) -> None:
    """The milestones of a scheduler are a Counter, whose update() means something else than a dict's."""
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2, 5])
    CheckpointManager(tmp_path).save(0, model=model, optimizer=optimizer, scheduler=scheduler)
    again = torch.optim.lr_scheduler.MultiStepLR(torch.optim.SGD(model.parameters(), 0.1), [1])
    CheckpointManager(tmp_path).resume(model=model, scheduler=again)
    assert again.milestones == scheduler.milestones == {2: 2, 5: 1}


def test_wrapped_models_are_looked_through(tmp_path: Path) -> None:
    """A checkpoint of a wrapped model loads into a bare one, and the other way round."""
    model = nn.DataParallel(make())
    save_checkpoint(tmp_path / "a.safetensors", model=model)
    bare = make()
    load_checkpoint(tmp_path / "a.safetensors", model=bare)
    assert torch.equal(flat(bare), flat(model.module))
    compiled = torch.compile(make())
    load_checkpoint(tmp_path / "a.safetensors", model=compiled)  # type: ignore[arg-type]
    assert torch.equal(flat(compiled), flat(bare))  # type: ignore[arg-type]


def test_random_numbers_are_left_alone_without_an_optimizer(tmp_path: Path) -> None:
    """Loading for evaluation does not turn back the generators of a running training; rng=True does."""
    model = make()
    save_checkpoint(tmp_path / "a.safetensors", model=model)
    first = torch.rand(1)
    load_checkpoint(tmp_path / "a.safetensors", model=model)
    assert not torch.equal(torch.rand(1), first)
    load_checkpoint(tmp_path / "a.safetensors", model=model, rng=True)
    assert torch.equal(torch.rand(1), first)


def test_delta_checkpoints_resume_exactly(tmp_path: Path) -> None:
    """A delta with optimizer and average goes on to the bit from the pretrained model."""

    def start() -> tuple[nn.Module, Any, Any]:
        torch.manual_seed(3)
        model = make()
        freeze_except(model, "4")
        optimizer = torch.optim.AdamW(model[4].parameters(), 1e-2)
        return model, optimizer, torch.optim.swa_utils.AveragedModel(model)

    model, optimizer, ema = start()
    for _ in range(2):
        steps(model, optimizer)
        ema.update_parameters(model)
    path = tmp_path / "d.safetensors"
    save_checkpoint(path, model=model, optimizer=optimizer, ema=ema, epoch=1, delta=True)
    with open_file(path) as file:
        assert [name for name in file.tensors if name.startswith("model.")] == ["model.4.weight", "model.4.bias"]
        assert not any("module.0" in name for name in file.tensors)
    steps(model, optimizer)
    ema.update_parameters(model)
    again, other, average = start()
    load_checkpoint(path, model=again, optimizer=other, ema=average)
    steps(again, other)
    average.update_parameters(again)
    assert torch.equal(flat(again), flat(model))
    assert torch.equal(flat(average), flat(ema))


def test_a_delta_of_another_base_is_refused(tmp_path: Path) -> None:
    """A resumed delta checks its base before anything changes."""
    model = make()
    freeze_except(model, "4")
    save_checkpoint(tmp_path / "d.safetensors", model=model, delta=True)
    other = make()
    before = flat(other)
    with pytest.raises(CheckpointError, match="other weights"):
        load_checkpoint(tmp_path / "d.safetensors", model=other)
    assert torch.equal(flat(other), before)


@pytest.mark.parametrize(
    "wrong", [{"epoch": "0"}, {"epoch": 1.5}, {"step": "7"}, {"metrics": 0.5}, {"metrics": {"val_loss": "low"}}]
)
def test_what_is_no_number_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """An epoch, a step and metrics are numbers, from the first on; nothing is written."""
    what = f"{next(iter(wrong))}|The metric"
    with pytest.raises(FtkitError, match=what):
        save_checkpoint(tmp_path / "a.safetensors", model=nn.Linear(1, 1), **wrong)
    with pytest.raises(FtkitError, match=what):
        CheckpointManager(tmp_path).save(**{"epoch": 0, "model": nn.Linear(1, 1), **wrong})
    assert not list(tmp_path.iterdir())


def test_numbers_of_other_libraries_come_back_plain(tmp_path: Path) -> None:
    """NumPy's and torch's are saved as what they are."""
    numbers = {"epoch": np.int64(3), "step": torch.tensor(4), "metrics": {"val_loss": np.float32(0.5)}}
    save_checkpoint(tmp_path / "a.safetensors", model=nn.Linear(1, 1), **numbers)
    path = CheckpointManager(tmp_path, monitor="val_loss").save(model=nn.Linear(1, 1), **numbers)
    assert path.name == "3-0.5000.safetensors"
    for checkpoint in (load_checkpoint(tmp_path / "a.safetensors"), load_checkpoint(path)):
        assert (checkpoint.epoch, checkpoint.step, checkpoint.metrics) == (3, 4, {"val_loss": 0.5})
        assert type(checkpoint.epoch) is type(checkpoint.step) is int
    assert CheckpointManager(tmp_path).resume(model=nn.Linear(1, 1)) == 4


def test_paths_as_people_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tilde is the home folder; a URL and what is no path are errors, and make no folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model = nn.Linear(1, 1)
    save_checkpoint("~/a.safetensors", model=model, epoch=1)
    assert load_checkpoint("~/a.safetensors", model=model).epoch == 1
    assert CheckpointManager("~/runs").directory == tmp_path / "runs"
    for wrong in ("s3://bucket/runs", "a\0b", None, 3):
        with pytest.raises(FtkitError, match=r"a URL|a NUL|Expected a path"):
            CheckpointManager(wrong)  # type: ignore[arg-type]
        with pytest.raises(FtkitError, match=r"a URL|a NUL|Expected a path"):
            save_checkpoint(wrong, model=model)  # type: ignore[arg-type]
        with pytest.raises(FtkitError, match=r"no file|a NUL|Expected a path|is a URL"):
            load_checkpoint(wrong, model=model)  # type: ignore[arg-type]
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "runs"}


def test_an_average_in_a_delta_takes_what_never_moved_from_the_base(tmp_path: Path) -> None:
    """Averaging rounds it: by a few bits, which no base has."""

    def build() -> tuple[nn.Sequential, torch.optim.swa_utils.AveragedModel]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 10))
        freeze_except(model, "2")
        return model, torch.optim.swa_utils.AveragedModel(model, avg_fn=lambda old, new, _: 0.999 * old + 0.001 * new)

    (model, ema), (again, average) = build(), build()
    with torch.no_grad():
        model[2].weight.add_(1)
    for _ in range(5):
        ema.update_parameters(model)
    assert not torch.equal(ema.module[0].weight, model[0].weight)
    save_checkpoint(tmp_path / "run.safetensors", model=model, ema=ema, delta=True)
    with open_file(tmp_path / "run.safetensors") as file:
        assert not any("module.0" in name for name in file.tensors)
    load_checkpoint(tmp_path / "run.safetensors", model=again, ema=average)
    assert torch.equal(average.module[2].weight, ema.module[2].weight)
    assert torch.equal(average.module[0].weight, model[0].weight)


def test_another_models_weights_are_kept_whole_beside_a_delta(tmp_path: Path) -> None:
    """A teacher passed as an average is none."""
    model, teacher, other = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
    freeze_except(model, "bias")
    save_checkpoint(tmp_path / "run.safetensors", model=model, ema=teacher, delta=True)
    load_checkpoint(tmp_path / "run.safetensors", model=copy.deepcopy(model), ema=other)
    assert torch.equal(other.weight, teacher.weight)
