"""Time that passes only when somebody sleeps or says so."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

BEGINNING = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)


class ManualClock:
    """`ports.Clock`: a sleep is over at once, and the time has passed."""

    def __init__(self, now: datetime = BEGINNING) -> None:
        self._now = now
        self._monotonic = 0.0
        self.slept: list[float] = []

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.advance(seconds)
        await asyncio.sleep(0)

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds


class HastyClock:
    """`ports.Clock`: the time is the real one, as others have it too, but pauses pass some times as quickly.

    For work that waits long before it tries again, at a service and a database that are real. Not where a call may still be on
    its way to them: the grace for one that was lost passes as quickly.
    """

    def __init__(self, times: float = 5.0) -> None:
        self._times = times

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic() * self._times

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self._times)
