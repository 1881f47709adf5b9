"""Passing trouble: the service is away, the database takes nothing. Work waits then; nothing fails for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime

import msgspec

from imagen.ports import Clock

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
STORE = "store"
"""Under this name trouble with our own database is noted, besides the accounts."""


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """Why work of one account, or all of it, waits.

    Attributes:
        subject: the account, or `store`.
        reason: for people.
        since: when it began; next_try: when one item tries again.
    """

    subject: str
    reason: str
    since: datetime
    next_try: datetime


class _Closed:
    """One subject in trouble."""

    __slots__ = ("opened", "pause", "probing", "trouble", "until")

    def __init__(self, trouble: Trouble, pause: float, until: float) -> None:
        self.trouble = trouble
        self.pause = pause
        self.until = until
        self.probing = False
        self.opened = asyncio.Event()


class Troubles:
    """What is in trouble. While it is, one item at a time tries, after pauses that grow up to a minute."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._closed: dict[str, _Closed] = {}

    def now(self) -> Sequence[Trouble]:
        """All that is in trouble, the oldest first."""
        return sorted((each.trouble for each in self._closed.values()), key=lambda trouble: trouble.since)

    def of(self, account: str) -> Trouble | None:
        """What keeps the work of an account waiting."""
        closed = self._closed.get(STORE) or self._closed.get(account)
        return None if closed is None else closed.trouble

    def note(self, subject: str, reason: str) -> None:
        """It failed for a passing reason: nobody tries before the next pause is over."""
        found = self._closed.get(subject)
        pause = FIRST_PAUSE_SECONDS
        if found is not None:
            if not found.probing:
                return  # several failed at once: that is one failure
            pause = min(2 * found.pause, LONGEST_PAUSE_SECONDS)
        now = self._clock.now()
        trouble = Trouble(
            subject=subject,
            reason=reason,
            since=now if found is None else found.trouble.since,
            next_try=datetime.fromtimestamp(now.timestamp() + pause, tz=now.tzinfo),
        )
        closed = _Closed(trouble, pause, self._clock.monotonic() + pause)
        if found is not None:
            closed.opened = found.opened
        self._closed[subject] = closed

    def clear(self, subject: str) -> None:
        """It works again."""
        if (closed := self._closed.pop(subject, None)) is not None:
            closed.opened.set()

    async def passable(self, *subjects: str) -> None:
        """Wait until none of these is in trouble, or until it is our turn to find out."""
        for subject in subjects:
            while (closed := self._closed.get(subject)) is not None:
                left = closed.until - self._clock.monotonic()
                if left <= 0 and not closed.probing:
                    closed.probing = True
                    break
                await self._until(closed, max(left, FIRST_PAUSE_SECONDS))

    def given_up(self, subject: str) -> None:
        """Whoever tried went away without finding out: another may."""
        if (closed := self._closed.get(subject)) is not None:
            closed.probing = False

    async def _until(self, closed: _Closed, seconds: float) -> None:
        """For so long, or until it works again."""
        opened = asyncio.ensure_future(closed.opened.wait())
        pause = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait({opened, pause}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            opened.cancel()
            pause.cancel()
