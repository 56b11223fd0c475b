"""What stands between a change of the model and a wrong answer: each is refused, at the latest in the next step."""

from __future__ import annotations

import array
import collections
import copy
import functools
import operator
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ftkit import FtkitError, Precomputed, freeze_except, precompute
from tests.precompute.loops import same, train


class Model(nn.Module):
    """A body and a head, and inputs that only the root looks at."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Sequential(nn.Linear(8, 16), nn.ReLU()), nn.Linear(16, 3)
        self._scale = 1.0
        freeze_except(self, "head")

    def forward(self, x: Tensor, mask: Tensor | None = None, flip: bool = False) -> Tensor:
        x = x if mask is None else x * mask
        x = x.flip(-1) if flip else x
        return self.head(self.body(x * self._scale))


def data() -> TensorDataset:
    torch.manual_seed(1)
    return TensorDataset(torch.randn(12, 8), torch.arange(12) % 3)


def moved(model: Any) -> None:
    for one in model.body.parameters():
        one.data.mul_(0.9)


def replaced(model: Any) -> None:
    model.body[0].weight.data = model.body[0].weight.data * 0.9


def rounded(model: Any) -> None:
    model.body.half().float()


def scaled(model: Any) -> None:
    model._scale = 2.0


def hooked(model: Any) -> None:
    model.body[0].register_forward_hook(lambda _, __, output: output * 2)


def swapped(model: Any) -> None:
    model.body[1] = nn.Tanh()


def longer(model: Any) -> None:
    model.body.append(nn.Tanh())


def patched(model: Any) -> None:
    before = model.body[0].forward
    model.body[0].forward = lambda x: before(x) * 3


CHANGES = moved, replaced, rounded, scaled, hooked, swapped, longer, patched


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed_in_the_next_step(change: Callable[[Any], None], tmp_path: Path) -> None:
    """Without a version that torch counts, too."""
    model = Model()
    with precompute(model, data(), tmp_path) as cached:
        rows, _ = next(iter(cached.loader(batch_size=4)))
        model(rows)
        change(model)
        with pytest.raises(FtkitError, match=r"when the frozen part was computed|changed since"):
            model(rows)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_before_the_block_is_noticed(change: Callable[[Any], None], tmp_path: Path) -> None:
    """Before the model takes any rows."""
    model = Model()
    cached = precompute(model, data(), tmp_path)
    change(model)
    with pytest.raises(FtkitError, match=r"when the frozen part was computed|changed since"), cached:
        pass


@pytest.mark.parametrize("more", [{"mask": torch.ones(8)}, {"flip": True}])
def test_arguments_that_came_into_no_row_are_refused(more: dict[str, Any], tmp_path: Path) -> None:
    """Only the root would look at them."""
    model = Model()
    with precompute(model, data(), tmp_path) as cached:
        rows, _ = next(iter(cached.loader(batch_size=4)))
        with pytest.raises(FtkitError, match="did not get when they were computed"):
            model(rows, **more)


def test_arguments_that_forward_does_not_name_are_to_be_left_out(tmp_path: Path) -> None:
    """No sample could have brought them in."""

    class Open(Model):
        def forward(self, x: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    dataset = [{"x": row, "mask": torch.ones(8)} for row in data().tensors[0]]
    model = Open()
    with precompute(model, dataset, tmp_path) as cached:
        batch = next(iter(cached.loader(batch_size=4)))
        with pytest.raises(FtkitError, match=r"\(mask\), on which .* does not name it: leave it out of the samples"):
            model(**batch)
        assert model(batch["x"]).shape[0] == model(x=batch["x"]).shape[0] == 4
    with precompute(Model(), TensorDataset(data().tensors[0]), tmp_path) as cached:
        (rows,) = next(iter(cached.loader(batch_size=4)))
        assert cached._player.model(x=rows).shape[0] == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_norm_of_the_batch_is_seen_in_any_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    """Rounding is no excuse."""
    model = Model()
    model.body[1] = nn.BatchNorm1d(16, track_running_stats=False)
    freeze_except(model.to(dtype), "head")
    inputs = data().tensors[0].to(dtype)
    assert precompute(model, TensorDataset(inputs), tmp_path).skipped == ["body.0"]


def test_another_activation_has_rows_of_its_own(tmp_path: Path) -> None:
    """Though it has no weights."""
    model = Model().bfloat16()
    inputs = TensorDataset(data().tensors[0].bfloat16())
    assert precompute(model, inputs, tmp_path).computed == 12
    model.body[1] = nn.Tanh()
    assert precompute(model, inputs, tmp_path).computed == 12


@pytest.mark.filterwarnings("ignore:There are hooks")
@pytest.mark.parametrize("keys", ["index", "content"])
@pytest.mark.parametrize("change", ["hook", "forward", "class"])
def test_what_lies_between_has_rows_of_its_own(change: str, keys: str, tmp_path: Path) -> None:
    """The error says to call precompute() again, and that is all there is to do."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.Linear(8, 3))
    freeze_except(model, "3")
    source = data() if keys == "index" else DataLoader(data(), 4)

    def used(cached: Precomputed) -> None:
        with cached:
            for inputs, _ in cached.loader(batch_size=4) if keys == "index" else source:
                model(inputs)

    used(before := precompute(model, source, tmp_path))
    if change == "hook":
        model[1].register_forward_hook(lambda _, __, output: output * 2)
    elif change == "forward":
        model[1].forward = lambda x: x.sigmoid() * 2
    else:
        model[1] = nn.Tanh()
    with pytest.raises(FtkitError, match=r"Call\s+precompute"):
        used(before)
    used(again := precompute(model, source, tmp_path))
    assert again.computed == 12
    with again:
        size = 12 if keys == "index" else 4  # as they were computed
        plain = data().tensors[0][:size]
        inputs = next(iter(again.loader(batch_size=size)))[0] if keys == "index" else plain
        assert torch.equal(model(inputs), copy.deepcopy(model)(plain))


