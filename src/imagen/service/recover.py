"""Taking up what nobody follows any more, so that it ends, is written down, and gives back what it holds."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from imagen.domain.prediction import Prediction
from imagen.errors import ImagenError, NotFound, OutcomeUnknown
from imagen.ports import Clock, Limits, Owners, PredictionStore
from imagen.service.batches import Batches
from imagen.service.gateway import Gateway

EVERY_SECONDS = 15.0
MOST_AT_ONCE = 500
"""So many are followed at the same time; their calls are paced by the account's allowance."""
_TIDY_SECONDS = 600.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 15.0, 600.0

_log = logging.getLogger(__name__)


class Recovery:
    """Finishes predictions of one backend whose process has ended. Buys nothing.

    Args:
        gateway: finishes them.
        store: has them.
        limits: swept now and then.
        owners: tells the living from the dead.
        clock: tells the time.
        backend: the name of the backend; those of others are left to whoever made them.
        batches: swept now and then; their predictions are finished by whoever works on them.
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
        batches: Batches,
    ) -> None:
        self._gateway = gateway
        self._store = store
        self._limits = limits
        self._owners = owners
        self._clock = clock
        self._backend = backend
        self._batches = batches
        self._tidied_at = float("-inf")
        self._following: dict[str, asyncio.Task[None]] = {}
        self._due: dict[str, tuple[float, float]] = {}

    async def run(self) -> None:
        """Look for them now and every `EVERY_SECONDS`, until cancelled. What is being followed then goes on upstream."""
        try:
            while True:
                for step in (self._tidy, self._gateway.write_what_waits, self.sweep):
                    try:
                        await step()
                    except Exception as error:  # noqa: BLE001 - one bad row must not end all of it
                        _log.warning("what was left unfinished could not be looked after: %s", _said(error))
                await self._clock.sleep(EVERY_SECONDS)
        finally:
            for task in self._following.values():
                task.cancel()
            await asyncio.gather(*self._following.values(), return_exceptions=True)

    async def sweep(self) -> None:
        """Begin to follow all that are left and due, each by itself: a slow one keeps no other waiting."""
        left = {
            one.id: one for one in await self._store.unfinished(besides=self._owners.me) if self._is_left(one)
        }
        self._due = {one: due for one, due in self._due.items() if one in left}
        now = self._clock.monotonic()
        for prediction_id in left:
            if len(self._following) >= MOST_AT_ONCE:
                return
            if prediction_id not in self._following and self._due.get(prediction_id, (0.0, 0.0))[0] <= now:
                task = asyncio.get_running_loop().create_task(self._take_up(prediction_id))
                self._following[prediction_id] = task
                task.add_done_callback(partial(self._ended, prediction_id))

    async def _tidy(self) -> None:
        await self._limits.sweep(now=self._clock.now().timestamp())
        if self._clock.monotonic() - self._tidied_at >= _TIDY_SECONDS:
            self._tidied_at = self._clock.monotonic()
            await self._batches.sweep()

    async def _take_up(self, prediction_id: str) -> None:
        try:
            outcome = await self._gateway.resume(prediction_id, leaves_running=True)
        except NotFound:
            return
        except Exception as error:  # noqa: BLE001 - tried again later; the others must not suffer
            _log.info("%s could not be taken up now: %s", prediction_id, _said(error))
        else:
            if outcome.prediction.finished:
                _log.info("%s was taken up: %s", prediction_id, outcome.prediction.status)
                return
            if isinstance(outcome.error, OutcomeUnknown):
                # Looked for in vain for the whole grace: it never arrived, so nothing of it runs.
                await self._limits.give_back(prediction_id)
        _, pause = self._due.get(prediction_id, (0.0, _FIRST_PAUSE_SECONDS / 2))
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        self._due[prediction_id] = (self._clock.monotonic() + pause, pause)

    def _ended(self, prediction_id: str, _: asyncio.Task[None]) -> None:
        self._following.pop(prediction_id, None)

    def _is_left(self, one: Prediction) -> bool:
        return one.backend == self._backend and not (one.owner is not None and self._owners.alive(one.owner))


def _said(error: Exception) -> str:
    return error.code if isinstance(error, ImagenError) else type(error).__name__
