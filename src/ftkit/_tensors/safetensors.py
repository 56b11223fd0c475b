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
import io
import json
import math
import os
import threading
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO, Final

import torch
import xxhash
from torch import Tensor
from torch.nn.parameter import is_lazy

from ftkit._files import atomic_write, digest
from ftkit._models.contents import bytes_of
from ftkit._tensors.budget import MAX_SIDES
from ftkit._tensors.bytes import CHUNK, chunks, memory_of, rare_kind, read_at, takes_bytes
from ftkit._tensors.file import TensorFile, TensorInfo
from ftkit.errors import CheckpointError, DamagedFileError

_TENSORS_KEY: Final = "ftkit.tensors"
_HEADER_KEY: Final = "ftkit.header"
_HEADER_MARK: Final = b'"ftkit.header":"'
_NO_DIGEST: Final = "0" * 32
_MAX_HEADER: Final = 100_000_000  # the format's own limit
_HAND_OVER: Final = 8 * CHUNK
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


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    digests: bool = True,
) -> None:
    """Write a safetensors file that appears under its name only once it is complete.

    Tensors are written straight from their memory; one that is on another device or not contiguous
    is copied on its own. Tensors that share memory (tied weights) are stored once.

    Args:
        path: The file.
        tensors: By name; any shape, any device but meta.
        metadata: Text to keep in the header. ``{"format": "pt"}`` is added, as other readers expect it.
        digests: Keep a digest of each tensor in the header, so that a reader notices damage.

    Raises:
        CheckpointError: A tensor can't be stored: it is on meta, sparse, or of a dtype the format lacks.
        FileWriteError: The disk is full, the folder read-only, ... Any existing file is left intact.

    Example:
        >>> import torch
        >>> from ftkit._formats import open_file
        >>> from ftkit._tensors.safetensors import write_tensors
        >>> write_tensors("w.safetensors", {"a": torch.arange(3), "b": torch.zeros(2, 2)}, {"note": "hi"})
        >>> with open_file("w.safetensors") as file:
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
    first: dict[object, str] = {}
    for name, tensor in tensors.items():
        if name == "__metadata__":
            raise CheckpointError("A tensor can't be named '__metadata__': safetensors files reserve that name.")
        plain = _storable(name, tensor)
        kept = first.setdefault(memory_of(plain) or name, name)
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
    refuse_empty({name: tensor})
    if kind := rare_kind(tensor):
        raise CheckpointError(
            f"{name!r} is {kind}; a safetensors file contains only dense tensors. Save its dense parts."
        )
    if type(tensor).__name__ == "DTensor":
        raise CheckpointError(f"{name!r} is sharded over several ranks: gather it with full_tensor() before saving.")
    if tensor.dtype not in _DTYPE_NAMES:
        raise CheckpointError(
            f"{name!r} is {tensor.dtype}, which safetensors can't store. Convert it, as torch.view_as_real does."
        )
    return tensor.detach()


def refuse_empty(tensors: Mapping[str, object]) -> None:
    """Refuse to save tensors that have no values.

    Raises:
        CheckpointError: One is on the meta device.
    """
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and (tensor.is_meta or type(tensor).__name__ == "FakeTensor"):
            raise CheckpointError(
                f"{name!r} is on the meta device: it has a shape but no values. Load or initialize the model first."
            )


def _header(
    stored: Mapping[str, Tensor],
    places: Mapping[str, tuple[int, int]],
    others: Mapping[str, str],
    digests: Mapping[str, str] | None,
    metadata: Mapping[str, str],
) -> bytes:
    """The first bytes of the file, up to the tensors; as long for any digests."""
    if reserved := metadata.keys() & {_TENSORS_KEY, _HEADER_KEY}:
        raise CheckpointError(f"The metadata key {min(reserved)!r} is reserved for ftkit. Choose another name.")
    pairs: Iterable[tuple[object, object]] = metadata.items()
    if wrong := [key for key, value in pairs if not (isinstance(key, str) and isinstance(value, str))]:
        raise CheckpointError(f"Metadata must be strings: {wrong[0]!r} is not one. Use json.dumps for anything else.")
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
            "A tensor's name or the metadata contains invalid Unicode, which can't be saved."
        ) from error
    raw += b" " * (-(8 + len(raw)) % _ALIGNMENT)
    if len(raw) > _MAX_HEADER:
        raise CheckpointError(
            f"Names and metadata take {len(raw):,} bytes; a safetensors file has room for {_MAX_HEADER:,} at most."
        )
    at = raw.index(_HEADER_MARK) + len(_HEADER_MARK)
    raw = raw[:at] + digest(raw).encode() + raw[at + 32 :]
    return len(raw).to_bytes(8, "little") + raw


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class SafetensorsFile(TensorFile):
    """A safetensors file.

    Its header is checked against its size before anything is allocated. A file that ftkit wrote is verified while it is
    read; one of other origin has no digests to verify.

    Raises:
        DamagedFileError: This is not a complete safetensors file.
        CheckpointError: A tensor is of a type that this torch lacks.

    Example:
        >>> import torch
        >>> from ftkit._formats import open_file
        >>> from ftkit._tensors.safetensors import write_tensors
        >>> layer = torch.nn.Linear(2, 2)
        >>> write_tensors("layer.safetensors", layer.state_dict())
        >>> with open_file("layer.safetensors") as file:
        ...     file.read_into(dict(torch.nn.Linear(2, 2).named_parameters()))
        ...     file.verified
        True
    """

    format = "safetensors"

    def __init__(self, file: io.FileIO) -> None:
        super().__init__(file)
        self._scratch = threading.local()
        self._parse(self._raw_header())

    def fill(self, info: TensorInfo, target: Tensor) -> None:
        """Fill a tensor of the same shape in place; its digest is compared."""
        direct = takes_bytes(target, info.dtype)
        memory = target if direct else torch.empty(info.shape, dtype=info.dtype)
        self._read(info, chunks(bytes_of(memory)))
        if not direct:
            target.copy_(memory)

    def check(self, info: TensorInfo) -> None:
        """Compare the digest of a tensor and keep nothing."""
        if not hasattr(self._scratch, "buffer"):
            self._scratch.buffer = memoryview(bytearray(CHUNK))
        sizes = (min(CHUNK, info.nbytes - begin) for begin in range(0, info.nbytes, CHUNK))
        self._read(info, (self._scratch.buffer[:size] for size in sizes))

    def _read(self, info: TensorInfo, pieces: Iterable[memoryview]) -> None:
        """Read the bytes of a tensor into pieces of memory, one after the other, and compare their digest."""
        state = xxhash.xxh3_128()
        position = info.offset
        for piece in pieces:
            self._read_at(position, piece, info.name)
            if info.digest is not None:
                state.update(piece)
            position += len(piece)
        if info.digest not in {None, state.hexdigest()}:
            raise DamagedFileError(
                f"{self.path} is damaged: the bytes of {info.name!r} are not the ones that were written "
                f"(digest {state.hexdigest()}, expected {info.digest}). Take another copy of the file."
            )

    def _read_at(self, position: int, into: memoryview, name: str) -> None:
        try:
            read_at(self._file, into, position)
        except EOFError as error:
            raise DamagedFileError(f"{self.path} was cut short while it was read: {name!r} is incomplete.") from error
        except OSError as error:
            raise DamagedFileError(
                f"{self.path} can't be read at {name!r}: {error.strerror}. Take another copy of the file."
            ) from error

    def _raw_header(self) -> bytes:
        try:
            read_at(self._file, memoryview(start := bytearray(8)), 0)
            length = int.from_bytes(start, "little")
            if length > min(self._size - 8, _MAX_HEADER):
                raise DamagedFileError(
                    f"{self.path} is not a complete safetensors file: it declares a header of {length:,} "
                    f"bytes, and has {self._size:,} bytes in all."
                )
            read_at(self._file, memoryview(raw := bytearray(length)), 8)
        except EOFError as error:
            raise DamagedFileError(f"{self.path} was cut short while its header was read.") from error
        self._start = 8 + length
        return bytes(raw)

    def _parse(self, raw: bytes) -> None:
        try:
            header = json.loads(raw.decode(), object_pairs_hook=_unique)
            if not isinstance(header, dict):
                raise ValueError("it is not a table")
            metadata = header.pop("__metadata__", {})
            digests, others = self._own(raw, metadata) if _is_text_table(metadata) else ({}, {})
        except (ValueError, RecursionError) as error:  # a decoding error is a ValueError too
            raise DamagedFileError(
                f"{self.path} is not a safetensors file, or its header is damaged: {error}."
            ) from error
        if not _is_text_table(metadata):
            raise DamagedFileError(f"{self.path} is damaged: its metadata is not a table of text.")
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
        if len(shape) > MAX_SIDES or not all(type(side) is int and side >= 0 for side in shape):
            raise DamagedFileError(f"{self.path} is damaged: {name!r} has the shape {str(shape)[:100]}.")
        dtype = _DTYPES.get(dtype_name)
        if dtype is None:
            raise CheckpointError(
                f"{name!r} in {self.path} has the dtype {dtype_name[:40]!r}, which is not one of {', '.join(_DTYPES)}."
            )
        nbytes = math.prod(shape) * dtype.itemsize
        # An empty tensor may still declare sides whose product no tensor can have.
        if math.prod(side or 1 for side in shape) * dtype.itemsize >= _SIZE_LIMIT or end - begin != nbytes:
            raise DamagedFileError(
                f"{self.path} is damaged: {name!r} is declared as {dtype_name} of shape {str(shape)[:100]}, "
                f"and at the bytes {begin:,} to {end:,}."
            )
        return TensorInfo(name, dtype, tuple(shape), self._start + begin, found)

    def _cover(self, infos: Iterable[TensorInfo]) -> None:
        """Check that the tensors lie end to end up to the end of the file, as the format demands."""
        position = self._start
        for info in sorted(infos, key=lambda info: (info.offset, info.nbytes)):
            if info.offset != position:
                what = "overlaps another tensor" if info.offset < position else "comes after a gap"
                raise DamagedFileError(f"{self.path} is damaged: {info.name!r} {what}.")
            position += info.nbytes
        if position != self._size:
            raise DamagedFileError(
                f"{self.path} has {self._size:,} bytes where its header declares {position:,}: "
                f"{'it was cut short' if self._size < position else 'data was appended'}."
            )


def _is_text_table(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(entry, str) for entry in value.values())


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice in it")
    return table


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
