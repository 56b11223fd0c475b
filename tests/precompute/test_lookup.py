"""A loop with a loader of its own: samples are known by their content, and what is new or changed is computed."""

from __future__ import annotations

import contextlib
import copy
import random
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, TensorDataset

from ftkit import FtkitError, freeze_except, precompute, unfreeze
from ftkit._precompute.store import KEYED
from tests.precompute.loops import same, train


class Net(nn.Module):
    """A body that is frozen, and a head; the root looks at all that it takes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 16))
        self.head = nn.Linear(16, 3)
        freeze_except(self, "head")
        self.body[0].register_forward_hook(count, always_call=True)

    def forward(self, x: Tensor, mask: Tensor | None = None, flip: bool = False) -> Tensor:
        x = x if mask is None else x * mask
        return self.head(self.body(x.flip(-1) if flip else x))


RUNS: list[int] = []


def count(module: nn.Module, args: Any, output: Tensor) -> None:
    RUNS.append(len(output))


count.__module__ = "ftkit.tests"  # a hook of a stranger would keep the module from being skipped


def data(samples: int = 24) -> TensorDataset:
    torch.manual_seed(1)
    return TensorDataset(torch.randn(samples, 8), torch.arange(samples) % 3)


def test_training_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the frozen part runs once for each sample, in this run and in the next."""
    monkeypatch.setattr("ftkit._precompute.spotcheck.SHARE", 1e-9)  # no checks at random moments
    model, loader = Net(), DataLoader(data(), 6, shuffle=True)
    plain, third = copy.deepcopy(model), copy.deepcopy(model)
    expected = train(plain, loader)
    cached = precompute(model, loader, tmp_path)
    assert (cached.samples, cached.computed) == (0, 0)
    RUNS.clear()
    with cached:
        assert same(train(model, loader), expected)
    assert sum(RUNS) == 24 + 3 * 6  # the first batch that was found, once for the file and once for its kind; the last
    assert (cached.samples, cached.computed) == (24, 24)
    RUNS.clear()
    again = precompute(third, loader, tmp_path)
    assert again.samples == 24
    RUNS.clear()
    with again:
        assert same(train(third, loader), expected)
    assert RUNS == [6, 6, 6]
    assert again.computed == 0


def test_a_sample_that_changed_is_never_mistaken(tmp_path: Path) -> None:
    """One value of one sample, again and again."""
    model, inputs = Net(), data().tensors[0]
    model.eval()
    choose = random.Random(0)
    with precompute(model, DataLoader(data(), 6), tmp_path) as cached:
        for _ in range(200):
            at, place = choose.randrange(24), choose.randrange(8)
            start = at - at % 6
            model(inputs[start : start + 6])
            inputs[at, place] += 2.0**-10
            rows = model(inputs[start : start + 6])
            with torch.no_grad():
                assert torch.equal(rows, model.head(model.body(inputs[start : start + 6])))
        assert cached.computed == 24 + 200


