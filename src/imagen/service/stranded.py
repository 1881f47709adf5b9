"""Single predictions on a caller's own token that nobody can go on with: ended after a day, as the caller may not come back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from imagen.domain.batch import KEY_LIVES, Batch, Control, Item, ItemStatus
from imagen.domain.money import Usd
from imagen.domain.prediction import Prediction, any_charged
from imagen.errors import BackendUnauthenticated, NotFound
from imagen.ports import BatchStore, Clock, Owners, PredictionStore
from imagen.service.notices import Notices
from imagen.service.tokens import TokenVault

_PAGE = 200


class Stranded:
    """Finds and ends them.

    Args:
        store: has the batches; predictions: has what they bought.
        tokens: keeps tokens of callers.
        notices: says what is to be told to whom of an end.
        owners: tells the living from the dead.
        clock: tells the time.
    """

    def __init__(
        self,
        *,
        store: BatchStore,
        predictions: PredictionStore,
        tokens: TokenVault,
        notices: Notices,
        owners: Owners,
        clock: Clock,
    ) -> None:
        self._store = store
        self._predictions = predictions
        self._tokens = tokens
        self._notices = notices
        self._owners = owners
        self._clock = clock

    async def end(self, open_batches: Sequence[Batch]) -> Sequence[Batch]:
        """End those among them that have waited for a day; which ones those were.

        Raises:
            StoreError: the store takes nothing; what has ended by then stays so.
        """
        now = self._clock.now()
        found = [batch for batch in open_batches if self._is_stranded(batch, now)]
        return [batch for batch in found if await self._ended(batch, now)]

    def _is_stranded(self, batch: Batch, now: datetime) -> bool:
        # Its caller may come back with the same key for as long as that stands.
        if batch.kind != "single" or not batch.own_token or now - batch.created_at < KEY_LIVES:
            return False
        if batch.control is Control.PAUSE:
            return batch.reason is not None
        abandoned = batch.owner is None or not self._owners.alive(batch.owner)
        return abandoned and not self._tokens.has(batch)

    async def _ended(self, batch: Batch, now: datetime) -> bool:
        """Whether all of it could be ended: what is being finished just now is left alone."""
        tally = await self._store.tally(batch.id, recent_since=now)
        if tally.running and batch.owner is not None and self._owners.alive(batch.owner):
            return False
        for status in (ItemStatus.QUEUED, ItemStatus.RUNNING):
            while items := await self._store.items(batch.id, limit=_PAGE, status=status):
                for item in items:
                    await self._end(batch, item, now)
        closed = await self._store.close(batch.id, at=now)
        self._tokens.forget(batch.id)
        return closed

    async def _end(self, batch: Batch, item: Item, now: datetime) -> None:
        bought = [found for each in item.predictions if (found := await self._find(each)) is not None]
        failed = msgspec.structs.replace(
            item,
            status=ItemStatus.FAILED,
            code=batch.remembered.stopped_by or BackendUnauthenticated.code,
            error=batch.reason or "the Replicate token of its caller was not brought again",
            hint="Ask for it once more.",
            charged=any_charged(each.charged for each in bought),
            cost=Usd.total_or_none([item.cost, *(each.spent for each in bought)]),
            ended_at=now,
        )
        await self._store.end(failed, deliveries=self._notices.of_item(batch, failed, bought))

    async def _find(self, prediction_id: str) -> Prediction | None:
        try:
            return await self._predictions.get(prediction_id)
        except NotFound:
            return None
