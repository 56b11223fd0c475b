"""In the loops of frameworks: the same weights at the end, to the bit, as without."""

from __future__ import annotations

import copy
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ftkit import freeze_except, precompute

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class Net(nn.Module):
    """With a norm and Dropout on both sides of the frontier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 32))
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(32, 3))
        freeze_except(self, "head")

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        scores = self.head(self.body(x))
        return scores if labels is None else {"loss": nn.functional.cross_entropy(scores, labels), "logits": scores}


def data() -> TensorDataset:
    return TensorDataset(torch.randn(30, 8, generator=torch.Generator().manual_seed(1)), torch.arange(30) % 3)


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def compared(run: Callable[[nn.Module, Any], object], by_content: bool = False) -> None:
    """Run a loop on a model and a loader, with and without."""
    results = []
    for kept in (False, True):
        model = Net()
        loader: Any = DataLoader(data(), 6, shuffle=True)
        torch.manual_seed(2)
        if not kept:
            run(model, loader)
        elif by_content:
            with precompute(model, loader, "kept") as cached:
                run(model, loader)
            assert cached.computed == 30
            assert not cached._lookup or not cached._lookup.as_before
        else:
            with precompute(model, data(), "kept", batch_size=6) as cached:
                run(model, cached.loader(batch_size=6, shuffle=True))
        results.append({name: one.cpu() for name, one in model.state_dict().items()})
    before = Net().state_dict()
    assert not torch.equal(results[0]["head.1.weight"], before["head.1.weight"])
    assert all(torch.equal(one, results[1][name]) for name, one in results[0].items())


BY = pytest.mark.parametrize("by_content", [False, True], ids=["index", "content"])


@BY
def test_plain(by_content: bool) -> None:
    """A loop as in any tutorial, with events around it."""

    def run(model: nn.Module, loader: Any) -> None:
        optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.01)
        for _ in range(2):
            model.train()
            for inputs, labels in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs), labels).backward()
                optimizer.step()

    compared(run, by_content)


@BY
def test_lightning(by_content: bool) -> None:
    """Its fit()."""
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, _: int) -> Tensor:
            inputs, labels = batch
            return nn.functional.cross_entropy(self.model(inputs), labels)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([one for one in self.model.parameters() if one.requires_grad], lr=0.1)

    def run(model: nn.Module, loader: Any) -> None:
        trainer = lightning.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Module(model), loader)

    compared(run, by_content)


@BY
def test_accelerate(by_content: bool) -> None:
    """Its prepare()."""
    accelerate = pytest.importorskip("accelerate")

    def run(model: nn.Module, loader: Any) -> None:
        accelerator = accelerate.Accelerator(cpu=True)
        optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
        prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        prepared.train()
        for _ in range(2):
            for inputs, labels in loader:
                optimizer.zero_grad()
                accelerator.backward(nn.functional.cross_entropy(prepared(inputs), labels))
                optimizer.step()

    compared(run, by_content)


@BY
def test_fastai(by_content: bool) -> None:
    """Its Learner."""
    basics = pytest.importorskip("fastai.basics")

    def run(model: nn.Module, loader: Any) -> None:
        loaders = basics.DataLoaders(loader, loader)
        head = lambda model: [list(model.head.parameters())]  # noqa: E731
        learner = basics.Learner(loaders, model, nn.CrossEntropyLoss(), opt_func=basics.SGD, splitter=head, lr=0.1)
        learner.fit(2)

    compared(run, by_content)


class Dicts(torch.utils.data.Dataset[Any]):
    """Samples as transformers takes them."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> Any:
        inputs, label = data()[index]
        return {"x": inputs, "labels": label}


