"""Packed streams: gzip, bzip2, xz, Zstandard and zip's own methods, unpacked in bounded pieces."""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Final, NamedTuple, Protocol

from ftkit._archives.members import CHUNK
from ftkit.errors import ArchiveError

_LZMA_MEMORY: Final = 1 << 30  # a header may ask for 4 GiB


def blocks(file: IO[bytes], size: int | None = None) -> Iterator[bytes]:
    """Read ``size`` bytes of ``file`` from its current position, or the rest of it."""
    if size is None:
        yield from iter(lambda: file.read(CHUNK), b"")
        return
    while size:
        block = file.read(min(size, CHUNK))
        if not block:
            raise EOFError("the file ends too early")
        size -= len(block)
        yield block


class _Decoder(Protocol):
    """What bz2, lzma and zstd share, and the classes below provide for the others."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def unpack(packed: Iterator[bytes], new_decoder: Callable[[], _Decoder]) -> Iterator[bytes]:
    """Unpack streams that follow one another, padded with zeros at the end, as gzip, bzip2, xz and zstd allow."""
    rest = b""
    while True:
        decoder = new_decoder()
        yield from _unpack(packed, decoder, rest)
        if not decoder.eof:
            raise EOFError("the compressed data end too early")
        rest = decoder.unused_data.lstrip(b"\0")
        while not rest:
            block = next(packed, None)
            if block is None:
                return
            rest = block.lstrip(b"\0")


def unpack_member(packed: Iterator[bytes], method: int) -> Iterator[bytes]:
    """Unpack the data of a member of a zip; the caller checks its size and checksum."""
    yield from _unpack(packed, ZIP_METHODS[method]()) if method else packed
    for _ in packed:  # a signature may stand at their very end
        pass


def _unpack(packed: Iterator[bytes], decoder: _Decoder, block: bytes = b"") -> Iterator[bytes]:
    """Unpack one stream, a piece at a time: a few bytes must not fill the memory."""
    while not decoder.eof:
        if decoder.needs_input and not block:
            block = next(packed, b"")
            if not block:
                return
        try:
            out = decoder.decompress(block, CHUNK)
        except MemoryError:
            raise
        except Exception as error:  # each decoder raises its own errors
            raise ValueError(str(error)) from error
        block = b""
        if out:
            yield out


class _Inflate:
    """Zlib's decompressor."""

    def __init__(self, window_bits: int) -> None:
        self._zlib = zlib.decompressobj(window_bits)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        out = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        self.needs_input = len(out) < max_length and not self._zlib.unconsumed_tail
        return out


class _Inflate64:
    """The decompressor for Deflate64, which Windows uses for files over 2 GB."""

    unused_data = b""

    def __init__(self) -> None:
        try:
            import inflate64
        except ImportError:
            raise ArchiveError("it is compressed with Deflate64; to read it: pip install 'ftkit[7z]'.") from None
        self._inflater = inflate64.Inflater()
        self._rest = memoryview(b"")

    @property
    def eof(self) -> bool:
        return bool(self._inflater.eof)

    @property
    def needs_input(self) -> bool:
        return not self._rest

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:  # noqa: ARG002  (it knows no bound: small steps)
        self._rest = memoryview(data) if data else self._rest
        step, self._rest = self._rest[:1024], self._rest[1024:]
        out: bytes = self._inflater.inflate(bytes(step))
        return out


class _ZipLzma:
    """LZMA as in zip: its settings come first (APPNOTE 5.8.8)."""

    unused_data = b""

    def __init__(self) -> None:
        self._head = b""
        self._lzma: lzma.LZMADecompressor | None = None

    @property
    def eof(self) -> bool:
        return self._lzma is not None and self._lzma.eof

    @property
    def needs_input(self) -> bool:
        return self._lzma is None or self._lzma.needs_input

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        if self._lzma is None:
            self._head += data
            if len(self._head) < 9:
                return b""
            size, settings, dictionary = struct.unpack_from("<2xHBI", self._head)
            if size != 5 or dictionary > _LZMA_MEMORY:
                raise lzma.LZMAError("its LZMA settings are invalid")
            settings, lc = divmod(settings, 9)
            pb, lp = divmod(settings, 5)
            filters = [{"id": lzma.FILTER_LZMA1, "dict_size": dictionary, "lc": lc, "lp": lp, "pb": pb}]
            self._lzma = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
            data = self._head[9:]
        return self._lzma.decompress(data, max_length)


def _xz() -> _Decoder:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY)


def _zstd() -> _Decoder:
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]  # Python 3.14
    except ImportError:
        try:
            from backports import zstd
        except ImportError:
            raise ArchiveError("it is compressed with Zstandard; to read it: pip install 'ftkit[7z]'.") from None
    decoder: _Decoder = zstd.ZstdDecompressor()
    return decoder


class _Packing(NamedTuple):
    magic: bytes
    new_decoder: Callable[[], _Decoder]


# What a tar may be packed in. Of zlib's window bits, 16 more mean gzip, and negative ones no header at all.
PACKINGS: Final = {
    "gz": _Packing(b"\x1f\x8b", lambda: _Inflate(16 + zlib.MAX_WBITS)),  # RFC 1952
    "bz2": _Packing(b"BZh", bz2.BZ2Decompressor),
    "xz": _Packing(b"\xfd7zXZ\x00", _xz),
    "zst": _Packing(b"\x28\xb5\x2f\xfd", _zstd),  # RFC 8878
}
# APPNOTE 4.4.5.
STORED: Final = 0
ZIP_METHODS: Final[dict[int, Callable[[], _Decoder]]] = {
    8: lambda: _Inflate(-zlib.MAX_WBITS),
    9: _Inflate64,
    12: bz2.BZ2Decompressor,
    14: _ZipLzma,
    93: _zstd,
    95: _xz,
}
