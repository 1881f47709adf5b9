"""What must be held before a prediction is bought, and how that is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import msgspec

from imagen.domain.budget import Charge, Shortage
from imagen.domain.caller import UNKNOWN, Caller
from imagen.domain.prediction import Prediction


class Lane(IntEnum):
    """Whose turn it is first: somebody who waits, or a batch."""

    INTERACTIVE = 0
    BATCH = 1


class AccountRules(msgspec.Struct, frozen=True, kw_only=True):
    """What every account may do.

    Attributes:
        concurrent: predictions that run at the same time.
        creates_per_minute: predictions that are created.
        calls_per_minute: all other calls.
    """

    concurrent: int = 60
    creates_per_minute: int = 600
    calls_per_minute: int = 3000


def account_limit(account: str) -> str:
    """The name under which an account's places are counted."""
    return f"account:{account}"


def key_limit(key: str) -> str:
    """The name under which a key's places are counted."""
    return f"key:{key}"


def budget_limit(name: str) -> str:
    """The name under which somebody waits for what is reserved of a budget."""
    return f"budget:{name}"


def semaphore_limit(name: str) -> str:
    """The name under which a semaphore's places are counted."""
    return f"semaphore:{name}"


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """All that must be held at once: a place in each limit, and a turn in each rate. All of it is given, or nothing.

    Attributes:
        lease: under which the places are held: the prediction's id, or that of a lease of another service.
        holder: whom others see as the holder.
        lasts_seconds: the places end by themselves after that.
        account: whose places and rate are needed; None for what runs elsewhere.
        semaphore: a named limit besides.
        since: epoch seconds at which it came; those who came first go first.
        running: it runs already, so its places are taken whatever the limits say.
        intent: written down in the very moment in which all is given, so that nothing is held without a trace.
        charge: what is reserved of the budgets in that moment; None for what costs us nothing.
    """

    lease: str
    holder: str
    lasts_seconds: float
    account: str | None = None
    caller: Caller = UNKNOWN
    semaphore: str | None = None
    lane: Lane = Lane.INTERACTIVE
    since: float = 0.0
    running: bool = False
    intent: Prediction | None = None
    charge: Charge | None = None

    def limits(self) -> Iterator[str]:
        """The limits in which a place is needed, in the order in which they are asked."""
        if self.semaphore is not None:
            yield semaphore_limit(self.semaphore)
        if self.caller.key is not None and self.caller.concurrent is not None:
            yield key_limit(self.caller.key)
        if self.account is not None:
            yield account_limit(self.account)


LINED_UP = 4
"""So many times an account's places are begun at once of many items; most stand in line, and the others wait as plain values."""


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long somebody stays.

    Attributes:
        line_seconds: in line for a place or a turn.
        refusals: how many 429s of the service one prediction meets before it gives up.
        refusal_seconds: the longest wait that the service may ask for.
    """

    line_seconds: float = 600.0
    refusals: int = 3
    refusal_seconds: float = 30.0


class Admitted(msgspec.Struct, frozen=True):
    """All is held.

    Attributes:
        sequence: numbers the account's creates.
        intent: the one that was written down.
        passed: budgets that only warn and have no room for it.
    """

    sequence: int = 0
    intent: Prediction | None = None
    passed: tuple[Shortage, ...] = ()


class Blocked(msgspec.Struct, frozen=True):
    """Nothing is held.

    Attributes:
        limit: what has no place or turn now.
        until: epoch seconds at which asking again makes sense; None: when a place is given back.
        shortage: why it waits, where it does for what is reserved of a budget.
    """

    limit: str
    until: float | None = None
    shortage: Shortage | None = None


class Missing(msgspec.Struct, frozen=True):
    """Nothing is held, and never will be: there is no such semaphore."""

    semaphore: str


class Unaffordable(msgspec.Struct, frozen=True):
    """Nothing is held: a budget has no room for it, whatever comes of what is under way."""

    shortage: Shortage


Verdict = Admitted | Blocked | Missing | Unaffordable


class LineReport(msgspec.Struct, frozen=True):
    """Who stands in line at one limit, as one line tells it to the others: the first one's lane and since when."""

    lane: Lane
    since: float
    count: int


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A 429 of the service.

    Attributes:
        creates: whether a create was refused, or another call.
        retry_after: seconds, when it told them; detail: its words.
        sequence: of the create that was refused.
    """

    creates: bool
    retry_after: float | None
    detail: str
    sequence: int = 0


class AccountState(msgspec.Struct, frozen=True, kw_only=True):
    """How an account stands: its places, and what is known of its rates.

    Attributes:
        creates, calls: what the limiter has learned, for people.
        spare_creates, spare_calls: so many would pass at once now.
    """

    concurrent: int
    running: int
    creates: dict[str, Any]
    calls: dict[str, Any]
    spare_creates: int = 0
    spare_calls: int = 0
