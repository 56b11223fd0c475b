"""The largest number that fits, in few looks."""

from __future__ import annotations

import math

import pytest

from ftkit._cost.search import last_within


@pytest.mark.parametrize("too_many", [10**6, 10**15])
@pytest.mark.parametrize(
    ("value", "most"),
    [
        (lambda x: 7000 + 30 * x, 4),
        (lambda x: 7000 + 30 * x + 8 * x * x, 10),
        (lambda x: 10**6 + x**3, 30),
        (lambda x: max(10**7 + x, 300 * x), 10),  # another moment is the peak
        (lambda x: 5 * x + 100 * math.isqrt(x), 20),
        (lambda x: 9 * (x // 16 * 16), 60),
    ],
)
@pytest.mark.parametrize("last", [3, 336, 70_694, 499_979])
def test_the_last_is_found_in_few_looks(value, most, last, too_many):
    """And the next one is too many."""
    seen = []

    def look(number):
        seen.append(number)
        return value(number)

    found = last_within(look, value(last), 2, too_many)
    assert value(found) <= value(last) < value(found + 1)
    assert len(seen) == len(set(seen)) <= most
