"""One prediction that is watched: what its watcher knows of it, and the news for whoever waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from imagen.domain.prediction import Prediction, Sighting
from imagen.ports import Backend
from imagen.service.pace import Pace

_PACE = Pace()


class Watch:
    """One prediction that is watched.

    Args:
        backend: the one it belongs to.
        prediction: with its upstream id.
        began: monotonic instant at which it was sent.
        ends_at: monotonic instant of the last look.
        closely: every look is news.
        expects_webhook: looked at late, or when it is woken.

    Attributes:
        number: of those of one account, in the order in which they came.
        pause: seconds between its last look and the next one, as far as is known.
    """

    __slots__ = (
        "_leave",
        "_news",
        "_waiter",
        "backend",
        "began",
        "busy",
        "closely",
        "created",
        "due",
        "ends_at",
        "exact",
        "expects_webhook",
        "model",
        "number",
        "pause",
        "prediction",
        "queued",
        "sent",
        "status",
        "unlisted_until",
        "upstream_id",
        "watched",
        "woken",
    )

    def __init__(
        self,
        backend: Backend,
        prediction: Prediction,
        *,
        began: float,
        ends_at: float,
        closely: bool,
        expects_webhook: bool,
    ) -> None:
        self.backend = backend
        self.prediction = prediction
        self.upstream_id = prediction.upstream_id or ""
        self.model = prediction.model
        self.status = prediction.status
        self.began = began
        self.ends_at = ends_at
        self.closely = closely
        self.expects_webhook = expects_webhook
        self.sent = (prediction.sent_at or prediction.created_at).timestamp()
        self.created = self.sent
        self.exact = False
        self.pause = 0.0
        self.due = 0.0
        self.queued = -1.0
        self.busy = False
        self.watched = True
        self.woken = -1.0
        self.unlisted_until = 0.0
        self.number = 0
        self._leave: Callable[[Watch], None] | None = None
        self._news: Sighting | Exception | None = None
        self._waiter: asyncio.Future[Sighting] | None = None

    def begin(self, number: int, leave: Callable[[Watch], None]) -> None:
        """It is watched from now on, until the block ends that it is the manager of; then `leave` is told."""
        self.number = number
        self._leave = leave

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        leave, self._leave = self._leave, None
        if leave is not None:
            leave(self)

    def next_pause(self) -> float:
        """The pause after its last one, where nothing is known of its model."""
        return _PACE.after(self.pause) if self.pause else _PACE.first_seconds

    def news(self) -> asyncio.Future[Sighting]:
        """What the service says of it, when that is something new; for one watched closely, at every look.

        Raises, where it is awaited:
            BackendError: a look failed; there will be others.
            TimeoutError: its last look is overdue.
        """
        self._waiter = asyncio.get_running_loop().create_future()
        news, self._news = self._news, None
        if news is not None:
            self.tell(news)
        return self._waiter

    def tell(self, news: Sighting | Exception) -> None:
        """There is news; an end that nobody took note of yet is not replaced."""
        if self._waiter is None or self._waiter.done():
            if not (isinstance(self._news, Sighting) and self._news.status.terminal):
                self._news = news
        elif isinstance(news, Sighting):
            self._waiter.set_result(news)
        else:
            self._waiter.set_exception(news)
            self._waiter.exception()  # whoever waits may be broken off before it hears of it
