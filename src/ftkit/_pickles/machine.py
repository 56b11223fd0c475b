"""A stack machine that reads pickles and runs nothing: calls become records, names stay names.

``pickle`` is a little program for building objects, and its ``REDUCE`` may call anything. This
machine knows every opcode of protocols 0 to 5 (Python's ``pickletools`` is the reference) but has
no way to import or call: a class or function is a :class:`Global`, what it would have made is a
:class:`Foreign`. Only plain data and torch's own tensor builders are understood, the latter as
:class:`StoredTensor`, a description of where a tensor's bytes lie.
"""

from __future__ import annotations

import _compat_pickle
import contextlib
import dataclasses
import io
import math
import pickletools
import struct
import zipfile
import zlib
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

import torch

from ftkit._pickles.values import CONSTANTS, NAMED, PLAIN_NAMES
from ftkit._tensors.budget import MAX_SIDES, Budget
from ftkit._wording import cause
from ftkit.errors import DamagedFileError

LEGACY_MAGIC: Final = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e"
"""How the files of torch before 1.6 begin."""

# What a zip archive that makes no sense raises.
_ZIP_ERRORS: Final = (
    *(DamagedFileError, EOFError, OSError, RuntimeError, StopIteration, TypeError, ValueError),
    *(struct.error, zipfile.BadZipFile, zlib.error),
)

_LONG: Final = 1 << 20  # bytes that may be read without looking how many there are
_STEPS_TO_BEGIN: Final = 4
_BLOCK: Final = 4096  # instructions that are paid for at a time
_MAX_SIZE: Final = 1 << 60  # of a side, a stride or a storage

# Bytes of memory that things take, besides what their parts take.
_INSTRUCTION: Final = 48
_SET: Final = 168
_RECORD: Final = 256
_STORAGE: Final = 1024


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function, not looked up."""

    name: str


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A run of bytes that lies elsewhere in the file.

    Attributes:
        key: What the file calls it.
        dtype: The type of its elements; bytes where the file leaves it open.
        numel: How many elements it is said to have.
        location: The device it was saved from, such as ``"cuda:0"``.
    """

    key: str
    dtype: torch.dtype
    numel: int
    location: str

    @property
    def nbytes(self) -> int:
        """How many bytes it is said to have."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, slots=True, eq=False)  # two of one description are two tensors
class StoredTensor:
    """A tensor of the file: which elements of which storage it is, and as what they are to be seen.

    ``kind`` is the name of its class where that is none of torch's own, ``state`` what was set on it.
    """

    storage: StorageRef
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool = False
    conj: bool = False
    neg: bool = False
    parameter: bool = False
    kind: str = ""
    state: Any = None

    @property
    def nbytes(self) -> int:
        """The bytes that its values take."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_whole(self) -> bool:
        """Whether it is all of its storage, in order."""
        step = 1
        for side, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if side != 1 and stride != step:
                return False
            step *= side
        return not (self.offset or self.conj or self.neg) and self.nbytes == self.storage.nbytes


@dataclass(eq=False, slots=True)
class Foreign:
    """What code that did not run would have made.

    Attributes:
        name: The dotted name of what is called.
        function: The name or record itself.
        args: The arguments.
        new: Whether only a bare instance of the class is made, without its constructor.
        state: The state that is set after.
        items: What is appended after: items of a list, or pairs of a table.
        keywords: Arguments by name.
    """

    name: str
    function: Any
    args: tuple[Any, ...]
    new: bool = False
    keywords: dict[str, Any] = field(default_factory=dict)
    state: Any = None
    items: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Pickled:
    """What a pickle holds.

    Attributes:
        tree: The object.
        wanted: The dotted names of all classes and functions beyond plain data and tensors, in order.
        storages: The runs of bytes that its tensors lie in, by key.
        rare: The rarer kinds of tensors that it names the builders of: ``sparse``, ``quantized``, ...
        inline: The bytes of storages that lie in the pickle itself, by key, as ``pickle.dump`` of tensors keeps them.
    """

    tree: Any
    wanted: list[str]
    storages: dict[str, StorageRef]
    rare: list[str]
    inline: dict[str, memoryview]


