"""Modules whose classes answer ==, bool() and the like as no module should, and some in use do."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


class EqualToAll(nn.Module):
    """Says that it equals whatever it is compared with, as a metric of torchmetrics does; so do its hashes."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 1


class HasNoTruth(nn.Module):
    """Refuses to be true or false."""

    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")


class Empty(nn.Module):
    """Is false, since it has a length of zero."""

    def __len__(self) -> int:
        return 0


class AnswersAll(nn.Module):
    """Has every attribute that it is asked for, but those of Python's own protocols."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args: 7


class RefusesAll(nn.Module):
    """Raises an error of its own where an attribute is missing."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError(f"no {name} here")


HOSTILE: list[Callable[[], nn.Module]] = [EqualToAll, HasNoTruth, Empty, AnswersAll, RefusesAll]
