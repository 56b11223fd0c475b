"""Verdicts: what is written of them is read back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit._images.verdict import Broken, Form, Note, Prints, Verdict, read_line, write_line

WORDS = st.integers(0, (1 << 64) - 1)
FINE = st.integers(0, (1 << 128) - 1)
PRINTS = st.builds(Prints, WORDS, WORDS, FINE, FINE)
TEXT = st.text(max_size=20)
NOTES = st.builds(Note, TEXT, TEXT, st.sampled_from([None, "unusable", "odd", "junk"]))
FORMS = st.builds(Form, TEXT, TEXT, st.integers(1), st.integers(1))
STAMPS = st.tuples(st.integers(0), st.integers()) | st.just(()) | st.tuples(TEXT)
VERDICTS = st.builds(Verdict, st.lists(NOTES), STAMPS, TEXT, st.none() | FORMS, st.none() | PRINTS)


@given(st.text(st.characters(exclude_categories=())), VERDICTS)
def test_a_line_of_the_journal_is_read_back(path: str, verdict: Verdict) -> None:
    """Whatever the path, and bytes that are no UTF-8 in it; it stays one line."""
    line = write_line(path, verdict.to_json())
    assert line.count(b"\n") == 1
    assert read_line(line) == (path, verdict)


@given(PRINTS)
def test_prints_and_words(prints: Prints) -> None:
    """Six numbers of 64 bits hold all of it."""
    words = prints.words()
    assert len(words) == 6
    assert all(0 <= word < 1 << 64 for word in words)
    assert Prints.from_words(words) == prints


def test_words_of_fine_prints_begin_with_the_low_half() -> None:
    """The order of the table's columns."""
    assert Prints(1, 2, 3 + (4 << 64), 5 + (6 << 64)).words() == (1, 2, 3, 4, 5, 6)


def test_broken_carries_its_note() -> None:
    """Kind and detail, ready to be noted."""
    with pytest.raises(Broken) as caught:
        raise Broken("damaged", "no end")
    assert caught.value.note == Note("damaged", "no end")
