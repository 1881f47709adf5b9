"""Working off one item of a batch: carried out, and then ended, or put back when the reason passes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial

import msgspec

from imagen.domain.batch import Batch, Control, Item, ItemStatus
from imagen.domain.delivery import Delivery
from imagen.domain.prediction import Prediction, Status
from imagen.errors import (
    BackendError,
    BackendUnauthenticated,
    DeliveryError,
    ImagenError,
    InvalidRequest,
    ModelNotFound,
    NotFound,
    PaymentRequired,
    Refused,
    StillFollowed,
    StoreError,
    Unauthenticated,
)
from imagen.ports import Backend, Backends, BatchStore, Clock, Observer, Outbox, Owners, Sealer
from imagen.service.finish import Outcome
from imagen.service.gateway import Gateway
from imagen.service.in_time import Beginning, in_time, seconds_left
from imagen.service.news import News
from imagen.service.notices import Notices
from imagen.service.orders import from_stored, prediction_ids, renewed
from imagen.service.outcome_of_item import (
    another_attempt,
    canceled,
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
)
from imagen.service.prepare import Order
from imagen.service.replicate_events import Tellings
from imagen.service.tokens import TokenVault
from imagen.service.troubles import STORE, Ticket, Troubles, reason_of

MOST_ATTEMPTS = 3
"""So often an item that the service itself interrupted is bought; each time before was free."""
_SHORT_PAUSE_SECONDS = 1.0
_FETCH_PAUSE_SECONDS = 5.0
_STOP_SECONDS = 30.0
_STOP_PAUSE_SECONDS = 0.25
_CLOSING_SECONDS = 5.0

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
        self._faults: dict[tuple[str, int], int] = {}
        self._canceling: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._begun: set[tuple[str, int]] = set()
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

    async def work(self, batch: Batch, item: Item) -> float | None:
        """Bring an item as far as it goes now: to its end, or back into the queue.

        Cancelled, it leaves the item to whoever works on the batch next; in a batch that is to be canceled it stops
        what runs at the service, and ends the item.

        Returns:
            Seconds for which nothing more of the batch can be begun, as a budget has no room for it; None as a rule.
        """
        try:
            if batch.control is not Control.CANCEL:
                return await self._work(batch, item)
            await self._canceling_of(batch, item)
        except asyncio.CancelledError:
            if not await asyncio.shield(self._is_canceled(batch)):
                raise
            await self._canceling_of(batch, item)
        except Exception as error:  # noqa: BLE001 - a fault of ours must not end the others' work
            await self._faulted(batch, item, error)
        finally:
            self._begun.discard((item.batch_id, item.index))
            self._news.tell(batch.id)
        return None

    def has_begun(self, item: Item) -> bool:
        """Whether something of an item that is being worked on was let in, so that it is bought."""
        return (item.batch_id, item.index) in self._begun

    async def emptied(self, batch: Batch) -> bool:
        """Nothing of a batch waits or is worked on here: when nothing is left at all it has ended. Whether it has."""
        try:
            if not await self._closed(batch):
                return (await self._batches.get(batch.id)).ended_at is not None
            self._tokens.forget(batch.id)
            self.troubles.afford(batch.id)
            for place in [place for place in self._faults if place[0] == batch.id]:
                del self._faults[place]  # what was canceled while it was queued has ended by itself
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
        deliveries = [*self._notices.of_batch(fresh, tally), *await self._of_never_begun(fresh)]
        return await self._batches.close(batch.id, at=self._clock.now(), deliveries=deliveries)

    async def _of_never_begun(self, batch: Batch) -> Sequence[Delivery]:
        """The end of a single prediction that was canceled while it waited: nobody has worked on that."""
        if batch.control is not Control.CANCEL or not self._notices.tells_of_unbegun(batch):
            return ()
        (item,) = await self._batches.items(batch.id, limit=1)
        if await self._finished_or_begun(item):
            return ()
        return self._notices.of_item(batch, item, ())

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

    async def _work(self, batch: Batch, item: Item) -> float | None:
        if batch.control is Control.RUN and (left := self.troubles.short_for(batch.id)) is not None:
            await self._requeue(batch, item)
            return left
        began = self._clock.monotonic()
        try:
            with self.troubles.ticket() as ticket:
                outcomes = await self._tried(batch, item, ticket)
        except ImagenError as error:
            await self._stopped_by(batch, item, error)
            return None
        if (fault := fault_of(outcomes)) is not None:
            # Of what cannot be read nothing is known.
            told = () if isinstance(fault, StoreError) else outcomes
            await self._faulted(batch, item, fault, told)
            return None
        short = unpaid(outcomes)
        if batch.kind == "batch" and short is not None and not short.lasting:
            refused = [each for each in outcomes if was_refused(each)]
            await self._requeue(batch, queued_again(item, self._renew(item, refused)))
            return self.troubles.run_short(batch.id, short)
        if short is None:
            self.troubles.afford(batch.id, since=began)
        await self._conclude(batch, item, outcomes)
        return None

    async def _conclude(self, batch: Batch, item: Item, outcomes: Sequence[Outcome]) -> None:
        """Put it back, buy it again, or end it, by what came of it."""
        if (trouble := passing(outcomes)) is not None:
            await self._put_back(batch, item, outcomes, trouble)
            return
        again = interrupted(outcomes)
        if again and item.attempt < MOST_ATTEMPTS:
            await self._requeue(
                batch,
                another_attempt(item, self._renew(item, [each for each in outcomes if is_free(each)])),
            )
            return
        await self._end(batch, ended(item, outcomes), [each.prediction for each in outcomes])

    async def _tried(self, batch: Batch, item: Item, ticket: Ticket) -> Sequence[Outcome]:
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
                outcomes = await self._carried_out(batch, item)
                trouble = self._learn(batch, outcomes, ticket, began=began)
                if trouble is None or not keeps_places(outcomes, trouble):
                    return outcomes
                # Its places are kept, so its hand is too: put back, it might wait behind those who wait for its places.
                await self._pass(batch, ticket)
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

    async def _carried_out(self, batch: Batch, item: Item) -> Sequence[Outcome]:
        """Everything that the item takes.

        Raises:
            ConfigError, Unauthenticated, NotFound: its backend, or its account, cannot be used now.
        """
        order = self._order(batch, item)
        left = seconds_left(batch, self._clock.now())
        if left is not None and await self._finished_or_begun(item):
            left = None  # the service knows its deadline
        async with self._tellings.of(batch, item) as telling:
            return await in_time(order, left, partial(self._carried_on, item, telling))

    async def _carried_on(
        self, item: Item, telling: Observer | None, order: Order, patience: asyncio.Timeout
    ) -> Sequence[Outcome]:
        """The same while its time has not run out. It is held by nobody here, as it is let go of once it is bought."""
        beginning = Beginning(
            item,
            begun=self._begun,
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
                await self._end(batch, ended(item, outcomes), [each.prediction for each in outcomes])
                return
            if not await self._finished_or_begun(item):  # withdrawn, as the token of a stranger was refused
                await self._end(batch, _unmade(item, error), ())
                return
        order = self._renew(item, refused)
        await self._requeue(batch, queued_again(item, order))
        if isinstance(error, PaymentRequired | BackendUnauthenticated):
            await self._stop(batch, error)

    async def _stopped_by(self, batch: Batch, item: Item, error: ImagenError) -> None:
        """It could not be tried: for the store, or because nothing of the batch can before somebody mends its account."""
        if isinstance(error, StoreError) and error.of_one_row:
            await self._faulted(batch, item, error)
            return
        if (
            batch.remembered.fails_with_account
            and not isinstance(error, StoreError)
            and not await self._finished_or_begun(item)
        ):
            await self._end(batch, _unmade(item, error), ())
            return
        await self._requeue(batch, queued_again(item, item.order))
        if not isinstance(error, StoreError):
            await self._stop(batch, error)

    async def _stop(self, batch: Batch, error: ImagenError) -> None:
        reason = str(error)
        with suppress(StoreError):
            await self._batches.control(
                batch.id, Control.PAUSE, at=self._clock.now(), reason=reason, code=error.code
            )
        _log.warning("%s is paused: %s", batch.id, reason)

    async def _faulted(
        self, batch: Batch, item: Item, error: Exception, outcomes: Sequence[Outcome] = ()
    ) -> None:
        """A fault of ours: tried again, as nothing is bought twice by that, but not for ever."""
        place = (batch.id, item.index)
        faults = self._faults.pop(place, 0) + 1
        _log.error("item %d of %s: unexpected %s", item.index, batch.id, type(error).__name__)
        _log.debug("its trace", exc_info=error)
        if faults < MOST_ATTEMPTS:
            self._faults[place] = faults
            await self._clock.sleep(_SHORT_PAUSE_SECONDS)
            await self._requeue(batch, queued_again(item, item.order))
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
        await self._end(batch, failed, [each.prediction for each in outcomes])

    # --- its end -----------------------------------------------------------------------------------------

    async def _end(self, batch: Batch, item: Item, predictions: Sequence[Prediction]) -> None:
        """Write the end down, however long the database takes nothing."""
        item = msgspec.structs.replace(item, ended_at=self._clock.now())
        self._faults.pop((item.batch_id, item.index), None)
        told = self._tellings.take(batch)
        deliveries = self._notices.of_item(batch, item, predictions, told=told)
        await self._written(partial(self._batches.end, item, deliveries=deliveries))

    async def _requeue(self, batch: Batch, item: Item) -> None:
        # A small thing finds a place where nothing else does: that it was written proves nothing.
        await self._written(partial(self._batches.requeue, item), proves=False)
        self._news.tell(batch.id)

    async def _written(self, write: Callable[[], Awaitable[object]], *, proves: bool = True) -> None:
        """Write, however long the database takes nothing; `proves`: that others could write then, too."""
        with self.troubles.ticket() as ticket:
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

    def _renew(self, item: Item, void: Sequence[Outcome]) -> bytes:
        """Its order with new predictions in place of those that came to nothing and cost nothing."""
        again = {each.prediction.id for each in void}
        kept = frozenset(item.predictions) - again
        return renewed(item.order, now=self._clock.now(), besides=kept) if again else item.order

    # --- cancelling --------------------------------------------------------------------------------------

    async def _is_canceled(self, batch: Batch) -> bool:
        try:
            return (await self._batches.get(batch.id)).control is Control.CANCEL
        except (StoreError, NotFound):
            return False

    async def _canceling_of(self, batch: Batch, item: Item) -> None:
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
            await self._faulted(batch, item, error)
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
        if len(outcomes) == len(ids) and not any(_was_stopped(each) for each in outcomes):
            await self._end(batch, ended(item, outcomes), [each.prediction for each in outcomes])
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
        await self._end(batch, canceled(item, outcomes), [each.prediction for each in outcomes])

    async def _stopped(self, batch: Batch, prediction_id: str) -> Prediction:
        """Stop one at the service. What we are just buying ourselves, for others too perhaps, is stopped a moment later.

        Raises:
            ImagenError: it could not be stopped.
        """
        ours = True
        while True:
            try:
                backend = self.backend_of(batch) if batch.own_token else None
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


def _is_of_one(error: ImagenError) -> bool:
    """Whether a passing error tells something of one item only, and nothing of its account."""
    fetched = isinstance(error, DeliveryError) and isinstance(error.__cause__, BackendError)
    return fetched or isinstance(error, StillFollowed | Refused | ModelNotFound)


def _was_stopped(outcome: Outcome) -> bool:
    return outcome.prediction.status in {Status.CANCELED, Status.ABORTED}


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
