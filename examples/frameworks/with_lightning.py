"""Lightning: freeze, thaw by epoch, kill and resume, share a delta. On random pictures, in seconds on a CPU.

python examples/frameworks/with_lightning.py
"""

from __future__ import annotations

from pathlib import Path

import lightning as L
import timm
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from parts import Pictures, prove
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import ftkit
from ftkit.lightning import Freezing


def pretrained() -> nn.Module:
    """Stands for ``timm.create_model("resnet18", pretrained=True)``."""
    torch.manual_seed(0)
    return timm.create_model("resnet18")


# -- copy from here
class Classifier(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = pretrained()
        ftkit.replace_head(self.model, 3)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        images, labels = batch
        return cross_entropy(self.model(images), labels)

    def configure_optimizers(self) -> tuple[list, list]:
        optimizer = torch.optim.AdamW(ftkit.param_groups(self, lr=1e-3, layer_decay=0.75))
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)]


def train(folder: Path, data: Pictures) -> nn.Module:
    """Train the head for two epochs, then layer4 too; resume if possible."""
    L.seed_everything(0, verbose=False)
    module = Classifier()
    schedule = ftkit.FreezeSchedule({0: "model.fc", 2: "model.layer4"})
    trainer = L.Trainer(
        max_epochs=4,
        callbacks=[Freezing(schedule), ModelCheckpoint(folder, save_last=True)],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    last = folder / "last.ckpt"
    loader = DataLoader(data, batch_size=8)
    trainer.fit(module, loader, ckpt_path=last if last.exists() else None)
    return module.model


# -- to here


if __name__ == "__main__":
    prove(train, pretrained)
