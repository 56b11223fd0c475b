"""Tests of head surgery: finding, replacing, appending, and the input side."""

from __future__ import annotations

import copy
import warnings

import pytest
import timm
import torch
import torchvision
from torch import nn

from ftkit import FtkitError, adapt_input, append_head, find_head, replace_head, replace_modules
from ftkit.errors import HeadError, SelectionError


def features(width: int = 8) -> nn.Sequential:
    """A small body for images."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


class Net(nn.Module):
    """A body and layers under the names given."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        self.body = features()
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sum what the layers give."""
        x = self.body(x)
        return sum(layer(x) for name, layer in self.named_children() if name != "body")


def on_meta(build: object) -> nn.Module:
    """Build a model without memory."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build()


TORCHVISION = {
    "resnet18": ("fc",),
    "alexnet": ("classifier.6",),
    "densenet121": ("classifier",),
    "efficientnet_b0": ("classifier.1",),
    "mobilenet_v3_small": ("classifier.3",),
    "squeezenet1_1": ("classifier.1",),
    "convnext_tiny": ("classifier.2",),
    "vit_b_32": ("heads.head",),
    "swin_t": ("head",),
    "googlenet": ("aux1.fc2", "aux2.fc2", "fc"),
    "mvit_v2_s": ("head.1",),
}


@pytest.mark.parametrize(("name", "expected"), TORCHVISION.items())
def test_torchvision_classifiers(name: str, expected: tuple[str, ...]) -> None:
    """The classifier of a torchvision model is found, and nothing else changes identity."""
    model = on_meta(lambda: torchvision.models.get_model(name))
    before = {n: p for n, p in model.named_parameters() if not n.startswith(tuple(f"{e}." for e in expected))}
    assert sorted(find_head(model).names) == sorted(expected)
    head = replace_head(model, 7)
    after = dict(model.named_parameters())
    assert all(after[n] is p for n, p in before.items())
    assert head.out_features == 7
    assert all(module is model.get_submodule(n) for n, module in zip(head.names, head.modules, strict=True))


@pytest.mark.parametrize(
    "name",
    ["resnet18", "vit_tiny_patch16_224", "levit_128s", "convnext_atto", "deit_tiny_distilled_patch16_224", "repvit_m1"],
)
def test_timm_classifiers(name: str) -> None:
    """The head of a timm model gives the new count in each mode, and num_classes follows."""
    model = on_meta(lambda: timm.create_model(name))
    replace_head(model, 7)
    assert model.num_classes == 7
    assert model.eval()(torch.zeros(1, 3, 224, 224, device="meta")).shape == (1, 7)


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


def test_keep_carries_rows_over() -> None:
    """Rows of classes that stay are those of the old layer, weight-normed or not."""
    for layer in (nn.Linear(8, 10), nn.utils.parametrizations.weight_norm(nn.Linear(8, 10))):
        old = copy.deepcopy(layer)
        model = Net(fc=layer)
        replace_head(model, 4, keep={2: 9, 0: 1})
        torch.testing.assert_close(model.fc.weight[[2, 0]], old.weight[[9, 1]])
        torch.testing.assert_close(model.fc.bias[[2, 0]], old.bias[[9, 1]])
