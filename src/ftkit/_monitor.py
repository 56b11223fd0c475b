"""The one rule for which metric value is better, and early stopping by that rule."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Literal, SupportsFloat, SupportsIndex, TypeVar

from ftkit._arguments import entries_of, real_number, whole_number
from ftkit._reports import to_text
from ftkit.errors import FtkitError, did_you_mean

_log: Final = logging.getLogger("ftkit")

Mode = Literal["min", "max"]

T = TypeVar("T")

# Words by which a metric says which way is better, without the digits at their end, and words that turn the meaning of
# others about or measure something else.
_WORDS: Final = {
    "min": """loss losses logloss nll bce error errors err mae mse rmse msle rmsle mape smape perplexity ppl bpc bpb
        wer cer ter eer ece brier epe hd hausdorff fid kid lpips""",
    "max": """acc accuracy f1 fbeta auc auroc auprc aupr precision recall sensitivity specificity kappa mcc iou miou
        jaccard dice ap map bleu sacrebleu rouge meteor chrf cider mrr ndcg hit hits r2 pearson pearsonr spearman
        spearmanr psnr ssim""",
    "else": """neg negative minus inv inverse not non drop reduction decrease increase improvement gain change delta
        diff difference gap std stdev var variance time""",
}
_MEANING: Final = {word: meaning for meaning, words in _WORDS.items() for word in words.split()}
_PIECES: Final = re.compile(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+")  # of "valLoss", "top5Acc" and "BCELoss"


def mode_for(maker: str, monitor: str | None, mode: Mode | None = None) -> Mode:
    """Return ``mode`` or, if that is None, the mode that the metric's name implies.

    A ``mode`` that contradicts the name wins, and a warning is logged.

    Args:
        maker: The caller's name, for the calls that an error shows.
        monitor: The metric's name.
        mode: What was asked for.

    Raises:
        FtkitError: ``mode`` is neither ``"min"`` nor ``"max"``, or it is None and the name does not imply one.

    Example:
        >>> from ftkit._monitor import mode_for
        >>> mode_for("EarlyStopping", "val_loss"), mode_for("EarlyStopping", "val/mIoU")
        ('min', 'max')
    """
    if mode not in (None, "min", "max"):
        raise FtkitError(f"mode must be 'min' (lower is better) or 'max' (higher is better), not {mode!r}.")
    if not isinstance(monitor, str | None):
        raise FtkitError(f"monitor must be the name of a metric, not {monitor!r}.")
    told = None if monitor is None else _told(monitor)
    if mode and told and mode != told:
        _log.warning(
            '%s monitors %r with mode="%s", but its name implies mode="%s". The given mode is used.',
            *(maker, monitor, mode, told),
        )
    if chosen := mode or told:
        return chosen
    named = "" if monitor is None else f", monitor={monitor!r}"
    doubt = "" if monitor is None else f"The name {monitor!r} does not say which way is better. "
    low, high = (f'{maker}(...{named}, mode="{one}")' for one in ("min", "max"))
    raise FtkitError(f"{doubt}Write {low} if lower is better (a loss), or {high} if higher is better (an accuracy).")


def _told(monitor: str) -> Mode | None:
    """The mode that a metric's name implies; None if it implies none or both, or is negated."""
    if re.match(r"\s*1?\s*[-\u2212]", monitor):  # "1-acc", "-loss"
        return None
    meanings = {_MEANING[word] for word in _words(monitor) if word in _MEANING}
    modes: tuple[Mode, ...] = ("min", "max")
    return next((mode for mode in modes if meanings == {mode}), None)


def _words(monitor: str) -> Iterator[str]:
    """Yield the words of a name, in lower case, with and without the digits at their end.

    Adjacent pieces are words too: ``MeanIoU`` contains ``iou``, ``mAP`` is ``map``.
    """
    for token in re.findall(r"[^\W_]+", monitor):
        pieces = _PIECES.findall(token) if token.isascii() else [token]
        for start in range(len(pieces)):
            for end in range(start + 1, start + 4):
                word = "".join(pieces[start:end]).casefold()
                yield from (word, word.rstrip("0123456789"))


