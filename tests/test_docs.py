"""The papers of the house: their links lead somewhere, and they name what is there. Sphinx checks the rest."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path
from urllib.parse import unquote

import pytest

import ftkit

ROOT = Path(__file__).parents[1]
PAPERS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob(".github/**/*.md")])
ARCHITECTURE = ROOT / "docs" / "explanation" / "architecture.md"

pytestmark = pytest.mark.skipif(not (ROOT / ".github").exists(), reason="An sdist lacks some of the papers.")


def text(path: Path) -> str:
    """Return what a paper says."""
    return path.read_text(encoding="utf-8")


def prose(path: Path) -> str:
    """Return a paper without its blocks of code."""
    return re.sub(r"^```.*?^```", "", text(path), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_lead_to_files(path: Path) -> None:
    """On GitHub as in a clone."""
    targets = re.findall(r"\]\((?!https?:|mailto:|#)([^)\s]+)\)", prose(path))
    assert [target for target in targets if not (path.parent / unquote(target.partition("#")[0])).exists()] == []


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_examples_import_public_names(path: Path) -> None:
    """What a page shows can be copied."""
    groups = re.findall(r"^\s*(?:>>> )?from ftkit import (\([^)]*\)|[^\n#]+)", text(path), flags=re.MULTILINE)
    names = {name for group in groups for name in re.findall(r"\w+", group)}
    assert names <= set(ftkit.__all__)


@pytest.mark.parametrize("folder", ["tutorials", "howto", "reference"])
def test_pages_for_users_name_nothing_private(folder: str) -> None:
    """What they show is what they may use."""
    pages = sorted((ROOT / "docs" / folder).glob("*.md"))
    assert [line for path in pages for line in text(path).splitlines() if "ftkit._" in line] == []


def test_the_reference_has_every_public_name() -> None:
    """One page for each, and one only."""
    pages = "\n".join(text(path) for path in (ROOT / "docs" / "reference").glob("*.md"))
    described = re.findall(r"auto(?:function|class|exception):: (?:ftkit\.)?(\w+)$", pages, flags=re.MULTILINE)
    assert sorted(name for name in described if name in ftkit.__all__) == sorted(ftkit.__all__)


def layers() -> list[str]:
    """Return the rooms of the house, as import-linter knows them."""
    contracts = tomllib.loads(text(ROOT / "pyproject.toml"))["tool"]["importlinter"]["contracts"]
    return [room for layer in contracts[0]["layers"] for room in layer.split(" | ")]


@pytest.mark.parametrize("path", [ROOT / "CONTRIBUTING.md", ROOT / "docs/_static/house.svg"], ids=["table", "drawing"])
def test_the_house_is_drawn_whole(path: Path) -> None:
    """Every room that import-linter knows stands in the plan."""
    assert [room for room in layers() if not re.search(rf"(?<!\w){room}(?!\w)", text(path))] == []


def test_the_doors_of_the_journeys_are_there() -> None:
    """A function that was renamed is renamed in the plan too."""
    doors = set(re.findall(r"`((?:_[a-z]\w*|selection|errors)(?:\.\w+)+)`", text(ARCHITECTURE)))
    assert len(doors) > 30

    def opens(door: str) -> bool:
        parts = door.split(".")
        for end in range(len(parts), 0, -1):
            try:
                thing = importlib.import_module(".".join(["ftkit", *parts[:end]]))
            except ModuleNotFoundError:
                continue
            for part in parts[end:]:
                thing = getattr(thing, part, None)
            return thing is not None
        return False

    assert sorted(door for door in doors if not opens(door)) == []