def test_inputs_that_the_frozen_part_does_not_see_tell_nothing(tmp_path: Path) -> None:
    """Labels, which may change."""

    class WithLoss(Net):
        def forward(self, x: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
            return nn.functional.cross_entropy(super().forward(x), labels)

    model, loader = WithLoss(), DataLoader(data(), 6)
    with precompute(model, loader, tmp_path) as cached:
        x, labels = next(iter(loader))
        first = model(x, labels)
        assert torch.equal(model(x, labels), first)
        assert not torch.equal(model(x, (labels + 1) % 3), first)
        assert cached.computed == 6


def test_keywords_in_any_order(tmp_path: Path) -> None:
    """Two inputs of one shape are never exchanged."""

    class Two(Net):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(a - 2 * b)

    model, plain = Two(), Two()
    torch.manual_seed(3)
    batch = {"a": torch.randn(6, 8), "b": torch.randn(6, 8)}
    loader = DataLoader([{name: one[at] for name, one in batch.items()} for at in range(6)], 6)
    with precompute(model, loader, tmp_path) as cached:
        for given in (batch, dict(reversed(batch.items())), {"a": batch["b"], "b": batch["a"]}):
            assert torch.equal(model(**given), plain(**given))
        assert torch.equal(model(batch["a"], batch["b"]), plain(batch["a"], batch["b"]))
        assert torch.equal(model(batch["b"], b=batch["a"]), plain(batch["b"], batch["a"]))
        assert cached.computed == 12


def test_what_was_not_watched_runs_as_before(tmp_path: Path) -> None:
    """Other arguments, shapes, gradients; the report says so."""
    model, plain, loader = Net(), Net(), DataLoader(data(), 6)
    (x, _) = next(iter(loader))
    with precompute(model, loader, tmp_path) as cached:
        assert torch.equal(model(x), plain(x))
        assert torch.equal(model(x=x, mask=None, flip=False), plain(x))
        assert torch.equal(model(x, flip=True), plain(x, flip=True))
        assert torch.equal(model(x, torch.ones(8) / 2), plain(x, torch.ones(8) / 2))
        assert torch.equal(model(x[:, None]), plain(x[:, None]))
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(model(x).sum(), x)
        assert gradient.abs().sum() > 0
    assert "2 calls ran as before: other arguments" in str(cached)


def test_what_changed_is_noticed_before_anything_is_kept(tmp_path: Path) -> None:
    """Weights in any way, and parameters that train now."""
    loader = DataLoader(data(), 6)
    batches = [x for x, _ in loader]
    model = Net()
    with precompute(model, loader, tmp_path) as cached:
        model(batches[0])
        model.body[3].weight.data[3, 3] += 1
        with pytest.raises(FtkitError, match="changed since"):
            model(batches[1])
        assert cached.computed == 6
    model = Net()
    with precompute(model, loader, tmp_path):
        unfreeze(model, "body.3")
        with pytest.raises(FtkitError, match="unfrozen past the frontier"):
            model(batches[0])
    other = precompute(model, loader, tmp_path)
    assert other.samples == 0
    with other:
        model(batches[1])[0].sum().backward()
        assert model.body[3].weight.grad is not None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: model.body[3].weight.data.add_(1), "changed since"),
        (lambda model: unfreeze(model, "body.3"), "unfrozen past the frontier"),
    ],
)
def test_what_changed_is_named_where_a_batch_is_found(
    change: Callable[[nn.Module], object], said: str, tmp_path: Path
) -> None:
    """Before it is compared with what the file has."""
    model, (x, _) = Net(), next(iter(DataLoader(data(), 6)))
    with precompute(model, DataLoader(data(), 6), tmp_path):
        model(x)
        change(model)
        with pytest.raises(FtkitError, match=said):
            model(x)


def test_autocast_is_part_of_what_is_kept(tmp_path: Path) -> None:
    """Under another one the model runs as before."""
    model, plain, loader = Net(), Net(), DataLoader(data(), 6)
    (x, _) = next(iter(loader))
    with precompute(model, loader, tmp_path) as cached:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model(x), plain(x))
        assert cached.computed == 0
        assert torch.equal(model(x), plain(x))
    with torch.autocast("cpu", torch.bfloat16), precompute(model, loader, tmp_path) as mixed:
        for _ in range(2):
            assert torch.equal(model(x), plain(x))
        assert mixed.computed == 6


class Stream(IterableDataset[Any]):
    """Samples without an index."""

    def __iter__(self) -> Iterator[Any]:
        return iter(list(data()))


@pytest.mark.parametrize("loader", [DataLoader(Stream(), 6), SimpleNamespace()], ids=["stream", "own"])
def test_loaders_of_any_kind(loader: Any, tmp_path: Path) -> None:
    """An IterableDataset, or what can be iterated over."""

    class Own:
        def __iter__(self) -> Iterator[Any]:
            return iter(DataLoader(data(), 6))

    loader = Own() if isinstance(loader, SimpleNamespace) else loader
    model, plain = Net(), Net()
    expected = train(plain, loader)
    with precompute(model, loader, tmp_path) as cached:
        assert same(train(model, loader), expected)
    assert cached.computed == 24


def test_a_loader_is_left_as_it_was(tmp_path: Path) -> None:
    """Its generator draws what it would have drawn."""
    orders = []
    for given in (False, True):
        loader = DataLoader(data(), 6, shuffle=True, generator=torch.Generator().manual_seed(5))
        if given:
            precompute(Net(), loader, tmp_path)
        orders.append([labels.tolist() for _, labels in loader])
    assert orders[0] == orders[1]


