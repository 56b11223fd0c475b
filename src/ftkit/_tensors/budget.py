"""What opening a file may cost: bounds on the work and the memory that its words ask for, from its own size."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from ftkit.errors import DamagedFileError

MAX_SIDES: Final = 64
"""Of a tensor: torch's operators take no more."""

# What any file may ask for, and what each of its bytes adds. Honest files need less: an instruction of a pickle is a
# byte or more, and a tensor's description a hundred.
_FREE_BYTES: Final = 64 << 20
_BYTES_PER_BYTE: Final = 64
_FREE_STEPS: Final = 1 << 18
_STEPS_PER_BYTE: Final = 1

_MAX_KEY: Final = 64  # parts of a key that is a tuple
_MAX_KEY_BITS: Final = 1 << 12
_PLAIN_HASHES: Final = (1 << 61) - 1  # whole numbers below it have hashes of their own


class Budget:
    """What is left for a file: one for each that is opened, and all that works on its words charges it.

    A few bytes can ask for any amount of work: a call copies a string, a name stands for a table that stands in a
    thousand others, a key is hashed for ever. So work is paid for where it is done, before it is done.

    Args:
        size: The bytes of the file; infinite for what is none.

    Example:
        >>> from ftkit._tensors.budget import Budget
        >>> budget = Budget(size=1000)
        >>> budget.charge(nbytes=1 << 20, steps=1000)
        >>> budget.charge(nbytes=1 << 30)
        Traceback (most recent call last):
            ...
        ftkit.errors.DamagedFileError: It asks for far more memory than it holds: a bomb, not weights.
    """

    def __init__(self, size: float) -> None:
        self._nbytes = _FREE_BYTES + _BYTES_PER_BYTE * size
        self._steps = _FREE_STEPS + _STEPS_PER_BYTE * size
        self._odd_keys: dict[int, set[Any]] = {}

    def charge(self, *, nbytes: int = 0, steps: int = 0) -> None:
        """Pay for memory, and for steps of a microsecond or two.

        Raises:
            DamagedFileError: It is far more than the file can honestly mean.
        """
        self._nbytes -= nbytes
        self._steps -= steps
        if self._nbytes < 0 or self._steps < 0:
            what = "memory" if self._nbytes < 0 else "work"
            raise DamagedFileError(f"It asks for far more {what} than it holds: a bomb, not weights.")

    def keys(self, keys: Iterable[Any]) -> Iterable[Any]:
        """Return the keys of a table or a set, if hashing and comparing them takes no longer than reading them did.

        Raises:
            TypeError: A key is long or nested: hashing nested tuples can take forever.
            DamagedFileError: Too many of them are different and have one hash.
        """
        for key in keys:
            if type(key) is not str and type(key) is not bytes:
                _refuse_long(key)
                if not (type(key) is int and 0 <= key < _PLAIN_HASHES):
                    alike = self._odd_keys.setdefault(hash(key), set())
                    self.charge(nbytes=256 * (not alike), steps=len(alike) + 1)
                    alike.add(key)
        return keys


def _refuse_long(key: Any) -> None:
    if isinstance(key, tuple | frozenset):
        if len(key) > _MAX_KEY or any(isinstance(part, tuple | frozenset) or _is_long(part) for part in key):
            raise TypeError("a key that is long or nested")
    elif _is_long(key):
        raise TypeError("a key that is a long number")


def _is_long(number: Any) -> bool:
    return isinstance(number, int) and number.bit_length() > _MAX_KEY_BITS
