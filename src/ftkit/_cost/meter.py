"""A meter that runs under every operator and around every module, on tensors that may hold no data."""

from __future__ import annotations

import bisect
import contextlib
import functools
import threading
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from ftkit._cost.answers import Answer, ask, question
from ftkit._cost.fakes import Fakes, memory_of
from ftkit._cost.flops import flops
from ftkit._cost.memory import Memory
from ftkit._cost.onednn import fast_attention_scratch, scratch_bytes
from ftkit._models.dryrun import tensors_in
from ftkit._torch import (
    FakeTensor,
    NoDynamo,
    TorchDispatchMode,
    allocated,
    below_dispatch,
    eager_call,
    holds_value,
    is_traceable_wrapper_subclass_type,
    kept_by,
    node_number,
    node_running,
    nodes_made,
    owners,
    storage_id,
)

Shapes: TypeAlias = tuple[int, ...] | tuple[tuple[int, ...], ...] | None
"""One tensor's shape; or several tensors' shapes, in the order in which they come; or nothing."""


@dataclass
class ModuleCost:
    """What one module of the model did in the step, its children included, over all of its calls.

    Attributes:
        calls: How often the forward pass called it.
        input_shape: Of the tensors of its first call.
        output_shape: Of the tensors that its first call gave back.
        forward_flops: A multiply-add is 2.
        backward_flops: For gradients of inputs and of parameters.
        saved_bytes: Kept from the forward for the backward pass; parameters, buffers and inputs aside.
        training: Whether it ran in train mode; None if it never ran.
        differentiable: Whether a gradient flows back into its outputs.
    """

    calls: int = 0
    input_shape: Shapes = None
    output_shape: Shapes = None
    forward_flops: int = 0
    backward_flops: int = 0
    saved_bytes: int = 0
    training: bool | None = None
    differentiable: bool = False


def shapes_in(tree: Any) -> Shapes:
    """Return the shapes of the tensors in a nested structure; -1 for a ragged dimension."""
    found = tuple(tuple(size if type(size) is int else -1 for size in tensor.shape) for tensor in tensors_in(tree))
    return found[0] if len(found) == 1 else found


class _Call:
    """One call of a module: what it did itself, outside of the calls in it."""

    __slots__ = ("backward", "cost", "forward", "outer", "saved")

    def __init__(self, cost: ModuleCost, outer: _Call | None = None) -> None:
        self.cost = cost
        self.outer = outer
        self.forward = self.backward = self.saved = 0

    def costs(self) -> list[ModuleCost]:
        """The costs that it adds to, each once: of its module, and of all modules around it."""
        found: dict[int, ModuleCost] = {}
        call: _Call | None = self
        while call is not None:
            found[id(call.cost)] = call.cost
            call = call.outer
        return list(found.values())


_ANSWERS: dict[Hashable, Answer] = {}
_MOST_ANSWERS = 20_000  # some 30 MB, after which all are forgotten; a network has a few hundred

_DEVICE = torch.ops.prim.device.default
_DETACH = torch.ops.aten.detach.default
_ITEM = torch.ops.aten._local_scalar_dense.default
_NEW_ZEROS = torch.ops.aten.new_zeros.default
_ADD = torch.ops.aten.add.Tensor
_WEIGHTED = "BinaryCrossEntropyWithLogitsBackward0"

# What autograd does in place, where no mode watches it, to zeros that it has just made.
_INTO_ZEROS = {
    "aten::index_put": torch.ops.aten.index_put_.default,
    "aten::index_add": torch.ops.aten.index_add_.default,
    "aten::scatter_add": torch.ops.aten.scatter_add_.default,
    "aten::scatter.src": torch.ops.aten.scatter_.src,
}
# What else its formulas do in place to what they have made: that of any node, or of one.
_INTO_OWN = {
    ("", "aten::masked_fill.Scalar"): torch.ops.aten.masked_fill_.Scalar,
    ("TakeBackward0", "aten::put"): torch.ops.aten.put_.default,
    (_WEIGHTED, "aten::mul.Tensor"): torch.ops.aten.mul_.Tensor,
    (_WEIGHTED, "aten::sub.Tensor"): torch.ops.aten.sub_.Tensor,
}


