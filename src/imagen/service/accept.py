"""Accepting durable work: written down piece by piece, once for each request, and from then on it is done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from datetime import timedelta
from typing import Any, Literal

import msgspec

from imagen.domain.batch import KEY_LIVES, Batch, Idempotency, Item, ItemStatus
from imagen.domain.budget import Charge
from imagen.domain.caller import Caller
from imagen.domain.identifiers import new_id
from imagen.domain.limits import Lane
from imagen.domain.money import Usd
from imagen.domain.secret import Secret
from imagen.errors import IdempotencyConflict, InvalidRequest
from imagen.ports import Backend, BatchStore, Budgets, Clock, Owners, Sealer, WorkQueue
from imagen.service.charges import charge_of
from imagen.service.load import check_load
from imagen.service.orders import prediction_ids, to_stored
from imagen.service.prepare import Order
from imagen.service.tokens import TokenVault

_PAGE = 200
"""So many items are written down together."""


class NewBatch(msgspec.Struct, frozen=True, kw_only=True):
    """Work that somebody wants done, without its items.

    Attributes:
        backend: makes the pictures; caller: asks for them.
        scope: who may see it besides the admin.
        kind, name, lane, details: as in `Batch`.
        own_token: the caller's own, where the backend is theirs; outlives: it must be there after a restart.
        webhook, webhook_events: where to tell of what.
        mark: the request's idempotency key, where it has one.
        mine: this process works on it, and no other as long as this one lives.
        fingerprint: as in `Batch`; with it this process owes the first answer.
    """

    backend: Backend
    caller: Caller
    scope: str
    kind: Literal["batch", "single"] = "batch"
    name: str = ""
    lane: Lane = Lane.BATCH
    own_token: Secret | None = None
    outlives: bool = True
    webhook: str | None = None
    webhook_events: tuple[str, ...] = ()
    details: dict[str, Any] = {}
    mark: Idempotency | None = None
    mine: bool = False
    fingerprint: str | None = None


class Entry(msgspec.Struct, frozen=True):
    """One item of new work: the checked order, and what the face wants to remember of it."""

    order: Order
    note: dict[str, Any] = {}


class Draft:
    """A batch that is being written down, and that nobody works on before it is accepted."""

    def __init__(self, acceptance: Acceptance, new: NewBatch, batch: Batch) -> None:
        self.batch = batch
        self.settling = False
        """Whether its acceptance was begun, so that it may be accepted, whatever is heard of that."""
        self._acceptance = acceptance
        self._new = new
        self._charges: list[Charge] = []
        self._first: Sequence[Item] | None = ()
        """Its items as long as nothing of it is written down, which is so when they come in one piece."""

    async def add(self, entries: Sequence[Entry]) -> None:
        """Write down more of its items, in order; the first of them with those that follow, or when it is accepted.

        Raises:
            InvalidInput: one has secret parameters, and there is no key to encrypt them with.
        """
        if self._first:
            await self._acceptance.begin(self.batch, self._first)
            self._first = None
        self.batch, items = self._acceptance.itemized(self.batch, entries)
        if self._first is None:
            await self._acceptance.write(items)
        else:
            self._first = items
        asked = (charge_of(one.order, intent, plan) for one in entries for intent, plan in one.order.intents)
        self._charges += [charge for charge in asked if charge is not None]

    async def accept(self) -> Batch:
        """From now on it is done, once. The batch that counts: an earlier one where the same request came before.

        Raises:
            InvalidRequest: it has no items.
            IdempotencyConflict: its idempotency key came with another body before.
            QueueFull: its caller, who brought a token, has too much under way already.
            BudgetExceeded: a budget has no room for all of it now; for a single prediction: never will have in its period.
        """
        await self._acceptance.check_money(self._charges, kind=self._new.kind)
        self.settling = True
        return await self._acceptance.accepted(self._new, self.batch, self._first)


class Acceptance:
    """Accepts durable work. Safe to share between tasks.

    Args:
        store: has the batches.
        budgets: know whether a whole batch can be paid.
        queue: told of new work.
        tokens: keeps tokens of callers.
        sealer: encrypts what goes to the disk.
        owners: says who we are.
        clock: tells the time.
    """

    def __init__(
        self,
        *,
        store: BatchStore,
        budgets: Budgets,
        queue: WorkQueue,
        tokens: TokenVault,
        sealer: Sealer | None,
        owners: Owners,
        clock: Clock,
    ) -> None:
        self._store = store
        self._budgets = budgets
        self._queue = queue
        self._tokens = tokens
        self._sealer = sealer
        self._owners = owners
        self._clock = clock
        self._drafts: set[str] = set()
        self._admitting = asyncio.Lock()

    @property
    def drafts(self) -> frozenset[str]:
        """The batches that are being written down now."""
        return frozenset(self._drafts)

    async def known(self, scope: str, key: str, fingerprint: str) -> Idempotency | None:
        """What the same request became when it came before, within a day.

        Raises:
            IdempotencyConflict: the key came with another body.
        """
        since = self._clock.now() - KEY_LIVES
        found = await self._store.known(scope, key, since=since)
        if found is not None and found.fingerprint != fingerprint:
            raise IdempotencyConflict(
                "this idempotency key came with another request before",
                hint="Send the same request again, or another key.",
            )
        return found

    async def unanswered(self, scope: str, fingerprint: str, *, within: timedelta) -> Sequence[Batch]:
        """What equal requests of the same caller became, whose process was gone before it had answered; oldest first."""
        since = self._clock.now() - within
        found = await self._store.owed(scope, fingerprint, besides=self._owners.me, since=since)
        return [one for one in found if one.owed_by is not None and not self._owners.alive(one.owed_by)]

    async def owe_answer(self, batch: Batch) -> bool:
        """Answer in place of a process that is gone; False when somebody else was quicker."""
        return await self._store.owe(batch.id, self._owners.me, was=batch.owed_by or "")

    async def answered(self, batch_id: str) -> None:
        """The first answer goes out before its end: the same request is a new one after that."""
        await self._store.owe(batch_id, None, was=self._owners.me)

    @asynccontextmanager
    async def draft(self, new: NewBatch) -> AsyncIterator[Draft]:
        """A batch whose items are written down piece by piece. What is not accepted is forgotten after a while.

        Raises:
            InvalidRequest: the token of its caller cannot be kept.
            QueueFull: its caller, who brought a token, has too much under way already.
        """
        if new.own_token is not None:
            await check_load(self._store, new.scope, 1)
        now = self._clock.now()
        batch_id = new_id("batch", now)
        sealed = None
        if new.own_token is not None:
            sealed = self._tokens.keep(batch_id, new.own_token, outlives=new.outlives)
        batch = Batch(
            id=batch_id,
            kind=new.kind,
            name=new.name,
            caller=new.caller,
            scope=new.scope,
            backend=new.backend.name,
            account=new.backend.account,
            lane=new.lane,
            total=0,
            own_token=new.own_token is not None,
            sealed_token=sealed,
            webhook=new.webhook,
            webhook_events=new.webhook_events,
            details=new.details,
            # No other process could do anything with what is made on a token that is only in the memory of this one.
            owner=self._owners.me if new.mine or (new.own_token is not None and sealed is None) else None,
            fingerprint=new.fingerprint,
            owed_by=None if new.fingerprint is None else self._owners.me,
            created_at=now,
        )
        draft = Draft(self, new, batch)
        self._drafts.add(batch_id)
        try:
            yield draft
        finally:
            self._drafts.discard(batch_id)
            if not draft.settling:
                self._tokens.forget(batch_id)

    async def accept(self, new: NewBatch, entries: Sequence[Entry]) -> Batch:
        """Accept work whose items are all at hand; `Draft.accept` tells what it raises."""
        async with self.draft(new) as draft:
            for start in range(0, len(entries), _PAGE):
                await draft.add(entries[start : start + _PAGE])
            return await draft.accept()

    def itemized(self, batch: Batch, entries: Sequence[Entry]) -> tuple[Batch, Sequence[Item]]:
        """More items of a draft, and the draft with them counted.

        Raises:
            InvalidInput: one has secret parameters, and there is no key to encrypt them with.
        """
        items, quoted, unpriced, images = [], batch.quoted, batch.unpriced, batch.images
        for index, entry in enumerate(entries, start=batch.total):
            likely = [intent.quote.likely for intent, _ in entry.order.intents]
            quoted += Usd.total(amount for amount in likely if amount is not None)
            unpriced += None in likely
            images += entry.order.images
            order = to_stored(entry.order, sealer=self._sealer)
            items.append(
                Item(
                    batch_id=batch.id,
                    index=index,
                    order=order,
                    note=entry.note,
                    predictions=prediction_ids(order),
                )
            )
        counted = msgspec.structs.replace(
            batch, total=batch.total + len(items), quoted=quoted, unpriced=unpriced, images=images
        )
        return counted, items

    async def begin(self, batch: Batch, items: Sequence[Item]) -> None:
        """Write down a draft and its first items: more follow."""
        await self._store.add(batch)
        await self._store.add_items(items)

    async def write(self, items: Sequence[Item]) -> None:
        """Write down more items of a draft."""
        await self._store.add_items(items)

    async def check_money(self, charges: Sequence[Charge], *, kind: Literal["batch", "single"]) -> None:
        """Refuse a batch that is sure to come to a stop: single purchases may wait for room, the whole is not begun.

        One single prediction is refused when no waiting would help, so that its idempotency key stays free for a time when
        there is money. Several tasks of one answer fail one by one.

        Raises:
            BudgetExceeded: a hard budget has no room for all of it now.
        """
        if not charges or (kind == "single" and len(charges) > 1):
            return
        shortage = await self._budgets.shortage(charges, now=self._clock.now())
        if shortage is not None and (kind == "batch" or not shortage.may_pass):
            raise shortage.to_error()

    async def accepted(self, new: NewBatch, batch: Batch, items: Sequence[Item] | None) -> Batch:
        """Accept a draft, of which `items` are all where nothing of it is written down yet; see `Draft.accept`."""
        if batch.total == 0:
            raise InvalidRequest("a batch needs at least one task")
        mark = None if new.mark is None else msgspec.structs.replace(new.mark, batch_id=batch.id)
        async with self._admitting if new.own_token is not None else nullcontext():
            if new.own_token is not None:
                await check_load(self._store, new.scope, batch.total)
            counts = await self._written(batch, items, mark)
        if counts == batch.id:
            return batch
        self._tokens.forget(batch.id)
        return await self._store.get(counts)

    async def _written(self, batch: Batch, items: Sequence[Item] | None, mark: Idempotency | None) -> str:
        """The id of the batch that counts. What this process has room for is worked on without being looked for."""
        if items is None:
            counts = await self._store.accept(batch, mark=mark)
            self._queue.wake()
            return counts
        with self._queue.reserved(batch) as give:
            if give is not None:
                batch = msgspec.structs.replace(batch, owner=self._owners.me)
                items = [msgspec.structs.replace(item, status=ItemStatus.RUNNING) for item in items]
            counts = await self._store.accept(batch, mark=mark, items=items)
            if counts == batch.id and give is not None:
                give(batch, items)
        if give is None:
            self._queue.wake()
        return counts
