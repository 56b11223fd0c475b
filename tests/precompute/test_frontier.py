"""Where the frozen part ends: what may be looked up, what may not, and what is kept for it."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ftkit import FtkitError, freeze_except
from ftkit._precompute.frontier import Layout
from ftkit._precompute.precompute import precompute
from tests.precompute.loops import same, train
from tests.precompute.smallest import smallest


class Model(nn.Module):
    """Two layers and a head, in any order."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        for name, part in parts.items():
            setattr(self, name, part)
        self._run = forward
        freeze_except(self, "head")

    def forward(self, x: Tensor) -> Any:
        return self._run(self, x)


def data() -> TensorDataset:
    torch.manual_seed(1)
    return TensorDataset(torch.randn(12, 4), torch.arange(12) % 2)


def checked(model: nn.Module, folder: Any) -> Any:
    """Compare rows with inputs, before and after the head has changed."""
    cached = precompute(model, data(), folder, batch_size=6)
    with cached:
        for _ in range(2):
            for (rows, _), start in zip(cached.loader(batch_size=6), (0, 6), strict=True):
                inputs = data().tensors[0][start : start + 6]
                state, torch_state = random.getstate(), torch.get_rng_state()
                plain = model(inputs)
                random.setstate(state)
                torch.set_rng_state(torch_state)
                assert torch.equal(model(rows), plain)
            with torch.no_grad():
                for one in model.head.parameters():
                    one.add_(torch.randn_like(one))
    return cached


class Leaking(nn.Module):
    """Keeps what it computed, for others to find."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.layer(x)
        return self.last


class Random(nn.Module):
    """Draws from Python's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * random.random()


class Pair(nn.Module):
    """Gives two views of one memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.layer(x)
        return y, y[:, :2]


def in_place(m: Any, x: Tensor) -> Any:
    y = m.a(x)
    z = m.b(y)
    y += 1
    return m.head(y * z)


def in_place_by_what_trains(m: Any, x: Tensor) -> Any:
    y = m.a(x)
    z = y.clone()
    z[:, :2] += m.head(y)
    return m.head(m.b(z))


def views(m: Any, x: Tensor) -> Any:
    y, v = m.pair(x)
    y = y.relu_()
    return m.head(torch.cat([v, v], 1) + y)


def alias(m: Any, x: Tensor) -> Any:
    y = m.a(x)
    z = m.same(y)
    y.relu_()
    return m.head(z)


def by_value(m: Any, x: Tensor) -> Any:
    y = m.a(x)
    return m.head(y * (2 if y.max().item() > 1 else 1) + torch.tensor(y.tolist()))


CASES: dict[str, tuple[Callable[..., Any], dict[str, Callable[[], nn.Module]], list[str]]] = {
    "called twice": (lambda m, x: m.head(m.a(m.a(x)) + x), {}, ["a"]),
    "in place": (in_place, {}, ["a", "b"]),
    "in place, by what trains": (in_place_by_what_trains, {}, ["a"]),
    "views of one memory": (views, {"pair": Pair}, ["pair"]),
    "the same tensor by two names": (alias, {"same": nn.Identity}, ["a"]),
    "values that Python reads": (by_value, {}, ["a"]),
    "an attribute": (lambda m, x: m.head(m.leak(x).relu() + m.leak.last), {"leak": Leaking}, ["leak.layer"]),
    "Python's random numbers": (lambda m, x: m.head(m.random(x)), {"random": Random}, ["random.layer"]),
    "a norm of the batch": (
        lambda m, x: m.head(m.b(m.norm(m.a(x)))),
        {"norm": lambda: nn.BatchNorm1d(4, track_running_stats=False)},
        ["a"],
    ),
    "a constant": (lambda m, x: m.head(m.a(x) + m.b(torch.ones(4))), {}, ["a"]),
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_the_same_to_the_bit(case: str, tmp_path: Any) -> None:
    """And what can't be looked up runs."""
    forward, parts, skipped = CASES[case]
    cached = checked(Model(forward, **{name: make() for name, make in parts.items()}), tmp_path)
    assert cached.skipped == skipped


def test_what_depends_on_trained_values_through_python_is_refused(tmp_path: Any) -> None:
    """No operator shows it."""
    with pytest.raises(FtkitError, match="Python has read a value"):
        precompute(Model(lambda m, x: m.head(m.a(x * m.head.bias[0].item()))), data(), tmp_path)