def test_rows_that_an_unseen_change_has_made_wrong_are_computed_anew(tmp_path: Path) -> None:
    """With a warning, and not by deleting a file by hand."""
    scale = [1.0]

    class Hidden(Model):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return self.head(self.body(x * torch.as_tensor(np.asarray(memory), dtype=torch.float32)))

    memory = memoryview(array.array("d", scale))
    model = Hidden()
    assert precompute(model, data(), tmp_path).computed == 12
    memory[0] = 2.0
    with pytest.warns(UserWarning, match="gives another result than in .* computed anew"):
        cached = precompute(model, data(), tmp_path, batch_size=12)
    assert cached.computed == 12
    with cached:
        rows = next(iter(cached.loader(batch_size=12)))[0]
        assert torch.equal(model(rows), model(data().tensors[0]))


def test_rows_of_train_mode_are_no_rows_of_eval_mode(tmp_path: Path) -> None:
    """Where a forward tells them apart."""

    class Flips(Model):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x, flip=not self.training)

    model = Flips()
    with precompute(model, data(), tmp_path) as cached:
        rows, _ = next(iter(cached.loader(batch_size=4)))
        model(rows)
        model.eval()
        with pytest.raises(FtkitError, match="another mode"):
            model(rows)


def test_a_forward_that_moves_parameters_moves_none_meanwhile(tmp_path: Path) -> None:
    """As a teacher that follows the head."""

    class Teacher(Model):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = nn.Linear(16, 3).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            with torch.no_grad():
                self.teacher.weight.mul_(0.9).add_(self.head.weight, alpha=0.1)
            features = self.body(x)
            return self.head(features) + self.teacher(features)

    model = Teacher()
    before = model.teacher.weight.clone()
    precompute(model, data(), tmp_path)
    assert torch.equal(model.teacher.weight, before)


class Options:
    """Shows what it holds by ways that no name tells."""

    def __init__(self) -> None:
        self._held, self._by = {"scale": 2.0}, 2.0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._held[name]

    def __mul__(self, x: Tensor) -> Tensor:
        return x * self._by


class Watched(nn.Module):
    """Reads what is private, what an array holds, and what its caller may change."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self._on, self._kind = nn.Linear(8, 8), True, "plain"
        self._factor: float | None = None
        self.factors, self.many = np.ones(8, np.float32), np.ones((1000, 700))
        self.options: Any = Options()

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x) * torch.from_numpy(self.factors.copy()) * float(self.many[-1, -1]) * self.options.scale
        x = self.options * x if self.is_on else x
        x = x.tanh() if self._kind != "plain" else x
        return x if self._factor is None else x * self._factor

    @property
    def is_on(self) -> bool:
        return self._on


def turned_off(part: Any) -> None:
    part._on = False


def of_another_kind(part: Any) -> None:
    part._kind = "bent"


def no_longer_none(part: Any) -> None:
    part._factor = 2.0


def an_array(part: Any) -> None:
    part.factors[3:] = 3


def the_end_of_a_large_array(part: Any) -> None:
    part.many[-1, -1] = 3


def by_getattr(part: Any) -> None:
    part.options._held["scale"] = 3.0


def by_an_operator(part: Any) -> None:
    part.options._by = 3.0


HIDDEN = turned_off, of_another_kind, no_longer_none, an_array, the_end_of_a_large_array, by_getattr, by_an_operator


@pytest.mark.parametrize("change", HIDDEN)
def test_a_change_of_what_is_private_or_hidden_is_noticed(change: Callable[[Any], None], tmp_path: Path) -> None:
    """If the module's code mentions it; of a large array the place comes up in some steps."""
    torch.manual_seed(0)
    model = nn.Sequential(Watched(), nn.Linear(8, 3))
    freeze_except(model, "1")
    with precompute(model, data(), tmp_path) as cached:
        rows, _ = next(iter(cached.loader(batch_size=4)))
        for _ in range(3):
            model(rows)
        change(model[0])
        with pytest.raises(FtkitError, match=r"0\.\S+ was .* when the frozen part was computed"):
            for _ in range(12):
                model(rows)


class Noting(Model):
    """With what a loop or a framework keeps on a model, and no forward pass reads."""

    def __init__(self) -> None:
        super().__init__()
        self.history, self.epoch, self.best = list[Any](), 0, None
        self.losses: dict[str, list[float]] = {"train": []}
        self.options = {"rate": 0.1}
        self.metric = Metric()

    def training_step(self, x: Tensor) -> Tensor:
        self.history.append(self.epoch)
        return self(x)  # type: ignore[no-any-return]


class Metric(nn.Module):
    """Counts what it is fed with, in attributes that other modules have, too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen = torch.zeros(()), 0

    def forward(self, x: Tensor) -> None:
        self.weight = self.weight + x.detach().sum()
        self.seen += 1


NOTES: dict[str, Callable[[Any], object]] = {
    "an epoch": lambda m: setattr(m, "epoch", m.epoch + 1),
    "the best": lambda m: setattr(m, "best", copy.deepcopy(m.state_dict())),
    "a list": lambda m: m.history.append(1),
    "a list in a dict": lambda m: m.losses["train"].append(0.5),
    "a key": lambda m: m.losses.update(validation=[0.5]),
    "a number in a dict": lambda m: m.options.update(rate=0.01),
    "what was not there": lambda m: setattr(m, "trained", True),
    "of a frozen part": lambda m: setattr(m.body[0], "label", "first"),
    "a function": lambda m: setattr(m, "schedule", lambda epoch: 0.1**epoch),
    "an optimizer": lambda m: setattr(m, "optimizer", torch.optim.SGD(m.head.parameters(), 0.1)),
    "a module": lambda m: setattr(m, "loss", nn.CrossEntropyLoss()),
    "a metric": lambda m: m.metric(torch.ones(2)),
    "a step": lambda m: m.history.append(m.epoch),
}


@pytest.mark.parametrize("what", NOTES)
def test_what_no_forward_pass_reads_is_no_setting(what: str, tmp_path: Path) -> None:
    """In the block, and between two; and the rows are still those of the model."""
    model = Noting()
    cached = precompute(model, data(), tmp_path)
    for _ in range(2):
        with cached:
            for rows, _ in cached.loader(batch_size=4):
                model(rows)
                NOTES[what](model)
        NOTES[what](model)
    assert precompute(model, data(), tmp_path).computed == 0


def decorated(forward: Callable[..., Tensor]) -> Any:
    """What reads an attribute on the way to the forward that it wraps."""

    @functools.wraps(forward)
    def around(self: Any, x: Tensor) -> Tensor:
        return forward(self, x * self.gain)

    return around


class Gain:
    """An object that is given the module."""

    def of(self, module: Any) -> float:
        return float(module.gain)


class Gaining(nn.Module):
    """Its attribute is named in none of the code that is its own, or by no name at all."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.gain, self.by = nn.Linear(8, 16), 1.0, "gain"
        self.helper, self.ask, self.ways = Gain(), operator.attrgetter("gain"), [self.gained]

    def gained(self) -> float:
        return self.gain


