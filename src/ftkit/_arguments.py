"""What callers pass: numbers, sizes, paths, lists and the like, read, or an error that says what came.

To each reader ``what`` is the argument's name, ``value`` what came, ``otherwise`` what else it may be, in words for the
message, and ``error`` what to raise.
"""

from __future__ import annotations

import contextlib
import math
import operator
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, SupportsFloat

from ftkit._wording import shown
from ftkit.errors import FtkitError, did_you_mean

_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # one slash: a Path has lost the other, and "C:/" is a drive
_SIZE: Final = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*([KMGT]?)(I?)B\s*", re.IGNORECASE)
_LONGEST: Final = 60


def came(value: object) -> str:
    """Say what came: a short value as it is written, anything else by its kind.

    Example:
        >>> from ftkit._arguments import came
        >>> came("1e-3"), came(int), came(object()), came(list(range(100)))
        ("'1e-3'", 'the class int', 'an object', 'a list')
    """
    name = type(value).__name__
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, str | bytes):
        return shown(repr(value), _LONGEST)
    written = "" if isinstance(value, list | tuple | dict | set | frozenset) and len(value) > 8 else repr(value)
    if 0 < len(written) <= _LONGEST and not written.startswith("<") and "\n" not in written:
        return written
    return _a(name)


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'AEIOUaeiou' else 'a'} {noun}"


def _scalar(value: object) -> Any:
    """The plain value in a number or a truth value of NumPy or torch; anything else as it is."""
    try:
        return value.item()  # type: ignore[attr-defined]  # those that lack it raise
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return value


def whole_number(
    what: str, value: object, *, least: float = -math.inf, otherwise: str = "", error: type[FtkitError] = FtkitError
) -> int:
    """Return an argument as a plain whole number; one of NumPy or torch is one too.

    Raises:
        FtkitError: It is none, or less than ``least``.

    Example:
        >>> import numpy as np
        >>> from ftkit._arguments import whole_number
        >>> whole_number("patience", np.int64(3), least=1)
        3
    """
    plain = _scalar(value)
    try:
        whole = None if isinstance(plain, bool) else operator.index(plain)
    except TypeError:
        whole = None
    if whole is None or whole < least:
        bound = f" of at least {least}" if math.isfinite(least) else ""
        raise error(f"{what} must be a whole number{bound}{otherwise}, not {came(value)}.")
    return whole


def real_number(what: str, value: object, rule: str = "", fits: Callable[[float], bool] = lambda _: True) -> float:
    """Return an argument as a plain number; one of NumPy or torch is one too, text and truth values are none.

    Raises:
        FtkitError: It is no number, or none that ``fits``, which ``rule`` puts in words.

    Example:
        >>> import numpy as np
        >>> from ftkit._arguments import real_number
        >>> real_number("lr", np.float32(0.5))
        0.5
        >>> real_number("lr", "1e-3", "of at least 0", lambda one: one >= 0)
        Traceback (most recent call last):
        ftkit.errors.FtkitError: lr must be a number of at least 0, not '1e-3'.
    """
    plain = _scalar(value)
    with contextlib.suppress(TypeError, ValueError, RuntimeError, OverflowError):  # several numbers in one tensor, say
        if isinstance(plain, SupportsFloat) and not isinstance(plain, bool) and fits(float(plain)):
            return float(plain)
    raise FtkitError(f"{what} must be {f'a number {rule}' if rule else 'one number'}, not {came(value)}.")


def byte_count(what: str, value: object) -> float:
    """Return a number of bytes, also from words: ``"8 GB"`` is 8 times 1000**3, ``"8 GiB"`` 8 times 1024**3.

    Raises:
        FtkitError: It is none.

    Example:
        >>> from ftkit._arguments import byte_count
        >>> byte_count("memory", "8GB"), byte_count("memory", "1.5 KiB"), byte_count("memory", 10)
        (8000000000.0, 1536.0, 10.0)
    """
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        count, unit, binary = match.groups()
        value = float(count) * (1024 if binary else 1000) ** " KMGT".index(unit.upper() or " ")
    return real_number(what, value, "of bytes, or a size such as '8GB' or '500MiB'", lambda one: 0 <= one < math.inf)


def flag(what: str, value: object) -> bool:
    """Return an argument as a truth value. Words are none: ``"no"`` would count as yes.

    Raises:
        FtkitError: It is neither true nor false.

    Example:
        >>> from ftkit._arguments import flag
        >>> flag("trusted", "no")
        Traceback (most recent call last):
        ftkit.errors.FtkitError: trusted must be True or False, not 'no'.
    """
    plain = _scalar(value)
    if not isinstance(plain, int) or plain not in (0, 1):
        raise FtkitError(f"{what} must be True or False, not {came(value)}.")
    return bool(plain)


def one_of(what: str, value: object, known: Collection[str]) -> str:
    """Return an argument that is one of a few words.

    Raises:
        FtkitError: It is none; the message names the closest.

    Example:
        >>> from ftkit._arguments import one_of
        >>> one_of("mode", "eavl", ["train", "eval"])
        Traceback (most recent call last):
        ftkit.errors.FtkitError: mode must be 'train' or 'eval', not 'eavl'. Did you mean 'eval'?
    """
    if isinstance(value, str) and value in known:
        return value
    hint = did_you_mean(value, known) if isinstance(value, str) else ""
    raise FtkitError(f"{what} must be {' or '.join(map(repr, known))}, not {came(value)}.{hint}")


