"""Taking up what nobody follows any more, so that it ends, is written down, and gives back what it holds."""

from __future__ import annotations

import asyncio
import logging

from imagen.errors import ImagenError, NotFound
from imagen.ports import Clock, Limits, Owners, PredictionStore
from imagen.service.gateway import Gateway

EVERY_SECONDS = 15.0
_AT_ONCE = 8
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 30.0, 600.0

_log = logging.getLogger(__name__)


class Recovery:
    """Finishes predictions of one backend whose process has ended. Buys nothing.

    Args:
        backend: the name of the backend; those of others are left to whoever made them.
    """

    def __init__(
        self,
        *,
        gateway: Gateway,
        store: PredictionStore,
        limits: Limits,
        owners: Owners,
        clock: Clock,
        backend: str,
    ) -> None:
        self._gateway = gateway
        self._store = store
        self._limits = limits
        self._owners = owners
        self._clock = clock
        self._backend = backend
        self._pauses: dict[str, tuple[float, float]] = {}

    async def run(self) -> None:
        """Look for them now and every `EVERY_SECONDS`, until cancelled."""
        while True:
            try:
                await self._limits.sweep(now=self._clock.now().timestamp())
                await self.sweep()
            except ImagenError as error:
                _log.warning("what was left unfinished could not be looked up: %s", error)
            await self._clock.sleep(EVERY_SECONDS)

    async def sweep(self) -> int:
        """Take up all that are left and due; how many of them came to their end."""
        others = await self._store.unfinished(besides=self._owners.me)
        left = [one.id for one in others if self._is_left(one.backend, one.owner)]
        self._pauses = {one: pause for one, pause in self._pauses.items() if one in set(left)}
        now = self._clock.monotonic()
        due = [one for one in left if self._pauses.get(one, (0.0, 0.0))[0] <= now]
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(prediction_id: str) -> bool:
            async with gate:
                return await self._take_up(prediction_id)

        return sum(await asyncio.gather(*map(one, due)))

    async def _take_up(self, prediction_id: str) -> bool:
        try:
            outcome = await self._gateway.resume(prediction_id)
        except NotFound:
            return False
        except ImagenError as error:
            _log.info("%s could not be taken up now: %s", prediction_id, error.code)
        else:
            if outcome.prediction.finished:
                _log.info("%s was taken up: %s", prediction_id, outcome.prediction.status)
                return True
        pause = min(
            2 * self._pauses.get(prediction_id, (0.0, _FIRST_PAUSE_SECONDS / 2))[1], _LONGEST_PAUSE_SECONDS
        )
        self._pauses[prediction_id] = (self._clock.monotonic() + pause, pause)
        return False

    def _is_left(self, backend: str, owner: str | None) -> bool:
        return backend == self._backend and not (owner is not None and self._owners.alive(owner))
