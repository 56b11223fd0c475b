"""The verbs: what they take, what they refuse, and what they leave alone."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

from ftkit import FtkitError, adapt_input, append_head, find_head, freeze, replace_head, replace_modules
from ftkit._heads.labels import plan_labels
from ftkit._models.undo import Undo
from ftkit.errors import HeadError, SelectionError
from tests.heads.nets import Net


def test_a_model_without_a_head_is_an_error_and_stays() -> None:
    """A headless model raises and is untouched."""
    model = timm.create_model("resnet18", num_classes=0)
    before = list(model.parameters())
    with pytest.raises(HeadError, match="num_classes is 0"):
        replace_head(model, 3)
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))


def test_a_module_and_a_factory_take_the_place_of_the_head() -> None:
    """A module replaces the layer as it is; a factory is told the width."""
    model = Net(fc=nn.Linear(8, 10))
    mine = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
    assert replace_head(model, mine).out_features == 3
    assert model.fc is mine
    assert replace_head(model, lambda width: nn.Linear(width, 5), at="fc").in_features == 8
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: replace_head(m, 3, at="fcc"), "Did you mean 'fc'"),
        (lambda m: replace_head(m, nn.Linear(9, 3)), "9 features, but 8 come in"),
        (lambda m: replace_head(m, 0), "at least 1"),
        (lambda m: replace_head(m, True), "number of classes"),
        (lambda m: replace_head(m, 3, keep={3: 0}), "new class 3"),
        (lambda m: replace_head(m, 3, keep={0: 10}), "old class 10"),
        (lambda m: replace_head(m, lambda width: None), "not a module"),
        (lambda m: replace_head(m, nn.Linear(8, 3), keep={0: 0}), "class count"),
        (lambda m: replace_head(m, 3, at=[]), "empty"),
        (lambda m: replace_head(m, 3, at=3), "dotted names or modules, not 3"),
        (lambda m: replace_head(m, 3, at=[3]), "dotted names or modules, not 3"),
        (lambda m: replace_head(m, 3, at=nn.Linear(8, 10)), "Linear in at= is not part of the Net"),
        (lambda m: replace_head(m, 3, at="body.2"), "no linear or convolutional"),
        (lambda m: replace_modules(m, nn.Conv3d, lambda n, o: o), "Conv3d"),
    ],
)
def test_bad_requests_are_errors_that_change_nothing(call: object, words: str) -> None:
    """Each error says what to do, and the model is as it was."""
    model = Net(fc=nn.Linear(8, 10))
    before = dict(model.named_parameters())
    with pytest.raises(FtkitError, match=words):
        call(model)
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(after[name] is value for name, value in before.items())


def test_replace_modules_covers_shared_ones_and_leaves_the_inside_alone() -> None:
    """A module of two parents is replaced for both; a factory may return the old one."""
    shared = nn.ReLU()
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), shared), shared, nn.Tanh())
    assert replace_modules(model, nn.ReLU, lambda name, old: nn.GELU()) == ["0.1"]
    assert model[0][1] is model[1]
    assert replace_modules(model, "2", lambda name, old: old) == []
    with pytest.raises(SelectionError):
        replace_modules(model, "0.0.weight", lambda name, old: old)


def test_append_head_keeps_the_whole_model() -> None:
    """The old outputs feed a new layer, and the old model is inside as it was."""
    model = Net(fc=nn.Linear(8, 10))
    longer = append_head(model, 3)
    assert longer.body is model
    assert longer(torch.zeros(2, 3, 16, 16)).shape == (2, 3)
    assert (
        append_head(timm.create_model("resnet18", num_classes=0), lambda width: nn.Linear(width, 4))[1].in_features
        == 512
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_adapt_input_answers_grey_images_as_before(channels: int) -> None:
    """A grey image gives what its equal channels gave."""
    model = timm.create_model("resnet18").eval()
    image = torch.randn(1, 1, 32, 32)
    before = model(image.expand(1, 3, 32, 32))
    rest = {n: p for n, p in model.named_parameters() if n != "conv1.weight"}
    assert adapt_input(model, channels) == ["conv1"]
    assert all(dict(model.named_parameters())[n] is p for n, p in rest.items())
    after = model(image.expand(1, channels, 32, 32))
    assert after.shape == before.shape
    if channels != 2:
        torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)


def test_a_model_that_is_its_own_head_can_take_no_other() -> None:
    """Nothing holds the layer; its counter used to change, and its weight not."""
    model = nn.Linear(16, 2)
    for head in (3, nn.Linear(16, 3)):
        with pytest.raises(HeadError, match="The Linear is the head itself"):
            replace_head(model, head)
    assert (model.out_features, model.weight.shape) == (2, (2, 16))


@pytest.mark.parametrize("keep", [[3], [(0, 1)], "x", 4])
def test_what_is_kept_is_a_dict(keep: object) -> None:
    """Anything else is an error that shows one."""
    with pytest.raises(HeadError, match=r"takes a dict .* such as \{0: 3\}"):
        replace_head(nn.Sequential(nn.Linear(4, 9)), 3, keep=keep)


def test_a_head_can_be_given_as_what_it_is() -> None:
    """A module or a Head says where as well as its name; the module alone is replaced, not one around it."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Dropout(), nn.Linear(8, 10)))
    assert replace_head(model, 4, at=model[1][1]).names == ("1.1",)
    assert replace_head(model, 5, at=[model[1]]).names == ("1.1",)
    assert replace_head(model, nn.Linear(8, 6), at=find_head(model)).names == ("1.1",)
    assert isinstance(model[1][0], nn.Dropout)