def path_or_url(what: str, value: object, *, error: type[FtkitError] = FtkitError, otherwise: str = "") -> str:
    """Return the name of a file or folder, or a URL, as it was written; ``~`` is the home folder.

    Raises:
        FtkitError: It is no path.

    Example:
        >>> from ftkit._arguments import path_or_url
        >>> path_or_url("root", b"./pets/")
        './pets/'
        >>> path_or_url("root", ["cats", "dogs"])
        Traceback (most recent call last):
        ftkit.errors.FtkitError: Expected a path as root, got ['cats', 'dogs'].
    """
    try:
        name = os.fsdecode(value)  # type: ignore[arg-type]  # may raise
    except TypeError:
        raise error(f"Expected a path{otherwise} as {what}, got {came(value)}.") from None
    if not name or "\0" in name:
        raise error(f"Expected a path as {what}, got {came(name)}, which {'has a NUL in it' if name else 'is empty'}.")
    return os.path.expanduser(name)  # noqa: PTH111  (which leaves a '~name' of nobody as it is)


def local_path(what: str, value: object, *, error: type[FtkitError] = FtkitError, otherwise: str = "") -> Path:
    """Return a path of this machine; ``~`` is the home folder.

    Raises:
        FtkitError: It is no path, or a URL: a folder called ``s3:`` is never what was meant.

    Example:
        >>> from ftkit._arguments import local_path
        >>> local_path("path", "C:/runs/best.pt").name
        'best.pt'
        >>> local_path("path", "s3://runs/best.pt")
        Traceback (most recent call last):
        ftkit.errors.FtkitError: s3://runs/best.pt is a URL. ...
    """
    name = path_or_url(what, value, error=error, otherwise=otherwise)
    if _URL.match(name):
        raise error(f"{shown(name)} is a URL. Download or upload it yourself: a path of this machine is needed.")
    found = Path(name)
    return found.absolute() if str(found).startswith("~") else found  # "./~": not to be expanded by the next reader


def listed(what: str, value: object, of: str) -> list[Any]:
    """Return an argument that is a list, or anything else to loop over, as a list.

    Text can be looped over too, letter by letter, which nobody means.

    Raises:
        FtkitError: It is no list ``of`` anything.

    Example:
        >>> from ftkit._arguments import listed
        >>> listed("splits", "train,val", "folders")
        Traceback (most recent call last):
        ftkit.errors.FtkitError: splits must be a list of folders, not 'train,val': write splits=['train', 'val'].
    """
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")]
        raise FtkitError(f"{what} must be a list of {of}, not {came(value)}: write {what}={parts!r}.")
    try:
        if isinstance(value, bytes | Mapping):
            raise TypeError
        several: list[Any] = list(value)  # type: ignore[call-overload]  # may raise
        return several
    except TypeError:
        raise FtkitError(f"{what} must be a list of {of}, not {came(value)}.") from None


def strings(what: str, value: object, of: str) -> list[str]:
    """Return an argument that is a list of text.

    Raises:
        FtkitError: It is no list, or something in it is no text.

    Example:
        >>> from ftkit._arguments import strings
        >>> strings("kinds", {"truncated"}, "kinds of findings")
        ['truncated']
    """
    texts = listed(what, value, of)
    for text in texts:
        if not isinstance(text, str):
            raise FtkitError(f"{what} must be a list of {of} as text, and {came(text)} is none.")
    return texts


def entries_of(of: str, value: object, keys: Iterable[str], error: type[FtkitError] = FtkitError) -> Mapping[str, Any]:
    """Return what the ``state_dict()`` of a class gave.

    Raises:
        FtkitError: It lacks one of the ``keys``.

    Example:
        >>> from ftkit._arguments import entries_of
        >>> entries_of("EarlyStopping", {"best": 1.0}, ["best", "stale"])
        Traceback (most recent call last):
        ftkit.errors.FtkitError: {'best': 1.0} is no state of an EarlyStopping, ... it lacks 'stale'.
    """
    given: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
    if lacks := [repr(key) for key in keys if key not in given]:
        raise error(f"{came(value)} is no state of {_a(of)}, as its state_dict() gives: it lacks {', '.join(lacks)}.")
    return given


def call(
    what: str, function: Callable[..., Any], *values: object, takes: str, error: type[FtkitError] = FtkitError
) -> Any:
    """Call a function that was passed as an argument, with values of the names that it ``takes``.

    What goes wrong inside of it is its author's to see.

    Raises:
        FtkitError: It can't be called so.

    Example:
        >>> from ftkit._arguments import call
        >>> call("factory", dict, "fc", 3, takes="name, module")
        Traceback (most recent call last):
        ftkit.errors.FtkitError: factory is called with (name, module), which the class dict does not take: ...
    """
    try:
        return function(*values)
    except TypeError as cause:
        began = cause.__traceback__ is not None and cause.__traceback__.tb_next is not None
        if began and hasattr(function, "__code__"):
            raise
        raise error(
            f"{what} is called with ({takes}), which {came(function)} does not take: {cause}. "
            f"Write a function: lambda {takes}: ..."
        ) from cause
