"""The way of one request: check, write down, buy, follow, settle, deliver. Every face calls this."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from imagen.domain.caller import UNKNOWN, Caller
from imagen.domain.events import Event, GivenUp, Resumed, Submitted
from imagen.domain.limits import Lane, Need, Patience
from imagen.domain.prediction import Prediction, Status
from imagen.domain.request import GenerationRequest
from imagen.domain.usage import UsageEntry
from imagen.errors import (
    BudgetExceeded,
    ImagenError,
    InvalidRequest,
    NotFound,
    OutcomeUnknown,
    OutputDefective,
    Paused,
    StillFollowed,
)
from imagen.limits.admission import Admission, Place
from imagen.ports import Backend, Backends, Clock, Notify, Observer, Plan, PredictionStore
from imagen.service.adopt import may_be_heard_of, never_arrived
from imagen.service.bookkeep import Bookkeeper
from imagen.service.buy import Buyer, BuyingRules
from imagen.service.charges import charge_of
from imagen.service.deliver import Destination, PictureSource, to_stored
from imagen.service.errand import Errand
from imagen.service.finish import Finisher, Outcome
from imagen.service.ownership import Ownership
from imagen.service.prepare import Order, Preparation, check_cost
from imagen.service.share import Reuse
from imagen.service.terms import Buying, Terms
from imagen.service.watch import Watcher

_LEASE_MARGIN_SECONDS = 90.0
"""Above deadline and grace: connecting twice, and the service's own delays, fit in."""

_MOST_UNWRITTEN = 10_000
PRACTICE_ENDED = "it was practice, and its emulator ended with the process"
NEVER_ARRIVED = "its create never arrived at the service; nothing was bought"

_log = logging.getLogger(__name__)


