"""Values of Python, torch and numpy that a pickle makes by a call, and that run nothing: what each name stands for.

One table says what a name means where it stands alone, another what may be called to make a value, and
:func:`numpy_value` makes numbers, arrays and types of numpy from their records.
"""

from __future__ import annotations

import argparse
import collections
import datetime as dt
import decimal
import fractions
import pathlib
import re
import types
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import torch

_PLAIN: Final = (
    object,
    int,
    float,
    str,
    bool,
    bytes,
    bytearray,
    list,
    dict,
    set,
    frozenset,
    tuple,
    complex,
    range,
    slice,
)
_TABLES: Final = (collections.OrderedDict, collections.defaultdict, collections.Counter, collections.deque)
_TIMES: Final = (dt.date, dt.datetime, dt.time, dt.timedelta, dt.timezone)
_OBJECTS: Final = (argparse.Namespace, types.SimpleNamespace, uuid.UUID, decimal.Decimal)
_PATHS: Final = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path", "PurePath")
_TORCHS: Final = (torch.Tensor, torch.Size, torch.device, torch.dtype, torch.nn.Parameter)
_KINDS: Final = (torch.dtype, torch.layout, torch.memory_format, torch.qscheme)

CONSTANTS: Final[dict[str, Any]] = {
    f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, _KINDS)
}
"""What torch has one of, by its dotted name: types, layouts, memory formats, schemes of quantization."""

NAMED: Final[dict[str, Any]] = {
    **{f"{kind.__module__}.{kind.__qualname__}": kind for kind in (*_PLAIN, *_TABLES, *_TIMES, *_OBJECTS, *_TORCHS)},
    "builtins.Ellipsis": ...,
    "builtins.NotImplemented": NotImplemented,
    "fractions.Fraction": fractions.Fraction,
    **{f"{module}.{name}": getattr(pathlib, name) for module in ("pathlib", "pathlib._local") for name in _PATHS},
    **{f"torch.{name}": kind for name, kind in vars(torch).items() if name.endswith("Storage")},
    "torch.storage.UntypedStorage": torch.UntypedStorage,
    **{
        f"numpy.{name}": kind
        for name, kind in vars(np).items()
        if isinstance(kind, type) and issubclass(kind, np.generic)
    },
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
}
"""What a name means that stands for itself, as the class of a setting does."""


def _fraction(*parts: Any) -> fractions.Fraction:
    # A text may have an exponent, which is a few letters and any size; long numbers take forever to be reduced.
    for part in parts:
        short = type(part) is int and part.bit_length() < _MAX_BITS
        if not (short or (type(part) is str and re.fullmatch(r"-?\d+(/\d+)?", part))):
            raise ValueError("a fraction of something else than numbers")
    return fractions.Fraction(*parts)


def _deque(items: Any = (), most: int | None = None) -> collections.deque[Any]:
    if not isinstance(items, list | tuple):  # a range has any length
        raise TypeError("a deque of something else than a list")
    return collections.deque(items, most)


def _type(value: Any) -> type:
    """The class of what there is one of; others go by their names."""
    if value is None or value is Ellipsis or value is NotImplemented:
        return type(value)
    raise TypeError("the class of something")


CALLED: Final[dict[str, Callable[..., Any]]] = {
    **{
        f"{kind.__module__}.{kind.__qualname__}": kind
        for kind in (range, slice, collections.defaultdict, *_TIMES, *_OBJECTS)
    },
    "collections.deque": _deque,
    "fractions.Fraction": _fraction,
    "builtins.type": _type,
}
"""What makes a value of plain arguments, its state and its items."""

_ARRAYS: Final = {
    f"numpy.{core}.{name}": name
    for core in ("core", "_core")
    for name in ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
} | {"numpy.dtype": "dtype"}

PLAIN_NAMES: Final = frozenset((*NAMED, *CALLED, *_ARRAYS))
"""The names that need no trust."""

_CODE: Final = re.compile(r"[<>=|]?[?a-zA-Z]\d{0,9}")  # of a simple type; numpy understands far more
_HELD: Final = (
    "biufcSUMmV"  # kinds whose values are their bytes; of others, objects are read, and the rest are pointers
)
_ALIGNED: Final = 0x80
_MAX_FIELDS: Final = 100  # of a type, those of types in it included: one may stand in itself twice, and so on
_MAX_BITS: Final = 10_000


