"""Samples of a data set: which part of one the model takes, what tells one from another, and how the rest is kept."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import math
import random
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, default_collate

from ftkit._arguments import came
from ftkit._models.contents import bytes_of
from ftkit._precompute.stands import own_forward
from ftkit._tensors.bytes import DTYPES
from ftkit._wording import cause, some
from ftkit.errors import FtkitError

_PACKAGES = {"torch", "torchvision", "PIL", "builtins", "collections", "enum"}
_ANY = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
_KINDS = {int: torch.int64, float: torch.float64, bool: torch.bool}
_SHARED = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64)
_SAME_AS = {torch.empty(0, dtype=one).numpy().dtype: one for one in (*_SHARED, torch.bool)}


def call_of(model: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a model is called with, of a batch.

    That is what its ``forward`` takes by name of a dict, or the first items of a tuple, as many as it requires; a first
    item that is a tuple or dict itself has all inputs.
    """
    if dataclasses.is_dataclass(batch) and not isinstance(batch, Mapping):
        batch = {one.name: getattr(batch, one.name) for one in dataclasses.fields(batch)}
    takes = {name: one for name, one in takes_of(model).parameters.items() if one.kind not in _ANY}
    if isinstance(batch, Mapping):
        taken = (torch.Tensor, bool, int, float)  # beside tensors, what a collate function of one's own adds to them
        named = {name: value for name, value in batch.items() if name in takes and isinstance(value, taken)}
        if not any(isinstance(value, torch.Tensor) for value in named.values()):
            raise FtkitError(
                f"A sample that is a dict must have what the forward() of the {type(model).__name__} takes by name "
                f"({some(list(takes), 6)}), as tensors; this one has {some(list(map(str, batch)), 6)}."
            )
        return (), named
    if not isinstance(batch, list | tuple):
        return _tensors([batch]), {}
    if batch and isinstance(batch[0], Mapping):
        return (), call_of(model, batch[0])[1]
    if batch and isinstance(batch[0], list | tuple):
        inputs = _tensors(list(batch[0]))
        try:
            takes_of(model).bind(*inputs)
        except TypeError as error:
            shapes = some([list(one.shape) for one in inputs], 4)
            raise FtkitError(
                f"The first item of a batch has {len(inputs)} tensors, each of which would be an input, where the "
                f"forward() of the {type(model).__name__} takes {some(list(takes), 6)}: tensors of {shapes}. Samples "
                "have to come as one tensor, padded or cropped to one size and stacked. A model that takes a list of "
                "images, as detection models do, can't be computed once: train without precompute."
            ) from error
        return inputs, {}
    return _tensors(list(batch[: _required(takes.values())])), {}


def takes_of(model: nn.Module) -> inspect.Signature:
    """What the forward of a model takes, whatever stands in its place for a while.

    What it takes as ``**kwargs`` it passes on if it is that of a wrapper, such as peft's: a module around one other.
    """
    takes = inspect.signature(own_forward(model) or functools.partial(type(model).forward, model))
    kinds = {one.kind for one in takes.parameters.values()}
    inside = [one for one in model.children() if next(one.parameters(), None) is not None]
    if _ANY[1] not in kinds or len(inside) != 1 or type(inside[0]).forward is nn.Module.forward:
        return takes
    wrapped = takes_of(inside[0])
    if kinds == {*_ANY}:
        return wrapped
    if _ANY[0] in kinds:
        return takes
    more = [
        one.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, one in wrapped.parameters.items()
        if name not in takes.parameters and one.kind not in (*_ANY, inspect.Parameter.POSITIONAL_ONLY)
    ]
    *own, rest = takes.parameters.values()
    return takes.replace(parameters=[*own, *more, rest])


def _required(parameters: Iterable[inspect.Parameter]) -> int:
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return max(1, sum(one.kind in by_position and one.default is one.empty for one in parameters))


def _tensors(values: list[Any]) -> tuple[Any, ...]:
    if values and all(isinstance(one, torch.Tensor) for one in values):
        return tuple(values)
    raise FtkitError(
        "A sample must be a tensor, a tuple with the model's inputs first, or a dict of what its forward() takes by "
        f"name; this one comes as {came(next((one for one in values if not isinstance(one, torch.Tensor)), values))}."
    )


