"""What a weights file is, by its content: the one list of formats, and the door through which every file is opened.

A reader gives either tensors by name, a :class:`~ftkit._tensors.file.TensorFile`, or an object as Python pickles it, a
:class:`~ftkit._pickles.torchfiles.PickleFile`. Whoever opens a file tells the two apart, and need know no more.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

from ftkit._arguments import local_path
from ftkit._pickles.machine import LEGACY_MAGIC
from ftkit._pickles.torchfiles import LegacyPickle, PickleFile, PlainPickle, TarPickle, ZipPickle
from ftkit._tensors.file import TensorFile
from ftkit._tensors.safetensors import SafetensorsFile
from ftkit._wording import shown
from ftkit.errors import CheckpointError, did_you_mean

SUFFIXES: Final = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl")
"""Names under which people keep weights, the likeliest first."""

TORCH_SUFFIXES: Final = frozenset({".pt", ".pth", ".ckpt", ".tar"})
"""Names of files that torch is expected to read; what is written under them is a torch file."""

CHECKPOINT_SUFFIXES: Final = TORCH_SUFFIXES | {".safetensors"}
"""Names under which checkpoints are written, and found again."""

WeightsFile: TypeAlias = TensorFile | PickleFile

_Test: TypeAlias = Callable[[bytes], object]

# The old format begins with a pickle of one number, of any protocol; newer ones put a frame around it.
_LEGACY: Final = re.compile(b"\x80[\x02-\x05](\x95.{8})?" + re.escape(LEGACY_MAGIC[2:]), re.DOTALL)
_PICKLE: Final = re.compile(b"\x80[\x02-\x05]")
_LOOKED_AT: Final = 512  # bytes: a header of a tar archive, which shows its magic late


def _text(*words: bytes) -> _Test:
    return lambda start: start.lstrip().lower().startswith(words)


def _magic(*magics: bytes) -> _Test:
    return lambda start: start.startswith(magics)


FORMATS: Final[tuple[tuple[_Test, type[WeightsFile]], ...]] = (
    (lambda start: start[7:9] == b"\0{", SafetensorsFile),
    (_magic(b"PK\x03\x04"), ZipPickle),
    (lambda start: start[257:262] == b"ustar", TarPickle),
    (_LEGACY.match, LegacyPickle),
    (_PICKLE.match, PlainPickle),
)
"""How a file of each format begins, and its reader, in the order in which they are tried."""

# What people mistake for weights, and what to do with it instead.
_OTHERS: Final[tuple[tuple[_Test, str], ...]] = (
    (lambda start: not start, "It is empty."),
    (lambda start: not start.strip(b"\0"), "It begins with zeros, as after an interrupted download or copy."),
    (_text(b"version https://git-lfs"), "It is a Git LFS pointer: fetch the file itself with 'git lfs pull'."),
    (_text(b"<!doctype", b"<html", b"<?xml", b"<error"), "It is a web page: the download went wrong."),
    (_text(b"{"), "It is JSON: a model's configuration, or a server's answer instead of the file."),
    (_magic(b"\x93NUMPY"), "It is a numpy array: load it with numpy.load."),
    (_magic(b"\x89HDF"), "It is an HDF5 file, as Keras writes."),
    (_magic(b"GGUF", b"TFL3"), "It is a model for inference in another program."),
    (re.compile(b"\x08.\x12", re.DOTALL).match, "It is a model for inference in another program."),  # ONNX
    (_magic(b"\x1f\x8b"), "It is compressed with gzip: unpack it first."),
    (_magic(b"BZh"), "It is compressed with bzip2: unpack it first."),
    (_magic(b"\xfd7zXZ"), "It is compressed with xz: unpack it first."),
    (_magic(b"7z\xbc\xaf"), "It is compressed with 7-Zip: unpack it first."),
    (_magic(b"(\xb5/\xfd"), "It is compressed with zstd: unpack it first."),
)


def open_file(path: str | os.PathLike[str]) -> WeightsFile:
    """Open a weights file of any format, by its content alone. Nothing else opens it again.

    Raises:
        CheckpointError: ftkit does not read this format; the message says what it looks like.
        DamagedFileError: It is incomplete, or contradicts itself.

    Example:
        >>> import torch
        >>> from ftkit._formats import open_file
        >>> torch.save({"a": torch.ones(2)}, "misleading.safetensors")
        >>> with open_file("misleading.safetensors") as file:
        ...     file.format
        'zip'
    """
    name = os.fspath(local_path("path", path, error=CheckpointError))
    with contextlib.ExitStack() as opened:
        try:
            file = opened.enter_context(io.FileIO(name))
            start = file.read(_LOOKED_AT)
        except FileNotFoundError as error:
            raise CheckpointError(f"There is no file {shown(name)}.{_beside(Path(name))}") from error
        except OSError as error:
            raise CheckpointError(f"Can't open {shown(name)}: {error.strerror}.") from error
        reader = next((reader for begins, reader in FORMATS if begins(start)), None)
        if reader is None:
            looks = next((advice for begins, advice in _OTHERS if begins(start)), f"It starts with {start[:16]!r}.")
            raise CheckpointError(f"{shown(name)} is not a weights file. {looks}")
        weights = reader(file)
        opened.pop_all()  # the reader closes it
    return weights


def refuse_torch_name(path: Path) -> None:
    """Refuse to write a delta under a name that torch is expected to read.

    Raises:
        CheckpointError: It is such a name.
    """
    if path.suffix in TORCH_SUFFIXES:
        raise CheckpointError(f"A delta is a safetensors file: {shown(path.name)} should end in .safetensors.")


def _beside(path: Path) -> str:
    """The closest names next to a file that does not exist."""
    with contextlib.suppress(OSError):
        return did_you_mean(str(path), map(str, path.parent.iterdir()))
    return ""
