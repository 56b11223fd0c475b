"""What could make kept rows wrong without a word: each is computed as before, or refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ftkit import FtkitError, freeze_except, precompute, unfreeze


class Model(nn.Module):
    """A body that is frozen and a head that trains, with a forward that can be given."""

    def __init__(self, body: nn.Module | None = None, forward: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = body or nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.head = nn.Linear(16, 3)
        self._scale, self._forward = 1.0, forward
        freeze_except(self, "head")

    def forward(self, x: Tensor, mask: Tensor | None = None, *, flip: bool = False) -> Tensor:
        x = x.to(self.head.weight.dtype) * self._scale
        if self._forward is not None:
            return self._forward(self, x)
        if mask is not None:
            x = x * mask
        return self.head(self.body(x.flip(-1) if flip else x))


def data(count: int = 32) -> TensorDataset:
    torch.manual_seed(1)
    return TensorDataset(torch.randn(count, 8), torch.arange(count) % 3)


def first(cached: Any) -> Tensor:
    """A batch of rows."""
    rows: Tensor = next(iter(cached.loader(batch_size=16)))[0]
    return rows


class OverTheBatch(nn.Module):
    """Attention with the batch where the steps should be."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.attention = nn.Linear(8, 16), nn.MultiheadAttention(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        steps = self.up(x)[:, None].expand(-1, 4, -1)
        return self.attention(steps, steps, steps)[0].mean(1)


def norm() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16, track_running_stats=False), nn.ReLU())


@pytest.mark.parametrize("body", [norm, OverTheBatch])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, "autocast"], ids=str)
def test_mixing_is_seen_in_every_precision(body: Callable[[], nn.Module], dtype: Any, tmp_path: Path) -> None:
    """Coarse roundings don't hide it."""
    half = isinstance(dtype, torch.dtype)
    torch.manual_seed(0)
    model = Model(body()).to(dtype if half else torch.float32)
    around = contextlib.nullcontext() if half else torch.autocast("cpu", torch.bfloat16)
    with around:
        try:
            cached = precompute(model, data(), tmp_path)
        except FtkitError as error:
            assert "samples" in str(error)  # noqa: PT017
            return
        assert not {"body", "body.1", "body.attention"} & set(cached.skipped)
        with cached:
            for at, (rows, _) in enumerate(cached.loader(batch_size=16)):
                assert torch.equal(model(rows), model(data().tensors[0][at * 16 : at * 16 + 16]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_once(dtype: torch.dtype, tmp_path: Path) -> None:
    """Where nothing mixes."""
    model = Model().to(dtype)
    with precompute(model, data(), tmp_path) as cached:
        assert cached.skipped == ["body"]
        assert torch.allclose(model(first(cached)), model(data().tensors[0][:16]))


def test_another_activation_is_another_file(tmp_path: Path) -> None:
    """Though no weight has changed."""
    model = Model(nn.Sequential(nn.Linear(8, 16), nn.Tanh())).bfloat16()
    precompute(model, data(), tmp_path)
    model.body[1] = nn.Sigmoid()
    with precompute(model, data(), tmp_path) as cached:
        assert cached.computed == 32
        assert torch.allclose(model(first(cached)), model(data().tensors[0][:16]))


def test_what_only_the_model_itself_takes_is_refused(tmp_path: Path) -> None:
    """The rows are what the frozen part gives without it."""
    model = Model()
    mask = torch.tensor([1.0, 0] * 4)
    with precompute(model, data(), tmp_path) as cached:
        rows = first(cached)
        with pytest.raises(FtkitError, match=r"mask=a tensor of \[8\]"):
            model(rows, mask)
        with pytest.raises(FtkitError, match=r"mask=a tensor of \[8\]"):
            model(x=rows, mask=mask)
        with pytest.raises(FtkitError, match="flip=True"):
            model(rows, flip=True)
        wanted = model(data().tensors[0][:16])
        assert torch.equal(model(rows, None, flip=False), wanted)


def test_an_input_of_ones_own_beside_the_rows_is_refused(tmp_path: Path) -> None:
    """The rows stand for all that the frozen part takes of a sample."""
    torch.manual_seed(1)
    dicts = [{"x": torch.randn(8), "mask": torch.ones(8), "label": at} for at in range(8)]
    model = Model()
    with precompute(model, dicts, tmp_path) as cached:
        batch = next(iter(cached.loader(batch_size=8)))
        model(x=batch["x"])
        with pytest.raises(FtkitError, match="mask=a tensor"):
            model(x=batch["x"], mask=torch.zeros(8, 8))


def test_rows_of_train_mode_are_proven_in_eval_mode(tmp_path: Path) -> None:
    """They are refused there if the model would compute something else."""

    def forward(self: Model, x: Tensor) -> Tensor:
        return self.head(self.body(x if self.training else x.flip(-1)))

    model = Model(forward=forward)
    with precompute(model, data(), tmp_path) as cached:
        rows = first(cached)
        assert torch.equal(model.train()(rows), model(data().tensors[0][:16]))
        with pytest.raises(FtkitError, match="another mode"):
            model.eval()(rows)


@pytest.mark.parametrize("put", [lambda model: model.body, lambda model: model.body[1]])
def test_the_mode_of_what_is_around_counts(put: Callable[[Any], nn.Module], tmp_path: Path) -> None:
    """A container that is not skipped may look at its own mode."""

    class Around(nn.Module):
        def __init__(self, scaled: nn.Module) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 16)
            self.scaled = scaled

        def __getitem__(self, _: int) -> nn.Module:
            return self.scaled

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(self.scaled(x * 2 if self.training else x)))

    class Scale(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 3 if self.training else x

    model = Model(Around(Scale()))
    unfreeze(model, "body.last")
    with precompute(model, data(), tmp_path) as cached:
        rows = first(cached)
        model.train()
        model(rows)
        put(model).eval()
        with pytest.raises(FtkitError, match="another mode"):
            model(rows)
