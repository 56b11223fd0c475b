"""Atomic, durable writes: the old file or the new one, whole, whatever happens."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from ftkit import _files
from ftkit._files import atomic_write, digest, lock, open_folder, remove_litter
from ftkit.errors import FileWriteError


@given(st.binary())
def test_digest_is_xxh3_128(data: bytes) -> None:
    """Bytes, bytearray and memoryview of the same content agree with the reference."""
    assert {digest(data), digest(bytearray(data)), digest(memoryview(data))} == {xxhash.xxh3_128(data).hexdigest()}


@given(data=st.binary(min_size=1), bit=st.integers(min_value=0))
def test_digest_notices_any_flipped_bit(data: bytes, bit: int) -> None:
    """One bit is enough."""
    flipped = bytearray(data)
    flipped[bit // 8 % len(data)] ^= 1 << bit % 8
    assert digest(flipped) != digest(data)


def test_writes_and_makes_folders(tmp_path: Path) -> None:
    """A missing folder is made, and nothing but the file is in it."""
    with atomic_write(tmp_path / "a" / "b.bin") as file:
        file.write(b"new")
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"new"
    assert os.listdir(tmp_path / "a") == ["b.bin"]


def test_an_error_in_the_block_keeps_the_old_file(tmp_path: Path) -> None:
    """The error itself comes through, and no temporary file stays."""
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write(b"half of the n")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.pt"]


def test_the_old_file_stands_until_the_end(tmp_path: Path) -> None:
    """A reader in mid-write sees the whole old file."""
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_permissions_follow_the_umask_and_the_old_file(tmp_path: Path) -> None:
    """A new file is as open as any other; a replaced one keeps its mode."""
    path = tmp_path / "x"
    before = os.umask(0o027)
    try:
        with atomic_write(path):
            pass
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        for mode in (0o600, 0o664, 0o666):  # whatever the umask says
            path.chmod(mode)
            with atomic_write(path):
                pass
            assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        os.umask(before)


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    """The file behind it is replaced."""
    (tmp_path / "run7.pt").write_bytes(b"old")
    (tmp_path / "latest.pt").symlink_to("run7.pt")
    with atomic_write(tmp_path / "latest.pt") as file:
        file.write(b"new")
    assert (tmp_path / "latest.pt").is_symlink()
    assert (tmp_path / "run7.pt").read_bytes() == b"new"


def test_the_longest_name_is_no_problem(tmp_path: Path) -> None:
    """The temporary name stays within what the file system takes."""
    path = tmp_path / ("한" * 83 + ".pt")
    with atomic_write(path) as file:
        file.write(b"x")
    assert path.read_bytes() == b"x"


def test_a_name_that_is_too_long_is_a_clear_error(tmp_path: Path) -> None:
    """No file system takes it."""
    with pytest.raises(FileWriteError, match="too long"), atomic_write(tmp_path / ("n" * 300)) as file:
        file.write(b"")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_a_clear_error(tmp_path: Path) -> None:
    """It says what is wrong and that nothing was left."""
    with (
        pytest.raises(FileWriteError, match=r"it is a folder. Nothing was left behind. Name a file in it."),
        atomic_write(tmp_path),
    ):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_is_no_ordinary_file_stays(tmp_path: Path) -> None:
    """A pipe, or a device such as /dev/null, is not replaced."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(FileWriteError, match="not an ordinary file"), atomic_write(pipe) as file:
        file.write(b"1")
    assert pipe.is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]


