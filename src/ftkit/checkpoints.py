"""Training checkpoints: all of a run in one file that is whole or not there, and opens without running code."""

from __future__ import annotations

import logging
import os
import re
import string
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, SupportsFloat

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ftkit import resuming
from ftkit.deltas import changed, delta_record, fill, place
from ftkit.errors import CheckpointError, DamagedFileError, FtkitError, did_you_mean
from ftkit.files import atomic_write, remove_litter
from ftkit.monitor import Mode, check_mode, is_better, metric_value
from ftkit.nests import pack, unpack
from ftkit.pickles import content_format, load_pickle
from ftkit.resuming import Step
from ftkit.selection import unwrap
from ftkit.tensorfile import TensorFile, write_tensors

__all__ = ["Checkpoint", "CheckpointManager", "load_checkpoint", "save_checkpoint"]

_log: Final = logging.getLogger("ftkit")

_KEY: Final = "ftkit.checkpoint"
_TORCH_SUFFIXES: Final = frozenset({".pt", ".pth", ".ckpt", ".tar"})
_OWN: Final = ("epoch", "step", "metrics", "model", "optimizer", "scheduler", "scaler", "ema", "sampler", "rng")

# How other people's training loops call the entries of a torch checkpoint, the usual name first.
_FOREIGN: Final[dict[str, tuple[str, ...]]] = {
    "model": ("model_state_dict", "state_dict", "model", "model_state", "net", "network", "weights"),
    "optimizer": ("optimizer_state_dict", "optimizer", "optimizer_states", "optimizer_state", "optim", "opt"),
    "scheduler": ("scheduler_state_dict", "scheduler", "lr_scheduler_state_dict", "lr_scheduler", "lr_schedulers"),
    "scaler": ("scaler_state_dict", "scaler", "grad_scaler", "amp_scaler"),
    "ema": ("ema_state_dict", "ema", "model_ema", "state_dict_ema", "ema_model"),
    "sampler": ("sampler_state_dict", "sampler"),
    "rng": ("rng_state",),
    "epoch": ("epoch",),
    "step": ("step", "global_step"),
    "metrics": ("metrics",),
}


@dataclass
class Checkpoint:
    """What a training checkpoint says besides the states that were loaded into objects.

    Attributes:
        path: The file.
        epoch: As it was given to ``save_checkpoint``, or ``None``.
        step: Likewise.
        metrics: Likewise, as numbers.
        extra: The values given under other names, and the states in the file that no object was passed for.
    """

    path: Path
    epoch: int | None = None
    step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Content:
    """What goes into a checkpoint: plain facts about the run, and the states."""

    run: dict[str, Any]
    states: dict[str, Any]