def test_a_changed_setting_is_noticed(tmp_path: Any) -> None:
    """A rate or a size that a frozen module keeps as an attribute."""
    model = Model(lambda m, x: m.head(m.norm(m.a(x))), norm=nn.LayerNorm(4))
    cached = precompute(model, data(), tmp_path)
    model.norm.eps = 0.5
    with pytest.raises(FtkitError, match=r"norm\.eps was 1e-05 .* 0\.5 now"):
        cached.loader()
    assert precompute(model, data(), tmp_path).computed == 12


def test_the_narrowest_tensors_are_kept(tmp_path: Any) -> None:
    """Before an upsampling, behind a pooling."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.AvgPool2d(4), nn.Upsample(scale_factor=8), nn.Conv2d(4, 1, 1)
    )
    freeze_except(model, "3")
    cached = precompute(model, TensorDataset(torch.randn(4, 1, 8, 8)), tmp_path)
    assert [one[1] for one in cached.kept] == [(1, 4, 2, 2)]


OPERATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda x, y: x + y,
    "multiply": lambda x, y: x * y,
    "add in place": lambda x, y: x.add_(y) if x is not y and not x.is_leaf else x + y,
    "rectify in place": lambda x, y: (x * 1).relu_() + y,
    "shift": lambda x, y: torch.roll(x, 1, -1) - y,
    "join": lambda x, y: torch.cat([x[:, :2], y[:, 2:]], 1),
    "view": lambda x, y: x.view(-1, 2, 2).transpose(1, 2).reshape(-1, 4) + y,
}


class Odd(nn.Linear):
    """Does something that no look-up may stand for, by chance in a way that seldom shows."""

    def __init__(self, kind: str) -> None:
        super().__init__(4, 4)
        self.kind, self.seen, self.memory = kind, 0, [0.0]
        self.generator, self.numbers = torch.Generator().manual_seed(0), random.Random(0)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        match self.kind:
            case "mean":
                return y - 1e-3 * y.mean(0)
            case "largest":
                return y / y.abs().max().clamp(min=1)
            case "place":
                return torch.cat([y[:-1], y[-1:] * 1.01])
            case "size":
                return y + len(x) % 5
            case "threshold":
                return y * 2 if y.max() > 2 else y
            case "generator":
                return y * torch.rand(1, generator=self.generator)
            case "numbers":
                return y * (2 if self.numbers.random() < 0.2 else 1)
            case "counter":
                self.seen += 1
                return y * (2 if self.seen % 3 == 0 else 1)
            case "memory":
                self.memory[0] += 0.1
                return y + self.memory[0]
            case "running":
                self.memory.append(float(y.detach().mean()))
                return y + sum(self.memory) / 10
            case "dropout":
                return nn.functional.dropout(y, 0.3)
            case "order":
                return y[y[:, 0].argsort()]
            case "neighbors":
                return y + 0.01 * y.roll(1, 0)
            case "in place":
                x.mul_(0.5) if not x.is_leaf and not x.requires_grad else None
                return y + x
        return y


ODD = (
    "mean", "largest", "place", "size", "threshold", "generator", "numbers", "counter", "memory", "running", "dropout",
    "order", "neighbors", "in place", *["plain"] * 4,
)  # fmt: skip


class Graph(nn.Module):
    """A random network: each step takes two earlier values, joins them, and runs a layer that may be shared."""

    def __init__(self, steps: list[tuple[int, int, str, int]], outputs: int, odd: str = "plain") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)) if at % 2 else nn.Linear(4, 4) for at in range(5)
        )
        self.layers.append(Odd(odd))
        self.steps, self.outputs = steps, outputs

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for one, other, name, layer in self.steps:
            joined = OPERATORS[name](values[one % len(values)], values[other % len(values)])
            values.append(self.layers[layer](joined))
        found = values[-self.outputs :]
        return tuple(found) if self.outputs < 3 else {str(at): one for at, one in enumerate(found)}


STEP = st.tuples(st.integers(0, 9), st.integers(0, 9), st.sampled_from(sorted(OPERATORS)), st.integers(0, 5))
GRAPH = (
    st.lists(STEP, min_size=2, max_size=7),
    st.sets(st.integers(0, 4), min_size=1, max_size=3),
    st.integers(1, 4),
    st.sampled_from(ODD),
    st.integers(3, 7),
)


@given(*GRAPH)
@settings(max_examples=15, deadline=None)
def test_random_graphs(tmp_path_factory: Any, steps: Any, trained: Any, outputs: int, odd: str, size: int) -> None:
    """Plain training and training on rows end with the same weights, or it is refused."""
    compared(tmp_path_factory.mktemp("rows"), steps, trained, outputs, odd, size)


@pytest.mark.slow
@given(*GRAPH)
@settings(max_examples=1000, deadline=None)
def test_many_random_graphs(tmp_path_factory: Any, steps: Any, trained: Any, outputs: int, odd: str, size: int) -> None:
    """As many as it takes."""
    compared(tmp_path_factory.mktemp("rows"), steps, trained, outputs, odd, size)


def compared(folder: Any, steps: Any, trained: set[int], outputs: int, odd: str, size: int) -> str:
    model = Graph(steps, outputs, odd)
    freeze_except(model, *(model.layers[at] for at in trained))
    plain = copy.deepcopy(model)
    inputs = data().tensors[0]
    try:
        with precompute(model, TensorDataset(inputs), folder, batch_size=6) as cached:
            ours = fitted(model, [rows for (rows,) in cached.loader(batch_size=size)])
    except FtkitError:
        return "refused"
    theirs = fitted(plain, list(inputs.split(size)))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other) if size == 6 else torch.allclose(one, other, rtol=1e-3, atol=1e-5)
    return "same"


def fitted(model: nn.Module, batches: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(3)
    used = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.SGD(used, lr=0.01)
    for batch in batches * 2:
        output = model(batch)
        values = output.values() if isinstance(output, dict) else output
        loss = sum((one.sin().sum() for one in values), torch.zeros(()))
        if loss.requires_grad:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return [one.detach() for one in used]


@given(*GRAPH[:3])
@settings(max_examples=15, deadline=None)
def test_no_more_is_kept_than_has_to_be(tmp_path_factory: Any, steps: Any, trained: Any, outputs: int) -> None:
    """Beside a minimum cut through all that operators give, found by networkx in a graph of its own."""
    compared_with_the_least(tmp_path_factory.mktemp("rows"), steps, trained, outputs)


@pytest.mark.slow
@given(*GRAPH[:3])
@settings(max_examples=500, deadline=None)
def test_no_more_is_kept_in_many_graphs(tmp_path_factory: Any, steps: Any, trained: Any, outputs: int) -> None:
    """As many as it takes."""
    compared_with_the_least(tmp_path_factory.mktemp("rows"), steps, trained, outputs)


def compared_with_the_least(folder: Any, steps: Any, trained: set[int], outputs: int) -> None:
    # What joins halves takes views of them, which are less than anything that a module takes or gives.
    model = Graph([(one, other, "add" if name == "join" else name, at) for one, other, name, at in steps], outputs)
    freeze_except(model, *(model.layers[at] for at in trained))
    inputs = data().tensors[0]
    try:
        cached = precompute(model, TensorDataset(inputs), folder)
    except FtkitError:
        return
    kept = sum(size for *_, size in cached.kept)
    assert kept <= 1.1 * smallest(model, cached._player.cut.skips, inputs[:3])


def kept_of(model: nn.Module, folder: Any) -> list[tuple[int, ...]]:
    return [shape for _, shape, *_ in checked(model, folder).kept]


def masked_at_random(m: Any, x: Tensor) -> Any:
    y = m.a(x)
    y[torch.from_numpy(np.random.rand(*y.shape) < 0.5)] = 0.0  # noqa: NPY002
    return m.head(y)


def test_what_a_caller_writes_to_an_output_is_not_the_calls(tmp_path: Any) -> None:
    """As SpecAugment does: the call itself gives the same for the same sample."""
    cached = precompute(Model(masked_at_random), data(), tmp_path)
    assert (cached.skipped, [shape for _, shape, *_ in cached.kept]) == (["a"], [(1, 4)])


def draws_late(m: Any, x: Tensor) -> Any:
    return m.head(m.b(m.wide(x).unflatten(1, (4, 4)).mean(2)) * (1 + random.random()))


def test_what_comes_before_a_draw_is_constant(tmp_path: Any) -> None:
    """Not only calls, what the module that draws does between them, too."""
    assert kept_of(Model(draws_late, wide=nn.Linear(4, 16)), tmp_path) == [(1, 4)]


class RemembersADraw(nn.Module):
    """Uses a number in the next call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.numbers = nn.Linear(4, 4), [0.5]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x * self.numbers[0])
        self.numbers[0] = random.random()
        return y


