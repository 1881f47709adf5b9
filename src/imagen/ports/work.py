"""Durable work that waits to be done: items of batches, events on their way to callers, and how much is left."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Protocol

import msgspec

from imagen.domain.batch import Batch, Item
from imagen.domain.delivery import Delivery, SigningSecret

Give = Callable[[Batch, Sequence[Item]], None]
"""Hands a batch over that is accepted, with all its items, as they are written down."""
Begun = Callable[[], None]
"""Tells that an item has begun: it stands in line no more, and may be bought. Told more than once it is told once."""
Work = Callable[[Batch, Item, Begun], Coroutine[Any, Any, float | None]]
"""Does what an item needs; see `WorkQueue.run`."""


class WorkQueue(Protocol):
    """Hands out the items of batches, to one worker each, until they have ended."""

    def wake(self) -> None:
        """There is new work, or something else is wanted of it."""

    def reserved(self, batch: Batch) -> AbstractContextManager[Give | None]:
        """Keep a place for a batch that is being accepted, so that nobody has to look for it afterwards.

        Gives None where it is not for this process, or has no room here. Else it may be written down as this process's own,
        with all its items running, and has to be handed over then, within the block.
        """

    async def run(
        self, work: Work, *, emptied: Callable[[Batch], Awaitable[bool]], takes: Callable[[Batch], bool]
    ) -> None:
        """Hand out items until cancelled.

        Args:
            work: does what an item needs; it may have to do that again, after a crash. Before it tells that the item has
                begun it may be cancelled at any time, as another batch waits, and loses nothing by it. Cancelled later, it
                leaves what runs at the service to go on there, unless the batch is to be canceled. What it returns,
                where that is something, are seconds for which nothing more of the batch is handed out.
            emptied: told when nothing of a batch waits or is being worked on here; says whether it has ended.
            takes: whether this process may work on a batch that nobody works on.
        """


class Outbox(Protocol):
    """Deliveries that wait, and those of the past. Each method is one durable transaction.

    Raises:
        NotFound: no delivery has that id.
        StoreError: the store could not be read or written.
    """

    async def put(self, deliveries: Sequence[Delivery]) -> None:
        """Write down deliveries that are due."""

    async def due(self, *, now: datetime, limit: int) -> Sequence[Delivery]:
        """Those whose turn it is, a few of each host: of each subject and address only the first that is not done."""

    async def done(self, delivery: Delivery, *, now: datetime) -> Delivery | None:
        """Write down what came of an attempt. One that was taken before stays so.

        What failed before somebody asked for it to be sent again says nothing about the new day, and is not written.

        Returns:
            The one whose turn it is now in the same line, if it is due.
        """

    async def list(self, *, limit: int, scope: str | None = None, failed: bool = False) -> Sequence[Delivery]:
        """Newest first; with `failed` only those that were given up or have failed at least once and wait."""

    async def retry(self, delivery_id: str, *, now: datetime) -> Delivery:
        """Let one be sent again now, also one that was given up; its day begins anew."""

    async def waiting(self) -> int:
        """How many are still to be taken."""

    async def secrets(self, *, now: datetime) -> Sequence[SigningSecret]:
        """Those that sign now, the newest first; empty before the first rotation."""

    async def rotate(
        self, secret: str, *, now: datetime, overlap_seconds: float, first: bool = False
    ) -> SigningSecret:
        """Add a new one; the others retire after the overlap at the latest.

        Args:
            secret: as it is kept.
            now: since when it signs.
            overlap_seconds: how long the others sign beside it.
            first: only when there is none.

        Returns:
            The one that signs from now on.
        """

    async def sweep(self, *, before: datetime) -> None:
        """Forget deliveries that were done before then."""


class WorkStanding(msgspec.Struct, frozen=True, kw_only=True):
    """Durable work that is not done, counted over all processes.

    Attributes:
        batches_running, batches_paused: batches that have not ended, without predictions that were asked for by themselves.
        items_queued, items_running: of those and of these.
        deliveries_waiting: events that are still to be taken; deliveries_failing: those of them that failed before.
    """

    batches_running: int = 0
    batches_paused: int = 0
    items_queued: int = 0
    items_running: int = 0
    deliveries_waiting: int = 0
    deliveries_failing: int = 0


class Standings(Protocol):
    """Counts what is left to do.

    Raises:
        StoreError: the store could not be read.
    """

    async def count_left(self) -> WorkStanding:
        """As it is now."""
