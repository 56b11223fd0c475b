"""What finding and replacing a head costs, without its proof and with it, beside one forward on one image.

    python benchmarks/heads.py

Times of one run are compared with each other only: the median of several rounds, the models in turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import timm
import torch
import torchvision
from torch import nn

from ftkit import find_head, replace_head

ROUNDS = 7


class Readout(nn.Module):
    """A resnet50 whose head has a name that says nothing, so that only a run can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torchvision.models.resnet50()
        self.readout, self.body.fc = self.body.fc, nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Read the features out."""
        return self.readout(self.body(x))


def clock(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(name: str, build: Callable[[], nn.Module]) -> None:
    model, image = build().eval(), torch.zeros(1, 3, 224, 224)
    times: dict[str, list[float]] = {"forward": [], "find": [], "replace": [], "prove": []}
    with torch.no_grad():
        model(image)
    find_head(model)
    for _ in range(ROUNDS):
        with torch.no_grad():
            times["forward"].append(clock(lambda: model(image)))
        times["find"].append(clock(lambda: find_head(model)))
        times["replace"].append(clock(lambda: replace_head(model, 37, verify=False)))
        times["prove"].append(clock(lambda: replace_head(model, 37)))
    forward, *rest = (statistics.median(values) for values in times.values())
    cells = [f"{value * 1e3:9.2f}" for value in rest] + [f"{value / forward:9.3f}" for value in rest]
    print(f"{name:34} {forward * 1e3:10.1f} {' '.join(cells)}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    heads = ["find ms", "replace", "proven", "find/fwd", "repl/fwd", "prov/fwd"]
    print(f"{'':34} {'forward ms':>10} {' '.join(f'{head:>9}' for head in heads)}")
    measure("resnet50 (its names settle it)", torchvision.models.resnet50)
    measure("resnet50 (a run settles it)", Readout)
    measure("vit_base (it says so itself)", lambda: timm.create_model("vit_base_patch16_224"))