class Gateway:
    """Makes pictures. One per process; safe to share between tasks."""

    def __init__(
        self,
        *,
        backends: Backends,
        store: PredictionStore,
        bookkeeper: Bookkeeper,
        finisher: Finisher,
        preparation: Preparation,
        admission: Admission,
        watcher: Watcher,
        terms: Terms,
        reuse: Reuse,
        ownership: Ownership,
        clock: Clock,
        rules: BuyingRules,
        observers: Sequence[Observer],
    ) -> None:
        self._backends = backends
        self._store = store
        self._bookkeeper = bookkeeper
        self._finisher = finisher
        self._preparation = preparation
        self._admission = admission
        self._watcher = watcher
        self._terms = terms
        self._reuse = reuse
        self._ownership = ownership
        self._clock = clock
        self._rules = rules
        self._observers = tuple(observers)
        self._notify = quietly(*self._observers)
        self._unwritten: dict[str, Prediction] = {}

    async def generate(
        self,
        request: GenerationRequest,
        *,
        backend: str | None = None,
        caller: Caller = UNKNOWN,
        destination: Destination | None = None,
        observer: Observer | None = None,
        watched: bool = False,
    ) -> Sequence[Outcome]:
        """Make the pictures of a request: `prepare` and `carry_out`.

        Args:
            request: what to make.
            backend: name of the configured backend; None means the default one.
            caller: whom the ledger names.
            destination: where pictures go; None leaves them upstream, where they live for an hour.
            observer: told about everything on the way.
            watched: somebody looks at the progress, so a slow model is looked at rather than held open.

        Returns:
            One outcome for each prediction, in order; those that failed carry their error.

        Raises:
            InvalidRequest, Refused, ConfigError: before anything was bought.
        """
        return await self.carry_out(
            await self.prepare(
                request,
                backend=self._backends.get(backend),
                caller=caller,
                destination=destination,
                watched=watched,
            ),
            observer=observer,
        )

    async def prepare(
        self,
        request: GenerationRequest,
        *,
        backend: Backend,
        caller: Caller = UNKNOWN,
        lane: Lane = Lane.INTERACTIVE,
        patience: Patience = Patience(),  # noqa: B008 - frozen
        destination: Destination | None = None,
        watched: bool = False,
    ) -> Order:
        """Check everything that can be checked before anything is bought, and choose the seeds.

        Raises:
            InvalidRequest, Refused, ConfigError: it cannot be carried out.
        """
        plans = await backend.check(request)
        intents = await self._preparation.intend(
            backend, request, plans, caller=caller, destination=destination
        )
        order = Order(
            request=request,
            backend=backend,
            intents=tuple(zip(intents, plans, strict=True)),
            caller=caller,
            lane=lane,
            patience=patience,
            watched=watched,
        )
        check_cost(order)
        return order

    async def carry_out(self, order: Order, *, observer: Observer | None = None) -> Sequence[Outcome]:
        """Buy, follow and deliver: one prediction, or several where the model makes fewer pictures at a time.

        Returns:
            One outcome for each prediction, in order; those that failed, or were not let in, carry their error.
        """
        await self._bookkeeper.catch_up_once()
        makings = self._makings(order, observer)
        del order  # each of them lets go of it when it is bought
        if len(makings) == 1:
            return [await self._guarded(makings.pop())]
        return await self._together(makings)

    async def resume(
        self,
        prediction_id: str,
        *,
        destination: Destination | None = None,
        observer: Observer | None = None,
        leaves_running: bool = False,
    ) -> Outcome:
        """Finish what was left unfinished: find it, follow it, fetch its pictures. Buys nothing.

        Args:
            prediction_id: ours, its beginning, or the service's.
            destination: where pictures go; None leaves that as it was.
            observer: told about everything on the way.
            leaves_running: when this is broken off, it goes on upstream; else it is canceled there.

        Raises:
            NotFound: no such prediction.
            InvalidRequest: a living process follows it, or it belongs to another account.
        """
        await self._bookkeeper.catch_up_once()
        prediction = await self._store.get(prediction_id)
        if prediction.reused:
            return await self._reuse.again(prediction, destination)
        try:
            backend: Backend | None = self._backend_of(prediction)
        except InvalidRequest:
            # Somebody who asks may set the right token; a gateway that tidies up after others never has it.
            if not leaves_running or prediction.finished or not await self._ownership.take(prediction):
                raise
            backend = None
        else:
            if not prediction.finished and not await self._ownership.take(prediction):
                raise StillFollowed(
                    f"{prediction.id} is being followed by another process right now", hint="Wait for it."
                )
        taken = not prediction.finished
        try:
            notify = quietly(observer, *self._observers)
            if backend is None:
                return await self._end_without_account(prediction, notify)
            return await self._taken_up(
                backend, prediction, destination, leaves_running=leaves_running, notify=notify
            )
        finally:
            if taken:
                self._ownership.leave(prediction.id)

    async def _taken_up(
        self,
        backend: Backend,
        prediction: Prediction,
        destination: Destination | None,
        *,
        leaves_running: bool,
        notify: Notify,
    ) -> Outcome:
        """Bring one that is ours, or was finished before, to its end."""
        if not prediction.finished:
            prediction = await self._store.get(prediction.id)
            if prediction.finished and destination is None:
                # Whoever had it has finished it since we looked.
                return await self._finisher.recount(prediction)
            if backend.practice and backend.account != prediction.account:
                prediction = await self._finisher.write_off(prediction, PRACTICE_ENDED)
        if destination is not None:
            prediction = msgspec.structs.replace(prediction, destination=to_stored(destination))
        return await self._finish(
            Errand(backend, prediction, notify, leaves_running=leaves_running, closely=not leaves_running)
        )

    async def give_up(self, prediction_id: str) -> Prediction | None:
        """End one whose create surely bought nothing, after `resume` has looked for it in vain for the whole grace.

        Returns:
            It as it stands then; None while nobody can be sure, or while a living process has it: it stays as it was.

        Raises:
            NotFound: no such prediction.
            InvalidRequest: it belongs to another account.
            BackendError: the account's list could not be read.
        """
        prediction = await self._store.get(prediction_id)
        backend = self._backend_of(prediction)
        if prediction.finished or not await self._ownership.take(prediction):
            return None
        async with self._ownership.held(prediction) as owned:
            self._ownership.leave(prediction.id)  # as `held` has it now
            current = await self._store.get(prediction.id)
            if current.unheard and not await never_arrived(backend, self._store, current):
                return None
            if current.unheard:
                current = await self._finisher.write_off(current, NEVER_ARRIVED)
            owned.finished = current.finished
        return current

    async def show(self, prediction_id: str) -> Prediction:
        """A prediction as it is written down.

        Raises:
            NotFound: no such prediction.
        """
        return await self._store.get(prediction_id)

    async def recount(self, prediction_id: str) -> Outcome | None:
        """How one that is finished has ended, with its pictures; None for one that is not. Asks nobody.

        Raises:
            NotFound: no such prediction.
        """
        prediction = await self._store.get(prediction_id)
        return await self._finisher.recount(prediction) if prediction.finished else None

    async def cancel(
        self, prediction_id: str, *, backend: Backend | None = None, observer: Observer | None = None
    ) -> Prediction:
        """Stop a prediction upstream, and settle what that cost. One that has ended stays as it is.

        Args:
            prediction_id: ours, its beginning, or the service's.
            backend: where it was made, where that is on a token of its caller's; else it is found by its name.
            observer: told about everything on the way.

        Raises:
            NotFound: no such prediction.
            InvalidRequest: a living process is just buying it.
            OutcomeUnknown: its create is not known to the service, so that there is nothing to cancel yet.
            BackendError: it could not be canceled.
        """
        await self._bookkeeper.catch_up_once()
        prediction = await self._store.get(prediction_id)
        if prediction.status.terminal:
            return prediction
        busy = self._ownership.is_held(prediction)
        if prediction.upstream_id is None and busy:
            raise InvalidRequest(
                f"{prediction.id} is just being bought by another process",
                hint="Interrupt that one, or try again.",
            )
        if prediction.unsent and (ended := await self._end_unsent(prediction)) is not None:
            return ended
        seen = await self._finisher.cancel(
            backend or self._backend_of(prediction),
            prediction,
            within_seconds=self._rules.grace_seconds,
            notify=quietly(observer, *self._observers),
        )
        if seen.unheard:
            # Looked for in vain for the whole grace: nothing of it runs, as far as anybody can tell.
            await self._admission.give_back(seen.id)
            raise OutcomeUnknown(
                f"the create of {seen.id} is not known to the service: most likely it never arrived",
                prediction_id=seen.id,
                hint=f"If it did, it ends by itself after {seen.deadline_seconds:g} s.",
            )
        return seen

    async def _end_unsent(self, prediction: Prediction) -> Prediction | None:
        """Cancel one that nobody works on and that was not sent; None where somebody was quicker."""
        if not await self._ownership.take(prediction):
            return None
        async with self._ownership.held(prediction) as owned:
            self._ownership.leave(prediction.id)  # as `held` has it now
            current = await self._store.get(prediction.id)
            if not current.unsent:
                return None
            ended = await self._finisher.end_unsent(current)
            owned.finished = ended.finished
        return ended

    async def write_what_waits(self) -> None:
        """Write down ends that the store would not take when they were seen; what they held is free then."""
        for prediction in list(self._unwritten.values()):
            entry = UsageEntry.from_prediction(prediction, at=prediction.ended_at or self._clock.now())
            await self._store.save(prediction, entry=entry)
            self._unwritten.pop(prediction.id, None)
        await self._finisher.keep_what_waits()
        await self._ownership.release_what_waits()
        await self._bookkeeper.catch_up()

    # --- the steps ---------------------------------------------------------------------------------------

    def _makings(self, order: Order, observer: Observer | None) -> list[_Making]:
        """What is to be made of an order, after its notes were told."""
        notify = self._notify if observer is None else quietly(observer, *self._observers)
        for note in order.notes:
            notify(note)
        return [_Making(order, intent, plan, notify) for intent, plan in order.intents]

    async def _together(self, makings: Sequence[_Making]) -> Sequence[Outcome]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._guarded(making)) for making in makings]
        return [task.result() for task in tasks]

    async def _guarded(self, making: _Making) -> Outcome:
        """One prediction, with whatever goes wrong as part of its outcome."""
        try:
            if (outcome := await self._earlier(making)) is not None:
                return outcome
            return await self._make(making)
        except ImagenError as error:
            return Outcome(making.prediction, error=error)  # not admitted, or not written down: not bought
        except Exception as error:  # noqa: BLE001 - a fault of ours must not cancel what others paid for
            _log.error("%s ended in an unexpected fault: %s", making.prediction.id, type(error).__name__)
            _log.debug("the fault of %s", making.prediction.id, exc_info=error)
            fault = ImagenError(f"an unexpected fault ({type(error).__name__}); please report it")
            return Outcome(await self._as_stored(making), error=fault, fault=True)

    async def _as_stored(self, making: _Making) -> Prediction:
        """What is written down of one that was promised: it may have been bought before something went wrong."""
        with suppress(ImagenError):
            promised = making.leaves_running
            return (await self._begun(making.prediction) if promised else None) or making.prediction
        return making.prediction

    async def _earlier(self, making: _Making) -> Outcome | None:
        """What comes of what was begun before: of itself, or of the very same request. None for one to buy anew."""
        if making.leaves_running and (begun := await self._begun(making.prediction)) is not None:
            return await self._go_on(making, begun)
        if not making.order.request.resume:
            return None
        given_up: set[str] = set()
        while (left := await self._take_left(making.prediction, given_up)) is not None:
            making.notify(Resumed(left))
            try:
                outcome = await self._make(making.taking_up(left))
            finally:
                self._ownership.leave(left.id)
            if not _expired(outcome.error):
                return outcome
            given_up.add(left.id)
            making.notify(GivenUp(outcome.prediction, str(outcome.error)))
        return None

    async def _go_on(self, making: _Making, begun: Prediction) -> Outcome:
        """Take up what an earlier try has begun."""
        if begun.finished:
            return await self._finisher.recount(begun)
        if not await self._ownership.take(begun):
            raise StillFollowed(f"{begun.id} is being followed by another process right now")
        try:
            begun = await self._store.get(begun.id)
            if making.backend.practice and making.backend.account != begun.account:
                return await self._finisher.recount(await self._finisher.write_off(begun, PRACTICE_ENDED))
            if begun.upstream_id is not None:
                making.notify(Resumed(begun))
            return await self._make(making.taking_up(begun))
        finally:
            self._ownership.leave(begun.id)

    def _make(self, making: _Making) -> Coroutine[Any, Any, Outcome]:
        """Have it made, unless it is one of those that equal requests share, and was made before.

        Raises:
            Paused: nothing of it is to be bought now.
        """
        if making.paused and making.fresh:
            raise Paused(f"{making.prediction.id} is bought when its batch is resumed")
        wanted = making.order.request.cache
        if not self._reuse.is_asked(making.backend, making.prediction, making.plan, wanted=wanted):
            return self._hold_and_finish(making)

        def make(source: PictureSource) -> Coroutine[Any, Any, Outcome]:
            making.source = source
            return self._hold_and_finish(making)

        return self._reuse.carry_out(
            making.backend,
            making.prediction,
            make,
            fresh=making.fresh,
            notify=making.notify,
            comes_again=making.leaves_running,
        )

    async def _hold_and_finish(self, making: _Making) -> Outcome:
        """Hold what it needs, and bring it to its end. A fresh one is written down in the moment it is let in.

        Raises:
            ImagenError: it was not let in.
        """
        if making.prediction.status.terminal:
            return await self._finish(making)
        try:
            async with (
                self._ownership.held(making.prediction) as owned,
                self._admission.admit(
                    self._need(making), patience=making.order.patience, notify=making.notify
                ) as place,
            ):
                self._let_in(making, place)
                outcome = owned.ended(await self._finisher.finish(making))
                self._remember_unwritten(outcome.prediction)
                place.ended(outcome.prediction)
                # Looked for in vain for the whole grace: nothing of it runs.
                place.gives_back |= isinstance(outcome.error, Paused)
                return outcome
        except BudgetExceeded as error:
            if making.fresh:
                raise
            # One that was sent may be bought already.
            found = Outcome(making.prediction) if making.prediction.unsent else await self._finish(making)
            if not found.prediction.unheard:
                return found
            error.lasting = False  # it is looked for again, or sent, when there is room
            return msgspec.structs.replace(found, error=error)

    def _need(self, making: _Making) -> Need:
        order, plan, prediction = making.order, making.plan, making.prediction
        return Need(
            lease=prediction.id,
            holder=order.caller.name,
            lasts_seconds=plan.deadline_seconds + self._rules.grace_seconds + _LEASE_MARGIN_SECONDS,
            account=prediction.account,
            caller=order.caller,
            semaphore=order.request.semaphore,
            lane=order.lane,
            running=prediction.upstream_id is not None,
            intent=prediction if making.fresh else None,
            charge=charge_of(order, prediction, plan) if making.may_buy and prediction.unheard else None,
        )

    def _let_in(self, making: _Making, place: Place) -> None:
        """It holds what it needs, and may be bought."""
        order, plan = making.order, making.plan
        if making.may_buy:
            making.buying = Buying(
                self._terms, self._buyer(making.backend), order, plan, place=place, notify=making.notify
            )
        if (intent := place.take_intent()) is not None:
            making.prediction = intent
            making.notify(Submitted(intent, plan.typical_seconds))

    async def _finish(self, errand: Errand) -> Outcome:
        """It runs no more and only its pictures are missing, or it may not be bought: so it needs no place."""
        async with self._ownership.held(errand.prediction) as owned:
            return owned.ended(await self._finisher.finish(errand))

    def _buyer(self, backend: Backend) -> Buyer:
        return Buyer(
            backend=backend, store=self._store, clock=self._clock, rules=self._rules, watcher=self._watcher
        )

    async def _begun(self, intent: Prediction) -> Prediction | None:
        """What an earlier try has made of an intent; None when it was not written down yet."""
        try:
            return await self._store.get(intent.id)
        except NotFound:
            return None

    def _remember_unwritten(self, prediction: Prediction) -> None:
        """An end without a ledger entry was not written down, perhaps: try again until it is."""
        ended = prediction.status.terminal and prediction.upstream_id is not None
        if ended and prediction.settled_at is None and len(self._unwritten) < _MOST_UNWRITTEN:
            self._unwritten[prediction.id] = prediction

    async def _end_without_account(self, prediction: Prediction, notify: Notify) -> Outcome:
        """One whose token was its caller's and is kept nowhere: only what is known of it can be finished."""
        async with self._ownership.held(prediction) as owned:
            if prediction.status is Status.SUCCEEDED:
                return owned.ended(
                    await self._finisher.deliver_what_is_known(self._backends.tokenless(), prediction, notify)
                )
            if may_be_heard_of(prediction, self._clock.now()):
                raise InvalidRequest(
                    f"{prediction.id} belongs to an account whose token was its caller's and is kept nowhere",
                    hint="Nobody can look at it; it ends by itself.",
                )
            return owned.ended(Outcome(await self._finisher.lose(prediction)))

    async def _take_left(self, intent: Prediction, given_up: set[str]) -> Prediction | None:
        """An unfinished prediction of the same request that no living process follows, now ours."""
        for seen in await self._store.unfinished(request_key=intent.request_key):
            if seen.id in given_up or not await self._ownership.take(seen):
                continue
            left = None
            try:
                left = await self._store.get(seen.id)  # whoever had it may have finished it since we looked
            finally:
                if left is None or left.finished:
                    self._ownership.leave(seen.id)
            if not left.finished:
                return msgspec.structs.replace(left, destination=intent.destination)
        return None

    def _backend_of(self, prediction: Prediction) -> Backend:
        backend = self._backends.get(prediction.backend)
        if backend.account != prediction.account and not backend.practice:
            raise InvalidRequest(
                f"{prediction.id} belongs to another Replicate account than the token that is set now",
                hint="Set the token with which it was made.",
            )
        return backend


