"""Outputs that came inside an answer: kept in memory for whoever asks next, as no row of the database has them."""

from __future__ import annotations

from contextlib import suppress

from cachetools import FIFOCache

from imagen.domain.events import Ended, Event
from imagen.domain.inside import INSIDE, is_inside

MOST_BYTES = 128 * 1024 * 1024


class FreshOutputs:
    """The files of predictions that have just ended, as data URIs: the oldest go when there are too many.

    What is gone from here can still be looked at where it was made, for an hour.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._outputs: FIFOCache[str, tuple[str, ...]] = FIFOCache(most_bytes, getsizeof=_length)

    def notify(self, event: Event) -> None:
        """See `ports.Observer`."""
        if isinstance(event, Ended) and any(map(is_inside, event.prediction.output)):
            self.keep(event.prediction.id, event.prediction.output)

    def keep(self, prediction_id: str, output: tuple[str, ...]) -> None:
        """Remember an output, unless it was written down without what was inside it."""
        if INSIDE in output:
            return
        self._outputs.pop(prediction_id, None)
        with suppress(ValueError):  # larger than all of them may be together
            self._outputs[prediction_id] = output

    def find(self, prediction_id: str) -> tuple[str, ...] | None:
        """The output of a prediction; None when it is not here, or not any more."""
        return self._outputs.get(prediction_id)


def _length(output: tuple[str, ...]) -> int:
    return sum(map(len, output))
