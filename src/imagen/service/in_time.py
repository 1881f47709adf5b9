"""An item that waits for its turn: noted in the moment it begins, and over where its time has run out before that."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

import msgspec

from imagen.domain.batch import Batch, Item
from imagen.domain.events import Adopted, Event, InLine, LetIn, Resumed, Submitted
from imagen.domain.limits import budget_limit
from imagen.domain.prediction import Prediction
from imagen.errors import PredictionAborted
from imagen.ports import Begun, Clock, Observer
from imagen.service.finish import Outcome
from imagen.service.prepare import Order
from imagen.service.replicate_shapes import LEAST_DEADLINE_SECONDS

_SHORT_TOLD_AFTER_SECONDS = 2.0
"""What is reserved comes free all the time: only who has waited longer for it is told of."""


def seconds_left(batch: Batch, now: datetime) -> float | None:
    """For how long it may wait for its turn; None without end. Whoever asks for it once more gives it the same time again."""
    remembered = batch.remembered
    if remembered.cancel_after is None:
        return None
    begins = remembered.retried_at or batch.created_at
    return max(remembered.cancel_after - (now - begins).total_seconds(), 0.0)


async def in_time(
    order: Order,
    seconds: float | None,
    carry_out: Callable[[Order, asyncio.Timeout], Awaitable[Sequence[Outcome]]],
) -> Sequence[Outcome]:
    """What became of an order that has so much time; aborted without a purchase, where it did not begin by then.

    Args:
        order: what is to be carried out.
        seconds: how long it may wait, and what is left of the time until which it must have ended; None without end.
        carry_out: does it, within a limit that whoever begins it takes away.
    """
    try:
        async with asyncio.timeout(seconds) as patience:
            return await carry_out(_within(order, seconds), patience)
    except TimeoutError:
        if not patience.expired():
            raise
        return [_aborted(intent) for intent, _ in order.intents]


class Beginning:
    """Tells that an item has begun in the moment in which it is let in, and that it has waited for money for a while.

    Args:
        item: which.
        begun: told that it stands in line no more: from now on it may be bought.
        tells: told by which budget it waits, and with None that it waits no more.
        clock: tells the time.
        patience: until when it must have begun; from that moment on without end.
        hears: is told everything too.
    """

    __slots__ = ("_begun", "_clock", "_hears", "_item", "_patience", "_telling", "_tells")

    def __init__(
        self,
        item: Item,
        *,
        begun: Begun,
        tells: Callable[[Item, str | None], None],
        clock: Clock,
        patience: asyncio.Timeout,
        hears: Observer | None,
    ) -> None:
        self._item = item
        self._begun = begun
        self._tells = tells
        self._clock = clock
        self._patience = patience
        self._hears = hears
        self._telling: asyncio.Task[None] | None = None

    def notify(self, event: Event) -> None:
        """See `ports.Observer`."""
        if self._hears is not None:
            self._hears.notify(event)
        match event:
            case Submitted() | Resumed() | Adopted():
                if self._patience.when() is not None:
                    self._patience.reschedule(None)
                self._begun()
            case InLine(limit) if limit.startswith(budget_limit("")):
                self.over()
                self._telling = asyncio.get_running_loop().create_task(self._tell(limit))
            case LetIn():
                self.over()

    def over(self) -> None:
        """It waits no more."""
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
            self._tells(self._item, None)

    async def _tell(self, limit: str) -> None:
        await self._clock.sleep(_SHORT_TOLD_AFTER_SECONDS)
        self._tells(self._item, limit)


def _within(order: Order, seconds: float | None) -> Order:
    """The order with what is left of the time until which it must have ended."""
    if seconds is None:
        return order
    intents = tuple(
        (
            msgspec.structs.replace(
                intent, deadline_seconds=min(intent.deadline_seconds, max(seconds, LEAST_DEADLINE_SECONDS))
            ),
            plan,
        )
        for intent, plan in order.intents
    )
    return msgspec.structs.replace(order, intents=intents)


def _aborted(intent: Prediction) -> Outcome:
    """The outcome of one whose deadline has passed before it began."""
    return Outcome(
        msgspec.structs.replace(intent, charged=False),
        error=PredictionAborted(
            "its deadline passed before it began; nothing was bought",
            prediction_id=intent.id,
            charged=False,
        ),
    )
