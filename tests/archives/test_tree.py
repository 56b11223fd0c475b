"""What is written where: collisions, links, modes, times, and what is left out."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import stat
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftkit import extract_archive
from ftkit._archives.members import Limits, Member
from ftkit._archives.tree import Tree
from ftkit.errors import ArchiveError, FileWriteError
from tests.archives.packers import GOOD, PICTURE, contents, link, make_tar, make_zip, tar_info, zip_info


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a.jpg", "a.jpg"], "twice"),
        (["a", "a/b.jpg"], "file and a folder"),
        (["a/b.jpg", "a"], "file and a folder"),
        (["caf\u00e9.jpg", "cafe\u0301.jpg"], "Unicode"),
        (["caf\u00e9/1.jpg", "cafe\u0301/2.jpg"], "Unicode"),
    ],
)
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_collisions(
    tmp_path: Path, make: Callable[..., Path], names: list[str], words: str, nothing_left: Callable[..., str]
) -> None:
    """Two members for one place are refused: one would be lost."""
    nothing_left(make(tmp_path / "a", [(name, PICTURE) for name in names]), repr(names[1]), words)


def test_cases_live_side_by_side_where_the_disk_can(tmp_path: Path) -> None:
    """Names that differ by case alone come out on a disk that tells them apart, and are refused on one that can't."""
    names = ["A.jpg", "a.JPG"]
    archive = make_zip(tmp_path / "a.zip", [(name, name.encode()) for name in names])
    (tmp_path / "Probe").touch()
    if (tmp_path / "pROBE").exists():
        with pytest.raises(ArchiveError, match="by case"):
            extract_archive(archive, tmp_path / "out")
    else:
        extract_archive(archive, tmp_path / "out")
        assert contents(tmp_path / "out") == {name: name.encode() for name in names}


def test_case_collision_on_a_disk_that_folds_case(tmp_path: Path) -> None:
    """The rule for Windows and macOS, tried here: folders that would merge are refused, too."""
    tree = Tree(tmp_path, Limits(1e9, 1e9, 1e9, 0), lambda _: None)
    tree.folds_case = True
    assert tree.claim(Member("Cat/1.jpg", "file"))
    assert tree.claim(Member("Cat/2.jpg", "file"))
    with pytest.raises(ArchiveError, match=r"'cat/3\.jpg' collides with 'Cat', which differs only by case"):
        tree.claim(Member("cat/3.jpg", "file"))


@pytest.mark.parametrize("hard", [False, True])
def test_links_that_stay(tmp_path: Path, hard: bool) -> None:
    """Links inside the archive are made, through folders and other links, too."""
    members = [
        *GOOD.items(),
        link("val/1.jpg", "train/ants/1.jpg" if hard else "../train/ants/1.jpg", hard=hard),
        link("folder", "train/./bees//"),
        link("chain/2.jpg", "../folder/2.jpg"),
    ]
    report = extract_archive(make_tar(tmp_path / "a.tar", members), tmp_path / "out")
    assert (tmp_path / "out/val/1.jpg").read_bytes() == PICTURE
    assert (tmp_path / "out/chain/2.jpg").read_bytes() == PICTURE[::-1]
    assert (tmp_path / "out/val/1.jpg").is_symlink() != hard
    assert report.files == 5


@pytest.mark.parametrize(
    ("format", "target"),
    [
        *itertools.product(
            ["zip", "tar"], ["../out", "/etc/passwd", "x/../../..", "C:\\windows", "..\\..\\up", "me", ""]
        ),
        ("tar", "folder/../../.."),
        ("tar", "folder/up"),
    ],
)
def test_links_that_leave(tmp_path: Path, target: str, format: str, nothing_left: Callable[..., str]) -> None:
    """A link that leads out is refused, on whatever detour; so is one in a circle."""
    detours = {"me": "me", "folder": "a/b", "a/b/up": "../../.."}
    if format == "tar":
        members = [*GOOD.items(), *(link(name, to) for name, to in detours.items()), link("me", target)]
        if target == "me":
            members.pop()
        archive = make_tar(tmp_path / "a.tar", members)
    else:
        mode = stat.S_IFLNK | 0o777
        entries: list[tuple[str | zipfile.ZipInfo, bytes]] = [*GOOD.items(), (zip_info("me", mode), target.encode())]
        archive = make_zip(tmp_path / "a.zip", entries)
    nothing_left(archive, "link")


