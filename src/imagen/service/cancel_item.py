"""Cancelling an item of a batch: what runs of it is stopped at the service, once, and it ends with what that cost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from imagen.domain.batch import Batch, Item
from imagen.domain.prediction import Prediction, Status
from imagen.errors import ImagenError, InvalidRequest, NotFound
from imagen.ports import Backend, Clock, Owners
from imagen.service.end_item import ItemEnds
from imagen.service.finish import Outcome
from imagen.service.gateway import Gateway
from imagen.service.news import News
from imagen.service.orders import prediction_ids
from imagen.service.outcome_of_item import canceled, ended, was_refused_before

_STOP_SECONDS = 30.0
_STOP_PAUSE_SECONDS = 0.25
_CLOSING_SECONDS = 5.0

_log = logging.getLogger(__name__)


class ItemCancels:
    """Cancels items. Safe to share between tasks.

    Args:
        gateway: stops predictions.
        ends: writes the ends down.
        backend_of: where a batch is made.
        news: told about every change.
        owners: says who we are.
        clock: tells the time.
    """

    def __init__(
        self,
        *,
        gateway: Gateway,
        ends: ItemEnds,
        backend_of: Callable[[Batch], Backend],
        news: News,
        owners: Owners,
        clock: Clock,
    ) -> None:
        self._gateway = gateway
        self._ends = ends
        self._backend_of = backend_of
        self._news = news
        self._owners = owners
        self._clock = clock
        self._canceling: dict[tuple[str, int], asyncio.Task[None]] = {}

    async def cancel(self, batch: Batch, item: Item) -> None:
        """Cancel it, once, however often that is asked for; whoever waits no more leaves it to come to its end."""
        place = (batch.id, item.index)
        if (task := self._canceling.get(place)) is None:
            task = asyncio.get_running_loop().create_task(self._canceled_safely(batch, item))
            self._canceling[place] = task
            task.add_done_callback(lambda _: self._canceling.pop(place, None))
        await asyncio.shield(task)

    async def _canceled_safely(self, batch: Batch, item: Item) -> None:
        try:
            await self._cancel(batch, item)
        except Exception as error:  # noqa: BLE001 - a fault of ours, met where nobody may wait any more
            await self._ends.faulted(batch, item, error)
        finally:
            self._news.tell(batch.id)

    async def aclose(self) -> None:
        """Wait for what is being canceled at the service, but not for long: it is canceled again by whoever comes next."""
        left = set(self._canceling.values())
        if left:
            await asyncio.wait(left, timeout=_CLOSING_SECONDS)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _cancel(self, batch: Batch, item: Item) -> None:
        """Stop what runs of it at the service, and end it as canceled. What had ended by itself ends as it really did."""
        ids = prediction_ids(item.order)
        outcomes = [found for each in ids if (found := await self._finished(each)) is not None]
        if len(outcomes) == len(ids) and not any(map(_was_broken_off, outcomes)):
            await self._ends.end(batch, ended(item, outcomes), [each.prediction for each in outcomes])
            return
        outcomes = []
        for prediction_id in ids:
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    stopped = await self._stopped(batch, prediction_id)
            except NotFound:
                continue  # it was never bought
            except (ImagenError, TimeoutError) as error:
                _log.info("%s could not be canceled: %s", prediction_id, type(error).__name__)
                with suppress(ImagenError):
                    outcomes.append(Outcome(await self._gateway.show(prediction_id)))
            else:
                outcomes.append(await self._finished(prediction_id) or Outcome(stopped))
        await self._ends.end(batch, canceled(item, outcomes), [each.prediction for each in outcomes])

    async def _stopped(self, batch: Batch, prediction_id: str) -> Prediction:
        """Stop one at the service. What we are just buying ourselves, for others too perhaps, is stopped a moment later.

        Raises:
            ImagenError: it could not be stopped.
        """
        ours = True
        while True:
            try:
                backend = self._backend_of(batch) if batch.own_token else None
                return await self._gateway.cancel(prediction_id, backend=backend)
            except NotFound:
                raise
            except InvalidRequest:
                if not ours:
                    raise
            seen = await self._gateway.show(prediction_id)
            # Let go of just now, it is asked for once more.
            ours = seen.unheard and seen.owner == self._owners.me
            await self._clock.sleep(_STOP_PAUSE_SECONDS)

    async def _finished(self, prediction_id: str) -> Outcome | None:
        """How one ended, with its pictures; None when it has not, or that cannot be told."""
        try:
            return await self._gateway.recount(prediction_id)
        except ImagenError:
            return None


def _was_broken_off(outcome: Outcome) -> bool:
    return outcome.prediction.status in {Status.CANCELED, Status.ABORTED} or was_refused_before(outcome)
