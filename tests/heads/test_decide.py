"""Which layers are the head, for models of all kinds."""

from __future__ import annotations

import warnings

import pytest
import timm
import torch
import torchvision
from torch import nn

from ftkit import find_head, replace_head
from ftkit.errors import HeadError
from tests.heads.nets import Net, TwoOutputs, Wired, features, on_meta, wired

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
    with pytest.raises(HeadError, match=r"No layer|its own weights"):
        replace_head(model, 3)
    assert model[1].out_features == 10


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


def test_a_head_that_only_the_loss_uses_follows_too() -> None:
    """A layer that runs, and whose outputs don't leave the model, is found beside the main one."""

    class Hidden(TwoOutputs):
        def forward(self, x: torch.Tensor) -> object:
            outputs = super().forward(x)
            return outputs["first"]

    model = Hidden("classifier", "auxiliary_head")
    replace_head(model, 3)
    assert model.auxiliary_head.out_features == model.classifier.out_features == 3


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
    assert replace_head(model, 3, at="score", verify=False).out_features == 3


def test_one_logit_may_become_classes() -> None:
    """A binary classifier gives its one number as the score of a class."""
    model = wired(lambda self, x: self.head(self.body(x)), body=features(), head=nn.Linear(8, 1))
    replace_head(model, 3)
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


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
    with pytest.raises(HeadError, match="no longer runs"):
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
