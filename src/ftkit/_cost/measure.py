"""What a training step costs: FLOPs and bytes of forward, backward and optimizer, before it is run."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import nn

from ftkit._cost.fakes import Fakes, Substitutes, TensorSpec, memory_of
from ftkit._cost.meter import Meter, ModuleCost
from ftkit._models.dryrun import tensors_in, untouched
from ftkit._torch import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    UnsupportedOperatorException,
    as_parameter,
    tree_map_only,
    without_step_hooks,
)
from ftkit._wording import cause
from ftkit.errors import FtkitError

OptimizerLike: TypeAlias = torch.optim.Optimizer | Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""An optimizer, or what makes one from a list of parameters: a class, or a function."""


@dataclass
class StepCost:
    """What one training step costs.

    Attributes:
        modules: One for each module, in the order of ``model.modules()``.
        forward_flops: Of the model and the loss.
        backward_flops: Of the model and the loss.
        saved_bytes: Kept from the forward pass for the backward pass, by the loss too; parameters, buffers
            and inputs aside.
        held_bytes: Parameters, buffers and inputs: there before the step, and after it.
        peak_bytes: The most that the forward and backward passes hold on top, gradients included.
        grad_bytes: The gradients left when the backward pass is done.
        lazy: The shapes that uninitialized parameters got, by identity.
        real: Why the step was computed with real tensors, or None.
    """

    modules: list[ModuleCost]
    forward_flops: int = 0
    backward_flops: int = 0
    saved_bytes: int = 0
    held_bytes: int = 0
    peak_bytes: int = 0
    grad_bytes: int = 0
    lazy: dict[int, torch.Size] = field(default_factory=dict)
    real: str | None = None
    _trained: list[tuple[TensorSpec, int | None]] = field(default_factory=list, repr=False)

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
    sizes_only: bool = False,
) -> StepCost:
    """Measure a forward and a backward pass of ``model`` without computing them, and leave no trace.

    Where tensors without data can't be followed (shapes that depend on values, kernels that know
    nothing of them), the step is computed once for real, on copies of all that it could change.

    Args:
        model: Any module, on any device.
        args: Positional inputs. Tensors on the meta device stand for inputs on the model's device.
        kwargs: Keyword inputs.
        loss: Maps the model's output to the scalar that is differentiated. By default the output's
            own ``loss`` if it has one. Otherwise the cross-entropy of its ``logits``, or of its only
            tensor if that has several classes (the last dimension of a 3-D tensor, else the second),
            plus the sum of everything else in it that is differentiable.
        mode: ``"train"`` or ``"eval"``; by default each module's current mode.
        train_all: Measure as if every floating-point parameter were trainable.
        sizes_only: Whoever asks can give other sizes of the inputs, not other inputs; a message says so.

    Raises:
        FtkitError: The model fails on these inputs; the message names the module that failed.

    Example:
        >>> import torch
        >>> from ftkit._cost.measure import measure
        >>> cost = measure(torch.nn.Linear(32, 64), (torch.randn(4, 32),), {})
        >>> cost.forward_flops, cost.backward_flops, cost.modules[0].output_shape
        (16384, 16384, (4, 64))
    """
    tensors = [*model.parameters(), *model.buffers()]
    on_meta = any(tensor.is_meta for tensor in tensors)
    plan = _Plan(model, args, kwargs, loss, mode, train_all)
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        plan = replace(plan, real="TorchScript runs on real tensors only")
    try:
        if any(map(nn.parameter.is_lazy, tensors)):
            plan = replace(plan, lazy=_initialized(model, args, kwargs))
        while True:
            try:
                return _measured(plan)
            except _FailedStep as failure:
                if plan.hooks and "support saved tensor hooks" in str(failure.cause):  # torch.func's derivatives
                    plan = replace(plan, hooks=False)
                elif plan.real or on_meta:
                    raise
                else:
                    plan = replace(plan, real=failure.why_real())
    except _FailedStep as failure:
        raise FtkitError(failure.explained(on_meta, sizes_only=sizes_only)) from failure.cause


