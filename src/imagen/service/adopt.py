"""Finding what a create bought whose answer was lost."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from imagen.domain.events import Adopted, AnswerLost, Event
from imagen.domain.prediction import Prediction
from imagen.errors import GarbledResponse, UpstreamTaken
from imagen.ports import Backend, Clock, Lister, PredictionStore
from imagen.service.pace import Pace
from imagen.service.sight import take_note

REMEMBERED_UPSTREAM = timedelta(hours=1)
"""Replicate removes what a prediction was given and has made after an hour; without its input nothing can be recognised."""
_KNOWN_SINCE = timedelta(days=1)
_MOST_PASSED_OVER = 50
"""So many that are others' are passed over at once after the time of a search is up."""
_BEFORE, _AFTER = timedelta(minutes=2), timedelta(minutes=10)
"""A create may have come into being so much before or after the moment in which we say that it was sent: clocks differ."""


def is_remembered(prediction: Prediction, now: datetime) -> bool:
    """Whether upstream still has the input of what was sent then, by which it is recognised."""
    return now - (prediction.sent_at or prediction.created_at) < REMEMBERED_UPSTREAM


def may_be_heard_of(prediction: Prediction, now: datetime) -> bool:
    """Whether its end may still be told to us with its outputs: it runs to its deadline at the longest."""
    begun = prediction.sent_at or prediction.created_at
    return now - begun < timedelta(seconds=prediction.deadline_seconds) + REMEMBERED_UPSTREAM


def outputs_live(prediction: Prediction, now: datetime) -> bool:
    """Whether upstream still has the outputs: they live for an hour from the end, however long the run took before."""
    end = prediction.ended_at or prediction.sent_at or prediction.created_at
    return now - end < REMEMBERED_UPSTREAM


async def adopt(
    backend: Backend,
    store: PredictionStore,
    clock: Clock,
    prediction: Prediction,
    *,
    within_seconds: float,
    notify: Callable[[Event], None],
) -> Prediction | None:
    """Look through the account's predictions, once to the end and for `within_seconds`; None when it is not there.

    A create that is still on its way shows up late, so not being there proves nothing before. Of equal requests to a
    model without a seed any one may be taken, but each by one of us only: the store decides who was first. What
    somebody else has written down about this prediction in the meantime is what counts.

    Raises:
        BackendError: the list could not be read, or has too many like it; nothing follows from that.
    """
    notify(AnswerLost(prediction, within_seconds))
    since = (prediction.sent_at or prediction.created_at) - _KNOWN_SINCE
    taken: set[str] = set()
    until = clock.monotonic() + within_seconds
    pace = Pace()
    pause = pace.first_seconds
    while True:
        stored = await store.get(prediction.id)
        if not stored.unheard:
            return stored
        known = await store.known_upstream_ids(prediction.account, since=since)
        sighting = await backend.find(prediction, ignore=known | taken)
        if sighting is not None:
            try:
                found = await take_note(backend, store, clock, prediction, sighting)
            except UpstreamTaken:
                # Each is passed over once. What is sought may be the next: that it is not there is not said before.
                taken.add(sighting.upstream_id)
                if len(taken) >= _MOST_PASSED_OVER and clock.monotonic() >= until:
                    raise _crowded(backend, prediction, len(taken)) from None
                for holder in await store.of_upstream(prediction.account, [sighting.upstream_id]):
                    since = min(since, holder.sent_at or holder.created_at)  # and all that were sent after it
                continue
            notify(Adopted(found))
            return found
        left = until - clock.monotonic()
        if left <= 0:
            return None
        await clock.sleep(min(pause, left))
        pause = pace.after(pause)


def _crowded(backend: Backend, prediction: Prediction, passed: int) -> GarbledResponse:
    return GarbledResponse(
        f"{passed} predictions at the service are like {prediction.id} and belong to others; nothing is concluded from that yet",
        backend=backend.name,
    )


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
