"""Kept worker processes: whatever a decoder does, it happens there and costs one file."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from ftkit._images.decoding.serving import FAULT, MORE, READY, TICK_SECONDS
from ftkit._images.verdict import Broken, Note, Verdict, write_line
from ftkit.errors import FtkitError

#: Else glibc hands the memory of every group of files back, and takes the same pages anew for the next one.
KEEPING = {"MALLOC_TRIM_THRESHOLD_": str(64 << 20), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
_BOOT = "import sys; sys.path[:] = sys.argv[1:]; from ftkit._images.decoding.serving import serve; serve()"
_START_SECONDS = 120
_LOOK_SECONDS = 2  # how often a worker that says nothing as it starts is looked at
_STARTS = 4  # of a worker, when one after the other is killed before it is ready


class Job(NamedTuple):
    """What a worker is asked for: a verb of `ftkit._images.decoding.verbs`, its arguments, bytes that come along."""

    verb: Literal["check", "thumbnail", "groups", "copies", "repair"]
    arguments: tuple[Any, ...] = ()
    payload: bytes | None = None


class Answer(NamedTuple):
    """What came of a job: JSON, or a note on how the worker was lost over it."""

    text: bytes
    lost: Note | None = None

    @property
    def value(self) -> Any:
        """What the worker answered; None when it was lost."""
        return None if self.lost else json.loads(self.text)

    @property
    def verdict(self) -> bytes:
        """The JSON of the verdict that a check came to, also when the worker was lost."""
        return Verdict([self.lost]).to_json() if self.lost else self.text


class _Lost(Broken):
    """A worker was lost over a job."""


class _Worker:
    """One child process, driven from one thread at a time."""

    def __init__(self) -> None:
        path = [entry or os.getcwd() for entry in sys.path]  # noqa: PTH109
        single = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        # -P keeps a stray numpy.py in the current folder out; the path is the caller's own.
        try:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable or "", "-P", "-c", _BOOT, *path],  # there is none where Python is embedded
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**KEEPING, **os.environ, **single},
            )
        except OSError as error:
            raise FtkitError(
                f"Can't start a worker process of scan_images: {error.strerror}. Check that {sys.executable!r}, "
                f"which is sys.executable, can be run, and that memory and the number of processes allow one more."
            ) from error
        assert self._process.stdin
        assert self._process.stdout
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._ready = False
        self._ticks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, name="ftkit-worker", daemon=True)
        self._listener.start()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def _listen(self) -> None:
        # A thread, because a pipe can't be read with a timeout on every system.
        assert self._process.stderr
        with self._process.stderr as ticks, contextlib.suppress(OSError):
            for line in ticks:
                self._ticks.put(line)
        self._ticks.put(b"")

    def _next(self, seconds: float) -> bytes | None:
        """Return what it says next, nothing when it has ended, None when it says nothing for so long."""
        try:
            return self._ticks.get(timeout=seconds)
        except queue.Empty:
            return None

    def _next_at_start(self) -> bytes | None:
        """Return the same, but wait long, as there may be much to do; not for one that is stopped."""
        for _ in range(_START_SECONDS // _LOOK_SECONDS):
            line = self._next(_LOOK_SECONDS)
            if line is not None or self._is_stopped:
                return line
        return None

    @property
    def _is_stopped(self) -> bool:
        """Whether someone has stopped the process (SIGSTOP), and not let it go on."""
        if not hasattr(os, "waitid"):  # Windows
            return False
        with contextlib.suppress(ChildProcessError):
            return os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
        return False

    def get_ready(self) -> bool:
        """Wait until the process has started, which does not count as time of a job.

        False when it was killed, or stopped, from outside: however slow a machine is, it stops none.
        """
        if self._ready:
            return True
        last = b"no message"
        while (line := self._next_at_start()) != READY:
            if not line:
                is_lost = self._is_stopped if line is None else self._say_end() and self._process.returncode < 0
                self.kill()
                if is_lost:
                    return False
                what = "ended before it was ready" if line is not None else f"took over {_START_SECONDS} s to start"
                raise FtkitError(
                    f"A worker process of scan_images {what}: {last.decode(errors='replace')}. "
                    f"Check that {sys.executable} can import ftkit, numpy and simplejpeg."
                )
            last = line.strip() or last
        while self._stdout.readline() not in (READY, b""):
            pass  # a sitecustomize may print
        self._ready = True
        return True

    def answers(self, jobs: Sequence[Job], timeout: float) -> Iterator[bytes]:
        """Send the jobs in one go and yield their answers as they come; raise _Lost when one kills the worker."""
        self._send(jobs)
        left, end = len(jobs), ""
        while left and not end:
            number, end = self._wait(left, timeout)
            for _ in range(number):
                line = self._stdout.readline()
                if not line.endswith(b"\n"):
                    end = end or "crash"
                    break
                left -= 1
                yield line
        if left:
            raise _Lost(end, self._say_end() if end == "crash" else f"not decoded within {timeout:g} s")

    def _send(self, jobs: Sequence[Job]) -> None:
        request = [(job.verb, job.arguments, None if job.payload is None else len(job.payload)) for job in jobs]
        with contextlib.suppress(OSError):  # it died: the missing answer says so
            self._stdin.write(json.dumps(request).encode() + b"\n")
            self._stdin.flush()
            self._stdin.writelines(job.payload for job in jobs if job.payload)
            self._stdin.flush()

    def _wait(self, left: int, timeout: float) -> tuple[int, Literal["", "crash", "timeout"]]:
        """Return how many answers are there to read, or may be when the process has ended, and how it has ended."""
        tick = self._next(timeout + TICK_SECONDS)
        while tick and tick.startswith(MORE):
            tick = self._next(timeout + TICK_SECONDS + int(tick[len(MORE) :]))
        if tick is None:
            return left if self._end() else 0, "timeout"
        return (int(tick), "") if tick else (left, "crash")

    def _say_end(self) -> str:
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            self.kill()
            return "the worker closed its pipe"
        if code < 0:
            return f"the decoder crashed with {signal.Signals(-code).name}"
        return f"the worker ended with exit code {code}"

    def _end(self) -> bool:
        """End the process, and say whether it has ended: there are those that the system can't end."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        return not self.alive

    def kill(self) -> None:
        """End the process and let go of it."""
        self._end()
        self.close()

    def hang_up(self) -> None:
        """Tell the process to end."""
        with contextlib.suppress(OSError):
            self._stdin.close()

    def close(self) -> None:
        """Let the process end on its own, or else end it."""
        self.hang_up()
        self._listener.join(1)
        with contextlib.suppress(OSError):
            self._stdout.close()
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._end()


