"""Passing trouble: the service is away, the database takes nothing. Work waits then; nothing fails for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Self

import msgspec

from imagen.domain.limits import budget_limit
from imagen.errors import (
    BackendRateLimited,
    BackendUnauthenticated,
    BudgetExceeded,
    ConnectFailed,
    DeliveryError,
    ExchangeFailed,
    ImagenError,
    PaymentRequired,
    StoreBusy,
    StoreError,
    WaitTimeout,
)
from imagen.ports import Clock

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
STORE = "store"
"""Under this name trouble with our own database is noted, besides the accounts."""

_FULL = "the disk of the database is full"
_HELD = "the database is held by another process"
_FAILS = "the database cannot be read or written"
_REASONS: tuple[tuple[type[ImagenError], str], ...] = (
    (StoreBusy, _HELD),
    (StoreError, _FAILS),
    (BackendRateLimited, "the service throttles this account"),
    (BackendUnauthenticated, "the service refuses the token"),
    (PaymentRequired, "the account has not enough credit"),
    (ConnectFailed, "the service cannot be reached"),
    (ExchangeFailed, "the service did not answer"),
    (DeliveryError, "pictures cannot be put where they belong"),
    (WaitTimeout, "a run could not be seen to end"),
)

_log = logging.getLogger(__name__)


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """Why work of one account, or all of it, waits.

    Attributes:
        subject: the account, `store`, or `budget:NAME`.
        reason: for people: whoever uses the account sees it, so that it names neither predictions nor places.
        since: when it began; next_try: when one item tries again.
    """

    subject: str
    reason: str
    since: datetime
    next_try: datetime


def reason_of(error: ImagenError) -> str:
    """What an error means for everybody who waits; what it says of one prediction, or of a place, is left out."""
    if isinstance(error, StoreError) and "full" in error.detail:
        return _FULL
    return next((told for kind, told in _REASONS if isinstance(error, kind)), "the service is in trouble")


def reason_of_store(state: str) -> str:
    """What the state of the store means for everybody who waits."""
    return {"full": _FULL, "busy": _HELD}.get(state, _FAILS)


class _Closed:
    """One subject in trouble. `prober` is the ticket of whoever finds out now whether it still is."""

    __slots__ = ("opened", "pause", "prober", "trouble", "until")

    def __init__(self, trouble: Trouble, pause: float, until: float) -> None:
        self.trouble = trouble
        self.pause = pause
        self.until = until
        self.prober: Ticket | None = None
        self.opened = asyncio.Event()


class Ticket:
    """The way of one item past what is in trouble, as a context manager.

    It remembers where it is the one that tries. What it has found nothing out about by its end is free for the next
    to try; what others try stays theirs.
    """

    __slots__ = ("_troubles",)

    def __init__(self, troubles: Troubles) -> None:
        self._troubles = troubles

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_up()

    async def passable(self, *subjects: str) -> None:
        """Wait until none of these is in trouble, or until it is our turn to find out.

        Whoever waits again has found out nothing about the rest, so that others may meanwhile.
        """
        self.give_up()
        await self._troubles.passable(self, *subjects)

    def tries(self, subject: str) -> bool:
        """Whether it is the one that finds out about this."""
        return self._troubles.is_tried_by(self, subject)

    def note(self, subject: str, error: ImagenError) -> None:
        """It failed for a passing reason: nobody tries before the next pause is over."""
        _log.info("work of %s waits: %s", subject, error)
        self._troubles.note(subject, reason_of(error), by=self)

    def clear(self, subject: str) -> None:
        """It works again."""
        self._troubles.clear(subject)

    def give_up(self) -> None:
        """Go away without having found out: another may."""
        self._troubles.give_up(self)


class _Short:
    """A batch that waits for a budget; `noted_at` and `until` are the clock's seconds."""

    __slots__ = ("noted_at", "pause", "trouble", "until")

    def __init__(self, trouble: Trouble, pause: float, noted_at: float) -> None:
        self.trouble = trouble
        self.pause = pause
        self.noted_at = noted_at
        self.until = noted_at + pause


