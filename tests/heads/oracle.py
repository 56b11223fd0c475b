"""The judge of replaced heads: the same model, freshly built for the new number of classes."""

from __future__ import annotations

import ast
import copy
import logging
import math
import os
import random
import re
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from ftkit import find_head, replace_head, summary
from ftkit._heads.inputs import Inputs
from ftkit._heads.layers import layers
from ftkit._heads.trace import run_on, run_with_labels
from ftkit._models.dryrun import named_tensors
from ftkit.errors import FtkitError, HeadError

BEFORE, AFTER = 11, 7

RIGHT, RIGHTLY_REFUSED, REFUSED, WRONG = "right", "rightly refused", "refused needlessly", "wrong in silence"
ADVISED = "refused with a call that is right"

_MOST = 20_000_000  # parameters of a model that is built with values, and run


def quietly(build: Callable[[int], nn.Module], classes: int, *, values: bool = False) -> nn.Module:
    """Build a model without memory, or with values; so also where it computes its sizes with tensors."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        if not values:
            try:
                with torch.device("meta"):
                    return build(classes).eval()
            except Exception:
                pass
        return build(classes).eval()


def judge(build: Callable[[int], nn.Module], inputs: Inputs | None = None) -> tuple[str, str]:
    """Replace the head of a model built for 11 classes by one of 7; say how that compares with one built for 7.

    Args:
        build: How to build the model for a number of classes.
        inputs: What the model takes, if that can't be made up.
    """
    small = is_small(quietly(build, AFTER))
    model = quietly(build, BEFORE, values=small)
    changed = looked_at(model, inputs, AFTER if small else None)
    if changed:
        return WRONG, f"looking changed {changed}"
    verdict, why = _replaced(model, quietly(build, AFTER, values=small), inputs, small)
    called = re.findall(r"(?:: | or )replace_head\(model, n, at=([^()]+)\)", why)
    if verdict == REFUSED and called:  # the last one shown takes all that could be the head
        again = [quietly(build, count, values=small) for count in (BEFORE, AFTER)]
        advised, so = _replaced(*again, inputs, small, at=ast.literal_eval(called[-1]))
        return {RIGHT: (ADVISED, why)}.get(advised, (advised, f"{why} So: {so}"))
    return verdict, why


def _replaced(
    model: nn.Module, fresh: nn.Module, inputs: Inputs | None, small: bool, at: str | list[str] | None = None
) -> tuple[str, str]:
    """Replace the head, and compare with a fresh model."""
    before = dict(model.named_parameters(remove_duplicate=False))
    values = {name: value.detach().clone() for name, value in before.items()}
    state = State(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            head = replace_head(model, AFTER, at=at, example_inputs=inputs)
    except HeadError as error:
        if changed := state.changed():
            return WRONG, f"the error left a change: {changed}"
        return (REFUSED if shapes_of(fresh) != shapes_of(model) else RIGHTLY_REFUSED), str(error)
    inside = tuple(f"{name}." for name in head.names)
    after = dict(model.named_parameters(remove_duplicate=False))
    expected = shapes_of(fresh)
    outside = [n for n, p in before.items() if not n.startswith(inside) and expected.get(n) == p.shape]
    moved = [n for n in outside if after.get(n) is not before[n] or not _same(before[n], values[n])]
    wrong = (
        _first(_differences(shapes_of(model), expected))
        or _first(_differences(numbers_of(model), numbers_of(fresh)))
        or (starts_otherwise(model, fresh, head.names, off=_OFF) if small else "")
        or (_runs_otherwise(model, fresh, inputs) if small else "")
    )
    if moved or wrong:
        return WRONG, f"{', '.join(moved[:3])} {wrong} {head.names}"
    return RIGHT, str(head)


def is_small(model: nn.Module) -> bool:
    """Whether a model is built with values."""
    return sum(parameter.numel() for parameter in model.parameters()) < _MOST


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


_ALIKE = 1.5  # the ratio of the spreads of two starts that are drawn alike, of as many numbers
_ENOUGH = 64
_OFF = math.log(BEFORE / AFTER)  # a prior for the old number of classes, where only the old head tells it: YOLO's


def starts_otherwise(model: nn.Module, fresh: nn.Module, names: tuple[str, ...], *, off: float = 0.0) -> str:
    """Tell which parameter of a new head starts from other values than in a fresh model: all alike, or spread else.

    Args:
        model: The model with the new head.
        fresh: The fresh one.
        names: The layers of the head.
        off: How far off a number that is the same everywhere may be.
    """
    for name in (f"{one}.{key}" for one in names for key, _ in model.get_submodule(one).named_parameters()):
        ours, theirs = (one.get_parameter(name).detach().float() for one in (model, fresh))
        spreads = [0.0 if (one == one.flatten()[0]).all() else float(one.std(correction=0)) for one in (ours, theirs)]
        apart = max(spreads) > _ALIKE * min(spreads) if theirs.numel() >= _ENOUGH else 0 in spreads != [0, 0]
        if apart and ours.numel() > 1:
            return f"{name} starts with a spread of {spreads[0]:.3g} for {spreads[1]:.3g}"
        first, expected = float(ours.flatten()[0]), float(theirs.flatten()[0])
        if spreads == [0, 0] and abs(first - expected) > off + 1e-3 * max(1, abs(expected)):
            return f"{name} starts at {first:.3g} for {expected:.3g}"
    return ""


# ---- runs on real tensors


def _runs_otherwise(model: nn.Module, fresh: nn.Module, inputs: Inputs | None) -> str:
    """Give the refitted model what the fresh one has learned, and tell how it differs then, in eval or in training."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.load_state_dict(fresh.state_dict())
        run = run_on(fresh, *([] if inputs is None else [inputs]))
        if not run.complete:
            return ""
        labeled = run_with_labels(fresh, run)
        for training, made_up in ((False, run.inputs), (True, labeled.inputs if labeled.complete else run.inputs)):
            try:
                expected = _step(fresh, made_up, training=training)
            except Exception:  # what was made up is enough for fakes alone
                continue
            try:
                found = _step(model, made_up, training=training)
            except Exception as error:
                return f"the refitted model fails: {error}"
            for key in [*expected, *found]:
                if not _same(found.get(key), expected.get(key)):
                    return f"{'in training' if training else 'in eval'}, {key} differs"
    return ""