def test_the_advice_fits_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Space is missing only where it is."""

    def refuse(number: int) -> None:
        def replace(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(Path, "replace", replace)

    for number, advice in [
        (errno.ENOSPC, "Free some space"),
        (errno.EACCES, "Choose a folder you can write to"),
        (errno.EIO, "Choose another folder"),
    ]:
        refuse(number)
        with pytest.raises(FileWriteError, match=advice), atomic_write(tmp_path / "x"):
            pass
    assert os.listdir(tmp_path) == []


def test_a_path_is_what_people_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tilde is the home folder wherever a path is given; what is none is an error."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    with atomic_write("~/x/y.bin") as file:
        file.write(b"x")
    assert (tmp_path / "x/y.bin").read_bytes() == b"x"
    for wrong in ("a\0b", 3, None, ["a"]):
        with pytest.raises(FileWriteError), atomic_write(wrong):  # type: ignore[arg-type]
            pass


@pytest.mark.skipif(sys.platform == "win32", reason="folders can be opened on POSIX alone")
def test_a_lock_is_one_of_files_and_of_folders(tmp_path: Path) -> None:
    """Who holds it keeps others out, in this process too, until it is closed."""
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file"):
        first, second = ([open_folder, lambda path: os.open(path, os.O_RDWR)][place.is_file()](place) for _ in range(2))
        assert (lock(first), lock(second), lock(first)) == (True, False, True)
        os.close(first)
        assert lock(second, wait=True) is True
        os.close(second)
    assert lock(first) is None  # as of a file system that knows none


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX locks")
def test_a_clean_up_never_meets_a_file_that_is_not_locked_yet(tmp_path: Path) -> None:
    """However often one process writes and another one tidies up, no write fails."""
    tidy = threading.Event()

    def clean() -> None:
        while not tidy.is_set():
            remove_litter(tmp_path)

    cleaner = threading.Thread(target=clean)
    cleaner.start()
    try:
        for number in range(150):
            with atomic_write(tmp_path / "model.pt") as file:
                file.write(bytes([number]))
    finally:
        tidy.set()
        cleaner.join()
    assert os.listdir(tmp_path) == ["model.pt"]


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script that imports nothing but ftkit._files and the standard library."""
    head = "import os, sys, signal, resource\nfrom pathlib import Path\nfrom ftkit._files import *\n"
    return subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")},
    )


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    """Running out of space in mid-write is a clear error; the old file is intact, no litter."""
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")
    done = run(
        """
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            with atomic_write(sys.argv[1]) as file:
                for _ in range(100):
                    file.write(bytes(100))
        except OSError as error:
            print(type(error).__name__, error)
        """,
        path,
    )
    assert done.stdout.startswith("FileWriteError Can't write"), done
    assert "is intact" in done.stdout
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.pt"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_kill_in_mid_write_costs_nothing_and_the_litter_goes(tmp_path: Path) -> None:
    """After kill -9 the old file is whole, and the next start removes what was left."""
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")
    done = run(
        """
        with atomic_write(sys.argv[1]) as file:
            file.write(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        path,
    )
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert len(os.listdir(tmp_path)) == 2
    assert len(remove_litter(tmp_path)) == 1
    assert os.listdir(tmp_path) == ["model.pt"]


def test_litter_of_a_living_writer_stays(tmp_path: Path) -> None:
    """Cleaning up never takes the file from under another run."""
    with atomic_write(tmp_path / "model.pt") as file:
        file.write(b"new")
        assert run("print(remove_litter(sys.argv[1]))", tmp_path).stdout == "[]\n"
        assert remove_litter(tmp_path) == []
    assert (tmp_path / "model.pt").read_bytes() == b"new"


def test_files_of_others_are_never_litter(tmp_path: Path) -> None:
    """Only ftkit's own temporary names are removed."""
    for name in (".hidden", "model.pt.tmp", ".model.pt.swp"):
        (tmp_path / name).touch()
    assert remove_litter(tmp_path) == []


@pytest.mark.parametrize("known", [True, False])
def test_macos_is_asked_to_empty_the_cache_of_the_disk(
    tmp_path: Path, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the file and for its folder; where the file system knows no such thing, what every system has must do."""
    asked: list[object] = []
    plain: list[int] = []
    fsync = os.fsync

    def control(descriptor: int, command: int) -> None:
        asked.append((os.fstat(descriptor).st_mode & 0o170000, command))
        if not known:
            raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", control)
    monkeypatch.setattr(os, "fsync", lambda descriptor: (plain.append(descriptor), fsync(descriptor)))
    with atomic_write(tmp_path / "a.bin") as file:
        file.write(b"new")
    assert asked == [(stat.S_IFREG, 51), (stat.S_IFDIR, 51)]
    assert len(plain) == (0 if known else 2)


def test_a_tree_is_forced_file_by_file_where_there_is_no_syncfs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file and folder, and at the end once for the cache of the disk."""
    forced: list[str] = []
    monkeypatch.setattr(_files.ctypes, "CDLL", lambda *_, **__: object())
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(
        fcntl, "fcntl", lambda descriptor, _: forced.append("full " + os.readlink(f"/proc/self/fd/{descriptor}"))
    )
    monkeypatch.setattr(os, "fsync", lambda descriptor: forced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1").touch()
    (tmp_path / "l").symlink_to("gone")
    _files.sync_tree(tmp_path)
    assert forced == [str(tmp_path / "a/1"), str(tmp_path / "a"), f"full {tmp_path}"]


@pytest.mark.skipif(sys.platform == "win32", reason="acts as if it was Windows")
def test_locks_where_folders_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows a file in the folder is locked in its place, with the system's own function."""
    held: set[tuple[int, int]] = set()

    class Msvcrt:
        LK_LOCK, LK_NBLCK = 1, 2

        @staticmethod
        def locking(descriptor: int, mode: int, count: int) -> None:
            assert (mode, count) == (Msvcrt.LK_NBLCK, 1)
            place = os.fstat(descriptor)
            if (place.st_dev, place.st_ino) in held:
                raise OSError(errno.EACCES, "Permission denied")
            held.add((place.st_dev, place.st_ino))

    monkeypatch.setattr(_files, "msvcrt", Msvcrt, raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    first, second = open_folder(tmp_path), open_folder(tmp_path)
    assert (lock(first), lock(second)) == (True, False)
    assert os.listdir(tmp_path) == [".ftkit-lock"]
    os.close(first)
    os.close(second)
