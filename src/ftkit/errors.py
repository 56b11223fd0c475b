"""The errors that ftkit raises, and the closest-name hint in their messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from ftkit._wording import harmless

__all__ = [
    "ArchiveError",
    "CheckpointError",
    "DamagedFileError",
    "FileWriteError",
    "FtkitError",
    "HeadError",
    "MissingPackageError",
    "SelectionError",
    "UntrustedFileError",
    "did_you_mean",
]


class FtkitError(Exception):
    """Base class of every error that ftkit raises on purpose.

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

    def __str__(self) -> str:
        return harmless(super().__str__())  # it may quote a file's words


class SelectionError(FtkitError, LookupError):
    """A selector matches nothing in the model, or is not a valid selector."""


class HeadError(FtkitError):
    """No classifier was found, or several candidates can't be told apart."""


class FileWriteError(FtkitError, OSError):
    """A file could not be written. Any existing file is left intact."""

    def __str__(self) -> str:
        return harmless(str(self.args[0]))  # OSError would print errno and path alone


class CheckpointError(FtkitError):
    """A weights file does not fit the model, or does not contain what was requested."""


class DamagedFileError(CheckpointError):
    """A file's bytes differ from those that were written."""


class UntrustedFileError(CheckpointError):
    """Opening the file would run code that it contains."""


class ArchiveError(FtkitError):
    """An archive is damaged, or contains something that it is unsafe to write."""


class MissingPackageError(FtkitError, ImportError):
    """Something needs a package that is not installed."""


def did_you_mean(name: str, candidates: Iterable[str], *, most: int = 3) -> str:
    """Return a hint with the names closest to ``name``, or an empty string.

    The hint starts with a space, so that it can be appended to a sentence.

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
