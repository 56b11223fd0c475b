"""A file of rows: filled in any order, killed at any moment, read by many."""

from __future__ import annotations

import copy
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ftkit import DamagedFileError, FtkitError, freeze_except, precompute
from ftkit._files import lock
from ftkit._precompute.store import READY, UNFINISHED, KeyedFile, RowFile, locked

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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_process_that_is_forked_while_a_thread_adds_rows(tmp_path: Path) -> None:
    """It does not wait for that thread, which it does not have."""
    inside, over = threading.Event(), threading.Event()

    class Row:
        def tobytes(self) -> bytes:
            inside.set()
            over.wait(20)
            return bytes(48)

    file = KeyedFile(tmp_path / "a.rows", {}, 48, None)
    one, other = b"1" * 16, b"2" * 16
    file.add([one], np.ones((1, 48), np.uint8), None)
    thread = threading.Thread(target=file.add, args=([other], [Row()], None), daemon=True)
    thread.start()
    assert inside.wait(20)
    child = os.fork()
    if not child:
        signal.alarm(20)  # which ends it, if it waits
        os._exit(7 if (found := file.find([one])) is not None and found.all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    over.set()
    thread.join(20)
    assert file.find([one, other]) is not None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
@pytest.mark.parametrize("ends", ["leaves the block", "is killed"])
def test_a_forked_process_keeps_no_folder_locked(ends: str, tmp_path: Path) -> None:
    """Once the one that has locked it is through with it."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with locked(tmp_path):
            if not os.fork():
                os.close(writing)
                os.read(reading, 1)  # it lives until the pipe is closed
                os._exit(0)
            if ends == "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
        os._exit(0)
    os.waitpid(child, 0)
    descriptor = os.open(tmp_path / ".ftkit-lock", os.O_RDWR)
    assert lock(descriptor)
    for one in (descriptor, reading, writing):
        os.close(one)


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


def of_labels(first: int) -> TensorDataset:
    """A few samples, of which only the labels tell them from others."""
    _, data = setup()
    return TensorDataset(data.tensors[0][:20], (torch.arange(20) + first) % 2)


class Listed:
    """The same as a data set that has to be read."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> object:
        return self.data[index]


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("other", ["data", "model"])
def test_a_file_in_the_place_of_another_is_noticed_at_opening(other: str, read: bool, tmp_path: Path) -> None:
    """It was copied or renamed; and is left as it is."""

    def source(first: int) -> object:
        return Listed(of_labels(first)) if read else of_labels(first)

    model, _ = setup()
    mine = precompute(model, source(0), tmp_path).path
    if other == "model":
        with torch.no_grad():
            model[0].weight[0, 0] += 1e-7
    theirs = precompute(model, source(1 if other == "data" else 0), tmp_path).path
    assert theirs != mine
    shutil.copy(mine, theirs)
    with pytest.raises(FtkitError, match="belongs to another model or data set than its name says"):
        precompute(model, source(1 if other == "data" else 0), tmp_path)
    assert theirs.read_bytes() == mine.read_bytes()
    theirs.unlink()
    assert precompute(model, source(1 if other == "data" else 0), tmp_path).samples == 20


def test_an_unfinished_file_in_the_place_of_another_is_noticed(tmp_path: Path) -> None:
    """Of which no row would be computed anew."""
    model, _ = setup()
    mine, theirs = (precompute(model, of_labels(first), tmp_path).path for first in (0, 1))
    mine.rename(theirs.with_suffix(UNFINISHED))
    theirs.unlink()
    with pytest.raises(FtkitError, match="belongs to another model or data set"):
        precompute(model, of_labels(1), tmp_path)


def test_rows_are_not_taken_from_a_file_that_is_called_like_one_of_this_model(tmp_path: Path) -> None:
    """As samples that another file has are not computed once more."""
    model, _ = setup()
    mine = precompute(model, of_labels(0), tmp_path).path
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-7
    theirs = precompute(model, of_labels(0), tmp_path).path
    mine.rename(theirs)
    theirs.rename(theirs.with_name(theirs.name[:-10] + "00000" + theirs.name[-5:]))
    assert precompute(model, of_labels(0), tmp_path).computed == 20


def test_a_file_that_is_replaced_while_it_is_used_is_noticed(tmp_path: Path) -> None:
    """By a process that opens it then."""
    model, _ = setup()
    mine, theirs = (precompute(model, of_labels(first), tmp_path) for first in (0, 1))
    shutil.copy(theirs.path, other := tmp_path / "other")
    other.replace(mine.path)
    with mine:
        assert next(iter(mine.loader(batch_size=20)))[1].tolist() == of_labels(0).tensors[1].tolist()
        with pytest.raises(DamagedFileError, match="another file than when it was opened"):
            next(iter(mine.loader(batch_size=20, num_workers=1)))


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file can't be cut")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_cut_while_it_is_used_is_an_error(workers: int, tmp_path: Path) -> None:
    """To read what is gone through the map would end the process."""
    model, data = setup()
    with precompute(model, TensorDataset(*(one[:400] for one in data.tensors)), tmp_path) as cached:
        loader = cached.loader(batch_size=40, num_workers=workers)
        model(next(iter(loader))[0])
        os.truncate(cached.path, 5000)
        with pytest.raises(DamagedFileError, match=r"was cut|not a whole file"):
            next(iter(loader))
        with pytest.raises(DamagedFileError, match="was cut"):
            cached.features()
    with pytest.raises(DamagedFileError, match="not a whole file"):
        precompute(model, TensorDataset(*(one[:400] for one in data.tensors)), tmp_path)


@pytest.mark.parametrize("left", [4096, 9000])
def test_what_was_cut_from_a_file_by_content_is_computed_anew(left: int, tmp_path: Path) -> None:
    """And what another process adds in its place is not taken for it."""
    model, data = setup()
    plain, inputs = copy.deepcopy(model), data.tensors[0][:60]
    with precompute(model, DataLoader(TensorDataset(inputs, data.tensors[1][:60]), 10), tmp_path) as cached:
        for _ in range(2):
            for batch in inputs.split(10):
                assert torch.equal(model(batch), plain(batch))
        os.truncate(cached.path, left)
        for _ in range(2):
            for batch in inputs.flip(0).split(10):  # some kernels round a sample otherwise in another place of a batch
                assert torch.allclose(model(batch), plain(batch), atol=1e-6)
        record = cached._lookup.file._record
        content = cached.path.read_bytes()
        start = len(content) - 60 * record
        with cached.path.open("r+b") as file:  # as if it had been cut and filled in another order
            file.seek(start)
            file.write(content[start + 30 * record :] + content[start : start + 30 * record])
        for batch in inputs.split(10):
            assert torch.allclose(model(batch), plain(batch), atol=1e-6)


def test_a_file_by_content_of_another_model_is_told_from_one_that_is_not_whole(tmp_path: Path) -> None:
    """Where it was put in the place of this model's."""
    model, _ = setup()
    loader = DataLoader(of_labels(0), 10)
    mine = precompute(model, loader, tmp_path).path
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-7
    theirs = precompute(model, loader, tmp_path).path
    shutil.copy(mine, theirs)
    with pytest.raises(DamagedFileError, match="belongs to another model"):
        precompute(model, loader, tmp_path)


@pytest.mark.parametrize("keys", ["index", "content"])
@pytest.mark.parametrize("name", ["x" * 300, "file", "file/inside"])
def test_what_can_be_no_folder_is_refused(name: str, keys: str, tmp_path: Path) -> None:
    """Before anything is computed."""
    model, _ = setup()
    (tmp_path / "file").write_text("")
    with pytest.raises(FtkitError, match=r"Can't (open|write) .* Name a"):
        precompute(model, of_labels(0) if keys == "index" else DataLoader(of_labels(0), 10), tmp_path / name)
