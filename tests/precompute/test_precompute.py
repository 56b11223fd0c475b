"""What is frozen is computed once: the same outputs, gradients and weights as without, to the bit."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ftkit import FtkitError, freeze, freeze_except, precompute, unfreeze
from ftkit._models.dryrun import alone
from tests.precompute.loops import same, train


def small() -> nn.Module:
    """A network with a norm and Dropout in its frozen part."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(0.5))
    model = nn.Sequential(body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(32, 3))
    freeze_except(model, "4")
    return model


def images(count: int = 24, side: int = 8) -> TensorDataset:
    """Noise with labels."""
    torch.manual_seed(1)
    return TensorDataset(torch.randn(count, 3, side, side), torch.randint(0, 3, (count,)))


def test_a_model_is_looked_at_when_no_other_thread_has_its_turn(tmp_path: Path) -> None:
    """Until then it may be in another state, as while summary() runs it on tensors without data."""
    model, has_turn = small(), threading.Event()

    def changed_for_a_while() -> None:
        with alone():
            model.requires_grad_(True)
            has_turn.set()
            time.sleep(0.2)
            freeze_except(model, "4")

    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(changed_for_a_while)
        has_turn.wait()
        assert precompute(model, images(), tmp_path).skipped == ["0"]
        there.result()


@pytest.mark.parametrize(
    ("name", "last_stage"),
    [
        ("resnet18", True),
        pytest.param("resnet18", False, marks=pytest.mark.slow),
        pytest.param("vit_tiny_patch16_224", True, marks=pytest.mark.slow),
        pytest.param("efficientnet_lite0", True, marks=pytest.mark.slow),
        pytest.param("efficientnet_lite0", False, marks=pytest.mark.slow),
    ],
)
def test_training_ends_with_the_same_weights(name: str, last_stage: bool, tmp_path: Path) -> None:
    """The head alone, or the last stage too."""
    torch.manual_seed(0)
    options = {"img_size": 32} if "vit" in name else {}
    model = timm.create_model(name, num_classes=3, **options)
    freeze_except(model, model.get_classifier())
    if last_stage:
        unfreeze(model, {"r": "layer4", "v": "blocks.11", "e": "blocks.6"}[name[0]])
    data, plain = images(8, 32), copy.deepcopy(model)
    before = copy.deepcopy(model.state_dict())
    cached = precompute(model, data, tmp_path, batch_size=4)
    assert same(model.state_dict(), before)
    with cached:
        trained = train(model, cached.loader(batch_size=4, shuffle=True))
    assert same(trained, train(plain, DataLoader(data, batch_size=4, shuffle=True)))
    assert cached.share is not None
    assert cached.share > 0.5


