"""Files of training runs, ftkit's own and other people's: what is in them, and what is wrong with them."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ftkit import CheckpointManager, freeze_except, load_checkpoint, load_delta, save_checkpoint, save_delta
from ftkit.errors import CheckpointError, FtkitError, UntrustedFileError
from tests.checkpoints.runs import flat, make, names, run_child, steps


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
    assert "'args' is ignored, because it would run code (tests.checkpoints.test_runfile.Settings" in caplog.text
    assert "'kind' is ignored" in caplog.text
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
    with pytest.raises(CheckpointError, match="finds weights wherever they are"):
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


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("part", ["model", "extra"])
def test_a_tensor_without_values_is_refused(tmp_path: Path, suffix: str, part: str) -> None:
    """In either format, wherever it is; a write in the background does not even begin."""
    model = nn.Linear(1, 1, device="meta" if part == "model" else None)
    values = {"ema_decay": [torch.empty(2, device="meta")]} if part == "extra" else {}
    with pytest.raises(CheckpointError, match="on the meta device: it has a shape but no values"):
        save_checkpoint(tmp_path / f"c{suffix}", model=model, rng=False, **values)
    with pytest.raises(CheckpointError, match="on the meta device"):
        CheckpointManager(tmp_path, filename=f"c{suffix}", background=True).save(0, model=model, rng=False, **values)
    assert not [*tmp_path.iterdir()]
