"""Parameter groups: every parameter once, rates that rise towards the head, and newcomers by the same rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import timm
import timm.scheduler
import torch
import torchvision
from hypothesis import given, settings
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.optim import lr_scheduler

from ftkit._freezing.freeze import freeze, freeze_except, unfreeze
from ftkit._freezing.schedules import FreezeSchedule
from ftkit._groups import layout, param_groups, restore_layout
from ftkit.errors import FtkitError, SelectionError


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
    with pytest.raises(SelectionError, match="no parameters"):
        param_groups(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), 0.1, rates={nn.ReLU: 1.0})


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


def stack(layers: int = 3) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(2, 2) for _ in range(layers)))


@given(
    st.lists(st.sampled_from(["linear", "norm", "block", "stage"]), min_size=1, max_size=6),
    st.integers(0, 2**16),
    st.sampled_from([None, 0.5, 1.0]),
)
@settings(max_examples=100, deadline=None)
def test_groups_of_any_tree_hold_each_trainable_parameter_once(
    kinds: list[str], mask: int, decay: float | None
) -> None:
    """Names and parameters agree, and rates rise from group to group."""
    make: dict[str, Callable[[], nn.Module]] = {
        "linear": lambda: nn.Linear(2, 2),
        "norm": lambda: nn.LayerNorm(2),
        "block": lambda: nn.TransformerEncoderLayer(2, 1, 4),
        "stage": lambda: nn.Sequential(stack(2), nn.LayerNorm(2), stack(1)),
    }
    model = nn.Sequential(*(make[kind]() for kind in kinds))
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(bool(mask >> index % 16 & 1))
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not wanted:
        return
    groups = param_groups(model, 1.0, weight_decay=0.1, layer_decay=decay)
    pairs = [pair for group in groups for pair in zip(group["param_names"], group["params"], strict=True)]
    assert len(pairs) == len(wanted)
    assert all(wanted[name] is parameter for name, parameter in pairs)
    rates = [group["lr"] for group in groups]
    assert rates == sorted(rates)


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


@pytest.mark.parametrize("named", [True, False])
def test_newcomers_join_an_optimizer_that_was_built_by_hand(named: bool) -> None:
    """Without a recipe they get its newest rate and its largest decay, but for biases; its other options stay."""
    model = stack()
    freeze_except(model, "2")
    group = {"params": [*model[2].parameters()], "lr": 0.3, "momentum": 0.8, "weight_decay": 0.1}
    if named:
        group["param_names"] = ["2.weight", "2.bias"]
    optimizer = torch.optim.SGD([group], lr=0.1)
    unfreeze(model, "1", optimizer=optimizer)
    assert layout(model, optimizer) == [["2.weight", "2.bias", "1.weight"], ["1.bias"]]
    assert [(g["lr"], g["momentum"], g["weight_decay"]) for g in optimizer.param_groups] == [
        (0.3, 0.8, 0.1),
        (0.3, 0.8, 0.0),
    ]
    assert ("param_names" in optimizer.param_groups[1]) is named
    model(torch.randn(2, 2)).sum().backward()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch)),
    "lambdas": lambda optimizer: lr_scheduler.LambdaLR(
        optimizer, [lambda epoch: 0.8**epoch] * len(optimizer.param_groups)
    ),
    "multiplicative": lambda optimizer: lr_scheduler.MultiplicativeLR(optimizer, lambda epoch: 0.9),
    "steps": lambda optimizer: lr_scheduler.StepLR(optimizer, 3, 0.5),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 20),
    "restarts": lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 4),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, [g["lr"] for g in optimizer.param_groups], 20),
    "cyclic": lambda optimizer: lr_scheduler.CyclicLR(
        optimizer, [g["lr"] / 9 for g in optimizer.param_groups], [g["lr"] for g in optimizer.param_groups], 3
    ),
    "plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(
        optimizer, patience=0, min_lr=[1e-9] * len(optimizer.param_groups)
    ),
    "sequential": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, 0.1), lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch)],
        [5],
    ),
    "chained": lambda optimizer: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(optimizer, 0.5, 3), lr_scheduler.ExponentialLR(optimizer, 0.9)], optimizer
    ),
    "timm": lambda optimizer: timm.scheduler.CosineLRScheduler(optimizer, t_initial=12, warmup_t=2),
}


def advance(scheduler: Any, epoch: int) -> None:
    """Step a scheduler of any kind."""
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(1.0)
    elif isinstance(scheduler, lr_scheduler.LRScheduler):
        scheduler.step()
    else:
        scheduler.step(epoch + 1)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")  # torch warns of itself
def test_newcomers_follow_the_scheduler(name: str) -> None:
    """They come in at the rate where the schedule is, and have from then on what they would have had from the start."""
    courses = []
    for late in (False, True):
        model = stack()
        if late:
            freeze_except(model, "2")
        optimizer = torch.optim.SGD(param_groups(model, 0.1, layer_decay=0.5), momentum=0.9)
        scheduler = SCHEDULERS[name](optimizer)
        rates = []
        for epoch in range(10):
            if late and epoch == 4:
                unfreeze(model, "1", optimizer=optimizer)
                unfreeze(model, "0", optimizer=optimizer)
            optimizer.step()
            advance(scheduler, epoch)
            rates.append(sorted(float(group["lr"]) for group in optimizer.param_groups))
        courses.append(rates[4:])
        if isinstance(scheduler, lr_scheduler.LRScheduler):
            assert sorted(scheduler.get_last_lr()) == rates[-1]
    assert [len(rates) for rates in courses[1]] == [3] * 6
    torch.testing.assert_close(torch.tensor(courses[1]), torch.tensor(courses[0]))


def test_a_scheduler_resumes_with_the_newcomers() -> None:
    """A run that starts anew has its groups and its scheduler's lists back before their states are loaded."""

    def start() -> tuple[nn.Module, torch.optim.Optimizer, FreezeSchedule, lr_scheduler.LambdaLR]:
        model = stack()
        schedule = FreezeSchedule({0: "2", 2: "1"})
        schedule.step(0, model=model)
        optimizer = torch.optim.SGD(param_groups(model, 0.1, layer_decay=0.5))
        return model, optimizer, schedule, lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch))

    model, optimizer, schedule, scheduler = start()
    for epoch in range(3):
        schedule.step(epoch, model=model, optimizer=optimizer)
        optimizer.step()
        scheduler.step()
    states = optimizer.state_dict(), schedule.state_dict(), scheduler.state_dict()
    optimizer.step()
    scheduler.step()
    expected = scheduler.get_last_lr()
    model, optimizer, schedule, scheduler = start()
    schedule.load_state_dict(states[1])
    schedule.step(2, model=model, optimizer=optimizer)
    optimizer.load_state_dict(states[0])
    scheduler.load_state_dict(states[2])
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == expected == pytest.approx([0.02, 0.01])


