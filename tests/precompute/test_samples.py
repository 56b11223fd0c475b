"""Samples of many forms, draws of those that augment, values in less precision, and features for a probe."""

from __future__ import annotations

import copy
import random
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from ftkit import FtkitError, freeze_except, precompute
from ftkit._precompute.samples import call_of


class Two(nn.Module):
    """Takes two inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        freeze_except(self, "head")

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(self.body(a - 2 * b).relu())


class One(Two):
    """Takes one."""

    def forward(self, a: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(a, torch.zeros_like(a))


class Loss(Two):
    """Takes labels, too."""

    def forward(self, a: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(super().forward(a, torch.zeros_like(a)), labels)


torch.manual_seed(1)
A, B, Y = torch.randn(12, 4), torch.randn(12, 4), torch.arange(12) % 3
Pair = namedtuple("Pair", "image label")  # noqa: PYI024


@pytest.mark.parametrize(
    ("model", "samples", "step"),
    [
        (One(), list(A), lambda model, batch: model(batch)),
        (One(), list(zip(A, Y, strict=True)), lambda model, batch: model(batch[0])),
        (One(), [[a, y] for a, y in zip(A, Y, strict=True)], lambda model, batch: model(batch[0])),
        (One(), [Pair(a, int(y)) for a, y in zip(A, Y, strict=True)], lambda model, batch: model(batch.image)),
        (Two(), list(zip(A, B, Y, strict=True)), lambda model, batch: model(*batch[:-1])),
        (Two(), [((a, b), y) for a, b, y in zip(A, B, Y, strict=True)], lambda model, batch: model(*batch[0])),
        (Two(), [({"b": b, "a": a}, 3) for a, b in zip(A, B, strict=True)], lambda model, batch: model(**batch[0])),
        (
            Two(),
            [{"a": A[at], "b": B[at], "y": 1} if at % 2 else {"y": 1, "b": B[at], "a": A[at]} for at in range(12)],
            lambda model, batch: model(**{name: one for name, one in batch.items() if name != "y"}),
        ),
        (Loss(), list(zip(A, Y, strict=True)), lambda model, batch: model(*batch)),
        (Loss(), [{"labels": y, "a": a} for a, y in zip(A, Y, strict=True)], lambda model, batch: model(**batch)),
    ],
    ids=[
        "tensor", "tuple", "list", "named tuple", "two inputs", "a tuple of inputs", "a dict of inputs",
        "dicts in any order", "labels", "labels by name",
    ],
)  # fmt: skip
@pytest.mark.parametrize("collate", [None, torch.utils.data.default_collate])
def test_forms(model: nn.Module, samples: list[Any], step: Callable[..., Tensor], collate: Any, tmp_path: Path) -> None:
    """Each is what it was, with a row in the place of the inputs, and so are the labels."""
    plain = [step(model, batch) for batch in DataLoader(samples, 5)]
    with precompute(model, samples, tmp_path, batch_size=5) as cached:
        rows = list(cached.loader(batch_size=5, collate_fn=collate))
        assert all(torch.equal(step(model, batch), one) for batch, one in zip(rows, plain, strict=True))
    if isinstance(rows[0], Pair):
        assert torch.equal(rows[0].label, Y[:5])


def test_values_beside_the_input_stay_with_their_names(tmp_path: Path) -> None:
    """Though each sample has its own order."""
    samples: list[Any] = [{"a": a, "one": 1, "two": 2} for a in A]
    samples[3] = dict(reversed(samples[3].items()))
    batch = next(iter(precompute(One(), samples, tmp_path).loader(batch_size=12)))
    assert set(batch["one"].tolist()) == {1}
    assert set(batch["two"].tolist()) == {2}
    del samples[5]["two"]
    with pytest.raises(FtkitError, match=r"Samples differ: one has a, one, two, another one a, one\."):
        precompute(One(), samples, tmp_path)


@dataclass
class Sample:
    """What torch's default collate does not take."""

    a: Tensor
    label: int


def collate(samples: list[Sample]) -> Sample:
    """A batch of them."""
    return Sample(torch.stack([one.a for one in samples]), torch.tensor([one.label for one in samples]))  # type: ignore[arg-type]


def test_what_only_a_collate_of_ones_own_takes_is_known_by_content(tmp_path: Path) -> None:
    """The refusal says so."""
    samples, model = [Sample(a, int(y)) for a, y in zip(A, Y, strict=True)], One()
    with pytest.raises(FtkitError, match="your own DataLoader"):
        precompute(model, samples, tmp_path)
    plain = One()
    loader = DataLoader(samples, 4, collate_fn=collate)
    with precompute(model, loader, tmp_path) as cached:
        for batch in (*loader, *loader):
            assert torch.equal(model(batch.a), plain(batch.a))
        assert cached.computed == 12


