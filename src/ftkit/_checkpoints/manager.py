"""The checkpoints of a run in a folder: the newest and the best are kept, and the run resumes from them."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import secrets
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, SupportsFloat, SupportsIndex

from torch import nn
from torch.optim import Optimizer

from ftkit._arguments import local_path, whole_number
from ftkit._checkpoints import filenames, keeping, ranks, runfile
from ftkit._checkpoints.background import Copies, give_way
from ftkit._checkpoints.shelf import Entry, Shelf, Watched, stamp_of
from ftkit._checkpoints.slips import refuse_slips
from ftkit._checkpoints.training import Checkpoint, collect, facts_of, is_mid_epoch, load_checkpoint
from ftkit._checkpoints.turns import turns_in
from ftkit._deltas.changes import digests, tensors_of
from ftkit._files import remove_litter
from ftkit._formats import refuse_torch_name
from ftkit._monitor import Mode, metric_value, mode_for
from ftkit._reports import to_text
from ftkit._wording import plural
from ftkit.errors import CheckpointError, DamagedFileError, FileWriteError, FtkitError
from ftkit.selection import unwrap

_log: Final = logging.getLogger("ftkit")


_OVERTAKEN: Final = 200  # times that another process may delete what is about to be read


class CheckpointManager:
    """Keep the newest and the best checkpoints of a run in a folder, and resume from them.

    Each checkpoint is a self-contained file of :func:`save_checkpoint`; the manager recognizes its own files
    by their content, and never touches others. A file is deleted only when those that remain are known
    to be whole; after a restart this may take a few saves. What was kept for another metric is never deleted.

    One process at a time saves to a folder, from its first save until it ends or its managers are deleted; a save by
    another process is an error. Managers of one folder within a process, and threads, wait for each other. Any process
    may read meanwhile: if a file is deleted during a resume, the folder is searched again. If epochs start over without
    a ``resume``, that counts as another run: the files of the earlier run are kept, and a warning is logged.

    Under ``torch.distributed``, all processes must call ``save`` and ``resume``: only the first one writes, including
    the random states and samplers of all, with models that ``fully_shard`` has sharded made whole.

    Args:
        directory: The folder of the files. It is created, and cleared of what killed writers left behind.
        monitor: The metric that decides which checkpoint is best.
        mode: ``"min"`` if lower is better, ``"max"`` if higher is. Can be omitted if the metric's name implies
            it, as ``val_loss`` and ``val_acc`` do.
        keep_best: How many of the best to keep; ``None`` keeps all.
        keep_last: How many of the newest to keep; ``None`` keeps all.
        filename: A template with ``epoch``, ``step`` and the metrics, such as ``"{epoch:03d}-{val/acc:.2f}"``.
            By default ``"{epoch}-{METRIC:.4f}"`` with the monitored metric. ``.safetensors`` is added, unless
            it ends in another extension for checkpoints.
        background: Write while training continues. The tensors are copied first, which takes as much memory
            again as the checkpoint. An error is raised at the next call. A process that ends waits for the write.
        delta: Keep only what differs from the pretrained model, as :func:`save_checkpoint` does. The difference
            is most exact if ``resume`` is called before training, since it looks at the model then.

    Attributes:
        resumed: The checkpoint that ``resume`` loaded; ``None`` before that, and if there was none.

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
            raise FtkitError("Nothing would be kept: pass keep_last, or monitor and keep_best.")
        self.directory: Path = local_path("directory", directory, error=FileWriteError).absolute()
        self.monitor = monitor
        self.mode: Mode = mode_for("CheckpointManager", monitor, mode if mode or monitor else "min")
        self.filename = filename
        self.background = background
        self.delta = delta
        self.resumed: Checkpoint | None = None
        if filename is not None:
            filenames.fields(filename)  # refuses what is not a template
            if delta:
                refuse_torch_name(Path(filename))
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileWriteError(f"Can't create the folder {self.directory}: {error.strerror or error}.") from error
        if self._writes:
            remove_litter(self.directory)
        self._watched: Watched = (monitor, self.mode if monitor is not None else None)
        self._shelf = Shelf(self.directory, self._watched)
        self._run: str | None = None  # which run this manager writes
        self._turns = turns_in(self.directory)
        self._turn: int = -1  # the last one of all turns that was this manager's
        self._alone = threading.RLock()
        self._before: dict[str, str] | None = None
        self._copies = Copies()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __repr__(self) -> str:
        entries = self._of_run(self._run)  # a write in the background may be about to change them; nobody waits here
        said = [plural(len(entries), "checkpoint")]
        for best in keeping.ranked(entries, self.mode)[:1]:
            said.append(f"best {best.path.name} ({self.monitor} {best.value:.5g})")
        said += [f"newest {newest.path.name}" for newest in entries[-1:]]
        said += ["another is being written"] * (self._thread is not None and self._thread.is_alive())
        return to_text([f"<CheckpointManager of {self.directory}: {', '.join(said)}>"])

    @property
    def best_path(self) -> Path | None:
        """The best checkpoint of this run (or the newest run) by the monitored metric; ``None`` if there is none."""
        return self._up_to_date(lambda entries: keeping.ranked(entries, self.mode))

    @property
    def last_path(self) -> Path | None:
        """The newest checkpoint of this run (or the newest run); ``None`` if there is none."""
        return self._up_to_date(lambda entries: entries[::-1])

    def save(
        self,
        epoch: SupportsIndex,
        *,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        scheduler: Any = None,
        scaler: Any = None,
        ema: Any = None,
        sampler: Any = None,
        step: SupportsIndex | None = None,
        metrics: Mapping[str, SupportsFloat] | None = None,
        rng: bool = True,
        mid_epoch: bool | None = None,
        **extra: Any,
    ) -> Path:
        """Save a checkpoint, then delete those that are neither among the newest nor among the best.

        Args:
            epoch: The epoch that ends here, counted from 0.
            model: The model, wrapped or not.
            optimizer: Its state is saved by parameter name.
            scheduler: Any object with a ``state_dict``.
            scaler: A ``GradScaler``.
            ema: An averaged model.
            sampler: A sampler or loader that can resume within an epoch.
            step: A step count of your choice.
            metrics: Numbers by name. Must contain the monitored metric; within an epoch it may be omitted. With
                several processes, those of the first one count.
            rng: Also save the state of every global random generator.
            mid_epoch: Whether the epoch is unfinished, so that ``resume`` continues within it. By default, a
                ``ResumableLoader`` passed as ``sampler`` decides.
            **extra: Plain values or objects with a ``state_dict``, as for :func:`save_checkpoint`.

        Returns:
            The path of the checkpoint.

        Raises:
            FtkitError: A metric that ``monitor`` or ``filename`` names is missing, or a value is not a number.
            CheckpointError: A state can't be saved, as for :func:`save_checkpoint`.
            FileWriteError: The file could not be written, or another process saves to the folder. Older ones are
                intact.
        """
        refuse_slips("CheckpointManager.save", extra)
        parts = {"optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "ema": ema, "sampler": sampler}
        with self._alone, contextlib.ExitStack() as turn:
            within = is_mid_epoch(sampler) if mid_epoch is None else mid_epoch
            # Each process may have measured its own part of the data, and all must speak of the same file.
            plan = ranks.agreed(self._plan(epoch, step, metrics, within, turn) if self._writes else None)
            if isinstance(plan, Exception):
                raise plan
            entry: Entry = plan[0]
            facts: dict[str, Any] = plan[1]
            content = collect(
                entry.path,
                model=model,
                parts=parts,
                run=facts,
                extra=extra,
                rng=rng,
                delta=self.delta,
                before=self._before,
                together=True,
            )
            self._run = entry.run
            if not self._writes:
                self._turn = self._turns.count  # the first process tells what is there, before it is there
                self._shelf.put(entry)
                self._shelf.take(keeping.surplus(self._of_run(entry.run), *self._kept))
                return entry.path
            write = runfile.prepare(content, self._copies.of if self.background else None)
            if not self.background:
                self._finish(entry, write)
                return entry.path
            self._thread = threading.Thread(target=self._in_background, args=(entry, write), name="ftkit-checkpoint")
            self._thread.start()  # no daemon: the interpreter waits for it before it ends
            turn.pop_all()  # it ends in that thread
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
        """Load the newest intact checkpoint, as :func:`load_checkpoint` does, and return the epoch to run next.

        Args:
            model: Gets the weights. For a delta, the pretrained model that it belongs to.
            optimizer: Gets its state and parameter groups.
            scheduler: Gets its state, like the next three.
            scaler: A ``GradScaler``.
            ema: An averaged model.
            sampler: A sampler or loader.
            rng: Whether to restore the global random generators; by default, if an optimizer is passed.
            **objects: Anything with ``load_state_dict`` that was saved under another name.

        Returns:
            The epoch to run next: the one after the checkpoint's, or the same one if it was saved mid-epoch;
            0 if the folder contains no checkpoint.

        Raises:
            DamagedFileError: There are checkpoints, but all of them are damaged.
            CheckpointError: The newest intact one does not fit.
        """
        refuse_slips("CheckpointManager.resume", objects)
        with self._alone:
            self.wait()
            self._look()
            if self.delta and self._before is None:
                self._before = digests(tensors_of(unwrap(model)))
            overtaken = 0
            while self._shelf.entries:
                entry = self._newest
                if entry.next_epoch is None:
                    raise CheckpointError(
                        f"{entry.path} does not give its epoch as a whole number, so the next one is unknown. "
                        "Read it with load_checkpoint, and save to another folder."
                    )
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
                    if entry.is_gone and overtaken < _OVERTAKEN:  # another process put a newer one in its place
                        overtaken += 1
                        self._shelf.look()
                        continue
                    if runfile.is_readable(entry.path):
                        raise  # it is whole, and does not fit
                    _log.warning("%s Falling back to the checkpoint before it.", error)
                    self._shelf.pass_over(entry)
                    continue
                entry.intact = True
                self._run = entry.run
                return int(self.resumed.epoch or 0) + (not self.resumed.mid_epoch)
            if self._shelf.unreadable:
                raise DamagedFileError(
                    f"All checkpoints in {self.directory} ({self._shelf.unreadable}) are damaged. "
                    "To start from scratch, choose another folder."
                )
            return 0

    def wait(self) -> None:
        """Wait for a background write to finish.

        Raises:
            FtkitError: The write failed.
        """
        with self._alone:
            if self._thread is not None:
                self._thread.join()
                self._thread = None
            if self._error is not None:
                error, self._error = self._error, None
                raise error

    @property
    def _writes(self) -> bool:
        return ranks.rank() == 0

    def _in_background(self, entry: Entry, write: Callable[[], None]) -> None:
        try:
            give_way()
            self._finish(entry, write)
        except BaseException as error:  # noqa: BLE001  (raised again in the caller's thread)
            _log.error("The checkpoint could not be saved in the background: %s", error)
            self._error = error
        finally:
            self._turns.end()

    def _finish(self, entry: Entry, write: Callable[[], None]) -> None:
        write()
        entry.stamp = stamp_of(entry.path)
        self._shelf.put(entry)
        gone = keeping.expendable(self._of_run(entry.run), *self._kept)
        self._shelf.take(gone)
        for other in gone:
            other.path.unlink(missing_ok=True)

    @property
    def _kept(self) -> tuple[int | None, int | None, Mode]:
        return self.keep_last, self.keep_best, self.mode

    def _of_run(self, run: str | None) -> list[Entry]:
        """The entries of a run; None means the run of the newest entry."""
        entries = list(self._shelf.entries.values())
        run = entries[-1].run if run is None and entries else run
        return [entry for entry in entries if entry.run == run]

    # ---- what is there

    @property
    def _newest(self) -> Entry:
        return next(reversed(self._shelf.entries.values()))

    def _look(self) -> None:
        """Look into the folder again if someone else writes there."""
        if self._turns.count != self._turn:
            self._shelf.refresh()

    def _up_to_date(self, choose: Callable[[list[Entry]], list[Entry]]) -> Path | None:
        with self._alone:
            self.wait()
            self._look()
            found = choose(self._of_run(self._run))
            if found and found[0].is_gone:
                self._shelf.look()
                found = choose(self._of_run(self._run))
            return found[0].path if found else None

    # ---- what comes next

    def _plan(
        self,
        epoch: SupportsIndex,
        step: SupportsIndex | None,
        metrics: Mapping[str, SupportsFloat] | None,
        within: bool,
        turn: contextlib.ExitStack,
    ) -> tuple[Entry, dict[str, Any]] | Exception:
        """Take a turn; return the next checkpoint and the facts about it, or what is wrong."""
        try:
            self.wait()
            facts = facts_of(epoch, step, metrics, mid_epoch=within)
            numbers = facts["metrics"]
            value = None if self.monitor is None or (within and not numbers) else metric_value(numbers, self.monitor)
            name = filenames.name_for(self.filename, value, facts)
            self._turns = turns_in(self.directory)
            self._turns.begin()
            turn.callback(self._turns.end)
            if self._turns.count != self._turn + 1:  # someone else may have written
                self._shelf.refresh()
            self._turn = self._turns.count
            order = self._shelf.next_order
            run = self._turns.run = self._run if self._run is not None else self._begun(facts["epoch"])
            entry = Entry(self.directory, order, value, run, facts["epoch"] + (not within), intact=True)
            entry.path = self._free_path(name, entry)
        except Exception as error:  # noqa: BLE001  (the other processes must hear of it)
            return error
        return entry, {**facts, "order": order, "run": run, "watched": list(self._watched)}

    def _begun(self, epoch: int) -> str:
        """The run that begins or continues, if ``resume`` was not called."""
        if not self._shelf.entries:
            return secrets.token_hex(8)
        newest = self._newest
        beside = newest.other and newest.run == self._turns.run  # of a manager beside this one, by another metric
        if newest.next_epoch is not None and epoch + beside >= newest.next_epoch:
            return newest.run
        _log.warning(
            "%s contains checkpoints of an earlier run, the newest %s, which was not resumed before epoch %d: they are "
            "kept, but don't count for best_path and last_path. Call resume() first, or use a folder for each run.",
            *(self.directory, newest.path.name, epoch),
        )
        return secrets.token_hex(8)

    def _free_path(self, name: tuple[str, str], entry: Entry) -> Path:
        """A path of that name, or a similar one, where nothing is that should be kept."""
        stem, suffix = name
        path = self.directory / f"{stem}{suffix}"
        if not os.path.lexists(path):
            return path
        of_run = [*self._of_run(entry.run), entry]
        replaced = {other.path.name for other in keeping.surplus(of_run, *self._kept) if not other.path.is_symlink()}
        names = (f"{stem}-{count}{suffix}" for count in itertools.count(2))
        for other in itertools.chain([path.name], names):
            path = self.directory / other
            if other in replaced or not (other in self._shelf.entries or os.path.lexists(path)):
                return path
        raise AssertionError("numbers never end")


def _count(name: str, count: SupportsIndex | None) -> int | None:
    return None if count is None else whole_number(name, count, least=0, otherwise=", or None to keep all")
