"""The table of all usable images: rows on disk instead of in memory, in the order of their paths."""

from __future__ import annotations

import csv
import heapq
import io
import json
import mmap
import os
import tempfile
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, Self, TypeVar, get_type_hints, overload

from ftkit._arguments import local_path
from ftkit._files import atomic_write
from ftkit._images.folders import is_inside
from ftkit._images.layout import Place
from ftkit._images.scratch import in_scratch
from ftkit._images.verdict import Verdict
from ftkit._reports import delivered
from ftkit._wording import plural
from ftkit.errors import FileWriteError, FtkitError, MissingPackageError

Target = TypeVar("Target", bound="str | os.PathLike[str] | None")

_BATCH = 10_000  # rows of a Parquet file in memory at a time
_RUN = 2000  # names that are sorted in memory at a time


class ImageRow(NamedTuple):
    """What is known of one image.

    - ``path``: the file, as a path that opens as is;
    - ``class_`` and ``split``: its class folder and its split, each empty if there is none (the column is ``class``);
    - ``width``, ``height``: in pixels, as they are stored;
    - ``mode``: Pillow's name for the kind of pixels, such as ``"RGB"``;
    - ``bytes``: the size of the file;
    - ``brightness``, ``contrast``: mean and standard deviation of the levels of gray, from 0 to 255;
    - ``sharpness``: how much neighboring pixels differ, measured at about 64 pixels a side;
    - ``hash``: XXH3 of the file's bytes, the same for exact duplicates.
    """

    path: str
    class_: str
    split: str
    width: int
    height: int
    mode: str
    bytes: int
    brightness: float
    contrast: float
    sharpness: float
    hash: str


#: The columns of a file, with the types that they have there.
_TYPES: dict[str, type] = {name.rstrip("_"): kind for name, kind in get_type_hints(ImageRow).items()}