@pytest.mark.parametrize("training", [True, False])
def test_a_new_module_takes_the_mode_of_the_old_one(training: bool) -> None:
    """Dropout put into an eval model is off; what the new module has of the model keeps its own mode."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4)).train(training)
    model[2].train(not training)
    replace_modules(model, nn.ReLU, lambda name, old: nn.Sequential(old, nn.Dropout(), model[2]))
    assert [part.training for part in (model[1], *model[1])] == [training, training, training, not training]


def test_a_new_module_is_as_frozen_as_the_old_one() -> None:
    """Unless it is of another class, as an adapter is; nothing that its maker froze is thawed."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 2))
    freeze(model, "0", "1", "2")
    replace_modules(model, "0", lambda name, old: nn.Sequential(nn.Linear(4, 4, bias=False)))
    replace_modules(model, "1", lambda name, old: nn.BatchNorm1d(4))
    replace_modules(model, "2", lambda name, old: nn.Sequential(old, nn.Linear(4, 4)))
    replace_modules(model, "3", lambda name, old: nn.Linear(4, 2).requires_grad_(False))
    assert [name for name, one in model.named_parameters() if one.requires_grad] == [
        "0.0.weight",
        "2.1.weight",
        "2.1.bias",
    ]
    freeze(model, "1")
    model.train()(torch.rand(8, 4))
    assert not model[1].running_mean.any()


class Given(nn.Module):
    """A model that keeps the configuration that it was given, in a part too; it needs a graph, so nothing runs it."""

    def __init__(self, config: object) -> None:
        super().__init__()
        self.config = config
        self.body = nn.Linear(8, 16)
        self.classifier = nn.Linear(16, 10)
        self.body.config = config


@dataclasses.dataclass
class Config:
    """A configuration that counts, and names, classes."""

    num_classes: int = 10
    num_channels: int = 3
    id2label: dict[int, str] = dataclasses.field(default_factory=lambda: dict(enumerate("abcdefghij")))


@pytest.mark.parametrize("new", [4, nn.Linear(16, 4)], ids=["count", "module"])
def test_another_model_with_the_same_configuration_keeps_it(new: int | nn.Module) -> None:
    """The one that changes gets a copy, in all its parts; one that failed has its own again."""
    config = Config()
    ours, other = Given(config), Given(config)
    replace_head(ours, new, verify=False)
    assert ours.config.num_classes == 4
    assert ours.config is ours.body.config
    assert other.config is config
    assert config == Config()
    with pytest.raises(HeadError, match="features, but 16 come in"):
        replace_head(other, nn.Linear(3, 2), verify=False)
    assert other.config is other.body.config is config


