"""A file of rows: filled in any order, killed at any moment, read by many."""

from __future__ import annotations

import copy
import os
import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ftkit import DamagedFileError, FtkitError, freeze_except, precompute
from ftkit._precompute.store import READY, UNFINISHED, RowFile

SOURCE = Path(__file__).parents[2] / "src"


def filled(path: Path, rows: int = 5) -> RowFile:
    RowFile.create(path, {"tag": "x"}, rows, 48)
    file = RowFile(path, writable=True)
    for at in range(rows):
        file.write(at, bytes([at]) * 48, bytes([at]) * 16)
    return file


def test_rows_come_back(tmp_path: Path) -> None:
    """With the digests of their samples; what was never written is not there."""
    path = tmp_path / "a.rows"
    RowFile.create(path, {"tag": "x"}, 3, 48)
    with RowFile(path, writable=True) as file:
        file.write(1, b"r" * 48, b"s" * 16)
        file.flush()
        assert [file.has(at) for at in range(3)] == [False, True, False]
        assert file.samples() == {b"s" * 16: 1}
    with RowFile(path) as file:
        assert file.read(1) == b"r" * 48
        with pytest.raises(DamagedFileError, match="Row 0"):
            file.read(0)


def test_any_flipped_byte_of_a_row_is_noticed(tmp_path: Path) -> None:
    """Where it is read."""
    path = tmp_path / "a.rows"
    filled(path).close()
    data = bytearray(path.read_bytes())
    for position in random.Random(0).sample(range(len(data) - 5 * 48, len(data)), 20):
        data[position] ^= 4
        path.write_bytes(data)
        with RowFile(path) as file, pytest.raises(DamagedFileError):
            [file.read(at) for at in range(5)]
        with RowFile(path) as file, pytest.raises(DamagedFileError):
            file.gather([4, 3, 2, 1, 0])
        data[position] ^= 4


@pytest.mark.parametrize("keep", [0, 3, 20, 4000, 8200])
def test_a_file_that_was_cut_is_refused(keep: int, tmp_path: Path) -> None:
    """By its size."""
    path = tmp_path / "a.rows"
    filled(path).close()
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DamagedFileError, match="not a whole file"):
        RowFile(path)


def setup() -> tuple[nn.Module, TensorDataset]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 2))
    freeze_except(model, "3")
    return model, TensorDataset(torch.randn(4000, 16), torch.arange(4000) % 2)


FILL = f"""
import sys; sys.path[:0] = [{str(SOURCE)!r}, {str(Path(__file__).parent)!r}]
from test_store import setup
from ftkit import precompute
print("ready", flush=True)
print(precompute(*setup(), sys.argv[1], batch_size=4).computed)
"""


def right(folder: Path) -> int:
    """Finish the file, and compare all of it with the model; return how many samples were left to compute."""
    model, data = setup()
    cached = precompute(model, data, folder, batch_size=4)
    with cached:
        rows = torch.cat([rows for rows, _ in cached.loader(batch_size=500)])
        assert torch.allclose(model(rows), model(data.tensors[0]), atol=1e-6)
    return cached.computed


def test_a_damaged_row_of_an_unfinished_file_is_computed_anew(tmp_path: Path) -> None:
    """As after a power cut."""
    right(tmp_path)
    (path,) = tmp_path.glob(f"*{READY}")
    unfinished = path.with_suffix(UNFINISHED)
    path.rename(unfinished)
    with unfinished.open("r+b") as file:
        file.seek(-100, 2)
        file.write(b"garbage")
    assert right(tmp_path) == 1


