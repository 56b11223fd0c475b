"""A loader goes on within an epoch as if it had never stopped."""

from __future__ import annotations

import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, Subset, WeightedRandomSampler

from ftkit import load_checkpoint, save_checkpoint
from ftkit._loaders import ResumableLoader
from ftkit.errors import CheckpointError, FtkitError


class Noisy(Dataset[torch.Tensor]):
    """Items with noise from every global generator, as augmentation makes it."""

    def __len__(self) -> int:
        return 14

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((4,), float(index)) + random.random() + float(np.random.rand()) + torch.rand(4)  # noqa: NPY002


def loader_of(kind: str, workers: int) -> ResumableLoader[Any]:
    """A loader over noisy data with one of the usual samplers."""
    options: dict[str, Any] = {"batch_size": 2, "num_workers": workers}
    data: Any = Noisy()
    if kind == "shuffle":
        options["shuffle"] = True
    elif kind == "generator":
        options |= {"shuffle": True, "generator": torch.Generator().manual_seed(3)}
    elif kind == "weighted":
        options["sampler"] = WeightedRandomSampler([1.0] * 14, 14)
    elif kind == "subset":
        data, options["shuffle"] = Subset(data, range(14)), True
    elif kind == "single":
        options |= {"batch_size": None, "sampler": RandomSampler(data)}
    elif kind == "persistent":
        options |= {"shuffle": True, "persistent_workers": workers > 0}
    return ResumableLoader(data, **options)


class Run:
    """A hand-written training loop that may stop anywhere."""

    def __init__(self, kind: str, workers: int) -> None:
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.4), nn.Linear(8, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-2)
        self.loader = loader_of(kind, workers)
        self.seen: list[torch.Tensor] = []
        self.epoch = 0

    def go(self, stop: int | None = None, path: Path | None = None) -> None:
        """Train to the end of the second epoch, or save and stop after some steps."""
        for epoch in range(self.epoch, 2):
            for batch in self.loader:
                self.model(batch).square().mean().backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.seen.append(batch)
                if len(self.seen) == stop:
                    assert path is not None
                    save_checkpoint(path, model=self.model, optimizer=self.optimizer, sampler=self.loader, epoch=epoch)
                    return

    def load(self, path: Path) -> None:
        """Go back to where another process stopped."""
        checkpoint = load_checkpoint(path, model=self.model, optimizer=self.optimizer, sampler=self.loader)
        self.epoch = checkpoint.epoch or 0


@pytest.mark.parametrize(
    ("kind", "workers", "stop", "suffix"),
    [
        ("shuffle", 0, 3, ".safetensors"),
        ("shuffle", 0, 7, ".pt"),
        ("shuffle", 2, 3, ".pt"),
        ("generator", 0, 9, ".pt"),
        ("generator", 2, 4, ".safetensors"),
        ("weighted", 0, 5, ".safetensors"),
        ("subset", 0, 8, ".safetensors"),
        ("single", 0, 5, ".safetensors"),
        pytest.param("single", 2, 5, ".safetensors", marks=pytest.mark.slow),
        pytest.param("subset", 2, 8, ".safetensors", marks=pytest.mark.slow),
        ("persistent", 2, 9, ".safetensors"),
    ],
)
def test_training_goes_on_exactly_in_mid_epoch(tmp_path: Path, kind: str, workers: int, stop: int, suffix: str) -> None:
    """Weights at the end are the same to the bit as without the stop, and so is every batch."""
    torch.manual_seed(1)
    whole = Run(kind, workers)
    whole.go()
    torch.manual_seed(1)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    first = Run(kind, workers)
    start = [value.clone() for value in first.model.state_dict().values()]
    first.go(stop, tmp_path / f"run{suffix}")
    torch.manual_seed(99)
    random.seed(99)
    second = Run(kind, workers)
    second.load(tmp_path / f"run{suffix}")
    second.go()
    batches = first.seen + second.seen
    assert len(start) == 4
    assert len(batches) == len(whole.seen)
    assert all(map(torch.equal, batches, whole.seen))
    assert all(map(torch.equal, second.model.state_dict().values(), whole.model.state_dict().values()))


def test_the_number_of_workers_may_change(tmp_path: Path) -> None:
    """What a batch holds does not depend on which worker made it."""
    batches = []
    for workers in (1, 2):
        torch.manual_seed(5)
        batches.append(list(loader_of("shuffle", workers)))
    assert all(map(torch.equal, *batches))


def test_each_epoch_has_an_order_of_its_own() -> None:
    """Epochs differ, and the length is that of the whole."""
    loader = ResumableLoader(list(range(40)), batch_size=4, shuffle=True)
    orders = [[batch.tolist() for batch in loader] for _ in range(2)]
    assert len(loader) == 10
    assert orders[0] != orders[1]
    assert sorted(index for batch in orders[1] for index in batch) == list(range(40))


def test_breaking_off_starts_anew() -> None:
    """An epoch that a loop left early is not gone on with unless a state says so."""
    loader = ResumableLoader(list(range(6)), batch_size=2)
    next(iter(loader))
    assert loader.mid_epoch
    assert len(list(loader)) == 3
    assert not loader.mid_epoch