def test_evaluation_takes_rows_too(tmp_path: Path) -> None:
    """In eval mode, and plain inputs pass through as before."""
    model, data = small(), images()
    with precompute(model, data, tmp_path, batch_size=8) as cached:
        model.eval()
        for (rows, labels), (inputs, plain) in zip(cached.loader(batch_size=8), DataLoader(data, 8), strict=True):
            assert torch.equal(labels, plain)
            assert torch.equal(model(rows), model(inputs))
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("by_content", [False, True])
def test_the_file_stays_where_it_is(by_content: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the process goes, in processes of a loader too."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    model, data = small(), images()
    plain = DataLoader(data, 8)
    cached = precompute(model, plain if by_content else data, "frozen")
    monkeypatch.chdir(tmp_path / "elsewhere")
    with cached:
        for inputs, _ in plain if by_content else cached.loader(batch_size=8, num_workers=1):
            model(inputs)
    assert not list((tmp_path / "elsewhere").iterdir())
    assert precompute(model, data, tmp_path / "frozen").computed == (24 if by_content else 0)


def test_the_second_call_computes_nothing(tmp_path: Path) -> None:
    """Nor one in which everything but a sample is the same computes more than that."""
    model, data = small(), images()
    assert precompute(model, data, tmp_path).computed == 24
    assert precompute(model, data, tmp_path).computed == 0
    data.tensors[0][5] += 1
    changed = precompute(model, data, tmp_path)
    assert changed.computed == 1
    with changed:
        rows, _ = next(iter(changed.loader(batch_size=24)))
        model.eval()
        assert torch.allclose(model(rows), model(data.tensors[0]))


class Own(Dataset[Any]):
    """A data set of a class that could take its samples from anywhere."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs, self.reads = inputs, 0

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        return {"0": self.inputs[index], "label": index % 3}


class Named(nn.Module):
    """Takes its input by a name."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, label: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(self.body(x).relu())
        return {"logits": logits} if label is None else {"loss": nn.functional.cross_entropy(logits, label % 2)}


def test_a_data_set_of_an_unknown_class_is_read_to_see_whether_it_changed(tmp_path: Path) -> None:
    """And only what is new is computed."""

    class Dicts(Own):
        def __getitem__(self, index: int) -> Any:
            return {"x": self.inputs[index], "label": index % 3}

    model, data = Named(), Dicts(torch.randn(12, 4))
    freeze(model, "body")
    assert precompute(model, data, tmp_path).computed == 12
    assert precompute(model, data, tmp_path).computed == 0
    data.inputs[3] += 1
    cached = precompute(model, data, tmp_path)
    assert cached.computed == 1
    with cached:
        batch = next(iter(cached.loader(batch_size=12)))
        assert batch.keys() == {"x", "label"}
        labels = torch.arange(12) % 3
        assert torch.allclose(model(**batch)["loss"], model(data.inputs, labels)["loss"])


def test_weights_that_changed_are_noticed(tmp_path: Path) -> None:
    """In the step after, and when the rows are asked for."""
    model, data = small(), images()
    cached = precompute(model, data, tmp_path)
    rows, _ = next(iter(cached.loader(batch_size=4)))
    with cached:
        model(rows)
        with torch.no_grad():
            model[0][0].weight.mul_(2)
        with pytest.raises(FtkitError, match=r"0\.0\.weight changed since"):
            model(rows)
    with pytest.raises(FtkitError, match="changed since"):
        cached.loader()
    with pytest.raises(FtkitError, match="changed since"), cached:
        pass
    again = precompute(model, data, tmp_path)
    assert again.computed == 24
    with again, pytest.raises(FtkitError, match="another state"):
        model(rows)


def test_unfreezing_past_the_frontier_is_noticed(tmp_path: Path) -> None:
    """What trains now was computed as a constant."""
    model, data = small(), images()
    with precompute(model, data, tmp_path) as cached:
        rows, _ = next(iter(cached.loader(batch_size=4)))
        unfreeze(model, "0")
        with pytest.raises(FtkitError, match="unfrozen past the frontier"):
            model(rows)


def test_a_data_set_that_changed_is_noticed(tmp_path: Path) -> None:
    """By the loader."""
    model, data = small(), images()
    cached = precompute(model, data, tmp_path)
    data.tensors[0][0] += 1
    with pytest.raises(FtkitError, match="data set has changed"):
        cached.loader()
    with pytest.raises(FtkitError, match="data set has changed"):
        _ = cached.dataset


def test_random_transforms_are_refused(tmp_path: Path) -> None:
    """Whatever they draw from."""

    class Noisy(Own):
        def __getitem__(self, index: int) -> Any:
            return self.inputs[index] + torch.randn(()), 0

    with pytest.raises(FtkitError, match="drawn at random"):
        precompute(small(), Noisy(torch.randn(4, 3, 8, 8)), tmp_path)


def test_what_is_not_constant_is_refused_by_name(tmp_path: Path) -> None:
    """Weights without gradient alone don't make a norm or Dropout constant."""
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).requires_grad_(False)
    model = nn.Sequential(body, nn.Flatten(), nn.Linear(288, 3))
    cached = precompute(model, images(), tmp_path)
    assert cached.skipped == ["0.0"]
    assert cached.not_skipped == {"0.1": "it updates 0.1.num_batches_tracked"}
    model[0][0].requires_grad_(True)
    with pytest.raises(FtkitError, match=r"0\.1: it updates 0\.1\.num_batches_tracked"):
        precompute(model, images(), tmp_path)


