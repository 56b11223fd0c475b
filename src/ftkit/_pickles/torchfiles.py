"""Files that torch or pickle wrote, in every format of torch's history: what they hold, and where its bytes are."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import os
import struct
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, Final

import torch
from torch import Tensor

from ftkit._models.contents import bytes_of
from ftkit._pickles.machine import (
    Bounded,
    Global,
    Pickled,
    StorageRef,
    StoredTensor,
    read_pickle,
    storage_dtype,
    stored_tensor,
)
from ftkit._tensors.bytes import CHUNK, in_threads, mark_changed, read_at, takes_bytes
from ftkit._tensors.file import OpenFile
from ftkit._torch import negated
from ftkit.errors import CheckpointError, DamagedFileError, UntrustedFileError

# A compressed archive may grow on reading, but never without bounds: honest weights hardly compress.
_FREE_BYTES: Final = 64 << 20
_MAX_RATIO: Final = 32


@dataclass(frozen=True, slots=True)
class _Record:
    """Where the bytes of a storage or another entry lie: at an offset, packed, or in memory."""

    name: str
    nbytes: int
    offset: int
    checksum: int | None
    unpack: Callable[[], IO[bytes]] | None = None
    inline: memoryview | None = None


class PickleFile(OpenFile, ABC):
    """A file that ``torch.save`` or ``pickle`` wrote, of which nothing has run.

    A reader of a format says how to :meth:`_open` it.

    Attributes:
        tree: What it holds: plain data, :class:`~ftkit._pickles.machine.StoredTensor` in place of tensors, and
            :class:`~ftkit._pickles.machine.Foreign` in place of what only code could make.
        wanted: The classes and functions it names beyond plain data and tensors, in order.
        script: Whether it is a TorchScript archive.
        rare: The kinds of tensors in it that only torch can build: ``sparse``, ``quantized``, ...

    Raises:
        DamagedFileError: It is incomplete, or contradicts itself.

    Example:
        >>> import torch
        >>> from ftkit._formats import open_file
        >>> torch.save({"epoch": 3, "weights": torch.ones(2, 3)}, "c.pt")
        >>> with open_file("c.pt") as file:
        ...     file.tree["epoch"], file.tree["weights"].shape, file.wanted
        (3, (2, 3), [])
    """

    script: bool = False
    _folder = ""  # what the names of entries that are storages begin with
    _packed = 0  # the bytes that all compressed entries would unpack to

    def __init__(self, file: io.FileIO) -> None:
        super().__init__(file)
        self._records: dict[str, _Record] = {}
        try:
            self._pickled = self._open()
            self._check_storages()
        except (DamagedFileError, RecursionError) as error:
            if self.path in str(error):
                raise
            raise DamagedFileError(f"{self.path} is damaged, or not what it seems: {error}") from error
        self.tree: Any = self._pickled.tree
        self.wanted: list[str] = self._pickled.wanted
        self.rare: list[str] = self._pickled.rare

    @abstractmethod
    def _open(self) -> Pickled:
        """Read the pickle, and note where the bytes of its storages lie."""

    def read_into(self, pairs: Iterable[tuple[StoredTensor, Tensor]]) -> None:
        """Fill tensors of the same shapes in place, comparing checksums on the way.

        Where a target can take the bytes as they are, they go straight into its memory; else one
        storage at a time is read and converted.

        Raises:
            CheckpointError: A shape differs. No target was touched.
            UntrustedFileError: It would unpack to far more than its own size. No target was touched.
            DamagedFileError: Some bytes are not the ones that were written. The targets may hold part of the file.
        """
        self._refuse_bomb(self._packed)
        wanted: dict[StorageRef, list[tuple[StoredTensor, Tensor]]] = {}
        for stored, target in pairs:
            if stored.shape != tuple(target.shape):
                raise CheckpointError(
                    f"{self.path} has shape {list(stored.shape)} where the target has {list(target.shape)}."
                )
            wanted.setdefault(stored.storage, []).append((stored, target.detach()))
        jobs = [(self._records[self._folder + ref.key], targets) for ref, targets in wanted.items()]
        jobs.sort(key=lambda job: job[0].offset)
        try:
            in_threads(lambda job: self._fill(*job), jobs, sum(record.nbytes for record, _ in jobs))
        finally:
            for _, target in itertools.chain.from_iterable(wanted.values()):
                mark_changed(target)

    def read_storages(self) -> dict[StorageRef, Tensor]:
        """Return the bytes of all storages, in new memory, their checksums compared.

        Raises:
            UntrustedFileError: It would unpack to far more than its own size.
            DamagedFileError: Some bytes are not the ones that were written.
        """
        self._refuse_bomb(self._packed)
        records = {ref: self._records[self._folder + ref.key] for ref in self._pickled.storages.values()}
        memory = {ref: torch.empty(record.nbytes, dtype=torch.uint8) for ref, record in records.items()}
        total = sum(record.nbytes for record in records.values())
        in_threads(lambda ref: self._read(records[ref], bytes_of(memory[ref])), records, total)
        return memory

    @contextlib.contextmanager
    def verified_whole(self) -> Iterator[BinaryIO]:
        """Compare the checksums of all entries; then give the file itself, from its start.

        Raises:
            UntrustedFileError: It would unpack to far more than its own size.
            DamagedFileError: Some bytes are not the ones that were written.
        """
        self._refuse_bomb(self._packed)
        in_threads(lambda record: self._read(record, None), self._records.values(), self._size)
        with self._buffered(0) as file:
            yield file

    def _check_storages(self) -> None:
        """Check that what the pickle says of its storages is true, before any memory is allocated for it."""
        for key, data in self._pickled.inline.items():
            self._records[self._folder + key] = _Record(key, len(data), 0, None, inline=data)
        for ref in self._pickled.storages.values():
            record = self._records.get(self._folder + ref.key)
            if record is None:
                raise DamagedFileError(f"the storage {ref.key[:40]!r} is missing.")
            if record.nbytes != ref.nbytes:
                raise DamagedFileError(
                    f"the storage {ref.key[:40]!r} has {record.nbytes:,} bytes where {ref.nbytes:,} are declared."
                )

    @contextlib.contextmanager
    def _buffered(self, position: int) -> Iterator[BinaryIO]:
        with os.fdopen(os.dup(self._file.fileno()), "rb") as file:  # the same open file, whatever its name means by now
            file.seek(position)
            yield file

    def _refuse_bomb(self, unpacked: int) -> None:
        if unpacked > max(_FREE_BYTES, _MAX_RATIO * self._size):
            raise UntrustedFileError(
                f"{self.path} has {self._size:,} bytes and would unpack to {unpacked:,}: a bomb, not weights."
            )

    def _place_raw(self, key: str, dtype: torch.dtype, position: int) -> int:
        """Note a storage that stands as its length and its bytes; return where it ends."""
        length = bytearray(8)
        self._exactly(memoryview(length), position)
        nbytes = int.from_bytes(length, "little") * dtype.itemsize
        if position + 8 + nbytes > self._size:
            raise DamagedFileError(f"it was cut short: the storage {key[:40]!r} is incomplete.")
        self._records[key] = _Record(key, nbytes, position + 8, None)
        return position + 8 + nbytes

    def _check_order(self, *, little_endian: bool) -> None:
        if not little_endian:
            raise CheckpointError(f"{self.path} was written on a big-endian machine, which ftkit doesn't read.")

    def _fill(self, record: _Record, targets: list[tuple[StoredTensor, Tensor]]) -> None:
        stored, target = targets[0]
        if len(targets) == 1 and stored.is_whole and takes_bytes(target, stored.dtype):
            self._read(record, bytes_of(target))
            return
        memory = torch.empty(record.nbytes, dtype=torch.uint8)
        self._read(record, bytes_of(memory))
        for stored, target in targets:
            target.copy_(tensor_in(memory, stored))

    def _read(self, record: _Record, into: memoryview | None) -> None:
        """Read an entry into the memory given, or keep nothing, and compare its checksum."""
        scratch = memoryview(bytearray(min(record.nbytes, CHUNK))) if into is None else into
        with self._unpacking():
            source = record.unpack() if record.unpack is not None else None
        checksum = 0
        for position in range(0, record.nbytes, CHUNK):
            size = min(CHUNK, record.nbytes - position)
            piece = scratch[:size] if into is None else into[position : position + size]
            if record.inline is not None:
                piece[:] = record.inline[position : position + size]
            elif source is None:
                self._exactly(piece, record.offset + position)
            else:
                self._unpack(source, piece)
            if record.checksum is not None:
                checksum = zlib.crc32(piece, checksum)
        if record.checksum is not None and record.checksum != checksum:
            raise DamagedFileError(
                f"{self.path} is damaged: the checksum of its entry {record.name[:80]!r} is wrong. "
                "Take another copy of the file."
            )

    def _unpack(self, source: Any, piece: memoryview) -> None:
        with self._unpacking():
            while piece:
                count = source.readinto(piece)
                if not count:
                    raise EOFError
                piece = piece[count:]

    @contextlib.contextmanager
    def _unpacking(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError, RuntimeError, ValueError, struct.error, zipfile.BadZipFile, zlib.error) as error:
            raise DamagedFileError(f"{self.path} is damaged: a compressed entry can't be unpacked.") from error

    def _exactly(self, into: memoryview, position: int) -> None:
        if position < 0:
            raise DamagedFileError(f"{self.path} is damaged: it points to byte {position:,}.")
        try:
            read_at(self._file, into, position)
        except (EOFError, OverflowError) as error:
            raise DamagedFileError(f"{self.path} was cut short: it ends at byte {self._size:,}.") from error


def tensor_in(memory: Tensor, stored: StoredTensor) -> Tensor:
    """Make the tensor that a description means, in the memory that holds its storage."""
    tensor = torch.empty(0, dtype=stored.dtype)
    tensor.set_(memory.untyped_storage(), stored.offset, stored.shape, stored.stride)
    tensor = tensor.conj() if stored.conj else tensor
    tensor = negated(tensor) if stored.neg else tensor
    if stored.parameter:
        return torch.nn.Parameter(tensor, requires_grad=stored.requires_grad)
    return tensor.requires_grad_(stored.requires_grad)


class ZipPickle(PickleFile):
    """An archive of the pickle and each storage, as torch writes since 1.6; TorchScript writes the same."""

    format = "zip"
    _folder = "data/"

    def __init__(self, file: io.FileIO) -> None:
        super().__init__(file)
        names = ("data.pkl", *(self._folder + key for key in self._pickled.storages))
        self.verified = all(self._records[name].checksum is not None for name in names)
        self.script = "constants.pkl" in self._records

    def _open(self) -> Pickled:
        try:
            archive = zipfile.ZipFile(self._file)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
            raise DamagedFileError(
                f"the list of its entries can't be read ({error}), as when a copy was cut short."
            ) from error
        entries = [entry for entry in archive.infolist() if not entry.filename.endswith("/")]
        main = [entry for entry in entries if entry.filename.count("/") == 1 and entry.filename.endswith("/data.pkl")]
        if len(main) != 1:
            raise CheckpointError(f"{self.path} {_other_zip([entry.filename for entry in entries])}")
        self._place(archive, entries, main[0].filename.removesuffix("data.pkl"))
        if "byteorder" in self._records:
            self._check_order(little_endian=self._content("byteorder") == b"little")
        return read_pickle(io.BytesIO(self._content("data.pkl")), self.budget)

    def _place(self, archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], folder: str) -> None:
        """Find where the entries' bytes lie, and that they lie apart and inside the file."""
        floor = packed = 0
        unchecked = not any(entry.CRC for entry in entries)  # torch can be told to leave checksums out
        for entry in sorted(entries, key=lambda entry: entry.header_offset):
            name = entry.filename.removeprefix(folder)
            if entry.flag_bits & 1:
                raise CheckpointError(f"{self.path} is encrypted: unpack it with its password first.")
            if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise CheckpointError(f"{self.path} is compressed in a way that torch never uses. Save it again.")
            stored = entry.compress_type == zipfile.ZIP_STORED
            local = bytearray(30)
            self._exactly(memoryview(local), entry.header_offset)
            offset = entry.header_offset + 30 + sum(struct.unpack_from("<HH", local, 26))
            apart = entry.header_offset >= floor and offset + entry.compress_size <= self._size
            whole = local[:4] == b"PK\x03\x04" and (entry.file_size == entry.compress_size or not stored)
            if not (apart and whole and name not in self._records):
                raise DamagedFileError(f"its entry {name[:80]!r} is not where it should be.")
            floor = offset + entry.compress_size
            packed += 0 if stored else entry.file_size
            checksum = None if unchecked else entry.CRC
            unpack = None if stored else functools.partial(archive.open, entry)
            self._records[name] = _Record(name, entry.file_size, offset, checksum, unpack)
        self._packed = packed

    def _content(self, name: str) -> bytes:
        record = self._records[name]
        if record.unpack is not None:
            self.budget.charge(nbytes=record.nbytes)
        content = bytearray(record.nbytes)
        self._read(record, memoryview(content))
        return bytes(content)


