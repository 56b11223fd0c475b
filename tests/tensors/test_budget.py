"""What a file may cost: any honest one less than it has, whatever its size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit._tensors.budget import Budget
from ftkit.errors import DamagedFileError

MERSENNE = 2**61 - 1

keys = st.recursive(
    st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers(),
    lambda parts: st.lists(parts, max_size=5).map(tuple) | st.frozensets(parts, max_size=5),
    max_leaves=8,
)


@given(st.lists(keys), st.integers(1, 300))
def test_honest_keys_cost_little(found, times):
    """The same keys in any number of tables are no collisions."""
    budget = Budget(0)
    for _ in range(times):
        assert budget.keys(found) is found


@pytest.mark.parametrize(
    "key",
    [
        lambda at: at * MERSENNE,
        lambda at: -at * MERSENNE,
        lambda at: complex(-1_000_003 * at, at),
        lambda at: (at * MERSENNE, 0),
    ],
)
def test_keys_of_one_hash(key):
    """Thousands of different keys with one hash, each of which is compared with all others, are refused."""
    budget = Budget(0)
    with pytest.raises(DamagedFileError, match="work"):
        for at in range(1, 10_000):
            budget.keys([key(at)])


def test_tuples_in_tuples():
    """They are keys like others, unless hashing them would take forever."""
    budget, wide, deep, shared = Budget(0), tuple(range(10_000)), (), (1, 2)
    for _ in range(40):
        deep, shared = (deep,), (shared, shared)
    budget.keys([wide, deep, (1, (2, 3))])
    with pytest.raises(DamagedFileError, match="work"):
        budget.keys([shared])
    for _ in range(40):
        deep = (deep,)
    with pytest.raises(DamagedFileError, match="nested more than 50"):
        Budget(0).keys([deep])


@pytest.mark.parametrize("spent", [{"nbytes": 1 << 30}, {"steps": 1 << 30}])
def test_more_for_larger_files(spent):
    """What is a bomb in a small file is fair in one of its size, and in what is no file."""
    with pytest.raises(DamagedFileError, match="a bomb"):
        Budget(1000).charge(**spent)
    Budget(1 << 30).charge(**spent)
    Budget(float("inf")).charge(**spent)