class Mixing(nn.Module):
    """Subtracts the mean of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.mixing, self.after = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.mixing.forward = self.mixed  # type: ignore[method-assign]
        self.head = nn.Linear(4, 2)

    def mixed(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x - x.mean(0), self.mixing.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.after(self.mixing(self.before(x))))


def test_what_mixes_samples_runs_as_before(tmp_path: Path) -> None:
    """And so does what comes behind it."""
    model = Mixing()
    freeze_except(model, "head")
    data = TensorDataset(torch.randn(12, 4), torch.arange(12))
    with precompute(model, data, tmp_path, batch_size=5) as cached:
        assert cached.skipped == ["before"]
        assert "samples" in cached.not_skipped["mixing"]
        for (rows, _), (inputs, _) in zip(cached.loader(batch_size=5), DataLoader(data, 5), strict=True):
            assert torch.equal(model(rows), model(inputs))


def test_autocast_belongs_to_what_is_kept(tmp_path: Path) -> None:
    """Rows that were computed without are refused with it."""
    model, data = small(), images()
    cached = precompute(model, data, tmp_path)
    rows, _ = next(iter(cached.loader(batch_size=8)))
    with cached, torch.autocast("cpu", torch.bfloat16), pytest.raises(FtkitError, match="Autocast differs"):
        model(rows)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = precompute(model, data, tmp_path, batch_size=8)
        model.eval()
        with mixed:
            rows, _ = next(iter(mixed.loader(batch_size=8)))
            assert torch.equal(model(rows), model(data.tensors[0][:8]))


@pytest.mark.filterwarnings("ignore:There are hooks")
def test_frozen_modules_with_hooks_run(tmp_path: Path) -> None:
    """Someone may look."""
    model, seen = small(), []
    model[0][1].register_forward_hook(lambda *_: seen.append(1))
    cached = precompute(model, images(), tmp_path)
    assert cached.skipped == ["0.0"]
    assert "hooks" in cached.not_skipped["0.1"]
    seen.clear()
    with cached:
        model(next(iter(cached.loader()))[0])
    assert seen == [1]


def test_copies_and_pickles_are_free_of_it(tmp_path: Path) -> None:
    """A copy for averaging, made in the block, runs whole."""
    model, data = small(), images()
    model.eval()
    with precompute(model, data, tmp_path) as cached:
        twin = copy.deepcopy(model)
        assert torch.equal(twin(data.tensors[0]), model(data.tensors[0]))
        with pytest.raises(FtkitError, match="copy of the model"):
            twin(next(iter(cached.loader(batch_size=4)))[0])
        torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(loaded(data.tensors[0]), model(data.tensors[0]))


@pytest.mark.filterwarnings("ignore:There are hooks")
def test_an_exception_in_the_block_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    """And so does one in the model."""
    model, data = small(), images()
    cached = precompute(model, data, tmp_path)
    with pytest.raises(ZeroDivisionError), cached:
        1 / 0  # noqa: B018
    handle = model[4].register_forward_pre_hook(lambda *_: 1 / 0)
    with cached:
        rows, _ = next(iter(cached.loader(batch_size=4)))
        with pytest.raises(ZeroDivisionError):
            model(rows)
        handle.remove()
        model(rows)
        model(data.tensors[0])
    assert not any("forward" in vars(module) for module in model.modules())
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


@pytest.mark.parametrize("case", ["plain", "autocast", "hooked"])
def test_where_only_the_head_is_left_it_is_called_at_once(case: str, tmp_path: Path) -> None:
    """Unless something on the way, or around it, counts."""

    class Around(Named):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            features = self.body(x).relu()
            with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
                return self.head(features)

    model, data = Around(), TensorDataset(torch.randn(8, 4), torch.arange(8))
    model.between = nn.Identity()
    freeze(model, "body")
    with precompute(model, data, tmp_path, batch_size=8) as cached:
        rows = next(iter(cached.loader(batch_size=8)))[0]
        model(rows)
        if case == "hooked":
            model.body.register_forward_hook(lambda *_: None)
            with pytest.raises(FtkitError, match="hooks"):
                model(rows)
            return
        ours = model(rows)
        assert (cached._player.cut.tail is not None) == (case == "plain")
        theirs = model(data.tensors[0])
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore:.*jit.script:FutureWarning")
def test_a_head_that_is_scripted(tmp_path: Path) -> None:
    """Whose attributes are elsewhere."""

    def scripted() -> nn.Module:
        model = small()
        model[-1] = torch.jit.script(model[-1])  # type: ignore[index,operator,no-untyped-call]
        freeze_except(model, str(len(model) - 1))  # type: ignore[arg-type]
        return model

    data = images()
    plain = train(scripted(), DataLoader(data, 8))
    model = scripted()
    with precompute(model, data, tmp_path) as cached:
        assert same(train(model, cached.loader(batch_size=8)), plain)


class Counted(nn.Module):
    """A head that is called in one way or another, as the size of the batch and the modes are."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.way = nn.Linear(4, 6), Divided(), way
        freeze_except(self, "head")

    def forward(self, x: Tensor) -> Any:
        if self.way == "before":
            whole = self.body(x)
            return self.head((whole.mul_(2) if len(x) > 6 else whole), width=6)
        half = self.body(x)[:, :3]  # which is kept on its way into the head, as that takes it twice
        if self.way == "size":
            return self.head(half, len(x))
        if self.way == "shape":
            return self.head(half, n=x.shape)
        if self.way == "gradients":
            return self.head(half, 2.0 if torch.is_grad_enabled() else 1.0)
        if self.way == "mode":
            return self.head(half, 2.0 if self.training else 1.0)
        if self.way == "dict":
            return self.head(half, {})
        scores = self.head(half)
        if self.way == "after" and len(x) > 6:
            scores.mul_(2)
        return scores * 2 if self.way == "instead" and len(x) > 6 else scores


