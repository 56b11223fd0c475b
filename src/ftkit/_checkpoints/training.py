"""Training checkpoints: all of a run in one file that is whole or not there, and opens without running code."""

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
from ftkit._deltas.changes import digests, may_have_changed, same, split
from ftkit._loaders import is_unused
from ftkit._monitor import numbers_of
from ftkit._reports import Parts, Report
from ftkit._wording import some
from ftkit.errors import CheckpointError, FileWriteError, FtkitError
from ftkit.selection import unwrap

_log: Final = logging.getLogger("ftkit")

# The states that differ from process to process; those of all but the first are kept as "ranks".
_OF_EACH_RANK: Final = {"rng", "sampler"}


@dataclass(repr=False)
class Checkpoint(Report):
    """What a training checkpoint says besides the states that were loaded into objects.

    Attributes:
        path: The file.
        epoch: As it was given to ``save_checkpoint``, or ``None``.
        step: Likewise.
        metrics: Likewise, as numbers.
        extra: The values given under other names.
        mid_epoch: Whether it was taken within the epoch.
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
        said += ["within the epoch"] * self.mid_epoch
        yield f"{self.path}: {', '.join(said) or 'neither epoch nor step'}"
        if self.metrics:
            yield f"  metrics: {some([f'{name} {value:.5g}' for name, value in self.metrics.items()], 12)}"
        if self.extra:
            yield f"  besides: {some(list(self.extra), 12)}"


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
    """Write all that a training run needs to go on as if it had never stopped.

    The file appears under its name whole, or not at all. It is a safetensors file with digests, in which
    everything but the tensors is typed JSON. A name that ends in ``.pt``, ``.pth``, ``.ckpt`` or ``.tar`` gets
    the usual torch dict instead (``epoch``, ``model_state_dict``, ``optimizer_state_dict``, ...), which
    ``torch.load(path, weights_only=True)`` reads.

    A model that ``fully_shard`` spread over several processes becomes one whole file too: all of them must call
    then, and the first one writes. Of a model that each process has whole, let one process alone call, or use
    :class:`ftkit.CheckpointManager`.

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
            ``state_dict``. A name that is nearly an argument's is taken for a slip, and an error.

    Raises:
        CheckpointError: A state holds something that can't be kept without pickling code.
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
    sharded = ranks.holds_shards(unwrap(model).parameters())
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
    """Tell whether a sampler or loader says of itself that it is within an epoch."""
    return bool(getattr(sampler, "mid_epoch", False))


def facts_of(
    epoch: SupportsIndex | None,
    step: SupportsIndex | None,
    metrics: Mapping[str, SupportsFloat] | None,
    *,
    mid_epoch: bool,
) -> dict[str, Any]:
    """Return what a checkpoint says of itself, as plain numbers.

    Raises:
        FtkitError: An epoch or a step is no whole number, or a metric no number.
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
    """Take everything down.

    Args:
        path: Where to write it.
        model: As for :func:`save_checkpoint`, like ``extra``, ``rng`` and ``delta``.
        parts: The other objects by their names there.
        run: Plain facts.
        extra: See there.
        rng: See there.
        delta: See there.
        together: Whether all processes of a distributed run call. The first one gets the random numbers and samplers
            of all, and tensors that are spread over them.
        before: The digests of the base of a delta, where they are known.
    """
    inner = unwrap(model)
    optimizer, ema = parts["optimizer"], parts["ema"]
    states: dict[str, Any] = {"model": dict(inner.state_dict(keep_vars=delta))}
    states |= {name: _state_of(name, part) for name, part in parts.items() if part is not None}
    if is_unused(parts["sampler"]):
        _log.warning(
            "%s does not know the place in the epoch: nobody has iterated over the ResumableLoader passed as sampler=. "
            "Pass the one that gives the batches. Accelerator.prepare makes a plain one of it, so leave it out there.",
            path,
        )
    run = {**run, "frozen": frozen_parts.state(inner)}
    if isinstance(optimizer, Optimizer):
        run["optimizer"] = optimizers.describe(optimizer, dict(inner.named_parameters()))
    if delta:
        trained = optimizer.state if isinstance(optimizer, Optimizer) else ()
        base, run["delta"] = _base(inner, only_tensors(states["model"]), trained, before)
        states["model"] = {name: value for name, value in states["model"].items() if name not in base}
        if isinstance(ema, nn.Module):  # the average of what never moved is that itself
            states["ema"] = {name: value for name, value in states["ema"].items() if not _is_in(base, name, value)}
    if rng:
        states["rng"] = random_numbers.state()
    states["extra"] = {name: state_of(value) for name, value in extra.items()}
    if together:
        states = ranks.whole(states)
        if own := ranks.gather({name: states[name] for name in _OF_EACH_RANK & states.keys()}):
            states["ranks"] = own[1:]
    return Content(path, run, states)


def _state_of(name: str, part: Any) -> Any:
    try:
        return state_of(part)
    except AttributeError as error:
        raise FtkitError(
            f"{name}= got a {type(part).__name__}, whose state_dict() fails ({error}). If Accelerator.prepare made it "
            "of a ResumableLoader, leave that out there, iterate over it, and pass it itself."
        ) from error


def _base(
    model: nn.Module, state: Mapping[str, Tensor], trained: Iterable[object], before: Mapping[str, str] | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What fine-tuning left alone, and the record of the delta."""
    if ranks.holds_shards(state.values()):
        raise CheckpointError("A model that is spread over several processes has no delta: save it whole.")
    changed = may_have_changed(model, state, trained)
    now = None if before is None else digests(state)
    if before is not None and now is not None:
        changed |= {name for name in state if before.get(name) != now[name]}
    _, base, record = split(model, state, changed, now)
    return base, record


def _is_in(base: Mapping[str, Tensor], name: str, value: object) -> bool:
    return isinstance(value, Tensor) and same(value, by_suffix(base, name))


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
    holds and the saved one did not stay in it, without a history, and train, also where they were frozen in the
    checkpoint; a warning says so.

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
        raise FtkitError("load_checkpoint needs model= beside optimizer=, to find the optimizer's parameters by name.")
    given = {"optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "ema": ema, "sampler": sampler}
    parts = {name: part for name, part in given.items() if part is not None}
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
