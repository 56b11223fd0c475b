"""One model of each kind from whole collections, with the order in which each uses its parameters, and its rates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
import torchvision
from timm.models import group_parameters
from torch import nn
from torch.utils._pytree import tree_map_only

from ftkit._groups import param_groups
from ftkit._heads.trace import run_on
from tests.groups import flow
from tests.heads.zoo import tasks_of_transformers, transformer

DECAY = 0.75
TASKS = ("ForSequenceClassification", "ForTokenClassification", "ForImageClassification")
LARGE = ("vit_h", "vit_l", "regnet_y_128", "regnet_y_32", "regnet_x_32", "efficientnet_v2_l", "efficientnet_b7")
SIZES = ("test_", "atto", "femto", "pico", "nano", "xxs", "tiny", "_ti", "mini", "xs", "small", "_s", "18", "26", "50")


def smallest(module: str) -> str:
    """A small model of one of timm's modules, as far as names tell."""
    names = timm.list_models(module=module)
    return min(names, key=lambda name: (*(size not in name for size in SIZES), len(name), name))


def tame(model: nn.Module) -> nn.Module:
    """Let a transformer find the ends of texts that are all zeros."""
    config: Any = model.config
    for one in (config, *(value for value in vars(config).values() if hasattr(value, "model_type"))):
        if getattr(one, "pad_token_id", 0) is None:
            one.pad_token_id = 1
        if hasattr(one, "eos_token_id"):
            one.eos_token_id = 0
    return model


def cases() -> dict[str, Callable[[], nn.Module]]:
    """How to build one model of each module of timm, torchvision's classifiers, and transformers' small ones."""
    found: dict[str, Callable[[], nn.Module]] = {}
    for module in timm.list_modules():
        if timm.list_models(module=module):
            name = smallest(module)
            found[f"timm-{name}"] = lambda name=name: timm.create_model(name)
    for name in torchvision.models.list_models(module=torchvision.models):
        if not name.startswith(LARGE):
            options = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
            found[f"torchvision-{name}"] = lambda name=name, options=options: torchvision.models.get_model(
                name, weights=None, **options
            )
    for case, (family, name) in tasks_of_transformers().items():
        if name.endswith(TASKS):
            found[case] = lambda family=family, name=name: tame(transformer(family, name)(5))
    return found


def built(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model without values, where it lets itself."""
    try:
        with torch.device("meta"):
            return build()
    except Exception:
        return build()


def order_of_use(build: Callable[[], nn.Module]) -> dict[str, list[str]]:
    """Follow a run without values, or else a real one, on inputs that ftkit made up."""
    run = run_on(built(build))
    if not run.complete:
        raise RuntimeError(run.failure)
    args, kwargs = run.inputs
    try:
        return flow.follow(built(build).to("meta"), *_like(args, kwargs, "meta"))
    except Exception:
        return flow.follow(build(), *_like(args, kwargs, "cpu"))


def _like(args: tuple[Any, ...], kwargs: Mapping[str, Any], device: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Zeros in the shapes of some inputs."""
    made: tuple[tuple[Any, ...], dict[str, Any]] = tree_map_only(
        torch.Tensor, lambda one: torch.zeros(one.shape, dtype=one.dtype, device=device), (args, dict(kwargs))
    )
    return made


def rates_by_layer(model: nn.Module, layers: list[list[nn.Parameter]]) -> dict[str, float]:
    """What each parameter of some layers would get."""
    rates = {parameter: DECAY ** (len(layers) - 1 - depth) for depth, layer in enumerate(layers) for parameter in layer}
    return {name: rates[parameter] for name, parameter in model.named_parameters()}


def rates_of(model: nn.Module) -> tuple[dict[str, float], str]:
    """What ftkit gives each parameter, and what that is based on."""
    groups = param_groups(model.requires_grad_(True), 1.0, layer_decay=DECAY)
    return {name: group["lr"] for group in groups for name in group["param_names"]}, groups.order


def rates_of_timm(model: nn.Module) -> dict[str, float] | None:
    """What timm gives each parameter of a model of its own."""
    matcher: Any = getattr(type(model), "group_matcher", None)
    if matcher is None:
        return None
    layers: Mapping[str, int] = group_parameters(model, matcher(model, coarse=False), reverse=True)
    return {name: DECAY ** (max(layers.values()) - layer) for name, layer in layers.items()}
