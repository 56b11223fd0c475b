"""Deltas hold what changed, and make the fine-tuned model again to the bit."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import timm.utils
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ftkit import (
    CheckpointManager,
    freeze_except,
    load_checkpoint,
    load_delta,
    replace_head,
    save_checkpoint,
    save_delta,
    save_weights,
)
from ftkit.errors import CheckpointError, DamagedFileError


def pretrained(name: str = "resnet18", **options: object) -> nn.Module:
    """A model as a hub would give it: the same weights each time."""
    torch.manual_seed(7)
    return timm.create_model(name, **options)


def train(model: nn.Module, steps: int = 2, size: int = 32) -> None:
    """Fine-tune on noise."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model.train()
    for _ in range(steps):
        model(torch.randn(2, 3, size, size)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def same_outputs(a: nn.Module, b: nn.Module, size: int = 32) -> bool:
    """Tell whether two models agree to the bit in eval mode."""
    batch = torch.randn(2, 3, size, size)
    with torch.no_grad():
        return torch.equal(a.eval()(batch), b.eval()(batch))


def test_head_is_rebuilt_and_outputs_are_the_same(tmp_path: Path) -> None:
    """A fresh base with its old head becomes the fine-tuned model; the file holds the head alone."""
    model = pretrained()
    model.fc = nn.Linear(512, 5)
    freeze_except(model, "fc")
    train(model)
    save_delta(model, tmp_path / "d.safetensors")
    changed = 4 * (512 * 5 + 5)
    assert (tmp_path / "d.safetensors").stat().st_size < changed + 1900  # 700 of these list the layers
    fresh = pretrained()
    load_delta(fresh, tmp_path / "d.safetensors")
    assert fresh.fc.out_features == 5
    assert same_outputs(fresh, model)


def test_moved_statistics_are_part_of_a_delta(tmp_path: Path) -> None:
    """Plainly frozen BatchNorm moves in training mode; the delta has it even if saved in eval mode."""
    model = pretrained()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("fc."))
    train(model)
    model.eval()
    save_delta(model, tmp_path / "d.safetensors")
    fresh = pretrained()
    load_delta(fresh, tmp_path / "d.safetensors")
    assert same_outputs(fresh, model)


def test_a_base_tells_exactly_what_changed(tmp_path: Path) -> None:
    """What was trained first and frozen later is found by comparing."""
    model = pretrained()
    base = {name: value.clone() for name, value in model.state_dict().items()}
    freeze_except(model, "layer4")
    train(model)
    freeze_except(model, "fc")
    train(model)
    save_delta(model, tmp_path / "d.safetensors", base=base)
    fresh = pretrained()
    load_delta(fresh, tmp_path / "d.safetensors")
    assert same_outputs(fresh, model)


@pytest.mark.parametrize("what", ["weights", "architecture"])
def test_a_wrong_base_is_refused_and_untouched(tmp_path: Path, what: str) -> None:
    """Another base is told by its digest, and stays as it was."""
    model = pretrained()
    model.fc = nn.Linear(512, 5)
    freeze_except(model, "fc")
    save_delta(model, tmp_path / "d.safetensors")
    torch.manual_seed(8)
    other = timm.create_model("resnet18" if what == "weights" else "resnet34")
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=what):
        load_delta(other, tmp_path / "d.safetensors")
    after = other.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_any_flipped_byte_is_noticed(tmp_path: Path) -> None:
    """Whatever byte of a delta is wrong, it is refused, as damaged if it still looks like a file of tensors."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    freeze_except(model, "1")
    path = tmp_path / "d.safetensors"
    save_delta(model, path)
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with pytest.raises(CheckpointError if position in {7, 8} else DamagedFileError):
            load_delta(model, path)


def test_other_files_are_named(tmp_path: Path) -> None:
    """What is no delta is named for what it is, with the call that reads it."""
    model = nn.Linear(2, 2)
    save_weights(model, tmp_path / "w.safetensors")
    torch.save(model.state_dict(), tmp_path / "w.pt")
    save_checkpoint(tmp_path / "c.safetensors", model=model)
    save_checkpoint(tmp_path / "c.pt", model=model)
    (tmp_path / "x.txt").write_text("hello")
    for name, says in (
        ("w.safetensors", r"is not a delta that save_delta wrote\. Read it with load_weights\(model, path\)"),
        ("w.pt", r"is not a delta .* but a pickled object \(zip\)\. Read it with load_weights"),
        ("c.safetensors", "is not a delta .* Read it with load_checkpoint"),
        ("c.pt", "is not a delta .* Read it with load_checkpoint"),
        ("x.txt", "is not a weights file. It starts with b'hello'"),
        ("x.pt", "There is no file"),
    ):
        with pytest.raises(CheckpointError, match=says):
            load_delta(model, tmp_path / name)


def resnet_with(head: nn.Module) -> nn.Module:
    """A pretrained model with a new head of any kind, trained alone."""
    model = pretrained()
    model.fc = head
    return model


class Odd(nn.Module):
    """A head that no file can describe."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(512, 3))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features @ self.matrix


