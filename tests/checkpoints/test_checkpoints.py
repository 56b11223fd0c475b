"""Training checkpoints: resumes are exact, failures change nothing, nothing good is ever lost."""

from __future__ import annotations

import argparse
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ftkit import (
    CheckpointManager,
    EarlyStopping,
    freeze,
    freeze_except,
    load_checkpoint,
    load_delta,
    param_groups,
    save_checkpoint,
    save_delta,
    unfreeze,
)
from ftkit._freezing.holding import is_held
from ftkit._loaders import ResumableLoader
from ftkit._tensors.safetensors import SafetensorsFile
from ftkit.errors import CheckpointError, DamagedFileError, FileWriteError, FtkitError, UntrustedFileError


def make() -> nn.Module:
    """A small model with everything that has a state of its own."""
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))


def steps(model: nn.Module, optimizer: Any, count: int = 3) -> None:
    """Train on random data; noise comes from every global generator."""
    model.train()
    for _ in range(count):
        batch = torch.randn(6, 4) + random.random() + float(np.random.rand())  # noqa: NPY002
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def flat(model: nn.Module) -> torch.Tensor:
    """All state of a model in one vector."""
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


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


def test_manager_tells_the_story(tmp_path: Path) -> None:
    """Best and newest stay; a new process goes on after the newest."""
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    manager = CheckpointManager(tmp_path, monitor="val_loss", keep_best=2)
    assert manager.resume(model=model, optimizer=optimizer) == 0
    for epoch, loss in enumerate([0.5, 0.3, 0.9, 0.4, 0.8]):
        manager.save(epoch, model=model, optimizer=optimizer, metrics={"val_loss": loss})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "1-0.3000.safetensors",
        "3-0.4000.safetensors",
        "4-0.8000.safetensors",
    ]
    manager = CheckpointManager(tmp_path, monitor="val_loss", keep_best=2)
    assert manager.best_path is not None
    assert manager.best_path.name == "1-0.3000.safetensors"
    assert manager.resume(model=model, optimizer=optimizer) == 5


