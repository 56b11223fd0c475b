"""Freezing: what stays still, and that it can be taken back."""

from __future__ import annotations

import re

import hypothesis.strategies as st
import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from torch import nn

from ftkit._freezing.freeze import freeze, freeze_except, frozen, is_frozen, trainable, unfreeze
from ftkit._groups import param_groups
from ftkit.errors import SelectionError
from ftkit.selection import select
from tests.freezing.models import Net, images, modes, same, state, step, trees_and_parts


def test_names_are_checked_before_anything_changes() -> None:
    """A typo names the closest real name, and the model is untouched."""
    model = Net()
    before = modes(model)
    for verb in (freeze, unfreeze, freeze_except, is_frozen):
        with pytest.raises(SelectionError, match="backbone"):
            verb(model, "head", "bakbone")
    with pytest.raises(SelectionError, match="what to train"):
        freeze_except(model)
    assert modes(model) == before


@pytest.mark.parametrize("kind", ["momentum", "adamw"])
@pytest.mark.parametrize("to_none", [True, False])
def test_old_momentum_does_not_move_what_is_frozen_in_mid_training(kind: str, to_none: bool) -> None:
    """Optimizer state, weight decay and zeroed gradients leave frozen parameters alone."""
    model = Net()
    make = {
        "momentum": lambda ps: torch.optim.SGD(ps, 1e-3, momentum=0.9, weight_decay=0.1),
        "adamw": lambda ps: torch.optim.AdamW(ps, 1e-3, weight_decay=0.1),
    }[kind]
    optimizer = make(model.parameters())

    def train(times: int) -> None:
        for _ in range(times):
            optimizer.zero_grad(set_to_none=to_none)
            model.train()(images()).square().sum().backward()
            optimizer.step()

    train(2)
    freeze(model, "backbone")
    before = state(model.backbone)
    train(2)
    assert same(before, model.backbone)


def test_freeze_except_trains_exactly_what_it_is_told() -> None:
    """It thaws what it names and freezes the rest, on any earlier state."""
    model = Net()
    freeze(model, "head")
    report = freeze_except(model, "head", nn.BatchNorm2d)
    assert list(trainable(model)) == [
        "backbone.1.weight",
        "backbone.1.bias",
        "backbone.4.weight",
        "backbone.4.bias",
        "head.3.weight",
        "head.3.bias",
    ]
    assert report.thawed == ("head.3.weight", "head.3.bias")
    model.train()(images())
    assert model.backbone[1].num_batches_tracked == 1


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_unfreeze_undoes_freeze(name: str) -> None:
    """Hooks, modes and attributes are as before, after a forward pass too."""
    model = torchvision.models.get_model(name, weights=None)
    before = modes(model)
    freeze(model)
    assert is_frozen(model)
    model.train()(torch.randn(2, 3, 32, 32))
    unfreeze(model, norm_stats=True)
    assert modes(model) == before


def test_thawing_a_part_frees_what_is_around_it_and_nothing_beside_it() -> None:
    """After freezing the whole and thawing the head, the head trains as if it had never been frozen."""
    model = Net()
    freeze(model)
    unfreeze(model, "head")
    before = state(model.backbone)
    step(model, images())
    assert same(before, model.backbone)
    assert model.head[2].training
    other = Net()
    freeze(other)
    unfreeze(other.head)  # the whole model is out of sight here
    other.train()(images())
    assert other.head[2].training


def test_what_was_fixed_before_stays_fixed() -> None:
    """Thawing takes back freezing; parameters that were fixed by the model's author stay so unless named."""
    model = nn.ModuleDict({"positions": nn.Embedding(4, 2), "layer": nn.Linear(2, 2)})
    model["positions"].requires_grad_(False)
    freeze(model)
    assert unfreeze(model).left == ("positions.weight",)
    assert list(trainable(model)) == ["layer.weight", "layer.bias"]
    assert unfreeze(model, "positions").thawed == ("positions.weight",)


def test_a_model_frozen_by_hand_can_be_thawed() -> None:
    """The usual loop over requires_grad before ftkit leaves nothing stuck."""
    model = Net()
    for parameter in model.parameters():
        parameter.requires_grad = False
    freeze_except(model, "head")
    assert list(trainable(model)) == ["head.3.weight", "head.3.bias"]
    unfreeze(model, "backbone.4")
    assert is_frozen(model, "backbone.0")
    assert not is_frozen(model, "backbone.4.*")


def test_selectors_work_for_single_parameters_and_patterns() -> None:
    """A weight alone can be frozen; a module is held once all of its parameters are frozen, over several calls."""
    model = Net()
    freeze(model, "backbone.1.weight")
    model.train()(images())
    assert model.backbone[1].num_batches_tracked == 1
    freeze(model, re.compile(r"backbone\.1\.bias"))
    model.train()(images())
    assert model.backbone[1].num_batches_tracked == 1
    assert not model.backbone[1].training


def test_tied_parameters_are_one_and_reported() -> None:
    """Freezing one name of a tied parameter freezes the other, and the report says so."""
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "body": nn.Linear(3, 3), "out": nn.Linear(3, 5, bias=False)})
    model["out"].weight = model["embed"].weight
    report = freeze(model, "out")
    assert report.tied == {"embed.weight": ("out.weight",)}
    assert report.frozen == ("embed.weight",)
    assert "embed.weight is also out.weight" in str(report)
    assert report.trainable_parameters == 12


