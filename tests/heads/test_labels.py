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
from ftkit._heads.labels import labels_of, plan_labels
from ftkit.errors import CheckpointError, DamagedFileError, HeadError


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


class Wrapper(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)  # type: ignore[no-any-return]


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.color, self.shape = nn.Linear(8, 16), nn.Linear(16, 5), nn.Linear(16, 7)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.body(x).relu()
        return self.color(features), self.shape(features)


class Own(nn.Module):
    def __init__(self, names: Any) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 5)
        self.class_names = names

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)  # type: ignore[no-any-return]


class Property(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 5)

    @property
    def class_names(self) -> list[str]:
        return list("vwxyz")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)  # type: ignore[no-any-return]


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
    hostile: list[Any] = [[], {"": "ant"}, {"": [1]}]
    for labels in hostile:
        with pytest.raises(DamagedFileError):
            plan_labels(plain(), labels, {}, "The file")


@pytest.mark.frameworks
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


def named(names: str, build: Any = plain) -> Any:
    model = build()
    replace_head(model, classes=list(names))
    return model


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("average", [copy.deepcopy, torch.optim.swa_utils.AveragedModel])
def test_an_average_gets_the_names_that_its_model_gets(average: Any, delta: bool, tmp_path: Path) -> None:
    tuned = plain()
    freeze_except(tuned, replace_head(tuned, classes=["a", "b", "c"]))
    manager = CheckpointManager(tmp_path / "runs", delta=delta)
    manager.save(0, model=tuned, ema=average(tuned))
    fresh = plain()
    replace_head(fresh, 3)
    ema = average(fresh)
    manager.resume(model=fresh, ema=ema)
    inner: Any = ema if average is copy.deepcopy else ema.module
    assert labels_of(fresh) == {"": ["a", "b", "c"]}
    assert inner.class_names == ["a", "b", "c"]


@pytest.mark.parametrize("build", [plain, configured])
@pytest.mark.parametrize("wrapped_first", [False, True])
def test_names_follow_the_weights_out_of_a_wrapper(build: Any, wrapped_first: bool, tmp_path: Path) -> None:
    tuned, fresh = build(), build()
    wrapper = Wrapper(tuned)
    replace_head(wrapper if wrapped_first else tuned, classes=["a", "b", "c"])
    save_checkpoint(tmp_path / "run.safetensors", model=wrapper)
    replace_head(fresh, 3)
    load_checkpoint(tmp_path / "run.safetensors", model=fresh)
    assert labels_of(fresh) == {"": ["a", "b", "c"]}


def test_names_that_find_no_place_are_left_alone_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tuned: Any = Wrapper(plain())
    fresh = plain()
    replace_head(tuned.model, 10, classes=list("abcdefghij"))
    tuned.register_module("aside", nn.ReLU())
    tuned.aside.class_names = ["x", "y"]
    save_checkpoint(tmp_path / "run.safetensors", model=tuned)
    load_checkpoint(tmp_path / "run.safetensors", model=fresh)
    assert labels_of(fresh) == {"": list("abcdefghij")}
    assert "'aside'" in caplog.text


@pytest.mark.parametrize("build", [plain, configured])
@pytest.mark.parametrize("delta", [False, True])
def test_a_run_is_not_resumed_with_its_classes_in_another_order(build: Any, delta: bool, tmp_path: Path) -> None:
    tuned, other = build(), build()
    for model, names in ((tuned, "abc"), (other, "bca")):
        freeze_except(model, replace_head(model, classes=list(names)))
    manager = CheckpointManager(tmp_path / "runs", delta=delta)
    manager.save(0, model=tuned)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"(?s)\['a', 'b', 'c'\].*\['b', 'c', 'a'\].*replace_head"):
        manager.resume(model=other)
    assert labels_of(other) == {"": ["b", "c", "a"]}
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_wrapped_or_not_other_names_of_the_same_classes_are_seen(tmp_path: Path) -> None:
    tuned, inner = Wrapper(plain()), named("cba")
    replace_head(tuned, classes=["a", "b", "c"])
    save_checkpoint(tmp_path / "run.safetensors", model=tuned)
    for model in (inner, Wrapper(inner)):
        with pytest.raises(CheckpointError, match="in another order"):
            load_checkpoint(tmp_path / "run.safetensors", model=model)
    assert inner.class_names == ["c", "b", "a"]


def test_names_that_a_file_brought_give_way_to_those_of_the_next_file(tmp_path: Path) -> None:
    for names in ("abc", "cba"):
        save_checkpoint(tmp_path / f"{names}.safetensors", model=named(names))
    fresh: Any = plain()
    replace_head(fresh, 3)
    for names in ("abc", "cba"):
        load_checkpoint(tmp_path / f"{names}.safetensors", model=fresh)
        assert fresh.class_names == list(names)


@pytest.mark.parametrize("classes", [{"a", "b"}, frozenset("ab"), {"a": 0}.keys() | {"b"}])
def test_names_in_no_order_are_refused(classes: Any) -> None:
    model = plain()
    with pytest.raises(HeadError, match=r"no order.*sorted\(classes\)"):
        replace_head(model, classes=classes)
    assert model[2].out_features == 10


def test_the_keys_of_a_dict_are_in_order() -> None:
    model: Any = plain()
    replace_head(model, classes={"bee": 0, "ant": 1}.keys())  # type: ignore[arg-type]
    assert model.class_names == ["bee", "ant"]


@pytest.mark.parametrize("build", [Property, lambda: Own(list("vwxyz")), lambda: Own(tuple("vwxyz"))])
def test_names_of_the_users_own_are_left_alone(build: Any) -> None:
    model = build()
    before, own = model.fc, model.class_names
    for head in (None, 3, nn.Linear(8, 3)):
        with pytest.raises(HeadError, match="class_names of its own"):
            replace_head(model, head, classes=["a", "b", "c"])
        assert model.fc is before
    replace_head(model, 3)
    assert model.class_names == own


def test_names_of_one_head_are_not_those_of_another() -> None:
    model: Any = TwoHeads()
    replace_head(model, classes=list("abc"), at="color")
    shape = model.shape
    with pytest.raises(HeadError, match="names the classes of 'color'"):
        replace_head(model, classes=list("wxyz"), at="shape")
    assert model.shape is shape
    replace_head(model, 4, at="shape")
    assert model.class_names == list("abc")
    replace_head(model, nn.Linear(16, 2), at="color")
    assert not hasattr(model, "class_names")
    replace_head(model, classes=list("wxyz"), at="shape")
    assert model.class_names == list("wxyz")


@pytest.mark.parametrize("head", [nn.Identity(), nn.ReLU(), lambda _: nn.Sequential(nn.Dropout())])
def test_names_need_a_head_whose_outputs_can_be_counted(head: Any) -> None:
    model = plain()
    old = model[2]
    with pytest.raises(HeadError, match="can't be told"):
        replace_head(model, head, classes=["ant", "bee"])
    assert model[2] is old


def test_a_detector_that_counts_the_background_needs_a_name_for_it() -> None:
    detection = pytest.importorskip("torchvision.models.detection")
    model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=5)
    with pytest.raises(HeadError, match=r"classes=\['__background__', 'cat', 'dog'\]"):
        replace_head(model, classes=["cat", "dog"], verify=False)
    assert model.roi_heads.box_predictor.cls_score.out_features == 5
    replace_head(model, classes=["__background__", "cat", "dog"], verify=False)
    assert model.roi_heads.box_predictor.cls_score.out_features == 3
    assert model.class_names == ["__background__", "cat", "dog"]
