"""Rates follow the order in which data pass a model's layers, and that order survives in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.checkpoint import checkpoint

from ftkit import load_checkpoint, save_checkpoint
from ftkit._freezing.freeze import freeze_except, unfreeze
from ftkit._groups import last_blocks, param_groups, recipe
from ftkit._groups.layers import layers_of
from ftkit.errors import HeadError
from tests.groups import flow
from tests.groups.models import stack


def rates(model: nn.Module, **options: Any) -> dict[str, float]:
    groups = param_groups(model, 1.0, layer_decay=0.5, **options)
    return {name: group["lr"] for group in groups for name in group["param_names"]}


class HeadFirst(nn.Module):
    """A head of two layers that is registered before the body, as in XLM-RoBERTa."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.ModuleDict({"dense": nn.Linear(2, 2), "out_proj": nn.Linear(2, 3)})
        self.layer = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        self.embeddings = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embeddings(x)
        for layer in self.layer:
            x = layer(x)
        return self.classifier["out_proj"](self.classifier["dense"](x).tanh())


class Apart(nn.Module):
    """Attention and feed-forward layers in lists of their own, as in XLM."""

    def __init__(self) -> None:
        super().__init__()
        self.attentions, self.ffns = stack(4), stack(4)
        self.head = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for attention, ffn in zip(self.attentions, self.ffns, strict=True):
            x = ffn(attention(x))
        return self.head(x)


class Towers(nn.Module):
    """Two towers side by side under one head, as in CLIP."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.vision = stack(3), stack(5)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.text(x), self.vision(x)], 1))


class Checkpointed(nn.Module):
    """Blocks whose graph is made anew in the backward pass, or kept."""

    def __init__(self, *, reentrant: bool | None) -> None:
        super().__init__()
        self.fc, self.blocks, self.stem = nn.Linear(2, 3), stack(3), nn.Linear(2, 2)
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return self.fc(x)


@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_inside_checkpointing_are_seen(*, reentrant: bool) -> None:
    plain, model = Checkpointed(reentrant=None), Checkpointed(reentrant=reentrant)
    assert rates(model) == rates(plain)
    assert len(set(rates(model).values())) == 5
    assert last_blocks(model, 1) == last_blocks(plain, 1)
    model.stem(torch.ones(1, 2)).sum()
    model(torch.ones(1, 2, requires_grad=True)).sum().backward()  # checkpointing itself is as it was
    assert model.blocks[0].weight.grad is not None


class LateToken(nn.Module):
    """A token that joins above the first layers, as in CaiT; and a layer that all of them share."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 2))
        self.shared = nn.Linear(2, 2)
        self.layers = stack(4)
        self.head = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for place, layer in enumerate(self.layers):
            x = layer(x) + self.shared(x)
            if place == 1:
                x = x + self.token
        return self.head(x)


@pytest.mark.parametrize("build", [HeadFirst, Apart, Towers, LateToken])
def test_rates_rise_on_every_path(build: type[nn.Module]) -> None:
    """Nothing learns faster than what comes after it, whatever the order of registration."""
    model = build()
    before = flow.follow(model, (torch.zeros(2, 2),), {})
    assert set(before) == {name for name, _ in model.named_parameters()}
    found = rates(model)
    assert not flow.inverted(before, found)
    assert len(set(found.values())) > 3
    assert param_groups(model, 1.0, layer_decay=0.5).order == "executed"


class Pieces(nn.Module):
    """Blocks in lists beside each other, or each in a list of its own."""

    def __init__(self, *, beside: bool) -> None:
        super().__init__()
        kinds = nn.Linear, nn.LayerNorm, nn.Bilinear
        rows = [[nn.Linear(2, 2), nn.LayerNorm(2), nn.Bilinear(2, 2, 2)] for _ in range(4)]
        lists = zip(*rows, strict=True) if beside else rows
        self.lists = nn.ModuleList(map(nn.ModuleList, lists)) if not beside else None
        for kind, one in zip(kinds, lists, strict=True) if beside else ():
            self.add_module(kind.__name__.lower(), nn.ModuleList(one))
        self.head = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.lists or zip(self.linear, self.layernorm, self.bilinear, strict=True)
        for linear, norm, bilinear in rows:
            x = norm(linear(x))
            x = x + bilinear(x, x)
        return self.head(x)


@pytest.mark.parametrize("beside", [False, True])
def test_a_block_in_pieces_is_one_layer(*, beside: bool) -> None:
    """Depth counts blocks, however they are registered."""
    model = Pieces(beside=beside)
    found = rates(model)
    assert sorted(set(found.values())) == [0.5**4, 0.5**3, 0.5**2, 0.5, 1]
    assert not flow.inverted(flow.follow(model, (torch.zeros(2, 2),), {}), found)