def test_a_draw_that_is_remembered(tmp_path: Any) -> None:
    """What comes before it depends on the one before."""
    with pytest.raises(FtkitError, match="it keeps what it computed"):
        precompute(Model(lambda m, x: m.head(m.memory(x)), memory=RemembersADraw()), data(), tmp_path)


class DrawsBetween(nn.Module):
    """Gives back something that nobody needs, beside what it needs."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.layer = nn.Linear(4, 64), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        wide = self.wide(x)
        return self.layer(wide) * (1 + random.random()), wide


@pytest.mark.parametrize("used", [False, True])
def test_what_a_module_that_draws_gives_back_is_kept_if_it_is_used(used: bool, tmp_path: Any) -> None:
    """A view of it, too."""

    def forward(m: Any, x: Tensor) -> Any:
        y, wide = m.between(x)
        return m.head(y + wide[:, :4] if used else y)

    kept = kept_of(Model(forward, between=DrawsBetween()), tmp_path)
    assert kept == ([(1, 64), (1, 4)] if used else [(1, 4)])


def first_of_constants(m: Any, x: Tensor) -> Any:
    token = m.token.weight.expand(2 * len(x), 1, 4)
    tokens = torch.cat([token, m.a(x).repeat_interleave(2, 0)[:, None]], 1)
    return m.head(m.b(tokens[: len(x), 0] * tokens[:, 1].view(-1, 2, 4).mean(1)))


def test_a_choice_by_place_of_what_is_the_same_for_all(tmp_path: Any) -> None:
    """As Timesformer takes the class token of the first images, for all."""
    model = Model(first_of_constants, token=nn.Embedding(1, 4))
    assert checked(model, tmp_path).skipped == ["a", "b"]


@pytest.mark.parametrize("how", ["view", "in place", "split"])
def test_a_choice_by_place_is_noticed_through_views(how: str, tmp_path: Any) -> None:
    """Where what was chosen is used."""

    def forward(m: Any, x: Tensor) -> Any:
        y = m.a(x).clone()
        if how == "view":
            y[:1].view(-1)[:3].view(3, 1).squeeze().add_(1)
        elif how == "in place":
            y[:1].mul_(1.5)
        else:
            first, *others = y.split(1)
            y = torch.cat([first * 2, *others])
        return m.head(m.b(y))

    assert checked(Model(forward), tmp_path).skipped == ["a"]


@dataclass
class Answer:
    """What a model gives back in a class of its own."""

    logits: Tensor
    features: list[Tensor]


def test_a_dataclass_is_given_back(tmp_path: Any) -> None:
    """With the values of the frozen part in it."""

    def forward(m: Any, x: Tensor) -> Any:
        y = m.a(x)
        return Answer(m.head(y), [y])

    model = Model(forward)
    with precompute(model, data(), tmp_path, batch_size=12) as cached:
        (rows, _), plain = next(iter(cached.loader(batch_size=12))), model(data().tensors[0])
        assert torch.equal(model(rows).features[0], plain.features[0])


def by_gradient(m: Any, x: Tensor) -> Any:
    y = m.a(x).detach().requires_grad_()
    scores = m.head(y)
    return scores.tanh() + torch.autograd.grad(scores.tanh().sum(), y, create_graph=True)[0].sum()


def by_gradient_of_frozen(m: Any, x: Tensor) -> Any:
    y = m.a(x).detach().requires_grad_()
    return m.head(y.detach() + torch.autograd.grad(m.b(y).tanh().sum(), y)[0])


@pytest.mark.parametrize("forward", [by_gradient, by_gradient_of_frozen])
def test_gradients_that_a_forward_takes_itself(forward: Callable[..., Any], tmp_path: Any) -> None:
    """By values of the frozen part: what leads to those is skipped, and what they pass through is not."""
    assert checked(Model(forward), tmp_path).skipped == ["a"]


class Either(nn.Module):
    """Of its layers, a call uses one."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, *, ends: bool = False) -> Tensor:
        found: Tensor = self.head(x) if ends else self.body(x)
        return found


