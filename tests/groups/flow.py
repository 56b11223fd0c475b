"""Which parameters a model uses before which, told by following every operator; apart from how ftkit tells it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_TABLES_AND_PRODUCTS = {"embedding": 0, "mm": 0, "addmm": 1, "bmm": 0}  # which argument is looked up or multiplied


def _places(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class Flow(TorchDispatchMode):
    """Follows what each tensor was computed from, by its memory, so that views and changes in place are seen.

    Attributes:
        before: For each parameter, by name, those that its data had passed when it was first used.
    """

    def __init__(self, model: nn.Module, inputs: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._names = [name for name, _ in model.named_parameters()]
        self._alive: list[Any] = []
        self._weights = {self._key(p): 1 << place for place, p in enumerate(model.parameters())}
        self._data = {self._key(tensor): 0 for tensor in inputs}
        self._before: dict[int, int] = {}

    def _key(self, tensor: torch.Tensor) -> int:
        storage = tensor.untyped_storage()
        self._alive.append(storage)
        return int(storage._cdata)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = [self._key(one) for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        output = func(*args, **(kwargs or {}))
        made = [self._key(one) for one in tree_leaves(output) if isinstance(one, torch.Tensor)]
        weights = data = 0
        for key in given:
            weights |= self._weights.get(key, 0)
            data |= self._data.get(key, 0)
        if any(key in self._data for key in given):
            for key in made:
                if key not in self._weights:
                    self._data[key] = self._data.get(key, 0) | data | weights
            for place in _places(weights):
                self._before.setdefault(place, data)
        elif weights and (place := _TABLES_AND_PRODUCTS.get(func.overloadpacket.__name__)) is not None:
            main = given[place] if place < len(given) else None  # learned queries, or a table that is looked up
            first = self._weights.get(main, 0) if main is not None else 0
            for key in made:
                self._data[key] = weights
            for place in _places(weights):
                self._before.setdefault(place, 0 if first >> place & 1 else first)
        elif weights:
            for key in made:
                self._weights[key] = self._weights.get(key, 0) | weights
        return output

    @property
    def before(self) -> dict[str, list[str]]:
        """The names of the parameters that come before each one that was used."""
        return {self._names[place]: self._named(mask) for place, mask in self._before.items()}

    def _named(self, mask: int) -> list[str]:
        return [name for place, name in enumerate(self._names) if mask >> place & 1]


def follow(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, list[str]]:
    """Run a model in eval mode, and return what comes before each of its parameters."""
    flow = Flow(model, [one for one in tree_leaves((args, dict(kwargs))) if isinstance(one, torch.Tensor)])
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), flow:
            model.eval()(*args, **kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return flow.before


def inverted(before: Mapping[str, list[str]], rates: Mapping[str, float]) -> list[tuple[str, str]]:
    """The pairs of which the first is used before the second, on the way to it, and learns faster."""
    return [
        (early, late)
        for late, several in before.items()
        for early in several
        if early != late and rates[early] > rates[late] * (1 + 1e-9)
    ]
