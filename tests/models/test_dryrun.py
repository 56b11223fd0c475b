"""A run in a block leaves no trace, however it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import os
import random
import signal
import sys
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ftkit import adapt_input, append_head, find_head, freeze, param_groups, replace_head, summary
from ftkit._models.dryrun import alone, named_tensors, tensors_in, untouched
from ftkit._torch import FAKE_TENSOR_LOG

STATES: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {  # how each is read, and disturbed
    "torch's random numbers": (lambda: torch.get_rng_state().tolist(), lambda: torch.rand(3)),
    "Python's random numbers": (random.getstate, random.random),
    "numpy's random numbers": (lambda: np.random.get_state()[2], lambda: np.random.rand(3)),  # noqa: NPY002
    "the default dtype": (torch.get_default_dtype, lambda: torch.set_default_dtype(torch.float64)),
    "whether gradients are followed": (torch.is_grad_enabled, lambda: torch.set_grad_enabled(False)),
    "the fast path of attention": (
        torch.backends.mha.get_fastpath_enabled,
        lambda: torch.backends.mha.set_fastpath_enabled(False),
    ),
    "the log of fake tensors": (lambda: FAKE_TENSOR_LOG.disabled, lambda: setattr(FAKE_TENSOR_LOG, "disabled", True)),
    "the collector of garbage": (gc.isenabled, gc.disable),
}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("state", STATES)
def test_what_belongs_to_the_process_is_put_back(state: str, fails: bool) -> None:
    """After a block that disturbs it, and after one that fails besides."""
    read, disturb = STATES[state]
    before = read()
    try:
        with untouched():
            disturb()
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert fails
    assert read() == before


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_followed_in_the_block_alone(mode: Callable[[], Any]) -> None:
    """Whatever holds around it."""
    with mode():
        with untouched():
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()


def test_a_collector_that_was_off_stays_off() -> None:
    """The block switches it on again only if it was on."""
    gc.disable()
    try:
        with untouched():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("fails", [False, True])
def test_the_modules_of_a_block_are_put_back(fails: bool) -> None:
    """Their modes, their plain attributes and the containers in these."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls, self.seen = 0, [1]
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            self.seen.append(self.calls)
            self.cache = x
            if fails:
                raise ZeroDivisionError
            return x

    model = Counting().train()
    try:
        with untouched(model.modules()):
            model.eval()(torch.zeros(2, 2))
    except ZeroDivisionError:
        assert fails
    assert (model.calls, model.seen, model.training, model.norm.training) == (0, [1], True, True)
    assert not hasattr(model, "cache")


def test_blocks_may_be_nested() -> None:
    """The inner one must not wait for the outer one."""
    with untouched(), untouched():
        assert FAKE_TENSOR_LOG.disabled
    assert not FAKE_TENSOR_LOG.disabled


def small() -> nn.Sequential:
    """Return a classifier whose head only a run on fakes can find."""
    stem = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*stem, nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5), nn.LogSoftmax(1))


def state_of_process() -> dict[str, object]:
    """Return all that a run on fakes may touch around it."""
    states: dict[str, object] = {name: read() for name, (read, _) in STATES.items()}
    return states | {
        "filters of warnings": list(warnings.filters),
        "what shows warnings": warnings.showwarning,
        "how a module is called": nn.Module.__call__,
        "inference mode": torch.is_inference_mode_enabled(),
        "the default device": torch.get_default_device(),
    }


