"""Manifests of strangers: whatever they ask for, nothing outside is touched and no content is lost."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit import FtkitError, restore
from ftkit._files import digest
from ftkit._images.findings import Finding
from ftkit._images.manifest import names_inside, obstacle
from ftkit._images.quarantine import move_away


def listing(folder: Path) -> dict[str, str]:
    """Return all that lies below a folder, with digests; links are not followed."""
    seen = {}
    for path in sorted(folder.rglob("*")):
        kind = "link to " + os.readlink(path) if path.is_symlink() else "folder"
        seen[str(path.relative_to(folder))] = digest(path.read_bytes()) if kind == "folder" and path.is_file() else kind
    return seen


def build(world: Path) -> Path:
    """Make a home with secrets, a data set, its quarantine, and what an attacker lays around; return the manifest."""
    files = {
        "store/deep/home/.ssh/authorized_keys": "the attacker's",
        "store/deep/home/thesis.tex": "the only copy",
        "home/.ssh/config": "Host *",
        "home/thesis.tex": "the only copy",
        "store/pets/train/cat/1.jpg": "sound",
        "store/pets/train/cat/bad.jpg": "bad 1",
        "store/pets/train/dog/bad.jpg": "bad 2",
        "store/pets/val/dog/bad.jpg": "bad 3",
    }
    for name, text in files.items():
        (world / name).parent.mkdir(parents=True, exist_ok=True)
        (world / name).write_text(text)
    pets = world / "store/pets"
    (pets / "val/bad-link.jpg").symlink_to("nowhere")
    (pets / "out").symlink_to(world / "home")
    bad = [Finding(str(path), "damaged", "unusable", "") for path in sorted(pets.rglob("bad*"))]
    gone = move_away(str(pets), bad, world / "store/deep/aside", {}, lambda page, name, paths: None)
    assert gone.moved == 4
    return gone.manifest


def attack(world: Path, write: Callable[[Path], None], **options: Any) -> None:
    """Restore from a manifest that was tampered with, and compare everything around."""
    manifest = build(world)
    (manifest.parent / "files/elsewhere").symlink_to(world / "home")
    (manifest.parent / "files/train/cat/extra.jpg").write_text("no entry names it")
    write(manifest)
    before = listing(world)
    try:
        restore(manifest, **options)
    except FtkitError as error:
        if "othing was moved" in str(error):
            assert listing(world) == before
    after = listing(world)
    for seen in (before, after):
        seen.pop("store/deep/aside/manifest.json")
    assert {path: what for path, what in after.items() if not path.startswith("store")} == {
        path: what for path, what in before.items() if not path.startswith("store")
    }
    assert set(after.values()) >= {what for what in before.values() if what != "folder"}
    moved = {path for path, what in before.items() if after.get(path) != what}
    assert all(path.startswith("store/deep/aside/files") for path in moved)


HOSTILE: list[Any] = [
    "../../home/.ssh/authorized_keys", "../home", "..", ".", "", "\0", "a\0b", "/", "/etc/passwd", "~", "a/../../b",
    "..\\x", "C:\\x", "C:x", "\\\\host\\share\\x", "\ud800", "out/thesis.tex", "out", "elsewhere/thesis.tex",
    "elsewhere", "files", "manifest.json", "train", "train/cat", "train/cat/1.jpg", "train/cat/bad.jpg",
    "train/cat/bad.jpg/x", "train//cat/./bad.jpg",
    "val/bad-link.jpg", "val/bad-link.jpg/x", "train/cat/extra.jpg", "x" * 5000, "WORLD",
    "WORLD/home", "WORLD/store", "WORLD/store/pets", "WORLD/store/deep/aside", "WORLD/store/deep/aside/files",
    "WORLD/home/thesis.tex",    "WORLD/store/pets/out", "file", "link", "folder", "quarantine",
    None, True, False, 0, 1, -1, 0o777, 0o10000, 2**70, 1.5, float("nan"), [], {}, [[]], ["x"], {"path": "x"},
]  # fmt: skip
VALUES = st.sampled_from(HOSTILE)
OUT = ["../../home/.ssh/authorized_keys", "../../home/thesis.tex", "WORLD/home/thesis.tex", "out/thesis.tex"]
PATHS = st.sampled_from([*OUT, "train/cat/bad.jpg", "train/dog/bad.jpg", "train/cat/extra.jpg", "train/cat"])
ROOTS = st.sampled_from(["WORLD/store/pets", "WORLD/store/deep/aside/files", "WORLD/store/deep/aside", "WORLD/home"])
ENTRY = st.fixed_dictionaries(
    {"path": PATHS, "type": st.sampled_from(["file", "file", "link", "folder"]), "kinds": st.just([])},
    optional={"mtime": st.just(0), "mode": st.sampled_from([0, 0o700, 0o7777])},
)
SHAPED = st.fixed_dictionaries(
    {
        "ftkit": st.just("quarantine"),
        "version": st.just(1),
        "root": ROOTS,
        "folder": st.sampled_from(["files", "files", "files", "..", ".", "../../pets", "../home", "files/elsewhere"]),
        "entries": st.lists(ENTRY, min_size=1, max_size=2),
    }
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3) | SHAPED,
    max_leaves=8,
)


def in_world(facts: object, world: Path) -> str:
    """Return a manifest's text, with real paths."""
    return json.dumps(facts).replace("WORLD", str(world))


