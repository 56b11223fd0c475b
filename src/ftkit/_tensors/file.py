"""Safetensors files, streamed and verified: the only reader and writer of that format in ftkit.

A safetensors file is eight bytes that give the length of a JSON header, the header, and the raw
bytes of the tensors (https://huggingface.co/docs/safetensors/#format). Nothing in it can run. ftkit
adds two keys to the header's metadata, which other readers ignore: ``ftkit.tensors`` holds the
XXH3-128 digest of each tensor and the other names of tied ones, and ``ftkit.header`` holds the
digest of the header itself, taken with its own 32 digits as zeros. So every byte of the file is
covered, and a file whose one key is damaged still has the other to tell that it should have both.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Self, TypeVar

import torch
import xxhash
from torch import Tensor
from torch.nn.parameter import is_lazy

from ftkit._files import atomic_write, digest
from ftkit.errors import CheckpointError, DamagedFileError, did_you_mean

__all__ = ["TensorFile", "TensorInfo", "write_tensors"]

T = TypeVar("T")

_TENSORS_KEY: Final = "ftkit.tensors"
_HEADER_KEY: Final = "ftkit.header"
_HEADER_MARK: Final = b'"ftkit.header":"'
_NO_DIGEST: Final = "0" * 32
_MAX_HEADER: Final = 100_000_000  # the format's own limit
_CHUNK: Final = 1 << 20  # small enough to be hashed while it is still in the processor's cache
_HAND_OVER: Final = 8 * _CHUNK
_THREADS: Final = 2
_ALIGNMENT: Final = 64  # of the first tensor: copies between cache lines that lie alike are a third faster
_SIZE_LIMIT: Final = 1 << 62

_DTYPES: Final[dict[str, torch.dtype]] = {
    name: _dtype
    for name, attribute in {
        "BOOL": "bool",
        "U8": "uint8",
        "I8": "int8",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2": "float8_e5m2",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
        "F8_E8M0": "float8_e8m0fnu",
        "U16": "uint16",
        "I16": "int16",
        "F16": "float16",
        "BF16": "bfloat16",
        "U32": "uint32",
        "I32": "int32",
        "F32": "float32",
        "U64": "uint64",
        "I64": "int64",
        "F64": "float64",
        "C64": "complex64",
    }.items()
    if (_dtype := getattr(torch, attribute, None)) is not None
}
_DTYPE_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a file's header says about one tensor.

    Attributes:
        name: The name it is stored under. Looked up by another name of a tied tensor, it differs from that.
        dtype: Its type.
        shape: Its shape.
        nbytes: How many bytes it takes.
        offset: Where in the file they begin.
        digest: Their XXH3-128 digest, or ``None`` where the file holds none.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    nbytes: int
    offset: int
    digest: str | None


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    digests: bool = True,
) -> None:
    """Write a safetensors file that appears under its name whole, or not at all.

    Tensors are written straight from their memory; one that is on another device or not contiguous
    is copied by itself. Tensors that are the same memory (tied weights) are stored once.

    Args:
        path: The file.
        tensors: By name; any shape, any device but meta.
        metadata: Text to keep in the header. ``{"format": "pt"}`` is added, as other readers expect it.
        digests: Keep a digest of each tensor in the header, so that a reader notices damage.

    Raises:
        CheckpointError: A tensor can't be stored: it is on meta, sparse, or of a type the format lacks.
        FileWriteError: The disk is full, the folder read-only, ... What stood there is intact.

    Example:
        >>> import torch
        >>> from ftkit._tensors.file import TensorFile, write_tensors
        >>> write_tensors("w.safetensors", {"a": torch.arange(3), "b": torch.zeros(2, 2)}, {"note": "hi"})
        >>> with TensorFile("w.safetensors") as file:
        ...     file.metadata["note"], file.tensors["b"].shape, file.read(["a"])["a"].tolist()
        ('hi', (2, 2), [0, 1, 2])
    """
    stored, others = _tied_apart(tensors)
    begin = 0
    places: dict[str, tuple[int, int]] = {}
    # Wide types first keeps every tensor aligned without padding, as the format's own writer does.
    for name in sorted(stored, key=lambda name: -stored[name].dtype.itemsize):
        end = begin + stored[name].numel() * stored[name].dtype.itemsize
        places[name] = (begin, end)
        begin = end

    found = dict.fromkeys(stored, _NO_DIGEST)
    with atomic_write(path) as file:
        # The header comes first and holds the digests, which are known last: it is written twice.
        _write(file, _header(stored, places, others, found if digests else None, metadata or {}))
        sent = 0
        for name in places:
            state = xxhash.xxh3_128()
            for chunk in chunks(bytes_of(stored[name])):
                if digests:
                    state.update(chunk)
                _write(file, chunk)
                if file.tell() - sent >= _HAND_OVER:
                    sent = _hand_over(file, sent)
            found[name] = state.hexdigest()
        file.seek(0)
        _write(file, _header(stored, places, others, found if digests else None, metadata or {}))


def _tied_apart(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Split names into those to store, each with its tensor, and the other names of the same memory."""
    stored: dict[str, Tensor] = {}
    others: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    for name, tensor in tensors.items():
        if name == "__metadata__":
            raise CheckpointError(
                "A tensor can't be named '__metadata__': a safetensors file keeps that name for itself."
            )
        plain = _storable(name, tensor)
        key = (
            plain.device,
            plain.data_ptr(),
            plain.dtype,
            plain.shape,
            plain.stride(),
            plain.is_conj(),
            plain.is_neg(),
        )
        kept = first.setdefault(key, name) if plain.numel() else name
        if kept == name:
            stored[name] = plain
        else:
            others[name] = kept
    return stored, others


