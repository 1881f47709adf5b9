"""Finding what a create bought whose answer was lost."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from imagen.domain.events import Adopted, AnswerLost, Event
from imagen.domain.prediction import Prediction
from imagen.errors import UpstreamTaken
from imagen.ports import Backend, Clock, Lister, PredictionStore
from imagen.service.pace import Pace
from imagen.service.sight import take_note

REMEMBERED_UPSTREAM = timedelta(hours=1)
"""Replicate removes a prediction's input after an hour; without it nothing can be recognised."""
_KNOWN_SINCE = timedelta(days=1)
_BEFORE, _AFTER = timedelta(minutes=2), timedelta(minutes=10)
"""A create may have come into being so much before or after the moment in which we say that it was sent: clocks differ."""


def is_remembered(prediction: Prediction, now: datetime) -> bool:
    """Whether upstream still has the input, and the outputs, of what was sent then."""
    return now - (prediction.sent_at or prediction.created_at) < REMEMBERED_UPSTREAM


async def adopt(
    backend: Backend,
    store: PredictionStore,
    clock: Clock,
    prediction: Prediction,
    *,
    within_seconds: float,
    notify: Callable[[Event], None],
) -> Prediction | None:
    """Look through the account's predictions, at least once and for `within_seconds`; None when it is not there.

    A create that is still on its way shows up late, so not being there proves nothing before. Of equal requests to a
    model without a seed any one may be taken, but each by one of us only: the store decides who was first. What
    somebody else has written down about this prediction in the meantime is what counts.

    Raises:
        BackendError: the list could not be read; nothing follows from that.
    """
    notify(AnswerLost(prediction, within_seconds))
    until = clock.monotonic() + within_seconds
    pace = Pace()
    pause = pace.first_seconds
    while True:
        stored = await store.get(prediction.id)
        if not stored.unheard:
            return stored
        known = await store.known_upstream_ids(prediction.account, since=prediction.created_at - _KNOWN_SINCE)
        sighting = await backend.find(prediction, ignore=known)
        if sighting is not None:
            try:
                found = await take_note(backend, store, clock, prediction, sighting)
            except UpstreamTaken:
                continue
            notify(Adopted(found))
            return found
        left = until - clock.monotonic()
        if left <= 0:
            return None
        await clock.sleep(min(pause, left))
        pause = pace.after(pause)


async def never_arrived(backend: Backend, store: PredictionStore, prediction: Prediction) -> bool:
    """Whether a lost create surely bought nothing, although its input would not be recognised any more.

    The account's list outlives inputs: ids, models and instants stay. Where nobody else's of its model came into being
    around the moment in which it was sent, it never arrived.

    Raises:
        BackendError: the list could not be read; nothing follows from that.
    """
    if not isinstance(backend, Lister):
        return False
    sent_at = prediction.sent_at or prediction.created_at
    since, until = sent_at - _BEFORE, sent_at + _AFTER
    async for page in backend.history(since=since):
        # Our clock may be wrong now, or have been wrong then: both readings of the moment count.
        near = [
            each
            for each in page
            if _base(each.model) in {"", _base(prediction.model)}
            and any(at is None or since <= at <= until for at in (each.sighting.created_at, each.made_at))
            and (not each.sighting.input or backend.could_be(each, prediction))
        ]
        ids = [each.sighting.upstream_id for each in near]
        known = {one.upstream_id for one in await store.of_upstream(prediction.account, ids)}
        if not known.issuperset(ids):
            return False
    return True


def _base(model: str) -> str:
    return model.partition(":")[0].lower()