def read_pickle(file: BinaryIO, budget: Budget, objects: Mapping[str, Any] | None = None) -> Pickled:
    """Read one pickle from where the file stands, up to its end.

    Args:
        file: Open for reading, and buffered.
        budget: What that may cost.
        objects: Things that the pickle may refer to by a number.

    Raises:
        DamagedFileError: The bytes are no pickle, or contradict themselves.

    Example:
        >>> import io, os, pickle
        >>> from ftkit._pickles.machine import read_pickle
        >>> from ftkit._tensors.budget import Budget
        >>> class Attack:
        ...     def __reduce__(self):
        ...         return os.system, ("echo never printed",)
        >>> read = read_pickle(io.BytesIO(pickle.dumps({"epoch": 3, "x": Attack()})), Budget(size=99))
        >>> read.tree["epoch"], read.tree["x"].args, [name.split(".")[1] for name in read.wanted]
        (3, ('echo never printed',), ['system'])
    """
    budget.charge(steps=_STEPS_TO_BEGIN)
    machine = _Machine(objects or {}, budget)
    try:
        tree = machine.run(file)
    except DamagedFileError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DamagedFileError(f"The pickle is damaged, or not a pickle at all: {cause(error)}.") from error
    return Pickled(tree, list(machine.wanted), machine.storages, list(machine.rare), machine.inline)


