"""What a worker process does: answer jobs until its pipe closes. Imports little, since it is waited for."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from ftkit._images.decoding.verbs import Work

# A request is a line of JSON, a list of jobs: [[verb, arguments, size], ...], and then the bytes that come along with
# them, so many for each as size says (null: none). An answer is one line of JSON on stdout. Once ready, stderr carries
# numbers: so many more answers are there, or on their way. To wake up for each answer would cost the caller more than
# the answer does.
READY = b"ready\n"
FAULT = b"!"  # begins no JSON
MORE = b"+"  # begins a number of seconds that the file at hand may take beyond the others
TICK_SECONDS = 0.05  # after so long, the caller is told at the next answer
_UNREAD = 2048  # bytes that fit into any system's pipe
_TOGETHER = 32  # files, of which the pixels wait for each other

_MEMORY = 4 << 30  # address space of one worker
_IDLE_SECONDS = 60


def serve() -> None:
    """Answer jobs from stdin until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle; it closes stdin
    _limit_memory()
    source: IO[bytes] = sys.stdin.buffer
    answers, ticks = os.dup(1), os.dup(2)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # libraries print
    gc.disable()  # while so much is made that stays, collections find nothing
    from ftkit._images.decoding import picture
    from ftkit._images.decoding.verbs import begin

    picture.ask_for_time = lambda seconds: _write_all(ticks, MORE + b"%d\n" % seconds) if seconds > 1 else None

    gc.freeze()
    gc.enable()
    warnings.simplefilter("ignore")
    os.dup2(silence, 2)
    idle_since: list[float] = [time.monotonic()]  # empty while at work
    threading.Thread(target=_leave_in_time, args=(os.getppid(), idle_since), daemon=True).start()
    os.write(answers, READY)
    os.write(ticks, READY)

    def payload(size: int | None) -> tuple[bytes, ...]:
        return () if size is None else (source.read(size),)

    while request := source.readline():
        idle_since.clear()
        jobs = json.loads(request)
        told, left = time.monotonic(), len(jobs)
        untold = unread = 0
        works = (begin(verb, *arguments, *payload(size)) for verb, arguments, size in jobs)
        for group in grouped(works):
            lines = answer(group)
            left -= len(lines)
            untold += len(lines)
            unread += sum(map(len, lines))
            if unread > _UNREAD or not left or time.monotonic() - told > TICK_SECONDS:
                _write_all(ticks, b"%d\n" % untold)  # first, so that the caller reads while this writes
                told = time.monotonic()
                untold = unread = 0
            _write_all(answers, b"".join(lines))
        idle_since.append(time.monotonic())
    os._exit(0)  # faster than to take everything down


def grouped(works: Iterable[Work]) -> Iterator[list[Work]]:
    """Put together what is to be finished, and answered, in one go: one job, or what can't go wrong any more.

    The other half of a check is much faster when it is done for several files at a time. But all must be answered
    before a file that may take the process down, or take forever.
    """
    from ftkit._images.decoding.verbs import is_sure

    group: list[Work] = []
    start = time.monotonic()
    for work in works:
        if group and not is_sure(work):
            yield group
            group = []
        group.append(work)
        if not is_sure(work) or len(group) == _TOGETHER or time.monotonic() - start > TICK_SECONDS:
            yield group
            group, start = [], time.monotonic()
    if group:
        yield group


def answer(works: Sequence[Work]) -> list[bytes]:
    """Finish jobs; return the line that answers each."""
    from ftkit._images.decoding.verbs import finish

    try:
        return [json.dumps(done).encode() + b"\n" for done in finish(works)]
    except Exception as error:  # noqa: BLE001  (a fault of the check itself: reported as the file's, not hidden)
        if len(works) > 1:
            return [line for work in works for line in answer([work])]
        return [FAULT + f"{type(error).__name__}: {error}".replace("\n", " ").encode(errors="replace") + b"\n"]


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
