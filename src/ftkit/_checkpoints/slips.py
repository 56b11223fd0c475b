"""Misspelled arguments, which would otherwise be saved silently among the extra values."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from ftkit.errors import FtkitError

# What the functions of checkpoints take by name, in addition to extra values of any name.
_ARGUMENTS: Final = (
    "model",
    "optimizer",
    "scheduler",
    "scaler",
    "ema",
    "sampler",
    "epoch",
    "step",
    "metrics",
    "rng",
    "delta",
    "mid_epoch",
)
# Words of their own, though only a letter or two away from one of these.
_WORDS: Final = """
    stop stem mode modal scale scaled scales schedule scheduled schedules optimize optimized sample sampled samples
    simple matrices
"""
# An argument's name as a whole in another one: "epochs", "optimizer_d", "best_model_2".
_WHOLE: Final = re.compile(rf"(\w+_)?({'|'.join(_ARGUMENTS)})(s|_?\d+|_\w+)?")


def refuse_slips(call: str, names: Iterable[str]) -> None:
    """Refuse extra names that are nearly those of arguments.

    Args:
        call: The function that was called.
        names: The names that it does not know.

    Raises:
        FtkitError: One of them is a misspelled argument, or an argument of another of these functions.

    Example:
        >>> from ftkit._checkpoints.slips import refuse_slips
        >>> refuse_slips("save_checkpoint", ["classes", "epochs"])
        >>> refuse_slips("save_checkpoint", ["epcoh"])
        Traceback (most recent call last):
            ...
        ftkit.errors.FtkitError: save_checkpoint got 'epcoh' as an extra value, ... Did you mean 'epoch'? ...
    """
    for name in names:
        if name in _ARGUMENTS:
            raise FtkitError(f"{call} takes no {name}=, and the name is reserved: other functions have this argument.")
        if (meant := _meant(name)) is not None:
            raise FtkitError(
                f"{call} got {name!r} as an extra value, which looks like a typo. Did you mean {meant!r}? If not, "
                "choose a less similar name."
            )


def _meant(name: str) -> str | None:
    """The argument that a name misspells: other case, two letters swapped, and the longer it is, the more slips."""
    plain = name.casefold()
    if plain not in _ARGUMENTS and (plain in _WORDS.split() or _WHOLE.fullmatch(plain)):
        return None
    counts = {known: _slips(plain, known) for known in _ARGUMENTS}
    close = [
        known
        for known, count in counts.items()
        if count <= (len(known) - 1) // 3 or (count == 1 and sorted(plain) == sorted(known))
    ]
    return min(close, key=counts.__getitem__, default=None)


def _slips(name: str, known: str) -> int:
    """How many letters are missing, too many, wrong, or swapped with the next."""
    before: list[int] = []
    row = list(range(len(known) + 1))
    for i, letter in enumerate(name, 1):
        last, before, row = before, row, [i]
        for j, other in enumerate(known, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other)))
            if i > 1 and j > 1 and name[i - 2 : i] == known[j - 1] + known[j - 2]:
                row[j] = min(row[j], last[j - 2] + 1)
    return row[-1]
