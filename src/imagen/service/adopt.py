"""Finding what a create bought whose answer was lost."""

from __future__ import annotations

from datetime import datetime, timedelta

from imagen.domain.prediction import Prediction, Sighting
from imagen.ports import Backend, Clock, PredictionStore

REMEMBERED_UPSTREAM = timedelta(hours=1)
"""Replicate removes a prediction's input after an hour; without it nothing can be recognised."""
_FIRST_SECONDS, _FACTOR, _CAP_SECONDS = 0.5, 1.5, 5.0
_KNOWN_SINCE = timedelta(days=1)


def can_be_found(prediction: Prediction, now: datetime) -> bool:
    """Whether upstream still has the input by which it would be recognised."""
    return now - (prediction.sent_at or prediction.created_at) < REMEMBERED_UPSTREAM


async def search(
    backend: Backend, store: PredictionStore, clock: Clock, prediction: Prediction, *, until: datetime
) -> Sighting | None:
    """Look through the account's predictions, at least once and until `until`; None when it is not among them.

    A create that is still on its way shows up late, so not being there proves nothing before `until`.
    """
    pause = _FIRST_SECONDS
    while True:
        known = await store.known_upstream_ids(prediction.account, since=prediction.created_at - _KNOWN_SINCE)
        sighting = await backend.find(prediction, ignore=known)
        if sighting is not None:
            return sighting
        left = (until - clock.now()).total_seconds()
        if left <= 0:
            return None
        await clock.sleep(min(pause, left))
        pause = min(pause * _FACTOR, _CAP_SECONDS)
