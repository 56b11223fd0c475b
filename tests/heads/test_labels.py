"""The names of the classes: given to a head, kept by the model, and carried by its files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ftkit import (
    CheckpointManager,
    freeze_except,
    load_checkpoint,
    load_delta,
    replace_head,
    save_checkpoint,
    save_delta,
)
from ftkit._heads.labels import labels_of
from ftkit.errors import DamagedFileError, HeadError


class Config:
    """A configuration that keeps labels, as those of transformers do."""

    def __init__(self, count: int) -> None:
        self.num_labels = count

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        self.id2label = {index: f"LABEL_{index}" for index in range(count)}
        self.label2id = {name: index for index, name in self.id2label.items()}


class Configured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = Config(10)
        self.body = nn.Linear(8, 8)
        self.classifier = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.body(x).relu())  # type: ignore[no-any-return]


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10))


def configured() -> Configured:
    torch.manual_seed(0)
    return Configured()


def test_names_go_into_a_configuration_that_keeps_labels() -> None:
    model = configured()
    head = replace_head(model, classes=["ant", "bee", "cat"])
    assert head.out_features == 3
    assert model.config.id2label == {0: "ant", 1: "bee", 2: "cat"}
    assert model.config.label2id == {"ant": 0, "bee": 1, "cat": 2}
    assert not hasattr(model, "class_names")


def test_names_go_into_the_model_where_no_configuration_keeps_labels() -> None:
    model: Any = plain()
    assert replace_head(model, classes=("ant", "bee")).out_features == 2
    assert model.class_names == ["ant", "bee"]
    assert copy.deepcopy(model).class_names == ["ant", "bee"]


@pytest.mark.parametrize(
    "head", [2, lambda width: nn.Linear(width, 2), nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))]
)
def test_names_come_with_any_kind_of_head(head: Any) -> None:
    model: Any = plain()
    replace_head(model, head, classes=["ant", "bee"])
    assert model.class_names == ["ant", "bee"]


@pytest.mark.parametrize(
    ("head", "classes", "message"),
    [
        (None, "ant", r"classes must be a list of names, not 'ant'"),
        (None, ["ant", 1], r"names of the classes as strings, not 1"),
        (None, ["ant", "ant"], r"'ant' more than once"),
        (None, [], r"classes= is empty"),
        (None, ["ant", ""], r"as strings, not ''"),
        (None, {"ant": 0}, r"classes must be a list of names"),
        (None, 3, r"classes must be a list of names, not 3"),
        (3, ["ant", "bee"], r"to have 3 outputs, but classes= has 2 names"),
        (lambda width: nn.Linear(width, 3), ["ant", "bee"], r"has 3 outputs, but classes= has 2 names"),
        (None, None, r"needs the new head: a number of classes, their names"),
    ],
)
def test_wrong_names_are_refused_and_nothing_changes(head: Any, classes: Any, message: str) -> None:
    model = plain()
    old = model[2]
    with pytest.raises(HeadError, match=message):
        replace_head(model, head, classes=classes)
    assert model[2] is old
    assert labels_of(model) == {}


def test_a_head_without_names_forgets_the_old_ones_but_those_it_keeps() -> None:
    model: Any = plain()
    replace_head(model, classes=["ant", "bee"])
    replace_head(model, 3, keep={2: 0})
    assert model.class_names == ["LABEL_0", "LABEL_1", "ant"]
    replace_head(model, 4)
    assert not hasattr(model, "class_names")


@pytest.mark.parametrize("build", [plain, configured])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_checkpoint_brings_the_names_back(build: Any, suffix: str, tmp_path: Path) -> None:
    tuned, fresh = build(), build()
    replace_head(tuned, classes=["ant", "bee"])
    save_checkpoint(tmp_path / f"run.{suffix}", model=tuned, classes="of the user's own")
    replace_head(fresh, 2)
    assert labels_of(fresh) == {}
    checkpoint = load_checkpoint(tmp_path / f"run.{suffix}", model=fresh)
    assert labels_of(fresh) == labels_of(tuned) == {"": ["ant", "bee"]}
    assert checkpoint.extra == {"classes": "of the user's own"}


@pytest.mark.parametrize("build", [plain, configured])
def test_a_delta_brings_the_names_back(build: Any, tmp_path: Path) -> None:
    tuned, fresh, resumed = build(), build(), build()
    freeze_except(tuned, replace_head(tuned, classes=["ant", "bee"]))
    save_delta(tuned, tmp_path / "delta.safetensors")
    load_delta(fresh, tmp_path / "delta.safetensors")
    assert labels_of(fresh) == {"": ["ant", "bee"]}
    manager = CheckpointManager(tmp_path / "runs", delta=True)
    manager.save(0, model=tuned)
    manager.resume(model=resumed)
    assert labels_of(resumed) == {"": ["ant", "bee"]}


def test_names_of_a_part_come_back_to_that_part(tmp_path: Path) -> None:
    def wrapped() -> Any:
        return nn.ModuleDict({"net": plain()})

    tuned, fresh = wrapped(), wrapped()
    replace_head(tuned["net"], classes=["ant", "bee"])
    save_checkpoint(tmp_path / "run.safetensors", model=tuned)
    replace_head(fresh["net"], 2)
    load_checkpoint(tmp_path / "run.safetensors", model=fresh)
    assert fresh["net"].class_names == ["ant", "bee"]


def test_names_are_not_loaded_where_the_weights_do_not_fit(tmp_path: Path) -> None:
    tuned, other = plain(), plain()
    replace_head(tuned, classes=["ant", "bee"])
    save_checkpoint(tmp_path / "run.safetensors", model=tuned)
    with pytest.raises(Exception, match="does not fit"):
        load_checkpoint(tmp_path / "run.safetensors", model=other)
    assert labels_of(other) == {}


def test_no_names_in_a_hostile_file_are_believed() -> None:
    from ftkit._heads.labels import label
    from ftkit._models.undo import Undo

    hostile: list[Any] = [[], {"": "ant"}, {"": [1]}]
    for labels in hostile:
        with pytest.raises(DamagedFileError):
            label(plain(), labels, Undo())


def test_transformers_get_their_labels(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    options = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}

    def pretrained() -> Any:
        torch.manual_seed(0)
        return transformers.BertForSequenceClassification(transformers.BertConfig(**options, intermediate_size=8))

    tuned, fresh = pretrained(), pretrained()
    freeze_except(tuned, replace_head(tuned, classes=["ant", "bee", "cat"]))
    assert (tuned.num_labels, tuned.config.id2label[2], tuned.config.label2id["bee"]) == (3, "cat", 1)
    save_delta(tuned, tmp_path / "delta.safetensors")
    load_delta(fresh, tmp_path / "delta.safetensors")
    assert (fresh.num_labels, fresh.config.id2label, fresh.config.label2id) == (
        *(3, tuned.config.id2label),
        tuned.config.label2id,
    )
    tuned.save_pretrained(tmp_path / "saved")
    again = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert again.config.id2label == {0: "ant", 1: "bee", 2: "cat"}