@pytest.mark.parametrize(
    "head",
    [
        nn.Linear(512, 5, bias=False),
        nn.Linear(512, 1000, bias=False),
        nn.Sequential(nn.Dropout(0.1), nn.Linear(512, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)),
        nn.Linear(512, 5, dtype=torch.float64),
    ],
)
def test_heads_of_plain_layers_come_back(tmp_path: Path, head: nn.Module) -> None:
    """Whatever plain layers a head is made of, they are built again on the base, with the same values."""
    model = resnet_with(head)
    freeze_except(model, "fc")
    save_delta(model, tmp_path / "d.safetensors")
    fresh = pretrained()
    load_delta(fresh, tmp_path / "d.safetensors")
    state = fresh.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_head_of_its_own_class_must_be_built_first(tmp_path: Path) -> None:
    """The error says so and leaves the base alone; with the head in place, the delta loads."""
    model = resnet_with(Odd())
    freeze_except(model, "fc")
    save_delta(model, tmp_path / "d.safetensors")
    fresh = pretrained()
    head = fresh.fc
    with pytest.raises(
        CheckpointError, match=r"a head that can't be built .*'fc.matrix'.*head included \(replace_head\)"
    ):
        load_delta(fresh, tmp_path / "d.safetensors")
    assert fresh.fc is head
    fresh.fc = Odd()
    load_delta(fresh, tmp_path / "d.safetensors")
    assert same_outputs(fresh, model)


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "levit_128s"])
def test_models_with_two_heads(tmp_path: Path, name: str) -> None:
    """All heads that replace_head makes come back, and the model's own count follows."""
    model = pretrained(name)
    freeze_except(model, replace_head(model, 6))
    save_delta(model, tmp_path / "d.safetensors")
    fresh = pretrained(name)
    load_delta(fresh, tmp_path / "d.safetensors")
    assert fresh.num_classes == 6
    assert all(map(torch.equal, fresh.state_dict().values(), model.state_dict().values()))


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    """The first weights of a head that is built are not drawn from the caller's generator."""
    model = resnet_with(nn.Linear(512, 5))
    freeze_except(model, "fc")
    save_delta(model, tmp_path / "d.safetensors")
    fresh = pretrained()
    before = torch.get_rng_state()
    load_delta(fresh, tmp_path / "d.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_base_that_changes_is_looked_at_again(tmp_path: Path) -> None:
    """A frozen weight that moves between two saves, even behind autograd's back, gives another base."""
    model = resnet_with(nn.Linear(512, 5))
    freeze_except(model, "fc")
    save_delta(model, tmp_path / "a.safetensors")
    model.conv1.weight.data.mul_(2)
    save_delta(model, tmp_path / "b.safetensors")
    fresh = pretrained()
    load_delta(fresh, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="other weights"):
        load_delta(pretrained(), tmp_path / "b.safetensors")


@pytest.mark.parametrize("kind", ["model", "dict", "file"])
def test_a_base_of_any_kind(tmp_path: Path, kind: str) -> None:
    """The base may be a model, a state dict or a file; without a difference there is no delta."""
    base = pretrained()
    save_weights(base, tmp_path / "base.safetensors")
    given = {"model": base, "dict": base.state_dict(), "file": tmp_path / "base.safetensors"}[kind]
    model = pretrained()
    with pytest.raises(CheckpointError, match="does not differ"):
        save_delta(model, tmp_path / "d.safetensors", base=given)
    with torch.no_grad():
        model.bn1.running_mean.add_(1)
    save_delta(model, tmp_path / "d.safetensors", base=given)
    fresh = pretrained()
    load_delta(fresh, tmp_path / "d.safetensors")
    assert same_outputs(fresh, model)
    with pytest.raises(CheckpointError, match="not a base of this model"):
        save_delta(model, tmp_path / "d.safetensors", base=nn.Linear(1, 1))


def test_nothing_trainable_asks_for_the_base(tmp_path: Path) -> None:
    """A wholly frozen model has no delta that anybody could know."""
    model = nn.Linear(2, 2).requires_grad_(False).eval()
    with pytest.raises(CheckpointError, match="pass base="):
        save_delta(model, tmp_path / "d.safetensors")


def test_a_delta_under_a_torch_name_is_refused(tmp_path: Path) -> None:
    """What reads files of that name could not read it."""
    with pytest.raises(CheckpointError, match=r"x\.pt should end in \.safetensors"):
        save_delta(nn.Linear(1, 1), tmp_path / "x.pt")
    assert not [*tmp_path.iterdir()]


# ---- what the recipient can't have


def with_random_head(seed: int) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 10))
    torch.manual_seed(seed)
    replace_head(model, 3)
    return model


