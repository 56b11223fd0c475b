"""What is printed, shown by a notebook and written as JSON: all reports, in one way."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ftkit
from ftkit._reports import Grid, Parts, Report, cut, plain, to_text, width_of, wrapped
from tests.reports import HARD, every_report

ROOT = Path(__file__).parents[1]
SCREEN = 45  # lines


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return one of everything."""
    return every_report(tmp_path_factory.mktemp("reports"))


def test_no_report_is_forgotten(reports: dict[str, Any]) -> None:
    """Each public class that is a report is among them."""
    public = [getattr(ftkit, name) for name in ftkit.__all__]
    kinds = {kind for kind in public if isinstance(kind, type) and issubclass(kind, Report)}
    assert len(kinds) > 10
    assert kinds <= {type(report) for report in reports.values()}


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_each_fits_the_terminal(reports: dict[str, Any], columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In width, however long the names are, in height, and what stands in it moves no cursor."""
    monkeypatch.setenv("COLUMNS", str(columns))
    for name, report in reports.items():
        lines = str(report).split("\n")
        assert max(map(width_of, lines)) <= columns or isinstance(report, tuple), name  # a row, not a report
        assert len(lines) <= SCREEN * 80 // min(columns, 80), name
        assert all(line.isprintable() for line in lines), name


def test_the_repr_is_the_report(reports: dict[str, Any]) -> None:
    """A REPL shows what print does, and a log has no line of 90,000 characters."""
    for name, report in reports.items():
        assert repr(report) == str(report) or isinstance(report, tuple), name
        assert len(repr(report)) < 4000, name


PRINTS = """
import sys
from tests.reports import Path, every_report
reports = every_report(Path(sys.argv[1]))
for encoding in ("ascii", "cp1252"):
    print("====")
    sys.stdout.reconfigure(encoding=encoding)
    for name, report in reports.items():
        print(name, report, sep="\\n")
"""


def test_each_prints_on_a_terminal_without_utf8(tmp_path: Path) -> None:
    """In a container with LANG=C, and in a Windows console: plain characters, no error."""
    env = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    done = subprocess.run([sys.executable, "-c", PRINTS, str(tmp_path)], capture_output=True, env=env, check=False)
    assert done.returncode == 0, done.stderr.decode()
    _, in_ascii, in_cp1252 = done.stdout.decode("cp1252").split("====")
    for text in (in_ascii, in_cp1252):
        assert "|  +- 0  Linear" in text or "+- 6  Linear" in text  # a branch of a tree
        assert "0 ~ 5  6 x Sequential" in text
        assert r"\uace0\uc591\uc774" in text
    assert in_ascii.isascii()
    assert "dög" in in_cp1252


class _Checker(html.parser.HTMLParser):
    """Reads a page as a browser does: which tags are open, what is a tag at all."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_each_is_a_page_in_a_notebook(reports: dict[str, Any]) -> None:
    """Well formed, in UTF-8, and no name is taken for a tag."""
    for name, report in reports.items():
        if isinstance(report, Report):
            checker = _Checker()
            page = report._repr_html_()
            checker.feed(page)
            assert checker.open == [], name
            assert "b" not in checker.seen or name.startswith("summary"), name
            assert page.encode()
            assert not {"\x1b", "\u202e"} & set(page), name
    assert "&lt;b&gt;&amp;" in reports["archive"]._repr_html_()


def test_each_is_json(reports: dict[str, Any], tmp_path: Path) -> None:
    """The same as a dict, as text and as a file; all fields are in it, NaN and infinity are null."""
    for name, report in reports.items():
        if isinstance(report, Report):
            read = json.loads(report.to_json(), parse_constant=pytest.fail)
            assert read == report.to_dict(), name
            all_fields = dataclasses.fields(report) if dataclasses.is_dataclass(report) else ()  # groups are a list
            fields = {field.name for field in all_fields if not field.name.startswith("_")}
            assert fields <= set(read), name
            assert report.to_json(tmp_path / "report.json") is None
            assert json.loads((tmp_path / "report.json").read_bytes()) == read, name
    assert HARD in reports["archive"].to_dict()["source"]
    assert {change["relative"] for change in reports["difference"].to_dict()["changed"]} >= {None}


def test_states_are_told(reports: dict[str, Any]) -> None:
    """What goes on from step to step says where it stands."""
    said = {name: " ".join(repr(reports[name]).split()) for name in ("manager", "stopping", "schedule", "loader")}
    assert "2 checkpoints, best 1-0.0000.safetensors (val_loss 0), newest 2-1.0000.safetensors>" in said["manager"]
    assert said["stopping"].endswith("patience 2: best 0.5, then 1 without improvement>")
    assert said["schedule"] == (
        "<FreezeSchedule {0: '6', 3: ['1', Sequential, LayerNorm]}: phase 0, with 2 trainable parameter tensors>"
    )
    assert said["loader"] == "<ResumableLoader over a list: 4 batches, none done>"
    loader = ftkit.ResumableLoader(list(range(8)), batch_size=2)
    next(iter(loader))
    assert repr(loader) == "<ResumableLoader over a list: 1 of 4 batches done>"


def test_what_was_zero_is_one_line(reports: dict[str, Any]) -> None:
    """A change from zero has no size relative to it."""
    text = repr(reports["difference"])
    assert "inf" not in text
    assert "  were zero: 1.1.bias, by up to 1\n" in text
    assert str(reports["change"]) == "1.1.bias  by up to 1, was zero"


# ---- the pieces


class Long(Report):
    def _parts(self) -> Parts:
        yield "many"
        yield Grid([(f"name {number}", "x" * number) for number in range(100)])


def test_a_long_table_loses_its_middle() -> None:
    """Its beginning and its end stay; nobody looks at the rest."""
    lines = to_text(Long()._parts(), 40).split("\n")
    assert lines[1] == "  name 0"
    assert [line for line in lines if "more" in line] == ["  ... 70 more ..."]
    assert any("name 99" in line for line in lines)


WORDS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=60)


@given(WORDS, st.integers(8, 50))
def test_a_name_is_cut_in_its_middle(name: str, size: int) -> None:
    """To what fits, and only if need be."""
    short = cut(name, size)
    assert width_of(short) <= size
    if short != name:
        head, _, tail = short.partition("…")
        assert name.startswith(head)
        assert "…" in name or name.endswith(tail)
        assert width_of(name) > size


@given(WORDS, st.integers(8, 50), st.sampled_from(["", "  "]))
def test_a_line_is_wrapped(text: str, width: int, hang: str) -> None:
    """No line is too long, and no letter is lost."""
    lines = wrapped(text, width, hang)
    assert max(map(width_of, lines)) <= width
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


@given(st.lists(st.tuples(WORDS, WORDS, WORDS), min_size=1, max_size=5), st.integers(40, 100))
def test_a_table_fits(rows: list[tuple[str, str, str]], width: int) -> None:
    """Whatever stands in it."""
    assert max(map(width_of, to_text([Grid(rows, ("a", "b", "c"), right=(1,))], width).split("\n"))) <= width


def test_plain_values() -> None:
    """Numbers of NumPy and torch, times in a table, whatever has a text."""
    import numpy as np
    import torch

    values = {"a": np.float32(0.5), "b": torch.tensor([1, 2]), "c": {1: np.inf}, "d": (Path("x"), None, True), "e": {3}}
    assert plain(values) == {"a": 0.5, "b": [1, 2], "c": {"1": None}, "d": ["x", None, True], "e": [3]}