def test_what_configurations_share_stays_shared_and_no_model_is_copied() -> None:
    """A part that a submodule has as its own is still the same object; a model among the values is not copied."""
    config, part, teacher = Config(), Config(num_classes=3), nn.Linear(2, 2)
    config.part, config.teacher = part, teacher  # type: ignore[attr-defined]
    model = Given(config)
    model.body.config = part
    replace_head(model, 4, verify=False)
    assert model.config is not config
    assert model.body.config is model.config.part is not part
    assert model.config.teacher is teacher


def test_a_configuration_that_can_not_be_copied_changes_in_place() -> None:
    """The count must be right in any case."""
    config = Config()
    config.lock = threading.Lock()  # type: ignore[attr-defined]
    model = Given(config)
    replace_head(model, 4, verify=False)
    assert model.config is config
    assert config.num_classes == 4


def test_two_models_of_transformers_from_one_configuration() -> None:
    """Labels and counts of the other one stay, on replacing a head, on loading names and with other channels."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=5)
    before = config.to_dict()
    ours, other = (transformers.ViTForImageClassification(config) for _ in range(2))
    adapt_input(ours, 1)
    replace_head(ours, classes=["ant", "bee"])
    assert other.config is config
    assert config.to_dict() == before
    assert (ours.config.num_labels, ours.config.id2label, ours.config.num_channels) == (2, {0: "ant", 1: "bee"}, 1)
    assert ours.vit.config is ours.config
    twins = [transformers.ViTForImageClassification(ours.config) for _ in range(2)]
    with Undo() as undo:
        plan_labels(twins[0], {"": ["cat", "dog"]}, {"classifier.weight": "classifier.weight"}, "The file")(undo)
    assert twins[0].config.id2label == {0: "cat", 1: "dog"}
    assert twins[1].config.id2label == {0: "ant", 1: "bee"}


class HeadFirst(nn.Module):
    """A model that makes its head before the rest, and takes more than tensors if ``graph`` is true."""

    def __init__(self, first: str, last: str, *, graph: bool) -> None:
        super().__init__()
        self.names, self.graph = (first, last), graph
        setattr(self, first, nn.Linear(64, 10))
        setattr(self, last, nn.Linear(8, 64))

    def forward(self, x: torch.Tensor, graph: object = None) -> torch.Tensor:
        """Run the last layer first."""
        if self.graph and not hasattr(graph, "edges"):
            raise TypeError("needs a graph")
        first, last = (self.get_submodule(name) for name in self.names)
        return first(last(x).relu())


@pytest.mark.parametrize(("first", "last"), [("output", "fc"), ("decoder", "fc"), ("decoder", "classifier")])
def test_a_head_that_was_registered_first(first: str, last: str) -> None:
    """A run finds it; without one it is not guessed, and the error names it all the same."""
    assert find_head(HeadFirst(first, last, graph=False)).names == (first,)
    assert replace_head(HeadFirst(first, last, graph=False), 3).names == (first,)
    model = HeadFirst(first, last, graph=True)
    for call in (find_head, lambda model: replace_head(model, 3)):
        with pytest.raises(HeadError, match=rf"needs a graph.* may end in '{first}' .*at='{first}'\)"):
            call(model)
    assert str(replace_head(model, 3, at=first)).startswith(f"{first}: 64 -> 3")


class Product(nn.Module):
    """A layer of someone's own that does not tell which axis counts its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(16, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        return x @ self.matrix


@pytest.mark.parametrize(
    ("new", "count"),
    [(nn.ReLU, 16), (nn.Identity, 16), (Product, 5), (lambda: nn.Sequential(nn.Linear(16, 7), nn.ReLU()), 7)],
)
def test_what_a_module_gives_is_what_a_run_shows(new: Callable[[], nn.Module], count: int) -> None:
    """Not the count of the old head. Without a run, only what its layers tell is said."""

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 10))

    head = replace_head(model(), new())
    assert (head.out_features, head.proven) == (count, True)
    told = replace_head(model(), new(), verify=False)
    assert told.out_features == (7 if count == 7 else 0)
    assert str(told).startswith("2: 16 -> 7" if count == 7 else "2: 16 -> an unknown number of outputs")