class Decorated(Gaining):
    @decorated
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


class Called(Gaining):
    def __call__(self, x: Tensor) -> Any:
        return super().__call__(x * self.gain)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


def reading(read: Callable[[Any], float]) -> type[Gaining]:
    class Reads(Gaining):
        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x * read(self))  # type: ignore[no-any-return]

    return Reads


UNNAMED: dict[str, Callable[[], nn.Module]] = {
    "a decorator": Decorated,
    "__call__": Called,
    "getattr of a sum": reading(lambda m: getattr(m, "ga" + "in")),  # type: ignore[no-any-return]
    "getattr of an attribute": reading(lambda m: getattr(m, m.by)),  # type: ignore[no-any-return]
    "getattr by map": reading(lambda m: next(map(getattr, [m], ["ga" + "in"]))),
    "vars": reading(lambda m: vars(m)["".join(["ga", "in"])]),  # type: ignore[no-any-return]
    "__dict__": reading(lambda m: m.__dict__["".join(["ga", "in"])]),  # type: ignore[no-any-return]
    "an object": reading(lambda m: m.helper.of(m)),  # type: ignore[no-any-return]
    "attrgetter": reading(lambda m: m.ask(m)),  # type: ignore[no-any-return]
    "a method in a list": reading(lambda m: m.ways[0]()),  # type: ignore[no-any-return]
}


@pytest.mark.parametrize("way", UNNAMED)
def test_an_attribute_that_is_read_by_no_name_in_forward_is_a_setting(way: str, tmp_path: Path) -> None:
    """At the latest in the step after the change, and not by a batch that is computed anew."""
    torch.manual_seed(0)
    model = nn.Sequential(UNNAMED[way](), nn.Linear(16, 3))
    freeze_except(model, "1")
    with precompute(model, data(), tmp_path) as cached:
        rows, _ = next(iter(cached.loader(batch_size=4)))
        model(rows)
        assert cached._player.spots is not None
        cached._player.spots._next = float("inf")
        model[0].gain = 2.0  # type: ignore[assignment]
        with pytest.raises(FtkitError, match=r"0\.gain was 1\.0 when the frozen part was computed, and is 2\.0 now"):
            model(rows)


def test_an_attribute_that_only_a_hook_reads_is_a_setting(tmp_path: Path) -> None:
    """Of the way between two frozen parts."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Identity(), nn.Linear(8, 16), nn.Linear(16, 3))
    model[1].gain = 1.0  # type: ignore[assignment]
    model[1].register_forward_hook(lambda module, _, output: output * module.gain)
    freeze_except(model, "3")
    with precompute(model, data(), tmp_path) as cached, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows, _ = next(iter(cached.loader(batch_size=4)))
        model(rows)
        model[1].gain = 2.0  # type: ignore[assignment]
        with pytest.raises(FtkitError, match=r"1\.gain was 1\.0"):
            model(rows)


WRONG: dict[str, tuple[Callable[[Any], object], str]] = {
    "a value": (lambda m: setattr(m, "_scale", 2.0), r"^_scale was 1\.0 when .*, and is 2\.0 now\."),
    "a new one": (lambda m: setattr(m.body[0], "bias", None), r"^body\.0\.bias changed since"),
    "one weight": (lambda m: m.body[0].bias.data.add_(1), r"^body\.0\.bias changed since"),
    "two weights": (moved, r"^body\.0\.bias, body\.0\.weight changed since"),
    "one that trains": (
        lambda m: m.body[0].bias.requires_grad_(True),
        r"^body\.0\.bias did not train when .*, but trains now: ",
    ),
    "two that train": (
        lambda m: m.body.requires_grad_(True),
        r"^body\.0\.bias, body\.0\.weight did not train when .*, but train now: ",
    ),
    "gone": (lambda m: delattr(m, "_scale"), r"^_scale was 1\.0 when .*, and is gone now\."),
    "a list": (lambda m: m.sizes.append(3), r"^The length of sizes was 1 when .*, and is 2 now\."),
    "an item": (lambda m: m.sizes.__setitem__(0, 3), r"^sizes\[0\] was 8 when .*, and is 3 now\."),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_error_says_in_plain_words_what_is_another(what: str, tmp_path: Path) -> None:
    """Of one and of several."""

    class Sized(Model):
        def __init__(self) -> None:
            super().__init__()
            self.sizes = [8]

        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x[:, : self.sizes[0]])

    model = Sized()
    change, words = WRONG[what]
    with precompute(model, data(), tmp_path) as cached:
        rows, _ = next(iter(cached.loader(batch_size=4)))
        model(rows)
        change(model)
        with pytest.raises(FtkitError, match=words):
            model(rows)


def test_what_a_framework_notes_in_private_is_its_own(tmp_path: Path) -> None:
    """If no code of the model reads it: as Lightning, which hook runs."""
    model = Model()
    model._current = None  # type: ignore[assignment]
    with precompute(model, data(), tmp_path) as cached:
        rows, _ = next(iter(cached.loader(batch_size=4)))
        model._current = "training_step"  # type: ignore[assignment]
        model(rows)


def deep() -> nn.Module:
    """So many frozen modules that a look at all of them takes as long as a step of its head."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(*(nn.Linear(8, 8) for _ in range(120)), nn.LeakyReLU()), nn.Linear(8, 3))
    freeze_except(model, "1")
    return model


