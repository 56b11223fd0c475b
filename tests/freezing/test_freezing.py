"""Freezing: what stays still, through what, and that it can be taken back."""

from __future__ import annotations

import copy
import json
import pickle
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
import timm
import torch
import torch.distributed as dist
import torchvision
from hypothesis import given, settings
from timm.layers import BatchNormAct2d, DropPath
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ftkit._freezing.freeze import freeze, freeze_except, frozen, is_frozen, trainable, unfreeze
from ftkit._groups import param_groups
from ftkit.errors import FtkitError, SelectionError
from ftkit.selection import select


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


LEAVES: list[Callable[[], nn.Module]] = [
    lambda: nn.Linear(2, 2),
    lambda: nn.BatchNorm1d(2),
    lambda: nn.BatchNorm1d(2, affine=False),
    lambda: nn.LayerNorm(2),
    lambda: nn.Dropout(0.5),
    lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)),
]


@st.composite
def trees(draw: st.DrawFn) -> nn.Module:
    """Nested Sequentials of layers on two features, with shared layers, fixed parameters, in either mode."""
    layers: list[nn.Module] = [LEAVES[0]()]
    for kind in draw(st.lists(st.integers(0, len(LEAVES)), min_size=1, max_size=8)):
        again = draw(st.integers(0, len(layers) - 1))
        layers.append(LEAVES[kind]() if kind < len(LEAVES) else layers[again])
    while len(layers) > 1 and draw(st.booleans()):
        start = draw(st.integers(0, len(layers) - 2))
        stop = draw(st.integers(start + 1, len(layers)))
        layers[start:stop] = [nn.Sequential(*layers[start:stop])]
    model = nn.Sequential(*layers).train(draw(st.booleans()))
    for parameter in model.parameters():
        parameter.requires_grad_(draw(st.integers(0, 3)) > 0)
    return model


@st.composite
def trees_and_parts(draw: st.DrawFn) -> tuple[nn.Module, list[str]]:
    """A tree and some names in it."""
    model = draw(trees())
    names = [name for name, _ in model.named_modules() if name] + [name for name, _ in model.named_parameters()]
    return model, draw(st.lists(st.sampled_from(names), min_size=1, max_size=3))


def script(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about torch.jit as a whole
        return torch.jit.script(model)


@pytest.mark.parametrize(
    "convert",
    [
        script,
        lambda model: torch.export.export(model, (images(),)).module(),
        torch.fx.symbolic_trace,
        nn.SyncBatchNorm.convert_sync_batchnorm,
        lambda model: torch.compile(model, fullgraph=True, backend="aot_eager"),
    ],
)
def test_a_frozen_part_is_frozen_in_whatever_the_model_is_turned_into(
    convert: Callable[[nn.Module], nn.Module],
) -> None:
    """Scripted, exported, traced, converted and compiled, in training mode, it keeps its statistics and its output."""
    model = Net()
    model.eval()(images())
    freeze(model, "backbone")
    x = images()
    wanted = model.eval().backbone(x).mean((2, 3)) @ model.head[3].weight.T + model.head[3].bias
    model.head[2].p = 0.0
    converted = convert(model.train())
    before = {name: tensor.clone() for name, tensor in converted.state_dict().items() if "running" in name}
    for part in model.modules():
        part.training = True  # as some trainers do
    assert torch.allclose(converted(x), wanted, atol=1e-4)
    assert all(torch.equal(tensor, converted.state_dict()[name]) for name, tensor in before.items())


def test_a_norm_converted_inside_a_frozen_list_stays_frozen_when_compiled() -> None:
    """New modules have no hook; what holds the list they are in takes care of them, in a graph too."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norms[1](self.norms[0](x))

    model = nn.Sequential(Block(), nn.Flatten(), nn.Linear(192, 2))
    freeze(model, "0")
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    before = state(model[0])
    torch.compile(model.train(), backend="eager", fullgraph=True)(images())
    model.train()(images())
    assert same(before, model[0])


def test_hooks_registered_after_unpickling_do_not_replace_the_freeze() -> None:
    """Torch counts hooks anew in every process; ours does not take part."""
    model = Net()
    freeze(model, "backbone")
    twin = pickle.loads(pickle.dumps(model))
    calls: list[int] = []
    for part in twin.modules():
        part.register_forward_pre_hook(lambda module, args: calls.append(1))
    twin.train()(images())
    assert twin.backbone[1].num_batches_tracked == 0
    assert calls


def test_spectral_norm_of_a_frozen_part_stops_its_power_iteration() -> None:
    """The old hook looks at the mode before the forward; the freeze comes first, however late it was made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch recommends the parametrization
        old = nn.utils.spectral_norm(nn.Linear(4, 4))
    model = nn.Sequential(old, nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    freeze(model, "0", "1")
    before = state(model[:2])
    model.train()(torch.randn(3, 4))
    assert same(before, model[:2])


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
    unfreeze(model, *parts)
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


RANK = """
import json, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from ftkit._freezing.freeze import freeze, freeze_except, frozen, unfreeze
from ftkit._groups import param_groups

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
torch.set_num_threads(1)
torch.manual_seed(0)
body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 4, 3))
model = nn.Sequential(body, nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))
freeze_except(model, "1")
parallel = DistributedDataParallel(model)
torch.manual_seed(rank)
optimizer = torch.optim.SGD(param_groups(model, 1e-3))
seen = []

def check():
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in range(2):
        optimizer.zero_grad()
        parallel.train()(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()
    flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    both = [torch.empty_like(flat) for _ in range(2)]
    dist.all_gather(both, flat)
    moved = {name[0] for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
    seen.append([sorted(moved), torch.equal(*both)])

check()
unfreeze(parallel, "0", optimizer=optimizer)
check()
freeze(parallel, "1")
check()
with frozen(parallel):
    for _ in range(2):
        parallel(torch.randn(4, 3, 8, 8).requires_grad_()).sum().backward()
check()
dist.destroy_process_group()
print(json.dumps(seen))
"""


@pytest.mark.slow
def test_two_processes_stay_in_step(tmp_path: Path) -> None:
    """Through DistributedDataParallel frozen parts stay, and what thaws after wrapping is averaged like the rest."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=240)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    head, all_of_it, body, again = json.loads(outputs[0])
    assert head == [["1"], True]
    assert all_of_it == [["0", "1"], True]
    assert body == again == [["0"], True]


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_a_wrapper_waits_for_the_gradients_of_what_is_trainable_now() -> None:
    """Freezing after wrapping would otherwise fail in the second step; hooks on the communication stay."""
    model = Net()
    parallel = DistributedDataParallel(model)
    sent: list[int] = []

    def count(_, bucket):  # torch reads annotations, and takes no strings
        sent.append(sum(parameter.numel() for parameter in bucket.parameters()))
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    parallel.register_comm_hook(None, count)
    for verb, selectors in ((freeze, ["backbone"]), (unfreeze, ["backbone.4"]), (freeze_except, ["backbone.0.weight"])):
        verb(parallel, *selectors)
        for _ in range(2):
            sent.clear()
            parallel(images()).sum().backward()
            assert sum(sent) == sum(parameter.numel() for parameter in trainable(model).values())


@pytest.mark.usefixtures("one_process")
def test_a_group_of_processes_of_its_own_is_an_error_before_anything_changes() -> None:
    """What can't be brought in step is refused, with what to do."""
    parallel = DistributedDataParallel(Net(), process_group=dist.new_group([0]))
    before = modes(parallel)
    with pytest.raises(FtkitError, match="wrap it again"):
        freeze(parallel, "backbone")
    assert modes(parallel) == before
