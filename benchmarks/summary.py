"""A summary beside other tools: what it costs, and whether it is right.

    python benchmarks/summary.py [--models resnet50,vit_base_patch16_224] [--batch 1] [--rounds 5]

Costs are processor time on one thread, the best of the rounds, in units of one real forward pass without
gradients. "FLOPs" is how far the count is from torch's counter under plain attention, "kept" how far the bytes kept for
the backward pass are from those of a real step. Tools that are not installed are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import math
import time
from collections.abc import Callable

import timm
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ftkit import summary

Tool = Callable[[nn.Module, torch.Tensor], tuple[float, float]]


def ftkit_summary(model: nn.Module, x: torch.Tensor) -> tuple[float, float]:
    found = summary(model, input_data=x)
    str(found)
    return found.forward_flops, found.saved_bytes


def torch_counter(model: nn.Module, x: torch.Tensor) -> tuple[float, float]:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops(), math.nan


def torchinfo_summary(model: nn.Module, x: torch.Tensor) -> tuple[float, float]:
    import torchinfo

    found = torchinfo.summary(model, input_data=x, verbose=0)
    str(found)
    return 2 * found.total_mult_adds, found.total_output_bytes


def fvcore_count(model: nn.Module, x: torch.Tensor) -> tuple[float, float]:
    from fvcore.nn import FlopCountAnalysis

    counter = FlopCountAnalysis(model, x).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return 2 * counter.total(), math.nan


def lightning_summary(model: nn.Module, x: torch.Tensor) -> tuple[float, float]:
    from lightning.pytorch import LightningModule
    from lightning.pytorch.utilities.model_summary import ModelSummary

    class Wrapper(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.example_input_array = model, x

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x)

    found = ModelSummary(Wrapper().eval(), max_depth=3)
    str(found)
    return found.total_flops, math.nan


TOOLS: dict[str, Tool] = {
    "ftkit": ftkit_summary,
    "torch": torch_counter,
    "torchinfo": torchinfo_summary,
    "fvcore": fvcore_count,
    "lightning": lightning_summary,
}


def best_time(run: Callable[..., object], *args: object, rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.process_time()
        run(*args)
        times.append(time.process_time() - start)
    return min(times)


def kept_bytes(model: nn.Module, x: torch.Tensor) -> int:
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers(), x)}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(x)
    del output
    return sum(storage.nbytes() for storage in kept.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet50,vit_base_patch16_224")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    installed = [name for name in TOOLS if name == "ftkit" or importlib.util.find_spec(name)]
    for name in options.models.split(","):
        model = timm.create_model(name).eval()
        x = torch.randn(options.batch, *timm.data.resolve_model_data_config(model)["input_size"])
        with torch.no_grad():
            forward = best_time(model, x, rounds=options.rounds)
        with sdpa_kernel(SDPBackend.MATH):
            flops, _ = torch_counter(model, x)
        kept = kept_bytes(model, x)
        print(f"\n{name}: a forward pass takes {forward * 1e3:.0f} ms, {flops:,.0f} FLOPs; {kept:,} bytes are kept")
        print(f"{'tool':12s}{'x forward':>10s}{'FLOPs':>9s}{'kept':>9s}")
        for tool in installed:
            run = TOOLS[tool]
            with contextlib.redirect_stdout(None):
                counted, predicted = run(model, x)
                seconds = best_time(run, model, x, rounds=options.rounds)
            print(
                f"{tool:12s}{seconds / forward:10.2f}{100 * (counted / flops - 1):+8.1f}%"
                + ("" if math.isnan(predicted) else f"{100 * (predicted / kept - 1):+8.1f}%")
            )


if __name__ == "__main__":
    main()
