"""Training checkpoints against torch.save: what a kill and a save cost, what a delta weighs, how runs go on.

    python benchmarks/training_checkpoints.py [kill] [delta] [background] [resume] [--model resnet50] [--repeats 5]

Everything is a ratio within one run, so that it means the same on any machine. The medians are over ``--repeats``
rounds, in which the contenders take turns.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ftkit import CheckpointManager, ResumableLoader, freeze_except, load_checkpoint, save_checkpoint, unfreeze

CHILD = """
import sys, torch
from ftkit import CheckpointManager
way, folder, side = sys.argv[1], sys.argv[2], int(sys.argv[3])
model = torch.nn.Linear(side, side)
if way != "torch.save":
    manager = CheckpointManager(folder, monitor="v", mode="max", background=way == "in the background")
version = 0
while True:
    version += 1
    for parameter in model.parameters():
        parameter.data.fill_(version)
    if way == "torch.save":
        torch.save(model.state_dict(), folder + "/last.pt")
    else:
        manager.save(version, model=model, metrics={"v": version})
        manager.wait()
    print(version, flush=True)
"""


def version_of(path: Path, side: int) -> int | None:
    """The one version that all of a file is of; None if it does not load or mixes two."""
    model = nn.Linear(side, side)
    try:
        if path.suffix == ".pt":
            model.load_state_dict(torch.load(path, weights_only=True))
        else:
            load_checkpoint(path, model=model)
    except Exception:
        return None
    found = {value for tensor in model.parameters() for value in tensor.unique().tolist()}
    return int(found.pop()) if len(found) == 1 else None


def kill(args: argparse.Namespace) -> None:
    """Kill -9 a process amid its saves: unreadable files, a lost newest version, litter after the next start."""
    side = int((args.megabytes * 250_000) ** 0.5)
    print(f"{args.kills} kills each, {args.megabytes} MB: unreadable / lost / litter after the next start")
    for way in ("torch.save", "manager", "in the background"):
        unreadable = lost = litter = 0
        for _ in range(args.kills):
            folder = Path(tempfile.mkdtemp(dir=args.dir))
            command = [sys.executable, "-c", CHILD, way, str(folder), str(side)]
            child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert child.stdout is not None
            child.stdout.readline()
            begin = time.perf_counter()
            told = int(child.stdout.readline())
            time.sleep(random.uniform(0, 2 * (time.perf_counter() - begin)))
            os.kill(child.pid, signal.SIGKILL)
            told = max([told, *map(int, child.stdout.read().split())])
            child.wait()
            versions = [version_of(path, side) for path in folder.iterdir() if not path.name.startswith(".")]
            unreadable += None in versions
            lost += max((version or 0 for version in versions), default=0) < told
            if way != "torch.save":
                CheckpointManager(folder)
                litter += any(path.name.startswith(".") for path in folder.iterdir())
            shutil.rmtree(folder)
        print(f"  {way:20}{unreadable:4} /{lost:4} /{litter:4}", flush=True)


def durable(write: Callable[[], None], path: Path) -> float:
    """Seconds until a file is on the disk for good."""
    path.unlink(missing_ok=True)
    begin = time.perf_counter()
    write()
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    return time.perf_counter() - begin


def delta(args: argparse.Namespace) -> None:
    """A model with a trained head and AdamW: bytes and seconds of a whole checkpoint and of a delta."""
    model = timm.create_model(args.model, num_classes=10).requires_grad_(False).eval()
    head = model.get_classifier().requires_grad_(True)
    optimizer = torch.optim.AdamW(head.parameters(), 1e-3)
    for _ in range(5):  # real gradients: moments of zero would compress to nothing
        model(torch.randn(4, 3, 224, 224)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = 3 * sum(parameter.numel() * parameter.element_size() for parameter in head.parameters())
    whole, part = args.dir / "whole.pt", args.dir / "delta.safetensors"
    ways = {
        "torch.save": (lambda: torch.save({"m": model.state_dict(), "o": optimizer.state_dict()}, whole), whole),
        "delta": (lambda: save_checkpoint(part, model=model, optimizer=optimizer, epoch=1, delta=True), part),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.repeats + 1):
        for way, (write, path) in ways.items():
            seconds[way].append(durable(write, path))
    faster = statistics.median(a / b for a, b in zip(*(times[1:] for times in seconds.values()), strict=True))
    sizes = [path.stat().st_size for _, path in ways.values()]
    print(
        f"{args.model}, head trained: {changed / 1e6:.3f} MB of weights and moments changed\n"
        f"delta: {sizes[1] / changed:.3f} x the bytes that changed, random states included; "
        f"{sizes[0] / sizes[1]:.0f} x smaller and {faster:.1f} x faster than torch.save, both made durable"
    )


def background(args: argparse.Namespace) -> None:
    """Seconds of training that one save costs, in units of a blocking torch.save that is made durable."""
    model = timm.create_model(args.model)
    path = args.dir / "whole.pt"
    manager = CheckpointManager(args.dir / "runs", background=True)
    square = torch.randn(500, 500)

    def training_after(save: Callable[[], object]) -> tuple[float, float]:
        begin = time.perf_counter()
        save()
        call = time.perf_counter() - begin
        for _ in range(args.steps):
            square @ square
        return call, time.perf_counter() - begin

    calls, totals = [], []
    for number in range(args.repeats + 1):
        _, idle = training_after(lambda: None)
        blocking, slow = training_after(lambda: durable(lambda: torch.save(model.state_dict(), path), path))
        call, total = training_after(lambda number=number: manager.save(number, model=model, rng=False))
        manager.wait()
        calls.append(call / blocking)
        totals.append((total - idle) / (slow - idle))
    print(
        f"{args.model}, a save in the background, in units of a torch.save made durable: the call takes "
        f"{statistics.median(calls[1:]):.2f}, training loses {statistics.median(totals[1:]):.2f} "
        f"(rounds {', '.join(f'{ratio:.2f}' for ratio in totals[1:])})"
    )


class Noisy(Dataset[torch.Tensor]):
    """Items with noise from every global generator, as augmentation makes it."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((8,), float(index)) + random.random() + float(np.random.rand()) + torch.rand(8)  # noqa: NPY002


