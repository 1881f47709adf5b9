"""What is being made for callers who may leave and ask for the very same again.

The clients that Stainless makes, OpenAI's among them, send a request once more when its answer does not come in time, and
nothing but a count tells that from a new one. So what was left is not given up at once, and whoever asks again gets it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from imagen.domain.events import BudgetPassed, Event, LetIn, Submitted
from imagen.ports import Clock, Observer
from imagen.server.headers import retries_of
from imagen.server.orphans import LIVES_SECONDS
from imagen.service.finish import Outcome

if TYPE_CHECKING:
    from imagen.server.context import Context

_OF_STAINLESS = "x-stainless-"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0
"""Seconds that those clients rest before they ask again; it doubles each time."""
_SPARE_SECONDS = 3.0
_MOST = 1000

Work = Callable[[], Coroutine[Any, Any, Sequence[Outcome]]]
"""Begins what is to be made."""


class Run:
    """What one request has begun, for whoever waits for it just now.

    Args:
        goes_on: whether it is finished when nobody waits any more.
    """

    def __init__(self, *, goes_on: bool) -> None:
        self._goes_on = goes_on
        self._task: asyncio.Task[Sequence[Outcome]] | None = None
        self._turn: Observer | None = None
        self._told: list[Event] = []
        self._giving_up: asyncio.TimerHandle | None = None

    @property
    def is_bought(self) -> bool:
        """Whether anything was."""
        return any(isinstance(event, Submitted) for event in self._told)

    @property
    def is_good(self) -> bool:
        """Whether it goes on, or has come to something that another try would buy a second time."""
        task = self._task
        if task is None or not task.done():
            return task is not None
        return not task.cancelled() and (task.exception() is None or self.is_bought)

    def notify(self, event: Event) -> None:
        """See `ports.Observer`."""
        if isinstance(event, LetIn | Submitted | BudgetPassed):
            self._told.append(event)
        if self._turn is not None:
            self._turn.notify(event)

    async def outcomes(
        self, context: Context, request: Request, turn: Observer, *, work: Work | None
    ) -> Sequence[Outcome]:
        """What comes of it, for as long as the caller stays.

        Args:
            context: of the server.
            request: of the caller who waits.
            turn: is told what happens, and what has happened so far.
            work: begins it; None where that was done.

        Raises:
            Gone: the caller went away.
            Draining: the process ended first.
        """
        self._keep()
        self._turn = turn
        for event in self._told:
            turn.notify(event)
        if work is not None:
            self._task = context.begin(work())
        if self._task is None:
            raise RuntimeError("nobody has begun it")
        try:
            return await context.attend(request, self._task)
        except asyncio.CancelledError:
            self.leave(0.0)
            raise

    def leave(self, patience: float) -> bool:
        """Nobody waits any more: it is given up, after so many seconds. Returns whether it is there to be asked for."""
        self._turn = None
        if self._goes_on or self._task is None or self._task.done():
            return self._task is not None
        if patience <= 0:
            self._task.cancel()
            return False
        self._keep()
        self._giving_up = asyncio.get_running_loop().call_later(patience, self._task.cancel)
        return True

    def _keep(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None


class LeftRuns:
    """What nobody waits for any more and may be asked for again, in this process.

    Args:
        clock: tells the time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._left: OrderedDict[Run, tuple[str, str, float]] = OrderedDict()

    def __bool__(self) -> bool:
        """Whether there is any."""
        self._forget_old()
        return bool(self._left)

    def add(self, run: Run, *, scope: str, fingerprint: str) -> None:
        """One more, by whose it is and what was asked for."""
        self._left[run] = (scope, fingerprint, self._clock.monotonic() + LIVES_SECONDS)
        self._forget_old()

    def take(self, *, scope: str, fingerprint: str) -> Run | None:
        """What the very same request has begun for the same caller, the oldest first; it has somebody who waits then."""
        self._forget_old()
        for run, (whose, what, _) in list(self._left.items()):
            if (whose, what) == (scope, fingerprint):
                del self._left[run]
                if run.is_good:
                    return run
        return None

    def _forget_old(self) -> None:
        now = self._clock.monotonic()
        while self._left:
            run, (_, _, until) = next(iter(self._left.items()))
            if until > now and len(self._left) <= _MOST:
                return
            del self._left[run]


def patience_with(request: Request) -> float:
    """Seconds in which a client may ask for the same again by itself; 0 for those that do not."""
    if not any(name.startswith(_OF_STAINLESS) for name in request.headers):
        return 0.0
    return float(min(_FIRST_PAUSE * 2 ** (retries_of(request.headers) or 0), _LONGEST_PAUSE) + _SPARE_SECONDS)
