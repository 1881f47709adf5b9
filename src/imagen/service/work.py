"""Working off one item of a batch: carried out, and then ended, or put back when the reason passes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec

from imagen.domain.batch import Batch, Control, Item, ItemStatus
from imagen.domain.delivery import Delivery
from imagen.domain.money import Usd
from imagen.domain.prediction import Prediction, Status
from imagen.errors import (
    BackendError,
    BackendUnauthenticated,
    ConfigError,
    DeliveryError,
    ImagenError,
    NotFound,
    OutputDefective,
    PaymentRequired,
    PredictionCanceled,
    PredictionFailed,
    Refused,
    StillFollowed,
    StoreError,
    Unauthenticated,
    WaitTimeout,
)
from imagen.ports import Backend, Backends, BatchStore, Clock, Outbox, Owners, Sealer
from imagen.service.finish import Outcome
from imagen.service.gateway import Gateway
from imagen.service.news import News
from imagen.service.notices import Notices
from imagen.service.orders import from_stored, prediction_ids, renewed
from imagen.service.tokens import TokenVault
from imagen.service.troubles import STORE, Troubles

MOST_ATTEMPTS = 3
"""So often an item that the service itself interrupted is bought; each time before was free."""
_SHORT_PAUSE_SECONDS = 1.0
_FETCH_PAUSE_SECONDS = 5.0
_STOP_SECONDS = 30.0

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
        self._gateway = gateway
        self._batches = batches
        self._backends = backends
        self._tokens = tokens
        self._sealer = sealer
        self._notices = notices
        self._outbox = outbox
        self._news = news
        self._owners = owners
        self._clock = clock

    async def work(self, batch: Batch, item: Item) -> None:
        """Bring an item as far as it goes now: to its end, or back into the queue.

        Cancelled, it leaves the item to whoever works on the batch next; in a batch that is to be canceled it stops
        what runs at the service, and ends the item.
        """
        try:
            await (self._cancel(batch, item) if batch.control is Control.CANCEL else self._work(batch, item))
        except asyncio.CancelledError:
            if not await asyncio.shield(self._is_canceled(batch)):
                raise
            await asyncio.shield(self._cancel(batch, item))
        except Exception as error:  # noqa: BLE001 - a fault of ours must not end the others' work
            await self._faulted(batch, item, error)
        finally:
            self._news.tell(batch.id)

    async def emptied(self, batch: Batch) -> None:
        """Nothing of a batch waits or is worked on here: when nothing is left at all it has ended."""
        try:
            fresh = await self._batches.get(batch.id)
            tally = await self._batches.tally(batch.id, recent_since=self._clock.now())
            if tally.left == 0:
                deliveries = self._notices.of_batch(fresh, tally)
                if await self._batches.close(batch.id, at=self._clock.now(), deliveries=deliveries):
                    self._tokens.forget(batch.id)
        except StoreError as error:
            self.troubles.note(STORE, error.detail)
        finally:
            self._news.tell(batch.id)

    # --- one item ----------------------------------------------------------------------------------------

    async def _work(self, batch: Batch, item: Item) -> None:
        try:
            await self.troubles.passable(STORE, batch.account)
            if started := self._notices.of_start(batch, item):
                await self._outbox.put(started)
            outcomes = await self._carried_out(batch, item)
            while (trouble := _passing(outcomes)) is not None and _keeps_places(outcomes, trouble):
                # Its places are kept, so its hand is too: put back, it might wait behind those who wait for its places.
                self.troubles.note(STORE if isinstance(trouble, StoreError) else batch.account, str(trouble))
                await self.troubles.passable(STORE, batch.account)
                outcomes = await self._carried_out(batch, item)
        except asyncio.CancelledError:
            self._found_nothing(batch)
            raise
        except ImagenError as error:
            await self._pause(batch, item, error)
            return
        passing = _passing(outcomes)
        if passing is not None:
            await self._put_back(batch, item, outcomes, passing)
            return
        self.troubles.clear(batch.account)
        again = _interrupted(outcomes)
        if again and item.attempt < MOST_ATTEMPTS:
            await self._requeue(
                batch,
                _another_attempt(item, self._renew(item, [each for each in outcomes if _is_free(each)])),
            )
            return
        await self._end(batch, _ended(item, outcomes), [each.prediction for each in outcomes])

    async def _carried_out(self, batch: Batch, item: Item) -> Sequence[Outcome]:
        """Everything that the item takes.

        Raises:
            ConfigError, Unauthenticated, NotFound: its backend, or its account, cannot be used now.
        """
        backend = self.backend_of(batch)
        order = from_stored(
            item.order, batch=batch, backend=backend, owner=self._owners.me, sealer=self._sealer
        )
        return await self._gateway.carry_out(order)

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
            self._found_nothing(
                batch
            )  # it told nothing of the account: if it was the one that tries, another may
            await self._clock.sleep(_SHORT_PAUSE_SECONDS)
        elif isinstance(error, DeliveryError) and isinstance(error.__cause__, BackendError):
            self._found_nothing(batch)
            await self._clock.sleep(
                _FETCH_PAUSE_SECONDS
            )  # one picture that does not come keeps nobody else waiting
        else:
            self.troubles.note(STORE if isinstance(error, StoreError) else batch.account, str(error))
        order = self._renew(item, [each for each in outcomes if _was_refused(each)])
        await self._requeue(batch, _queued_again(item, order))
        if isinstance(error, PaymentRequired | BackendUnauthenticated):
            await self._stop(batch, str(error))

    async def _pause(self, batch: Batch, item: Item, error: ImagenError) -> None:
        """Its account cannot be used: nothing of the batch can go on before somebody mends that."""
        if isinstance(error, StoreError):
            self.troubles.note(STORE, error.detail)
            await self._requeue(batch, _queued_again(item, item.order))
            return
        self._found_nothing(batch)
        await self._requeue(batch, _queued_again(item, item.order))
        await self._stop(batch, str(error))

    async def _stop(self, batch: Batch, reason: str) -> None:
        self._found_nothing(batch)
        with suppress(StoreError):
            await self._batches.control(batch.id, Control.PAUSE, at=self._clock.now(), reason=reason)
        _log.warning("%s is paused: %s", batch.id, reason)

    def _found_nothing(self, batch: Batch) -> None:
        self.troubles.given_up(STORE)
        self.troubles.given_up(batch.account)

    async def _faulted(self, batch: Batch, item: Item, error: Exception) -> None:
        """A fault of ours: tried again, as nothing is bought twice by that, but not for ever."""
        place = (batch.id, item.index)
        faults = self._faults.pop(place, 0) + 1
        _log.error("item %d of %s: unexpected %s", item.index, batch.id, type(error).__name__)
        _log.debug("its trace", exc_info=error)
        self._found_nothing(batch)
        if faults < MOST_ATTEMPTS:
            self._faults[place] = faults
            await self._clock.sleep(_SHORT_PAUSE_SECONDS)
            await self._requeue(batch, _queued_again(item, item.order))
            return
        failed = msgspec.structs.replace(
            item,
            status=ItemStatus.FAILED,
            code=ImagenError.code,
            error=f"an unexpected fault ({type(error).__name__}); please report it",
            hint="`imagen predictions list` shows whether it was bought.",
            cost=None,
        )
        await self._end(batch, failed, [])

    # --- its end -----------------------------------------------------------------------------------------

    async def _end(self, batch: Batch, item: Item, predictions: Sequence[Prediction]) -> None:
        """Write the end down, however long the database takes nothing."""
        item = msgspec.structs.replace(item, ended_at=self._clock.now())
        deliveries = self._notices.of_item(batch, item, predictions)
        await self._written(self._batches.end, item, deliveries)

    async def _requeue(self, batch: Batch, item: Item) -> None:
        await self._written(self._batches.requeue, item, None)
        self._news.tell(batch.id)

    async def _written(self, write: Any, item: Item, deliveries: Sequence[Delivery] | None) -> None:
        while True:
            try:
                await (write(item) if deliveries is None else write(item, deliveries=deliveries))
            except StoreError as error:
                self.troubles.note(STORE, error.detail)
                await self.troubles.passable(STORE)
            else:
                if deliveries is None:
                    self.troubles.given_up(STORE)  # a small thing finds a place where nothing else does
                else:
                    self.troubles.clear(STORE)
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

    async def _cancel(self, batch: Batch, item: Item) -> None:
        """Stop what runs of it at the service, and end it as canceled; what has ended there counts as it ended."""
        ended = []
        for prediction_id in prediction_ids(item.order):
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    ended.append(await self._gateway.cancel(prediction_id))
            except NotFound:
                continue  # it was never bought
            except (ImagenError, TimeoutError) as error:
                _log.info("%s could not be canceled: %s", prediction_id, type(error).__name__)
                with suppress(ImagenError):
                    ended.append(await self._gateway.show(prediction_id))
        costs = [_cost(each) for each in ended]
        canceled = msgspec.structs.replace(
            item,
            status=ItemStatus.CANCELED,
            code="prediction_canceled",
            error="it was canceled with its batch",
            hint=None,
            charged=_charged(ended),
            cost=_sum([item.cost, *costs]),
            urls=tuple(url for each in ended for url in each.output),
        )
        await self._end(batch, canceled, ended)


def _passing(outcomes: Sequence[Outcome]) -> ImagenError | None:
    """The error after which the item is tried again, as it is no fault of its own."""
    for outcome in outcomes:
        error = outcome.error
        if error is None:
            continue
        if isinstance(error, StoreError | StillFollowed | WaitTimeout | DeliveryError):
            return error
        if isinstance(error, Refused) and error.retryable:
            return error
        if isinstance(error, PaymentRequired | BackendUnauthenticated | Unauthenticated | ConfigError):
            return error
        if isinstance(error, BackendError) and (error.retryable or not outcome.prediction.status.terminal):
            return error
    return None


def _keeps_places(outcomes: Sequence[Outcome], trouble: ImagenError) -> bool:
    """Whether something of it may run at the service, which is away or could not be heard, so that it holds its places."""
    waits = isinstance(trouble, StoreError | BackendError) and not isinstance(
        trouble, PaymentRequired | BackendUnauthenticated
    )
    return waits and any(
        each.prediction.sent_at is not None and not each.prediction.status.terminal for each in outcomes
    )


def _interrupted(outcomes: Sequence[Outcome]) -> bool:
    """Whether the service itself broke a run off, for which it charges nothing."""
    return any(
        isinstance(each.error, PredictionFailed)
        and each.error.category == "infrastructure"
        and each.prediction.charged is False
        for each in outcomes
    )


def _is_free(outcome: Outcome) -> bool:
    """Whether a prediction ended without a picture, and costs nothing."""
    prediction = outcome.prediction
    ended = prediction.status in {Status.FAILED, Status.CANCELED, Status.ABORTED}
    return ended and prediction.charged is False


def _was_refused(outcome: Outcome) -> bool:
    """Whether its create was refused: then it never ran, and its id is spent."""
    return _is_free(outcome) and outcome.prediction.upstream_id is None


def _queued_again(item: Item, order: bytes) -> Item:
    return msgspec.structs.replace(
        item, status=ItemStatus.QUEUED, order=order, predictions=prediction_ids(order)
    )


def _another_attempt(item: Item, order: bytes) -> Item:
    return msgspec.structs.replace(_queued_again(item, order), attempt=item.attempt + 1)


def _ended(item: Item, outcomes: Sequence[Outcome]) -> Item:
    """The item as its predictions have ended."""
    error = next((each.error for each in outcomes if each.error is not None), None)
    predictions = [each.prediction for each in outcomes]
    return msgspec.structs.replace(
        item,
        status=_status_of(error, predictions),
        predictions=tuple(each.id for each in predictions),
        error=None if error is None else error.detail,
        code=None if error is None else error.code,
        hint=None if error is None else error.hint,
        problem={} if error is None else _problem_of(error),
        charged=_charged(predictions),
        cost=_sum([item.cost, *map(_cost, predictions)]),
        files=tuple(name for each in outcomes for name in _files_of(each)),
        urls=tuple(url for each in predictions for url in each.output),
        seed=predictions[0].seed if predictions else None,
        images=sum(len(each.output) for each in predictions if each.status is Status.SUCCEEDED),
    )


def _status_of(error: ImagenError | None, predictions: Sequence[Prediction]) -> ItemStatus:
    if error is None:
        return ItemStatus.SUCCEEDED
    if isinstance(error, OutputDefective) and error.expired:
        return ItemStatus.EXPIRED
    stopped = isinstance(error, PredictionCanceled) and not any(map(_took_too_long, predictions))
    return ItemStatus.CANCELED if stopped else ItemStatus.FAILED


def _took_too_long(prediction: Prediction) -> bool:
    return (prediction.latency_ms or 0) / 1000 >= prediction.deadline_seconds


def _problem_of(error: ImagenError) -> dict[str, Any]:
    """What an error knows besides its sentence, so that faces show it later as they would now."""
    found: dict[str, Any] = {
        name: value
        for name in ("prediction_id", "category", "reason")
        if (value := getattr(error, name, None)) is not None
    }
    if problems := getattr(error, "problems", ()):
        found["problems"] = msgspec.to_builtins(list(problems))
    return found


def _files_of(outcome: Outcome) -> Sequence[str]:
    """Where the pictures of a prediction are, as an item tells it."""
    shelved = {str(each.path): each.shelf_id for each in outcome.pictures if each.shelf_id is not None}
    return [f"shelf:{shelved[name]}" if name in shelved else name for name in outcome.prediction.files]


def _charged(predictions: Sequence[Prediction]) -> bool | None:
    told = [each.charged for each in predictions]
    if any(told):
        return True
    return None if None in told else False


def _cost(prediction: Prediction) -> Usd | None:
    """What it cost; None while nobody can tell."""
    if prediction.charged is False or prediction.upstream_id is None:
        return Usd(0)
    return prediction.cost


def _sum(costs: Sequence[Usd | None]) -> Usd | None:
    known = [cost for cost in costs if cost is not None]
    return Usd.total(known) if len(known) == len(costs) else None
