"""What is held in eval mode: norms, noise and hooks, through copies, compilers and converters."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import timm
import torch
from hypothesis import assume, given, settings
from timm.layers import BatchNormAct2d, DropPath
from torch import nn

from ftkit._freezing.freeze import freeze, freeze_except, is_frozen, unfreeze
from ftkit._freezing.holding import keeps_statistics
from tests.freezing.models import Net, images, modes, same, state, step, trees


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
    unfreeze(compiled, "backbone", norm_stats=True)
    compiled.train()
    compiled(x)
    assert not same(before, model.backbone)


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


VERBS: dict[str, Callable[..., object]] = {"freeze": freeze, "unfreeze": unfreeze, "freeze_except": freeze_except}


def nested() -> nn.Module:
    """Layers of parts that end in noise, with noise and norms between."""
    part = lambda *more: nn.Sequential(nn.Linear(2, 2), *more, nn.Dropout(0.5))  # noqa: E731
    layer = lambda: nn.Sequential(part(), nn.BatchNorm1d(2), part(nn.BatchNorm1d(2)))  # noqa: E731
    return nn.Sequential(nn.Dropout(0.5), nn.Sequential(layer(), layer()), nn.Dropout(0.5), part(), nn.Linear(2, 2))


@st.composite
def histories(draw: st.DrawFn) -> tuple[nn.Module, list[tuple[str, list[str]]]]:
    """A tree, and what is done to it: verbs with parts that have parameters."""
    model = draw(trees() | st.builds(nested))
    assume(len([*model.modules()]) == len([*model.named_modules(remove_duplicate=False)]))  # what is shared is in both
    assume(
        not any(keeps_statistics(part) and not [*part.parameters()] for part in model.modules())
    )  # no parameters, no rule
    model.requires_grad_(True)
    names = [name for name, part in model.named_modules() if name and [*part.parameters()]]
    names += [name for name, _ in model.named_parameters()]
    verbs = st.sampled_from(list(VERBS))
    return model, draw(st.lists(st.tuples(verbs, st.lists(st.sampled_from(names), min_size=1, max_size=3)), min_size=1))


@given(histories())
@settings(max_examples=200, deadline=None)
def test_what_is_frozen_computes_the_same_twice(history: tuple[nn.Module, list[tuple[str, list[str]]]]) -> None:
    """After any history, in train mode: no Dropout, no moving statistics, no power iteration."""
    model, calls = history
    for verb, parts in calls:
        VERBS[verb](model, *parts)
    names = [name for name, part in model.named_modules() if name and "parametrizations" not in name]
    x = torch.randn(16, 2)
    for part in [model.get_submodule(name) for name in names if is_frozen(model, name)]:
        model.train()
        before = state(part)
        assert torch.equal(part(x), part(x))
        assert same(before, part)


def test_thawing_a_neighbor_leaves_the_dropout_inside_a_frozen_part_off() -> None:
    """It stands next to what thaws, but inside what does not."""
    layer = lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Dropout(0.5))  # noqa: E731
    model = nn.Sequential(nn.Sequential(layer(), layer(), layer()), nn.Linear(4, 4), nn.Linear(4, 2))
    freeze_except(model, "2")
    unfreeze(model, "1", "0.2")
    model.train()
    x = torch.randn(8, 4)
    assert is_frozen(model, "0.0", "0.1")
    for part in model[0][:2]:
        assert torch.equal(part(x), part(x))
    assert model[0][2][2].training


def test_a_norm_without_parameters_does_not_keep_the_noise_beside_it_on() -> None:
    """A part that freezes bit by bit is frozen whole, though the norm in it was never chosen; and thaws again."""
    model = nn.Sequential(
        nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False), nn.Dropout(0.5)), nn.Linear(2, 2)
    )
    before, x = modes(model), torch.randn(8, 2)
    freeze(model, "0.0.weight")
    assert not is_frozen(model, "0")
    freeze(model, "0.0.bias")
    assert is_frozen(model, "0")
    assert torch.equal(model.train()[0](x), model[0](x))
    assert model[0][1].num_batches_tracked == 0
    unfreeze(model, "0.0", norm_stats=True)
    assert modes(model) == before


def test_a_scripted_part_is_frozen_and_thawed_like_any_other() -> None:
    """Again and again: its tables are none of Python's."""
    model = nn.Sequential(script(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))), nn.Linear(4, 4), nn.Linear(4, 2))
    freeze(model, "0")
    freeze(model, "1")
    before = {name: tensor.clone() for name, tensor in model[0].state_dict().items()}
    model.train()(torch.randn(8, 4)).sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model[0].state_dict().items())
    assert [p.grad is None for p in model.parameters()] == [True] * 6 + [False] * 2
    unfreeze(model, "0", norm_stats=True)
    assert all(p.requires_grad for p in model[0].parameters())
    assert not model[1].weight.requires_grad
    model.train()(torch.randn(8, 4))
    assert not torch.equal(model[0].state_dict()["1.running_mean"], before["1.running_mean"])
