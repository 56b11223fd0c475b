"""One pass over a folder of images: what is broken, what is odd, what is there twice."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Self

from ftkit._images.folders import LocalFolder, RemoteFolder, find_splits, open_folder
from ftkit._images.workers import close_workers, start_worker
from ftkit.errors import FtkitError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Executor, Future

    from ftkit._images.journal import Journal
    from ftkit._images.report import ScanReport
    from ftkit._images.tally import Tally

__all__ = ["scan_images"]

_TASK = 256  # files a task of a foreign executor; the threads of the default one take a quarter


def scan_images(
    root: str | os.PathLike[str],
    *,
    executor: Executor | None = None,
    workers: int | None = None,
    near_duplicates: bool = True,
    timeout: float = 10.0,
    splits: Sequence[str] | Mapping[str, str] | None = None,
    progress: bool | None = None,
    resume: str | os.PathLike[str] | None = None,
) -> ScanReport:
    """Look at every file below ``root`` and report what would harm a training; change nothing.

    Each file is read once and decoded in a worker process of its own kind, so that a decoder that
    crashes, hangs or takes all memory costs that file alone. Nothing is decoded in the caller's
    process, whatever the executor.

    Args:
        root: The folder, as for torchvision's ``ImageFolder``, or one folder above with ``train``,
            ``val`` and ``test`` in it; or a URL such as ``s3://bucket/pets`` where fsspec is installed.
        executor: Any `concurrent.futures.Executor` (threads, processes, dask's
            ``Client.get_executor()``): it hands out the work, 256 files a task. By default threads
            of this process, each with a worker process.
        workers: How many worker processes at a time, without an executor; by default one a core.
        near_duplicates: Also look for copies in another size, format or quality.
        timeout: Seconds after which a file that is not decoded is given up.
        splits: Which folders are splits: names of folders below ``root``, or a mapping from folder
            to the split's name. By default the top folders named train, val, valid, test and such.
        progress: Show a bar; by default only in a terminal.
        resume: A journal to write. When it is there already, files that have not changed
            since are not read again: a scan that was stopped goes on.

    Returns:
        The report: see `ScanReport`.

    Raises:
        FtkitError: ``root`` is no folder, a split does not exist, a number makes no sense, or workers can't start.

    Example:
        >>> from PIL import Image
        >>> from pathlib import Path
        >>> from ftkit import scan_images
        >>> Path("pets/cat").mkdir(parents=True)
        >>> Image.radial_gradient("L").convert("RGB").save("pets/cat/tom.jpg")
        >>> _ = Path("pets/cat/kitty.jpg").write_bytes(Path("pets/cat/tom.jpg").read_bytes()[:900])
        >>> report = scan_images("pets", workers=1)
        >>> [(finding.path, finding.kind) for finding in report.unusable]
        [('pets/cat/kitty.jpg', 'truncated')]
    """
    if executor is not None and workers is not None:
        raise FtkitError("Give executor or workers, not both: the executor knows how many it has.")
    if workers is not None and workers < 1:
        raise FtkitError(f"workers={workers}: a scan needs one worker process or more. Leave it out for one a core.")
    if not 0 < timeout < float("inf"):
        raise FtkitError(f"timeout={timeout}: give the seconds after which a file is given up, more than 0.")
    start = time.perf_counter()
    folder = open_folder(root)
    named = find_splits(folder.tops(), folder.name, splits)
    try:
        if executor is None:
            number = workers or _cores()
            start_worker()  # the others when there is work for them
        # The rest is imported while it starts.
        from concurrent.futures import ThreadPoolExecutor

        from ftkit._images.journal import Journal
        from ftkit._images.report import ScanReport
        from ftkit._images.tally import Tally

        with Journal(resume, folder) as journal, _Bar(progress) as bar:
            tally = Tally(folder.prefix, named, journal, near_duplicates)
            if executor is None:
                with ThreadPoolExecutor(number, thread_name_prefix="ftkit-scan") as pool:
                    _run(pool, _TASK // 4, 4, folder, timeout, journal, tally, bar)
            else:
                _run(executor, _TASK, _TASK, folder, timeout, journal, tally, bar)
            groups = tally.finish()
    finally:
        close_workers()
    return ScanReport(
        root=folder.name,
        findings=sorted(tally.findings, key=lambda finding: (finding.path, finding.kind)),
        duplicates=groups,
        files=tally.files,
        images=tally.images,
        classes={"/".join(filter(None, place)): count for place, count in sorted(tally.classes.items())},
        seconds=time.perf_counter() - start,
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(
    pool: Executor,
    size: int,
    least: int,
    folder: LocalFolder | RemoteFolder,
    timeout: float,
    journal: Journal,
    tally: Tally,
    bar: _Bar,
) -> None:
    """Hand the files out, ``least`` to ``size`` at a time, a few tasks ahead, and take the verdicts in as they come."""
    from concurrent.futures import FIRST_COMPLETED, wait

    ahead = 2 * getattr(pool, "_max_workers", 32) + 2
    running: set[Future[list[bytes]]] = set()
    files = folder.walk(tally.note, tally.enter)
    fresh: deque[str] = deque()
    try:
        while True:
            while len(fresh) < ahead * size and (path := next(files, None)) is not None:
                bar.expect(1)
                known = journal.recall(path)
                if known is None:
                    fresh.append(path)
                else:
                    tally.add(*known)
                    bar.advance(1)
            if fresh:
                # Smaller tasks towards the end, so that all workers finish at the same time.
                number = min(len(fresh), size, max(least, len(fresh) // ahead))
                function, *arguments = folder.task([fresh.popleft() for _ in range(number)], timeout)
                running.add(pool.submit(function, *arguments))
            elif not running:
                return
            if len(running) >= ahead or not fresh:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    lines = future.result()
                    for line in lines:
                        tally.add(line, journal.append(line))
                    journal.flush()
                    bar.advance(len(lines))
    finally:
        for future in running:
            future.cancel()


class _Bar:
    """A progress bar, where it is wanted."""

    def __init__(self, wanted: bool | None) -> None:
        self._bar: Any = None
        self._total = 0
        if wanted if wanted is not None else sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(unit="file", total=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def expect(self, more: int) -> None:
        if self._bar is not None:
            self._bar.total += more

    def advance(self, done: int) -> None:
        if self._bar is not None:
            self._bar.update(done)
