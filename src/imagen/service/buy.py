"""Buying one prediction, once.

A create whose answer is missing may have arrived. It is looked for first, and sent again only when it stayed away for
the whole grace, once, and only if the caller accepts that last risk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from imagen.domain.events import Event, Waiting
from imagen.domain.limits import Patience
from imagen.domain.prediction import Prediction, Status
from imagen.errors import (
    BackendError,
    BackendRateLimited,
    BackendUnauthenticated,
    ExchangeFailed,
    ImagenError,
    Refused,
    StoreError,
    UpstreamTaken,
)
from imagen.limits.admission import Place
from imagen.ports import Backend, Clock, PredictionStore
from imagen.service.adopt import adopt
from imagen.service.sight import take_note
from imagen.service.watch import Watcher
from imagen.transport.retry import Attempts, RetryPolicy, decide, with_attempts


class BuyingRules(msgspec.Struct, frozen=True, kw_only=True):
    """How a create is repeated.

    Attributes:
        grace_seconds: how long a create whose answer was lost is looked for before it is sent again.
        policy: for refusals that say that nothing was bought.
    """

    grace_seconds: float = 20.0
    policy: RetryPolicy = RetryPolicy()


class Purchase(msgspec.Struct, frozen=True, kw_only=True):
    """How one create is sent.

    Attributes:
        hold_seconds: how long its answer may be held back.
        secrets: values that are sent and never written down.
        repeat_lost: send it once more when its answer was lost and it cannot be found.
        patience: how many 429s it takes, and how long ones.
        webhook: the address that the service tells of its end; None for none.
    """

    hold_seconds: float
    secrets: Mapping[str, Any]
    repeat_lost: bool
    patience: Patience
    webhook: str | None = None


class Buyer:
    """Buys the predictions of one backend.

    Args:
        backend: where they are bought.
        store: where they are written down.
        clock: tells the time.
        rules: how creates are repeated.
        watcher: told of every answer.
    """

    def __init__(
        self,
        *,
        backend: Backend,
        store: PredictionStore,
        clock: Clock,
        rules: BuyingRules,
        watcher: Watcher,
    ) -> None:
        self._watcher = watcher
        self._backend = backend
        self._store = store
        self._clock = clock
        self._rules = rules

    async def buy(
        self, prediction: Prediction, purchase: Purchase, *, place: Place, notify: Callable[[Event], None]
    ) -> Prediction:
        """Send the create of an intent that is written down, and write down what became of it.

        Args:
            prediction: the intent.
            purchase: how it is sent.
            place: what it holds; after a 429 it waits there for another turn.
            notify: told about everything on the way.

        Raises:
            RateLimited: after a 429 its turn did not come in time.
            BackendError: it was refused (the prediction is stored as failed), or its answer was lost and it could not
                be found (the prediction stays unfinished, to be adopted later).
        """
        attempts, repeats_left = Attempts(), 1 if purchase.repeat_lost else 0
        while True:
            got = await self._send(prediction, purchase, place)
            if isinstance(got, Prediction):
                return got
            if got.delivered == "no":
                await self._wait(got, attempts, prediction, purchase, place=place, notify=notify)
                attempts = attempts.after(got)
            else:
                found = await adopt(
                    self._backend,
                    self._store,
                    self._clock,
                    prediction,
                    within_seconds=self._rules.grace_seconds,
                    notify=notify,
                )
                if found is not None:
                    return found
                if repeats_left == 0:
                    raise got
                repeats_left -= 1
            prediction = await self._store.save(
                msgspec.structs.replace(prediction, sent_at=self._clock.now())
            )
            if not prediction.unheard:
                return prediction  # somebody canceled or found it in the meantime
            await place.renew()  # a run that begins later also ends later

    async def _send(
        self, prediction: Prediction, purchase: Purchase, place: Place
    ) -> Prediction | BackendError:
        """One create: what it bought, or why nothing is known of that."""
        sent_at = self._clock.now().timestamp()
        left = False

        def leaves() -> None:
            nonlocal left
            left = True

        try:
            sighting = await self._backend.submit(
                prediction,
                hold_seconds=purchase.hold_seconds,
                secrets=purchase.secrets,
                webhook=purchase.webhook,
                on_send=leaves,
            )
            self._watcher.expect(sighting)
            seen = await take_note(self._backend, self._store, self._clock, prediction, sighting)
        except UpstreamTaken:
            # An equal create of ours, whose own answer was lost, took what this one bought. That one is ours then.
            return ExchangeFailed(f"what {prediction.id} bought was adopted by an equal prediction")
        except BackendError as error:
            return error
        except asyncio.CancelledError:
            if not left:
                await asyncio.shield(self._unsend(prediction))
            raise
        await place.note_allowance(sighting.allowance, sent_at=sent_at)
        return seen

    async def _wait(
        self,
        error: BackendError,
        attempts: Attempts,
        prediction: Prediction,
        purchase: Purchase,
        *,
        place: Place,
        notify: Callable[[Event], None],
    ) -> None:
        """Wait until a create that surely was not bought may be sent again.

        Raises:
            BackendError: it may not; it is stored as failed.
            Refused: its turn did not come again; the same.
        """
        policy = msgspec.structs.replace(
            self._rules.policy,
            rate_limited=purchase.patience.refusals,
            longest_refusal_seconds=purchase.patience.refusal_seconds,
        )
        seconds = decide(error, attempts, repeatable=False, policy=policy)
        throttled = isinstance(error, BackendRateLimited)
        if isinstance(error, BackendRateLimited):
            await place.refused(error)
        if seconds is None:
            if place.of_stranger and isinstance(error, BackendUnauthenticated):
                await place.withdraw()  # anybody can make up a token: nothing of that is kept
            else:
                await self._refuse(prediction, error)
            raise with_attempts(error, attempts, policy) from error.__cause__
        notify(Waiting(error.detail, seconds))
        try:
            await (place.again() if throttled else self._clock.sleep(seconds))
        except Refused as refused:
            await self._refuse(prediction, refused)
            raise
        except asyncio.CancelledError:
            await asyncio.shield(self._unsend(prediction))
            raise

    async def _unsend(self, prediction: Prediction) -> None:
        """Write down of a create that was broken off that it surely was not bought: nobody needs to look for it."""
        with suppress(StoreError):  # else it is looked for, which only takes longer
            await self._store.save(msgspec.structs.replace(prediction, sent_at=None))

    async def _refuse(self, prediction: Prediction, error: ImagenError) -> None:
        await self._store.save(
            msgspec.structs.replace(
                prediction,
                status=Status.FAILED,
                error=error.detail,
                charged=False,
                ended_at=self._clock.now(),
            )
        )
