"""Two summaries side by side."""

from __future__ import annotations

import pytest
from torch import nn

from ftkit import FtkitError, compare, summary
from tests.summaries.helpers import TOKENS, Network


def test_compare_shows_what_differs():
    """Totals, and the modules whose cost is not the same."""
    model = Network()
    before = summary(model, **TOKENS)
    model.blocks.requires_grad_(False)
    both = compare(before, summary(model, **TOKENS))
    assert [line.split() for line in str(both).split("\n")][3] == ["trainable", "85.3", "K", "68.2", "K", "-20.1%"]
    assert {"blocks", "blocks.0", "blocks.0.norm"} <= set(both.differing())
    assert "spare" not in both.differing()
    other = summary(nn.Linear(4, 4), (2, 4))
    assert str(compare(before, other)).split("\n")[0].split() == ["Network", "Linear"]
    with pytest.raises(FtkitError, match=r"not Linear\("):
        compare(before, nn.Linear(4, 4))
