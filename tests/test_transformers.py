"""The callback for the Trainer: what trains when, with its own optimizer or another, and after a kill."""

from __future__ import annotations

import doctest
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from ftkit import (
    FreezeSchedule,
    freeze_except,
    last_blocks,
    load_delta,
    load_weights,
    param_groups,
    replace_head,
    save_delta,
    trainable,
)
from ftkit.errors import FtkitError, SelectionError

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed  # noqa: E402

import ftkit.transformers  # noqa: E402
from ftkit.transformers import FreezingCallback  # noqa: E402

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]  # transformers' own advice

SIZE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
DRY = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(level)


class Power(TrainerCallback):
    """Fails after a number of steps, and writes down what trains in each epoch."""

    def __init__(self, steps: float = float("inf")) -> None:
        self.steps, self.trained = steps, {}

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.trained[int(state.epoch + 1e-6)] = blocks(model)
        if self.steps <= 0:
            raise RuntimeError("the power failed")
        self.steps -= 1


def blocks(model: nn.Module) -> list[str]:
    """The trainable blocks, and the head."""
    parts = [name.split(".") for name in trainable(model)]
    return sorted({next((word for word in words if word.isdigit()), words[0]) for words in parts})


class Pictures(Dataset[Any]):
    """Twenty-four pictures of noise, three classes."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        noise = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(index))
        return {"pixel_values": noise + index % 3, "labels": index % 3}


class Texts(Pictures):
    def __getitem__(self, index: int) -> Any:
        tokens = torch.randint(5, 50, (8,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": index % 3}


class Endless(IterableDataset[Any]):
    """The texts, without a length."""

    def __iter__(self) -> Iterator[Any]:
        return map(Texts().__getitem__, range(24))


def vit() -> Any:
    set_seed(0)
    config = transformers.ViTConfig(**SIZE, **DRY, image_size=16, patch_size=8, num_labels=3)
    return transformers.ViTForImageClassification(config)


def bert() -> Any:
    set_seed(0)
    config = transformers.BertConfig(**SIZE, **DRY, vocab_size=50, num_labels=3)
    return transformers.BertForSequenceClassification(config)


def gpt2() -> Any:
    set_seed(0)
    sizes = {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 50, "n_positions": 16, "pad_token_id": 0}
    dry = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**sizes, **dry, num_labels=3))


class Plain(nn.Module):
    """No model of transformers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.classifier = nn.Embedding(50, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)])

    def forward(self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None) -> Any:
        hidden = self.embedding(input_ids).mean(1)
        for layer in self.layers:
            hidden = hidden + layer(hidden).tanh()
        logits = self.classifier(hidden)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def fit(
    folder: Path,
    make: Callable[[], Any] = bert,
    *,
    data: Dataset[Any] | None = None,
    plan: Callable[[Any], FreezeSchedule] | None = None,
    power: float = float("inf"),
    rates: dict[str, Any] | None = None,
    resume: bool | str = False,
    more: Any = (),
    **options: Any,
) -> tuple[Any, Power]:
    """Train for five epochs of six steps; the head alone, then the last block, then another one."""
    model, watch = make(), Power(power)
    dataset = data or (Pictures() if make is vit else Texts())
    head = "score" if make is gpt2 else "classifier"
    layers = {gpt2: "transformer.h", vit: "vit.layers", bert: "bert.encoder.layer"}.get(make, "layers")
    schedule = plan(model) if plan else FreezeSchedule({0: head, 2: f"{layers}.2", 3: f"{layers}.1"})
    given = {"num_train_epochs": 5, "learning_rate": 0.01, "save_strategy": "epoch", **options}
    arguments = TrainingArguments(
        folder, per_device_train_batch_size=4, use_cpu=True, report_to="none", disable_tqdm=True, **given
    )
    optimizer = None if rates is None else torch.optim.AdamW(param_groups(model, lr=0.01, **rates))
    trainer = Trainer(
        model,
        arguments,
        train_dataset=dataset,
        eval_dataset=Pictures() if make is vit else Texts(),
        optimizers=(optimizer, None),
        callbacks=[FreezingCallback(schedule), watch, *more],
    )
    trainer.train(resume_from_checkpoint=resume or None)
    return model, watch


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def check_resumed(folder: Path, *args: Any, steps: int = 15, **options: Any) -> tuple[Any, Power]:
    """Train at once, and with a kill and a resume: both end with the same weights."""
    whole, watch = fit(folder / "whole", *args, **options)
    with pytest.raises(RuntimeError, match="power"):
        fit(folder / "killed", *args, power=steps, **options)
    resumed, rest = fit(folder / "killed", *args, resume=True, **options)
    assert rest.trained == {epoch: watch.trained[epoch] for epoch in rest.trained}
    assert 0 < len(rest.trained) < 5
    assert same(whole, resumed)
    return whole, watch