def attribute(model: Any) -> None:
    model[0][120].negative_slope = 0.5


def other_forward(model: Any) -> None:
    model[0][70].forward = lambda x: x


def other_module(model: Any) -> None:
    model[0][70] = nn.Linear(8, 8).requires_grad_(False)


def one_weight(model: Any) -> None:
    model[0][70].weight.data[0, 0] += 1


def written(model: Any) -> None:
    with torch.no_grad():
        model[0][70].weight.mul_(1.5)


@pytest.mark.parametrize("change", [attribute, other_forward, other_module, one_weight, written])
def test_a_change_in_a_large_model_is_noticed_by_the_end_of_the_block(
    change: Callable[[Any], None], tmp_path: Path
) -> None:
    """Where a look at everything would take more time than the steps, it waits; but not longer."""
    model = deep()
    cached = precompute(model, data(), tmp_path)

    def last_step() -> None:
        rows, _ = next(iter(cached.loader(batch_size=4)))
        for _ in range(3):
            model(rows)
        change(model)
        cached._player.guard._due = float("inf")
        model(rows)

    with pytest.raises(FtkitError, match=r"when the frozen part was computed|changed since"), cached:
        last_step()


def a_hook(model: Any) -> None:
    model[0][70].register_forward_hook(lambda _, __, output: output * 2)


def unfrozen(model: Any) -> None:
    model[0][70].requires_grad_(True)


@pytest.mark.parametrize("change", [a_hook, unfrozen, written])
def test_what_torch_counts_is_noticed_in_a_large_model_within_some_steps(
    change: Callable[[Any], None], tmp_path: Path
) -> None:
    """Without a look at everything."""
    model = deep()
    steps = []

    def changed() -> None:
        with precompute(model, data(), tmp_path) as cached:
            rows, _ = next(iter(cached.loader(batch_size=4)))
            for _ in range(3):
                model(rows)
            cached._player.guard._due = float("inf")
            change(model)
            for step in range(40):
                steps.append(step)
                model(rows)

    with pytest.raises(FtkitError, match=r"when the frozen part was computed|changed since"):
        changed()
    assert len(steps) < 40


