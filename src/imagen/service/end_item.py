"""Writing down how an item ended, or that it waits once more, however long the database takes nothing."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import msgspec

from imagen.domain.batch import Batch, Item, ItemStatus
from imagen.domain.prediction import Prediction
from imagen.errors import ImagenError, StoreError
from imagen.ports import BatchStore, Clock
from imagen.service.finish import Outcome
from imagen.service.news import News
from imagen.service.notices import Notices
from imagen.service.outcome_of_item import ended, queued_again
from imagen.service.replicate_events import Tellings
from imagen.service.troubles import STORE, Troubles

_MOST_FAULTS = 3
"""So often a fault of ours may meet an item until it has failed."""
_FAULT_PAUSE_SECONDS = 1.0

_log = logging.getLogger(__name__)


class ItemEnds:
    """Writes down what became of items. Safe to share between tasks.

    Args:
        batches: has them.
        notices: says what is to be told to whom of an end; tellings: what was told of it before.
        troubles: told when the database takes nothing, and asked when it does again.
        news: told about every change.
        clock: tells the time.
    """

    def __init__(
        self,
        *,
        batches: BatchStore,
        notices: Notices,
        tellings: Tellings,
        troubles: Troubles,
        news: News,
        clock: Clock,
    ) -> None:
        self._batches = batches
        self._notices = notices
        self._tellings = tellings
        self._troubles = troubles
        self._news = news
        self._clock = clock
        self._faults: dict[tuple[str, int], int] = {}

    async def end(self, batch: Batch, item: Item, predictions: Sequence[Prediction]) -> None:
        """Write the end down, however long the database takes nothing."""
        item = msgspec.structs.replace(item, ended_at=self._clock.now())
        self._faults.pop((item.batch_id, item.index), None)
        told = self._tellings.take(batch)
        deliveries = self._notices.of_item(batch, item, predictions, told=told)
        await self._written(partial(self._batches.end, item, deliveries=deliveries))

    async def requeue(self, batch: Batch, item: Item) -> None:
        """Write down that it waits once more."""
        # A small thing finds a place where nothing else does: that it was written proves nothing.
        await self._written(partial(self._batches.requeue, item), proves=False)
        self._news.tell(batch.id)

    async def faulted(
        self, batch: Batch, item: Item, error: Exception, outcomes: Sequence[Outcome] = ()
    ) -> None:
        """A fault of ours: tried again, as nothing is bought twice by that, but not for ever."""
        place = (batch.id, item.index)
        faults = self._faults.pop(place, 0) + 1
        _log.error("item %d of %s: unexpected %s", item.index, batch.id, type(error).__name__)
        _log.debug("its trace", exc_info=error)
        if faults < _MOST_FAULTS:
            self._faults[place] = faults
            await self._clock.sleep(_FAULT_PAUSE_SECONDS)
            await self.requeue(batch, queued_again(item, item.order))
            return
        told = isinstance(error, ImagenError)
        failed = msgspec.structs.replace(
            ended(item, outcomes),
            status=ItemStatus.FAILED,
            predictions=item.predictions,
            code=error.code if isinstance(error, ImagenError) else ImagenError.code,
            error=str(error) if told else f"an unexpected fault ({type(error).__name__}); please report it",
            hint="`imagen predictions list` shows whether it was bought.",
        )
        if not outcomes:
            failed = msgspec.structs.replace(failed, charged=None, cost=None)
        await self.end(batch, failed, [each.prediction for each in outcomes])

    def forget_faults(self, batch_id: str) -> None:
        """A batch has ended: what was canceled while it was queued has ended by itself."""
        for place in [place for place in self._faults if place[0] == batch_id]:
            del self._faults[place]

    async def _written(self, write: Callable[[], Awaitable[object]], *, proves: bool = True) -> None:
        """Write, however long the database takes nothing; `proves`: that others could write then, too."""
        with self._troubles.ticket() as ticket:
            while True:
                try:
                    await write()
                except StoreError as error:
                    ticket.note(STORE, error)
                    await ticket.passable(STORE)
                else:
                    if proves:
                        ticket.clear(STORE)
                    return