def test_the_report_reads_well() -> None:
    """Parts rather than hundreds of names, counts, shares and norms."""
    report = freeze_except(timm.create_model("resnet18"), "fc")
    assert str(report) == (
        "froze 60 parameter tensors: conv1, bn1, layer1, layer2, layer3, layer4\n"
        "trainable now: 513,000 of 11,689,512 parameters (4.4%)\n"
        "held in eval mode: 89 modules, including 20 norms with running statistics"
    )


def test_unfreeze_adds_the_missing_parameters_once() -> None:
    """They join by identity, though equal in value to others, with the options of param_groups."""
    model = timm.create_model("resnet18")
    nn.init.ones_(model.layer4[1].bn1.weight)
    freeze_except(model, "fc")
    optimizer = torch.optim.AdamW(param_groups(model, 0.1, weight_decay=0.05, layer_decay=0.5))
    report = unfreeze(model, "layer4", optimizer=optimizer)
    assert len(report.added) == len(list(model.layer4.parameters()))
    assert unfreeze(model, "layer4", "fc", optimizer=optimizer).added == ()
    wanted = {
        name: (group["lr"], group["weight_decay"])
        for group in param_groups(model, 0.1, weight_decay=0.05, layer_decay=0.5)
        for name in group["param_names"]
    }
    joined = [
        (name, (group["lr"], group["weight_decay"]))
        for group in optimizer.param_groups
        for name in group["param_names"]
    ]
    assert len(joined) == len(wanted)
    assert dict(joined) == wanted


def test_the_context_manager_restores_exactly_what_was() -> None:
    """Flags, gradients, hooks and modes come back, also after an error and over an earlier freeze."""
    model = Net()
    freeze(model, "backbone.0")
    model.train()(images()).sum().backward()
    before, grads = modes(model), [parameter.grad for parameter in model.parameters()]
    with pytest.raises(RuntimeError), frozen(model, "backbone", "head.3") as report:
        assert "backbone.1.weight" in report.frozen
        assert is_frozen(model)
        model(images())
        raise RuntimeError
    assert modes(model) == before
    assert all(a is b for a, b in zip(grads, (parameter.grad for parameter in model.parameters()), strict=True))
    with frozen(model, "backbone"):
        model.eval()
    assert not any(part.training for part in model.modules())


@given(trees_and_parts(), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_freeze_then_unfreeze_is_the_identity(
    case: tuple[nn.Module, list[str]], run: bool, norm_stats: bool, keep_dropout: bool
) -> None:
    """On any tree, for any parts of which one trains: flags, modes, hooks and attributes come back."""
    model, parts = case
    if is_frozen(model, *parts):
        return  # nothing here was trainable: then unfreeze has nothing to take back, and thaws what it is told
    before, mode = modes(model), model.training
    freeze(model, *parts, norm_stats=norm_stats, keep_dropout=keep_dropout)
    assert is_frozen(model, *parts) or not (norm_stats and not keep_dropout)
    assert not any(parameter.requires_grad for parameter in select(model, *parts).parameters.values())
    if run:
        model.train(mode)(torch.randn(3, 2))
    unfreeze(model, *parts, norm_stats=True)
    assert modes(model) == before


@given(trees_and_parts(), st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_context_manager_is_the_identity(case: tuple[nn.Module, list[str]], first: bool, run: bool) -> None:
    """On any tree, over any earlier freezing, with a forward pass inside or without."""
    model, parts = case
    if first:
        freeze(model, parts[0])
    before = modes(model)
    with frozen(model, *parts):
        assert is_frozen(model, *parts)
        if run:
            model(torch.randn(3, 2))
    assert modes(model) == before


@given(trees_and_parts())
@settings(max_examples=150, deadline=None)
def test_frozen_parts_of_any_tree_keep_their_state(case: tuple[nn.Module, list[str]]) -> None:
    """No parameter and no buffer of a selected module moves in a training step, and its output is that of eval mode."""
    model, parts = case
    freeze(model, *parts)
    held = [part for part in model.modules() if part._forward_pre_hooks and not isinstance(part, nn.ModuleDict)]
    held = [part for part in held if "arametriz" not in type(part).__module__]
    before = {id(module): state(module) for module in held}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    loss = model.train()(torch.randn(3, 2)).square().sum()
    if loss.requires_grad:
        loss.backward()
        optimizer.step()
    for module in held:
        assert same(before[id(module)], module)
        x = torch.randn(3, 2)
        assert torch.equal(module(x), module.eval()(x))


@given(trees_and_parts())
@settings(max_examples=100, deadline=None)
def test_freeze_except_trains_what_is_selected_on_any_tree(case: tuple[nn.Module, list[str]]) -> None:
    """Nothing outside trains; inside, all that did, or all if nothing did."""
    model, parts = case
    chosen = select(model, *parts).parameters
    wanted = [name for name, parameter in chosen.items() if parameter.requires_grad] or list(chosen)
    freeze(model)
    freeze_except(model, *parts)
    assert list(trainable(model)) == wanted


@pytest.mark.parametrize(("parts", "stays"), [((), False), (("0",), True)])
def test_a_switch_of_the_whole_model_inside_the_block(parts: tuple[str, ...], stays: bool) -> None:
    """It stays, but a wholly frozen model says eval whatever it is asked, as code that switches and restores reads."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2)).train()
    with frozen(model, *parts):
        model.eval()
    assert model.training is not stays
