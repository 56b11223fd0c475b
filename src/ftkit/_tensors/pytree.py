"""Pytrees of plain values and tensors, taken apart into tensors by name and typed JSON, and put together again.

Whatever is not a tensor becomes JSON that knows its type: a list, a number, a string, a ``dict`` with
string keys stand for themselves, everything else is an object with one key that starts with ``$``, as in
``{"$tuple": [0.9, 0.999]}``. Reading it back makes values of a fixed list of types and runs no code.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ftkit._tensors.budget import MAX_SIDES, Budget
from ftkit._tensors.bytes import DTYPES
from ftkit.errors import CheckpointError, DamagedFileError

Json: TypeAlias = Any

_INLINE: Final = 128  # bytes that are kept in the JSON; longer ones become a tensor of their own
_MAX_BITS: Final = 10_000  # of a number in the JSON: Python refuses to read one of more than 4,300 digits
_MAX_NAME: Final = 400  # letters: a name should not outweigh the tensor
_MAX_DTYPE: Final = 32  # letters
_COMPRESS: Final = 1 << 18  # bytes; what is larger is written faster than compressed
_FACTORIES: Final[dict[str | None, Callable[[], Any] | None]] = {
    None: None,
    **{kind.__name__: kind for kind in (list, dict, set, int, float, str)},
}


def pack(tree: object, name: str = "", *, compact: bool = False) -> tuple[dict[str, Tensor], str]:
    """Take a pytree apart into its tensors and typed JSON for all the rest.

    A tensor is named after its place: ``{"optimizer": {"state": [t]}}`` gives ``optimizer.state.0``. One
    tensor in several places is stored once and is one tensor again afterwards. The tensors are those of
    the pytree, not copies.

    Args:
        tree: Any pytree of dict (also ``OrderedDict``, ``Counter``, ``defaultdict``), list, tuple, set,
            frozenset, deque, None, bool, int, float, complex, str, bytes, path, tensor, numpy array or
            scalar, ``torch.Size``, ``torch.dtype`` and ``torch.device``.
        name: What the names of all tensors start with.
        compact: Keep tensors of a few bytes in the JSON, and compress those below 256 KiB where that
            makes them smaller: for files that are mostly small tensors.

    Returns:
        The tensors by name, and the JSON.

    Raises:
        CheckpointError: Something in the pytree is of another type. The message says where.

    Example:
        >>> import torch
        >>> from ftkit._tensors.pytree import pack, unpack
        >>> tensors, text = pack({"betas": (0.9, 0.999), "state": [{"step": torch.tensor(3.0)}]})
        >>> tensors
        {'state.0.step': tensor(3.)}
        >>> text
        '{"betas":{"$tuple":[0.9,0.999]},"state":[{"step":{"$tensor":null}}]}'
        >>> unpack(tensors, text)
        {'betas': (0.9, 0.999), 'state': [{'step': tensor(3.)}]}
    """
    packer = _Packer(compact)
    try:
        encoded = packer.encode(tree, (name,) if name else ())
        return packer.tensors, json.dumps(encoded, separators=(",", ":"), allow_nan=False)
    except RecursionError as error:
        raise CheckpointError("The value contains itself, or is hundreds of levels deep: flatten it.") from error


def unpack(tensors: Mapping[str, Tensor], text: str, name: str = "", *, budget: Budget | None = None) -> Any:
    """Put together again what :func:`pack` took apart.

    Args:
        tensors: At least those that ``pack`` gave.
        text: The JSON that it gave.
        name: The name that ``pack`` got.
        budget: That of the file which it comes from, if it does.

    Raises:
        DamagedFileError: The JSON is not one that ``pack`` makes, or a tensor is missing.
    """
    try:
        return _Unpacker(tensors, budget or Budget(math.inf)).decode(json.loads(text), (name,) if name else ())
    except DamagedFileError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RuntimeError) as error:
        raise DamagedFileError(f"This is not a description of a pytree that ftkit wrote: {error}.") from error


class _Packer:
    def __init__(self, compact: bool) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.compact = compact

    def encode(self, value: Any, path: tuple[str, ...]) -> Json:
        if _is_json(value):
            return value
        if type(value) is list:
            return self.items(value, path)
        if type(value) is dict and all(type(key) is str and not key.startswith("$") for key in value):
            return {key: self.encode(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, Tensor):
            return self.tensor(value.detach(), path)
        for family in (type(value), *_FAMILIES):
            if family in _CODECS and isinstance(value, family):
                return {f"${_CODECS[family].tag}": _CODECS[family].pack(self, value, path)}
        kind = type(value)
        raise CheckpointError(
            f"{_place(path)} is a {kind.__module__}.{kind.__qualname__}, which can't be saved without pickling code. "
            "Pass plain values instead: its state_dict(), vars(...), dict(...), tuple(...) or a string."
        )

    def items(self, values: Iterable[Any], path: tuple[str, ...]) -> list[Json]:
        # Most lists are of numbers, as a random generator's state is.
        return [
            item if type(item) is int and _is_json(item) else self.encode(item, (*path, str(index)))
            for index, item in enumerate(values)
        ]

    def pairs(self, table: Mapping[Any, Any], path: tuple[str, ...]) -> list[Json]:
        return [
            [self.encode(key, (*path, f"key {index}")), self.encode(item, (*path, _step(key, index)))]
            for index, (key, item) in enumerate(table.items())
        ]

    def default_table(self, table: defaultdict[Any, Any], path: tuple[str, ...]) -> list[Json]:
        known = [name for name, kind in _FACTORIES.items() if kind is table.default_factory]
        if not known:
            raise CheckpointError(
                f"{_place(path)} is a defaultdict of {table.default_factory!r}, which can't be saved without pickling "
                f"code; one of {', '.join(filter(None, _FACTORIES))} can. Pass dict(...) of it."
            )
        return [known[0], self.pairs(table, path)]

    def tensor(self, value: Tensor, path: tuple[str, ...]) -> Json:
        if value.is_complex() and value.dtype is not torch.complex64:  # safetensors has no other complex type
            viewed = torch.view_as_real(value.resolve_conj())
            return {"$viewed": self.keep(viewed, path)}
        size = value.numel() * value.element_size()
        if self.compact and size < _COMPRESS and value.layout is torch.strided and not value.is_meta:
            tiny = size <= _INLINE // 4
            planes = _planes(value)
            data = planes if tiny else _squeeze(planes, value.element_size())
            if tiny or len(data) < size:
                return {"$small": [_dtype_name(value.dtype), list(value.shape), len(data) < size, self.raw(data, path)]}
        return {"$tensor": self.keep(value, path)}

    def array(self, value: np.ndarray[Any, Any] | np.generic, path: tuple[str, ...]) -> Json:
        if value.dtype.kind in "OV" or not (isinstance(value, np.generic) or type(value) is np.ndarray):
            raise CheckpointError(
                f"{_place(path)} is a numpy {type(value).__name__} of {value.dtype}, which can't be saved without "
                "pickling code. Make it a plain array of numbers, or a list."
            )
        return [value.dtype.str, list(value.shape), self.raw(value.tobytes(), path)]

    def raw(self, data: bytes | bytearray, path: tuple[str, ...]) -> Json:
        """Short bytes become text, long ones a list that holds the name of a tensor."""
        if len(data) <= _INLINE:
            return base64.b64encode(data).decode()
        return [self.keep(torch.frombuffer(bytearray(data), dtype=torch.uint8), path)]

    def keep(self, tensor: Tensor, path: tuple[str, ...]) -> str | None:
        """Store a tensor; return its name, or None where that follows from its place."""
        name = natural = _name(path)
        count = 1
        while name in self.tensors or name == "__metadata__":
            count += 1
            name = f"{natural}~{count}"
        self.tensors[name] = tensor
        return None if name == natural else name


class _Unpacker:
    def __init__(self, tensors: Mapping[str, Tensor], budget: Budget) -> None:
        self.tensors = tensors
        self.budget = budget

    def decode(self, value: Json, path: tuple[str, ...]) -> Any:
        if isinstance(value, list):
            return self.items(value, path)
        if not isinstance(value, dict):
            return value
        if len(value) != 1 or not next(iter(value)).startswith("$"):
            return {key: self.decode(item, (*path, key[:_MAX_NAME])) for key, item in value.items()}
        tag, held = next(iter(value.items()))
        codec = _BY_TAG[tag[1:]]
        return codec.make(codec.unpack(self, held, path))

    def items(self, values: list[Json], path: tuple[str, ...]) -> list[Any]:
        return [self.decode(item, (*path, str(index))) for index, item in enumerate(values)]

    def keys(self, values: list[Json], path: tuple[str, ...]) -> list[Any]:
        items = self.items(values, path)
        self.budget.keys(items)
        return items

    def pairs(self, pairs: list[Json], path: tuple[str, ...]) -> Iterator[tuple[Any, Any]]:
        for index, (key, item) in enumerate(pairs):
            decoded = self.decode(key, (*path, f"key {index}"))
            self.budget.keys((decoded,))
            yield decoded, self.decode(item, (*path, _step(decoded, index)))

    def array(self, held: list[Json], path: tuple[str, ...]) -> np.ndarray[Any, Any]:
        dtype, shape, data = held
        if not isinstance(dtype, str) or len(dtype) > _MAX_DTYPE:  # of many fields, or a program of them
            raise ValueError("an array of a type that pack never writes")
        raw = bytearray(self.raw(data, path))
        array: np.ndarray[Any, Any] = np.ndarray(shape, np.dtype(dtype), raw)
        if array.itemsize and array.nbytes != len(raw):  # an empty text stands as one letter
            raise ValueError("an array of another size than declared")
        return array

    def small(self, held: list[Json], path: tuple[str, ...]) -> Tensor:
        form, shape, squeezed, raw = held
        dtype = _dtype(form)
        if len(shape) > MAX_SIDES:
            raise ValueError("a tensor of too many sides")
        size = math.prod(shape) * dtype.itemsize
        self.budget.charge(nbytes=size)
        data = self.raw(raw, path)
        if squeezed:
            data = zlib.decompressobj().decompress(data, size + 1)
        if len(data) != size or size >= _COMPRESS:
            raise DamagedFileError(f"{_place(path)} has another size than declared.")
        planes = torch.frombuffer(bytearray(data), dtype=torch.uint8) if size else torch.empty(0, dtype=torch.uint8)
        return planes.reshape(dtype.itemsize, -1).t().reshape(-1).view(dtype).reshape(shape)

    def raw(self, held: Json, path: tuple[str, ...]) -> bytes:
        if isinstance(held, list):
            found = self.find(held[0], path)
            self.budget.charge(nbytes=2 * found.nbytes)
            return found.numpy().tobytes()
        return base64.b64decode(held, validate=True)

    def find(self, name: str | None, path: tuple[str, ...]) -> Tensor:
        name = _name(path) if name is None else name
        if name not in self.tensors:
            raise DamagedFileError(f"The tensor {name!r} is missing.")
        return self.tensors[name]


def _is_json(value: object) -> bool:
    """Whether a value stands for itself in JSON."""
    if type(value) is int:
        return value.bit_length() < _MAX_BITS
    if type(value) is float:
        return math.isfinite(value)
    return value is None or type(value) is bool or type(value) is str


def _planes(tensor: Tensor) -> bytes:
    """A tensor's bytes: the first one of each number, then the second one of each, and so on."""
    data = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return data.view(torch.uint8).reshape(-1, tensor.element_size()).t().contiguous().numpy().tobytes()


