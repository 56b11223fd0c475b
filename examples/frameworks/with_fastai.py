"""fastai: freeze, thaw, kill and resume, share a delta. On random pictures, in seconds on a CPU.

python examples/frameworks/with_fastai.py
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import timm
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import fit_one_cycle  # noqa: F401  (adds Learner.fit_one_cycle)
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from parts import Pictures, prove
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import ftkit


def pretrained() -> nn.Module:
    """Stands for ``timm.create_model("resnet18", pretrained=True)``."""
    torch.manual_seed(0)
    return timm.create_model("resnet18")


# -- copy from here
class Saving(Callback):
    """Saves a checkpoint after each epoch; ``resume`` returns the epoch to start with."""

    def __init__(self, folder: Path) -> None:
        self.checkpoints = ftkit.CheckpointManager(folder)

    def resume(self, learner: Learner) -> int:
        learner.create_opt()  # for what trains now
        self.start = self.checkpoints.resume(model=learner.model, optimizer=learner.opt.opt)
        return self.start

    def after_epoch(self) -> None:
        if self.epoch >= self.start:  # fastai comes here for the epochs that it skips, too
            self.checkpoints.save(self.epoch, model=self.model, optimizer=self.opt.opt)


def train(folder: Path, data: Pictures) -> nn.Module:
    """Train the head for two epochs, then layer4 too for two; resume if possible."""
    torch.manual_seed(0)
    model = pretrained()
    head = ftkit.replace_head(model, 3)
    batches = DataLoaders(
        DataLoader(data, 8, shuffle=True), DataLoader(Pictures(8), 8), device=torch.device("cpu")
    )
    # torch's own AdamW, whose state is saved by parameter name. With train_bn, fastai would make
    # the weights of BatchNorm trainable again whenever it freezes.
    adamw = partial(OptimWrapper, opt=torch.optim.AdamW)
    learner = Learner(batches, model, cross_entropy, opt_func=adamw, train_bn=False)

    ftkit.freeze_except(model, head)
    saving = Saving(folder / "head")
    learner.fit_one_cycle(2, 1e-3, start_epoch=saving.resume(learner), cbs=saving)

    ftkit.unfreeze(model, "layer4")  # instead of learner.unfreeze()
    saving = Saving(folder / "layer4")
    learner.fit_one_cycle(2, 1e-4, start_epoch=saving.resume(learner), cbs=saving)
    return model


# -- to here


if __name__ == "__main__":
    prove(train, pretrained)