KILLED = f"""
import contextlib, os, random, signal, sys, time; sys.path[:0] = [{str(SOURCE)!r}, {str(Path(__file__).parent)!r}]
import torch
from test_store import by_content, setup
from ftkit import precompute
torch.set_num_threads(1)
def state():
    return [os.stat(one.path).st_mtime_ns for one in os.scandir(sys.argv[1]) if ".rows" in one.name]
for attempt in range(50):
    child = os.fork()
    if not child:
        by_content(sys.argv[1]) if sys.argv[2] == "content" else precompute(*setup(), sys.argv[1], batch_size=4)
        os._exit(0)
    before = state()
    while state() == before and not os.waitpid(child, os.WNOHANG)[0]:
        time.sleep(0.001)
    time.sleep(random.Random(attempt).uniform(0.0, 0.02))  # it writes
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
"""


def by_content(folder: str | Path) -> int:
    """Run over the data in a loop, and compare all of it with the model; return how many samples were computed."""
    model, data = setup()
    plain, loader = copy.deepcopy(model), DataLoader(data, 10)
    with precompute(model, loader, folder) as cached, torch.no_grad():
        assert all(torch.equal(model(inputs), plain(inputs)) for inputs, _ in loader)
    return cached.computed


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.parametrize("keys", ["index", "content"])
def test_killed_in_the_first_pass_and_resumed(keys: str, tmp_path: Path) -> None:
    """Fifty times; what they had computed is there, and right."""
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), keys], check=True)
    if keys == "content":
        assert by_content(tmp_path) < 4000
        assert by_content(tmp_path) == 0
    else:
        before = list(tmp_path.glob(f"*{UNFINISHED}"))
        assert right(tmp_path) < 4000
        assert before
        assert not before[0].exists()


@pytest.mark.slow
def test_two_loops_at_once(tmp_path: Path) -> None:
    """Both add to one file."""
    code = FILL.partition("from ftkit")[0].replace("setup", "by_content") + "print(by_content(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    counts = [int(process.communicate()[0]) for process in processes]
    assert sum(counts) >= 4000
    assert max(counts) < sum(counts)
    assert by_content(tmp_path) == 0


@pytest.mark.slow
def test_two_processes_at_once(tmp_path: Path) -> None:
    """One computes, the other waits and finds all there."""
    command = [sys.executable, "-c", FILL, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    counts = sorted(int(process.communicate()[0].split()[1]) for process in processes)
    assert counts == [0, 4000]
    assert right(tmp_path) == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
@pytest.mark.parametrize("keys", ["index", "content"])
def test_a_pipe_in_the_place_of_the_file_is_refused(keys: str, tmp_path: Path) -> None:
    """To open it would wait for ever."""
    model, data = setup()
    source = TensorDataset(*(one[:20] for one in data.tensors))
    given = source if keys == "index" else DataLoader(source, 10)
    path = precompute(model, given, tmp_path).path
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FtkitError, match="no ordinary file"):
        precompute(model, given, tmp_path)


@pytest.mark.parametrize("keys", ["index", "content"])
def test_the_most_bytes_are_those_of_the_whole_file(keys: str, tmp_path: Path) -> None:
    """With its header and the table of digests."""
    model, data = setup()
    source = TensorDataset(*(one[:20] for one in data.tensors))
    given = source if keys == "index" else DataLoader(source, 10)
    with precompute(model, given, tmp_path / "a") as cached, torch.no_grad():
        for inputs, _ in DataLoader(source, 10):
            model(inputs)
    size = cached.path.stat().st_size
    with precompute(model, given, tmp_path / "b", max_bytes=size) as cached, warnings.catch_warnings():
        warnings.simplefilter("error")
        for inputs, _ in DataLoader(source, 10):
            model(inputs)
    least = size if keys == "index" else size - 19 * 320
    with pytest.raises(FtkitError, match="more than max_bytes"):
        precompute(model, given, tmp_path / "c", max_bytes=least - 1)
    assert not (tmp_path / "c").exists()


def test_a_full_disk_is_noticed_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The room that there is, by what the system says."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(FtkitError, match="choose another disk"):
        precompute(*setup(), tmp_path)
    assert not list(tmp_path.glob("*.rows*"))