def test_what_trains_when(tmp_path: Path) -> None:
    model, watch = fit(tmp_path)
    head, last, both = ["classifier"], ["2", "classifier"], ["1", "2", "classifier"]
    assert watch.trained == {0: head, 1: head, 2: last, 3: both, 4: both}
    before, after = bert().state_dict(), model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "layer.1." in name or "layer.2." in name or "classifier" in name}


@pytest.mark.parametrize(
    ("make", "steps"),
    [(bert, 9), (bert, 15), (bert, 27), (vit, 15), (gpt2, 15), (Plain, 27)],
    ids=lambda one: getattr(one, "__name__", str(one)),
)
def test_a_killed_run_resumes(make: Callable[[], Any], steps: int, tmp_path: Path) -> None:
    """With the Trainer's own optimizer; in the epoch before the first thaw, in that of it, and after all."""
    check_resumed(tmp_path, make, steps=steps)


@pytest.mark.parametrize(
    "options",
    [
        {"rates": {"layer_decay": 0.5}, "lr_scheduler_type": "cosine", "warmup_steps": 8},
        {"lr_scheduler_type": "cosine", "warmup_steps": 8, "weight_decay": 0.1, "bf16": True},
        {"gradient_accumulation_steps": 4, "gradient_checkpointing": True, "steps": 7},
        {"optim": "sgd", "max_grad_norm": 0.1, "max_steps": 28},
        {"make": Plain, "torch_compile": True, "torch_compile_backend": "eager"},
        {"save_strategy": "steps", "save_steps": 5},
        {
            "eval_strategy": "epoch",
            "load_best_model_at_end": True,
            "restore_callback_states_from_checkpoint": True,
            "optim": "adafactor",
        },
    ],
    ids=str,
)
def test_with_an_option_of_the_trainer(options: dict[str, Any], tmp_path: Path) -> None:
    check_resumed(tmp_path, **options)


@pytest.mark.parametrize("steps", [9, 15])
@pytest.mark.parametrize(
    "plan",
    [
        lambda model: FreezeSchedule({0: "classifier", 1: last_blocks(model, 1)}, period=3),
        lambda model: FreezeSchedule(lambda epoch: ["classifier", f"layers.{epoch % 3}"]),
    ],
)
def test_turns(plan: Callable[[Any], FreezeSchedule], steps: int, tmp_path: Path) -> None:
    check_resumed(tmp_path, Plain, plan=plan, steps=steps)


def test_the_best_model_is_loaded_whole(tmp_path: Path) -> None:
    """All of its weights, though the Trainer passes over those that the file calls otherwise."""
    worst = {"eval_strategy": "epoch", "load_best_model_at_end": True, "greater_is_better": True, "save_total_limit": 3}
    model, _ = fit(tmp_path, vit, metric_for_best_model="eval_runtime", **worst)
    state = json.loads(max(tmp_path.glob("*/trainer_state.json"), key=lambda path: path.stat().st_mtime).read_text())
    best = vit()
    load_weights(best, state["best_model_checkpoint"])
    assert same(model, best)


