"""What the examples share: small random data, a power cut, and a way to compare two models."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset

import ftkit


class PowerCut(Exception):  # noqa: N818  (not an error)
    """Ends a run in the middle of an epoch."""


class Pictures(Dataset):
    """Random pictures, each with the number of its class added; the power fails after ``power`` of them are read."""

    def __init__(self, count: int = 24, size: int = 64, power: float = float("inf")) -> None:
        self.labels = [index % 3 for index in range(count)]
        noise = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
        self.images = noise + torch.tensor(self.labels).view(-1, 1, 1, 1)
        self.power = power

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.power -= 1
        if self.power < 0:
            raise PowerCut
        return self.images[index], self.labels[index]


def compare(name: str, a: nn.Module, b: nn.Module) -> None:
    """Print whether two models have the same weights, bit for bit, and fail if not."""
    left, right = a.state_dict(), b.state_dict()
    different = [key for key in left if not torch.equal(left[key], right[key])]
    print(f"{name}: {'NOT ' if different or left.keys() != right.keys() else ''}the same weights")
    if different or left.keys() != right.keys():
        raise SystemExit(f"{len(different)} of {len(left)} tensors differ, such as {different[:3]}")


def prove(
    train: Callable[[Path, Pictures], nn.Module],
    pretrained: Callable[[], nn.Module],
    count: int = 24,
) -> None:
    """Train twice, once with a power cut in the fourth epoch, and share the result: all end with the same weights."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = train(folder / "whole", Pictures(count))
        with contextlib.suppress(PowerCut):
            train(folder / "killed", Pictures(count, power=count * 3 + count // 2))
        resumed = train(folder / "killed", Pictures(count))
        compare("killed and resumed", whole, resumed)

        ftkit.save_delta(resumed, folder / "delta.safetensors")
        shared = pretrained()
        ftkit.load_delta(shared, folder / "delta.safetensors")
        compare("pretrained network + delta", resumed, shared)