def test_a_new_head_is_saved_though_it_is_frozen(tmp_path: Path) -> None:
    """Nobody else draws the same random weights."""
    tuned, fresh = with_random_head(1), with_random_head(2)
    freeze_except(tuned, "0.bias")
    save_delta(tuned, tmp_path / "delta.safetensors")
    load_delta(fresh, tmp_path / "delta.safetensors")
    assert torch.equal(fresh[2].weight, tuned[2].weight)


@pytest.mark.parametrize("head", [lambda width: nn.Linear(width, 3), nn.Sequential(nn.Dropout(), nn.Linear(16, 3))])
def test_so_is_a_head_of_ones_own(head: Any, tmp_path: Path) -> None:
    def build(seed: int) -> nn.Sequential:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 10))
        torch.manual_seed(seed)
        replace_head(model, copy.deepcopy(head))
        return model

    tuned, fresh = build(1), build(2)
    freeze_except(tuned, "0.bias")
    save_delta(copy.deepcopy(tuned), tmp_path / "delta.safetensors")
    load_delta(fresh, tmp_path / "delta.safetensors")
    assert all(torch.equal(*pair) for pair in zip(tuned.parameters(), fresh.parameters(), strict=True))


def rounded_average(model: nn.Module) -> AveragedModel:
    """An average that has run for a while, by the formula that rounds what never moves."""
    averaged = AveragedModel(model, avg_fn=lambda old, new, _: 0.999 * old + 0.001 * new)
    for _ in range(20):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += parameter.requires_grad * 0.01
        averaged.update_parameters(model)
    assert any(
        not torch.equal(old, new)
        for old, new in zip(model.parameters(), averaged.module.parameters(), strict=True)
        if not old.requires_grad
    )
    return averaged


def test_the_average_of_a_model_is_loaded_onto_the_same_base(tmp_path: Path) -> None:
    tuned, fresh = with_random_head(1), with_random_head(2)
    freeze_except(tuned, "2")
    before = copy.deepcopy(tuned)
    averaged = rounded_average(tuned)
    for ema in (averaged, averaged.module, averaged.state_dict()):
        save_delta(tuned, tmp_path / "delta.safetensors", ema=ema)
        load_delta(fresh, tmp_path / "delta.safetensors")
        assert torch.equal(fresh[2].weight, averaged.module[2].weight)
        assert torch.equal(fresh[0].weight, before[0].weight)
    for one in (averaged, timm.utils.ModelEmaV2(tuned), timm.utils.ModelEmaV3(tuned)):
        with pytest.raises(CheckpointError, match=r"is an average .* save_delta\(model, path, ema=averaged\)"):
            save_delta(one, tmp_path / "average.safetensors")
    with pytest.raises(CheckpointError, match=r"ema= is not an average of this model.*\[3, 16\]"):
        save_delta(tuned, tmp_path / "average.safetensors", ema=nn.Linear(2, 2))


