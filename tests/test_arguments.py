"""Arguments: what counts as what, and what is said of the rest."""

from __future__ import annotations

import fractions
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftkit._arguments import byte_count, call, came, flag, listed, local_path, path_or_url, real_number, whole_number
from ftkit.errors import FtkitError


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("x" * 100, f"'{'x' * 29}...{'x' * 26}'"),
        (torch.nn.Linear, "the class Linear"),
        (torch.zeros(3, 3), "a Tensor"),
        (list(range(100)), "a list"),
        ({"a": 1}, "{'a': 1}"),
        ("a\x1b[2J", "'a\\x1b[2J'"),
        (lambda: 0, "a function"),
        (torch.optim.AdamW([torch.zeros(1)]), "an AdamW"),
        (torch.optim.SGD([torch.zeros(1)], lr=1), "an SGD"),
        (type("UNet", (), {})(), "a UNet"),
    ],
)
def test_what_came(value: object, words: str) -> None:
    """What is short is written, of all else the kind is told; nothing reaches a terminal that could move it."""
    assert came(value) == words


@given(st.integers(), st.integers())
def test_whole_numbers(value: int, least: int) -> None:
    """An int comes back, or is too small."""
    if value < least:
        with pytest.raises(FtkitError, match="at least"):
            whole_number("n", value, least=least)
    else:
        assert whole_number("n", value, least=least) == value


@pytest.mark.parametrize(
    "value", [True, np.True_, torch.tensor(True), 1.0, np.float64(1), "1", None, [1], b"1", 1 + 0j]
)
def test_no_whole_numbers(value: Any) -> None:
    """A truth value is none either, whoever made it."""
    with pytest.raises(FtkitError, match="n must be a whole number of at least 0, not"):
        whole_number("n", value, least=0)


@pytest.mark.parametrize("of", [float, np.float32, np.float64, torch.tensor, fractions.Fraction, np.array])
@given(value=st.floats(width=16, allow_nan=False, allow_infinity=False))
def test_numbers(of: Any, value: float) -> None:
    """All that can be a float and was meant as one."""
    found = real_number("x", of(value))
    assert type(found) is float
    assert found == value


@pytest.mark.parametrize("value", [True, np.True_, torch.tensor(True), "1", None, [1.0], torch.ones(2), np.ones(2), 1j])
def test_no_numbers(value: Any) -> None:
    """Not what text would be, nor the first of several."""
    with pytest.raises(FtkitError, match="x must be a single number, not"):
        real_number("x", value)


def test_a_number_with_a_gradient() -> None:
    """The loss itself."""
    assert real_number("x", torch.ones(1, requires_grad=True).sum()) == 1


@given(st.floats(0, 1e6), st.sampled_from(["", "k", "K", "M", "G", "T"]), st.booleans(), st.sampled_from(["", " "]))
def test_sizes(count: float, unit: str, binary: bool, space: str) -> None:
    """A number and a unit, of 1000 or of 1024."""
    words = f"{count:f}{space}{unit}{'i' if binary and unit else ''}B"
    expected = float(f"{count:f}") * (1024 if binary and unit else 1000) ** " KMGT".index(unit.upper() or " ")
    assert math.isclose(byte_count("memory", words), expected)


@pytest.mark.parametrize("value", ["", "8", "8 G", "GB", "-8GB", "8 GBit", "1e3 MB", "8,5GB", math.inf, -1, True])
def test_no_sizes(value: Any) -> None:
    """What is not sure is asked back."""
    with pytest.raises(FtkitError, match="or a size such as '8GB'"):
        byte_count("memory", value)


def test_flags() -> None:
    """Truth values, whoever made them, and what Python counts as such; no words."""
    values = [True, False, 1, 0, np.True_, np.False_, torch.tensor(True)]
    assert [flag("x", value) for value in values] == [True, False, True, False, True, False, True]
    for value in ("no", "", None, 2, [], [True, False]):
        with pytest.raises(FtkitError, match="x must be True or False"):
            flag("x", value)


def test_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """``~`` is the home folder; bytes are names too; the name of nobody is a name."""
    monkeypatch.setenv("HOME", "/home/ann")
    assert {local_path("path", name) for name in ("~/a", b"~/a", Path("~/a"))} == {Path("/home/ann/a")}
    assert local_path("path", "~nobody-at-all/a") == Path("~nobody-at-all/a").absolute()
    assert local_path("path", local_path("path", "./~/a")) == Path("~/a").absolute()
    assert local_path("path", "C:/a") == Path("C:/a")
    assert path_or_url("root", "s3://bucket/a/") == "s3://bucket/a/"


@pytest.mark.parametrize("url", ["s3://a/b", "https://x.org/a", "file:///a", "gs:/a"])
def test_urls_are_no_paths(url: str) -> None:
    """Nor are they when a Path has eaten a slash."""
    for value in (url, Path(url), url.encode()):
        with pytest.raises(FtkitError, match="is a URL"):
            local_path("path", value)


def test_lists() -> None:
    """All that can be looped over, but for text and tables."""
    assert listed("x", (one for one in "ab"), "letters") == listed("x", ("a", "b"), "letters") == ["a", "b"]
    for value in ("a, b", b"ab", {"a": 1}, 3, None):
        with pytest.raises(FtkitError, match="x must be a list of letters, not"):
            listed("x", value, "letters")


def test_calls() -> None:
    """A function that can't take what it gets is told from one that fails by itself."""
    assert call("f", max, 1, 2, takes="a, b") == 2
    with pytest.raises(
        FtkitError, match=r"f is called with \(a\), which a function does not take: .* Write a function"
    ):
        call("f", lambda: 0, 1, takes="a")
    with pytest.raises(TypeError, match="can only"):
        call("f", lambda a: a + 1, "", takes="a")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """A slash that Path would drop must not have a file replaced that was meant to be a folder."""
    (tmp_path / "notes.py").write_text("kept")
    with pytest.raises(FtkitError, match="ends with a slash, but is a file"):
        local_path("path", f"{tmp_path}/notes.py/")
    assert local_path("path", f"{tmp_path}/") == tmp_path
    assert local_path("path", f"{tmp_path}/new/") == tmp_path / "new"
