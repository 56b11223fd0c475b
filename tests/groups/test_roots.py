"""Groups that were made of a part of a model, and newcomers that thaw through the whole, or the other way round."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ftkit import FreezeSchedule, FtkitError, freeze_except, param_groups, unfreeze


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))


def rates(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    return {id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]}


RECIPES: list[dict[str, Any]] = [{"layer_decay": 0.5}, {"rates": {"2": 1e-3, "0": 1e-4}}, {}]


@pytest.mark.parametrize("recipe", RECIPES)
def test_groups_of_a_part_take_in_what_thaws_through_the_whole(recipe: dict[str, Any]) -> None:
    outer = nn.ModuleDict({"0": nn.Linear(4, 4), "net": net()})
    wanted = rates(torch.optim.SGD(param_groups(outer["net"], 0.01, **recipe)))
    freeze_except(outer, "net.4")
    optimizer = torch.optim.SGD(param_groups(outer["net"], 0.01, **recipe))
    schedule = FreezeSchedule({0: "net.4", 1: "net.2", 2: "net.0"})
    for epoch in range(3):
        schedule.step(epoch, model=outer, optimizer=optimizer)
    assert rates(optimizer) == wanted
    names = {name for group in optimizer.param_groups for name in group["param_names"]}
    assert names == {name for name, _ in outer["net"].named_parameters()}


@pytest.mark.parametrize("recipe", [{"layer_decay": 0.5}, {"rates": {"net.2": 1e-3, "net.0": 1e-4}}, {}])
def test_groups_of_the_whole_take_in_what_thaws_through_a_part(recipe: dict[str, Any]) -> None:
    outer: Any = nn.ModuleDict({"net": net()})
    wanted = rates(torch.optim.SGD(param_groups(outer, 0.01, **recipe)))
    freeze_except(outer, "net.4")
    optimizer = torch.optim.SGD(param_groups(outer, 0.01, **recipe))
    unfreeze(outer["net"], "2", "0", optimizer=optimizer)
    assert rates(optimizer) == wanted


def test_a_part_of_which_nothing_trains_yet_has_no_known_place() -> None:
    """Its names may start anywhere in the model that the groups were made of, so its rates can't be told."""
    outer = nn.ModuleDict({"net": net(), "head": nn.Linear(2, 2)})
    freeze_except(outer, "head")
    optimizer = torch.optim.SGD(param_groups(outer, 0.01, layer_decay=0.5, rates={"net.2": 1e-6}))
    with pytest.raises(FtkitError, match="the model that the groups were made of"):
        unfreeze(outer["net"], "2", "4", optimizer=optimizer)
    assert len(optimizer.param_groups) == 1
    assert not outer["net"][2].weight.requires_grad
    unfreeze(outer, "net.2", "net.4", optimizer=optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 1e-6, 0.005]


def test_a_rate_does_not_hit_a_part_of_the_same_name_outside() -> None:
    outer = nn.Sequential(nn.Linear(4, 4), net())
    freeze_except(outer, "1.4")
    optimizer = torch.optim.SGD(param_groups(outer[1], 0.01, rates={"0": 1e-4}))
    unfreeze(outer, "1.0", "0", optimizer=optimizer)
    found = rates(optimizer)
    assert found[id(outer[1][0].weight)] == 1e-4
    assert found[id(outer[0].weight)] == 0.01
    unfreeze(outer, "1.2", optimizer=optimizer)  # by the recipe of its own part still
    assert rates(optimizer)[id(outer[1][2].weight)] == 0.01


def test_two_parts_keep_their_own_recipes() -> None:
    outer = nn.ModuleDict({"a": net(), "b": net()})
    freeze_except(outer, "a.4", "b.4")
    groups = [*param_groups(outer["a"], 0.1, rates={"2": 0.3}), *param_groups(outer["b"], 0.01, rates={"2": 0.03})]
    optimizer = torch.optim.SGD(groups)
    unfreeze(outer, "a.2", "b.2", "a.0", optimizer=optimizer)
    found = rates(optimizer)
    assert [found[id(outer[name][2].weight)] for name in "ab"] == [0.3, 0.03]
    assert found[id(outer["a"][0].weight)] == 0.1


def test_one_rate_for_groups_of_several_layers_is_one_rate() -> None:
    model = net()
    freeze_except(model, "2", "4")
    optimizer = torch.optim.SGD(param_groups(model, 0.1, layer_decay=0.5), momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)
    unfreeze(model, "0", optimizer=optimizer, scheduler=schedule)
    assert {group["max_lr"] for group in optimizer.param_groups} == {0.1}


