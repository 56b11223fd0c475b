"""What is in a folder is found by what is in its files, whatever they say, and however many they are."""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from ftkit import CheckpointManager
from ftkit._checkpoints import runfile
from ftkit._checkpoints.runfile import Content
from ftkit.errors import CheckpointError, FtkitError
from tests.checkpoints.runs import names

HOSTILE: list[Any] = ["x", "\0", [], [1], {}, {"a": 1}, 1.5, float("nan"), -1, 10**30, 10**4000, None, True]
FACTS: dict[str, Any] = {"epoch": 0, "step": None, "metrics": {"val_loss": 1.0}, "mid_epoch": False, "order": 0}
FACTS |= {"run": "a", "watched": ["val_loss", "min"], "frozen": {"trainable": [], "held": []}}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("fact", [*FACTS, "val_loss", "optimizer", "delta"])
def test_whatever_a_file_says_of_its_run(tmp_path: Path, suffix: str, fact: str) -> None:
    """A manager opens its folder and goes on or refuses in its own words; what makes no sense stays where it is."""
    for number, value in enumerate(HOSTILE):
        folder = tmp_path / str(number)
        folder.mkdir()
        run = {**FACTS, "metrics": {"val_loss": value}} if fact == "val_loss" else {**FACTS, fact: value}
        try:
            runfile.prepare(Content(folder / f"theirs{suffix}", run, {"model": nn.Linear(1, 1).state_dict()}))()
        except (CheckpointError, TypeError, AttributeError, pickle.UnpicklingError):  # no such file can be written
            continue
        manager = CheckpointManager(folder, monitor="val_loss")
        assert manager.best_path in (None, folder / f"theirs{suffix}")
        with contextlib.suppress(FtkitError):
            assert type(manager.resume(model=nn.Linear(1, 1))) is int
        path = CheckpointManager(folder, monitor="val_loss").save(7, model=nn.Linear(1, 1), metrics={"val_loss": 0.5})
        assert CheckpointManager(folder, monitor="val_loss").last_path == path
        if fact == "order" and value != -1:
            assert f"theirs{suffix}" in names(folder)


def test_an_unreadable_folder_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names it."""

    def refuse(_: object) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(FtkitError, match=r"Can't read the folder .*: Permission denied"):
        CheckpointManager(tmp_path)


def test_a_dangling_link_under_the_next_name(tmp_path: Path) -> None:
    """Nothing is written outside the folder, through a link to a file that is or is not there."""
    folder, outside = tmp_path / "runs", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (folder / "0.safetensors").symlink_to(outside / "new.safetensors")
    manager = CheckpointManager(folder)
    assert manager.save(0, model=nn.Linear(1, 1)) == folder / "0-2.safetensors"
    (outside / "theirs.safetensors").write_bytes((folder / "0-2.safetensors").read_bytes())
    (folder / "1.safetensors").symlink_to(outside / "theirs.safetensors")
    before = (outside / "theirs.safetensors").read_bytes()
    for again in (manager, CheckpointManager(folder)):
        assert again.save(1, model=nn.Linear(1, 1)).parent == folder
    assert (outside / "theirs.safetensors").read_bytes() == before
    assert names(outside) == ["theirs.safetensors"]


def test_only_what_decides_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a restart, a save reads old files only if one may go, and then no more than a few of them."""
    manager = CheckpointManager(tmp_path, keep_last=None, filename="{epoch}")
    for epoch in range(40):
        manager.save(epoch, model=nn.Linear(1, 1), rng=False)
    verified: list[Path] = []
    verify = runfile.verify

    def counted(path: Path) -> None:
        verified.append(path)
        verify(path)

    monkeypatch.setattr(runfile, "verify", counted)
    CheckpointManager(tmp_path, keep_last=None, filename="{epoch}").save(40, model=nn.Linear(1, 1), rng=False)
    assert not verified
    manager = CheckpointManager(tmp_path, keep_last=36, filename="{epoch}")
    counts = []
    for epoch in range(41, 46):
        manager.save(epoch, model=nn.Linear(1, 1), rng=False)
        counts.append(len(names(tmp_path)))
    assert len(verified) == len({*verified}) == 33  # the three others of the 36 newest were written here by then
    assert counts == [42, 43, 36, 36, 36]


def test_a_taken_name_among_thousands(tmp_path: Path) -> None:
    """One name for all gets the next free number."""
    manager = CheckpointManager(tmp_path, keep_last=None, filename="model")
    paths = [manager.save(epoch, model=nn.Linear(1, 1), rng=False).stem for epoch in range(12)]
    assert paths == ["model", *(f"model-{count}" for count in range(2, 13))]


def test_a_renamed_metric_leaves_the_former_bests(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was kept for a metric that the manager does not watch any more stays, resumed or not."""
    model = nn.Linear(1, 1)
    manager = CheckpointManager(tmp_path, monitor="val_loss", keep_best=2)
    for epoch, loss in enumerate([0.1, 0.5, 0.2, 0.4]):
        manager.save(epoch, model=model, metrics={"val_loss": loss, "val_acc": 1 - loss})
    before = names(tmp_path)
    assert len(before) == 3
    for monitor in ("val/loss", "val_acc", None):
        manager = CheckpointManager(tmp_path, monitor=monitor)
        epoch = manager.resume(model=model)
        for more in range(2):
            manager.save(epoch + more, model=model, metrics={"val/loss": 0.9, "val_acc": 0.3})
        assert {*before} < {*names(tmp_path)}
    manager = CheckpointManager(tmp_path, monitor="val_loss", keep_best=2)
    assert manager.best_path == tmp_path / "0-0.1000.safetensors"
    assert "earlier run" not in caplog.text


@pytest.mark.parametrize("filename", [None, "last"])
def test_a_second_run_that_does_not_resume(tmp_path: Path, caplog: pytest.LogCaptureFixture, filename: str) -> None:
    """It is noticed and said; its best is its own, and nothing of the first run is lost."""
    model = nn.Linear(1, 1)
    options: dict[str, Any] = {"monitor": "val_loss", "filename": filename}
    first = CheckpointManager(tmp_path, **options)
    for epoch, loss in enumerate([0.1, 0.5, 0.3]):
        first.save(epoch, model=model, metrics={"val_loss": loss})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert not caplog.text
    second = CheckpointManager(tmp_path, **options)
    assert second.best_path == first.best_path
    paths = [second.save(epoch, model=model, metrics={"val_loss": loss}) for epoch, loss in enumerate([0.9, 0.7])]
    assert caplog.text.count("contains checkpoints of an earlier run") == 1
    assert (second.best_path, second.last_path) == (paths[1], paths[1])
    assert {path: path.read_bytes() for path in before} == before
    later = CheckpointManager(tmp_path, **options)
    assert later.best_path == paths[1]
    assert later.resume(model=model) == 2
    later.save(2, model=model, metrics={"val_loss": 0.8})
    assert later.best_path == paths[1]
    assert caplog.text.count("earlier run") == 1


def test_a_run_that_goes_on_by_hand_is_no_other_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Who loads the last checkpoint themselves, and saves the next epoch, is believed."""
    model = nn.Linear(1, 1)
    CheckpointManager(tmp_path).save(0, model=model)
    CheckpointManager(tmp_path).save(1, model=model, mid_epoch=True)
    CheckpointManager(tmp_path).save(1, model=model)
    assert names(tmp_path) == ["1.safetensors"]
    assert CheckpointManager(tmp_path).resume(model=model) == 2
    assert not caplog.text