def _step(model: nn.Module, inputs: Inputs, *, training: bool) -> dict[str, torch.Tensor | None]:
    """Run a model, in training mode with a backward pass too: its outputs, its loss and its gradients, by name."""
    model.train(training)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(1)
        fill = torch.Generator().manual_seed(2)
        memo = {id(value): _real(value, fill) for _, value in named_tensors(inputs)}
        args, kwargs = copy.deepcopy(inputs, memo)
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002 -- what models use
        given = dict(named_tensors(model(*args, **kwargs)))
        found = {f"output {path}": value.detach() for path, value in given.items()}
        if training:
            model.zero_grad()
            loss = next((value for path, value in given.items() if path[-1:] == ("loss",)), None)
            floats = [value for value in given.values() if value.is_floating_point() and value.requires_grad]
            (sum(value.float().sum() for value in floats) if loss is None else loss).backward()
            found |= {f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters()}
    return found


def _real(value: torch.Tensor, fill: torch.Generator) -> torch.Tensor:
    if value.is_floating_point():
        return torch.rand(value.shape, generator=fill).to(value.dtype)
    return torch.ones(value.shape, dtype=value.dtype)


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    alike = one.shape == other.shape and one.dtype == other.dtype
    return alike and (one.is_meta or torch.allclose(one, other, rtol=1e-3, atol=1e-4, equal_nan=True))


# ---- what must stay as it is


