"""Matching: names meet under whatever wrappers put around them, or the advice says how they would."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ftkit import (
    inspect_checkpoint,
    load_weights,
    save_weights,
)
from ftkit._torch import loads_plainly
from ftkit.errors import CheckpointError
from tests.weights.nets import Net, filled, holds, sevens

WRAPPED = {
    "module.": sevens("module."),
    "_orig_mod.": sevens("_orig_mod."),
    "_orig_mod.module.": sevens("_orig_mod.module."),
    "module._orig_mod.": sevens("module._orig_mod."),
    "model.": sevens("model."),
    "backbone.": sevens("backbone."),
    "_forward_module.model.": sevens("_forward_module.model."),
    "state_dict": {"state_dict": sevens(), "epoch": 1},
    "model": {"model": sevens(), "optimizer": {"state": {0: {"m": torch.ones(3)}}}},
    "state_dict: model.": {"state_dict": sevens("model."), "hyper_parameters": {"lr": 0.1}},
    "nests of nests": {"state": {"model": {"state_dict": sevens("module.")}}},
    "unknown nest": {"anything at all": sevens()},
    "in a list": [sevens(), {"lr": 0.1}],
    "hierarchical": {"stem": {k[5:]: v for k, v in sevens().items() if k.startswith("stem")}}
    | {k: v for k, v in sevens().items() if not k.startswith("stem")},
    "averaged model": sevens("module.") | {"n_averaged": torch.tensor(3)},
    "half": {name: tensor.half() for name, tensor in sevens().items()},
}


@pytest.mark.parametrize("case", WRAPPED)
@pytest.mark.parametrize("as_file", [True, False])
def test_peels(tmp_path, case, as_file):
    """Wrappers' prefixes and nests are peeled, strictly, and the report says which."""
    source: Any = WRAPPED[case]
    if as_file or not isinstance(source, dict):
        torch.save(source, tmp_path / "x.pt")
        source = tmp_path / "x.pt"
    report = load_weights(model := Net(), source)
    assert holds(model, 7)
    assert bool(report.steps) == (case not in {"half", "hierarchical"})
    assert "unwrapped" in str(report) or not report.steps


def test_does_not_peel_what_the_model_has():
    """A name that starts like a wrapper's is left alone where the model has it so."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(2, 2)
            self.module = nn.Linear(2, 2)

    report = load_weights(model := Outer(), filled(Outer(), 7))
    assert holds(model, 7)
    assert not report.steps


def test_looks_through_wrappers_of_the_model(tmp_path):
    """Compiled and data-parallel models save plain names, and load them."""
    inner = filled(Net(), 7)
    save_weights(nn.DataParallel(inner), tmp_path / "x.safetensors")
    assert inspect_checkpoint(tmp_path / "x.safetensors").tensors.keys() == inner.state_dict().keys()
    compiled = torch.compile(Net())
    load_weights(compiled, tmp_path / "x.safetensors")
    assert holds(compiled, 7)


def test_looks_through_inner_wrappers(tmp_path):
    """A model of which only a part is compiled loads plain weights, and the other way round."""
    model = Net()
    model.body = torch.compile(model.body)
    load_weights(model, sevens())
    assert holds(model, 7)
    load_weights(plain := Net(), model)
    assert holds(plain, 7)


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema", "ema_state_dict"])
def test_ema(key):
    """The averaged weights are taken where there are both, or the last ones where asked."""
    source = {"state_dict": filled(Net(), 3).state_dict(), key: sevens()}
    report = load_weights(model := Net(), source)
    assert holds(model, 7)
    assert key in str(report)
    load_weights(model, source, ema=False)
    assert holds(model, 3)


def test_ema_by_prefix():
    """Averaged weights that stand beside the last ones in one table are found by their prefix."""
    source = sevens("model_ema.") | {f"model.{name}": tensor for name, tensor in filled(Net(), 3).state_dict().items()}
    load_weights(model := Net(), source, strict=False)
    assert holds(model, 7)
    load_weights(model, source, strict=False, ema=False)
    assert holds(model, 3)


@pytest.mark.parametrize(
    ("prefix", "hint"),
    [("encoder.", {"encoder.": ""}), ("a.b.", {"a.b.": ""}), ("student_", [("^student_", "")])],
)
def test_suggests_a_renaming(prefix, hint):
    """A strict failure names the likeliest renaming; passed on, it loads."""
    with pytest.raises(CheckpointError) as error:
        load_weights(Net(), sevens(prefix))
    assert f"did you mean rename={hint}? Then 12 of 12" in str(error.value)
    load_weights(model := Net(), sevens(prefix), rename=hint)
    assert holds(model, 7)


def test_suggests_a_prefix_to_add():
    """Weights of the part of a model load into the whole with the prefix that the error suggests."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = Net()

    with pytest.raises(CheckpointError) as error:
        load_weights(Outer(), sevens())
    assert "rename={'': 'features.'}" in str(error.value)
    load_weights(model := Outer(), sevens(), rename={"": "features."})
    assert holds(model, 7)


