"""Validate what callers pass: numbers, sizes, paths, lists and the like; errors say what came instead.

In each function, ``what`` is the argument's name, ``value`` what was passed, ``otherwise`` what else it may be, in
words for the message, and ``error`` what to raise.
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
# A small b behind a capital is for bits.
_SIZE: Final = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*(?!(?-i:[KMGT][Ii]?b))([KMGT]?)(I?)B\s*", re.IGNORECASE)
_LONGEST: Final = 60


def came(value: object) -> str:
    """Describe what was passed: a short value by its repr, anything else by its type.

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
    vowels = "AEFHILMNORSX" if noun[:2].isupper() else "AEIOUaeiou"  # letters that are read out: an SGD, a UNet
    return f"{'an' if noun[0] in vowels else 'a'} {noun}"


def _scalar(value: object) -> Any:
    """The plain value in a number or a truth value of NumPy or torch; anything else as it is."""
    try:
        return value.item()  # type: ignore[attr-defined]  # those that lack it raise
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return value


def whole_number(
    what: str, value: object, *, least: float = -math.inf, otherwise: str = "", error: type[FtkitError] = FtkitError
) -> int:
    """Return an argument as a plain int; integers of NumPy and torch are accepted.

    Raises:
        FtkitError: It is not a whole number, or less than ``least``.

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
    """Return an argument as a plain float; numbers of NumPy and torch are accepted, strings and bools are not.

    Raises:
        FtkitError: It is not a number, or not one that ``fits``, which ``rule`` puts in words.

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
    raise FtkitError(f"{what} must be {f'a number {rule}' if rule else 'a single number'}, not {came(value)}.")


def byte_count(what: str, value: object) -> float:
    """Return a number of bytes, also from text: ``"8 GB"`` is 8 times 1000**3, ``"8 GiB"`` 8 times 1024**3.

    Raises:
        FtkitError: It is not a number of bytes.

    Example:
        >>> from ftkit._arguments import byte_count
        >>> byte_count("memory", "8GB"), byte_count("memory", "1.5 KiB"), byte_count("memory", 10)
        (8000000000.0, 1536.0, 10.0)
    """
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        count, unit, binary = match.groups()
        value = float(count) * (1024 if binary else 1000) ** " KMGT".index(unit.upper() or " ")
    rule = "of bytes, or a size such as '8GB' or '500MiB' (Gb are gigabits)"
    return real_number(what, value, rule, lambda one: 0 <= one < math.inf)


def flag(what: str, value: object) -> bool:
    """Return an argument as a bool. Text is refused: ``"no"`` would count as true.

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
        FtkitError: It is not one of them; the message names the closest.

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
        FtkitError: It is not a path.

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
        raise error(f"Expected a path as {what}, got {came(name)}, which {'contains a NUL' if name else 'is empty'}.")
    return os.path.expanduser(name)  # noqa: PTH111  (which leaves a '~name' of no user as is)


def local_path(what: str, value: object, *, error: type[FtkitError] = FtkitError, otherwise: str = "") -> Path:
    """Return a local path; ``~`` is the home folder.

    Raises:
        FtkitError: It is not a path, or it is a URL: a folder called ``s3:`` is never what was meant; or it ends with a
            slash, as a folder's does, and is a file.

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
        raise error(f"{shown(name)} is a URL. Download or upload it yourself: a local path is needed.")
    found = Path(name)  # which drops a slash at the end
    is_file = os.path.isfile(found)  # noqa: PTH113  (Path raises where it may not look)
    if is_file and name.endswith(("/", os.sep)):
        raise error(f"{shown(name)} ends with a slash, but is a file, not a folder. Drop the slash, or name a folder.")
    return found.absolute() if str(found).startswith("~") else found  # "./~": not to be expanded by the next reader


def listed(what: str, value: object, of: str) -> list[Any]:
    """Return an argument that is a list, or any other iterable, as a list.

    Strings are iterable too, letter by letter, but no one means that.

    Raises:
        FtkitError: It is not iterable, or is a string, bytes or a mapping.

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
    """Return an argument that is a list of strings.

    Raises:
        FtkitError: It is not a list, or something in it is not a string.

    Example:
        >>> from ftkit._arguments import strings
        >>> strings("kinds", {"truncated"}, "kinds of findings")
        ['truncated']
    """
    texts = listed(what, value, of)
    for text in texts:
        if not isinstance(text, str):
            raise FtkitError(f"{what} must be a list of {of} as strings, but {came(text)} is not a string.")
    return texts


def entries_of(of: str, value: object, keys: Iterable[str], error: type[FtkitError] = FtkitError) -> Mapping[str, Any]:
    """Return what the ``state_dict()`` of a class returned.

    Raises:
        FtkitError: It lacks one of the ``keys``.

    Example:
        >>> from ftkit._arguments import entries_of
        >>> entries_of("EarlyStopping", {"best": 1.0}, ["best", "stale"])
        Traceback (most recent call last):
        ftkit.errors.FtkitError: {'best': 1.0} is not a state_dict() of an EarlyStopping: it lacks 'stale'.
    """
    given: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
    if lacks := [repr(key) for key in keys if key not in given]:
        raise error(f"{came(value)} is not a state_dict() of {_a(of)}: it lacks {', '.join(lacks)}.")
    return given


def call(
    what: str, function: Callable[..., Any], *values: object, takes: str, error: type[FtkitError] = FtkitError
) -> Any:
    """Call a function that was passed as an argument; ``takes`` names the values it is called with.

    Errors raised inside it pass through, for its author to see.

    Raises:
        FtkitError: It can't be called with these values.

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
