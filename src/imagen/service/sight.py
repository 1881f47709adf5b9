"""Taking note of what upstream said: the one place where that becomes a status, is priced and written down."""

from __future__ import annotations

import contextlib
import logging

import msgspec

from imagen.domain.money import Usd
from imagen.domain.prediction import Prediction, Sighting, Status
from imagen.domain.usage import UsageEntry
from imagen.errors import BackendError, StoreError, UpstreamTaken
from imagen.ports import Backend, Clock, PredictionStore

_log = logging.getLogger(__name__)


async def take_note(
    backend: Backend, store: PredictionStore, clock: Clock, prediction: Prediction, sighting: Sighting
) -> Prediction:
    """The prediction after a sighting, written down when its status or its upstream id is new.

    An ended prediction has its cost before it is stored, and its end, its ledger entry and the places that it held are
    one transaction: whoever finds it later finds all of it done.

    Raises:
        UpstreamTaken: another of our predictions has that upstream id.
    """
    now = clock.now()
    seen, entry = prediction.observe(sighting, now=now), None
    if seen.status.terminal and not prediction.status.terminal:
        seen = msgspec.structs.replace(
            seen,
            cost=backend.price(seen) if seen.charged else Usd(0),
            delivered_at=now
            if seen.status is Status.SUCCEEDED and seen.output and seen.destination is None
            else None,
        )
        entry = UsageEntry.from_prediction(seen, at=now)
    if seen.status is prediction.status and seen.upstream_id == prediction.upstream_id:
        return seen
    try:
        stored = await store.save(seen, entry=entry)
    except UpstreamTaken:
        raise
    except StoreError as error:
        # The intent is written down, so nothing is lost: whoever comes after a crash looks again. The picture matters more.
        _log.warning("prediction %s is %s, which could not be written down: %s", seen.id, seen.status, error)
        return seen
    if stored.status.terminal and stored.upstream_id is None:
        # Given up by somebody else before its create was heard of: it must not go on, nor be forgotten.
        _log.warning(
            "prediction %s was given up but is %s upstream; canceling it there", seen.id, seen.upstream_id
        )
        with contextlib.suppress(BackendError):
            await backend.cancel(seen)
    return stored
