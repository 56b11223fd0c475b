"""What a weights file is, by its content: the one list of formats.

A format holds either tensors by name (:class:`TensorFormat`), and each reader of these does the same
(:class:`~ftkit._tensors.file.TensorFile`), or an object as Python pickles it (:class:`ObjectFormat`), which
:mod:`ftkit._pickles` reads. Whoever tells the two apart ends in ``assert_never``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Final, TypeAlias

from ftkit._tensors.file import TensorFile
from ftkit._tensors.safetensors import SafetensorsFile
from ftkit.errors import CheckpointError

__all__ = [
    "CHECKPOINT_SUFFIXES",
    "LEGACY_MAGIC",
    "SUFFIXES",
    "TORCH_SUFFIXES",
    "Format",
    "ObjectFormat",
    "TensorFormat",
    "content_format",
]

SUFFIXES: Final = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl")
"""Names under which people keep weights, the likeliest first."""

TORCH_SUFFIXES: Final = frozenset({".pt", ".pth", ".ckpt", ".tar"})
"""Names of files that torch is expected to read; what is written under them is a torch file."""

CHECKPOINT_SUFFIXES: Final = TORCH_SUFFIXES | {".safetensors"}
"""Names under which checkpoints are written, and found again."""

LEGACY_MAGIC: Final = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e"
"""How the files of torch before 1.6 begin."""

# The old format begins with a pickle of one number, of any protocol; newer ones put a frame around it.
_LEGACY: Final = re.compile(b"\x80[\x02-\x05](\x95.{8})?" + re.escape(LEGACY_MAGIC[2:]), re.DOTALL)
_PICKLE: Final = re.compile(b"\x80[\x02-\x05]")
_LOOKED_AT: Final = 512  # bytes: a header of a tar archive, which shows its magic late


class TensorFormat(Enum):
    """A format of tensors by name: what it is called, how a file of it begins, and its reader."""

    SAFETENSORS = "safetensors", lambda start: start[7:9] == b"\0{", SafetensorsFile

    def __init__(
        self, label: str, begins: Callable[[bytes], object], reader: Callable[[str | os.PathLike[str]], TensorFile]
    ) -> None:
        self.label = label
        self.begins = begins
        self.open = reader


class ObjectFormat(Enum):
    """A format of any object, pickled: what it is called, and how a file of it begins."""

    ZIP = "zip", lambda start: start.startswith(b"PK\x03\x04")
    TAR = "tar", lambda start: start[257:262] == b"ustar"
    LEGACY = "legacy", _LEGACY.match
    PICKLE = "pickle", _PICKLE.match

    def __init__(self, label: str, begins: Callable[[bytes], object]) -> None:
        self.label = label
        self.begins = begins


Format: TypeAlias = TensorFormat | ObjectFormat


def content_format(path: str | os.PathLike[str]) -> Format:
    """Tell what kind of weights file this is, by its content alone.

    Raises:
        CheckpointError: It is none that ftkit reads; the message says what it looks like.

    Example:
        >>> import torch
        >>> from ftkit._formats import content_format
        >>> torch.save({"a": torch.ones(2)}, "misleading.safetensors")
        >>> content_format("misleading.safetensors").label
        'zip'
    """
    try:
        with Path(path).open("rb") as file:
            start = file.read(_LOOKED_AT)
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no file {os.fspath(path)}.") from error
    except OSError as error:
        raise CheckpointError(f"Can't open {os.fspath(path)}: {error.strerror}.") from error
    kinds: tuple[Format, ...] = (*TensorFormat, *ObjectFormat)
    for kind in kinds:
        if kind.begins(start):
            return kind
    raise CheckpointError(f"{os.fspath(path)} is no weights file. {_looks_like(start)}")


def _looks_like(start: bytes) -> str:
    return next((advice for begins, advice in _OTHERS if begins(start)), f"It starts with {start[:16]!r}.")


def _text(*words: bytes) -> Callable[[bytes], bool]:
    return lambda start: start.lstrip().lower().startswith(words)


def _magic(*magics: bytes) -> Callable[[bytes], bool]:
    return lambda start: start.startswith(magics)


# What people take for weights, and what to do with it instead.
_OTHERS: Final[tuple[tuple[Callable[[bytes], object], str], ...]] = (
    (lambda start: not start, "It is empty."),
    (lambda start: not start.strip(b"\0"), "It begins with zeros, as when a download or a copy was broken off."),
    (_text(b"version https://git-lfs"), "It is a Git LFS pointer: fetch the file itself with 'git lfs pull'."),
    (_text(b"<!doctype", b"<html", b"<?xml", b"<error"), "It is a web page: the download went wrong."),
    (_text(b"{"), "It is JSON: the description of a model, or what a server answered instead of the file."),
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
