"""The papers of the house: their links lead somewhere, and they name what is there. Sphinx checks the rest."""

from __future__ import annotations

import importlib
import io
import re
import tomllib
import zipfile
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

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


@pytest.mark.parametrize("folder", ["tutorials", "howto", "frameworks", "reference"])
def test_pages_for_users_name_nothing_private(folder: str) -> None:
    """What they show is what they may use."""
    pages = sorted((ROOT / "docs" / folder).glob("*.md"))
    assert [line for path in pages for line in text(path).splitlines() if "ftkit._" in line] == []


def test_what_newcomers_write_is_there() -> None:
    """The second column of each table calls what ftkit has, or what the page says that stays."""
    rows = re.findall(r"^\|[^|]*\|(.*)\|$", text(ROOT / "docs/frameworks/coming-from.md"), flags=re.MULTILINE)
    calls = {name for row in rows for name in re.findall(r"(?<![\w.])(\w+)\(", row)}
    assert len(calls) > 12
    assert sorted(calls - {"print", "peak_training_bytes", "Freezing"} - set(ftkit.__all__)) == []  # of ftkit.lightning


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


def test_the_korean_readme_has_the_code_of_the_english_one() -> None:
    """Every block, so that what runs in one runs in the other; and a link to each other."""
    english, korean = (text(ROOT / name) for name in ("README.md", "README.ko.md"))
    blocks = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
    assert blocks.findall(english) == blocks.findall(korean)
    assert "](README.ko.md)" in english
    assert "](README.md)" in korean


# What the story takes for granted is not to be had in a test: weights from a hub, and hours.
SUBSTITUTED = {'"resnet50", pretrained=True': '"resnet18"', "(32, 3, 224, 224)": "(2, 3, 32, 32)"}


def zip_of_pets(path: Path) -> None:
    """Write a zip of small images in 37 folders, one of them broken."""
    noise = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for kind in range(37):
            buffer = io.BytesIO()
            Image.fromarray(noise.integers(0, 255, (32, 32, 3), np.uint8)).save(buffer, "PNG")
            archive.writestr(f"kind-{kind:02}/good.png", buffer.getvalue())
        archive.writestr("kind-00/half.png", buffer.getvalue()[:1000])


class Killed(Exception):
    """Stands for whatever ends a run."""


def test_the_story_of_the_readme_runs_and_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the thaw, it goes on; stopped by its patience, it trains no more; it shares the best epoch."""
    (story,) = re.findall(r"<!-- story -->\s+```python\n(.*?)```", text(ROOT / "README.md"), flags=re.DOTALL)
    for words, instead in SUBSTITUTED.items():
        assert words in story
        story = story.replace(words, instead)
    monkeypatch.chdir(tmp_path)
    zip_of_pets(tmp_path / "pets.zip")
    losses = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, *[0.35] * 5]  # the seventh epoch is the best one
    weights: list[torch.Tensor] = []

    def train_and_validate(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> float:
        if len(weights) == killed_in:
            raise Killed
        data = ImageFolder("data/pets")
        images = torch.stack([pil_to_tensor(image) / 255 for image, _ in data])
        model.train()
        cross_entropy(model(images), torch.tensor(data.targets)).backward()
        optimizer.step()
        optimizer.zero_grad()
        weights.append(model.get_parameter("layer4.0.downsample.0.weight").detach().clone())
        return losses[len(weights) - 1]

    killed_in = 6
    with pytest.raises(Killed):
        exec(story, {"train_and_validate": train_and_validate})
    killed_in = -1
    for _ in range(2):  # to the end, and once more
        scope = {"train_and_validate": train_and_validate}
        exec(story, scope)
        assert len(weights) == len(losses)
        assert sum(1 for path in Path("data/pets").rglob("*.png")) == 37
        assert sum(1 for path in Path("data/pets-quarantine").rglob("*.png")) >= 1
        shared = scope["model"].get_parameter("layer4.0.downsample.0.weight")
        assert torch.equal(shared, weights[6])
        assert not torch.equal(weights[4], weights[5])
        assert not torch.equal(weights[6], weights[-1])
        assert "pets.safetensors" in {path.name for path in Path().iterdir()}
