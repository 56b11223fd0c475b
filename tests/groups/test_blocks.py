"""The last blocks of a model, whole and in order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import nn

from ftkit._freezing.freeze import freeze_except, trainable
from ftkit._groups import last_blocks
from ftkit.errors import FtkitError, SelectionError


def meta(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        if not timm.is_model(name):
            pytest.skip(f"This timm has no {name}.")
        return timm.create_model(name)

    return build


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (meta("resnet50"), ["layer4.1", "layer4.2", "fc"]),
        (meta("vit_tiny_patch16_224"), ["blocks.10", "blocks.11", "norm", "head"]),
        (meta("swin_tiny_patch4_window7_224"), ["layers.3.blocks", "norm", "head"]),
        (meta("convnext_atto"), ["stages.3.blocks", "head"]),
        (meta("davit_tiny"), ["stages.2", "stages.3", "head"]),  # pairs of a spatial and a channel block
        (
            meta("mobilevit_s"),
            ["stages.3", "stages.4", "final_conv", "head"],
        ),  # pairs of a bottleneck and a transformer
        (meta("gemma4_vit_570m_enc"), ["blocks.25", "blocks.26"]),  # no head
        (meta("efficientnet_b0"), ["blocks.5.3", "blocks.6", "conv_head", "bn2", "classifier"]),
        (meta("vgg11"), ["features.18", "pre_logits", "head"]),  # no blocks: layers
        (lambda: torchvision.models.vit_b_16(), ["encoder.layers.encoder_layer_10"]),
    ],
)
def test_the_last_two_blocks_and_all_above_them(build: Callable[[], nn.Module], names: list[str]) -> None:
    """Stages, pairs and blocks with lists inside are told apart; the head, and what stands before it, come along."""
    with torch.device("meta"):
        model = build()
    found = last_blocks(model, 2)
    assert found[: len(names)] == names
    freeze_except(model, found)
    total, trains = list(dict(model.named_parameters())), list(trainable(model))
    assert 0 < len(trains) < len(total)


def test_blocks_that_run_beside_others_are_an_error() -> None:
    """What a parallel part shares with them would be half a block."""
    with torch.device("meta"):
        model = timm.create_model("coat_tiny")
    with pytest.raises(SelectionError, match="which run in parallel with them"):
        last_blocks(model, 1)


def test_more_blocks_than_there_are_is_an_error() -> None:
    """It says how many there are; 0 and fractions are none."""
    model = timm.create_model("resnet18")
    assert last_blocks(model, 8)[0] == "layer1"
    with pytest.raises(SelectionError, match="9 blocks or more, found 8"):
        last_blocks(model, 9)
    for wrong in (0, -1, 1.5):
        with pytest.raises(FtkitError, match="The number of blocks"):
            last_blocks(model, wrong)  # type: ignore[arg-type]


def test_experts_are_no_blocks() -> None:
    """A list of layers side by side inside a block belongs to it."""

    class Expert(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.gate = nn.LayerNorm(4), nn.Linear(4, 2)
            self.experts = nn.ModuleList(Expert() for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + sum(expert(self.norm(x)) for expert in self.experts)

    model = nn.Sequential(nn.Linear(4, 4), *(Block() for _ in range(4)), nn.Linear(4, 3))
    assert last_blocks(model, 2) == ["3", "4", "5"]


def test_all_layers_of_a_small_net_can_be_selected() -> None:
    """Where the last blocks are all there is, their names select it."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert last_blocks(model, 1) == ["0", "2"]
    assert not freeze_except(model, last_blocks(model, 1)).frozen
