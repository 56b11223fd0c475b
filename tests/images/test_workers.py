"""Kept workers: whatever a decoder does costs one file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ftkit import FtkitError, scan_images
from ftkit._images import workers
from ftkit._images.decoding.checks import check_file
from ftkit._images.verdict import read_line, write_line
from ftkit._images.workers import Answer, Job, close_workers, run_jobs, start_worker

# A Pillow plug-in for files that kill, stall or eat their decoder; sitecustomize brings it into every process.
EVIL = """
import os, time
from PIL import Image, ImageFile

class Evil(ImageFile.ImageFile):
    format = "EVIL"
    def _open(self):
        self.deed = self.fp.read(5)[4:]
        self._size, self._mode, self.tile = (8, 8), "RGB", []
    def load(self):
        if self.deed == b"C":
            os.kill(os.getpid(), 11)
        if self.deed == b"X":
            os._exit(3)
        if self.deed == b"H":
            time.sleep(1000)
        if self.deed == b"M":
            bytearray(60 << 30)
        if self.deed == b"R":
            raise RecursionError("deep")
        return super().load()

Image.register_open("EVIL", Evil, lambda prefix: prefix[:4] == b"EVIL")
"""


@pytest.fixture(autouse=True)
def _fresh_workers() -> Iterator[None]:
    """Start and leave each test without kept workers."""
    close_workers()
    yield
    close_workers()


@pytest.fixture
def _evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every new worker know the evil format."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(EVIL)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))


@pytest.mark.usefixtures("_evil")
def test_evil_files_cost_themselves_alone(pets: Path) -> None:
    """A crash, an exit, a stall, a hunger for memory and an odd error: each is found, all the others are judged."""
    wanted = {"C": "crash", "X": "crash", "H": "timeout", "M": "out_of_memory", "R": "damaged"}
    for deed in wanted:
        (pets / f"train/cat/{deed}.jpg").write_bytes(b"EVIL" + deed.encode() + bytes(100))
    (pets / "train/cat/cut.jpg").write_bytes((pets / "train/cat/1.jpg").read_bytes()[:3000])
    start = time.perf_counter()
    report = scan_images(pets, workers=1, timeout=1.0)
    assert time.perf_counter() - start < 15
    assert {Path(f.path).stem: f.kind for f in report.unusable} == {**wanted, "cut": "truncated"}
    assert report.images == 10
    details = {Path(f.path).stem: f.detail for f in report.unusable}
    assert "SIGSEGV" in details["C"]
    assert "exit code 3" in details["X"]
    assert "1 s" in details["H"]


EVIL_DECODER = """
import os, time
import simplejpeg

decode = simplejpeg.decode_jpeg

def evil(data, *arguments, **options):
    if b"crash" in bytes(data):
        os._exit(3)
    if b"hang" in bytes(data):
        time.sleep(1000)
    return decode(data, *arguments, **options)

simplejpeg.decode_jpeg = evil
"""


@pytest.mark.parametrize(("deed", "kind"), [("crash", "crash"), ("hang", "timeout")])
def test_a_worker_lost_amid_a_group_costs_the_right_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pets: Path, deed: str, kind: str
) -> None:
    """Photos are answered several at a time; it is not the first without an answer that a loss is held against."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(EVIL_DECODER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    paths = sorted(pets.rglob("*.jpg"))
    sound = paths[6].read_bytes()
    paths[6].write_bytes(sound[:2] + b"\xff\xfe\x00\x07" + deed.encode().ljust(5) + sound[2:])
    answers = list(run_jobs([Job("check", (str(path),)) for path in paths], 1.0))
    assert [answer.lost and answer.lost.kind for answer in answers] == [None] * 6 + [kind] + [None] * 3


