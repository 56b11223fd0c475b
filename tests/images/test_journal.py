"""The journal: a scan goes on where it was."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftkit import FtkitError, scan_images
from ftkit._files import digest
from ftkit._images import folders
from ftkit._images.folders import open_folder
from ftkit._images.journal import Journal
from ftkit._images.verdict import Form, Note, Verdict, read_line, write_line


def test_a_scan_goes_on_from_its_journal(pets: Path, jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Known files are not read again; changed and new ones are; a torn last line is no harm."""
    journal = pets.parent / "scan.journal"
    first = scan_images(pets, workers=1, journal=journal)
    with journal.open("ab") as file:
        file.write(b'["train/cat/half')
    (pets / "train/cat/1.jpg").write_bytes(jpegs[10][:3000])
    (pets / "train/cat/new.jpg").write_bytes(jpegs[11])
    asked: list[str] = []
    check = folders.check_batch
    monkeypatch.setattr(
        folders, "check_batch", lambda root, paths, timeout: asked.extend(paths) or check(root, paths, timeout)
    )
    second = scan_images(pets, workers=1, journal=journal)
    assert sorted(asked) == ["train/cat/1.jpg", "train/cat/new.jpg"]
    assert second.to_dict() | {"seconds": 0} == scan_images(pets, workers=1).to_dict() | {"seconds": 0}
    assert (first.images, second.images) == (10, 10)
    asked.clear()
    assert scan_images(pets, workers=1, journal=journal).findings == second.findings
    assert asked == []


def test_a_killed_scan_goes_on(pets: Path, jpegs: list[bytes]) -> None:
    """What a killed process had found out is not lost."""
    for number in range(300):
        (pets / f"train/cat/copy{number}.jpg").write_bytes(jpegs[number % 12])
    journal = pets.parent / "scan.journal"
    script = f"from ftkit import scan_images; scan_images({str(pets)!r}, workers=1, journal={str(journal)!r})"
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 30
    while (not journal.exists() or journal.read_bytes().count(b"\n") < 40) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait()
    lines = journal.read_bytes().count(b"\n")
    report = scan_images(pets, workers=1, journal=journal)
    assert lines >= 40
    assert report.to_dict() | {"seconds": 0} == scan_images(pets, workers=1).to_dict() | {"seconds": 0}


def test_a_journal_of_something_else_is_left_alone(pets: Path) -> None:
    """A file that is no journal, or one of another folder, is neither used nor touched."""
    other = pets.parent / "notes.txt"
    for text in ("dear diary\n", "dear diary\nto be continued", "x"):
        other.write_text(text)
        with pytest.raises(FtkitError, match="something else"):
            scan_images(pets, workers=1, journal=other)
        assert other.read_text() == text
    journal = pets.parent / "scan.journal"
    scan_images(pets / "train", workers=1, journal=journal)
    with pytest.raises(FtkitError, match="contains the scan of"):
        scan_images(pets, workers=1, journal=journal)
    with pytest.raises(FtkitError, match="among the images"):
        scan_images(pets, workers=1, journal=pets / "scan.journal")


PATHS = [f"{name}.jpg" for name in "abcdefgh"]


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """Return a folder of files, and the journal of a scan that judged each differently."""
    root = tmp_path_factory.mktemp("kept") / "data"
    root.mkdir()
    folder = open_folder(root)
    with Journal(root.parent / "journal", folder) as journal:
        for number, path in enumerate(PATHS):
            (root / path).write_bytes(bytes(number))
            notes = [Note("truncated", f"after {number} bytes")] if number % 2 else []
            form = Form("JPEG", "RGB", number, number)
            journal.append(write_line(path, Verdict(notes, folder.stamp(path), f"{number:032x}", form).to_json()))
    return root, (root.parent / "journal").read_bytes()


