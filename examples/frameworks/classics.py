"""The two exercises that every course has: cats and dogs with VGG16, and a network of one's own on a pretrained one.

python examples/frameworks/classics.py
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import torch
from parts import Pictures, PowerCut, compare
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision.models import resnet18, vgg16

import ftkit


# -- ten lines
def cats_and_dogs(model: nn.Module, data: Pictures, folder: Path, epochs: int = 2) -> nn.Module:
    """Train a new head on a pretrained network; resume if possible."""
    ftkit.freeze_except(model, ftkit.replace_head(model, 2))
    optimizer = torch.optim.Adam(ftkit.param_groups(model, lr=1e-3))
    checkpoints = ftkit.CheckpointManager(folder)
    for epoch in range(checkpoints.resume(model=model, optimizer=optimizer), epochs):
        for images, labels in DataLoader(data, batch_size=8, shuffle=True):
            optimizer.zero_grad()
            cross_entropy(model.train()(images), labels).backward()
            optimizer.step()
        checkpoints.save(epoch, model=model, optimizer=optimizer)
    return model


# -- your own network
class MyNewNet(nn.Module):
    """The body of a pretrained network, and a classifier of one's own."""

    def __init__(self, body: nn.Module, classes: int) -> None:
        super().__init__()
        self.body = body
        ftkit.replace_head(self.body, lambda features: nn.Linear(features, 64))
        self.classifier = nn.Sequential(nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.body(images))


def my_new_net(body: nn.Module, data: Pictures, folder: Path) -> nn.Module:
    """Train what is new for two epochs, then layer4 too; resume if possible."""
    model = MyNewNet(body, 3)
    ftkit.freeze_except(model, "classifier", "body.fc")
    optimizer = torch.optim.Adam(
        ftkit.param_groups(model, lr=1e-3, rates={"body": 1e-4, "body.fc": 1e-3})
    )
    checkpoints = ftkit.CheckpointManager(folder)
    for epoch in range(checkpoints.resume(model=model, optimizer=optimizer), 4):
        if epoch == 2:
            ftkit.unfreeze(model, "body.layer4", optimizer=optimizer)
        for images, labels in DataLoader(data, batch_size=8, shuffle=True):
            optimizer.zero_grad()
            cross_entropy(model.train()(images), labels).backward()
            optimizer.step()
        checkpoints.save(epoch, model=model, optimizer=optimizer)
    return model


# -- to here


class CatsAndDogs(Pictures):
    """Pictures of two classes."""

    def __init__(self, power: float = float("inf")) -> None:
        super().__init__(8, 32, power)
        self.labels = [label % 2 for label in self.labels]


def pretrained_vgg16() -> nn.Module:
    """Stands for ``vgg16(weights="DEFAULT")``."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = vgg16()
    model.to_empty(device="cpu")  # its own initialization of 138 million weights takes seconds
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    return model


def pretrained_resnet18() -> nn.Module:
    """Stands for ``resnet18(weights="DEFAULT")``."""
    torch.manual_seed(0)
    return resnet18()


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with contextlib.suppress(PowerCut):
            cats_and_dogs(
                pretrained_vgg16(), CatsAndDogs(power=12), folder / "killed"
            )  # in the second epoch
        resumed = cats_and_dogs(pretrained_vgg16(), CatsAndDogs(), folder / "killed")
        compare(
            "VGG16, killed and resumed",
            cats_and_dogs(pretrained_vgg16(), CatsAndDogs(), folder / "vgg"),
            resumed,
        )
        ftkit.save_delta(resumed, folder / "vgg.safetensors")
        shared = pretrained_vgg16()
        ftkit.load_delta(shared, folder / "vgg.safetensors")
        compare("VGG16, pretrained network + delta", resumed, shared)

        whole = my_new_net(pretrained_resnet18(), Pictures(), folder / "whole")
        with contextlib.suppress(PowerCut):
            my_new_net(
                pretrained_resnet18(), Pictures(power=24 * 3 + 10), folder / "mine"
            )  # in the fourth epoch
        resumed = my_new_net(pretrained_resnet18(), Pictures(), folder / "mine")
        compare("MyNewNet, killed and resumed", whole, resumed)
        ftkit.save_delta(resumed, folder / "mine.safetensors")
        shared = MyNewNet(pretrained_resnet18(), 3)
        ftkit.load_delta(shared, folder / "mine.safetensors")
        compare("MyNewNet, pretrained network + delta", resumed, shared)


if __name__ == "__main__":
    main()