def _squeeze(planes: bytes, count: int) -> bytes:
    """Compress each plane by how often a byte occurs in it: the exponents of numbers are alike, no more is."""
    packer = zlib.compressobj(strategy=zlib.Z_RLE)
    side = len(planes) // count
    packed = [
        packer.compress(planes[begin : begin + side]) + packer.flush(zlib.Z_SYNC_FLUSH)
        for begin in range(0, len(planes), side)
    ]
    return b"".join(packed) + packer.flush()


def _step(key: object, index: int) -> str:
    """What an entry of a table that is not keyed by strings alone adds to a tensor's name."""
    return str(key) if type(key) in (str, int, bool) else str(index)


def _name(path: tuple[str, ...]) -> str:
    # A name must be Unicode that a file can hold.
    return ".".join(path)[:_MAX_NAME].encode(errors="replace").decode() or "value"


def _place(path: tuple[str, ...]) -> str:
    return repr(_name(path)) if path else "The value"


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise DamagedFileError(f"This torch knows no type {name[:80]!r}.")
    return DTYPES[name]


class _Codec(NamedTuple):
    """How one kind of value stands under its tag in JSON: as which parts, and what makes it of these again."""

    tag: str
    make: Callable[[Any], Any]
    pack: Callable[[_Packer, Any, tuple[str, ...]], Json] = _Packer.items
    unpack: Callable[[_Unpacker, Json, tuple[str, ...]], Any] = _Unpacker.items


