"""Working off one item of a batch: carried out, and then ended, or put back when the reason passes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial

import msgspec

from imagen.domain.batch import Batch, Control, Item, ItemStatus
from imagen.errors import (
    BackendError,
    BackendUnauthenticated,
    DeliveryError,
    ImagenError,
    ModelNotFound,
    NotFound,
    Paused,
    PaymentRequired,
    Refused,
    StillFollowed,
    StoreError,
    Unauthenticated,
)
from imagen.ports import Backend, Backends, BatchStore, Begun, Clock, Observer, Outbox, Owners, Sealer
from imagen.service.cancel_item import ItemCancels
from imagen.service.end_item import ItemEnds
from imagen.service.finish import Outcome
from imagen.service.gateway import Gateway
from imagen.service.in_time import Beginning, in_time, seconds_left
from imagen.service.news import News
from imagen.service.notices import Notices
from imagen.service.orders import from_stored, once_more_interrupted, renewed
from imagen.service.outcome_of_item import (
    another_attempt,
    ended,
    fault_of,
    heard_since,
    interrupted,
    is_free,
    keeps_places,
    passing,
    queued_again,
    unpaid,
    was_refused,
    was_refused_before,
)
from imagen.service.prepare import Order
from imagen.service.replicate_events import Tellings
from imagen.service.tokens import TokenVault
from imagen.service.troubles import STORE, Ticket, Troubles, reason_of

MOST_INTERRUPTIONS = 3
"""So often the service itself may break an item off until it has failed; each time was free."""
_PAUSED_REST_SECONDS = 60.0
"""So long after a search in vain it is looked again for what a paused batch may have bought."""
_SHORT_PAUSE_SECONDS = 1.0
_FETCH_PAUSE_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Worker:
    """Works off items. Safe to share between tasks.

    Args:
        gateway: makes the pictures.
        batches: has the items.
        backends: by name, and by the tokens of callers.
        tokens: of batches that are made on accounts of their callers.
        sealer: opens what was kept encrypted.
        notices: says what is to be told to whom when something begins and ends; outbox: keeps it.
        news: told about every change.
        owners: says who we are.
        clock: tells the time.
    """

    def __init__(
        self,
        *,
        gateway: Gateway,
        batches: BatchStore,
        backends: Backends,
        tokens: TokenVault,
        sealer: Sealer | None,
        notices: Notices,
        outbox: Outbox,
        news: News,
        owners: Owners,
        clock: Clock,
    ) -> None:
        self.troubles = Troubles(clock)
        self.watched = False
        """Somebody looks at the batch and is told there why it is paused."""
        self._stopping = asyncio.Lock()
        self._gateway = gateway
        self._batches = batches
        self._backends = backends
        self._tokens = tokens
        self._sealer = sealer
        self._notices = notices
        self._tellings = Tellings(events=notices.replicate, outbox=outbox, clock=clock)
        self._outbox = outbox
        self._news = news
        self._owners = owners
        self._clock = clock
        self._ends = ItemEnds(
            batches=batches,
            notices=notices,
            tellings=self._tellings,
            troubles=self.troubles,
            news=news,
            clock=clock,
        )
        self._cancels = ItemCancels(
            gateway=gateway,
            ends=self._ends,
            backend_of=self.backend_of,
            news=news,
            owners=owners,
            clock=clock,
        )

    async def work(self, batch: Batch, item: Item, begun: Begun) -> float | None:
        """Bring an item as far as it goes now: to its end, or back into the queue.

        Cancelled, it leaves the item to whoever works on the batch next; in a batch that is to be canceled it stops
        what runs at the service, and ends the item.

        Args:
            batch: as it is wanted now; of a paused one nothing more is bought.
            item: one of it that is running.
            begun: told when it was let in, so that it is bought, or found that it was.

        Returns:
            Seconds for which nothing more of the batch can be begun, as a budget has no room for it, or as it is paused;
            None as a rule.
        """
        try:
            if batch.control is not Control.CANCEL:
                return await self._work(batch, item, begun)
            await self._cancels.cancel(batch, item)
        except asyncio.CancelledError:
            if not await asyncio.shield(self._is_canceled(batch)):
                raise
            await self._cancels.cancel(batch, item)
        except Exception as error:  # noqa: BLE001 - a fault of ours must not end the others' work
            await self._ends.faulted(batch, item, error)
        finally:
            self._news.tell(batch.id)
        return None

    async def aclose(self) -> None:
        """Wait for what is being canceled at the service, but not for long: it is canceled again by whoever comes next."""
        await self._cancels.aclose()

    async def emptied(self, batch: Batch) -> bool:
        """Nothing of a batch waits or is worked on here: when nothing is left at all it has ended. Whether it has."""
        try:
            if not await self._closed(batch):
                return (await self._batches.get(batch.id)).ended_at is not None
            self._tokens.forget(batch.id)
            self.troubles.afford(batch.id)
            self._ends.forget_faults(batch.id)
        except NotFound:
            return True  # nobody knows it any more
        except StoreError as error:
            self.troubles.note(STORE, reason_of(error))
            return False
        else:
            return True
        finally:
            self._news.tell(batch.id)

    async def _closed(self, batch: Batch) -> bool:
        """Whether it has ended just now, as nothing of it is left."""
        if batch.webhook is None:  # nobody is told of it, so that nothing more has to be known
            return await self._batches.close(batch.id, at=self._clock.now())
        fresh = await self._batches.get(batch.id)
        tally = await self._batches.tally(batch.id, recent_since=self._clock.now())
        if tally.left:
            return False
        deliveries = self._notices.of_batch(fresh, tally)
        return await self._batches.close(batch.id, at=self._clock.now(), deliveries=deliveries)

    async def _finished_or_begun(self, item: Item) -> bool:
        """Whether anything of an item is written down, so that it may have been bought."""
        for prediction_id in item.predictions:
            try:
                await self._gateway.show(prediction_id)
            except NotFound:
                continue
            return True
        return False

    # --- one item ----------------------------------------------------------------------------------------

    async def _work(self, batch: Batch, item: Item, begun: Begun) -> float | None:
        if batch.control is Control.RUN and (left := self.troubles.short_for(batch.id)) is not None:
            await self._ends.requeue(batch, item)
            return left
        began = self._clock.monotonic()
        try:
            with self.troubles.ticket() as ticket:
                outcomes = await self._tried(batch, item, ticket, begun)
        except ImagenError as error:
            await self._stopped_by(batch, item, error)
            return None
        if (fault := fault_of(outcomes)) is not None:
            # Of what cannot be read nothing is known.
            told = () if isinstance(fault, StoreError) else outcomes
            await self._ends.faulted(batch, item, fault, told)
            return None
        short = unpaid(outcomes)
        if batch.kind == "batch" and short is not None and not short.lasting:
            refused = [each for each in outcomes if was_refused(each)]
            await self._ends.requeue(batch, queued_again(item, self._renew(item, refused)))
            return self.troubles.run_short(batch.id, short)
        if short is None:
            self.troubles.afford(batch.id, since=began)
        await self._conclude(batch, item, outcomes)
        return _PAUSED_REST_SECONDS if any(isinstance(each.error, Paused) for each in outcomes) else None

    async def _conclude(self, batch: Batch, item: Item, outcomes: Sequence[Outcome]) -> None:
        """Put it back, buy it again, or end it, by what came of it."""
        if (trouble := passing(outcomes)) is not None:
            await self._put_back(batch, item, outcomes, trouble)
            return
        if refused := [each for each in outcomes if was_refused_before(each)]:
            await self._ends.requeue(batch, queued_again(item, self._renew(item, refused)))
            return
        if interrupted(outcomes):
            order, count = once_more_interrupted(
                self._renew(item, [each for each in outcomes if is_free(each)])
            )
            if count < MOST_INTERRUPTIONS:
                await self._ends.requeue(batch, another_attempt(item, order))
                return
        await self._ends.end(batch, ended(item, outcomes), [each.prediction for each in outcomes])

    async def _tried(self, batch: Batch, item: Item, ticket: Ticket, begun: Begun) -> Sequence[Outcome]:
        """What became of it when it could be tried; while it waits for that at the service, it is tried again.

        Raises:
            ImagenError: it could not be tried.
        """
        try:
            await self._pass(batch, ticket)
            if started := self._notices.of_start(batch, item):
                await self._outbox.put(started)
            while True:
                began = self._clock.now()
                outcomes = await self._carried_out(batch, item, begun)
                trouble = self._learn(batch, outcomes, ticket, began=began)
                if trouble is None or not keeps_places(outcomes, trouble):
                    return outcomes
                # Its places are kept, so its hand is too: put back, it might wait behind those who wait for its places.
                await self._pass(batch, ticket)
                # Of one that was paused meanwhile nothing more is bought.
                batch = await self._batches.get(batch.id)
        except StoreError as error:
            if not error.of_one_row:
                ticket.note(STORE, error)
            raise

    async def _pass(self, batch: Batch, ticket: Ticket) -> None:
        """Wait until it may be tried. Whoever finds out whether an account works asks it something free first.

        A create that meets a service which is away would leave an intent of which nobody can tell whether it was bought.

        Raises:
            BackendUnauthenticated, ConfigError, Unauthenticated, NotFound: the account cannot be used now.
        """
        while True:
            await ticket.passable(STORE, batch.account)
            if not ticket.tries(batch.account):
                return
            try:
                await self.backend_of(batch).probe()
            except BackendUnauthenticated:
                raise
            except BackendError as error:
                if not error.retryable:
                    return  # it answered, if only that it knows no such question
                ticket.note(batch.account, error)
            else:
                return

    def _learn(
        self, batch: Batch, outcomes: Sequence[Outcome], ticket: Ticket, *, began: datetime
    ) -> ImagenError | None:
        """Note what they tell of the account and the store; the passing trouble among them."""
        trouble = passing(outcomes)
        if isinstance(trouble, StoreError):
            ticket.note(STORE, trouble)
        elif trouble is None or heard_since(outcomes, began):
            if fault_of(outcomes) is None:
                ticket.clear(batch.account)
        elif not _is_of_one(trouble):
            ticket.note(batch.account, trouble)
        return trouble

    async def _carried_out(self, batch: Batch, item: Item, begun: Begun) -> Sequence[Outcome]:
        """Everything that the item takes.

        Raises:
            ConfigError, Unauthenticated, NotFound: its backend, or its account, cannot be used now.
        """
        order = self._order(batch, item)
        left = seconds_left(batch, self._clock.now())
        if left is not None and await self._finished_or_begun(item):
            left = None  # the service knows its deadline
        async with self._tellings.of(batch, item) as telling:
            return await in_time(order, left, partial(self._carried_on, item, telling, begun))

    async def _carried_on(
        self, item: Item, telling: Observer | None, begun: Begun, order: Order, patience: asyncio.Timeout
    ) -> Sequence[Outcome]:
        """The same while its time has not run out. It is held by nobody here, as it is let go of once it is bought."""
        beginning = Beginning(
            item,
            begun=begun,
            tells=self._stands_short,
            clock=self._clock,
            patience=patience,
            hears=telling,
        )
        try:
            return await self._gateway.carry_out(order, observer=beginning)
        finally:
            beginning.over()

    def _order(self, batch: Batch, item: Item) -> Order:
        """What the item takes. Raises as `_carried_out`."""
        return from_stored(
            item.order,
            batch=batch,
            backend=self.backend_of(batch),
            owner=self._owners.me,
            sealer=self._sealer,
        )

    def _stands_short(self, item: Item, limit: str | None) -> None:
        """An item waits for money that is reserved for somebody else; with None it waits no more."""
        self.troubles.stand_short(item.batch_id, item.index, limit)
        self._news.tell(item.batch_id)

    def backend_of(self, batch: Batch) -> Backend:
        """Where a batch is made.

        Raises:
            NotFound, ConfigError: its backend is not configured here, or its token cannot be read.
            Unauthenticated: it was made on an account that is not at hand now.
        """
        if batch.own_token:
            return self._backends.of(self._tokens.of(batch))
        backend = self._backends.get(batch.backend)
        if backend.account != batch.account and not backend.practice:
            raise Unauthenticated(
                f"{batch.id} belongs to another Replicate account than the token that is set now",
                hint="Set the token with which it was accepted.",
            )
        return backend

    async def _put_back(
        self, batch: Batch, item: Item, outcomes: Sequence[Outcome], error: ImagenError
    ) -> None:
        """Queue it once more: the same predictions where they may be under way, else new ones for those refused."""
        if isinstance(error, StillFollowed | Refused):
            await self._clock.sleep(_SHORT_PAUSE_SECONDS)
        elif isinstance(error, DeliveryError | ModelNotFound):
            # One picture that does not come keeps nobody else waiting.
            await self._clock.sleep(_FETCH_PAUSE_SECONDS)
        refused = [each for each in outcomes if was_refused(each)]
        account = isinstance(error, PaymentRequired | BackendUnauthenticated)
        if account and batch.remembered.fails_with_account:
            if len(refused) == len(outcomes):
                await self._ends.end(batch, ended(item, outcomes), [each.prediction for each in outcomes])
                return
            if not await self._finished_or_begun(item):  # withdrawn, as the token of a stranger was refused
                await self._ends.end(batch, _unmade(item, error), ())
                return
        order = self._renew(item, refused)
        await self._ends.requeue(batch, queued_again(item, order))
        if isinstance(error, PaymentRequired | BackendUnauthenticated):
            await self._stop(batch, error)

    async def _stopped_by(self, batch: Batch, item: Item, error: ImagenError) -> None:
        """It could not be tried: for the store, or because nothing of the batch can before somebody mends its account."""
        if isinstance(error, StoreError) and error.of_one_row:
            await self._ends.faulted(batch, item, error)
            return
        if (
            batch.remembered.fails_with_account
            and not isinstance(error, StoreError)
            and not await self._finished_or_begun(item)
        ):
            await self._ends.end(batch, _unmade(item, error), ())
            return
        await self._ends.requeue(batch, queued_again(item, item.order))
        if not isinstance(error, StoreError):
            await self._stop(batch, error)

    async def _stop(self, batch: Batch, error: ImagenError) -> None:
        reason = str(error)
        # Several of its items find out the same at once: it is paused, and told, once.
        async with self._stopping:
            with suppress(StoreError):
                now = await self._batches.get(batch.id)
                paused = now.control is Control.PAUSE and now.reason is not None
                if paused and now.remembered.stopped_by == error.code:
                    return
                await self._batches.control(
                    batch.id, Control.PAUSE, at=self._clock.now(), reason=reason, code=error.code
                )
            _log.log(logging.INFO if self.watched else logging.WARNING, "%s is paused: %s", batch.id, reason)

    def _renew(self, item: Item, void: Sequence[Outcome]) -> bytes:
        """Its order with new predictions in place of those that came to nothing and cost nothing."""
        again = {each.prediction.id for each in void}
        kept = frozenset(item.predictions) - again
        return renewed(item.order, now=self._clock.now(), besides=kept) if again else item.order

    async def _is_canceled(self, batch: Batch) -> bool:
        try:
            return (await self._batches.get(batch.id)).control is Control.CANCEL
        except (StoreError, NotFound):
            return False


def _is_of_one(error: ImagenError) -> bool:
    """Whether a passing error tells something of one item only, and nothing of its account."""
    fetched = isinstance(error, DeliveryError) and isinstance(error.__cause__, BackendError)
    return fetched or isinstance(error, StillFollowed | Refused | ModelNotFound)


def _unmade(item: Item, error: ImagenError) -> Item:
    """The item as it fails of which nothing was bought."""
    return msgspec.structs.replace(
        item,
        status=ItemStatus.FAILED,
        code=error.code,
        error=error.detail,
        hint=error.hint,
        charged=False,
    )
