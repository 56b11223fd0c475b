"""Tests of head surgery: finding, replacing, appending, and the input side."""

from __future__ import annotations

import copy
import itertools
import warnings

import pytest
import timm
import torch
import torch.nn.utils.prune
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ftkit import FtkitError, adapt_input, append_head, find_head, freeze, is_frozen, replace_head, replace_modules
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
    options = {"init_weights": False} if name == "googlenet" else {}  # whose own start takes seconds
    model = on_meta(lambda: torchvision.models.get_model(name, **options))
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


# ------------------------------------------------------------------ evidence


class TwoOutputs(nn.Module):
    """A body and two layers whose outputs leave apart."""

    def __init__(
        self, first: str, second: str, sizes: tuple[int, int] = (10, 10), *, training_only: bool = False
    ) -> None:
        super().__init__()
        self.body = features()
        self.add_module(first, nn.Linear(8, sizes[0]))
        self.add_module(second, nn.Linear(8, sizes[1]))
        self.names = first, second
        self.training_only = training_only

    def forward(self, x: torch.Tensor) -> object:
        """Give a dictionary, or in eval mode the first output alone."""
        x = self.body(x)
        first, second = (getattr(self, name)(x) for name in self.names)
        return first if self.training_only and not self.training else {"first": first, "second": second}


def test_two_tasks_are_an_error_that_shows_the_call() -> None:
    """Two outputs that nothing tells apart: both are named, and so is at=."""
    model = TwoOutputs("color", "shape")
    with pytest.raises(HeadError, match=r"'color' .*'shape' .*at='color'.*at=\['color', 'shape'\]"):
        replace_head(model, 3)
    assert replace_head(model, 3, at=["color", "shape"]).names == ("color", "shape")
    assert model.color.out_features == model.shape.out_features == 3


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (TwoOutputs("classifier", "box", (10, 4)), ("classifier",)),
        (TwoOutputs("output", "aux"), ("output", "aux")),
        (TwoOutputs("out", "helper", training_only=True), ("out", "helper")),
        (Net(head=nn.Linear(8, 10), head_dist=nn.Linear(8, 10)), ("head", "head_dist")),
        (nn.Sequential(features(), nn.Linear(8, 10), nn.LogSoftmax(1)), ("1",)),
        (nn.Sequential(features(), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10))), ("1.2",)),
    ],
    ids=["box beside", "auxiliary by name", "auxiliary in training", "summed", "softmax after", "nested"],
)
def test_structure_tells_the_head(model: nn.Module, names: tuple[str, ...]) -> None:
    """Names, modes and the graph tell a head from what stands beside it."""
    assert find_head(model).names == names
    replace_head(model, 4)
    assert all(model.get_submodule(name).out_features == 4 for name in names)


def test_a_head_that_is_not_last_and_one_under_two_names() -> None:
    """Order of registration says nothing; both names of one layer lead to the new one."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.alias = self.out = nn.Linear(8, 10)
            self.proj, self.body = nn.Linear(16, 8), features(16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.proj(self.body(x)))

    model = Odd()
    assert find_head(model).names == ("alias", "out")
    replace_head(model, 3)
    assert model.alias is model.out
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


def test_a_norm_of_the_logits_is_an_error() -> None:
    """A count that a later layer shares can't change alone."""
    model = nn.Sequential(features(), nn.Linear(8, 10), nn.BatchNorm1d(10))
    with pytest.raises(HeadError, match=r"No layer|weights of their own"):
        replace_head(model, 3)
    assert model[1].out_features == 10


def test_a_count_hidden_in_the_forward_is_an_error_that_changes_nothing() -> None:
    """A head whose outputs are reshaped to the old count: the proof run fails, and the old layer stays."""

    class Reshaped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.out = features(), nn.Linear(8, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.body(x)).view(-1, 5, 2)

    model = Reshaped()
    old = model.out
    with pytest.raises(HeadError, match="does not run any more"):
        replace_head(model, 3)
    assert model.out is old