class Divided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.wide = nn.Linear(3, 5), nn.Linear(3, 5), nn.Linear(6, 5)

    def forward(self, x: Tensor, n: Any = 1, width: int = 3) -> Tensor:
        if width == 6:
            return self.wide(x)  # type: ignore[no-any-return]
        if isinstance(n, dict):
            n["calls"] = n.get("calls", 0) + 1
            n = n["calls"]
        scores: Tensor = (self.one(x) + self.other(x).tanh()) / (n[0] if isinstance(n, tuple) else n)
        return scores


@pytest.mark.parametrize("way", ["size", "shape", "gradients", "mode", "dict", "after", "instead"])
def test_a_head_is_called_as_it_would_be(way: str, tmp_path: Path) -> None:
    """Whatever it gets beside tensors, and whatever is done with what it gives."""
    model, data = Counted(way), TensorDataset(torch.randn(8, 4), torch.arange(8))
    with precompute(model, data, tmp_path) as cached:
        for train_mode, gradients in ((True, True), (True, False), (False, False), (False, True)):
            model.train(train_mode)
            for size in (8, 8, 4, 4, 8):
                for rows, labels in cached.loader(batch_size=size):
                    with torch.set_grad_enabled(gradients):
                        assert torch.allclose(model(rows), model(data.tensors[0][labels]), atol=1e-6)


def test_what_is_kept_is_changed_in_large_batches(tmp_path: Path) -> None:
    """It depends on the batch, which is an error; the way to the head is not learned from such a one."""
    model, data = Counted("before"), TensorDataset(torch.randn(8, 4), torch.arange(8))
    with precompute(model, data, tmp_path, batch_size=4) as cached:
        for rows, labels in cached.loader(batch_size=4):
            assert torch.allclose(model(rows), model(data.tensors[0][labels]), atol=1e-6)
        rows, _ = next(iter(cached.loader(batch_size=8)))
        for _ in range(2):
            with pytest.raises(FtkitError, match="was computed anew"):
                model(rows)
        assert not any(kind[0] == 8 for kind in cached._player._straight_calls)


