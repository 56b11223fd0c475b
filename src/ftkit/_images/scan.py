"""One pass over a folder of images: what is broken, odd or duplicated."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from itertools import islice
from threading import Thread
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ftkit._arguments import came, flag, real_number, whole_number
from ftkit._images.folders import Folder, open_folder
from ftkit._images.layout import Layout
from ftkit._images.workers import close_workers, core_count, start_worker
from ftkit.errors import FtkitError

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

    from ftkit._images.journal import Journal
    from ftkit._images.report import ScanReport
    from ftkit._images.tally import Tally


_TASK = 256  # files a task of a foreign executor
_THREAD_TASK, _LEAST_TASK = 64, 4  # the same for the threads of the default one, and towards the end of a scan
_NAMED = 3  # of what was skipped in a folder without any file
_AHEAD = 32  # workers that an executor is taken to have, when it does not say


def scan_images(
    root: str | os.PathLike[str],
    *,
    executor: Executor | None = None,
    workers: int | None = None,
    near_duplicates: bool = True,
    timeout: float = 10.0,
    splits: Sequence[str] | Mapping[str, str] | None = None,
    progress: bool | None = None,
    journal: str | os.PathLike[str] | None = None,
    allow_empty: bool = False,
) -> ScanReport:
    """Check every file below ``root`` and report what would harm training; change nothing.

    Each file is read once and decoded in a separate worker process, so that a decoder that crashes or
    hangs (or, on Linux, takes too much memory) costs only that file. Nothing is decoded in the caller's
    process, whatever the executor.

    Args:
        root: The folder, as for torchvision's ``ImageFolder``, or its parent with ``train``,
            ``val`` and ``test`` in it; or a URL such as ``s3://bucket/pets`` where fsspec is installed. One that begins
            with ``file://`` is the folder here.
        executor: Any `concurrent.futures.Executor` (threads, processes, dask's
            ``Client.get_executor()``): it hands out the work, 256 files a task. By default threads
            of this process, each with a worker process.
        workers: Number of worker processes, without an executor; by default one per core.
        near_duplicates: Also look for copies in another size, format or quality.
        timeout: Seconds after which a file that is not decoded yet is given up.
        splits: Which folders are splits: names of folders below ``root``, or a mapping from folder
            to the split's name. What is called neither train, val, test nor the like is a fold: a copy in two
            folds is a leak, of which the last one listed keeps its own. By default the folders named
            train, val, valid, test and the like, also train2017, test_set, or cars_train next to
            cars_test, at the top, in ``images`` or in each class or site; but a single such name among
            other folders is a class unless it contains class folders. Also fold0, fold1 and so on, if
            they contain some, and what has the same class folders as train and val beside it.
        progress: Show a progress bar; by default only in a terminal.
        journal: A file that records the result for each file. If it exists already, files that have not
            changed since are not read again: a scan that was stopped resumes.
        allow_empty: Accept a folder without any file.

    Returns:
        The report, with findings, duplicates and counts.

    Raises:
        FtkitError: ``root`` is not a folder, can't be reached, contains no file, or is a cache of the Hugging Face hub
            with snapshots in it; a split does not exist, a number is out of range, or workers can't start.

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
        raise FtkitError("Pass executor or workers, not both: an executor has its own number of workers.")
    if executor is not None and (isinstance(executor, type) or not hasattr(executor, "submit")):
        raise FtkitError(f"executor must be a concurrent.futures.Executor, not {came(executor)}.")
    if workers is not None:
        workers = whole_number("workers", workers, least=1, otherwise=", or left out for one per core")
    timeout = real_number("timeout", timeout, "of seconds, more than 0 and finite", lambda one: 0 < one < math.inf)
    near_duplicates = flag("near_duplicates", near_duplicates)
    progress = None if progress is None else flag("progress", progress)
    start = time.perf_counter()
    folder = open_folder(root)
    tops = folder.tops()
    if snapshot := folder.snapshot("", tops):
        raise FtkitError(
            f"{folder.name!r} is where the Hugging Face hub keeps files, under names that tell nothing, with links to "
            f"them in snapshots. Pass the snapshot: {folder.prefix}{snapshot}"
        )
    layout = Layout.find(tops, folder, splits)
    try:
        number = workers or core_count()
        if executor is None:
            start_worker()  # the others when there is work for them
        # The rest is imported while it starts.
        from concurrent.futures import ThreadPoolExecutor

        from ftkit._images.copies import Copies
        from ftkit._images.journal import Journal
        from ftkit._images.report import ScanReport
        from ftkit._images.table import TableWriter
        from ftkit._images.tally import Tally

        with (
            Journal(journal, folder) as verdicts,
            Copies(verdicts, near_duplicates) as copies,
            TableWriter(folder.place) as rows,
            _bar(progress, folder) as bar,
        ):
            tally = Tally(folder, layout, verdicts, copies, rows)
            whole = _Pass(folder, timeout, verdicts, tally, bar)
            if executor is None:
                with ThreadPoolExecutor(number, thread_name_prefix="ftkit-scan") as pool:
                    whole.run(pool, _LEAST_TASK, _THREAD_TASK)
            else:
                whole.run(executor, _TASK, _TASK)
            if not (tally.files or allow_empty):
                skipped = [f"{one.path} ({one.detail})" for one in tally.findings if one.kind != "empty_folder"]
                why = f" to check: {', '.join(skipped[:_NAMED])}" if skipped else ""
                raise FtkitError(
                    f"There is no file in {folder.name!r}{why}. Pass another folder, or allow_empty=True "
                    f"(in a shell, --allow-empty)."
                )
            groups, table = tally.finish(), rows.finish()
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
        splits=layout.of_images,
        _judged=tally.judged,
        _table=table,
        _place=folder.name if "://" in folder.name else folder.place,
    )