@st.composite
def harmed(draw: st.DrawFn, data: bytes) -> bytes:
    """Flip bits, zero blocks, write noise, cut, drop, double and exchange lines, edit them as a person would."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        size = draw(st.integers(1, 600))
        lines = data.splitlines(keepends=True)
        here = draw(st.integers(0, max(0, len(lines) - 1)))
        match draw(st.sampled_from(["flip", "flip", "zero", "noise", "cut", "drop", "double", "exchange", "edit"])):
            case "flip" if data:
                data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
            case "zero":
                data = data[:at] + bytes(len(data[at : at + size])) + data[at + size :]
            case "noise":
                data = data[:at] + draw(st.binary(max_size=99)) + data[at + size :]
            case "cut":
                data = data[:at]
            case "drop":
                data = b"".join(lines[:here] + lines[here + 1 :])
            case "double":
                data += b"".join(lines[here : here + 1])
            case "exchange":
                data = b"".join(draw(st.permutations(lines)))
            case "edit":
                data = data.replace(b'[["truncated", "after 3 bytes", null]]', b"[]").replace(b'"a.jpg"', b'"b.jpg"')
    return data


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_line_counts_as_it_was_written_or_not_at_all(kept: tuple[Path, bytes], data: st.DataObject) -> None:
    """Whatever happens to the file: never another verdict, never a bare exception, and what is added is found again."""
    root, whole = kept
    verdicts = dict(map(read_line, (line.partition(b" ")[2] for line in whole.splitlines()[1:])))
    folder, path = open_folder(root), root.parent / "harmed"
    path.write_bytes(data.draw(harmed(whole)))
    before = path.read_bytes()
    try:
        with Journal(path, folder) as journal:
            known = {name: journal.recall(name) for name in PATHS}
            for name, found in known.items():
                if found:
                    assert read_line(found[0]) == journal.read(found[1]) == (name, verdicts[name])
                else:
                    journal.append(write_line(name, verdicts[name].to_json()))
    except FtkitError as error:
        assert "Pass another path" in str(error)  # noqa: PT017
        assert path.read_bytes() == before
        return
    with Journal(path, folder) as journal:
        assert all(journal.recall(name) for name in PATHS)


def test_one_flipped_bit_costs_one_line(kept: tuple[Path, bytes]) -> None:
    """In the first line none."""
    root, whole = kept
    folder, path = open_folder(root), root.parent / "flipped"
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with Journal(path, folder) as journal:
            lost = sum(journal.recall(name) is None for name in PATHS)
        first = len(whole.splitlines(keepends=True)[0]) - 1
        assert lost == 0 if at < first else lost in (1, 2)


@pytest.mark.parametrize("share", range(5))
def test_a_scan_with_a_harmed_journal_is_as_one_without(pets: Path, jpegs: list[bytes], share: int) -> None:
    """To the last detail: a line without a finding hides no broken image."""
    (pets / "train/cat/cut.jpg").write_bytes(jpegs[10][:3000])
    (pets / "train/dog/copy.jpg").write_bytes((pets / "val/dog/0.jpg").read_bytes())
    journal = pets.parent / "scan.journal"
    wanted = scan_images(pets, workers=1, journal=journal).to_dict() | {"seconds": 0}
    lines = bytearray(journal.read_bytes())
    rng = random.Random(share)
    for _ in range(4):
        lines[rng.randrange(len(lines))] ^= 1 << rng.randrange(8)
    at = len(lines) * share // 5
    lines[at : at + 300] = bytes(300)
    journal.write_bytes(bytes(lines).replace(b'[["truncated"', b'[["constant"'))
    for _ in range(2):
        assert scan_images(pets, workers=1, journal=journal).to_dict() | {"seconds": 0} == wanted


def test_a_journal_of_another_version_is_begun_anew(kept: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its verdicts may be others; one that was torn in its first line, or zeroed, holds nothing."""
    root, whole = kept
    folder, path = open_folder(root), root.parent / "other"
    first = whole.splitlines(keepends=True)[0]
    for data in (first[:20], bytes(4096), b"", first):
        path.write_bytes(data)
        with Journal(path, folder) as journal:
            assert journal.recall(PATHS[0]) is None
        assert path.read_bytes() == first
    path.write_bytes(whole)
    monkeypatch.setattr("ftkit._images.journal.__version__", "99")
    with Journal(path, folder) as journal:
        assert journal.recall(PATHS[0]) is None