def test_two_data_sets_of_one_model(tmp_path: Path) -> None:
    """Training and validation, in one folder and one block."""
    model, data, other = small(), images(), images(9)
    ours, theirs = precompute(model, data, tmp_path), precompute(model, other, tmp_path)
    model.eval()
    with ours, theirs:
        assert torch.allclose(model(next(iter(ours.loader(batch_size=24)))[0]), model(data.tensors[0]))
        assert torch.allclose(model(next(iter(theirs.loader(batch_size=9)))[0]), model(other.tensors[0]))


@pytest.mark.parametrize("dicts", [False, True])
def test_a_batch_read_at_once_is_what_torch_collates(dicts: bool, tmp_path: Path) -> None:
    """Numbers, tensors, arrays and scalars; and each row is checked."""
    samples: list[Any] = [
        (
            torch.randn(4),
            at,
            at / 3,
            at % 2 == 0,
            torch.tensor([at, -at]),
            np.float32(at),
            np.full((2, 3), at),
            torch.zeros(0, 4),
        )
        for at in range(12)
    ]
    names = "x", "label", "part", "even", "pair", "scalar", "array", "nothing"
    samples = [dict(zip(names, one, strict=True)) for one in samples] if dicts else samples
    model = Named()
    freeze(model, "body")
    cached = precompute(model, samples, tmp_path)
    order = [[3, 0, 11], [5, 5], [-1]]
    ours = cached.loader(batch_sampler=order)
    plain = DataLoader(cached.dataset, batch_sampler=order)
    for one, other in zip(ours, plain, strict=True):
        values, others = (list(each.values()) if dicts else each for each in (one, other))
        assert type(values[0]) is Tensor
        assert len(values) == len(others) == 8
        for value, wanted in zip(values, others, strict=True):
            assert value.dtype == wanted.dtype
            assert torch.equal(value, wanted)
    with pytest.raises(TypeError, match="float"):
        next(iter(cached.loader(sampler=[1.9, 2.9])))
    assert cached.loader(batch_size=None).batch_size is None
    assert isinstance(next(iter(cached.loader(batch_size=2, collate_fn=list))), list)


@pytest.mark.slow
def test_workers_read_it(tmp_path: Path) -> None:
    """Spawned ones, which get it as a pickle."""
    model, data = small(), images()
    cached = precompute(model, data, tmp_path)
    loader = cached.loader(batch_size=8, num_workers=1, multiprocessing_context="spawn")
    alone = cached.loader(batch_size=8)
    assert all(torch.equal(one[0], other[0]) for one, other in zip(loader, alone, strict=True))


def test_checkpointing_over_the_frontier_is_refused(tmp_path: Path) -> None:
    """It computes a part of the forward pass once more, without rows."""

    class Checkpointed(Named):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return torch.utils.checkpoint.checkpoint(
                lambda y: self.head(self.body(y).relu()) * 2, x, use_reentrant=False
            )

    model, data = Checkpointed(), TensorDataset(torch.randn(8, 4), torch.arange(8))
    freeze(model, "body")
    with pytest.raises(FtkitError, match="checkpointing"):
        precompute(model, data, tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda kwargs: kwargs.update(model=3), "Expected a module"),
        (lambda kwargs: kwargs.update(dataset=[torch.ones(3)]), "fewer than 2"),
        (lambda kwargs: kwargs.update(dataset=3), "map-style"),
        (lambda kwargs: kwargs.update(max_bytes=10), "more than max_bytes"),
        (lambda kwargs: kwargs.update(batch_size=0), "batch_size"),
        (lambda kwargs: kwargs.update(folder="s3://x"), "URL"),
        (lambda kwargs: kwargs.update(model=nn.Linear(2, 2)), "Nothing in the model is frozen"),
        (lambda kwargs: kwargs.update(model=nn.Linear(2, 2).requires_grad_(False)), "All of the model is frozen"),
    ],
)
def test_mistakes(change: Any, said: str, tmp_path: Path) -> None:
    """Each says what to do."""
    kwargs: dict[str, Any] = {"model": small(), "dataset": images(), "folder": tmp_path / "f"}
    change(kwargs)
    with pytest.raises(FtkitError, match=said):
        precompute(**kwargs)


