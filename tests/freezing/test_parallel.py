"""Freezing through DistributedDataParallel."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ftkit._freezing.freeze import freeze, freeze_except, trainable, unfreeze
from ftkit.errors import FtkitError
from tests.freezing.models import Net, images, modes

RANK = """
import json, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from ftkit._freezing.freeze import freeze, freeze_except, frozen, unfreeze
from ftkit._groups import param_groups

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
torch.set_num_threads(1)
torch.manual_seed(0)
body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 4, 3))
model = nn.Sequential(body, nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))
freeze_except(model, "1")
parallel = DistributedDataParallel(model)
torch.manual_seed(rank)
optimizer = torch.optim.SGD(param_groups(model, 1e-3))
seen = []

def check():
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in range(2):
        optimizer.zero_grad()
        parallel.train()(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()
    flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    both = [torch.empty_like(flat) for _ in range(2)]
    dist.all_gather(both, flat)
    moved = {name[0] for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
    seen.append([sorted(moved), torch.equal(*both)])

check()
unfreeze(parallel, "0", optimizer=optimizer)
check()
freeze(parallel, "1")
check()
with frozen(parallel):
    for _ in range(2):
        parallel(torch.randn(4, 3, 8, 8).requires_grad_()).sum().backward()
check()
dist.destroy_process_group()
print(json.dumps(seen))
"""


@pytest.mark.slow
def test_two_processes_stay_in_step(tmp_path: Path) -> None:
    """Through DistributedDataParallel frozen parts stay, and what thaws after wrapping is averaged like the rest."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=240)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    head, all_of_it, body, again = json.loads(outputs[0])
    assert head == [["1"], True]
    assert all_of_it == [["0", "1"], True]
    assert body == again == [["0"], True]


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_a_wrapper_waits_for_the_gradients_of_what_is_trainable_now() -> None:
    """Freezing after wrapping would otherwise fail in the second step; hooks on the communication stay."""
    model = Net()
    parallel = DistributedDataParallel(model)
    sent: list[int] = []

    def count(_, bucket):  # torch reads annotations, and takes no strings
        sent.append(sum(parameter.numel() for parameter in bucket.parameters()))
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    parallel.register_comm_hook(None, count)
    for verb, selectors in ((freeze, ["backbone"]), (unfreeze, ["backbone.4"]), (freeze_except, ["backbone.0.weight"])):
        verb(parallel, *selectors)
        for _ in range(2):
            sent.clear()
            parallel(images()).sum().backward()
            assert sum(sent) == sum(parameter.numel() for parameter in trainable(model).values())


@pytest.mark.usefixtures("one_process")
def test_a_group_of_processes_of_its_own_is_an_error_before_anything_changes() -> None:
    """What can't be brought in step is refused, with what to do."""
    parallel = DistributedDataParallel(Net(), process_group=dist.new_group([0]))
    before = modes(parallel)
    with pytest.raises(FtkitError, match="wrap it again"):
        freeze(parallel, "backbone")
    assert modes(parallel) == before
