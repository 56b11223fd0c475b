"""Tensors without data: single ones, and those that a model runs on while it is measured."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from ftkit._torch import (
    as_parameter,
    below_dispatch,
    buffers_of,
    fake_maker,
    fake_tensors,
    parameters_of,
    sparse_parts,
    storage_id,
    tree_map_only,
)


class TensorSpec(NamedTuple):
    """All that a tensor without data is."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    offset: int | torch.SymInt = 0

    @staticmethod
    def of(tensor: torch.Tensor, device: torch.device | None = None) -> TensorSpec:
        """Take them from a tensor."""
        return TensorSpec(tensor.shape, tensor.stride(), tensor.dtype, device or tensor.device, tensor.storage_offset())

    def on_meta(self, storage: torch.UntypedStorage | None = None) -> torch.Tensor:
        """A tensor on the meta device, in memory of its own or in ``storage``."""
        if storage is None:
            return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")
        return torch.empty(0, dtype=self.dtype, device="meta").set_(storage, self.offset, self.shape, self.stride)

    def needed_bytes(self) -> int:
        """The least memory in which it fits."""
        return (
            1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        ) * self.dtype.itemsize

    def of_examples(self, count: int) -> TensorSpec:
        """The same with so many rows in the first dimension, in memory in the same order."""
        shape = (count, *self.shape[1:])
        if self.needed_bytes() != math.prod(self.shape) * self.dtype.itemsize:
            return self._replace(shape=shape)
        stride, step = list(self.stride), 1
        for dim in sorted(range(len(shape)), key=self.stride.__getitem__):
            stride[dim] = step
            step *= shape[dim]
        return self._replace(shape=shape, stride=tuple(stride))

    def zeros(self) -> torch.Tensor:
        """A tensor of zeros in the least memory, on the CPU."""
        memory = torch.zeros(self.needed_bytes() // self.dtype.itemsize, dtype=self.dtype, device="cpu")
        return memory.as_strided(self.shape, self.stride)


class Fakes:
    """Makes fake tensors, by the shortest way that this torch has.

    Attributes:
        mode: What follows operators on them.
        dress: The shortest way from a meta tensor, a device and whether it takes a gradient to a fake tensor; or None,
            and then all is left to the mode.
    """

    def __init__(self) -> None:
        self.mode = fake_tensors()
        self.dress = fake_maker(self.mode)
        self.mode.cache_enabled = self.dress is None  # the meter's own answers stand before it

    def make(self, spec: TensorSpec, *, requires_grad: bool = False) -> torch.Tensor:
        """Make a tensor without data."""
        if self.dress is None:
            with self.mode:
                made = torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device=spec.device)
                return made.requires_grad_(requires_grad)
        with below_dispatch():
            elem = spec.on_meta()
        return self.dress(elem, spec.device, requires_grad)


