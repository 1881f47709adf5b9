"""Durable work as faces ask for it: accept it, look at it, steer it, hear of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from datetime import timedelta
from typing import Any, Literal

import msgspec

from imagen.domain.batch import Batch, BatchStatus, Control, Idempotency, Item, ItemStatus, Tally
from imagen.domain.budget import Charge
from imagen.domain.caller import Caller
from imagen.domain.identifiers import new_id
from imagen.domain.limits import AccountRules, Lane
from imagen.domain.money import Usd
from imagen.domain.prediction import Prediction
from imagen.domain.secret import Secret
from imagen.errors import IdempotencyConflict, InvalidRequest, NotFound
from imagen.ports import (
    Backend,
    BatchStore,
    Budgets,
    Clock,
    Owners,
    PredictionStore,
    Sealer,
    Stretch,
    WorkQueue,
)
from imagen.service.charges import charge_of
from imagen.service.finish import Finisher, Outcome
from imagen.service.load import check_load
from imagen.service.news import News
from imagen.service.orders import prediction_ids, renewed, to_stored
from imagen.service.prepare import Order
from imagen.service.stranded import Stranded
from imagen.service.tokens import TokenVault
from imagen.service.troubles import Trouble, Troubles

KEPT_HOURS = 24
"""How long an idempotency key stands for the request that it came with first."""
_RECENT_SECONDS = 60.0
_PROGRESS_SECONDS = 1.0
_FOREIGN_SECONDS = 3.0
"""Between two looks at work that may be with another process, which tells us nothing."""
_PAGE = 200
_WHOLE_ID = re.compile(r"batch_[0-9a-z]{26}")


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


class View(msgspec.Struct, frozen=True, kw_only=True):
    """How a batch stands.

    Attributes:
        eta_seconds: until it has ended, as far as that can be told; None while it does not run.
        trouble: what keeps it waiting now.
    """

    batch: Batch
    status: BatchStatus
    tally: Tally
    eta_seconds: float | None = None
    trouble: Trouble | None = None


class ItemEnded(msgspec.Struct, frozen=True):
    """An item has ended; `item.sequence` numbers it."""

    item: Item


class Progress(msgspec.Struct, frozen=True):
    """Something has changed; the last one says how it ended."""

    view: View


BatchNews = ItemEnded | Progress


class Draft:
    """A batch that is being written down, and that nobody works on before it is accepted."""

    def __init__(self, batches: Batches, new: NewBatch, batch: Batch) -> None:
        self.batch = batch
        self.settling = False
        """Whether its acceptance was begun, so that it may be accepted, whatever is heard of that."""
        self._batches = batches
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
            await self._batches.begin(self.batch, self._first)
            self._first = None
        self.batch, items = self._batches.itemized(self.batch, entries)
        if self._first is None:
            await self._batches.write(items)
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
        await self._batches.check_money(self._charges, kind=self._new.kind)
        self.settling = True
        return await self._batches.accepted(self._new, self.batch, self._first)


class Batches:
    """Accepts and shows durable work. Safe to share between tasks.

    Args:
        store: has the batches; predictions: has what they bought.
        budgets: know whether a whole batch can be paid.
        queue: told of new work.
        finisher: tells how predictions went that are done.
        tokens: keeps tokens of callers.
        stranded: ends what nobody can go on with.
        sealer: encrypts what goes to the disk.
        troubles: what keeps work waiting.
        news: told and asked about changes.
        owners: says who we are.
        clock: tells the time.
        rules: the limits, by which the end is forecast.
    """

    def __init__(
        self,
        *,
        store: BatchStore,
        predictions: PredictionStore,
        budgets: Budgets,
        queue: WorkQueue,
        finisher: Finisher,
        tokens: TokenVault,
        stranded: Stranded,
        sealer: Sealer | None,
        troubles: Troubles,
        news: News,
        owners: Owners,
        clock: Clock,
        rules: AccountRules,
    ) -> None:
        self._store = store
        self._predictions = predictions
        self._budgets = budgets
        self._queue = queue
        self._finisher = finisher
        self._tokens = tokens
        self._stranded = stranded
        self._drafts: set[str] = set()
        self._admitting = asyncio.Lock()
        self._sealer = sealer
        self._troubles = troubles
        self._news = news
        self._owners = owners
        self._clock = clock
        self._rules = rules

    # --- accepting ---------------------------------------------------------------------------------------

    async def known(self, scope: str, key: str, fingerprint: str) -> Idempotency | None:
        """What the same request became when it came before, within a day.

        Raises:
            IdempotencyConflict: the key came with another body.
        """
        since = self._clock.now() - timedelta(hours=KEPT_HOURS)
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

    async def lend_token(self, batch: Batch, token: Secret) -> None:
        """The caller has brought the token of their open work once more: nobody may have it any more."""
        if not batch.own_token or batch.ended_at is not None:
            return
        sealed = self._tokens.keep(batch.id, token, outlives=False)
        if sealed is not None and not self._tokens.is_readable(batch):
            await self._store.seal(batch.id, sealed)
        self._queue.wake()

    def has_token(self, batch: Batch) -> bool:
        """Whether this process has what a batch is made on; without it there is nothing that it could do for it."""
        return self._tokens.has(batch)

    # --- looking -----------------------------------------------------------------------------------------

    async def view(self, batch_id: str, *, scope: str | None = None) -> View:
        """How a batch stands.

        Args:
            batch_id: for whoever sees all also its unique beginning.
            scope: of whoever asks; None sees all.

        Raises:
            NotFound: there is none, or it is somebody else's.
        """
        # Beginnings are for whoever sees all: they tell of batches of others.
        whole = _WHOLE_ID.fullmatch(batch_id) is not None
        batch = await self._store.get(batch_id) if whole or scope is None else None
        if batch is None or (scope is not None and batch.scope != scope):
            raise NotFound(f"no batch here is called {batch_id[:80]!r}")
        return await self._viewed(batch)

    async def list(
        self, *, limit: int, scope: str | None = None, before: str | None = None
    ) -> Sequence[View]:
        """Batches, newest first."""
        found = await self._store.list(limit=limit, scope=scope, before=before)
        return [await self._viewed(batch) for batch in found]

    async def items(
        self, batch_id: str, *, after: int = -1, limit: int = 100, status: ItemStatus | None = None
    ) -> Sequence[Item]:
        """Items in their order, those with a larger index than `after`."""
        return await self._store.items(batch_id, after=after, limit=limit, status=status)

    async def all_items(self, batch_id: str) -> AsyncIterator[Item]:
        """Every item in its order, read page by page."""
        after = -1
        while page := await self._store.items(batch_id, after=after, limit=_PAGE):
            for item in page:
                yield item
            after = page[-1].index

    async def of_prediction(
        self, prediction_id: str, *, scope: str | None = None
    ) -> tuple[View, Item, Prediction | None]:
        """The work that a prediction belongs to, and the prediction as far as it is written down.

        Raises:
            NotFound: it belongs to none, or to somebody else's.
        """
        item = await self._store.of_prediction(prediction_id)
        try:
            view = await self.view(item.batch_id, scope=scope)
        except NotFound:  # somebody else's: told as if there were none, and without the batch's id
            raise NotFound(f"no prediction that was taken on here is called {prediction_id[:80]!r}") from None
        try:
            return view, item, await self._predictions.get(item.predictions[0])
        except NotFound:
            return view, item, None

    async def places(
        self, prediction_ids: Sequence[str], *, scope: str | None = None
    ) -> Mapping[str, tuple[Batch, Item]]:
        """The work that some predictions belong to, by their ids; those are left out that belong to none, or to others' only.

        Args:
            prediction_ids: of this attempt or of an earlier one.
            scope: of whoever asks; None sees all.
        """
        found = await self._store.places(prediction_ids)
        return {this: place for this, place in found.items() if scope is None or place[0].scope == scope}

    async def promised(self, stretch: Stretch, *, scope: str | None = None) -> Sequence[str]:
        """A part of the predictions that were taken on, begun or not, by their ids, newest first."""
        return await self._store.promised(stretch, scope=scope)

    async def outcomes(self, item: Item) -> Sequence[Outcome]:
        """How the predictions of an item went, as `Gateway.carry_out` told it; those that were never bought are left out."""
        found = []
        for prediction_id in item.predictions:
            try:
                prediction = await self._predictions.get(prediction_id)
            except NotFound:
                continue
            found.append(await self._finisher.recount(prediction))
        return found

    async def events(self, batch_id: str, *, after: int = 0) -> AsyncIterator[BatchNews]:
        """What happens in a batch, from the end numbered `after` on, until it has ended.

        Every item that ended is told, in the order of the ends; progress is told at most once a second.
        """
        with self._news.watch(batch_id) as changes:
            told: View | None = None
            told_at = float("-inf")
            while True:
                ended = await self._store.ended_since(batch_id, after, limit=_PAGE)
                for item in ended:
                    after = item.sequence
                    yield ItemEnded(item)
                if len(ended) == _PAGE:
                    continue
                if self._clock.monotonic() - told_at >= _PROGRESS_SECONDS:
                    view = await self.view(batch_id)
                    over = view.batch.ended_at is not None
                    if over and await self._store.ended_since(batch_id, after, limit=1):
                        continue
                    if told is None or over or not _same(view, told):
                        yield Progress(view)
                        told = view
                    if over:
                        return
                    told_at = self._clock.monotonic()
                await changes.wait(seconds=_PROGRESS_SECONDS)

    async def stirs(self, batch_id: str, *, at_once: bool = True) -> AsyncIterator[None]:
        """Whenever it is worth while to look at a batch again, for whoever does that in a cheaper way than `events`.

        That is when something of it has changed in this process; and now and then, as another one may work on it.

        Args:
            batch_id: the batch.
            at_once: also right now, not only after the first change.
        """
        with self._news.watch(batch_id) as changes:
            if at_once:
                yield
            while True:
                await changes.wait(seconds=_FOREIGN_SECONDS)
                yield

    async def ended(self, batch_id: str) -> View:
        """Wait for its end, and tell how it ended."""
        with self._news.watch(batch_id) as changes:
            while True:
                batch = await self._store.get(batch_id)
                if batch.ended_at is not None:
                    return await self._viewed(batch)
                await changes.wait(seconds=_PROGRESS_SECONDS)

    # --- steering ----------------------------------------------------------------------------------------

    async def pause(self, batch_id: str) -> View:
        """Begin nothing more of it; what runs goes on to its end."""
        return await self._steer(batch_id, Control.PAUSE)

    async def resume(self, batch_id: str) -> View:
        """Go on with it."""
        return await self._steer(batch_id, Control.RUN)

    async def cancel(self, batch_id: str) -> View:
        """Buy nothing more of it, and stop what runs. It cannot be resumed; its items can be tried again."""
        return await self._steer(batch_id, Control.CANCEL)

    async def retry_failed(
        self, batch_id: str, *, mark: Idempotency | None = None, token: Secret | None = None
    ) -> int:
        """Try its items that failed, expired or were canceled once more, with new purchases; how many those are.

        Args:
            batch_id: the batch.
            mark: the request's idempotency key, where it has one.
            token: the caller's own, where it is made on that: it was forgotten at the end.
        """
        statuses = (ItemStatus.FAILED, ItemStatus.EXPIRED, ItemStatus.CANCELED)
        again: list[Item] = []
        for status in statuses:
            after = -1
            while page := await self._store.items(batch_id, after=after, limit=_PAGE, status=status):
                after = page[-1].index
                again += [await self._another_attempt(item) for item in page]
        if token is not None:
            self._tokens.keep(batch_id, token, outlives=False)  # it may be taken as soon as it is open
        count = await self._store.retry(batch_id, again, mark=mark)
        if token is not None:
            batch = await self._store.get(batch_id)
            if batch.ended_at is None:
                await self.lend_token(batch, token)
            else:
                self._tokens.forget(batch_id)
        self._queue.wake()
        self._news.tell(batch_id)
        return count

    async def sweep(self) -> None:
        """Forget what was never accepted, and idempotency keys that are older than a day; end what nobody goes on with."""
        await self._store.sweep(before=self._clock.now() - timedelta(hours=KEPT_HOURS))
        drafts = frozenset(self._drafts)
        left = await self._store.open()
        self._tokens.forget_all_but(drafts | self._drafts | {batch.id for batch in left})
        for batch in await self._stranded.end(left):
            # Nobody else may ever ask on that account again, so what was wrong with it is not remembered.
            self._troubles.clear(batch.account)
            self._news.tell(batch.id)

    # --- the steps ---------------------------------------------------------------------------------------

    async def _steer(self, batch_id: str, wanted: Control) -> View:
        batch = await self._store.control(batch_id, wanted, at=self._clock.now())
        if wanted is Control.RUN:
            self._troubles.clear(batch.account)  # whoever lets it run has mended what was wrong
            self._troubles.afford(batch.id)
        self._queue.wake()
        self._news.tell(batch.id)
        return await self._viewed(batch)

    async def _another_attempt(self, item: Item) -> Item:
        """An item that failed, as it is to be tried once more: what succeeded of it stays, and is not counted twice."""
        good, paid = set(), item.cost
        for prediction_id in item.predictions:
            try:
                found = await self._predictions.get(prediction_id)
            except NotFound:
                continue
            if found.finished and found.error is None and found.output:
                good.add(found.id)
                paid = None if paid is None or found.cost is None else paid - found.cost
        order = renewed(item.order, now=self._clock.now(), besides=frozenset(good), reseed=True)
        return msgspec.structs.replace(
            item,
            status=ItemStatus.QUEUED,
            order=order,
            predictions=prediction_ids(order),
            attempt=item.attempt + 1,
            cost=paid,
        )

    async def _viewed(self, batch: Batch) -> View:
        now = self._clock.now()
        recent_seconds = min(_RECENT_SECONDS, max((now - batch.created_at).total_seconds(), 1.0))
        found = await self._store.tally(batch.id, recent_since=now - timedelta(seconds=_RECENT_SECONDS))
        tally = msgspec.structs.replace(found, recent_seconds=recent_seconds)
        status = batch.status(tally)
        return View(
            batch=batch,
            status=status,
            tally=tally,
            eta_seconds=self._forecast(batch, tally) if status is BatchStatus.RUNNING else None,
            trouble=None if status.terminal else self._troubles.of(batch.account, batch_id=batch.id),
        )

    def _forecast(self, batch: Batch, tally: Tally) -> float | None:
        """Seconds until it has ended: as fast as in the last minute, and no faster than creates are allowed."""
        if batch.owner is None:
            return None  # nobody works on it
        least = tally.queued * 60 / self._rules.creates_per_minute
        if tally.recent == 0:
            return None if tally.ended else least or None
        return max(tally.left * tally.recent_seconds / tally.recent, least)


def _same(one: View, other: View) -> bool:
    """Whether somebody who watches would see no difference."""
    return (
        one.status is other.status
        and one.trouble == other.trouble
        and (one.tally.queued, one.tally.running, one.tally.ended)
        == (other.tally.queued, other.tally.running, other.tally.ended)
    )
