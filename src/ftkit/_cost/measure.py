"""What a training step costs: FLOPs and bytes of forward, backward and optimizer, before it is run."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.utils._pytree import tree_map_only

from ftkit._cost.meter import Meter, Part, Spec, storages
from ftkit._cost.stand_ins import StandIns
from ftkit._models.dryrun import tensors_in, untouched
from ftkit.errors import FtkitError

__all__ = ["OptimizerLike", "StepCost", "measure"]

OptimizerLike: TypeAlias = torch.optim.Optimizer | Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""An optimizer, or what makes one of a list of parameters: a class, or a function."""


@dataclass
class StepCost:
    """What one training step costs.

    Attributes:
        parts: One for each module, in the order of ``model.modules()``.
        forward_flops: Of the model and the loss.
        backward_flops: Of the model and the loss.
        saved_bytes: Kept from the forward for the backward pass, by the loss too; parameters, buffers and
            inputs aside.
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
    _trained: list[tuple[Spec, bool]] = field(default_factory=list, repr=False)

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
            own ``loss`` if it has one. Otherwise the cross-entropy of its ``logits``, or of its only
            tensor if that has several classes (the last dimension of three, the second of two or
            of more), and the sum of whatever else is differentiable in it.
        mode: ``"train"`` or ``"eval"``; by default every module as it stands.
        train_all: Measure as if every floating-point parameter were trainable.

    Raises:
        FtkitError: The model fails on these inputs; the message names the module that failed.

    Example:
        >>> import torch
        >>> from ftkit._cost.measure import measure
        >>> cost = measure(torch.nn.Linear(32, 64), (torch.randn(4, 32),), {})
        >>> cost.forward_flops, cost.backward_flops, cost.parts[0].output_shape
        (16384, 16384, (4, 64))
    """
    run = functools.partial(_measure, model, args, kwargs, loss, mode, train_all)
    on_meta = any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    real = lazy = None
    hooks = True
    try:
        if any(nn.parameter.is_lazy(tensor) for tensor in [*model.parameters(), *model.buffers()]):
            lazy = _initialized(model, args, kwargs)
        if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
            real = "TorchScript runs on real tensors only"
        while True:
            try:
                return run(lazy, real, hooks)
            except _FailedStep as failure:
                if hooks and "support saved tensor hooks" in str(failure.cause):  # torch.func's derivatives
                    hooks = False
                elif real or on_meta:
                    raise
                else:
                    real = failure.why_real()
    except _FailedStep as failure:
        raise FtkitError(failure.explained(on_meta)) from failure.cause


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
        if "more than 1 value per channel when training" in text:
            return text + "Give a batch of several, or pass mode='eval'."
        if on_meta and isinstance(self.cause, DataDependentOutputException | DynamicOutputShapeException):
            return text + "A model on the meta device has no values that could decide a shape or a branch."
        if self.stage:
            return text + "Expected a loss that takes the model's output and gives a scalar to differentiate."
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
    hooks: bool,
) -> StepCost:
    modules = list(model.modules())
    cost = StepCost([Part() for _ in modules], lazy=lazy or {}, real=real)
    meter = Meter(None if real else FakeTensorMode(allow_non_fake_inputs=True))
    meter.parts = {id(module): part for module, part in zip(modules, cost.parts, strict=True)}
    with untouched(modules):
        stand_ins = StandIns(model, meter, cost.lazy, train_all)
        inputs, keywords = stand_ins.install(modules, args, kwargs)
        stand_ins.adopt()
        if mode is not None:
            model.train(mode == "train")
        output = scalar = None
        stage = ""
        try:
            with meter.running():
                with contextlib.ExitStack() as stack:
                    if hooks:
                        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(meter.pack, _as_it_is))
                    output = meter.call(model, inputs, keywords)
                    stage = "loss"
                    scalar = (loss or _default_loss)(output)
                    if loss and not isinstance(scalar, torch.Tensor):
                        raise TypeError(f"it gave a {type(scalar).__name__}")
                if not hooks:
                    meter.pack_all_but([*tensors_in(output), scalar])
                if isinstance(scalar, torch.Tensor) and scalar.requires_grad:
                    meter.in_backward, stage = True, "backward pass"
                    with _out_of_autocast(scalar.device.type):
                        stand_ins.backward(scalar)
        except Exception as error:
            raise _FailedStep(error, model, meter, stage) from error
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
    with untouched(modules):
        meter = Meter(None)
        stand_ins = StandIns(model, meter, {}, train_all=False)
        inputs, keywords = stand_ins.install(modules, args, kwargs)
        try:
            with torch.no_grad():
                model(*inputs, **keywords)
        except Exception as error:
            raise _FailedStep(error, model, meter) from error
        return stand_ins.initialized()


def _out_of_autocast(kind: str) -> contextlib.AbstractContextManager[object]:
    """Leave autocast, as a loop does that runs its backward pass outside: the casts it remembered are freed."""
    torch.clear_autocast_cache()
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


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


def _optimizer_bytes(make: OptimizerLike, trained: list[tuple[Spec, bool]]) -> tuple[int, int]:
    """The bytes of an optimizer's state, and the most that one step takes on top of it."""
    meter = Meter(FakeTensorMode(allow_non_fake_inputs=True), answers_items=True)
    with untouched([]):
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
                own = {key for group in optimizer.param_groups for one in group["params"] for key, _ in storages(one)}
                state = {
                    key: size
                    for tensor in tensors_in(list(optimizer.state.values()))
                    for key, size in storages(tensor)
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


def _imitated(optimizer: torch.optim.Optimizer, meter: Meter) -> torch.optim.Optimizer:
    """A copy of an optimizer that steps on tensors without data."""
    made: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            device = torch.device("cpu") if tensor.is_meta else tensor.device
            made[id(tensor)] = meter.fake(Spec.of(tensor, device), tensor.requires_grad)
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
