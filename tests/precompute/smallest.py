"""The fewest bytes that could pass from the frozen part of a model to the rest, found in another way than ftkit's."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Collection
from typing import Any

import networkx as nx
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ftkit._torch import written_by


class Values(TorchDispatchMode):
    """Every value that operators give, views too, with the bytes of one sample's part of it."""

    def __init__(
        self, model: nn.Module, inputs: list[Tensor], samples: int, others: dict[int, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.graph = nx.DiGraph()
        self.made = dict[int, Tensor]()  # for a run with another sample, to compare with
        self._others = others
        self._samples, self._count = samples, 0
        self._values: dict[int, int] = {}
        self._writes: dict[int, int] = {}  # the last write to a storage
        self._hot, self._varying = set[int](), set[int]()
        self._mixed = set[int]()  # what is not of one sample alone
        self._alive: list[Tensor] = []
        self._free = set[int]()  # what is there without any operator of the rest
        self._known: dict[int, set[int]] = {}  # from what a value was computed
        self._leaked, self._drawn = False, (random.getstate(), np.random.get_state()[2])  # noqa: NPY002
        self.skipped = 0
        for one in model.parameters():
            if one.requires_grad:
                self._hot.add(self._put(one))
        for one in inputs:
            self.graph.add_edge("source", (self._put(one), "in"))
            self._varying.add(self._values[id(one)])
            self._free.add(self._values[id(one)])

    def _put(self, tensor: Tensor, parents: frozenset[int] | set[int] = frozenset()) -> int:
        self._count += 1
        self._alive.append(tensor)
        self._values[id(tensor)] = self._count
        options = {}
        if not self._mixed.isdisjoint(parents) or self._mixes(tensor, parents):
            self._mixed.add(self._count)
        elif any(side % self._samples == 0 for side in tensor.shape):
            options["capacity"] = tensor.numel() // self._samples * tensor.itemsize
        self.graph.add_edge((self._count, "in"), (self._count, "out"), **options)
        return self._count

    def _mixes(self, tensor: Tensor, parents: frozenset[int] | set[int]) -> bool:
        """Whether more of a value has changed than one sample's part where one sample is another."""
        if not parents or parents & self._hot or not parents & self._varying:
            return False
        if self._others is None:
            self.made[self._count] = tensor.detach().clone()
            return False
        other = self._others.pop(self._count, None)
        if other is None or other.shape != tensor.shape or tensor.layout is not torch.strided:
            return False
        changed = (tensor != other) & ~(tensor.isnan() & other.isnan())
        return int(changed.sum()) > tensor.numel() // self._samples

    def _parents(self, tensor: Tensor) -> set[int]:
        own = self._values.get(id(tensor))
        last = self._writes.get(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else None
        return {one for one in (own, last) if one is not None}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        parents = set().union(*map(self._parents, given)) if given else set()
        written = {id(one): one for one in written_by(func, args, kwargs)}
        self._see_draws()
        before = torch.get_rng_state()
        output = func(*args, **kwargs)
        hot = self._leaked or not torch.equal(before, torch.get_rng_state()) or bool(parents & self._hot)
        if reads := not self.skipped and needs_values(func, args):
            self._read(parents, given)
        if hot or reads:
            for one in parents & self._varying - self._hot:
                self.graph.add_edge((one, "out"), "sink")
        made = {id(one): one for one in tree_leaves(output) if isinstance(one, Tensor)} | written
        for tensor in made.values():
            value = self._put(tensor, parents)
            if id(tensor) in written:
                self._writes[tensor.untyped_storage()._cdata] = value
            self._hot |= {value} if hot else set()
            if parents & self._varying:
                self._varying.add(value)
                self._known[value] = parents & self._varying - self._hot
                if self.skipped:
                    self.graph.add_edge("source", (value, "in"))
                    self._free.add(value)
                for one in parents & self._varying - self._hot:
                    self.graph.add_edge((one, "out"), (value, "in"))
        return output

    def _read(self, values: set[int], tensors: list[Tensor]) -> None:
        """Note that Python sees values.

        If it decides by one, other operators follow in another batch, on anything that led there: it has to be there
        as a whole. If that is a number or a shape, nothing that comes later is known to be of one sample.
        """
        if any(one.dtype is not torch.bool or one.numel() > 1 for one in tensors):
            self._leaked = self._leaked or bool(values & (self._varying | self._hot))
            return
        queue, seen = [*values & self._varying - self._hot], set[int]()
        while queue:
            value = queue.pop()
            if value in self._free:
                self.graph.add_edge((value, "out"), "sink")
            elif value not in seen:
                seen.add(value)
                queue += self._known[value]

    def _see_draws(self) -> None:
        """Python's random numbers may lead another way in the next batch."""
        now = random.getstate(), np.random.get_state()[2]  # noqa: NPY002
        self._leaked = self._leaked or (not self.skipped and now != self._drawn)
        self._drawn = now

    def ends(self, output: Any) -> None:
        """Note what the model gives back."""
        for one in tree_leaves(output):
            for value in self._parents(one) & self._varying - self._hot if isinstance(one, Tensor) else ():
                self.graph.add_edge((value, "out"), "sink")


def needs_values(func: Any, args: Any) -> bool:
    """Whether Python, or the shape of a result, depends on values."""
    if func is torch.ops.aten.index.Tensor:
        return any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1])
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))


def smallest(model: nn.Module, skipped: Collection[tuple[str, int]], *args: Any, **kwargs: Any) -> int:
    """How many bytes of each sample have to be kept at least, if some calls don't run.

    Any value may be kept that any operator gives, whatever is a module and what is not.
    """
    count = next(len(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor))
    others = [*range(count - 1), 0]

    def changed(one: Any) -> Any:
        return one[others] if isinstance(one, Tensor) and one.dim() and len(one) == count else one

    made = _values(model, skipped, count, None, *tree_map(changed, (args, kwargs))).made
    graph = _values(model, skipped, count, made, args, kwargs).graph
    return int(nx.minimum_cut_value(graph, "source", "sink")) if "sink" in graph else 0


def _values(
    model: nn.Module,
    skipped: Collection[tuple[str, int]],
    count: int,
    others: dict[int, Tensor] | None,
    args: Any,
    kwargs: Any,
) -> Values:
    inputs = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    buffers = copy.deepcopy(dict(model.named_buffers()))
    values, calls = Values(model, inputs, count, others), Counter[str]()
    hooks = []
    for name, module in model.named_modules():

        def enter(*_: Any, name: str = name) -> None:
            values.skipped += (name, calls[name]) in skipped

        def leave(*_: Any, name: str = name) -> None:
            values.skipped -= (name, calls[name]) in skipped
            calls[name] += 1

        hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        with values:
            values.ends(model(*args, **kwargs))
    finally:
        for hook in hooks:
            hook.remove()
        for name, one in model.named_buffers():
            one.data.copy_(buffers[name])
    return values
