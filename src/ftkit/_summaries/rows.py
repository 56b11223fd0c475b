"""What a summary contains: a row for each module of a model, and totals."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from ftkit._cost.measure import StepCost
from ftkit._cost.meter import ModuleCost, Shapes


@dataclass
class SummaryRow:
    """One module of a model in a :class:`~ftkit.ModelSummary`, its children included.

    Attributes:
        name: Its dotted name, empty for the model itself. A shared module has its first name.
        type: The name of its class.
        input_shape: Input shape of its first call; a tuple of shapes for several tensors, None if it was not called.
        output_shape: Output shape of its first call, in the same form.
        params: Number of parameters, tied ones counted once.
        trainable: Number of trainable parameters.
        forward_flops: FLOPs of the forward pass, over all of its calls; a multiply-add counts as 2.
        backward_flops: FLOPs of the gradients of its inputs and parameters.
        saved_bytes: Bytes that it keeps from the forward pass for the backward pass.
        mode: The mode it ran in, ``"train"`` or ``"eval"``.
        calls: How often the forward pass calls it.
        status: ``"trains"``, ``"partial"``, ``"frozen"``, ``"frozen, passes gradients"``, or empty
            if it has no parameters.
    """

    name: str
    type: str
    input_shape: Shapes = None
    output_shape: Shapes = None
    params: int = 0
    trainable: int = 0
    forward_flops: int = 0
    backward_flops: int = 0
    saved_bytes: int = 0
    mode: str = "train"
    calls: int = 0
    status: str = ""


@dataclass
class SummaryData:
    """The figures of a summary, as :class:`~ftkit.ModelSummary` describes them."""

    model: str
    total_params: int
    trainable_params: int
    frozen_params: int
    buffers: int
    param_bytes: int
    rows: list[SummaryRow]
    forward_flops: int = 0
    backward_flops: int = 0
    saved_bytes: int = 0
    unfrozen_backward_flops: int = 0
    unfrozen_saved_bytes: int = 0
    tied: tuple[str, ...] = ()
    real: str | None = None

    @property
    def measured(self) -> bool:
        """Whether a step was measured, not parameters alone."""
        return self.rows[0].calls > 0


def rows_of(model: nn.Module, cost: StepCost | None) -> list[SummaryRow]:
    """Return a row for each module, in the order of ``model.modules()``."""
    if cost is None:
        return [_row(name, module, ModuleCost(), {}) for name, module in model.named_modules()]
    costs = {id(module): own for module, own in zip(model.modules(), cost.modules, strict=True)}

    def of(module: nn.Module) -> ModuleCost:
        own = costs[id(module)]
        return own if own.calls else _sum_of([of(child) for child in module.children()])

    return [_row(name, module, of(module), cost.lazy) for name, module in model.named_modules()]


def elements(tensors: Iterable[torch.Tensor], lazy: dict[int, torch.Size]) -> int:
    """How many elements tensors have; uninitialized ones, those of the shape that they get, if it is known."""
    return sum(
        lazy.get(id(one), torch.Size([0])).numel() if nn.parameter.is_lazy(one) else one.numel() for one in tensors
    )


def _sum_of(costs: list[ModuleCost]) -> ModuleCost:
    """What a module costs that is never called itself, as a list of layers."""
    return ModuleCost(
        forward_flops=sum(one.forward_flops for one in costs),
        backward_flops=sum(one.backward_flops for one in costs),
        saved_bytes=sum(one.saved_bytes for one in costs),
        differentiable=any(one.differentiable for one in costs),
    )


def _row(name: str, module: nn.Module, cost: ModuleCost, lazy: dict[int, torch.Size]) -> SummaryRow:
    parameters = list(module.parameters())
    kind = getattr(module, "original_name", None) if isinstance(module, torch.jit.ScriptModule) else None
    return SummaryRow(
        name=name,
        type=kind or type(module).__name__,
        input_shape=cost.input_shape,
        output_shape=cost.output_shape,
        params=elements(parameters, lazy),
        trainable=elements(filter(lambda one: one.requires_grad, parameters), lazy),
        forward_flops=cost.forward_flops,
        backward_flops=cost.backward_flops,
        saved_bytes=cost.saved_bytes,
        mode="train" if (module.training if cost.training is None else cost.training) else "eval",
        calls=cost.calls,
        status=_status({one.requires_grad for one in parameters}, passes=cost.differentiable),
    )


def _status(trains: set[bool], *, passes: bool) -> str:
    """What a module's parameters do, of which some train, or some don't, or both; nothing without parameters."""
    if not trains:
        return ""
    if True in trains:
        return "partial" if False in trains else "trains"
    return "frozen, passes gradients" if passes else "frozen"
