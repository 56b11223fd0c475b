"""Verdicts: what is written of them is read back."""

from __future__ import annotations

from base64 import b64decode, b64encode

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit._images.decoding.search import ROW
from ftkit._images.verdict import COLOR_SIDE, SIDE, Broken, Form, Measures, Note, Prints, Verdict, read_line, write_line

WORDS = st.integers(0, (1 << 64) - 1)
SMALL = st.binary(min_size=8, max_size=8).map(lambda some: b64encode(some * (SIDE * SIDE // 8)).decode())
COLORS = st.just("") | st.binary(min_size=8, max_size=8).map(
    lambda some: b64encode(some * (2 * COLOR_SIDE * COLOR_SIDE // 8)).decode()
)
PRINTS = st.builds(Prints, st.tuples(*[WORDS] * 6), SMALL, COLORS)
TEXT = st.text(max_size=20)
NOTES = st.builds(Note, TEXT, TEXT, st.sampled_from([None, "unusable", "odd", "junk"]))
FORMS = st.builds(Form, TEXT, TEXT, st.integers(1), st.integers(1))
STAMPS = st.tuples(st.integers(0), st.integers()) | st.just(()) | st.tuples(TEXT)
LEVELS, FIGURES = st.integers(0, 255), st.floats(0, 255)
MEASURES = st.builds(Measures, st.integers(0), FIGURES, FIGURES, FIGURES, LEVELS, LEVELS, st.floats(0, 8))
VERDICTS = st.builds(
    Verdict, st.lists(NOTES), STAMPS, TEXT, st.none() | FORMS, st.none() | PRINTS, st.none() | MEASURES
)


@given(st.text(st.characters(exclude_categories=())), VERDICTS)
def test_a_line_of_the_journal_is_read_back(path: str, verdict: Verdict) -> None:
    """Whatever the path, and bytes that are no UTF-8 in it; it stays one line."""
    line = write_line(path, verdict.to_json())
    assert line.count(b"\n") == 1
    assert read_line(line) == (path, verdict)


@given(PRINTS)
def test_a_row_of_the_table_holds_all_of_the_prints(prints: Prints) -> None:
    """Six numbers, a small picture and its colors: the middle of both color differences if it has none."""
    (row,) = np.frombuffer(prints.row(), ROW)
    assert tuple(row["words"].tolist()) == prints.words
    assert row["small"].tobytes() == b64decode(prints.small)
    assert row["colors"].tobytes() == (b64decode(prints.colors) or bytes([128]) * (2 * COLOR_SIDE * COLOR_SIDE))


def test_broken_carries_its_note() -> None:
    """Kind and detail, ready to be noted."""
    with pytest.raises(Broken) as caught:
        raise Broken("damaged", "no end")
    assert caught.value.note == Note("damaged", "no end")