def train(way: str, workers: int, path: Path, stop: int | None, seed: int, resume: bool = False) -> torch.Tensor:
    """Two epochs of six steps, in the second of which a layer thaws; or a part of them, saved at a step."""
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)  # noqa: NPY002
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 1))
    freeze_except(model, "2")
    optimizer = torch.optim.AdamW(model[2].parameters(), 1e-2)
    kind = ResumableLoader if way == "ftkit" else DataLoader
    loader = kind(Noisy(), 2, shuffle=True, num_workers=workers)
    start = step = 0
    if resume and way == "ftkit":
        checkpoint = load_checkpoint(path, model=model, optimizer=optimizer, sampler=loader)
        start, step = checkpoint.extra["goes_on"], checkpoint.step or 0
    elif resume:
        state = torch.load(path, weights_only=True)
        start, step = state["goes_on"], state["step"]
        if step > 6:
            unfreeze(model, "0", optimizer=optimizer)
        model.load_state_dict(state["model"]), optimizer.load_state_dict(state["optimizer"])
    for epoch in range(start, 2):
        if epoch == 1 and step == 6:
            unfreeze(model, "0", optimizer=optimizer)
        for batch in loader:
            if step == 12:  # a plain loader that went on amid an epoch begins it anew
                break
            model(batch).square().mean().backward()
            optimizer.step(), optimizer.zero_grad()
            step += 1
            if step == stop and step % 6:
                break
        if step == stop:
            goes_on = epoch + (step % 6 == 0)
            if way == "ftkit":
                save_checkpoint(path, model=model, optimizer=optimizer, sampler=loader, step=step, goes_on=goes_on)
            else:
                parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save(parts | {"step": step, "goes_on": goes_on}, path)
            break
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def resume(args: argparse.Namespace) -> None:
    """Stop at an epoch's end, amid the first epoch and amid the second, after a layer thawed, and go on elsewhere."""
    print("resumes that end with the same weights to the bit: epoch's end / amid an epoch / amid it, after an unfreeze")
    for way in ("torch.save", "ftkit"):
        for workers in (0, 2):
            whole = train(way, workers, args.dir / "none", None, 0)
            row = []
            for stop in (6, 3, 9):
                path = args.dir / "stopped.pt"
                train(way, workers, path, stop, 0)
                row.append("exact" if torch.equal(train(way, workers, path, None, 99, True), whole) else "differs")
            print(f"  {way:12}{workers} workers  {' / '.join(row)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="kill|delta|background|resume")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300, help="multiplications of 500 x 500 after each save")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--megabytes", type=int, default=20)
    parser.add_argument("--dir", type=Path, help="where to write; a temporary folder if left out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        args.dir = Path(folder)
        for name in args.what or ["kill", "delta", "background", "resume"]:
            {"kill": kill, "delta": delta, "background": background, "resume": resume}[name](args)


if __name__ == "__main__":
    main()
