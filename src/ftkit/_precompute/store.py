"""A file of rows, one for each sample: filled in any order, killed and resumed, read by many processes at once."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
import stat
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import xxhash

from ftkit._files import atomic_write, digest, holding, lock, sync_folder
from ftkit._wording import in_bytes
from ftkit.errors import DamagedFileError, FileWriteError, FtkitError

_MAGIC: Final = b"ftkit rows 1\n\0\0\0"
_KEYED: Final = b"ftkit keyed 1\n\0\0"
_PAGE: Final = 4096
_ENTRY: Final = 32  # the digest of a row, and that of the sample that it was computed from

READY: Final = ".rows"
UNFINISHED: Final = ".rows-unfinished"
KEYED: Final = ".rows-by-content"


class RowFile:
    """A file of rows of one size, each with its digest.

    Layout: 16 bytes that say what it is, 8 for the length of the header, the header in JSON, zeros up to a multiple of
    4,096; a table with 32 bytes for each row, its XXH3-128 digest and that of its sample; the rows. A row counts from
    the moment at which its digest, which is written last, is that of its bytes.
    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path = path
        self._file = _opened(path, "r+b" if writable else "rb")
        try:
            size = os.fstat(self._file.fileno()).st_size
            start = self._file.read(len(_MAGIC) + 8)
            if start[: len(_MAGIC)] != _MAGIC:
                raise ValueError
            length = int.from_bytes(start[len(_MAGIC) :], "little")
            if length > size:
                raise ValueError
            self.header: dict[str, Any] = json.loads(self._file.read(length))
            self.rows, self.row_bytes = int(self.header["rows"]), int(self.header["row_bytes"])
            self._table = _rounded(len(start) + length)
            self._data = _rounded(self._table + self.rows * _ENTRY)
            if size != self._data + self.rows * self.row_bytes or min(self.rows, self.row_bytes) < 1:
                raise ValueError
        except (ValueError, KeyError, TypeError) as error:
            self._file.close()
            raise DamagedFileError(
                f"{path} is not a whole file of rows: delete it, and call precompute() again."
            ) from error
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        self._right = np.zeros(self.rows, dtype=bool)  # the rows whose digests this object has compared
        if not writable:
            self._file.close()  # the map stays

    @classmethod
    def create(cls, path: Path, header: dict[str, Any], rows: int, row_bytes: int) -> None:
        """Create a file without rows; it takes no room on the disk until they are written."""
        with atomic_write(path) as file:
            file.write(_begin(_MAGIC, {**header, "rows": rows, "row_bytes": row_bytes}))
            file.truncate(cls.size(header, rows, row_bytes))

    @staticmethod
    def size(header: dict[str, Any], rows: int, row_bytes: int) -> int:
        """How many bytes a file takes."""
        table = _rounded(len(_begin(_MAGIC, {**header, "rows": rows, "row_bytes": row_bytes})))
        return _rounded(table + rows * _ENTRY) + rows * row_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._map.close()
        self._file.close()

    def has(self, index: int) -> bool:
        """Whether a row is there, whole."""
        entry, row = self._entry(index), self._row(index)
        return entry[:16] != bytes(16) and xxhash.xxh3_128_digest(row) == entry[:16]

    def identity(self) -> str:
        """What tells the file from those of other models and data sets: its header, and the digests of all samples."""
        table = np.frombuffer(self._bytes(self._table, self.rows * _ENTRY), np.uint8).reshape(self.rows, _ENTRY)
        return digest(json.dumps(self.header, sort_keys=True).encode() + table[:, 16:].tobytes())

    def sample(self, index: int) -> bytes:
        """The digest of the sample that a row was computed from."""
        return self._entry(index)[16:]

    def samples(self) -> dict[bytes, int]:
        """The rows that are there, by the digests of their samples."""
        return {self.sample(index): index for index in range(self.rows) if self._entry(index)[:16] != bytes(16)}

    def read(self, index: int) -> bytes:
        """Read a row.

        Raises:
            DamagedFileError: Its bytes are not the ones that were written.
        """
        row = self._row(index)
        if xxhash.xxh3_128_digest(row) != self._entry(index)[:16]:
            raise DamagedFileError(
                f"Row {index} in {self.path} is damaged: delete the file, and call precompute() again."
            )
        return row

    def gather(self, indices: Any) -> np.ndarray[Any, Any]:
        """Read several rows into one array, a row each. Their digests are compared at the first time.

        Raises:
            DamagedFileError: The bytes of one are not the ones that were written, or the file is not whole any more.
        """
        self._see_whole()
        chosen = np.asarray(indices, dtype=np.int64)
        if not (right := self._right[chosen]).all():
            for index in chosen[~right].tolist():
                self.read(index)
                self._right[index] = True
        kept = np.frombuffer(self._map, np.uint8, self.rows * self.row_bytes, self._data)
        rows: np.ndarray[Any, Any] = kept.reshape(self.rows, self.row_bytes)[chosen]
        return rows

    def write(self, index: int, row: bytes, sample: bytes) -> None:
        """Write a row. Not through the map: on a full disk that would end the process.

        Raises:
            FileWriteError: It could not be written.
        """
        try:
            self._put(self._data + index * self.row_bytes, row)
            self._put(self._table + index * _ENTRY, xxhash.xxh3_128_digest(row) + sample)
        except OSError as error:
            raise FileWriteError(
                f"Can't write {self.path}: {error.strerror or error}. What was computed is kept: make room, and call "
                "precompute() again."
            ) from error

    def _put(self, position: int, data: bytes) -> None:
        self._file.seek(position)
        while data:
            data = data[self._file.write(data) :]

    def flush(self) -> None:
        """Force all to disk."""
        os.fsync(self._file.fileno())

    def _entry(self, index: int) -> bytes:
        return self._bytes(self._table + index * _ENTRY, _ENTRY)

    def _row(self, index: int) -> bytes:
        return self._bytes(self._data + index * self.row_bytes, self.row_bytes)

    def _bytes(self, at: int, count: int) -> bytes:
        self._see_whole()
        return self._map[at : at + count]

    def _see_whole(self) -> None:
        """See that no one has cut the file: to read through the map what is not there ends the process."""
        if (size := self._map.size()) < len(self._map):
            raise DamagedFileError(
                f"{self.path} was cut while it was in use, to {size:,} of {len(self._map):,} bytes: delete it, and "
                "call precompute() again."
            )


