"""What the weights don't show of a model is in its delta, and compared."""

from __future__ import annotations

import base64
import json
import logging
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from ftkit import freeze_except, load_delta, save_delta
from ftkit._deltas.outline import check_outline, outline
from ftkit.errors import CheckpointError, DamagedFileError


def net(**other: nn.Module) -> nn.ModuleDict:
    """A pretrained model with one of each: the same weights each time, whatever else is in it."""
    torch.manual_seed(0)
    parts: dict[str, nn.Module] = {
        "conv": nn.Conv2d(1, 4, 3, padding=1),
        "norm": nn.BatchNorm2d(4),
        "act": nn.ReLU(),
        "pool": nn.AdaptiveAvgPool2d(1),
        "drop": nn.Dropout(0.1),
        "attention": nn.MultiheadAttention(4, 2),
        "embed": nn.Embedding(5, 4),
        "head": nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)),
    }
    model = nn.ModuleDict(parts)
    for name, part in other.items():
        if name in parts:
            part.load_state_dict(parts[name].state_dict(), strict=False)
        model[name] = part
    return model


class Act(nn.Module):
    """An activation of somebody's own."""


class OtherAct(nn.Module):
    """Another one."""


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    """The delta of a model of which one layer of the head was trained."""
    tuned = net()
    freeze_except(tuned, "head.2")
    torch.nn.init.ones_(tuned["head"][2].bias)  # type: ignore[index]
    save_delta(tuned, tmp_path / "delta.safetensors")
    return tmp_path / "delta.safetensors"


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"act": nn.GELU()}, r"with ReLU at 'act', where this one has GELU\(approximate='none'\)"),
        ({"act": nn.Identity()}, "with ReLU at 'act', where this one has Identity"),
        ({"drop": nn.ReLU()}, "with Identity at 'drop', where this one has ReLU"),
        ({"last": nn.Softmax(-1)}, r"with nothing at 'last', where this one has Softmax\(dim=-1\)"),
        ({"conv": nn.Conv2d(1, 4, 3, padding=1, stride=2)}, r"Conv2d\(stride=1\) at 'conv', .* Conv2d\(stride=2\)"),
        ({"norm": nn.BatchNorm2d(4, eps=1e-3)}, r"BatchNorm\(eps=1e-05\) at 'norm', .* BatchNorm\(eps=0.001\)"),
        ({"pool": nn.AdaptiveMaxPool2d(1)}, "AdaptiveAvgPool2d.*at 'pool'"),
        ({"attention": nn.MultiheadAttention(4, 4)}, r"MultiheadAttention\(num_heads=2\) at 'attention'"),
        (
            {"act": nn.GELU(), "norm": nn.BatchNorm2d(4, eps=1e-3)},
            r"BatchNorm.* at 'norm', .* \(and 1 more such place\), so this one would not give the same outputs",
        ),
    ],
)
def test_another_layer_without_weights_is_refused(delta: Path, other: dict[str, nn.Module], words: str) -> None:
    """It would have given other outputs, without a word. The model stays as it was."""
    model = net(**other)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=words):
        load_delta(model, delta)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"act": nn.ReLU(inplace=True)},
        {"drop": nn.Identity()},
        {"drop": nn.AlphaDropout(0.9)},
        {"norm": nn.SyncBatchNorm(4, momentum=0.5)},
        {"pool": nn.AdaptiveAvgPool2d((1, 1))},
        {"loss": nn.CrossEntropyLoss()},
        {"extra": Act()},
        {"drop": Act()},
        {"attention": nn.MultiheadAttention(4, 2, dropout=0.5)},
        {"embed": nn.Embedding(5, 4, padding_idx=0)},
    ],
    ids=str,
)
def test_what_only_training_feels_may_differ(
    delta: Path, other: dict[str, nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    """And what may do nothing in eval mode, such as a DropPath of a library's own."""
    model = net(**other)
    load_delta(model, delta)
    assert torch.equal(model["head"][2].bias, torch.ones(3))  # type: ignore[index]
    assert not caplog.records


@pytest.mark.parametrize(("mine", "yours"), [(nn.GELU, Act), (Act, nn.GELU), (Act, OtherAct)])
def test_layers_of_other_classes_are_a_warning(
    mine: Callable[[], nn.Module], yours: Callable[[], nn.Module], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A library may have renamed its own: whether the outputs differ can't be told."""
    tuned = net(act=mine())
    freeze_except(tuned, "head.2")
    save_delta(tuned, tmp_path / "delta.safetensors")
    with caplog.at_level(logging.WARNING, "ftkit"):
        load_delta(net(act=yours()), tmp_path / "delta.safetensors")
    assert f"with {mine.__name__}" in caplog.text
    assert f"at 'act', where this one has {yours.__name__}" in caplog.text
    caplog.clear()
    load_delta(net(act=mine()), tmp_path / "delta.safetensors")
    assert not caplog.records


@pytest.mark.parametrize("act", [nn.ReLU(), nn.LeakyReLU(0.3), nn.Sigmoid(), nn.Identity()])
def test_a_new_head_with_another_activation_takes_the_place_of_the_old_one(act: nn.Module, tmp_path: Path) -> None:
    """Its tensors would fit, and the outputs would not."""
    tuned = net(head=nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 3)))
    freeze_except(tuned, "head")
    save_delta(tuned, tmp_path / "delta.safetensors")
    fresh = net()
    load_delta(fresh, tmp_path / "delta.safetensors")
    assert repr(fresh["head"]) == repr(tuned["head"])
    features = torch.randn(7, 4)
    assert torch.equal(fresh["head"](features), tuned["head"](features))
    again = fresh["head"]
    load_delta(fresh, tmp_path / "delta.safetensors")
    assert fresh["head"] is again


def test_it_takes_a_kilobyte() -> None:
    """Each kind is listed once, compressed; of a model with too many layers nothing is."""
    model = timm.create_model("resnet50")
    assert len(outline(model)) < 1200
    check_outline(outline(model), model)
    assert outline(nn.Sequential(OrderedDict((f"{number:0100}", nn.ReLU()) for number in range(45_000)))) == ""


def test_what_another_version_of_torch_declares_besides_is_no_difference() -> None:
    """It is compared where both know it."""
    model = nn.Sequential(nn.ELU(0.5))
    for facts in ({"alpha": 0.5, "new": 3}, {}):
        check_outline(packed(json.dumps([["ELU", facts, ["0"]]]).encode()), model)
    with pytest.raises(CheckpointError, match=r"with ELU\(alpha=0.7\) at '0', where this one has ELU\(alpha=0.5\)"):
        check_outline(packed(json.dumps([["ELU", {"alpha": 0.7, "new": 3}, ["0"]]]).encode()), model)


def packed(text: bytes) -> str:
    """What a hostile file may have."""
    return base64.b85encode(zlib.compress(text, 9)).decode()


@pytest.mark.parametrize(
    "listed",
    [3, "ReLU", b"\xff", [1]]
    + [packed(json.dumps(one).encode()) for one in (3, [3], [["ReLU", {}]], [["ReLU", {}, [3]]], [["ReLU", 3, ["0"]]])]
    + [packed(b"[" * 100_000), packed(b" " * (1 << 24) + b"[]"), packed(b"[]")[:-3]],
    ids=range(12),
)
def test_what_is_no_outline_is_damage(listed: object) -> None:
    """Whoever wrote it, and whatever it would unpack to."""
    with pytest.raises(DamagedFileError, match="it lists no layers"):
        check_outline(listed, nn.Sequential(nn.ReLU()))
