"""How predictions stand that run just now: what a look at them told, and no row of the database has before their end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cachetools import FIFOCache

from imagen.domain.events import CacheHit, Ended, Event, Progressed, Submitted
from imagen.domain.prediction import Prediction
from imagen.service.news import Changes, News

MOST = 10_000


class LiveSights:
    """The last look at each prediction that this process follows, and word for whoever waits for the next one."""

    def __init__(self) -> None:
        self._seen: FIFOCache[str, Prediction] = FIFOCache(MOST)
        self._news = News()

    def notify(self, event: Event) -> None:
        """See `ports.Observer`."""
        match event:
            case Progressed(prediction):
                if prediction.status.terminal:
                    self._seen.pop(prediction.id, None)  # from now on it is written down
                else:
                    self._seen[prediction.id] = prediction
            case Submitted(prediction):
                pass
            case Ended(prediction) | CacheHit(prediction):
                self._seen.pop(prediction.id, None)
            case _:
                return
        self._news.tell(prediction.id)

    def newer(self, prediction: Prediction) -> Prediction:
        """A prediction as it was seen last; as it is written down where this process does not follow it, or it has ended."""
        if prediction.status.terminal:
            return prediction
        return self._seen.get(prediction.id, prediction)

    @contextmanager
    def watch(self, prediction_id: str) -> Iterator[Changes]:
        """Be told of every look while the block runs."""
        with self._news.watch(prediction_id) as changes:
            yield changes