def test_a_bare_parameter_is_no_head_to_replace() -> None:
    """The error names the parameter."""

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.table = features(), nn.Parameter(torch.randn(8, 10))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x) @ self.table

    with pytest.raises(HeadError, match="'table'"):
        find_head(Bare())


def test_find_head_leaves_no_trace() -> None:
    """The run changes neither the model's tensors nor its mode, calls no hook of the user's and draws no numbers."""
    model = TwoOutputs("classifier", "box", (10, 4)).train()
    seen: list[object] = []
    hook = model.body.register_forward_hook(lambda *args: seen.append(args))
    model.body.register_forward_pre_hook(lambda *args: seen.append(args))
    drawn = torch.get_rng_state()
    before = copy.deepcopy(model.state_dict())
    find_head(model)
    assert model.training
    assert seen == []
    assert hook.id in model.body._forward_hooks
    assert not model.body[0]._forward_hooks
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# ------------------------------------------------------------------ what is kept and what follows


def test_device_dtype_mode_bias_and_gradients_are_kept() -> None:
    """The new layer is like the old one."""
    model = Net(fc=nn.Linear(8, 10, bias=False)).double().eval()
    replace_head(model, 3)
    assert model.fc.weight.dtype == torch.float64
    assert model.fc.bias is None
    assert not model.fc.training
    model = Net(fc=nn.Linear(8, 10))
    model.fc.weight.requires_grad_(False)
    replace_head(model, 3)
    assert [p.requires_grad for p in model.fc.parameters()] == [False, True]
    model = Net(fc=nn.Linear(8, 10))
    freeze(model, "**")
    replace_head(model, 3)
    assert all(p.requires_grad for p in model.fc.parameters())
    assert not is_frozen(model, "fc")
    assert not model.fc._forward_pre_hooks


@pytest.mark.parametrize(
    "wrap",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.spectral_norm,
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("width", [12, 10])
def test_normed_weights_stay_normed(wrap: object, width: int) -> None:
    """A computed weight is computed for the new count too, and trains."""
    model = nn.Sequential(nn.Flatten(), wrap(nn.Linear(width, 10)))
    replace_head(model, 4)
    out = model(torch.randn(2, width))
    assert out.shape == (2, 4)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    if "spectral" in str(wrap):
        assert torch.linalg.matrix_norm(model.eval()[1].weight.detach(), 2).item() == pytest.approx(1.0, abs=0.05)


def test_a_parametrization_of_one_shape_is_an_error() -> None:
    """The message says how to take it off."""
    model = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.orthogonal(nn.Linear(12, 10)))
    with pytest.raises(HeadError, match="remove_parametrizations"):
        replace_head(model, 4)
    assert model[1].out_features == 10


def test_a_pruned_head_is_an_error() -> None:
    """A mask of the old shape can't follow; the message says how to end it."""
    model = Net(fc=nn.Linear(8, 10))
    nn.utils.prune.l1_unstructured(model.fc, "weight", amount=3)
    with pytest.raises(HeadError, match=r"prune\.remove"):
        replace_head(model, 4)


def test_a_cosine_head_keeps_its_temperature() -> None:
    """A layer of the user's own is resized by its shape."""

    class Cosine(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(outputs, inputs))
            self.scale = nn.Parameter(torch.tensor(16.0))
            self.out_features = outputs

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.scale * nn.functional.linear(nn.functional.normalize(x), nn.functional.normalize(self.weight))

    model = Net(last=Cosine(8, 10))
    replace_head(model, 3)
    assert (model.last.out_features, model.last.scale.item()) == (3, 16.0)
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 3)
    assert 0 < model.last.weight.abs().max() < 2


