"""Tensors without data that stand for what nobody needs: they can be reshaped and added, and never give a value."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from typing import Any, Self

import torch

from ftkit._torch import tree_leaves, tree_map_only, uncompiled, version_of, wrapper_tensor, written_by
from ftkit._wording import cause
from ftkit.errors import FtkitError

_HERE = threading.local()


class Placeholder(torch.Tensor):
    """A tensor of a certain shape, type and device that holds no data.

    What is computed from one is one. Whatever needs its values, or joins it with what trains, is an error.
    """

    elem: torch.Tensor
    origin: int
    """Tells what it was computed from, and by which operators, from all else in this process."""
    is_written: bool

    @staticmethod
    def __new__(cls, elem: torch.Tensor, device: torch.device, origin: int) -> Self:
        """Stand for a tensor like ``elem``, which is on the meta device."""
        made: Self = wrapper_tensor(cls, elem, device)
        made.elem, made.origin, made.is_written = elem, origin, False
        return made

    @property
    def is_untouched(self) -> bool:
        """Whether no operator has written to it, or given it another shape in place, and no one wants its gradient."""
        same = self.elem.shape == self.shape and self.elem.stride() == self.stride()
        return same and not self.requires_grad and not self.is_written and not version_of(self)

    def __repr__(self) -> str:  # type: ignore[override]  # torch's reads the values
        return f"Placeholder(shape={tuple(self.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's own stands for none
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operator on shapes alone."""
        if "torch._dynamo" in sys.modules:  # a function of the forward pass may be compiled, and this not with it
            return uncompiled(cls._run, func, args, dict(kwargs or {}))
        return cls._run(func, args, dict(kwargs or {}))

    @classmethod
    def _run(cls, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if not getattr(_HERE, "allowed", 0):
            if allowed.open:
                raise FtkitError(
                    f"{func} was called in another thread than the forward pass, on a value of the frozen part that "
                    "was not kept. What a model does in threads of its own can't be followed: have forward() do it "
                    "itself, and call precompute() again, or train without precompute."
                )
            raise FtkitError(
                f"{func} was called outside of the forward pass, on a value of the frozen part that was not kept. If a "
                "loss or a metric reads what forward() has stored, have forward() return it, and call precompute() "
                "again. Gradient checkpointing has to be off."
            )
        if not kwargs and (answer := _known(func, args)) is not None:
            return answer
        leaves = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        if any(one.requires_grad for one in leaves):
            raise _misuse(func, "together with something that trains")
        written: list[Any] = list(written_by(func, args, kwargs))
        if not all(isinstance(one, Placeholder) for one in written):
            raise _misuse(func, "to write to a tensor")
        origin = _origin(func, args, kwargs)
        device = next(one.device for one in leaves if isinstance(one, Placeholder))
        if kwargs.get("device") is not None:
            device, kwargs["device"] = torch.device(kwargs["device"]), torch.device("meta")
        try:
            output = func(*tree_map_only(torch.Tensor, _shape, args), **tree_map_only(torch.Tensor, _shape, kwargs))
        except (NotImplementedError, RuntimeError) as error:
            raise _misuse(func, f"({cause(error).splitlines()[0][:120]})") from error
        if isinstance(output, torch.Tensor) and not kwargs and not any(output is one.elem for one in _given(args)):
            _remember(func, args, output)
        known = {id(one.elem): one for one in leaves if isinstance(one, Placeholder)}
        for one in written:
            one.origin, one.is_written = origin, True
        number = iter(range(sys.maxsize))

        def wrapped(one: torch.Tensor) -> torch.Tensor:
            at = next(number)
            return (
                known[id(one)] if id(one) in known else Placeholder(one, device, hash((origin, at)) if at else origin)
            )

        return tree_map_only(torch.Tensor, wrapped, output)


class allowed:  # noqa: N801  (a block)
    """A block in which operators may run on placeholders, in this thread."""

    open = 0
    """How many there are now, in all threads."""

    def __enter__(self) -> None:
        _HERE.allowed = getattr(_HERE, "allowed", 0) + 1
        allowed.open += 1

    def __exit__(self, *exception: object) -> None:
        _HERE.allowed -= 1
        allowed.open -= 1


_PLAIN = frozenset({bool, int, float, type(None), torch.dtype})
_SHAPES: dict[Any, torch.Tensor] = {}
"""What operators gave, by what they got: to find the shape of a mean costs as much as the mean itself."""
_MOST = 1000


def _given(args: Any) -> list[Placeholder]:
    return [one for one in args if isinstance(one, Placeholder)]


def _question(func: Any, args: Any) -> Any:
    """All that the shape of an operator's result depends on; None if it is not that simple."""
    asked: list[Any] = [func]
    for one in args:
        if type(one) is Placeholder:
            elem = one.elem
            asked.append((elem.shape, elem.stride(), elem.storage_offset(), elem.dtype, one.device))
        elif type(one) is list and all(type(each) in _PLAIN for each in one):
            asked.append((list, *((type(each), each) for each in one)))
        elif type(one) in _PLAIN:
            asked.append((type(one), one))
        else:
            return None
    return tuple(asked)


def _known(func: Any, args: Any) -> Placeholder | None:
    question = _question(func, args)
    shape = None if question is None else _SHAPES.get(question)
    if shape is None:
        return None
    return Placeholder(_shape_of(shape), _given(args)[0].device, _origin(func, args, {}))


def _origin(func: Any, args: Any, kwargs: Any) -> int:
    return hash((func, *map(_came, args), *map(_came, kwargs.values())))


def _came(value: Any) -> Any:
    """What tells a value from those that come in another way; not numbers, as some are the size of the batch."""
    if isinstance(value, Placeholder):
        return value.origin, version_of(value)  # which tells what was written through a view
    if isinstance(value, list | tuple):
        return tuple(map(_came, value))
    return type(value)


def way_of(call: Any, kept: Mapping[int, torch.Tensor]) -> tuple[Any, ...]:
    """How the tensors came that a call takes: which of the kept ones they are, or what was done on the way to them."""
    numbers = {id(one): number for number, one in kept.items()}
    tensors = (one for one in tree_leaves(call) if isinstance(one, torch.Tensor))
    return tuple((numbers.get(id(one)), version_of(one), _came(one)) for one in tensors)


def _remember(func: Any, args: Any, output: torch.Tensor) -> None:
    question = _question(func, args)
    if question is not None and not any(True for _ in written_by(func, args, {})) and len(_SHAPES) < _MOST:
        _SHAPES[question] = _shape_of(output)  # of which no one else changes the shape in place


def _shape_of(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _shape(tensor: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, Placeholder):
        return tensor.elem
    return _shape_of(tensor)


def _misuse(func: Any, how: str) -> FtkitError:
    if "nested" in str(func) or "padded" in str(func):
        return FtkitError(
            f"The frozen part makes nested tensors ({func}), which can't be kept. An nn.TransformerEncoder does so to "
            "be faster, where it is frozen and gets a padding mask: build it with enable_nested_tensor=False."
        )
    return FtkitError(
        f"{func} was called {how}, on a value of the frozen part that was not kept. The forward pass takes another "
        "way than when its frontier was looked for: train without precompute, or call it again."
    )