def test_what_it_cannot_resume_it_refuses() -> None:
    """An iterable dataset and a foreign state are errors that say what to do."""

    class Stream(IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter(range(3))

    with pytest.raises(FtkitError, match="state_dict"):
        ResumableLoader(Stream())
    with pytest.raises(CheckpointError, match=r"not a state_dict\(\) of a ResumableLoader"):
        ResumableLoader([1]).load_state_dict({"epoch": 1})


@pytest.mark.parametrize(
    ("count", "options", "words"),
    [
        (12, {"batch_size": 4, "shuffle": True}, "batch_size 2, batches 6; this loader has batch_size 4, batches 3"),
        (8, {"batch_size": 2, "shuffle": True}, "samples 12, batches 6; this loader has samples 8, batches 4"),
        (12, {"batch_size": 2}, "sampler RandomSampler; this loader has sampler SequentialSampler"),
        (12, {"batch_sampler": [[0, 1]] * 6}, "batch_size 2, sampler RandomSampler; this loader has batch_size None"),
    ],
)
def test_another_loader_cannot_resume_within_an_epoch(
    tmp_path: Path, count: int, options: dict[str, Any], words: str
) -> None:
    """It would skip or repeat samples, which the error says; at an epoch's end, and from older states, it resumes."""
    loader, other = ResumableLoader(range(12), batch_size=2, shuffle=True), ResumableLoader(range(count), **options)
    next(iter(loader))
    path, model = tmp_path / "c.safetensors", nn.Linear(1, 1)
    save_checkpoint(path, model=model, sampler=loader)
    with pytest.raises(CheckpointError, match=f"saved with {words}.*same loader.*sampler="):
        load_checkpoint(path, model=model, sampler=other)
    assert not other.mid_epoch
    load_checkpoint(path, model=model, sampler=ResumableLoader(range(12), batch_size=2, shuffle=True))
    other.load_state_dict({name: loader.state_dict()[name] for name in ("seed", "position", "generator")})
    assert other.mid_epoch
    list(loader)
    other.load_state_dict(loader.state_dict())
    assert not other.mid_epoch


def test_data_without_a_length_resumes_as_before() -> None:
    """What is not known is not compared."""

    class Endless(Dataset[int]):
        def __getitem__(self, index: int) -> int:
            return index

    def made() -> ResumableLoader[int]:
        return ResumableLoader(Endless(), sampler=iter(range(5)), batch_size=1)

    loader, again = made(), made()
    next(iter(loader))
    again.load_state_dict(loader.state_dict())
    assert [batch.item() for batch in again] == [1, 2, 3, 4]  # type: ignore[attr-defined]


def test_a_torch_without_its_place_for_indices_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch takes the indices of a batch from elsewhere, a loader says so when it is made."""
    monkeypatch.delattr(DataLoader, "_index_sampler")
    with pytest.raises(FtkitError, match=r"no DataLoader\._index_sampler, which ftkit needs to resume within an epoch"):
        ResumableLoader([1])


def test_loaders_in_several_threads_keep_their_orders() -> None:
    """Each seeds the generators of the process for a moment, and no other thread draws from them meanwhile."""
    seeds = range(6)

    def order(seed: int) -> list[int]:
        loader = ResumableLoader(list(range(50)), batch_size=5, shuffle=True)
        loader.load_state_dict({"seed": seed, "position": 0, "generator": None})
        return [int(number) for batch in loader for number in batch]

    alone = [order(seed) for seed in seeds]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(len(seeds)) as pool:
            together = [list(pool.map(order, seeds)) for _ in range(5)]
    finally:
        sys.setswitchinterval(interval)
    assert together == [alone] * 5


def test_a_loader_that_nobody_iterates_over_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was made of it gives the batches, and knows no place: saving says so; a loader in use is no matter."""
    model = nn.Linear(1, 1)
    loader = ResumableLoader(list(range(4)), batch_size=2)
    plain = DataLoader(loader.dataset, batch_sampler=loader.batch_sampler)  # as Accelerator.prepare does
    for _ in plain:
        save_checkpoint(tmp_path / "a.safetensors", model=model, sampler=loader)
    assert "never iterated over" in caplog.text
    caplog.clear()
    for _ in loader:
        save_checkpoint(tmp_path / "a.safetensors", model=model, sampler=loader)
    again = ResumableLoader(list(range(4)), batch_size=2)
    load_checkpoint(tmp_path / "a.safetensors", sampler=again)
    save_checkpoint(tmp_path / "b.safetensors", model=model, sampler=again)
    assert not caplog.text


def test_a_loader_whose_state_fails_is_an_error(tmp_path: Path) -> None:
    """Accelerate's loaders have a state_dict that raises; the message says what to pass."""

    class Prepared:
        def state_dict(self) -> Any:
            return self.dl_state_dict  # type: ignore[attr-defined]

    with pytest.raises(FtkitError, match=r"sampler= got a Prepared, whose state_dict\(\) fails.*ResumableLoader"):
        save_checkpoint(tmp_path / "a.safetensors", model=nn.Linear(1, 1), sampler=Prepared())
    assert not list(tmp_path.iterdir())


@pytest.mark.frameworks
def test_a_loader_that_accelerate_has_replaced_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The original has no position, which is said; the prepared one can't be saved, which is an error."""
    accelerate = pytest.importorskip("accelerate")
    model, loader = nn.Linear(1, 1), ResumableLoader(list(range(8)), batch_size=2)
    prepared = accelerate.Accelerator(cpu=True).prepare(loader)
    assert not isinstance(prepared, ResumableLoader)
    for count, _ in enumerate(prepared):
        if count == 1:
            save_checkpoint(tmp_path / "a.safetensors", model=model, sampler=loader)
            assert "never iterated over" in caplog.text
            assert "prepare" in caplog.text
            with pytest.raises(FtkitError, match=r"whose state_dict\(\) fails.*ResumableLoader"):
                save_checkpoint(tmp_path / "b.safetensors", model=model, sampler=prepared)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