def test_counters_and_the_weights_of_a_loss_follow() -> None:
    """What counts the classes in the model, a configuration or a loss has the new count."""
    model = Net(fc=nn.Linear(8, 10), loss=nn.CrossEntropyLoss(weight=torch.arange(10.0)))
    model.num_classes, model.config, model.n_layers = 10, {"classes": 10, "depth": 10}, 10
    replace_head(model, 3, at="fc", keep={0: 7})
    assert (model.num_classes, model.config, model.n_layers) == (3, {"classes": 3, "depth": 10}, 10)
    assert model.loss.weight.tolist() == [7.0, 1.0, 1.0]


def test_a_tied_table_is_untied_or_cut_together() -> None:
    """Without keep the embedding stays; with keep it is cut or grown with the layer, as the same object."""

    def build() -> nn.Module:
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.table, self.out = nn.Embedding(50, 16, padding_idx=3), nn.Linear(16, 50, bias=False)
                self.out.weight = self.table.weight

            def forward(self, ids: torch.Tensor) -> torch.Tensor:
                return self.out(self.table(ids))

        return Tied()

    model = build()
    weight = model.table.weight
    replace_head(model, 7)
    assert model.table.weight is weight
    assert (model.table.num_embeddings, model.out.weight.shape) == (50, (7, 16))
    model = build()
    weight, before = model.table.weight, model.table.weight.detach().clone()
    replace_head(model, 53, keep={i: i for i in range(50)})
    assert model.out.weight is weight is model.table.weight
    assert torch.equal(weight[:50], before)
    assert model(torch.tensor([[52]])).shape == (1, 1, 53)
    replace_head(model, 4, keep={0: 2, 1: 3})
    assert (model.table.padding_idx, model.out.out_features) == (1, 4)
    assert torch.equal(weight[:2], before[2:4])


def test_a_failure_midway_leaves_the_model_as_it_was() -> None:
    """A counter that refuses the new count: layers and counters are taken back."""

    class Strict(Net):
        def __setattr__(self, name: str, value: object) -> None:
            if name == "num_classes" and value != 10:
                raise RuntimeError("ten classes, always")
            super().__setattr__(name, value)

    model = Strict(fc=nn.Linear(8, 10))
    model.num_classes = 10
    before = model.fc
    with pytest.raises(RuntimeError, match="always"):
        replace_head(model, 3)
    assert model.fc is before
    assert model.num_classes == 10


# ------------------------------------------------------------------ detectors


def test_a_two_stage_detector_has_scores_and_boxes() -> None:
    """The box layer gives four outputs for each class, and the proposal network is left alone."""
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    model = on_meta(lambda: fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None))
    before = dict(model.rpn.named_parameters())
    predictor = "roi_heads.box_predictor"
    assert replace_head(model, 5).names == (f"{predictor}.cls_score", f"{predictor}.bbox_pred")
    assert (
        model.roi_heads.box_predictor.cls_score.out_features,
        model.roi_heads.box_predictor.bbox_pred.out_features,
    ) == (5, 20)
    assert all(before[name] is value for name, value in model.rpn.named_parameters())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("fasterrcnn_mobilenet_v3_large_320_fpn", marks=pytest.mark.slow),
        pytest.param("maskrcnn_resnet50_fpn", marks=pytest.mark.slow),
        pytest.param("fcos_resnet50_fpn", marks=pytest.mark.slow),
        "ssdlite320_mobilenet_v3_large",
    ],
)
def test_detectors_train_with_the_new_count(name: str) -> None:
    """A torchvision detector's own loss takes labels up to the new count, and its predictions stay below it."""
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None)
    head = replace_head(model, 5)
    assert head.out_features == 5
    images = [torch.rand(3, 96, 96) for _ in range(2)]
    target = {
        "boxes": torch.tensor([[10.0, 10, 60, 60], [5, 5, 40, 70]]),
        "labels": torch.tensor([1, 4]),
        "masks": torch.zeros(2, 96, 96, dtype=torch.uint8),
    }
    sum(model.train()(images, [target, target]).values()).backward()
    with torch.no_grad():
        assert all((found["labels"] < 5).all() for found in model.eval()(images))