def test_a_module_of_which_another_call_trains(tmp_path: Any) -> None:
    """Its parts are skipped where it is not."""
    model = Model(lambda m, x: m.either(m.a(m.either(x)), ends=True), either=Either())
    freeze_except(model, "either.head")
    assert checked(model, tmp_path).skipped == ["either.body", "a"]


class Swaps(nn.Module):
    """Changes its own modules."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        freeze_except(self, "head")

    def forward(self, x: Tensor) -> Tensor:
        self.a, self.b = self.b, self.a
        scores: Tensor = self.head(self.b(self.a(x).tanh()))
        return scores


def test_a_model_that_exchanges_its_modules_is_refused(tmp_path: Any) -> None:
    """A module is known by its name."""
    model = Swaps()
    cached = precompute(model, data(), tmp_path, batch_size=6)
    loader = cached.loader(batch_size=6)
    with pytest.raises(FtkitError, match="other submodules"), cached:
        for rows, _ in loader:
            model(rows)


@pytest.mark.parametrize("side", [32 + 16, 32 + 32, 32 + 48])
def test_inputs_as_long_as_a_row(side: int, tmp_path: Any) -> None:
    """The rows are longer then, so that nobody takes one for the other."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(side, (side - 32) // 4), nn.Linear((side - 32) // 4, 2))
    freeze_except(model, "1")
    inputs = torch.randn(6, side)
    with precompute(model, TensorDataset(inputs), tmp_path, batch_size=6) as cached:
        assert torch.equal(model(next(iter(cached.loader(batch_size=6)))[0]), model(inputs))
    loader = DataLoader(TensorDataset(inputs), 6)
    for _ in range(2):
        with precompute(model, loader, tmp_path) as cached:
            assert torch.equal(model(inputs), model(inputs))
    assert (cached.samples, cached.computed) == (6, 0)