@pytest.mark.parametrize(
    "links",
    [
        {"cats/s1": "."},
        {"cats/s2": "../cats"},
        {"cats/deep/up": "../.."},
        {"root": "."},
        {"cats/d": "../dogs", "dogs/c": "../cats"},
        {"cats/d": "../dogs", "dogs/b": "../birds", "birds/by": "../other", "other": "cats"},
        {"cats/deep/x": "../../dogs/l", "dogs/l": "../cats"},
    ],
)
@pytest.mark.parametrize("strip", [False, True])
def test_links_in_a_circle(
    tmp_path: Path, links: dict[str, str], strip: bool, nothing_left: Callable[..., str]
) -> None:
    """A folder that lies in itself by way of links: whoever follows them, as ImageFolder does, reads it for ever."""
    top = "pets/" if strip else ""
    names = ["cats/1.jpg", "cats/deep/2.jpg", "dogs/3.jpg", "birds/4.jpg"]
    members = [*((top + name, PICTURE) for name in names), *(link(top + name, to) for name, to in links.items())]
    said = nothing_left(make_tar(tmp_path / "a.tar", members), "leads in a circle", strip=strip)
    assert any(f"'{top}{name}' is a link" in said for name in links)


def test_links_to_folders_that_are_no_circle(tmp_path: Path) -> None:
    """Two ways to one folder, a link to a neighbor, one to nowhere: nobody who follows them goes round."""
    links = {"cats/d": "../dogs", "birds/d": "../dogs", "all": "cats", "cats/deep/twin": "../twin", "no": "where/to"}
    members = [
        (name, PICTURE) for name in ("cats/1.jpg", "cats/deep/2.jpg", "dogs/3.jpg", "birds/4.jpg", "cats/twin/5")
    ]
    archive = make_tar(tmp_path / "a.tar", [*members, *(link(name, to) for name, to in links.items())])
    assert extract_archive(archive, tmp_path / "out").files == 10


_folders = st.lists(st.sampled_from("abc"), max_size=3)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(links=st.lists(st.tuples(_folders, _folders), max_size=5), files=st.lists(_folders, min_size=1, max_size=6))
def test_whoever_follows_links_comes_to_an_end(
    tmp_path_factory: pytest.TempPathFactory, links: list[tuple[list[str], list[str]]], files: list[list[str]]
) -> None:
    """Random links between random folders: refused exactly where a folder lies in itself."""
    folder = tmp_path_factory.mktemp("links")
    made = [(f"{'/'.join([*path, 'f'])}{number}", b"") for number, path in enumerate(files)]
    made += [
        link("/".join([*here, f"l{number}"]), "../" * len(here) + "/".join(there) or ".")
        for number, (here, there) in enumerate(links)
    ]
    archive = make_tar(folder / "a", made)
    by_hand = folder / "by hand"
    with tarfile.open(archive) as tar:
        tar.extractall(by_hand, filter="fully_trusted")
    if _goes_round(by_hand):
        with pytest.raises(ArchiveError, match="circle"):
            extract_archive(archive, folder / "out")
    else:
        extract_archive(archive, folder / "out")
    shutil.rmtree(folder)


def _goes_round(folder: Path) -> bool:
    above: dict[str, set[str]] = {str(folder): set()}
    for place, folders, _ in os.walk(folder, followlinks=True):
        me = os.path.realpath(place)
        if me in above[place]:
            return True
        above.update({os.path.join(place, name): above[place] | {me} for name in folders})
    return False


@pytest.mark.parametrize("target", ["../secret", "/etc/passwd", "later.jpg", "me.jpg", "soft.jpg", "folder"])
def test_hard_links_that_leave(tmp_path: Path, target: str, nothing_left: Callable[..., str]) -> None:
    """A hard link must lead to a file that came before it."""
    members = [
        link("soft.jpg", "train"),
        ("folder/1.jpg", PICTURE),
        link("me.jpg", target, hard=True),
        ("later.jpg", PICTURE),
    ]
    (tmp_path / "secret").write_text("secret")
    nothing_left(make_tar(tmp_path / "a.tar", members), "'me.jpg'")


