"""timm's optimizer, scheduler and weight averaging: freeze, thaw, kill and resume, share a delta. In seconds on a CPU.

python examples/frameworks/with_timm.py
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from parts import Pictures, prove
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import ftkit


def pretrained() -> nn.Module:
    """Stands for ``timm.create_model("vit_tiny_patch16_224", pretrained=True)``."""
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=64)


# -- copy from here
def train(folder: Path, data: Pictures) -> nn.Module:
    """Train the head for two epochs, then the last two blocks too; resume if possible."""
    torch.manual_seed(0)
    model = pretrained()
    head = ftkit.replace_head(model, 3)
    ftkit.freeze_except(model, head)
    # The groups of timm's layer_decay, made by ftkit so that what thaws joins them at its own rate.
    groups = ftkit.param_groups(model, lr=1e-3, weight_decay=0.05, layer_decay=0.75)
    optimizer = create_optimizer_v2(groups, opt="adamw", lr=1e-3, weight_decay=0.05)
    scheduler, epochs = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=4, warmup_epochs=1
    )
    ema = ModelEmaV3(model, decay=0.9)

    checkpoints = ftkit.CheckpointManager(folder)
    start = checkpoints.resume(model=model, optimizer=optimizer, scheduler=scheduler, ema=ema)
    for epoch in range(start, epochs):
        if epoch == 2:
            ftkit.unfreeze(
                model, ftkit.last_blocks(model, 2), optimizer=optimizer, scheduler=scheduler
            )
        model.train()
        for images, labels in DataLoader(data, batch_size=8, shuffle=True):
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
            ema.update(model)
        scheduler.step(epoch + 1)
        checkpoints.save(epoch, model=model, optimizer=optimizer, scheduler=scheduler, ema=ema)
    return model


# -- to here


if __name__ == "__main__":
    prove(train, pretrained)
