"""segmentation-models-pytorch: freeze the encoder, thaw, kill and resume, share a delta. In seconds on a CPU.

python examples/frameworks/with_smp.py
"""

from __future__ import annotations

from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from parts import Pictures, prove
from torch import nn
from torch.utils.data import DataLoader

import ftkit


def pretrained() -> nn.Module:
    """Stands for ``smp.Unet("resnet18", encoder_weights="imagenet", classes=1)``."""
    torch.manual_seed(0)
    return smp.Unet("resnet18", encoder_weights=None, classes=1)


# -- copy from here
def train(folder: Path, data: Pictures) -> nn.Module:
    """Train the decoder for two epochs, then the encoder's last stage too; resume if possible."""
    torch.manual_seed(0)
    model = pretrained()
    ftkit.replace_head(model, 3)  # segmentation_head
    ftkit.freeze(model, "encoder")
    groups = ftkit.param_groups(model, lr=1e-3, rates={"encoder": 1e-4})
    optimizer = torch.optim.AdamW(groups)
    loss = smp.losses.DiceLoss("multiclass")

    checkpoints = ftkit.CheckpointManager(folder)
    for epoch in range(checkpoints.resume(model=model, optimizer=optimizer), 4):
        if epoch == 2:
            ftkit.unfreeze(model, "encoder.layer4", optimizer=optimizer)
        model.train()
        for images, labels in DataLoader(data, batch_size=8, shuffle=True):
            masks = labels.view(-1, 1, 1).expand(-1, *images.shape[2:])
            optimizer.zero_grad()
            loss(model(images), masks).backward()
            optimizer.step()
        checkpoints.save(epoch, model=model, optimizer=optimizer)
    return model


# -- to here


if __name__ == "__main__":
    prove(train, pretrained)