def save_checkpoint(
    path: str | os.PathLike[str],
    *,
    model: nn.Module,
    optimizer: Optimizer | None = None,
    scheduler: Any = None,
    scaler: Any = None,
    ema: Any = None,
    sampler: Any = None,
    epoch: int | None = None,
    step: int | None = None,
    metrics: Mapping[str, SupportsFloat] | None = None,
    rng: bool = True,
    delta: bool = False,
    **extra: Any,
) -> None:
    """Write all that a training run needs to go on as if it had never stopped.

    The file appears under its name whole, or not at all. It is a safetensors file with digests, in which
    everything but the tensors is typed JSON. A name that ends in ``.pt``, ``.pth``, ``.ckpt`` or ``.tar`` gets
    the usual torch dict instead (``epoch``, ``model_state_dict``, ``optimizer_state_dict``, ...), which
    ``torch.load(path, weights_only=True)`` reads.

    Args:
        path: The file. What stood there is replaced only when the new one is whole.
        model: The model, wrapped or not. Which parameters are trainable is kept too.
        optimizer: Its state is kept by the names of its parameters.
        scheduler: Anything with a ``state_dict``, like the next three.
        scaler: A ``GradScaler``.
        ema: An averaged model.
        sampler: A sampler or loader that can resume within an epoch.
        epoch: The epoch that the checkpoint closes, or is taken in.
        step: A count of steps, as you like.
        metrics: Numbers by name.
        rng: Keep the state of every global random generator: python's, numpy's, torch's, each accelerator's.
        delta: Keep only what differs from the pretrained model: see :func:`ftkit.save_delta`. All that was
            trained by the optimizer counts as different.
        **extra: Plain values (any nest of dict, list, number, string, tensor, ...), or objects with a
            ``state_dict``.

    Raises:
        CheckpointError: A state holds something that can't be kept without pickling code.
        FileWriteError: The file could not be written. What stood there is intact.

    Example:
        >>> import torch
        >>> from ftkit import load_checkpoint, save_checkpoint
        >>> model = torch.nn.Linear(2, 2)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> save_checkpoint("run.safetensors", model=model, optimizer=optimizer, epoch=3, classes=["ant", "bee"])
        >>> checkpoint = load_checkpoint("run.safetensors", model=model, optimizer=optimizer)
        >>> checkpoint.epoch, checkpoint.extra
        (3, {'classes': ['ant', 'bee']})
    """
    content = _collect(
        model=model,
        parts={"optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "ema": ema, "sampler": sampler},
        run={"epoch": epoch, "step": step, "metrics": _numbers(metrics)},
        extra=extra,
        rng=rng,
        delta=delta,
    )
    _prepare(Path(path), content)()


def _numbers(metrics: Mapping[str, SupportsFloat] | None) -> dict[str, float]:
    return {name: float(value) for name, value in (metrics or {}).items()}


def _collect(
    *,
    model: nn.Module,
    parts: Mapping[str, Any],
    run: dict[str, Any],
    extra: Mapping[str, Any],
    rng: bool,
    delta: bool,
) -> _Content:
    inner = unwrap(model)
    states: dict[str, Any] = {"model": dict(inner.state_dict())}
    run = {**run, "frozen": resuming.frozen_state(inner)}
    optimizer = parts["optimizer"]
    if isinstance(optimizer, Optimizer):
        taken = resuming.optimizer_state(optimizer, inner)
        states["optimizer"] = taken["state"]
        run["optimizer"] = {"type": taken["type"], "names": taken["names"]}
    if delta:
        stepped = optimizer.state if isinstance(optimizer, Optimizer) else ()
        names = changed(inner, moved=[parameter for parameter in stepped if isinstance(parameter, nn.Parameter)])
        run["delta"] = delta_record(inner, names)
        kept = {*names, *(key for key, value in states["model"].items() if not isinstance(value, Tensor))}
        states["model"] = {key: value for key, value in states["model"].items() if key in kept}
    for name, part in parts.items():
        if part is not None and name not in states:
            states[name] = resuming.object_state(part)
    if rng:
        states["rng"] = resuming.random_state()
    states["extra"] = {name: resuming.object_state(value) for name, value in extra.items()}
    return _Content(run, states)


def _prepare(path: Path, content: _Content) -> Callable[[], None]:
    """Check that everything can be kept; return what writes it."""
    if path.suffix in _TORCH_SUFFIXES:
        return lambda: _write_torch(path, content)
    tensors: dict[str, Tensor] = {}
    metadata = {_KEY: pack(content.run)[1]}
    for name, state in content.states.items():
        packed, metadata[name] = pack(state, name, compact="delta" in content.run and name != "model")
        tensors |= packed
    return lambda: write_tensors(path, tensors, metadata)


def _write_torch(path: Path, content: _Content) -> None:
    states, run = content.states, dict(content.run)
    if "delta" in run:
        raise CheckpointError(f"A delta is a safetensors file: {path} should end in .safetensors.")
    whole: dict[str, Any] = {name: run.pop(name) for name in ("epoch", "step", "metrics")}
    whole |= {_FOREIGN[name][0]: state for name, state in states.items() if name != "extra"}
    if taken := [name for name in states["extra"] if name in whole or name == _KEY]:
        raise CheckpointError(f"The name {taken[0]!r} is taken in a torch checkpoint. Call the value otherwise.")
    whole |= states["extra"]
    whole[_KEY] = run
    with atomic_write(path) as file:
        torch.save(whole, file)
        file.seek(0)
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        if unsafe:
            raise CheckpointError(
                f"{path} would hold {', '.join(sorted(unsafe))}, which torch.load(weights_only=True) refuses to open. "
                "Use a name that ends in .safetensors, or plain values."
            )


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    optimizer: Optimizer | None = None,
    scheduler: Any = None,
    scaler: Any = None,
    ema: Any = None,
    sampler: Any = None,
    rng: bool | None = None,
    **objects: Any,
) -> Checkpoint:
    """Bring back what :func:`save_checkpoint` kept, into the objects given, in place.

    Everything is read, verified and checked before anything changes: if the call fails, nothing has.
    Reads the files of ``save_checkpoint`` and other people's torch dicts of that kind, told apart by content,
    and never runs code from them.

    With an optimizer, training goes on exactly where it was: the optimizer gets the groups that it had, each
    parameter found by its name, whatever groups it was built with; what was trainable is trainable again and
    what was frozen is frozen; the random generators go on where they were. Parameters that this optimizer
    holds and the saved one did not stay, without a history, and a warning is logged.

    Args:
        path: The file.
        model: Gets the weights. A delta needs the pretrained model it belongs to.
        optimizer: Needs the model beside it.
        scheduler: Gets its state, like the next three.
        scaler: A ``GradScaler``.
        ema: An averaged model.
        sampler: A sampler or loader.
        rng: Whether to set the global random generators; left out, they are set if an optimizer is given.
        **objects: Anything that was saved under another name and has ``load_state_dict``.

    Returns:
        Epoch, step, metrics and extra values.

    Raises:
        CheckpointError: The file lacks a state that was asked for, or one does not fit.
        DamagedFileError: The file's bytes are not the ones that were written.
    """
    path = Path(path)
    parts = {"optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "ema": ema, "sampler": sampler}
    targets = {name: part for name, part in parts.items() if part is not None}
    if optimizer is not None and model is None:
        raise FtkitError("load_checkpoint needs model= beside optimizer=, to find the optimizer's parameters by name.")
    with_rng = optimizer is not None if rng is None else rng
    content = _read(path, {*targets, *(["model"] if model is not None else []), *(["rng"] if with_rng else [])})
    run, states = content.run, content.states
    extra = states.get("extra", {})
    for name in ("model" if model is not None else None, *targets):
        if name is not None and name not in states:
            raise CheckpointError(f"{path} holds no {name} state: leave {name}= out.")
    if lost := [name for name in objects if name not in extra]:
        raise CheckpointError(f"{path} holds nothing called {lost[0]!r}.{did_you_mean(lost[0], extra)}")

    undo: Callable[[], None] | None = None
    if model is not None and run.get("delta"):
        tensors = {name: value for name, value in states["model"].items() if isinstance(value, Tensor)}
        undo = place(unwrap(model), run["delta"], tensors)
    try:
        resuming.carry_out(list(_plan(content, model, targets, objects, with_rng)))
    except BaseException:
        if undo is not None:
            undo()
        raise
    return Checkpoint(
        path,
        run.get("epoch"),
        run.get("step"),
        run.get("metrics") or {},
        {name: value for name, value in extra.items() if name not in objects},
    )


def _plan(
    content: _Content,
    model: nn.Module | None,
    targets: Mapping[str, Any],
    objects: Mapping[str, Any],
    with_rng: bool,
) -> Iterator[Step]:
    """All changes in the order to make them: what may still fail first."""
    run, states = content.run, content.states
    optimizer = targets.get("optimizer")
    for name, target in targets.items():
        if name == "optimizer" and isinstance(target, Optimizer):
            assert model is not None
            known = run.get("optimizer") or {}
            yield resuming.optimizer_plan(target, states[name], known.get("names"), known.get("type"), model)
        elif isinstance(target, nn.Module):
            yield _model_plan(name, target, states[name])
        else:
            yield resuming.object_plan(name, target, states[name])
    for name, target in objects.items():
        if isinstance(target, nn.Module):
            yield _model_plan(name, target, states["extra"][name])
        else:
            yield resuming.object_plan(name, target, states["extra"][name])
    if model is not None:
        if run.get("delta"):
            tensors = {name: value for name, value in states["model"].items() if isinstance(value, Tensor)}
            yield Step(lambda: fill(unwrap(model), tensors), lambda: None)
        else:
            yield _model_plan("model", model, states["model"])
        if isinstance(optimizer, Optimizer) and "frozen" in run:
            yield resuming.frozen_plan(model, run["frozen"], optimizer)
    if with_rng and "rng" in states:
        yield resuming.random_plan(states["rng"])


def _model_plan(what: str, model: nn.Module, state: Mapping[str, Any]) -> Step:
    inner = unwrap(model)
    own = inner.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    if missing or unexpected:
        name = (missing or unexpected)[0]
        where = "the model has and the checkpoint lacks" if missing else "the checkpoint has and the model lacks"
        raise CheckpointError(
            f"The checkpoint's {what} is another one: {len(missing)} names are missing in it and {len(unexpected)} are "
            f"too many, such as {name!r}, which {where}.{did_you_mean(name, unexpected if missing else own)}"
        )
    for name, value in own.items():
        if isinstance(value, Tensor) and value.shape != state[name].shape:
            raise CheckpointError(
                f"{name!r} has shape {list(state[name].shape)} in the checkpoint's {what} and {list(value.shape)} "
                "here. Build the model as it was when the file was saved, its head included."
            )
    assign = any(isinstance(value, Tensor) and value.is_meta for value in own.values())
    return Step(lambda: inner.load_state_dict(state, strict=True, assign=assign), lambda: None)


def _read(path: Path, wanted: set[str]) -> _Content:
    """Read the run's facts, its extra values and the wanted states, all verified."""
    if content_format(path) != "safetensors":
        return _from_torch(path)
    with TensorFile(path) as file:
        if _KEY not in file.metadata:
            raise CheckpointError(f"{path} is no training checkpoint. Read weights with load_weights(model, path).")
        run = unpack({}, file.metadata[_KEY])
        states = {}
        for name in file.metadata.keys() & {*_OWN, "extra"}:
            names = [tensor for tensor in file.tensors if tensor == name or tensor.startswith((f"{name}.", f"{name}~"))]
            tensors = file.read(names)  # also what nobody wants: an intact file is intact everywhere
            if name in wanted or name == "extra":
                states[name] = unpack(tensors, file.metadata[name], name)
    return _Content(run, states)


def _from_torch(path: Path) -> _Content:
    whole = load_pickle(path)
    if not isinstance(whole, dict):
        raise CheckpointError(f"{path} holds a {type(whole).__name__}, not a training checkpoint.")
    rest = dict(whole)
    run = dict(rest.pop(_KEY, {}))
    states: dict[str, Any] = {}
    for name, aliases in _FOREIGN.items():
        found = next((alias for alias in aliases if alias in rest), None)
        if found is None:
            continue
        value = rest.pop(found)
        if isinstance(value, list) and name in ("optimizer", "scheduler") and len(value) == 1:
            value = value[0]  # as Lightning keeps them
        if name in ("epoch", "step", "metrics"):
            run[name] = value
        else:
            states[name] = value
    return _Content(run, {**states, "extra": rest})


# ---- the manager


@dataclass(frozen=True)
class _Entry:
    """A checkpoint that a manager wrote."""

    path: Path
    order: int
    epoch: int
    value: float | None


class CheckpointManager:
    """Keep the newest and the best checkpoints of a run in a folder, and go on from them.

    Each checkpoint is a file of :func:`save_checkpoint` that stands by itself; the manager finds its own files
    again by what is in them. A file is deleted only after a newer one is safely on the disk.

    Args:
        directory: Where the files are. It is made, and cleared of what killed writers left.
        monitor: The metric that tells which checkpoint is best.
        mode: ``"min"`` if lower is better, ``"max"`` if higher is.
        keep_best: How many of the best to keep; ``None`` keeps all.
        keep_last: How many of the newest to keep; ``None`` keeps all.
        filename: A template over ``epoch``, ``step`` and the metrics, such as ``"{epoch:03d}-{val/acc:.2f}"``.
            Left out, it is ``"{epoch}-{METRIC:.4f}"`` with the monitored metric. ``.safetensors`` is added.
        background: Write while training goes on. The tensors are copied first, which takes as much memory
            again as the checkpoint. An error shows at the next call.
        delta: Keep only what differs from the pretrained model, see :func:`save_checkpoint`.

    Raises:
        FtkitError: An argument is out of range.

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
        mode: Mode = "min",
        keep_best: int | None = 1,
        keep_last: int | None = 1,
        filename: str | None = None,
        background: bool = False,
        delta: bool = False,
    ) -> None:
        counts: dict[str, Any] = {"keep_best": keep_best, "keep_last": keep_last}
        for name, count in counts.items():
            if count is not None and (type(count) is not int or count < 0):
                raise FtkitError(f"{name} must be a whole number of at least 0, or None to keep all, not {count!r}.")
        if keep_last == 0 and (keep_best == 0 or monitor is None):
            raise FtkitError("Nothing would be kept: give keep_last, or monitor and keep_best.")
        self.directory = Path(directory)
        self.monitor = monitor
        self.mode = check_mode(mode)
        self.keep_best = keep_best
        self.keep_last = keep_last
        self.filename = filename
        self.background = background
        self.delta = delta
        if filename is not None:
            _fields(filename)
        self.directory.mkdir(parents=True, exist_ok=True)
        remove_litter(self.directory)
        self._entries = sorted(self._found(), key=lambda entry: entry.order)
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None
        self._prune()

    @property
    def best_path(self) -> Path | None:
        """The best checkpoint by the monitored metric; ``None`` if there is none."""
        self.wait()
        ranked = self._ranked()
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
        **extra: Any,
    ) -> Path:
        """Save a checkpoint, then delete those that are neither among the newest nor among the best.

        Args:
            epoch: The epoch that ends here, counted from 0.
            model: As for :func:`save_checkpoint`, like all that follow.
            optimizer: See there.
            scheduler: See there.
            scaler: See there.
            ema: See there.
            sampler: See there.
            step: See there.
            metrics: Must hold the monitored metric.
            rng: See there.
            **extra: See there.

        Returns:
            The path of the checkpoint.

        Raises:
            FtkitError: A metric that ``monitor`` or ``filename`` names is missing.
            FileWriteError: The file could not be written; older ones are intact.
        """
        self.wait()
        numbers = _numbers(metrics)
        value = None if self.monitor is None else metric_value(numbers, self.monitor)
        order = self._entries[-1].order + 1 if self._entries else 0
        path = self._path_for({"epoch": epoch, "step": step, **numbers})
        content = _collect(
            model=model,
            parts={"optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "ema": ema, "sampler": sampler},
            run={"epoch": epoch, "step": step, "metrics": numbers, "order": order},
            extra=extra,
            rng=rng,
            delta=self.delta,
        )
        entry = _Entry(path, order, epoch, value)
        write = _prepare(path, content)
        write()
        self._add(entry)
        return path

    def _add(self, entry: _Entry) -> None:
        self._entries = [other for other in self._entries if other.path != entry.path] + [entry]
        self._prune()

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
            The epoch to run next; 0 if the folder holds no checkpoint.

        Raises:
            DamagedFileError: There are checkpoints, and all of them are damaged.
            CheckpointError: The newest intact one does not fit.
        """
        self.wait()
        for entry in reversed(self._entries):
            try:
                checkpoint = load_checkpoint(
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
            except DamagedFileError as error:
                _log.warning("%s Trying the checkpoint before it.", error)
                continue
            return (checkpoint.epoch or 0) + 1
        if self._entries:
            raise DamagedFileError(f"All {len(self._entries)} checkpoints in {self.directory} are damaged.")
        return 0

    def wait(self) -> None:
        """Wait for a write in the background; raise the error that it met, if any."""

    def _ranked(self) -> list[_Entry]:
        """The entries that have a number for the metric, best first, older first among equals."""
        ranked: list[_Entry] = []
        for entry in self._entries:
            if entry.value is not None and is_better(entry.value, None):
                value = entry.value
                at = next(
                    (i for i, other in enumerate(ranked) if is_better(value, other.value, self.mode)), len(ranked)
                )
                ranked.insert(at, entry)
        return ranked

    def _prune(self) -> None:
        ranked = self._ranked()
        last = self._entries if self.keep_last is None else self._entries[max(0, len(self._entries) - self.keep_last) :]
        best = ranked if self.keep_best is None else ranked[: self.keep_best]
        kept = {entry.path for entry in (*last, *best)}
        for entry in self._entries:
            if entry.path not in kept:
                entry.path.unlink(missing_ok=True)
        self._entries = [entry for entry in self._entries if entry.path in kept]

    def _found(self) -> Iterator[_Entry]:
        """The checkpoints in the folder that a manager wrote."""
        for path in sorted(self.directory.glob("*.safetensors")):
            try:
                with TensorFile(path) as file:
                    run = unpack({}, file.metadata[_KEY]) if _KEY in file.metadata else {}
            except DamagedFileError as error:
                _log.warning("%s It is left where it is.", error)
                continue
            if "order" in run:
                value = run["metrics"].get(self.monitor) if self.monitor is not None else None
                yield _Entry(path, run["order"], run["epoch"], value)

    def _path_for(self, values: Mapping[str, Any]) -> Path:
        if self.filename is not None:
            name = _fill_in(self.filename, values)
        elif self.monitor is not None:
            name = f"{values['epoch']}-{values[self.monitor]:.4f}"
        else:
            name = str(values["epoch"])
        suffix = "" if Path(name).suffix in {".safetensors", *_TORCH_SUFFIXES} else ".safetensors"
        return self.directory / f"{name}{suffix}"


def _fields(template: str) -> list[tuple[str, str | None, str]]:
    """Split a template into literal texts, each with the name of the field that follows and its format."""
    try:
        parsed = [(text, name, form or "") for text, name, form, _ in string.Formatter().parse(template)]
    except ValueError as error:
        raise FtkitError(
            f"filename={template!r} is no template ({error}). Write it like '{{epoch}}-{{loss:.4f}}'."
        ) from error
    if any(name == "" for _, name, _ in parsed):
        raise FtkitError(f"filename={template!r} has a field without a name. Write it like '{{epoch}}-{{loss:.4f}}'.")
    return parsed


def _fill_in(template: str, values: Mapping[str, Any]) -> str:
    """Fill a template; the result is a safe name on any file system."""
    there = {name: value for name, value in values.items() if value is not None}
    pieces = []
    for text, name, form in _fields(template):
        pieces.append(text)
        if name is None:
            continue
        if name not in there:
            raise FtkitError(
                f"filename={template!r} needs {name!r}; there is only {', '.join(there)}.{did_you_mean(name, there)}"
            )
        try:
            pieces.append(format(there[name], form))
        except ValueError as error:
            raise FtkitError(f"filename={template!r} can't show {name}={there[name]!r}: {error}.") from error
    return re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*]', "_", "".join(pieces)).strip(" .") or "_"