def in_threads(work: Callable[[int], object], count: int = 8) -> list[BaseException]:
    """Do the work in so many threads, between which Python switches as often as it can; return what went wrong."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    return errors


def test_threads_read_models_at_once() -> None:
    """One model each, and one that all share: answers are right, and nothing around changes, random numbers too."""
    shared, own = small(), [small() for _ in range(8)]
    parameters = {id(model): set(map(id, model.parameters())) for model in (shared, *own)}
    find_head(shared)  # the first run on fakes imports modules that add filters of warnings
    before = state_of_process()

    def read(number: int) -> None:
        for model in (own[number], shared) * 3:
            assert find_head(model).names == ("6",)
            assert summary(model, (2, 3, 8, 8)).total_params == 205
            groups = param_groups(model, 0.1, layer_decay=0.5)
            assert {id(one) for group in groups for one in group["params"]} == parameters[id(model)]

    assert in_threads(read) == []
    assert state_of_process() == before


def test_threads_change_models_at_once() -> None:
    """Each change of a model that all share is made whole, and nothing around changes but random numbers."""
    shared = small()
    find_head(shared)
    random_numbers = "torch's random numbers"  # new layers draw theirs
    before = state_of_process()

    def change(number: int) -> None:
        model = small()
        replace_head(model, 3)
        adapt_input(model, 1)
        append_head(model, 2)
        summary(shared, (2, 3, 8, 8))
        replace_head(shared, 10 + number)
        freeze(shared, "0")

    assert in_threads(change) == []
    assert shared(torch.zeros(2, 3, 8, 8)).shape[1] in range(10, 18)
    assert {type(one) for one in shared.parameters()} == {nn.Parameter}
    assert state_of_process() | {random_numbers: 0} == before | {random_numbers: 0}


# ---- the tensors in a nest


class Pair(NamedTuple):
    left: object
    right: object


@dataclasses.dataclass
class Record:
    scores: object
    boxes: object = None


leaves = st.sampled_from([None, 1, "text"]) | st.builds(torch.tensor, st.integers(0, 9))
pytrees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from("abc"), inner)
        | st.dictionaries(st.sampled_from("abc"), inner).map(OrderedDict)
        | st.builds(Pair, inner, inner)
        | st.builds(Record, inner, inner)
    ),
    max_leaves=8,
)


def follow(tree: Any, path: tuple[object, ...]) -> Any:
    for step in path:
        tree = getattr(tree, step) if isinstance(tree, Record) else tree[step]
    return tree


def count(tree: Any) -> int:
    if isinstance(tree, torch.Tensor):
        return 1
    if isinstance(tree, dict):
        return sum(map(count, tree.values()))
    if isinstance(tree, list | tuple):
        return sum(map(count, tree))
    return count([tree.scores, tree.boxes]) if isinstance(tree, Record) else 0


@given(pytrees)
def test_each_tensor_lies_where_its_path_says(tree: object) -> None:
    """And none is missed."""
    named = list(named_tensors(tree))
    assert all(follow(tree, path) is tensor for path, tensor in named)
    assert len(named) == count(tree)
    assert [id(tensor) for tensor in tensors_in(tree)] == [id(tensor) for _, tensor in named]


class Positioned(nn.Module):
    """Adds positions that are computed once for all models, as DETR does; nothing names its head."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.readout = nn.Linear(6, 8), nn.Linear(8, 5)

    @staticmethod
    @functools.lru_cache(maxsize=1)
    def positions(shape: torch.Size) -> torch.Tensor:
        return torch.arange(6.0).expand(shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(self.inside(x + self.positions(x.shape)))


@pytest.mark.parametrize("look", [find_head, lambda model: summary(model, (2, 6))])
def test_no_fake_tensor_stays_in_a_cache_of_functions(look: Callable[[nn.Module], object]) -> None:
    """Nor does a real one from there come into the run."""
    model, x = Positioned(), torch.ones(2, 6)
    look(model)
    first = model(x)
    assert type(first) is torch.Tensor
    look(model)
    assert torch.equal(model(x), first)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("own", [False, True])
def test_a_forked_process_does_not_wait_for_threads_that_it_does_not_have(own: bool) -> None:
    """Nor does it lose the turn of its own thread."""
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with alone():
            taken.set()
            done.wait(60)

    thread = threading.Thread(target=hold, daemon=True)
    with alone() if own else contextlib.nullcontext():
        if not own:
            thread.start()
            taken.wait(60)
        child = os.fork()
        if not child:
            signal.alarm(20)  # which ends it, if it waits
            with alone():
                os._exit(7)
    done.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    with alone():  # which is given back here
        pass