@dataclass(frozen=True)
class Form:
    """How a sample is put together.

    Attributes:
        names: The names of a dict, or the positions of a tuple; empty for a sample that is the input itself.
        inside: Those of them in whose place a row goes.
        inner: What the first one is itself: "", "list", or the name of one of its inputs.
        maker: The class of a named tuple.
    """

    names: tuple[Any, ...]
    inside: tuple[Any, ...]
    inner: str = ""
    maker: Any = None

    @classmethod
    def of(cls, sample: Any, call: Any, stays: set[int]) -> Form:
        """The form of a sample, of whose inputs (as :func:`call_of` gives them) some stay beside a row.

        Raises:
            FtkitError: Those are inside of the first item of a tuple.
        """
        args, kwargs = call
        if isinstance(sample, Mapping):
            return cls(tuple(sample), tuple(name for at, name in enumerate(kwargs) if at not in stays))
        if not isinstance(sample, list | tuple):
            return cls((), ())
        places = tuple(range(len(sample)))
        if not isinstance(sample[0], Mapping | list | tuple):
            inside = tuple(at for at in range(len(args)) if at not in stays)
            if stays and len(inside) > 1:
                raise FtkitError(
                    "Of the model's inputs, the frozen part takes several, and others not. Let a sample be a dict of "
                    "what forward() takes by name."
                )
            return cls(places, inside, maker=type(sample) if hasattr(sample, "_make") else None)
        if stays:
            raise FtkitError(
                "The first item of a sample has inputs on which nothing frozen depends, such as labels. Let the sample "
                "be a dict with all inputs, or a tuple of them."
            )
        return cls(places, (0,), next(iter(kwargs)) if kwargs else "list")

    def rest(self, sample: Any) -> list[Any]:
        """What a sample has beside the model's inputs.

        Raises:
            FtkitError: It has another form.
        """
        if not self.names:
            return []
        if isinstance(sample, Mapping):
            same = sample.keys() == set(self.names)
        else:
            same = isinstance(sample, list | tuple) and tuple(range(len(sample))) == self.names
        if not same:
            has = some(list(sample), 6) if isinstance(sample, Mapping) else came(sample)
            raise FtkitError(f"Samples differ: one has {some(self.names, 6)}, another one {has}. Give all the same.")
        return [sample[name] for name in self.names if name not in self.inside]

    def joined(self, row: Any, others: list[Any]) -> Any:
        """A sample, or a batch of them, with a row in the place of the inputs."""
        if not self.names:
            return row
        left = iter(others)
        first = [row] if self.inner == "list" else {self.inner: row} if self.inner else row
        values = {
            name: first if name == self.inside[0] else next(left) for name in self.names if name not in self.inside[1:]
        }
        if any(isinstance(name, str) for name in self.names):
            return values
        return self.maker._make(values.values()) if self.maker and len(self.inside) == 1 else [*values.values()]

    def call(self, call: Any, row: Any) -> Any:
        """What the model is called with in the place of ``call``, with a row."""
        args, kwargs = call
        if args:
            inside = tuple(range(len(args))) if self.inner or not self.names else self.inside
            return tuple(row if at == inside[0] else one for at, one in enumerate(args) if at not in inside[1:]), {}
        replaced = set(kwargs) if self.inner else set(self.inside)
        first = next(name for name in kwargs if name in replaced)
        return (), {first: row, **{name: value for name, value in kwargs.items() if name not in replaced}}


def kind_of(value: Any) -> list[Any]:
    """How a value beside the input is kept: its kind, type and shape, ready for JSON.

    Raises:
        FtkitError: It can't be.
    """
    for kind, dtype in _KINDS.items():
        if type(value) is kind:
            return [kind.__name__, str(dtype), []]
    if isinstance(value, torch.Tensor):
        return ["tensor", str(value.dtype), list(value.shape)]
    if isinstance(value, np.ndarray | np.generic) and value.dtype in _SAME_AS:
        return ["array" if isinstance(value, np.ndarray) else "scalar", str(_SAME_AS[value.dtype]), list(value.shape)]
    raise FtkitError(
        f"What a sample has beside the model's input must be numbers or tensors, all of one shape, not {came(value)}: "
        "have the data set leave it out, or return it as a number."
    )