@settings(max_examples=150, deadline=None)
@given(st.one_of(SHAPED, SHAPED, SHAPED, JSON), st.booleans())
def test_no_manifest_reaches_what_lies_outside(facts: object, is_named: bool) -> None:
    """Any JSON, and what has the shape of a manifest."""
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder).resolve()
        options = {"root": world / "store/pets"} if is_named else {}
        attack(world, lambda manifest: manifest.write_text(in_world(facts, world)), **options)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_real_manifest_that_was_changed_does_either(data: st.DataObject) -> None:
    """Values, keys and entries are replaced, taken away, doubled; bytes are flipped."""
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder).resolve()

        def mutate(manifest: Path) -> None:
            facts = json.loads(manifest.read_bytes())
            for _ in range(data.draw(st.integers(1, 3))):
                entries = facts.get("entries")
                is_deep = data.draw(st.booleans()) and isinstance(entries, list) and entries
                target = data.draw(st.sampled_from(entries)) if is_deep else facts
                if not isinstance(target, dict) or not target:
                    continue
                key = data.draw(st.sampled_from(sorted(target)))
                match data.draw(st.sampled_from(["set", "set", "set", "delete", "double"])):
                    case "set":
                        target[key] = data.draw({"path": PATHS | VALUES, "root": ROOTS | VALUES}.get(key, VALUES))
                    case "delete":
                        del target[key]
                    case "double" if is_deep:
                        entries.append({**target, key: data.draw(VALUES)})
            text = bytearray(in_world(facts, world).encode())
            for _ in range(data.draw(st.sampled_from([0, 0, 1, 2]))):
                text[data.draw(st.integers(0, len(text) - 1))] ^= 1 << data.draw(st.integers(0, 7))
            manifest.write_bytes(text)

        options = {"root": world / "store/pets"} if data.draw(st.booleans()) else {}
        attack(world, mutate, **options)


def edited(manifest: Path, **changes: Any) -> None:
    """Set facts of a manifest, or of its first entry: those named as an entry's fields."""
    facts = json.loads(manifest.read_bytes())
    for name, value in changes.items():
        (facts["entries"][0] if name in ("path", "type", "kinds", "mtime", "mode") else facts)[name] = value
    manifest.write_text(json.dumps(facts))


def test_a_folder_whose_name_can_not_be(tmp_path: Path) -> None:
    """An error of the system is one of ours."""
    manifest = build(tmp_path)
    edited(manifest, folder="x" * 300)
    with pytest.raises(FtkitError, match="4 can't be moved"):
        restore(manifest)