class _Idle:
    """The workers of this process that wait for jobs."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start over, as a forked process must: the workers are its parent's, and a thread of it may hold the lock."""
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()

    def take(self) -> _Worker:
        """Return one that is alive, or a new one."""
        with self._lock:
            while self._workers:
                worker = self._workers.pop()
                if worker.alive:
                    return worker
                worker.close()
        return _Worker()

    def put(self, worker: _Worker) -> None:
        with self._lock:
            self._workers.append(worker)

    def start(self) -> None:
        """Have a worker start up while the caller prepares its work."""
        self.put(_Worker())

    def close(self) -> None:
        """End the idle workers of this process."""
        with self._lock:
            workers, self._workers = self._workers, []
        for worker in workers:
            worker.hang_up()
        for worker in workers:
            worker.close()


_idle = _Idle()
start_worker, close_workers = _idle.start, _idle.close
atexit.register(close_workers)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.forget)


def core_count() -> int:
    """Return how many processes can run at the same time."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(jobs: Sequence[Job], timeout: float) -> Iterator[Answer]:
    """Yield the answer to each job; a lost worker is replaced and the rest of the jobs continues.

    It counts against its job only when that is alone with a worker: the job at hand need not be the first without an
    answer. A crash must happen once more, to a fresh worker: the first may have been killed from outside.
    """
    todo = list(jobs)
    is_suspect = False  # whether a worker was lost over the first of them, as far as can be told
    is_careful = False  # whether to send them one by one, since a worker was lost over them
    while todo:
        worker = _take_ready()
        done = 0
        try:
            for line in worker.answers(todo[:1] if is_careful else todo, timeout):
                done += 1
                yield _read_answer(line)
            is_suspect = False
        except _Lost as lost:
            worker.kill()
            is_certain = is_suspect or (is_careful and lost.note.kind == "timeout")
            is_suspect, is_careful = not is_certain, True
            if is_certain:
                done += 1
                yield Answer(b"", lost.note)
        except BaseException:
            worker.kill()
            raise
        else:
            _idle.put(worker)
        del todo[:done]


def _take_ready() -> _Worker:
    """Return a worker that is ready; one that is killed or stopped as it starts is replaced."""
    for _ in range(_STARTS):
        worker = _idle.take()
        try:
            if worker.get_ready():
                return worker
        except BaseException:
            worker.kill()
            raise
    raise FtkitError(
        f"{_STARTS} worker processes of scan_images in a row were killed or stopped before they were ready. "
        f"Free some memory, or pass fewer workers, and scan again."
    )


def _read_answer(line: bytes) -> Answer:
    if line.startswith(FAULT):
        return Answer(b"", Note("unjudged", line[len(FAULT) :].decode().strip()))
    return Answer(line.rstrip())


def check_batch(root: str, paths: Sequence[str], timeout: float) -> list[bytes]:
    """Check files below ``root``; return a journal's line for each. This is the task that an executor runs."""
    prefix = os.path.join(root, "")  # noqa: PTH118  (Path knows no such thing)
    answers = run_jobs([Job("check", (prefix + path,)) for path in paths], timeout)
    return [write_line(path, _verdict(prefix + path, answer)) for path, answer in zip(paths, answers, strict=True)]


def _verdict(path: str, answer: Answer) -> bytes:
    """Return the verdict on a file, also on one over which the worker was lost."""
    if answer.lost is None:
        return answer.verdict
    stamp: tuple[int, ...] = ()
    with contextlib.suppress(OSError):
        status = os.stat(path)  # noqa: PTH116
        stamp = status.st_size, status.st_mtime_ns
    return Verdict([answer.lost], stamp).to_json()
