"""Following a prediction to its end: what is written down of every look, and what happens at the deadline."""

from __future__ import annotations

import asyncio

from imagen.domain.events import Progressed, Waiting
from imagen.domain.prediction import Prediction
from imagen.domain.progress import progress_from_log
from imagen.errors import BackendError, ModelNotFound, WaitTimeout
from imagen.ports import Backend, Clock, PredictionStore
from imagen.service.errand import Errand
from imagen.service.pace import Pace
from imagen.service.sight import take_note
from imagen.service.watch import Watcher
from imagen.service.watch_account import LAST_LOOK_SECONDS

DEADLINE_MARGIN_SECONDS = 6.0
"""Replicate ends a run at its deadline by itself; this long we wait for it to say so before we cancel it."""

STOP_SECONDS = 5.0
"""How long a canceled run is watched until it says that it has ended."""


async def follow(watcher: Watcher, store: PredictionStore, clock: Clock, errand: Errand) -> None:
    """Wait for the end of a prediction; every change is written down.

    It is paid for, so a service that is away, throttles, answers nonsense or has not heard of it yet is asked again.

    Args:
        watcher: looks at it when it is due.
        store: where it is written down.
        clock: tells the time.
        errand: has it, with its upstream id unless it has ended.

    Raises:
        WaitTimeout: its deadline has passed, and it can be neither seen to end nor canceled.
        BackendError: the service refuses us for good; it stays unfinished, to be adopted later.
    """
    if errand.prediction.status.terminal:
        return
    gone = (clock.now() - (errand.prediction.sent_at or errand.prediction.created_at)).total_seconds()
    await _watched(watcher, store, clock, errand, seconds=_left_after(gone, errand.prediction))
    # Our clock may be wrong now, or have been wrong when it was sent: what is paid for is stopped at the age that the
    # service tells. It is asked once, so that this comes to an end.
    if not errand.prediction.status.terminal and (left := await _left_by_service(store, clock, errand)):
        await _watched(watcher, store, clock, errand, seconds=left)
    if not errand.prediction.status.terminal:
        errand.prediction = await _overdue(errand.backend, store, clock, errand.prediction)


async def _watched(
    watcher: Watcher, store: PredictionStore, clock: Clock, errand: Errand, *, seconds: float
) -> None:
    """Take note of what is heard of it, until it has ended or the time is over."""
    ends_at = clock.monotonic() + seconds
    with watcher.watch(
        errand.backend,
        errand.prediction,
        ends_at=ends_at,
        closely=errand.closely,
        expects_webhook=errand.expects_webhook,
    ) as watch:
        while not errand.prediction.status.terminal and clock.monotonic() < ends_at:
            try:
                errand.prediction = watch.prediction = await take_note(
                    errand.backend, store, clock, errand.prediction, await watch.news()
                )
            except TimeoutError:
                break
            except BackendError as error:
                if not (error.retryable or isinstance(error, ModelNotFound)):
                    raise
                errand.notify(Waiting(error.detail, min(watch.pause, max(ends_at - clock.monotonic(), 0.0))))
            else:
                _tell(errand)


async def _left_by_service(store: PredictionStore, clock: Clock, errand: Errand) -> float:
    """The seconds that it may still take, of which one look told; 0 where the service cannot be asked, or does not tell."""
    try:
        async with asyncio.timeout(LAST_LOOK_SECONDS):
            sighting = await errand.backend.look(errand.prediction)
    except (BackendError, TimeoutError):
        return 0.0
    errand.prediction = await take_note(errand.backend, store, clock, errand.prediction, sighting)
    _tell(errand)
    if errand.prediction.status.terminal or sighting.created_at is None:
        return 0.0
    age = (sighting.told_at or clock.now()) - sighting.created_at
    return _left_after(age.total_seconds(), errand.prediction)


def _left_after(gone: float, prediction: Prediction) -> float:
    """The seconds for which one of this age is still waited for; no reading of a clock makes that more than it began with."""
    allowed = prediction.deadline_seconds + DEADLINE_MARGIN_SECONDS
    return allowed - min(max(gone, 0.0), allowed)


def _tell(errand: Errand) -> None:
    prediction = errand.prediction
    done = 1.0 if prediction.status.terminal else progress_from_log(prediction.logs)
    errand.notify(Progressed(prediction, done))


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
