"""The layers of a model: every one found, in order, by structure alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import timm.scheduler
import torch
import torchvision
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from ftkit._freezing.freeze import freeze
from ftkit._groups import layers as rules
from ftkit._groups import param_groups
from ftkit._groups.layers import layers_of
from tests.groups.models import stack


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_patch16_224", "resnet18", "resnet50"])
def test_layers_are_those_that_timm_lists(name: str) -> None:
    """Where timm's authors wrote down the layers of a model, structure alone finds the same."""
    model = timm.create_model(name)
    listed = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    oracle = param_groups_layer_decay(model, 0.05, listed, layer_decay=0.5)
    groups = param_groups(model, 1.0, weight_decay=0.05, layer_decay=0.5)
    assert options(groups) == options(oracle, "lr_scale")


def options(groups: list[dict[str, object]], rate: str = "lr") -> dict[int, tuple[float, float]]:
    return {id(p): (group[rate], group["weight_decay"]) for group in groups for p in group["params"]}


@pytest.mark.parametrize(
    ("name", "lowest", "head", "layers"),
    [
        ("resnet18", "conv1.weight", "fc.weight", 10),
        ("vit_b_16", "conv_proj.weight", "heads.head.weight", 14),
        ("swin_t", "features.0.0.weight", "head.weight", 17),
        ("inception_v3", "Conv2d_1a_3x3.conv.weight", "fc.weight", 17),
        ("alexnet", "features.0.weight", "classifier.6.weight", 8),
    ],
)
def test_rates_rise_towards_the_head_of_foreign_models(name: str, lowest: str, head: str, layers: int) -> None:
    """No model needs to describe its own layers."""
    with torch.device("meta"):
        model = torchvision.models.get_model(
            name, weights=None, **({"init_weights": True} if "inception" in name else {})
        )
    groups = param_groups(model, 1.0, layer_decay=0.5)
    rates = [group["lr"] for group in groups]
    assert rates == sorted(set(rates))
    assert len(rates) == layers
    assert lowest in groups[0]["param_names"]
    assert head in groups[-1]["param_names"]
    assert groups[-1]["lr"] == 1.0


def test_layers_do_not_depend_on_what_is_frozen() -> None:
    """A layer keeps its rate while others come and go."""
    model = torchvision.models.resnet18(weights=None)
    before = {name: group["lr"] for group in param_groups(model, 1.0, layer_decay=0.5) for name in group["param_names"]}
    freeze(model, "layer1", "fc")
    after = {name: group["lr"] for group in param_groups(model, 1.0, layer_decay=0.5) for name in group["param_names"]}
    assert after.items() < before.items()


def test_parametrized_layers_stay_whole() -> None:
    """The bias of a weight-normed head learns with its weight."""
    model = nn.Sequential(nn.Linear(2, 2), nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    groups = param_groups(model, 1.0, layer_decay=0.5)
    assert [group["lr"] for group in groups] == [0.5, 1.0]
    assert "1.bias" in groups[1]["param_names"]


@pytest.mark.parametrize(
    ("model", "heads"),
    [
        (lambda: timm.create_model("deit_tiny_distilled_patch16_224"), ["head", "head_dist"]),
        (lambda: torchvision.models.inception_v3(weights=None, init_weights=True), ["fc", "AuxLogits.fc"]),
        (
            lambda: torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True),
            ["classifier.4", "aux_classifier.4"],
        ),
    ],
)
def test_all_heads_get_the_full_rate(model: Callable[[], nn.Module], heads: list[str]) -> None:
    """Second and auxiliary heads too, wherever in the model they are registered."""
    with torch.device("meta"):
        model = model()
    top = param_groups(model, 1.0, layer_decay=0.5)[-1]
    assert top["lr"] == 1.0
    assert top["param_names"] == [
        name for name, _ in model.named_parameters() if name.removesuffix(".weight").removesuffix(".bias") in heads
    ]


def test_a_head_for_each_task_is_on_top() -> None:
    """Several heads that find_head can't choose from learn fastest, all of them."""

    class Tasks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = stack()
            self.tasks = nn.ModuleDict({"color": nn.Linear(2, 5), "shape": nn.Linear(2, 5)})

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            x = self.body(x)
            return {name: head(x) for name, head in self.tasks.items()}

    groups = param_groups(Tasks(), 1.0, layer_decay=0.5)
    top = {name for group in groups if group["lr"] == 1.0 for name in group["param_names"]}
    assert top == {f"tasks.{task}.{kind}" for task in ("color", "shape") for kind in ("weight", "bias")}


def test_a_tied_parameter_learns_with_the_head() -> None:
    """An output layer that shares the embedding's weight gives it the full rate."""
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "body": nn.Linear(3, 3), "out": nn.Linear(3, 5, bias=False)})
    model["out"].weight = model["embed"].weight
    rates = {name: group["lr"] for group in param_groups(model, 1.0, layer_decay=0.5) for name in group["param_names"]}
    assert rates == {"embed.weight": 1.0, "body.weight": 0.5, "body.bias": 0.5}


class Gain(nn.Sequential):
    """A layer in a list, with a scale of its own."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(2, 2))
        self.gain = nn.Parameter(torch.ones(2))


class Stage(nn.Module):
    """A list of blocks beside a layer, as in Swin; or side by side in a block, as experts are."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(2, 1, 4) for _ in range(2))
        self.down = nn.Linear(2, 2)


class Plain(nn.Module):
    """Layers under names of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(2, 2) for _ in range(3))


@pytest.mark.parametrize(
    ("table", "rule", "model", "layers"),
    [
        ("_ONE_LAYER", "_has_no_parts", lambda: nn.Sequential(nn.LSTM(2, 2), nn.Linear(2, 2)), 2),
        ("_ONE_LAYER", "_is_parametrized", lambda: nn.Sequential(stack(1), weight_norm(nn.Linear(2, 2)), stack(1)), 3),
        ("_ONE_LAYER", "_has_one_kernel", lambda: nn.Sequential(nn.Linear(2, 2), Gain(), *stack(2)), 4),
        ("_SEVERAL_LAYERS", "_is_most_of_the_model", Plain, 3),
        ("_SEVERAL_LAYERS", "_is_list_of_parts", lambda: nn.Sequential(stack(2), stack(2), stack(3)), 7),
        ("_SEVERAL_LAYERS", "_is_stage", lambda: nn.Sequential(Stage(), Stage(), Stage(), Stage()), 12),
    ],
)
def test_each_rule_has_a_model_that_needs_it(
    table: str, rule: str, model: Callable[[], nn.Module], layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all rules the layers are found; without this one they are others."""
    example = model()
    found = layers_of(example)
    assert len(found) == layers
    monkeypatch.setattr(rules, table, tuple(one for one in getattr(rules, table) if one.__name__ != rule))
    without = layers_of(example)
    assert [set(map(id, layer)) for layer in without] != [set(map(id, layer)) for layer in found]
