"""The hint with the closest names, and the family of errors."""

from __future__ import annotations

import pytest

from ftkit import FtkitError, errors
from ftkit.errors import did_you_mean


def test_every_error_is_an_ftkit_error() -> None:
    """One except clause catches all that ftkit raises on purpose."""
    children = [getattr(errors, name) for name in errors.__all__ if name != "did_you_mean"]
    assert len(children) > 5
    assert all(issubclass(child, FtkitError) for child in children)


@pytest.mark.parametrize(
    ("name", "candidates", "hint"),
    [
        ("layr4", ["layer3", "layer4", "fc"], " Did you mean 'layer4' or 'layer3'?"),
        ("FC", ["fc", "conv1"], " Did you mean 'fc'?"),
        ("zzz", ["layer3", "layer4"], ""),
        ("anything", [], ""),
    ],
)
def test_did_you_mean(name: str, candidates: list[str], hint: str) -> None:
    """The closest come first, letter case aside; nothing close gives no hint."""
    assert did_you_mean(name, candidates) == hint


def test_a_write_error_is_an_os_error_too() -> None:
    """Code that already catches OSError around a save goes on working."""
    assert issubclass(errors.FileWriteError, OSError)
    assert str(errors.FileWriteError("Can't write x.")) == "Can't write x."