def test_a_misspelled_option_of_the_loader(tmp_path: Path) -> None:
    """Is met with the closest."""
    cached = precompute(small(), images(), tmp_path)
    with pytest.raises(FtkitError, match="'batch_size'"):
        cached.loader(batchsize=3)


def test_the_report(tmp_path: Path) -> None:
    """Where the cut is, what is kept, what it saves."""
    cached = precompute(torchvision_head(), images(4, 32), tmp_path)
    text = repr(cached)
    assert "into fc" in text
    assert "4 samples" in text
    assert cached.to_dict()["samples"] == 4


def torchvision_head() -> nn.Module:
    model = torchvision.models.resnet18(num_classes=3)
    freeze_except(model, "fc")
    return model


def test_a_block_that_was_refused_can_be_entered_later(tmp_path: Path) -> None:
    """Once what had changed is as it was."""
    model = small()
    cached = precompute(model, images(), tmp_path)
    weight = model[0][0].weight
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(FtkitError, match="changed since"), cached:
        pass
    with torch.no_grad():
        weight.div_(2)
    with cached:
        rows, _ = next(iter(cached.loader(batch_size=6)))
        assert model(rows).shape == (6, 3)


class Inside(nn.Module):
    """A part of its own, and a head."""

    def __init__(self, part: nn.Module, act: nn.Module | None = None, head: nn.Module | None = None) -> None:
        super().__init__()
        self.part, self.act, self.head = part, act or nn.ReLU(), head or nn.Linear(8, 3)
        freeze_except(self, "head")

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.part(x)))


SIX = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_a_frozen_part_that_jit_has_compiled_is_named(how: str, tmp_path: Path) -> None:
    """And what to do about it; what jit has compiled beside it may stay."""
    make = torch.jit.script if how == "script" else lambda one: torch.jit.trace(one, SIX[:, : one[0].in_features])
    data = TensorDataset(SIX, torch.arange(12))
    model = Inside(make(nn.Sequential(nn.Linear(6, 8), nn.ReLU())))
    with pytest.raises(FtkitError, match=r"part is compiled by torch\.jit.* Put the module that it was made from"):
        precompute(model, data, tmp_path)
    model = Inside(nn.Linear(6, 8), torch.jit.script(nn.ReLU()), torch.jit.script(nn.Sequential(nn.Linear(8, 3))))
    with precompute(model, data, tmp_path, batch_size=12) as cached:
        (rows, _) = next(iter(cached.loader(batch_size=12)))
        assert torch.equal(model(rows), copy.deepcopy(model)(SIX))


def test_a_part_that_writes_to_its_input_can_be_computed_once(tmp_path: Path) -> None:
    """A batch is another one each time, and so are those that are tried."""

    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.mul_(2))

    class Outer(Inside):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.add_(1))

    for model in (Inside(Writes()), Outer(nn.Linear(6, 8))):
        with precompute(model, TensorDataset(SIX, torch.arange(12)), tmp_path, batch_size=12) as cached:
            (rows, _) = next(iter(cached.loader(batch_size=12)))
            assert torch.equal(model(rows), copy.deepcopy(model)(SIX.clone()))


def test_the_model_s_own_parameter_is_named_that_trains_first(tmp_path: Path) -> None:
    """Not only those of the modules that it calls."""

    class Query(Inside):
        def __init__(self) -> None:
            super().__init__(nn.Linear(6, 8))
            self.query = nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * self.query)

    with pytest.raises(FtkitError, match=r"depends on what trains, first on query or head\.weight"):
        precompute(Query(), TensorDataset(SIX, torch.arange(12)), tmp_path)


def test_images_of_pillow_do_not_draw_at_random(tmp_path: Path) -> None:
    """The model takes tensors, though."""
    images = [(Image.new("L", (3, 2), at), at) for at in range(6)]
    with pytest.raises(FtkitError, match=r"can't put these samples into one batch.*PIL"):
        precompute(Inside(nn.Linear(6, 8)), images, tmp_path)


