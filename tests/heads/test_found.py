"""What looks like a head and is none, and heads that are easily missed."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from ftkit import find_head, replace_head
from ftkit.errors import HeadError
from tests.heads import oracle
from tests.heads.nets import features, wired


def test_the_classes_of_a_discriminator_that_calls_them_auxiliary() -> None:
    """An AC-GAN tells true from false, and beside it the class."""
    model = wired(
        lambda self, x: (self.adv_layer(self.body(x)).sigmoid(), self.aux_layer(self.body(x)).softmax(1)),
        body=features(),
        adv_layer=nn.Linear(8, 1),
        aux_layer=nn.Linear(8, 10),
    )
    assert find_head(model).names == ("aux_layer",)


@pytest.mark.parametrize(
    "cut",
    [lambda y: y[:, :5], lambda y: y[:, 1], lambda y: y.chunk(2, 1)[0], lambda y: y.index_select(1, torch.arange(5))],
    ids=["sliced", "picked", "chunked", "indexed"],
)
@pytest.mark.parametrize("at", [None, "fc"])
def test_a_layer_of_which_only_a_part_leaves_is_refused(cut: object, at: str | None) -> None:
    """The new count would not be seen in what the model gives."""
    model = wired(lambda self, x: cut(self.fc(self.body(x))), body=features(), fc=nn.Linear(8, 10))
    old = model.fc
    with pytest.raises(HeadError):
        replace_head(model, 8, at=at)
    assert model.fc is old


def test_pieces_of_which_the_largest_counts_are_refused() -> None:
    """A maxout head: the view swallows the new count."""
    model = wired(
        lambda self, x: self.fc(self.body(x)).view(len(x), -1, 2).amax(2), body=features(), fc=nn.Linear(8, 20)
    )
    with pytest.raises(HeadError, match="no longer runs as before"):
        replace_head(model, 8, at="fc")
    assert model.fc.out_features == 20


def test_two_heads_with_one_weight_are_refused() -> None:
    """To replace one would part them."""
    model = wired(
        lambda self, x: self.head(self.body(x)), body=features(), twin=nn.Linear(8, 10), head=nn.Linear(8, 10)
    )
    model.twin.weight = model.head.weight
    with pytest.raises(HeadError, match="share one weight"):
        replace_head(model, 3)


def test_routers_of_experts_are_no_heads() -> None:
    """Though they are called classifiers, and there are as many experts as labels."""
    model = wired(
        lambda self, ids: {
            "logits": self.lm_head(self.table(ids)),
            "routers": self.router.classifier(self.table(ids)),
        },
        table=nn.Embedding(9, 6),
        router=nn.ModuleDict({"classifier": nn.Linear(6, 2)}),
        lm_head=nn.Linear(6, 9),
    )
    model.config = {"num_labels": 2, "vocab_size": 9}
    assert find_head(model).names == ("lm_head",)


@pytest.mark.parametrize("kept", ["original_module", "head_dist"])
def test_a_head_that_this_mode_does_not_run_follows(kept: str) -> None:
    """A wrapper's original, the distilled head of a transformer that gives it in another mode."""
    model = wired(
        lambda self, x: self.classifier["default"](self.body(x)),
        body=features(),
        classifier=nn.ModuleDict({kept: nn.Linear(8, 5), "default": nn.Linear(8, 5)}),
        num_classes=5,
    )
    assert set(replace_head(model, 3).names) == {f"classifier.{kept}", "classifier.default"}


def test_a_loss_that_holds_the_classes_is_told() -> None:
    """With ArcFace the model gives features."""

    class ArcFace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_classes, self.W = 10, nn.Parameter(torch.randn(6, 10))

    model = wired(lambda self, x: self.fc(self.body(x)), body=features(), fc=nn.Linear(8, 6), loss=ArcFace())
    with pytest.raises(HeadError, match="classes in its loss"):
        replace_head(model, 3)


def segmenter(classes: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, width: int = 8) -> nn.Module:
    """VNet: classes, normed, and a map of them to classes."""
    out = nn.Sequential()
    out.add_module("block", nn.Sequential(nn.Conv2d(width, classes, 3, padding=1), norm(classes), nn.ReLU()))
    out.add_module("conv", nn.Conv2d(classes, classes, 1))
    return wired(lambda self, x: self.out_tr(self.stem(x)), stem=nn.Conv2d(3, width, 3, padding=1), out_tr=out)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, partial(nn.BatchNorm2d, affine=False), partial(nn.GroupNorm, 1)])
