"""Admission: what a prediction must hold before it is bought."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

from imagen.domain.events import Event, Waiting
from imagen.domain.prediction import Prediction
from imagen.errors import RateLimited, StoreError
from imagen.ports import Clock, Semaphores

MAX_WAIT_SECONDS = 600.0
"""How long a prediction stays in line for a semaphore."""
_LEASE_MARGIN_SECONDS = 300.0
"""Above the deadline: throttled creates, a lost answer looked for, and a second create fit in."""
_FIRST_SECONDS, _CAP_SECONDS = 0.1, 1.0

_log = logging.getLogger(__name__)


class Place:
    """What an admitted prediction holds."""

    kept = False

    def keep(self, prediction: Prediction) -> None:
        """Leave the place to its lease where nobody saw the run end: it may go on upstream."""
        self.kept = not prediction.status.terminal


class Admission:
    """Admits predictions, one kind of limit after the other, and gives back in reverse."""

    def __init__(self, *, semaphores: Semaphores, clock: Clock) -> None:
        self._semaphores = semaphores
        self._clock = clock

    @asynccontextmanager
    async def admit(
        self, *, semaphore: str | None, lease: str, deadline_seconds: float, notify: Callable[[Event], None]
    ) -> AsyncIterator[Place]:
        """Hold what a prediction needs while the block runs.

        Its place in a semaphore is leased until its run must have ended upstream, so that a process that dies gives
        the place back neither too early nor never.

        Args:
            semaphore: name of the semaphore; None for none.
            lease: the prediction's id; asking again under the same id asks for the same place.
            deadline_seconds: when its run must have ended.
            notify: told while it waits.

        Raises:
            NotFound: no such semaphore.
            RateLimited: no place became free in time.
        """
        place = Place()
        if semaphore is None:
            yield place
            return
        await self._take(semaphore, lease, deadline_seconds, notify)
        try:
            yield place
        finally:
            if not place.kept:
                await self._give_back(semaphore, lease)

    async def _give_back(self, semaphore: str, lease: str) -> None:
        """A place that cannot be given back now ends with its lease; the picture is there all the same."""
        try:
            await asyncio.shield(self._semaphores.release(semaphore, lease))
        except StoreError as error:
            _log.warning(
                "the place of %s in semaphore %s is held until its lease ends: %s", lease, semaphore, error
            )

    async def _take(
        self, name: str, lease: str, deadline_seconds: float, notify: Callable[[Event], None]
    ) -> None:
        until = self._clock.monotonic() + MAX_WAIT_SECONDS
        pause = _FIRST_SECONDS
        told = False
        lasts = timedelta(seconds=deadline_seconds + _LEASE_MARGIN_SECONDS)
        while not await self._semaphores.acquire(name, lease, now=self._clock.now(), lasts=lasts):
            if self._clock.monotonic() >= until:
                raise RateLimited(
                    f"no place in semaphore {name!r} became free within {MAX_WAIT_SECONDS:g} s; nothing was bought",
                    hint="`imagen semaphore list` shows who holds it.",
                )
            if not told:
                notify(Waiting(f"semaphore {name!r} is full", MAX_WAIT_SECONDS))
                told = True
            await self._clock.sleep(pause)
            pause = min(pause * 1.5, _CAP_SECONDS)