def test_groups_made_before_freezing_take_any_scheduler() -> None:
    """An optimizer built over the whole model needs nothing to join it, and frozen parameters in it do not move."""
    model = stack()
    optimizer = torch.optim.AdamW(param_groups(model, 0.1, weight_decay=0.1, layer_decay=0.5))
    schedule = lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch)
    freeze_except(model, "2")
    before = model[1].weight.clone()
    for epoch in range(4):
        if epoch == 2:
            assert torch.equal(before, model[1].weight)
            assert unfreeze(model, "1", optimizer=optimizer).added == ()
        optimizer.zero_grad()
        model(torch.randn(4, 2)).square().sum().backward()
        optimizer.step()
        schedule.step()
    assert not torch.equal(before, model[1].weight)


def test_an_optimizer_with_its_own_way_of_adding_is_asked() -> None:
    """What overrides add_param_group sees every newcomer, as ZeroRedundancyOptimizer must."""
    seen: list[int] = []

    class Sharded(torch.optim.SGD):
        def add_param_group(self, param_group: dict[str, object]) -> None:
            super().add_param_group(param_group)
            seen.append(len(param_group["params"]))

    model = stack()
    freeze_except(model, "2")
    optimizer = Sharded(param_groups(model, 0.1))
    unfreeze(model, "1", optimizer=optimizer)
    assert seen == [2, 2]


def test_one_optimizer_may_serve_two_models() -> None:
    """Newcomers follow the groups of their own model, and none of the other's if theirs has none yet."""
    first, second, third = stack(), stack(2), stack(2)
    freeze_except(first, "2")
    freeze_except(second, "1")
    groups = param_groups(first, 0.1, rates={"2": 0.5}) + param_groups(second, 0.01, layer_decay=0.5)
    optimizer = torch.optim.SGD(groups)
    unfreeze(first, "1", optimizer=optimizer)
    unfreeze(second, "0", optimizer=optimizer)
    unfreeze(third, optimizer=optimizer)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [rates[id(layer.weight)] for layer in (*first[1:], *second, third[0])] == [0.1, 0.5, 0.005, 0.01, 0.005]


def test_a_layout_of_another_model_is_an_error() -> None:
    """The closest name is told, and the optimizer is untouched."""
    model = stack()
    optimizer = torch.optim.SGD(param_groups(model, 0.1))
    before = layout(model, optimizer)
    with pytest.raises(FtkitError, match=r"Did you mean '2.weight'"):
        restore_layout(model, [["0.weight"], ["2.wieght"]], optimizer)
    assert layout(model, optimizer) == before


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
