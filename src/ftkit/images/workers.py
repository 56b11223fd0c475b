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
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import IO, Any

from ftkit.errors import FtkitError

__all__ = ["Casualty", "check_batch", "close_workers", "run_jobs", "start_workers", "verdict_of", "write_line"]

# A job is a JSON list: [verb, argument, ...]; an answer is one line of JSON. Bytes may follow a job's line.
_BOOT = "import sys; sys.path[:] = sys.argv[1:]; from ftkit.images.workers import serve; serve()"
_START_SECONDS = 120
_FAULT = b"!"  # begins no JSON
_MEMORY = 4 << 30  # address space of one worker
_IDLE_SECONDS = 60


class Casualty(Exception):  # noqa: N818  (it is an answer)
    """A worker was lost over a job; carries the kind and detail of the finding."""


class _Worker:
    """One child process, driven from one thread at a time."""

    def __init__(self) -> None:
        path = [entry or os.getcwd() for entry in sys.path]  # noqa: PTH109
        single = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._said: IO[bytes] | None = tempfile.TemporaryFile()  # noqa: SIM115
        # -P keeps a stray numpy.py in the current folder out; the path is the caller's own.
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-c", _BOOT, *path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**os.environ, **single},
        )
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, name="ftkit-worker", daemon=True)
        self._listener.start()

    def _get_ready(self) -> None:
        """Wait until the process has started, which does not count as time of a job."""
        if self._said is None:
            return
        with self._said as said:
            self._said = None
            try:
                line = self._next(_START_SECONDS)
            except queue.Empty:
                line = None
            if line is None:
                self.kill()
                said.seek(0)
                last = said.read().decode(errors="replace").strip().splitlines()[-1:]
                raise FtkitError(
                    f"A worker process of scan_images ended before it was ready: {''.join(last) or 'no message'}. "
                    f"Check that {sys.executable} can import ftkit, numpy and simplejpeg."
                )

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def _listen(self) -> None:
        # A thread, because a pipe can't be read with a timeout on every system.
        stdout = self._process.stdout
        assert stdout is not None
        with stdout, contextlib.suppress(OSError):
            for line in stdout:
                self._answers.put(line)
        self._answers.put(b"")

    def _next(self, seconds: float) -> bytes | None:
        """Return the next answer; None when the process ended. Raises queue.Empty after ``seconds``."""
        return self._answers.get(timeout=seconds) or None

    def answers(self, jobs: Sequence[list[Any]], payloads: Sequence[bytes], timeout: float) -> Iterator[bytes]:
        """Send the jobs in one go and yield their answers as they come; raise Casualty when one kills the worker."""
        self._get_ready()
        stdin = self._process.stdin
        assert stdin is not None
        sizes = [len(payload) for payload in payloads]
        with contextlib.suppress(OSError):  # it died: the missing answer says so
            stdin.write(json.dumps([jobs, sizes]).encode() + b"\n")
            stdin.flush()
            for payload in payloads:
                stdin.write(payload)
            stdin.flush()
        for _ in jobs:
            try:
                line = self._next(timeout)
            except queue.Empty:
                self.kill()
                raise Casualty("timeout", f"not decoded within {timeout:g} s") from None
            if line is None:
                raise Casualty("crash", self._say_end())
            yield line

    def _say_end(self) -> str:
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            self.kill()
            return "the worker closed its pipe"
        if code < 0:
            return f"the decoder died of {signal.Signals(-code).name}"
        return f"the worker left with exit code {code}"

    def kill(self) -> None:
        """End the process; never waits for one that the system can't end."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self._close()

    def close(self) -> None:
        """Let the process end by itself."""
        self._close()
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            self.kill()

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        if self._said is not None:
            self._said.close()
        self._listener.join(1)


_idle: list[_Worker] = []
_idle_lock = threading.Lock()
_owner = os.getpid()


def _take() -> _Worker:
    global _owner  # noqa: PLW0603
    with _idle_lock:
        if _owner != os.getpid():  # after a fork the workers are somebody else's
            _idle.clear()
            _owner = os.getpid()
        while _idle:
            worker = _idle.pop()
            if worker.alive:
                return worker
    return _Worker()


def _give_back(worker: _Worker) -> None:
    with _idle_lock:
        _idle.append(worker)


def start_workers(number: int) -> None:
    """Have workers start up while the caller prepares their work."""
    for _ in range(number):
        _give_back(_Worker())


def close_workers() -> None:
    """End the idle workers of this process."""
    with _idle_lock:
        workers, _idle[:] = (list(_idle) if _owner == os.getpid() else []), []
    for worker in workers:
        worker.close()


atexit.register(close_workers)


def run_jobs(
    jobs: Sequence[list[Any]], timeout: float, payloads: Sequence[bytes] = ()
) -> Iterator[tuple[int, bytes | Casualty]]:
    """Yield ``(number of the job, its answer)``; a lost worker is replaced and the rest of the jobs goes on.

    A crash counts against its job only when a fresh worker crashes over it, too: the first may
    have been killed from outside.
    """
    todo = list(range(len(jobs)))
    blamed: int | None = None
    while todo:
        worker = _take()
        # Alone with the suspect, so that nothing else suffers.
        now = todo[:1] if blamed is not None else todo
        done = 0
        try:
            answers = worker.answers([jobs[n] for n in now], [payloads[n] for n in now] if payloads else (), timeout)
            for line in answers:
                fault = line.startswith(_FAULT) and line[len(_FAULT) :].decode().strip()
                yield now[done], Casualty("crash", fault) if fault else line
                done += 1
        except Casualty as casualty:
            worker.kill()
            if casualty.args[0] == "crash" and blamed != now[done]:
                blamed = now[done]
                todo = todo[done:]
                continue
            yield now[done], casualty
            done += 1
        except BaseException:
            worker.kill()
            raise
        else:
            _give_back(worker)
        blamed = None
        todo = todo[done:]


def check_batch(root: str, paths: Sequence[str], timeout: float) -> list[bytes]:
    """Check files below ``root``; return a journal's line for each. This is the task that an executor runs."""
    join = root if root.endswith(("/", os.sep)) else root + os.sep
    return [
        write_line(paths[number], verdict_of(answer))
        for number, answer in run_jobs([["check", join + path] for path in paths], timeout)
    ]