class Recurrent(nn.Module):
    """A recurrent layer in front of a head."""

    def __init__(self, kind: type[nn.RNNBase], batch_first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = kind(4, 8, num_layers=2, batch_first=batch_first)  # type: ignore[call-arg]
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.unflatten(1, (2, 2)).repeat(1, 1, 2)
        found = self.layer(steps if self.layer.batch_first else steps.transpose(0, 1))[0]
        return self.head(found[:, -1] if self.layer.batch_first else found[-1])


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(kind: type[nn.RNNBase], batch_first: bool, tmp_path: Any) -> None:
    """Their steps are no samples."""
    model = Recurrent(kind, batch_first)
    freeze_except(model, "head")
    assert checked(model, tmp_path).skipped == ["layer"]


class Masked(nn.Module):
    """Leaves its mask out where a batch needs none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True) for _ in range(2))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor, mask: Tensor, y: Tensor | None = None) -> Any:
        padding = None if bool(mask.all()) else ~mask
        for block in self.blocks:
            x = block(x, src_key_padding_mask=padding)
        logits = self.head(x[:, 0])
        return logits if y is None else nn.functional.cross_entropy(logits, y)


def test_a_mask_may_be_none_in_some_batches(tmp_path: Any) -> None:
    """As in transformers, where its values decide."""
    model = Masked()
    freeze_except(model, "head", "blocks.1")
    samples = [
        {"x": torch.randn(5, 4), "mask": torch.arange(5) < (5 if at < 6 else 3), "y": torch.tensor(at % 2)}
        for at in range(12)
    ]
    model.eval()
    with precompute(model, samples, tmp_path, batch_size=6) as cached:
        assert cached.skipped == ["blocks.0"]
        for batch, start in zip(cached.loader(batch_size=6), (0, 6), strict=True):
            plain = torch.utils.data.default_collate(samples[start : start + 6])
            assert batch.keys() == {"x", "y"}
            assert torch.allclose(model(**batch), model(**plain))


class SequenceFirst(nn.Module):
    """Draws for tensors in which samples do not follow each other in memory."""

    def __init__(self, *, turned: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.dropout, self.head, self._turned = nn.Linear(2, 3), nn.Dropout(0.5), nn.Linear(6, 2), turned
        freeze_except(self, "head")

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x.view(-1, 2, 2).transpose(0, 1).contiguous())
        y = self.dropout(y.transpose(0, 1)).transpose(0, 1) if self._turned else self.dropout(y)
        scores: Tensor = self.head(y.transpose(0, 1).flatten(1))
        return scores


@pytest.mark.parametrize("turned", [False, True])
def test_samples_that_do_not_follow_each_other(turned: bool, tmp_path: Any) -> None:
    """What is looked up lies in memory as what was computed, as random numbers are drawn in that order."""
    model = SequenceFirst(turned=turned)
    model.dropout = nn.Dropout(0.5)  # not held
    assert checked(model, tmp_path).skipped == ["layer"]


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4).flatmap(
        lambda shape: st.tuples(st.just(shape), st.permutations(range(len(shape))), st.integers(0, len(shape) - 1))
    ),
    st.integers(1, 4),
    st.sampled_from([1, 2, 4]),
)
def test_a_layout_makes_again_what_it_took_apart(whole: Any, samples: int, runs: int) -> None:
    """Along any dimension and in any order in memory; and it cuts as it says."""
    shape, order, dim = whole
    shape[dim] *= runs
    layout = Layout(tuple(shape), dim, torch.float32, tuple(order), runs)
    sizes = layout.shape_of(samples)
    tensor = torch.randn([sizes[at] for at in order]).permute([order.index(at) for at in range(len(order))])
    again = layout.decode(layout.encode(tensor))
    assert torch.equal(again, tensor)
    assert again.permute(order).is_contiguous()
    pieces = tensor.chunk(runs, dim)  # as by torch.cat(), each with a part of each sample
    parts = [torch.cat(pieces_of, dim) for pieces_of in zip(*(one.chunk(samples, dim) for one in pieces), strict=True)]
    assert torch.equal(layout.parts(tensor), torch.stack(parts))


class Score(nn.Linear):
    """Gives one number for each sample, as a column of a row."""

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight @ x.t()).t()


def test_one_number_of_each_sample(tmp_path: Any) -> None:
    """Which may lie in memory with any steps between those of one sample."""
    model = Model(lambda m, x: m.head(m.score(x).expand(-1, 4)), score=Score(4, 1))
    assert [one[1] for one in checked(model, tmp_path).kept] == [(1, 1)]


def two_views(m: Any, x: Tensor) -> Any:
    one, other = m.head(m.b(m.a(torch.cat([x, x.flip(1)])))).chunk(2)
    return one - other / 2


def four_of_two_views(m: Any, x: Tensor) -> Any:
    y = m.a(torch.cat([x, x + 1]).repeat_interleave(2, 0))
    return m.head(y).view(2, len(x), 2, 2).mul(torch.arange(1, 5).view(2, 1, 2, 1)).sum((0, 2))


def time_first(m: Any, x: Tensor) -> Any:
    steps = torch.stack([x, x * 2, x.flip(1)])
    y = m.b(m.a(steps.flatten(0, 1)).unflatten(0, (3, -1)))
    return m.head(m.dropout(y).cumsum(0)[-1])


def images_in_turn(m: Any, x: Tensor) -> Any:
    y = m.conv(torch.cat([x, x.flip(1)]).view(-1, 1, 2, 2)).to(memory_format=torch.channels_last)
    one, other = m.dropout(m.conv.wide(y)).mean((2, 3)).chunk(2)
    return m.head(one * other)


class Wide(nn.Conv2d):
    """A convolution, and another one on what it gives, in channels_last."""

    def __init__(self) -> None:
        super().__init__(1, 4, 1)
        self.wide = nn.Conv2d(4, 4, 1)


@pytest.mark.parametrize(
    ("forward", "shape"),
    [
        (two_views, (2, 4)),
        (four_of_two_views, (4, 4)),
        (time_first, (3, 1, 4)),
        (images_in_turn, (2, 4, 2, 2)),
    ],
)
def test_samples_in_turn(forward: Any, shape: tuple[int, ...], tmp_path: Any) -> None:
    """As by torch.cat([a, b]), or in a video that has its frames first; also in memory, as for random numbers."""
    model = Model(forward, conv=Wide(), dropout=nn.Dropout(0.5))
    model.dropout = nn.Dropout(0.5)  # not held
    assert [one[1] for one in checked(model, tmp_path).kept] == [shape]


def test_samples_in_turn_that_mix(tmp_path: Any) -> None:
    """Those of a pair do not, but those of a shuffled batch do."""
    mixed = Model(lambda m, x: m.head(m.a(torch.cat([x, x.roll(1, 0) * 1e-7 + x]))[: len(x)]))
    with pytest.raises(FtkitError, match="a: it depends on the other samples"):
        precompute(mixed, data(), tmp_path)


class Growing(nn.Module):
    """Layers that take a list, to which what they give is added, as in a DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Last() for _ in range(3))
        self.head = nn.Linear(4, 2)
        freeze_except(self, "head", "layers.2")

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        scores: Tensor = self.head(torch.stack(features).sum(0))
        return scores