def _table(tag: str, make: Callable[[Any], Any]) -> _Codec:
    return _Codec(tag, make, _Packer.pairs, _Unpacker.pairs)


def _word(tag: str, make: Callable[[str], Any], write: Callable[[Any], str]) -> _Codec:
    return _Codec(tag, make, lambda _, value, __: write(value), lambda _, held, __: held)


def _itself(value: Any) -> Any:
    return value


_CODECS: Final[dict[type, _Codec]] = {
    int: _word("int", lambda text: int(text, 16), hex),  # of more digits than Python reads
    float: _word("float", float, repr),  # that JSON has no number for
    complex: _Codec(
        "complex",
        lambda parts: complex(*parts),
        lambda packer, value, path: packer.items((value.real, value.imag), path),
    ),
    dict: _table("dict", dict),
    OrderedDict: _table("OrderedDict", OrderedDict),
    Counter: _table("Counter", lambda pairs: Counter(dict(pairs))),
    defaultdict: _Codec(
        "defaultdict",
        lambda parts: defaultdict(_FACTORIES[parts[0]], parts[1]),
        _Packer.default_table,
        lambda unpacker, held, path: [held[0], unpacker.pairs(held[1], path)],
    ),
    tuple: _Codec("tuple", tuple),
    set: _Codec("set", set, unpack=_Unpacker.keys),
    frozenset: _Codec("frozenset", frozenset, unpack=_Unpacker.keys),
    torch.Size: _Codec("Size", torch.Size),
    deque: _Codec(
        "deque",
        lambda parts: deque(parts[1], parts[0]),
        lambda packer, value, path: [value.maxlen, packer.items(value, path)],
        lambda unpacker, held, path: [held[0], unpacker.items(held[1], path)],
    ),
    bytes: _Codec("bytes", bytes, _Packer.raw, _Unpacker.raw),
    bytearray: _Codec("bytearray", bytearray, _Packer.raw, _Unpacker.raw),
    torch.dtype: _word("dtype", _dtype, _dtype_name),
    torch.device: _word("device", torch.device, str),
    np.ndarray: _Codec("array", _itself, _Packer.array, _Unpacker.array),
    np.generic: _Codec("scalar", lambda array: array[()], _Packer.array, _Unpacker.array),
    Path: _word("path", Path, str),
    PurePosixPath: _word("posix_path", PurePosixPath, str),
    PureWindowsPath: _word("windows_path", PureWindowsPath, str),
}
_FAMILIES: Final = (np.ndarray, np.generic, Path)  # classes whose subclasses are kept as well

_BY_TAG: Final = {
    codec.tag: codec
    for codec in (
        *_CODECS.values(),
        _Codec("tensor", _itself, unpack=_Unpacker.find),
        _Codec("small", _itself, unpack=_Unpacker.small),
        _Codec("viewed", torch.view_as_complex, unpack=_Unpacker.find),
    )
}
