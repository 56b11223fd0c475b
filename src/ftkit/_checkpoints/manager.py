"""The checkpoints of a run in a folder: the newest and the best stay, and a run goes on from them."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, SupportsFloat, SupportsIndex

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ftkit._arguments import whole_number
from ftkit._checkpoints import filenames, ranks, runfile
from ftkit._checkpoints.slips import refuse_slips
from ftkit._checkpoints.training import Checkpoint, collect, is_mid_epoch, load_checkpoint, numbers_of
from ftkit._deltas.changes import digests, tensors_of
from ftkit._files import remove_litter
from ftkit._formats import CHECKPOINT_SUFFIXES, TORCH_SUFFIXES
from ftkit._monitor import Mode, best_first, metric_value, mode_for
from ftkit.errors import CheckpointError, DamagedFileError, FileWriteError, FtkitError
from ftkit.selection import unwrap

_log: Final = logging.getLogger("ftkit")

_NICENESS: Final = 10  # a third less of training is lost; at 19 a busy machine would write for many times as long


@dataclass
class _Entry:
    """A checkpoint that a manager wrote; ``intact`` once this process has written or verified it."""

    path: Path
    order: int
    value: float | None
    intact: bool = False

    def is_whole(self) -> bool:
        """Whether every byte is as it was written; looked at once."""
        if not self.intact:
            try:
                runfile.verify(self.path)
            except (CheckpointError, OSError) as error:
                _log.warning("%s It is left where it is.", error)
                return False
        self.intact = True
        return True


def _first(entries: Iterable[_Entry], count: int | None, checked: bool) -> Iterator[_Entry]:
    """The first so many entries; if ``checked``, damaged ones stay too, but don't count."""
    missing = math.inf if count is None else count
    for entry in entries:
        if missing <= 0:
            return
        missing -= not checked or entry.is_whole()
        yield entry