class State:
    """All that could change in a model, and around it, without anyone asking."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = self._now()
        tensors = [*model.named_parameters(), *model.named_buffers()]
        self._values = {name: (value, value.detach().clone()) for name, value in tensors if not _is_lazy(value)}

    def changed(self) -> str:
        """Tell what has changed first; nothing where all is as it was."""
        moved = (name for name, (value, before) in self._values.items() if not _is_equal(value, before))
        return _first(_differences(self._now(), self._before)) or _first(f"the values of {name}" for name in moved)

    def _now(self) -> dict[str, object]:
        found: dict[str, object] = {
            "torch's random numbers": hash(torch.get_rng_state().numpy().tobytes()),
            "NumPy's random numbers": hash(str(np.random.get_state()[1:3])),  # noqa: NPY002
            "Python's random numbers": hash(random.getstate()),
            "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()),
            "threads and backends": (torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()),
            "hooks on all modules": [len(table) for table in _tables(nn.modules.module) if "hooks" in table.name],
            "warning filters": list(warnings.filters),
            "default device": str(torch.get_default_device()),
            "logging": (logging.root.manager.disable, logging.root.level),
            "environment": dict(os.environ),
        }
        for name, module in self._model.named_modules(remove_duplicate=False):
            found[f"class of {name}"] = type(module)
            for kind in type(module).__mro__[:-1]:
                if not kind.__module__.startswith("torch."):
                    found[f"attributes of {kind}"] = {key: _content(value) for key, value in vars(kind).items()}
            for key, value in vars(module).items():
                found[f"{name}.{key}"] = _content(value)
            for key, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                grad = None if value.grad_fn is not None else value.grad
                found[f"{name}.{key}"] = (id(value), value.requires_grad, id(grad), _version(value))
        return found


class _Table(dict[Any, Any]):
    name = ""


def _tables(module: object) -> Iterator[_Table]:
    for name, value in vars(module).items():
        if isinstance(value, dict) and name.startswith("_global"):
            table = _Table(value)
            table.name = name
            yield table


def _content(value: object) -> object:
    """What is told of an attribute: plain values themselves, one by one in containers, and all else by identity."""
    if isinstance(value, dict):
        return {key: _content(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_content(one) for one in value]
    return value if isinstance(value, str | int | bool | None) else id(value)


def _version(value: torch.Tensor) -> int:
    return -1 if value.is_inference() else value._version


def _is_lazy(value: torch.Tensor) -> bool:
    return isinstance(value, nn.parameter.UninitializedTensorMixin)


def _is_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and (one.is_meta or torch.equal(one.nan_to_num(), other.nan_to_num()))


def looked_at(model: nn.Module, inputs: Inputs | None, count: int | None, ways: Collection[str] | None = None) -> str:
    """Look at a model in all ways, in eval and in training mode; tell what that changed, which must be nothing.

    Args:
        model: The model.
        inputs: What it takes, if that can't be made up.
        count: Of classes, for attempts to put a head where none fits, or None for no such attempts.
        ways: The names of ways to look, if not all.
    """
    for training in (False, True):
        model.train(training)
        state = State(model)
        for way, look in _WAYS.items() if ways is None else ((way, _WAYS[way]) for way in ways):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    look(model, inputs, count)
            except FtkitError:
                pass
            if changed := state.changed():
                return f"{changed} ({way}, {'in training' if training else 'in eval'} mode)"
    model.eval()
    return ""


def _failing(model: nn.Module, inputs: Inputs | None, count: int | None) -> None:
    """Try to give the first layer of a model another number of outputs, where a copy shows that this fails."""
    first = layers(model)[0]
    if count is not None:
        try:
            twin = copy.deepcopy(model)
        except Exception:  # of weights that weight norm has computed
            return
        try:
            with torch.random.fork_rng(devices=[]):
                replace_head(twin, first.outputs + 1, at=first.name, example_inputs=inputs)
        except HeadError:
            replace_head(model, first.outputs + 1, at=first.name, example_inputs=inputs)


def _refused(model: nn.Module, inputs: Inputs | None, _: int | None) -> None:
    """Try to put in a head that takes another number of features."""
    replace_head(model, lambda width: nn.Linear(width + 1, 3, device="meta"), example_inputs=inputs)


def _summed_up(model: nn.Module, inputs: Inputs | None, _: int | None) -> None:
    run = run_on(model, *([] if inputs is None else [inputs]))
    if run.complete:
        fill = torch.Generator().manual_seed(2)
        memo = {id(value): _real(value, fill) for _, value in named_tensors(run.inputs)}
        args, kwargs = copy.deepcopy(run.inputs, memo)
        summary(model, input_data=(args, kwargs))


_WAYS: dict[str, Callable[[nn.Module, Inputs | None, int | None], object]] = {
    "find_head": lambda model, inputs, _: find_head(model, example_inputs=inputs),
    "replace_head for another width": _refused,
    "replace_head at the first layer": _failing,
    "summary": _summed_up,
}


def _differences(found: dict[str, Any], expected: dict[str, Any]) -> Iterator[str]:
    for name in [*expected, *(name for name in found if name not in expected)]:
        if found.get(name) != expected.get(name):
            yield f"{name}: {found.get(name)} for {expected.get(name)}"[:300]


def _first(several: Iterator[str]) -> str:
    return next(several, "")
