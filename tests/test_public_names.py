"""What is public, and its signatures: a change here is a change for every user."""

from __future__ import annotations

import inspect

import ftkit


def test_all_lists_every_public_name_once() -> None:
    """Sorted, without doubles, and each is really there."""
    assert len(set(ftkit.__all__)) == len(ftkit.__all__)
    assert set(ftkit.__all__) <= set(dir(ftkit))
    assert [name for name in ftkit.__all__ if getattr(ftkit, name).__name__ != name] == []


def test_every_public_name_is_documented_by_an_example() -> None:
    """Docstrings have an example that the tests run; reports are shown by the function that makes them."""
    made_by_functions = {name for name in ftkit.__all__ if name.endswith(("Report", "Info", "Diff"))}
    made_by_functions |= {"Checkpoint", "Comparison", "Finding", "Head", "ModelSummary", "SummaryRow"}
    lacking = [name for name in ftkit.__all__ if ">>>" not in (inspect.getdoc(getattr(ftkit, name)) or "")]
    assert set(lacking) <= made_by_functions


def test_names_live_in_the_module_that_the_stub_says() -> None:
    """So that a traceback and the documentation agree on where to look."""
    assert [name for name in ftkit.__all__ if not getattr(ftkit, name).__module__.startswith("ftkit.")] == []