@pytest.mark.parametrize(
    "rename",
    [
        {"fc": "head", "trunk.stem": "stem"},
        {"fc.": "head.", "trunk.": ""},
        [(r"^fc\.", "head."), (r"^trunk\.", "")],
        lambda name: name.replace("fc.", "head.").replace("trunk.", ""),
    ],
)
def test_rename(rename):
    """Names are mapped by prefix, by pattern or by a function; names are whole components."""
    source = {name.replace("head.", "fc.").replace("stem.", "trunk.stem."): tensor for name, tensor in sevens().items()}
    load_weights(model := Net(), source, rename=rename)
    assert holds(model, 7)


@pytest.mark.parametrize("rename", ["backbone.", 3, [("(", "")]])
def test_what_is_no_renaming(rename):
    """It is an error that says what would be one."""
    with pytest.raises(CheckpointError, match="not a dict of prefixes"):
        load_weights(Net(), Net().state_dict(), rename=rename)


def test_rename_to_none_leaves_out():
    """A function that gives ``None`` leaves a tensor out without a complaint."""
    source = sevens() | {"aux.w": torch.ones(2)}
    report = load_weights(Net(), source, rename=lambda name: None if name.startswith("aux") else name)
    assert not report.unexpected_keys


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["module", "_orig_mod", "model", "backbone"]), max_size=3), st.integers(0, 3))
def test_any_pile_of_wrappers(wrappers, depth):
    """Any pile of wrappers' prefixes, in any depth of nests, is peeled."""
    source: dict[str, Any] = sevens("".join(f"{wrapper}." for wrapper in wrappers))
    for level in range(depth):
        source = {f"level{level}": source, "epoch": 1}
    report = load_weights(model := Net(), source)
    assert holds(model, 7)
    assert bool(report.steps) == bool(wrappers or depth)


def test_old_batch_norm():
    """Files from before batch norm counted its batches are complete."""
    source = {name: tensor for name, tensor in sevens().items() if "num_batches" not in name}
    assert not load_weights(Net(), source).missing_keys


def test_who_loads_as_every_module_does():
    """Only what torch itself does with names and values counts as plain: no method of one's own, and no hook."""

    class Own(nn.Linear):
        def _load_from_state_dict(self, *args):
            super()._load_from_state_dict(*args)

    hooked = nn.Linear(2, 2)
    hooked.register_load_state_dict_post_hook(lambda *_: None)
    early = nn.Linear(2, 2)
    early.register_load_state_dict_pre_hook(lambda *_: None)
    assert all(map(loads_plainly, Net().modules()))
    assert not any(map(loads_plainly, (Own(2, 2), hooked, early)))


def test_a_torch_that_does_not_tell(monkeypatch):
    """Where this torch keeps its loader elsewhere, its own load_state_dict is left to load."""
    assert loads_plainly(nn.Linear(2, 2))
    monkeypatch.delattr(nn.Module, "_load_from_state_dict")
    assert not loads_plainly(nn.Linear(2, 2))


def test_suggests_no_renaming_by_chance() -> None:
    """Another model has names that would fit somewhere; that is no advice."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), nn.Linear(4, 2))
    other = {"1.weight": torch.ones(4), "2.weight": torch.ones(3, 3), "3.weight": torch.ones(3)}
    with pytest.raises(CheckpointError) as error:
        load_weights(model, other)
    assert "did you mean" not in str(error.value)
