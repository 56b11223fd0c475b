"""Models and measurements that several tests of costs use."""

from __future__ import annotations

import contextlib
import gc

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ftkit._models.dryrun import tensors_in

# What rules on the scratch memory of kernels were read off.
NEW = torch.torch_version.TorchVersion(torch.__version__) >= (2, 14)


class Calls(nn.Module):
    """A module whose forward is a function of itself and the inputs."""

    def __init__(self, function, **children):
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)
        self.function = function

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def matmul(rows, inner, columns):
    return 2 * rows * inner * columns


def real_step(model, inputs):
    """FLOPs and saved bytes of a real step."""
    own = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers(), *inputs]}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), FlopCounterMode(display=False) as one:
        output = model(*inputs)
        loss = F.cross_entropy(output, torch.zeros(len(output), dtype=torch.long))
    with FlopCounterMode(display=False) as two:
        loss.backward()
    return one.get_total_flops(), two.get_total_flops(), sum(kept.values())


@contextlib.contextmanager
def kept_besides(model, given):
    """Collect the storages that autograd keeps, by identity, but those of the model and its input."""
    own = {tensor.untyped_storage()._cdata for tensor in tensors_in([*model.parameters(), *model.buffers(), given])}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def real_peak(model, inputs, make, loss=None):
    """The most that the allocator held in one steady step, by its own events."""
    from torch.autograd.profiler import profile, record_function

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make(trained)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    gc.collect()
    state = sum(one.numel() * one.element_size() for each in optimizer.state.values() for one in each.values())
    held = sum(one.numel() * one.element_size() for one in [*model.parameters(), *model.buffers(), *inputs])
    with profile(profile_memory=True) as record:
        with record_function("start"):
            pass
        output = model(*inputs)
        scalar = loss(output) if loss else F.cross_entropy(output, torch.zeros(len(output), dtype=torch.long))
        scalar.backward()
        del output, scalar
        optimizer.step()
    current = peak = 0
    for event in sorted(record.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    return held + state + peak
