"""`ratelimit-remaining` and `ratelimit-reset`: what the account's limiter knows, as the service tells it of itself."""

from __future__ import annotations

import math

import msgspec
from cachetools import FIFOCache

from imagen.domain.limits import AccountState
from imagen.errors import StoreError
from imagen.ports import Clock, Limits

_LIVES_SECONDS = 1.0
_MOST_ACCOUNTS = 1000


class _Seen(msgspec.Struct, frozen=True):
    until: float
    state: AccountState


class Rates:
    """Looks at limiters, at most once a second of each account.

    Args:
        limits: knows them.
        clock: tells the time.
    """

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._seen: FIFOCache[str, _Seen] = FIFOCache(_MOST_ACCOUNTS)

    async def headers(self, account: str, *, creates: bool) -> dict[str, str]:
        """How many creates, or other calls, of an account would pass now, and in how many seconds there are more.

        Args:
            account: whose.
            creates: that is asked for, and not what other calls have left.
        """
        try:
            state = await self._state(account)
        except StoreError:
            return {}
        left = state.spare_creates if creates else state.spare_calls
        closed = (state.creates if creates else state.calls).get("closed_for_seconds", 0.0)
        return {"ratelimit-remaining": str(left), "ratelimit-reset": str(max(1, math.ceil(closed)))}

    async def _state(self, account: str) -> AccountState:
        now = self._clock.monotonic()
        seen = self._seen.get(account)
        if seen is not None and now < seen.until:
            return seen.state
        state = await self._limits.show(account, now=self._clock.now().timestamp())
        self._seen[account] = _Seen(now + _LIVES_SECONDS, state)
        return state