def is_of_numpy(name: str) -> bool:
    """Whether :func:`numpy_value` makes what a call of this name stands for."""
    return name in _ARRAYS


def numpy_value(node: Any, make: Callable[[Any], Any] | None = None) -> Any:
    """Make the number, array or type of numpy that a record of a call stands for.

    Args:
        node: The record, a :class:`~ftkit._pickles.machine.Foreign`.
        make: What makes the parts of an array of objects; without it, such an array is an error.

    Raises:
        TypeError: Or a ``ValueError``, ``LookupError``: It is none, or makes no sense.
    """
    record: Any = (_ARRAYS.get(node.name), node.args, node.state)
    match record:
        case "dtype", _, _:
            return _dtype(node)
        case "multiarray.scalar", (dtype, bytes() as data), _:
            return _array((), _dtype(dtype), data)[()]
        case "numeric._frombuffer", (bytes() | bytearray() as data, dtype, tuple() as shape, "C" | "F" as way), _:
            return _array(shape, _dtype(dtype), data, way)
        case "multiarray._reconstruct", (kind, *_), (_, tuple() as shape, dtype, fortran, data) if (
            getattr(kind, "name", None) == "numpy.ndarray"
        ):
            order: Any = "F" if fortran else "C"
            if isinstance(data, list) and make is not None and _dtype(dtype).kind == "O":
                objects = np.empty(len(data), object)
                for at, part in enumerate(data):
                    objects[at] = make(part)
                return objects.reshape(shape, order=order)
            if isinstance(data, bytes):
                array = _array(shape, _dtype(dtype), data, order)
                # What NumPy unpickles is in this machine's byte order, but for the fields of structures.
                return array if array.dtype.names else array.astype(array.dtype.newbyteorder("="), copy=False)
    raise TypeError(f"{node.name[:80]!r} in it describes nothing that can be made")


def _array(shape: tuple[int, ...], dtype: np.dtype[Any], data: Any, order: Any = "C") -> np.ndarray[Any, Any]:
    if dtype.hasobject or dtype.kind not in _HELD:
        raise TypeError(f"an array in it is of type {dtype}")
    array: np.ndarray[Any, Any] = np.ndarray(shape, dtype, data, order=order)
    if array.nbytes != len(data):
        raise ValueError("an array in it has another size than declared")
    return array.copy(order="K")


def _dtype(node: Any, room: Iterator[int] | None = None) -> np.dtype[Any]:
    room = iter(range(_MAX_FIELDS)) if room is None else room
    if next(room, None) is None:
        raise ValueError("an array in it is of a type of too many fields")
    match getattr(node, "name", None), getattr(node, "args", ()), getattr(node, "state", None):
        case "numpy.dtype", (str(code), *_), state if _CODE.fullmatch(code):
            pass
        case _:
            raise TypeError("an array in it has no type")
    match state:
        case (_, _, (inner, shape), None, None, *_):
            return np.dtype((_dtype(inner, room), shape))
        case (_, _, None, tuple() as names, dict() as fields, int(size), _, int(flags), *_):
            parts = [fields[name] for name in names]
            if any(len(part) != 2 for part in parts):
                raise TypeError("a type in it whose parts have titles")
            spec: Any = {
                "names": list(names),
                "formats": [_dtype(part[0], room) for part in parts],
                "offsets": [part[1] for part in parts],
                "itemsize": size,
            }
            structure: np.dtype[Any] = np.dtype(spec, align=bool(flags & _ALIGNED))
            return structure
        case (_, order, None, None, None, _, _, _, (_, (bytes(unit), int(count), *_))):
            known = f"{code}[{count}{unit.decode()}]" if unit != b"generic" else code
            return _ordered(np.dtype(known), order)
        case (_, order, *_):
            return _ordered(np.dtype(code), order)
        case None:
            return np.dtype(code)
    raise TypeError("an array in it has no type")


def _ordered(dtype: np.dtype[Any], order: Any) -> np.dtype[Any]:
    return dtype.newbyteorder(order) if order in ("<", ">") else dtype
