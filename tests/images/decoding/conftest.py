"""Verdicts on bytes, in short."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from PIL import Image

from ftkit._images.decoding.checks import check_bytes
from ftkit._images.findings import make_finding


@pytest.fixture(scope="session")
def found() -> Callable[..., list[str]]:
    """Return the function that says the kinds of the findings on some bytes."""

    def found(data: bytes, name: str = "x.jpg") -> list[str]:
        return [note.kind for note in check_bytes(name, data).notes]

    return found


@pytest.fixture(scope="session")
def is_unusable() -> Callable[..., bool]:
    """Return the function that tells whether any finding on some bytes is grave."""

    def is_unusable(data: bytes, name: str = "x.jpg") -> bool:
        notes = check_bytes(name, data).notes
        return any(make_finding(name, note).severity == "unusable" for note in notes)

    return is_unusable


@pytest.fixture(scope="session")
def image(photo: Callable[..., Image.Image]) -> Image.Image:
    """Return a photograph."""
    return photo(3)