def curve(scheduler: Any, *, thaw: int | None, **recipe: Any) -> list[tuple[Any, Any]]:
    """The rate and the momentum of a layer, step by step, that trains from the start or thaws at a step."""
    torch.manual_seed(0)
    model = net()
    freeze_except(model, "4", *(["2"] if thaw is None else []))
    optimizer = torch.optim.SGD(param_groups(model, 0.01, **recipe), momentum=0.9)
    schedule = scheduler(optimizer)
    found: list[tuple[Any, Any]] = []
    for step in range(9):
        if step == thaw:
            unfreeze(model, "2", optimizer=optimizer, scheduler=schedule)
        optimizer.step()
        schedule.step()
        group = next((one for one in optimizer.param_groups if set(model[2].parameters()) <= set(one["params"])), {})
        found.append((group.get("lr"), group.get("momentum")))
    return found


@pytest.mark.parametrize("thaw", [0, 3, 8])
@pytest.mark.parametrize("recipe", [{}, {"layer_decay": 0.5}, {"rates": {"2": 1e-3}}])
@pytest.mark.parametrize(
    "scheduler",
    [
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10),
        lambda optimizer: torch.optim.lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, step_size_up=4),
        lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2),
    ],
    ids=["one cycle", "cyclic", "step"],
)
def test_a_newcomers_curve_is_that_of_a_run_that_had_it_from_the_start(scheduler: Any, recipe: Any, thaw: int) -> None:
    expected = curve(scheduler, thaw=None, **recipe)[thaw:]
    assert curve(scheduler, thaw=thaw, **recipe)[thaw:] == [pytest.approx(pair) for pair in expected]


def test_it_is_said_where_one_rate_and_a_list_look_alike(caplog: pytest.LogCaptureFixture) -> None:
    """With one group, a list of its own rate is the same as this rate: newcomers get theirs by the layer."""
    model = net()
    freeze_except(model, "4")
    optimizer = torch.optim.SGD(param_groups(model, 0.1, layer_decay=0.5), momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)
    unfreeze(model, "2", optimizer=optimizer, scheduler=schedule)
    assert [group["max_lr"] for group in optimizer.param_groups] == [0.1, 0.05]
    assert "max_lr" in caplog.text


# ---- wrappers of frameworks


@pytest.mark.frameworks
def test_an_optimizer_of_accelerate_takes_in_what_thaws() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = net()
    freeze_except(model, "4")
    optimizer = torch.optim.SGD(param_groups(model, 0.01, layer_decay=0.5))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    model, wrapped, schedule = accelerate.Accelerator(cpu=True).prepare(model, optimizer, scheduler)
    assert unfreeze(model, "2", optimizer=wrapped, scheduler=schedule).added == ("2.weight", "2.bias")
    model(torch.randn(2, 4)).sum().backward()
    wrapped.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.001, 0.0005])


@pytest.mark.frameworks
def test_an_optimizer_of_lightning_takes_in_what_thaws() -> None:
    wrapper = pytest.importorskip("lightning.pytorch.core.optimizer").LightningOptimizer
    model = net()
    freeze_except(model, "4")
    optimizer = torch.optim.SGD(param_groups(model, 0.01, layer_decay=0.5))
    assert unfreeze(model, "2", optimizer=wrapper(optimizer)).added == ("2.weight", "2.bias")
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.005]


@pytest.mark.frameworks
@pytest.mark.filterwarnings("ignore")
def test_an_optimizer_of_fastai_takes_in_what_thaws_if_it_wraps_one_of_torch() -> None:
    fastai = pytest.importorskip("fastai.optimizer")
    from ftkit.errors import FtkitError

    model = net()
    freeze_except(model, "4")
    wrapped = fastai.OptimWrapper(list(model[4].parameters()), torch.optim.SGD, lr=0.1)
    assert unfreeze(model, "2", optimizer=wrapped).added == ("2.weight", "2.bias")
    assert sum(map(len, wrapped.param_lists)) == 4
    wrapped.set_hyper("lr", 0.05)
    assert {group["lr"] for group in wrapped.opt.param_groups} == {0.05}
    with pytest.raises(FtkitError, match=r"fastai's own.*OptimWrapper"):
        unfreeze(model, "0", optimizer=fastai.Adam(list(model[4].parameters()), lr=0.1))
    assert not model[0].weight.requires_grad