def test_parts_and_joins_of_data_sets(tmp_path: Path) -> None:
    """Known without being read; a change in one is seen."""
    data = ConcatDataset([Subset(TensorDataset(A, Y), [3, 1, 5]), TensorDataset(B, Y)])
    model = One()
    cached = precompute(model, data, tmp_path, batch_size=15)
    with cached:
        (rows, labels) = next(iter(cached.loader(batch_size=15)))
        assert torch.equal(model(rows), model(torch.cat([A[[3, 1, 5]], B])))
        assert torch.equal(labels, torch.cat([Y[[3, 1, 5]], Y]))
    assert precompute(model, data, tmp_path).computed == 0
    parts = ConcatDataset([Subset(TensorDataset(A, Y), [3, 1, 4]), TensorDataset(B, Y)])
    assert precompute(model, parts, tmp_path).computed == 1


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_that_stay(workers: int, tmp_path: Path) -> None:
    """With several draws of each sample, which are used in turn by all of them."""
    torch.manual_seed(0)
    cached = precompute(One(), Noisy(A), tmp_path, views=3, num_workers=workers)
    loader = cached.loader(batch_size=5, num_workers=workers, persistent_workers=True)
    epochs = [torch.cat([rows for rows, _ in loader]) for _ in range(6)]
    assert all(torch.equal(epochs[at], epochs[at + 3]) for at in range(3))
    assert not torch.equal(epochs[0], epochs[1])
    spawned = cached.loader(batch_size=5, num_workers=workers, multiprocessing_context="spawn")
    assert torch.equal(torch.cat([rows for rows, _ in spawned]), epochs[0])


class Noisy(Dataset[Any]):
    """Draws from one of the generators."""

    def __init__(self, inputs: Tensor, draw: Callable[[], Any] = lambda: torch.randn(())) -> None:
        self.inputs, self.draw = inputs, draw

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        return self.inputs[index] + self.draw(), index % 3


@pytest.mark.parametrize("draw", [lambda: torch.randn(()), random.random, np.random.rand])
def test_several_draws_are_used_in_turn(draw: Callable[[], Any], tmp_path: Path) -> None:
    """The same ones in each call, whatever the seed; the caller's random numbers are left as they are."""
    model = One().eval()
    before = torch.get_rng_state()
    cached = precompute(model, Noisy(A, draw), tmp_path, views=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert (cached.samples, cached.views, cached.computed, len(cached.dataset)) == (12, 2, 24, 12)  # type: ignore[arg-type]
    with cached:
        first, second, third = (
            torch.cat([model(rows) for rows, _ in cached.loader(batch_size=5)]) for _ in range(3)
        )  # fmt: skip
    assert torch.equal(first, third)
    assert (first - second).abs().amin() > 0
    torch.manual_seed(9)
    assert precompute(model, Noisy(A, draw), tmp_path, views=2).computed == 0
    changed = A.clone()
    changed[4] += 1
    assert precompute(model, Noisy(changed, draw), tmp_path, views=2).computed == 2


@pytest.mark.parametrize(
    ("dataset", "views", "said"),
    [
        (Noisy(A), None, r"views=4 keeps four draws"),
        (Noisy(A, np.random.default_rng().random), None, r"views=4"),
        (Noisy(A, np.random.default_rng().random), 2, "a generator of its own"),
        (TensorDataset(A, Y), 2, "gives the same each time"),
        (Noisy(A), 0, "views must be a whole number of at least 1"),
        (DataLoader(Noisy(A), 4), None, "drawn at random"),
    ],
)
def test_draws_that_are_refused(dataset: Any, views: Any, said: str, tmp_path: Path) -> None:
    """With the choice to be made."""
    with pytest.raises(FtkitError, match=said):
        precompute(One(), dataset, tmp_path, views=views)


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-10)])
def test_less_precision(dtype: torch.dtype, most: float, tmp_path: Path) -> None:
    """Half the bytes; the loss is said; each precision has a file of its own, by content too."""
    model = One().eval()
    plain = precompute(model, TensorDataset(A, Y), tmp_path)
    cached = precompute(model, TensorDataset(A, Y), tmp_path, dtype=dtype)
    assert (plain.rounding, plain.kept[0][2:]) == (None, ("float32", 32))
    assert cached.kept[0][2:] == (str(dtype)[6:], 16)
    assert cached.computed == 12
    assert cached.rounding is not None
    assert 0 < cached.rounding[1] < cached.rounding[0] <= most
    assert "rounded: at most 0." in str(cached)
    with cached:
        (rows, _) = next(iter(cached.loader(batch_size=12)))
        assert torch.equal(model(rows), model.head(model.body(A).relu().to(dtype).float()))
    with precompute(model, DataLoader(TensorDataset(A, Y), 6), tmp_path, dtype=dtype):
        for _ in range(3):
            assert torch.equal(model(A), model.head(model.body(A).relu().to(dtype).float()))