def test_retinanet_starts_with_its_prior_and_keeps_rows_by_anchor() -> None:
    """The focal loss's prior comes along; the row of a class that stays does so for each anchor."""
    from torchvision.models.detection import retinanet_resnet50_fpn

    model = retinanet_resnet50_fpn(weights=None, weights_backbone=None)
    layer = model.head.classification_head.cls_logits
    with torch.no_grad():
        layer.bias.copy_(torch.arange(819.0))
    replace_head(model, 5, keep={2: 90})
    new = model.head.classification_head
    assert new.num_classes == 5
    bias = new.cls_logits.bias.detach().view(9, 5)
    assert bias[:, 2].tolist() == [91.0 * anchor + 90 for anchor in range(9)]
    assert bias[:, 0].tolist() == pytest.approx([-4.595] * 9, abs=1e-3)
    torch.testing.assert_close(new.cls_logits.weight.view(9, 5, -1)[:, 2], layer.weight.view(9, 91, -1)[:, 90])


# ------------------------------------------------------------------ rules


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Sequential, int]:
    """A perceptron of any depth, and how many outputs it has."""
    widths = draw(st.lists(st.integers(1, 9), min_size=2, max_size=5))
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs, bias=draw(st.booleans())), draw(st.sampled_from([nn.ReLU(), nn.Tanh()]))]
    if draw(st.booleans()):
        layers.insert(1, nn.LayerNorm(widths[1]))
    outputs = draw(st.integers(2, 9))
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs)), outputs


@settings(max_examples=25, deadline=None)
@given(networks(), st.integers(1, 12), st.data())
def test_surgery_never_changes_an_unrelated_tensor(
    made: tuple[nn.Sequential, int], count: int, data: st.DataObject
) -> None:
    """Whatever the network: the last layer goes, kept rows are carried, all else is the same object."""
    model, outputs = made
    name, old = str(len(model) - 1), model[-1]
    keep = data.draw(st.dictionaries(st.integers(0, count - 1), st.integers(0, outputs - 1)))
    before = {n: p for n, p in model.named_parameters() if not n.startswith(f"{name}.")}
    head = replace_head(model, count, keep=keep)
    assert head.names == (name,)
    assert {n: id(p) for n, p in model.named_parameters() if n in before} == {n: id(p) for n, p in before.items()}
    for new, kept in keep.items():
        assert torch.equal(model[-1].weight[new], old.weight[kept])
    assert model(torch.zeros(3, model[0].in_features)).shape == (3, count)


# ------------------------------------------------------------------ transformers


def test_transformers_labels_follow() -> None:
    """num_labels, the names of labels that stay, and the model's own loss."""
    transformers = pytest.importorskip("transformers")
    labels = {0: "cat", 1: "dog", 2: "cow"}
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=37,
        image_size=32,
        patch_size=8,
        id2label=labels,
        label2id={v: k for k, v in labels.items()},
    )
    model = transformers.ViTForImageClassification(config)
    replace_head(model, 4, keep={3: 1})
    assert (model.num_labels, model.config.id2label[3], model.config.label2id["dog"]) == (4, "dog", 3)
    assert model(pixel_values=torch.zeros(1, 3, 32, 32), labels=torch.tensor([3])).loss.isfinite()


def test_a_head_that_only_the_loss_uses_follows_too() -> None:
    """A layer that runs, and whose outputs don't leave the model, is found beside the main one."""

    class Hidden(TwoOutputs):
        def forward(self, x: torch.Tensor) -> object:
            outputs = super().forward(x)
            return outputs["first"]

    model = Hidden("classifier", "auxiliary_head")
    replace_head(model, 3)
    assert model.auxiliary_head.out_features == model.classifier.out_features == 3


# ------------------------------------------------------------------ models of other kinds


class Wired(nn.Module):
    """Layers under the names given, and a forward that calls ``wiring`` with the model and its inputs."""

    wiring: object

    def __init__(self, **parts: object) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def wired(wiring: object, **parts: object) -> Wired:
    """Build a model whose forward has the arguments of ``wiring`` after its first."""
    kind = type("Wired", (Wired,), {"forward": wiring})
    return kind(**parts)


