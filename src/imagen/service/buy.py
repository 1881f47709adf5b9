"""Buying one prediction, once.

A create whose answer is missing may have arrived. It is looked for first, and sent again only when it stayed away for
the whole grace, once, and only if the caller accepts that last risk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from imagen.domain.events import Event, Waiting
from imagen.domain.prediction import Prediction, Status
from imagen.errors import BackendError, ExchangeFailed, UpstreamTaken
from imagen.ports import Backend, Clock, PredictionStore
from imagen.service.adopt import adopt
from imagen.service.sight import take_note
from imagen.transport.retry import Attempts, RetryPolicy, decide, told


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
    secrets: Mapping[str, Any],
    repeat_lost: bool,
    rules: BuyingRules,
    notify: Callable[[Event], None],
) -> Prediction:
    """Send the create of an intent that is written down, and write down what became of it.

    Raises:
        BackendError: it was refused (the prediction is stored as failed), or its answer was lost and it could not be
            found (the prediction stays unfinished, to be adopted later).
    """
    attempts, repeats_left = Attempts(), 1 if repeat_lost else 0
    while True:
        try:
            sighting = await backend.submit(prediction, hold_seconds=hold_seconds, secrets=secrets)
            return await take_note(backend, store, clock, prediction, sighting)
        except UpstreamTaken:
            # An equal create of ours, whose own answer was lost, took what this one bought. That one is ours then.
            lost: BackendError = ExchangeFailed(
                f"what {prediction.id} bought was adopted by an equal prediction"
            )
        except BackendError as error:
            lost = error
        if lost.delivered == "no":
            wait = decide(lost, attempts, repeatable=False, policy=rules.policy)
            if wait is None:
                await _refuse(store, clock, prediction, lost)
                raise told(lost, attempts, rules.policy) from lost.__cause__
            attempts = attempts.after(lost)
            notify(Waiting(lost.detail, wait))
            await clock.sleep(wait)
        else:
            found = await adopt(
                backend, store, clock, prediction, within_seconds=rules.grace_seconds, notify=notify
            )
            if found is not None:
                return found
            if repeats_left == 0:
                raise lost
            repeats_left -= 1
        prediction = await store.save(msgspec.structs.replace(prediction, sent_at=clock.now()))
        if not prediction.unheard:
            return prediction  # somebody canceled or found it in the meantime


async def _refuse(store: PredictionStore, clock: Clock, prediction: Prediction, error: BackendError) -> None:
    await store.save(
        msgspec.structs.replace(
            prediction, status=Status.FAILED, error=error.detail, charged=False, ended_at=clock.now()
        )
    )
