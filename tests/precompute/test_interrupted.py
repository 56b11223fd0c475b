"""What a block of precompute meets that its frontier did not: passes cut short, other heads, hooks on the model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from ftkit import freeze, precompute
from ftkit.errors import FtkitError

X = torch.randn(22, 6, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(X, torch.arange(22) % 3)


class Net(nn.Module):
    """A frozen body and a head."""

    def __init__(self, body: nn.Module | None = None, head: nn.Module | None = None) -> None:
        super().__init__()
        self.body = nn.Linear(6, 8) if body is None else body
        self.head = nn.Linear(8, 3) if head is None else head
        freeze(self, "body")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify."""
        return self.head(self.body(x))


def rows_of(cached: Any) -> torch.Tensor:
    return next(iter(cached.loader(batch_size=11)))[0]


def test_forward_looks_as_it_did(tmp_path: Path) -> None:
    """Trainers pass what its signature takes: one with ``**kwargs`` they would pass more, and average other losses."""
    model = Net()
    before = [inspect.signature(one.forward) for one in (model, model.body, model.head)]
    with precompute(model, DATA, tmp_path):
        assert [inspect.signature(one.forward) for one in (model, model.body, model.head)] == before


class Counted(nn.Module):
    """Gives back how many samples there are."""

    def __init__(self, what: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.layer, self.what = nn.Linear(6, 8), what

    def forward(self, x: torch.Tensor) -> Any:
        """Give features and a number."""
        return self.layer(x), self.what(x)


@pytest.mark.parametrize("what", [lambda x: x.shape[0], lambda x: tuple(x.shape), len], ids=["int", "tuple", "len"])
def test_a_number_that_hangs_on_the_batch_is_not_kept(what: Callable[[Any], Any], tmp_path: Path) -> None:
    class Divided(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            features, number = self.body(x)
            return self.head(features) / (number if isinstance(number, int) else number[0])

    model = Divided(Counted(what))
    cached = precompute(model, DATA, tmp_path)
    with cached:
        torch.testing.assert_close(model(rows_of(cached)), model(X[:11]))
    assert "another for another batch" in cached.not_skipped["body"]


class Stopping(nn.Module):
    """Can be interrupted from the keyboard."""

    stop = False

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute, or don't."""
        if type(self).stop:
            raise KeyboardInterrupt
        return self.layer(x)


@pytest.mark.parametrize("again", [True, False], ids=["in the next block", "after it"])
def test_what_an_interrupted_pass_was_given_is_gone_with_it(again: bool, tmp_path: Path) -> None:
    class Sided(Net):
        def __init__(self) -> None:
            super().__init__()
            self.side = Stopping()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.side(x) + self.body(x))

    model = Sided()
    right = model(X[8:12])
    cached = precompute(model, DATA, tmp_path)

    def interrupted() -> None:
        with cached:
            for step, (rows, _) in enumerate(cached.loader(batch_size=4)):
                Stopping.stop = step == 1
                model(rows)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    Stopping.stop = False
    if again:
        with cached:
            torch.testing.assert_close(model(X[8:12]), right)
    torch.testing.assert_close(model(X[8:12]), right)


class Wrapped(nn.Module):
    """A head with its layer inside."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify."""
        return self.layer(x)


@pytest.mark.parametrize("place", ["layer", "whole"])
def test_a_new_layer_in_the_head_is_refused_and_not_passed_over(place: str, tmp_path: Path) -> None:
    """What was kept goes to the old one."""
    model = Net(head=Wrapped())
    cached = precompute(model, DATA, tmp_path)
    with cached:
        rows = rows_of(cached)
        model(rows)
        if place == "layer":
            model.head.layer = nn.Linear(8, 3)
        else:
            model.head = nn.Sequential(Wrapped(), nn.Tanh())
        with pytest.raises(FtkitError, match="again"):
            model(rows)
    again = precompute(model, DATA, tmp_path)
    with again:
        output = model(rows_of(again))
        torch.testing.assert_close(output, model(X[:11]))
        output.sum().backward()
    assert all(one.grad is not None for one in model.head.parameters())


class Deep(Net):
    """Without a tail that can be called at once."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify."""
        return self.head(self.body(x)) + 1


@pytest.fixture(params=[Net, Deep])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Net, torch.Tensor]]:
    """Return a model in its block, which has run there, and rows."""
    model: Net = request.param()
    cached = precompute(model, DATA, tmp_path)
    with cached:
        rows = rows_of(cached)
        model(rows)
        yield model, rows


def test_a_hook_before_the_model_is_refused(opened: tuple[Net, torch.Tensor]) -> None:
    model, rows = opened
    model.register_forward_pre_hook(lambda _, given: (given[0] + torch.randn(given[0].shape),))
    with pytest.raises(FtkitError, match="other hooks before its forward pass"):
        model(rows)


def test_a_hook_after_the_model_gets_no_bytes_of_rows(opened: tuple[Net, torch.Tensor]) -> None:
    model, rows = opened
    handle = model.register_forward_hook(lambda _, given, output: output + given[0].float().mean())
    with pytest.raises(FtkitError, match="a value of the frozen part that was not kept"):
        model(rows)
    handle.remove()
    torch.testing.assert_close(model(rows), model(X[:11]))


def test_a_forward_that_is_hung_on_the_model_in_the_block_is_noticed(opened: tuple[Net, torch.Tensor]) -> None:
    model, rows = opened
    forward = type(model).forward.__get__(model)
    model.forward = lambda x: forward(x * 2)
    with pytest.raises(FtkitError, match=r"computed anew|can't be seen from outside"):
        model(rows)


def test_the_mode_of_what_trains_may_act_on_what_goes_into_the_frozen_part(tmp_path: Path) -> None:
    class Moody(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x * 2 if self.head.training else x))

    model = Moody()
    cached = precompute(model, DATA, tmp_path)
    with cached:
        rows = rows_of(cached)
        torch.testing.assert_close(model(rows), model(X[:11]))
        model.head.eval()
        with pytest.raises(FtkitError, match=r"computed anew|can't be seen from outside"):
            model(rows)


def test_one_changed_number_is_seen_where_the_block_ends(tmp_path: Path) -> None:
    """A write past what torch counts, in a large model, away from what is looked at in passing."""
    model = Net(nn.Sequential(nn.Linear(6, 512), *(nn.Linear(512, 512) for _ in range(80)), nn.Linear(512, 8)))
    cached = precompute(model, DATA, tmp_path)

    def written() -> None:
        with cached:
            rows = rows_of(cached)
            model(rows)
            model.body[40].weight.data[301, 77] += 5

    with pytest.raises(FtkitError, match="changed since"):
        written()
