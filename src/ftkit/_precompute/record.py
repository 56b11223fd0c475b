"""The run of a model that notes what passes over its frontier."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from ftkit._precompute.frontier import Cut
from ftkit._precompute.stands import instead
from ftkit._precompute.trace import Key, named_state, no_trace, put_back, same_bits
from ftkit._torch import tree_leaves, without_transforms
from ftkit._wording import some
from ftkit.errors import FtkitError

T = TypeVar("T")


_HERE = threading.local()


class Enough(BaseException):
    """Ends a forward pass once all that is kept has been seen."""


def record(model: nn.Module, cut: Cut, call: Any, *, to_the_end: bool = False) -> tuple[dict[int, torch.Tensor], Any]:
    """Run a model, and return the tensors that pass over, by their number, and the output if it ran to the end."""
    wanted = {point: number for number, point in enumerate(cut.points)}
    found: dict[int, torch.Tensor] = {}
    count: Counter[str] = Counter()
    by_module = {id(module): name for name, module in model.named_modules()}
    names = {key[0] for kind, key, _ in cut.points if kind != "input"}

    def note(tree: Any, kind: str, key: Key) -> None:
        for at, tensor in enumerate(one for one in tree_leaves(tree) if isinstance(one, torch.Tensor)):
            if (number := wanted.get((kind, key, at))) is not None:
                found[number] = tensor.detach().clone()
        if len(found) == len(wanted) and not to_the_end:
            raise Enough

    def through(name: str) -> Callable[..., Any]:
        def forward(original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            key = name, count[name]
            count[name] += 1
            note((args, kwargs), "arg", key)
            output = original(*args, **kwargs)
            note(output, "out", key)
            return output

        return forward

    output = None
    with instead({one: through(name) for one, name in by_module.items() if name in names}, model):
        before, _HERE.records = is_recording(), True
        try:
            note(call, "input", ("", 0))
            output = model(*call[0], **call[1])
        except Enough:
            pass
        finally:
            _HERE.records = before
    if missing := {cut.points[number][1][0]: None for number in wanted.values() if number not in found}:
        raise FtkitError(
            f"The forward pass did not come by {some([*missing], 3)} for these samples, at least not "
            "in the thread in which the model is called. Let what is frozen run there for all samples, or train "
            "without precompute."
        )
    return found, output


def is_recording() -> bool:
    """Whether a run is noted in this thread, so that nothing that is kept may stand for its inputs."""
    return getattr(_HERE, "records", False)


def undisturbed(model: nn.Module, cut: Cut, run: Callable[[], T]) -> T:
    """Run something; restore what it writes to buffers, and the random numbers that it draws."""
    state = named_state(model)
    wanted = [
        (one, one.detach().clone())
        for name, one in state.items()
        if (name in cut.written or not isinstance(one, nn.Parameter))
        and without_transforms(one) is one
        and not one.is_meta
    ]
    with no_trace(model):
        try:
            return run()
        finally:
            put_back([(one, before) for one, before in wanted if not same_bits(one, before)])