def test_a_journal_that_can_not_be_kept(pets: Path) -> None:
    """A folder, a place that is not there, a device, and a URL are errors of ours."""
    for path in (pets.parent, pets.parent / "nowhere/journal", "memory://journal", os.devnull):
        with pytest.raises(FtkitError, match=r"Can't|is a URL"):
            scan_images(pets, workers=1, journal=path)


def test_two_scans_that_share_a_journal_notice(kept: tuple[Path, bytes]) -> None:
    """A place where another's line stands is not read as one's own."""
    root, whole = kept
    path = root.parent / "shared"
    path.write_bytes(whole)
    with Journal(path, open_folder(root)) as journal:
        (_, at) = journal.recall("b.jpg") or (b"", 0)
        with pytest.raises(FtkitError, match="Use one journal per scan"):
            journal.read(at + 1)


def test_what_may_pass_is_looked_at_again(pets: Path) -> None:
    """A verdict counts as long as the file stays as it is, but for one that may come out otherwise at the next try."""
    journal, folder = pets.parent / "scan.journal", open_folder(pets)
    paths = ["train/cat/1.jpg", "train/cat/3.jpg", "train/dog/2.jpg"]
    kinds = ["truncated", "timeout", "cmyk"]
    with Journal(journal, folder) as first:
        for path, kind in zip(paths, kinds, strict=True):
            first.append(write_line(path, Verdict([Note(kind, "")], folder.stamp(path)).to_json()))
    (pets / paths[2]).write_bytes(b"changed")
    with Journal(journal, folder) as second:
        line, place = second.recall(paths[0]) or (b"", 0)
        assert read_line(line)[0] == second.read(place)[0] == paths[0]
        assert second.recall(paths[1]) is second.recall(paths[2]) is second.recall("train/cat/5.jpg") is None


def test_a_line_with_fewer_fields_is_read_anew(pets: Path, tmp_path: Path) -> None:
    """Builds of one version may differ in what they measure: such a line is sound, but does not count."""
    journal = tmp_path / "scan.journal"
    whole = scan_images(pets, workers=1, journal=journal)
    head, *lines = journal.read_bytes().splitlines(keepends=True)
    shorter = []
    for line in lines:
        path, verdict = json.loads(line.partition(b" ")[2])
        text = json.dumps([path, verdict[:-1]]).encode() + b"\n"
        shorter.append(digest(head + text).encode() + b" " + text)
    journal.write_bytes(head + b"".join(shorter))
    again = scan_images(pets, workers=1, journal=journal)
    assert list(again.table) == list(whole.table)


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_disk_that_is_full_is_a_clear_error(pets: Path, is_kept: bool) -> None:
    """It says which file can't be written; a journal goes on once there is room."""
    resource = pytest.importorskip("resource")
    journal = pets.parent / "scan.journal" if is_kept else None
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        with pytest.raises(FtkitError, match=r"scan\.journal can't be written" if is_kept else "set TMPDIR"):
            scan_images(pets, workers=1, journal=journal)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    report = scan_images(pets, workers=1, journal=journal)
    assert report.findings == scan_images(pets, workers=1).findings


