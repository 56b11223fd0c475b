"""The machine for pickles: it agrees with pickle on plain data, and runs nothing."""

from __future__ import annotations

import collections
import contextlib
import decimal
import fractions
import io
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit._pickles.machine import Foreign, Global, read_pickle
from ftkit._tensors.budget import Budget
from ftkit.errors import DamagedFileError
from tests.pickles.states import Custom

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=9)
    | st.binary(max_size=9)
    | st.complex_numbers(allow_nan=False),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=4),
        st.sets(st.integers(), max_size=4),
        st.frozensets(st.text(max_size=3), max_size=4),
    ),
    max_leaves=20,
)


@settings(deadline=None, max_examples=150)
@given(plain, st.integers(0, 5))
def test_machine_agrees_with_pickle(value, protocol):
    """The machine reads plain data of any protocol as pickle itself does."""
    assert read_pickle(io.BytesIO(pickle.dumps(value, protocol)), Budget(99)).tree == value


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60), st.booleans())
def test_machine_survives_anything(data, after_protocol):
    """Whatever the bytes, the machine ends with data or with the one error."""
    with contextlib.suppress(DamagedFileError):
        read_pickle(io.BytesIO(b"\x80\x02" * after_protocol + data + b"."), Budget(99))


def test_machine_records_instead_of_running():
    """Calls, instances and their states become records; names are listed in order."""
    value = [
        collections.OrderedDict(a=1),
        collections.defaultdict(list, {1: [2]}),
        fractions.Fraction(1, 2),
        Custom,
        decimal.Decimal("1.5"),
    ]
    read = read_pickle(io.BytesIO(pickle.dumps(value, 2)), Budget(99))
    assert read.tree[:2] == [{"a": 1}, {1: [2]}]
    assert isinstance(read.tree[2], Foreign)
    assert isinstance(read.tree[3], Global)
    assert read.tree[4].args == ("1.5",)
    assert read.wanted == [f"{Custom.__module__}.Custom"]


def test_machine_does_not_hash_forever():
    """A key of tuples inside tuples, whose hash would take 2**60 steps, is refused at once."""
    bomb = b"\x80\x02}(" + b")" + b"2\x86" * 60 + b"Nu."
    with pytest.raises(DamagedFileError, match="nested"):
        read_pickle(io.BytesIO(bomb), Budget(99))
