"""Virtual time: the real clock plus an offset that only grows.

Everything the emulator knows about time (a prediction's status, the limits, the hour after which data is
removed) is read from one `Clock`, so a test lets an hour pass with `clock.advance(seconds=3600)`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from datetime import UTC, datetime

_LONGEST_PAUSE_SECONDS = 3600.0


class Clock:
    """Seconds since 1970 that follow the monotonic clock and can be advanced; safe to use from any thread."""

    def __init__(self) -> None:
        self._epoch = time.time() - time.monotonic()
        self._offset = 0.0
        self._pauses: set[asyncio.Future[None]] = set()
        self._lock = threading.Lock()

    @property
    def offset_seconds(self) -> float:
        """How far this clock runs ahead of the real one; 0 until `advance` is called."""
        return self._offset

    def time(self) -> float:
        """Seconds since 1970-01-01 UTC."""
        return self._epoch + time.monotonic() + self._offset

    def now(self) -> datetime:
        """The same instant as an aware UTC datetime."""
        return datetime.fromtimestamp(self.time(), UTC)

    def advance(self, seconds: float) -> None:
        """Let `seconds` (0 or more) pass at once; whoever pauses looks at the time again.

        Raises:
            ValueError: `seconds` is negative or not finite; time does not run backwards.
        """
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"seconds must be a finite number of 0 or more, not {seconds!r}")
        with self._lock:
            self._offset += seconds
        self.wake()

    def wake(self) -> None:
        """End every pause early: something other than the time has changed."""
        with self._lock:
            pauses = tuple(self._pauses)
        for pause in pauses:
            with contextlib.suppress(RuntimeError):  # its loop has been closed: nobody waits any more
                pause.get_loop().call_soon_threadsafe(_finish, pause)

    async def pause(self, until: float) -> None:
        """Return at the instant `until` or earlier, when time was advanced or something changed.

        Callers therefore loop: look, pause, look again.
        """
        seconds = min(until - self.time(), _LONGEST_PAUSE_SECONDS)
        if seconds <= 0:
            return
        pause = asyncio.get_running_loop().create_future()
        with self._lock:
            self._pauses.add(pause)
        try:
            if until > self.time():  # nobody advanced the clock in between
                await asyncio.wait([pause], timeout=seconds)
        finally:
            with self._lock:
                self._pauses.discard(pause)

    async def sleep(self, seconds: float) -> None:
        """Return when `seconds` have passed on this clock."""
        until = self.time() + seconds
        while self.time() < until:
            await self.pause(until)


def timestamp(seconds: float) -> str:
    """An instant as the API writes it: `2024-10-04T18:07:40.328Z` (recorded 2024-10-04)."""
    at = datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
    return f"{at.isoformat(timespec='milliseconds')}Z"


def _finish(pause: asyncio.Future[None]) -> None:
    if not pause.done():
        pause.set_result(None)