def _other_zip(names: list[str]) -> str:
    if any(name.endswith(("/archive_format", "serialized_exported_program.json")) for name in names):
        return "is a program that torch.export wrote: torch.export.load(path).state_dict contains its weights."
    if names and all(name.endswith(".npy") for name in names):
        return "contains NumPy arrays: load_weights(model, dict(numpy.load(path))) loads them."
    return "is a zip archive, but not one that torch wrote: it has no data.pkl."


class LegacyPickle(PickleFile):
    """Pickles and storages one after the other, as torch wrote before 1.6."""

    format = "legacy"

    def _open(self) -> Pickled:
        with self._buffered(0) as file:
            parts = [
                read_pickle(file, self.budget) for _ in range(5)
            ]  # two numbers, the system, the object, the storages' keys
            position = file.tell()
        system, pickled, keys = parts[2].tree, parts[3], parts[4].tree
        self._check_order(little_endian=not isinstance(system, dict) or system.get("little_endian") is not False)
        plain = isinstance(keys, list) and all(isinstance(key, str | int) for key in keys)
        if not plain or {*map(str, keys)} != pickled.storages.keys() - pickled.inline.keys():
            raise DamagedFileError("its list of storages is not the one it refers to.")
        for key in keys:
            position = self._place_raw(str(key), pickled.storages[str(key)].dtype, position)
        return dataclasses.replace(pickled, wanted=list(dict.fromkeys(name for part in parts for name in part.wanted)))


