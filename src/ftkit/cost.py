"""What a training step costs: shapes, FLOPs and bytes, measured on tensors that hold no data."""

from __future__ import annotations

import bisect
import contextlib
import copy
import dataclasses
import functools
import gc
import math
import random
import sys
import threading
import warnings
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from ftkit.errors import FtkitError

__all__ = ["OptimizerLike", "Part", "Shapes", "StepCost", "measure", "tensors_in"]

Shapes: TypeAlias = tuple[int, ...] | tuple[tuple[int, ...], ...] | None
"""One tensor's shape; or several tensors' shapes, in the order in which they come; or nothing."""

OptimizerLike: TypeAlias = torch.optim.Optimizer | Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""An optimizer, or what makes one of a list of parameters: a class, or a function."""


@dataclass
class Part:
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


@dataclass
class StepCost:
    """What one training step costs.

    Attributes:
        parts: One for each module, in the order of ``model.modules()``.
        forward_flops: Of the model and the loss.
        backward_flops: Of the model and the loss.
        saved_bytes: Kept from the forward for the backward pass; parameters, buffers and inputs aside.
        held_bytes: Parameters, buffers and inputs: there before the step, and after it.
        peak_bytes: The most that the forward and the backward pass hold on top, gradients included.
        grad_bytes: The gradients left when the backward pass is done.
        lazy: The shapes that uninitialized parameters got, by their identities.
        real: Why the step was computed with real tensors, or None.
    """

    parts: list[Part]
    forward_flops: int = 0
    backward_flops: int = 0
    saved_bytes: int = 0
    held_bytes: int = 0
    peak_bytes: int = 0
    grad_bytes: int = 0
    lazy: dict[int, torch.Size] = field(default_factory=dict)
    real: str | None = None
    _trained: list[tuple[_Spec, bool]] = field(default_factory=list, repr=False)

    def peak_training_bytes(self, optimizer: OptimizerLike) -> int:
        """Predict the most bytes held at any moment of a step with ``optimizer``, its state included.

        It is the second and every later step that counts: the state is there, the gradients are not.

        Raises:
            FtkitError: The optimizer can't be made, or can't step, from parameters alone.
        """
        state, during_step = _optimizer_bytes(optimizer, self._trained)
        return self.held_bytes + state + max(self.peak_bytes, self.grad_bytes + during_step)


def measure(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    loss: Callable[[Any], torch.Tensor] | None = None,
    mode: str | None = None,
    train_all: bool = False,
) -> StepCost:
    """Measure a forward and a backward pass of ``model`` without computing them, and leave no trace.

    Where tensors without data can't be followed (shapes that depend on values, kernels that know
    nothing of them), the step is computed once for real, on copies of all that it could change.

    Args:
        model: Any module, on any device.
        args: Positional inputs. Tensors on the meta device stand for inputs on the model's device.
        kwargs: Keyword inputs.
        loss: From the model's output to the scalar that is differentiated. By default the output's
            own ``loss`` if it has one, or else the sum of its differentiable tensors.
        mode: ``"train"`` or ``"eval"``; by default every module as it stands.
        train_all: Measure as if every floating-point parameter were trainable.

    Raises:
        FtkitError: The model fails on these inputs; the message names the module that failed.

    Example:
        >>> import torch
        >>> from ftkit.cost import measure
        >>> cost = measure(torch.nn.Linear(32, 64), (torch.randn(4, 32),), {})
        >>> cost.forward_flops, cost.backward_flops, cost.parts[0].output_shape
        (16384, 16384, (4, 64))
    """
    run = functools.partial(_measure, model, args, kwargs, loss, mode, train_all)
    on_meta = any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    real = lazy = None
    try:
        if any(nn.parameter.is_lazy(tensor) for tensor in [*model.parameters(), *model.buffers()]):
            lazy = _initialized(model, args, kwargs)
        if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
            real = "TorchScript runs on real tensors only"
        try:
            return run(lazy, real)
        except _FailedStep as failure:
            if real or on_meta:
                raise
            real = failure.why_real()
        return run(lazy, real)
    except _FailedStep as failure:
        raise FtkitError(failure.explained(on_meta)) from failure.cause


class _FailedStep(Exception):  # noqa: N818  (never leaves this module)
    """A failed forward or backward pass, with the module and the operator in which it failed."""

    def __init__(self, cause: Exception, model: nn.Module, meter: _Meter) -> None:
        super().__init__(cause)
        self.cause = cause
        self.operator = str(meter.stuck_at)
        module, called = meter.failed or (model, None)
        name = next((name for name, one in model.named_modules() if one is module), "")
        self.place = type(model).__name__ + (f" failed in {name!r}, a {type(module).__name__}" if name else " failed")
        self.place += f" called with {called}" if called else ""

    def why_real(self) -> str:
        """Say what can't be followed on tensors without data."""
        if self._lacks_fake():
            return f"{self.operator} has no fake kernel; {self._registering()} would spare it"
        if isinstance(self.cause, DataDependentOutputException | DynamicOutputShapeException):
            return f"{self.operator} depends on values"
        return f"without data, {self._said()}"

    def explained(self, on_meta: bool) -> str:
        """Say what failed, and what to do."""
        text = f"{self.place}: {self._said()}. "
        if self._lacks_fake():
            return text + f"Register a fake kernel: {self._registering()}."
        if "Expected tensor for argument #1 'indices'" in text:
            return text + "Tokens are integers: pass dtypes=torch.long, or input_data."
        if on_meta:
            text += "A model on the meta device has no values that could decide a shape or a branch. "
        return text + "Expected the inputs that its forward() takes: input_data passes any of them."

    def _said(self) -> str:
        said = str(self.cause).strip().split("\n")[0][:300].rstrip(".")
        return f"{type(self.cause).__name__}: {said}" if said else type(self.cause).__name__

    def _lacks_fake(self) -> bool:
        return isinstance(self.cause, UnsupportedOperatorException) or "no fake impl registered" in str(self.cause)

    def _registering(self) -> str:
        return f"torch.library.register_fake({self.operator.rsplit('.', 1)[0].replace('.', '::')!r})"