def with_adapter(seed: int, **options: Any) -> Any:
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    torch.manual_seed(0)
    sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, intermediate_size=8))
    torch.manual_seed(seed)
    replace_head(model, 3)
    options = {"modules_to_save": ["classifier"], "init_lora_weights": False, **options}
    config = peft.LoraConfig(target_modules=["query"], **options)
    return peft.get_peft_model(model, config)


@pytest.mark.frameworks
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("marked", [True, False])
def test_an_adapter_with_a_new_head_is_loaded_by_others(marked: bool, tmp_path: Path) -> None:
    """Peft keeps the head as it was before training, random, beside the one that it trains."""
    tuned, fresh = with_adapter(1), with_adapter(2)
    if not marked:  # as where from_pretrained made the new head
        for module in tuned.modules():
            vars(module).pop("_ftkit_fresh", None)
    save_delta(tuned, tmp_path / "delta.safetensors")
    load_delta(fresh, tmp_path / "delta.safetensors")
    assert all(torch.equal(*pair) for pair in zip(tuned.parameters(), fresh.parameters(), strict=True))
    resumed = with_adapter(3)
    CheckpointManager(tmp_path / "run", delta=True).save(0, model=tuned)
    assert CheckpointManager(tmp_path / "run", delta=True).resume(model=resumed) == 1
    assert all(torch.equal(*pair) for pair in zip(tuned.parameters(), resumed.parameters(), strict=True))


@pytest.mark.frameworks
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize(
    ("setting", "other"), [("lora_alpha", 32), ("use_rslora", True), ("alpha_pattern", {"query": 32}), ("r", 4)]
)
@pytest.mark.parametrize("outer", [lambda model: model, lambda model: nn.ModuleDict({"model": model})])
def test_an_adapter_with_another_setting_is_refused(setting: str, other: Any, outer: Any, tmp_path: Path) -> None:
    """No tensor shows its scale, nor does the model around it; a checkpoint that is a delta tells it too."""
    tuned, fresh = outer(with_adapter(1, **{setting: other})), outer(with_adapter(2))
    save_delta(tuned, tmp_path / "delta.safetensors")
    save_checkpoint(tmp_path / "run.safetensors", model=tuned, delta=True)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    message = rf"delta comes from an adapter with other settings: {setting}={re.escape(repr(other))}, here"
    with pytest.raises(CheckpointError, match=message):
        load_delta(fresh, tmp_path / "delta.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "run.safetensors", model=fresh)
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())
    load_delta(outer(with_adapter(2, **{setting: other}, lora_dropout=0.5)), tmp_path / "delta.safetensors")


class Task(nn.Module):
    """What a framework has around a model: the model, and something of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)


def test_a_model_and_what_is_around_it(tmp_path: Path) -> None:
    """Data-parallel and compiled, they are the model; the deltas of others are loaded as they were saved."""
    tuned, path = with_random_head(1), tmp_path / "delta.safetensors"
    freeze_except(tuned, "2")
    for around in (nn.DataParallel, torch.compile):
        save_delta(around(tuned), path)
        fresh = with_random_head(2)
        load_delta(around(fresh), path)
        assert torch.equal(fresh[2].weight, tuned[2].weight)
    with pytest.raises(CheckpointError, match=r"holds as 'module': load_delta\(model.module, path\)"):
        load_delta(AveragedModel(with_random_head(2)), path)
    with pytest.raises(CheckpointError, match=r"holds as 'model': load_delta\(model.model, path\)"):
        load_delta(Task(with_random_head(2)), path)
    save_delta(Task(tuned), path)
    fresh = with_random_head(2)
    with pytest.raises(CheckpointError, match=r"holds the model as 'model'\..* save_delta\(outer.model, path\)"):
        load_delta(fresh, path)
    load_delta(Task(fresh), path)
    assert torch.equal(fresh[2].weight, tuned[2].weight)