class TarPickle(PickleFile):
    """Torch's format of 2016: github.com/pytorch/pytorch/blob/v0.1.1/torch/serialization.py."""

    format = "tar"

    def _open(self) -> Pickled:
        try:
            with self._buffered(0) as raw:
                file: Any = Bounded(raw)
                with tarfile.open(fileobj=file, mode="r:") as archive:
                    starts = {member.name: member.offset_data for member in archive.getmembers() if member.isfile()}
                file.seek(starts["storages"])
                storages = self._storages(file)
                file.seek(starts["tensors"])
                tensors = self._tensors(file, storages)
                file.seek(starts["pickle"])
                pickled = read_pickle(file, self.budget, {**storages, **tensors})
        except (tarfile.TarError, KeyError, TypeError, ValueError, struct.error) as error:
            raise DamagedFileError(f"it is a tar archive, but not an intact one that torch wrote ({error}).") from error
        return dataclasses.replace(pickled, storages={ref.key: ref for ref in storages.values()})

    def _storages(self, file: BinaryIO) -> dict[str, StorageRef]:
        refs: dict[str, StorageRef] = {}
        for _ in range(int(self._plain(file))):
            key, location, kind = self._plain(file)
            dtype = storage_dtype(kind.name) if isinstance(kind, Global) else None
            if dtype is None:
                raise TypeError("a storage of no known type")
            key = _key(key)
            end = self._place_raw(key, dtype, file.tell())
            refs[key] = StorageRef(key, dtype, self._records[key].nbytes // dtype.itemsize, _key(location))
            file.seek(end)
        if self._plain(file):
            raise TypeError("views of storages, which torch has not written since 2017")
        return refs

    def _tensors(self, file: BinaryIO, storages: Mapping[str, StorageRef]) -> dict[str, StoredTensor]:
        tensors: dict[str, StoredTensor] = {}
        for _ in range(int(self._plain(file))):
            key, storage, _kind = self._plain(file)
            (sides,) = struct.unpack("<i4x", file.read(8))
            numbers = struct.unpack(f"<{2 * sides + 1}q", file.read(8 * (2 * sides + 1)))
            tensors[_key(key)] = stored_tensor(
                storages[_key(storage)], numbers[-1], numbers[:sides], numbers[sides : 2 * sides]
            )
        return tensors

    def _plain(self, file: BinaryIO) -> Any:
        return read_pickle(file, self.budget).tree


def _key(key: Any) -> str:
    if not isinstance(key, str | int):
        raise TypeError("a key that is neither a number nor text")
    return str(key)


class PlainPickle(PickleFile):
    """A pickle and nothing else, as ``pickle.dump`` writes; tensors in it bring their bytes along."""

    format = "pickle"

    def _open(self) -> Pickled:
        with self._buffered(0) as file:
            return read_pickle(file, self.budget)
