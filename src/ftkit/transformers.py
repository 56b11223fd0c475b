"""Freezing in Hugging Face's ``Trainer``: a callback.

Import it by its full name: ``import ftkit`` alone needs no transformers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from torch import nn

from ftkit._freezing.freeze import trainable
from ftkit._freezing.schedules import FreezeSchedule
from ftkit._freezing.trainers import Run, checked
from ftkit._weights.inspection import inspect_checkpoint
from ftkit._weights.io import load_weights
from ftkit._weights.libraries import adapter_names
from ftkit._wording import some
from ftkit.errors import FtkitError, MissingPackageError
from ftkit.selection import select, unwrap

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
except ModuleNotFoundError as _error:
    if _error.name != "transformers":
        raise
    raise MissingPackageError("ftkit.transformers needs transformers: pip install transformers accelerate.") from None

__all__ = ["FreezingCallback"]

_log: Final = logging.getLogger("ftkit")

_EPSILON: Final = 1e-6  # the Trainer adds up fractions of epochs


class FreezingCallback(TrainerCallback):
    """Freeze and thaw by a schedule of epochs.

    It freezes when ``train`` starts and the optimizer is there. So don't freeze the model before: the optimizer, the
    Trainer's own or yours, must have all that will ever train. It passes over what is frozen, and nothing has to be
    added to it or to its scheduler later.

    ``trainer.train(resume_from_checkpoint=...)`` resumes exactly, in mid-epoch too. What thaws is averaged between the
    processes of ``DistributedDataParallel``. If a model's files have other names than its modules, as a ViT's have, the
    Trainer loads only some weights, when it resumes and for ``load_best_model_at_end``; the callback loads the others.

    Args:
        schedule: What trains from which epoch on. A function must depend on the epoch alone: in a resumed run, it is
            asked for all epochs so far. One callback may serve several trainers, one after the other, each from the
            start.

    Raises:
        MissingPackageError: On import: transformers is not installed.
        SelectionError: When ``train`` starts: a name of the schedule matches nothing in the model.
        FtkitError: This is no schedule; or, when ``train`` starts: something that will thaw is not in the optimizer, or
            not in the checkpoints, which contain only the adapter of a model of peft.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from ftkit import FreezeSchedule, last_blocks
        >>> from ftkit.transformers import FreezingCallback
        >>> model = BertForSequenceClassification(BertConfig(hidden_size=12, num_hidden_layers=2))
        >>> freezing = FreezingCallback(FreezeSchedule({0: "classifier", 2: last_blocks(model, 1)}))
        >>> trainer = Trainer(model, arguments, train_dataset=data, callbacks=[freezing])  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """

    def __init__(self, schedule: FreezeSchedule) -> None:
        self.schedule: FreezeSchedule = checked(schedule)
        self._run: Run | None = None
        self._epoch = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Freeze, and on resuming thaw again what had thawed."""
        model = kwargs["model"]
        self._run = Run(self.schedule, model, [kwargs["optimizer"]])
        if isinstance(self.schedule.phases, Mapping):
            _refuse_unsaved(args, model, select(model, *self.schedule.phases.values()).parameters)
        self._epoch = _epochs(state)
        for epoch in range(self._epoch + 1):
            self._run.step(epoch)
        _refuse_unsaved(args, model, trainable(model))
        if state.global_step and args.output_dir:
            _complete(model, Path(args.output_dir, f"checkpoint-{state.global_step}"))

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Freeze and thaw for the epoch that begins."""
        assert self._run is not None
        self._epoch = max(self._epoch, _epochs(state))  # of data without a length, the Trainer counts no epochs
        self._run.step(self._epoch)
        self._epoch += 1
        _refuse_unsaved(args, kwargs["model"], trainable(kwargs["model"]))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Load all of the best model."""
        if args.load_best_model_at_end and state.best_model_checkpoint:
            _complete(kwargs["model"], Path(state.best_model_checkpoint))


def _epochs(state: TrainerState) -> int:
    """The number of whole epochs so far."""
    return int((state.epoch or 0) + _EPSILON)


def _refuse_unsaved(args: TrainingArguments, model: nn.Module, training: Iterable[str]) -> None:
    """Refuse to train what no checkpoint would contain: the Trainer saves only the adapter of a model of peft."""
    saved = set(adapter_names(unwrap(model)).values())
    lost = [name for name in training if saved and name not in saved]
    if lost and args.save_strategy != "no":
        raise FtkitError(
            f"The schedule trains {some(lost, 3)}, and of a {type(unwrap(model)).__name__} the Trainer saves only the "
            "adapter: a resumed run would lose the rest. Train adapters alone, or in a loop of your own with "
            "ftkit.CheckpointManager(folder, delta=True). Or resume no run: TrainingArguments(save_strategy='no'), and "
            "ftkit.save_delta(model, path) in the end."
        )


def _complete(model: nn.Module, folder: Path) -> None:
    """Load a checkpoint whose tensors have names that the model lacks, which the Trainer has passed over.

    Found in transformers 5.24: it loads checkpoints, other than ``from_pretrained``, without its mapping of names.
    """
    if any((folder / name).is_file() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)):
        if inspect_checkpoint(folder).tensors.keys() - model.state_dict().keys():
            load_weights(model, folder)
    elif not folder.is_dir():
        _log.warning(
            "There is no %s. If the run was resumed from another folder, and the Trainer has warned of missing keys, "
            "it has loaded only some weights: call ftkit.load_weights(model, folder) before train().",
            folder,
        )
