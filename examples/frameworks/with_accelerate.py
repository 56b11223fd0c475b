"""Accelerate: freeze, thaw, kill and resume, share a delta. On random pictures, in seconds on a CPU.

python examples/frameworks/with_accelerate.py
accelerate launch --cpu --multi_cpu --num_processes 2 examples/frameworks/with_accelerate.py
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, broadcast_object_list, set_seed
from parts import Pictures, PowerCut, compare
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import ftkit


def pretrained() -> nn.Module:
    """Stands for ``timm.create_model("resnet18", pretrained=True)``."""
    torch.manual_seed(0)
    return timm.create_model("resnet18")


# -- copy from here
def train(folder: Path, data: Pictures) -> nn.Module:
    """Train the head for two epochs, then layer4 too; resume if possible."""
    set_seed(0)
    # A seedable sampler draws the order of the data from the epoch, in all processes alike.
    accelerator = Accelerator(
        cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True)
    )
    model = pretrained()
    ftkit.freeze_except(model, ftkit.replace_head(model, 3))
    optimizer = torch.optim.AdamW(ftkit.param_groups(model, lr=1e-3, layer_decay=0.75))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    # The optimizer and the scheduler below are the plain ones: ftkit adds to them what thaws.
    model, prepared, loader = accelerator.prepare(
        model, optimizer, DataLoader(data, batch_size=8, shuffle=True)
    )

    checkpoints = ftkit.CheckpointManager(folder)
    for epoch in range(
        checkpoints.resume(model=model, optimizer=optimizer, scheduler=scheduler), 4
    ):
        if epoch == 2:  # the prepared model, so that what thaws is averaged between processes
            ftkit.unfreeze(model, "layer4", optimizer=optimizer, scheduler=scheduler)
        model.train()
        loader.set_epoch(epoch)
        for images, labels in loader:
            accelerator.backward(cross_entropy(model(images), labels))
            prepared.step()
            prepared.zero_grad()
        scheduler.step()
        checkpoints.save(epoch, model=model, optimizer=optimizer, scheduler=scheduler)
    return accelerator.unwrap_model(model)


# -- to here


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        place = [name]
        Accelerator(cpu=True)
        broadcast_object_list(place)  # one folder for all processes
        folder = Path(place[0])
        whole = train(folder / "whole", Pictures())
        count = len(Pictures()) // Accelerator(cpu=True).num_processes
        with contextlib.suppress(PowerCut):
            train(folder / "killed", Pictures(power=count * 3 + 2))  # in the fourth epoch
        resumed = train(folder / "killed", Pictures())
        compare("killed and resumed", whole, resumed)

        if Accelerator(cpu=True).is_main_process:
            ftkit.save_delta(resumed, folder / "delta.safetensors")
            shared = pretrained()
            ftkit.load_delta(shared, folder / "delta.safetensors")
            compare("pretrained network + delta", resumed, shared)
        Accelerator(cpu=True).wait_for_everyone()


if __name__ == "__main__":
    main()
