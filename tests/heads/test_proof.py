"""A model that would not run with its new head keeps the old one."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from ftkit import find_head, replace_head
from ftkit.errors import HeadError
from tests.heads.nets import Wired, features, wired


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
    with pytest.raises(HeadError, match="no longer runs"):
        replace_head(model, 3)
    assert model.out is old


def test_a_view_that_swallows_the_new_count_is_an_error() -> None:
    """The model runs, but what were rows are classes now."""
    model = wired(lambda self, x: self.out(self.body(x)).view(-1, 2), body=features(), out=nn.Linear(8, 2))
    with pytest.raises(HeadError, match="no longer runs as before"):
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


def test_a_loss_on_one_hot_labels_gets_labels_for_the_new_count() -> None:
    """As transformers' classifiers of audio frames take them; they say as little against the new head as indices do."""

    def forward(self: Wired, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        scores = self.out(self.body(x))
        given = {"scores": scores}
        if labels is not None:
            classes = self.out.out_features
            given["loss"] = nn.functional.cross_entropy(scores, labels.view(-1, classes).argmax(dim=1))
        return given

    model = wired(forward, body=features(), out=nn.Linear(8, 11))
    assert replace_head(model, 7).proven
    assert model.out.out_features == 7


def test_all_heads_of_a_model_that_cannot_be_run_are_found() -> None:
    """One is named for classes, the other has their count, which no layer takes: NTS-Net, which computes with NumPy."""

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_classes = 11
            self.body = features()
            self.backbone_classifier, self.scores, self.concat_net = (
                nn.Linear(8, 11),
                nn.Linear(8, 3),
                nn.Linear(16, 11),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.body(x)
            best = torch.from_numpy(self.scores(x).detach().numpy()).argmax()
            return self.concat_net(torch.cat([x, x * best], 1)) + self.backbone_classifier(x)

    model = Parts()
    head = replace_head(model, 7)
    assert set(head.names) == {"backbone_classifier", "concat_net"}
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 7)


class Blind(nn.Module):
    """A model that nobody can make an input for."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = features(), nn.Linear(8, 10)

    def forward(self, batch: object) -> torch.Tensor:
        """Take the image out of a box."""
        return self.fc(self.body(batch["image"]))


def test_a_model_that_no_made_up_input_fits_is_not_refused() -> None:
    """The head says that nothing proves it, and why; with the user's own inputs it is proven."""
    head = replace_head(Blind(), 3)
    assert not head.proven
    assert "could not be run" in str(head)
    head = replace_head(Blind(), 3, example_inputs=({"image": torch.zeros(2, 3, 16, 16)},))
    assert head.proven
    assert str(head) == "fc: 8 -> 3"
    with pytest.raises(HeadError, match="example_inputs"):
        replace_head(Blind(), 3, example_inputs=({"image": torch.zeros(2, 4, 16, 16)},))


def test_a_named_layer_is_proven_too_and_verify_says_no() -> None:
    """A class prior added to the scores counts the old classes."""
    model = wired(lambda self, x: self.fc(self.body(x)) + self.prior, body=features(), fc=nn.Linear(8, 10))
    model.register_buffer("prior", torch.zeros(1, 10))
    with pytest.raises(HeadError, match="no longer runs"):
        replace_head(model, 3, at="fc")
    with pytest.raises(HeadError, match="no longer runs"):
        replace_head(model, lambda width: nn.Linear(width, 3), at="fc")
    assert model.fc.out_features == 10
    assert not replace_head(model, 3, at="fc", verify=False).proven


def test_a_hint_is_tried_before_it_is_printed() -> None:
    """Of two layers that could be the head, the error shows the one with which the model works."""
    model = wired(
        lambda self, x: {"a": self.one(self.body(x)).view(-1, 2, 5), "b": self.two(self.body(x))},
        body=features(),
        one=nn.Linear(8, 10),
        two=nn.Linear(8, 12),
    )
    with pytest.raises(HeadError, match="at='two'") as caught:
        replace_head(model, 3)
    assert "at='one'" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_models_of_other_types_are_proven(dtype: torch.dtype) -> None:
    """What stands in for them has their type."""
    model = wired(lambda self, x: self.readout(self.body(x)), body=features(), readout=nn.Linear(8, 10)).to(dtype)
    head = replace_head(model, 3)
    assert (head.names, head.proven, model.readout.weight.dtype) == (("readout",), True, dtype)


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_looking_moves_no_spectral_norm(norm: object) -> None:
    """Neither does an attempt that fails."""
    model = nn.Sequential(norm(nn.Linear(8, 16)), nn.ReLU(), norm(nn.Linear(16, 10))).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    find_head(model)
    with pytest.raises(HeadError):
        replace_head(model, 3, at="0")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("given", [None, torch.zeros(2, 8)])
def test_a_model_that_gives_its_loss_is_proven(given: object) -> None:
    """A scalar has no axis for the classes."""
    model = wired(lambda self, x: self.fc(x).logsumexp(1).mean(), fc=nn.Linear(8, 10))
    assert replace_head(model, 3, example_inputs=given).proven
    assert replace_head(model, 3, example_inputs=given).proven  # as many again


@pytest.mark.parametrize("given", [None, torch.zeros(2, 8)])
def test_an_output_without_a_gradient_proves_nothing(given: object) -> None:
    """The run succeeds, so the inputs are not to blame."""
    model = wired(lambda self, x: self.fc(x).argmax(-1), fc=nn.Linear(8, 10))
    assert replace_head(model, 3, example_inputs=given).unproven == "its output has no gradient"
    assert model(torch.zeros(2, 8)).shape == (2,)


def test_the_reason_for_no_proof_says_what_helps() -> None:
    """An assertion may have no words, and in inference mode only one thing helps."""

    def picky(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] != 9:
            raise AssertionError
        return self.fc(x)

    assert replace_head(wired(picky, fc=nn.Linear(8, 10)), 3).unproven == (
        "the model could not be run on made-up inputs (AssertionError): pass example_inputs="
    )
    model = wired(lambda self, x: self.fc(x), fc=nn.Linear(8, 10))
    with torch.inference_mode():
        assert replace_head(model, 3).unproven == "leave torch.inference_mode()"


def test_a_model_that_is_its_own_copy_is_never_run_or_changed_by_a_look() -> None:
    """Neither its hooks nor its layers may go with those of a copy."""
    kinds = {"__deepcopy__": lambda self, memo: self}
    model = wired(lambda self, x: self.fc(x), fc=nn.Linear(8, 10))
    model.__class__ = type("Own", (type(model),), kinds)
    model.register_forward_hook(lambda *_: None)
    head = replace_head(model, 3)
    assert (head.names, head.proven, len(model._forward_hooks)) == (("fc",), False, 1)
    assert "__deepcopy__ of its Own returns the module itself" in head.unproven
    unsure = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10))
    unsure.__class__ = type("Own", (nn.Sequential,), kinds)
    with pytest.raises(HeadError):
        replace_head(unsure, 3)
    assert unsure[2].out_features == 10