class CheckpointManager:
    """Keep the newest and the best checkpoints of a run in a folder, and go on from them.

    Each checkpoint is a file of :func:`save_checkpoint` that stands by itself; the manager finds its own files
    again by what is in them, and never touches others. A file is deleted only when those that stay are known
    to be whole. Where ``torch.distributed`` runs, all processes must call ``save`` and ``resume``: the first one alone
    writes, with the random numbers and samplers of all, and models that ``fully_shard`` spread over them made whole.

    Args:
        directory: Where the files are. It is made, and cleared of what killed writers left.
        monitor: The metric that tells which checkpoint is best.
        mode: ``"min"`` if lower is better, ``"max"`` if higher is. May be left out where the name of the metric
            tells: ``val_loss``, ``val_acc``.
        keep_best: How many of the best to keep; ``None`` keeps all.
        keep_last: How many of the newest to keep; ``None`` keeps all.
        filename: A template over ``epoch``, ``step`` and the metrics, such as ``"{epoch:03d}-{val/acc:.2f}"``.
            Left out, it is ``"{epoch}-{METRIC:.4f}"`` with the monitored metric. ``.safetensors`` is added, unless
            it ends in a suffix of its own.
        background: Write while training goes on. The tensors are copied first, which takes as much memory
            again as the checkpoint. An error shows at the next call. A process that ends waits for the write.
        delta: Keep only what differs from the pretrained model, see :func:`save_checkpoint`. What that is
            is seen most exactly if ``resume`` is called before training, as it looks at the model then.

    Attributes:
        resumed: What ``resume`` went on from, ``None`` before that and if there was nothing.

    Raises:
        FtkitError: An argument is out of range, or neither ``mode`` nor the metric's name says which way is better.

    Example:
        >>> import torch
        >>> from ftkit import CheckpointManager
        >>> model = torch.nn.Linear(2, 2)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> checkpoints = CheckpointManager("runs", monitor="val_loss")
        >>> for epoch in range(checkpoints.resume(model=model, optimizer=optimizer), 3):
        ...     path = checkpoints.save(epoch, model=model, optimizer=optimizer, metrics={"val_loss": abs(epoch - 1)})
        >>> checkpoints.best_path.name, checkpoints.last_path.name
        ('1-0.0000.safetensors', '2-1.0000.safetensors')
        >>> CheckpointManager("runs", monitor="val_loss").resume(model=model, optimizer=optimizer)
        3
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        monitor: str | None = None,
        mode: Mode | None = None,
        keep_best: SupportsIndex | None = 1,
        keep_last: SupportsIndex | None = 1,
        filename: str | None = None,
        background: bool = False,
        delta: bool = False,
    ) -> None:
        self.keep_best: int | None = _count("keep_best", keep_best)
        self.keep_last: int | None = _count("keep_last", keep_last)
        if self.keep_last == 0 and (self.keep_best == 0 or monitor is None):
            raise FtkitError("Nothing would be kept: give keep_last, or monitor and keep_best.")
        self.directory: Path = Path(directory)
        self.monitor = monitor
        self.mode: Mode = mode_for("CheckpointManager", monitor, mode if mode or monitor else "min")
        self.filename = filename
        self.background = background
        self.delta = delta
        self.resumed: Checkpoint | None = None
        if filename is not None:
            filenames.fields(filename)  # refuses what is no template
            if delta and Path(filename).suffix in TORCH_SUFFIXES:
                raise FtkitError(f"filename={filename!r}: a delta is a safetensors file. Leave the suffix out.")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileWriteError(f"Can't make the folder {self.directory}: {error.strerror or error}.") from error
        if self._writes:
            remove_litter(self.directory)
        self._unreadable = 0
        self._entries = sorted(self._found(), key=lambda entry: entry.order)
        self._before: dict[str, str] | None = None
        self._copies: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def best_path(self) -> Path | None:
        """The best checkpoint by the monitored metric; ``None`` if there is none."""
        self.wait()
        ranked = self._ranked(self._entries)
        return ranked[0].path if ranked else None

    @property
    def last_path(self) -> Path | None:
        """The newest checkpoint; ``None`` if there is none."""
        self.wait()
        return self._entries[-1].path if self._entries else None

    def save(
        self,
        epoch: int,
        *,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        scheduler: Any = None,
        scaler: Any = None,
        ema: Any = None,
        sampler: Any = None,
        step: int | None = None,
        metrics: Mapping[str, SupportsFloat] | None = None,
        rng: bool = True,
        mid_epoch: bool | None = None,
        **extra: Any,
    ) -> Path:
        """Save a checkpoint, then delete those that are neither among the newest nor among the best.

        Args:
            epoch: The epoch that ends here, counted from 0.
            model: As for :func:`save_checkpoint`, like all that follow but the last but one.
            optimizer: See there.
            scheduler: See there.
            scaler: See there.
            ema: See there.
            sampler: See there.
            step: See there.
            metrics: Must hold the monitored metric; within an epoch it may be left out. Of several processes, those
                of the first one count.
            rng: See there.
            mid_epoch: Whether the epoch is not over, so that ``resume`` goes on within it. Left out, a
                ``ResumableLoader`` passed as ``sampler`` tells.
            **extra: See there.

        Returns:
            The path of the checkpoint.

        Raises:
            FtkitError: A metric that ``monitor`` or ``filename`` names is missing.
            FileWriteError: The file could not be written; older ones are intact.
        """
        refuse_slips("CheckpointManager.save", extra)
        self.wait()
        # Each process may have measured its own part of the data, and all must speak of the same file.
        numbers = ranks.agreed(numbers_of(metrics))
        within = is_mid_epoch(sampler) if mid_epoch is None else mid_epoch
        unmeasured = within and not numbers
        value = None if self.monitor is None or unmeasured else metric_value(numbers, self.monitor)
        entry = _Entry(self.directory, self._entries[-1].order + 1 if self._entries else 0, value, intact=True)
        entry.path = self._path_for(entry, {"epoch": epoch, "step": step, **numbers})
        content = collect(
            entry.path,
            model=model,
            parts={"optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "ema": ema, "sampler": sampler},
            run={"epoch": epoch, "step": step, "metrics": numbers, "mid_epoch": within, "order": entry.order},
            extra=extra,
            rng=rng,
            delta=self.delta,
            before=self._before,
            together=True,
        )
        if not self._writes:
            self._entries = self._staying([*self._entries, entry], checked=False)
            return entry.path
        write = runfile.prepare(content, self._copy if self.background else None)
        if not self.background:
            self._finish(entry, write)
            return entry.path
        self._thread = threading.Thread(target=self._in_background, args=(entry, write), name="ftkit-checkpoint")
        self._thread.start()  # no daemon: the interpreter waits for it before it ends
        return entry.path

    def resume(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        scheduler: Any = None,
        scaler: Any = None,
        ema: Any = None,
        sampler: Any = None,
        rng: bool | None = None,
        **objects: Any,
    ) -> int:
        """Go on from the newest checkpoint that is intact, as :func:`load_checkpoint` does.

        Args:
            model: As for :func:`load_checkpoint`, like all that follow.
            optimizer: See there.
            scheduler: See there.
            scaler: See there.
            ema: See there.
            sampler: See there.
            rng: See there.
            **objects: See there.

        Returns:
            The epoch to run next: the one after the checkpoint's, or the same if that was taken within it;
            0 if the folder holds no checkpoint.

        Raises:
            DamagedFileError: There are checkpoints, and all of them are damaged.
            CheckpointError: The newest intact one does not fit.
        """
        refuse_slips("CheckpointManager.resume", objects)
        self.wait()
        if self.delta and self._before is None:
            self._before = digests(tensors_of(unwrap(model)))
        tried = len(self._entries) + self._unreadable
        while self._entries:
            entry = self._entries[-1]
            try:
                self.resumed = load_checkpoint(
                    entry.path,
                    model=model,
                    optimizer=optimizer,
                    scheduler=scheduler,
                    scaler=scaler,
                    ema=ema,
                    sampler=sampler,
                    rng=rng,
                    **objects,
                )
            except (CheckpointError, OSError) as error:
                if runfile.is_readable(entry.path):
                    raise  # it is whole, and does not fit
                _log.warning("%s Going back to the checkpoint before it.", error)
                self._entries.pop()
                continue
            entry.intact = True
            return (self.resumed.epoch or 0) + (not self.resumed.mid_epoch)
        if tried:
            raise DamagedFileError(
                f"All checkpoints in {self.directory} ({tried}) are damaged. To start anew, choose another folder."
            )
        return 0

    def wait(self) -> None:
        """Wait for a write in the background.

        Raises:
            FtkitError: The write failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    @property
    def _writes(self) -> bool:
        return ranks.rank() == 0

    def _copy(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copy tensors into memory that is kept from one save to the next."""
        copies: dict[str, Tensor] = {}
        made: dict[tuple[Any, ...], Tensor] = {}
        for name, tensor in tensors.items():
            if tensor.layout is not torch.strided or tensor.is_meta:
                copies[name] = tensor  # the writer says why it can't be kept
                continue
            key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if key not in made or not tensor.numel():
                old = self._copies.get(name)
                if old is None or (old.shape, old.dtype) != (tensor.shape, tensor.dtype):
                    old = torch.empty(tensor.shape, dtype=tensor.dtype)
                made[key] = old.copy_(tensor)
            copies[name] = made[key]
        self._copies = copies
        return copies

    def _in_background(self, entry: _Entry, write: Callable[[], None]) -> None:
        try:
            _give_way()
            self._finish(entry, write)
        except BaseException as error:  # noqa: BLE001  (raised again in the caller's thread)
            _log.error("The checkpoint could not be saved in the background: %s", error)
            self._error = error

    def _finish(self, entry: _Entry, write: Callable[[], None]) -> None:
        write()
        entries = [other for other in self._entries if other.path != entry.path] + [entry]
        self._entries = self._staying(entries, checked=True)
        for path in {other.path for other in entries} - {other.path for other in self._entries}:
            path.unlink(missing_ok=True)

    def _staying(self, entries: list[_Entry], *, checked: bool) -> list[_Entry]:
        """The entries that stay, oldest first; if ``checked``, only those known to be whole count."""
        last = _first(entries[::-1], self.keep_last, checked)
        best = _first(self._ranked(entries), self.keep_best, checked)
        kept = {id(entry) for entry in (*last, *best)}
        return [entry for entry in entries if id(entry) in kept]

    def _ranked(self, entries: list[_Entry]) -> list[_Entry]:
        """The entries that have a number for the metric, best first, older first among equals."""
        return best_first(entries, lambda entry: entry.value, self.mode)

    def _found(self) -> Iterator[_Entry]:
        """The checkpoints in the folder that a manager wrote."""
        for path in sorted(self.directory.iterdir()):
            if path.suffix not in CHECKPOINT_SUFFIXES or not path.is_file():
                continue
            try:
                run = runfile.read_run(path)
            except (CheckpointError, OSError) as error:
                _log.warning("%s It is left where it is.", error)
                self._unreadable += path.suffix != ".tar"
                continue
            if run is not None and "order" in run:
                value = None if self.monitor is None else (run.get("metrics") or {}).get(self.monitor)
                yield _Entry(path, run["order"], value)

    def _path_for(self, entry: _Entry, values: Mapping[str, Any]) -> Path:
        """The file's name by the template; never that of a file which should stay."""
        if self.filename is not None:
            name = filenames.fill_in(self.filename, values)
        else:
            detail = "" if entry.value is None else f"-{entry.value:.4f}"
            if not detail and values["step"] is not None:
                detail = f"-step{values['step']}"
            name = filenames.safe(f"{values['epoch']}{detail}")
        stem, suffix = os.path.splitext(name)  # noqa: PTH122
        if suffix not in CHECKPOINT_SUFFIXES:
            stem, suffix = name, ".safetensors"
        path = self.directory / f"{stem}{suffix}"
        taken = {other.path for other in self._staying([*self._entries, entry], checked=False)}
        mine = {other.path for other in self._entries}
        count = 1
        while path in taken or (self._writes and path not in mine and path.exists()):
            count += 1
            path = self.directory / f"{stem}-{count}{suffix}"
        return path


def _count(name: str, count: SupportsIndex | None) -> int | None:
    return None if count is None else whole_number(name, count, least=0, otherwise=", or None to keep all")


def _give_way() -> None:
    """Let this thread step back behind those that train."""
    if sys.platform == "linux":  # elsewhere that would take the whole process along
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS)