class Substitutes:
    """What a model runs on instead of its tensors and its inputs, so that these stay as they are.

    With ``fakes`` it is tensors without data. Otherwise parameters share the real memory, and all that a forward pass
    may write to is a copy.

    Attributes:
        made: All substitutes, by the identities of what they stand for.
    """

    def __init__(self, model: nn.Module, fakes: Fakes | None, lazy: dict[int, torch.Size], *, train_all: bool) -> None:
        self._fakes = fakes
        self._lazy = lazy
        self._train_all = train_all
        self.made: dict[int, torch.Tensor] = {}
        self._originals: list[torch.Tensor] = []  # so that the identities in made stay taken
        self._parameters = list(model.parameters())
        self._scripted = False  # parts of it in TorchScript, which takes no substitutes
        real = (tensor.device for tensor in [*self._parameters, *model.buffers()] if not tensor.is_meta)
        self._home = next(real, torch.device("cpu"))

    def install(
        self, modules: list[nn.Module], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Put the substitutes into the modules; return those of the inputs."""
        for module in modules:
            if isinstance(module, torch.jit.ScriptModule):
                own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
                self.made |= {id(tensor): tensor for tensor in own}
        self._scripted = bool(self.made)
        for parameter in self._parameters:
            self._of(parameter, trained=parameter.requires_grad or (self._train_all and _can_train(parameter)))
        for module in modules:
            if not isinstance(module, torch.jit.ScriptModule):
                self._fill(module)
        inputs: tuple[tuple[Any, ...], dict[str, Any]] = tree_map_only(
            torch.Tensor, lambda tensor: self._of(tensor, tensor.requires_grad), (tuple(args), dict(kwargs))
        )
        return inputs

    def _fill(self, module: nn.Module) -> None:
        """Put substitutes into the tables of a module, and into its attributes."""
        tables: list[dict[str, Any]] = [parameters_of(module), buffers_of(module), vars(module)]
        for table in tables:
            for name, value in table.items():
                if isinstance(value, torch.Tensor):
                    table[name] = self._of(value)
                elif _holds_tensors(value) and not any(value is own for own in tables):
                    table[name] = tree_map_only(torch.Tensor, self._of, value)

    def _of(self, tensor: torch.Tensor, trained: bool = False) -> torch.Tensor:
        made = self.made.get(id(tensor))
        if made is None:
            make = self._copy if self._fakes is None else functools.partial(self._fake, self._fakes)
            made = make(tensor, trained)
            if isinstance(tensor, nn.Parameter):
                made = as_parameter(made)
                vars(made).update(vars(tensor))  # marks that optimizers and layers read
            self.made[id(tensor)] = made
            self._originals.append(tensor)
        return made

    def _fake(self, fakes: Fakes, tensor: torch.Tensor, trained: bool) -> torch.Tensor:
        device = self._home if tensor.is_meta else tensor.device
        if id(tensor) in self._lazy:
            tensor = torch.empty(self._lazy[id(tensor)], dtype=tensor.dtype, device="meta")
        if tensor.is_meta or _is_plain(tensor):
            return fakes.make(TensorSpec.of(tensor, device), requires_grad=trained)
        return fakes.mode.from_tensor(tensor).requires_grad_(trained)

    def _copy(self, tensor: torch.Tensor, trained: bool) -> torch.Tensor:
        """A tensor that can be computed with: of a parameter in the same memory, of others in memory of its own."""
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
        if self._scripted:  # the .grad of script parameters is the user's
            torch.autograd.grad(scalar, self._trained(), allow_unused=True)
        else:
            scalar.backward()  # type: ignore[no-untyped-call]

    def _trained(self) -> list[torch.Tensor]:
        return [made for made in (self.made[id(one)] for one in self._parameters) if made.requires_grad]

    def held_bytes(self) -> int:
        """The bytes of parameters, buffers and inputs, shared memory counted once."""
        return sum(dict(map(memory_of, self.made.values())).values())

    def gradients(self) -> list[tuple[TensorSpec, int | None]]:
        """The trainable parameters, each with the bytes of its gradient, or None if it got none."""
        found: list[tuple[TensorSpec, int | None]] = []
        for one in self._trained():
            grad = one if self._scripted else one.grad  # autograd.grad leaves none behind
            size = None if grad is None else grad.numel() * grad.element_size()
            found.append((TensorSpec.of(one, self._home if one.is_meta else one.device), size))
        return found

    def initialized(self) -> dict[int, torch.Size]:
        """The shapes of what was uninitialized, by the identity of the original."""
        return {id(one): self.made[id(one)].shape for one in self._originals if nn.parameter.is_lazy(one)}


def _holds_tensors(value: Any) -> bool:
    """Whether a value is a plain list, tuple or dict with tensors right in it."""
    if type(value) not in (list, tuple, dict):
        return False
    return any(isinstance(one, torch.Tensor) for one in (value.values() if type(value) is dict else value))


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


def storage_of(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    """The memory under a tensor; None for sparse and opaque layouts, which have none of their own."""
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None


def memory_of(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the identity and the bytes of the memory under a tensor, of a sparse one of all its parts."""
    storage = storage_of(tensor)
    if storage is None:
        parts = sparse_parts(tensor) or [tensor]
        return id(tensor), sum(part.numel() * part.element_size() for part in parts)
    return storage_id(tensor), storage.nbytes()
