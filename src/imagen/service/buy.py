"""Buying one prediction, once.

A create whose answer is missing may have arrived. It is looked for first, and sent again only when it stayed away for
the whole grace, once, and only if the caller accepts that last risk.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from imagen.domain.events import Event, Waiting
from imagen.domain.prediction import Prediction, Status
from imagen.errors import BackendError, UpstreamTaken
from imagen.ports import Backend, Clock, PredictionStore
from imagen.service.adopt import adopt
from imagen.service.sight import take_note
from imagen.transport.retry import Attempts, RetryPolicy, decide, told

SETTLED_STATUSES = frozenset({500, 501, 503})
"""Answers of the service itself, after which nothing is still on its way. A 502 or 504 is a proxy's: it is not."""
_SETTLED_GRACE_SECONDS = 3.0


class BuyingRules(msgspec.Struct, frozen=True, kw_only=True):
    """How a create is repeated.

    Attributes:
        grace_seconds: how long a create whose answer was lost is looked for before it is sent again.
        policy: for refusals that say that nothing was bought.
    """

    grace_seconds: float = 20.0
    policy: RetryPolicy = RetryPolicy()


async def buy(
    backend: Backend,
    store: PredictionStore,
    clock: Clock,
    prediction: Prediction,
    *,
    hold_seconds: float,
    repeat_lost: bool,
    rules: BuyingRules,
    notify: Callable[[Event], None],
) -> Prediction:
    """Send the create of an intent that is written down, and write down what became of it.

    Raises:
        BackendError: it was refused (the prediction is stored as failed), or its answer was lost and it could not be
            found (the prediction stays unfinished, to be adopted later).
    """
    attempts, lost = Attempts(), False
    while True:
        try:
            sighting = await backend.submit(prediction, hold_seconds=hold_seconds)
            return await take_note(backend, store, clock, prediction, sighting)
        except UpstreamTaken:
            found = await adopt(
                backend, store, clock, prediction, within_seconds=rules.grace_seconds, notify=notify
            )
            if found is not None:
                return found
        except BackendError as error:
            if error.delivered != "no":
                found = await adopt(
                    backend, store, clock, prediction, within_seconds=_grace(error, rules), notify=notify
                )
                if found is not None:
                    return found
                if lost or not repeat_lost:
                    raise
                lost = True
            else:
                wait = decide(error, attempts, repeatable=False, policy=rules.policy)
                if wait is None:
                    await _refuse(store, clock, prediction, error)
                    raise told(error, attempts, rules.policy) from error.__cause__
                attempts = attempts.after(error)
                notify(Waiting(error.detail, wait))
                await clock.sleep(wait)
        prediction = await store.save(msgspec.structs.replace(prediction, sent_at=clock.now()))


async def _refuse(store: PredictionStore, clock: Clock, prediction: Prediction, error: BackendError) -> None:
    await store.save(
        msgspec.structs.replace(
            prediction, status=Status.FAILED, error=error.detail, charged=False, ended_at=clock.now()
        )
    )


def _grace(error: BackendError, rules: BuyingRules) -> float:
    return (
        min(_SETTLED_GRACE_SECONDS, rules.grace_seconds)
        if error.status in SETTLED_STATUSES
        else rules.grace_seconds
    )