def test_a_file_that_is_called_a_folder_is_not_left_behind(tmp_path: Path) -> None:
    """It is in the way of what the manifest asks for, which the error says."""
    manifest = build(tmp_path)
    entries = json.loads(manifest.read_text())["entries"]
    edited(manifest, entries=[{**entries[0], "type": "folder"}, *entries[1:]])
    before = listing(tmp_path)
    with pytest.raises(FtkitError, match="what is in the quarantine is not a folder"):
        restore(manifest)
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"path": "../../home/.ssh/authorized_keys"}, {"path": "/tmp/x"}, {"path": "a\0b"}, {"path": "..\\x"},
        {"path": "C:x"}, {"path": "."}, {"path": "\ud800"}, {"path": 3}, {"type": "folders"}, {"kinds": "damaged"},
        {"mode": -1}, {"mode": True}, {"mtime": "0"}, {"path": "train/dog/bad.jpg"}, {"path": "train/dog/bad.jpg/x"},
        {"folder": ".."}, {"folder": "../pets"}, {"folder": "."}, {"folder": None}, {"root": "pets"}, {"root": 1},
        {"root": "/a\0"}, {"inode": "1"}, {"version": 2}, {"version": None}, {"ftkit": "scan"}, {"entries": {}},
        {"entries": [3]}, {"entries": [{}]}, {"entries": None},
    ],
)  # fmt: skip
def test_what_no_quarantine_writes_is_no_manifest(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Nothing has moved."""
    manifest = build(tmp_path)
    edited(manifest, **changes)
    before = listing(tmp_path)
    for options in ({}, {"root": tmp_path / "store/pets"}):
        with pytest.raises(FtkitError, match="not a quarantine manifest"):
            restore(manifest, **options)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("text", ["", "[", "[" * 100_000, "null", "[]", '"x"', "9" * 5000, '{"ftkit": "quarantine"}'])
def test_what_is_no_json_of_ours_is_no_manifest(tmp_path: Path, text: str) -> None:
    """Also where it exhausts the reader."""
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(FtkitError, match="not a quarantine manifest"):
        restore(tmp_path / "manifest.json")


def test_a_file_that_is_old_and_new_at_once_stays(tmp_path: Path) -> None:
    """With the same folder for both, a file would be compared with itself, and removed."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").write_text("the only copy")
    facts = {"ftkit": "quarantine", "version": 1, "root": str(tmp_path / "home"), "folder": "home"}
    entry = {"path": "thesis.tex", "type": "file", "kinds": []}
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({**facts, "entries": [entry]}))
    with pytest.raises(FtkitError, match="one is inside the other"):
        restore(manifest)
    (tmp_path / "files").mkdir()
    os.link(tmp_path / "home/thesis.tex", tmp_path / "files/thesis.tex")
    manifest.write_text(json.dumps({**facts, "folder": "files", "entries": [entry]}))
    with pytest.raises(FtkitError, match="another file is in its place"):
        restore(manifest)
    assert (tmp_path / "home/thesis.tex").read_text() == "the only copy"


def test_the_root_is_the_one_that_was_scanned_or_named(tmp_path: Path) -> None:
    """A manifest with another one, elsewhere, needs the caller's word."""
    manifest = build(tmp_path)
    before = listing(tmp_path)
    edited(manifest, root=str(tmp_path / "home"))
    with pytest.raises(FtkitError, match=r"neither the folder that was scanned.*root=\.\.\."):
        restore(manifest)
    with pytest.raises(FtkitError, match="There is no folder"):
        restore(manifest, root=tmp_path / "nowhere")
    with pytest.raises(FtkitError, match="one is inside the other"):
        restore(manifest, root=manifest.parent)
    assert listing(tmp_path).keys() == before.keys()
    assert len(restore(manifest, root=tmp_path / "store/pets")) == 4


def test_a_data_set_that_has_moved_must_be_named(tmp_path: Path) -> None:
    """Where it was, nothing is made."""
    manifest = build(tmp_path)
    pets = tmp_path / "store/pets"
    pets.rename(tmp_path / "animals")
    with pytest.raises(FtkitError, match=r"has moved, pass it: restore\(.*, root=\.\.\.\)"):
        restore(manifest)
    assert not pets.exists()
    assert len(restore(manifest, root=tmp_path / "animals")) == 4
    assert (tmp_path / "animals/train/cat/bad.jpg").read_text() == "bad 1"
    assert restore(manifest, root=tmp_path / "animals") == []


