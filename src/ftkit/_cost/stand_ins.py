"""Run a model on stand-ins for its tensors, and leave it as it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from ftkit._cost.meter import Meter, Spec, storages

__all__ = ["StandIns"]


class StandIns:
    """Stand-ins for the tensors of a model and of its inputs, so that the real ones stay as they are.

    They hold no data if the meter fakes. Otherwise parameters share the real memory, and all that a
    forward pass may write to is a copy.
    """

    def __init__(self, model: nn.Module, meter: Meter, lazy: dict[int, torch.Size], train_all: bool) -> None:
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
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                state[name] = self._of(value)
            elif type(value) in (list, tuple, dict) and value and name not in ("_parameters", "_buffers", "_modules"):
                inside = value.values() if type(value) is dict else value
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
            return self._meter.fake(Spec.of(empty, device), trained)
        if tensor.is_meta or _is_plain(tensor):
            return self._meter.fake(Spec.of(tensor, device), trained)
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
        return sum({key: size for one in self._made.values() for key, size in storages(one)}.values())

    def gradients(self) -> tuple[int, list[tuple[Spec, bool]]]:
        """The bytes of the gradients; the trainable parameters, and whether each got a gradient."""
        trained = [self._made[id(one)] for one in self._parameters if self._made[id(one)].requires_grad]
        grads = [one.grad for one in trained]
        if self._fixed:  # autograd.grad leaves none behind
            grads = list(trained)
        size = sum(grad.numel() * grad.element_size() for grad in grads if grad is not None)
        specs = [Spec.of(one, self._home if one.is_meta else one.device) for one in trained]
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