def test_a_damaged_newest_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The newest intact file is taken, with a warning."""
    model = make()
    manager = CheckpointManager(tmp_path, keep_last=3)
    paths = [manager.save(epoch, model=model) for epoch in range(3)]
    raw = bytearray(paths[-1].read_bytes())
    raw[-5] ^= 1
    paths[-1].write_bytes(raw)
    assert CheckpointManager(tmp_path, keep_last=3).resume(model=model) == 2
    assert "damaged" in caplog.text


def test_load_changes_all_or_nothing(tmp_path: Path) -> None:
    """A state that does not fit leaves every object as it was."""
    model = make()
    optimizer = torch.optim.AdamW(model.parameters())
    steps(model, optimizer)
    save_checkpoint(tmp_path / "run.safetensors", model=model, optimizer=optimizer, scheduler=None, epoch=1)
    other = nn.Sequential(*make()[:4], nn.Linear(8, 3))
    opt = torch.optim.AdamW(other.parameters(), 0.7)
    before = flat(other)
    with pytest.raises(CheckpointError, match=r"4.weight: \[2, 8\] in the file"):
        load_checkpoint(tmp_path / "run.safetensors", model=other, optimizer=opt)
    assert torch.equal(flat(other), before)
    assert opt.param_groups[0]["lr"] == 0.7
    assert not opt.state


# ---- what comes back


def test_ema_sampler_extras_and_objects(tmp_path: Path) -> None:
    """Everything with a state comes back into its object, plain values into extra."""
    model = make()
    ema = torch.optim.swa_utils.AveragedModel(model)
    stopping = EarlyStopping(patience=3)
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
    counter = EarlyStopping(patience=3)
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


@pytest.mark.parametrize(
    "keys",
    [
        ("model_state_dict", "optimizer_state_dict"),
        ("model", "optimizer"),
        ("state_dict", "optimizer_states"),
        ("net", "optim"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_other_peoples_dicts(tmp_path: Path, keys: tuple[str, str], prefix: str) -> None:
    """The dicts of tutorials, Lightning and timm load, prefixes and all."""
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    steps(model, optimizer)
    state = optimizer.state_dict()
    torch.save(
        {
            "epoch": 6,
            "global_step": 60,
            keys[0]: {f"{prefix}{name}": value for name, value in model.state_dict().items()},
            keys[1]: [state] if keys[1] == "optimizer_states" else state,
            "arch": "mlp",
        },
        tmp_path / "theirs.ckpt",
    )
    again = make()
    other = torch.optim.AdamW(again.parameters())
    checkpoint = load_checkpoint(tmp_path / "theirs.ckpt", model=again, optimizer=other)
    assert (checkpoint.epoch, checkpoint.step, checkpoint.extra) == (6, 60, {"arch": "mlp"})
    assert torch.equal(flat(again), flat(model))
    assert torch.equal(other.state_dict()["state"][0]["exp_avg"], state["state"][0]["exp_avg"])
    assert other.param_groups[0]["lr"] == 3e-3


class Settings:
    """What people keep beside weights, and what no reader should have to run code for."""

    lr = 0.1


def test_objects_of_others_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Arguments and callbacks that only code could make don't keep the rest of a checkpoint from loading."""
    model = make()
    optimizer = torch.optim.AdamW(model.parameters())
    steps(model, optimizer)
    theirs = {"epoch": 4, "args": argparse.Namespace(lr=0.1, nested=[Settings()]), "arch": "mlp", "kind": Settings}
    theirs |= {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(theirs, tmp_path / "theirs.pth.tar")
    again = make()
    other = torch.optim.AdamW(again.parameters())
    checkpoint = load_checkpoint(tmp_path / "theirs.pth.tar", model=again, optimizer=other)
    assert (checkpoint.epoch, checkpoint.extra) == (4, {"arch": "mlp"})
    assert torch.equal(flat(again), flat(model))
    assert "'args' is left out, as it would run code (argparse.Namespace, " in caplog.text
    assert "'kind' is left out" in caplog.text
    before = flat(again)
    torch.save(theirs | {"state_dict": model}, tmp_path / "theirs.pth.tar")
    with pytest.raises(UntrustedFileError, match=r"load_weights\(model, path\)"):
        load_checkpoint(tmp_path / "theirs.pth.tar", model=again)
    assert torch.equal(flat(again), before)
    with pytest.raises(CheckpointError, match="is a folder"):
        load_checkpoint(tmp_path, model=again)


@pytest.mark.parametrize(
    ("more", "table"),
    [
        ({"model": "resnet50", "optimizer": "AdamW", "epoch": "three"}, "net"),
        ({"model": None, "metrics": [0.5], "ema": None}, "module"),
        ({"model": Settings(), "step": torch.ones(2)}, "state_dict"),
    ],
)
def test_names_that_mean_something_else(tmp_path: Path, more: dict[str, Any], table: str) -> None:
    """What stands under a usual name is taken for the state only if it can be one."""
    model = make()
    torch.save(
        {**more, table: model.state_dict(), "optim": torch.optim.SGD(model.parameters()).state_dict()},
        tmp_path / "a.pt",
    )
    again = make()
    checkpoint = load_checkpoint(tmp_path / "a.pt", model=again, optimizer=torch.optim.SGD(again.parameters()))
    assert torch.equal(flat(again), flat(model))
    assert (checkpoint.epoch, checkpoint.step, checkpoint.metrics) == (None, None, {})


def test_a_state_that_is_none(tmp_path: Path) -> None:
    """Without weights under a usual name the error says who finds them; nonsense for an optimizer is one of ours."""
    model = make()
    torch.save({"model": None, "ema": Settings(), "epoch": 1}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="finds weights wherever they lie"):
        load_checkpoint(tmp_path / "a.pt", model=model)
    optimizer = torch.optim.AdamW(model.parameters())
    steps(model, optimizer)
    state = optimizer.state_dict()
    del state["state"][0]["step"]
    for broken in ({**state, "param_groups": [{"lr": 0.1}]}, state):
        torch.save({"model": model.state_dict(), "optimizer": broken}, tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match="optimizer"):
            load_checkpoint(tmp_path / "a.pt", model=model, optimizer=optimizer)


def test_a_torch_checkpoint_is_the_usual_dict(tmp_path: Path) -> None:
    """torch.load with weights_only reads it, under the names of every tutorial."""
    model = make()
    optimizer = torch.optim.AdamW(model.parameters())
    steps(model, optimizer)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    save_checkpoint(tmp_path / "c.pt", model=model, optimizer=optimizer, scheduler=scheduler, epoch=2, name="x")
    usual = torch.load(tmp_path / "c.pt", weights_only=True)
    make().load_state_dict(usual["model_state_dict"])
    torch.optim.AdamW(make().parameters()).load_state_dict(usual["optimizer_state_dict"])
    assert usual["scheduler_state_dict"] == scheduler.state_dict()
    assert (usual["epoch"], usual["name"]) == (2, "x")


def test_a_torch_checkpoint_refuses_what_weights_only_would(tmp_path: Path) -> None:
    """A value that only pickled code could restore is refused, and no file appears."""
    with pytest.raises(CheckpointError, match="safetensors"):
        save_checkpoint(tmp_path / "c.pt", model=make(), table=np.zeros(3))
    assert not list(tmp_path.iterdir())


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


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda m: {"optimizer": torch.optim.SGD(m.parameters(), 0.1)}, "is a AdamW, this one a SGD"),
        (lambda m: {"scheduler": torch.optim.lr_scheduler.StepLR(torch.optim.SGD(m.parameters()), 1)}, "scheduler="),
        (lambda m: {"histroy": EarlyStopping(1)}, "Did you mean 'history'"),
        (lambda m: {"history": []}, "has no load_state_dict"),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(tmp_path: Path, build: Any, words: str) -> None:
    """Each wrong target is an error of ours, and the model keeps its weights."""
    model = make()
    optimizer = torch.optim.AdamW(model.parameters())
    steps(model, optimizer)
    save_checkpoint(tmp_path / "a.safetensors", model=model, optimizer=optimizer, history=[1])
    other = make()
    before = flat(other)
    with pytest.raises(FtkitError) as caught:
        load_checkpoint(tmp_path / "a.safetensors", model=other, **build(other))
    assert words in str(caught.value)
    assert torch.equal(flat(other), before)


