"""Batches and their items as they are written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

import msgspec

from imagen.domain.batch import Batch, Control, Idempotency, Item, ItemStatus, Tally
from imagen.domain.delivery import Delivery
from imagen.ports.predictions import Stretch


class OpenWork(msgspec.Struct, frozen=True):
    """As much of an open batch as whoever works on batches asks for each second, of all of them.

    Attributes:
        batch_id: of the batch.
        owner: who works on it.
        control: what is wanted of it.
        waits: `claim` would find something: of a paused one only what is left to finish.
        left: an item has not ended.
        sealed_token: as in `Batch`; besides what is wanted of it that alone changes.
    """

    batch_id: str
    owner: str | None
    control: Control
    waits: bool
    left: bool
    sealed_token: str | None = None


TellsEnds = Callable[[Batch], Callable[[Item], Sequence[Delivery]] | None]
"""What is to be told of items that a store ends by itself: given their batch, what makes the deliveries of each of them.

None where nobody is told of any. It is asked within a transaction, on any thread, and perhaps more than once.
"""


class BatchStore(Protocol):
    """Remembers batches and their items. Each method is one durable transaction.

    Raises:
        StoreBusy: somebody else held the database too long.
        StoreError: disk full, no permission, damaged file; nothing changed.
    """

    async def add(self, batch: Batch) -> None:
        """Write down a batch that is not accepted yet: nobody sees it, nobody works on it."""

    async def add_items(self, items: Sequence[Item]) -> None:
        """Write down items of one that is not accepted yet.

        Raises:
            StoreError: their batch is not there, or accepted; or one of them was written down before.
        """

    async def accept(
        self, batch: Batch, *, mark: Idempotency | None = None, items: Sequence[Item] | None = None
    ) -> str:
        """From now on it is done, once. The id of the batch that counts.

        With `items`, all that it has, it is written down in the same transaction, and was not added before.

        Its `total`, `quoted`, `unpriced`, `images`, `owner` and `details` are written as they are given here: nobody knew
        them while its items were being written down.

        That is another one when a request with the same idempotency key was quicker; then this one is forgotten.

        Raises:
            IdempotencyConflict: the key came with another body before; this batch is forgotten.
            StoreError: it has fewer or more items than `total` says.
            NotFound: it was never added, or is forgotten.
        """

    async def known(self, scope: str, key: str, *, since: datetime) -> Idempotency | None:
        """What a request with that idempotency key became, if it came after `since`."""

    async def owed(self, scope: str, fingerprint: str, *, besides: str, since: datetime) -> Sequence[Batch]:
        """What requests with that fingerprint became since then whose first answer another process owes, oldest first."""

    async def owe(self, batch_id: str, by: str | None, *, was: str) -> bool:
        """Write down who owes the first answer; None: it was given. False when it was not `was` who owed it."""

    async def get(self, batch_id: str) -> Batch:
        """An accepted batch by its id, or by a unique beginning of it.

        Raises:
            NotFound: none, or several, begin like that.
        """

    async def of_prediction(self, prediction_id: str) -> Item:
        """The item that a prediction belongs to, or belonged to in an earlier attempt.

        Raises:
            NotFound: it belongs to none.
        """

    async def promised(self, stretch: Stretch, *, scope: str | None = None) -> Sequence[str]:
        """A part of the predictions of accepted batches by the ids under which they are shown, newest first.

        Those too that are not written down yet, or never were, as they ended before they were bought. With `rising` oldest
        first. An earlier attempt may be among them. Costs as much as is asked for, however many there are.

        Args:
            stretch: which part.
            scope: only those of one caller.
        """

    async def places(self, prediction_ids: Sequence[str]) -> Mapping[str, tuple[Batch, Item]]:
        """The batches and items that some predictions belong to, by their ids; those that belong to none are left out."""

    async def list(
        self, *, limit: int, scope: str | None = None, kind: str = "batch", before: str | None = None
    ) -> Sequence[Batch]:
        """Accepted ones, newest first, by their ids.

        Args:
            limit: how many at most.
            scope: only those of one caller.
            kind: `batch` or `single`.
            before: the id after which to go on, towards older ones.
        """

    async def open(self) -> Sequence[Batch]:
        """Accepted ones of every kind that have not ended, oldest first."""

    async def open_work(self) -> Sequence[OpenWork]:
        """What is left to do of accepted ones, oldest first. Cheap, also where thousands are open."""

    async def tally(self, batch_id: str, *, recent_since: datetime) -> Tally:
        """Its items, counted; `recent` are those that ended since then. Who asks knows the `recent_seconds`."""

    async def items(
        self, batch_id: str, *, after: int = -1, limit: int = 100, status: ItemStatus | None = None
    ) -> Sequence[Item]:
        """Its items in their order, those with a larger index than `after`."""

    async def ended_since(self, batch_id: str, sequence: int, *, limit: int) -> Sequence[Item]:
        """Its items that have ended, in the order of their ends, those with a larger sequence."""

    async def take(self, batch_id: str, *, owner: str, was: str | None) -> bool:
        """Become the one who works on it, if that still is `was`. What `was` had claimed is queued again."""

    async def release(self, batch_id: str, *, owner: str) -> None:
        """Stop working on it. What was claimed is queued again; what runs at the service goes on there."""

    async def claim(
        self, batch_id: str, *, owner: str, limit: int, to_finish: bool = False
    ) -> Sequence[Item]:
        """The next queued items, running from now on; none when `owner` does not work on it, or it is not to run.

        Args:
            batch_id: the batch.
            owner: who asks.
            limit: how many at most.
            to_finish: rather what a batch that is not to run has still to do: of a paused one the items of which
                something runs at the service or is to be fetched, of a canceled one all that are queued. None of one
                that is to run.
        """

    async def requeue(self, item: Item) -> None:
        """Queue a running item again, the same attempt of it or another: wish, attempt and cost are as they are given.

        One that does not run, or runs in a later attempt, stays as it is.
        """

    async def end(self, item: Item, *, deliveries: Sequence[Delivery] = ()) -> Item | None:
        """Write down the end of an item, and what is to be told of it, in one transaction. An item ends once.

        The batch ends with `close`, not with its last item.

        Returns:
            The item with its `sequence`; None when it, or this attempt of it, had ended before: then nothing is written.
        """

    async def close(self, batch_id: str, *, at: datetime, deliveries: Sequence[Delivery] = ()) -> bool:
        """End a batch of which no item is left, and write down what is to be told of that.

        Its token is forgotten, and nobody works on it any more. After the last end somebody has to call this, also when
        that was the end of another process.

        Returns:
            True once for each time that it ends: again only when items were tried again. False when an item is left.
        """

    async def control(
        self,
        batch_id: str,
        wanted: Control,
        *,
        at: datetime,
        reason: str | None = None,
        code: str | None = None,
    ) -> Batch:
        """Pause it, let it run, or cancel it. An ended one stays as it is, and a canceled one stays canceled.

        The code of the error that is the reason is kept in its details, as `Remembered.stopped_by`; when it was let run
        again, as `resumed_at`.

        With `CANCEL` its queued items end as canceled, but for those of which something may have been bought, by somebody
        who then died: `claim` hands those out, so that they are stopped. What is to be told of these ends, as the store's
        `TellsEnds` says, is written down with them.

        Raises:
            NotFound: no accepted one has that id.
        """

    async def cancel_queued(self, batch_id: str, *, at: datetime) -> int:
        """End what is queued, as `control` does, if the batch still is to be canceled; how many items that were."""

    async def retry(
        self, batch_id: str, items: Sequence[Item], *, at: datetime, mark: Idempotency | None = None
    ) -> int:
        """Queue ended items again; how many that were. Wish, attempt and cost are as they are given; the end is forgotten.

        Only items that failed, expired or were canceled, and only with a higher attempt than they had; the others stay
        as they are. The batch is open again then, and is to run; `Remembered.retried_at` tells since when. With a mark that
        came before nothing happens again.

        Raises:
            NotFound: no accepted batch has that id.
            IdempotencyConflict: the key came with another body before.
        """

    async def seal(self, batch_id: str, sealed_token: str) -> None:
        """Write down the encrypted token of an open batch: its caller has brought it once more. An ended one needs none."""

    async def load(self, scope: str) -> tuple[int, int]:
        """How many accepted batches of every kind a caller has that have not ended, and how many items are left in them."""

    async def sweep(self, *, before: datetime) -> None:
        """Forget batches that were never accepted and idempotency keys, both of before then."""