class _Making(Errand):
    """One prediction of an order on its way.

    Attributes:
        order, plan: what it is made by, until it is bought.
    """

    __slots__ = ("order", "plan")

    def __init__(
        self, order: Order, prediction: Prediction, plan: Plan, notify: Notify, *, fresh: bool = True
    ) -> None:
        super().__init__(
            order.backend,
            prediction,
            notify,
            leaves_running=order.accepted,
            closely=order.watched,
            paused=order.paused,
        )
        self.order = order
        self.plan = plan
        self.fresh = fresh

    @property
    def may_buy(self) -> bool:
        """Whether it may be bought: one that was sent before only where its loss is risked."""
        return not self.paused and (self.fresh or self.order.request.repeat_lost)

    def taking_up(self, left: Prediction) -> _Making:
        """The same, for what was left of it, or of an equal one."""
        return _Making(self.order, left, self.plan, self.notify, fresh=False)

    def bought(self) -> None:
        """See `Errand`."""
        super().bought()
        del self.order, self.plan


def _expired(error: ImagenError | None) -> bool:
    return isinstance(error, OutputDefective) and error.expired


def quietly(*observers: Observer | None) -> Notify:
    """An observer's failure never fails a request."""
    return _Observers(tuple(observer for observer in dict.fromkeys(observers) if observer is not None))


class _Observers:
    """Tells several observers of each event."""

    __slots__ = ("_present",)

    def __init__(self, present: Sequence[Observer]) -> None:
        self._present = present

    def __call__(self, event: Event) -> None:
        for observer in self._present:
            try:
                observer.notify(event)
            except Exception:  # noqa: BLE001 - an observer may raise anything
                _log.exception("an observer failed on %s", type(event).__name__)
