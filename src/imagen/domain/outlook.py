"""What would become of something that came now: which limit it waits for, behind how many, and how long about."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class LimitStanding(msgspec.Struct, frozen=True, kw_only=True):
    """How one limit stands for somebody who comes now.

    Attributes:
        limit: its name, such as `semaphore:gpu`.
        places: how many may hold it at once; None for a rate, and for a semaphore that there is not.
        missing: there is no such semaphore.
        held: places that are held.
        ahead: who waits for it and goes first.
        first_in, last_in: of a rate, seconds until it lets the first and the last of those who come now go.
    """

    limit: str
    places: int | None = None
    missing: bool = False
    held: int = 0
    ahead: int = 0
    first_in: float = 0.0
    last_in: float = 0.0


class Outlook(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be expected.

    Attributes:
        limit: the name of the limit that keeps it waiting; None when it goes at once.
        position: its place in line there, from 1; 0 when it goes at once.
        starts_in: seconds until the first of it is sent; None where nobody can tell.
        ends_in: seconds until the last of it has ended; None where nobody can tell.
    """

    limit: str | None = None
    position: int = 0
    starts_in: float | None = 0.0
    ends_in: float | None = None


def look_ahead(standings: Sequence[LimitStanding], *, count: int, typical_seconds: float | None) -> Outlook:
    """What becomes of `count` predictions that come together.

    Places become free one after the other, evenly: of `n` that are held, each for `typical_seconds`, one in each `n`-th
    part of these. What is under way is taken to be of the same sort. The limit with the longest wait binds.

    Args:
        standings: of all limits that they need.
        count: how many predictions.
        typical_seconds: how long one runs; None where that is not known.
    """
    waits = [
        (one, _wait(one, 1, typical_seconds, one.first_in), _wait(one, count, typical_seconds, one.last_in))
        for one in standings
    ]
    waiting = [each for each in waits if each[1] is None or each[1] > 0]
    starts = (
        None
        if any(first is None for _, first, _ in waits)
        else max((first or 0.0 for _, first, _ in waits), default=0.0)
    )
    last = (
        None
        if any(end is None for _, _, end in waits)
        else max((end or 0.0 for _, _, end in waits), default=0.0)
    )
    ends = None if last is None or typical_seconds is None else last + typical_seconds
    if not waiting:
        return Outlook(starts_in=starts, ends_in=ends)
    binding, _, _ = max(waiting, key=lambda each: (each[1] is None, each[1] or 0.0, each[0].ahead))
    return Outlook(limit=binding.limit, position=binding.ahead + 1, starts_in=starts, ends_in=ends)


def _wait(one: LimitStanding, count: int, typical_seconds: float | None, rate_seconds: float) -> float | None:
    """Seconds until the `count`-th of those who come now is let in."""
    if one.places is None:
        return rate_seconds
    short = one.held + one.ahead + count - one.places
    if short <= 0:
        return 0.0
    return None if typical_seconds is None else typical_seconds * short / max(one.places, 1)
