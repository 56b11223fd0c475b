"""Templates make safe names, or say what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from ftkit import CheckpointManager
from ftkit.errors import FtkitError
from tests.checkpoints.runs import names


@pytest.mark.parametrize(
    ("template", "metrics", "expected"),
    [
        ("{epoch:03d}-{val/acc:.2f}", {"val/acc": 0.5}, "002-0.50.safetensors"),
        ("a/b:{epoch}", {}, "a_b_2.safetensors"),
        ("../{epoch}", {}, "_2.safetensors"),
        ("{val.loss[0]:.1f}", {"val.loss[0]": 2}, "2.0.safetensors"),
        ("con.{epoch}", {}, "_con.2.safetensors"),
        ("e{epoch}.pt", {}, "e2.pt"),
        ("x" * 400, {}, "x" * 200 + ".safetensors"),
        ("{{}}{epoch}", {}, "{}2.safetensors"),
        ("{epoch}-{step}", {"epoch": 99.0, "step": 98.0}, "2-7.safetensors"),
    ],
)
def test_names_are_safe(tmp_path: Path, template: str, metrics: dict[str, float], expected: str) -> None:
    """Metrics of any name fill a template; nothing leaves the folder."""
    manager = CheckpointManager(tmp_path / "runs", filename=template)
    manager.save(2, step=7, model=nn.Linear(1, 1), metrics=metrics)
    assert names(tmp_path) == ["runs"]
    assert names(tmp_path / "runs") == [expected]


@pytest.mark.parametrize(
    ("options", "metrics", "words"),
    [
        ({"filename": "{epoch}-{val_los:.3f}"}, {"val_loss": 1.0}, "Did you mean 'val_loss'"),
        ({"monitor": "vall_loss"}, {"val_loss": 1.0}, "Did you mean 'val_loss'"),
        ({"filename": "{step}"}, None, "needs 'step'"),
        ({"filename": "{epoch:x.y}"}, None, "can't format epoch"),
    ],
)
def test_a_missing_metric_is_an_error(tmp_path: Path, options: Any, metrics: Any, words: str) -> None:
    """It names what there is, and no file appears."""
    with pytest.raises(FtkitError) as caught:
        CheckpointManager(tmp_path, **options).save(0, model=nn.Linear(1, 1), metrics=metrics)
    assert words in str(caught.value)
    assert not names(tmp_path)