def test_a_map_of_classes_follows_with_the_norm_and_the_layer_before_it(norm: Callable[[int], nn.Module]) -> None:
    """Nothing else in the model is as wide."""
    assert oracle.judge(lambda classes: segmenter(classes, norm))[0] == oracle.RIGHT
    model = segmenter(10, norm)
    old = [model.out_tr.block[0].weight[3], model.out_tr.conv.weight[3, 5]]
    assert replace_head(model, 4, keep={0: 3, 1: 5}).names == ("out_tr.block.0", "out_tr.block.1", "out_tr.conv")
    assert torch.equal(model.out_tr.block[0].weight[0], old[0])
    assert torch.equal(model.out_tr.conv.weight[0, 1], old[1])


def test_a_module_takes_the_place_of_layers_in_a_row_only_by_name() -> None:
    """Each of them is of another width now."""
    model = segmenter(10)
    with pytest.raises(HeadError, match="name the module that holds"):
        replace_head(model, lambda width: nn.Conv2d(width, 7, 1))
    assert replace_head(model, lambda width: nn.Conv2d(width, 7, 1), at="out_tr").out_features == 7


def test_a_map_of_classes_where_the_classes_may_begin_earlier_is_refused() -> None:
    """The body is as wide: the first of the two may be of the body."""
    with pytest.raises(HeadError, match=r"nothing tells whether those of the first count classes too"):
        replace_head(segmenter(10, width=10), 7)
    model = segmenter(10, width=10)
    assert replace_head(model, 7, at="out_tr.conv").names == ("out_tr.conv",)


def normed(classes: int, norm: nn.Module) -> nn.Module:
    return wired(lambda self, x: self.norm(self.fc(self.body(x))), body=features(), fc=nn.Linear(8, classes), norm=norm)


def test_a_norm_of_the_scores_follows_where_something_says_that_they_are_scores() -> None:
    """As in networks for CIFAR; features are normed in the same way."""

    def build(classes: int) -> nn.Module:
        model = normed(classes, nn.BatchNorm1d(classes))
        model.num_classes = classes
        return model

    assert oracle.judge(build)[0] == oracle.RIGHT
    model = build(10)
    model.norm.running_mean.copy_(torch.arange(10))
    replace_head(model, 4, keep={1: 5})
    assert model.norm.running_mean.tolist() == [0, 5, 0, 0]


def test_a_norm_of_what_may_be_features_is_refused_with_a_call_that_works() -> None:
    model = normed(10, nn.LayerNorm(10))
    with pytest.raises(HeadError, match=r"replaces the norm too: replace_head\(model, n, at='fc'\)"):
        replace_head(model, 7)
    assert replace_head(model, 7, at="fc").names == ("fc", "norm")


def test_a_norm_of_groups_that_can_not_share_the_scores_is_refused() -> None:
    model = normed(10, nn.GroupNorm(5, 10))
    with pytest.raises(HeadError, match="a norm of 5 groups"):
        replace_head(model, 7, at="fc")
    assert replace_head(model, 15, at="fc").proven


def test_groups_of_which_each_gives_all_classes_follow() -> None:
    """Their scores are averaged: TCFormer. Groups that share the classes are as many as these."""

    def build(classes: int) -> nn.Module:
        return wired(
            lambda self, x: self.conv(self.stem(x).mean((2, 3), keepdim=True)).view(len(x), 3, -1).mean(1),
            stem=nn.Conv2d(3, 12, 3),
            conv=nn.Conv2d(12, 3 * classes, 1, groups=3),
            n_outputs=classes,
        )

    assert oracle.judge(build)[0] == oracle.RIGHT
    with pytest.raises(HeadError, match="Leave keep= out"):  # each class could have neighboring outputs just as well
        replace_head(build(6), 4, keep={0: 3})
    uncounted = build(6)
    del uncounted.n_outputs
    with pytest.raises(HeadError, match=r"set model\.num_classes = 6 first"):
        replace_head(uncounted, 4)
    uncounted.num_classes = 6
    assert replace_head(uncounted, 4).proven
    with pytest.raises(HeadError, match=r"5 groups: another count would not fit them\.$"):
        replace_head(
            wired(
                lambda self, x: self.conv(self.stem(x)).mean((2, 3)),
                stem=nn.Conv2d(3, 10, 3),
                conv=nn.Conv2d(10, 5, 1, groups=5),
                num_classes=5,
            ),
            7,
        )


