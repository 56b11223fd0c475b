"""What an operator holds, seen by running it once on zeros."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import profile

from ftkit import _torch
from ftkit._cost import trials
from ftkit._cost.trials import tried

_SORT = torch.ops.aten.kthvalue.default


def test_a_trial_shows_what_an_operator_holds_besides_its_results():
    """And nothing of the arguments is read, or written to."""
    x = torch.full((100, 1000), torch.nan)
    assert tried(_SORT, (x, 3), {}, _SORT(x, 3)) == pytest.approx(12 * x.numel(), rel=0.01)  # a copy, and its indices
    assert tried(torch.ops.aten.add_.Tensor, (x, x), {}, x) == 0
    assert x.isnan().all()


@pytest.mark.parametrize("examples", [1, 3, 40, 1000])
@pytest.mark.parametrize("first", [False, True])
def test_of_a_large_batch_a_few_examples_are_tried(monkeypatch, examples, first):
    """What they hold is foreseen for the rest, wherever they lie in memory."""
    x = torch.empty(8, 512, examples).permute(2, 1, 0) if first else torch.empty(examples, 8, 512).transpose(1, 2)
    log_softmax = torch.ops.aten._log_softmax.default
    monkeypatch.setattr(trials, "ENOUGH", 2**17)
    assert tried(log_softmax, (x, 2, False), {}, torch.empty(x.shape)) == 4 * x.numel()


def test_examples_that_tell_nothing_of_the_rest_are_not_believed(monkeypatch):
    """Of two operands with as many rows, the result grows with the square."""
    x = torch.empty(300, 64)
    whole = tried(torch.ops.aten._euclidean_dist.default, (x, x), {}, torch.empty(300, 300))
    monkeypatch.setattr(trials, "ENOUGH", 2**15)
    assert tried(torch.ops.aten._euclidean_dist.default, (x, x), {}, torch.empty(300, 300)) == whole > 0


def test_lists_of_tensors_are_tried_too():
    """Such as the indices of an index."""
    x, rows = torch.empty(300, 64), torch.zeros(300, dtype=torch.int)
    assert tried(torch.ops.aten.index.Tensor, (x, [rows]), {}, x) == 8 * len(rows)  # they are made long


def test_what_is_too_large_is_not_tried(monkeypatch):
    """Nor what fails."""
    x = torch.empty(64, 64)
    assert tried(_SORT, (torch.empty(2, 2), 100), {}, x, otherwise=7) == 7
    monkeypatch.setattr(trials, "_MOST_BYTES", 1000)
    assert tried(_SORT, (x, 3), {}, x, otherwise=7) == 7


def test_a_trial_is_seen_by_no_profiler_of_the_callers():
    """And its modes don't change it."""
    trials._held.cache_clear()
    x = torch.empty(100, 77)
    with profile() as record, torch.device("meta"), torch.autocast("cpu"):
        assert tried(_SORT, (x, 3), {}, x) > 0
    assert "aten::kthvalue" not in {event.key for event in record.key_averages()}


def test_without_torchs_first_profiler_nothing_is_tried(monkeypatch):
    """The rules stand then."""
    monkeypatch.delattr(torch.autograd, "_enable_profiler_legacy")
    given, held = _torch.allocated(lambda: torch.empty(10))
    assert (len(given), held) == (10, None)
    trials._held.cache_clear()
    assert tried(_SORT, (torch.empty(100, 78), 3), {}, None, otherwise=7) == 7
    trials._held.cache_clear()
