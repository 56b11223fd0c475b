"""Learning-rate schedulers that go on with a group that joins their optimizer late."""

from __future__ import annotations

import gc
from typing import Any

import torch

from ftkit._models.undo import Undo
from ftkit._torch import LISTS_BY_GROUP, RATES_BY_GROUP

__all__ = ["follow", "schedulers_of"]


def schedulers_of(optimizer: torch.optim.Optimizer) -> list[Any]:
    """The schedulers of an optimizer. It has no list of them, but they refer to it."""
    holders = gc.get_referrers(optimizer)
    owners = [*holders, *gc.get_referrers(*(holder for holder in holders if isinstance(holder, dict)))]
    found = {id(one): one for one in owners if getattr(one, "__dict__", {}).get("optimizer") is optimizer}
    return list(found.values())


def follow(scheduler: Any, count: int, like: int, factor: float, undo: Undo) -> None:
    """Let a scheduler of ``count`` groups move one more as the group at ``like``, at ``factor`` times its rates."""
    undo.remember(scheduler)
    for name in LISTS_BY_GROUP:
        values = getattr(scheduler, name, None)
        if isinstance(values, list) and len(values) == count:
            setattr(scheduler, name, [*values, values[like] * factor if name in RATES_BY_GROUP else values[like]])