def test_a_worker_killed_from_outside_costs_nothing(pets: Path) -> None:
    """A first death is not held against the file: a fresh worker tries it again."""
    jobs = [Job("check", (str(path),)) for path in sorted(pets.rglob("*.jpg"))] * 30
    answers: list[Answer] = []
    for answer in run_jobs(jobs, 10.0):
        answers.append(answer)
        if len(answers) == 4:
            victim = next(child for child in children(os.getpid()) if is_worker(child))
            os.kill(victim, signal.SIGKILL)
    assert not any(answer.lost for answer in answers)
    assert [answer.verdict for answer in answers] == [check_file(*job.arguments).to_json() for job in jobs]


def children(parent: int) -> list[int]:
    """Return the processes that ``parent`` started, and is the parent of still."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if int((place / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(place.name))
        except OSError:
            continue
    return found


def is_worker(process: int) -> bool:
    """Whether it is one of ours."""
    try:
        return b"ftkit._images.decoding.serving" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def test_workers_are_kept_and_closed(pets: Path) -> None:
    """One worker serves task after task; none is left after a scan."""
    path = str(next(pets.rglob("*.jpg")))
    for _ in range(3):
        list(run_jobs([Job("check", (path,))], 10.0))
        assert sum(is_worker(child) for child in children(os.getpid())) == 1
    scan_images(pets, workers=2)
    assert not any(is_worker(child) for child in children(os.getpid()))


def test_no_worker_outlives_its_caller(pets: Path) -> None:
    """Not even when the caller is killed."""
    script = "import time; from ftkit._images.workers import *; start_worker(); print('up', flush=True); time.sleep(60)"
    caller = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert caller.stdout is not None
    caller.stdout.readline()
    (worker,) = children(caller.pid)
    caller.kill()
    caller.wait()
    caller.stdout.close()
    deadline = time.monotonic() + 10
    while is_worker(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_worker(worker)


def test_a_worker_that_can_not_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pets: Path) -> None:
    """The error repeats the last line of what the process said."""
    monkeypatch.setattr(workers, "_BOOT", "import no_such_module")
    with pytest.raises(FtkitError, match="No module named 'no_such_module'"):
        scan_images(pets, workers=1)


@pytest.mark.parametrize("program", ["", None, "/no/such/python"])
def test_a_program_that_can_not_be_run_is_an_error(
    monkeypatch: pytest.MonkeyPatch, pets: Path, program: str | None
) -> None:
    """As where Python is part of another program, and has none of its own."""
    monkeypatch.setattr(sys, "executable", program)
    with pytest.raises(FtkitError, match=r"Can't start a worker process .*sys\.executable"):
        scan_images(pets)


KILLED_AT_START = """
import os, pathlib, signal
starts = pathlib.Path(__file__).with_name("starts")
starts.touch()
with starts.open("a") as file:
    file.write("x")
if starts.stat().st_size in KILLED:
    os.kill(os.getpid(), signal.NAME)
"""


@pytest.fixture
def _killed_at_start(_evil: None, tmp_path: Path, killed: Iterable[int], by: str) -> None:
    """Have those starts of a worker end by a signal."""
    with (tmp_path / "site/sitecustomize.py").open("a") as file:
        file.write(KILLED_AT_START.replace("KILLED", repr(list(killed))).replace("NAME", by))


@pytest.mark.usefixtures("_killed_at_start")
@pytest.mark.parametrize(("killed", "by"), [([1], "SIGKILL"), ([2, 3, 4], "SIGKILL"), ([1, 3], "SIGSTOP")])
def test_a_worker_killed_or_stopped_as_it_starts_costs_nothing(pets: Path) -> None:
    """Neither the first one nor those that take the place of one that crashed."""
    (pets / "train/cat/C.jpg").write_bytes(b"EVILC" + bytes(100))
    report = scan_images(pets, workers=1)
    assert [(Path(f.path).stem, f.kind) for f in report.unusable] == [("C", "crash")]
    assert report.images == 10


@pytest.mark.usefixtures("_killed_at_start")
@pytest.mark.parametrize(("killed", "by"), [(range(1, 100), "SIGKILL")])
def test_workers_that_are_always_killed_as_they_start_are_an_error(pets: Path) -> None:
    """It says so, and blames no import."""
    with pytest.raises(FtkitError, match="in a row were killed or stopped before they were ready"):
        scan_images(pets, workers=1)


def test_a_fault_of_the_check_itself_is_reported(pets: Path) -> None:
    """An error that escapes a check is the file's finding, and the worker lives on."""
    path = str(next(pets.rglob("*.jpg")))
    fault, answer = run_jobs([Job("groups", (str(pets / "none"),)), Job("check", (path,))], 10.0)
    assert fault.lost is not None
    assert "FileNotFoundError" in fault.lost.detail
    assert read_line(write_line(path, fault.verdict))[1].notes[0].kind == "unjudged"
    assert answer.lost is None
    assert answer.value[2]