@pytest.mark.parametrize("where", ["root", "frozen"])
def test_an_attribute_of_what_trains_that_acts_on_what_is_frozen(where: str, tmp_path: Path) -> None:
    """Wherever it is read."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = Scaled(), nn.Linear(8, 3)
            self.head.factor = 1.0  # type: ignore[assignment]
            self.body.others = [self.head] if where == "frozen" else []
            freeze_except(self, "head")

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.head(self.body(x * self.head.factor if where == "root" else x))  # type: ignore[operator]
            return scores

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.others = nn.Linear(8, 8), list[Any]()

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(x)
            return x * self.others[0].factor if self.others else x

    model = Outer()
    with precompute(model, data(), tmp_path) as cached:
        rows, _ = next(iter(cached.loader(batch_size=4)))
        model(rows)
        model.head.factor = 2.0  # type: ignore[assignment]
        with pytest.raises(FtkitError, match=r"head.factor was 1.0 .* and is 2.0 now"):
            model(rows)


def test_weights_that_are_lent_for_one_step_to_a_large_model(tmp_path: Path) -> None:
    """As averages of weights are evaluated, and put away again."""
    model = deep()
    with precompute(model, data(), tmp_path) as cached:
        rows, _ = next(iter(cached.loader(batch_size=4)))
        for _ in range(3):
            model(rows)
        cached._player.guard._due = float("inf")
        own = [one.data for one in model.parameters()]
        for one in model.parameters():
            one.data = one.data * 0.9
        with pytest.raises(FtkitError, match="changed since"):
            model(rows)
        for one, before in zip(model.parameters(), own, strict=True):
            one.data = before
        model(rows)
        cached._player.guard._due = float("inf")
        others = {name: one.detach() * 0.9 for name, one in model.named_parameters()}
        with pytest.raises(FtkitError, match="changed since"):
            torch.func.functional_call(model, others, (rows,))


def test_what_comes_before_a_head_alone_is_passed_over(tmp_path: Path) -> None:
    """It takes longer than the head."""
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 16), nn.ReLU(inplace=True)), nn.Linear(16, 3))
    freeze_except(model, "1")
    with precompute(model, data(), tmp_path) as cached:
        rows, _ = next(iter(cached.loader(batch_size=4)))
        player = cached._player
        model(rows)  # in which it is seen what the head gets
        player._begin(model, (rows,), {})
        assert player._here.run.straight is not None
        player._leave()


@pytest.mark.parametrize("call", [lambda m, rows: m.forward(rows), lambda m, rows: m.body(rows)])
def test_rows_that_pass_by_the_model_s_own_call(call: Callable[[Any, Tensor], object], tmp_path: Path) -> None:
    """A part of it would take them for numbers."""
    model = Model()
    with precompute(model, data(), tmp_path) as cached:
        rows, _ = next(iter(cached.loader(batch_size=4)))
        with pytest.raises(FtkitError, match=r"only model\(rows\) takes them"):
            call(model, rows)


def test_rows_that_were_written_to_without_a_trace(tmp_path: Path) -> None:
    """By NumPy, of which torch knows nothing: all of them, or one."""
    model = Model()
    with precompute(model, data(), tmp_path) as cached:
        rows, _ = next(iter(cached.loader(batch_size=12)))
        rows.numpy()[:, 40:] += 1
        with pytest.raises(FtkitError, match="changed on the way"):
            model(rows)
        rows, _ = next(iter(cached.loader(batch_size=12)))
        model(rows)
        rows.numpy()[7, 40:] += 1
        with pytest.raises(FtkitError, match="changed on the way"):
            for _ in range(8):
                model(rows)


SCALE = 1.0


class Quiet(nn.Module):
    """A block that shows to others what it does not read itself."""

    _of_class = False

    def __init__(self) -> None:
        super().__init__()
        self.layer, self._fast, self._deep = nn.Linear(8, 8), False, False

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    @property
    def is_deep(self) -> bool:
        return self._deep

    def scale(self) -> float:
        return SCALE


def of_its_class(block: Any) -> None:
    Quiet._of_class = True


def of_its_file(block: Any) -> None:
    global SCALE
    SCALE = 2.0


READ_BY_CALLERS: dict[str, tuple[Callable[[Any], float], Callable[[Any], object]]] = {
    "flag": (lambda block: 1 + block._fast, lambda block: setattr(block, "_fast", True)),
    "by getattr": (lambda block: 1 + getattr(block, "_fast", False), lambda block: setattr(block, "_fast", True)),
    "new": (lambda block: 1 + getattr(block, "_new", False), lambda block: setattr(block, "_new", True)),
    "over that of the class": (lambda block: 1 + block._of_class, lambda block: setattr(block, "_of_class", True)),
    "of the class": (lambda block: 1 + block._of_class, of_its_class),
    "behind a property": (lambda block: 1 + block.is_deep, lambda block: setattr(block, "_deep", True)),
    "behind a method": (lambda block: block.scale(), of_its_file),
}


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("way", READ_BY_CALLERS)
def test_what_only_a_caller_reads_of_a_module_is_noticed(
    way: str, trains: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether that is skipped, or trains behind the frozen part."""
    monkeypatch.setattr(Quiet, "_of_class", False)
    monkeypatch.setitem(globals(), "SCALE", 1.0)
    read, change = READ_BY_CALLERS[way]

    class Caller(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.block, self.body, self.head = Quiet(), nn.Linear(8, 8), nn.Linear(8, 3)
            freeze_except(self, "head", *(["block"] if trains else []))

        def forward(self, x: Tensor) -> Tensor:
            scale = read(self.block)
            x = self.body(x * scale) if trains else self.block(x * scale)
            return self.head(self.block(x) if trains else self.body(x))

    model = Caller()
    with precompute(model, data(), tmp_path) as cached:
        rows, _ = next(iter(cached.loader(batch_size=4)))
        for _ in range(2):
            model(rows)
        change(model.block)
        with pytest.raises(FtkitError, match=r"\S+ was .* when the frozen part was computed"):
            model(rows)


def test_a_flag_of_the_class_that_an_instance_is_given_is_noticed(tmp_path: Path) -> None:
    """Which its own code reads."""

    class Flagged(Quiet):
        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * (2 if self._of_class else 1)

    model = nn.Sequential(Flagged(), nn.Linear(8, 3))
    freeze_except(model, "1")
    with precompute(model, data(), tmp_path) as cached:
        rows, _ = next(iter(cached.loader(batch_size=4)))
        for _ in range(2):
            model(rows)
        model[0]._of_class = True
        with pytest.raises(FtkitError, match=r"0\._of_class was not there .* and is True now"):
            model(rows)


def test_an_attribute_of_the_class_of_an_object_is_noticed(tmp_path: Path) -> None:
    """Where the object is a frozen module's."""

    class Settings:
        scale = 1.0

    class Reads(Quiet):
        def __init__(self) -> None:
            super().__init__()
            self.settings = Settings()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * self.settings.scale

    model = nn.Sequential(Reads(), nn.Linear(8, 3))
    freeze_except(model, "1")
    with precompute(model, data(), tmp_path) as cached:
        rows, _ = next(iter(cached.loader(batch_size=4)))
        for _ in range(2):
            model(rows)
        Settings.scale = 2.0
        with pytest.raises(FtkitError, match=r"Settings\.scale was 1\.0 .* and is 2\.0 now"):
            model(rows)


def in_an_array(part: Any) -> None:
    part.many[-1, -1] = 3


def in_a_large_weight(part: Any) -> None:
    part.layer.weight.data[-1, 1] = 3


def in_a_tensor_of_no_module(part: Any) -> None:
    part.loose.data[-2] = 3


@pytest.mark.parametrize("change", [in_an_array, in_a_large_weight, in_a_tensor_of_no_module])
def test_all_bytes_are_looked_at_where_the_block_ends(change: Callable[[Any], None], tmp_path: Path) -> None:
    """Those whose turn has not come, in a small model as well."""

    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.many, self.loose = nn.Linear(8, 1 << 18), np.ones((9000, 100)), torch.ones(1 << 20)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[:, :8] * float(self.many[-1, -1]) * self.loose[-2]

    model = nn.Sequential(Large(), nn.Linear(8, 3))
    freeze_except(model, "1")
    cached = precompute(model, data(), tmp_path)

    def last_step() -> None:
        rows, _ = next(iter(cached.loader(batch_size=4)))
        for _ in range(2):
            model(rows)
        change(model[0])

    with pytest.raises(FtkitError, match=r"when the frozen part was computed|changed since"), cached:
        last_step()
    with pytest.raises(FtkitError, match=r"when the frozen part was computed|changed since"), cached:
        pass


def test_rows_that_were_written_to_in_inference_mode(tmp_path: Path) -> None:
    """Where torch does not count that, in a large model that is not looked at as a whole in each step."""
    model = deep()
    with precompute(model, data(), tmp_path) as cached, torch.inference_mode():
        rows, _ = next(iter(cached.loader(batch_size=4)))
        for _ in range(3):
            model(rows)
        cached._player.guard._due = float("inf")
        rows[:, 40:] += 1
        with pytest.raises(FtkitError, match="changed on the way"):
            model(rows)


def test_training_goes_on_after_a_validation_in_inference_mode(tmp_path: Path) -> None:
    """Though something on the way writes to what stands for the frozen part's values, which was made then."""

    class Writes(Model):
        def __init__(self) -> None:
            super().__init__()
            self.after = nn.Linear(16, 16).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            x = self.body(x)
            return self.head(self.after(x.add_(1) if torch.is_grad_enabled() else x + 1))

    model = Writes()
    with precompute(model, data(), tmp_path, batch_size=12) as cached:
        (rows, _), plain = next(iter(cached.loader(batch_size=12))), data().tensors[0]
        with torch.inference_mode():
            assert torch.equal(model(rows), model(plain))
        assert torch.equal(model(rows), model(plain.clone()))
        model(rows).sum().backward()


GAIN = [1.0]
GAINS: dict[str, Any] = {}


def gained(x: Tensor) -> Tensor:
    return x * GAIN[0]


def gaining(gain: float) -> Callable[[Tensor], Tensor]:
    """A closure that keeps its gain."""
    kept = [gain]

    def gained(x: Tensor) -> Tensor:
        return x * kept[0]

    gained.kept = kept  # type: ignore[attr-defined]
    return gained


class Gained(torch.autograd.Function):
    """What autograd is told by hand."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x * GAIN[0]


class Held:
    """A method of which is kept."""

    def __init__(self) -> None:
        self.gain = 1.0

    def gained(self, x: Tensor) -> Tensor:
        return x * self.gain


class Reading(nn.Module):
    """A body and a head, and between them what one way of reading a setting gives."""

    def __init__(self, kept: Any, read: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.after, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.kept, self.read = kept, read
        self.head.settings = Held()  # type: ignore[assignment]
        freeze_except(self, "head")

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.after(self.read(self, self.body(x))))
        return scores


def doubled(_: Any) -> None:
    GAIN[0] = 2.0


def another(kept: Any) -> Callable[[Any], None]:
    return lambda m: setattr(m, "kept", kept)


def gain_doubled(model: Any) -> None:
    model.kept.gain = 2.0


class Number(float):
    """A number with an attribute."""

    gain = 1.0


class Table(collections.UserDict[str, float]):
    """A dict with an attribute."""

    gain = 1.0


def holding_itself(values: list[Any]) -> list[Any]:
    values.append(values)
    return values


def shared(config: Any) -> Any:
    """An object, and another one that reads more of it than the model does."""

    class Gain:
        def __init__(self) -> None:
            self.config = config

        def __call__(self, x: Tensor) -> Tensor:
            return x * self.config.gain  # type: ignore[no-any-return]

    return config, Gain()


class Gaining:
    """Its own class method reads what the code around does not name."""

    gain = 1.0

    @classmethod
    def gained(cls, x: Tensor) -> Tensor:
        return x * cls.gain


READINGS: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], Tensor], Callable[[Any], object]]] = {
    "a function in an attribute": (lambda: gained, lambda m, x: m.kept(x), doubled),
    "a function in a list": (lambda: [gained], lambda m, x: m.kept[0](x), doubled),
    "a function in a dict": (lambda: {"a": gained}, lambda m, x: m.kept["a"](x), doubled),
    "a function in a global": (lambda: GAINS.update(a=gained), lambda _, x: GAINS["a"](x), doubled),
    "a closure": (lambda: gaining(1.0), lambda m, x: m.kept(x), lambda m: m.kept.kept.__setitem__(0, 2.0)),
    "one of two closures": (
        lambda: [gaining(1.0), gaining(1.0)],
        lambda m, x: m.kept[1](x),
        lambda m: m.kept[1].kept.__setitem__(0, 2.0),
    ),
    "a method of an object": (
        lambda: Held().gained,
        lambda m, x: m.kept(x),
        lambda m: setattr(m.kept.__self__, "gain", 2.0),
    ),
    "getattr": (Held, lambda m, x: x * getattr(m.kept, "gain", 1.0), lambda m: setattr(m.kept, "gain", 2.0)),
    "vars": (Held, lambda m, x: x * vars(m.kept)["gain"], lambda m: setattr(m.kept, "gain", 2.0)),
    "globals": (lambda: None, lambda _, x: x * globals()["GAIN"][0], doubled),
    "what was not there": (
        lambda: None,
        lambda m, x: x * (2 if getattr(m, "_double", False) else 1),
        lambda m: setattr(m, "_double", True),
    ),
    "what was not there of what trains": (
        lambda: None,
        lambda m, x: x * getattr(m.head, "twice", 1),
        lambda m: setattr(m.head, "twice", 2),
    ),
    "an object of what trains": (
        lambda: None,
        lambda m, x: x * m.head.settings.gain,
        lambda m: setattr(m.head.settings, "gain", 2.0),
    ),
    "another object of what trains": (
        lambda: None,
        lambda m, x: x * m.head.settings.gain,
        lambda m: setattr(m.head, "settings", Held()) or setattr(m.head.settings, "gain", 2.0),  # type: ignore[func-returns-value]
    ),
    "an object that two share": (
        lambda: shared(types.SimpleNamespace(scale=1.0, gain=1.0)),
        lambda m, x: m.kept[1](x) * m.kept[0].scale,
        lambda m: setattr(m.kept[0], "gain", 2.0),
    ),
    "an attribute that is named by a run": (
        Held,
        lambda m, x: x * getattr(m.kept, "".join(("ga", "in"))),
        lambda m: setattr(m.kept, "gain", 2.0),
    ),
    "one of two keys of a kind": (
        lambda: {(0, 0): 1.0, (0, 1): 3.0},
        lambda m, x: x * m.kept[0, 0],
        lambda m: m.kept.update({(0, 0): 2.0}),
    ),
    "one of two long keys": (
        lambda: {"k" * 90 + "a": 1.0, "k" * 90 + "b": 3.0},
        lambda m, x: x * min(m.kept.values()),
        lambda m: m.kept.update({"k" * 90 + "a": 2.0}),
    ),
    "a long list": (
        lambda: [[at, 1.0] for at in range(3000)],
        lambda m, x: x * m.kept[-1][1],
        lambda m: m.kept.__setitem__(-1, [2999, 2.0]),
    ),
    "what lies beside a long list": (
        lambda: [[(at,) for at in range(3000)], Held()],
        lambda m, x: x * m.kept[1].gain * len(m.kept[0][0]),
        lambda m: setattr(m.kept[1], "gain", 2.0),
    ),
    "a long list that holds itself": (
        lambda: holding_itself([1.0] * 600),
        lambda m, x: x * m.kept[-1][0],
        lambda m: m.kept.__setitem__(0, 2.0),
    ),
    "a large set": (
        lambda: {*range(1000, 1400)},
        lambda m, x: x * (2 if 9999 in m.kept else 1),
        lambda m: m.kept.symmetric_difference_update({1399, 9999}),
    ),
    "a number of NumPy": (lambda: np.float32(1), lambda m, x: x * float(m.kept), another(np.float32(2))),
    "a range": (lambda: range(1), lambda m, x: x * len(m.kept), another(range(2))),
    "one of several dicts": (
        lambda: collections.ChainMap({}, {"gain": 1.0}),
        lambda m, x: x * m.kept["gain"],
        lambda m: m.kept.maps[1].update(gain=2.0),
    ),
    "an attribute of a number": (lambda: Number(1.0), lambda m, x: x * m.kept.gain, gain_doubled),
    "an attribute of a dict in a class": (lambda: Table(a=1.0), lambda m, x: x * m.kept.gain, gain_doubled),
    "an attribute of a function": (
        lambda: gaining(1.0),
        lambda m, x: m.kept(x) * len(m.kept.kept),
        lambda m: setattr(m.kept, "kept", [2.0, 2.0]),
    ),
    "a class": (lambda: None, lambda _, x: Gaining.gained(x), lambda _: setattr(Gaining, "gain", 2.0)),
    "a function of autograd": (lambda: None, lambda _, x: Gained.apply(x), doubled),  # type: ignore[no-any-return]
    "torch's type": (
        lambda: None,
        lambda _, x: x * (2 if torch.get_default_dtype() is torch.float64 else 1),
        lambda _: torch.set_default_dtype(torch.float64),
    ),
    "torch's precision": (
        lambda: None,
        lambda _, x: x * (2 if torch.get_float32_matmul_precision() == "high" else 1),
        lambda _: torch.set_float32_matmul_precision("high"),
    ),
    "torch's attention": (
        lambda: None,
        lambda _, x: x * (1 if torch.backends.cuda.math_sdp_enabled() else 2),
        lambda _: torch.backends.cuda.enable_math_sdp(False),  # type: ignore[no-untyped-call]
    ),
}


@pytest.fixture
def as_it_was() -> Iterator[None]:
    """Put back what these tests change for all."""
    GAIN[0] = 1.0
    yield
    GAIN[0] = Gaining.gain = 1.0
    GAINS.clear()
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.enable_math_sdp(True)  # type: ignore[no-untyped-call]


@pytest.mark.usefixtures("as_it_was")
@pytest.mark.parametrize("way", READINGS)
def test_a_setting_that_changes_late_is_noticed_wherever_it_is_read(way: str, tmp_path: Path) -> None:
    """However the code comes by it; and not by a batch that is computed anew."""
    make, read, change = READINGS[way]
    model = Reading(make(), read)
    with precompute(model, data(), tmp_path) as cached:
        rows, _ = next(iter(cached.loader(batch_size=4)))
        for _ in range(3):
            model(rows)
        assert cached._player.spots is not None
        cached._player.spots._next = float("inf")
        change(model)
        with pytest.raises(FtkitError, match=r"was .* when the frozen part was computed, and is"):
            model(rows)


def test_two_classes_of_one_name_are_not_taken_for_one(tmp_path: Path) -> None:
    """Each has an attribute that its forward reads."""

    def part(gain: float) -> nn.Module:
        class Part(nn.Module):
            own = gain

            def forward(self, x: Tensor) -> Tensor:
                return x * self.own

        return Part()

    model = Reading(None, lambda m, x: m.second(m.first(x)))
    model.first, model.second = part(1.0), part(3.0)
    with precompute(model, data(), tmp_path) as cached:
        used(model, cached)
        type(model.first).own = 2.0  # type: ignore[assignment]
        with pytest.raises(FtkitError, match=r"Part\.own was 1\.0 when the frozen part was computed, and is 2\.0 now"):
            used(model, cached)


def sample(x: Tensor) -> Tensor:
    return x + torch.rand(x.shape, generator=torch.Generator())


def test_a_method_is_not_taken_for_a_function_of_its_name(tmp_path: Path) -> None:
    """The function makes a generator; nothing calls it."""

    class Sampler:
        def sample(self, x: Tensor) -> Tensor:
            return x * 2

    model = Reading(Sampler(), lambda m, x: m.kept.sample(x))
    assert precompute(model, data(), tmp_path).skipped == ["body", "after"]
    assert not torch.equal(sample(torch.zeros(3)), torch.zeros(3))


def test_a_framework_may_put_its_forward_around_the_models_own(tmp_path: Path) -> None:
    """As Accelerate does; the settings that the model's own forward reads are watched as before."""
    model = Configured()
    with precompute(model, data(), tmp_path) as cached:
        used(model, cached)
        own = model.forward
        model.forward = lambda *call, **named: own(*call, **named)  # type: ignore[method-assign]
        used(model, cached)
        model.config.kind = "another"
        with pytest.raises(FtkitError, match=r"config\.kind was 'one of several' .* and is 'another' now"):
            used(model, cached)


def test_what_a_trained_module_keeps_of_each_batch_is_no_setting(tmp_path: Path) -> None:
    """Though the model reads it by a name that its code has."""

    class Logging(nn.Linear):
        def __init__(self) -> None:
            super().__init__(16, 3)
            self.seen, self.last = dict[int, int](), 0

        def forward(self, x: Tensor) -> Tensor:
            self.seen[len(self.seen)] = self.last = len(self.seen) + 1
            return super().forward(x)

    model = Model()
    model.head = Logging()
    model.forward = lambda x: model.head(model.body(x)) + 0 * len(model.head.seen) * model.head.last  # type: ignore[assignment, arg-type, union-attr, operator]
    with precompute(model, data(), tmp_path) as cached:
        for rows, _ in cached.loader(batch_size=4):
            model(rows)


class Config:
    """As transformers has them."""

    def __init__(self) -> None:
        self.kind: str | None = None
        self.use_cache = True


class Configured(nn.Module):
    """Its first run notes in the configuration, which its parts share, which kind of labels there are."""

    def __init__(self, where: str = "nowhere") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = Config()
        self.body, self.head = Part(self.config, where), nn.Linear(16, 3)
        freeze_except(self, "head")

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(x))
        if self.config.kind is None:
            self.config.kind = "one of several"
        return scores