def test_another_folder_is_not_taken_for_the_data_set(tmp_path: Path) -> None:
    """It has none of the folders: all would be made anew, away from what they belong to."""
    manifest = build(tmp_path)
    pets = tmp_path / "store/pets"
    for wrong in (pets / "train", tmp_path / "home"):
        before = listing(tmp_path)
        with pytest.raises(FtkitError, match=r"none of the folders that the files are from \(train"):
            restore(manifest, root=wrong)
        assert listing(tmp_path) == before
    pets.rename(tmp_path / "store/old")
    pets.mkdir()  # another one of that name
    with pytest.raises(FtkitError, match="none of the folders"):
        restore(manifest, root=pets)
    assert len(restore(manifest, root=tmp_path / "store/old")) == 4


@pytest.mark.parametrize("root", ["C:\\data\\pets", "\\\\server\\data\\pets", "/data/pets"])
def test_a_manifest_of_another_system(tmp_path: Path, root: str) -> None:
    """It restores once the caller says where the data set is."""
    manifest = build(tmp_path)
    edited(manifest, root=root, inode=5)
    with pytest.raises(FtkitError, match=r"pass.* it|where the data set is here"):
        restore(manifest)
    assert len(restore(manifest, root=tmp_path / "store/pets")) == 4


def test_a_quarantine_elsewhere_comes_back_by_itself(tmp_path: Path) -> None:
    """The folder that was scanned is known again; the quarantine may have moved."""
    manifest = build(tmp_path)
    (tmp_path / "far/away").mkdir(parents=True)
    manifest.parent.rename(tmp_path / "far/away/aside")
    assert len(restore(tmp_path / "far/away/aside")) == 4


@pytest.mark.parametrize("side", ["old", "new"])
def test_nothing_goes_through_a_linked_folder(tmp_path: Path, side: str) -> None:
    """Neither into the data set nor out of the quarantine."""
    manifest = build(tmp_path)
    place = tmp_path / "store" / ("pets" if side == "old" else "deep/aside/files") / "train/cat"
    place.rename(tmp_path / "cat")
    place.symlink_to(tmp_path / "cat")
    before = listing(tmp_path)
    with pytest.raises(FtkitError, match=r"train.cat is a link.*call restore again"):
        restore(manifest)
    assert listing(tmp_path) == before


def test_a_link_is_no_file_and_a_folder_is_neither(tmp_path: Path) -> None:
    """What stands in the quarantine must be what the manifest says."""
    manifest = build(tmp_path)
    before = listing(tmp_path)
    edited(manifest, type="link")
    with pytest.raises(FtkitError, match="is not a link"):
        restore(manifest)
    assert listing(tmp_path).keys() == before.keys()


def test_what_a_killed_restore_left_is_cleared(tmp_path: Path) -> None:
    """Between file systems a file is copied; the partial copy goes with the next call."""
    manifest = build(tmp_path)
    partial = tmp_path / "store/pets/train/cat/.bad.jpg.0123456789ab.ftkit-partial"
    partial.write_text("ba")
    assert len(restore(manifest)) == 4
    assert not partial.exists()


def test_what_the_system_refuses_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others come back, and a second call brings the rest."""
    manifest = build(tmp_path)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.parent.name == "dog":
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(FtkitError, match=r"2 files restored, but not all\. 2 can't be moved: .*Permission denied"):
        restore(manifest)
    monkeypatch.undo()
    assert len(restore(manifest)) == 2


@given(st.text(), st.sampled_from(["", "/", "../", "a/", "..\\", "C:"]))
def test_names_inside_stay_inside(text: str, start: str) -> None:
    """What passes leads down from any folder."""
    if names_inside(start + text):
        assert os.path.normpath(os.path.join("/a/b", start + text)).startswith("/a/b/")
        assert start in ("", "a/")


def test_obstacle(tmp_path: Path) -> None:
    """Links and files on the way; what is not there yet is none."""
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/file").touch()
    (tmp_path / "a/link").symlink_to("b")
    ways = ["a/b/1", "a/c/1", "a/link", "a/link/1", "a/file/1"]
    assert [obstacle(tmp_path, way) for way in ways] == ["", "", "", "a/link is a link", "a/file is not a folder"]