def test_a_stray_module_in_the_current_folder_is_not_imported(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scraped folder may hold a json.py."""
    (tmp_path / "json.py").write_text("raise SystemExit('imported')")
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    assert scan_images(pets, workers=1).images == 10


def test_threads_share_the_workers(pets: Path) -> None:
    """Each thread of a foreign executor has a worker of its own; the answers don't mix."""
    paths = sorted(str(path) for path in pets.rglob("*.jpg")) * 4
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(lambda path: list(run_jobs([Job("check", (path,))], 10.0)), path) for path in paths]
    digests = {path: future.result()[0].value[2] for path, future in zip(paths, futures, strict=True)}
    assert len(set(digests.values())) == 10


def test_started_workers_wait(pets: Path) -> None:
    """Workers that were started ahead take the first jobs."""
    start_worker()
    start_worker()
    before = [child for child in children(os.getpid()) if is_worker(child)]
    list(run_jobs([Job("check", (str(next(pets.rglob("*.jpg"))),))], 10.0))
    assert [child for child in children(os.getpid()) if is_worker(child)] == before


def test_bytes_come_along_with_their_jobs(pets: Path) -> None:
    """Each job gets its own bytes, and one without gets none."""
    path = next(pets.rglob("*.jpg"))
    jobs = [Job("check", ("x.jpg", [7]), path.read_bytes()), Job("check", (str(path),)), Job("check", ("y", [8]), b"")]
    sent, read, empty = (answer.value for answer in run_jobs(jobs, 10.0))
    assert sent[1] == [7]
    assert sent[2:] == read[2:]
    assert empty[:2] == [[["empty", "0 bytes", None]], [8]]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
def test_a_forked_process_has_workers_of_its_own(pets: Path) -> None:
    """The parent's idle workers stay the parent's, and both get their answers."""
    script = (
        "import os, sys; from ftkit._images.workers import *; start_worker(); job = Job('check', (sys.argv[1],))\n"
        "child = os.fork(); (answer,) = run_jobs([job], 10.0); close_workers()\n"
        "status = 0 if child == 0 else os.waitpid(child, 0)[1]\n"
        "sys.exit(status or not answer.value[2])"
    )
    done = subprocess.run([sys.executable, "-c", script, str(next(pets.rglob("*.jpg")))], timeout=60, check=False)
    assert done.returncode == 0


SLOW = """
from PIL import Image, ImageFile

class Slow(ImageFile.ImageFile):
    format = "SLOW"
    def _open(self):
        self.fp.read(4)
        self._size, self._mode, self.tile = (4000, 3000), "L", []
    def load(self):
        import time
        time.sleep(2)
        return super().load()

Image.register_open("SLOW", Slow, lambda prefix: prefix[:4] == b"SLOW")
"""


def test_a_large_image_has_more_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the pixels that its header promises; how many there may be is limited."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(SLOW)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    (tmp_path / "x.jpg").write_bytes(b"SLOW" + bytes(100))
    (answer,) = run_jobs([Job("check", (str(tmp_path / "x.jpg"),))], 0.5)
    assert answer.lost is None
