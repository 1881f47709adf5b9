"""Accepted work as faces ask for it: look at it, steer it, hear of it."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime, timedelta

import msgspec

from imagen.domain.batch import KEY_LIVES, Batch, BatchStatus, Control, Idempotency, Item, ItemStatus, Tally
from imagen.domain.limits import AccountRules
from imagen.domain.prediction import Prediction
from imagen.domain.secret import Secret
from imagen.errors import NotFound
from imagen.ports import (
    BatchStore,
    Clock,
    Owners,
    PredictionStore,
    Stretch,
    WorkQueue,
)
from imagen.service.finish import Finisher, Outcome
from imagen.service.news import News
from imagen.service.orders import prediction_ids, renewed
from imagen.service.stranded import Stranded
from imagen.service.tokens import TokenVault
from imagen.service.troubles import Trouble, Troubles

_RECENT_SECONDS, _LEAST_SECONDS = 60.0, 1.0
"""Ends within so long tell how fast a batch goes, and no less time is taken for that."""
_PROGRESS_SECONDS = 1.0
_FOREIGN_SECONDS = 3.0
"""Between two looks at work that may be with another process, which tells us nothing."""
_PAGE = 200
_WHOLE_ID = re.compile(r"batch_[0-9a-z]{26}")
_log = logging.getLogger(__name__)


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


class Batches:
    """Shows and steers durable work. Safe to share between tasks.

    Args:
        store: has the batches; predictions: has what they bought.
        queue: told of what is wanted of it.
        finisher: tells how predictions went that are done.
        tokens: keeps tokens of callers.
        drafts: the batches that are being written down now.
        stranded: ends what nobody can go on with.
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
        queue: WorkQueue,
        finisher: Finisher,
        tokens: TokenVault,
        drafts: Callable[[], frozenset[str]],
        stranded: Stranded,
        troubles: Troubles,
        news: News,
        owners: Owners,
        clock: Clock,
        rules: AccountRules,
    ) -> None:
        self._store = store
        self._predictions = predictions
        self._queue = queue
        self._finisher = finisher
        self._tokens = tokens
        self._stranded = stranded
        self._drafts = drafts
        self._troubles = troubles
        self._news = news
        self._owners = owners
        self._clock = clock
        self._rules = rules

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

    def can_use_token(self, batch: Batch) -> bool:
        """Whether this process has the token of a batch that is made on its caller's, or can read it."""
        return self._tokens.is_usable(batch)

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
                attempts = [await self._another_attempt(item) for item in page]
                again += [attempt for attempt in attempts if attempt is not None]
        if token is not None:
            self._tokens.keep(batch_id, token, outlives=False)  # it may be taken as soon as it is open
        count = await self._store.retry(batch_id, again, at=self._clock.now(), mark=mark)
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
        await self._store.sweep(before=self._clock.now() - KEY_LIVES)
        drafts = self._drafts()
        left = await self._store.open()
        self._tokens.forget_all_but(drafts | self._drafts() | {batch.id for batch in left})
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

    async def _another_attempt(self, item: Item) -> Item | None:
        """An item that failed, as it is to be tried once more: what succeeded of it stays, and is not counted twice.

        None where it is damaged, so that nobody knows any more what it was to be.
        """
        good, paid = set(), item.cost
        for prediction_id in item.predictions:
            try:
                found = await self._predictions.get(prediction_id)
            except NotFound:
                continue
            if found.finished and found.error is None and found.output:
                good.add(found.id)
                paid = None if paid is None or found.cost is None else paid - found.cost
        try:
            order = renewed(item.order, now=self._clock.now(), besides=frozenset(good), reseed=True)
        except msgspec.DecodeError:
            _log.warning(
                "item %d of %s is damaged in the database, and is not tried again", item.index, item.batch_id
            )
            return None
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
        since = measured_since(batch, now)
        counted = await self._store.tally(batch.id, recent_since=since)
        tally = measured(counted, since=since, let_run=let_run_at(batch), now=now)
        status = batch.status(tally)
        return View(
            batch=batch,
            status=status,
            tally=tally,
            # Where nobody works on it nobody can tell.
            eta_seconds=forecast(tally, creates_per_minute=self._rules.creates_per_minute)
            if status is BatchStatus.RUNNING and batch.owner is not None
            else None,
            trouble=None if status.terminal else self._troubles.of(batch.account, batch_id=batch.id),
        )


def measured_since(batch: Batch, now: datetime) -> datetime:
    """From when on ends tell how fast a batch goes now: for a minute, and not from before it was let run once more."""
    return max(now - timedelta(seconds=_RECENT_SECONDS), let_run_at(batch))


def let_run_at(batch: Batch) -> datetime:
    """When it was let run last."""
    remembered = batch.remembered
    again = [at for at in (remembered.resumed_at, remembered.retried_at) if at is not None]
    return max([batch.created_at, *again])


def measured(tally: Tally, *, since: datetime, let_run: datetime, now: datetime) -> Tally:
    """A tally of what ended since then, with the time that this took.

    That begins with the work on what ended first: waiting for its turn before that a batch was not slow. While nothing had
    ended before, that may have taken longer than ends are looked back for. What took no time at all, as it was made
    before, tells little.
    """
    earliest = let_run if tally.ended == tally.recent else since
    began = since if tally.recent_from is None else max(earliest, tally.recent_from)
    return msgspec.structs.replace(tally, recent_seconds=max((now - began).total_seconds(), _LEAST_SECONDS))


def forecast(tally: Tally, *, creates_per_minute: float) -> float | None:
    """Seconds until a batch has ended: as fast as of late, and no faster than creates are allowed; None where nothing tells."""
    least = tally.queued * 60 / creates_per_minute
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
