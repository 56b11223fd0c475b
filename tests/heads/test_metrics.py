"""Losses and metrics with something for each class follow a new head, as if built for it, or stay as they are."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import nn

from ftkit import replace_head
from ftkit.errors import HeadError
from tests.heads.nets import features, wired

torchmetrics = pytest.importorskip("torchmetrics")
classification = torchmetrics.classification

METRICS = {
    "accuracy": lambda n: classification.MulticlassAccuracy(n),
    "by task": lambda n: torchmetrics.F1Score(task="multiclass", num_classes=n, average="micro", ignore_index=0),
    "confusion": lambda n: classification.MulticlassConfusionMatrix(n),
    "curve": lambda n: classification.MulticlassAUROC(num_classes=n, thresholds=5),
    "exact curve": lambda n: classification.MulticlassAveragePrecision(num_classes=n),
    "beta": lambda n: classification.MulticlassFBetaScore(2.0, n),
    "collection": lambda n: torchmetrics.MetricCollection(
        [classification.MulticlassAccuracy(n), classification.MulticlassRecall(n)]
    ),
    "each": lambda n: torchmetrics.ClasswiseWrapper(classification.MulticlassAccuracy(n, average=None)),
}


def classifier(n: int = 11, **parts: object) -> nn.Module:
    """A body, a head and what stands beside it."""
    return wired(lambda self, x: self.fc(self.body(x)), body=features(), fc=nn.Linear(8, n), **parts)


def counted(metric: nn.Module, n: int) -> object:
    """What a metric says of predictions for a number of classes."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(30, n, generator=generator).softmax(1)
    metric.update(scores, torch.randint(n, (30,), generator=generator))
    return metric.compute()


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("way", ["count", "module"])
def test_a_metric_is_as_one_built_for_the_new_count(name: str, way: str) -> None:
    """The same object, used before or not, with empty states of the new size."""
    model = classifier(metric=METRICS[name](11))
    metric = model.metric
    counted(metric, 11)
    replace_head(model, 7 if way == "count" else nn.Linear(8, 7))
    assert model.metric is metric
    expected = counted(METRICS[name](7), 7)
    torch.testing.assert_close(counted(metric, 7), expected, equal_nan=True)
    metric.reset()
    torch.testing.assert_close(counted(metric, 7), expected, equal_nan=True)


def test_a_failed_call_leaves_a_metric_as_it_was() -> None:
    """With what it has added up."""
    model = classifier(metric=classification.MulticlassConfusionMatrix(11))
    model.register_buffer("prior", torch.zeros(1, 11))
    model.__class__.forward = lambda self, x: self.fc(self.body(x)) + self.prior
    before = counted(model.metric, 11)
    with pytest.raises(HeadError, match="no longer runs"):
        replace_head(model, 7)
    assert (model.metric.num_classes, model.metric.update_count) == (11, 1)
    assert torch.equal(model.metric.confmat, before)


class Smoothed(nn.Module):
    """A loss with a buffer that hangs on the count."""

    def __init__(self, classes: int, smoothing: float = 0.1) -> None:
        super().__init__()
        self.num_classes, self.smoothing = classes, smoothing
        self.register_buffer("rest", torch.full((1, classes), smoothing / (classes - 1)))


class Frequencies(nn.Module):
    """A loss with a buffer that nothing tells."""

    def __init__(self, labels: torch.Tensor) -> None:
        super().__init__()
        self.num_classes = len(labels)
        self.register_buffer("freq", labels.float())


def test_a_loss_is_as_one_built_for_the_new_count() -> None:
    """Its constructor tells."""
    model = classifier(criterion=Smoothed(11))
    replace_head(model, 7)
    assert model.criterion.num_classes == 7
    assert torch.equal(model.criterion.rest, Smoothed(7).rest)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Frequencies(torch.arange(11)),
        lambda: classification.MulticlassAccuracy(11, dist_sync_on_step=True),  # which nothing but it keeps
    ],
)
def test_what_can_not_be_built_anew_stays_whole(make: object, caplog: pytest.LogCaptureFixture) -> None:
    """Neither its count nor its tensors change, and the log says so."""
    model = classifier(other=make())
    before = {name: value.shape for name, value in vars(model.other).items() if isinstance(value, torch.Tensor)}
    with caplog.at_level(logging.WARNING, "ftkit"):
        replace_head(model, 7)
    assert "still counts 11 classes" in caplog.text
    assert model.other.num_classes == 11
    assert {name: vars(model.other)[name].shape for name in before} == before