def rest_bytes(values: list[Any], kinds: list[list[Any]]) -> bytes:
    """The bytes of what a sample has beside the input."""
    if (found := [kind_of(value) for value in values]) != kinds:
        raise FtkitError(f"Samples differ: beside the input one has {found}, another one {kinds}. Give all the same.")
    return b"".join(
        bytes(bytes_of(value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=_dtype(kind[1]))))
        for value, kind in zip(values, kinds, strict=True)
    )


def rest_of(data: bytes, kinds: list[list[Any]]) -> list[Any]:
    """The values of which :func:`rest_bytes` made bytes."""
    values: list[Any] = []
    at = 0
    for kind, name, shape in kinds:
        dtype = _dtype(name)
        count = int(np.prod(shape, dtype=np.int64))
        end = at + count * dtype.itemsize
        raw = (
            torch.frombuffer(bytearray(data[at:end]), dtype=torch.uint8) if count else torch.empty(0, dtype=torch.uint8)
        )
        tensor = raw.view(dtype).reshape(shape)
        at = end
        if kind == "tensor":
            values.append(tensor)
        elif kind in ("array", "scalar"):
            values.append(tensor.numpy() if kind == "array" else tensor.numpy()[()])
        else:
            values.append(tensor.item())
    return values


def rests_of(data: np.ndarray[Any, Any], kinds: list[list[Any]]) -> list[torch.Tensor]:
    """The values of which :func:`rest_bytes` made bytes, for many samples: a tensor of each kind."""
    values, at = [], 0
    for _, name, shape in kinds:
        dtype = _dtype(name)
        end = at + math.prod(shape) * dtype.itemsize
        whole = torch.from_numpy(data[:, at:end].reshape(-1)).view(dtype)
        values.append(whole.view(len(data), *shape))
        at = end
    return values


def rest_size(kinds: list[list[Any]]) -> int:
    """How many bytes :func:`rest_bytes` makes."""
    return sum(int(np.prod(shape, dtype=np.int64)) * _dtype(name).itemsize for _, name, shape in kinds)


def _dtype(name: str) -> torch.dtype:
    return DTYPES[name.removeprefix("torch.")]


def sample_digest(sample: Any) -> bytes:
    """What tells a sample from any other."""
    hasher = xxhash.xxh3_128()
    _put(sample, hasher)
    return hasher.digest()


def digest_of_all(digests: list[bytes]) -> str:
    """What tells samples, in their order, from any others."""
    return xxhash.xxh3_128_hexdigest(b"".join(digests))


def _put(value: Any, hasher: Any) -> None:
    if isinstance(value, torch.Tensor):
        hasher.update(f"{value.dtype}{list(value.shape)}".encode())
        hasher.update(bytes_of(value))
    elif isinstance(value, np.ndarray | np.generic):
        hasher.update(f"{value.dtype}{list(value.shape)}".encode())
        hasher.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        for name, one in value.items():
            hasher.update(f"{name}:".encode())
            _put(one, hasher)
    elif isinstance(value, list | tuple):
        hasher.update(f"({len(value)}".encode())
        for one in value:
            _put(one, hasher)
    elif hasattr(value, "__array_interface__"):  # an image of Pillow, whose repr says where it lies
        _put(np.asarray(value), hasher)
    else:
        hasher.update(f"{type(value).__name__}{value!r}".encode())


class Gather:
    """Collates samples for the first pass, along with the digest and the rest of each."""

    def __init__(self, form: Form, kinds: list[list[Any]]) -> None:
        self._form, self._kinds = form, kinds

    def __call__(self, samples: list[Any]) -> Any:
        digests = [sample_digest(one) for one in samples]
        others = [rest_bytes(self._form.rest(one), self._kinds) for one in samples]
        return digests, others, collated(samples)


class Digests:
    """Collates samples to their digests."""

    def __call__(self, samples: list[Any]) -> list[bytes]:
        return [sample_digest(one) for one in samples]