class Troubles:
    """What is in trouble. While it is, one item at a time tries, after pauses that grow up to a minute.

    A batch for which a budget has no room waits by itself: the work of others may be paid for still.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._closed: dict[str, _Closed] = {}
        self._short: dict[str, _Short] = {}
        self._in_line: dict[tuple[str, int], Trouble] = {}

    def now(self) -> Sequence[Trouble]:
        """All that is in trouble, the oldest first."""
        self._forget_short()
        short = {each.subject: each for each in self._in_line.values()}
        short |= {each.trouble.subject: each.trouble for each in self._short.values()}
        found = [*(each.trouble for each in self._closed.values()), *short.values()]
        return sorted(found, key=lambda trouble: trouble.since)

    def of(self, account: str, *, batch_id: str = "") -> Trouble | None:
        """What keeps the work of an account waiting, or this batch alone."""
        self._forget_short()
        found = self._closed.get(STORE) or self._closed.get(account) or self._short.get(batch_id)
        if found is not None:
            return found.trouble
        return next((each for (batch, _), each in self._in_line.items() if batch == batch_id), None)

    # --- money -------------------------------------------------------------------------------------------

    def stand_short(self, batch_id: str, index: int, limit: str | None) -> None:
        """An item stands in line for money that is reserved for others, and goes when it is free; None: it does no more.

        The rest of its batch waits for nothing but that line.
        """
        self._in_line.pop((batch_id, index), None)
        if limit is not None:
            at = self._clock.now()
            reason = f"the rest of the budget {limit.removeprefix(budget_limit(''))!r} is reserved for what is under way"
            trouble = Trouble(subject=limit, reason=reason, since=at, next_try=at)
            self._in_line[batch_id, index] = trouble

    def run_short(self, batch_id: str, error: BudgetExceeded) -> float:
        """A budget has no room for a batch: seconds until it is to be tried again, a minute at most."""
        left = self.short_for(batch_id)
        if left is not None:
            return left  # several of its items met the same
        found = self._short.get(batch_id)
        at, renews = self._clock.now(), error.renews_at
        pause = FIRST_PAUSE_SECONDS if found is None else min(2 * found.pause, LONGEST_PAUSE_SECONDS)
        if renews is not None:
            pause = min(pause, max((renews - at).total_seconds(), FIRST_PAUSE_SECONDS))
        told = "it does not renew" if renews is None else f"it renews at {renews:%Y-%m-%d %H:%M} UTC"
        trouble = Trouble(
            subject=budget_limit(error.budget or ""),
            reason=f"the budget {error.budget!r} has no room for more; {told}",
            since=at if found is None else found.trouble.since,
            next_try=at + timedelta(seconds=pause),
        )
        self._short[batch_id] = _Short(trouble, pause, self._clock.monotonic())
        return pause

    def short_for(self, batch_id: str) -> float | None:
        """Seconds until a batch that waits for a budget is to be tried again; None when it may be now."""
        found = self._short.get(batch_id)
        left = 0.0 if found is None else found.until - self._clock.monotonic()
        return left if left > 0 else None

    def afford(self, batch_id: str, *, since: float = float("inf")) -> None:
        """There is room again for a batch, as an item that began at `since`, by the clock's seconds, has seen."""
        found = self._short.get(batch_id)
        if found is not None and since >= found.noted_at:
            del self._short[batch_id]

    def _forget_short(self) -> None:
        """Nobody has tried again for long: the batch was paused or canceled, or somebody else works on it."""
        late = self._clock.monotonic() - LONGEST_PAUSE_SECONDS
        self._short = {batch_id: each for batch_id, each in self._short.items() if each.until > late}

    # --- the service and the store -----------------------------------------------------------------------

    def ticket(self) -> Ticket:
        """For one item to pass."""
        return Ticket(self)

    def note(self, subject: str, reason: str, *, by: Ticket | None = None) -> None:
        """It failed for a passing reason. Only who was to find out makes the pause longer.

        Args:
            subject: the account, or `store`.
            reason: for people.
            by: who has seen it fail; None for somebody who only looks.
        """
        found = self._closed.get(subject)
        pause = FIRST_PAUSE_SECONDS
        if found is not None:
            if by is None or found.prober is not by:
                return  # several failed at once: that is one failure
            pause = min(2 * found.pause, LONGEST_PAUSE_SECONDS)
        now = self._clock.now()
        trouble = Trouble(
            subject=subject,
            reason=reason,
            since=now if found is None else found.trouble.since,
            next_try=datetime.fromtimestamp(now.timestamp() + pause, tz=now.tzinfo),
        )
        closed = _Closed(trouble, pause, self._clock.monotonic() + pause)
        if found is not None:
            closed.opened = found.opened
        self._closed[subject] = closed

    def clear(self, subject: str) -> None:
        """It works again."""
        if (closed := self._closed.pop(subject, None)) is not None:
            closed.opened.set()

    async def passable(self, ticket: Ticket, *subjects: str) -> None:
        """See `Ticket.passable`. Nothing is tried before all can be: who waits for one keeps nobody from another."""
        while (closed := next(filter(self._is_shut, subjects), None)) is not None:
            shut = self._closed[closed]
            await self._until(shut, max(shut.until - self._clock.monotonic(), FIRST_PAUSE_SECONDS))
        for subject in subjects:
            if subject in self._closed:
                self._closed[subject].prober = ticket

    def _is_shut(self, subject: str) -> bool:
        closed = self._closed.get(subject)
        return closed is not None and (closed.prober is not None or closed.until > self._clock.monotonic())

    def is_tried_by(self, ticket: Ticket, subject: str) -> bool:
        """See `Ticket.tries`."""
        closed = self._closed.get(subject)
        return closed is not None and closed.prober is ticket

    def give_up(self, ticket: Ticket) -> None:
        """See `Ticket.give_up`."""
        for closed in self._closed.values():
            if closed.prober is ticket:
                closed.prober = None

    async def _until(self, closed: _Closed, seconds: float) -> None:
        """For so long, or until it works again."""
        opened = asyncio.ensure_future(closed.opened.wait())
        pause = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait({opened, pause}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            opened.cancel()
            pause.cancel()
