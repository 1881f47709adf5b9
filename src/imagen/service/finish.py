"""From wherever a prediction stands to its end: found or bought, followed, settled, delivered."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import Literal

import msgspec

from imagen.domain.events import Canceled, CancelUnconfirmed, Ended, LeftUnfetched, Submitted
from imagen.domain.prediction import Prediction, Status
from imagen.errors import (
    BackendError,
    ImagenError,
    ModelNotFound,
    NotFound,
    OutcomeUnknown,
    OutputDefective,
    Paused,
    StoreError,
)
from imagen.ports import Backend, Clock, Notify, PredictionStore
from imagen.service.adopt import adopt, is_remembered, never_arrived, outputs_live
from imagen.service.bookkeep import Bookkeeper
from imagen.service.buy import BuyingRules
from imagen.service.deliver import Deliverer, Kept, PictureSource, from_stored
from imagen.service.endings import empty_output, error_of
from imagen.service.errand import Errand
from imagen.service.follow import follow, stop
from imagen.service.sight import take_note
from imagen.service.watch import Watcher

CANCEL_SECONDS = 10.0
"""How long we stay to cancel what somebody no longer wants."""
_CANCEL_SEARCH_SECONDS = 3.0
_MOST_UNKEPT = 10_000
_FETCHED_BEHIND = 16


class Outcome(msgspec.Struct, frozen=True):
    """How one prediction went.

    Attributes:
        prediction: as it stands.
        pictures: those on disk, in order; empty when none were asked for.
        error: why it has no picture, or not all.
        cache: what came of asking for pictures of an equal request; None when that was not asked for.
        fault: the error is an unexpected fault of ours, which another try may not meet.
    """

    prediction: Prediction
    pictures: tuple[Kept, ...] = ()
    error: ImagenError | None = None
    cache: Literal["hit", "miss", "shared"] | None = None
    fault: bool = False


class Finisher:
    """Brings predictions to their end. Safe to share between tasks."""

    def __init__(
        self,
        *,
        store: PredictionStore,
        bookkeeper: Bookkeeper,
        deliverer: Deliverer,
        watcher: Watcher,
        clock: Clock,
        rules: BuyingRules,
    ) -> None:
        self._store = store
        self._bookkeeper = bookkeeper
        self._deliverer = deliverer
        self._watcher = watcher
        self._clock = clock
        self._rules = rules
        self._behind = asyncio.Semaphore(_FETCHED_BEHIND)
        """Pictures that nobody waits for are fetched a few at a time; those of whoever waits pass them."""
        self._unkept: dict[str, Prediction] = {}
        self.hands_over = False
        """Whether everything that is broken off goes on upstream, for another process to take up."""

    async def finish(self, errand: Errand) -> Outcome:
        """Everything that is left to do; an error of ours is part of the outcome."""
        pictures = tuple[Kept, ...]()
        error: ImagenError | None
        try:
            await self._see_bought(errand)
            await follow(self._watcher, self._store, self._clock, errand)
            errand.prediction = await self._bookkeeper.settle(errand.prediction, notify=errand.notify)
            error = error_of(errand.prediction)
            if error is None:
                async with self._behind if errand.leaves_running else nullcontext():
                    source = errand.source or errand.backend
                    errand.prediction, pictures, error = await self._deliver(
                        source, errand.prediction, errand.notify
                    )
        except OutputDefective as defect:
            error = defect
            errand.prediction = await self._as_stored(errand.prediction)
            if errand.prediction.delivered_at is None:  # what was delivered once stays on record
                errand.prediction = await self._mark_delivered(
                    msgspec.structs.replace(errand.prediction, error=defect.detail), ()
                )
        except ImagenError as trouble:
            error = trouble
            errand.prediction = await self._as_stored(errand.prediction)
        except asyncio.CancelledError:
            if not (self.hands_over or errand.leaves_running):
                await asyncio.shield(self._cancel_quietly(errand.backend, errand.prediction, errand.notify))
            raise
        errand.notify(Ended(errand.prediction))
        return Outcome(errand.prediction, pictures, error)

    async def cancel(
        self, backend: Backend, prediction: Prediction, *, within_seconds: float, notify: Notify
    ) -> Prediction:
        """Stop it upstream, and settle what that cost.

        Args:
            backend: the one it belongs to.
            prediction: not ended yet.
            within_seconds: how long a create whose answer is missing is looked for.
            notify: told about everything on the way.

        Returns:
            It as it stands: still queued when its create could not be found in that time, so that nobody can tell.

        Raises:
            BackendError: it could not be canceled.
        """
        if prediction.upstream_id is None:
            found = await adopt(
                backend, self._store, self._clock, prediction, within_seconds=within_seconds, notify=notify
            )
            if found is None or found.status.terminal:
                return found or prediction
            prediction = found
        seen = await stop(backend, self._store, self._clock, prediction)
        return await self._bookkeeper.settle(seen, notify=notify) if seen.status.terminal else seen

    async def end_unsent(self, prediction: Prediction) -> Prediction:
        """Cancel one of ours of which nothing is at the service."""
        return await self._store.save(
            msgspec.structs.replace(
                prediction, status=Status.CANCELED, charged=False, ended_at=self._clock.now()
            )
        )

    async def deliver_what_is_known(
        self, backend: Backend, prediction: Prediction, notify: Notify
    ) -> Outcome:
        """Fetch the pictures of one that succeeded, by what is written down; the service itself cannot be asked."""
        current = await self._bookkeeper.settle(prediction, notify=notify)
        pictures, error = tuple[Kept, ...](), None
        if outputs_live(current, self._clock.now()):
            current, pictures, error = await self._deliver(backend, current, notify)
        else:
            current = await self.write_off(
                current, "its picture was not fetched in time; Replicate removes outputs after one hour"
            )
        return Outcome(current, pictures, error)

    async def recount(self, prediction: Prediction) -> Outcome:
        """The outcome of one that was finished before, perhaps by another process. Changes nothing but its ledger entry."""
        current = await self._bookkeeper.settle(prediction, notify=lambda _: None)
        error = error_of(current)
        if error is None and (current.error is not None or not current.output):
            gone = not any(current.files) and current.delivered_at is not None
            error = OutputDefective(
                current.error or empty_output(current).detail,
                prediction_id=current.id,
                expired=gone and not outputs_live(current, current.delivered_at or self._clock.now()),
            )
        return Outcome(current, await self._deliverer.lying(current), error)

    async def write_off(self, prediction: Prediction, reason: str) -> Prediction:
        """End one that can never be finished and that nobody is charged for."""
        if prediction.status.terminal:
            return await self._mark_delivered(msgspec.structs.replace(prediction, error=reason), ())
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

    async def lose(self, prediction: Prediction, *, charged: bool | None = None) -> Prediction:
        """Nobody can tell any more what became of it; `charged` is False where at least that it was not bought is sure."""
        return await self._store.save(
            msgspec.structs.replace(
                prediction, status=Status.UNKNOWN, charged=charged, ended_at=self._clock.now()
            )
        )

    # --- the steps ---------------------------------------------------------------------------------------

    async def _see_bought(self, errand: Errand) -> None:
        """Have it bought, or see what became of it where somebody left it behind."""
        if errand.fresh and errand.buying is not None:
            errand.prediction = await errand.buying(errand.prediction)
            self._watcher.learn(errand.backend, errand.prediction)
        else:
            errand.prediction = await self._catch_up(errand)
        errand.bought()

    async def _catch_up(self, errand: Errand) -> Prediction:
        """What became of a prediction that somebody left behind."""
        backend, prediction, notify = errand.backend, errand.prediction, errand.notify
        if prediction.status.terminal and prediction.status is not Status.SUCCEEDED:
            return prediction
        if prediction.upstream_id is None:
            return await self._find_or_buy(errand)
        try:
            sighting = await backend.look(prediction)
        except ModelNotFound as error:
            if not outputs_live(prediction, self._clock.now()):
                if prediction.status is Status.SUCCEEDED:
                    raise _gone(prediction) from error
                return await self.lose(prediction)
            error.hint = (
                "It should be there within its first hour: check the token and the address, or try again."
            )
            raise
        self._watcher.expect(sighting)
        seen = await take_note(backend, self._store, self._clock, prediction, sighting)
        if seen.status is Status.SUCCEEDED and sighting.data_removed:
            await self._bookkeeper.settle(seen, notify=notify)
            raise _gone(prediction)
        return msgspec.structs.replace(seen, output=sighting.output or seen.output)

    async def _find_or_buy(self, errand: Errand) -> Prediction:
        """What became of a create that nobody heard of: found, bought now or later, or not to be told."""
        prediction, buying = errand.prediction, errand.buying
        if not prediction.unsent and (known := await self._sought(errand)) is not None:
            return known
        if errand.paused:  # whether it ever arrived is found out when that matters
            raise Paused(
                f"{prediction.id} is not known to the service, and is bought when its batch is resumed"
            )
        if buying is None and prediction.unsent:
            return await self.lose(prediction, charged=False)
        if buying is None:
            raise OutcomeUnknown(
                f"the create of {prediction.id} is not known to the service: most likely it never arrived",
                prediction_id=prediction.id,
                hint="The same `imagen generate` command looks once more, and then buys it.",
            )
        sent = await self._store.save(msgspec.structs.replace(prediction, sent_at=self._clock.now()))
        if not sent.unheard:
            return sent
        errand.notify(Submitted(sent))
        return await buying(sent)

    async def _sought(self, errand: Errand) -> Prediction | None:
        """What a create that was sent has bought, or that nobody can tell any more; None for one that stayed away."""
        backend, prediction, may_buy = errand.backend, errand.prediction, errand.buying is not None
        remembered = is_remembered(prediction, self._clock.now())
        found = await adopt(
            backend,
            self._store,
            self._clock,
            prediction,
            within_seconds=self._grace_left(prediction) if remembered else 0.0,
            notify=errand.notify,
        )
        if found is not None or remembered or errand.paused:
            return found
        never = await self._never_arrived(backend, prediction, certain=may_buy)
        if may_buy and never:
            return None
        return await self.lose(prediction, charged=False if never else None)

    def _grace_left(self, prediction: Prediction) -> float:
        """Seconds for which a create that is remembered upstream is still looked for."""
        gone = (self._clock.now() - (prediction.sent_at or prediction.created_at)).total_seconds()
        return min(max(self._rules.grace_seconds - gone, 0.0), self._rules.grace_seconds)

    async def _never_arrived(self, backend: Backend, prediction: Prediction, *, certain: bool) -> bool:
        """Whether a create surely bought nothing; where nobody needs to be certain a list that cannot be read tells nothing."""
        try:
            return await never_arrived(backend, self._store, prediction)
        except BackendError:
            if certain:
                raise
            return False

    async def _deliver(
        self, source: PictureSource, prediction: Prediction, notify: Notify
    ) -> tuple[Prediction, tuple[Kept, ...], ImagenError | None]:
        """Fetch and keep its pictures, and write down which of them are there."""
        place = from_stored(prediction.destination)
        if place is None:
            if not prediction.output:
                raise empty_output(prediction)
            if prediction.delivered_at is None:
                prediction = await self._mark_delivered(prediction, ())
            return prediction, (), None
        delivery = await self._deliverer.deliver(source, prediction, place, notify=notify)
        pictures = tuple(picture for picture in delivery.pictures if picture is not None)
        error = delivery.error
        if prediction.delivered_at is not None and not pictures:
            return prediction, (), error  # what was delivered once stays on record
        files = tuple(str(picture.path) if picture else "" for picture in delivery.pictures)
        if error is None:
            return await self._mark_delivered(prediction, files), pictures, None
        prediction = msgspec.structs.replace(prediction, error=error.detail, files=files)
        if isinstance(error, OutputDefective):
            return await self._mark_delivered(prediction, files), pictures, error
        return await self._kept(prediction), pictures, error

    async def _mark_delivered(self, prediction: Prediction, files: tuple[str, ...]) -> Prediction:
        return await self._kept(
            msgspec.structs.replace(prediction, delivered_at=self._clock.now(), files=files)
        )

    async def _kept(self, prediction: Prediction) -> Prediction:
        try:
            kept = await self._store.save(prediction)
        except StoreError:
            # Of others the pictures are fetched once more, after a restart.
            if len(self._unkept) < _MOST_UNKEPT:
                self._unkept[prediction.id] = prediction
            return prediction
        self._unkept.pop(prediction.id, None)
        return kept

    async def keep_what_waits(self) -> None:
        """Write down what was delivered while the store took nothing.

        Raises:
            StoreError: it still takes nothing.
        """
        for prediction in list(self._unkept.values()):
            await self._store.save(prediction)
            self._unkept.pop(prediction.id, None)

    async def _as_stored(self, prediction: Prediction) -> Prediction:
        try:
            return await self._store.get(prediction.id)
        except NotFound:
            # Withdrawn, as nothing came of sending it.
            return msgspec.structs.replace(prediction, sent_at=None)
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
                if current.unsent:
                    seen = await self.end_unsent(current)
                else:
                    seen = await self.cancel(
                        backend, current, within_seconds=_CANCEL_SEARCH_SECONDS, notify=notify
                    )
        except NotFound:
            return  # withdrawn
        except (BackendError, StoreError, TimeoutError) as error:
            notify(CancelUnconfirmed(current, str(error) or "no answer came in time"))
            return
        if seen.status.terminal:
            notify(Canceled(seen))
        else:
            notify(CancelUnconfirmed(seen, "the service has not said that it ended"))


def _gone(prediction: Prediction) -> OutputDefective:
    return OutputDefective(
        "its picture is gone, Replicate removes outputs after one hour; it was charged",
        prediction_id=prediction.id,
        expired=True,
    )