def collated(samples: list[Any]) -> Any:
    """A batch.

    Raises:
        FtkitError: The samples have different shapes.
    """
    try:
        return default_collate(samples)
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
        first = cause(error).splitlines()[0][:200]
        raise FtkitError(
            f"torch can't put these samples into one batch: {first}. Pad or crop all to one size; or pass your own "
            "DataLoader in the place of the data set, and samples are known by their content."
        ) from error


class Views(Dataset[Any]):
    """A data set of several draws of each sample of another one: the same ones each time."""

    def __init__(self, dataset: Any, views: int) -> None:
        self.dataset, self.views = dataset, views

    def __len__(self) -> int:
        return len(self.dataset) * self.views

    def __getitem__(self, index: int) -> Any:
        at, view = divmod(index, self.views)
        seed = xxhash.xxh32_intdigest(f"{at} {view}".encode())
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
        try:
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            return self.dataset[at]
        finally:
            torch.set_rng_state(before[0])
            random.setstate(before[1])
            np.random.set_state(before[2])  # noqa: NPY002


def draw_twice(dataset: Any, indices: Iterable[int]) -> list[Any]:
    """Samples of a data set that is seen to give the same again.

    Raises:
        FtkitError: It draws random numbers; or it does not, though several views of each sample are asked for.
    """
    samples, drew = [], False
    for index in indices:
        drew |= isinstance(dataset, Views) and _draws(dataset.dataset, index // dataset.views)
        before = _generators()
        one = _taken(dataset, index)
        if before != _generators() or sample_digest(one) != sample_digest(_taken(dataset, index)):
            if isinstance(dataset, Views):
                raise FtkitError(
                    f"Sample {index // dataset.views} of the data set is drawn with a generator of its own, so its "
                    "views can't be drawn again. Let the transform draw from torch, random or numpy.random, or train "
                    "without precompute()."
                )
            raise FtkitError(
                f"Sample {index} of the data set is drawn at random: its transform augments. One draw would be used in "
                "every epoch. Say what to keep: views=4 keeps four draws of each sample and uses them in turn; or pass "
                "a data set without random transforms; or train without precompute()."
            )
        samples.append(one)
    if isinstance(dataset, Views) and not drew:
        raise FtkitError(
            f"views={dataset.views} keeps several draws of each sample, and this data set gives the same each time. "
            "Leave views out."
        )
    return samples


def _draws(dataset: Any, index: int) -> bool:
    before = _generators()
    _taken(dataset, index)
    return bool(before != _generators())


def _taken(dataset: Any, index: int) -> Any:
    try:
        return dataset[index]
    except FtkitError:
        raise
    except Exception as error:
        raise FtkitError(f"Sample {index} of the data set can't be read: {cause(error)}.") from error


def _generators() -> Any:
    numbers: Any = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), numbers[1].tobytes(), numbers[2]


# ---------------- what tells one data set from another


class _Unknown(Exception):  # noqa: N818
    """Something in a data set can't be compared with what it was in another process."""


def fingerprint(dataset: Any) -> str | None:
    """What tells this data set from others without reading it: files by size and time, tensors by their bytes.

    None if it has to be read to know: it is of a class that may take its samples from anywhere.
    """
    hasher = hashlib.blake2b(digest_size=16)
    for package in ("torch", "torchvision", "PIL"):
        hasher.update(f"{package} {getattr(sys.modules.get(package), '__version__', '')}".encode())
    try:
        _walk(dataset, hasher, {}, top=True)
    except _Unknown:
        return None
    return hasher.hexdigest()