NO_LOCKS = """
import fcntl

def none(*_):
    raise OSError(37, "No locks available")

fcntl.flock = none
"""
SCAN = "from ftkit import scan_images; print(scan_images({!r}, workers=1, journal={!r}).images)"


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGSTOP")
def test_one_scan_at_a_time_writes_to_a_journal(pets: Path, jpegs: list[bytes]) -> None:
    """The second gets a clear error at its start and the first goes on; once that was killed, the journal is free."""
    for number in range(200):
        (pets / f"train/cat/copy{number}.jpg").write_bytes(jpegs[number % 12])
    journal = pets.parent / "scan.journal"
    script = SCAN.format(str(pets), str(journal))
    for is_killed in (False, True):
        journal.unlink(missing_ok=True)
        first = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 30
        while (not journal.exists() or journal.read_bytes().count(b"\n") < 9) and time.monotonic() < deadline:
            time.sleep(0.002)
        first.send_signal(signal.SIGSTOP)
        with pytest.raises(FtkitError, match=r"Another scan is writing to the journal .*scan\.journal\. Wait"):
            scan_images(pets, workers=1, journal=journal)
        if is_killed:
            first.kill()
        else:
            first.send_signal(signal.SIGCONT)
        said, _ = first.communicate(timeout=60)
        assert said == ("" if is_killed else "210\n")
        report = scan_images(pets, workers=1, journal=journal)
        assert report.to_dict() | {"seconds": 0} == scan_images(pets, workers=1).to_dict() | {"seconds": 0}


def test_the_processes_of_a_scan_that_was_killed_don_t_hold_its_journal(pets: Path) -> None:
    """Those that an executor forked live on, without anybody to tell them to end."""
    if not hasattr(os, "fork"):
        pytest.skip("nothing can be forked here")
    with Journal(pets.parent / "scan.journal", open_folder(pets)) as journal:
        journal.append(write_line("a.jpg", Verdict([]).to_json()))
        (said, say), (ended, end) = os.pipe(), os.pipe()
        child = os.fork()
        if not child:
            os.write(say, b"!")
            os.close(end)
            os.read(ended, 1)
            os._exit(0)
        os.read(said, 1)
    try:
        with Journal(pets.parent / "scan.journal", open_folder(pets)) as again:
            assert again.recall("a.jpg") is None
    finally:
        os.close(end)
        os.waitpid(child, 0)
    assert (pets.parent / "scan.journal").read_bytes().count(b"\n") == 2


@pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX")
def test_without_locks_two_scans_at_once_are_both_right(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They add to the journal line by line, and what both have found is there; a torn line costs no other."""
    import fcntl

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    place, folder = pets.parent / "scan.journal", open_folder(pets)
    paths = sorted(path.relative_to(pets).as_posix() for path in pets.rglob("*.jpg"))

    def verdict(path: str) -> bytes:
        return write_line(path, Verdict([], folder.stamp(path)).to_json())

    with Journal(place, folder) as first, Journal(place, folder) as second:
        at = [(journal.append(verdict(path)), journal, path) for path in paths[:3] for journal in (first, second)]
        at += [(second.append(verdict(paths[3])), second, paths[3])]
        assert all(journal.read(where)[0] == path for where, journal, path in at)
    with place.open("ab") as file:
        file.write(b"torn")
    with Journal(place, folder) as third:
        assert all(third.recall(path) for path in paths[:4])
        third.append(verdict(paths[4]))
    with Journal(place, folder) as fourth:
        assert all(fourth.recall(path) for path in paths[:5])
    other = pets.parent / "notes.txt"
    other.write_text("dear diary")
    with pytest.raises(FtkitError, match="something else"):
        Journal(other, folder)
    assert other.read_text() == "dear diary"
    place.unlink()
    command = [sys.executable, "-c", NO_LOCKS + SCAN.format(str(pets), str(place))]
    scans = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [scan.communicate(timeout=60)[0] for scan in scans] == ["10\n"] * 2
    report = scan_images(pets, workers=1, journal=place)
    assert report.to_dict() | {"seconds": 0} == scan_images(pets, workers=1).to_dict() | {"seconds": 0}
