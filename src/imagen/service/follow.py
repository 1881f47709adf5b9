"""Following a prediction to its end: what is written down of every look, and what happens at the deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from imagen.domain.events import Event, Progressed, Waiting
from imagen.domain.prediction import Prediction
from imagen.domain.progress import progress_from_log
from imagen.errors import BackendError, ModelNotFound, WaitTimeout
from imagen.ports import Backend, Clock, PredictionStore
from imagen.service.pace import Pace
from imagen.service.sight import take_note
from imagen.service.watch import Watcher
from imagen.service.watch_account import LAST_LOOK_SECONDS

DEADLINE_MARGIN_SECONDS = 6.0
"""Replicate ends a run at its deadline by itself; this long we wait for it to say so before we cancel it."""

STOP_SECONDS = 5.0
"""How long a canceled run is watched until it says that it has ended."""


async def follow(
    watcher: Watcher,
    backend: Backend,
    store: PredictionStore,
    clock: Clock,
    prediction: Prediction,
    *,
    notify: Callable[[Event], None],
    closely: bool = False,
    expects_webhook: bool = False,
) -> Prediction:
    """Wait for its end; every change is written down.

    It is paid for, so a service that is away, throttles, answers nonsense or has not heard of it yet is asked again.

    Args:
        watcher: looks at it when it is due.
        backend: the one it belongs to.
        store: where it is written down.
        clock: tells the time.
        prediction: with its upstream id, unless it has ended.
        notify: told about everything on the way.
        closely: somebody looks at the progress.
        expects_webhook: the watcher is woken when there is something to see.

    Raises:
        WaitTimeout: its deadline has passed, and it can be neither seen to end nor canceled.
        BackendError: the service refuses us for good; it stays unfinished, to be adopted later.
    """
    if prediction.status.terminal:
        return prediction
    sent_at = prediction.sent_at or prediction.created_at
    allowed = prediction.deadline_seconds + DEADLINE_MARGIN_SECONDS
    gone = min(max((clock.now() - sent_at).total_seconds(), 0.0), allowed)
    ends_at = clock.monotonic() + allowed - gone
    with watcher.watch(
        backend, prediction, ends_at=ends_at, closely=closely, expects_webhook=expects_webhook
    ) as watch:
        while not prediction.status.terminal:
            left = ends_at - clock.monotonic()
            if left <= 0:
                break
            try:
                prediction = await take_note(backend, store, clock, prediction, await watch.news())
            except TimeoutError:
                break
            except BackendError as error:
                if not (error.retryable or isinstance(error, ModelNotFound)):
                    raise
                notify(Waiting(error.detail, min(watch.pause, left)))
            else:
                watch.prediction = prediction  # the one before is needed no more
                done = 1.0 if prediction.status.terminal else progress_from_log(prediction.logs)
                notify(Progressed(prediction, done))
    if prediction.status.terminal:
        return prediction
    return await _overdue(backend, store, clock, prediction)


async def stop(backend: Backend, store: PredictionStore, clock: Clock, prediction: Prediction) -> Prediction:
    """Cancel it upstream and see it end, as far as that takes no longer than `STOP_SECONDS`.

    Raises:
        BackendError: it could not be canceled.
    """
    until = clock.monotonic() + STOP_SECONDS
    seen = await take_note(backend, store, clock, prediction, await backend.cancel(prediction))
    while not seen.status.terminal and clock.monotonic() < until:
        await clock.sleep(Pace().first_seconds)
        seen = await take_note(backend, store, clock, seen, await backend.look(seen))
    return seen


async def _overdue(
    backend: Backend, store: PredictionStore, clock: Clock, prediction: Prediction
) -> Prediction:
    waited = (clock.now() - (prediction.sent_at or prediction.created_at)).total_seconds()
    try:
        async with asyncio.timeout(STOP_SECONDS + LAST_LOOK_SECONDS):
            seen = await stop(backend, store, clock, prediction)
    except (BackendError, TimeoutError):
        seen = prediction
    if not seen.status.terminal:
        raise WaitTimeout(
            f"prediction {prediction.id} did not complete within {prediction.deadline_seconds:g} s (waited {waited:.1f} s)",
            prediction_id=prediction.id,
            hint=f"`imagen predictions adopt {prediction.id}` looks at it again.",
        )
    return seen
