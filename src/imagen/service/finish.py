"""From wherever a prediction stands to its end: found or bought, followed, settled, delivered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from imagen.domain.events import Canceled, CancelUnconfirmed, Ended, Event, LeftUnfetched
from imagen.domain.prediction import Prediction, Status
from imagen.errors import BackendError, ImagenError, ModelNotFound, OutputDefective, StoreError
from imagen.ports import Backend, Clock, PredictionStore
from imagen.service.adopt import adopt, can_be_found
from imagen.service.bookkeep import Bookkeeper
from imagen.service.buy import BuyingRules
from imagen.service.deliver import Deliverer, Kept, from_stored
from imagen.service.endings import error_of
from imagen.service.follow import follow
from imagen.service.sight import take_note

CANCEL_SECONDS = 10.0
"""How long we stay to cancel what somebody no longer wants."""
_CANCEL_SEARCH_SECONDS = 3.0

Notify = Callable[[Event], None]
Buying = Callable[[Prediction], Awaitable[Prediction]]


class Outcome(msgspec.Struct, frozen=True):
    """How one prediction went.

    Attributes:
        prediction: as it stands.
        pictures: those on disk, in order; empty when none were asked for.
        error: why it has no picture, or not all.
    """

    prediction: Prediction
    pictures: tuple[Kept, ...] = ()
    error: ImagenError | None = None


class Finisher:
    """Brings predictions to their end. Safe to share between tasks."""

    def __init__(
        self,
        *,
        store: PredictionStore,
        bookkeeper: Bookkeeper,
        deliverer: Deliverer,
        clock: Clock,
        rules: BuyingRules,
    ) -> None:
        self._store = store
        self._bookkeeper = bookkeeper
        self._deliverer = deliverer
        self._clock = clock
        self._rules = rules

    async def finish(
        self, backend: Backend, prediction: Prediction, *, buying: Buying | None, fresh: bool, notify: Notify
    ) -> Outcome:
        """Everything that is left to do; an error of ours is part of the outcome.

        Args:
            backend: the one it belongs to.
            prediction: as it is stored, owned by this process.
            notify: told about everything on the way.
            buying: buys it, where it turns out that it was not bought yet; None where nothing may be bought.
            fresh: it was written down just now: there is nothing to look for.
        """
        current, pictures = prediction, tuple[Kept, ...]()
        try:
            if fresh and buying is not None:
                current = await buying(current)
            else:
                current = await self._catch_up(backend, current, buying, notify)
            current = await follow(backend, self._store, self._clock, current, notify=notify)
            current = await self._bookkeeper.settle(current, notify=notify)
            error: ImagenError | None = error_of(current)
            place = from_stored(current.destination)
            if error is None and place is not None:
                pictures = await self._deliverer.deliver(backend, current, place, notify=notify)
            if error is None:
                current = await self._mark_delivered(current, pictures)
        except OutputDefective as defect:
            error = defect
            current = await self._as_stored(current)
            current = await self._mark_delivered(msgspec.structs.replace(current, error=defect.detail), ())
        except ImagenError as trouble:
            error = trouble
            current = await self._as_stored(current)
        except asyncio.CancelledError:
            await asyncio.shield(self._cancel_quietly(backend, current, notify))
            raise
        notify(Ended(current))
        return Outcome(current, pictures, error)

    async def cancel(self, backend: Backend, prediction: Prediction, *, notify: Notify) -> Prediction:
        """Stop it upstream, and settle what that cost.

        Raises:
            BackendError: it could not be canceled.
        """
        if prediction.upstream_id is None:
            prediction = await self._adopt(backend, prediction, _CANCEL_SEARCH_SECONDS, notify) or prediction
        if prediction.upstream_id is None:
            return await self.write_off(prediction, "it was canceled before anything was bought")
        seen = await take_note(
            backend, self._store, self._clock, prediction, await backend.cancel(prediction)
        )
        return await self._bookkeeper.settle(seen, notify=notify) if seen.status.terminal else seen

    async def write_off(self, prediction: Prediction, reason: str) -> Prediction:
        """End one that never became a run, and that nobody is charged for."""
        return await self._store.save(
            msgspec.structs.replace(
                prediction,
                status=Status.FAILED,
                category="infrastructure",
                error=reason,
                charged=False,
                ended_at=self._clock.now(),
            )
        )

    # --- the steps ---------------------------------------------------------------------------------------

    async def _catch_up(
        self, backend: Backend, prediction: Prediction, buying: Buying | None, notify: Notify
    ) -> Prediction:
        """What became of a prediction that somebody left behind."""
        if prediction.status.terminal and prediction.status is not Status.SUCCEEDED:
            return prediction
        if prediction.upstream_id is None:
            return await self._find_or_buy(backend, prediction, buying, notify)
        try:
            sighting = await backend.look(prediction)
        except ModelNotFound:
            return await self._lose(prediction)
        seen = await take_note(backend, self._store, self._clock, prediction, sighting)
        if seen.status is Status.SUCCEEDED and sighting.data_removed:
            seen = await self._bookkeeper.settle(seen, notify=notify)
            raise OutputDefective(
                "its picture is gone, Replicate removes outputs after one hour; it was charged",
                prediction_id=prediction.id,
                expired=True,
            )
        return msgspec.structs.replace(seen, output=sighting.output or seen.output)

    async def _find_or_buy(
        self, backend: Backend, prediction: Prediction, buying: Buying | None, notify: Notify
    ) -> Prediction:
        if not can_be_found(prediction, self._clock.now()):
            return await self._lose(prediction)
        sent_at = prediction.sent_at or prediction.created_at
        left = self._rules.grace_seconds - (self._clock.now() - sent_at).total_seconds()
        found = await self._adopt(backend, prediction, max(left, 0.0), notify)
        if found is not None:
            return found
        if buying is not None:
            return await buying(
                await self._store.save(msgspec.structs.replace(prediction, sent_at=self._clock.now()))
            )
        return await self.write_off(prediction, "its create never arrived, and nothing was bought")

    async def _adopt(
        self, backend: Backend, prediction: Prediction, seconds: float, notify: Notify
    ) -> Prediction | None:
        return await adopt(
            backend, self._store, self._clock, prediction, within_seconds=seconds, notify=notify
        )

    async def _lose(self, prediction: Prediction) -> Prediction:
        """Nobody can tell any more what became of it."""
        return await self._store.save(
            msgspec.structs.replace(prediction, status=Status.UNKNOWN, ended_at=self._clock.now())
        )

    async def _mark_delivered(self, prediction: Prediction, pictures: tuple[Kept, ...]) -> Prediction:
        files = tuple(str(picture.path) for picture in pictures)
        done = msgspec.structs.replace(prediction, delivered_at=self._clock.now(), files=files)
        try:
            return await self._store.save(done)
        except StoreError:
            return done  # the pictures are there; at worst they are fetched once more

    async def _as_stored(self, prediction: Prediction) -> Prediction:
        try:
            return await self._store.get(prediction.id)
        except ImagenError:
            return prediction

    async def _cancel_quietly(self, backend: Backend, prediction: Prediction, notify: Notify) -> None:
        current = await self._as_stored(prediction)
        if current.status.terminal:
            if not current.finished:
                notify(LeftUnfetched(current))
            return
        try:
            async with asyncio.timeout(CANCEL_SECONDS):
                seen = await self.cancel(backend, current, notify=notify)
        except (BackendError, StoreError, TimeoutError) as error:
            notify(CancelUnconfirmed(current, str(error) or "no answer came in time"))
            return
        notify(Canceled(seen))
