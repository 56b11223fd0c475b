"""What every test and every doctest of ftkit runs under."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# A test that reaches for weights or data on a hub must fail at once, not download them.
os.environ["HF_HUB_OFFLINE"] = "1"

# They import frameworks; their own tests run what their docstrings show.
collect_ignore = ["src/ftkit/lightning.py", "src/ftkit/transformers.py"]

# The clock of a busy machine says nothing about an example; CI draws the same ones each time.
settings.register_profile("ftkit", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("ftkit")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start every test from the same random numbers."""
    import random

    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (code under test may draw from the global generator)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Print examples as in a usual terminal, and reports about temporary folders, whose names are long, in one line."""
    monkeypatch.setenv("COLUMNS", "80" if type(request.node).__name__ == "DoctestItem" else "400")


@pytest.fixture(autouse=True)
def _doctest_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """Run a docstring's example in an empty folder, so that it may write files by plain names."""
    if type(request.node).__name__ != "DoctestItem":
        yield
        return
    before = Path.cwd()
    os.chdir(tmp_path)
    yield
    os.chdir(before)