class Part(nn.Module):
    """What it gives may hang on the configuration."""

    def __init__(self, config: Config, where: str) -> None:
        super().__init__()
        self.config, self.where = config, where
        self.one, self.two = nn.Linear(8, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        cache = {} if self.config.use_cache else None
        if (self.where == "kind" and self.config.kind) or (self.where == "cache" and cache is None):
            x = x * 2
        return self.two(x)  # type: ignore[no-any-return]


def used(model: Any, cached: Precomputed) -> None:
    for rows, _ in cached.loader(batch_size=4):
        model(rows)


def test_what_the_first_run_sets_once_is_no_change_by_someone_else(tmp_path: Path) -> None:
    """What it finds and what it leaves are accepted, and nothing else; another run finds the same file."""
    model = Configured()
    with precompute(model, data(), tmp_path) as cached:
        assert model.config.kind is None
        used(model, cached)
        assert model.config.kind == "one of several"
        model.config.kind = None
        used(model, cached)
    again = precompute(model, data(), tmp_path)
    assert (again.computed, again.path) == (0, cached.path)
    with pytest.raises(FtkitError, match=r"config\.kind was 'one of several' .* and is 'any' now"), again:
        model.config.kind = "any"
        used(model, again)


def test_what_the_first_run_sets_may_not_change_what_is_kept(tmp_path: Path) -> None:
    """Else the rows of the first batch are not those of the second."""
    model = Configured("kind")
    with pytest.raises(FtkitError), precompute(model, data(), tmp_path) as cached:
        used(model, cached)


@pytest.mark.parametrize("where", ["nowhere", "cache"])
def test_trainers_switch_the_cache_off(where: str, tmp_path: Path) -> None:
    """Which is fine where it changes nothing that is kept, and refused where it does."""
    model = Configured(where)
    with precompute(model, data(), tmp_path) as cached:
        assert model.config.use_cache
        model.config.use_cache = False
        if where == "nowhere":
            used(model, cached)
            model.config.use_cache = True
            used(model, cached)
        else:
            with pytest.raises(FtkitError, match=r"config\.use_cache was True .* and is False now"):
                used(model, cached)


class Passing(nn.Module):
    """Passes on what its configuration says of the cache, if it says anything, as decorators of transformers do."""

    def __init__(self, where: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = Config()
        self.config.dtype: Any = torch.float32  # type: ignore[attr-defined, misc]
        del self.config.use_cache
        self.body, self.head, self.where = Taking(where), nn.Linear(16, 3), where
        freeze_except(self, "head")

    def forward(self, x: Tensor) -> Tensor:
        more = {"use_cache": self.config.use_cache} if hasattr(self.config, "use_cache") else {}
        if self.where == "dtype" and self.config.dtype == "float32":  # type: ignore[attr-defined]
            x = x * 2
        kind = str(self.config.dtype)  # type: ignore[attr-defined]
        scores: Tensor = self.head(self.body(x, **more)) * len(kind) ** 0
        return scores


class Taking(nn.Module):
    """Takes what it may not need."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.layer, self.where = nn.Linear(8, 16), where

    def forward(self, x: Tensor, use_cache: bool | None = None) -> Tensor:
        return self.layer(x if self.where != "cache" or use_cache is None else x * 2)  # type: ignore[no-any-return]


@pytest.mark.parametrize("where", ["nowhere", "cache"])
def test_a_cache_that_was_not_spoken_of_may_be_switched_off(where: str, tmp_path: Path) -> None:
    """As a part gets it then; but not where that changes what is kept."""
    model = Passing(where)
    with precompute(model, data(), tmp_path) as cached:
        assert not hasattr(model.config, "use_cache")
        used(model, cached)
        model.config.use_cache = False
        if where == "nowhere":
            used(model, cached)
        else:
            with pytest.raises(FtkitError, match=r"config\.use_cache was not there .* and is False now"):
                used(model, cached)


@pytest.mark.parametrize("where", ["nowhere", "dtype"])
@pytest.mark.parametrize("begin", [torch.float32, None, "float32"])
def test_a_configuration_may_note_the_dtype_that_the_weights_have(begin: Any, where: str, tmp_path: Path) -> None:
    """As it does when a model is saved; but not where that changes what is kept, and no other one."""
    model = Passing(where)
    model.config.dtype = begin  # type: ignore[attr-defined]
    with precompute(model, data(), tmp_path) as cached:
        used(model, cached)
        model.config.dtype = "float32"  # type: ignore[attr-defined]
        if where == "nowhere" or begin == "float32":
            used(model, cached)
            assert precompute(model, data(), tmp_path).computed == 0
        else:
            with pytest.raises(FtkitError, match=r"config\.dtype was .* and is 'float32' now"):
                used(model, cached)
        model.config.dtype = "float16"  # type: ignore[attr-defined]
        with pytest.raises(FtkitError, match=r"config\.dtype was .* and is 'float16' now"):
            used(model, cached)


class Scheduled(nn.Module):
    """Draws between its frozen body and its head, and in the head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.dropout = nn.Linear(8, 4), nn.Dropout(0.1)
        self.head = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.Linear(4, 3))
        freeze_except(self, "head", "dropout")

    def forward(self, x: Tensor) -> Any:
        return self.head(self.dropout(self.body(x)))


def test_a_rate_that_the_loop_changes_behind_the_frozen_part(tmp_path: Path) -> None:
    """It is no setting of what is kept, and rows stay what they are; training is that of the plain loop."""
    model, samples = Scheduled(), data()
    plain = copy.deepcopy(model)

    def epochs(one: Any, batches: Callable[[], Any]) -> Any:
        for epoch in range(3):
            one.dropout.p = one.head[1].p = 0.1 * (epoch + 1)
            train(one, batches(), epochs=1)
        return one.state_dict()

    with precompute(model, samples, tmp_path, batch_size=6) as cached:
        ended = epochs(model, lambda: cached.loader(batch_size=6))
    assert same(ended, epochs(plain, lambda: DataLoader(samples, 6)))
    assert precompute(model, samples, tmp_path).computed == 0
