"""Parameter groups: every parameter once, rates that rise towards the head, and newcomers by the same rule."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from timm.optim import param_groups_layer_decay
from torch import nn

from ftkit.errors import FtkitError, SelectionError
from ftkit.groups import param_groups


def options(groups: list[dict[str, object]], rate: str = "lr") -> dict[int, tuple[float, float]]:
    return {id(p): (group[rate], group["weight_decay"]) for group in groups for p in group["params"]}


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_patch16_224", "resnet18", "resnet50"])
def test_layers_are_those_that_timm_lists(name: str) -> None:
    """Where timm's authors wrote down the layers of a model, structure alone finds the same."""
    model = timm.create_model(name)
    listed = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    oracle = param_groups_layer_decay(model, 0.05, listed, layer_decay=0.5)
    groups = param_groups(model, 1.0, weight_decay=0.05, layer_decay=0.5)
    assert options(groups) == options(oracle, "lr_scale")


@pytest.mark.parametrize(
    ("name", "lowest", "head", "layers"),
    [
        ("resnet18", "conv1.weight", "fc.weight", 10),
        ("vit_b_16", "conv_proj.weight", "heads.head.weight", 14),
        ("swin_t", "features.0.0.weight", "head.weight", 17),
        ("inception_v3", "Conv2d_1a_3x3.conv.weight", "fc.weight", 18),
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


def test_every_trainable_parameter_is_in_exactly_one_group() -> None:
    """Frozen ones are left out, tied ones come once, and torch accepts names and all."""
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "body": nn.Linear(3, 3), "out": nn.Linear(3, 5)})
    model["out"].weight = model["embed"].weight
    model["body"].bias.requires_grad_(False)
    groups = param_groups(model, 0.1, weight_decay=0.1, layer_decay=0.5)
    names = [name for group in groups for name in group["param_names"]]
    assert sorted(names) == ["body.weight", "embed.weight", "out.bias"]
    optimizer = torch.optim.AdamW(groups)
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == groups[0]["param_names"]
    assert "frozen" not in names


def test_a_tied_parameter_learns_with_the_head() -> None:
    """An output layer that shares the embedding's weight gives it the full rate."""
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "body": nn.Linear(3, 3), "out": nn.Linear(3, 5, bias=False)})
    model["out"].weight = model["embed"].weight
    rates = {name: group["lr"] for group in param_groups(model, 1.0, layer_decay=0.5) for name in group["param_names"]}
    assert rates == {"embed.weight": 1.0, "body.weight": 0.5, "body.bias": 0.5}


def test_biases_and_norms_do_not_decay() -> None:
    """By kind, not by shape alone: a LayerNorm over an image and a bias of four dimensions are spared too."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.LayerNorm((4, 2, 2)), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 2)
    )
    model[0].bias = nn.Parameter(torch.zeros(1, 4, 1, 1))
    groups = param_groups(model, 0.1, weight_decay=0.1)
    decaying = [name for group in groups if group["weight_decay"] for name in group["param_names"]]
    assert decaying == ["0.weight", "4.weight"]


def test_rates_by_selector_outrank_the_rest() -> None:
    """Absolute values, the last match counts, any selector will do."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    groups = param_groups(model, 0.1, layer_decay=0.5, rates={nn.Linear: 0.3, "*.bias": 0.2, model[2]: 0.4})
    rates = {name: group["lr"] for group in groups for name in group["param_names"]}
    assert rates == {
        **dict.fromkeys(("0.weight", "1.weight"), 0.3),
        **dict.fromkeys(("0.bias", "1.bias"), 0.2),
        **dict.fromkeys(("2.weight", "2.bias"), 0.4),
    }
    with pytest.raises(SelectionError, match="Did you mean"):
        param_groups(model, 0.1, rates={"0.wieght": 1.0})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1.0}, "lr to be 0 or more, got -1.0"),
        ({"lr": 1.0, "layer_decay": 1.5}, "layer_decay to be more than 0 and at most 1"),
        ({"lr": 1.0, "weight_decay": float("nan")}, "weight_decay to be 0 or more, got nan"),
        ({"lr": 1.0, "rates": {"weight": -2.0}}, "the rate of 'weight' to be 0 or more"),
    ],
)
def test_numbers_out_of_range_are_errors(arguments: dict[str, object], message: str) -> None:
    """The message says what was expected and what came."""
    with pytest.raises(FtkitError, match=message):
        param_groups(nn.Linear(2, 2), **arguments)


def test_a_frozen_model_is_an_error() -> None:
    """An optimizer of nothing is never what was meant."""
    with pytest.raises(FtkitError, match="unfreeze"):
        param_groups(nn.Linear(2, 2).requires_grad_(False), 0.1)
