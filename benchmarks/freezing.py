"""What freezing saves: time of a training step, and bytes that autograd keeps, beside the plain loop.

    python benchmarks/freezing.py [--models resnet50,vit_base_patch16_224] [--batch 2] [--rounds 3] [--device cpu]

Four ways to train: everything, the head only, the last stage and the head, the lowest layer only. For each, the plain
loop (``requires_grad = False``, ``model.train()``) and ftkit (``freeze_except``) take steps by turns; the best of the
rounds counts. Times on the CPU are of the process, on a GPU by the clock. Bytes are those of the distinct storages that
``torch.autograd.graph.saved_tensors_hooks`` sees, without parameters and buffers.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import timm
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ftkit import freeze_except, param_groups
from ftkit.selection import select

PARTS: dict[str, dict[str, list[str]]] = {
    "resnet": {"head only": ["fc"], "last stage": ["layer4", "fc"], "bottom only": ["conv1", "bn1"]},
    "vit": {"head only": ["head"], "last stage": ["blocks.9", "blocks.10", "blocks.11", "norm", "head"]}
    | {"bottom only": ["patch_embed", "cls_token", "pos_embed"]},
}


def plain_loop(model: nn.Module, parts: list[str]) -> None:
    chosen = {id(parameter) for parameter in select(model, *parts).parameters.values()}
    for parameter in model.parameters():
        parameter.requires_grad = id(parameter) in chosen


def ftkit_loop(model: nn.Module, parts: list[str]) -> None:
    freeze_except(model, *parts)


def stepper(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(param_groups(model, 1e-4), momentum=0.9)
    model.train()

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def saved_bytes(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> int:
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = cross_entropy(model(x), y)
    total = sum(storage.nbytes() for storage in kept.values())
    del loss
    return total


def seconds(step: Callable[[], None], device: str) -> float:
    if device == "cpu":
        start = time.process_time()
        step()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(name: str, batch: int, rounds: int, device: str) -> None:
    parts = next(parts for kind, parts in PARTS.items() if name.startswith(kind))
    model = timm.create_model(name).to(device)
    x, y = torch.randn(batch, 3, 224, 224, device=device), torch.randint(0, 1000, (batch,), device=device)
    full: tuple[float, int] | None = None
    print(f"\n{name:25} {'step s':>8} {'of full':>9} {'kept MiB':>8} {'of full':>9} {'to plain':>8}")
    for mode, chosen in {"full": ["**"], **parts}.items():
        models = {"plain loop": copy.deepcopy(model), "ftkit": copy.deepcopy(model)}
        plain_loop(models["plain loop"], chosen)
        ftkit_loop(models["ftkit"], chosen)
        steps = {way: stepper(twin, x, y) for way, twin in models.items()}
        best = dict.fromkeys(steps, float("inf"))
        for round_ in range(rounds + 1):
            for way, step in steps.items():
                took = seconds(step, device)
                if round_:  # the first round warms up
                    best[way] = min(best[way], took)
        kept = {way: saved_bytes(twin, x, y) for way, twin in models.items()}
        full = full or (best["plain loop"], kept["plain loop"])
        for way in steps:
            beside = f" {best[way] / best['plain loop']:8.2f}" if way == "ftkit" else ""
            print(
                f"  {mode:12} {way:10} {best[way]:8.3f} {best[way] / full[0]:9.2f} "
                f"{kept[way] / 2**20:8.1f} {kept[way] / full[1]:9.3f}{beside}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet50,vit_base_patch16_224")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {arguments.device}, batch {arguments.batch}, best of {arguments.rounds}")
    for name in arguments.models.split(","):
        measure(name, arguments.batch, arguments.rounds, arguments.device)


if __name__ == "__main__":
    main()