def test_trainer() -> None:
    """The one of transformers."""
    transformers = pytest.importorskip("transformers")
    results = []
    for kept in (False, True):
        model = Net()
        arguments = transformers.TrainingArguments(
            "out", num_train_epochs=2, per_device_train_batch_size=6, report_to=[], save_strategy="no", use_cpu=True,
            disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        if kept:
            with precompute(model, Dicts(), "kept", batch_size=6) as cached:
                transformers.Trainer(model, arguments, train_dataset=cached.dataset).train()
        else:
            transformers.Trainer(model, arguments, train_dataset=Dicts()).train()
        results.append(copy.deepcopy(model.state_dict()))
    assert not torch.equal(results[0]["head.1.weight"], Net().state_dict()["head.1.weight"])
    assert all(torch.equal(one, results[1][name]) for name, one in results[0].items())


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@BY
def test_trainer_with_labels(kind: str, by_content: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of transformers as it is: its configuration notes the kind of labels, and the Trainer changes it."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr("ftkit._precompute.spotcheck.SHARE", 1e-9)

    def made() -> Any:
        torch.manual_seed(0)
        sizes = {"vocab_size": 50, "num_labels": 3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        if kind == "bert":
            config = transformers.BertConfig(
                hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                max_position_embeddings=16, **sizes,
            )  # fmt: skip
            model = transformers.BertForSequenceClassification(config)
        else:
            config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=16, **sizes)
            model = transformers.GPT2ForSequenceClassification(config)
        freeze_except(model, "classifier" if kind == "bert" else "score")
        return model

    texts = torch.randint(1, 50, (24, 8), generator=torch.Generator().manual_seed(1))
    source: Any = [{"input_ids": ids, "labels": at % 3} for at, ids in enumerate(texts)]
    arguments = transformers.TrainingArguments(
        "out", num_train_epochs=3, per_device_train_batch_size=6, report_to=[], save_strategy="no", use_cpu=True,
        disable_tqdm=True, logging_strategy="no", learning_rate=0.01,
    )  # fmt: skip
    states = []
    for kept in (False, True):
        model = made()
        if kept:
            before = model.config.to_dict()
            cached = precompute(model, DataLoader(source, 6) if by_content else source, "kept", batch_size=6)
            assert model.config.to_dict() == before
            with cached:
                transformers.Trainer(model, arguments, train_dataset=source if by_content else cached.dataset).train()
            assert cached._lookup is None or not cached._lookup.as_before
        else:
            transformers.Trainer(model, arguments, train_dataset=source).train()
        states.append(copy.deepcopy(model.state_dict()))
    assert any(not torch.equal(one, states[0][name]) for name, one in made().state_dict().items())
    assert all(torch.equal(one, states[1][name]) for name, one in states[0].items())


def _forget_precision() -> None:
    """Accelerate has one for the whole process."""
    pytest.importorskip("accelerate.state").AcceleratorState._reset_state(True)


@BY
def test_accelerate_in_mixed_precision(by_content: bool, request: pytest.FixtureRequest) -> None:
    """Of which precompute() gets the prepared model."""
    accelerate = pytest.importorskip("accelerate")
    request.addfinalizer(_forget_precision)
    _forget_precision()
    states = []
    for kept in (False, True):
        accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
        model: Any = Net()
        optimizer: Any = torch.optim.SGD(model.head.parameters(), lr=0.1)
        model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data(), 6))
        cached = precompute(model, loader if by_content else data(), "kept", batch_size=6) if kept else None
        batches = accelerator.prepare(cached.loader(batch_size=6)) if cached and not by_content else loader
        torch.manual_seed(2)
        with cached or torch.enable_grad():
            for inputs, labels in [*batches] * 3:
                optimizer.zero_grad()
                accelerator.backward(nn.functional.cross_entropy(model(inputs), labels))
                optimizer.step()
        assert cached is None or cached._lookup is None or not cached._lookup.as_before
        states.append(copy.deepcopy(model.state_dict()))
    assert all(torch.equal(one, states[1][name]) for name, one in states[0].items())


def _one_of_two(rank: int, port: int, folder: str, kept: bool) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.set_num_threads(1)
    model = Net()
    wrapped = nn.parallel.DistributedDataParallel(model)
    source: Any = data()
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
    cached = precompute(wrapped, source, f"{folder}/kept", batch_size=5) if kept else None
    sampler = torch.utils.data.DistributedSampler(source, 2, rank, shuffle=True)
    loader = cached.loader(batch_size=5, sampler=sampler) if cached else DataLoader(source, 5, sampler=sampler)
    torch.manual_seed(rank)
    with cached or torch.enable_grad():
        for epoch in range(2):
            sampler.set_epoch(epoch)
            for inputs, labels in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(wrapped(inputs), labels).backward()
                optimizer.step()
    torch.save(model.state_dict(), f"{folder}/{kept}{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    """DistributedDataParallel, which copies buffers from one process to the others before each step."""
    for kept in (False, True):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        torch.multiprocessing.spawn(_one_of_two, (port, str(tmp_path), kept), nprocs=2)
    states = [torch.load(tmp_path / f"{kept}{rank}.pt") for kept in (False, True) for rank in (0, 1)]
    assert not torch.equal(states[0]["head.1.weight"], Net().state_dict()["head.1.weight"])
    for state in states[1:]:
        assert all(torch.equal(one, state[name]) for name, one in states[0].items())