def _begin(magic: bytes, header: dict[str, Any]) -> bytes:
    text = json.dumps(header, sort_keys=True).encode()
    return magic + len(text).to_bytes(8, "little") + text


def _rounded(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


class KeyedFile:
    """A file of rows of one size, known by the content of their samples, to which processes add at any time.

    Threads of one process have to take turns at it.

    Layout: 16 bytes that say what it is, 8 for the length of the header, the header in JSON, zeros up to a multiple of
    4,096; then one record for each row: its XXH3-128 digest (of key and row), its key, the row. What is not whole is as
    if it were not there; a later record of the same key counts.

    Raises:
        FtkitError: There is no room for the first row.
    """

    def __init__(self, path: Path, header: dict[str, Any], row_bytes: int, most: float | None) -> None:
        self.path, self.row_bytes = path, row_bytes
        self._record, self._lock = _ENTRY + row_bytes, f".{path.stem}.ftkit-lock"
        begin = _begin(_KEYED, {**header, "row_bytes": row_bytes})
        self._start = _rounded(len(begin))
        if not path.exists():  # before there is a folder
            room_for(path.parent, self._start + self._record, most, "The rows of one sample")
        with locked(path.parent, self._lock):
            if not path.exists():
                with atomic_write(path) as file:
                    file.write(begin)
                    file.truncate(self._start)
        self._begin = begin
        self._open()
        self._where: dict[bytes, int] = {}
        self._right: set[int] = set()
        self._records = 0
        self.refresh()

    def __len__(self) -> int:
        return len(self._where)

    def _open(self) -> None:
        """Open the file in this process: a position is shared with a process from which it was forked."""
        self._file, self._process = _opened(self.path, "r+b"), os.getpid()
        weakref.finalize(self, self._file.close)
        begin = self._file.read(len(self._begin))
        if begin != self._begin:
            is_one = begin.startswith(_KEYED) and len(begin) == len(self._begin)
            raise DamagedFileError(
                f"{self.path} {'belongs to another model' if is_one else 'is not a whole file of rows'}: move it away "
                "or delete it, and call precompute() again."
            )

    @property
    def nbytes(self) -> int:
        """How large the file is."""
        if self._process != os.getpid():
            self._open()
        return os.fstat(self._file.fileno()).st_size

    def refresh(self) -> None:
        """Take in what others have added; forget all where someone has cut the file.

        Raises:
            DamagedFileError: Nothing is left.
        """
        there = (self.nbytes - self._start) // self._record
        if there < 0:
            raise DamagedFileError(f"{self.path} was cut while it was in use: delete it, and call precompute() again.")
        if there < self._records:
            self._where, self._right, self._records = {}, set(), 0
        while self._records < there:
            self._file.seek(self._start + self._records * self._record + 16)
            self._where[self._file.read(16)] = self._records
            self._records += 1

    def find(self, keys: Sequence[bytes]) -> np.ndarray[Any, Any] | None:
        """The rows of samples; None if one of them is not there."""
        self.refresh()
        places = [self._where.get(key) for key in keys]
        if None in places:
            return None
        records = np.empty((len(keys), self._record), np.uint8)
        for at, (key, place) in enumerate(zip(keys, places, strict=True)):
            assert place is not None
            self._file.seek(self._start + place * self._record)
            read = self._file.readinto(records[at].data)
            whole = read == self._record and records[at, 16:_ENTRY].tobytes() == key
            if whole and place not in self._right:
                whole = xxhash.xxh3_128_digest(records[at, 16:].data) == records[at, :16].tobytes()
            if not whole:
                self._right.discard(place)
                del self._where[key]
                return None
            self._right.add(place)
        return records[:, _ENTRY:]

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """Which of the keys are not there, each once."""
        return [at for key, at in {key: at for at, key in enumerate(keys)}.items() if key not in self._where]

    def add(self, keys: Sequence[bytes], rows: np.ndarray[Any, Any], most: float | None) -> int:
        """Add the rows that are not there yet; return how many there was no room for.

        Raises:
            FileWriteError: They can't be written.
        """
        with locked(self.path.parent, self._lock):
            self.refresh()
            new = self.missing(keys)
            needed = len(new) * self._record
            room = shutil.disk_usage(self.path.parent).free
            if needed > room or (most is not None and self.nbytes + needed > most):
                return len(new)
            data = b""
            for at in new:
                body = keys[at] + rows[at].tobytes()
                data += xxhash.xxh3_128_digest(body) + body
            try:
                self._file.seek(self._start + self._records * self._record)
                while data:
                    data = data[self._file.write(data) :]
            except OSError as error:
                raise FileWriteError(f"Can't write {self.path}: {error.strerror or error}. Make room.") from error
            self.refresh()
        return 0


def _opened(path: Path, mode: str) -> Any:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe waits for someone who writes to it
            raise FtkitError(f"Can't open {path}: it is no ordinary file. Move it away, and call precompute() again.")
        return path.open(mode, buffering=0)
    except OSError as error:
        raise FtkitError(f"Can't open {path}: {error.strerror or error}.") from error


@contextlib.contextmanager
def locked(folder: Path, name: str = ".ftkit-lock") -> Iterator[None]:
    """Let one process at a time fill files in a folder; the others wait."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise FileWriteError(f"Can't write to {folder}: {error.strerror or error}. Name a folder for it.") from error
    with holding(descriptor):
        lock(descriptor, wait=True)
        yield


def finish(path: Path, name: str) -> Path:
    """Give a file that is filled the name by which others read it."""
    target = path.with_name(name)
    try:
        path.replace(target)
    except OSError as error:
        raise FileWriteError(f"Can't write {target}: {error.strerror or error}. Move it away.") from error
    sync_folder(path.parent)
    return target


def room_for(folder: Path, needed: int, most: float | None, what: str) -> None:
    """See that a file of a size may be written.

    Raises:
        FtkitError: It is more than ``most``, or than the disk has room for.
    """
    free = shutil.disk_usage(next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())).free
    if most is not None and needed > most:
        raise FtkitError(
            f"{what} take {in_bytes(needed)}, more than max_bytes={most:,.0f}: allow more, or freeze more."
        )
    if needed > free:
        raise FtkitError(
            f"{what} take {in_bytes(needed)}, and {folder} has {in_bytes(free)} left: choose another disk."
        )


def picked(count: int, most: int) -> Sequence[int]:
    """A few indices of many, chosen at random, without a trace in any generator that others use."""
    chosen: Sequence[int] = np.random.default_rng().choice(count, min(count, most), replace=False).tolist()
    return chosen
