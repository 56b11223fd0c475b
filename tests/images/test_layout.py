"""Which folders are splits and classes."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ftkit import scan_images
from ftkit._images.layout import Layout, Place


def test_splits_by_other_names(pets: Path) -> None:
    """Folders of any name can be splits, and be named otherwise."""
    (pets / "val").rename(pets / "fold9")
    (pets / "train/dog/copy.jpg").write_bytes((pets / "fold9/dog/0.jpg").read_bytes())
    assert scan_images(pets, workers=1).leaks == []
    assert scan_images(pets, workers=1, splits={"train": "train", "fold9": "val"}).leaks[0].splits == ("train", "val")
    assert scan_images(pets, workers=1, splits=["train", "fold9"]).leaks[0].splits == ("fold9", "train")


NAMES = st.text("abc", min_size=1, max_size=2)


@given(st.lists(NAMES, min_size=1, max_size=4), st.sets(NAMES))
def test_a_place_puts_the_path_together(parts: list[str], splits: set[str]) -> None:
    """Split, class and rest are the path; a class is a folder, never the file itself."""
    place = Layout(dict.fromkeys(splits, "train")).place("/".join(parts))
    assert [part for part in (place.folder, place.label, *place.rest.split("/")) if part] == parts
    assert bool(place.folder) == (parts[0] in splits and len(parts) > 1)
    assert place.split == ("train" if place.folder else "")
    assert bool(place.label) == (len(parts) > 1 + bool(place.folder))


def test_splits_may_lie_deeper() -> None:
    """A split is any folder that is named."""
    layout = Layout.find(["data"], "pets", {"data/train/": "train"})
    assert layout.place("data/train/cat/1.jpg") == Place("data/train", "train", "cat", "1.jpg")
    assert Layout.find(["Train", "misc", "valid"], "pets", None).splits == {"Train": "train", "valid": "val"}
