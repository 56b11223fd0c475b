"""Parts that thaw: their norms keep their statistics, in every verb, through schedules and resumes."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from ftkit._freezing.freeze import freeze, freeze_except, is_frozen, trainable, unfreeze
from ftkit._freezing.schedules import FreezeSchedule
from tests.freezing.models import Net, images, same, state, step


def norms(model: nn.Module) -> dict[str, torch.Tensor]:
    """All running statistics of a model."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if "running" in name}


def kept(before: dict[str, torch.Tensor], model: nn.Module) -> bool:
    now = norms(model)
    return all(torch.equal(tensor, now[name]) for name, tensor in before.items())


def frozen_net() -> Net:
    model = Net(nn.BatchNorm2d, nn.Dropout(0.5))
    freeze_except(model, "head")
    return model


def test_weights_of_a_norm_that_thaws_train_and_its_statistics_stay() -> None:
    """The norm works as in eval mode, Dropout beside it is on again, and the report says so."""
    model = frozen_net()
    report = unfreeze(model, "backbone")
    before, weight = norms(model), model.backbone[1].weight.clone()
    step(model, images())
    assert kept(before, model)
    assert not torch.equal(weight, model.backbone[1].weight)
    assert model.backbone[3].training
    assert not is_frozen(model, "backbone")
    assert (report.norms, report.trained_norms) == (2, 2)
    assert "including 2 norms with running statistics (2 with trainable weights)" in str(report)


def test_norm_stats_thaws_them_too_at_once_or_later() -> None:
    """With norm_stats=True a norm follows the data, whether its weights thaw by this call or trained before."""
    for thaws in ([True], [False, True]):
        model = frozen_net()
        for norm_stats in thaws:
            report = unfreeze(model, "backbone", norm_stats=norm_stats)
        before = norms(model)
        step(model, images())
        assert not kept(before, model)
        assert report.trained_norms == 0


def test_a_norm_that_was_never_held_keeps_moving() -> None:
    """Thawing holds nothing that was free."""
    model = Net()
    freeze(model, "backbone", norm_stats=False)
    unfreeze(model, "backbone")
    before = norms(model)
    step(model, images())
    assert not kept(before, model)


def test_a_dropout_beside_a_norm_with_weights_that_train_stays_on() -> None:
    """What freezes on its other side does not count it as frozen on both."""
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 2), nn.Linear(2, 2))
    freeze(model, "0", "2")
    unfreeze(model, "0", "2")
    freeze(model, "2")
    model.train()(torch.randn(4, 2))
    assert model[1].training


