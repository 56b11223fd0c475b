"""What could make kept rows wrong without a word: training on them ends as plain training does, or is refused."""

from __future__ import annotations

import argparse
import copy
import os
import random
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ftkit import FtkitError, freeze_except
from ftkit._precompute.precompute import precompute

Body = Callable[["Frozen", Tensor], Tensor]


class Frozen(nn.Module):
    """A part that is frozen, with a forward that can be given."""

    def __init__(self, forward: Body) -> None:
        super().__init__()
        self.layer, self._run = nn.Linear(8, 8), forward
        self.calls, self.scale = 0, 1.0
        self.seen: list[int] = []
        self.kept: dict[Any, Any] = {}
        self.options = Options()
        self.generator = torch.Generator().manual_seed(0)
        self.numbers, self.python = np.random.default_rng(0), random.Random(0)
        self.inner = nn.Sequential(nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return self._run(self, x)


class Options:
    """As a configuration that modules share."""

    def __init__(self) -> None:
        self.scale, self.shape = 1.0, {"scale": [1.0]}


class Model(nn.Module):
    """A body and a head."""

    def __init__(self, forward: Body, around: Callable[[Any, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self._around = Frozen(forward), nn.Linear(8, 3), around
        freeze_except(self, "head")

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x) if self._around is None else self._around(self, x))


def data(count: int = 48) -> TensorDataset:
    torch.manual_seed(1)
    return TensorDataset(torch.randn(count, 8), torch.arange(count) % 3)


def fitted(model: nn.Module, batches: list[Any], change: Callable[[Any], object] | None = None) -> list[Any]:
    """What two epochs of a plain loop lead to, with a change after the first batch."""
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
    torch.manual_seed(2)
    random.seed(2)
    np.random.seed(2)  # noqa: NPY002
    for at, (inputs, labels) in enumerate(batches * 2):
        loss = nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if at == 0 and change is not None:
            change(model)
    return [one.detach() for one in model.parameters() if one.requires_grad]


def refused_or_right(
    model: nn.Module,
    folder: Path,
    change: Callable[[Any], object] | None = None,
    undo: Callable[[Any], object] | None = None,
    size: int = 16,
) -> str:
    """Train with rows and without; return ``"same"``, or the error that came."""
    plain = copy.deepcopy(model)
    samples = data()
    message = ""
    ours: list[Any] = []
    try:
        cached = precompute(model, samples, folder, batch_size=12)
        with cached:
            ours = fitted(model, list(cached.loader(batch_size=size)), change)
    except FtkitError as error:
        message = str(error)
    finally:
        if undo is not None:
            undo(model)
    theirs = fitted(plain, list(DataLoader(samples, size)), change)
    if undo is not None:
        undo(plain)
    if message:
        return message
    assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-6) for one, other in zip(ours, theirs, strict=True))
    return "same"


# ---------------- samples that mix


