"""Files that released versions wrote are opened by this one, and mean what they meant.

A folder for each version lies beside this file. ``python tests/written/test_written_files.py`` adds that of the version
at hand; one that was released is never written anew.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import ftkit
from ftkit import (
    freeze_except,
    load_checkpoint,
    load_delta,
    load_model,
    load_weights,
    param_groups,
    replace_head,
    restore,
    save_checkpoint,
    save_delta,
    save_model,
    save_weights,
    scan_images,
)

HERE = Path(__file__).parent
VERSIONS = sorted(path for path in HERE.iterdir() if path.is_dir() and path.name[0].isdigit())


def filled(model: nn.Module, first: float) -> nn.Module:
    """Give a model's parameters values that need no random numbers: each starts at ``first`` and rises."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(first + torch.arange(parameter.numel()).reshape(parameter.shape) / 64)
    return model


def pretrained(classes: int = 4) -> nn.Module:
    """Return the model that everything here is about."""
    return filled(nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, classes)), 1.0)


def same(model: nn.Module, other: nn.Module) -> bool:
    """Whether two models hold the same, to the bit."""
    left, right = model.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return the model after a step in which its new head alone moved."""
    model = pretrained()
    freeze_except(model, replace_head(model, 2))
    filled(model[3], 2.0)
    optimizer = torch.optim.AdamW(param_groups(model, lr=0.5))
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def write(folder: Path) -> None:
    """Write a file of each kind."""
    folder.mkdir()
    model, optimizer = trained()
    training = {"model": model, "optimizer": optimizer, "epoch": 3, "metrics": {"val_loss": 0.5}, "classes": ["a", "b"]}
    for suffix in ("safetensors", "pt"):
        save_weights(pretrained(), folder / f"weights.{suffix}")
        save_checkpoint(folder / f"checkpoint.{suffix}", **training)
    save_model(pretrained(), folder / "model.pt")
    save_delta(model, folder / "delta.safetensors")
    save_checkpoint(folder / "delta-checkpoint.safetensors", delta=True, **training)
    images = folder / "images" / "cat"
    images.mkdir(parents=True)
    (images / "tom.jpg").write_bytes(b"<html>404 Not Found</html>")
    scan_images(folder / "images", workers=1).quarantine(folder / "quarantine")
    shutil.rmtree(folder / "images", ignore_errors=True)
    for page in (folder / "quarantine").glob("*.html"):
        page.unlink()  # for people to look at
    (manifest,) = (folder / "quarantine").glob("*.json")
    manifest.write_text(manifest.read_text(encoding="utf-8").replace(str(folder.resolve()), "FOLDER"), encoding="utf-8")


def test_there_is_a_folder_for_this_version() -> None:
    """Whoever changes the number adds it."""
    assert ftkit.__version__ in {path.name for path in VERSIONS}


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
class TestOfEachVersion:
    """One test for each kind of file."""

    @pytest.mark.parametrize("suffix", ["safetensors", "pt"])
    def test_weights(self, version: Path, suffix: str) -> None:
        """All of them, verified."""
        model = filled(pretrained(), 0.0)
        report = load_weights(model, version / f"weights.{suffix}")
        assert report.verified
        assert same(model, pretrained())

    def test_a_model(self, version: Path) -> None:
        """Its classes are those of torch."""
        model = load_model(version / "model.pt", allow=[nn.Sequential, nn.Linear, nn.BatchNorm1d, nn.ReLU])
        assert same(model, pretrained())

    @pytest.mark.parametrize("name", ["checkpoint.safetensors", "checkpoint.pt", "delta-checkpoint.safetensors"])
    def test_a_checkpoint(self, version: Path, name: str) -> None:
        """Model, optimizer, place and extras; the next step is the same."""
        model = pretrained()
        freeze_except(model, replace_head(model, 2))
        optimizer = torch.optim.AdamW(param_groups(model, lr=0.1))
        checkpoint = load_checkpoint(version / name, model=model, optimizer=optimizer)
        assert (checkpoint.epoch, checkpoint.metrics) == (3, {"val_loss": 0.5})
        assert checkpoint.extra == {"classes": ["a", "b"]}
        wanted, its_optimizer = trained()
        assert torch.allclose(model[3].weight, wanted[3].weight)
        for one, way in ((model, optimizer), (wanted, its_optimizer)):
            one(torch.ones(2, 3)).sum().backward()
            way.step()
        assert torch.allclose(model[3].weight, wanted[3].weight)

    def test_a_delta(self, version: Path) -> None:
        """The new head is built from the file."""
        load_delta(model := pretrained(), version / "delta.safetensors")
        assert torch.allclose(model[3].weight, trained()[0][3].weight)

    def test_a_manifest(self, version: Path, tmp_path: Path) -> None:
        """What was set aside comes back."""
        shutil.copytree(version / "quarantine", tmp_path / "quarantine")
        (manifest,) = (tmp_path / "quarantine").glob("*.json")
        facts = json.loads(manifest.read_text(encoding="utf-8"))
        facts["root"] = facts["root"].replace("FOLDER", str(tmp_path))
        manifest.write_text(json.dumps(facts), encoding="utf-8")
        (tmp_path / "images").mkdir()
        assert restore(manifest) == [str(tmp_path / "images" / "cat" / "tom.jpg")]


if __name__ == "__main__":
    write(HERE / ftkit.__version__)