def _measure(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    loss: Callable[[Any], torch.Tensor] | None,
    mode: str | None,
    train_all: bool,
    lazy: dict[int, torch.Size] | None,
    real: str | None,
) -> StepCost:
    modules = list(model.modules())
    cost = StepCost([Part() for _ in modules], lazy=lazy or {}, real=real)
    meter = _Meter(None if real else FakeTensorMode(allow_non_fake_inputs=True))
    meter.parts = {id(module): part for module, part in zip(modules, cost.parts, strict=True)}
    with _LOCK, _untouched(modules):
        stand_ins = _StandIns(model, meter, cost.lazy, train_all)
        inputs, keywords = stand_ins.install(modules, args, kwargs)
        stand_ins.adopt()
        if mode is not None:
            model.train(mode == "train")
        output = scalar = None
        try:
            with meter.running():
                with torch.autograd.graph.saved_tensors_hooks(meter.pack, _as_it_is):
                    output = meter.call(model, inputs, keywords)
                    scalar = (loss or _default_loss)(output)
                if isinstance(scalar, torch.Tensor) and scalar.requires_grad:
                    meter.in_backward = True
                    stand_ins.backward(scalar)
        except Exception as error:
            raise _FailedStep(error, model, meter) from error
        finally:
            output = scalar = None
        cost.held_bytes = stand_ins.held_bytes()
        cost.peak_bytes = meter.peak
        cost.grad_bytes, cost._trained = stand_ins.gradients()
    cost.forward_flops, cost.backward_flops, cost.saved_bytes = meter.roll_up()
    return cost


