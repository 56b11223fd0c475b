"""The global random generators go on where they were."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftkit._checkpoints import random_numbers
from ftkit._models.undo import Undo
from ftkit._tensors.pytree import pack, unpack
from ftkit.errors import CheckpointError


def draw() -> list[float]:
    """The next numbers of all generators; a normal one makes python and numpy keep a second."""
    python = [random.random(), random.gauss()]
    return [*python, *np.random.normal(size=3), *torch.rand(2).tolist()]  # noqa: NPY002


@given(st.integers(0, 9))
def test_all_generators_go_on(count: int) -> None:
    """The numbers that follow a state are the same again, through a file's form too; undone, they go on as before."""
    for _ in range(count):
        draw()
    saved = unpack(*pack(random_numbers.state()))
    expected = draw()
    there = random_numbers.state()
    with pytest.raises(KeyboardInterrupt), Undo() as undo:
        random_numbers.plan(saved)(undo)
        assert draw() == expected
        raise KeyboardInterrupt
    assert repr(random_numbers.state()) == repr(there)


@pytest.mark.parametrize("broken", [{}, {"python": 1}, {"torch": torch.ones(3)}, {"numpy": {"state": 1}}])
def test_what_is_no_state_is_refused(broken: dict[str, Any]) -> None:
    """It is noticed in the plan."""
    state = random_numbers.state() | broken if broken else {}
    with pytest.raises(CheckpointError, match="random state"):
        random_numbers.plan(state)
