"""The temporary files of a scan, and what to say where there is no room for them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from ftkit.errors import FileWriteError


@contextmanager
def in_scratch() -> Iterator[None]:
    """Make, write or map temporary files; where that can't be done, the error says where there must be room.

    Raises:
        FileWriteError: The system refuses it.
    """
    try:
        yield
    except OSError as error:
        place = f" in {tempfile.tempdir}" if tempfile.tempdir else ""  # unless there is no folder to be found
        raise FileWriteError(
            f"A temporary file{place} can't be written: {error.strerror or error}. A scan takes about 4 kB there for "
            f"each image, or 2 kB with a journal. Free some space, or set TMPDIR to a folder on a larger disk before "
            f"Python starts."
        ) from error