def test_an_error_about_heads_is_a_plain_one() -> None:
    """Users catch it under that name, and processes pass it on."""
    with pytest.raises(HeadError, match="several layers") as caught:
        find_head(wired(lambda self, x: (self.a(x), self.b(x)), a=nn.Linear(8, 5), b=nn.Linear(8, 6)))
    assert type(pickle.loads(pickle.dumps(caught.value))) is type(caught.value) is HeadError


class Reshape(nn.Module):
    """A shape that is written in a module."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(len(x), *self.shape)


def test_an_error_names_the_module_in_which_the_model_failed() -> None:
    """That is what counts the classes too."""
    with pytest.raises(HeadError, match=r"in '2' \(Reshape\)\. Something else in it counts"):
        replace_head(nn.Sequential(features(), nn.Linear(8, 11), Reshape(11)), 7)


def dense(how: str, name: str) -> nn.Module:
    """Eleven classes at each place, three times; the code takes their number from an attribute of that name."""

    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x, classes = self.conf(self.body(x)), getattr(self, name)
        if how == "apart":
            return x.permute(0, 2, 3, 1).reshape(len(x), -1, classes)
        sizes = (3, classes) if how == "by anchor" else (classes, 3)
        x = x.view(len(x), *sizes, *x.shape[2:])
        return x.transpose(1, 2) if how == "by anchor" else x

    return wired(forward, body=nn.Conv2d(3, 8, 3), conf=nn.Conv2d(8, 33, 1), **{name: 11})


@pytest.mark.parametrize("at", [None, "conf"])
@pytest.mark.parametrize("how", ["by anchor", "by class", "apart"])
def test_scores_of_anchors_are_kept_as_the_model_splits_them(how: str, at: str | None) -> None:
    """Named or not."""
    model = dense(how, "num_classes")
    image = torch.rand(1, 3, 8, 8)
    before = model(image)
    assert replace_head(model, 7, at=at, keep={2: 5}).proven
    axis = -1 if how == "apart" else 1
    torch.testing.assert_close(model(image).select(axis, 2), before.select(axis, 5))


@pytest.mark.parametrize("how", ["by anchor", "by class"])
def test_an_error_about_anchors_speaks_of_them(how: str) -> None:
    """Not of 33 classes."""
    size = "3 x 11" if how == "by anchor" else "11 x 3"
    with pytest.raises(HeadError, match=rf"7 outputs in place of 33.*into {size}\. If those are classes and anchors"):
        replace_head(dense(how, "ncl"), 7)


def test_what_the_model_counts_is_shown_first_in_an_error() -> None:
    """Two branches of norms and gates, as wide as the classes: the call works."""

    def branch(outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(8, outputs, 1), nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.body(x) * self.gate(x) + self.pool(x)

    model = wired(forward, stem=nn.Conv2d(3, 8, 3), body=branch(11), pool=branch(11), gate=branch(1), num_classes=11)
    with pytest.raises(HeadError, match=r"at=\['body.0', 'pool.0'\]"):
        replace_head(model, 7)
    assert replace_head(model, 7, at=["body.0", "pool.0"]).proven
    assert model(torch.zeros(2, 3, 9, 9)).shape[1] == 7


def test_scores_that_a_parameter_scales_are_named() -> None:
    """Whatever the layer is called."""
    model = wired(lambda self, x: self.to_pred(self.body(x)) * self.scale, body=features(), to_pred=nn.Linear(8, 5))
    model.scale = nn.Parameter(torch.ones(5))
    with pytest.raises(HeadError, match=r"'to_pred' .* are scaled by other weights"):
        replace_head(model, 3)


def test_a_long_series_is_no_long_run() -> None:
    """Fakes take the steps of a recurrent layer one by one, and the search for a length tries long ones."""

    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x.transpose(1, 2))[0].flatten(1))

    model = wired(forward, rnn=nn.GRU(3, 8, batch_first=True), head=nn.Linear(8 * 700, 5))
    head = replace_head(model, 3)
    assert (head.names, head.proven) == (("head",), True)
