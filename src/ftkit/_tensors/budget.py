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

_MAX_KEY_DEPTH: Final = 50  # levels of tuples: Python hashes and compares them by recursion
_KEY_BITS: Final = 1 << 12  # of a whole number that are hashed in one step
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
        """Return the keys of a table or a set, after paying for hashing and comparing them.

        Raises:
            DamagedFileError: A tuple in a key contains so many others, or they are nested so deeply, that hashing it
                would take forever; or too many keys are different and have one hash.
        """
        for key in keys:
            if type(key) is not str and type(key) is not bytes and not (type(key) is int and 0 <= key < _PLAIN_HASHES):
                parts = self._count(key)
                alike = self._odd_keys.setdefault(hash(key), set())
                self.charge(nbytes=256 * (not alike), steps=(len(alike) + 1) * parts)
                alike.add(key)
        return keys

    def _count(self, key: Any, depth: int = 0) -> int:
        """Return how many parts hashing a key goes through: a tuple that it contains twice counts twice."""
        if depth > _MAX_KEY_DEPTH:
            raise DamagedFileError(f"A key in it is nested more than {_MAX_KEY_DEPTH} levels deep.")
        if isinstance(key, int):
            return 1 + key.bit_length() // _KEY_BITS
        if not isinstance(key, tuple | frozenset):
            return 1
        self.charge(steps=len(key))
        return 1 + sum(self._count(part, depth + 1) for part in key)