class Last(nn.Module):
    """Takes all, and looks at the last."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, given: list[Tensor]) -> Tensor:
        return self.layer(given[-1]) + len(given)


def test_a_list_that_grows_after_a_call_got_it(tmp_path: Any) -> None:
    """The call is known by what it got."""
    assert checked(Growing(), tmp_path).skipped == ["layers.0", "layers.1"]


class InPlace(nn.Module):
    """What trains begins with an operator that writes to what it gets, which may be used once more."""

    def __init__(self, *, again: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self._again = nn.Conv1d(1, 4, 1), again
        self.head = nn.Sequential(nn.Dropout(0.5, inplace=True), nn.Linear(4, 2))
        freeze_except(self, "head")
        self.head[0] = nn.Dropout(0.5, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x[:, None]).mean(2)
        scores: Tensor = self.head(y)
        return scores + y.sum(1, keepdim=True) if self._again else scores


@pytest.mark.parametrize("again", [False, True])
def test_what_is_written_to_is_kept_where_it_is_narrow(again: bool, tmp_path: Any) -> None:
    """As by the Dropout of torchvision's EfficientNet; unless someone looks for what was written."""
    kept = checked(InPlace(again=again), tmp_path).kept
    assert [shape for _, shape, *_ in kept] == [(1, 4, 4) if again else (1, 4)]