def _walk(value: Any, hasher: Any, seen: dict[int, Any], *, top: bool = False) -> None:
    """Take all in that a data set contains."""
    if isinstance(value, type(None) | bool | int | float | complex):
        hasher.update(f"{type(value).__name__}{value!r};".encode())
        return
    if isinstance(value, str | bytes | Path):
        hasher.update(repr(value).encode())
        _file(value, hasher)
        return
    if id(value) in seen:
        hasher.update(f"again {seen[id(value)][0]};".encode())
        return
    seen[id(value)] = len(seen), value
    hasher.update(f"<{type(value).__module__}.{type(value).__qualname__}".encode())
    if top:
        _walk_dataset(value, hasher, seen)
    elif isinstance(value, torch.Tensor):
        if type(value) not in (torch.Tensor, nn.Parameter) or value.layout is not torch.strided or value.is_quantized:
            raise _Unknown
        hasher.update(f"{value.dtype}{list(value.shape)}".encode())
        hasher.update(xxhash.xxh3_128_digest(bytes_of(value)))
    elif isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufcSU":
        hasher.update(f"{value.dtype}{list(value.shape)}".encode())
        hasher.update(xxhash.xxh3_128_digest(np.ascontiguousarray(value).tobytes()))
    elif type(value) in (list, tuple):
        for one in value:
            _walk(one, hasher, seen)
    elif type(value) in (set, frozenset):
        hasher.update(repr(sorted(map(repr, value))).encode())
    elif isinstance(value, dict):
        for name, one in value.items():
            _walk(name, hasher, seen)
            _walk(one, hasher, seen)
    elif isinstance(value, torch.dtype | torch.device | np.dtype):
        hasher.update(repr(value).encode())
    else:
        _walk_code(value, hasher, seen)
    hasher.update(b">")


def _walk_dataset(value: Any, hasher: Any, seen: dict[int, Any]) -> None:
    """Take in a data set of a class that is known to take its samples from what it contains alone."""
    torchvision = sys.modules.get("torchvision.datasets")
    folders = (torchvision.DatasetFolder, torchvision.ImageFolder) if torchvision else ()
    if type(value) in (list, tuple):
        for one in value:
            _walk(one, hasher, seen)
    elif type(value) is Views:
        _walk(value.views, hasher, seen)
        _walk(value.dataset, hasher, seen, top=True)
    elif type(value) is ConcatDataset:
        for one in value.datasets:
            _walk(one, hasher, seen, top=True)
    elif type(value) is Subset:
        _walk(list(map(int, value.indices)), hasher, seen)
        _walk(value.dataset, hasher, seen, top=True)
    elif type(value) is TensorDataset:
        _walk(value.tensors, hasher, seen)
    elif type(value) in folders:
        _walk(vars(value), hasher, seen)
    else:
        raise _Unknown


def _file(path: str | bytes | Path, hasher: Any) -> None:
    try:
        found = Path(path.decode() if isinstance(path, bytes) else path).stat()
    except (OSError, ValueError):
        return
    hasher.update(f"{found.st_size} {found.st_mtime_ns}".encode())


def _walk_code(value: Any, hasher: Any, seen: dict[int, Any]) -> None:
    """Take in transforms and loaders: functions by their code, objects by their class and attributes."""
    if isinstance(value, functools.partial):
        _walk((value.func, value.args, value.keywords), hasher, seen)
    elif isinstance(value, types.MethodType):
        _walk((value.__func__, value.__self__), hasher, seen)
    elif isinstance(value, types.FunctionType):
        if _of_a_package(value):
            hasher.update(f"{value.__module__}.{value.__qualname__}".encode())
            return
        _walk_function(value, hasher, seen)
    elif isinstance(value, types.BuiltinFunctionType | type):
        hasher.update(f"{value.__module__}.{value.__qualname__}".encode())
        if isinstance(value, type) and not _of_a_package(value):
            raise _Unknown
    elif isinstance(value, nn.Module | object) and _of_a_package(type(value)) and hasattr(value, "__dict__"):
        own = vars(value)
        _walk({name: one for name, one in own.items() if not name.startswith("_backward")}, hasher, seen)
    else:
        raise _Unknown


def _of_a_package(thing: Any) -> bool:
    """Whether a class or function comes with torch, torchvision or Python, whose version is known."""
    return str(thing.__module__).partition(".")[0] in _PACKAGES


def _walk_function(value: Callable[..., Any], hasher: Any, seen: dict[int, Any]) -> None:
    code = value.__code__
    if code.co_names:  # it reads globals, or attributes, which may lead anywhere
        raise _Unknown
    hasher.update(code.co_code)
    cells = [cell.cell_contents for cell in value.__closure__ or ()]
    consts = [one for one in code.co_consts if not isinstance(one, types.CodeType)]
    if len(consts) != len(code.co_consts):
        raise _Unknown
    _walk([consts, value.__defaults__, cells], hasher, seen)