def verdict_of(answer: bytes | Casualty, stamp: list[Any] | None = None) -> list[Any]:
    """Return the verdict that an answer holds, or that a casualty comes to."""
    if isinstance(answer, Casualty):
        return [[list(answer.args)], [], "", None, None]
    verdict: list[Any] = json.loads(answer)
    if stamp is not None:
        verdict[1] = stamp
    return verdict


def write_line(path: str, verdict: list[Any]) -> bytes:
    """Return the journal's line for a file."""
    return json.dumps([path, verdict]).encode() + b"\n"


# ------------------------------------------------------------------------------------------------ in the child


def serve() -> None:
    """Answer jobs from stdin until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle; it closes stdin
    _limit_memory()
    source: IO[bytes] = sys.stdin.buffer
    answers = os.dup(1)
    silence = os.open(os.devnull, os.O_WRONLY)
    from ftkit.images import checks

    warnings.simplefilter("ignore")
    for stream in (1, 2):  # decoders print
        os.dup2(silence, stream)
    idle_since: list[float] = [time.monotonic()]  # empty while at work
    threading.Thread(target=_leave_in_time, args=(os.getppid(), idle_since), daemon=True).start()
    os.write(answers, b"ready\n")
    while line := source.readline():
        idle_since.clear()
        jobs, sizes = json.loads(line)
        payloads = iter(sizes)
        for verb, *arguments in jobs:
            size = next(payloads, None)
            data = None if size is None else source.read(size)
            try:
                line = json.dumps(getattr(checks, f"do_{verb}")(*arguments, data)).encode() + b"\n"
            except Exception as error:  # noqa: BLE001  (a fault of the check itself: reported as the file's, not hidden)
                line = _FAULT + f"{type(error).__name__}: {error}".replace("\n", " ").encode(errors="replace") + b"\n"
            _write_all(answers, line)
        idle_since.append(time.monotonic())


def _write_all(descriptor: int, line: bytes) -> None:
    while line:
        line = line[os.write(descriptor, line) :]


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [limit for limit in (soft, hard, _MEMORY) if limit != resource.RLIM_INFINITY]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write("1000")  # when memory runs out, it is a worker that goes


def _leave_in_time(parent: int, idle_since: list[float]) -> None:
    """Leave when the caller is gone, even in the middle of a file, and when it has had no work for a while."""
    while os.getppid() == parent and not any(time.monotonic() - since > _IDLE_SECONDS for since in tuple(idle_since)):
        time.sleep(1)
    os._exit(0)
