"""What is noted in the thread that computes, while others use what the model is made of."""

from __future__ import annotations

import contextlib
import copy
import os
import queue
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ftkit import FtkitError, freeze_except, precompute
from tests.precompute.loops import at_once


class Net(nn.Module):
    """A frozen stem, and a frozen body behind it, of which something is kept."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.body = nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.norm: nn.Module = nn.Identity()
        self.head, self.scale = nn.Linear(8, 3), nn.Parameter(torch.ones(8))
        freeze_except(self, "head", "norm", "scale")

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.norm(self.body(self.stem(x)) * self.scale))
        return scores


class Other(nn.Module):
    """Another model with the same body."""

    def __init__(self, model: Net) -> None:
        super().__init__()
        self.body = model.body

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.body(x)
        return output


WAYS = {"a part": lambda model: model.body, "another model": Other}


def data() -> TensorDataset:
    return TensorDataset(torch.randn(8, 6, generator=torch.Generator().manual_seed(1)))


class Meeting:
    """Each time that one thread comes by a module, it stops, and another one does something."""

    def __init__(self, module: nn.Module, *, seconds: float = 20) -> None:
        self._asked, self._done, self._thread = queue.Queue[bool](), queue.Queue[None](), 0
        self.count = 0

        def wait(*_: Any) -> None:
            if threading.get_ident() == self._thread:
                self._asked.put(True)
                try:
                    self._done.get(timeout=seconds)
                except queue.Empty:  # the other one waits itself
                    self._thread = 0

        wait.__module__ = "ftkit.tests"  # a hook of a stranger would be refused
        module.register_forward_pre_hook(wait)

    def of(self, one: Callable[[], Any], other: Callable[[], Any]) -> list[Any]:
        """What both give, or the errors with which they end."""

        def first() -> Any:
            self._thread = threading.get_ident()
            try:
                return one()
            finally:
                self._asked.put(False)

        def second() -> Any:
            found = None
            try:
                while self._asked.get(timeout=20):
                    found = other()
                    self.count += 1
                    self._done.put(None)
            finally:
                self._thread = 0
                self._done.put(None)
            return found

        return at_once(first, second)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("when", ["is watched", "is computed", "is computed anew"])
def test_another_thread_runs_what_is_kept_while_it(when: str, way: str, tmp_path: Path) -> None:
    """Each gets what is its own, now and from the file."""
    model, loader = Net(), DataLoader(data(), 4)
    (x,), (y,) = loader
    meeting, other = Meeting(model.stem), WAYS[way](model)

    def run() -> Tensor:
        return other(model.stem(y))

    with torch.no_grad():
        expected, of_other = model(x), run()
        if when == "is watched":
            cached, found = meeting.of(lambda: precompute(model, loader, tmp_path), run)
            torch.testing.assert_close(found, of_other)
            assert cached.skipped == ["stem", "body"]
        with precompute(model, loader, tmp_path):
            if when == "is computed anew":
                model(x)
            if when != "is watched":
                torch.testing.assert_close(meeting.of(lambda: model(x), run), [expected, of_other])
            torch.testing.assert_close(model(x), expected)
        assert meeting.count
        with precompute(model, loader, tmp_path):
            torch.testing.assert_close(model(x), expected)


def test_another_thread_calls_the_model_while_it_is_watched(tmp_path: Path) -> None:
    """It waits for its turn, as it would meet the model in another mode."""
    model, loader = Net(), DataLoader(data(), 4)
    model.norm = nn.BatchNorm1d(8)
    ((x,), _), state = loader, copy.deepcopy(model.state_dict())
    expected = model.eval()(x)
    meeting = Meeting(model.stem, seconds=0.3)
    cached, found = meeting.of(lambda: precompute(model, loader, tmp_path), lambda: model(x))
    assert cached.skipped == ["stem", "body"]
    torch.testing.assert_close((found, model.state_dict()), (expected, state))


@pytest.mark.parametrize("by_content", [False, True])
def test_a_forward_that_runs_what_is_kept_in_a_thread_of_its_own(by_content: bool, tmp_path: Path) -> None:
    """For large batches, say. There, what passes is not seen."""

    class Pooled(Net):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) < 4:
                return super().forward(x)
            (frozen,) = at_once(lambda: self.body(self.stem(x)))
            scores: Tensor = self.head(self.norm(frozen * self.scale))
            return scores

    model, loader = Pooled(), DataLoader(data(), 4)
    source, error = loader if by_content else data(), r"did not come by body .* in the thread"
    with pytest.raises(FtkitError, match=error), precompute(model, source, tmp_path, batch_size=4):
        model(*next(iter(loader)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("own", [False, True])
def test_a_process_that_is_forked_while_it_is_computed(own: bool, tmp_path: Path) -> None:
    """By the thread that computes, or by another one. It runs the same modules, and the model, as if nothing were."""
    model, loader = Net(), DataLoader(data(), 4)
    (x,), (y,) = loader
    expected, of_other = model(x), (model.body(model.stem(y)), model(y))

    def fork() -> int:
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                signal.alarm(20)  # which ends it, if it waits
                torch.testing.assert_close((model.body(model.stem(y)), model(y)), of_other)
                os._exit(7)
            os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def hook(*_: Any) -> None:
        if wanted.is_set():
            wanted.clear()
            codes.append(fork())

    wanted, codes = threading.Event(), list[int]()
    hook.__module__ = "ftkit.tests"  # a hook of a stranger would be refused
    model.stem.register_forward_pre_hook(hook)
    meeting = Meeting(model.stem)
    with precompute(model, loader, tmp_path):
        if own:
            wanted.set()
            found = model(x)
        else:
            found, _ = meeting.of(lambda: model(x), lambda: codes.append(fork()))
        assert set(codes) == {7}
        torch.testing.assert_close([found, model(x)], [expected] * 2)
