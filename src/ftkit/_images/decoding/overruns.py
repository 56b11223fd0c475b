"""Colors that run over, as changed bytes of lossless WebP leave them.

Its pixels are coded as differences from a guess, modulo 256. A wrong one goes on into all pixels that are guessed from
it, in every color, to the last row: where the picture is brighter than it may be, it starts over at black. Its stream
has no checksum, and where the codes fall into step again, no bytes are left over.
"""

from __future__ import annotations

import numpy as np

from ftkit._images.decoding.picture import Pixels

_FAR, _NEAR = 240, 64  # levels that one color steps by where it runs over, at least, and the others at most
_MIDDLE, _MOST_MIDDLE = 128, 8  # what it steps by in noise, and how many times as often as that at most
# Ways to step so far, of 272, that two colors have at least. Clipped ones have one end at 0 or 255, which leaves 31; of
# numbers that were written as colors, such as heights, one runs over in any way, and the next one from 255 to 0.
_VARIED = 60
_LEAST, _ALONG = 0.002, 0.7  # of the pixels, and of the rows from the first of them on, that have it
_SOUND = 1 / 16  # of the rows, above the first: a picture that ran over before it was saved may do so anywhere
# Of the rows above the first, how many are looked at, and how many of their pixels differ from the one before. Computed
# pictures, as of a phase or of coordinates, may begin to run over where a plain part ends: below a horizon or a margin.
_ABOVE, _LIVELY = 8, 0.2


def runs_over(colours: Pixels) -> bool:
    """Whether the colors of a picture, given in RGB, run over from some row below the first ones to the last."""
    levels = colours.astype(np.int16)
    far, middle, ways = 0, 0, [set[tuple[int, int]]() for _ in range(3)]
    rows = np.zeros(len(levels), bool)
    for axis in (0, 1):
        steps = np.abs(np.diff(levels, axis=axis))
        starts = levels[:-1] if axis == 0 else levels[:, :-1]
        alone = np.sort(steps, axis=2)[:, :, 1] <= _NEAR
        highest = steps.max(2)
        over = alone & (highest >= _FAR)
        far += int(over.sum())
        middle += int((alone & (highest >= _MIDDLE)).sum())
        rows[: len(over)] |= over.any(1)
        for which, seen in enumerate(ways):
            here = over & (steps[:, :, which] == highest)
            seen.update(zip(starts[:, :, which][here].tolist(), highest[here].tolist(), strict=True))
    if far < _LEAST * rows.size * levels.shape[1] or middle - far > _MOST_MIDDLE * far:
        return False
    first = int(rows.argmax())
    if sorted(map(len, ways))[1] < _VARIED or first < _SOUND * len(rows) or rows[first:].mean() < _ALONG:
        return False
    above = np.diff(levels[max(first - _ABOVE, 0) : first], axis=1).any(axis=2)
    return bool(above.mean() >= _LIVELY)
