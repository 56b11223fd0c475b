"""A sweep over whole collections of models: the same outputs, gradients and buffers to the bit, or a clear refusal."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models._registry import _model_to_module
from torch import nn
from torch.utils.data import TensorDataset

from ftkit import find_head, freeze, last_blocks, precompute, unfreeze
from ftkit.errors import FtkitError

pytestmark = pytest.mark.slow

LARGEST = 40_000_000


FAMILIES: defaultdict[str, list[str]] = defaultdict(list)
for _name in timm.list_models():
    FAMILIES[_model_to_module[_name]].append(_name)


def smallest(family: str) -> str:
    """The model of a module of timm that has the fewest parameters."""
    sizes = {}
    for name in FAMILIES[family]:
        with torch.device("meta"), warnings.catch_warnings(), contextlib.suppress(RuntimeError, NotImplementedError):
            warnings.simplefilter("ignore")
            sizes[name] = sum(one.numel() for one in timm.create_model(name).parameters())
    best = min(sizes, key=lambda name: sizes[name])
    if sizes[best] > LARGEST:
        pytest.skip("Large.")
    return best


def compared(model: nn.Module, side: int, last_stage: bool, folder: Path) -> str:
    """Compare a step with rows to one without; return what came of it."""
    head = find_head(model)
    freeze(model)
    unfreeze(model, last_blocks(model, 1) if last_stage else head)
    torch.manual_seed(0)
    inputs = torch.randn(4, 3, side, side)
    try:
        cached = precompute(model, TensorDataset(inputs), folder, batch_size=4)
    except FtkitError as error:
        return f"refused: {error}"
    model.train()
    with cached:
        results = []
        (rows,) = next(iter(cached.loader(batch_size=4)))
        state = {name: one.clone() for name, one in model.state_dict().items()}
        for given in (inputs, rows):
            torch.manual_seed(1)
            random.seed(1)
            model.load_state_dict(state)
            output = model(given)
            first = output if isinstance(output, torch.Tensor) else next(iter(output))
            trained = [one for one in model.parameters() if one.requires_grad]
            grads = torch.autograd.grad(first.square().sum(), trained, allow_unused=True)
            results.append([first.detach(), *grads, *(one.clone() for one in model.buffers())])
    for one, other in zip(*results, strict=True):
        if (one is None) != (other is None) or (one is not None and not torch.equal(one, other)):
            return "WRONG"
    return "same"


def make(name: str, **options: Any) -> tuple[nn.Module, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=5, **options)
    return model, model.pretrained_cfg["input_size"][-1]


@pytest.mark.parametrize("last_stage", [False, True], ids=["head", "last stage"])
@pytest.mark.parametrize("family", FAMILIES)
def test_timm(family: str, last_stage: bool, tmp_path: Path) -> None:
    """One of each family."""
    model, side = make(smallest(family))
    assert compared(model, side, last_stage, tmp_path) == "same"


BUILDERS: list[Callable[..., nn.Module]] = [
    torchvision.models.get_model_builder(name)
    for name in (
        "resnet18",
        "densenet121",
        "googlenet",
        "mobilenet_v2",
        "squeezenet1_1",
        "swin_t",
        "convnext_tiny",
        "vgg11",
    )
]


@pytest.mark.parametrize("last_stage", [False, True], ids=["head", "last stage"])
@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_torchvision(build: Callable[..., nn.Module], last_stage: bool, tmp_path: Path) -> None:
    """With auxiliary heads, windows, and joins."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build(num_classes=5)
    assert compared(model, 64, last_stage, tmp_path) == "same"
