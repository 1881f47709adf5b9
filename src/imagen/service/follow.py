"""Following a prediction to its end: when to look again, and what happens at the deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from imagen.domain.events import Event, Progressed, Waiting
from imagen.domain.prediction import Prediction
from imagen.domain.progress import progress_from_log
from imagen.errors import BackendError, ModelNotFound, WaitTimeout
from imagen.ports import Backend, Clock, PredictionStore
from imagen.service.sight import take_note

DEADLINE_MARGIN_SECONDS = 6.0
"""Replicate ends a run at its deadline by itself; this long we wait for it to say so before we cancel it."""

LAST_LOOK_SECONDS = 5.0
"""The least time that a look gets, however near the deadline is."""
STOP_SECONDS = 5.0
"""How long a canceled run is watched until it says that it has ended."""


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """When a prediction is looked at: after 0.5 s, then half as long again each time, at most every 5 s."""

    first_seconds: float = 0.5
    factor: float = 1.5
    cap_seconds: float = 5.0

    def after(self, seconds: float) -> float:
        """The pause after a pause of `seconds`."""
        return min(seconds * self.factor, self.cap_seconds)


async def follow(
    backend: Backend,
    store: PredictionStore,
    clock: Clock,
    prediction: Prediction,
    *,
    notify: Callable[[Event], None],
    pace: Pace = Pace(),  # noqa: B008 - frozen
) -> Prediction:
    """Look until it has ended; every change is written down.

    It is paid for, so a service that is away, throttles, answers nonsense or has not heard of it yet is asked again.

    Raises:
        WaitTimeout: its deadline has passed, and it can be neither seen to end nor canceled.
        BackendError: the service refuses us for good; it stays unfinished, to be adopted later.
    """
    sent_at = prediction.sent_at or prediction.created_at
    allowed = prediction.deadline_seconds + DEADLINE_MARGIN_SECONDS
    gone = min(max((clock.now() - sent_at).total_seconds(), 0.0), allowed)
    ends_at = clock.monotonic() + allowed - gone
    pause = pace.first_seconds
    while not prediction.status.terminal:
        left = ends_at - clock.monotonic()
        if left <= 0:
            return await _overdue(backend, store, clock, prediction)
        await clock.sleep(min(pause, left))
        pause = pace.after(pause)
        try:
            async with asyncio.timeout(max(ends_at - clock.monotonic(), LAST_LOOK_SECONDS)):
                prediction = await look(backend, store, clock, prediction, notify)
        except TimeoutError:
            continue
        except BackendError as error:
            if not (error.retryable or isinstance(error, ModelNotFound)):
                raise
            pause = max(pause, error.retry_after or 0.0)
            notify(Waiting(error.detail, min(pause, left)))
    return prediction


async def look(
    backend: Backend,
    store: PredictionStore,
    clock: Clock,
    prediction: Prediction,
    notify: Callable[[Event], None],
) -> Prediction:
    """One look, written down when the status moved."""
    seen = await take_note(backend, store, clock, prediction, await backend.look(prediction))
    notify(Progressed(seen, 1.0 if seen.status.terminal else progress_from_log(seen.logs)))
    return seen


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
