"""One process at a time writes to a folder, and its managers one after the other; who reads is in nobody's way."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ftkit import CheckpointManager, load_checkpoint
from ftkit._checkpoints.turns import Turns
from ftkit.errors import FileWriteError
from tests.checkpoints.runs import damage, names, run_child

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of fork beside threads

WRITER = """
    import sys, torch, ftkit
    model = torch.nn.Linear(20, 20)
    manager = ftkit.CheckpointManager(sys.argv[1], monitor="val_loss", background=sys.argv[2] == "background")
    for version in range(1_000_000):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(version)
        manager.save(version, model=model, metrics={"val_loss": version}, rng=False)
        if not version:
            print("begun", flush=True)
"""


def start(folder: Path, way: str = "") -> subprocess.Popen[str]:
    """Start a process that saves on and on, and wait for its first checkpoint."""
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(folder), way], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    child.stdout.readline()
    while not any(path.suffix == ".safetensors" for path in folder.iterdir()):
        time.sleep(0.001)
    return child


def is_free(folder: Path) -> bool:
    """Ask another process whether it may write to a folder."""
    code = (
        "import sys; from pathlib import Path; from ftkit._files import *; print(lock(open_folder(Path(sys.argv[1]))))"
    )
    return {"True": True, "False": False}[run_child(code, folder).stdout.strip()]


def end(child: subprocess.Popen[str]) -> None:
    """Kill a process, wherever it is."""
    child.kill()
    child.wait()
    assert child.stdout is not None
    child.stdout.close()


@pytest.mark.parametrize(
    ("way", "count"),
    [("", 40), pytest.param("", 300, marks=pytest.mark.slow), pytest.param("background", 300, marks=pytest.mark.slow)],
)
def test_a_resume_beside_a_writer_is_right(tmp_path: Path, way: str, count: int) -> None:
    """However often a reader opens the folder, it gets a whole checkpoint, and none older than the one before."""
    child = start(tmp_path, way)
    try:
        reached = 0
        for _ in range(count):
            model = nn.Linear(20, 20)
            manager = CheckpointManager(tmp_path, monitor="val_loss")
            assert manager.best_path == tmp_path / "0-0.0000.safetensors"
            epoch = manager.resume(model=model)
            assert model.weight.unique().tolist() == model.bias.unique().tolist() == [epoch - 1]
            assert epoch >= reached
            reached = epoch
            assert manager.last_path is not None
    finally:
        end(child)
    assert reached > 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_second_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    """Its save is an error and leaves everything as it was; a process that was killed is in nobody's way."""
    child = start(tmp_path)
    try:
        manager = CheckpointManager(tmp_path)
        for background in (False, True):
            manager.background = background
            with pytest.raises(
                FileWriteError, match=r"Another process is saving checkpoints to .* nothing was written"
            ):
                manager.save(10**7, model=nn.Linear(1, 1))
    finally:
        end(child)
    path = manager.save(10**7, model=nn.Linear(1, 1))
    manager.wait()
    assert manager.last_path == path
    assert load_checkpoint(path).epoch == 10**7
    assert (tmp_path / "0-0.0000.safetensors").exists()  # the best of the other one's metric


