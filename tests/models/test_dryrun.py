"""A run in a block leaves no trace, however it ends."""

from __future__ import annotations

import dataclasses
import gc
import random
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ftkit import find_head, replace_head
from ftkit._models.dryrun import named_tensors, tensors_in, untouched
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


def test_threads_take_turns() -> None:
    """Two that find and replace heads at once leave logs and random numbers as they were."""
    errors: list[BaseException] = []
    inside = 0

    def work() -> None:
        nonlocal inside
        try:
            for _ in range(3):
                with untouched():
                    inside += 1
                    assert inside == 1
                    inside -= 1
                model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5), nn.LogSoftmax(1))
                assert find_head(model).names == ("3",)
                assert replace_head(model, 3).out_features == 3
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert not FAKE_TENSOR_LOG.disabled
    assert torch.backends.mha.get_fastpath_enabled()
    assert gc.isenabled()


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