class _Machine:
    def __init__(self, objects: Mapping[str, Any], budget: Budget) -> None:
        self.objects = objects
        self.budget = budget
        self.storages: dict[str, StorageRef] = {}
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.wanted: dict[str, None] = {}
        self.rare: dict[str, None] = {}
        self.inline: dict[str, memoryview] = {}

    def run(self, file: BinaryIO) -> Any:
        read, table, arguments = file.read, _TABLE, Bounded(file)
        while True:
            for _ in range(_BLOCK):
                code = read(1)
                if code == b".":
                    return self.stack.pop()
                if code not in table:
                    what = f"{code!r} is not an instruction" if code else "it ends before it is complete"
                    raise DamagedFileError(f"Not a pickle: {what}.")
                reader, step = table[code]
                step(self, reader(arguments) if reader is not None else None)
            self.budget.charge(nbytes=_BLOCK * _INSTRUCTION)

    def pay_for_copies(self, *parts: Any) -> None:
        """Pay before something is copied: a call is a few bytes long, and may copy all that it is given."""
        self.budget.charge(nbytes=sum(map(_cost, parts)))

    def pay_for_keys(self, name: str, args: tuple[Any, ...]) -> None:
        """Pay before a call makes a table or a set, and hashes what it is given."""
        if name in _SETS:
            self.budget.keys(list(args[0]) if args else ())
        elif name in _TABLES:
            at = name == "collections.defaultdict"  # what makes defaults comes first
            for pairs in args[at : at + 1]:
                self.budget.keys(() if isinstance(pairs, dict) else [key for key, _ in pairs])

    # What the instructions are made of; the table below says of which each is.

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def put(self, index: int) -> None:
        self.memo[int(index)] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[int(index)])

    def last(self, count: int) -> list[Any]:
        items = self.stack[-count:]
        if len(items) != count:
            raise IndexError("too few things on the stack")
        del self.stack[-count:]
        return items

    def extend(self, items: list[Any]) -> None:
        _extend(self.stack[-1], items, self.budget)

    def update(self, items: list[Any]) -> None:
        _update(self.stack[-1], items, self.budget)

    def empty_set(self, _: Any) -> None:
        self.budget.charge(nbytes=_SET)
        self.stack.append(set())

    def name(self, text: str) -> None:
        self.refer(*text.split(" ", 1))

    def stack_name(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise TypeError("a name that is no text")
        self.refer(module, name)

    def refer(self, module: str, name: str) -> None:
        self.pay_for_copies(module, name)
        # What Python 2 called its modules, as pickle itself translates it.
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
        full = f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"
        if full in CONSTANTS:
            self.stack.append(CONSTANTS[full])
            return
        if full in _RARE:
            self.rare[_RARE[full]] = None
        elif full.startswith("__torch__."):
            pass  # a class of a TorchScript archive, which Python doesn't have
        elif full not in (_INLINE, _OF_TYPE) and not any(
            full in known for known in (_BUILDERS, _STORAGES, PLAIN_NAMES)
        ):
            self.wanted[full] = None
        self.stack.append(Global(full))

    def extension(self, code: int) -> None:
        self.wanted[f"copyreg extension {code}"] = None
        self.stack.append(Global(f"copyreg extension {code}"))

    def reduce(self, *, new: bool) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self.call(function, args, new=new))

    def new_with_keywords(self, _: Any) -> None:
        keywords, args, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
        made = self.call(function, args, new=True)
        if keywords:
            if not (isinstance(made, Foreign) and isinstance(keywords, dict)):
                raise TypeError("a call with keywords of plain data")
            made.keywords = keywords
        self.stack.append(made)

    def instance(self, text: str) -> None:
        args = self.since_mark()
        self.name(text)
        self.stack.append(self.call(self.stack.pop(), tuple(args)))

    def object(self, function: Any, *args: Any) -> None:
        self.stack.append(self.call(function, args))

    def call(self, function: Any, args: Any, *, new: bool = False) -> Any:
        if not isinstance(args, tuple):
            raise TypeError("a call whose arguments are no tuple")
        if isinstance(function, Global):
            if function.name == _INLINE and (ref := self.inline_storage(*args)) is not None:
                return ref
            if function.name == _OF_TYPE:
                return self.of_type(*args)
            self.pay_for_copies(*args)  # plain values that are made later copy them, too
            build = _BUILDERS.get(function.name)
            if build is not None:
                self.pay_for_keys(function.name, args)
                return build(*args)
            if function.name == _QUANTIZED:
                _check_quantized(*args[:4])
        self.budget.charge(nbytes=_RECORD)
        if isinstance(function, Global):
            return Foreign(function.name, function, args, new)
        if isinstance(function, Foreign):
            name = function.name if isinstance(function.function, Foreign) else f"what {function.name} makes"
            return Foreign(name, function, args, new)
        raise TypeError(f"a call of a {type(function).__name__}")

    def of_type(self, build: Any, kind: Any, args: Any, state: Any = None) -> Any:
        """A tensor of a class of its own, and what was set on it."""
        made = self.call(build, args) if isinstance(build, Global) and build.name in _BUILDERS else None
        if isinstance(made, StoredTensor) and isinstance(kind, Global):
            return dataclasses.replace(made, kind="" if kind.name in PLAIN_NAMES else kind.name, state=state)
        self.budget.charge(nbytes=_RECORD)
        return Foreign(_OF_TYPE, build, (kind, args, state))

    def inline_storage(self, blob: Any) -> StorageRef | None:
        """Describe a storage that was pickled as a torch file of its own, of the old format and no other."""
        if not isinstance(blob, bytes) or not blob.startswith(LEGACY_MAGIC):
            self.wanted.update(dict.fromkeys((_INLINE, *_names_in_zip(blob, self.budget))))
            return None
        self.budget.charge(nbytes=len(blob) + _STORAGE)
        file = io.BytesIO(blob)
        parts = [read_pickle(file, self.budget) for _ in range(5)]
        ref, start = parts[3].tree, file.tell() + 8
        if not isinstance(ref, StorageRef) or not 0 <= ref.nbytes == len(blob) - start:
            raise ValueError("a storage that is not whole")
        ref = dataclasses.replace(ref, key=f"inline {len(self.inline)}")
        self.inline[ref.key] = memoryview(blob)[start:]
        self.storages[ref.key] = ref
        self.wanted.update(dict.fromkeys(name for part in parts for name in part.wanted))
        return ref

    def build(self, _: Any) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Foreign):
            if target.name.endswith("._reconstruct") and isinstance(state, tuple):
                self.pay_for_copies(*state)  # an array of numpy, which is a copy of its bytes
            target.state = state
        # A table's attributes (a state dict's _metadata) and a tensor's are of no use here.
        elif not isinstance(target, dict | StoredTensor | Global):
            raise TypeError(f"a state set on a {type(target).__name__}")

    def persistent(self, text: str) -> None:
        raise TypeError(f"a reference to {text[:40]!r} outside the file")

    def storage(self, _: Any) -> None:
        pid = self.stack.pop()
        match pid:
            case ("storage", Global(kind), str() | int() as key, str(location), int(numel), *rest) if kind in _STORAGES:
                if rest and rest[0] is not None:
                    raise TypeError("a view of a storage, which torch has not written since 2017")
                if not 0 <= numel < _MAX_SIZE:
                    raise ValueError("a storage of an impossible size")
                ref = StorageRef(str(key), _STORAGES[kind], numel, location)
                if self.storages.setdefault(ref.key, ref) != ref:
                    raise ValueError(f"two descriptions of the storage {ref.key[:40]!r}")
                self.stack.append(ref)
            case ("module", container, *_):
                self.stack.append(container)
            case str() | int() if str(pid) in self.objects:
                self.stack.append(self.objects[str(pid)])
            case _:
                raise TypeError("a reference to something that is no storage")


