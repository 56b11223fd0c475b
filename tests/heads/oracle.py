"""The judge of replaced heads: the same model, freshly built for the new number of classes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import torch
from torch import nn

from ftkit import replace_head
from ftkit.errors import HeadError

BEFORE, AFTER = 11, 7

RIGHT, RIGHTLY_REFUSED, REFUSED, WRONG = "right", "rightly refused", "refused needlessly", "wrong in silence"


def quietly(build: Callable[[int], nn.Module], classes: int) -> nn.Module:
    """Build a model without memory, or where it computes its sizes with tensors, with."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                return build(classes).eval()
        except Exception:
            return build(classes).eval()


def judge(build: Callable[[int], nn.Module]) -> tuple[str, str]:
    """Replace the head of a model built for 11 classes by one of 7; say how that compares with one built for 7."""
    fresh, model = quietly(build, AFTER), quietly(build, BEFORE)
    before = dict(model.named_parameters(remove_duplicate=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            head = replace_head(model, AFTER)
        except HeadError as error:
            changed = _first(_differences(shapes_of(model), shapes_of(quietly(build, BEFORE))))
            if changed or any(
                dict(model.named_parameters(remove_duplicate=False))[n] is not p for n, p in before.items()
            ):
                return WRONG, f"the error left a change: {changed}"
            resizable = shapes_of(fresh) != shapes_of(model)
            return (REFUSED if resizable else RIGHTLY_REFUSED), str(error)
    inside = tuple(f"{name}." for name in head.names)
    after = dict(model.named_parameters(remove_duplicate=False))
    expected = shapes_of(fresh)
    moved = [
        name
        for name, parameter in before.items()
        if not name.startswith(inside) and after.get(name) is not parameter and expected.get(name) == parameter.shape
    ]
    wrong = _first(_differences(shapes_of(model), expected)) or _first(
        _differences(numbers_of(model), numbers_of(fresh))
    )
    if moved or wrong:
        return WRONG, f"{', '.join(moved[:3])} {wrong} {head.names}"
    return RIGHT, str(head)


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    """The shapes in a model's state dict."""
    return {name: value.shape for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}


def numbers_of(model: nn.Module) -> dict[str, object]:
    """The whole numbers among the attributes of a model's modules, and in its configuration."""
    found: dict[str, object] = {
        f"{name}.{key}": value
        for name, module in model.named_modules(
            remove_duplicate=False
        )  # two layers may become one that both names share
        for key, value in vars(module).items()
        if type(value) is int and key != "np"  # how many parameters there are, which ultralytics notes
    }
    config = getattr(model, "config", None)
    found["config.num_labels"] = getattr(config, "num_labels", None)
    return found


def _differences(found: dict[str, object], expected: dict[str, object]) -> Iterator[str]:
    for name in [*expected, *(name for name in found if name not in expected)]:
        if found.get(name) != expected.get(name):
            yield f"{name}: {found.get(name)} for {expected.get(name)}"


def _first(several: Iterator[str]) -> str:
    return next(several, "")