def _initialized(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[int, torch.Size]:
    """Return the shapes that the lazy parameters and buffers of ``model`` get on these inputs."""
    modules = list(model.modules())
    with _LOCK, _untouched(modules):
        meter = _Meter(None)
        stand_ins = _StandIns(model, meter, {}, train_all=False)
        inputs, keywords = stand_ins.install(modules, args, kwargs)
        try:
            with torch.no_grad():
                model(*inputs, **keywords)
        except Exception as error:
            raise _FailedStep(error, model, meter) from error
        return stand_ins.initialized()


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _default_loss(output: Any) -> torch.Tensor | None:
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(own, torch.Tensor) and own.requires_grad and own.numel() == 1:
        return own
    tensors = [tensor.real if tensor.is_complex() else tensor for tensor in tensors_in(output) if tensor.requires_grad]
    return functools.reduce(torch.add, [tensor.sum() for tensor in tensors]) if tensors else None


def tensors_in(tree: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested lists, tuples, mappings, dataclasses and registered pytrees, in order.

    Example:
        >>> import torch
        >>> from ftkit.cost import tensors_in
        >>> [tuple(tensor.shape) for tensor in tensors_in({"a": [torch.ones(2)], "b": (None, torch.ones(3, 4))})]
        [(2,), (3, 4)]
    """
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from tensors_in(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from tensors_in(value)
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for one in dataclasses.fields(tree):
            yield from tensors_in(getattr(tree, one.name, None))
    elif tree is not None and not isinstance(tree, str | int | float):
        leaves = tree_leaves(tree)
        if leaves and leaves[0] is not tree:
            yield from tensors_in(leaves)


def _shapes(tree: Any) -> Shapes:
    found = tuple(tuple(tensor.shape) for tensor in tensors_in(tree))
    return found[0] if len(found) == 1 else found or None


# ---------------------------------------------------------------- nothing stays changed

_LOCK = threading.RLock()  # the random states and nn.Module.__call__ belong to the whole process
_CONTAINERS = (dict, OrderedDict, defaultdict, list, set)


@contextlib.contextmanager
def _untouched(modules: list[nn.Module]) -> Iterator[None]:
    """Put back, whatever happens, all that running the modules can change in them and around them."""
    undo: list[Callable[[], object]] = [gc.enable] if gc.isenabled() else []
    gc.disable()  # a collection in between would take longer than all the rest, and blur what is alive when
    undo += [_undo(module) for module in modules]
    undo.append(functools.partial(torch.set_rng_state, torch.get_rng_state()))
    undo.append(functools.partial(random.setstate, random.getstate()))
    if numpy := sys.modules.get("numpy"):
        undo.append(functools.partial(numpy.random.set_state, numpy.random.get_state()))
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        undo.append(functools.partial(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    undo.append(functools.partial(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()))
    undo.append(torch.clear_autocast_cache)
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # training never takes it, and it hides the layers
        with warnings.catch_warnings(), torch.inference_mode(False), torch.enable_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        for step in undo:
            step()


def _undo(module: nn.Module) -> Callable[[], None]:
    if isinstance(module, torch.jit.ScriptModule):
        buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers(recurse=False)]

        def rewrite() -> None:
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.detach().copy_(before)

        return rewrite
    kind, state = type(module), dict(vars(module))
    containers = [(one, one.copy()) for one in state.values() if type(one) in _CONTAINERS]

    def restore() -> None:
        for container, content in containers:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(content)
        own = vars(module)
        own.clear()
        own.update(state)
        if type(module) is not kind:  # a lazy module becomes another class
            object.__setattr__(module, "__class__", kind)

    return restore


class _StandIns:
    """Stand-ins for the tensors of a model and of its inputs, so that the real ones stay as they are.

    They hold no data if the meter fakes. Otherwise parameters share the real memory, and all that a
    forward pass may write to is a copy.
    """

    def __init__(self, model: nn.Module, meter: _Meter, lazy: dict[int, torch.Size], train_all: bool) -> None:
        self._meter = meter
        self._lazy = lazy
        self._train_all = train_all
        self._made: dict[int, torch.Tensor] = {}
        self._originals: list[torch.Tensor] = []  # so that the identities in _made stay taken
        self._parameters = list(model.parameters())
        self._fixed: list[torch.Tensor] = []  # of TorchScript, which takes no stand-ins
        real = (tensor.device for tensor in [*self._parameters, *model.buffers()] if not tensor.is_meta)
        self._home = next(real, torch.device("cpu"))

    def install(
        self, modules: list[nn.Module], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Put the stand-ins into the modules; return the inputs as stand-ins."""
        for module in modules:
            if isinstance(module, torch.jit.ScriptModule):
                self._fixed += [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        self._made = {id(tensor): tensor for tensor in self._fixed}
        for parameter in self._parameters:
            self._of(parameter, trained=parameter.requires_grad or (self._train_all and _can_train(parameter)))
        for module in modules:
            if not isinstance(module, torch.jit.ScriptModule):
                self._fill(vars(module))
        inputs: tuple[tuple[Any, ...], dict[str, Any]] = tree_map_only(
            torch.Tensor, lambda tensor: self._of(tensor, tensor.requires_grad), (tuple(args), dict(kwargs))
        )
        return inputs

    def adopt(self) -> None:
        """Have the meter take all stand-ins for what was there before the step."""
        for stand_in in self._made.values():
            self._meter.adopt(stand_in)

    def _fill(self, state: dict[str, Any]) -> None:
        for table in (state["_parameters"], state["_buffers"]):
            for name, tensor in table.items():
                if tensor is not None:
                    table[name] = self._of(tensor)
        for name in state.keys() - {"_parameters", "_buffers", "_modules"}:
            value = state[name]
            inside = value.values() if type(value) is dict else value if type(value) in (list, tuple) else (value,)
            if any(isinstance(one, torch.Tensor) for one in inside):
                state[name] = tree_map_only(torch.Tensor, self._of, value)

    def _of(self, tensor: torch.Tensor, trained: bool = False) -> torch.Tensor:
        made = self._made.get(id(tensor))
        if made is None:
            made = self._fake(tensor, trained) if self._meter.fakes else self._copy(tensor, trained)
            if isinstance(tensor, nn.Parameter):
                vars(made).update(vars(tensor))  # marks that optimizers and layers read
                made._is_param = True  # what isinstance(_, nn.Parameter) looks at
            self._made[id(tensor)] = made
            self._originals.append(tensor)
        return made

    def _fake(self, tensor: torch.Tensor, trained: bool) -> torch.Tensor:
        device = self._home if tensor.is_meta else tensor.device
        if id(tensor) in self._lazy:
            empty = torch.empty(self._lazy[id(tensor)], dtype=tensor.dtype, device="meta")
            return self._meter.fake(_Spec.of(empty, device), trained)
        if tensor.is_meta or _is_plain(tensor):
            return self._meter.fake(_Spec.of(tensor, device), trained)
        return self._meter.converted(tensor).requires_grad_(trained)

    def _copy(self, tensor: torch.Tensor, trained: bool) -> torch.Tensor:
        if nn.parameter.is_lazy(tensor):
            uninitialized: Any = type(tensor)
            blank: torch.Tensor = uninitialized(device=tensor.device, dtype=tensor.dtype)
            return blank
        if tensor.is_meta:
            values = torch.zeros(tensor.shape, dtype=tensor.dtype, device=self._home)
            if tensor.dtype.is_floating_point:
                values.normal_(generator=torch.Generator(self._home).manual_seed(0))
            return values.requires_grad_(trained)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(tensor.detach(), requires_grad=trained)
        return tensor.detach().clone().requires_grad_(trained)

    def backward(self, scalar: torch.Tensor) -> None:
        """Run the backward pass from ``scalar``."""
        if not self._fixed:
            scalar.backward()  # type: ignore[no-untyped-call]
            return
        leaves = [self._made[id(one)] for one in self._parameters if self._made[id(one)].requires_grad]
        torch.autograd.grad(scalar, leaves, allow_unused=True)  # the .grad of script parameters is the user's

    def held_bytes(self) -> int:
        """The bytes of parameters, buffers and inputs, shared memory counted once."""
        return sum({key: size for one in self._made.values() for key, size in _storages(one)}.values())

    def gradients(self) -> tuple[int, list[tuple[_Spec, bool]]]:
        """The bytes of the gradients; the trainable parameters, and whether each got a gradient."""
        trained = [self._made[id(one)] for one in self._parameters if self._made[id(one)].requires_grad]
        grads = [one.grad for one in trained]
        if self._fixed:  # autograd.grad leaves none behind
            grads = list(trained)
        size = sum(grad.numel() * grad.element_size() for grad in grads if grad is not None)
        specs = [_Spec.of(one, self._home if one.is_meta else one.device) for one in trained]
        return size, [(spec, grad is not None) for spec, grad in zip(specs, grads, strict=True)]

    def initialized(self) -> dict[int, torch.Size]:
        """The shapes of what was uninitialized, by the identity of the original."""
        return {id(one): self._made[id(one)].shape for one in self._originals if nn.parameter.is_lazy(one)}


def _can_train(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether shape, strides and dtype say all there is to say of a tensor."""
    return (
        type(tensor) in (torch.Tensor, nn.Parameter, nn.Buffer)
        and tensor.layout is torch.strided
        and not tensor.is_quantized
        and not tensor.is_conj()
        and not tensor.is_neg()
        and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    )


def _storages(tensor: torch.Tensor) -> Iterable[tuple[int, int]]:
    try:
        storage = tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # sparse and opaque layouts have none of their own
        return [(id(tensor), tensor.numel() * tensor.element_size())]
    return [(storage._cdata, storage.nbytes())]


# ---------------------------------------------------------------- the meter


class _Spec(NamedTuple):
    """All that a tensor without data is."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    offset: int | torch.SymInt = 0

    @staticmethod
    def of(tensor: torch.Tensor, device: torch.device) -> _Spec:
        return _Spec(tensor.shape, tensor.stride(), tensor.dtype, device, tensor.storage_offset())


class _Known(NamedTuple):
    """What an operator gives back on arguments like those that it was once called with."""

    flops: int
    scratch: int
    single: bool
    outputs: list[_Spec | None]
    same: int | None  # it gives back this argument
    base: int | None  # its outputs are views of this argument


class _Frame:
    """One call of a module."""

    __slots__ = ("backward", "forward", "parent", "part", "saved")

    def __init__(self, part: Part | None, parent: _Frame | None) -> None:
        self.part = part
        self.parent = parent
        self.forward = self.backward = self.saved = 0


class _Watch(weakref.ref[torch.UntypedStorage]):
    """Tells when a storage dies."""

    __slots__ = ("key", "size")
    key: int
    size: int


_DEVICE_OF = torch.ops.prim.device.default
_ITEM = torch.ops.aten._local_scalar_dense.default
_KNOWN: dict[Any, _Known] = {}
_MOST_KNOWN = 20_000


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # its __init_subclass__
    """Counts FLOPs and follows live storages under every operator, forward and backward.

    It answers by itself what an operator gives back for arguments like those it has met before:
    FakeTensorMode, which it asks the first time, takes several times as long.
    """

    def __init__(self, fake: FakeTensorMode | None, *, answers_items: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fakes = fake
        self.parts: dict[int, Part] = {}
        self.in_backward = False
        self.failed: tuple[nn.Module, Shapes] | None = None
        self.stuck_at: Any = None
        self.peak = 0
        self._answers_items = answers_items
        self._current = 0
        self._live: dict[int, _Watch | None] = {}
        self._saved: set[int] = set()
        self._templates: dict[torch.device, dict[str, Any]] = {}
        self._outside = self._frame = _Frame(None, None)
        self._frames = [self._outside]
        self._marks: list[tuple[int, _Frame]] = [(0, self._outside)]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the wrapper that it would put around every operator costs more than the meter

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Measure every operator, and every module that is called, in this thread."""
        original = nn.Module.__call__
        thread = threading.get_ident()

        @functools.wraps(original)
        def through_meter(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return original(module, *args, **kwargs)
            return self.call(module, args, kwargs)

        try:
            nn.Module.__call__ = through_meter  # type: ignore[method-assign]  # global hooks see no keywords
            with self.fakes or contextlib.nullcontext(), self:
                yield
        finally:
            nn.Module.__call__ = original  # type: ignore[method-assign]

    def call(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call a module and note what it did."""
        part = self.parts.get(id(module))
        outer = self._frame
        frame = self._frame = _Frame(part, outer)
        self._frames.append(frame)
        self._mark(frame)
        # What torch.compile wraps: its graph would hide the layers. (TorchScript's dict knows no get.)
        compiled = module._modules["_orig_mod"] if "_orig_mod" in module._modules else None  # noqa: SIM401
        try:
            output = (compiled or module._call_impl)(*args, **kwargs)  # type: ignore[no-untyped-call]
        except Exception:
            if self.failed is None:
                self.failed = module, _shapes((args, kwargs))
            raise
        finally:
            self._frame = outer
            self._mark(outer)
        self.failed = None
        if part is not None and not self.in_backward:
            if not part.calls:
                part.input_shape, part.output_shape = _shapes((args, kwargs)), _shapes(output)
            part.calls += 1
            part.training = module.training
            part.differentiable |= any(tensor.requires_grad for tensor in tensors_in(output))
        return output

    def _mark(self, frame: _Frame) -> None:
        """Note that autograd's nodes belong to ``frame`` from here on."""
        if not self.in_backward:
            self._marks.append((torch._C._autograd._get_sequence_nr(), frame))

    def _source(self) -> _Frame:
        """The call whose operator is being differentiated."""
        node = torch._C._current_autograd_node() if self._frame is self._outside else None
        if node is None:
            return self._frame
        return self._marks[bisect.bisect_right(self._marks, node._sequence_nr(), key=lambda mark: mark[0]) - 1][1]

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """Note a tensor that autograd keeps for the backward pass."""
        for key, size in _storages(tensor):
            if key not in self._saved and not (key in self._live and self._live[key] is None):
                self._saved.add(key)
                self._frame.saved += size
        return tensor

    def adopt(self, tensor: torch.Tensor) -> None:
        """Take a tensor for one that was there before the step."""
        for key, _ in _storages(tensor):
            self._live[key] = None

    def restart(self) -> int:
        """Start the peak anew; return what is alive now."""
        self.peak = self._current
        return self._current

    def roll_up(self) -> tuple[int, int, int]:
        """Add what calls did to their modules and to all around; return the totals."""
        for frame in self._frames:
            if not (frame.forward or frame.backward or frame.saved):
                continue
            around: dict[int, Part] = {}
            step: _Frame | None = frame
            while step is not None:
                if step.part is not None:
                    around[id(step.part)] = step.part
                step = step.parent
            for part in around.values():
                part.forward_flops += frame.forward
                part.backward_flops += frame.backward
                part.saved_bytes += frame.saved
        return (
            sum(frame.forward for frame in self._frames),
            sum(frame.backward for frame in self._frames),
            sum(frame.saved for frame in self._frames),
        )

    # ---------------- tensors without data

    def fake(self, spec: _Spec, requires_grad: bool = False) -> torch.Tensor:
        """Make a tensor without data."""
        guard = torch._C._DisableTorchDispatch()
        try:
            elem = torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device="meta")
        finally:
            del guard
        return self._dress(elem, spec.device, requires_grad)

    def _dress(self, elem: torch.Tensor, device: torch.device, requires_grad: bool = False) -> torch.Tensor:
        # FakeTensor's constructor, less its checks: they would take half of the time of a summary.
        template = self._templates.get(device)
        if template is None:
            guard = torch._C._DisableTorchDispatch()
            try:
                blank = FakeTensor(self.fakes, torch.empty(0, device="meta"), device)
            finally:
                del guard
            template = self._templates[device] = dict(vars(blank))
        made: torch.Tensor = torch.Tensor._make_subclass(
            FakeTensor, elem, requires_grad, dispatch_device=True, device_for_backend_keys=device
        )
        vars(made).update(template)
        return made

    def converted(self, tensor: torch.Tensor) -> torch.Tensor:
        """Make a stand-in of a tensor that is more than shape, strides and dtype."""
        assert self.fakes is not None
        return self.fakes.from_tensor(tensor)

    # ---------------- operators

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is _DEVICE_OF and type(args[0]) is FakeTensor:
            return args[0].fake_device
        if func is _ITEM and self._answers_items:
            kind = args[0].dtype  # step counters, mostly
            return 1.0 if kind.is_floating_point else True if kind is torch.bool else 1
        kwargs = kwargs or {}
        key = _key(func, args, kwargs) if self.fakes else None
        known = None if key is None else _KNOWN.get(key)
        if known is None:
            try:
                output = func(*args, **kwargs)
            except Exception:
                self.stuck_at = func
                raise
            flops, scratch = _flops(func, args, kwargs, output), 0
            if key is not None and (entry := _entry(func, args, output, flops, scratch)):
                if len(_KNOWN) >= _MOST_KNOWN:
                    _KNOWN.clear()
                _KNOWN[key] = entry
            for tensor in (output,) if isinstance(output, torch.Tensor) else tensors_in(output):
                self._watch(tensor)
        else:
            flops, scratch = known.flops, known.scratch
            output = self._again(known, args)
        if flops:
            if self.in_backward:
                self._source().backward += flops
            else:
                self._frame.forward += flops
        if scratch:
            self.peak = max(self.peak, self._current + scratch)
        return output

    def _again(self, known: _Known, args: tuple[Any, ...]) -> Any:
        if known.same is not None:
            return args[known.same]
        made: list[torch.Tensor | None] = []
        guard = torch._C._DisableTorchDispatch()
        try:
            storage = None if known.base is None else args[known.base].untyped_storage()
            for spec in known.outputs:
                if spec is None:
                    made.append(None)
                elif storage is None:
                    made.append(torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device="meta"))
                else:
                    blank = torch.empty(0, dtype=spec.dtype, device="meta")
                    made.append(blank.set_(storage, spec.offset, spec.shape, spec.stride))
        finally:
            del guard
        for index, (elem, spec) in enumerate(zip(made, known.outputs, strict=True)):
            if elem is not None and spec is not None:
                made[index] = dressed = self._dress(elem, spec.device)
                if storage is None:
                    self._watch(dressed)
        return made[0] if known.single else made

    def _watch(self, tensor: torch.Tensor) -> None:
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # sparse and opaque layouts
            return
        key = storage._cdata
        if key in self._live:
            return
        watch = _Watch(storage, self._gone)
        watch.key, watch.size = key, storage.nbytes()
        self._live[key] = watch
        self._current += watch.size
        self.peak = max(self.peak, self._current)

    def _gone(self, watch: weakref.ref[torch.UntypedStorage]) -> None:
        assert isinstance(watch, _Watch)
        self._current -= watch.size
        self._live.pop(watch.key, None)
        self._saved.discard(watch.key)


def _key(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What decides the shapes that an operator gives back; None if values could, too."""
    key: list[Any] = [func]
    try:
        for value in args if not kwargs else (*args, *kwargs.items()):
            kind = type(value)
            if kind is FakeTensor:
                if value.constant is not None or value.dtype.is_complex:
                    return None
                key.append((value.shape, value.stride(), value.storage_offset(), value.dtype, value._fake_device))
            elif kind is list or (kind is tuple and not kwargs):
                if value and isinstance(value[0], torch.Tensor | None):
                    inner = _key(None, tuple(value), {})
                    if inner is None:
                        return None
                    key.append(inner)
                else:
                    key.append(tuple(value))
            elif isinstance(value, torch.Tensor) or (kind is tuple and isinstance(value[-1], torch.Tensor)):
                return None
            else:
                key.append((kind, value))
        found = tuple(key)
        hash(found)
    except (RuntimeError, TypeError):  # a layout without strides; a value that can't be hashed
        return None
    return found


_VALUES_DECIDE = {
    tag
    for name in ("data_dependent_output", "dynamic_output_shape", "nondeterministic_seeded", "inplace_view")
    if (tag := getattr(torch.Tag, name, None)) is not None
} - {torch.Tag.nondeterministic_seeded}


def _entry(func: Any, args: tuple[Any, ...], output: Any, flops: int, scratch: int) -> _Known | None:
    """What to remember of an operator's result; None if it is not safe to give again."""
    if func.namespace not in ("aten", "prims") or _VALUES_DECIDE.intersection(func.tags):
        return None
    single = isinstance(output, torch.Tensor)
    outputs = [output] if single else output
    if not isinstance(outputs, list | tuple):
        return None
    same = next((index for index, arg in enumerate(args) if arg is output), None) if single else None
    if same is not None:
        return _Known(flops, scratch, single, [], same, None)
    specs: list[_Spec | None] = []
    storages: set[int] = set()
    for one in outputs:
        if one is None:
            specs.append(None)
            continue
        if type(one) is not FakeTensor or one.constant is not None or one.dtype.is_complex:
            return None
        if one.layout is not torch.strided or one.is_neg():
            return None
        specs.append(_Spec.of(one, one.fake_device))
        storages.add(one.untyped_storage()._cdata)
    if any(returned.alias_info is not None for returned in func._schema.returns):
        base = args[0] if args else None
        if type(base) is not FakeTensor or storages != {base.untyped_storage()._cdata} or base.is_neg():
            return None
        return _Known(flops, scratch, single, specs, None, 0)
    taken = {arg.untyped_storage()._cdata for arg in args if type(arg) is FakeTensor and arg.layout is torch.strided}
    if len(storages) != sum(spec is not None for spec in specs) or storages & taken:
        return None
    return _Known(flops, scratch, single, specs, None, None)


# ---------------------------------------------------------------- FLOPs

_aten = torch.ops.aten


def _matmul_flops(args: tuple[Any, ...], at: int) -> int:
    """2 * m * k * n of ``args[at] @ args[at + 1]``, batches and grouped products included."""
    left, right = args[at], args[at + 1]
    columns = 1 if right.dim() == 1 else right.shape[-1]
    groups = left.shape[0] if left.dim() == 3 and right.dim() == 2 else 1  # each group has its own columns
    return int(2 * left.numel() * columns // groups)


def _attention_flops(args: tuple[Any, ...], at: int) -> int:
    """The two products of attention, queries at ``args[at]``; what a kernel computes again is not counted."""
    query, key, value = args[at : at + 3]
    rows = math.prod(query.shape[:-1])
    return int(2 * rows * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


def _rnn_flops(source: torch.Tensor, weights: Iterable[torch.Tensor | None]) -> int:
    """Every step multiplies by every weight matrix."""
    steps = math.prod(source.shape[:-1])
    matrices = [weight for weight in weights if weight is not None and weight.dim() > 1]
    return int(2 * steps * sum(weight.numel() for weight in matrices))


def _encoder_layer_flops(args: tuple[Any, ...], weights: tuple[int, ...]) -> int:
    source = args[0]
    batch, length, width = source.shape
    products = sum(2 * batch * length * args[index].numel() for index in weights)
    return int(products + 4 * batch * length * length * width)


def _quantized_flops(output: torch.Tensor, packed: Any, *, convolution: bool) -> int:
    weight = packed.unpack()[0] if hasattr(packed, "unpack") else packed.__getstate__()[0]
    per_output = math.prod(weight.shape[1:])
    return int(2 * output.numel() * per_output) if convolution or weight.dim() == 2 else 0


_Formula: TypeAlias = Callable[[tuple[Any, ...], Any], int]

_FORMULAS: dict[str, _Formula] = {
    "aten::mv": lambda args, _: _matmul_flops(args, 0),
    "aten::addmv": lambda args, _: _matmul_flops(args, 1),
    "aten::dot": lambda args, _: 2 * args[0].numel(),
    "aten::vdot": lambda args, _: 2 * args[0].numel(),
    "aten::addbmm": lambda args, _: _matmul_flops(args, 1),
    "aten::_addmm_activation": lambda args, _: _matmul_flops(args, 1),
    "aten::_int_mm": lambda args, _: _matmul_flops(args, 0),
    "aten::_grouped_mm": lambda args, _: _matmul_flops(args, 0),
    "aten::_scaled_grouped_mm": lambda args, _: _matmul_flops(args, 0),
    "aten::_trilinear": lambda args, _: _trilinear_flops(args),
    "aten::mkldnn_rnn_layer": lambda args, _: _rnn_flops(args[0], args[1:5]),
    "aten::mkldnn_rnn_layer_backward": lambda args, _: 2 * _rnn_flops(args[0], args[1:5]),
    "aten::_cudnn_rnn": lambda args, _: _rnn_flops(args[0], args[1]),
    "aten::_cudnn_rnn_backward": lambda args, _: 2 * _rnn_flops(args[0], args[1]),
    "aten::miopen_rnn": lambda args, _: _rnn_flops(args[0], args[1]),
    "aten::miopen_rnn_backward": lambda args, _: 2 * _rnn_flops(args[0], args[1]),
    "aten::_native_multi_head_attention": lambda args, _: _encoder_layer_flops(args, (5, 7)),
    "aten::_transformer_encoder_layer_fwd": lambda args, _: _encoder_layer_flops(args, (3, 5, 14, 16)),
}
for _kernel in ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention"):
    _FORMULAS[f"aten::_scaled_dot_product_{_kernel}"] = lambda args, _: _attention_flops(args, 0)
    _FORMULAS[f"aten::_scaled_dot_product_{_kernel}_backward"] = lambda args, _: 2 * _attention_flops(args, 1)
_FORMULAS["aten::_scaled_dot_product_fused_attention_overrideable"] = lambda args, _: _attention_flops(args, 0)
_FORMULAS["aten::_scaled_dot_product_fused_attention_overrideable_backward"] = lambda args, _: (
    2 * _attention_flops(args, 1)
)


def _trilinear_flops(args: tuple[Any, ...]) -> int:
    """A multiply-add for each element of the three operands' common shape."""
    shapes = []
    for operand, expanded in zip(args[:3], args[3:6], strict=True):
        shape = list(operand.shape)
        for dim in sorted(expanded):
            shape.insert(dim, 1)
        shapes.append(shape)
    return 2 * math.prod(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]


def _flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> int:
    """Count as torch does, and by formulas of our own where it is silent."""
    packet = getattr(func, "_overloadpacket", func)
    name = func._schema.name if hasattr(func, "_schema") else ""
    if name in _FORMULAS:
        return _FORMULAS[name](args, output)
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=output))
    if name.startswith(("quantized::linear", "quantized::conv")) and isinstance(output, torch.Tensor):
        return _quantized_flops(output, args[1], convolution="conv" in name)
    return 0


# ---------------------------------------------------------------- the optimizer's step


def _optimizer_bytes(make: OptimizerLike, trained: list[tuple[_Spec, bool]]) -> tuple[int, int]:
    """The bytes of an optimizer's state, and the most that one step takes on top of it."""
    meter = _Meter(FakeTensorMode(allow_non_fake_inputs=True), answers_items=True)
    with _LOCK, _untouched([]):
        parameters = []
        for spec, _ in trained:
            parameter = meter.fake(spec, requires_grad=True)
            parameter._is_param = True
            parameters.append(parameter)
        grads = {id(parameter) for parameter, (_, got_grad) in zip(parameters, trained, strict=True) if got_grad}
        try:
            with meter.running():
                optimizer = make if isinstance(make, torch.optim.Optimizer) else make(parameters)  # type: ignore[arg-type]
                if any(type(one) is not FakeTensor for group in optimizer.param_groups for one in group["params"]):
                    optimizer = _imitated(optimizer, meter)
                    grads = {
                        id(one) for group in optimizer.param_groups for one in group["params"] if one.requires_grad
                    }
                for group in optimizer.param_groups:
                    for one in group["params"]:
                        if id(one) in grads:
                            one.grad = torch.empty_like(one)
                optimizer.step()
                own = {key for group in optimizer.param_groups for one in group["params"] for key, _ in _storages(one)}
                state = {
                    key: size
                    for tensor in tensors_in(list(optimizer.state.values()))
                    for key, size in _storages(tensor)
                    if key not in own
                }
                before = meter.restart()
                optimizer.step()
        except Exception as error:
            name = getattr(make, "__name__", type(make).__name__)
            said = str(error).strip().split("\n")[0][:300].rstrip(".")
            raise FtkitError(
                f"A step of {name} can't be foreseen: {type(error).__name__}: {said}. Expected an optimizer, its class "
                "or a function that makes it of a list of parameters, such as lambda p: torch.optim.SGD(p, lr=0.1)."
            ) from error
    return sum(state.values()), meter.peak - before


def _imitated(optimizer: torch.optim.Optimizer, meter: _Meter) -> torch.optim.Optimizer:
    """A copy of an optimizer that steps on tensors without data."""
    made: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            device = torch.device("cpu") if tensor.is_meta else tensor.device
            made[id(tensor)] = meter.fake(_Spec.of(tensor, device), tensor.requires_grad)
        return made[id(tensor)]

    twin = copy.copy(optimizer)
    twin.param_groups = [tree_map_only(torch.Tensor, fake, group) for group in optimizer.param_groups]
    twin.state = defaultdict(dict)
    for parameter, state in optimizer.state.items():
        twin.state[fake(parameter)] = tree_map_only(torch.Tensor, fake, state)
    for name in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
        if hasattr(twin, name):
            setattr(twin, name, OrderedDict())
    return twin
