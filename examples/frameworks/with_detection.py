"""torchvision's detectors: new classes, freeze, thaw, kill and resume, share a delta. In seconds on a CPU.

python examples/frameworks/with_detection.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from parts import Pictures, prove
from torch import nn
from torch.utils.data import DataLoader
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

import ftkit


def pretrained() -> nn.Module:
    """Stands for ``fasterrcnn_mobilenet_v3_large_320_fpn(weights="DEFAULT")``."""
    torch.manual_seed(0)
    # Small pictures, so that it is quick.
    return fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, min_size=96)


# -- copy from here
def train(folder: Path, data: Pictures) -> nn.Module:
    """Train all but the backbone for two epochs, then its last blocks too; resume if possible."""
    torch.manual_seed(0)
    model = pretrained()
    ftkit.replace_head(model, 1 + 3)  # the background counts; scores and boxes both follow
    ftkit.freeze(model, "backbone.body")
    optimizer = torch.optim.SGD(
        ftkit.param_groups(model, lr=5e-3, rates={"backbone": 5e-4}), momentum=0.9
    )

    checkpoints = ftkit.CheckpointManager(folder)
    for epoch in range(checkpoints.resume(model=model, optimizer=optimizer), 4):
        if epoch == 2:
            ftkit.unfreeze(model, "backbone.body.15", "backbone.body.16", optimizer=optimizer)
        model.train()
        for images, labels in DataLoader(data, batch_size=2, shuffle=True):
            boxes = torch.tensor([[8.0, 8.0, 40.0, 48.0]])
            targets = [{"boxes": boxes, "labels": label.view(1) + 1} for label in labels]
            losses = model(list(images), targets)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
        checkpoints.save(epoch, model=model, optimizer=optimizer)
    return model


# -- to here


if __name__ == "__main__":
    prove(train, pretrained, count=4)
