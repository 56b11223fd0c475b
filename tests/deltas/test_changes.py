"""What fine-tuning may have changed, and how a base is known again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ftkit import freeze, freeze_except
from ftkit._deltas.changes import differing, fingerprint, may_have_changed, same, split, tensors_of
from ftkit.errors import CheckpointError


def net() -> nn.Sequential:
    """A body with statistics, and a head."""
    return nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), nn.Linear(4, 2))


STATISTICS = {"0.1.running_mean", "0.1.running_var", "0.1.num_batches_tracked"}
HEAD = {"1.weight", "1.bias"}


def test_what_trains_may_have_changed() -> None:
    """Trainable parameters, and the statistics of a norm that freeze does not hold."""
    model = net()
    freeze_except(model, "1")
    assert may_have_changed(model, tensors_of(model)) == HEAD
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    assert may_have_changed(net().train(), tensors_of(net())) == set(tensors_of(net()))
    plain = net()
    plain[0].requires_grad_(False)
    assert may_have_changed(plain, tensors_of(plain)) == HEAD | STATISTICS


def test_statistics_that_moved_are_seen_in_eval_mode() -> None:
    """Batches that a frozen norm counted are noticed afterwards; without any, nothing has moved."""
    model = net()
    model[0].requires_grad_(False)
    model[0].eval()
    assert may_have_changed(model, tensors_of(model)) == HEAD
    model[0].train()
    model(torch.randn(3, 4))
    model[0].eval()
    assert may_have_changed(model, tensors_of(model)) == HEAD | STATISTICS


def test_what_is_known_to_have_trained_has_changed() -> None:
    """A parameter that an optimizer moved counts, though it is frozen by now."""
    model = net()
    freeze(model, "0", "1")
    assert may_have_changed(model, tensors_of(model), [model[1].bias]) == {"1.bias"}


def test_inference_tensors_have_no_count() -> None:
    """A norm that was made in inference mode is no error."""
    with torch.inference_mode():
        model = net().requires_grad_(False).eval()
    assert may_have_changed(model, tensors_of(model)) == set()


def test_a_base_is_compared_to_the_bit() -> None:
    """NaN is the same as itself, another type or shape is not, nor is 0.0 the same as -0.0."""
    nan = torch.tensor([float("nan"), 1.0])
    assert same(nan, nan.clone())
    assert not same(nan, nan.double())
    assert not same(nan, nan[:1])
    assert not same(torch.zeros(1), -torch.zeros(1))
    assert not same(nan, None)
    model = net()
    base = {name: tensor.detach().clone() for name, tensor in tensors_of(model).items()}
    with torch.no_grad():
        model[1].bias.add_(1)
    del base["0.0.bias"]
    assert differing(tensors_of(model), base) == {"1.bias", "0.0.bias"}
    with pytest.raises(CheckpointError, match="not a base of this model"):
        differing(tensors_of(model), {"other": torch.ones(1)})


def test_a_fingerprint_tells_weights_from_architecture() -> None:
    """Other values change one digest, other names or shapes both."""
    state = {"a": torch.zeros(2), "b": torch.ones(3)}
    before = fingerprint(state)
    assert fingerprint(dict(reversed(state.items()))) == before
    values = fingerprint(state | {"a": torch.ones(2)})
    assert values["shapes"] == before["shapes"]
    assert values["contents"] != before["contents"]
    assert fingerprint({"c": state["a"], "b": state["b"]})["shapes"] != before["shapes"]
    assert fingerprint({"a": torch.zeros(1, 2), "b": state["b"]})["shapes"] != before["shapes"]


def test_split_divides_everything() -> None:
    """Each tensor is on one side; the layers that changed whole are described."""
    model = net()
    state = tensors_of(model)
    changed, base, record = split(model, state, HEAD)
    assert changed.keys() == HEAD
    assert base.keys() == state.keys() - HEAD
    assert record["base"] == fingerprint(base)
    assert list(record["layers"]) == ["1"]
