"""The way of one request: check, write down, buy, follow, settle, deliver. Every face calls this."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

import msgspec

from imagen.domain.events import Event, GivenUp, Resumed, Submitted
from imagen.domain.identifiers import new_id
from imagen.domain.money import Usd
from imagen.domain.prediction import HIDDEN, Prediction, request_key
from imagen.domain.request import GenerationRequest
from imagen.errors import BudgetExceeded, ImagenError, InvalidRequest, OutcomeUnknown, OutputDefective
from imagen.limits.admission import Admission
from imagen.ports import Backend, Backends, Clock, Observer, Owners, Plan, PredictionStore
from imagen.service.buy import BuyingRules, buy
from imagen.service.deliver import Deliverer, Destination, to_stored
from imagen.service.finish import Buying, Finisher, Notify, Outcome

HOLD_SECONDS = 60.0
"""How long a create is held open: then one call makes a prediction, and its end is known at once."""
WATCHED_HOLD_SECONDS = 2.0
"""How long when somebody watches a slow model: its progress is only seen by looking."""
_QUICK_SECONDS = 5.0
_AT_ONCE = 16

_log = logging.getLogger(__name__)


class Gateway:
    """Makes pictures. One per process; safe to share between tasks."""

    def __init__(
        self,
        *,
        backends: Backends,
        store: PredictionStore,
        finisher: Finisher,
        deliverer: Deliverer,
        admission: Admission,
        owners: Owners,
        clock: Clock,
        rules: BuyingRules,
    ) -> None:
        self._backends = backends
        self._store = store
        self._finisher = finisher
        self._deliverer = deliverer
        self._admission = admission
        self._owners = owners
        self._clock = clock
        self._rules = rules

    async def generate(
        self,
        request: GenerationRequest,
        *,
        backend: str | None = None,
        caller: str = "unknown",
        destination: Destination | None = None,
        observer: Observer | None = None,
    ) -> Sequence[Outcome]:
        """Make the pictures of a request: one prediction, or several where the model makes fewer at a time.

        Args:
            request: what to make.
            backend: name of the configured backend; None means the default one.
            caller: whom the ledger names.
            destination: where pictures go; None leaves them upstream, where they live for an hour.
            observer: told about everything on the way.

        Returns:
            One outcome for each prediction, in order; those that failed carry their error.

        Raises:
            InvalidRequest, Refused, ConfigError: before anything was bought.
        """
        chosen = self._backends.get(backend)
        plans = await chosen.check(request)
        intents = self._intend(chosen, request, plans, caller, destination)
        _check_cost(chosen, request, intents)
        notify = _quietly(observer)
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(intent: Prediction, plan: Plan) -> Outcome:
            async with gate:
                hold = _hold_seconds(plan, watched=observer is not None)
                try:
                    return await self._run(chosen, intent, plan, request, hold_seconds=hold, notify=notify)
                except ImagenError as error:
                    return Outcome(intent, error=error)  # not admitted, or not written down: not bought

        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(one(intent, plan)) for intent, plan in zip(intents, plans, strict=True)
            ]
        return [task.result() for task in tasks]

    async def resume(
        self, prediction_id: str, *, destination: Destination | None = None, observer: Observer | None = None
    ) -> Outcome:
        """Finish what was left unfinished: find it, follow it, fetch its pictures. Buys nothing.

        Raises:
            NotFound: no such prediction.
            InvalidRequest: a living process follows it, or it belongs to another account.
        """
        prediction = await self._store.get(prediction_id)
        backend = self._backend_of(prediction)
        if backend.practice and backend.account != prediction.account and not prediction.finished:
            prediction = await self._finisher.write_off(
                prediction, "it was practice, and its emulator ended with the process"
            )
        if not prediction.finished and not await self._take(prediction):
            raise InvalidRequest(
                f"{prediction.id} is being followed by another process right now", hint="Wait for it."
            )
        if destination is not None:
            prediction = msgspec.structs.replace(prediction, destination=to_stored(destination))
        return await self._finish(backend, prediction, _quietly(observer), buying=None, fresh=False)

    async def cancel(self, prediction_id: str, *, observer: Observer | None = None) -> Prediction:
        """Stop a prediction upstream, and settle what that cost. One that has ended stays as it is.

        Raises:
            NotFound: no such prediction.
            BackendError: it could not be canceled.
        """
        prediction = await self._store.get(prediction_id)
        if prediction.status.terminal:
            return prediction
        return await self._finisher.cancel(
            self._backend_of(prediction), prediction, notify=_quietly(observer)
        )

    # --- the steps ---------------------------------------------------------------------------------------

    def _intend(
        self,
        backend: Backend,
        request: GenerationRequest,
        plans: Sequence[Plan],
        caller: str,
        destination: Destination | None,
    ) -> Sequence[Prediction]:
        """The intents: complete, seeds chosen, and sure to find room for their pictures, before anything is sent."""
        total = sum(plan.expected_images for plan in plans)
        first, intents = 1, []
        for index, plan in enumerate(plans):
            place = (
                None
                if destination is None
                else msgspec.structs.replace(destination, first=first, total=total)
            )
            now = self._clock.now()
            values = dict(plan.input)
            if plan.seed_field is not None:
                values.setdefault(plan.seed_field, secrets.randbelow(plan.seed_maximum) + 1)
            seed = values.get("seed")
            intent = Prediction(
                id=new_id("pred", now),
                backend=backend.name,
                backend_type=backend.type,
                account=backend.account,
                model=plan.model,
                prompt=request.prompt,
                input=values,
                request_key=request_key(backend.account, plan.model, plan.identity, index=index),
                caller=caller,
                created_at=now,
                deadline_seconds=plan.deadline_seconds,
                seed=seed if isinstance(seed, int) else None,
                owner=self._owners.me,
                destination=None if place is None else to_stored(place),
            )
            if place is not None:
                self._deliverer.check(place, intent, images=plan.expected_images)
            first += plan.expected_images
            intents.append(intent)
        return intents

    async def _run(
        self,
        backend: Backend,
        intent: Prediction,
        plan: Plan,
        request: GenerationRequest,
        *,
        hold_seconds: float,
        notify: Notify,
    ) -> Outcome:
        """Take up the unfinished prediction of the very same request, or buy a new one."""

        async def buying(prediction: Prediction) -> Prediction:
            return await buy(
                backend,
                self._store,
                self._clock,
                prediction,
                hold_seconds=hold_seconds,
                repeat_lost=request.repeat_lost,
                rules=self._rules,
                notify=notify,
            )

        def admitted(prediction: Prediction) -> AbstractAsyncContextManager[None]:
            return self._admission.admit(
                semaphore=request.semaphore,
                lease=prediction.id,
                deadline_seconds=plan.deadline_seconds,
                notify=notify,
            )

        while request.resume and (left := await self._take_left(intent, plan)) is not None:
            notify(Resumed(left))
            async with admitted(left):
                outcome = await self._finish(backend, left, notify, buying=buying, fresh=False)
            if not _lost_for_good(outcome.error):
                return outcome
            notify(GivenUp(outcome.prediction, str(outcome.error)))
        async with admitted(intent):
            intent = msgspec.structs.replace(intent, sent_at=self._clock.now())
            await self._store.add(_without_secrets(intent, plan))
            notify(Submitted(intent, plan.typical_seconds))
            return await self._finish(backend, intent, notify, buying=buying, fresh=True)

    async def _finish(
        self, backend: Backend, prediction: Prediction, notify: Notify, *, buying: Buying | None, fresh: bool
    ) -> Outcome:
        """To its end, and whatever comes of it: what is left unfinished is nobody's, so that others may take it up."""
        finished = False
        try:
            outcome = await self._finisher.finish(
                backend, prediction, buying=buying, fresh=fresh, notify=notify
            )
            finished = outcome.prediction.finished
        finally:
            if not finished:
                await asyncio.shield(self._release(prediction))
        return outcome

    async def _release(self, prediction: Prediction) -> None:
        try:
            await self._store.release(prediction.id, owner=self._owners.me)
        except ImagenError as error:
            _log.debug("releasing %s failed: %s", prediction.id, error.code)

    async def _take_left(self, intent: Prediction, plan: Plan) -> Prediction | None:
        """An unfinished prediction of the same request that no living process follows, now ours."""
        secret = {name: intent.input[name] for name in plan.secret_fields}
        for left in await self._store.unfinished(request_key=intent.request_key):
            if await self._take(left):
                return msgspec.structs.replace(
                    left,
                    owner=self._owners.me,
                    input=left.input | secret,
                    destination=intent.destination,
                )
        return None

    async def _take(self, prediction: Prediction) -> bool:
        if prediction.owner is not None and self._owners.alive(prediction.owner):
            return False
        return await self._store.take(prediction.id, owner=self._owners.me, was=prediction.owner)

    def _backend_of(self, prediction: Prediction) -> Backend:
        backend = self._backends.get(prediction.backend)
        if backend.account != prediction.account and not backend.practice:
            raise InvalidRequest(
                f"{prediction.id} belongs to another Replicate account than the token that is set now",
                hint="Set the token with which it was made.",
            )
        return backend


