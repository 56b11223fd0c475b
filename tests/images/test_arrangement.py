"""What ImageFolder would stumble over."""

from __future__ import annotations

from ftkit._images.arrangement import Arrangement
from ftkit._images.layout import Layout


def arranged(*paths: str) -> dict[str, str]:
    """Return what is noted about images at these paths."""
    layout = Layout({top: top for top in ("train", "val") if any(path.startswith(f"{top}/") for path in paths)})
    arrangement = Arrangement(layout)
    for path in paths:
        arrangement.add(path, layout.place(path).folder)
    return {path: note.kind for path, note in arrangement.notes("x/")}


def test_what_image_folder_stumbles_over() -> None:
    """One class that holds the classes, no classes, images beside them, twins and hidden ones."""
    assert arranged("cat/1.jpg", "dog/2.jpg") == arranged("cat/a/1.jpg", "dog/b/2.jpg") == {}
    assert arranged("PetImages/Cat/1.jpg", "PetImages/Dog/2.jpg") == {"PetImages": "classes_deeper"}
    assert arranged("cat/a/1.jpg") == {}
    assert arranged("ILSVRC/Data/CLS-LOC/train/1.jpg", "ILSVRC/Data/CLS-LOC/test/2.jpg") == {
        "ILSVRC/Data/CLS-LOC": "classes_deeper"
    }
    assert arranged("1.jpg", "2.jpg") == {"": "flat"}
    assert arranged("train/1.jpg", "train/cat/2.jpg", "val/cat/3.jpg") == {"train/": "beside_classes"}
    assert arranged("Cat/1.jpg", "cat/2.jpg", "dog/3.jpg") == dict.fromkeys(["Cat", "cat"], "class_twins")
    owls = ["b\u00fcho", "bu\u0308ho"]  # the same letters, in two ways
    assert arranged(*(f"{owl}/1.jpg" for owl in owls), "buho/2.jpg") == dict.fromkeys(owls, "class_twins")
    assert arranged("cat/1.jpg", ".cache/2.jpg") == {".cache": "hidden_class"}