@pytest.mark.parametrize(
    ("forward", "why"),
    [
        (lambda m, x: m.head(torch.stack([m.a(one) for one in x])), r"\[4\] for 3 samples and for 2"),
        (lambda m, x: m.head(m.a(torch.cat([m.token, x]))[1:]), r"\[4, 4\] for 3 samples and \[3, 4\] for 2"),
    ],
)
def test_what_is_not_made_of_samples(forward: Any, why: str, tmp_path: Path) -> None:
    """One sample at a time, or a token that stands before the batch: the words say so."""
    model = Model(forward)
    model.register_buffer("token", torch.zeros(1, 4))
    with pytest.raises(FtkitError, match=f"a: it takes {why}, where a part for each is expected. Train without"):
        precompute(model, data(), tmp_path)


def test_an_operator_that_can_not_be_tried(tmp_path: Path) -> None:
    """It is not said to mix samples."""
    model = Model(lambda m, x: m.head(m.a(torch.bucketize(x, torch.linspace(-1, 1, 5)).float())))
    with pytest.raises(FtkitError, match="is not known to keep samples apart"):
        precompute(model, data(), tmp_path)


class Offsets(nn.Module):
    """A bag of which the code makes the offsets itself, by the places of the samples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bags, self.head = nn.EmbeddingBag(9, 4), nn.Linear(4, 2)
        freeze_except(self, "head")

    def forward(self, x: Tensor) -> Any:
        return self.head(self.bags(x.flatten(), torch.arange(0, x.numel(), x.shape[1])))


def test_constants_that_tell_the_places_of_samples(tmp_path: Path) -> None:
    """A module may take them, if what it gives does not depend on them."""
    torch.manual_seed(1)
    samples = TensorDataset(torch.randint(9, (12, 5)), torch.arange(12) % 2)
    model = Offsets()
    with precompute(model, samples, tmp_path, batch_size=12) as cached:
        assert cached.skipped == ["bags"]
        rows, _ = next(iter(cached.loader(batch_size=12)))
        assert torch.equal(model(rows), model(samples.tensors[0]))


def in_steps(model: Any, x: Tensor, out: Tensor) -> Tensor:
    for at in range(2):
        out[:, at] = model.a(x[:, None, :].repeat(1, 2, 1)[:, at] + at)
    return out


@pytest.mark.parametrize(
    "out",
    [lambda x: torch.zeros(len(x), 2, 4), lambda x: torch.empty(len(x), 2, 4), lambda x: x.new_zeros(len(x), 2, 4)],
)
def test_results_that_are_put_in_memory_that_was_made_for_them(out: Any, tmp_path: Path) -> None:
    """By code between what is skipped: what it writes is there."""
    model = Model(lambda m, x: m.head(m.b(in_steps(m, x, out(x))).mean(1)))
    assert checked(model, tmp_path / "one").skipped == ["a", "b"]
    model = Model(lambda m, x: m.head(m.b(in_steps(m, x, out(x))).mean(1)) + x[:, :2])  # which is there, too
    assert checked(model, tmp_path / "another").skipped == ["a", "b"]


def test_shapes_that_change_in_place(tmp_path: Path) -> None:
    """As those of what torch.quantile computes on its way, of which the next call knows what they were."""
    model = Model(lambda m, x: m.head(m.b(m.a(x) - m.a(x).quantile(0.5, dim=1, keepdim=True))))
    for folder in ("once", "again"):
        assert checked(model, tmp_path / folder).skipped == ["a", "b"]


class Queue(nn.Module):
    """Has a memory of what earlier batches gave, and a copy of a part that follows it."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.register_buffer("queue", torch.randn(3, 4))
        self._run = forward
        freeze_except(self, "head")

    def forward(self, x: Tensor) -> Any:
        z = self.a(x)
        scores = self.head(self.b(z + (z @ self.queue.T).softmax(1) @ self.queue))
        with torch.no_grad():
            self._run(self, z)
        return scores