@pytest.mark.parametrize("verify", [True, False])
def test_what_another_head_of_that_size_may_be_counted_by_stays(verify: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Of two tasks with as many classes, one changes."""
    model = wired(
        lambda self, x: (self.a(self.body(x)), self.b(self.body(x))),
        body=features(),
        a=nn.Linear(8, 11),
        b=nn.Linear(8, 11),
        metric=classification.MulticlassAccuracy(11),
        loss=nn.CrossEntropyLoss(weight=torch.rand(11)),
    )
    with caplog.at_level(logging.WARNING, "ftkit"):
        replace_head(model, 7, at="a", verify=verify)
    assert "may be that of 'b'" in caplog.text
    assert counted(model.metric, 11) >= 0
    assert model.loss.weight.shape == (11,)


@pytest.mark.parametrize("name", ["alpha", "class_weights", "label_counts"])
def test_numbers_for_each_class_that_stay_are_told(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Tensors that the forward pass has no part in."""
    model = classifier()
    setattr(model, name, torch.rand(11))
    with caplog.at_level(logging.WARNING, "ftkit"):
        replace_head(model, 7)
    assert f"The {name} of the Wired still has 11 classes" in caplog.text


@pytest.mark.parametrize(
    "loss", [lambda one: nn.CrossEntropyLoss(one), lambda one: nn.BCEWithLogitsLoss(pos_weight=one)]
)
@pytest.mark.parametrize("verify", [True, False])
def test_the_weights_of_a_head_with_one_class_more_stay(
    loss: Callable[[torch.Tensor], nn.Module], verify: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """They could be those of the head that changes, with one for "no object"."""
    weights = torch.rand(12)
    model = wired(
        lambda self, x: (self.a(self.body(x)), self.b(self.body(x))),
        body=features(),
        a=nn.Linear(8, 11),
        b=nn.Linear(8, 12),
        ours=loss(torch.ones(11)),
        theirs=loss(weights.clone()),
    )
    with caplog.at_level(logging.WARNING, "ftkit"):
        replace_head(model, 7, at="a", verify=verify)
    torch.testing.assert_close(model.theirs.state_dict(), loss(weights).state_dict())
    assert [len(value) for value in model.ours.state_dict().values()] == [7]
    assert "may be that of 'b'" in caplog.text


@pytest.mark.parametrize("count", [7, 12])
def test_weights_that_are_the_same_for_all_classes_stay_so(count: int, caplog: pytest.LogCaptureFixture) -> None:
    """Each new class has it, and "no object" keeps its own."""
    model = classifier(
        loss=nn.BCEWithLogitsLoss(pos_weight=torch.full((11,), 5.0)),
        detecting=nn.CrossEntropyLoss(torch.tensor([2.0] * 11 + [0.1])),
    )
    with caplog.at_level(logging.WARNING, "ftkit"):
        replace_head(model, count)
    assert model.loss.pos_weight.tolist() == [5.0] * count
    assert model.detecting.weight.tolist() == torch.tensor([2.0] * count + [0.1]).tolist()
    assert not caplog.text


@pytest.mark.parametrize("keep", [{}, {0: 3}, {new: new + 1 for new in range(7)}], ids=["none", "one", "all"])
def test_weights_of_each_class_that_are_lost_are_told(keep: dict[int, int], caplog: pytest.LogCaptureFixture) -> None:
    """Classes that stay keep theirs."""
    model = classifier(loss=nn.CrossEntropyLoss(torch.arange(11.0)))
    with caplog.at_level(logging.WARNING, "ftkit"):
        replace_head(model, 7, keep=keep)
    assert model.loss.weight.tolist() == [float(keep.get(new, 1)) for new in range(7)]
    assert ("The weight of the CrossEntropyLoss" in caplog.text) == (len(keep) < 7)


@pytest.mark.parametrize(
    ("before", "classes", "told"), [("abc", "vwxyz", True), ("abc", "xyz", True), ("abc", "abc", False)]
)
def test_the_labels_of_a_metric_that_stay_are_told(
    before: str, classes: str, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """They would name the scores of other classes, and leave out those of the last."""
    metric = classification.MulticlassAccuracy(3, average=None)
    model = classifier(3, metric=torchmetrics.ClasswiseWrapper(metric, labels=list(before)))
    with caplog.at_level(logging.WARNING, "ftkit"):
        replace_head(model, classes=list(classes))
    assert ("The labels of the ClasswiseWrapper stay a, b, c" in caplog.text) == told