class _Pass:
    """One pass over the files: it hands them out and takes the verdicts in as they come."""

    def __init__(self, folder: Folder, timeout: float, journal: Journal, tally: Tally, bar: Any) -> None:
        self._folder, self._timeout, self._journal, self._tally, self._bar = folder, timeout, journal, tally, bar
        self._files = folder.walk(tally.note, tally.enter)

    def run(self, pool: Executor, least: int, most: int) -> None:
        """Hand the files out, ``least`` to ``most`` at a time, a few tasks ahead."""
        from concurrent.futures import FIRST_COMPLETED, wait

        ahead = 2 * getattr(pool, "_max_workers", _AHEAD) + 2
        running: set[Future[list[bytes]]] = set()
        waiting: deque[str] = deque()
        unknown = self._unknown()
        try:
            while True:
                waiting.extend(islice(unknown, max(0, ahead * most - len(waiting))))
                if waiting:
                    # Smaller tasks towards the end, so that all workers finish at the same time.
                    number = min(len(waiting), most, max(least, len(waiting) // ahead))
                    task = self._folder.task([waiting.popleft() for _ in range(number)], self._timeout)
                    running.add(pool.submit(*task))
                elif not running:
                    return
                if len(running) >= ahead or not waiting:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        self._take_in(future.result())
        finally:
            for future in running:
                future.cancel()

    def _unknown(self) -> Iterator[str]:
        """Yield the files that the journal does not know; take in what it says of the others."""
        number = 0
        for path in self._files:
            number += 1
            known = self._journal.recall(path)
            if known is None:
                yield path
            else:
                self._tally.add(*known)
                self._bar.update(1)
        self._bar.total = number

    def _take_in(self, lines: list[bytes]) -> None:
        for line in lines:
            self._tally.add(line, self._journal.append(line))
        self._journal.flush()
        self._bar.update(len(lines))


def _bar(wanted: bool | None, folder: Folder) -> Any:
    """Return a progress bar, or what takes its place where none is wanted.

    It counts, and shows a share and the time that is left once it is known how many files there are: they are counted
    beside the scan, which itself walks only a little ahead of the workers.
    """
    if wanted is False or (wanted is None and not sys.stderr.isatty()):
        return nullcontext(SimpleNamespace(total=None, update=lambda _: None))
    from tqdm import tqdm

    bar = tqdm(unit="file")

    def count() -> None:
        with suppress(OSError):  # which the scan will meet, too
            bar.total = sum(1 for _ in folder.walk(lambda _path, _note: None, lambda _folder: None))

    Thread(target=count, name="ftkit-count", daemon=True).start()
    return bar