def test_files_below_a_link(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """Nothing is written through a link, in whatever order the two come."""
    inside, below = link("door", "train"), ("door/evil.jpg", PICTURE)
    nothing_left(make_tar(tmp_path / "a.tar", [inside, below]), "through the link")
    nothing_left(make_tar(tmp_path / "b.tar", [below, inside]), "file and a folder")


def test_realpath_trick(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """Links whose path is too long for realpath, which then calls them safe (CVE-2025-4517)."""
    long, members, path = "d" * 247, [], ""
    for step in "abcdefghijklmnop":
        members += [(tar_info(path + long, type=tarfile.DIRTYPE), b""), link(path + step, long)]
        path += long + "/"
    chain = "/".join("abcdefghijklmnop") + "/" + "l" * 254
    members += [link(chain, "../" * 16), link("escape", chain + "/../../up"), ("escape/evil.jpg", PICTURE)]
    nothing_left(make_tar(tmp_path / "a.tar", members))


def test_long_chain_of_links(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """The check of links takes linear time where following them would take exponential time."""
    doubling = [link(f"l{number}", f"l{number - 1}/l{number - 1}") for number in range(1, 60)]
    nothing_left(make_tar(tmp_path / "a.tar", [link("l0", "."), *doubling]), "circle")


@pytest.mark.parametrize(
    ("packed", "wanted"),
    [(0o644, 0o644), (0o755, 0o755), (0o777, 0o755), (0o000, 0o600), (0o6777, 0o755), (0o606, 0o604)],
)
@pytest.mark.parametrize("format", ["zip", "tar"])
def test_modes(tmp_path: Path, packed: int, wanted: int, format: str) -> None:
    """Modes are kept as far as they are safe; set-uid bits are dropped, and the report says so."""
    if format == "zip":
        archive = make_zip(tmp_path / "a", [(zip_info("a.jpg", stat.S_IFREG | packed), PICTURE)])
    else:
        archive = make_tar(tmp_path / "a", [(tar_info("a.jpg", mode=packed), PICTURE)])
    before = os.umask(0o022)
    try:
        report = extract_archive(archive, tmp_path / "out")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out/a.jpg").stat().st_mode) == wanted
    assert report.set_uid == (packed > 0o777)
    assert ("set-uid" in str(report)) == (packed > 0o777)


@pytest.mark.parametrize("mtime", [-5, 1e12, 1e30, float("nan"), float("inf")])
def test_times_that_make_no_sense(tmp_path: Path, mtime: float) -> None:
    """A time before 1970 or to come becomes now."""
    info = tar_info("a.jpg", pax_headers={"mtime": str(mtime)})
    extract_archive(make_tar(tmp_path / "a.tar", [(info, PICTURE)]), tmp_path / "out")
    assert abs((tmp_path / "out/a.jpg").stat().st_mtime - time.time()) < 60


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_junk_is_left_out(tmp_path: Path, make: Callable[..., Path]) -> None:
    """What macOS and Windows leave in archives is counted, not written; a real file that looks alike is."""
    double = b"\x00\x05\x16\x07" + bytes(78)
    members = [
        *GOOD.items(),
        ("__MACOSX/train/ants/._1.jpg", double),
        ("train/.DS_Store", b"junk"),
        ("train/ants/.DS_Store", b"junk"),
        ("train/ants/Thumbs.db", b"junk"),
        ("train/ants/._1.jpg", double),
        ("train/ants/._real.jpg", PICTURE),
    ]
    report = extract_archive(make(tmp_path / "a", members), tmp_path / "out")
    assert contents(tmp_path / "out") == {**GOOD, "train/ants/._real.jpg": PICTURE}
    assert report.left_out == {"__MACOSX": 1, ".DS_Store": 2, "Thumbs.db": 1, "._*": 1}
    assert "left out: .DS_Store (2), ._* (1), Thumbs.db (1), __MACOSX (1)" in str(report)
    assert (report.files, report.bytes) == (3, 3 * len(PICTURE))


def test_junk_is_no_loophole(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """A name that leaves the folder is refused below __MACOSX, too."""
    nothing_left(make_zip(tmp_path / "a.zip", [("__MACOSX/../../evil", b"evil")]), "'..'")


def test_strip(tmp_path: Path) -> None:
    """The one folder that holds everything is taken away on demand, junk beside it or not."""
    members = [
        *((f"pets/{name}", data) for name, data in GOOD.items()),
        ("__MACOSX/pets/x", b""),
        link("pets/l", "train"),
    ]
    archive = make_tar(tmp_path / "a.tar", members)
    assert extract_archive(archive, tmp_path / "kept").stripped is None
    report = extract_archive(archive, tmp_path / "out", strip=True)
    assert report.stripped == "pets"
    assert "top-level folder removed: 'pets'" in str(report)
    assert {name for name in contents(tmp_path / "out") if not name.startswith("l")} == set(GOOD)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "kept", "out"]


def test_strip_without_a_wrapping_folder(tmp_path: Path) -> None:
    """Two folders, a file beside the folder, or a link to it: there is nothing to strip."""
    for number, extra in enumerate([("other/x", b""), ("x", b""), link("x", "train")]):
        archive = make_tar(tmp_path / "a.tar", [*GOOD.items(), extra])
        report = extract_archive(archive, tmp_path / str(number), strip=True)
        assert report.stripped is None
        assert GOOD.items() <= contents(tmp_path / str(number)).items()


def test_strip_must_not_open_a_way_out(tmp_path: Path, nothing_left: Callable[..., str]) -> None:
    """A link that stays in the archive may leave what is left of it without its wrapping folder."""
    archive = make_tar(tmp_path / "a.tar", [("pets/1.jpg", PICTURE), link("pets/l", "../pets/1.jpg")])
    extract_archive(archive, tmp_path / "out")
    nothing_left(archive, "'pets/l'", strip=True)


def no_links(number: int, windows: int | None) -> Callable[..., None]:
    """Return what makes links on a system that has none, or not for this account."""

    def symlink_to(self: Path, target: object, target_is_directory: bool = False) -> None:
        error = OSError(number, os.strerror(number), str(self))
        if windows:
            error.winerror = windows  # type: ignore[attr-defined, unused-ignore]  # Windows alone has it
        raise error

    return symlink_to


@pytest.mark.parametrize(
    ("number", "windows"),
    [(errno.EINVAL, 1314), (errno.EPERM, None), (errno.ENOSYS, None)],
    ids=["Windows", "FAT", "none"],
)
def test_a_system_without_links(
    tmp_path: Path, number: int, windows: int | None, nothing_left: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link to a file, through others too, becomes that file; one to a folder or to nothing is an error."""
    monkeypatch.setattr(Path, "symlink_to", no_links(number, windows))
    chain = [*GOOD.items(), link("l/1.jpg", "../" + next(iter(GOOD))), link("2.jpg", "l/1.jpg")]
    report = extract_archive(make_tar(tmp_path / "a.tar", chain), tmp_path / "out")
    first = next(iter(GOOD.values()))
    assert contents(tmp_path / "out") == {**GOOD, "l/1.jpg": first, "2.jpg": first}
    assert report.files == len(GOOD) + 2
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    for target, what in {"pets": "a folder", "gone.jpg": "nothing in the archive"}.items():
        archive = make_tar(tmp_path / target, [("pets/1.jpg", PICTURE), link("me", target)])
        nothing_left(archive, "'me'", f"is a link to {what}, '{target}'", "can't create symbolic", "Developer Mode")


def test_copies_in_place_of_links_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand links to one large file are no way round the limit."""
    monkeypatch.setattr(Path, "symlink_to", no_links(errno.EPERM, None))
    monkeypatch.setattr(os, "link", no_links(errno.EPERM, None))
    archive = make_tar(tmp_path / "a.tar", [("1", b"x" * 1000), *(link(f"l{number}", "1") for number in range(20))])
    with pytest.raises(ArchiveError, match="max_bytes"):
        extract_archive(archive, tmp_path / "out", max_bytes=15_000)


def test_another_error_is_no_lack_of_links(
    tmp_path: Path, nothing_left: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is told as such."""
    monkeypatch.setattr(Path, "symlink_to", no_links(errno.ENOSPC, None))
    archive = make_tar(tmp_path / "a.tar", [("1", b""), link("l", "1")])
    nothing_left(archive, "No space left", error=FileWriteError)