def test_values_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Rather than kept as infinity."""
    inputs = A.clone()
    inputs[7] *= 1e6
    with pytest.raises(FtkitError, match=r"too large for torch\.float16"):
        precompute(One(), TensorDataset(inputs, Y), tmp_path, dtype=torch.float16)
    with pytest.raises(FtkitError, match=r"dtype must be torch\.bfloat16"):
        precompute(One(), TensorDataset(A, Y), tmp_path, dtype=torch.int8)


def test_features(tmp_path: Path) -> None:
    """In the order of the data set, each with its label; of every draw, where there are several."""
    model = One()
    cached = precompute(model, TensorDataset(A, Y), tmp_path)
    features, labels = cached.features()
    with torch.no_grad():
        assert torch.equal(features, model.body(A).relu())
    assert torch.equal(labels, Y)
    name = cached.kept[0][0]
    assert torch.equal(cached.features(name)[0], features)
    with pytest.raises(FtkitError, match="kept must be one of"):
        cached.features("out of the blue")
    assert cached.features()[0].shape == (12, 8)
    features, labels = precompute(model, Noisy(A), tmp_path, views=2).features()
    assert features.shape == (24, 8)
    assert torch.equal(labels, Y.repeat_interleave(2))
    assert not torch.equal(features[::2], features[1::2])


def test_features_of_several_tensors(tmp_path: Path) -> None:
    """One at a time, as the report names them."""

    class Skip(One):
        def forward(self, a: Tensor) -> Tensor:
            return self.head(self.body(a).relu() + self.tail(self.body(-a)))

    model = Skip()
    model.tail = nn.Linear(8, 8)
    cached = precompute(model, TensorDataset(A, Y), tmp_path)
    assert len(cached.kept) == 2
    with pytest.raises(FtkitError, match="choose one of"):
        cached.features()
    names = [name for name, *_ in cached.kept]
    assert len(set(names)) == 2
    with torch.no_grad():
        for name, inputs in zip(names, (A, -A), strict=True):
            assert torch.equal(cached.features(name)[0], model.body(inputs))


@pytest.mark.parametrize("where", ["folder", "file", "inside"])
def test_paths_that_are_taken(where: str, tmp_path: Path) -> None:
    """A file where the folder should be, or a folder where the file should be."""
    model, data = One(), TensorDataset(A, Y)
    folder = tmp_path / "kept"
    if where == "folder":
        folder.write_text("a file")
    else:
        path = precompute(model, data, folder).path
        path.unlink()
        path.mkdir()
        (path / "x").write_text("x") if where == "inside" else None
    with pytest.raises(FtkitError, match=r"Can't (open|write)"):
        precompute(model, data, folder)


def test_a_data_set_that_fails(tmp_path: Path) -> None:
    """Which sample, and how."""

    class Fails(Noisy):
        def __getitem__(self, index: int) -> Any:
            if index:
                raise OSError("no such photo")
            return self.inputs[0], 1

    with pytest.raises(FtkitError, match=r"Sample 6 of the data set can't be read: OSError: no such photo"):
        precompute(One(), Fails(A), tmp_path)


def test_deep_copies_of_the_data_set(tmp_path: Path) -> None:
    """Frameworks copy what they get."""
    cached = precompute(One(), TensorDataset(A, Y), tmp_path)
    twin = copy.deepcopy(cached.dataset)
    assert torch.equal(twin[3][0], cached.dataset[3][0])


class Inside(nn.Module):
    """What a wrapper is around."""

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> None:
        """Take two by name."""


class Passing(nn.Module):
    """Passes all on, as peft's wrappers do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


class Naming(Passing):
    """Names what others take, and passes the rest on."""

    def forward(self, input_ids: Any = None, labels: Any = None, **kwargs: Any) -> Any:
        return self.inner(labels=labels, **kwargs)


@pytest.mark.parametrize("around", [Passing, Naming, lambda inner: Naming(Passing(inner))])
def test_a_wrapper_takes_what_it_passes_on(around: Any) -> None:
    inner = Inside()
    inner.weight = nn.Parameter(torch.zeros(1))
    batch = {"pixels": torch.zeros(2, 3), "labels": torch.zeros(2), "number": torch.zeros(2)}
    args, kwargs = call_of(around(inner), batch)
    assert not args
    assert list(kwargs) == ["pixels", "labels"]
