"""What may happen to a model in a block, beside training."""

from __future__ import annotations

import io
import logging
import pickle
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ftkit import FtkitError, freeze_except, summary
from ftkit._precompute.precompute import precompute
from tests.precompute.loops import at_once


def make() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, 3))
    freeze_except(model, "1")
    return model


def data() -> TensorDataset:
    return TensorDataset(torch.randn(8, 6, generator=torch.Generator().manual_seed(1)))


def started(by_content: bool, folder: Path, model: nn.Module) -> tuple[Any, Any]:
    loader = DataLoader(data(), 4)
    cached = precompute(model, loader if by_content else data(), folder, batch_size=4)
    return cached, loader if by_content else cached.loader(batch_size=4)


@pytest.mark.parametrize("by_content", [False, True])
def test_a_model_that_goes_to_the_meta_device(by_content: bool, tmp_path: Path) -> None:
    model = make()
    cached, loader = started(by_content, tmp_path, model)
    with pytest.raises(FtkitError, match=r"0\.0\.bias, 0\.0\.weight changed"), cached:
        for (inputs,) in loader:
            model(inputs)
        model.to("meta")


@pytest.mark.parametrize("by_content", [False, True])
def test_a_buffer_without_values(by_content: bool, tmp_path: Path) -> None:
    """As some register for what is filled later; the frozen part does not read it."""
    model = make()
    cached, loader = started(by_content, tmp_path, model)
    with cached:
        for _ in range(2):
            for (inputs,) in loader:
                model(inputs)
            model.register_buffer("later", torch.empty(3, device="meta"))


def traced(model: nn.Module, inputs: Tensor) -> Any:
    return torch.jit.trace(model, inputs)  # type: ignore[no-untyped-call]


def exported(model: nn.Module, inputs: Tensor) -> Any:
    return torch.export.export(model, (inputs,)).module()


def exported_strictly(model: nn.Module, inputs: Tensor) -> Any:
    return torch.export.export(model, (inputs,), strict=True).module()


TELLS: Final = pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="torch tells from 2.7 on")


@pytest.mark.filterwarnings("ignore:While compiling", "ignore:`torch.jit")
@pytest.mark.parametrize("by_content", [False, True])
@pytest.mark.parametrize(
    "export", [traced, pytest.param(exported, marks=TELLS), pytest.param(exported_strictly, marks=TELLS)]
)
def test_a_model_is_exported_in_the_block(
    export: Callable[[nn.Module, Tensor], Any], by_content: bool, tmp_path: Path
) -> None:
    """With plain inputs, and as a whole."""
    model, (inputs,) = make(), data()[:4]
    cached, loader = started(by_content, tmp_path, model)
    with cached:
        for (given,) in loader:
            model(given)
        whole = export(model, inputs)
        for (given,) in loader:
            model(given)
    torch.testing.assert_close(whole(2 * inputs), model(2 * inputs))


@pytest.mark.parametrize("by_content", [False, True])
def test_the_summary_of_a_model_in_the_block(by_content: bool, tmp_path: Path) -> None:
    model = make()
    expected = str(summary(model, (4, 6)))
    cached, loader = started(by_content, tmp_path, model)
    with cached:
        for (given,) in loader:
            model(given)
        assert str(summary(model, (4, 6))) == expected


def bound(function: Any, to: Any) -> Any:
    return types.MethodType(function, to)


class MethodsByFunction(pickle.Pickler):
    """Keeps a method as its function and its object, as cloudpickle does, with which fastai exports."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, types.MethodType):
            return bound, (value.__func__, value.__self__)
        return NotImplemented


@pytest.mark.parametrize("by_content", [False, True])
def test_a_model_that_is_pickled_in_the_block(by_content: bool, tmp_path: Path) -> None:
    model, file = make(), io.BytesIO()
    cached, loader = started(by_content, tmp_path, model)
    with cached:
        for (given,) in loader:
            model(given)
        MethodsByFunction(file).dump(model)
    file.seek(0)
    copied = pickle.load(file)
    for _ in range(2):
        assert torch.equal(copied(data().tensors[0]), model(data().tensors[0]))


@pytest.mark.parametrize("by_content", [False, True])
def test_torch_compile_is_quiet_about_what_notes_decisions(
    by_content: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would compile that anew for each kind of operator, and say that it gives up."""

    class Decides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x if bool((x > 9).any()) else 2 * x)
            for shape in ((-1, 8), (-1, 2, 4), (-1, 2, 2, 2), (-1, 1, 2, 2, 2)):
                x = torch.tanh(x.reshape(shape)).reshape(-1, 8)
            scores: Tensor = self.head(x)
            return scores

    import torch._dynamo

    torch.compiler.reset()
    monkeypatch.setattr(logging.getLogger("torch._dynamo"), "propagate", True)
    model = Decides()
    freeze_except(model, "head")
    cached, loader = started(by_content, tmp_path, model)
    run = torch.compile(model, backend="eager")
    limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
    with torch._dynamo.config.patch(**{limit: 2}), cached:
        for _ in range(3):
            for (given,) in loader:
                run(given)
    assert not [one for one in caplog.records if "__torch_dispatch__" in one.getMessage()]