def _storable(name: str, tensor: Tensor) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise CheckpointError(f"{name!r} is a {type(tensor).__name__}, not a tensor: only tensors can be stored here.")
    if is_lazy(tensor):
        raise CheckpointError(f"{name!r} has no shape yet: run the model once on a batch before saving it.")
    if tensor.is_meta or type(tensor).__name__ == "FakeTensor":
        raise CheckpointError(
            f"{name!r} is on the meta device: it has a shape but no values. Load or initialize the model first."
        )
    if tensor.layout is not torch.strided or tensor.is_quantized:
        kind = "quantized" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
        raise CheckpointError(f"{name!r} is {kind}; a safetensors file holds dense tensors. Save its dense parts.")
    if type(tensor).__name__ == "DTensor":
        raise CheckpointError(f"{name!r} is spread over several ranks: gather it with full_tensor() before saving.")
    if tensor.dtype not in _DTYPE_NAMES:
        raise CheckpointError(
            f"{name!r} is {tensor.dtype}, which the safetensors format lacks. Convert it, as torch.view_as_real does."
        )
    return tensor.detach()


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor: its own memory if that is contiguous on the CPU, else a copy."""
    if not tensor.numel():
        return memoryview(b"")
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    flat = plain.as_strided((plain.numel(),), (1,))  # a side of one element may have any stride
    array: Any = flat.view(torch.uint8).numpy()  # numpy's types hide that it is a buffer before Python 3.12
    return memoryview(array)


def _header(
    stored: Mapping[str, Tensor],
    places: Mapping[str, tuple[int, int]],
    others: Mapping[str, str],
    digests: Mapping[str, str] | None,
    metadata: Mapping[str, str],
) -> bytes:
    """The first bytes of the file, up to the tensors; as long for any digests."""
    if reserved := metadata.keys() & {_TENSORS_KEY, _HEADER_KEY}:
        raise CheckpointError(f"The metadata key {min(reserved)!r} belongs to ftkit. Choose another name.")
    pairs: Iterable[tuple[object, object]] = metadata.items()
    if wrong := [key for key, value in pairs if not (isinstance(key, str) and isinstance(value, str))]:
        raise CheckpointError(f"Metadata must be text: {wrong[0]!r} is not. Use json.dumps for anything else.")
    own: dict[str, object] = {}
    if digests is not None:
        own["xxh3_128"] = digests
    if others:
        own["tied"] = others
    header: dict[str, object] = {
        "__metadata__": {"format": "pt", **metadata, _TENSORS_KEY: _compact(own), _HEADER_KEY: _NO_DIGEST}
    }
    for name, tensor in stored.items():
        header[name] = {"dtype": _DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": places[name]}
    try:
        raw = _compact(header).encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(
            "A tensor's name or the metadata holds broken Unicode, which no file can keep."
        ) from error
    raw += b" " * (-(8 + len(raw)) % _ALIGNMENT)
    if len(raw) > _MAX_HEADER:
        raise CheckpointError(
            f"Names and metadata take {len(raw):,} bytes; a safetensors file has room for {_MAX_HEADER:,}."
        )
    at = raw.index(_HEADER_MARK) + len(_HEADER_MARK)
    raw = raw[:at] + digest(raw).encode() + raw[at + 32 :]
    return len(raw).to_bytes(8, "little") + raw


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class TensorFile:
    """A safetensors file, opened for reading: its header at once, its tensors on demand.

    Opening checks the header against the file's size before anything is allocated. A file that
    ftkit wrote is verified while it is read; one of other origin has no digests to verify.

    Attributes:
        metadata: The text in the header, without ftkit's own keys.
        tensors: What the file holds, by name, the other names of tied tensors included.
        verified: Whether every tensor has a digest, so that any damage will be noticed.

    Raises:
        DamagedFileError: This is no whole safetensors file.
        CheckpointError: It can't be opened, or a tensor is of a type that this torch lacks.

    Example:
        >>> import torch
        >>> from ftkit._tensors.file import TensorFile, write_tensors
        >>> layer = torch.nn.Linear(2, 2)
        >>> write_tensors("layer.safetensors", layer.state_dict())
        >>> with TensorFile("layer.safetensors") as file:
        ...     file.read_into(dict(torch.nn.Linear(2, 2).named_parameters()))
        ...     file.verified
        True
    """

    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]
    verified: bool

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: str = os.fspath(path)
        try:
            self._file: BinaryIO = Path(path).open("rb", buffering=0)  # noqa: SIM115  (closed by __exit__)
        except OSError as error:
            raise CheckpointError(f"Can't open {self.path}: {error.strerror}.") from error
        try:
            raw = self._raw_header()
            self._parse(raw)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Leaving a ``with`` block does it too."""
        self._file.close()

    def read(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Return tensors as new CPU tensors, verified. Names of one tied tensor share one memory.

        Args:
            names: Which ones; all if left out.

        Raises:
            CheckpointError: The file has no tensor of that name.
            DamagedFileError: The bytes are not the ones that were written.
        """
        wanted = list(self.tensors if names is None else names)
        infos = {name: self._info(name) for name in wanted}
        fresh = {info.name: torch.empty(info.shape, dtype=info.dtype) for info in infos.values()}
        self.read_into(fresh)
        return {name: fresh[info.name] for name, info in infos.items()}

    def read_into(self, targets: Mapping[str, Tensor]) -> None:
        """Fill tensors in place with what the file holds under their names, verifying on the way.

        The bytes go straight into a target's memory where it is contiguous, on the CPU and of the
        stored type; else they are converted, one tensor at a time. Of several targets that are the
        same memory, the last one counts.

        Args:
            targets: Tensors to fill, by the names in the file. Gradients do not see the change.

        Raises:
            CheckpointError: A name is not in the file, or a shape differs. No target was touched.
            DamagedFileError: Some bytes are not the ones that were written. It names the tensor. The targets
                may hold part of the file by then: fill them again from an intact one.
        """
        wanted: dict[object, tuple[TensorInfo, Tensor]] = {}
        for name, target in targets.items():
            info = self._info(name)
            if tuple(target.shape) != info.shape:
                raise CheckpointError(
                    f"{name!r} has shape {list(info.shape)} in {self.path} and {list(target.shape)} in the target."
                )
            if target.is_meta:
                raise CheckpointError(f"{name!r} is on the meta device: it has no memory to read into. Use read().")
            memory = target.data_ptr() if target.layout is torch.strided and target.numel() else 0
            key = (target.device, memory, target.shape, target.stride()) if memory else name
            wanted[key] = info, target.detach()
        jobs = sorted(wanted.values(), key=lambda job: job[0].offset)
        try:
            in_threads(lambda job: self._fill(*job), jobs, sum(info.nbytes for info, _ in jobs))
        finally:
            for _, target in jobs:
                mark_changed(target)

    def verify(self) -> None:
        """Read every byte and compare the digests, keeping nothing.

        Raises:
            DamagedFileError: Some bytes are not the ones that were written, or the file has no digests.
        """
        if not self.verified:
            raise DamagedFileError(f"{self.path} holds no digests, so nobody can tell whether it is intact.")
        own = threading.local()

        def check(info: TensorInfo) -> None:
            if not hasattr(own, "buffer"):
                own.buffer = memoryview(bytearray(_CHUNK))
            state = xxhash.xxh3_128()
            for begin in range(0, info.nbytes, _CHUNK):
                chunk = own.buffer[: min(_CHUNK, info.nbytes - begin)]
                self._read(info, chunk, info.offset + begin)
                state.update(chunk)
            self._compare(info, state.hexdigest())

        jobs = sorted({info.name: info for info in self.tensors.values()}.values(), key=lambda info: info.offset)
        in_threads(check, jobs, sum(info.nbytes for info in jobs))

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            hint = did_you_mean(name, self.tensors)
            raise CheckpointError(f"{self.path} has no tensor {name!r}; it holds {len(self.tensors)}.{hint}")
        return self.tensors[name]

    def _fill(self, info: TensorInfo, target: Tensor) -> None:
        direct = takes_bytes(target, info.dtype)
        memory = target if direct else torch.empty(info.shape, dtype=info.dtype)
        state = xxhash.xxh3_128()
        position = info.offset
        for chunk in chunks(bytes_of(memory)):
            self._read(info, chunk, position)
            if info.digest is not None:
                state.update(chunk)
            position += len(chunk)
        self._compare(info, state.hexdigest())
        if not direct:
            target.copy_(memory)

    def _compare(self, info: TensorInfo, found: str) -> None:
        if info.digest is not None and info.digest != found:
            raise DamagedFileError(
                f"{self.path} is damaged: the bytes of {info.name!r} are not the ones that were written "
                f"(digest {found}, expected {info.digest}). Take another copy of the file."
            )

    def _read(self, info: TensorInfo, into: memoryview, position: int) -> None:
        try:
            read_at(self._file, into, position)
        except EOFError as error:
            raise DamagedFileError(
                f"{self.path} was cut short while it was read: {info.name!r} is not whole."
            ) from error
        except OSError as error:
            raise DamagedFileError(
                f"{self.path} can't be read at {info.name!r}: {error.strerror}. Take another copy of the file."
            ) from error

    def _raw_header(self) -> bytes:
        self._size = os.fstat(self._file.fileno()).st_size
        if self._size < 8:
            raise DamagedFileError(f"{self.path} has {self._size} bytes, too few for a safetensors file.")
        length = int.from_bytes(self._file.read(8), "little")
        if length > min(self._size - 8, _MAX_HEADER):
            raise DamagedFileError(
                f"{self.path} is no whole safetensors file: it declares a header of {length:,} bytes, "
                f"and has {self._size:,} bytes in all."
            )
        raw = bytearray()
        while len(raw) < length:
            more = self._file.read(length - len(raw))
            if not more:
                raise DamagedFileError(f"{self.path} was cut short while its header was read.")
            raw += more
        self._start = 8 + length
        return bytes(raw)

    def _parse(self, raw: bytes) -> None:
        try:
            header = json.loads(raw.decode(), object_pairs_hook=_unique)
            if not isinstance(header, dict):
                raise ValueError("it is no table")
            metadata = header.pop("__metadata__", {})
            digests, others = self._own(raw, metadata) if _is_text_table(metadata) else ({}, {})
        except (ValueError, RecursionError) as error:  # a decoding error is a ValueError too
            raise DamagedFileError(f"{self.path} is no safetensors file, or its header is damaged: {error}.") from error
        if not _is_text_table(metadata):
            raise DamagedFileError(f"{self.path} is damaged: its metadata is no table of text.")
        stored: dict[str, TensorInfo] = {}
        for name, entry in header.items():
            stored[name] = self._entry(name, entry, digests.get(name))
        self._cover(stored.values())
        if digests and digests.keys() != stored.keys():
            raise DamagedFileError(f"{self.path} is damaged: its digests belong to other tensors.")
        if lost := [name for name, kept in others.items() if kept not in stored or name in stored]:
            raise DamagedFileError(f"{self.path} is damaged: {lost[0]!r} is tied to a tensor that is not there.")
        self.metadata = metadata
        self.tensors = stored | {name: stored[kept] for name, kept in others.items()}
        self.verified = bool(digests) or not stored

    def _own(self, raw: bytes, metadata: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
        """Take ftkit's two keys out of the metadata: digests and other names, the header verified."""
        own, expected = metadata.pop(_TENSORS_KEY, None), metadata.pop(_HEADER_KEY, None)
        if own is None and expected is None:
            return {}, {}
        at = raw.find(_HEADER_MARK) + len(_HEADER_MARK)
        zeroed = raw[:at] + _NO_DIGEST.encode() + raw[at + 32 :]
        if own is None or expected is None or raw[at : at + 32] != expected.encode() or digest(zeroed) != expected:
            raise DamagedFileError(
                f"The header of {self.path} is not the one that ftkit wrote: the file is damaged, or another program "
                f"rewrote it and kept the metadata keys {_TENSORS_KEY!r} and {_HEADER_KEY!r}, which it must drop."
            )
        parts = json.loads(own)
        if not (isinstance(parts, dict) and all(map(_is_text_table, parts.values()))):
            raise DamagedFileError(f"{self.path} is damaged: its metadata under {_TENSORS_KEY!r} makes no sense.")
        return parts.get("xxh3_128", {}), parts.get("tied", {})

    def _entry(self, name: str, entry: Any, found: str | None) -> TensorInfo:
        match entry:
            case {"dtype": str(dtype_name), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if (
                len(entry) == 3
            ):
                pass
            case _:
                raise DamagedFileError(f"{self.path} is damaged: its header describes {name!r} as {str(entry)[:100]}.")
        if not all(type(side) is int and side >= 0 for side in shape):
            raise DamagedFileError(f"{self.path} is damaged: {name!r} has the shape {str(shape)[:100]}.")
        dtype = _DTYPES.get(dtype_name)
        if dtype is None:
            raise CheckpointError(
                f"{name!r} in {self.path} is of type {dtype_name[:40]!r}, which is none of {', '.join(_DTYPES)}."
            )
        nbytes = math.prod(shape) * dtype.itemsize
        # An empty tensor may still declare sides whose product no tensor can have.
        if math.prod(side or 1 for side in shape) * dtype.itemsize >= _SIZE_LIMIT or end - begin != nbytes:
            raise DamagedFileError(
                f"{self.path} is damaged: {name!r} is declared as {dtype_name} of shape {str(shape)[:100]}, "
                f"and at the bytes {begin:,} to {end:,}."
            )
        return TensorInfo(name, dtype, tuple(shape), nbytes, self._start + begin, found)

    def _cover(self, infos: Iterable[TensorInfo]) -> None:
        """Check that the tensors lie end to end up to the end of the file, as the format demands."""
        position = self._start
        for info in sorted(infos, key=lambda info: (info.offset, info.nbytes)):
            if info.offset != position:
                what = "overlaps another tensor" if info.offset < position else "lies behind a gap"
                raise DamagedFileError(f"{self.path} is damaged: {info.name!r} {what}.")
            position += info.nbytes
        if position != self._size:
            raise DamagedFileError(
                f"{self.path} has {self._size:,} bytes where its header declares {position:,}: "
                f"{'it was cut short' if self._size < position else 'something was added'}."
            )


_SEEKING = threading.Lock()  # for systems without positional reads


def _is_text_table(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(entry, str) for entry in value.values())


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands twice in it")
    return table


def takes_bytes(target: Tensor, dtype: torch.dtype) -> bool:
    """Tell whether a tensor's memory can be filled with the stored bytes of a contiguous tensor as they are."""
    plain = not (target.is_conj() or target.is_neg())
    return target.device.type == "cpu" and target.dtype == dtype and target.is_contiguous() and plain


def mark_changed(target: Tensor) -> None:
    """Tell autograd of a change behind its back, lest a backward pass use the new values for an old forward."""
    if not target.is_inference():
        torch.autograd.graph.increment_version(target)


def read_at(file: BinaryIO, into: memoryview, position: int) -> None:
    """Fill ``into`` with the bytes at a position of a raw file, from any thread.

    Raises:
        EOFError: The file ends before.
    """
    done = 0
    while done < len(into):
        if hasattr(os, "preadv"):
            count = os.preadv(file.fileno(), [into[done:]], position + done)
        else:
            with _SEEKING:
                file.seek(position + done)
                count = file.readinto(into[done:]) or 0  # type: ignore[attr-defined]  # a raw file has it
        if count == 0:
            raise EOFError
        done += count


def chunks(data: memoryview) -> Iterable[memoryview]:
    """Cut bytes into pieces that the processor's cache holds."""
    return (data[begin : begin + _CHUNK] for begin in range(0, len(data), _CHUNK))


def _write(file: BinaryIO, data: bytes | memoryview) -> None:
    """Write all of some bytes; a raw file may take a part at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _hand_over(file: BinaryIO, begin: int) -> int:
    """Let the disk begin with all that was written since ``begin``, without waiting for it; return where that ends.

    Otherwise it would do all of the work at the end, while nothing is left to be digested.
    """
    file.flush()
    end = file.tell()
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # a hint: not every file system takes it
            os.posix_fadvise(file.fileno(), begin, end - begin, os.POSIX_FADV_DONTNEED)
    return end


def in_threads(work: Callable[[T], None], jobs: Iterable[T], nbytes: int) -> None:
    """Do all jobs, or raise the first error when none is running any more."""
    if nbytes <= _CHUNK:  # starting threads would take longer
        for job in jobs:
            work(job)
        return
    queue = deque(jobs)
    errors: list[BaseException] = []

    def worker() -> None:
        while queue and not errors:
            try:
                job = queue.popleft()
            except IndexError:  # the other thread took the last one
                return
            try:
                work(job)
            except BaseException as error:  # noqa: BLE001  (raised again below, in the caller's thread)
                errors.append(error)

    # Plain threads on one queue: an executor wakes the caller for every job, at a quarter of the speed.
    threads = [threading.Thread(target=worker, name="ftkit-files") for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException as error:  # an interrupt: no thread may write into the targets after this returns
        errors.append(error)
        for thread in threads:
            thread.join()
        raise
    if errors:
        raise errors[0]
