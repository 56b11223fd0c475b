"""The table of kinds, and the choice among findings."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from ftkit import FtkitError
from ftkit._images import findings
from ftkit._images.findings import KINDS, SEVERITIES, Finding, chooser, make_finding
from ftkit._images.verdict import Note

ALL = [Finding(f"{kind}.jpg", kind, known.severity, "") for kind, known in KINDS.items()]


def chosen(*kinds: str) -> set[str]:
    """Return the kinds that these names choose."""
    return {finding.kind for finding in filter(chooser(kinds), ALL)}


def test_every_kind_is_looked_for_somewhere() -> None:
    """No kind in the table that no check ever notes."""
    folder = Path(findings.__file__).parent
    sources = "".join(path.read_text() for path in folder.rglob("*.py") if path.name != "findings.py")
    sources += inspect.getsource(findings.leak_of)
    assert {kind for kind in KINDS if f'"{kind.removeprefix("near_")}"' not in sources} == set()


def test_the_gravest_kinds_come_first() -> None:
    """The order of a gallery."""
    order = list(SEVERITIES)
    ranks = [order.index(known.severity) for known in KINDS.values()]
    assert ranks == sorted(ranks)


def test_a_note_has_the_severity_of_its_kind_or_its_own() -> None:
    """A check may find a case harmless that is grave as a rule."""
    assert make_finding("a.jpg", Note("missing_eoi", "x")) == Finding("a.jpg", "missing_eoi", "unusable", "x")
    assert make_finding("a.jpg", Note("missing_eoi", "x", "odd")) == Finding("a.jpg", "missing_eoi", "odd", "x")


def test_names_choose_kinds_severities_and_families() -> None:
    """Each name on its own, and several together."""
    assert chosen("tiny") == {"tiny"}
    assert chosen("junk") == {kind for kind, known in KINDS.items() if known.severity == "junk"}
    assert chosen("leaks") == {"leak", "same_file", "near_leak"}
    assert chosen("duplicates", "tiny") == {"duplicate", "near_duplicate", "tiny"}
    assert chosen("label_conflicts") == {"label_conflict", "near_label_conflict"}
    assert {finding.kind for finding in filter(chooser("tiny"), ALL)} == {"tiny"}


def test_by_default_the_unusable_and_the_junk_are_chosen() -> None:
    """But no file of another kind."""
    assert {finding.kind for finding in filter(chooser(None), ALL)} == chosen("unusable", "junk")
    assert "other_file" not in chosen("unusable", "junk")
    assert chosen("other_file") == {"other_file"}


@pytest.mark.parametrize(("name", "hint"), [("leek", "'leak'"), ("unuseable", "'unusable'"), ("", "not a kind")])
def test_an_unknown_name_is_an_error_with_a_hint(name: str, hint: str) -> None:
    """It would choose nothing, silently."""
    with pytest.raises(FtkitError, match=hint):
        chooser([name])