class Dropping(nn.Module):
    """Gives something else in train mode, in which the frozen part is computed anew."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.dropout, self.head = nn.Dropout(), nn.Linear(8, 3)
        freeze_except(self, "head")

    def forward(self, x: Tensor) -> Tensor:
        if bool((x > 1000).any()):
            raise RuntimeError("too large")
        if bool((x < -1000).any()):
            raise KeyboardInterrupt
        scores: Tensor = self.head(self.dropout(self.body(x)))
        return scores


class Plainly(Dropping):
    """The same without a look at the values, so that what trains is called at once."""

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.dropout(self.body(x)))
        return scores


@pytest.mark.parametrize("made", [Dropping, Plainly])
@pytest.mark.parametrize("by_content", [False, True])
def test_threads_that_evaluate_one_model(by_content: bool, made: type[nn.Module], tmp_path: Path) -> None:
    """Each gets what it would get alone, though batches are computed anew meanwhile."""

    def evaluate() -> list[Tensor]:
        with torch.no_grad():
            return [model(inputs).clone() for (inputs,) in loader]

    for trial in range(3):
        model = made().eval()
        with torch.no_grad():
            expected = [model(inputs) for (inputs,) in DataLoader(data(), 4)]
        cached, loader = started(by_content, tmp_path / str(trial), model)
        with cached:
            found = [one for _ in range(3) for one in at_once(*[evaluate] * 4)]
        for one in found:
            assert isinstance(one, list), one
            torch.testing.assert_close(one, expected)
        assert not any("forward" in vars(one) for one in model.modules())


@pytest.mark.parametrize("by_content", [False, True])
def test_no_thread_waits_for_one_that_failed(by_content: bool, tmp_path: Path) -> None:
    """In the model, before or after it, or by Ctrl-C; which then goes on with something else."""
    model = Dropping().eval()
    cached, loader = started(by_content, tmp_path, model)
    (inputs,) = data()[:]
    failed, done = threading.Event(), threading.Event()
    wants = {"before": False, "after": False}

    def hook(when: str) -> Callable[..., None]:
        def fail(*_: Any) -> None:
            if wants[when]:
                raise ValueError(when)

        fail.__module__ = "ftkit.tests"  # a hook of a stranger would be refused
        return fail

    def fail() -> None:
        with torch.no_grad():
            for given, error in ((inputs + 2000, RuntimeError), (inputs - 2000, KeyboardInterrupt)):
                with pytest.raises(error):
                    model(given)
            with pytest.raises(FtkitError, match="changed on the way"):
                model(torch.zeros(4, 9, dtype=torch.uint8))
            for when in wants:
                wants[when] = True
                with pytest.raises(ValueError, match=when):
                    model(inputs)
                wants[when] = False
        failed.set()
        done.wait(60)

    def evaluate() -> int:
        failed.wait(60)
        try:
            with torch.no_grad():
                return sum(len(model(given)) for (given,) in loader)
        finally:
            done.set()

    model.register_forward_pre_hook(hook("before"))
    model.register_forward_hook(hook("after"))
    with cached:
        assert at_once(fail, evaluate) == [None, 8]


@pytest.mark.parametrize("by_content", [False, True])
def test_a_summary_and_a_cache_are_made_while_another_thread_trains(by_content: bool, tmp_path: Path) -> None:
    model = Plainly()
    expected = str(summary(model, (4, 6)))
    cached, loader = started(by_content, tmp_path / "one", model)

    def train() -> int:
        for at in range(20):
            for (given,) in loader:
                model(given[: at % 3 + 2]).sum().backward()
        return 1

    def look() -> int:
        for at in range(4):
            assert str(summary(model, (4, 6))) == expected
            assert precompute(model, DataLoader(data(), 4), tmp_path / str(at)).skipped == cached.skipped
        return 2

    with cached:
        assert at_once(train, look) == [1, 2]


def test_a_model_that_calls_itself(tmp_path: Path) -> None:
    """It is refused; its thread does not wait for itself."""

    class Twice(Plainly):
        def forward(self, x: Tensor, again: bool = True) -> Tensor:
            return super().forward(x) + self(x, again=False).detach() if again else super().forward(x)

    (error,) = at_once(lambda: started(True, tmp_path, Twice()))
    assert isinstance(error, FtkitError), error
