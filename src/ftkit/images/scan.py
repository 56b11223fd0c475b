"""One pass over a folder of images: what is broken, what is odd, what is there twice."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import Any, Self

from ftkit.errors import FtkitError
from ftkit.images.folders import find_splits, walk
from ftkit.images.journal import Journal
from ftkit.images.report import ScanReport
from ftkit.images.tally import Tally
from ftkit.images.workers import check_batch, close_workers

__all__ = ["scan_images"]

_TASK = 256  # files a task of a foreign executor; the threads of the default one take an eighth


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
        FtkitError: ``root`` is no folder, a split does not exist, or workers can't start.

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
    start = time.perf_counter()
    folder = os.fspath(root)
    if not Path(folder).is_dir():
        raise FtkitError(f"{folder!r} is no folder. Give the folder that the class or split folders lie in.")
    tops = [entry.name for entry in Path(folder).iterdir() if entry.is_dir()]
    prefix = folder if folder.endswith(("/", os.sep)) else folder + os.sep
    pool = executor or ThreadPoolExecutor(workers or _cores(), thread_name_prefix="ftkit-scan")
    with Journal(resume) as journal, _Bar(progress) as bar:
        tally = Tally(prefix, find_splits(tops, folder, splits), journal, near_duplicates)
        files = walk(folder, tally.note, tally.enter)
        absolute = str(Path(folder).absolute())
        try:
            for line in _run(pool, lambda names: (check_batch, absolute, names, timeout), files, executor is None, bar):
                tally.add(line, journal.append(line))
        finally:
            if executor is None:
                pool.shutdown(cancel_futures=True)
            close_workers()
        groups = tally.finish()
    return ScanReport(
        root=folder,
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
    task: Callable[[list[str]], tuple[Any, ...]],
    files: Iterator[str],
    own: bool,
    bar: _Bar,
) -> Iterator[bytes]:
    """Hand the files out, a few tasks ahead of the workers, and yield the answers as they come."""
    ahead = 2 * getattr(pool, "_max_workers", 32) + 2
    running: set[Future[list[bytes]]] = set()
    while True:
        batch = list(islice(files, _TASK // 8 if own else _TASK))
        if batch:
            bar.expect(len(batch))
            running.add(pool.submit(*task(batch)))
        elif not running:
            return
        if len(running) >= ahead or not batch:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                lines = future.result()
                yield from lines
                bar.advance(len(lines))


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