def test_a_failure_at_the_very_end_takes_everything_back(tmp_path: Path) -> None:
    """If the model refuses, the optimizer and the scheduler are as they were."""
    model = make()
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    steps(model, optimizer)
    scheduler.step()
    save_checkpoint(tmp_path / "a.safetensors", model=model, optimizer=optimizer, scheduler=scheduler)
    other = make()
    opt = torch.optim.AdamW(other.parameters(), 0.7)
    plan = torch.optim.lr_scheduler.StepLR(opt, 9)
    other.register_load_state_dict_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("no")))
    groups, state, planned = opt.param_groups, opt.state, dict(plan.state_dict())
    with pytest.raises(RuntimeError, match="no"):
        load_checkpoint(tmp_path / "a.safetensors", model=other, optimizer=opt, scheduler=plan)
    assert opt.param_groups is groups
    assert opt.state is state
    assert plan.state_dict() == planned


def test_any_flipped_byte_is_noticed(tmp_path: Path) -> None:
    """Whatever byte of a checkpoint is wrong, it is refused, even by somebody who wants the model alone."""
    model = nn.Linear(2, 2)
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, model=model, epoch=3, ema=nn.Linear(1, 1), rng=False, notes={"lr": [1.5]})
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(CheckpointError):
            load_checkpoint(path, model=model)


def shuffle_freezing(model: nn.Module, dice: random.Random) -> None:
    """Freeze and thaw parts at random, in all the ways there are."""
    parts = [name for name, module in model.named_modules() if name and list(module.parameters())]
    for _ in range(dice.randint(0, 3)):
        some = dice.sample(parts, dice.randint(1, 2))
        way = dice.randrange(4)
        if way == 0:
            freeze(model, *some, norm_stats=dice.random() < 0.8, keep_dropout=dice.random() < 0.2)
        elif way == 1:
            unfreeze(model, *some)
        elif way == 2:
            freeze_except(model, *some)
        else:
            for parameter in model.get_submodule(some[0]).parameters():
                parameter.requires_grad_(dice.random() < 0.5)


def freezing(model: nn.Module) -> tuple[set[str], set[str]]:
    """The trainable parameters, and the modules held in eval mode."""
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return trains, {name for name, module in model.named_modules() if is_held(module)}


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_what_is_frozen_comes_back_exactly(seed: int) -> None:
    """Whatever was frozen, thawed and held in whatever way is so again, whatever the new process did before."""

    def nested() -> nn.Module:
        inner = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Dropout(0.2))
        return nn.Sequential(make()[:4], inner, nn.Linear(8, 2))

    dice = random.Random(seed)
    model, other = nested(), nested()
    shuffle_freezing(model, dice)
    shuffle_freezing(other, dice)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.safetensors")
        save_checkpoint(path, model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1))
        load_checkpoint(path, model=other, optimizer=torch.optim.SGD(other.parameters(), 0.1))
    assert freezing(other) == freezing(model)


# ---- deltas


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
    with SafetensorsFile(path) as file:
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


def test_manager_deltas_see_all_that_moved(tmp_path: Path) -> None:
    """With resume called first, statistics that moved and parts trained earlier are part of a delta."""

    def start() -> tuple[nn.Module, Any]:
        torch.manual_seed(3)
        model = make()
        for parameter in model[:4].parameters():  # frozen by hand: BatchNorm still moves
            parameter.requires_grad_(False)
        return model, torch.optim.SGD(model[4].parameters(), 0.1, momentum=0.9)

    model, optimizer = start()
    manager = CheckpointManager(tmp_path, delta=True)
    assert manager.resume(model=model, optimizer=optimizer) == 0
    steps(model, optimizer)
    model.eval()
    manager.save(0, model=model, optimizer=optimizer)
    again, other = start()
    assert CheckpointManager(tmp_path, delta=True).resume(model=again, optimizer=other) == 1
    assert torch.equal(flat(again), flat(model))


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