def test_a_folder_is_free_when_its_last_manager_is_gone(tmp_path: Path) -> None:
    """It is held from the first save on, and not by a process that has forgotten its managers."""
    first, second = CheckpointManager(tmp_path), CheckpointManager(tmp_path)
    assert is_free(tmp_path)
    first.save(0, model=nn.Linear(1, 1))
    second.save(1, model=nn.Linear(1, 1))
    assert not is_free(tmp_path)
    del first
    gc.collect()
    assert not is_free(tmp_path)
    del second
    gc.collect()
    assert is_free(tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_does_not_hold_the_folder(tmp_path: Path) -> None:
    """A loader's worker, forked while a manager lives, may outlive it."""
    manager = CheckpointManager(tmp_path)
    manager.save(0, model=nn.Linear(1, 1))
    ready, told = os.pipe()
    worker = os.fork()
    if not worker:
        os.write(told, b"x")
        time.sleep(60)
        os._exit(0)
    try:
        assert os.read(ready, 1)
        del manager
        gc.collect()
        assert is_free(tmp_path)
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_threads_take_turns(tmp_path: Path, background: bool, together: bool) -> None:
    """Of two threads, each gets the path of its own checkpoint, with one manager for both or with one for each."""
    shared = CheckpointManager(tmp_path, keep_last=None, background=background)
    failed: list[Any] = []

    def run(number: int) -> None:
        manager = shared if together else CheckpointManager(tmp_path, keep_last=None, background=background)
        model, again = nn.Linear(2, 2), nn.Linear(2, 2)
        try:
            for epoch in range(12):
                nn.init.constant_(model.weight, 100 * number + epoch)
                path = manager.save(epoch, model=model, rng=False)
                manager.wait()
                load_checkpoint(path, model=again)
                assert torch.equal(again.weight, model.weight)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shared.wait()
    assert not failed
    assert len(names(tmp_path)) == 24


def test_managers_of_one_process_see_what_the_other_wrote(tmp_path: Path) -> None:
    """The second one goes on after the first, and neither deletes what the other counts on."""
    model = nn.Linear(1, 1)
    low = CheckpointManager(tmp_path, monitor="val_loss")
    high = CheckpointManager(tmp_path, monitor="val_acc")
    for epoch, (loss, accuracy) in enumerate([(0.1, 0.5), (0.4, 0.9), (0.3, 0.2)]):
        for manager in (low, high):
            manager.save(epoch, model=model, metrics={"val_loss": loss, "val_acc": accuracy})
    later = CheckpointManager(tmp_path, monitor="val_loss"), CheckpointManager(tmp_path, monitor="val_acc")
    for best_low, best_high in ((low, high), later):
        assert best_low.best_path is not None
        assert load_checkpoint(best_low.best_path).epoch == 0
        assert best_high.best_path is not None
        assert load_checkpoint(best_high.best_path).epoch == 1
        assert best_high.resume(model=model) == 3
    assert len(names(tmp_path)) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_all_else_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """On a network file system that knows none, checkpoints are saved, kept and found as ever."""
    import fcntl

    def none(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    manager = CheckpointManager(tmp_path, keep_last=2)
    for epoch in range(3):
        manager.save(epoch, model=nn.Linear(1, 1))
    assert names(tmp_path) == ["1.safetensors", "2.safetensors"]
    assert CheckpointManager(tmp_path).resume(model=nn.Linear(1, 1)) == 3


def test_a_folder_that_was_deleted_is_claimed_anew(tmp_path: Path) -> None:
    """What somebody deleted while a manager lives is made again, and is that process's again."""
    folder = tmp_path / "runs"
    manager = CheckpointManager(folder)
    manager.save(0, model=nn.Linear(1, 1))
    shutil.rmtree(folder)
    assert manager.last_path is None
    for epoch in (1, 2):
        manager.save(epoch, model=nn.Linear(1, 1))
    assert names(folder) == ["2.safetensors"]
    assert not is_free(folder)


def test_nothing_is_written_to_read(tmp_path: Path) -> None:
    """Who only asks and resumes leaves no trace, and needs no right to write."""
    CheckpointManager(tmp_path).save(0, model=nn.Linear(1, 1))
    before = names(tmp_path), tmp_path.stat().st_mtime_ns
    tmp_path.chmod(0o555)
    try:
        manager = CheckpointManager(tmp_path)
        assert manager.last_path is not None
        assert manager.resume(model=nn.Linear(1, 1)) == 1
    finally:
        tmp_path.chmod(0o755)
    assert (names(tmp_path), tmp_path.stat().st_mtime_ns) == before


def test_a_reader_keeps_up(tmp_path: Path) -> None:
    """A manager that only reads names what is best and newest now, and forgets what is gone."""
    reader = CheckpointManager(tmp_path, monitor="val_loss")
    writer = CheckpointManager(tmp_path, monitor="val_loss")
    assert reader.best_path is None
    for epoch, loss in enumerate([0.5, 0.7, 0.3]):
        path = writer.save(epoch, model=nn.Linear(1, 1), metrics={"val_loss": loss})
        assert reader.last_path == path
        assert reader.best_path == writer.best_path
    path.unlink()
    assert reader.best_path is None
    assert writer.best_path is None


def test_a_damaged_file_stays_passed_over(tmp_path: Path) -> None:
    """Looking again does not bring back what resume has found damaged."""
    manager = CheckpointManager(tmp_path, keep_last=2)
    model = nn.Linear(1, 1)
    manager.save(0, model=model)
    damage(manager.save(1, model=model))
    again = CheckpointManager(tmp_path, keep_last=2)
    assert again.resume(model=model) == 1
    assert again.resume(model=model) == 1
    assert again.last_path == tmp_path / "0.safetensors"


def test_a_manager_that_is_left_when_a_script_ends_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python may clear the names in a module before what a script left in a global."""
    turns = Turns(tmp_path)
    turns.begin()
    turns.end()
    assert not is_free(tmp_path)
    with monkeypatch.context() as ending:
        ending.setattr("ftkit._checkpoints.turns.os", None)
        turns.__del__()
    assert is_free(tmp_path)