@pytest.mark.parametrize("thaw", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_a_schedule_keeps_statistics_as_unfreeze_does(late: bool, thaw: bool) -> None:
    """Phase by phase, and in a run that begins late."""
    model, schedule = Net(), FreezeSchedule({0: "head", 1: "backbone"}, thaw_norm_stats=thaw)
    for epoch in range(late, 2):
        report = schedule.step(epoch, model=model)
    assert report is not None
    assert report.thawed
    assert bool(report.frozen) == late
    before = norms(model)
    step(model, images())
    assert kept(before, model) == (not thaw)


@pytest.mark.parametrize("thaw", [False, True])
@pytest.mark.parametrize("started", [False, True])
def test_a_resumed_schedule_holds_the_norms_that_were_held(started: bool, thaw: bool) -> None:
    """Whatever the script has done before it loads the state; and a state of version 0.1 still loads."""
    model, schedule = Net(), FreezeSchedule({0: "head", 1: "backbone"}, thaw_norm_stats=thaw)
    for epoch in range(2):
        schedule.step(epoch, model=model)
    saved = schedule.state_dict()
    resumed, schedule = Net(), FreezeSchedule({0: "head", 1: "backbone"}, thaw_norm_stats=thaw)
    if started:
        schedule.step(0, model=resumed)
    schedule.load_state_dict(saved)
    schedule.step(1, model=resumed)
    before = norms(resumed)
    step(resumed, images())
    assert kept(before, resumed) == (not thaw)
    schedule.load_state_dict({key: value for key, value in saved.items() if key != "norms"})


def test_update_bn_leaves_held_statistics_alone() -> None:
    """Also in the averaged copy; norms that are free are counted anew, and a thawed one is as it was."""
    model = nn.ModuleDict({"body": Net(), "norm": nn.BatchNorm1d(4)})
    net = nn.Sequential(model["body"], model["norm"])
    step(net, images())
    freeze(net, "0.backbone")
    before, free = state(net[0].backbone), state(net[1])
    averaged = torch.optim.swa_utils.AveragedModel(net)
    for updated in (averaged.module, net):
        torch.optim.swa_utils.update_bn([images(8) + 5], updated)
        assert same(before, updated[0].backbone)
        assert not same(free, updated[1])
    unfreeze(net, norm_stats=True)
    net[0].backbone[1].reset_running_stats()
    assert not net[0].backbone[1].running_mean.any()


def wipe(model: nn.Module) -> dict[nn.BatchNorm2d, float | None]:
    """Do what Lightning's weight averaging does before it runs an epoch to count statistics."""
    momenta = {}
    for norm in (part for part in model.modules() if isinstance(part, nn.BatchNorm2d)):
        norm.running_mean, norm.running_var = torch.zeros_like(norm.running_mean), torch.ones_like(norm.running_var)
        momenta[norm], norm.momentum = norm.momentum, None
        norm.num_batches_tracked *= 0
    return momenta


@pytest.mark.parametrize("mode", [False, True])
@pytest.mark.parametrize("thaw", [False, True])
def test_statistics_that_averaging_has_replaced_come_back(thaw: bool, mode: bool) -> None:
    """The newest ones: those loaded after freezing count, and those of a part whose weights thawed."""
    model = Net()
    freeze(model, "backbone")
    for norm in (model.backbone[1], model.backbone[4]):
        norm.running_mean += 3
    if thaw:
        unfreeze(model, "backbone")
    model.to(torch.float64).train()(images().double())
    model.load_state_dict(
        {name: tensor + 1 for name, tensor in model.state_dict().items() if tensor.ndim}, strict=False
    )
    before = state(model.backbone)
    model = copy.deepcopy(model)
    momenta = wipe(model)
    if mode:
        model.train()  # Lightning leaves the modes as they are
    model(images().double())
    for norm, momentum in momenta.items():
        norm.momentum = momentum
    model.train()(images().double())
    assert same(before, model.backbone)


def others_thaw(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.requires_grad = True


def test_weights_that_something_else_made_trainable_are_told_of_once() -> None:
    """At the first forward in train mode; not in eval mode, not again, and not once unfreeze has been called."""
    model = frozen_net()
    others_thaw(model)
    model.eval()(images())
    with pytest.warns(UserWarning, match=r"A frozen \w+ has trainable weights.*ftkit.unfreeze"):
        model.train()(images())
    model.train()(images())
    freeze_except(model, "head")
    others_thaw(model)
    unfreeze(model)
    model.train()(images())
    assert model.backbone[3].training


def test_a_summary_does_not_use_the_warning_up() -> None:
    """It runs on fakes, in silence."""
    from ftkit import summary

    model = frozen_net()
    others_thaw(model)
    shown = summary(model.train(), (4, 3, 8, 8))
    assert [(row.trainable, row.mode) for row in shown.rows if row.name == "backbone.1"] == [(16, "eval")]
    with pytest.warns(UserWarning, match="has trainable weights"):
        model.train()(images())


@pytest.mark.parametrize("verb", [freeze, unfreeze])
def test_no_warning_where_ftkit_did_it(verb: Any) -> None:
    """Neither frozen parts nor thawed norms with kept statistics."""
    model = frozen_net()
    verb(model, "backbone")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(model, images())


# ---- unfreezing by frameworks


@pytest.mark.frameworks
@pytest.mark.filterwarnings("ignore")  # fastai's advice on its own imports
@pytest.mark.parametrize(
    ("call", "options", "trains"),
    [
        ("fine_tune", {}, {"backbone", "head"}),  # which freezes, trains, unfreezes and trains
        ("unfreeze", {}, {"backbone", "head"}),
        ("freeze", {}, {"norms", "head"}),
        ("freeze", {"train_bn": False}, {"head"}),  # as the page on fastai has it
    ],
)
def test_what_fastai_thaws_is_visible(call: str, options: dict[str, Any], trains: set[str]) -> None:
    """Its weights train, and the norms keep their statistics: a warning says so, and all that is asked."""
    learner_of = pytest.importorskip("fastai.learner").Learner
    from fastai.callback.schedule import fit_one_cycle  # noqa: F401  (adds fine_tune)
    from fastai.data.core import DataLoaders

    def parts(model: Net) -> list[list[nn.Parameter]]:
        return [list(model.backbone.parameters()), list(model.head.parameters())]

    model = frozen_net()
    data = [(image, index % 2) for index, image in enumerate(images(8) + 2)]
    batches = [torch.utils.data.DataLoader(data, 4) for _ in range(2)]
    loss = nn.functional.cross_entropy
    learner = learner_of(DataLoaders(*batches, device=torch.device("cpu")), model, loss, splitter=parts, **options)
    before = state(model)
    with warnings.catch_warnings(record=True) as caught, learner.no_bar(), learner.no_logging():
        warnings.simplefilter("always")
        getattr(learner, call)(*([1] if call == "fine_tune" else []))
        learner.fit(1)
    told = [str(one.message) for one in caught if "ftkit.unfreeze(model, ...)" in str(one.message)]
    moved = {name for name, tensor in state(model).items() if not torch.equal(tensor, before[name])}
    norm_weights = {f"backbone.{at}.{name}" for at in (1, 5) for name in ("weight", "bias")}
    weights = {name for name, _ in model.named_parameters()}
    expected = {name for name in weights if name.startswith("head")}
    expected |= weights if "backbone" in trains else norm_weights if "norms" in trains else set()
    assert moved == trainable(model).keys() == expected
    assert kept({name: tensor for name, tensor in before.items() if "running" in name}, model)
    assert is_frozen(model, "backbone") == (trains == {"head"})
    assert len(told) == (trains != {"head"})


@pytest.mark.frameworks
@pytest.mark.filterwarnings("ignore:.*pkg_resources")
def test_what_lightning_thaws_is_visible() -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

    module = Module()
    freeze_except(module, "net.head")
    before = state(module)
    module.unfreeze()
    with pytest.warns(UserWarning, match=r"trainable weights.*a framework's unfreeze\(\).*ftkit.unfreeze"):
        step(module.net, images())
    now = state(module)
    assert {name for name in before if not torch.equal(before[name], now[name])} == {*trainable(module)}
    assert trainable(module).keys() == dict(module.named_parameters()).keys()
    assert not is_frozen(module, "net.backbone")
