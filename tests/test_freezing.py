"""Freezing: what stays still, through what, and that it can be taken back."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from timm.layers import BatchNormAct2d, DropPath
from torch import nn

from ftkit.errors import SelectionError
from ftkit.freezing import freeze, freeze_except, frozen, is_frozen, trainable, unfreeze
from ftkit.groups import param_groups


class Net(nn.Module):
    """A backbone with a norm and noise, and a head."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, *noise: nn.Module) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), *noise, nn.Conv2d(8, 8, 3), norm(8))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8) * 3 + 1


def step(model: nn.Module, x: torch.Tensor) -> None:
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(x).square().sum().backward()
    optimizer.step()


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(before: dict[str, torch.Tensor], module: nn.Module) -> bool:
    now = module.state_dict()
    return before.keys() == now.keys() and all(torch.equal(tensor, now[name]) for name, tensor in before.items())


def modes(model: nn.Module) -> list[object]:
    """All that freezing may change, to compare before and after."""
    return [
        *((part.training, list(part._forward_pre_hooks.items()), sorted(vars(part))) for part in model.modules()),
        *(p.requires_grad for p in model.parameters()),
    ]


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d,
        BatchNormAct2d,
        nn.SyncBatchNorm,
        lambda channels: nn.BatchNorm2d(channels, affine=False),
        lambda channels: nn.InstanceNorm2d(channels, track_running_stats=True),
        lambda channels: nn.LazyBatchNorm2d(),
    ],
)
def test_statistics_of_every_norm_stay(norm: Callable[[int], nn.Module]) -> None:
    """Two training steps move neither weights nor running statistics of the frozen part."""
    model = Net(norm)
    model.eval()(images())
    freeze(model, "backbone")
    before, head = state(model.backbone), state(model.head)
    step(model, images())
    model.eval()
    step(model, images())
    assert same(before, model.backbone)
    assert not same(head, model.head)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d, nn.BatchNorm3d])
def test_statistics_stay_in_one_and_three_dimensions(layer: type[nn.Module]) -> None:
    """BatchNorm1d and BatchNorm3d keep their statistics in training mode."""
    model = nn.Sequential(layer(3), nn.Flatten(), nn.LazyLinear(2))
    freeze(model, "0")
    before = state(model[0])
    model.train()(torch.randn(4, 3) if layer is nn.BatchNorm1d else torch.randn(4, 3, 2, 2, 2))
    assert same(before, model[0])


def test_the_frozen_part_gives_in_training_what_it_gives_in_eval_mode() -> None:
    """Dropout and DropPath are off and norms use their statistics, whatever the mode of the model."""
    model = Net(nn.BatchNorm2d, nn.Dropout(0.5), DropPath(0.5))
    freeze(model, "backbone")
    x = images(16)
    assert torch.equal(model.train().backbone(x), model.eval().backbone(x))
    assert model.train().backbone(x).grad_fn is None


def test_parts_of_a_frozen_part_stay_frozen_when_they_are_called_alone() -> None:
    """A loop over the layers of a frozen Sequential sees eval mode in each of them."""
    model = Net(nn.BatchNorm2d, nn.Dropout(0.5))
    freeze(model, "backbone")
    before = state(model.backbone)
    x = y = images()
    for layer in model.train().backbone:
        x = layer(x)
    assert torch.equal(x, model.eval().backbone(y))
    assert same(before, model.backbone)


def test_the_keywords_leave_norms_or_dropout_in_training() -> None:
    """norm_stats=False lets statistics move; keep_dropout=True keeps Dropout active; the weights stay in both."""
    moving = Net(nn.BatchNorm2d, nn.Dropout(0.5))
    freeze(moving, "backbone", norm_stats=False)
    moving.train()(images())
    assert moving.backbone[1].num_batches_tracked == 1
    assert not moving.backbone[3].training

    noisy = Net(nn.BatchNorm2d, nn.Dropout(0.5))
    freeze(noisy, "backbone", keep_dropout=True)
    noisy.train()(images())
    assert noisy.backbone[1].num_batches_tracked == 0
    assert noisy.backbone[3].training
    assert is_frozen(moving, "backbone")
    assert is_frozen(noisy, "backbone")


def test_the_last_call_decides_about_a_norm() -> None:
    """Freezing again with other keywords replaces what the first call set, also under a module frozen whole."""
    model = Net()
    freeze(model, "backbone")
    freeze(model, "backbone.1", norm_stats=False)
    model.train()(images())
    assert model.backbone[1].num_batches_tracked == 1
    assert model.backbone[4].num_batches_tracked == 0


def test_dropout_goes_with_the_frozen_layers_around_it() -> None:
    """Dropout between two frozen layers is off; Dropout that feeds the head is on."""
    model = timm.create_model("vit_tiny_patch16_224", pos_drop_rate=0.5, drop_rate=0.5, depth=1)
    freeze_except(model, "head")
    model.train()(torch.randn(1, 3, 224, 224))
    assert not model.pos_drop.training
    assert model.head_drop.training
    unfreeze(model, "blocks")
    assert model.pos_drop.training


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_frozen_too_and_can_be_thawed(copied: Callable[[nn.Module], nn.Module]) -> None:
    """Deep copies and pickles stay frozen, have the same classes and keys, and unfreeze like the original."""
    model = Net()
    keys, kinds = list(model.state_dict()), [type(part) for part in model.modules()]
    freeze(model, "backbone")
    twin = copied(model)
    before = state(twin.backbone)
    step(twin, images())
    assert same(before, twin.backbone)
    assert list(twin.state_dict()) == keys
    assert [type(part) for part in twin.modules()] == kinds
    unfreeze(twin, "backbone")
    step(twin, images())
    assert not same(before, twin.backbone)
    assert is_frozen(model, "backbone")


def test_compile_makes_one_graph_for_each_mode() -> None:
    """A frozen model compiles whole; steps and mode switches cause no further graph than train and eval need."""
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    model = Net(nn.BatchNorm2d, nn.Dropout(0.5))
    freeze(model, "backbone")
    before = state(model.backbone)
    compiled = torch.compile(model, backend=count, fullgraph=True)
    x = images()
    for mode in (True, True, False, True, False, True):
        model.train(mode)
        compiled(x).sum().backward()
        compiled(x)
    assert len(graphs) == 2
    assert same(before, model.backbone)
    unfreeze(compiled, "backbone")
    compiled.train()
    compiled(x)
    assert not same(before, model.backbone)


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
    unfreeze(model)
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
        "froze 60 parameters: conv1, bn1, layer1, layer2, layer3, layer4\n"
        "trainable now: 513,000 of 11,689,512 numbers (4.4%)\n"
        "held in eval mode: 89 modules, 20 of them a norm with its statistics"
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