class _FailedStep(Exception):  # noqa: N818  (never leaves this module)
    """A failed forward or backward pass, with the module and the operator in which it failed."""

    def __init__(self, cause: Exception, model: nn.Module, meter: Meter, stage: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.stage = stage
        self.operator = str(meter.stuck_at)
        module, called = meter.failed or (model, None)
        name = next((name for name, one in model.named_modules() if one is module), "")
        self.place = type(model).__name__ + (f" failed in {name!r}, a {type(module).__name__}" if name else " failed")
        self.place += f" called with {called}" if called else ""
        if stage and not called:
            self.place = f"The {stage} of {type(model).__name__} failed"

    def why_real(self) -> str:
        """Say what can't be followed on tensors without data."""
        if self._lacks_fake():
            return f"{self.operator} has no fake kernel; {self._registering()} would avoid this"
        if isinstance(self.cause, DataDependentOutputException | DynamicOutputShapeException):
            return f"{self.operator} depends on values"
        return f"without data, {_first_line(self.cause)}"

    def explained(self, on_meta: bool, *, sizes_only: bool) -> str:
        """Say what failed, and what to do."""
        text = f"{self.place}: {_first_line(self.cause)}. "
        if self._lacks_fake():
            return text + f"Register a fake kernel: {self._registering()}."
        if "Expected tensor for argument #1 'indices'" in text:
            return text + "Tokens are integers: pass dtypes=torch.long" + ("." if sizes_only else ", or input_data.")
        if "more than 1 value per channel when training" in text:
            return text + "Use a batch of several examples, or pass mode='eval'."
        if on_meta and isinstance(self.cause, DataDependentOutputException | DynamicOutputShapeException):
            return text + "A model on the meta device has no values that could decide a shape or a branch."
        if self.stage:
            return text + "Expected a loss that takes the model's output and returns a scalar to differentiate."
        how = "give the shape of each in input_size, and dtypes" if sizes_only else "pass them as input_data"
        return text + f"Expected the inputs that its forward() takes: {how}."

    def _lacks_fake(self) -> bool:
        return isinstance(self.cause, UnsupportedOperatorException) or "no fake impl registered" in str(self.cause)

    def _registering(self) -> str:
        return f"torch.library.register_fake({self.operator.rsplit('.', 1)[0].replace('.', '::')!r})"


def _first_line(error: Exception) -> str:
    return cause(error).split("\n")[0][:300].rstrip(".")


@dataclass(frozen=True)
class _Plan:
    """How a step is measured: what was asked for, and what was found out on the way."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    loss: Callable[[Any], torch.Tensor] | None
    mode: str | None
    train_all: bool
    lazy: dict[int, torch.Size] = field(default_factory=dict)  # the shapes of uninitialized parameters
    real: str | None = None  # why tensors hold data, if they do
    hooks: bool = True  # they see what autograd keeps; else all that is alive counts as kept


def _measured(plan: _Plan) -> StepCost:
    model, modules = plan.model, list(plan.model.modules())
    cost = StepCost([ModuleCost() for _ in modules], lazy=plan.lazy, real=plan.real)
    fakes = None if plan.real else Fakes()
    meter = Meter(fakes)
    meter.costs = {id(module): own for module, own in zip(modules, cost.modules, strict=True)}
    with untouched(modules):
        substitutes = Substitutes(model, fakes, plan.lazy, train_all=plan.train_all)
        inputs, keywords = substitutes.install(modules, plan.args, plan.kwargs)
        meter.memory.adopt(substitutes.made.values())
        if plan.mode is not None:
            model.train(plan.mode == "train")
        output = scalar = None
        stage = ""
        try:
            with meter.running():
                hooks = torch.autograd.graph.saved_tensors_hooks(meter.pack, lambda tensor: tensor)
                with hooks if plan.hooks else contextlib.nullcontext():
                    output = meter.call(model, inputs, keywords)
                    stage = "loss"
                    scalar = (plan.loss or _default_loss)(output)
                    if plan.loss and not isinstance(scalar, torch.Tensor):
                        raise TypeError(f"it returned a {type(scalar).__name__}")
                if not plan.hooks:
                    meter.memory.keep_all_but([*tensors_in(output), scalar])
                if isinstance(scalar, torch.Tensor) and scalar.requires_grad:
                    stage = "backward pass"
                    meter.begin_backward()
                    with _out_of_autocast(scalar.device.type):
                        substitutes.backward(scalar)
        except FtkitError:  # torch lacks something: no fault of the model
            raise
        except Exception as error:
            raise _FailedStep(error, model, meter, stage) from error
        finally:
            output = scalar = None
        cost.held_bytes = substitutes.held_bytes()
        cost.peak_bytes = meter.memory.peak
        cost._trained = substitutes.gradients()
    cost.grad_bytes = sum(size or 0 for _, size in cost._trained)
    totals = meter.roll_up()
    cost.forward_flops, cost.backward_flops = totals.forward_flops, totals.backward_flops
    cost.saved_bytes = totals.saved_bytes
    return cost


def _initialized(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[int, torch.Size]:
    """Return the shapes that the lazy parameters and buffers of ``model`` get on these inputs."""
    modules = list(model.modules())
    with untouched(modules):
        copies = Substitutes(model, None, {}, train_all=False)
        inputs, keywords = copies.install(modules, args, kwargs)
        try:
            with torch.no_grad():
                model(*inputs, **keywords)
        except Exception as error:
            raise _FailedStep(error, model, Meter(None)) from error
        return copies.initialized()


def _out_of_autocast(kind: str) -> contextlib.AbstractContextManager[object]:
    """Leave autocast, as a loop does that runs its backward pass outside: the casts it remembered are freed."""
    torch.clear_autocast_cache()
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()


def _default_loss(output: Any) -> torch.Tensor | None:
    own = _differentiable(output, "loss")
    if own is not None and own.numel() == 1:
        return own
    tensors = [tensor for tensor in tensors_in(output) if tensor.requires_grad]
    logits = _differentiable(output, "logits")
    if logits is None and len(tensors) == 1:
        logits = tensors[0]
    losses = [_summed(tensor) for tensor in tensors if tensor is not logits]
    if logits is not None:
        losses.append(_cross_entropy(logits))
    return functools.reduce(torch.add, losses) if losses else None


def _differentiable(output: Any, name: str) -> torch.Tensor | None:
    found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
    return found if isinstance(found, torch.Tensor) and found.requires_grad else None


def _summed(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.real if tensor.is_complex() else tensor).sum()


def _cross_entropy(logits: torch.Tensor) -> torch.Tensor:
    """What a classifier's loss keeps, a plain sum would not: log-probabilities as large as the logits."""
    if logits.layout is not torch.strided or logits.is_nested or logits.is_complex() or logits.dim() < 2:
        return _summed(logits)
    if logits.dim() == 3:  # tokens
        logits = logits.flatten(0, 1)
    if logits.shape[1] < 2:
        return _summed(logits)
    target = torch.zeros((logits.shape[0], *logits.shape[2:]), dtype=torch.long, device=logits.device)
    return nn.functional.cross_entropy(logits, target)


def _optimizer_bytes(make: OptimizerLike, trained: list[tuple[TensorSpec, int | None]]) -> tuple[int, int]:
    """The bytes of an optimizer's state, and the most that one step takes on top of it."""
    if not trained and not isinstance(make, torch.optim.Optimizer):
        raise FtkitError("Nothing in the model trains, so that no optimizer takes a step: unfreeze a part of it first.")
    try:
        try:
            return _stepped(make, trained, 1.0)
        except (ArithmeticError, ValueError):  # it divides by 1 - x, or takes a logarithm: x is a product, no count
            return _stepped(make, trained, 0.5)
    except Exception as error:
        name = getattr(make, "__name__", type(make).__name__)
        raise FtkitError(
            f"A step of {name} can't be simulated: {_first_line(error)}. Expected an optimizer, its class "
            "or a function that makes one from a list of parameters, such as lambda p: torch.optim.SGD(p, lr=0.1), "
            "whose step needs no closure, and no values to decide on shapes."
        ) from error


def _stepped(make: OptimizerLike, trained: list[tuple[TensorSpec, int | None]], number: float) -> tuple[int, int]:
    """The same, where each floating-point ``number`` that the step reads from a tensor is this one."""
    fakes = Fakes()
    meter = Meter(fakes, item=number)
    with untouched([]):
        parameters = [as_parameter(fakes.make(spec, requires_grad=True)) for spec, _ in trained]
        with meter.running():
            for one, (_, size) in zip(parameters, trained, strict=True):
                one.grad = None if size is None else torch.empty_like(one)
            optimizer = make if isinstance(make, torch.optim.Optimizer) else make(parameters)  # type: ignore[arg-type]
            if not all(type(one) is FakeTensor for one in _parameters(optimizer)):
                optimizer = _on_fakes(optimizer, fakes)
            optimizer.step()
            state = dict(map(memory_of, tensors_in(list(optimizer.state.values()))))
            for one in _parameters(optimizer):
                state.pop(memory_of(one)[0], None)  # which some keep there too
            before = meter.memory.restart()
            optimizer.step()
    return sum(state.values()), meter.memory.peak - before


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [one for group in optimizer.param_groups for one in group["params"]]


def _on_fakes(optimizer: torch.optim.Optimizer, fakes: Fakes) -> torch.optim.Optimizer:
    """A copy of an optimizer that steps on tensors without data, gradients among them, and runs no hooks."""

    @functools.cache
    def fake(tensor: torch.Tensor) -> torch.Tensor:
        device = torch.device("cpu") if tensor.is_meta else tensor.device
        return fakes.make(TensorSpec.of(tensor, device), requires_grad=tensor.requires_grad)

    twin = copy.copy(optimizer)
    twin.param_groups = [tree_map_only(torch.Tensor, fake, group) for group in optimizer.param_groups]
    twin.state = defaultdict(dict)
    for parameter, state in optimizer.state.items():
        twin.state[fake(parameter)] = tree_map_only(torch.Tensor, fake, state)
    for parameter in _parameters(twin):
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    without_step_hooks(twin)
    return twin