# ---- the manager


def names(folder: Path) -> list[str]:
    """The files in a folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("template", "metrics", "expected"),
    [
        ("{epoch:03d}-{val/acc:.2f}", {"val/acc": 0.5}, "002-0.50.safetensors"),
        ("a/b:{epoch}", {}, "a_b_2.safetensors"),
        ("../{epoch}", {}, "_2.safetensors"),
        ("{val.loss[0]:.1f}", {"val.loss[0]": 2}, "2.0.safetensors"),
        ("con.{epoch}", {}, "_con.2.safetensors"),
        ("e{epoch}.pt", {}, "e2.pt"),
        ("x" * 400, {}, "x" * 200 + ".safetensors"),
        ("{{}}{epoch}", {}, "{}2.safetensors"),
    ],
)
def test_names_are_safe(tmp_path: Path, template: str, metrics: dict[str, float], expected: str) -> None:
    """Metrics of any name fill a template; nothing leaves the folder."""
    manager = CheckpointManager(tmp_path / "runs", filename=template)
    manager.save(2, model=nn.Linear(1, 1), metrics=metrics)
    assert names(tmp_path) == ["runs"]
    assert names(tmp_path / "runs") == [expected]


@pytest.mark.parametrize(
    ("options", "metrics", "words"),
    [
        ({"filename": "{epoch}-{val_los:.3f}"}, {"val_loss": 1.0}, "Did you mean 'val_loss'"),
        ({"monitor": "val_los"}, {"val_loss": 1.0}, "Did you mean 'val_loss'"),
        ({"filename": "{step}"}, None, "needs 'step'"),
        ({"filename": "{epoch:x.y}"}, None, "can't show epoch"),
    ],
)
def test_a_missing_metric_is_an_error(tmp_path: Path, options: Any, metrics: Any, words: str) -> None:
    """It names what there is, and no file appears."""
    with pytest.raises(FtkitError) as caught:
        CheckpointManager(tmp_path, **options).save(0, model=nn.Linear(1, 1), metrics=metrics)
    assert words in str(caught.value)
    assert not names(tmp_path)


@pytest.mark.parametrize(
    "options",
    [{"keep_last": -1}, {"keep_best": True}, {"keep_last": 0}, {"mode": "best"}, {"filename": "{"}, {"filename": "{}"}],
)
def test_arguments_out_of_range(tmp_path: Path, options: Any) -> None:
    """Each is refused at once."""
    with pytest.raises(FtkitError):
        CheckpointManager(tmp_path, **options)


@given(
    st.lists(st.sampled_from([0.1, 0.2, 0.3, float("nan")]), min_size=1, max_size=8),
    st.sampled_from([0, 1, 2, None]),
    st.sampled_from([0, 1, 2, None]),
    st.sampled_from(["min", "max"]),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_what_is_kept(values: list[float], best: int | None, last: int | None, mode: Any, restart: bool) -> None:
    """Exactly the best and the newest stay, whether or not the process is a new one each time."""
    if not (last or last is None or best or best is None):
        return
    with tempfile.TemporaryDirectory() as folder:

        def manager() -> CheckpointManager:
            return CheckpointManager(folder, monitor="m", mode=mode, keep_best=best, keep_last=last, filename="{epoch}")

        current = manager()
        model = nn.Linear(1, 1)
        for epoch, value in enumerate(values):
            current = manager() if restart else current
            current.save(epoch, model=model, metrics={"m": value}, rng=False)
        numbers = [epoch for epoch, value in enumerate(values) if not math.isnan(value)]
        ranked = sorted(numbers, key=lambda epoch: values[epoch] if mode == "min" else -values[epoch])
        newest = list(range(len(values)))[::-1]
        kept = {*newest[: len(values) if last is None else last], *ranked[: len(values) if best is None else best]}
        # A value that is no number is only worth its age: without keep_last, it goes at once.
        assert {int(path.stem) for path in Path(folder).iterdir()} == kept
        assert (current.best_path and int(current.best_path.stem)) == (ranked[0] if ranked and best != 0 else None) or (
            best == 0 and kept
        )


def test_names_that_stay_are_not_overwritten(tmp_path: Path) -> None:
    """A template without anything that changes keeps the best under its name, and foreign files are left alone."""
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    manager = CheckpointManager(tmp_path, monitor="m", filename="model")
    for epoch, value in enumerate([0.1, 0.5, 0.4]):
        manager.save(epoch, model=nn.Linear(1, 1), metrics={"m": value})
    assert (tmp_path / "model.safetensors").read_bytes() == b"mine"
    assert manager.best_path is not None
    assert load_checkpoint(manager.best_path).metrics == {"m": 0.1}
    assert manager.last_path is not None
    assert load_checkpoint(manager.last_path).epoch == 2
    assert len(names(tmp_path)) == 3


def test_one_name_for_the_last(tmp_path: Path) -> None:
    """Where only the newest is kept, a fixed name stays one file."""
    manager = CheckpointManager(tmp_path, filename="last.pt")
    for epoch in range(3):
        manager.save(epoch, model=nn.Linear(1, 1))
        assert names(tmp_path) == ["last.pt"]
    assert CheckpointManager(tmp_path, filename="last.pt").resume(model=nn.Linear(1, 1)) == 3


def damage(path: Path) -> None:
    """Flip a bit near the end."""
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)


def test_the_only_good_one_is_never_deleted(tmp_path: Path) -> None:
    """A damaged best or newest does not push out an older one that is whole."""
    model = nn.Linear(1, 1)
    manager = CheckpointManager(tmp_path, monitor="m", keep_best=3)
    paths = [manager.save(epoch, model=model, metrics={"m": value}) for epoch, value in enumerate([0.3, 0.2, 0.1])]
    damage(paths[2])
    damage(paths[1])
    manager = CheckpointManager(tmp_path, monitor="m", keep_best=1, keep_last=1)
    assert paths[0].exists()
    newest = manager.save(3, model=model, metrics={"m": 0.9})
    assert paths[0].exists()
    assert newest.exists()
    manager = CheckpointManager(tmp_path, monitor="m", keep_best=1, keep_last=1)
    assert manager.resume(model=model) == 4


def test_a_checkpoint_that_does_not_fit_is_no_damage(tmp_path: Path) -> None:
    """Another model is an error, and not a reason to go back to an older file."""
    manager = CheckpointManager(tmp_path, keep_last=2)
    manager.save(0, model=nn.Linear(1, 1))
    manager.save(1, model=nn.Linear(1, 2))
    with pytest.raises(CheckpointError, match="does not fit"):
        manager.resume(model=nn.Linear(1, 1))


@pytest.mark.parametrize("filename", ["{epoch}", "{epoch}.pt"])
def test_every_kind_of_damage_is_passed_over(tmp_path: Path, filename: str) -> None:
    """A newest file that is cut, empty, garbage or flipped anywhere makes resume take the one before it."""
    model = nn.Linear(2, 2)
    manager = CheckpointManager(tmp_path, keep_last=2, filename=filename)
    newest = [manager.save(epoch, model=model, rng=False) for epoch in range(2)][-1]
    whole = newest.read_bytes()
    flips = [whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :] for at in range(0, len(whole), 61)]
    for broken in (b"", b"garbage", whole[:-1], whole[: len(whole) // 2], whole + b"x", *flips):
        newest.write_bytes(broken)
        again = CheckpointManager(tmp_path, keep_last=2, filename=filename)
        # A zip file has bytes that mean nothing; what is loaded must be right all the same.
        epoch = again.resume(model=model)
        assert epoch == 1 or (epoch == 2 and filename.endswith(".pt"))


def test_all_damaged_is_an_error(tmp_path: Path) -> None:
    """A run that can't go on says so, and does not start anew over its remains."""
    model = nn.Linear(1, 1)
    damage(CheckpointManager(tmp_path).save(0, model=model))
    with pytest.raises(DamagedFileError, match="start anew"):
        CheckpointManager(tmp_path).resume(model=model)
    (tmp_path / "0.safetensors").write_bytes(b"")
    with pytest.raises(DamagedFileError, match="start anew"):
        CheckpointManager(tmp_path).resume(model=model)