def test_passes_over_data_of_unknown_length_count(tmp_path: Path) -> None:
    """The Trainer counts no epochs there."""
    passes: list[list[str]] = []

    class Note(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            passes.append(blocks(model))

    fit(tmp_path, Plain, data=Endless(), max_steps=24, more=[Note()], save_strategy="no")
    assert passes[:4] == [["classifier"], ["classifier"], ["2", "classifier"], ["1", "2", "classifier"]]


def test_one_callback_serves_several_trainers(tmp_path: Path) -> None:
    """As in cross-validation: each model is frozen from the start."""
    freezing = FreezingCallback(FreezeSchedule({0: "classifier"}))
    arguments = TrainingArguments(
        tmp_path, num_train_epochs=1, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no"
    )
    for fold in range(2):
        watch = Power()
        Trainer(bert(), arguments, train_dataset=Texts(), callbacks=[freezing, watch]).train()
        assert watch.trained == {0: ["classifier"]}, fold


def test_train_again_goes_on(tmp_path: Path) -> None:
    """The second call starts the schedule again, with the same optimizer."""
    watch = Power()
    arguments = TrainingArguments(
        tmp_path, num_train_epochs=3, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no"
    )
    freezing = FreezingCallback(FreezeSchedule({0: "classifier", 2: "layers.2"}))
    trainer = Trainer(Plain(), arguments, train_dataset=Texts(), callbacks=[freezing, watch])
    trainer.train()
    first = dict(watch.trained)
    watch.trained.clear()
    trainer.train()
    assert watch.trained == first == {0: ["classifier"], 1: ["classifier"], 2: ["2", "classifier"]}


def test_what_was_frozen_before_is_refused(tmp_path: Path) -> None:
    """The optimizer lacks what will thaw, and the Trainer could not resume with the groups of later."""

    def frozen() -> Any:
        model = Plain()
        freeze_except(model, "classifier")
        return model

    with pytest.raises(FtkitError, match=r"trains layers\.1\.weight.*which no optimizer has.*phase 0"):
        fit(tmp_path, frozen)


def lora() -> Any:
    """BERT with an adapter, and a head that is trained whole."""
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(bert(), peft.LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS"))


@pytest.mark.parametrize("steps", [9, 15])
def test_an_adapter_of_peft_resumes(steps: int, tmp_path: Path) -> None:
    """The head first, then the adapter: all of it is in the Trainer's checkpoints."""
    plan = lambda model: FreezeSchedule({0: "**.modules_to_save", 2: "**.lora_*"})  # noqa: E731
    check_resumed(tmp_path, lora, data=Texts(), plan=plan, steps=steps)


ADAPTER = ["**.modules_to_save", "**.lora_*"]


@pytest.mark.parametrize(
    "schedule",
    [
        FreezeSchedule({0: ADAPTER, 9: "**.layer.2"}),
        FreezeSchedule(lambda epoch: ADAPTER if epoch < 2 else [*ADAPTER, "**.layer.2"]),
    ],
)
def test_what_the_checkpoints_of_a_peft_model_lack_is_refused(schedule: FreezeSchedule, tmp_path: Path) -> None:
    """Of the layers that thaw beside an adapter nothing is saved, which no resumed run would notice."""

    def train(strategy: str) -> Any:
        model = lora()
        arguments = TrainingArguments(
            tmp_path, num_train_epochs=3, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy=strategy
        )
        optimizers = (torch.optim.SGD(model.parameters(), lr=0.01), None)
        freezing = FreezingCallback(schedule)
        Trainer(model, arguments, train_dataset=Texts(), optimizers=optimizers, callbacks=[freezing]).train()

    with pytest.raises(FtkitError, match=r"trains .*layer\.2.* saves only the adapter.*CheckpointManager"):
        train("epoch")
    train("no")


@pytest.mark.parametrize("schedule", [{0: "head"}, FreezeSchedule, None])
def test_only_a_schedule_is_taken(schedule: Any) -> None:
    with pytest.raises(FtkitError, match="takes a FreezeSchedule"):
        FreezingCallback(schedule)


def test_a_wrong_name_is_an_error_before_training(tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match="clasifier"):
        fit(tmp_path, plan=lambda model: FreezeSchedule({0: "classifier", 9: "clasifier"}))


def test_a_folder_that_cannot_be_told_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Resumed from elsewhere: the callback doesn't know from where, and loads nothing wrong."""
    fit(tmp_path / "first", vit, num_train_epochs=2)
    with caplog.at_level(logging.WARNING, "ftkit"):
        fit(tmp_path / "second", vit, num_train_epochs=3, resume=str(tmp_path / "first" / "checkpoint-12"))
    assert "There is no" in caplog.text
    assert "load_weights(model, folder) before train()" in caplog.text


def test_what_is_loaded_before_stays(tmp_path: Path) -> None:
    """As that warning advises."""
    whole, _ = fit(tmp_path / "whole", vit)
    folder = str(tmp_path / "whole" / "checkpoint-18")

    def loaded() -> Any:
        model = vit()
        load_weights(model, folder)
        return model

    plan = lambda model: FreezeSchedule({0: "classifier", 2: "vit.layers.2", 3: "vit.layers.1"})  # noqa: E731
    resumed, _ = fit(tmp_path / "second", loaded, data=Pictures(), plan=plan, resume=folder)
    assert same(whole, resumed)


@pytest.mark.parametrize(("make", "data"), [(bert, Texts), (vit, Pictures)], ids=["bert", "vit"])
def test_what_the_trainer_saves_is_read_by_both(make: Callable[[], Any], data: type, tmp_path: Path) -> None:
    """``save_model``, then ``load_weights`` and ``from_pretrained``, with the names of the classes."""
    model = make()
    head = replace_head(model, classes=["ant", "bee", "wasp", "fly"])
    arguments = TrainingArguments(tmp_path, max_steps=3, use_cpu=True, report_to="none", disable_tqdm=True)
    freezing = FreezingCallback(FreezeSchedule({0: head, 1: last_blocks(model, 1)}))
    trainer = Trainer(model, arguments, train_dataset=data(), callbacks=[freezing])
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    again = type(model).from_pretrained(tmp_path / "saved")
    assert again.config.id2label == {0: "ant", 1: "bee", 2: "wasp", 3: "fly"}
    assert again.config.label2id == {"ant": 0, "bee": 1, "wasp": 2, "fly": 3}
    assert same(model, again)
    other = make()
    replace_head(other, 4)
    load_weights(other, tmp_path / "saved")
    assert same(model, other)
    save_delta(model, tmp_path / "delta.safetensors", base=make())
    shared = make()
    load_delta(shared, tmp_path / "delta.safetensors")
    assert same(model, shared)
    assert shared.config.id2label == again.config.id2label


def test_the_head_learns_below_reentrant_checkpoints(tmp_path: Path) -> None:
    """Frozen embeddings must not cut the gradient of a block inside a checkpoint."""
    plan = lambda model: FreezeSchedule({0: ["classifier", "bert.encoder.layer.2"]})  # noqa: E731
    kwargs = {"use_reentrant": True}
    model, _ = fit(
        tmp_path, plan=plan, num_train_epochs=1, gradient_checkpointing=True, gradient_checkpointing_kwargs=kwargs
    )
    moved: Tensor = model.bert.encoder.layer[2].output.dense.weight
    assert not moved.equal(bert().bert.encoder.layer[2].output.dense.weight)


def test_the_docstring_runs(tmp_path: Path) -> None:
    assert doctest.testmod(ftkit.transformers).failed == 0
