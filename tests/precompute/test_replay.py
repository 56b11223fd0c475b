"""What may happen to a model in a block, beside training."""

from __future__ import annotations

import io
import logging
import pickle
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