def numbers_of(metrics: Mapping[str, SupportsFloat] | None) -> dict[str, float]:
    """Return metrics as plain numbers.

    Raises:
        FtkitError: They are not a dict of numbers.

    Example:
        >>> import numpy as np
        >>> from ftkit._monitor import numbers_of
        >>> numbers_of({"val_loss": np.float32(0.5)})
        {'val_loss': 0.5}
    """
    if metrics is not None and not isinstance(metrics, Mapping):
        raise FtkitError(f'metrics must be a dict of numbers by name, such as {{"val_loss": 0.31}}, not {metrics!r}.')
    return {name: real_number(f"The metric {name!r}", value) for name, value in (metrics or {}).items()}


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
    """Sort the items that have a number, best first; equal items keep their order.

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
        FtkitError: There is no such metric; the message lists the available ones.
    """
    if name not in metrics:
        there = ", ".join(map(repr, metrics)) or "none"
        raise FtkitError(f"No metric {name!r} among those passed ({there}).{did_you_mean(name, metrics)}")
    return real_number(f"The metric {name!r}", metrics[name])


class EarlyStopping:
    """Stop a training loop when its validation metric stops improving.

    Args:
        patience: How many values in a row may fail to improve on the best one before training should
            stop. With 1, the first value that is no better stops it.
        monitor: The metric's name; ``step`` then also takes a dict of metrics.
        mode: ``"min"`` if lower is better, ``"max"`` if higher is. Can be omitted if the metric's name implies
            it, as ``val_loss`` and ``val_acc`` do.
        min_delta: The smallest improvement that counts, in the metric's own unit.

    Attributes:
        best: The best value so far, ``None`` before the first.
        stale: How many values in a row were no better than ``best``.
        stopped: Whether training should stop.

    Raises:
        FtkitError: An argument is out of range, or neither ``mode`` nor the metric's name says which way is better.

    Example:
        >>> from ftkit import EarlyStopping
        >>> stopping = EarlyStopping(patience=2, mode="min")
        >>> [stopping.step(loss) for loss in (0.9, 0.7, 0.8, 0.75)]
        [False, False, False, True]
    """

    def __init__(
        self,
        patience: SupportsIndex,
        *,
        monitor: str | None = None,
        mode: Mode | None = None,
        min_delta: SupportsFloat = 0.0,
    ) -> None:
        self.patience: int = whole_number("patience", patience, least=1)
        self.min_delta: float = real_number("min_delta", min_delta, "of at least 0", lambda one: 0 <= one < math.inf)
        self.monitor = monitor
        self.mode: Mode = mode_for("EarlyStopping", monitor, mode)
        self.best: float | None = None
        self.stale: int = 0
        self.stopped: bool = False

    def __repr__(self) -> str:
        best = "no value yet" if self.best is None else f"best {self.best:.6g}, then {self.stale} without improvement"
        stopped = ", stopped" if self.stopped else ""
        what = f"{self.mode} {self.monitor or 'value'}, patience {self.patience}"
        return to_text([f"<EarlyStopping on {what}: {best}{stopped}>"])

    def step(self, value: SupportsFloat | Mapping[str, SupportsFloat]) -> bool:
        """Take the newest value of the metric, and return whether training should stop.

        A NaN stops at once: a loss that has become NaN does not recover.

        Args:
            value: A number or a one-element tensor, or a dict of metrics that contains ``monitor``.

        Raises:
            FtkitError: ``value`` is a dict without the monitored metric, or no ``monitor`` was set
                to look up in it.
        """
        if isinstance(value, Mapping):
            if self.monitor is None:
                raise FtkitError(
                    "step got a dict of metrics but no metric to monitor: write EarlyStopping(..., monitor='val_loss')."
                )
            newest = metric_value(value, self.monitor)
        else:
            newest = real_number("The value of a metric", value)
        if is_better(newest, self.best, self.mode, self.min_delta):
            self.best, self.stale = newest, 0
        else:
            self.stale += 1
        self.stopped = self.stopped or math.isnan(newest) or self.stale >= self.patience
        return self.stopped

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to continue counting."""
        return {"best": self.best, "stale": self.stale, "stopped": self.stopped, "mode": self.mode}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue counting from a state that ``state_dict`` returned.

        Raises:
            FtkitError: ``state`` lacks one of its entries, or has the other mode.
        """
        state = entries_of("EarlyStopping", state, ("best", "stale", "stopped"))
        if (mode := state.get("mode", self.mode)) != self.mode:  # older states don't say
            raise FtkitError(
                f"This state was saved with mode={mode!r}, but this EarlyStopping has mode={self.mode!r}. "
                "Build it with the same mode, or don't load the state, to start counting again."
            )
        self.best, self.stale, self.stopped = state["best"], state["stale"], state["stopped"]
