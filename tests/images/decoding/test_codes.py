"""Codes that no decoder reads are read to an end, too."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from ftkit._images.decoding.codes import read_codes

_HUFFMAN, _SCAN = 0xC4, 0xDA


def segments(band: tuple[int, int] | None, sampling: int | None) -> list[tuple[int, bytes, bytes]]:
    """Those of a progressive JPEG, with another band of coefficients in all scans, or another sampling."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", progressive=True)
    data, at, found = buffer.getvalue(), 2, list[tuple[int, bytes, bytes]]()
    while data[at + 1] != 0xD9:
        stop = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        marker, body, coded = data[at + 1], bytearray(data[at + 4 : stop]), b""
        if marker == _SCAN:
            end = re.compile(b"\xff[^\0]").search(data, stop)
            assert end is not None
            coded = data[stop : end.start()] + bytes(100)
            stop = end.start()
            if band is not None and body[-3]:
                body[-3:-1] = bytes(band)
        if marker == 0xC2 and sampling is not None:
            body[7] = sampling
        found.append((marker, bytes(body), coded))
        at = stop
    assert any(marker == _HUFFMAN for marker, _, _ in found)
    return found


@pytest.mark.parametrize(("band", "sampling"), [((5, 3), None), ((1, 200), None), ((64, 64), None), (None, 0)])
@pytest.mark.parametrize("is_thorough", [False, True])
def test_a_head_that_tells_of_nothing_to_read(
    band: tuple[int, int] | None, sampling: int | None, is_thorough: bool
) -> None:
    """Neither codes without end nor an error."""
    assert read_codes(segments(band, sampling), is_thorough=is_thorough) is None


def test_what_is_left_over_behind_whole_scans() -> None:
    """It is told that there is something, whatever it is."""
    assert read_codes(segments(None, None)) is not None