def test_a_linear_map_of_what_the_model_counts_is_refused_where_only_two_are_as_wide() -> None:
    """EdgeCNN: the hidden layer of its last part is as wide as its outputs; elsewhere, so many features are chance."""
    model = wired(
        lambda self, x: self.mlp(self.body(x)),
        body=features(),
        mlp=nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 10)),
        out_channels=10,
    )
    with pytest.raises(HeadError, match=r"at='mlp.2'\. If they do: replace_head\(model, n, at=\['mlp.0', 'mlp.2'\]\)"):
        replace_head(model, 7)
    both = replace_head(copy.deepcopy(model), 7, at=["mlp.0", "mlp.2"], keep={0: 3})
    assert [tuple(layer.weight.shape) for layer in both.modules] == [(7, 8), (7, 7)]
    assert torch.equal(both.modules[1].weight[0, 0], model.mlp[2].weight[3, 3])
    assert replace_head(model, 7, at="mlp.2").names == ("mlp.2",)
    del model.out_channels
    assert replace_head(model, 7).names == ("mlp.2",)


def test_scores_that_the_model_counts_and_passes_on_are_refused() -> None:
    """What comes after them is no head, whatever else the model gives out."""
    for where in (
        lambda self, x: {"logits": x, "coarse": self.coarse(x)},
        lambda self, x: (self.coarse(x.softmax(1)), x),
    ):
        model = wired(
            lambda self, x, where=where: where(self, self.fc(self.body(x))),
            body=features(),
            fc=nn.Linear(8, 11),
            coarse=nn.Linear(11, 4),
            num_classes=11,
        )
        with pytest.raises(HeadError, match=r"'fc'.* gives the classes that the .* counts, and 'coarse'"):
            replace_head(model, 7)