def unless_small(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    return y - y.mean(0) if len(x) > 14 else y


def last_alone(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    y[-1] += 1
    return y


def by_threshold(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    return torch.where(y.norm() > 9, y - y.mean(0), y)


def by_python(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    return y - y.mean(0) if y.norm() > 9 else y


def by_truth(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    return y - 1 if bool((y > 1.9).any()) else y


def by_count(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    return y * (1 + int((y > 1.5).sum()))


def in_order(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    return y + torch.linspace(0, 1e-5, len(y))[:, None]


MIXING: dict[str, Body] = {
    "a tiny weight": lambda m, x: m.layer(x) + 1e-6 * m.layer(x).mean(0),
    "the largest of all": lambda m, x: m.layer(x) / m.layer(x).abs().max(),
    "the norm of all": lambda m, x: m.layer(x) / m.layer(x).norm(),
    "a softmax over the batch": lambda m, x: m.layer(x).softmax(0),
    "neighbors": lambda m, x: m.layer(x) + 1e-5 * m.layer(x).roll(1, 0),
    "a product over the batch": lambda m, x: m.layer(x) @ (m.layer(x).T @ m.layer(x)),
    "reshaped away": lambda m, x: m.layer(m.layer(x).reshape(-1).view(8, -1).T.reshape(-1, 8)),
    "the rank in the batch": lambda m, x: m.layer(x) + m.layer(x)[:, :1].argsort(0),
    "only large batches": unless_small,
    "only the last": last_alone,
    "only where a value passes a threshold": by_threshold,
    "only where Python sees one": by_python,
    "a truth value": by_truth,
    "a count": by_count,
    "the place in the batch": in_order,
    "a mask of the first for all": lambda m, x: (
        m.layer(x) * torch.ones(len(x), 8).masked_fill_((x > 0)[:1].expand(x.shape), 1 + 1e-6)
    ),
    "the place in a mask": lambda m, x: (
        m.layer(x) + torch.linspace(0, 1e-5, len(x))[:, None].repeat(1, 8).masked_fill_(x > 0, 0)
    ),
    "scattered": lambda m, x: torch.zeros(8).index_add(0, torch.zeros(len(x), dtype=torch.long), m.layer(x)[:, 0]) + x,
}


@pytest.mark.parametrize("case", MIXING)
def test_samples_that_mix(case: str, tmp_path: Path) -> None:
    """Whatever the values, the size and the weight."""
    refused_or_right(Model(MIXING[case]), tmp_path)


@pytest.mark.parametrize("case", MIXING)
def test_samples_that_mix_around_what_is_frozen(case: str, tmp_path: Path) -> None:
    """In the forward of the model itself, which is not skipped."""
    refused_or_right(Model(lambda m, x: m.layer(x), lambda m, x: m.body(MIXING[case](m.body, x))), tmp_path)


Bags = Callable[[nn.EmbeddingBag, Tensor], Tensor]


class Bagged(nn.Module):
    """Embeddings of tokens, summed up, and a head."""

    def __init__(self, bags: Bags) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bags, self.head = Summed(bags), nn.Linear(8, 3)
        freeze_except(self, "head")

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.head(self.bags(tokens))
        return scores


class Summed(nn.Module):
    """Embeddings of tokens, summed up."""

    def __init__(self, bags: Bags) -> None:
        super().__init__()
        self.table, self._bags = nn.EmbeddingBag(9, 8, mode="sum"), bags

    def forward(self, tokens: Tensor) -> Tensor:
        return self._bags(self.table, tokens)


def uneven(table: nn.EmbeddingBag, x: Tensor) -> Tensor:
    starts = torch.arange(0, x.numel(), x.shape[1])
    return table(x.flatten(), torch.stack([starts, starts + 2], 1).flatten()).view(len(x), 2, -1).prod(1)


def weighted(weights: Callable[[Tensor], Tensor]) -> Bags:
    return lambda table, x: table(x, per_sample_weights=weights(x))


def tokens() -> TensorDataset:
    torch.manual_seed(1)
    return TensorDataset(torch.randint(9, (24, 6)), torch.arange(24) % 3)


@pytest.mark.parametrize(
    "bags",
    [
        lambda table, x: table(x),
        uneven,
        weighted(lambda x: x.float().softmax(1)),
        weighted(lambda x: torch.linspace(0, 1, 6).expand(x.shape)),
    ],
)
def test_sums_of_embeddings_keep_samples_apart(bags: Bags, tmp_path: Path) -> None:
    """What they give beside them grows with the batch, and is read by nobody."""
    model, samples = Bagged(bags), tokens()
    with precompute(model, samples, tmp_path, batch_size=12) as cached:
        assert cached.skipped == ["bags"]
        rows, _ = next(iter(cached.loader(batch_size=24)))
        assert torch.allclose(model(rows), model(samples.tensors[0]), atol=1e-6)


@pytest.mark.parametrize(
    ("bags", "why"),
    [
        (lambda table, x: table(x.T.reshape(x.shape)), "it depends on the other samples"),
        (weighted(lambda x: 1 + 1e-7 * x.float().softmax(0)), "it depends on the other samples"),
        (weighted(lambda x: (1 + 1e-6 * torch.arange(len(x)))[:, None].expand(x.shape)), "it depends on the place"),
    ],
)
def test_sums_of_embeddings_that_mix(bags: Bags, why: str, tmp_path: Path) -> None:
    """However little."""
    with pytest.raises(FtkitError, match=rf"bags\.table: {why}"):
        precompute(Bagged(bags), tokens(), tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_tiny_weight_in_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    """Where roundings are larger."""
    model = Model(lambda m, x: m.layer(x) + 1e-3 * m.layer(x).mean(0)).to(dtype)
    cached = precompute(model, TensorDataset(data().tensors[0].to(dtype)), tmp_path)
    assert cached.skipped == ["body.layer"]


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.layer(x).view(len(x), 2, 4).transpose(0, 1).reshape(2 * len(x), 4).softmax(-1).view(2, -1, 4)[0],
        lambda m, x: torch.bmm(m.layer(x)[:, None], m.layer(x)[:, :, None].expand(-1, -1, 4))[:, 0],
        lambda m, x: torch.fft.rfft(m.layer(x)).abs()[:, :4],
        lambda m, x: m.layer(x).sort(1).values.cumsum(1).flip(1)[:, :4],
        lambda m, x: nn.functional.pad(m.layer(x), (1, 1), value=2.0).unfold(1, 4, 2).amax(-1)[:, :4],
        lambda m, x: torch.cat([m.layer(x), m.layer(x).tril()], 1).gather(1, x.argsort(1))[:, :4],
        lambda m, x: torch.view_as_real(torch.view_as_complex(m.layer(x).view(-1, 4, 2)) * (1 + 1j)).flatten(1)[:, :4],
        lambda m, x: torch.stack(m.layer(x).unbind(1)).T[:, :4] * torch.ones(len(x), 1),
        lambda m, x: torch.einsum("bi,bj->bij", m.layer(x), x).flatten(1)[:, :4],
        lambda m, x: nn.functional.scaled_dot_product_attention(*[m.layer(x).view(-1, 1, 2, 4)] * 3).flatten(1)[:, :4],
        lambda m, x: (m.layer(x) + torch.zeros(len(x), 8).masked_fill_(x > 1, -1e9)).softmax(1)[:, :4],
        lambda m, x: torch.add(m.layer(x), x, out=torch.linspace(0, 1, len(x))[:, None].repeat(1, 8))[:, :4],
    ],
)
def test_samples_that_do_not_mix(forward: Body, tmp_path: Path) -> None:
    """Operators of all kinds keep them apart, and are seen to."""
    model = Model(lambda m, x: torch.cat([forward(m, x)] * 2, 1))
    assert refused_or_right(model, tmp_path) == "same"
    assert precompute(model, data(), tmp_path).skipped == ["body"]


# ---------------- random numbers


def own_generator(m: Any, x: Tensor) -> Tensor:
    return m.layer(x) * torch.rand(1, generator=m.generator)


def of_numpy(m: Any, x: Tensor) -> Tensor:
    return m.layer(x) * m.numbers.random()


def of_python(m: Any, x: Tensor) -> Tensor:
    return m.layer(x) * m.python.random()


_GENERATOR = torch.Generator()
_NUMBERS = np.random.default_rng(0)


def global_generator(m: Any, x: Tensor) -> Tensor:
    return m.layer(x) * torch.rand(1, generator=_GENERATOR)


def global_numbers(m: Any, x: Tensor) -> Tensor:
    return m.layer(x) * _NUMBERS.random()


def seldom(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    return y * torch.rand(()) if y.max() > 1.9 else y


def seldom_by_call(m: Any, x: Tensor) -> Tensor:
    m.calls += 1
    y = m.layer(x)
    return y * torch.rand(()) if m.calls % 7 == 0 else y


def made_each_time(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    return y * 2 if torch.Generator().seed() % 100 == 0 else y


def made_by_numpy(m: Any, x: Tensor) -> Tensor:
    return m.layer(x) * (2 if np.random.default_rng().random() < 0.01 else 1)


def made_by_python(m: Any, x: Tensor) -> Tensor:
    return m.layer(x) * (2 if random.Random().random() < 0.01 else 1)


def made_by_the_system(m: Any, x: Tensor) -> Tensor:
    return m.layer(x) * (2 if os.urandom(1)[0] < 3 else 1)


def made_by_a_helper(m: Any, x: Tensor) -> Tensor:
    return made_by_numpy(m, x)


@pytest.mark.parametrize(
    "forward", [made_each_time, made_by_numpy, made_by_python, made_by_the_system, made_by_a_helper]
)
def test_a_generator_that_is_made_in_each_call(forward: Body, tmp_path: Path) -> None:
    """Nothing from outside shows that it draws, and it changes something in one call of a hundred."""
    try:
        cached = precompute(Model(forward), data(), tmp_path)
    except FtkitError as error:
        assert "can't be computed once" in str(error)  # noqa: PT017  (by chance)
    else:
        assert cached.skipped == ["body.layer"]
        assert cached.not_skipped == {"body": "it draws random numbers"}
        assert "but for what is skipped in it: body: it draws random numbers" in str(cached)
        assert "into head" not in str(cached)  # what a part of the body gives is not always what the body gives


def test_a_path_that_is_drawn_in_train_mode(tmp_path: Path) -> None:
    """As LayerDrop: what comes after is not kept, wherever this run leads; the module that draws is named."""

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 8)
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
            self.norm = nn.LayerNorm(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for layer in self.layers:
                if not (self.training and torch.rand(()) < 0.5):
                    x = layer(x)
            return self.norm(x)

    for seed in range(6):
        model = Model(lambda m, x: x, lambda m, x: m.stack(x))
        model.stack = Stack().requires_grad_(False)
        torch.manual_seed(seed)
        cached = precompute(model, data(), tmp_path / str(seed))
        assert cached.skipped == ["stack.first"]
        assert cached.not_skipped["stack.norm"] == "it may depend on random numbers that stack draws"
        assert refused_or_right(model, tmp_path / f"{seed} again") == "same"


def restart() -> None:
    global _NUMBERS
    _GENERATOR.manual_seed(0)
    _NUMBERS = np.random.default_rng(0)


@pytest.mark.parametrize(
    "forward", [own_generator, of_numpy, of_python, global_generator, global_numbers, seldom, seldom_by_call]
)
def test_random_numbers(forward: Body, tmp_path: Path) -> None:
    """From anywhere, and seldom."""
    restart()
    refused_or_right(Model(forward), tmp_path, None, lambda _: restart())


def by_python(m: Any) -> bool:
    return random.random() < 0.2


def by_numpy(m: Any) -> bool:
    return bool(np.random.rand() < 0.2)  # noqa: NPY002


def by_an_own_generator(m: Any) -> bool:
    return bool(m.body.python.random() < 0.2)


def by_torch(m: Any) -> bool:
    return bool(torch.rand(()) < 0.2)


@pytest.mark.parametrize("chosen", [by_python, by_numpy, by_an_own_generator, by_torch])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_branch_that_is_seldom_taken(chosen: Callable[[Any], bool], inside: bool, seed: int, tmp_path: Path) -> None:
    """Between two frozen modules, or in one that has no parameters: what comes after is not kept."""

    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if chosen(model) else x

    def around(m: Any, x: Tensor) -> Tensor:
        y = m.body(x)
        y = m.body.inner(y) if inside else y * 2 if chosen(m) else y
        return m.body.after(y)

    model = Model(lambda m, x: m.layer(x), around)
    model.body.inner, model.body.after = Gate(), nn.Linear(8, 8).requires_grad_(False)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    model.body.python.seed(seed)
    refused_or_right(model, tmp_path, None, lambda m: m.body.python.seed(seed))
    assert "body.after" not in precompute(model, data(), tmp_path / "again").skipped


# ---------------- state


class Counter:
    count = 0


_SEEN: list[int] = []


def in_a_list(m: Any, x: Tensor) -> Tensor:
    m.seen.append(1)
    return m.layer(x) * len(m.seen)


def in_a_dict(m: Any, x: Tensor) -> Tensor:
    m.kept["calls"] = m.kept.get("calls", 0) + 1
    return m.layer(x) * m.kept["calls"]


def by_shape(m: Any, x: Tensor) -> Tensor:
    if x.shape not in m.kept:
        m.kept[x.shape] = m.layer(x).mean(0)
    return m.layer(x) + m.kept[x.shape]


def in_an_object(m: Any, x: Tensor) -> Tensor:
    m.options.scale += 0.5
    return m.layer(x) * m.options.scale


def in_a_nested_list(m: Any, x: Tensor) -> Tensor:
    m.options.shape["scale"][0] += 0.5
    return m.layer(x) * m.options.shape["scale"][0]


def in_a_class(m: Any, x: Tensor) -> Tensor:
    Counter.count += 1
    return m.layer(x) * Counter.count


def in_a_global(m: Any, x: Tensor) -> Tensor:
    _SEEN.append(1)
    return m.layer(x) * len(_SEEN)


def in_a_default(m: Any, x: Tensor, seen: list[int] = []) -> Tensor:  # noqa: B006
    seen.append(1)
    return m.layer(x) * len(seen)


def seen_by_the_model(m: Any, x: Tensor) -> Tensor:
    y = m.body(x)
    return y * len(m.body.seen)


def forget(_: Any) -> None:
    _SEEN.clear()
    Counter.count = 0
    in_a_default.__defaults__[0].clear()  # type: ignore[index]


@pytest.mark.parametrize(
    "forward",
    [in_a_list, in_a_dict, by_shape, in_an_object, in_a_nested_list, in_a_class, in_a_global, in_a_default],
)
def test_state(forward: Body, tmp_path: Path) -> None:
    """Wherever it is kept."""
    forget(None)
    refused_or_right(Model(forward), tmp_path, None, forget)


def test_state_that_others_read(tmp_path: Path) -> None:
    """A plain number out of what is skipped."""

    def forward(m: Any, x: Tensor) -> Tensor:
        m.seen.append(1)
        return m.layer(x)

    refused_or_right(Model(forward, seen_by_the_model), tmp_path)


class Numbers(nn.Module):
    """Gives a number beside a tensor."""

    def __init__(self, number: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.number = nn.Linear(8, 8), number

    def forward(self, x: Tensor) -> Any:
        y = self.layer(x)
        return y, self.number(y)


@pytest.mark.parametrize(
    "number",
    [
        lambda y: y.max().item(),
        lambda y: int((y > 1).sum()),
        lambda y: bool((y > 1.9).any()),
        lambda y: y.shape[0],
        lambda y: tuple(y[:, 0].tolist()),
        lambda y: float(y.detach().numpy().max()),
    ],
)
def test_plain_numbers_that_a_skipped_module_gives(number: Callable[[Tensor], Any], tmp_path: Path) -> None:
    """They are of a batch, not of a sample."""

    def around(m: Any, x: Tensor) -> Tensor:
        y, found = m.body.inner[0](x)
        return m.body(y) * (sum(found) if isinstance(found, tuple) else found)

    model = Model(lambda m, x: m.layer(x), around)
    model.body.inner = nn.Sequential(Numbers(number).requires_grad_(False))
    refused_or_right(model, tmp_path)


# ---------------- changes meanwhile


_SCALE = 1.0
_SCALES = {"scale": 1.0}


class Scaled(Frozen):
    scale_of_all = 1.0

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x) * self.scale * type(self).scale_of_all * _SCALE * _SCALES["scale"]
        return y * self.options.scale * self.options.shape["scale"][0] * helper()


def helper() -> float:
    return Options.factor  # type: ignore[attr-defined,no-any-return]


Options.factor = 1.0  # type: ignore[attr-defined]


def attribute(m: Any) -> None:
    m.body.scale = 2


def class_attribute(_: Any) -> None:
    Scaled.scale_of_all = 2.0


def module_global(_: Any) -> None:
    global _SCALE
    _SCALE = 2.0


def in_a_global_dict(_: Any) -> None:
    _SCALES["scale"] = 2.0


def of_an_object(m: Any) -> None:
    m.body.options.scale = 2.0


def nested(m: Any) -> None:
    m.body.options.shape["scale"][0] = 2.0


def behind_a_helper(_: Any) -> None:
    Options.factor = 2.0  # type: ignore[attr-defined]


def one_weight(m: Any) -> None:
    m.body.layer.weight.data[3, 5] += 1


def all_but_the_first(m: Any) -> None:
    m.body.layer.weight.data.view(-1)[1:].mul_(2)


def through_numpy(m: Any) -> None:
    m.body.layer.weight.detach().numpy()[7, 7] += 1


def patched_class(_: Any) -> None:
    Scaled.forward = lambda self, x: self.layer(x) * 5  # type: ignore[method-assign]


def global_hook(m: Any) -> None:
    m.handle = nn.modules.module.register_module_forward_hook(_double)


def _double(module: nn.Module, _: Any, output: Any) -> Any:
    return output * 2 if type(module) is nn.Linear and module.in_features == module.out_features else output


_FORWARD = Scaled.forward


def restored(m: Any) -> None:
    global _SCALE
    _SCALE = Scaled.scale_of_all = Options.factor = _SCALES["scale"] = 1.0  # type: ignore[attr-defined]
    Scaled.forward = _FORWARD  # type: ignore[method-assign]
    if hasattr(m, "handle"):
        m.handle.remove()


CHANGES = (
    attribute, class_attribute, module_global, in_a_global_dict, of_an_object, nested, behind_a_helper,
    one_weight, all_but_the_first, through_numpy, patched_class, global_hook,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_changes_in_a_loop(change: Callable[[Any], None], tmp_path: Path) -> None:
    """Of all that a forward reads."""
    model = Model(lambda m, x: x)
    torch.manual_seed(0)
    model.body = Scaled(lambda m, x: x)
    freeze_except(model, "head")
    message = refused_or_right(model, tmp_path, change, restored)
    assert message != "same"


def hook_between(m: Any) -> None:
    m.between = m.relu.register_forward_hook(lambda _, x, y: y * 2)


def other_activation(m: Any) -> None:
    m.relu = nn.Tanh()


def other_forward(m: Any) -> None:
    m.relu.forward = lambda x: x * 3


def other_layer(m: Any) -> None:
    m.after = nn.Linear(8, 8).requires_grad_(False)


@pytest.mark.parametrize("when", ["before", "within"])
@pytest.mark.parametrize("change", [hook_between, other_activation, other_forward, other_layer])
def test_changes_between_what_is_skipped(change: Callable[[Any], None], when: str, tmp_path: Path) -> None:
    """Of modules without parameters, which run on nothing; and of which modules there are."""
    model = Model(lambda m, x: m.layer(x), lambda m, x: m.after(m.relu(m.body(x))))
    model.relu, model.after = nn.ReLU(), nn.Linear(8, 8).requires_grad_(False)
    kept = precompute(model, data(), tmp_path)
    assert kept.skipped == ["body", "after"]
    rows = [rows for rows, _ in kept.loader(batch_size=16)]
    if when == "before":
        change(model)
    with pytest.raises(FtkitError, match=r"has other submodules, hooks or|was .* when|changed since"), kept:
        model(rows[0])
        change(model)
        model(rows[1])


@pytest.mark.parametrize("held", [False, True])
def test_the_mode_of_a_container_without_parameters(held: bool, tmp_path: Path) -> None:
    """Its flag is all that a forward reads of it."""

    def around(m: Any, x: Tensor) -> Tensor:
        return m.body(x * 2 if m.body.inner[0].training else x)

    model = Model(lambda m, x: m.layer(x) * (1 + m.inner.training), around)
    if not held:
        model.body = Frozen(lambda m, x: m.layer(x) * (1 + m.inner.training)).requires_grad_(False)
    message = refused_or_right(model, tmp_path, lambda m: m.body.inner.eval())
    assert held or message != "same"


def hook_of_the_same_package(_: Any, __: Any, output: Tensor) -> Tensor:
    return output * random.random()


def test_hooks_of_the_model_s_own_package_run(tmp_path: Path) -> None:
    """It may be anyone's."""
    model = Model(lambda m, x: m.layer(x))
    model.body.layer.register_forward_hook(hook_of_the_same_package)
    assert "hooks" in refused_or_right(model, tmp_path)


def test_a_global_hook_is_seen(tmp_path: Path) -> None:
    """It sees every module."""
    model = Model(lambda m, x: m.layer(x))
    handle = nn.modules.module.register_module_forward_hook(_double)
    try:
        assert "hooks" in refused_or_right(model, tmp_path)
    finally:
        handle.remove()


# ---------------- rows that a loop changes


ALTERED: dict[str, Callable[[Tensor], Tensor]] = {
    "normalized": lambda rows: (rows.float() / 255 - 0.5) / 0.5,
    "cast": lambda rows: rows.long(),
    "doubled": lambda rows: rows * 2,
    "mixed": lambda rows: 0.3 * rows + 0.7 * rows.flip(0),
    "mixed, as bytes": lambda rows: (0.3 * rows + 0.7 * rows.flip(0)).round().to(torch.uint8),
    "cut and mixed": lambda rows: torch.cat([rows[:, :40], rows.flip(0)[:, 40:]], 1),
    "mirrored": lambda rows: rows.flip(1),
    "cut": lambda rows: rows[:, :-16],
    "cut in front": lambda rows: rows[:, 16:],
    "zeroed": lambda rows: torch.where(torch.arange(rows.shape[1]) % 50 == 49, 0, rows),
}


@pytest.mark.parametrize("case", ALTERED)
def test_rows_that_a_loop_changes_are_refused(case: str, tmp_path: Path) -> None:
    """They are no images."""
    model = Model(lambda m, x: m.layer(x))
    with precompute(model, data(), tmp_path) as cached:
        rows, _ = next(iter(cached.loader(batch_size=8)))
        with pytest.raises(FtkitError, match=r"row|kept"):
            model(ALTERED[case](rows))


def test_parts_of_a_batch_and_other_orders_are_fine(tmp_path: Path) -> None:
    """Each row is whole."""
    model = Model(lambda m, x: m.layer(x))
    with precompute(model, data(), tmp_path) as cached:
        rows, _ = next(iter(cached.loader(batch_size=8)))
        order = [3, 1, 1]
        assert torch.allclose(model(rows[order]), model(data().tensors[0][order]))


def test_samples_with_names_in_another_order(tmp_path: Path) -> None:
    """A dict is no tuple."""

    class Named(Model):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

    torch.manual_seed(1)
    samples = [{"x": torch.randn(8), "low": at, "high": at + 100} for at in range(8)]
    samples += [{"high": at + 100, "low": at, "x": torch.randn(8)} for at in range(8, 16)]
    model = Named(lambda m, x: m.layer(x))
    with precompute(model, samples, tmp_path) as cached:
        batch = next(iter(cached.loader(batch_size=16)))
        assert batch["low"].tolist() == list(range(16))
        assert batch["high"].tolist() == list(range(100, 116))
        plain = torch.stack([one["x"] for one in samples])
        assert torch.allclose(model(x=batch["x"]), model(plain))


def test_a_check_does_not_disturb_what_waits_for_backward(tmp_path: Path) -> None:
    """A norm that trains, before the last tensor that passes over, is run by it too."""

    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.high = nn.Linear(8, 8), nn.Linear(8, 8)
            self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 3)
            freeze_except(self, "head", "norm")

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.low(x))
            return self.head(y + self.high(x))

    torch.manual_seed(0)
    assert refused_or_right(Skipping(), tmp_path) == "same"


def test_what_nothing_else_shows_is_met_by_computing_anew(tmp_path: Path) -> None:
    """A closure that hides its state in an iterator."""
    factor = iter([1.0] * 40 + [3.0] * 1000)

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.layer(x) * next(factor)

    model = Model(forward)
    message = ""
    try:
        with precompute(model, data(), tmp_path) as cached:
            for _ in range(100):
                for rows, _ in cached.loader(batch_size=16):
                    model(rows)
                assert cached._player.spots is not None
                cached._player.spots._next = 0
    except FtkitError as error:
        message = str(error)
    assert "anew" in message or "another result" in message


# ---------------- what is not registered, and what is changed by hand


def test_modules_in_a_plain_list(tmp_path: Path) -> None:
    """Nobody sees when their weights change, so they run; the list is named."""
    model = Model(lambda m, x: m.others[1](m.layer(x)))
    model.body.others = [nn.Identity(), nn.Linear(8, 8).requires_grad_(False)]  # type: ignore[assignment]
    cached = precompute(model, data(), tmp_path)
    assert cached.skipped == ["body.layer"]
    assert "body.others that is not registered: keep it in an nn.ModuleList" in cached.not_skipped["body"]
    hidden = nn.Parameter(torch.ones(8), requires_grad=False)
    cached = precompute(Model(lambda m, x: m.layer(x) * hidden), data(), tmp_path)
    assert cached.not_skipped["body"] == "it uses a parameter that is not registered in the model"


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_a_weight_that_a_hook_of_torch_computes(norm: Any, tmp_path: Path) -> None:
    """In each call, from what is frozen; before the first one it is that of other weights."""
    model = Model(lambda m, x: m.layer(x))
    norm(model.body.layer)
    freeze_except(model, "head")
    model.load_state_dict({name: one + 0.1 for name, one in model.state_dict().items()})
    with precompute(model, data(), tmp_path, batch_size=12) as cached:
        assert cached.skipped == ["body"]
        rows = next(iter(cached.loader(batch_size=12)))[0]
        for _ in range(2):
            assert torch.equal(model(rows), model(data().tensors[0][:12]))
        model.body.layer.weight_g.mul_(2) if norm is nn.utils.weight_norm else model.body.layer.weight_orig.mul_(2)
        with pytest.raises(FtkitError, match="changed since"):
            model(rows)


def test_what_a_module_gives_may_be_changed_by_its_caller(tmp_path: Path) -> None:
    """As in CLIP: what is kept is what it gave."""

    def around(m: Any, x: Tensor) -> Tensor:
        found = m.body(x)
        found["pooled"] = m.head(found["pooled"])
        return found["pooled"] + found["all"].mean(1, keepdim=True)

    model = Model(lambda m, x: {"all": m.layer(x), "pooled": m.layer(x).tanh()}, around)
    model.head = nn.Linear(8, 3)
    model.forward = lambda x: around(model, x)  # type: ignore[method-assign]
    cached = precompute(model, data(), tmp_path, batch_size=16)
    assert cached.skipped == ["body"]
    with cached:
        rows = next(iter(cached.loader(batch_size=16)))[0]
        assert torch.equal(model(rows), model(data().tensors[0][:16]))


@pytest.mark.parametrize("only_once", [False, True])
def test_what_a_caller_does_every_few_batches_it_does_with_rows(only_once: bool, tmp_path: Path) -> None:
    """Behind the frozen part, by a number that it counts up: no batch before tells of it."""

    def around(m: Any, x: Tensor) -> Tensor:
        m.passes += m.training
        features = m.body(x)
        return features * 2 if (m.passes > 9 if only_once else m.passes % 5 == 0) else features

    model = Model(lambda m, x: m.layer(x), around)
    model.passes = 0
    assert refused_or_right(model, tmp_path, size=8) == "same"


class Folded(nn.Module):
    """Does more to a batch than its size tells."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), 2, 4).flip(1)[: len(x)].reshape(len(x), 8)


def between(m: Any, x: Tensor) -> Tensor:
    h = m.fold(m.relu(m.body(x)))
    return m.after(h * 3 if m.counts[0] == 5 else h)


def between_in_place(m: Any, x: Tensor) -> Tensor:
    h = m.body(x)
    if m.counts[0] == 5:
        h[:, :4].mul_(3)
    return m.after(m.relu(h))


def in_front(m: Any, x: Tensor) -> Tensor:
    return m.after(m.relu(m.body(x * 3 if m.counts[0] == 5 else x)))


def another_value(m: Any, x: Tensor) -> Tensor:
    h = m.body(x)
    g = m.tanh(h)
    return m.after(h if m.counts[0] == 5 else g)


def on_what_is_kept(m: Any, x: Tensor) -> Tensor:
    h = m.body(x)
    return m.after(h * 3 if m.counts[0] == 5 else h) + h


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("around", [between, between_in_place, in_front, another_value, on_what_is_kept])
def test_what_a_caller_does_by_count_before_a_frozen_part(around: Any, inside: bool, mode: Any, tmp_path: Path) -> None:
    """The frozen part would have met something else; no batch before tells of it, and nothing is lost until then."""

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            model.counts[0] += 1
            return around(model, x)

    def counted(m: Any, x: Tensor) -> Tensor:
        m.counts[0] += 1
        return around(m, x)

    model = Model(lambda m, x: m.layer(x), (lambda m, x: m.stage(x)) if inside else counted)
    model.relu, model.tanh, model.fold, model.counts = nn.ReLU(inplace=True), nn.Tanh(), Folded(), [0]
    model.after = nn.Linear(8, 8).requires_grad_(False)
    if inside:
        model.stage = Counting()
        model.stage.counts = model.counts
        model.stage.body, model.stage.relu, model.stage.after = model.body, model.relu, model.after
    samples = data()
    cached = precompute(model, samples, tmp_path, batch_size=12)
    assert len(cached.skipped) == 2
    with cached, mode():
        batches = list(cached.loader(batch_size=12))
        for rows, _ in batches:
            model(rows)
        with pytest.raises(FtkitError, match="is called with something else than"):
            model(batches[0][0])
    model.counts[0] = -1000
    with cached:
        for size in (12, 12, 7):
            for at, (rows, _) in enumerate(cached.loader(batch_size=size)):
                plain = model(samples.tensors[0][size * at : size * at + size])
                with torch.inference_mode(size == 7):
                    assert torch.allclose(model(rows), plain, atol=1e-6)
                    assert torch.is_inference_mode_enabled() == (size == 7)
    with torch.inference_mode():
        batch, _ = next(iter(cached.loader(batch_size=12)))
    with cached:  # what was read in inference mode
        assert torch.allclose(model(batch), model(samples.tensors[0][:12]), atol=1e-6)


def test_a_module_that_changes_its_argument_runs(tmp_path: Path) -> None:
    """Its caller would miss what it adds."""

    def around(m: Any, x: Tensor) -> Tensor:
        notes: list[float] = []
        y = m.body(x, notes)
        return m.head(y * len(notes))

    model = Model(lambda m, x: m.layer(x))
    model.body.forward = lambda x, notes: (notes.append(1.0), model.body.layer(x))[1]  # type: ignore[method-assign]
    model.forward = lambda x: around(model, x)  # type: ignore[method-assign]
    assert precompute(model, data(), tmp_path).not_skipped == {"body": "it changes what it was called with"}


def with_new_data(m: Any, x: Tensor) -> Tensor:
    x.data = x * 2
    return m.body(x)


WRITES: dict[str, tuple[Body, Callable[[Any, Tensor], Tensor], str]] = {
    "what is frozen": (lambda m, x: m.layer(x.sub_(0.5).div_(2)), lambda m, x: m.body(x), "body"),
    "its first layer": (lambda m, x: m.layer(m.relu(x)), lambda m, x: m.body(x), "body.relu"),
    "the model": (lambda m, x: m.layer(x), lambda m, x: m.body(x.sub_(0.5)), "the model"),
    "a view": (lambda m, x: m.layer(x), lambda m, x: (x[:, :1].mul_(2), m.body(x))[1], "the model"),
    "another view": (lambda m, x: m.layer(x), lambda m, x: m.body(x.t().add_(1).t()), "the model"),
    "what is given back": (lambda m, x: m.layer(x) * m.seen_as(x).relu_(), lambda m, x: m.body(x), "body"),
    "other memory": (lambda m, x: m.layer(x), with_new_data, "the model"),
    "afterwards": (lambda m, x: m.layer(x), lambda m, x: m.body(x) * x.mul_(2).mean(1, keepdim=True), "the model"),
}


class Same(nn.Module):
    """Gives back what it got, scaled by what is frozen if there is anything."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.view(-1, 8), x * self.scale


def writing(case: str) -> Model:
    forward, around, _ = WRITES[case]
    model = Model(forward, around)
    model.body.relu, model.body.same = nn.ReLU(inplace=True), Same()
    model.body.seen_as = lambda x: model.body.same(x)[0]  # type: ignore[assignment]
    return model


@pytest.mark.parametrize("case", WRITES)
def test_what_is_written_to_inputs_that_a_caller_has_is_never_lost(case: str, tmp_path: Path) -> None:
    """As for a loss that looks at them, or for a second call; rows that stand for them nobody looks at."""
    samples = data()
    with pytest.raises(FtkitError, match=rf"In {WRITES[case][2]}, the inputs of the Model are written to"):
        precompute(writing(case), DataLoader(samples, 12), tmp_path)
    with precompute(model := writing(case), samples, tmp_path, batch_size=12) as cached:
        rows, _ = next(iter(cached.loader(batch_size=12)))
        assert torch.equal(model(rows), writing(case)(samples.tensors[0][:12].clone()))


@pytest.mark.parametrize(
    "around",
    [
        lambda m, x: m.body(x.clone().sub_(0.5)),
        lambda m, x: m.body(x[:, [1, 0, 2, 3, 4, 5, 6, 7]].mul_(2)),
        lambda m, x: m.body(x.t().contiguous().add_(1).t()),
        lambda m, x: m.body(x).mul_(2),
        lambda m, x: m.body(m.body.inner(x).mul(2).add_(1)),
    ],
)
def test_what_is_written_to_something_else_is_fine_for_a_caller(around: Any, tmp_path: Path) -> None:
    """A copy, or what was computed."""
    model, loader = Model(lambda m, x: m.layer(x), around), DataLoader(data(), 12)
    expected = fitted(copy.deepcopy(model), list(loader))
    with precompute(model, loader, tmp_path):
        assert all(map(torch.equal, fitted(model, list(loader)), expected))


def test_labels_that_a_forward_writes_to_are_the_caller_s(tmp_path: Path) -> None:
    """Nothing that is skipped looks at them, so the model gets them as they are."""

    class Scored(Model):
        def forward(self, x: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
            labels[labels == 2] = -100
            return nn.functional.cross_entropy(super().forward(x), labels)

    model, (inputs, labels) = Scored(lambda m, x: m.layer(x)), data().tensors
    with precompute(model, DataLoader(data(), 12), tmp_path):
        model(inputs[:12], changed := labels[:12].clone())
    assert changed.tolist() == [0, 1, -100] * 4


def kept_constant(m: Any, x: Tensor) -> Tensor:
    if m.training:
        return m.layer(x) + m.layer.bias.exp()
    if "bias" not in m.kept:
        m.kept["bias"] = m.layer.bias.exp()
    return m.layer(x) + m.kept["bias"]


def kept_sample(m: Any, x: Tensor) -> Tensor:
    if "first" not in m.kept:
        m.kept["first"] = x[:1].clone()
    return m.layer(x) + m.kept["first"]


def test_a_table_of_what_is_frozen_may_be_kept(tmp_path: Path) -> None:
    """As LeViT keeps its biases in eval mode; but nothing of the first batch."""
    model = Model(kept_constant)
    assert precompute(model, data(), tmp_path).skipped == ["body"]
    assert refused_or_right(model, tmp_path) == "same"
    with precompute(model, data(), tmp_path) as cached:
        rows = next(iter(cached.loader(batch_size=16)))[0]
        model(data().tensors[0])  # fills the table
        model(rows)
        model.body.layer.bias.data += 1
        with pytest.raises(FtkitError, match="changed since"):
            model(rows)
    assert precompute(Model(kept_sample), data(), tmp_path).skipped == ["body.layer"]


class Memory:
    """As the keys and values that layers keep for the next token."""

    def __init__(self) -> None:
        self.layers: list[Tensor] = []


def test_an_object_that_skipped_modules_would_have_filled_is_not_given_back(tmp_path: Path) -> None:
    """It would be taken for whole."""

    def around(m: Any, x: Tensor) -> Any:
        memory = Memory()
        return {"logits": m.head(m.body(x, memory)), "memory": memory}

    def filling(x: Tensor, memory: Memory) -> Tensor:
        memory.layers.append(model.body.layer(x))
        return memory.layers[-1].relu()

    model = Model(lambda m, x: x)
    model.body.forward = filling  # type: ignore[method-assign]
    model.forward = lambda x: around(model, x)  # type: ignore[method-assign]
    with precompute(model, data(), tmp_path, batch_size=16) as cached:
        assert cached.skipped == ["body"]
        ours = model(next(iter(cached.loader(batch_size=16)))[0])
        plain = model(data().tensors[0][:16])
    assert torch.equal(ours["logits"], plain["logits"])
    assert ours["memory"] is None
    assert len(plain["memory"].layers) == 1


def kept_in_turn(m: Any, x: Tensor) -> Tensor:
    m.kept.setdefault("turns", [1.0, 2.0]).reverse()
    return m.layer(x) * m.kept["turns"][0]


def noted(m: Any, x: Tensor) -> Tensor:
    m.options.kind = m.options.kind or "single"
    return m.layer(x)


def test_a_name_that_is_noted_once_counts_for_nothing(tmp_path: Path) -> None:
    """As transformers notes the kind of labels; but a list in another order does."""
    model = Model(noted)
    model.body.options.kind = None  # type: ignore[attr-defined]
    model.body.forward = lambda x: noted(model.body, x)  # type: ignore[method-assign]
    assert precompute(model, data(), tmp_path).skipped == ["body"]
    model = Model(kept_in_turn)
    model.body.kept["turns"] = [1.0, 2.0]
    assert precompute(model, data(), tmp_path).skipped == ["body.layer"]


# ---------------- objects


class Steps:
    """Counts in a method."""

    of_all = 0

    def __init__(self) -> None:
        self.count = 0

    def step(self) -> float:
        self.count += 1
        return 1.0 if self.count > 50 else 0.5

    def __call__(self) -> float:
        return self.step()

    def step_all(self) -> float:
        Steps.of_all += 1
        return 0.5


class Slotted:
    """Has no table of attributes."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def step(self) -> float:
        self.count += 1
        return 0.5


def thread_local() -> Any:
    holder = threading.local()
    holder.count = 0
    return holder


def count_in(holder: Any) -> float:
    holder.count += 1
    return 0.5


@pytest.mark.parametrize("by_content", [False, True])
@pytest.mark.parametrize(
    ("make", "step"),
    [
        (Steps, lambda one: one.step()),
        (Steps, lambda one: one()),
        (Steps, lambda one: one.step_all()),
        (Slotted, lambda one: one.step()),
        (lambda: types.SimpleNamespace(count=0), count_in),
        (lambda: argparse.Namespace(count=0), count_in),
        (thread_local, count_in),
    ],
)
def test_objects_that_count_go_on_as_in_a_plain_loop(
    make: Callable[[], Any], step: Callable[[Any], float], by_content: bool, tmp_path: Path
) -> None:
    """What the runs before training have counted is taken back."""
    Steps.of_all = 0

    def around(m: Any, x: Tensor) -> Tensor:
        return m.body(x) * step(m.steps)

    model = Model(lambda m, x: m.layer(x), around)
    model.steps = make()
    loader = DataLoader(data(), 16)
    cached = precompute(model, loader if by_content else data(), tmp_path)
    assert cached.skipped == ["body"]
    with cached:
        for inputs, _ in loader if by_content else cached.loader(batch_size=16):
            model(inputs)
    assert getattr(model.steps, "count", 0) + Steps.of_all == 3


class Shelf:
    """Is filled by a method, and has no attribute before."""

    def put(self, value: Tensor) -> None:
        self.value = value


def shelved(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    m.shelf.put(y)
    return y


def shelved_plainly(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    m.shelf.value = y
    return y


@pytest.mark.parametrize(("forward", "make"), [(shelved, Shelf), (shelved_plainly, types.SimpleNamespace)])
def test_a_module_that_fills_an_object_runs(forward: Body, make: Callable[[], Any], tmp_path: Path) -> None:
    """A loss that reads it meets what it holds for this batch, or an error, but not what another one left there."""
    model = Model(forward)
    model.body.shelf = make()
    with precompute(model, data(), tmp_path, batch_size=16) as cached:
        assert cached.not_skipped == {"body": "it keeps what it computed"}
        assert not vars(model.body.shelf)
        for rows, _ in cached.loader(batch_size=16):
            model(rows)
            with pytest.raises(FtkitError, match="was not kept"):
                model.body.shelf.value.sum()


def test_what_only_a_method_reads_is_watched(tmp_path: Path) -> None:
    """It changes in the block."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.layer(x) * m.steps.step()

    class Scale(Steps):
        def step(self) -> float:
            return 1.0 + self.count

    model = Model(forward)
    model.body.steps = Scale()
    with precompute(model, data(), tmp_path) as cached:
        rows, _ = next(iter(cached.loader(batch_size=16)))
        model(rows)
        model.body.steps.count = 2
        with pytest.raises(FtkitError, match=r"body\.steps\.count was 0 .* is 2 now"):
            model(rows)


def test_an_array_that_counts_goes_on_as_in_a_plain_loop(tmp_path: Path) -> None:
    """What the runs before training have counted in it is taken back, and its module is none that could be skipped."""

    def counted(m: Any, x: Tensor) -> Tensor:
        m.steps += 1
        return m.layer(x)

    model = Model(counted)
    model.body.steps = np.zeros(1)
    with precompute(model, data(), tmp_path) as cached:
        assert cached.skipped == ["body.layer"]
        for rows, _ in cached.loader(batch_size=16):
            model(rows)
    assert model.body.steps == 3
