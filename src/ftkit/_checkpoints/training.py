"""Training checkpoints: all of a run in one file that is whole or not there, and opens without running code."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, SupportsFloat

from torch import Tensor, nn
from torch.optim import Optimizer

from ftkit._checkpoints import layout as checkpoint_files
from ftkit._checkpoints import ranks, resuming
from ftkit._checkpoints.layout import Content
from ftkit._checkpoints.resuming import Step
from ftkit._deltas import io as deltas
from ftkit._weights.io import load_weights
from ftkit.errors import CheckpointError, FtkitError, did_you_mean
from ftkit.selection import unwrap

__all__ = ["Checkpoint", "collect", "load_checkpoint", "save_checkpoint"]

_log: Final = logging.getLogger("ftkit")

# The states that differ from process to process; those of all but the first are kept as "ranks".
_OF_EACH_RANK: Final = {"rng", "sampler"}


@dataclass
class Checkpoint:
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
    sharded = ranks.holds_shards(unwrap(model).parameters())
    content = collect(
        model=model,
        parts={"optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "ema": ema, "sampler": sampler},
        run={"epoch": epoch, "step": step, "metrics": numbers_of(metrics), "mid_epoch": is_mid_epoch(sampler)},
        extra=extra,
        rng=rng,
        delta=delta,
        together=sharded,
    )
    if ranks.rank() == 0 or not sharded:
        checkpoint_files.prepare(Path(path), content)()


def is_mid_epoch(sampler: Any) -> bool:
    """Tell whether a sampler or loader says of itself that it is within an epoch."""
    return bool(getattr(sampler, "mid_epoch", False))


def numbers_of(metrics: Mapping[str, SupportsFloat] | None) -> dict[str, float]:
    """Metrics as plain numbers."""
    return {name: float(value) for name, value in (metrics or {}).items()}


def collect(
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
    states: dict[str, Any] = {"model": dict(inner.state_dict(keep_vars=delta))}
    if delta and ranks.holds_shards(states["model"].values()):
        raise CheckpointError("A model that is spread over several processes has no delta: save it whole.")
    parameters = dict(inner.named_parameters())
    run = {**run, "frozen": resuming.frozen_state(inner, parameters)}
    optimizer = parts["optimizer"]
    moved: list[Any] = []
    if isinstance(optimizer, Optimizer):
        moved = list(optimizer.state)
        taken = resuming.optimizer_state(optimizer, parameters)
        states["optimizer"] = taken["state"]
        run["optimizer"] = {"type": taken["type"], "names": taken["names"]}
    for name, part in parts.items():
        if part is not None and name not in states:
            states[name] = resuming.object_state(part)
    if delta:
        tensors = _only_tensors(states["model"])
        _, base, run["delta"] = deltas.split(inner, tensors, before=before, moved=moved)
        states["model"] = {name: value for name, value in states["model"].items() if name not in base}
        if isinstance(parts["ema"], nn.Module):  # the average of what never moved is that itself
            states["ema"] = {
                name: value
                for name, value in states["ema"].items()
                if not (isinstance(value, Tensor) and deltas.same(value, _by_suffix(base, name)))
            }
    if rng:
        states["rng"] = resuming.random_state()
    states["extra"] = {name: resuming.object_state(value) for name, value in extra.items()}
    if together:
        states = ranks.whole(states)
        if own := ranks.gather({name: states[name] for name in _OF_EACH_RANK & states.keys()}):
            states["ranks"] = own[1:]
    return Content(run, states)


def _by_suffix(tensors: Mapping[str, Tensor], name: str) -> Tensor | None:
    """Find a tensor by its name without any of the first components, which wrappers add."""
    while name:
        if name in tensors:
            return tensors[name]
        name = name.partition(".")[2]
    return None


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

    Example:
        >>> import torch
        >>> from ftkit import load_checkpoint, save_checkpoint
        >>> model = torch.nn.Linear(2, 2)
        >>> save_checkpoint("run.pt", model=model, epoch=3, metrics={"val_loss": 0.5})
        >>> checkpoint = load_checkpoint("run.pt", model=torch.nn.Linear(2, 2))
        >>> checkpoint.epoch, checkpoint.metrics
        (3, {'val_loss': 0.5})
    """
    path = Path(path)
    parts = {"optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "ema": ema, "sampler": sampler}
    targets = {name: part for name, part in parts.items() if part is not None}
    if optimizer is not None and model is None:
        raise FtkitError("load_checkpoint needs model= beside optimizer=, to find the optimizer's parameters by name.")
    with_rng = optimizer is not None if rng is None else rng
    asked = [*(["model"] if model is not None else []), *targets]
    content = checkpoint_files.read(path, {*asked, *(["rng"] if with_rng else []), "ranks"})
    run, states = content.run, content.states
    if (rank := ranks.rank()) > 0:
        others = states.get("ranks", [])
        if rank <= len(others):
            states |= others[rank - 1]
        elif states.pop("rng", None) is not None:
            _log.warning(
                "%s was written by %d processes, so that the random numbers of process %d are not in it: it goes on "
                "with its own.",
                path,
                len(others) + 1,
                rank,
            )
    extra = states.get("extra", {})
    if lost := [name for name in asked if name not in states]:
        advice = "load_weights(model, path) finds weights wherever they lie" if lost[0] == "model" else "leave it out"
        raise CheckpointError(f"{path} holds no state of {lost[0]}=: {advice}.")
    if lost := [name for name in objects if name not in extra]:
        raise CheckpointError(f"{path} holds nothing called {lost[0]!r}.{did_you_mean(lost[0], extra)}")

    undo: Callable[[], None] | None = None
    if model is not None and "delta" in run:
        undo = deltas.place(unwrap(model), run["delta"], _only_tensors(states["model"]))
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
        bool(run.get("mid_epoch")),
    )