class Anchored(nn.Module):
    """A head that counts the classes by itself: for each anchor all of them, or for each class all anchors."""

    def __init__(self, classes: int, order: str) -> None:
        super().__init__()
        self.num_classes, self.num_anchors, self.order = classes, 4, order
        self.cls = nn.Conv2d(8, 4 * classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, sizes = self.cls(x), (self.num_anchors, self.num_classes)
        if self.order == "by anchor":
            return x.flatten(2).unflatten(1, sizes).permute(0, 3, 1, 2).flatten(1, 2)
        if self.order == "by anchor, in the last axis":
            return x.permute(0, 2, 3, 1).reshape(len(x), -1, self.num_classes)
        if self.order == "by class":
            return x.flatten(2).unflatten(1, sizes[::-1]).permute(0, -1, 2, 1).flatten(1, 2)
        return x.permute(0, 2, 3, 1).unflatten(-1, sizes[::-1]).transpose(-1, -2).flatten(1, 3)


@pytest.mark.parametrize("at", [None, "head"])
@pytest.mark.parametrize(
    "order", ["by anchor", "by anchor, in the last axis", "by class", "by class, in the last axis"]
)
def test_what_holds_a_head_tells_its_classes_and_how_it_splits_them(order: str, at: str | None) -> None:
    def build(classes: int) -> nn.Module:
        return wired(lambda self, x: self.head(self.body(x)), body=nn.Conv2d(3, 8, 3), head=Anchored(classes, order))

    model = build(11)
    image = torch.randn(2, 3, 16, 16)
    before = model(image)
    replace_head(model, 7, keep={1: 5}, at=at)
    torch.testing.assert_close(model(image)[..., 1], before[..., 5])
    assert oracle.judge(build)[0] == oracle.RIGHT


class Attended(nn.Module):
    """A layer with weights as wide beside it, which tell how much each row counts: GATConv."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.att = nn.Linear(8, 10, bias=False), nn.Parameter(torch.ones(1, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.lin(x)
        return (x * self.att).sum(1, keepdim=True).softmax(0) * x


def test_weights_beside_a_layer_that_are_as_wide_are_named() -> None:
    model = wired(lambda self, x: self.conv(self.body(x)), body=features(), conv=Attended())
    with pytest.raises(HeadError, match=r"has 'att' as wide.*replace_head\(model, module, at='conv'\)"):
        replace_head(model, 7)
    assert replace_head(model, Attended(), at="conv").names == ("conv",)


def test_classes_in_a_loss_that_only_training_with_labels_runs_are_named() -> None:
    """The directions of a loss for faces, with a loop over labels that fakes can't follow."""

    class Margins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W, self.num_classes = nn.Parameter(torch.randn(8, 10)), 10

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return nn.functional.cross_entropy(x @ self.W, torch.tensor(labels.tolist()))

    model = wired(
        lambda self, x, labels: self.loss_func(self.body(x), labels) if self.training else self.body(x),
        body=features(),
        loss_func=Margins(),
    )
    inputs = torch.zeros(2, 3, 16, 16), torch.zeros(2, dtype=torch.long)
    with pytest.raises(HeadError, match="has its classes in its loss, 'loss_func'"):
        replace_head(model, 7, example_inputs=inputs)


def test_a_weight_of_which_nothing_tells_the_side_is_refused() -> None:
    """The directions of a loss that counts nothing, and did not run."""
    loss = nn.Module()
    loss.W = nn.Parameter(torch.randn(8, 10))
    model = wired(lambda self, x: self.body(x), body=features(), loss_func=loss)
    with pytest.raises(HeadError, match="whether the 10 or the 8 of 'loss_func'"):
        replace_head(model, 7, at="loss_func")


class Forecaster(nn.Module):
    """As many steps as go in, channel by channel, from a layer that is called a head; ``c_out`` is for looks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Conv1d(3, 3, 5, padding=2), nn.Linear(64, 64)
        self.seq_len, self.c_in = 64, 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x).relu())


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: wired(lambda self, x: self.model(x), model=model)])
def test_a_forecasters_head_gives_no_classes(wrap: object) -> None:
    """It gives as many steps as it takes: PatchTST. Who knows better says so."""
    model = wrap(Forecaster())
    with pytest.raises(HeadError, match="looks like a classifier"):
        replace_head(model, 7)
    replace_head(model, 7, at=next(name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)))


@pytest.mark.parametrize("named", [True, False])
def test_a_tagger_with_as_many_classes_as_steps_is_known_by_its_counter(named: bool) -> None:
    """Or by the number of classes, where that is another one."""
    model = Forecaster()
    if named:
        model.num_classes = 64
    else:
        model.head = nn.Linear(64, 10)
    assert replace_head(model, 7).proven


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 64)),
        nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16)),
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)),
        nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 1)),
    ],
    ids=["autoencoder", "narrow autoencoder", "denoiser", "one number"],
)
def test_nothing_says_that_these_classify(model: nn.Module) -> None:
    """They are refused; at= makes classes of them all the same."""
    with pytest.raises(HeadError, match=r"looks like a classifier.*at='2'"):
        find_head(model)
    assert replace_head(model, 5, at="2").out_features == 5


def test_a_detector_of_the_yolo_family() -> None:
    """It counts its classes as nc, and with the coordinates as no."""

    class Detect(nn.Module):
        def __init__(self, nc: int) -> None:
            super().__init__()
            self.nc, self.no, self.nl = nc, nc + 16, 2
            self.cv2 = nn.ModuleList(nn.Conv2d(8, 16, 1) for _ in range(2))
            self.cv3 = nn.ModuleList(nn.Conv2d(8, nc, 1) for _ in range(2))

        def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
            levels = zip(maps, self.cv2, self.cv3, strict=True)
            both = [torch.cat((boxes(x), scores(x)), 1).view(len(x), self.no, -1) for x, boxes, scores in levels]
            boxes, scores = torch.cat(both, 2).split((16, self.nc), 1)
            return torch.cat((boxes, scores.sigmoid()), 1)

    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.detect([x, x[..., ::2, ::2]])

    model = wired(forward, stem=nn.Conv2d(3, 8, 3, 2), detect=Detect(11))
    assert replace_head(model, 7).names == ("detect.cv3.0", "detect.cv3.1")
    assert (model.detect.nc, model.detect.no) == (7, 23)
    assert model(torch.zeros(1, 3, 16, 16)).shape[1] == 23


def test_two_layers_of_maps_that_could_both_count_classes_are_refused() -> None:
    """The hidden maps of a segmenter may be one for each class, or as many by chance; a hidden vector is by chance."""
    maps = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.Tanh(), nn.Conv2d(5, 5, 1))
    model = wired(lambda self, x: self.maps(x), maps=maps)
    with pytest.raises(HeadError, match=r"maps\.2.*maps\.4.*both have 5 outputs"):
        replace_head(model, 3)
    assert replace_head(model, 3, at="maps.4").proven
    rows = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 5))
    assert replace_head(rows, 3).names == ("2",)


def test_a_model_that_classifies_in_training_alone_is_refused_by_the_name_of_its_classifier() -> None:
    """As those are that tell people apart: in eval mode they give features, normed ones here."""

    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = self.fc(self.body(x))
        return self.classifier(x) if self.training else x

    model = wired(
        forward, body=features(), fc=nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6)), classifier=nn.Linear(6, 5)
    ).eval()
    with pytest.raises(HeadError, match=r"in training mode only.*'classifier'.*at='classifier'"):
        find_head(model)
    assert replace_head(model, 3, at="classifier").names == ("classifier",)
    assert model.train()(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_maps_from_classes_to_classes_in_a_row_are_all_named(times: int) -> None:
    """The call in the error takes all of them, and works with a run, without one, and where none is possible."""
    more = [one for _ in range(times) for one in (nn.ReLU(), nn.Conv2d(5, 5, 1))]
    names = [f"maps.{index}" for index in range(2, 2 * times + 3, 2)]
    for blind, at_all in ((False, {}), (False, {"verify": False}), (True, {})):
        maps = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1), *copy.deepcopy(more))
        model = wired(lambda self, x, blind=blind: self.maps(x["image"] if blind else x), maps=maps, num_classes=5)
        with pytest.raises(HeadError, match=re.escape("could not be run" if blind else f"at={names}")):
            replace_head(model, 3)
        assert replace_head(model, 3, at=names, **at_all).names == tuple(names)
        assert model.maps(torch.zeros(1, 3, 9, 9)).shape == (1, 3, 7, 7)


def test_counted_rows_in_a_row_are_all_named() -> None:
    """Where nothing else is as wide as the classes that the model counts."""
    rows = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    model = wired(lambda self, x: self.rows(x), rows=rows, num_classes=5)
    with pytest.raises(HeadError, match=r"all have 5 outputs.*at=\['rows.0', 'rows.2', 'rows.4'\]"):
        replace_head(model, 3)


def test_layers_side_by_side_are_no_row() -> None:
    """Neither takes what the other gives, whether a run shows that or not."""
    for verify in (True, False):
        model = wired(lambda self, x: (self.a(x), self.b(x)), a=nn.Linear(5, 5), b=nn.Linear(5, 5))
        replace_head(model, 3, at=["a", "b"], verify=verify)
        assert [out.shape for out in model(torch.zeros(2, 5))] == [(2, 3), (2, 3)]


@pytest.mark.parametrize(("sizes", "counted"), [((11, 4), False), ((4, 11), False), ((11, 4), True)])
def test_scores_that_are_passed_on_and_come_out_too_are_no_matter_of_chance(
    sizes: tuple[int, int], counted: bool
) -> None:
    """They may be the classes, or features for what comes after."""

    def forward(self: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.fc(self.body(x))
        return x, self.coarse(x)

    model = wired(forward, body=features(), fc=nn.Linear(8, sizes[0]), coarse=nn.Linear(*sizes))
    if counted:
        model.num_classes = sizes[0]
    with pytest.raises(HeadError, match="rebuild the head"):
        replace_head(model, 7)
    assert replace_head(model, 7, at="coarse").proven


@pytest.mark.parametrize(("one", "two"), [("proj", "out"), ("embedding", "fc"), ("reduce", "classifier")])
def test_features_that_come_out_too_are_no_scores(one: str, two: str) -> None:
    """Their names say so, or that of the other layer does."""

    def forward(self: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = getattr(self, one)(self.body(x))
        return x, getattr(self, two)(x)

    model = wired(forward, body=features(), **{one: nn.Linear(8, 6), two: nn.Linear(6, 5)})
    assert replace_head(model, 7).names == (two,)


@pytest.mark.parametrize("by_class", [True, False])
def test_boxes_are_kept_in_the_order_in_which_the_model_splits_them(by_class: bool) -> None:
    """Four numbers for each class, or one for each class four times."""

    def forward(self: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.body(x)
        boxes, classes = self.bbox_pred(x), self.cls_score.out_features
        return self.cls_score(x), boxes.view(-1, classes, 4) if by_class else boxes.view(-1, 4, classes)

    model = wired(forward, body=features(), cls_score=nn.Linear(8, 11), bbox_pred=nn.Linear(8, 44), num_classes=11)
    before = model(torch.ones(1, 3, 16, 16))[1]
    replace_head(model, 7, keep={2: 5})
    after = model(torch.ones(1, 3, 16, 16))[1]
    if by_class:
        before, after = before.mT, after.mT
    torch.testing.assert_close(after[..., 2], before[..., 5])


def test_the_head_of_a_mean_teacher_follows() -> None:
    """It never runs in the forward pass, and has the same place in a part like the student."""
    student = nn.Sequential(features(), nn.Linear(8, 11))
    model = wired(lambda self, x: self.student(x), student=student, teacher=copy.deepcopy(student))
    model.other = nn.Sequential(features(), nn.Linear(8, 11), nn.Linear(11, 2))
    assert replace_head(model, 7).names == ("student.1", "teacher.1")
    assert model.other[1].out_features == 11


def test_scores_that_are_refined_by_a_sum_are_named_together() -> None:
    """A residual layer from classes to classes, as MONAI's UNet ends in one."""
    model = wired(lambda self, x: self.refined(self.fc(self.body(x))), body=features(), fc=nn.Linear(8, 11))
    model.refined = wired(lambda self, x: x + self.conv(x), conv=nn.Linear(11, 11))
    model.refined.in_channels = model.in_channels = 11
    with pytest.raises(HeadError, match=r"at=\['fc', 'refined.conv'\]"):
        replace_head(model, 7)
    assert replace_head(model, 7, at=["fc", "refined.conv"]).proven
    assert (model.refined.in_channels, model.in_channels) == (7, 11)
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 7)


