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
from typing import IO, Any

from ftkit._images.serving import FAULT, READY, TICK_SECONDS
from ftkit.errors import FtkitError

__all__ = ["Casualty", "check_batch", "close_workers", "run_jobs", "start_worker", "verdict_of", "write_line"]

_BOOT = "import sys; sys.path[:] = sys.argv[1:]; from ftkit._images.serving import serve; serve()"
_START_SECONDS = 120


class Casualty(Exception):  # noqa: N818  (it is an answer)
    """A worker was lost over a job; carries the kind and detail of the finding."""


class _Worker:
    """One child process, driven from one thread at a time."""

    def __init__(self) -> None:
        path = [entry or os.getcwd() for entry in sys.path]  # noqa: PTH109
        single = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        # -P keeps a stray numpy.py in the current folder out; the path is the caller's own.
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-c", _BOOT, *path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **single},
        )
        self._ready = False
        self._ticks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, name="ftkit-worker", daemon=True)
        self._listener.start()

    def _get_ready(self) -> None:
        """Wait until the process has started, which does not count as time of a job."""
        if self._ready:
            return
        last = b"no message"
        while not self._ready:
            try:
                line = self._next(_START_SECONDS)
            except queue.Empty:
                line = None
            if line is None:
                self.kill()
                raise FtkitError(
                    f"A worker process of scan_images ended before it was ready: {last.decode(errors='replace')}. "
                    f"Check that {sys.executable} can import ftkit, numpy and simplejpeg."
                )
            self._ready = line == READY
            last = line.strip() or last
        while self._pipe(self._process.stdout).readline() not in (READY, b""):
            pass  # somebody's sitecustomize prints

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def _listen(self) -> None:
        # A thread, because a pipe can't be read with a timeout on every system.
        with self._pipe(self._process.stderr) as ticks, contextlib.suppress(OSError):
            for line in ticks:
                self._ticks.put(line)
        self._ticks.put(b"")

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None
        return pipe

    def _next(self, seconds: float) -> bytes | None:
        """Return what it says next; None when the process ended. Raises queue.Empty after ``seconds``."""
        return self._ticks.get(timeout=seconds) or None

    def answers(self, jobs: Sequence[list[Any]], payloads: Sequence[bytes], timeout: float) -> Iterator[bytes]:
        """Send the jobs in one go and yield their answers as they come; raise Casualty when one kills the worker."""
        self._get_ready()
        stdin, stdout = self._pipe(self._process.stdin), self._pipe(self._process.stdout)
        sizes = [len(payload) for payload in payloads]
        with contextlib.suppress(OSError):  # it died: the missing answer says so
            stdin.write(json.dumps([jobs, sizes]).encode() + b"\n")
            stdin.flush()
            for payload in payloads:
                stdin.write(payload)
            stdin.flush()
        left, end = len(jobs), ""
        while left and not end:
            try:
                tick = self._next(timeout + TICK_SECONDS)
            except queue.Empty:
                end = "timeout"
                ended = self._kill()
            else:
                end = "" if tick else "crash"
                ended = True
            # Of one that has ended, all that it has answered.
            for _ in range(int(tick) if not end and tick else left if ended else 0):
                line = stdout.readline()
                if not line.endswith(b"\n"):
                    end = end or "crash"
                    break
                left -= 1
                yield line
        if left:
            raise Casualty(end, self._say_end() if end == "crash" else f"not decoded within {timeout:g} s")

    def _say_end(self) -> str:
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            self.kill()
            return "the worker closed its pipe"
        if code < 0:
            return f"the decoder died of {signal.Signals(-code).name}"
        return f"the worker left with exit code {code}"

    def _kill(self) -> bool:
        """End the process, and say whether it has ended: there are those that the system can't end."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        return not self.alive

    def kill(self) -> None:
        """End the process and let go of it."""
        self._kill()
        self._close()

    def hang_up(self) -> None:
        """Tell the process to end."""
        with contextlib.suppress(OSError):
            self._pipe(self._process.stdin).close()

    def close(self) -> None:
        """Let the process end by itself."""
        self._close()
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            self.kill()

    def _close(self) -> None:
        self.hang_up()
        self._listener.join(1)
        with contextlib.suppress(OSError):
            self._pipe(self._process.stdout).close()


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


def start_worker() -> None:
    """Have a worker start up while the caller prepares its work."""
    _give_back(_Worker())


def close_workers() -> None:
    """End the idle workers of this process."""
    with _idle_lock:
        workers, _idle[:] = (list(_idle) if _owner == os.getpid() else []), []
    for worker in workers:
        worker.hang_up()
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
                fault = line.startswith(FAULT) and line[len(FAULT) :].decode().strip()
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
        if isinstance(answer, Casualty)
        else b"[%b, %b]\n" % (json.dumps(paths[number]).encode(), answer.rstrip())  # as write_line does, for less
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