class ImageTable(Iterable[ImageRow]):
    """A row for each usable image, in the order of the paths. It is read from a temporary file, row by row.

    Example:
        >>> from PIL import Image
        >>> from pathlib import Path
        >>> from ftkit import scan_images
        >>> Path("pets/cat").mkdir(parents=True)
        >>> Image.radial_gradient("L").convert("RGB").save("pets/cat/tom.jpg")
        >>> table = scan_images("pets", workers=1).table
        >>> [(row.path, row.class_, row.width, row.mode) for row in table]
        [('pets/cat/tom.jpg', 'cat', 256, 'RGB')]
        >>> table.to_csv("pets.csv")
        >>> Path("pets.csv").read_text().splitlines()[0]
        'path,class,split,width,height,mode,bytes,brightness,contrast,sharpness,hash'
    """

    def __init__(self, root: str = "", places: Sequence[int] = (), rows: mmap.mmap | bytes = b"") -> None:
        self._root, self._places, self._rows = root, places, rows

    def _line(self, at: int) -> bytes:
        return self._rows[at : self._rows.find(b"\n", at)]

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[ImageRow]:
        return (ImageRow(*json.loads(self._line(at))) for at in self._places)

    def __repr__(self) -> str:
        return f"<table of {plural(len(self), 'image')}: {', '.join(_TYPES)}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, (self._root, self._places, zlib.compress(self._rows[:]))

    @overload
    def to_csv(self, path: None = None) -> str: ...

    @overload
    def to_csv(self, path: str | os.PathLike[str]) -> None: ...

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """Return the table as CSV, or write it to the file ``path``; names that are not UTF-8 are escaped.

        Raises:
            FileWriteError: The file can't be written.
        """
        if path is None:
            text = io.StringIO(newline="")
            self._write_csv(text)
            return delivered(text.getvalue(), None)
        with atomic_write(outside(self._root, path)) as file:
            text_file = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
            self._write_csv(text_file)
            text_file.detach()
        return None

    def _write_csv(self, file: io.TextIOBase) -> None:
        rows = csv.writer(file)
        rows.writerow(_TYPES)
        rows.writerows(map(_in_utf8, self))

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write the table as Parquet (needs the extra ``parquet``); names that are not UTF-8 are escaped.

        Raises:
            MissingPackageError: pyarrow is not installed.
            FileWriteError: The file can't be written.
        """
        write_parquet(outside(self._root, path), _TYPES, map(_in_utf8, self))


def _unpacked(root: str, places: Sequence[int], rows: bytes) -> ImageTable:
    with in_scratch(), tempfile.TemporaryFile() as file:
        file.write(zlib.decompress(rows))
        return ImageTable(root, places, _mapped(file))


def _mapped(file: IO[bytes]) -> mmap.mmap | bytes:
    """Return what is in a file that may be closed, and have no name, as long as it is read."""
    file.flush()
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.tell() else b""


class TableWriter:
    """Takes the images in as they come, in a temporary file until it is closed."""

    def __init__(self, root: str) -> None:
        self._root, self._places = root, array("Q")
        with in_scratch():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(OSError):  # which a write has met before
            self._file.close()

    def add(self, path: str, place: Place, verdict: Verdict) -> None:
        """Take in an image."""
        form, seen = verdict.form, verdict.measures
        assert form
        assert seen
        looks = seen.brightness, seen.contrast, seen.sharpness
        row = (path, place.label, place.split, form.width, form.height, form.mode, seen.bytes, *looks, verdict.digest)
        with in_scratch():
            self._places.append(self._file.tell())
            self._file.write(json.dumps(row).encode() + b"\n")

    def finish(self) -> ImageTable:
        """Return the table, which may outlive this."""
        with in_scratch():
            rows = _mapped(self._file)

        def name(at: int) -> bytes:
            return rows[at : rows.find(b'", "', at)]

        runs = (self._places[at : at + _RUN] for at in range(0, len(self._places), _RUN))
        merged = heapq.merge(*(array("Q", sorted(run, key=name)) for run in runs), key=name)
        return ImageTable(self._root, array("Q", merged), rows)


def _in_utf8(row: Iterable[Any]) -> list[Any]:
    return [escaped(value) if isinstance(value, str) else value for value in row]


def escaped(name: str) -> str:
    """Return a name for a file that may contain only UTF-8."""
    return name.encode(errors="backslashreplace").decode()


def outside(root: str, path: Target) -> Target:
    """Return the path of a file to write, if it is not in the data set.

    Raises:
        FtkitError: It is: a file of the data set, or one that the next scan would take for such a file.
        FileWriteError: It is not a local path.
    """
    name = None if path is None else local_path("path", path, error=FileWriteError)
    if name is not None and root and "://" not in root:
        named, home = os.path.abspath(name), os.path.abspath(root)  # noqa: PTH100  (Path keeps the dots)
        if Path(named).is_relative_to(home) or is_inside(name, root):
            taken = "a file of" if os.path.lexists(name) else "inside"
            raise FtkitError(
                f"{name} is {taken} the data set {root}. Choose a path outside, such as {_beside(root, name)}."
            )
    return path


def _beside(root: str, name: Path) -> Path:
    """Return a path next to a data set for a file that was to be written into it."""
    home = Path(os.path.abspath(root))  # noqa: PTH100  (Path keeps the dots)
    return home.with_name(f"{home.name}-{name.name}")


def write_parquet(path: str | os.PathLike[str], columns: dict[str, type], rows: Iterable[list[Any]]) -> None:
    """Write rows as a Parquet file, some at a time.

    Raises:
        MissingPackageError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa  # type: ignore[import-not-found, import-untyped, unused-ignore]  # an extra
        import pyarrow.parquet as pq  # type: ignore[import-not-found, import-untyped, unused-ignore]  # an extra
    except ImportError as error:
        raise MissingPackageError("to_parquet needs pyarrow: pip install 'ftkit[parquet]', or use to_csv.") from error
    kinds = {int: pa.int64(), float: pa.float64(), str: pa.string()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in columns.items()])
    rest = iter(rows)
    with atomic_write(path) as file, pq.ParquetWriter(file, schema) as writer:
        while batch := list(islice(rest, _BATCH)):
            cells = zip(*batch, strict=True)
            arrays = [pa.array(column, kind.type) for column, kind in zip(cells, schema, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