def _names_in_zip(blob: Any, budget: Budget) -> list[str]:
    """What a torch file inside a pickle names, which torch would open without looking at it."""
    with contextlib.suppress(*_ZIP_ERRORS):
        archive = zipfile.ZipFile(io.BytesIO(blob))
        main = next(entry for entry in archive.infolist() if entry.filename.endswith("data.pkl"))
        if main.file_size <= len(blob):
            budget.charge(nbytes=main.file_size)
            return read_pickle(io.BytesIO(archive.read(main)), budget).wanted
    return []


def _cost(part: Any) -> int:
    """What a copy of something is charged: 8 for each letter or byte, 64 for each item, such as a part of a path."""
    if isinstance(part, str | bytes | bytearray):
        return 8 * len(part)
    return 64 * len(part) if isinstance(part, list | tuple | dict | set | frozenset) else 0


class Bounded:
    """A file whose ``read`` never makes room for more than is there, whatever is declared."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.readline: Callable[..., bytes] = file.readline
        self.tell: Callable[[], int] = file.tell
        self.seek: Callable[..., int] = file.seek

    def read(self, size: int) -> bytes:
        """Read so many bytes, or those that are left."""
        if size > _LONG:
            here = self.tell()
            size = min(size, self.seek(0, io.SEEK_END) - here)
            self.seek(here)
        return self._file.read(size)


def _extend(target: Any, items: list[Any], budget: Budget) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, set):
        target.update(budget.keys(items))
    elif isinstance(target, Foreign):
        target.items.extend(items)
    else:
        raise TypeError(f"items added to a {type(target).__name__}")


def _update(target: Any, items: list[Any], budget: Budget) -> None:
    if len(items) % 2:
        raise ValueError("a key without a value")
    if isinstance(target, dict):
        target.update(zip(budget.keys(items[::2]), items[1::2], strict=True))
    elif isinstance(target, Foreign):
        target.items.extend(zip(items[::2], items[1::2], strict=True))
    else:
        raise TypeError(f"entries added to a {type(target).__name__}")


def _pairs(items: list[Any], budget: Budget) -> dict[Any, Any]:
    table: dict[Any, Any] = {}
    _update(table, items, budget)
    return table


# What calls of plain data and of torch's tensor builders amount to.


def _table_of(pairs: Any) -> dict[Any, Any]:
    if isinstance(pairs, dict):
        return pairs
    return {key: value for key, value in pairs}  # noqa: C416  (dict() would take a table's keys for pairs)


def _default_dict(factory: Any = None, pairs: Any = ()) -> Any:
    kind = NAMED.get(factory.name) if isinstance(factory, Global) else None
    if factory is None or isinstance(kind, type):
        return defaultdict(kind, _table_of(pairs))
    name = "collections.defaultdict"
    return Foreign(name, Global(name), (factory,), items=[*_table_of(pairs).items()])


def _layout(name: str) -> Any:
    builder = "torch.serialization._get_layout"
    return CONSTANTS.get(name) if name in CONSTANTS else Foreign(builder, Global(builder), (name,))


def _encode(text: str, encoding: Any = "latin1") -> bytes:
    if not isinstance(encoding, str) or encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise ValueError("bytes in an encoding that pickles don't use")
    return text.encode(encoding)


def _bytes(value: Any = b"", encoding: str = "latin1") -> bytes:
    if isinstance(value, str):
        return _encode(value, encoding)
    if not isinstance(value, bytes | bytearray | list | tuple):
        raise TypeError("bytes of something else")  # of a number they would be so many zeros
    return bytes(value)


def stored_tensor(
    storage: StorageRef,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool = False,
    _hooks: Any = None,
    *rest: Any,
) -> StoredTensor:
    """Describe a tensor as torch's own rebuilding functions are told to build it.

    Raises:
        TypeError: Or a ``ValueError``: the tensor is impossible, or reaches beyond its storage.
    """
    if not isinstance(storage, StorageRef):
        raise TypeError("a tensor without a storage")
    dtype = rest[0] if rest and isinstance(rest[0], torch.dtype) else storage.dtype
    marks = rest[-1] if rest and isinstance(rest[-1], dict) else {}
    conj, neg = bool(marks.get("conj")), bool(marks.get("neg"))
    if len(shape) > MAX_SIDES or len(stride) > MAX_SIDES:
        raise ValueError("a tensor of too many sides")
    tensor = StoredTensor(storage, dtype, offset, tuple(shape), tuple(stride), bool(requires_grad), conj, neg)
    numbers = (tensor.offset, *tensor.shape, *tensor.stride, tensor.storage.numel)
    if any(type(number) is not int or not 0 <= number < _MAX_SIZE for number in numbers):
        raise ValueError("a tensor with an impossible size")
    if len(tensor.shape) != len(tensor.stride):
        raise ValueError("a tensor with more sides than strides")
    if math.prod(tensor.shape):
        last = tensor.offset + sum((side - 1) * step for side, step in zip(tensor.shape, tensor.stride, strict=True))
        if (last + 1) * tensor.dtype.itemsize > storage.nbytes:
            raise ValueError("a tensor that reaches beyond its storage")
    return tensor


def _check_quantized(storage: StorageRef, *place: Any) -> None:
    """Check that a quantized tensor lies in its storage: torch, which alone builds it, believes what is declared."""
    quarters = dataclasses.replace(storage, dtype=torch.uint8, numel=4 * storage.nbytes)  # of a byte, the smallest type
    stored_tensor(quarters, *place)


def storage_dtype(name: str) -> torch.dtype | None:
    """The type of the elements that a storage class of torch holds, by its dotted name."""
    return _STORAGES.get(name)


def _parameter(data: Any, requires_grad: bool = True, _hooks: Any = None, state: Any = None) -> Any:
    if isinstance(data, StoredTensor):
        return dataclasses.replace(data, requires_grad=bool(requires_grad), parameter=True, state=state)
    return data  # a rarer kind of tensor


def _buffer(data: Any, *_: Any) -> Any:
    return data


def _device(kind: Any, index: Any = None) -> torch.device:
    if not (isinstance(kind, str) and isinstance(index, int | None)):
        raise TypeError("a device whose name is no text")
    try:
        return torch.device(kind if index is None else f"{kind}:{int(index)}")
    except RuntimeError as error:
        raise ValueError(f"a device {kind[:40]!r}") from error


def _path(name: str) -> Callable[..., Any]:
    """Make paths; one that can be opened on another kind of system is a name here."""
    foreign = name in ("PosixPath", "WindowsPath") and NAMED[f"pathlib.{name}"] is not type(Path())
    kind: Callable[..., Any] = NAMED[f"pathlib.Pure{name}" if foreign else f"pathlib.{name}"]
    return kind


_BUILDERS: Final[dict[str, Callable[..., Any]]] = {
    "collections.OrderedDict": lambda pairs=(): OrderedDict(_table_of(pairs)),
    "collections.defaultdict": _default_dict,
    "collections.Counter": lambda pairs=(): Counter(_table_of(pairs)),
    "builtins.dict": lambda pairs=(): dict(_table_of(pairs)),
    "builtins.set": lambda items=(): set(items),
    "builtins.frozenset": lambda items=(): frozenset(items),
    "builtins.list": lambda items=(): list(items),
    "builtins.tuple": lambda items=(): tuple(items),
    "builtins.bytes": _bytes,
    "builtins.bytearray": lambda *args: bytearray(_bytes(*args)),
    "builtins.complex": lambda real, imaginary=0.0: complex(real, imaginary),
    "_codecs.encode": _encode,
    **{
        f"{module}.{name}": _path(name)
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    },
    **{f"torch.jit._pickle.build_{kind}list": lambda items: items for kind in ("int", "tensor", "double", "bool")},
    "torch.Size": torch.Size,
    "torch.device": _device,
    "torch.serialization._get_layout": _layout,
    "torch._utils._rebuild_tensor": stored_tensor,
    "torch._utils._rebuild_tensor_v2": stored_tensor,
    "torch._utils._rebuild_tensor_v3": stored_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    "torch.nn.parameter.Buffer": _buffer,
}
_TABLES: Final = {"collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict"}
_SETS: Final = {"builtins.set", "builtins.frozenset"}
# What builds rarer kinds of tensors, and what to call those.
_RARE: Final = {
    f"torch._utils._rebuild_{builder}": kind
    for builder, kind in {
        "sparse_tensor": "sparse",
        "qtensor": "quantized",
        "nested_tensor": "nested",
        "meta_tensor_no_storage": "meta",
        "wrapper_subclass": "wrapped",
        "device_tensor_from_numpy": "foreign",
        "device_tensor_from_cpu_tensor": "foreign",
    }.items()
}
_QUANTIZED: Final = "torch._utils._rebuild_qtensor"
_OF_TYPE: Final = "torch._tensor._rebuild_from_type_v2"
_INLINE: Final = "torch.storage._load_from_bytes"
_STORAGES: Final[dict[str, torch.dtype]] = {
    f"{module}.{kind}Storage": dtype
    for kind, dtype in {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
        "ComplexDouble": torch.complex128,
        "ComplexFloat": torch.complex64,
        "Untyped": torch.uint8,
        # Of quantized numbers, the whole ones that stand for them; torch counts bytes where these are smaller.
        "QInt8": torch.int8,
        "QUInt8": torch.uint8,
        "QInt32": torch.int32,
        "QUInt4x2": torch.uint8,
        "QUInt2x4": torch.uint8,
    }.items()
    for module in ("torch", "torch.cuda", "torch.storage")
}

_Step: TypeAlias = Callable[[_Machine, Any], object]

_STEPS: Final[dict[str, _Step]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda *_: None),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": lambda machine, _: machine.since_mark(),
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": _Machine.empty_set,
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "LIST": lambda machine, _: machine.push(machine.since_mark()),
    "DICT": lambda machine, _: machine.push(_pairs(machine.since_mark(), machine.budget)),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "FROZENSET": lambda machine, _: machine.push(frozenset(machine.budget.keys(machine.since_mark()))),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.last(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.last(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.last(3))),
    "APPEND": lambda machine, _: machine.extend(machine.last(1)),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda machine, _: machine.extend(machine.since_mark())),
    "SETITEM": lambda machine, _: machine.update(machine.last(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.since_mark()),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.stack_name,
    "INST": _Machine.instance,
    "OBJ": lambda machine, _: machine.object(*machine.since_mark()),
    "REDUCE": lambda machine, _: machine.reduce(new=False),
    "NEWOBJ": lambda machine, _: machine.reduce(new=True),
    "NEWOBJ_EX": _Machine.new_with_keywords,
    "BUILD": _Machine.build,
    "PERSID": _Machine.persistent,
    "BINPERSID": _Machine.storage,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), _Machine.extension),
    **dict.fromkeys(
        (
            *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
            *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
            *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        ),
        _Machine.push,
    ),
}

# By the byte that stands for each instruction: how to read its argument, and what to do.
_TABLE: Final[dict[bytes, tuple[Callable[[Any], Any] | None, _Step]]] = {
    opcode.code.encode("latin1"): (None if opcode.arg is None else opcode.arg.reader, _STEPS[opcode.name])
    for opcode in pickletools.opcodes
    if opcode.name in _STEPS
}
