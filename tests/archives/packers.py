"""Archives made to order, and what is in a folder."""

from __future__ import annotations

import io
import stat
import tarfile
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path

PICTURE = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 4 + b"\xff\xd9"


GOOD = {"train/ants/1.jpg": PICTURE, "train/bees/2.jpg": PICTURE[::-1]}


def zip_info(name: str, mode: int = stat.S_IFREG | 0o644, *, system: int = 3) -> zipfile.ZipInfo:
    """Return an entry whose name zipfile has not had its way with."""
    info = zipfile.ZipInfo("x", (2024, 5, 6, 7, 8, 10))
    info.filename, info.external_attr, info.create_system = name, mode << 16, system
    return info


def make_zip(path: Path, entries: Iterable[tuple[str | zipfile.ZipInfo, bytes]]) -> Path:
    """Write a zip, with one name twice if need be."""
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, data in entries:
            info = name if isinstance(name, zipfile.ZipInfo) else zip_info(name)
            archive.writestr(info, data, zipfile.ZIP_DEFLATED)
    return path


def make_unmarked_zip(path: Path, names: Iterable[bytes]) -> Path:
    """Write a zip as old Windows tools do: names in a local code page, and nothing that says so."""
    blob, renamed = io.BytesIO(), []
    with zipfile.ZipFile(blob, "w") as archive:
        for number, raw in enumerate(names):
            stand_in = chr(ord("A") + number) * len(raw)
            archive.writestr(zip_info(stand_in, system=0), PICTURE)
            renamed.append((stand_in.encode(), raw))
    data = blob.getvalue()
    for stand_in, raw in renamed:
        assert data.count(stand_in) == 2
        data = data.replace(stand_in, raw)
    path.write_bytes(data)
    return path


def tar_info(name: str, **fields: object) -> tarfile.TarInfo:
    """Return a tar header."""
    info = tarfile.TarInfo(name)
    info.mtime = 1_700_000_000
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def make_tar(path: Path, members: Iterable[tuple[str | tarfile.TarInfo, bytes]], packing: str = "") -> Path:
    """Write a tar."""
    with tarfile.open(path, f"w:{packing}") as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tar_info(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def link(name: str, target: str, *, hard: bool = False) -> tuple[tarfile.TarInfo, bytes]:
    """Return a link for ``make_tar``."""
    return tar_info(name, type=tarfile.LNKTYPE if hard else tarfile.SYMTYPE, linkname=target), b""


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files below ``folder``."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


NAMES = {
    "cp949": ["학습/개미/사진.jpg", "학습/벌/사진 (2).jpg", "검증/고양이.png"],
    "cp932": ["学習/蟻/写真.jpg", "テスト/ミツバチ.jpg", "ソース表.txt"],
    "gbk": ["训练/蚂蚁/图片.jpg", "验证/蜜蜂.jpg", "数据集说明.txt"],
    "cp437": ["Größe/Mädchen.jpg", "été/forêt.jpg", "niño.jpg"],
    "utf-8": ["학습/사진.jpg", "写真/猫.jpg", "Größe.txt"],
}
