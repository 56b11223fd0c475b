"""Every call that opens a file, and what a call costs: run in a process of its own, under limits."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import ftkit
from ftkit import _cli
from ftkit.errors import FtkitError
from tests.attacks.bombs import Headed
from tests.attacks.payloads import Net

if sys.platform != "linux":
    pytest.skip("forks are measured on Linux alone", allow_module_level=True)
resource = pytest.importorskip("resource")

torch.optim.AdamW(Net().parameters())  # the first one imports half of torch

MEMORY = 500 << 20  # bytes that opening a file below a megabyte may take
SECONDS = 5.0


class LoadsItself(Net):
    """A model with a way of its own to load."""

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)


def _resume(path: Path) -> object:
    folder = path.parent / f"run-{path.stem}"
    shutil.rmtree(folder, ignore_errors=True)  # the cost is that of this file, not of those opened before it
    folder.mkdir()
    os.link(path, folder / path.name)
    model = Net()
    manager = ftkit.CheckpointManager(folder)
    return manager.resume(model=model, optimizer=torch.optim.AdamW(model.parameters()))


def _checkpoint(path: Path) -> object:
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    return ftkit.load_checkpoint(path, model=model, optimizer=optimizer)


def _cli_call(*words: str) -> object:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return _cli.main([*words])


OPENERS: dict[str, Callable[[Path], object]] = {
    "load_weights": lambda path: ftkit.load_weights(Net(), path),
    "load_weights loosely": lambda path: ftkit.load_weights(LoadsItself(), path, strict=False),
    "inspect": lambda path: repr(ftkit.inspect_checkpoint(path)),
    "diff": lambda path: repr(ftkit.diff_checkpoints(path, path)),
    "load_model": ftkit.load_model,
    "load_checkpoint": _checkpoint,
    "load_delta": lambda path: ftkit.load_delta(Headed(), path),
    "resume": _resume,
    "save_delta": lambda path: ftkit.save_delta(Net(), path.with_suffix(".delta"), base=path),
    "ftkit inspect": lambda path: _cli_call("inspect", "--json", str(path)),
    "ftkit diff": lambda path: _cli_call("diff", str(path), str(path)),
}


class Cost(NamedTuple):
    """What a call took, and how it ended: an error of ftkit, an answer, or what must not be."""

    seconds: float
    nbytes: int
    end: str

    @property
    def raw(self) -> bool:
        """Whether it ended in an error that is none of ftkit's, or never."""
        return self.end.startswith("raw")

    @property
    def fine(self) -> bool:
        """Whether it keeps the limits."""
        return not self.raw and self.seconds <= SECONDS and self.nbytes <= MEMORY


def cost(open_it: Callable[[Path], object], path: Path, seconds: float = 20) -> Cost:
    """Measure a call in a fork of this process, which is killed when it takes far too much."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.close(reader)
            os.write(writer, json.dumps(_measured(open_it, path, seconds)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    _, status, used = os.wait4(child, 0)
    if told:
        return Cost(*json.loads(told))
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, f"raw: killed, status {status}")


def _measured(open_it: Callable[[Path], object], path: Path, seconds: float) -> Cost:
    torch.set_num_threads(1)  # those of the parent are not here
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    room = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (3 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    signal.signal(signal.SIGPROF, _enough)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    start = time.process_time()
    try:
        open_it(path)
        end = "answer"
    except FtkitError as error:
        end = f"{type(error).__name__}: {str(error)[:150]}"
    except BaseException as error:
        end = f"raw {type(error).__name__}: {str(error)[:150]}"
    took = time.process_time() - start
    signal.setitimer(signal.ITIMER_PROF, 0)
    return Cost(took, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, end)


def _enough(*_: object) -> None:
    raise TimeoutError("still busy")
