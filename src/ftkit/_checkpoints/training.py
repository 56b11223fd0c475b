"""Training checkpoints: a whole run in one file, written all or not at all, and opened without running code."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, SupportsFloat, SupportsIndex

from torch import Tensor, nn
from torch.optim import Optimizer

from ftkit._arguments import local_path, whole_number
from ftkit._checkpoints import frozen_parts, optimizers, random_numbers, ranks, runfile
from ftkit._checkpoints.resuming import by_suffix, only_tensors, resume, state_of
from ftkit._checkpoints.runfile import Content
from ftkit._checkpoints.slips import refuse_slips
from ftkit._deltas.changes import digests, is_average_of, may_have_changed, split
from ftkit._groups import inner_optimizer, inner_scheduler
from ftkit._heads.labels import labels_of
from ftkit._loaders import is_unused
from ftkit._monitor import numbers_of
from ftkit._reports import Parts, Report
from ftkit._wording import cause, some
from ftkit.errors import CheckpointError, FileWriteError, FtkitError
from ftkit.selection import unwrap

_log: Final = logging.getLogger("ftkit")

# The states that differ from process to process; those of all but the first are kept as "ranks".
_OF_EACH_RANK: Final = {"rng", "sampler"}


@dataclass(repr=False)
class Checkpoint(Report):
    """What a training checkpoint contains besides the states that were loaded into objects.

    Attributes:
        path: The file.
        epoch: The epoch passed to ``save_checkpoint``, or ``None``.
        step: The step passed to ``save_checkpoint``, or ``None``.
        metrics: The metrics passed to ``save_checkpoint``, as numbers.
        extra: The values saved under other names.
        mid_epoch: Whether it was saved in the middle of the epoch.
    """

    path: Path
    epoch: int | None = None
    step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    mid_epoch: bool = False

    def _parts(self) -> Parts:
        counts = {"epoch": self.epoch, "step": self.step}
        said = [f"{name} {count}" for name, count in counts.items() if count is not None]
        said += ["mid-epoch"] * self.mid_epoch
        yield f"{self.path}: {', '.join(said) or 'no epoch or step'}"
        if self.metrics:
            yield f"  metrics: {some([f'{name} {value:.5g}' for name, value in self.metrics.items()], 12)}"
        if self.extra:
            yield f"  extra: {some(list(self.extra), 12)}"


def save_checkpoint(
    path: str | os.PathLike[str],
    *,
    model: nn.Module,
    optimizer: Optimizer | None = None,
    scheduler: Any = None,
    scaler: Any = None,
    ema: Any = None,
    sampler: Any = None,
    epoch: SupportsIndex | None = None,
    step: SupportsIndex | None = None,
    metrics: Mapping[str, SupportsFloat] | None = None,
    rng: bool = True,
    delta: bool = False,
    **extra: Any,
) -> None:
    """Save everything that a training run needs to continue as if it had never stopped.

    The file is written whole or not at all. It is a safetensors file with digests, in which
    everything but the tensors is typed JSON. A name that ends in ``.pt``, ``.pth``, ``.ckpt`` or ``.tar`` gets
    the usual torch dict instead (``epoch``, ``model_state_dict``, ``optimizer_state_dict``, ...), which
    ``torch.load(path, weights_only=True)`` reads.

    A model that ``fully_shard`` has sharded over several processes is saved as one whole file too: all processes
    must call then, and the first one writes. If each process has the whole model, call this in one process only, or
    use :class:`ftkit.CheckpointManager`.

    Args:
        path: The file. An existing one is replaced only when the new one is complete.
        model: The model, wrapped or not. Which parameters are trainable is saved too.
        optimizer: Its state is saved by parameter name.
        scheduler: Any object with a ``state_dict``, like the next three.
        scaler: A ``GradScaler``.
        ema: An averaged model.
        sampler: A sampler or loader that can resume within an epoch.
        epoch: The epoch that the checkpoint completes, or in which it is saved.
        step: A step count of your choice.
        metrics: Numbers by name.
        rng: Save the state of every global random generator: Python's, NumPy's, torch's, each accelerator's.
        delta: Save only what differs from the pretrained model, as :func:`ftkit.save_delta` does. Everything that
            the optimizer has trained counts as different.
        **extra: Plain values (nested dicts, lists, numbers, strings, tensors, ...), or objects with a
            ``state_dict``. A name that is nearly an argument's is treated as a typo, and is an error.

    Raises:
        CheckpointError: A state contains something that can't be saved without pickling code, or a tensor without
            values (meta), or the optimizer has none of the model's parameters.
        FileWriteError: The file could not be written. Any existing file is left intact.

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
    refuse_slips("save_checkpoint", extra)
    sharded = ranks.holds_shards(unwrap(model).state_dict().values())
    content = collect(
        local_path("path", path, error=FileWriteError),
        model=model,
        parts={"optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "ema": ema, "sampler": sampler},
        run=facts_of(epoch, step, metrics, mid_epoch=is_mid_epoch(sampler)),
        extra=extra,
        rng=rng,
        delta=delta,
        together=sharded,
    )
    if ranks.rank() == 0 or not sharded:
        runfile.prepare(content)()


def is_mid_epoch(sampler: Any) -> bool:
    """Tell whether a sampler or loader reports that it is within an epoch."""
    return bool(getattr(sampler, "mid_epoch", False))


def facts_of(
    epoch: SupportsIndex | None,
    step: SupportsIndex | None,
    metrics: Mapping[str, SupportsFloat] | None,
    *,
    mid_epoch: bool,
) -> dict[str, Any]:
    """Return what a checkpoint says about itself, as plain numbers.

    Raises:
        FtkitError: An epoch or a step is not a whole number, or a metric is not a number.
    """
    counts = {"epoch": epoch, "step": step}
    whole = {name: None if count is None else whole_number(name, count) for name, count in counts.items()}
    return {**whole, "metrics": numbers_of(metrics), "mid_epoch": mid_epoch}


def collect(
    path: Path,
    *,
    model: nn.Module,
    parts: Mapping[str, Any],
    run: dict[str, Any],
    extra: Mapping[str, Any],
    rng: bool,
    delta: bool,
    together: bool,
    before: Mapping[str, str] | None = None,
) -> Content:
    """Collect everything that goes into the file.

    Args:
        path: Where to write it.
        model: The model, wrapped or not.
        parts: The other objects, named as the arguments of :func:`save_checkpoint`.
        run: Plain facts.
        extra: Values and objects under names of the user's own.
        rng: Whether to save the state of the global random generators.
        delta: Whether to save only what differs from the pretrained model.
        together: Whether all processes of a distributed run call. The first one gets the random states and samplers
            of all, and the tensors that are sharded over them.
        before: The digests of the base of a delta, if they are known.
    """
    inner = unwrap(model)
    parts = _unwrapped(parts)
    optimizer, ema = parts["optimizer"], parts["ema"]
    states: dict[str, Any] = {"model": dict(inner.state_dict(keep_vars=delta))}
    states |= {name: _state_of(name, part) for name, part in parts.items() if part is not None}
    if is_unused(parts["sampler"]):
        _log.warning(
            "%s does not contain the position in the epoch: the ResumableLoader passed as sampler= was never iterated "
            "over. Pass the one that yields the batches, and don't pass it to Accelerator.prepare, which replaces it.",
            path,
        )
    run = {**run, "frozen": frozen_parts.state(inner)}
    if not delta and (labels := labels_of(inner)):
        run["labels"] = labels
    if isinstance(optimizer, Optimizer):
        run["optimizer"] = optimizers.describe(optimizer, dict(inner.named_parameters()))
    if delta:
        trained = optimizer.state if isinstance(optimizer, Optimizer) else ()
        base, run["delta"] = _base(inner, only_tensors(states["model"]), trained, before)
        states["model"] = {name: value for name, value in states["model"].items() if name not in base}
        if isinstance(ema, nn.Module):  # the average of what never moved is that itself
            averaged = states["ema"].items()
            states["ema"] = {name: value for name, value in averaged if not is_average_of(value, by_suffix(base, name))}
    if rng:
        states["rng"] = random_numbers.state()
    states["extra"] = {name: state_of(value) for name, value in extra.items()}
    if together:
        states = ranks.whole(states)
        if own := ranks.gather({name: states[name] for name in _OF_EACH_RANK & states.keys()}):
            states["ranks"] = own[1:]
    return Content(path, run, states)


def _unwrapped(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a run, with the optimizer and the scheduler out of the wrappers of frameworks."""
    optimizer, scheduler = inner_optimizer(parts["optimizer"]), inner_scheduler(parts["scheduler"])
    return {**parts, "optimizer": optimizer, "scheduler": scheduler}


def _state_of(name: str, part: Any) -> Any:
    try:
        return state_of(part)
    except AttributeError as error:
        raise FtkitError(
            f"{name}= got a {type(part).__name__}, whose state_dict() fails ({cause(error)}). If "
            "Accelerator.prepare made it from a ResumableLoader: don't prepare the loader, iterate over it, and pass "
            "it as is."
        ) from error


def _base(
    model: nn.Module, state: Mapping[str, Tensor], trained: Iterable[object], before: Mapping[str, str] | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What fine-tuning left unchanged, and the record of the delta."""
    if ranks.holds_shards(state.values()):
        raise CheckpointError("A model sharded over several processes can't be saved as a delta: save it whole.")
    changed = may_have_changed(model, state, trained)
    now = None if before is None else digests(state)
    if before is not None and now is not None:
        changed |= {name for name in state if before.get(name) != now[name]}
    _, base, record = split(model, state, changed, now)
    return base, record


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
    """Restore what :func:`save_checkpoint` saved, in place, into the objects passed.

    Everything is read, verified and checked before anything changes: if the call fails, nothing has changed.
    Reads the files of ``save_checkpoint`` and similar torch dicts from other training loops, told apart by content,
    and never runs code from them.

    With an optimizer, training resumes exactly: the optimizer gets back the groups that it had, each
    parameter found by its name, whatever groups it was built with; what was trainable is trainable again,
    what was frozen is frozen, and the random generators are restored. Parameters that are in this optimizer
    but were not in the saved one stay in it, without optimizer state, and train, even if they were frozen in the
    checkpoint; a warning is logged.

    Args:
        path: The file.
        model: Gets the weights. For a delta, the pretrained model that it belongs to.
        optimizer: Gets its state and parameter groups. Requires ``model``.
        scheduler: Gets its state, like the next three.
        scaler: A ``GradScaler``.
        ema: An averaged model.
        sampler: A sampler or loader.
        rng: Whether to restore the global random generators; by default, if an optimizer is passed.
        **objects: Anything with ``load_state_dict`` that was saved under another name.

    Returns:
        Epoch, step, metrics and extra values.

    Raises:
        CheckpointError: The file lacks a state that was asked for, or one does not fit; or the model was given other
            names for its classes than the file has, or the same in another order.
        DamagedFileError: The file's bytes differ from those that were written.

    Example:
        >>> import torch
        >>> from ftkit import load_checkpoint, save_checkpoint
        >>> model = torch.nn.Linear(2, 2)
        >>> save_checkpoint("run.pt", model=model, epoch=3, metrics={"val_loss": 0.5})
        >>> checkpoint = load_checkpoint("run.pt", model=torch.nn.Linear(2, 2))
        >>> checkpoint.epoch, checkpoint.metrics
        (3, {'val_loss': 0.5})
    """
    refuse_slips("load_checkpoint", objects)
    if optimizer is not None and model is None:
        raise FtkitError("load_checkpoint needs model= with optimizer=, to find the optimizer's parameters by name.")
    given = {"optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "ema": ema, "sampler": sampler}
    parts = {name: part for name, part in _unwrapped(given).items() if part is not None}
    asked = [*(["model"] if model is not None else []), *parts]
    rng = optimizer is not None if rng is None else rng
    content = runfile.read(local_path("path", path, error=CheckpointError), {*asked, "rng"} if rng else asked)
    resume(content, None if model is None else unwrap(model), parts, objects, rng=rng)
    return Checkpoint(
        content.path,
        content.run.get("epoch"),
        content.run.get("step"),
        content.run.get("metrics") or {},
        {name: value for name, value in content.extra.items() if name not in objects},
        bool(content.run.get("mid_epoch")),
    )