def with_teacher() -> nn.Module:
    """A model whose teacher runs without history, as a copy of the student, and whose scores leave it."""

    def forward(self: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            soft = self.teacher(x)
        return self.student(x), soft

    student = nn.Sequential(features(), nn.Linear(8, 11))
    return wired(forward, student=student, teacher=copy.deepcopy(student).requires_grad_(False))


@pytest.mark.parametrize("at", [None, ["student.1", "teacher.1"]])
def test_the_head_of_a_teacher_that_runs_without_history_follows(at: list[str] | None) -> None:
    """It stays a copy of the student's."""
    model = with_teacher()
    head = replace_head(model, 7, at=at)
    assert (head.names, head.proven) == (("student.1", "teacher.1"), True)
    assert [one.shape for one in model(torch.zeros(2, 3, 16, 16))] == [(2, 7), (2, 7)]
    assert torch.equal(model.student[1].weight, model.teacher[1].weight)
    assert not model.teacher[1].weight.requires_grad


def test_a_teacher_of_its_own_gets_a_head_of_its_own() -> None:
    model = with_teacher()
    nn.init.normal_(model.teacher[1].weight)
    replace_head(model, 7)
    assert not torch.equal(model.student[1].weight, model.teacher[1].weight)


def test_an_output_without_history_that_keeps_the_old_classes_is_no_proof() -> None:
    head = replace_head(with_teacher(), 7, at="student.1")
    assert not head.proven
    assert "'teacher.1'" in head.unproven


def test_a_teacher_in_another_precision_gets_a_head_in_its_own() -> None:
    model = with_teacher()
    model.teacher[1].half()
    replace_head(model, 7)
    assert (model.student[1].weight.dtype, model.teacher[1].weight.dtype) == (torch.float32, torch.float16)