def test_a_head_that_is_registered_first_is_on_top() -> None:
    """The dense layer in it comes right below the output layer."""
    found = rates(HeadFirst())
    assert (found["classifier.out_proj.weight"], found["classifier.dense.weight"]) == (1.0, 0.5)
    assert found["embeddings.weight"] == 0.5**5
    assert last_blocks(HeadFirst(), 1) == ["classifier"]


def test_towers_lie_side_by_side() -> None:
    """Layers at the same distance from the head have the same rate."""
    found = rates(Towers())
    assert [found[f"text.{place}.weight"] for place in range(3)] == [0.125, 0.25, 0.5]
    assert [found[f"vision.{place}.weight"] for place in range(5)] == [0.5**5, 0.5**4, 0.125, 0.25, 0.5]


class Unknowable(HeadFirst):
    """What it takes can't be made up."""

    def forward(self, x: dict[str, torch.Tensor]) -> torch.Tensor:
        return super().forward(x["only I know"])


def test_a_model_that_does_not_run_keeps_the_order_of_registration() -> None:
    """The report says so; with example inputs it runs. Inputs that it can't take are an error."""
    model = Unknowable()
    groups = param_groups(model, 1.0, layer_decay=0.5)
    assert groups.order == "registered"
    assert "as the model registers its parts (the model could not be run" in " ".join(repr(groups).split())
    assert rates(model)["classifier.dense.weight"] < rates(model)["embeddings.weight"]
    given = ({"only I know": torch.zeros(2, 2)},)
    assert rates(model, example_inputs=given) == rates(HeadFirst())
    assert last_blocks(model, 1, example_inputs=given) == ["classifier"]
    for call in (
        lambda: rates(model, example_inputs=torch.zeros(2)),
        lambda: last_blocks(model, 1, example_inputs=(1,)),
    ):
        with pytest.raises(HeadError, match="does not run on the example_inputs"):
            call()


def test_the_report_says_which_order_was_used() -> None:
    """As text, as plain values, and for a model of timm that declares its layers."""
    groups = param_groups(Towers(), 1.0, layer_decay=0.5)
    assert "order: as the model runs" in repr(groups)
    assert json.loads(groups.to_json())["order"] == "executed"
    assert json.loads(groups.to_json())["groups"][-1]["lr"] == 1.0
    with torch.device("meta"):
        model = timm.create_model("test_resnet")
    assert "as the model declares it" in repr(param_groups(model, 1.0, layer_decay=0.5))
    assert param_groups(Towers(), 1.0).order == "registered"


@pytest.mark.parametrize(
    "name",
    [
        "resnet50d",
        "ecaresnet50t",
        "vit_base_patch16_224_miil",
        "vit_base_patch16_rpn_224",
        "beit_base_patch16_224",
        "eva02_tiny_patch14_224",
        "vit_base_r50_s16_224",
        "regnetx_002",
    ],
)
def test_groups_are_those_that_timm_makes(name: str) -> None:
    """Deep stems, average pooling, relative positions, a hybrid: as the model declares it."""
    with torch.device("meta"):
        try:
            model = timm.create_model(name)
        except NotImplementedError as error:  # torch 2.6 lacks an operator of regnets for it
            pytest.skip(f"This torch can't build it on the meta device: {error}")
    oracle = {
        id(parameter): group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=0.5)
        for parameter in group["params"]
    }
    groups = param_groups(model, 1.0, layer_decay=0.5)
    assert groups.order == "declared"
    assert {id(parameter): group["lr"] for group in groups for parameter in group["params"]} == oracle


def test_a_declaration_that_a_run_contradicts_is_not_believed() -> None:
    """Timm counts CaiT's class token as part of the stem, and it joins after the last block."""
    with torch.device("meta"):
        model = timm.create_model("cait_xxs24_224")
    groups = param_groups(model, 1.0, layer_decay=0.5)
    found = {name: group["lr"] for group in groups for name in group["param_names"]}
    assert groups.order == "executed"
    assert found["cls_token"] >= found["blocks.23.gamma_1"] > found["blocks.0.gamma_1"]


def test_looking_changes_nothing() -> None:
    """Buffers, modes, gradients, hooks and random numbers are as before."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(), HeadFirst())
    model[1].eval()
    model[0].register_forward_hook(lambda *_: pytest.fail("the user's hook ran"))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    facts = [(m.training, len(m._forward_hooks), [p.requires_grad for p in m.parameters()]) for m in model.modules()]
    random = torch.get_rng_state()
    rates(model)
    last_blocks(model, 1)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert facts == [
        (m.training, len(m._forward_hooks), [p.requires_grad for p in m.parameters()]) for m in model.modules()
    ]


class Around(nn.Module):
    """A wrapper that answers for the model inside it, and has a layer that takes no part."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.head, self.inner, self.idle = nn.Linear(3, 5), inner, nn.Linear(2, 2)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(x))