def test_resume_within_an_epoch(tmp_path: Path) -> None:
    """A loader that is in an epoch makes resume return that epoch; metrics may be missing then."""
    loader = ResumableLoader(list(range(8)), batch_size=2)
    manager = CheckpointManager(tmp_path, monitor="val_loss")
    model = nn.Linear(1, 1)
    manager.save(0, model=model, sampler=loader, metrics={"val_loss": 1.0})
    for step, _ in enumerate(loader):
        if step == 1:
            manager.save(1, step=step, model=model, sampler=loader)
            break
    assert names(tmp_path) == ["0-1.0000.safetensors", "1-step1.safetensors"]
    again = ResumableLoader(list(range(8)), batch_size=2)
    manager = CheckpointManager(tmp_path, monitor="val_loss")
    assert manager.resume(model=model, sampler=again) == 1
    assert [batch.tolist() for batch in again] == [[4, 5], [6, 7]]
    with pytest.raises(FtkitError, match="val_loss"):
        manager.save(1, model=model, sampler=again)


def test_litter_is_cleared_at_the_start(tmp_path: Path) -> None:
    """What a killed writer left is gone, whatever else is in the folder stays."""
    (tmp_path / ".3.safetensors.0123456789ab.ftkit-partial").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    CheckpointManager(tmp_path)
    assert names(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("filename", ["{epoch}", "{epoch}.pt"])
def test_background_keeps_what_was_there_at_the_call(tmp_path: Path, filename: str) -> None:
    """Training goes on at once; the file holds the state at the time of the call."""
    model = make()
    optimizer = torch.optim.AdamW(model.parameters())
    steps(model, optimizer)
    manager = CheckpointManager(tmp_path, background=True, filename=filename, keep_last=None)
    wanted = []
    for epoch in range(4):
        wanted.append(flat(model))
        manager.save(epoch, model=model, optimizer=optimizer)
        steps(model, optimizer)
    manager.wait()
    for epoch, vector in enumerate(wanted):
        again = make()
        load_checkpoint(
            tmp_path
            / f"{filename.format(epoch=epoch).removesuffix('.pt')}{'.pt' if '.pt' in filename else '.safetensors'}",
            model=again,
        )
        assert torch.equal(flat(again), vector)


def test_a_delta_and_a_checkpoint_are_told_apart(tmp_path: Path) -> None:
    """Each loader names the other one."""
    model = make()
    freeze_except(model, "4")
    save_delta(model, tmp_path / "d.safetensors")
    save_checkpoint(tmp_path / "c.safetensors", model=model, delta=True)
    with pytest.raises(CheckpointError, match="load_delta"):
        load_checkpoint(tmp_path / "d.safetensors", model=model)
    with pytest.raises(CheckpointError, match="load_checkpoint"):
        load_delta(model, tmp_path / "c.safetensors")
    with pytest.raises(FtkitError, match="delta"):
        CheckpointManager(tmp_path, delta=True, filename="{epoch}.pt")


def test_background_keeps_tied_weights_tied(tmp_path: Path) -> None:
    """A tied weight is copied and stored once."""
    model = nn.Sequential(nn.Linear(100, 100, bias=False), nn.Linear(100, 100, bias=False))
    model[1].weight = model[0].weight
    manager = CheckpointManager(tmp_path, background=True)
    path = manager.save(0, model=model, rng=False)
    manager.wait()
    assert path.stat().st_size < 50_000


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread")
def test_background_gives_way_to_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that writes has a lower priority; the one that trains keeps its own."""
    seen: list[int] = []
    write = CheckpointManager._finish

    def finish(self: CheckpointManager, *arguments: Any) -> None:
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        write(self, *arguments)

    monkeypatch.setattr(CheckpointManager, "_finish", finish)
    manager = CheckpointManager(tmp_path, background=True)
    manager.save(0, model=nn.Linear(2, 2))
    manager.wait()
    assert seen[0] > os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread")
def test_background_needs_no_right_to_give_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a sandbox forbids to change a priority, the checkpoint is written all the same."""

    def forbidden(*_: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "setpriority", forbidden)
    manager = CheckpointManager(tmp_path, background=True)
    manager.save(0, model=nn.Linear(2, 2))
    assert manager.last_path is not None


def test_background_errors_show_at_the_next_call(tmp_path: Path) -> None:
    """A write that failed is told once, and the manager goes on."""
    folder = tmp_path / "runs"
    manager = CheckpointManager(folder, background=True)
    model = nn.Linear(1, 1)
    manager.save(0, model=model)
    manager.wait()
    (folder / "1.safetensors").mkdir()
    (folder / "1.safetensors").rmdir()
    manager.directory = tmp_path / "a-file"
    manager.directory.write_text("in the way")
    manager.save(1, model=model)
    with pytest.raises(FileWriteError):
        manager.wait()
    manager.directory = folder
    manager.save(2, model=model)
    assert manager.last_path == folder / "2.safetensors"


def run_child(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script in another process."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_background_drains_when_the_process_ends(tmp_path: Path) -> None:
    """A script that ends right after a save still leaves the checkpoint."""
    done = run_child(
        """
        import sys, torch, ftkit
        model = torch.nn.Linear(2000, 2000)
        ftkit.CheckpointManager(sys.argv[1], background=True).save(3, model=model)
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert names(tmp_path) == ["3.safetensors"]
    assert CheckpointManager(tmp_path).resume(model=nn.Linear(2000, 2000)) == 4


RANKS = """
    import os, random, sys, torch, torch.distributed as dist, torch.multiprocessing as mp
    from pathlib import Path
    from torch import nn
    from torch.distributed.fsdp import fully_shard
    from ftkit import CheckpointManager, ResumableLoader, load_checkpoint, save_checkpoint

    def build(sharded):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Dropout(0.4), nn.Linear(7, 3))
        if sharded:
            fully_shard(model[0])
            fully_shard(model)
        elif dist.is_initialized():
            model = nn.parallel.DistributedDataParallel(model)
        return model, torch.optim.AdamW(model.parameters(), 1e-2)

    def whole(model):
        values = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
        return torch.cat([value.detach().flatten() for value in values])

    def meet(rank, world, number, folder, run):
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet{number}", rank=rank, world_size=world)
        run(rank, folder)
        dist.barrier()
        dist.destroy_process_group()

    def start(worlds, *runs):
        for number, (world, run) in enumerate(zip(worlds, runs)):
            arguments = (world, number, sys.argv[1], run)
            children = [mp.get_context("fork").Process(target=meet, args=(rank, *arguments)) for rank in range(world)]
            [child.start() for child in children]
            [child.join() for child in children]
            if any(child.exitcode for child in children):
                sys.exit(1)
"""


def run_ranks(code: str, folder: Path) -> None:
    """Run a script that starts several processes, which may use what stands in ``RANKS``."""
    done = run_child(textwrap.dedent(RANKS) + textwrap.dedent(code), folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="starts processes by fork")
def test_a_run_of_several_processes_goes_on_exactly(tmp_path: Path) -> None:
    """With DistributedDataParallel each process gets its own random numbers back; the first one alone writes."""
    run_ranks(
        """
        from torch.utils.data import DistributedSampler

        def train(rank, folder, stop=None):
            model, optimizer = build(False)
            data = torch.arange(80.0).reshape(16, 5)
            loader = ResumableLoader(data, 2, sampler=DistributedSampler(data, seed=3))
            manager = CheckpointManager(folder + ("/runs" if stop else "/none"), monitor="loss")
            torch.manual_seed(rank)
            random.seed(rank)
            if stop == "resume":
                torch.manual_seed(99)
                manager = CheckpointManager(folder + "/runs", monitor="loss")
            done = 0
            for epoch in range(manager.resume(model=model, optimizer=optimizer, sampler=loader), 2):
                loader.sampler.set_epoch(epoch)
                for batch in loader:
                    (model(batch).square().mean() + random.random() * model.module[3].bias.sum()).backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    done += 1
                    if done == stop:
                        manager.save(epoch, model=model, optimizer=optimizer, sampler=loader)
                        return
            return whole(model)

        def first(rank, folder):
            torch.save(train(rank, folder), f"{folder}/expected{rank}")
            train(rank, folder, 6)

        def second(rank, folder):
            assert torch.equal(train(rank, folder, "resume"), torch.load(f"{folder}/expected{rank}"))

        start((2, 2), first, second)
        """,
        tmp_path,
    )
    assert names(tmp_path / "runs") == ["1.safetensors"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="starts processes by fork")
def test_processes_agree_on_what_is_best(tmp_path: Path) -> None:
    """Where each process measured another loss, all name the same files, by what the first one measured."""
    run_ranks(
        """
        def save(rank, folder):
            manager = CheckpointManager(folder + "/runs", monitor="loss")
            for epoch, loss in enumerate([0.2, 0.3]):
                path = manager.save(epoch, model=build(False)[0], metrics={"loss": loss / (1 + rank * epoch)})
            dist.barrier()
            assert path.exists() and path.name == "1-0.3000.safetensors", path
            assert manager.best_path.name == "0-0.2000.safetensors", manager.best_path

        start((2,), save)
        """,
        tmp_path,
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="starts processes by fork")
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_model_spread_over_processes(tmp_path: Path, suffix: str) -> None:
    """What fully_shard spread over two processes is one whole file, which goes on exactly on one, two and three."""
    run_ranks(
        f"""
        PATH = "/run{suffix}"

        def train(model, optimizer, count):
            model.eval()  # with dropout off, all processes see the same
            for number in range(count):
                batch = torch.linspace(-1, 1, 20).reshape(4, 5) * (number + 1)
                model(batch).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()

        def first(rank, folder):
            model, optimizer = build(True)
            train(model, optimizer, 2)
            save_checkpoint(folder + PATH, model=model, optimizer=optimizer, epoch=2)
            manager = CheckpointManager(folder + "/runs", background=True)
            manager.save(2, model=model, optimizer=optimizer)
            manager.wait()
            saved = whole(model)
            train(model, optimizer, 2)
            if rank == 0:
                torch.save((saved, whole(model)), folder + "/expected")
            else:
                whole(model)

        def again(rank, folder):
            saved, expected = torch.load(folder + "/expected")
            for resume in (
                lambda **all: load_checkpoint(folder + PATH, **all),
                lambda **all: CheckpointManager(folder + "/runs").resume(**all),
            ):
                torch.manual_seed(5)
                model, optimizer = build(dist.get_world_size() > 1)
                for parameter in model.parameters():
                    nn.init.zeros_(parameter.to_local() if hasattr(parameter, "to_local") else parameter)
                resume(model=model, optimizer=optimizer)
                assert torch.equal(whole(model), saved)
                train(model, optimizer, 2)
                assert torch.allclose(whole(model), expected, rtol=1e-6, atol=0)
                if dist.get_world_size() == 2:
                    assert torch.equal(whole(model), expected)

        start((2, 1, 2, 3), first, again, again, again)
        """,
        tmp_path,
    )
    assert names(tmp_path / "runs") == ["2.safetensors"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """Running out of space is a clear error; the checkpoint before it is whole, and nothing is left behind."""
    done = run_child(
        """
        import resource, signal, sys, torch, ftkit
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        manager = ftkit.CheckpointManager(sys.argv[1])
        manager.save(0, model=torch.nn.Linear(100, 100))
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        for background in (False, True):
            for manager.filename in (None, "{epoch}.pt"):
                manager.background = background
                try:
                    manager.save(1, model=torch.nn.Linear(1000, 1000))
                    manager.wait()
                except ftkit.errors.FileWriteError as error:
                    print("refused:", error)
        """,
        tmp_path,
    )
    assert done.stdout.count("refused:") == 4, done.stderr
    assert "intact" in done.stdout or "Nothing was left behind" in done.stdout
    assert names(tmp_path) == ["0.safetensors"]
    assert CheckpointManager(tmp_path).resume(model=nn.Linear(100, 100)) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no such permissions")
def test_a_read_only_folder_is_a_clear_error() -> None:
    """It says so, and the checkpoint in it still loads."""
    folder = Path(tempfile.mkdtemp())  # not in a folder that only its owner can enter
    try:
        save_checkpoint(folder / "0.safetensors", model=nn.Linear(1, 1), epoch=0)
        folder.chmod(0o555)
        done = run_child(
            """
            import os, sys, numpy.random, torch
            from ftkit import CheckpointManager, save_checkpoint
            from ftkit.errors import FileWriteError
            if os.geteuid() == 0:  # nobody may not be able to read a package of root's: all is imported by now
                os.setgid(65534), os.setuid(65534)
            for write in (
                lambda: save_checkpoint(sys.argv[1] + "/0.safetensors", model=torch.nn.Linear(1, 1)),
                lambda: CheckpointManager(sys.argv[1]).save(1, model=torch.nn.Linear(1, 1)),
                lambda: CheckpointManager(sys.argv[1] + "/new"),
            ):
                try:
                    write()
                except FileWriteError as error:
                    print("refused:", error)
            """,
            folder,
        )
        assert done.stdout.count("refused:") == 3, done.stdout + done.stderr
        assert load_checkpoint(folder / "0.safetensors").epoch == 0
        assert names(folder) == ["0.safetensors"]
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("trials", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_costs_nothing(tmp_path: Path, background: bool, trials: int) -> None:
    """After kill -9 all files load and hold one version, the last one reported is there, and no litter stays."""
    code = """
        import sys, torch, ftkit
        model = torch.nn.Linear(700, 700)
        manager = ftkit.CheckpointManager(sys.argv[1], monitor="v", mode="max", background=sys.argv[2] == "True")
        for version in range(100_000):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(version)
            manager.save(version, model=model, metrics={"v": version})
            if not manager.background:
                print(version, flush=True)
            else:
                manager.wait() if version % 3 == 0 else None
                print(version - 1, flush=True)
    """
    for trial in range(trials):
        folder = tmp_path / str(trial)
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(folder), str(background)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        told = [int(child.stdout.readline()) for _ in range(3 + trial)]
        time.sleep(random.random() * 0.02)
        child.kill()
        told += map(int, child.stdout.read().split())
        child.wait()
        child.stdout.close()
        versions = []
        for path in folder.glob("*.safetensors"):
            model = nn.Linear(700, 700)
            versions.append(load_checkpoint(path, model=model).epoch)
            assert flat(model).unique().tolist() == [versions[-1]]
        assert max(versions) >= told[-1]
        CheckpointManager(folder)
        assert all(path.suffix == ".safetensors" for path in folder.iterdir())
