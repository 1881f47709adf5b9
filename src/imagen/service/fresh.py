"""Outputs that came inside an answer: kept in memory for whoever asks next, as no row of the database has them."""

from __future__ import annotations

from collections import OrderedDict

from imagen.domain.events import Ended, Event
from imagen.domain.inside import INSIDE, is_inside

MOST_BYTES = 128 * 1024 * 1024


class FreshOutputs:
    """The files of predictions that have just ended, as data URIs: the oldest go when there are too many.

    What is gone from here can still be looked at where it was made, for an hour.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._outputs: OrderedDict[str, tuple[str, ...]] = OrderedDict()

    def notify(self, event: Event) -> None:
        """See `ports.Observer`."""
        if isinstance(event, Ended) and any(map(is_inside, event.prediction.output)):
            self.keep(event.prediction.id, event.prediction.output)

    def keep(self, prediction_id: str, output: tuple[str, ...]) -> None:
        """Remember an output, unless it was written down without what was inside it."""
        if INSIDE in output:
            return
        self._forget(prediction_id)
        self._outputs[prediction_id] = output
        self._bytes += _length(output)
        while self._bytes > self._most_bytes:
            self._forget(next(iter(self._outputs)))

    def find(self, prediction_id: str) -> tuple[str, ...] | None:
        """The output of a prediction; None when it is not here, or not any more."""
        return self._outputs.get(prediction_id)

    def _forget(self, prediction_id: str) -> None:
        self._bytes -= _length(self._outputs.pop(prediction_id, ()))


def _length(output: tuple[str, ...]) -> int:
    return sum(map(len, output))