class Stream(IterableDataset[Any]):
    """Draws its samples, and counts how often it was read."""

    def __init__(self) -> None:
        self.generator, self.reads = torch.Generator().manual_seed(5), 0

    def __iter__(self) -> Iterator[Any]:
        self.reads += 1
        yield from ((torch.randn(8, generator=self.generator), self.reads) for _ in range(12))


def sampled() -> DataLoader[Any]:
    sampler = RandomSampler(data(), generator=torch.Generator().manual_seed(5))
    return DataLoader(data(), batch_sampler=BatchSampler(sampler, 6, drop_last=False))


@pytest.mark.parametrize("made", [sampled, lambda: DataLoader(Stream(), 6)])
def test_a_loader_without_an_index_is_left_as_it_was(made: Callable[[], DataLoader[Any]], tmp_path: Path) -> None:
    """A batch is taken from it, and what its samplers and data set draw and count is put back."""
    orders = []
    for given in (False, True):
        loader = made()
        if given:
            precompute(Net(), loader, tmp_path)
        orders.append([(inputs[:, 0].tolist(), labels.tolist()) for inputs, labels in loader])
    assert orders[0] == orders[1]


class Wrapped:
    """A loader of someone's own around one of torch."""

    def __init__(self, inner: DataLoader[Any]) -> None:
        self.inner = inner

    def __iter__(self) -> Iterator[Any]:
        return iter(self.inner)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("kind", ["indexed", "sampled", "stream", "wrapped"])
def test_workers_that_persist_are_left_as_they_were(kind: str, begun: bool, tmp_path: Path) -> None:
    """They go on, end when their loader is freed, and are not left to the garbage collector, for which torch waits."""
    options: dict[str, Any] = {"num_workers": 1, "persistent_workers": True, "timeout": 20}
    made = {
        "indexed": lambda: DataLoader(data(), 6, **options),
        "sampled": lambda: DataLoader(data(), batch_sampler=sampled().batch_sampler, **options),
        "stream": lambda: DataLoader(Stream(), 6, **options),
        "wrapped": lambda: DataLoader(data(), 6, **options),
    }
    inner = made[kind]()
    loader: Any = Wrapped(inner) if kind == "wrapped" else inner
    before: Any = [len(labels) for _, labels in loader] and inner._iterator if begun else None
    model = Net()
    cached = precompute(model, loader, tmp_path)
    assert inner._iterator is before
    before = None
    with cached:
        train(model, loader, epochs=1)
    iterator: Any = inner._iterator
    (worker,) = iterator._workers
    freed = weakref.ref(iterator)
    del iterator, inner, loader
    assert freed() is None
    worker.join(30)
    assert worker.exitcode == 0
    assert cached.computed > 0


def test_what_is_damaged_is_computed_anew(tmp_path: Path) -> None:
    """Any byte; and what a killed run wrote half."""
    model, loader = Net(), DataLoader(data(), 6)
    with precompute(model, loader, tmp_path):
        wanted = [model(x) for x, _ in loader]
    (path,) = tmp_path.glob(f"*{KEYED}")
    whole = path.read_bytes()
    for place in random.Random(0).sample(range(len(whole) - 24 * 96, len(whole)), 30):
        broken = bytearray(whole)
        broken[place] ^= 8
        path.write_bytes(broken)
        with precompute(model, loader, tmp_path):
            assert all(torch.equal(model(x), one) for (x, _), one in zip(loader, wanted, strict=True))
    for cut in (len(whole) - 1, len(whole) - 100, len(whole) - 24 * 90):
        path.write_bytes(whole[:cut])
        with precompute(model, loader, tmp_path):
            assert all(torch.equal(model(x), one) for (x, _), one in zip(loader, wanted, strict=True))
        assert path.stat().st_size >= len(whole)
    path.write_bytes(whole[:100])
    with pytest.raises(FtkitError, match="not a whole file"):
        precompute(model, loader, tmp_path)


def test_two_runs_add_to_one_file(tmp_path: Path) -> None:
    """Each finds what the other has computed."""
    models, loader = [Net(), Net()], DataLoader(data(), 6)
    batches = [x for x, _ in loader]
    one, other = (precompute(model, loader, tmp_path) for model in models)
    with one, other:
        for at, x in enumerate(batches):
            first = models[at % 2](x)
            assert torch.equal(models[1 - at % 2](x), first)
    assert (one.computed, other.computed) == (12, 12)


