"""Events for analytics, as lines of the log at level info: what was generated, for whom, and at what cost.

With `log.format` json each line is an object whose `event` is its name. There is no prompt in them.
"""

from __future__ import annotations

import logging
from typing import Any

from cachetools import FIFOCache

from imagen.domain.events import Ended, Event
from imagen.domain.money import to_dollars
from imagen.domain.prediction import Prediction, Status

COMPLETED, REPLICATE = "generation_completed", "replicate_generation"
_MOST_REMEMBERED = 10_000
_log = logging.getLogger("imagen.analytics")


class Once:
    """Knows which predictions have ended already: a repeated request says again that its own has.

    Args:
        most: so many are remembered.
    """

    def __init__(self, most: int = _MOST_REMEMBERED) -> None:
        self._told: FIFOCache[str, None] = FIFOCache(most)

    def is_new(self, prediction: Prediction) -> bool:
        """Whether its end is told for the first time."""
        if not prediction.status.terminal or prediction.id in self._told:
            return False
        self._told[prediction.id] = None
        return True


def processing_ms(prediction: Prediction) -> int | None:
    """How long the model ran, where the service tells it; else how long the prediction took in all; None when unknown."""
    if prediction.predict_seconds is not None:
        return round(1000 * prediction.predict_seconds)
    return prediction.latency_ms


class Analytics:
    """`ports.Observer` that writes a line for each generation."""

    def __init__(self) -> None:
        self._once = Once()

    def notify(self, event: Event) -> None:
        """See the port."""
        if isinstance(event, Ended) and self._once.is_new(event.prediction):
            _tell(event.prediction)


def _tell(prediction: Prediction) -> None:
    if not _log.isEnabledFor(logging.INFO):
        return
    successful = prediction.status is Status.SUCCEEDED
    cost = to_dollars(prediction.spent)
    _write(
        COMPLETED,
        {"user_id": prediction.caller, "model": prediction.model, "cost": cost, "successful": successful},
    )
    if prediction.backend_type == "replicate":
        _write(
            REPLICATE,
            {
                "model": prediction.model,
                "cost_usd": cost,
                "processing_time_ms": processing_ms(prediction),
                "successful": successful,
                "timestamp": None if prediction.ended_at is None else prediction.ended_at.isoformat(),
            },
        )


def _write(event: str, fields: dict[str, Any]) -> None:
    _log.info(event, extra={"fields": {"event": event, **fields}})