def assigned(model: Any, z: Tensor) -> None:
    model.queue = torch.cat([z, model.queue])[:3]


def counted(model: Any, _: Tensor) -> None:
    model.queue = model.queue * 0.9


def copied(model: Any, z: Tensor) -> None:
    model.queue.copy_(torch.cat([z, model.queue])[:3])


def resized(model: Any, z: Tensor) -> None:
    model.queue.resize_(2, 4).copy_(z[:2])


def followed(model: Any, _: Tensor) -> None:
    model.b.weight.data = model.b.weight.data * 0.9 + model.head.weight.data.mean() * 0.1


def followed_in_place(model: Any, _: Tensor) -> None:
    model.b.weight.mul_(0.9).add_(model.head.weight.mean() * 0.1)


@pytest.mark.parametrize("update", [assigned, counted, copied, resized, followed, followed_in_place])
def test_what_a_forward_pass_leaves_in_the_model(update: Any, tmp_path: Path) -> None:
    """For the next one, as contrastive learning and moving averages do: all that reads it runs each time."""
    model = Queue(update)
    plain, before = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    cached = precompute(model, data(), tmp_path, batch_size=6)
    assert cached.skipped == ["a"]
    assert same(model.state_dict(), before)  # and the runs that find the frontier leave no trace
    with cached:
        ended = train(model, cached.loader(batch_size=6))
    assert same(ended, train(plain, DataLoader(data(), 6)))


class Threads(nn.Module):
    """Runs a part in a thread of its own."""

    def __init__(self, work: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self._work = work
        freeze_except(self, "head")

    def forward(self, x: Tensor) -> Any:
        z = self.a(x)
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(self._work, self, z).result()
        return self.head(self.c(other))


@pytest.mark.parametrize("work", [lambda m, z: m.b(z), lambda m, z: m.b(z) - z.mean(0)])
def test_modules_that_run_in_another_thread(work: Any, tmp_path: Path) -> None:
    """Where no operator is seen: what may depend on it runs each time."""
    cached = checked(Threads(work), tmp_path)
    assert cached.skipped == ["a"]
    assert cached.not_skipped == {
        "b": "it runs in another thread",
        "c": "it may depend on what b does in another thread",
    }
    assert cached.share is None  # of what b costs nothing is known


def test_operators_that_run_in_another_thread(tmp_path: Path) -> None:
    """On what is not kept."""
    with pytest.raises(FtkitError, match="called in another thread than the forward pass"):
        precompute(Threads(lambda m, z: z * m.b.weight.sum()), data(), tmp_path)


def test_an_autocast_of_the_model_s_own(tmp_path: Path) -> None:
    """Around what is skipped, so that what trains can't be called at once, without the way there."""

    def forward(m: Any, x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            features = m.a(x)
        return m.head(features.float())

    assert checked(Model(forward), tmp_path).skipped == ["a"]


class Shared(nn.Module):
    """Calls a layer of its own that others have, too."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(self.layer(x).tanh())


def test_a_layer_that_is_called_within_what_is_skipped_and_outside(tmp_path: Path) -> None:
    """Its calls there are counted where they do not happen, so that the others are known by their numbers."""
    model = Model(lambda m, x: m.head(m.both(m.a(x)).tanh()) + m.a(x * 2)[:, :2] * m.a(x * 3)[:, :2])
    model.both = Shared(model.a)
    assert checked(model, tmp_path).skipped == ["a", "both"]
