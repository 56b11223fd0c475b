"""One rule for "better", and early stopping by it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftkit import EarlyStopping, FtkitError
from ftkit._monitor import best_first, is_better, metric_value

numbers = st.floats(allow_nan=False, width=32)


@given(numbers, numbers)
def test_min_and_max_are_mirror_images(a: float, b: float) -> None:
    """Lower is better exactly when the negated value is better the other way."""
    assert is_better(a, b, "min") == is_better(-a, -b, "max")


@given(numbers, numbers)
def test_no_two_values_beat_each_other(a: float, b: float) -> None:
    """Better is a strict order."""
    assert not (is_better(a, b) and is_better(b, a))
    assert not is_better(a, a)


@given(
    st.lists(st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0, math.nan, math.inf]))),
    st.sampled_from(["min", "max"]),
)
def test_the_best_comes_first(values: list[float | None], mode: Any) -> None:
    """Nothing beats what stands before it, equals stay in order, and what is no number is left out."""
    ranked = best_first(range(len(values)), lambda index: values[index], mode)
    assert set(ranked) == {index for index, value in enumerate(values) if value is not None and not math.isnan(value)}
    for first, second in itertools.pairwise(ranked):
        assert not is_better(values[second], values[first], mode)
        assert first < second or values[first] != values[second]


@given(st.lists(st.floats(0, 1, width=32), min_size=1), st.integers(1, 5))
def test_stops_exactly_when_patience_runs_out(losses: list[float], patience: int) -> None:
    """It says stop at the first value that ends `patience` values in a row without a new minimum."""
    stopping = EarlyStopping(patience)
    answers = [stopping.step(loss) for loss in losses]
    since_best = [len(losses[: i + 1]) - 1 - losses.index(min(losses[: i + 1])) for i in range(len(losses))]
    expected = next((i for i, stale in enumerate(since_best) if stale >= patience), None)
    assert answers.index(True) == expected if expected is not None else not any(answers)


@given(st.lists(st.floats(0, 1, width=32), min_size=2), st.integers(1, 3), st.data())
def test_a_resumed_run_stops_where_the_whole_one_does(losses: list[float], patience: int, data: st.DataObject) -> None:
    """state_dict carries all that the count needs."""
    cut = data.draw(st.integers(0, len(losses)))
    whole = EarlyStopping(patience, mode="max")
    expected = [whole.step(loss) for loss in losses]
    first, second = EarlyStopping(patience, mode="max"), EarlyStopping(patience, mode="max")
    answers = [first.step(loss) for loss in losses[:cut]]
    second.load_state_dict(first.state_dict())
    assert answers + [second.step(loss) for loss in losses[cut:]] == expected


def test_nan_stops_at_once() -> None:
    """A loss that is no number does not recover by waiting."""
    stopping = EarlyStopping(patience=10)
    assert not stopping.step(1.0)
    assert stopping.step(math.nan)
    assert stopping.best == 1.0


def test_min_delta_asks_for_real_progress() -> None:
    """A gain within min_delta does not reset the count, nor move the best."""
    stopping = EarlyStopping(patience=2, min_delta=0.1)
    assert [stopping.step(value) for value in (1.0, 0.95, 0.91)] == [False, False, True]
    assert stopping.best == 1.0


def test_takes_tensors_and_dicts_of_metrics() -> None:
    """What a loop has at hand goes in as it is."""
    stopping = EarlyStopping(monitor="val/acc", mode="max", patience=1)
    assert not stopping.step({"loss": 3.0, "val/acc": torch.tensor(0.5)})
    assert not stopping.step(torch.tensor([0.6]))
    assert stopping.step({"val/acc": 0.6})


def test_a_missing_metric_is_an_error_with_the_closest_name() -> None:
    """Never a silent zero."""
    with pytest.raises(FtkitError, match=r"'val_los'.*'train_loss', 'val_loss'.*Did you mean 'val_loss'"):
        metric_value({"train_loss": 1.0, "val_loss": 2.0}, "val_los")
    with pytest.raises(FtkitError, match="monitor='val_loss'"):
        EarlyStopping(patience=1).step({"val_loss": 1.0})


@pytest.mark.parametrize(
    "arguments",
    [{"patience": 0}, {"patience": 1.5}, {"patience": 1, "mode": "best"}, {"patience": 1, "min_delta": -1.0}],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, object]) -> None:
    """Before the first epoch, not after the last."""
    with pytest.raises(FtkitError, match="must be"):
        EarlyStopping(**arguments)  # type: ignore[arg-type]  # wrong on purpose


def test_a_foreign_state_is_refused() -> None:
    """The message names what is missing."""
    with pytest.raises(FtkitError, match="stale, stopped"):
        EarlyStopping(patience=1).load_state_dict({"best": 1.0})
