"""What the tests of checkpoints share: a small model, its training, files and processes."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


def make() -> nn.Module:
    """A small model with everything that has a state of its own."""
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))


def steps(model: nn.Module, optimizer: Any, count: int = 3) -> None:
    """Train on random data; noise comes from every global generator."""
    model.train()
    for _ in range(count):
        batch = torch.randn(6, 4) + random.random() + float(np.random.rand())  # noqa: NPY002
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def flat(model: nn.Module) -> torch.Tensor:
    """All state of a model in one vector."""
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def names(folder: Path) -> list[str]:
    """The files in a folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())


def damage(path: Path) -> None:
    """Flip a bit near the end."""
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)


def run_child(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script in another process."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], capture_output=True, text=True, check=False
    )


RANKS = """
    import os, random, sys, torch, torch.distributed as dist, torch.multiprocessing as mp
    from pathlib import Path
    from torch import nn
    from torch.distributed.fsdp import fully_shard
    from ftkit import CheckpointManager, ResumableLoader, load_checkpoint, save_checkpoint

    def build(sharded):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Dropout(0.4), nn.Linear(7, 3))
        if sharded:
            fully_shard(model[0])
            fully_shard(model)
        elif dist.is_initialized():
            model = nn.parallel.DistributedDataParallel(model)
        return model, torch.optim.AdamW(model.parameters(), 1e-2)

    def whole(model):
        values = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
        return torch.cat([value.detach().flatten() for value in values])

    def meet(rank, world, number, folder, run):
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet{number}", rank=rank, world_size=world)
        run(rank, folder)
        dist.barrier()
        dist.destroy_process_group()

    def start(worlds, *runs):
        for number, (world, run) in enumerate(zip(worlds, runs)):
            arguments = (world, number, sys.argv[1], run)
            children = [mp.get_context("fork").Process(target=meet, args=(rank, *arguments)) for rank in range(world)]
            [child.start() for child in children]
            [child.join() for child in children]
            if any(child.exitcode for child in children):
                sys.exit(1)
"""


def run_ranks(code: str, folder: Path) -> None:
    """Run a script that starts several processes, which may use what stands in ``RANKS``."""
    done = run_child(textwrap.dedent(RANKS) + textwrap.dedent(code), folder)
    assert done.returncode == 0, done.stderr