class Meter(NoDynamo, TorchDispatchMode):  # type: ignore[no-untyped-call]  # its __init_subclass__
    """Counts FLOPs and follows live storages under every operator, forward and backward.

    It answers on its own what an operator returns for arguments like those it has met before:
    FakeTensorMode, which it asks the first time, takes several times as long.
    """

    def __init__(self, fakes: Fakes | None, *, item: float | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.costs: dict[int, ModuleCost] = {}
        self.failed: tuple[nn.Module, Shapes] | None = None
        self.stuck_at: Any = None
        self.memory = Memory()
        self._fakes = fakes
        self._dress = fakes.dress if fakes else None
        self._item = item
        self._fast = torch.backends.mha.get_fastpath_enabled()  # before the run, which shows the layers instead
        self._in_backward = False
        self._node = 0  # the number of the node of the backward pass that runs
        self._own: set[int] = set()  # the memory that it has made
        self._formula: str | None = None  # its name, if it is one of torch's own
        self._zeros: int | None = None  # the memory that new_zeros gave last
        self._outside = self._call = _Call(ModuleCost())
        self._calls = [self._outside]
        self._marks: list[tuple[int, _Call]] = [(0, self._outside)]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Measure every operator, and every module that is called, in this thread.

        ``nn.Module.__call__`` is replaced for the whole process, as torch's global hooks see no keyword arguments.
        Other threads pass through to the original; and only one block at a time runs, under the lock of
        :func:`~ftkit._models.dryrun.untouched`, so that each puts back what it found.
        """
        original = nn.Module.__call__
        thread = threading.get_ident()

        @functools.wraps(original)
        def through_meter(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return original(module, *args, **kwargs)
            return self.call(module, args, kwargs)

        try:
            nn.Module.__call__ = through_meter  # type: ignore[method-assign]
            with self._fakes.mode if self._fakes else contextlib.nullcontext(), self:
                yield
        finally:
            nn.Module.__call__ = original  # type: ignore[method-assign]

    # ---------------- modules

    def call(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call a module and note what it did."""
        outer, cost = self._call, self.costs.get(id(module)) or ModuleCost()  # it may be no part of the model
        self._enter(_Call(cost, outer))
        self._calls.append(self._call)
        try:
            output = eager_call(module)(*args, **kwargs)
        except Exception:
            if self.failed is None:  # the innermost
                self.failed = module, shapes_in((args, kwargs))
            raise
        finally:
            self._enter(outer)
        self.failed = None
        if self._fast and isinstance(module, nn.MultiheadAttention):
            self.memory.spend(fast_attention_scratch(module, args, kwargs, output))
        if not self._in_backward:
            if not cost.calls:
                cost.input_shape, cost.output_shape = shapes_in((args, kwargs) if kwargs else args), shapes_in(output)
            cost.calls += 1
            cost.training = module.training
            cost.differentiable |= any(tensor.requires_grad for tensor in tensors_in(output))
        return output

    def _enter(self, call: _Call) -> None:
        """Note that operators, and the nodes that autograd makes for them, belong to ``call`` from here on."""
        self._call = call
        if not self._in_backward:
            self._marks.append((nodes_made(), call))

    def _differentiated(self) -> _Call:
        """The call to which an operator of the backward pass belongs: the one that made the node that is running."""
        node = node_running() if self._call is self._outside else None
        if node is None:
            return self._call
        return self._marks[bisect.bisect_right(self._marks, node_number(node), key=lambda mark: mark[0]) - 1][1]

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """Note a tensor that autograd keeps for the backward pass."""
        self.memory.keep(tensor, self._call)
        return tensor

    def begin_backward(self) -> None:
        """Note that operators are those of the backward pass from here on."""
        self._in_backward = True
        self.memory.settle()

    def roll_up(self) -> ModuleCost:
        """Add what calls did to their modules and to all around; return the totals."""
        totals = ModuleCost()
        for call in self._calls:
            for cost in (totals, *call.costs()):
                cost.forward_flops += call.forward
                cost.backward_flops += call.backward
                cost.saved_bytes += call.saved
        return totals

    # ---------------- operators

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Answer an operator, and note what it took. In this order.

        1. A tensor that wraps others takes its operators apart on its own; they come next, one by one.
        2. Some questions can be answered at once, and cost nothing.
        3. In the backward pass, an operator may stand for one in place.
        4. What was asked before is known.
        5. All else is asked of torch, and remembered where shapes alone decide it.
        """
        if self._fakes is None and any(map(is_traceable_wrapper_subclass_type, types)):
            return NotImplemented
        at_once = self._at_once(func, args)
        if at_once is not None:
            return at_once
        if self._in_backward:
            self._follow(node_running())
            func = self._as_done(func, args)
        output, counted, scratch = self._answer(func, args, kwargs or {})
        if func is _NEW_ZEROS:
            self._zeros = storage_id(output)
        if self._in_backward:
            self._differentiated().backward += counted
        else:
            self._call.forward += counted
        for tensor in tensors_in(output):
            self.memory.watch(tensor, self._call)
            if self._in_backward:
                self._own.add(memory_of(tensor)[0])
        self.memory.spend(scratch)
        return output

    def _at_once(self, func: Any, args: tuple[Any, ...]) -> Any:
        """What needs neither data nor memory: where a tensor lives, the tensor detached, and numbers if told so."""
        if func is _DEVICE and self._dress and type(args[0]) is FakeTensor:
            return args[0].device
        if func is _DETACH and self._dress and type(args[0]) is FakeTensor and not holds_value(args[0]):
            with below_dispatch():
                return self._dress(args[0], args[0].device, False)
        if func is _ITEM and self._item is not None:
            kind = args[0].dtype  # step counters, mostly
            return self._item if kind.is_floating_point else True if kind is torch.bool else 1
        return None

    def _as_done(self, func: Any, args: tuple[Any, ...]) -> Any:
        """The operator that autograd runs: in place, where no mode watches it, if it alone holds what it writes to."""
        name = func.name()
        into_zeros = _INTO_ZEROS.get(name)
        if into_zeros is not None and storage_id(args[0]) == self._zeros:
            return into_zeros
        if self._formula is not None:
            into_own = _INTO_OWN.get((self._formula, name)) or _INTO_OWN.get(("", name))
            if into_own is not None and memory_of(args[0])[0] in self._own and _can_take(func, args):
                return into_own
        if func is _ADD and _adds_up(*args) and not self._is_of_formula(args[0]):
            return torch.ops.aten.add_.Tensor
        return func

    def _follow(self, node: torch.autograd.graph.Node | None) -> None:
        """Note which node of the backward pass runs."""
        number = 0 if node is None else node_number(node)
        if number != self._node:
            self._node = number
            self._own.clear()
            native = node is not None and not isinstance(node, torch.autograd.function.BackwardCFunction)
            self._formula = node.name() if node is not None and native else None
            if node is not None and self._formula == _WEIGHTED and kept_by(node, "pos_weight") is None:
                self._formula = ""  # it has another one then

    def _is_of_formula(self, total: torch.Tensor) -> bool:
        """Whether the node that runs has made a tensor for itself, rather than one of two gradients for one place."""
        node = node_running()
        if node is None or memory_of(total)[0] not in self._own:
            return False
        places = [place for place in node.next_functions if place[0] is not None]
        return len(set(places)) == len(places)

    def _answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, int, int]:
        """What an operator gives back, its FLOPs and its scratch memory."""
        asked = question(func, args, kwargs) if self._dress else None
        known = _ANSWERS.get(asked)
        if known is not None and self._fakes is not None:
            return known.again(args, self._fakes), known.flops, known.scratch
        try:
            output, held = self._run(func, args, kwargs)
        except Exception:
            self.stuck_at = func
            raise
        counted = flops(func, args, kwargs, output)
        scratch = held[0] if held else scratch_bytes(func, args, kwargs, output)
        found = Answer.of(func, args, output, counted, scratch) if asked is not None else None
        if found is not None:
            if len(_ANSWERS) >= _MOST_ANSWERS:
                _ANSWERS.clear()
            _ANSWERS[asked] = found
        return output, counted, scratch

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[int, int] | None]:
        """Ask torch what an operator gives back; and if it has computed that, what it held meanwhile."""
        if self._fakes:
            return ask(func, args, kwargs, self._fakes), None
        return allocated(lambda: ask(func, args, kwargs, None))


def _can_take(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether the result has a place in the first argument."""
    place, *others = (one for one in args if isinstance(one, torch.Tensor))
    if torch.Tag.pointwise in func.tags:
        shape = torch.broadcast_shapes(place.shape, *(one.shape for one in others))  # type: ignore[no-untyped-call]
        return bool(shape == place.shape) and 0 not in place.stride()
    return True


def _adds_up(total: Any, further: Any) -> bool:
    """Whether autograd adds one gradient to another that only it holds: it does so in place, where no mode watches."""
    if not isinstance(total, torch.Tensor) or not isinstance(further, torch.Tensor) or total.shape != further.shape:
        return False
    if isinstance(node_running(), torch.autograd.function.BackwardCFunction):  # the user's own sum
        return False
    of_total, of_further = owners(total), owners(further)
    if of_total is None or of_further is None:
        return False
    return of_total[0] == 2 and of_total[1] <= of_further[1]