def test_a_wrapper_does_not_pass_for_what_it_wraps() -> None:
    """The layers that a model of timm declares have other names from outside. What does not run is not on top."""
    with torch.device("meta"):
        model = Around(timm.create_model("test_resnet", num_classes=3))
    groups = param_groups(model, 1.0, layer_decay=0.5)
    found = {name: group["lr"] for group in groups for name in group["param_names"]}
    assert groups.order == "executed"
    assert found["head.weight"] == 1.0
    assert found["inner.fc.weight"] == found["idle.weight"] == 0.5
    assert len(set(found.values())) > 5


# ---- in files, and for what joins later


def test_newcomers_need_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The groups carry the layers, as plain JSON, so a thaw gives the same rates where no run is possible."""
    model = Unknowable()
    wanted = rates(model, example_inputs=({"only I know": torch.zeros(2, 2)},))
    freeze_except(model, "classifier")
    groups = param_groups(model, 1.0, layer_decay=0.5, example_inputs=({"only I know": torch.zeros(2, 2)},))
    assert json.loads(json.dumps(groups[0]["recipe"])) == groups[0]["recipe"]
    optimizer = torch.optim.SGD(groups)
    monkeypatch.setattr(recipe, "order_of", lambda *_: pytest.fail("the model was run"))
    unfreeze(model, optimizer=optimizer)
    found = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: found[id(p)] for name, p in model.named_parameters()} == wanted


def test_what_is_new_in_the_model_goes_with_what_stands_before_it() -> None:
    """An adapter that was put in after the groups were made gets a rate all the same."""
    model = HeadFirst()
    freeze_except(model, "classifier")
    optimizer = torch.optim.SGD(param_groups(model, 1.0, layer_decay=0.5))
    model.layer[1].adapter = nn.Linear(2, 2)
    unfreeze(model, "layer.1", optimizer=optimizer)
    found = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert found[id(model.layer[1].adapter.weight)] == found[id(model.layer[1].weight)] == 0.125


def test_where_both_orders_agree_the_groups_are_those_of_older_versions() -> None:
    """Nothing is added to what is stored."""
    assert "layers" not in param_groups(stack(), 1.0, layer_decay=0.5)[0]["recipe"]
    assert "layers" not in param_groups(HeadFirst(), 1.0)[0]["recipe"]


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_groups_in_a_file_of_an_older_version_stay_as_they_were(suffix: str, tmp_path: Path) -> None:
    """They have the order of registration: what resumes, and what joins afterwards, goes on in it."""

    def start(*, old: bool) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        torch.manual_seed(0)
        model = HeadFirst()
        freeze_except(model, "classifier", "layer.2")
        groups: list[dict[str, Any]] = param_groups(model, 0.1, layer_decay=0.5)
        if old:
            plain = recipe.Recipe(lr=0.1, weight_decay=0.0, layer_decay=0.5, rates=[])
            trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
            groups = recipe.arrange(model, trained, plain)
        optimizer = torch.optim.AdamW(groups)
        return model, optimizer, lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        optimizer.zero_grad()
        model(torch.ones(3, 2)).square().sum().backward()
        optimizer.step()
        scheduler.step()

    def ends(run: tuple[nn.Module, torch.optim.Optimizer, Any]) -> tuple[dict[str, float], list[torch.Tensor]]:
        model, optimizer, scheduler = run
        step(*run)
        unfreeze(model, "layer.1", optimizer=optimizer, scheduler=scheduler)
        step(*run)
        of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        return {n: of[id(p)] for n, p in model.named_parameters() if id(p) in of}, list(model.parameters())

    run = start(old=True)
    step(*run)
    path = tmp_path / f"old.{suffix}"
    save_checkpoint(path, model=run[0], optimizer=run[1], scheduler=run[2], epoch=0)
    wanted, weights = ends(run)
    assert wanted["classifier.dense.weight"] < wanted["layer.1.weight"]
    resumed = start(old=False)
    load_checkpoint(path, model=resumed[0], optimizer=resumed[1], scheduler=resumed[2])
    found, its_weights = ends(resumed)
    assert found == wanted
    assert all(map(torch.equal, its_weights, weights))


def test_names_of_layers_that_are_in_a_row_only_for_new_groups() -> None:
    """A stage that holds its blocks under names of its own is several layers now, and one in older files."""

    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b1, self.b2 = (nn.TransformerEncoderLayer(2, 1, 4, batch_first=True) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b2(self.b1(x))

    model = nn.Sequential(nn.Linear(2, 2), Stage(), Stage(), Stage(), nn.Linear(2, 3))
    assert len(layers_of(model)) == 5
    assert len({*rates(model).values()}) == 8
    assert last_blocks(model, 2) == ["3", "4"]
    assert last_blocks(model, 3) == ["2.b2", "3", "4"]
