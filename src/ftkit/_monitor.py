"""One rule for "better", and early stopping by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, SupportsFloat, TypeVar

from ftkit.errors import FtkitError, did_you_mean

__all__ = ["EarlyStopping", "Mode", "best_first", "check_mode", "is_better", "metric_value"]

Mode = Literal["min", "max"]

T = TypeVar("T")


def check_mode(mode: Mode) -> Mode:
    """Return ``mode`` if it is ``"min"`` or ``"max"``.

    Raises:
        FtkitError: It is neither.
    """
    if mode not in ("min", "max"):
        raise FtkitError(f"mode must be 'min' (lower is better) or 'max' (higher is better), not {mode!r}.")
    return mode


def is_better(value: float, best: float | None, mode: Mode = "min", min_delta: float = 0.0) -> bool:
    """Tell whether ``value`` beats ``best`` by more than ``min_delta``.

    A NaN never beats anything; any number beats ``None`` and NaN.

    Example:
        >>> from ftkit._monitor import is_better
        >>> is_better(0.31, 0.35), is_better(0.31, 0.35, "max"), is_better(float("nan"), None)
        (True, False, False)
    """
    if math.isnan(value):
        return False
    if best is None or math.isnan(best):
        return True
    return value < best - min_delta if mode == "min" else value > best + min_delta


def best_first(items: Iterable[T], value_of: Callable[[T], float | None], mode: Mode = "min") -> list[T]:
    """Sort those that have a number, the best first; of equals, the earlier one stays the earlier one.

    Example:
        >>> from ftkit._monitor import best_first
        >>> best_first(["b2", "nan", "a1", "c2"], lambda name: float(name[-1]) if name != "nan" else None, "max")
        ['b2', 'c2', 'a1']
    """
    numbers = [(item, value) for item in items if (value := value_of(item)) is not None and not math.isnan(value)]
    return [item for item, _ in sorted(numbers, key=lambda pair: pair[1], reverse=mode == "max")]


def metric_value(metrics: Mapping[str, SupportsFloat], name: str) -> float:
    """Return the metric called ``name`` as a number.

    Raises:
        FtkitError: There is none of that name; the message lists the ones there are.
    """
    if name not in metrics:
        there = ", ".join(map(repr, metrics)) or "none"
        raise FtkitError(f"No metric {name!r} among the metrics given ({there}).{did_you_mean(name, metrics)}")
    return float(metrics[name])


class EarlyStopping:
    """Stop a training loop when its validation metric no longer gets better.

    Args:
        patience: How many values in a row may fail to beat the best one before training should
            stop. With 1, the first value that is not better stops it.
        monitor: The metric's name; ``step`` then also takes a dict of metrics.
        mode: ``"min"`` if lower is better, ``"max"`` if higher is.
        min_delta: How much better a value must be to count, in the metric's own unit.

    Attributes:
        best: The best value so far, ``None`` before the first.
        stale: How many values in a row were no better than ``best``.
        stopped: Whether training should stop.

    Raises:
        FtkitError: An argument is out of range.

    Example:
        >>> from ftkit import EarlyStopping
        >>> stopping = EarlyStopping(patience=2)
        >>> [stopping.step(loss) for loss in (0.9, 0.7, 0.8, 0.75)]
        [False, False, False, True]
    """

    def __init__(
        self, patience: int, *, monitor: str | None = None, mode: Mode = "min", min_delta: float = 0.0
    ) -> None:
        if type(patience) is not int or patience < 1:
            raise FtkitError(f"patience must be a whole number of at least 1, not {patience!r}.")
        if not 0 <= min_delta < math.inf:
            raise FtkitError(f"min_delta must be a finite number of at least 0, not {min_delta!r}.")
        self.patience = patience
        self.monitor = monitor
        self.mode = check_mode(mode)
        self.min_delta = min_delta
        self.best: float | None = None
        self.stale: int = 0
        self.stopped: bool = False

    def step(self, value: SupportsFloat | Mapping[str, SupportsFloat]) -> bool:
        """Take the newest value of the metric; return whether training should stop.

        A NaN stops at once: a loss that is no number does not recover by waiting.

        Args:
            value: A number or a one-element tensor, or a dict of metrics that holds ``monitor``.

        Raises:
            FtkitError: ``value`` is a dict that lacks the monitored metric, or no ``monitor`` was
                named to look up in it.
        """
        if isinstance(value, Mapping):
            if self.monitor is None:
                raise FtkitError(
                    "step got a dict of metrics but no metric to watch: write EarlyStopping(..., monitor='val_loss')."
                )
            number = metric_value(value, self.monitor)
        else:
            number = float(value)
        if is_better(number, self.best, self.mode, self.min_delta):
            self.best, self.stale = number, 0
        else:
            self.stale += 1
        self.stopped = self.stopped or math.isnan(number) or self.stale >= self.patience
        return self.stopped

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on counting."""
        return {"best": self.best, "stale": self.stale, "stopped": self.stopped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the count where ``state_dict`` left it.

        Raises:
            FtkitError: ``state`` lacks one of its entries.
        """
        missing = [key for key in ("best", "stale", "stopped") if key not in state]
        if missing:
            raise FtkitError(f"This is no state of an EarlyStopping: it lacks {', '.join(missing)}.")
        self.best, self.stale, self.stopped = state["best"], state["stale"], state["stopped"]
