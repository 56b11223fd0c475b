"""Zip, with its several ways to store a name, a size and a time."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import hmac
import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Final

from ftkit._archives.members import FILE_KINDS, Archive, Check, Member, Source, check_link, reading, refused
from ftkit._archives.names import decode, find_encoding
from ftkit._archives.packing import STORED, ZIP_METHODS, blocks, unpack_member
from ftkit._wording import shown
from ftkit.errors import ArchiveError

_SIGNATURE, _HEADER_SIZE = b"PK\x03\x04", 30  # APPNOTE 4.3.7
_ENCRYPTED, _UTF8 = 0x1, 0x800  # APPNOTE 4.4.4
_UNIX_SYSTEMS: Final = (3, 19)  # Unix, macOS (APPNOTE 4.4.2)
_MSDOS_FOLDER: Final = 0x10  # of the attributes of a file
_AES: Final = 99  # the method that replaces the real one, as WinZip specifies
# Extra fields: Info-ZIP's Unicode path and extended timestamp, and WinZip's AES.
_UNICODE_PATH, _TIMES, _AES_FIELD = 0x7075, 0x5455, 0x9901


def read_zip(source: Source) -> Archive:
    """Read the directory of a zip."""
    archive = Archive("zip")
    with reading("its directory, which is at the end,"):
        opened = zipfile.ZipFile(source.file)
    infos = opened.infolist()
    source.limits.check_files(len(infos))
    _unwrap_offsets(source.file, infos)
    _refuse_unlisted(source.file, min((info.header_offset for info in infos), default=opened.start_dir))
    _refuse_overlap(infos)
    archive.total = sum(info.file_size for info in infos)
    source.limits.check_bytes(archive.total)
    names = [_raw_name(info) for info in infos]
    archive.encoding = find_encoding(name for name in names if isinstance(name, bytes))
    if archive.encoding and source.encoding:
        archive.encoding = source.encoding
    members = []
    for info, name in zip(infos, names, strict=True):
        source.limits.check_bytes(info.file_size, info.compress_size)
        text = name if isinstance(name, str) else decode(name, archive.encoding, forced=source.encoding is not None)
        members.append(_member(opened, info, text, source.password))
    archive.batches = iter([members])
    return archive


def _unwrap_offsets(file: IO[bytes], infos: list[zipfile.ZipInfo]) -> None:
    """Undo what macOS does to zips over 4 GiB: its Archive Utility writes offsets modulo 2**32.

    zipfile takes the difference for a program in front of the zip, and shifts all members by it.
    """
    for info in infos:
        while info.header_offset >= 1 << 32:
            file.seek(info.header_offset)
            if file.read(4) == _SIGNATURE:
                break
            info.header_offset -= 1 << 32


def _refuse_unlisted(file: IO[bytes], first: int) -> None:
    """Refuse a zip with members in front of the ``first`` one that its directory lists; a program may be there."""
    file.seek(0)
    if first and file.read(len(_SIGNATURE)) == _SIGNATURE:
        raise ArchiveError(
            f"its directory does not list the first {first:,} bytes, and another zip begins there: two zips were "
            "joined, or the directory is damaged. Unpack each separately, or fetch it again."
        )


def _raw_name(info: zipfile.ZipInfo) -> str | bytes:
    """Return a name as a string if the archive states its encoding, otherwise as bytes."""
    if info.flag_bits & _UTF8:
        return info.orig_filename
    raw = info.orig_filename.encode("cp437")  # undoes what zipfile did
    unicode_path = _extra(info).get(_UNICODE_PATH, b"")
    if len(unicode_path) > 5 and unicode_path[0] == 1 and unicode_path[1:5] == struct.pack("<I", zlib.crc32(raw)):
        with contextlib.suppress(UnicodeDecodeError):
            return unicode_path[5:].decode()
    return raw


def _extra(info: zipfile.ZipInfo) -> dict[int, bytes]:
    fields, rest = {}, info.extra
    while len(rest) >= 4:
        kind, size = struct.unpack_from("<HH", rest)
        fields[kind] = rest[4 : 4 + size]
        rest = rest[4 + size :]
    return fields


def _refuse_overlap(infos: list[zipfile.ZipInfo]) -> None:
    """Refuse members that share bytes: so kilobytes unpack to petabytes (D. Fifield, "A better zip bomb", 2019)."""
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise refused(info.filename, "overlaps another one, like an archive bomb")
        end = info.header_offset + _HEADER_SIZE + info.compress_size


def _member(opened: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, password: bytes | None) -> Member:
    unix = info.external_attr >> 16 if info.create_system in _UNIX_SYSTEMS else 0
    kind = FILE_KINDS.get(stat.S_IFMT(unix), "file")
    if name.endswith(("/", "\\")) or (not unix and info.external_attr & _MSDOS_FOLDER):
        kind = "folder"

    if info.flag_bits & _ENCRYPTED and password is None:
        raise refused(name, "is encrypted: pass its password=")

    def data() -> Iterator[bytes]:
        with reading(f"its member '{shown(name)}'"):
            yield from _data(opened, info, name, password)

    signed = info.compress_type == _AES and info.CRC == 0  # AE-2 has a signature instead of a checksum
    checksum = None if signed else info.CRC
    member = Member(
        name, kind, info.file_size, stat.S_IMODE(unix) if unix else None, _modified(info), checksum, data=data
    )
    if kind == "link":
        check_link(member)
        check = Check(member)
        member.target = os.fsdecode(b"".join(check.add(chunk) for chunk in data()))
        check.end()
    return member


def _modified(info: zipfile.ZipInfo) -> float | None:
    stamp = _extra(info).get(_TIMES, b"")  # seconds in UTC; the plain field is local time in steps of two
    if len(stamp) >= 5 and stamp[0] & 1:
        return float(struct.unpack_from("<i", stamp, 1)[0])
    try:
        return dt.datetime(*info.date_time).timestamp()
    except (OverflowError, ValueError, OSError):
        return None  # month 0 or hour 31: never set


def _data(opened: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, password: bytes | None) -> Iterator[bytes]:
    """Return the content of a member, decrypted and unpacked."""
    if info.flag_bits & _ENCRYPTED and info.compress_type != _AES:
        return _old_cipher(opened, info, name, password)
    file = opened.fp
    assert file is not None
    file.seek(info.header_offset)
    signature, name_size, extra_size = struct.unpack("<4s22xHH", file.read(_HEADER_SIZE))
    if signature != _SIGNATURE:
        raise zipfile.BadZipFile("there is no header where the directory says there is one")
    file.seek(name_size + extra_size, io.SEEK_CUR)
    method = info.compress_type
    packed = blocks(file, info.compress_size)
    if method == _AES and password is not None:
        method, packed = _decrypt(file, info, name, password)
    if method not in (STORED, *ZIP_METHODS):
        raise refused(name, f"is compressed with zip's method {method}, which is not supported")
    return unpack_member(packed, method)


def _old_cipher(opened: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, password: bytes | None) -> Iterator[bytes]:
    try:
        with opened.open(info, pwd=password) as content:
            yield from blocks(content)
    except NotImplementedError:
        raise
    except (RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise refused(
            name, f"can't be decrypted: the password is wrong, or the member is damaged ({shown(error)})"
        ) from error


def _decrypt(file: IO[bytes], info: zipfile.ZipInfo, name: str, password: bytes) -> tuple[int, Iterator[bytes]]:
    """Return the method and the compressed bytes of a member encrypted as WinZip AE-1 and AE-2 specify."""
    try:
        from Cryptodome.Cipher import AES
        from Cryptodome.Util import Counter
    except ImportError:
        raise refused(name, "is encrypted with AES; to read it: pip install 'ftkit[7z]'") from None
    _, _, strength, method = struct.unpack("<H2sBH", _extra(info).get(_AES_FIELD, b""))
    if strength not in (1, 2, 3):
        raise zipfile.BadZipFile(f"AES strength {strength} is unknown")
    key_size, salt_size = 8 + 8 * strength, 4 + 4 * strength
    salt, check = file.read(salt_size), file.read(2)
    keys = hashlib.pbkdf2_hmac("sha1", password, salt, 1000, 2 * key_size + 2)
    if keys[-2:] != check:
        raise refused(name, "can't be decrypted: the password is wrong")
    cipher = AES.new(keys[:key_size], AES.MODE_CTR, counter=Counter.new(128, little_endian=True, initial_value=1))
    signature = hmac.new(keys[key_size:-2], digestmod="sha1")

    def decrypted() -> Iterator[bytes]:
        for block in blocks(file, info.compress_size - salt_size - 12):
            signature.update(block)
            yield cipher.decrypt(block)
        if not hmac.compare_digest(signature.digest()[:10], file.read(10)):
            raise zipfile.BadZipFile("its signature does not match")

    return method, decrypted()
