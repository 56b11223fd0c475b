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