def test_samples_of_several_sizes_in_a_list(tmp_path: Path) -> None:
    """As loaders for detection give them."""

    class Loader:
        def __iter__(self) -> Iterator[Any]:
            return iter([([SIX[:1], SIX[:3], SIX[:2]], torch.arange(3))])

    with pytest.raises(FtkitError, match=r"tensors of \[1, 6\], \[3, 6\], \[2, 6\]\..* padded or cropped"):
        precompute(Inside(nn.Linear(6, 8)), Loader(), tmp_path)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_an_encoder_that_makes_nested_tensors_says_what_to_do(tmp_path: Path) -> None:
    """It does for speed, where it is frozen and gets a mask."""

    class Encoder(Inside):
        def __init__(self, nested: bool) -> None:
            layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
            super().__init__(nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested), head=nn.Linear(6, 3))

        def forward(self, x: Tensor) -> Tensor:
            padded = torch.arange(4) >= 2 + (x[:, :1, 0] > 0).long()
            return self.head(self.part(x, src_key_padding_mask=padded).mean(1))

    torch.manual_seed(0)
    data = TensorDataset(torch.randn(12, 4, 6), torch.arange(12))
    with pytest.raises(FtkitError, match=r"nested tensors.* enable_nested_tensor=False"):
        precompute(Encoder(nested=True), data, tmp_path)
    assert precompute(Encoder(nested=False), data, tmp_path).skipped == ["part"]


class Fails(nn.Module):
    """Takes batches of four, and says nothing about that."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 4), nn.Linear(4, 2)
        freeze_except(self, "head")

    def forward(self, x: Tensor) -> Tensor:
        if len(x) % 4:
            raise AssertionError
        scores: Tensor = self.head(self.body(x))
        return scores


@pytest.mark.parametrize(("size", "by_content"), [(4, True), (3, True), (4, False)])
def test_an_error_without_words_is_named(size: int, by_content: bool, tmp_path: Path) -> None:
    """And so is a size of batches that is not the loader's."""
    dataset: Any = TensorDataset(torch.randn(9, 8), torch.arange(9) % 2)
    with pytest.raises(FtkitError, match=r"fails on a batch of 3 samples: AssertionError\. The model gets") as caught:
        precompute(Fails(), DataLoader(dataset, size) if by_content else dataset, tmp_path)
    assert ("The loader's batches have 4 samples" in str(caught.value)) == (by_content and size == 4)


@pytest.mark.parametrize("mode", [True, False])
def test_an_error_without_words_in_one_mode(mode: bool, tmp_path: Path) -> None:
    class OfOneMode(Fails):
        def forward(self, x: Tensor) -> Tensor:
            if self.training is mode:
                raise NotImplementedError
            scores: Tensor = self.head(self.body(x))
            return scores

    with pytest.raises(FtkitError, match=r"fails on a batch of 3 samples.*: NotImplementedError\."):
        precompute(OfOneMode(), TensorDataset(torch.randn(9, 8)), tmp_path)


def test_a_sample_that_can_not_be_read_without_words(tmp_path: Path) -> None:
    class Wordless(Dataset[Any]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Tensor:
            if index == 7:
                raise AssertionError
            return torch.zeros(8)

    with pytest.raises(FtkitError, match=r"Sample 7 of the data set can't be read: AssertionError\.$"):
        precompute(Fails(), Wordless(), tmp_path)


def test_a_detection_model(tmp_path: Path) -> None:
    """It takes a list of images, of any sizes, with no dimension for the samples."""
    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3
    )
    freeze(model, "backbone.body")
    target = {"boxes": torch.tensor([[4.0, 4, 40, 40]]), "labels": torch.tensor([1])}
    dataset: Any = [(torch.rand(3, 64, 64), target)] * 8
    loader = DataLoader(dataset, 2, collate_fn=lambda batch: tuple(zip(*batch, strict=True)))
    with pytest.raises(FtkitError, match=r"has 3 tensors.*FasterRCNN takes images, targets.*detection models"):
        precompute(model, loader, tmp_path)