def _plan(
    content: Content,
    model: nn.Module | None,
    targets: Mapping[str, Any],
    objects: Mapping[str, Any],
    with_rng: bool,
) -> Iterator[Step]:
    """All changes in the order to make them: what may still fail first."""
    run, states = content.run, content.states
    optimizer = targets.get("optimizer")
    wanted = {name: (target, states[name]) for name, target in targets.items()}
    wanted |= {name: (target, states["extra"][name]) for name, target in objects.items()}
    for name, (target, state) in wanted.items():
        if name == "optimizer" and isinstance(target, Optimizer) and model is not None:
            known = run.get("optimizer", {})
            yield resuming.optimizer_plan(target, state, known.get("names"), known.get("type"), model)
        elif not isinstance(target, nn.Module):
            yield resuming.object_plan(name, target, state)
    for target, state in wanted.values():
        if isinstance(target, nn.Module):
            known = deltas.tensors_of(unwrap(model)) if model is not None and "delta" in run else {}
            filled = {name: _by_suffix(known, name) for name in unwrap(target).state_dict() if name not in state}
            yield _module_plan(target, state | {name: value for name, value in filled.items() if value is not None})
    if model is not None:
        if "delta" in run:
            state = states["model"]
            yield Step(lambda: deltas.fill(unwrap(model), _only_tensors(state)), lambda: None)
        else:
            yield _module_plan(model, states["model"])
        if isinstance(optimizer, Optimizer) and "frozen" in run:
            yield resuming.frozen_plan(model, run["frozen"], optimizer, (run.get("optimizer") or {}).get("names", ()))
    if with_rng and "rng" in states:
        yield resuming.random_plan(states["rng"])


def _only_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _module_plan(module: nn.Module, state: Mapping[str, Any]) -> Step:
    inner = unwrap(module)
    own = inner.state_dict()
    fits = own.keys() == state.keys() and all(
        not isinstance(value, Tensor) or (isinstance(state[name], Tensor) and value.shape == state[name].shape)
        for name, value in own.items()
    )
    if not fits:  # another program's names, or another model, which is refused before anything changes
        return Step(lambda: _load_foreign(inner, state), lambda: None)
    on_meta = any(isinstance(value, Tensor) and value.is_meta for value in own.values())
    return Step(lambda: inner.load_state_dict(ranks.spread(state, own), assign=on_meta), lambda: None)


def _load_foreign(module: nn.Module, state: Mapping[str, Any]) -> None:
    try:
        load_weights(module, state, ema=False)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}\n(These are arguments of load_weights, which reads the weights alone.)"
        ) from error
