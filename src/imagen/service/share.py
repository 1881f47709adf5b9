"""One purchase for equal requests: from the cache where it was made before, together where it is being made.

A request that says its seed, or whose model takes none, wants the very same picture as every equal one. Whoever comes
first has it made; those who come meanwhile wait for it, those who come later find it in the cache. Each of them has a
prediction and a ledger entry of its own, and its own pictures where it wanted them; only the first one is charged.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec

from imagen.domain.batch import Batch, Control
from imagen.domain.events import CacheHit
from imagen.domain.money import Usd
from imagen.domain.prediction import HIDDEN, Prediction, Status
from imagen.domain.usage import CACHED, SHARED, UsageEntry
from imagen.errors import (
    DeliveryError,
    ImagenError,
    NotFound,
    OutputDefective,
    Paused,
    PredictionError,
    StillFollowed,
    StoreError,
)
from imagen.ports import Backend, BatchStore, Clock, Notify, Owners, Plan, PredictionStore
from imagen.service.adopt import outputs_live
from imagen.service.cache import CachedPictures, PictureCache, Tap
from imagen.service.deliver import Deliverer, Destination, Kept, PictureSource, from_stored, to_stored
from imagen.service.endings import error_of
from imagen.service.finish import Outcome

MOST_COPIES = 8
"""So many copies are delivered at once, as the pictures of each are in memory meanwhile."""

_log = logging.getLogger(__name__)

Make = Callable[[PictureSource], Awaitable[Outcome]]
"""Has it made; the pictures are fetched from what is given."""


class _Flight:
    """Something that is being made, and how many wait for it."""

    def __init__(self, task: asyncio.Task[Outcome]) -> None:
        self.task = task
        self.waiting = 0


class Reuse:
    """Takes pictures from where they are, and has them made where they are not. Safe to share between tasks.

    Args:
        cache: pictures of the past.
        store: has the predictions.
        batches: say what durable work a prediction belongs to.
        owners: tells the living from the dead.
        takes: whether this process works on a batch that nobody works on.
        deliverer: brings the copies to where they were asked for.
        clock: tells the time.
        by_default: whether a backend's requests are reused that say nothing of it.
    """

    def __init__(
        self,
        *,
        cache: PictureCache,
        store: PredictionStore,
        batches: BatchStore,
        owners: Owners,
        takes: Callable[[Batch], bool],
        deliverer: Deliverer,
        clock: Clock,
        by_default: Callable[[Backend], bool],
    ) -> None:
        self._cache = cache
        self._store = store
        self._batches = batches
        self._owners = owners
        self._takes = takes
        self._deliverer = deliverer
        self._clock = clock
        self._by_default = by_default
        self._flights: dict[str, _Flight] = {}
        self._copying = asyncio.Semaphore(MOST_COPIES)

    def is_asked(self, backend: Backend, intent: Prediction, plan: Plan, *, wanted: bool | None) -> bool:
        """Whether a request may be answered with pictures of an equal one.

        Args:
            backend: where it would be made.
            intent: the prediction that it would take.
            plan: as it was checked, without a seed of ours.
            wanted: what the request says; None leaves it to the settings.
        """
        if wanted is None:
            wanted = self._by_default(backend)
        return wanted and _is_repeatable(intent, plan)

    async def carry_out(
        self,
        backend: Backend,
        prediction: Prediction,
        make: Make,
        *,
        fresh: bool,
        notify: Notify,
        comes_again: bool = False,
    ) -> Outcome:
        """Give a request its pictures, made once for all equal ones.

        Args:
            backend: where it is made.
            prediction: the intent, or what is left of one.
            make: buys and delivers, or finishes what was bought.
            fresh: nothing of it was bought yet, so it may have the pictures of another.
            notify: told when it gets those.
            comes_again: it is asked for once more later, so that it leaves what other durable work has bought, and could
                not bring to its end yet, to that.

        Raises:
            StillFollowed: it does so.
            ImagenError: it was not let in, or could not be written down: nothing was bought.
        """
        key = prediction.request_key
        while fresh:
            if (flight := self._flights.get(key)) is not None:
                try:
                    led = await self._wait(key, flight)
                except ImagenError:
                    continue  # that one was not let in, so nothing was bought: perhaps we are
                if _is_stopped(led.prediction) or isinstance(led.error, Paused):
                    continue  # somebody does not want it any more, or not now; we do
                return await self._share(backend, prediction, led, notify)
            async with self._copying:
                if (found := await self._find(prediction)) is not None:
                    return await self._hit(prediction, *found, notify=notify)
            if comes_again and (bought := await self._bought_for_others(prediction)) is not None:
                raise StillFollowed(f"{bought.id}, for an equal request, is not at its end yet")
            if key not in self._flights:
                break  # nobody began while we looked
        making = self._make(key, backend, make)
        if key in self._flights:
            return await making
        flight = _Flight(asyncio.get_running_loop().create_task(making))
        # Somebody looked at it.
        flight.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._flights[key] = flight
        return await self._wait(key, flight)

    async def again(self, prediction: Prediction, destination: Destination | None) -> Outcome:
        """Bring the pictures of a prediction that was reused to where they belong, once more."""
        stored = prediction.destination if destination is None else to_stored(destination)
        place, wanted = from_stored(stored), msgspec.structs.replace(prediction, destination=stored)
        async with self._copying:
            found = None if place is None else await self._find(prediction)
            if found is None or place is None:
                lying = await self._deliverer.lying(prediction)
                missing = place is not None and not lying
                return Outcome(prediction, lying, _forgotten(prediction) if missing else None)
            pictures = await self._bring(wanted, found[1], place, found[0], lambda _: None)
        files = tuple(str(picture.path) for picture in pictures)
        again = msgspec.structs.replace(wanted, files=files, delivered_at=self._clock.now())
        return Outcome(await self._store.save(again), pictures)

    # --- those who wait ----------------------------------------------------------------------------------

    async def _wait(self, key: str, flight: _Flight) -> Outcome:
        """Wait for what is being made. When nobody waits any more it is cancelled, which cancels it upstream."""
        flight.waiting += 1
        try:
            await asyncio.wait([flight.task])
        except asyncio.CancelledError:
            if flight.waiting == 1 and not flight.task.done():
                self._forget(key, flight)
                flight.task.cancel()
                await asyncio.wait([flight.task])
            raise
        finally:
            flight.waiting -= 1
        return flight.task.result()

    async def _make(self, key: str, backend: Backend, make: Make) -> Outcome:
        """Have it made, and keep it for those who come later."""
        tap = self._cache.tap(backend)
        try:
            outcome = await make(tap)
            if outcome.error is None:
                await self._keep(key, outcome.prediction, tap)
            return msgspec.structs.replace(outcome, cache="miss")
        finally:
            tap.clear()
            if (flight := self._flights.get(key)) is not None and flight.task is asyncio.current_task():
                self._forget(key, flight)

    async def _keep(self, key: str, prediction: Prediction, tap: Tap) -> None:
        """Put its pictures into the cache. They are paid for and delivered: no fault of the cache takes that back."""
        try:
            await self._cache.put(key, prediction, tap)
        except Exception as error:  # noqa: BLE001 - whatever it is, it only costs what the cache would have saved
            fault = type(error).__name__
            _log.error("the pictures of %s are not in the cache: unexpected %s", prediction.id, fault)
            _log.debug("the fault of the cache of %s", prediction.id, exc_info=error)

    def _forget(self, key: str, flight: _Flight) -> None:
        """Whoever comes now begins anew."""
        if self._flights.get(key) is flight:
            del self._flights[key]

    async def _bought_for_others(self, prediction: Prediction) -> Prediction | None:
        """What other durable work has bought for an equal request, and somebody alive is going to bring to its end.

        What the dead have left behind is finished by whoever goes on with their work, which may be never. Nobody waits for
        that: each wish is bought once, and this one is another.
        """
        now = self._clock.now()
        for found in await self._store.promised(prediction.request_key):
            same = found.account == prediction.account and found.id != prediction.id
            # Later there is nothing left of it that could be had.
            if same and outputs_live(found, now) and await self._is_worked_on(found):
                return found
        return None

    async def _is_worked_on(self, prediction: Prediction) -> bool:
        """Whether a living process has it, or the batch that it belongs to; or this one is about to take that."""
        if prediction.owner is not None and self._owners.alive(prediction.owner):
            return True
        place = (await self._batches.places([prediction.id])).get(prediction.id)
        if place is None:
            return False
        batch, _ = place
        if batch.control is Control.PAUSE and prediction.unheard:
            return False  # it is bought when somebody resumes that
        if batch.owner is not None and self._owners.alive(batch.owner):
            return True
        return self._takes(batch)

    # --- their own answers -------------------------------------------------------------------------------

    async def _find(self, prediction: Prediction) -> tuple[Prediction, CachedPictures] | None:
        """What was made for an equal request of the same account, with its prediction."""
        found = await self._cache.find(prediction.request_key)
        if found is None:
            return None
        try:
            made = await self._store.get(found.entry.prediction_id)
        except (NotFound, StoreError):
            return None
        return (made, found) if made.account == prediction.account else None

    async def _hit(
        self, intent: Prediction, made: Prediction, found: CachedPictures, *, notify: Notify
    ) -> Outcome:
        """The pictures of the past. Where no place was asked for the shelf is one: the service may have them no more."""
        place = from_stored(intent.destination)
        if place is None:
            place = Destination(shelf=True, shelf_key=found.shelf_key, metadata=False)
            intent = msgspec.structs.replace(intent, destination=to_stored(place))
        pictures = await self._bring(intent, found, place, made, notify)
        return await self._written(intent, made, pictures, "hit", notify)

    async def _share(self, backend: Backend, intent: Prediction, led: Outcome, notify: Notify) -> Outcome:
        """What came of the purchase that we waited for. Its pictures are ours too, and so is its failure."""
        made, place = led.prediction, from_stored(intent.destination)
        if made.status is not Status.SUCCEEDED or isinstance(led.error, OutputDefective):
            return await self._failed(intent, led)
        if place is None:
            return await self._written(intent, made, (), "shared", notify)
        async with self._copying:
            found = await self._find(intent)
            source: PictureSource = backend if found is None else found[1]
            pictures = await self._bring(intent, source, place, made, notify)
            return await self._written(intent, made, pictures, "shared", notify)

    async def _bring(
        self,
        intent: Prediction,
        source: PictureSource,
        place: Destination,
        made: Prediction,
        notify: Notify,
    ) -> tuple[Kept, ...]:
        """Bring copies to where they were asked for. They say in themselves by whom they were made.

        Raises:
            DeliveryError: they could not be put there.
        """
        shown = msgspec.structs.replace(
            intent,
            upstream_id=made.upstream_id,
            sent_at=made.sent_at,
            ended_at=made.ended_at,
            output=source.addresses if isinstance(source, CachedPictures) else made.output,
        )
        delivery = await self._deliverer.deliver(source, shown, place, notify=notify)
        if delivery.error is not None:
            raise DeliveryError(
                delivery.error.detail,
                hint="Nothing was bought for it; ask again when that is mended.",
            ) from delivery.error
        return tuple(picture for picture in delivery.pictures if picture is not None)

    async def _written(
        self,
        intent: Prediction,
        made: Prediction,
        pictures: tuple[Kept, ...],
        how: Literal["hit", "shared"],
        notify: Notify,
    ) -> Outcome:
        """Write down, in one transaction, that it has what another was paid for."""
        now = self._clock.now()
        copied = msgspec.structs.replace(
            intent,
            status=Status.SUCCEEDED,
            charged=False,
            cost=Usd(0),
            version=made.version,
            image_count=made.image_count,
            output=made.output,
            answer=made.answer,
            files=tuple(str(picture.path) for picture in pictures),
            owner=None,
            ended_at=now,
            delivered_at=now,
            settled_at=now,
        )
        await self._record(copied, CACHED if how == "hit" else SHARED, made)
        notify(CacheHit(copied, made.id, shared=how == "shared"))
        return Outcome(copied, pictures, cache=how)

    async def _failed(self, intent: Prediction, led: Outcome) -> Outcome:
        """The failure of the purchase that we waited for. It cost us nothing, and nothing is bought in its place."""
        free = msgspec.structs.replace(intent, charged=False, cost=Usd(0), owner=None)
        made, error = led.prediction, led.error
        if not made.status.terminal or made.status is Status.UNKNOWN:
            return Outcome(free, error=_for_free(error, free), cache="shared")
        now = self._clock.now()
        defect = made.status is Status.SUCCEEDED
        ended = msgspec.structs.replace(
            free,
            status=Status.FAILED if defect else made.status,
            error=f"{made.id}, which it shared, made no good picture" if defect else made.error,
            category="model" if defect else made.category,
            ended_at=now,
            settled_at=now,
        )
        await self._record(ended, SHARED, made)
        if defect or error is None or isinstance(error, PredictionError):
            error = error_of(ended)
        return Outcome(ended, error=_for_free(error, ended), cache="shared")

    async def _record(self, prediction: Prediction, outcome: str, made: Prediction) -> None:
        """Write down what has ended without a purchase of its own; what `made` cost was saved."""
        entry = UsageEntry.from_prediction(prediction, at=prediction.ended_at or self._clock.now())
        entry = msgspec.structs.replace(entry, outcome=outcome, saved=made.spent)
        await self._store.add(prediction, entry=entry)


def _is_repeatable(intent: Prediction, plan: Plan) -> bool:
    """Whether the same request makes the same picture, and all that makes it so is in its key."""
    if plan.secrets or HIDDEN in intent.input.values() or intent.model.startswith("deployments/"):
        return False
    if plan.seed_field is None:
        return True
    seed = plan.input.get(plan.seed_field)
    # To several models a seed below zero means any.
    return seed is not None and not (isinstance(seed, int) and seed < 0)


def _is_stopped(prediction: Prediction) -> bool:
    """Whether somebody canceled it, and not its deadline."""
    waited = (prediction.latency_ms or 0) / 1000
    return prediction.status is Status.CANCELED and waited < prediction.deadline_seconds


def _for_free(error: ImagenError | None, prediction: Prediction) -> ImagenError | None:
    """The same error for somebody who is not charged for it."""
    told = copy.copy(error)
    if isinstance(told, PredictionError):
        told.prediction_id, told.charged = prediction.id, False
    return told


def _forgotten(prediction: Prediction) -> OutputDefective:
    return OutputDefective(
        "its pictures came from the cache, which has them no more",
        prediction_id=prediction.id,
        charged=False,
        expired=True,
        hint="Ask for it once more; a new one is bought then.",
    )
