"""Two processes stay in step where a framework keeps the data-parallel wrapper and hands out the model inside."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.frameworks]

# What all runs begin with: two processes, a model in which the head trains first, and data that differ between them.
START = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from ftkit import CheckpointManager, FreezeSchedule, freeze, freeze_except, trainable, unfreeze

rank, folder = int(os.environ["RANK"]), sys.argv[1]
torch.set_num_threads(1)

def build(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))

def report(model, before):
    flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    both = [torch.empty_like(flat) for _ in range(2)]
    dist.all_gather(both, flat)
    state = model.state_dict()
    moved = sorted({name.split(".")[-2] for name in state if not state[name].equal(before[name])})
    print("REPORT" + json.dumps([moved, torch.equal(*both)]))

def copy_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}

def train(parallel, optimizer, steps=2):
    for _ in range(steps):
        optimizer.zero_grad()
        parallel(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 16
    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return torch.randn(4, generator=generator), torch.randn(2, generator=generator)
"""

# On a busy machine, gloo's threads may abort a process that ends; by then all is reported.
END = """
if dist.is_initialized():
    dist.barrier()
    dist.destroy_process_group()
sys.stdout.flush()
os._exit(0)
"""

GLOO = """
dist.init_process_group("gloo")
torch.manual_seed(rank)
"""

PLAIN = """
model = build()
freeze_except(model, "4")
parallel = DistributedDataParallel(model)
torch.manual_seed(rank)
optimizer = torch.optim.SGD(trainable(model).values(), lr=0.1)
before = copy_of(model)
train(parallel, optimizer)
report(model, before)
"""

RUNS = {
    "the model inside a wrapper": (
        PLAIN + 'unfreeze(model, "2", optimizer=optimizer)\ntrain(parallel, optimizer)\nreport(model, before)',
        [[["4"], True], [["2", "4"], True]],
    ),
    "a part of the model inside a wrapper": (
        PLAIN + 'unfreeze(model[2:], "2", optimizer=optimizer)\ntrain(parallel, optimizer)\nreport(model, before)',
        [[["4"], True], [["2", "4"], True]],
    ),
    "a wrapper made anew after the thaw": (
        PLAIN
        + 'unfreeze(model, "2", optimizer=optimizer)\nparallel = DistributedDataParallel(model)\n'
        + "train(parallel, optimizer)\nreport(model, before)",
        [[["4"], True], [["2", "4"], True]],
    ),
    "a resume that thaws": (
        PLAIN
        + 'unfreeze(parallel, "2", optimizer=optimizer)\ntrain(parallel, optimizer)\nreport(model, before)\n'
        + """
CheckpointManager(folder + "/runs").save(0, model=parallel, optimizer=optimizer)
model = build()
freeze_except(model, "4")
parallel = DistributedDataParallel(model)
optimizer = torch.optim.SGD(trainable(model).values(), lr=0.1)
assert CheckpointManager(folder + "/runs").resume(model=parallel, optimizer=optimizer) == 1
before = copy_of(model)
torch.manual_seed(rank + 5)
train(parallel, optimizer)
report(model, before)
""",
        [[["4"], True], [["2", "4"], True], [["2", "4"], True]],
    ),
    "processes that train models of their own": (
        """
model = build(rank)
freeze_except(model, "4")
optimizer = torch.optim.SGD(trainable(model).values(), lr=0.1)
before = copy_of(model)
train(model, optimizer)
unfreeze(model, "2", optimizer=optimizer)
train(model, optimizer)
report(model, before)
""",
        [[["2", "4"], False]],
    ),
    "a model that fully_shard has sharded": (
        """
from torch.distributed.fsdp import fully_shard
model = build()
freeze_except(model, "4")
for layer in (model[0], model[2], model[4], model):
    fully_shard(layer)
optimizer = torch.optim.SGD(trainable(model).values(), lr=0.1)
train(model, optimizer)
unfreeze(model, "2", optimizer=optimizer)
before = model[2].weight.full_tensor().clone()
train(model, optimizer)
print("REPORT" + json.dumps(not torch.equal(before, model[2].weight.full_tensor())))
""",
        [True],
    ),
}

ACCELERATE = """
from accelerate import Accelerator
accelerator = Accelerator(cpu=True)
model = build()
freeze_except(model, "4")
parallel, optimizer = accelerator.prepare(model, torch.optim.SGD(trainable(model).values(), lr=0.1))
torch.manual_seed(rank)
inner = accelerator.unwrap_model(parallel)
before = copy_of(inner)
train(parallel, optimizer)
report(inner, before)
unfreeze(inner, "2", optimizer=optimizer)
train(parallel, optimizer)
report(inner, before)
"""

LIGHTNING = """
import lightning, logging
from ftkit.lightning import Freezing
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = build()
    def training_step(self, batch, _):
        return (self.net(batch[0]) - batch[1]).square().sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

class Report(lightning.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        report(pl_module, before)

module = Module()
before = copy_of(module)
trainer = lightning.Trainer(
    accelerator="cpu", devices=1, num_nodes=2, strategy="ddp", max_epochs=2, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    callbacks=[Freezing(FreezeSchedule({0: "net.4", 1: "net.2"})), Report()],
)
trainer.fit(module, torch.utils.data.DataLoader(Data(), batch_size=4))
"""

TRAINER = """
import transformers
from ftkit.transformers import FreezingCallback
transformers.logging.set_verbosity_error()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = build()
    def forward(self, x=None, labels=None):
        return {"loss": (self.net(x) - labels).square().sum()}

class Named(Data):
    def __getitem__(self, index):
        return dict(zip(("x", "labels"), super().__getitem__(index)))

class Report(transformers.TrainerCallback):
    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        report(model, before)

model = Net()
before = copy_of(model)
arguments = transformers.TrainingArguments(
    folder, use_cpu=True, num_train_epochs=2, per_device_train_batch_size=4, report_to=[], save_strategy="no",
    optim="sgd", learning_rate=0.1, lr_scheduler_type="constant", ddp_find_unused_parameters=False, disable_tqdm=True,
)
freezing = FreezingCallback(FreezeSchedule({0: "net.4", 1: "net.2"}))
transformers.Trainer(model, arguments, train_dataset=Named(), callbacks=[freezing, Report()]).train()
"""


def run(script: str, folder: Path) -> list[list[object]]:
    """Run a script in two processes, and return what each reported."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    several = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    several |= {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", START + script + END, str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Lightning starts a process for each further device of a node, so each of these is a node.
            env={**os.environ, **several, "RANK": str(rank), "NODE_RANK": str(rank), "LOCAL_RANK": "0"},
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=500) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(err[-3000:] for _, err in outputs)
    return [
        [json.loads(line.removeprefix("REPORT")) for line in out.splitlines() if line.startswith("REPORT")]
        for out, _ in outputs
    ]


@pytest.mark.parametrize("name", RUNS)
def test_plain_loops(name: str, tmp_path: Path) -> None:
    script, expected = RUNS[name]
    assert run(GLOO + script, tmp_path) == [expected, expected]


@pytest.mark.parametrize(
    ("framework", "script"), [("accelerate", ACCELERATE), ("lightning", LIGHTNING), ("transformers", TRAINER)]
)
def test_frameworks(framework: str, script: str, tmp_path: Path) -> None:
    pytest.importorskip(framework)
    expected = [[["4"], True], [["2", "4"], True]]
    assert run(script, tmp_path) == [expected, expected]
