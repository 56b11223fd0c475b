"""What the tests of archives share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ftkit import FtkitError, extract_archive
from ftkit.errors import ArchiveError


@pytest.fixture
def nothing_left(tmp_path: Path) -> Callable[..., str]:
    """Return a check that unpacking fails, says why, and leaves the disk as it was."""

    def check(archive: Path, *words: str, error: type[FtkitError] = ArchiveError, **options: object) -> str:
        for existing in (False, True):
            jail = tmp_path / f"jail{existing}"
            dest = jail / "data"
            (dest if existing else jail).mkdir(parents=True, exist_ok=True)
            before = sorted(jail.rglob("*"))
            with pytest.raises(error) as caught:
                extract_archive(archive, dest, **options)  # type: ignore[arg-type]
            assert sorted(jail.rglob("*")) == before
            for word in words:
                assert word in str(caught.value)
        return str(caught.value)

    return check
