"""The search for the largest number that fits, in few looks."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from fractions import Fraction
from math import ceil, isqrt
from typing import TypeAlias

_Point: TypeAlias = tuple[int, int]


def last_within(value: Callable[[int], int], limit: int, fits: int, too_many: int) -> int:
    """The last number whose value is at most ``limit``, if values grow: the next one's is more.

    Two looks are enough where values lie on a line, a few more where on a parabola; at the latest every fourth halves
    the bracket.

    Args:
        value: Looks at a number, which takes long.
        limit: The most that fits.
        fits: A number whose value is at most ``limit``.
        too_many: A larger one whose value is more.

    Example:
        >>> from ftkit._cost.search import last_within
        >>> last_within(lambda number: number**2, 1000, 2, 10**9)
        31
    """
    low, high = (fits, value(fits)), (too_many, value(too_many))
    before: _Point | None = None  # the point beside the bracket that was in it last
    slow = 0  # looks since one halved the bracket; lines come first: layers that take turns are no parabola
    while (width := high[0] - low[0]) > 1:
        guess = _middle(low[0], high[0]) if slow == 3 else _interpolated(low, high, before if slow > 1 else None, limit)
        here = guess, value(guess)
        low, high, before = (here, high, low) if here[1] <= limit else (low, here, high)
        slow = 0 if slow == 3 or 2 * (high[0] - low[0]) <= width else slow + 1
    return low[0]


def _middle(low: int, high: int) -> int:
    """Of the magnitudes if these differ, else of the numbers."""
    return isqrt(low * high) if high > 4 * low > 0 else (low + high) // 2


def _interpolated(low: _Point, high: _Point, before: _Point | None, limit: int) -> int:
    """The last number within ``limit`` on the parabola through these points, or the line; no end of the bracket."""
    (a, at_a), (b, at_b) = low, high
    slope = Fraction(at_b - at_a, b - a)
    bend = Fraction(0)
    if before is not None:
        c, at_c = before
        bend = (Fraction(at_c - at_b, c - b) - slope) / (c - a)
    inside = range(a + 1, b)
    fitting = bisect.bisect_right(inside, limit, key=lambda x: ceil(at_a + slope * (x - a) + bend * (x - a) * (x - b)))
    return inside[max(fitting - 1, 0)]
