"""What nothing shows from outside is met by computing batches anew, whichever way samples are known."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ftkit import FtkitError, freeze_except
from ftkit._precompute.precompute import precompute

Way = Callable[["Model", Tensor], Tensor]


class Scaled(nn.Module):
    """A part that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.factor = nn.Linear(6, 8), ctypes.c_double(1.0)

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.layer(x) * self.factor.value
        return scaled


class Model(nn.Module):
    """A body and a head, and what is on the way to the body."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self._way = Scaled(), nn.Linear(8, 3), way
        freeze_except(self, "head")

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(self._way(self, x)))
        return scores


def data(samples: int = 22) -> TensorDataset:
    torch.manual_seed(1)
    inputs = torch.randn(samples, 6).clamp(max=2.4)
    inputs[-1] = 3
    return TensorDataset(inputs, torch.arange(samples) % 3)


def batches(source: Any, by_content: bool, folder: Path, model: nn.Module, size: int) -> tuple[Any, Iterable[Any]]:
    loader = DataLoader(source, size)
    cached = precompute(model, loader if by_content else source, folder)
    return cached, loader if by_content else cached.loader(batch_size=size)


def by_values(_: Model, x: Tensor) -> Tensor:
    return 2 * x if bool((x > 1.2).any()) else x


def by_one_sample(_: Model, x: Tensor) -> Tensor:
    return 2 * x if bool((x > 2.5).any()) else x


def by_gradients(_: Model, x: Tensor) -> Tensor:
    return x if torch.is_grad_enabled() else 2 * x


def by_mode(m: Model, x: Tensor) -> Tensor:
    return x if m.training else 2 * x


@pytest.mark.parametrize(("way", "samples"), [(by_values, 22), (by_one_sample, 120)])
def test_decisions_on_a_batch_with_a_loader_of_one_s_own(way: Way, samples: int, tmp_path: Path) -> None:
    """In each epoch, a sample meets others, on which Python decides otherwise."""
    model, loader = Model(way), DataLoader(data(samples), 4, shuffle=True)
    with pytest.raises(FtkitError, match=r"computed anew|gives for a sample"), precompute(model, loader, tmp_path):
        for _ in range(6):
            for inputs, _labels in loader:
                model(inputs)


@pytest.mark.parametrize("seen_before", [True, False])
def test_without_gradients_with_a_loader_of_one_s_own(seen_before: bool, tmp_path: Path) -> None:
    """What is new then is computed as in training, too."""
    model, loader = Model(by_gradients), DataLoader(data(), 11)
    with precompute(model, loader, tmp_path):
        for inputs, _ in loader if seen_before else ():
            model(inputs)
        with pytest.raises(FtkitError, match="computed anew"), torch.no_grad():
            model(next(iter(loader))[0])


@pytest.mark.parametrize("by_content", [False, True])
def test_an_object_that_nobody_sees_into(by_content: bool, tmp_path: Path) -> None:
    """It changes in the block; both ways it is met soon."""
    model = Model(lambda _, x: x)
    cached, loader = batches(data(), by_content, tmp_path, model, 11)
    with pytest.raises(FtkitError, match="computed anew"), cached:
        for epoch in range(3000):
            model.body.factor.value = 2.0 if epoch > 3 else 1.0
            for inputs, _ in loader:
                model(inputs)


@pytest.mark.parametrize("with_autocast", [False, True])
@pytest.mark.parametrize("by_content", [False, True])
def test_a_change_before_the_last_batch(by_content: bool, with_autocast: bool, tmp_path: Path) -> None:
    """It is met where the block ends, in whichever mode and autocast that is."""
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=with_autocast)
    for changes in (False, True):
        model = Model(lambda _, x: x)
        with autocast:
            cached, loader = batches(data(), by_content, tmp_path, model, 11)
        with pytest.raises(FtkitError, match="computed anew") if changes else contextlib.nullcontext(), cached:
            for epoch in range(4):
                model.train(epoch % 2 == 0)
                for at, (inputs, _) in enumerate(loader):
                    model.body.factor.value = 2.0 if changes and epoch == 3 and at else 1.0
                    with autocast:
                        model(inputs)
        assert not model.training


@pytest.mark.parametrize("by_content", [False, True])
@pytest.mark.parametrize("in_between", [0, 1])
def test_a_change_just_after_a_check(in_between: int, by_content: bool, tmp_path: Path) -> None:
    """It is met where the block ends, also if the last call is one that takes nothing that is kept."""
    model, samples = Model(lambda _, x: x), data()
    cached, loader = batches(samples, by_content, tmp_path, model, 11)
    with pytest.raises(FtkitError, match="computed anew"), cached:
        for _ in range(3):
            for inputs, _labels in loader:
                model(inputs)
        spots = cached._player.spots
        assert spots is not None
        spots._next, done = 0.0, spots.done
        model(inputs)
        assert spots.done == done + 1
        model.body.factor.value = 2.0
        model(inputs)
        for _ in range(in_between):
            model(samples.tensors[0][:5].double().float() + (1 if by_content else 0))
            assert spots.done == done + 1


def test_what_was_checked_last_is_not_checked_once_more(tmp_path: Path) -> None:
    model = Model(lambda _, x: x)
    with precompute(model, data(), tmp_path) as cached:
        model(next(iter(cached.loader(batch_size=11)))[0])
    assert cached._player.spots is not None
    assert cached._player.spots.done == 1


@pytest.mark.parametrize("by_content", [False, True])
def test_an_error_that_was_caught_does_not_come_twice(by_content: bool, tmp_path: Path) -> None:
    model = Model(lambda _, x: x)
    cached, loader = batches(data(), by_content, tmp_path, model, 11)
    with cached:
        for _ in range(2):
            for inputs, _labels in loader:
                model(inputs)
        model.body.factor.value, cached._player.spots._next = 2.0, 0.0  # type: ignore[union-attr]
        with pytest.raises(FtkitError, match="computed anew"):
            model(inputs)


@pytest.mark.parametrize("by_content", [False, True])
@pytest.mark.parametrize("value", [0, 7, 255])
def test_a_batch_that_was_written_to_since_tells_nothing(value: int, by_content: bool, tmp_path: Path) -> None:
    """Also through NumPy, which torch does not see."""
    cached, loader = batches(data(), by_content, tmp_path, model := Model(lambda _, x: x), 11)
    with cached:
        for _ in range(3):
            for inputs, _ in loader:
                model(inputs)
        inputs.numpy()[:] = value


def many_flags(_: Model, x: Tensor) -> Tensor:
    seen = [bool(one) for one in (x[:, :5] > 0).any(0)]
    return x * 3 if bool((x[:, 5] > 2.5).any()) else x * (1 + 0 * len(seen))


def test_rows_that_were_computed_under_other_decisions(tmp_path: Path) -> None:
    """Of the batch of the first pass; with dozens of kinds of batches, of which all but a few are right."""
    model = Model(many_flags)
    found = r"anew for sample 384|Sample 3\d\d gives another result"  # precompute may happen upon one of them itself
    with pytest.raises(FtkitError, match=found), precompute(model, data(400), tmp_path) as cached:
        for rows, _ in cached.loader(batch_size=2):
            model(rows)


def test_kinds_of_batches_without_end(tmp_path: Path) -> None:
    """The first of each is computed anew, however many there are."""
    model = Model(lambda m, x: (many_flags(m, x), by_size(x))[1])
    with pytest.raises(FtkitError, match="computed anew"), precompute(model, data(64), tmp_path) as cached:
        rows = torch.cat([rows for rows, _ in cached.loader(batch_size=16)])
        for size in range(1, 41):
            model(rows[:size])
    assert cached._player.spots is not None
    assert cached._player.spots.done > 20


def by_size(x: Tensor) -> Tensor:
    return x * 2 if len(x) == 40 else x


@pytest.mark.parametrize("by_content", [False, True])
def test_a_batch_is_computed_anew_as_it_was_given(by_content: bool, tmp_path: Path) -> None:
    """Where Python decides, that is later: in the mode and autocast of then, and whatever became of its memory."""
    model = Model(lambda m, x: x if bool((x > 9).any()) and m.training else x * 1)
    static = torch.empty(11, 6)
    with torch.autocast("cpu", torch.bfloat16):
        cached, loader = batches(data(), by_content, tmp_path, model, 11)
    with cached:
        for epoch in range(4):
            model.train(epoch % 2 == 0)
            for inputs, _ in loader:
                given = static.copy_(inputs) if by_content else inputs
                with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(model.training):
                    model(given)
    assert cached._player.spots is not None
    assert cached._player.spots.done > 2


def test_hooks_that_would_see_samples_twice(tmp_path: Path) -> None:
    """They stay quiet, and it is said once that nothing is computed anew."""
    model, seen = Model(lambda _, x: x), list[int]()
    model.head.register_forward_hook(lambda *_: seen.append(1))
    with precompute(model, data(), tmp_path) as cached:
        seen.clear()
        with pytest.warns(UserWarning, match="hooks on head"):
            model(next(iter(cached.loader(batch_size=11)))[0])
        model(next(iter(cached.loader(batch_size=10)))[0])
    assert len(seen) == 2


def test_a_value_that_forward_stores_for_the_loss(tmp_path: Path) -> None:
    """If it is not kept, the error says what to do."""

    def stores(m: Model, x: Tensor) -> Tensor:
        m.seen = x
        return x

    model = Model(stores)
    with precompute(model, data(), tmp_path) as cached:
        model(next(iter(cached.loader(batch_size=11)))[0])
        with pytest.raises(FtkitError, match=r"have forward\(\) return it"):
            model.seen.mean()


def test_batches_of_several_data_sets_joined(tmp_path: Path) -> None:
    """As of labelled samples and others; those of the first are computed anew."""
    model, others = Model(lambda _, x: x), TensorDataset(torch.randn(9, 6), torch.zeros(9).long())
    one, other = precompute(model, data(), tmp_path), precompute(model, others, tmp_path)
    with one, other:
        labelled, _ = next(iter(one.loader(batch_size=8)))
        unlabelled, _ = next(iter(other.loader(batch_size=8)))
        plain = torch.cat([data().tensors[0][:8], others.tensors[0][:8]])
        assert torch.equal(model(torch.cat([labelled, unlabelled])), model(plain))
    assert one._player.spots is not None
    assert one._player.spots.done == 1


@pytest.mark.parametrize("what", [0, 1])
def test_a_data_set_that_changes_in_the_block(what: int, tmp_path: Path) -> None:
    """Its inputs, or its labels, under a loader that was made before."""
    model, samples = Model(lambda _, x: x), data()
    with (
        pytest.raises(FtkitError, match=r"is not what it was when the frozen part was computed"),
        precompute(model, samples, tmp_path) as cached,
    ):
        loader = cached.loader(batch_size=11)
        for epoch in range(3000):
            if epoch == 4:
                samples.tensors[what].copy_(samples.tensors[what].flip(0))
            for rows, _ in loader:
                model(rows)


class Squeezing(nn.Module):
    """Drops the batch, too, where it is one sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(1, 4, 6)

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = self.layer(x[:, None]).squeeze()
        return values


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("by_content", [True, False])
def test_a_frozen_part_that_squeezes(by_content: bool, training: bool, tmp_path: Path) -> None:
    """It does something else with a batch of one, and whatever follows may, too."""
    model = nn.Sequential(Squeezing(), nn.Linear(4, 3))
    freeze_except(model, "1")
    model.train(training)
    cached, loader = batches(data(9), by_content, tmp_path, model, 4)
    with pytest.raises(FtkitError, match=r"the shape \[4\] for a batch of 1 sample, in the place of \[1, 4\]"), cached:
        for rows, _ in loader:
            model(rows)
    with cached:
        for rows, _ in list(loader)[:2]:
            assert model(rows).shape == (4, 3)


class HeldByTrain(nn.Module):
    """Keeps its body in eval mode by a ``train`` of its own, as many tutorials do."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)), nn.Linear(8, 3)
        self.body.requires_grad_(False)

    def train(self, mode: bool = True) -> HeldByTrain:
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(x))
        return scores


@pytest.mark.parametrize("by_content", [True, False])
def test_a_train_method_that_holds_a_part_in_eval_mode(by_content: bool, tmp_path: Path) -> None:
    """Where the block ends, too, that part is computed as it was."""
    model = HeldByTrain().train()
    cached, loader = batches(data(12), by_content, tmp_path, model, 4)
    assert cached.skipped == ["body"]
    with cached:
        for _ in range(3):
            for (rows, _), (inputs, _) in zip(loader, DataLoader(data(12), 4), strict=True):
                torch.testing.assert_close(model(rows), model.head(model.body(inputs)))
    assert not model.body.training
