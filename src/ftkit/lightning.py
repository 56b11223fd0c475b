"""Freezing in Lightning: a callback, for both ``lightning.pytorch`` and ``pytorch_lightning``.

Import it by its full name: ``import ftkit`` alone needs no Lightning.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any, Final

from ftkit._freezing.schedules import FreezeSchedule
from ftkit._freezing.trainers import Run, checked
from ftkit.errors import MissingPackageError

__all__ = ["Freezing"]

# The same code under two names, which don't know each other's classes.
_PACKAGES: Final = ("lightning.pytorch", "pytorch_lightning")

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:

    def _callback() -> type:
        """The ``Callback`` of the package in use; if that can't be told, a class that is that of each installed one."""
        names = [name for name in _PACKAGES if name in sys.modules] or _PACKAGES
        bases = []
        for name in names:
            try:
                bases.append(importlib.import_module(name).Callback)
            except ModuleNotFoundError as error:
                if error.name not in (name, name.partition(".")[0]):
                    raise
        if not bases:
            raise MissingPackageError("ftkit.lightning needs Lightning: pip install lightning.")
        return bases[0] if len(bases) == 1 else types.new_class("Callback", tuple(bases))

    Callback = _callback()


class Freezing(Callback):
    """Freeze and thaw by a schedule of epochs.

    It freezes when ``fit`` starts, after ``configure_optimizers``: build the optimizers there from the whole model,
    with ``self.parameters()`` or ``ftkit.param_groups(self, ...)``. They pass over what is frozen, and nothing has to
    be added to them or to their schedulers later, however many there are.

    ``trainer.fit(..., ckpt_path=...)`` resumes exactly, in mid-epoch too if the loader is a
    :class:`ftkit.ResumableLoader`: Lightning's checkpoints contain the state of this callback. They don't contain that
    of random generators. What thaws is averaged between the processes of ``DistributedDataParallel``.

    Args:
        schedule: What trains from which epoch on. Its names are those in the ``LightningModule``, such as
            ``"model.layer4"``. One callback may serve several trainers, one after the other, each from the start.

    Raises:
        MissingPackageError: On import: neither ``lightning`` nor ``pytorch_lightning`` is installed.
        SelectionError: When ``fit`` starts: a name of the schedule matches nothing in the model.
        FtkitError: This is no schedule; or, when ``fit`` starts: something that will thaw is in no optimizer.

    Example:
        >>> import lightning, torch
        >>> from ftkit import FreezeSchedule, param_groups
        >>> from ftkit.lightning import Freezing
        >>> class Classifier(lightning.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.body, self.head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)
        ...     def training_step(self, batch, _):
        ...         return self.head(self.body(batch)).square().sum()
        ...     def configure_optimizers(self):
        ...         return torch.optim.AdamW(param_groups(self, lr=1e-3))
        >>> freezing = Freezing(FreezeSchedule({0: "head", 5: "body"}))
        >>> trainer = lightning.Trainer(max_epochs=10, callbacks=[freezing])  # doctest: +SKIP
        >>> trainer.fit(Classifier(), loader)  # doctest: +SKIP
    """

    def __init__(self, schedule: FreezeSchedule) -> None:
        self.schedule: FreezeSchedule = checked(schedule)
        self._run: Run | None = None
        self._epoch = 0
        self._state: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze, or restore what trained when the checkpoint was saved, before Lightning prints its summary."""
        self._run = Run(self.schedule, pl_module, trainer.optimizers)
        self._step(self._epoch if self._state else trainer.current_epoch)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore that where the strategy loads checkpoints late: an epoch that goes on has no start."""
        self._step(trainer.current_epoch)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze and thaw for the epoch that begins."""
        self._step(trainer.current_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return what trains now, for Lightning's checkpoints."""
        return {} if self._run is None else {"epoch": self._epoch, "schedule": self._run.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what Lightning found in a checkpoint."""
        self._epoch, self._state = state_dict["epoch"], state_dict["schedule"]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let a loader begin the next epoch if this one had no batches left, as Lightning does.

        A :class:`ftkit.ResumableLoader` would go on after the last batch, and an epoch would pass without any.
        """
        fit = checkpoint.get("loops", {}).get("fit_loop", {})
        epochs = fit.get("epoch_progress", {}).get("total", {})
        within = epochs and epochs["processed"] < epochs["started"]
        if within and fit["epoch_loop.batch_progress"]["is_last_batch"]:
            for state in fit["state_dict"].get("combined_loader", ()):
                if {"seed", "position"} <= state.keys():
                    state.update(seed=None, position=0)

    def _step(self, epoch: int) -> None:
        assert self._run is not None
        if self._state:
            self._run.load_state_dict(self._state)
        self._run.step(epoch)
        self._epoch, self._state = epoch, None
