"""The errors that ftkit raises, and the closest-name hint that they share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ArchiveError",
    "CheckpointError",
    "DamagedFileError",
    "FileWriteError",
    "FtkitError",
    "HeadError",
    "SelectionError",
    "UntrustedFileError",
    "did_you_mean",
]


class FtkitError(Exception):
    """Base of every error that ftkit raises on purpose.

    The message says what was expected, what came instead, and what to do about it.

    Example:
        >>> import torch
        >>> from ftkit import FtkitError, freeze
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> try:
        ...     freeze(model, "backbone")
        ... except FtkitError as error:
        ...     print(type(error).__name__)
        SelectionError
    """


class SelectionError(FtkitError, LookupError):
    """A selector matches nothing in the model, or is not a selector."""


class HeadError(FtkitError):
    """No classifier was found, or several that can't be told apart."""


class FileWriteError(FtkitError, OSError):
    """A file could not be written. What stood under its name before is intact."""

    def __str__(self) -> str:
        return str(self.args[0])  # OSError would print errno and path alone


class CheckpointError(FtkitError):
    """A file of weights does not fit the model, or does not hold what was asked of it."""


class DamagedFileError(CheckpointError):
    """The bytes of a file are not the bytes that were written."""


class UntrustedFileError(CheckpointError):
    """Opening the file would run code that it brings along."""


class ArchiveError(FtkitError):
    """An archive is damaged, or wants to write what it must not."""


def did_you_mean(name: str, candidates: Iterable[str], *, most: int = 3) -> str:
    """Return a hint with the names closest to ``name``, or an empty string.

    The hint starts with a space, so that it can follow a sentence.

    Example:
        >>> from ftkit.errors import did_you_mean
        >>> did_you_mean("clasifier", ["features", "classifier", "avgpool"])
        " Did you mean 'classifier'?"
        >>> did_you_mean("clasifier", ["features"])
        ''
    """
    originals: dict[str, str] = {}
    for candidate in map(str, candidates):
        originals.setdefault(candidate.casefold(), candidate)
    close = difflib.get_close_matches(str(name).casefold(), originals, n=most, cutoff=0.6)
    if not close:
        return ""
    return f" Did you mean {' or '.join(repr(originals[match]) for match in close)}?"