def fused(self: Wired, image: torch.Tensor, tabular: torch.Tensor) -> torch.Tensor:
    return self.fuse(torch.cat([self.cnn(image), self.mlp(tabular)], 1))


def tables(self: Wired, x_cat: torch.Tensor, x_cont: torch.Tensor) -> torch.Tensor:
    found = [table(x_cat[:, index]) for index, table in enumerate(self.embeds)]
    return self.out(torch.cat([*found, self.norm(x_cont)], 1))


def packed(self: Wired, text: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    pack, pad = nn.utils.rnn.pack_padded_sequence, nn.utils.rnn.pad_packed_sequence
    rows, (state, _) = self.rnn(pack(self.table(text), lengths, batch_first=True, enforce_sorted=False))
    return self.out(state[-1] + pad(rows, batch_first=True)[0].mean(1))


def convolved(self: Wired, x: torch.Tensor, adj: torch.Tensor) -> torch.Tensor:
    return (adj @ self.second(torch.relu(adj @ self.first(x)))).log_softmax(1)


def edges(self: Wired, x: torch.Tensor, edge_index: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    x = self.first(x)
    x = x.index_add(0, edge_index[1], x[edge_index[0]])
    return self.second(x.new_zeros(int(batch.max()) + 1, x.shape[1]).index_add(0, batch, x))


def towers(self: Wired, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return self.out(torch.relu(self.first(left) + self.second(right)))


SEVERAL_INPUTS = {
    "image and table": (
        lambda: wired(
            fused, cnn=features(), mlp=nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)), fuse=nn.Linear(16, 5)
        ),
        (torch.zeros(2, 3, 16, 16), torch.zeros(2, 6)),
    ),
    "categories and numbers": (
        lambda: wired(
            tables,
            embeds=nn.ModuleList([nn.Embedding(9, 4), nn.Embedding(3, 2)]),
            norm=nn.BatchNorm1d(5),
            out=nn.Sequential(nn.Linear(11, 7), nn.ReLU(), nn.Linear(7, 5)),
        ),
        (torch.zeros(2, 2, dtype=torch.long), torch.zeros(2, 5)),
    ),
    "text and lengths": (
        lambda: wired(
            packed, table=nn.Embedding(20, 6), rnn=nn.LSTM(6, 8, batch_first=True), extra=None, out=nn.Linear(8, 5)
        ),
        (torch.zeros(2, 4, dtype=torch.long), torch.tensor([4, 2])),
    ),
    "graph by matrix": (
        lambda: wired(convolved, first=nn.Linear(12, 8), second=nn.Linear(8, 5)),
        (torch.zeros(2, 12), torch.eye(2)),
    ),
    "graph by edges": (
        lambda: wired(edges, first=nn.Linear(12, 8), second=nn.Linear(8, 5)),
        (torch.zeros(2, 12), torch.zeros(2, 3, dtype=torch.long), torch.tensor([0, 1])),
    ),
    "two towers": (
        lambda: wired(towers, first=nn.Linear(6, 8), second=nn.Linear(9, 8), out=nn.Linear(8, 5)),
        (torch.zeros(2, 6), torch.zeros(2, 9)),
    ),
}


@pytest.mark.parametrize("case", SEVERAL_INPUTS)
def test_models_of_several_inputs(case: str) -> None:
    """Inputs are made up from the names of the arguments and the layers that could take them."""
    build, inputs = SEVERAL_INPUTS[case]
    model = build()
    head = replace_head(model, 7)
    assert len(head.names) == 1
    assert model(*inputs).shape == (2, 7)


@pytest.mark.parametrize("side", [20, 75])
def test_an_image_of_the_one_size_that_fits_is_found(side: int) -> None:
    """A linear layer after a flatten takes one size of images alone."""
    width = 6 * ((side - 4) // 2) ** 2

    def forward(self: Wired, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(nn.functional.max_pool2d(self.conv(x), 2).flatten(1)))
        return self.second(x) if side else self.unused(x)

    model = wired(
        forward, conv=nn.Conv2d(1, 6, 5), first=nn.Linear(width, 16), second=nn.Linear(16, 5), unused=nn.Linear(16, 9)
    )
    assert find_head(model).names == ("second",)


class Turned(nn.Module):
    """A layer that keeps its weight as inputs by outputs, and doesn't say so."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        return x @ self.weight


def test_a_run_tells_which_axis_counts_the_outputs() -> None:
    """Found and named alike; where no run is possible, the model's counter tells."""
    for at in (None, "1"):
        model = nn.Sequential(Turned(12, 8), Turned(8, 5))
        assert replace_head(model, 3, at=at, keep={0: 4}).in_features == 8
        assert model(torch.zeros(2, 12)).shape == (2, 3)
    model = wired(lambda self, x, y, z: x.no_such_method(), last=Turned(8, 5))
    model.num_classes = 5
    assert replace_head(model, 3, at="last").in_features == 8


def test_layers_that_share_their_parameters_are_one() -> None:
    """Two modules around the same tensors, as tied weights of transformers are: both follow, and stay tied."""
    first, second = nn.Linear(8, 5), nn.Linear(8, 5)
    second.weight, second.bias = first.weight, first.bias

    def forward(self: Wired, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        return torch.stack([layer(x) for layer in self.class_embed], 1)

    model = wired(forward, body=features(), class_embed=nn.ModuleList([first, second]))
    assert replace_head(model, 3).names == ("class_embed.0", "class_embed.1")
    assert model.class_embed[0].weight is model.class_embed[1].weight
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 2, 3)


def test_heads_of_other_decoder_layers_follow_though_they_did_not_run() -> None:
    """A list of like layers of which the forward uses the last."""
    model = wired(
        lambda self, x: self.class_embed[-1](self.body(x)),
        body=features(),
        class_embed=nn.ModuleList([nn.Linear(8, 5), nn.Linear(8, 5)]),
        num_labels=5,
    )
    assert sorted(replace_head(model, 3).names) == ["class_embed.0", "class_embed.1"]
    assert [layer.out_features for layer in model.class_embed] == [3, 3]


ONE_NUMBER = {
    "choices": lambda self, input_ids: self.score(self.body(input_ids.flatten(0, 1).float())).view(input_ids.shape[:2]),
    "squeezed": lambda self, input_ids: self.score(self.body(input_ids.float())).squeeze(-1),
    "waves": lambda self, input_ids: self.score(self.body(input_ids.float())).reshape(2, 2, -1).flatten(1, 2).sum(1),
}


@pytest.mark.parametrize("case", ONE_NUMBER)
def test_one_number_that_is_no_class_score_is_an_error(case: str) -> None:
    """A scorer of choices, a depth or a wave stays, unless the user names it."""
    model = wired(ONE_NUMBER[case], body=nn.Linear(8, 6), score=nn.Linear(6, 1))
    model.config = {"num_labels": 2}
    with pytest.raises(HeadError, match="one number"):
        replace_head(model, 3)
    assert model.score.out_features == 1
    assert replace_head(model, 3, at="score").out_features == 3


def test_one_logit_may_become_classes() -> None:
    """A binary classifier gives its one number as the score of a class."""
    model = wired(lambda self, x: self.a(self.body(x)) if True else self.b(x), body=features(), a=nn.Linear(8, 1))
    replace_head(model, 3)
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


def test_a_view_that_swallows_the_new_count_is_an_error() -> None:
    """The model runs, but what were rows are classes now."""
    model = wired(lambda self, x: self.out(self.body(x)).view(-1, 2), body=features(), out=nn.Linear(8, 2))
    with pytest.raises(HeadError, match="does not run any more as before"):
        replace_head(model, 3)
    assert model.out.out_features == 2


def test_a_loss_of_its_own_that_counts_the_classes_is_an_error() -> None:
    """The model takes labels, and its loss a count that is written in the code."""

    def forward(self: Wired, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        scores = self.out(self.body(x))
        given = {"scores": scores}
        if labels is not None:
            given["loss"] = nn.functional.cross_entropy(scores.view(-1, 2), labels)
        return given

    model = wired(forward, body=features(), out=nn.Linear(8, 2))
    with pytest.raises(HeadError, match="batch_size"):
        replace_head(model, 3)
    assert model.out.out_features == 2


def test_a_detector_that_learns_from_noisy_labels() -> None:
    """The embedding of labels has a row more for "none", and the loss a weight more for "no object"."""

    class Criterion(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_labels = 5
            self.register_buffer("empty_weight", torch.tensor([1.0, 2, 3, 4, 5, 0.1]))

    model = wired(
        lambda self, x: {"logits": self.class_predictor(self.body(x)), "noise": self.denoising_class_embed.weight},
        body=features(),
        denoising_class_embed=nn.Embedding(6, 4, padding_idx=5),
        class_predictor=nn.Linear(8, 6),
        criterion=Criterion(),
        num_labels=5,
    )
    old = model.denoising_class_embed.weight
    head = replace_head(model, 3, keep={1: 4})
    assert head.names == ("class_predictor", "denoising_class_embed")
    assert (model.class_predictor.out_features, model.num_labels, model.criterion.num_labels) == (4, 3, 3)
    assert model.criterion.empty_weight.tolist() == pytest.approx([1, 5, 1, 0.1])
    table = model.denoising_class_embed
    assert (table.num_embeddings, table.padding_idx) == (4, 3)
    torch.testing.assert_close(table.weight[[1, 3]], old[[4, 5]])
    with pytest.raises(HeadError, match="class count"):
        replace_head(model, lambda width: nn.Linear(width, 4))


def test_scores_that_feed_a_later_head_and_come_out_too() -> None:
    """A coarse head follows; where the later one takes its scores as features, nothing changes."""

    def coarse_to_fine(self: Wired, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.body(x)
        coarse = self.coarse(x)
        shares = coarse.flatten(2).softmax(-1)
        context = (shares @ x.flatten(2).mT).mean(1)[..., None, None]
        return self.fine(x + context), coarse

    body = nn.Conv2d(3, 8, 3)
    model = wired(coarse_to_fine, body=body, coarse=nn.Conv2d(8, 5, 1), fine=nn.Conv2d(8, 5, 1))
    assert set(replace_head(model, 3, at=["coarse", "fine"]).names) == {"coarse", "fine"}
    model = wired(coarse_to_fine, body=body, coarse=nn.Conv2d(8, 5, 1), fine=nn.Conv2d(8, 5, 1), num_classes=5)
    assert [out.shape[1] for out in (replace_head(model, 3), model(torch.zeros(1, 3, 9, 9)))[1]] == [3, 3]

    def stacked(self: Wired, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sides = [side(self.body(x)) for side in self.sides]
        return (self.fuse(torch.cat(sides, 1)), *sides)

    sides = nn.ModuleList([nn.Conv2d(8, 5, 1), nn.Conv2d(8, 5, 1)])
    model = wired(stacked, body=body, sides=sides, fuse=nn.Conv2d(10, 5, 1), num_classes=5)
    with pytest.raises(HeadError, match="does not run any more"):
        replace_head(model, 3)
    assert model.fuse.out_channels == 5


@pytest.mark.parametrize("kind", ["parameter", "buffer"])
def test_what_the_model_itself_holds_for_each_class_is_an_error(kind: str) -> None:
    """Temperatures or priors of the classes beside the head, under a usual name."""
    model = wired(lambda self, x: self.fc(self.body(x)) * self.scale, body=features(), fc=nn.Linear(8, 5))
    if kind == "parameter":
        model.scale = nn.Parameter(torch.ones(5))
    else:
        model.register_buffer("scale", torch.ones(5))
    with pytest.raises(HeadError):
        replace_head(model, 3)
    assert model.fc.out_features == 5


def test_what_a_crf_learns_between_tags_is_new_too() -> None:
    """Its transitions have no part in the forward pass, yet count the tags."""

    class Crf(nn.Module):
        def __init__(self, num_tags: int) -> None:
            super().__init__()
            self.num_tags = num_tags
            self.start, self.transitions = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(5, 5))

    model = wired(
        lambda self, x: self.emissions(self.table(x)),
        table=nn.Embedding(20, 8),
        emissions=nn.Linear(8, 5),
        crf=Crf(5),
    )
    old = model.crf.transitions.detach()
    replace_head(model, 3, keep={2: 4, 0: 1})
    assert (model.crf.num_tags, model.crf.start.shape, model.crf.transitions.shape) == (3, (3,), (3, 3))
    assert model.crf.transitions[2, 0] == old[4, 1]


def test_scores_for_each_anchor_are_told_by_how_they_come_out() -> None:
    """A layer with a multiple of the classes, whose outputs are reshaped to the classes."""

    def forward(self: Wired, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.body(x)
        scores = self.conf(x).permute(0, 2, 3, 1).reshape(len(x), -1, self.num_classes)
        return self.loc(x).permute(0, 2, 3, 1).reshape(len(x), -1, 4), scores

    model = wired(forward, body=nn.Conv2d(3, 8, 3), loc=nn.Conv2d(8, 16, 1), conf=nn.Conv2d(8, 20, 1), num_classes=5)
    assert replace_head(model, 3).out_features == 3
    assert (model.conf.out_channels, model.loc.out_channels, model.num_classes) == (12, 16, 3)


def test_what_came_out_before_a_run_failed_is_no_head() -> None:
    """A layer of the body has a usual name, in a model that takes no made-up input; counters tell the classifier."""

    def forward(self: Wired, batch: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.body.fc1(batch)["no such thing"])

    body = nn.ModuleDict({"fc1": nn.Linear(8, 8), "fc2": nn.Linear(8, 8)})
    model = wired(forward, classifier=nn.Linear(8, 5), body=body)
    with pytest.raises(HeadError, match="could not be run"):
        find_head(model)
    model.num_classes = 5
    assert find_head(model).names == ("classifier",)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.jit.script(nn.Sequential(features(), nn.Linear(8, 5))), "scripted"),
        (lambda: nn.Sequential(features(), torch.jit.script(nn.Linear(8, 5))), "'1' is scripted"),
        (lambda: nn.Sequential(features(), nn.LazyLinear(5)), "'1' has no shape yet"),
        (lambda: nn.Sequential(features(), torch.ao.nn.quantized.dynamic.Linear(8, 5)), "'1' is quantized"),
    ],
)
def test_layers_that_can_not_be_made_anew_are_named(make: object, words: str) -> None:
    """The error says what to do first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make()
    with pytest.raises(HeadError, match=words):
        replace_head(model, 3)


def test_a_frozen_script_in_the_body_is_no_matter() -> None:
    """The head is found beside it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(torch.jit.script(features()), nn.Linear(8, 5))
    assert find_head(model).names == ("1",)


@pytest.mark.parametrize("head", [7, nn.Linear(6, 7)], ids=["count", "module"])
def test_a_configuration_no_longer_ties_a_head_that_left_its_embedding(head: int | nn.Module) -> None:
    """So that the next checkpoint is read with the weight that the head has."""
    model = wired(lambda self, ids: self.lm_head(self.table(ids)), table=nn.Embedding(9, 6), lm_head=nn.Linear(6, 9))
    model.lm_head.weight = model.table.weight
    model.config = type("Config", (), {})()
    model.config.vocab_size, model.config.tie_word_embeddings = 9, True
    replace_head(model, head)
    assert model.table.weight.shape == (9, 6)
    assert (model.config.vocab_size, model.config.tie_word_embeddings) == (7, False)