def _without_secrets(intent: Prediction, plan: Plan) -> Prediction:
    """As it is written down. A key inside the input is sent with the create and kept nowhere."""
    return msgspec.structs.replace(intent, input=intent.input | dict.fromkeys(plan.secret_fields, HIDDEN))


def _hold_seconds(plan: Plan, *, watched: bool) -> float:
    slow = plan.typical_seconds is None or plan.typical_seconds > _QUICK_SECONDS
    hold = WATCHED_HOLD_SECONDS if watched and slow else HOLD_SECONDS
    return min(hold, plan.deadline_seconds)


def _check_cost(backend: Backend, request: GenerationRequest, intents: Sequence[Prediction]) -> None:
    if request.max_cost is None:
        return
    prices = [backend.price(intent) for intent in intents]
    known = [price for price in prices if price is not None]
    if len(known) < len(prices):
        raise BudgetExceeded(
            f"the price of {intents[0].model} is not known, so it cannot be held below {request.max_cost}",
            hint="Leave --max-cost away to buy it all the same.",
        )
    if (quote := Usd.total(known)) > request.max_cost:
        raise BudgetExceeded(
            f"this costs {quote}, more than the {request.max_cost} that you allow; nothing was bought"
        )


def _lost_for_good(error: ImagenError | None) -> bool:
    return isinstance(error, OutcomeUnknown) or (isinstance(error, OutputDefective) and error.expired)


def _quietly(observer: Observer | None) -> Notify:
    """An observer's failure never fails a request."""

    def notify(event: Event) -> None:
        if observer is None:
            return
        try:
            observer.notify(event)
        except Exception:  # noqa: BLE001 - an observer may raise anything
            _log.exception("an observer failed on %s", type(event).__name__)

    return notify
