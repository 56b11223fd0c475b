"""What a weights file is, by its content: the one list of formats."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, Literal, TypeAlias

from ftkit.errors import CheckpointError

__all__ = ["LEGACY_MAGIC", "SUFFIXES", "TORCH_SUFFIXES", "Format", "content_format"]

Format: TypeAlias = Literal["safetensors", "zip", "legacy", "tar", "pickle"]

TORCH_SUFFIXES: Final = frozenset({".pt", ".pth", ".ckpt", ".tar"})
"""Names of files that torch is expected to read; what is written under them is a torch file."""

SUFFIXES: Final = TORCH_SUFFIXES | {".safetensors"}

LEGACY_MAGIC: Final = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e"
"""How the files of torch before 1.6 begin."""

# The old format begins with a pickle of one number, of any protocol; newer ones put a frame around it.
_LEGACY: Final = re.compile(b"\x80[\x02-\x05](\x95.{8})?" + re.escape(LEGACY_MAGIC[2:]), re.DOTALL)


def content_format(path: str | os.PathLike[str]) -> Format:
    """Tell what kind of weights file this is, by its content alone.

    Raises:
        CheckpointError: It is none that ftkit reads; the message says what it looks like.

    Example:
        >>> import torch
        >>> from ftkit._formats import content_format
        >>> torch.save({"a": torch.ones(2)}, "misleading.safetensors")
        >>> content_format("misleading.safetensors")
        'zip'
    """
    try:
        with Path(path).open("rb") as file:
            start = file.read(512)
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no file {os.fspath(path)}.") from error
    except OSError as error:
        raise CheckpointError(f"Can't open {os.fspath(path)}: {error.strerror}.") from error
    if start[:4] == b"PK\x03\x04":
        return "zip"
    if start[257:262] == b"ustar":
        return "tar"
    if _LEGACY.match(start):
        return "legacy"
    if start[7:9] == b"\0{":
        return "safetensors"
    if start[:1] == b"\x80" and start[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}:
        return "pickle"
    raise CheckpointError(f"{os.fspath(path)} is no weights file. {_looks_like(start)}")


def _looks_like(start: bytes) -> str:
    text = start.lstrip().lower()
    if not start:
        return "It is empty."
    if not start.strip(b"\0"):
        return "It begins with zeros, as when a download or a copy was broken off."
    if text.startswith(b"version https://git-lfs"):
        return "It is a Git LFS pointer: fetch the file itself with 'git lfs pull'."
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<error")):
        return "It is a web page: the download went wrong."
    if text.startswith(b"{"):
        return "It is JSON: the description of a model, or what a server answered instead of the file."
    if start.startswith(b"\x93NUMPY"):
        return "It is a numpy array: load it with numpy.load."
    if start.startswith(b"\x89HDF"):
        return "It is an HDF5 file, as Keras writes."
    if start.startswith((b"GGUF", b"TFL3")) or (start[:1], start[2:3]) == (b"\x08", b"\x12"):
        return "It is a model for inference in another program."
    for magic, kind in _PACKED.items():
        if start.startswith(magic):
            return f"It is compressed with {kind}: unpack it first."
    return f"It starts with {start[:16]!r}."


_PACKED: Final = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"7z\xbc\xaf": "7-Zip",
    b"(\xb5/\xfd": "zstd",
}