def test_when_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training goes on, and a warning says that it is slower; once."""
    for options, free in (({"max_bytes": 5000}, 1 << 40), ({}, 100)):
        model, plain, loader = Net(), Net(), DataLoader(data(), 6)
        folder = tmp_path / str(free)
        with precompute(model, loader, folder, **options) as cached:  # type: ignore[arg-type]
            monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
            with pytest.warns(UserWarning, match="computed each time"):
                trained = train(model, loader)
            monkeypatch.undo()
        assert same(trained, train(plain, loader))
        assert cached.samples < 24


def test_copies_run_whole(tmp_path: Path) -> None:
    """And pickles."""
    model, loader = Net().eval(), DataLoader(data(), 6)
    (x, _) = next(iter(loader))
    with precompute(model, loader, tmp_path) as cached:
        wanted = model(x)
        assert torch.equal(copy.deepcopy(model)(x), wanted)
        torch.save(model.state_dict(), tmp_path / "weights.pt")
        assert cached.computed == 6
    assert torch.equal(model(x), wanted)
    assert not model._forward_pre_hooks


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda model, folder: precompute(model, iter(DataLoader(data(), 6)), folder), "is an iterator"),
        (lambda model, folder: precompute(model, DataLoader(data(), 6), folder, views=2), "views= needs a data set"),
        (lambda model, folder: precompute(model, DataLoader(data(), 6), folder).loader(), "got a loader"),
        (lambda model, folder: precompute(model, DataLoader(data(), 6), folder).features(), "got a loader"),
        (lambda model, folder: precompute(model, Stream(), folder), "pass your loader"),
        (lambda model, folder: precompute(model, DataLoader([], 6), folder), "fewer than 2"),
        (lambda model, folder: precompute(model, DataLoader(["a", "b"], 6), folder), "a dict of what its forward"),
        (lambda model, folder: precompute(model, {1, 2}, folder), "A sample must be a tensor"),
    ],
)
def test_mistakes(call: Any, said: str, tmp_path: Path) -> None:
    """Each says what to do."""
    with pytest.raises(FtkitError, match=said):
        call(Net(), tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        lambda x: x.t().contiguous().t(),
        lambda x: torch.stack([x, x], 2)[..., 0],
        lambda x: x[:1].expand(len(x), -1),
    ],
)
def test_inputs_that_lie_otherwise_in_memory_are_told_apart(other: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    """Code may ask for it, and kernels round by it; in a later run, too."""

    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
            freeze_except(self, "head")

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x * (2 if x.is_contiguous() else 1)))

    model = Asks()
    plain, inputs = copy.deepcopy(model), torch.randn(12, 6)
    for _ in range(2):
        with precompute(model, DataLoader(TensorDataset(inputs, torch.arange(12)), 6), tmp_path):
            for batch in inputs.split(6):
                for one in (batch, other(batch), batch, other(batch), batch[:1], other(batch)[:1]):
                    torch.testing.assert_close(model(one), plain(one))


def test_a_model_with_its_own_autocast_is_looked_up(tmp_path: Path) -> None:
    """As Accelerate wraps the forward of what it prepares: autocast is another in there than around."""

    class Mixed(Net):
        def forward(self, x: Tensor, mask: Tensor | None = None, flip: bool = False) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x, mask, flip).float()

    model, loader = Mixed(), DataLoader(data(), 6)
    plain = copy.deepcopy(model)
    expected = train(plain, loader)
    with precompute(model, loader, tmp_path) as cached:
        assert same(train(model, loader), expected)
    assert cached._lookup is not None
    assert (cached._lookup.found, cached._lookup.as_before) == (48, {})


def test_what_a_collate_function_adds_beside_tensors(tmp_path: Path) -> None:
    """As the flag by which models of two towers compute their loss."""

    def collated(samples: list[Any]) -> dict[str, Any]:
        return {"x": torch.stack([x for x, _ in samples]), "flip": True, "name": "some"}

    model, loader = Net(), DataLoader(data(), 6, collate_fn=collated)
    plain = copy.deepcopy(model)
    with precompute(model, loader, tmp_path) as cached:
        for _ in range(2):
            for batch in loader:
                assert torch.equal(model(batch["x"], flip=batch["flip"]), plain(batch["x"], flip=True))
    assert cached._lookup is not None
    assert (cached._lookup.found, cached._lookup.as_before) == (24, {})


@pytest.mark.parametrize("scale", [0.5, np.float32(0.5), torch.tensor(0.5)])
def test_a_number_for_all_samples(scale: Any, tmp_path: Path) -> None:
    """Also as a tensor without dimensions, as torch makes of NumPy's numbers."""

    class Scaled(Net):
        def forward(self, x: Tensor, scale: Any = 1.0) -> Tensor:  # type: ignore[override]
            return self.head(self.body(x * scale))

    class Batches(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return ({"x": x, "scale": scale} for x, _ in DataLoader(data(), 6))

    model, loader = Scaled(), DataLoader(Batches(), batch_size=None)
    plain = copy.deepcopy(model)
    with precompute(model, loader, tmp_path) as cached:
        for batch in [*loader, *loader]:
            assert torch.equal(model(**batch), plain(**batch))
        assert cached._lookup is not None
        assert (cached._lookup.found, cached._lookup.as_before) == (24, {})
        other = {**batch, "scale": 2 * batch["scale"]}
        assert torch.equal(model(**other), plain(**other))


def hang_autocast_around(model: nn.Module) -> None:
    """As Accelerate does, in the instance."""
    inner = model.forward

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return inner(*args, **kwargs).float()

    model.forward = forward


@pytest.mark.parametrize("by_content", [False, True])
@pytest.mark.parametrize("when", ["before", "after", "in the block"])
@pytest.mark.parametrize("mixed", [False, True])
def test_an_autocast_that_a_framework_hangs_around_forward(
    mixed: bool, when: str, by_content: bool, tmp_path: Path
) -> None:
    """Before precompute, after it, or in the block, as transformers' Trainer does: the same, or a word why not."""
    model, loader = Net(), DataLoader(data(), 6)
    plain = copy.deepcopy(model)
    hang_autocast_around(plain)
    expected = train(plain, loader)
    if when == "before":
        hang_autocast_around(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        cached = precompute(model, loader if by_content else data(), tmp_path, batch_size=6)
    if when == "after":
        hang_autocast_around(model)
    fits = when == "before" if not mixed else not by_content or when == "in the block"
    block: Any = contextlib.nullcontext()
    if not fits and by_content:
        block = pytest.warns(UserWarning, match=r"another autocast|another forward\(\)")
    elif not fits and not mixed:
        block = pytest.raises(FtkitError, match="Autocast differs")
    with block, cached:
        if when == "in the block":
            hang_autocast_around(model)
        assert same(train(model, loader if by_content else cached.loader(batch_size=6)), expected)
    if by_content:
        assert cached._lookup is not None
        assert cached._lookup.found == (0 if not fits else 48 if when == "before" else 42)


def test_what_a_trainer_passes_for_the_loss_beside_the_batch(tmp_path: Path) -> None:
    """As the one of transformers does, with the number of labels of all batches of a step."""

    class Summing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, x: Tensor, labels: Tensor, **kwargs: Any) -> Tensor:
            loss = nn.functional.cross_entropy(self.net(x), labels, reduction="sum")
            return loss / kwargs.get("num_items_in_batch", len(x))

    model = Summing()
    batches = [{"labels": labels, "x": x} for x, labels in DataLoader(data(), 6)]
    with precompute(model, SimpleLoader(batches), tmp_path) as cached:
        for number, batch in enumerate(batches, start=1):
            with torch.no_grad():
                expected = copy.deepcopy(model)(**batch, num_items_in_batch=torch.tensor(number))
                assert torch.equal(model(**batch, num_items_in_batch=torch.tensor(number)), expected)
    assert cached._lookup is not None
    assert (cached.computed, cached._lookup.as_before) == (24, {})


class SimpleLoader:
    """What can be iterated over again, and no more."""

    def __init__(self, batches: list[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)


def test_a_block_in_which_nothing_is_looked_up_says_so_once(tmp_path: Path) -> None:
    """Not for nothing: one that is left by an error, without calls, or with some that were looked up."""
    model, loader = Net(), DataLoader(data(), 6)
    cached = precompute(model, loader, tmp_path)
    said = r"Nothing was looked up.* the Net ran as before.*: other arguments \(4\)\."

    def otherwise() -> None:
        with cached:
            for inputs, _ in loader:
                model(inputs, flip=True)

    with pytest.warns(UserWarning, match=said) as told:
        otherwise()
    assert len(told) == 1
    with cached:
        pass
    with cached:
        for inputs, _ in loader:
            model(inputs)
            model(inputs, flip=True)


def others() -> TensorDataset:
    torch.manual_seed(5)
    return TensorDataset(torch.randn(12, 8), torch.arange(12) % 3)


def test_a_cache_that_is_made_in_the_block_of_another(tmp_path: Path) -> None:
    """It is what it would be if it had been made before; for a data set, too."""
    for beside in (DataLoader(others(), 6), others()):
        model, plain, loader = Net(), Net(), DataLoader(data(), 6, shuffle=True)
        place = tmp_path / type(beside).__name__
        expected = precompute(plain, beside, place / "before")
        with precompute(model, loader, place / "train") as first:
            train(model, loader, 1)
            hooks = [*model._forward_pre_hooks.values()], [*model._forward_hooks.values()], vars(model)["forward"]
            second = precompute(model, beside, place / "inside")
            assert hooks == ([*model._forward_pre_hooks.values()], [*model._forward_hooks.values()], model.forward)
            assert (second.skipped, second.share, second.kept) == (expected.skipped, expected.share, expected.kept)
            assert second.path.name == expected.path.name
            before = first.computed
            with second:
                for inputs, _ in beside if isinstance(beside, DataLoader) else second.loader(batch_size=6):
                    model(inputs)
            train(model, loader, 1)
        assert first.computed == before == 24
        train(plain, loader, 1)
        train(plain, loader, 1)
        assert same(model.state_dict(), plain.state_dict())
        assert not first.__dict__["_lookup"].as_before


def test_a_cache_that_can_not_be_made_in_the_block_of_another(tmp_path: Path) -> None:
    """The block goes on as it was."""
    model, loader = Net(), DataLoader(data(), 6)
    with precompute(model, loader, tmp_path) as cached:
        train(model, loader, 1)
        with pytest.raises(FtkitError, match="fails on a batch"):
            precompute(model, DataLoader(TensorDataset(torch.randn(8, 9)), 4), tmp_path)
        train(model, loader, 1)
    assert cached.computed == 24
    assert "ran as before" not in str(cached)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("inside", [False, True])
def test_two_caches_of_one_model(inside: bool, tmp_path: Path) -> None:
    """As for training and validation. The one that has the samples of a call answers it, and none is called useless."""
    beside, loader = DataLoader(others(), 6), DataLoader(data(), 6, shuffle=True)
    plain = Net()
    expected = train(plain, loader), [plain(x) for x, _ in beside]
    for again in range(2):
        model = Net()
        first = precompute(model, loader, tmp_path / "train")
        if not again:
            with first:
                for inputs, _ in loader:
                    model(inputs)
        with contextlib.ExitStack() as blocks:
            if not inside:
                second = precompute(model, beside, tmp_path / "val")
            blocks.enter_context(first)
            if inside:
                second = precompute(model, beside, tmp_path / "val")
            blocks.enter_context(second)
            ends = train(model, loader)
            for (inputs, _), there in zip(beside, expected[1], strict=True):
                torch.testing.assert_close(model(inputs), there)
        assert same(ends, expected[0])
        assert (first.samples, second.samples) == (24, 12)
        assert "ran as before" not in f"{first}{second}"


def test_rows_in_the_block_of_a_loader(tmp_path: Path) -> None:
    """They are answered, and so none of its business."""
    model, plain = Net(), Net()
    rows = precompute(model, data(), tmp_path)
    for first, second in ((0, 1), (1, 0)):
        blocks = rows, precompute(model, DataLoader(others(), 6), tmp_path)
        with blocks[first], blocks[second]:
            for row, (inputs, _) in zip(rows.loader(batch_size=6), DataLoader(data(), 6), strict=True):
                torch.testing.assert_close(model(row[0]), plain(inputs))
        assert "ran as before" not in str(blocks[1])


class Last(nn.Module):
    """Writes to a batch of one sample, and to no other."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
        freeze_except(self, "head")

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x.relu_() if len(x) == 1 else x.relu()))


def test_a_batch_that_is_written_to_where_others_are_not(tmp_path: Path) -> None:
    """Which no batch of the probes shows."""
    model, loader = Last(), DataLoader(data(7), 3)
    with (
        precompute(model, loader, tmp_path),
        pytest.raises(FtkitError, match="In a batch of 1 sample, the inputs of the Last are written to in place"),
    ):
        train(model, loader, epochs=1)
