"""Aspect ratios as Replicate's models take them."""

from __future__ import annotations

from math import gcd

ASPECT_RATIOS = ("1:1", "16:9", "21:9", "3:2", "2:3", "4:5", "5:4", "3:4", "4:3", "9:16", "9:21")
"""The eleven ratios of the FLUX family. Models may know fewer or more."""


def aspect_ratio_of(width: int | None, height: int | None, *, fallback: str) -> str:
    """The ratio of width x height in lowest terms when it is one of the eleven, else `fallback`.

    Args:
        width: pixels; None or a value below 1 means that no size was asked for.
        height: pixels, likewise.
        fallback: what to use when the size reduces to no known ratio.
    """
    if not width or not height or width < 0 or height < 0:
        return fallback
    return _IN_LOWEST_TERMS.get(_reduced(width, height), fallback)


def _reduced(width: int, height: int) -> tuple[int, int]:
    divisor = gcd(width, height)
    return width // divisor, height // divisor


_IN_LOWEST_TERMS = {_reduced(*map(int, ratio.split(":"))): ratio for ratio in ASPECT_RATIOS}
"""21:9 is called so, and is 7:3."""
