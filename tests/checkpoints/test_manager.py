"""A manager keeps the newest and the best, goes on from them, and loses nothing."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ftkit import CheckpointManager, load_checkpoint
from ftkit._loaders import ResumableLoader
from ftkit.errors import CheckpointError, DamagedFileError, FileWriteError, FtkitError
from tests.checkpoints.runs import damage, flat, make, names, run_child, steps


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


@pytest.mark.parametrize("background", [False, True])
def test_the_folder_stays_where_the_run_began(
    background: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the process goes."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    manager = CheckpointManager("runs", keep_last=3, background=background)
    for epoch in range(3):
        manager.save(epoch, model=make())
        monkeypatch.chdir(tmp_path / "elsewhere")
    manager.wait()
    assert manager.resume(model=make()) == 3
    assert len(list((tmp_path / "runs").glob("*.safetensors"))) == 3
    assert not list((tmp_path / "elsewhere").iterdir())


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


def test_a_run_that_fell_back_stays_ahead_of_what_it_passed_over(tmp_path: Path) -> None:
    """A new manager resumes it, even once the damaged files can be read again."""
    model = make()
    manager = CheckpointManager(tmp_path, keep_last=9)
    abandoned = [manager.save(epoch, model=model) for epoch in range(4)][1:]
    for path in abandoned:
        damage(path)
    manager = CheckpointManager(tmp_path, keep_last=9)
    assert manager.resume(model=model) == 1
    saved = manager.save(1, model=model)
    assert manager.last_path == saved
    assert CheckpointManager(tmp_path).last_path == saved
    for path in abandoned:
        damage(path)  # a second time: it is whole again
    assert CheckpointManager(tmp_path).resume(model=model) == 2


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
    manager = CheckpointManager(tmp_path, monitor="m", mode="min", filename="model")
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


def test_the_only_good_one_is_never_deleted(tmp_path: Path) -> None:
    """A damaged best or newest does not push out an older one that is whole."""
    model = nn.Linear(1, 1)
    manager = CheckpointManager(tmp_path, monitor="m", mode="min", keep_best=3)
    paths = [manager.save(epoch, model=model, metrics={"m": value}) for epoch, value in enumerate([0.3, 0.2, 0.1])]
    damage(paths[2])
    damage(paths[1])
    manager = CheckpointManager(tmp_path, monitor="m", mode="min", keep_best=1, keep_last=1)
    assert paths[0].exists()
    newest = manager.save(3, model=model, metrics={"m": 0.9})
    assert paths[0].exists()
    assert newest.exists()
    manager = CheckpointManager(tmp_path, monitor="m", mode="min", keep_best=1, keep_last=1)
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
    """A run that can't resume says so, and does not start from scratch over its remains."""
    model = nn.Linear(1, 1)
    damage(CheckpointManager(tmp_path).save(0, model=model))
    with pytest.raises(DamagedFileError, match="start from scratch"):
        CheckpointManager(tmp_path).resume(model=model)
    (tmp_path / "0.safetensors").write_bytes(b"")
    with pytest.raises(DamagedFileError, match="start from scratch"):
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
