"""Pacing the calls that are not creates: looks, lists, cancels. Taken from the account's allowance some at once."""

from __future__ import annotations

import asyncio
import logging

from imagen.domain.limits import Refusal
from imagen.errors import StoreError
from imagen.ports import Clock, Limits

CHUNK = 20
"""So many are taken at once: each taking is a transaction."""
CHUNK_LIVES_SECONDS = 2.0
"""What is left of a chunk then is dropped: others may have needed it."""
_MOST_ACCOUNTS = 1000
_LEAST_SECONDS = 0.001

_log = logging.getLogger(__name__)


class _Chunk:
    """What one account has left here."""

    __slots__ = ("left", "taken_at", "taking")

    def __init__(self) -> None:
        self.left = 0
        self.taken_at = 0.0
        self.taking = asyncio.Lock()


class SharedCallBudget:
    """`ports.CallBudget`: exact over all processes of one store, up to a chunk each.

    Args:
        limits: has the allowance of each account.
        clock: tells the time.
        per_minute: the allowance, by which the chunk is sized.
    """

    def __init__(self, *, limits: Limits, clock: Clock, per_minute: int) -> None:
        self._limits = limits
        self._clock = clock
        self._size = max(1, min(CHUNK, per_minute // 60))
        self._chunks: dict[str, _Chunk] = {}

    async def enter(self, account: str) -> None:
        """See the port. A store that fails lets calls pass: what was paid for must be seen to end."""
        if account not in self._chunks and len(self._chunks) >= _MOST_ACCOUNTS:
            self._chunks.clear()  # what they had left is little, and comes back by itself
        chunk = self._chunks.setdefault(account, _Chunk())
        while not self._spend(chunk):
            async with chunk.taking:
                if self._fresh(chunk):
                    continue
                now = self._clock.now().timestamp()
                try:
                    wait = await self._limits.take_calls(account, self._size, now=now)
                except StoreError as error:
                    _log.debug("a call is made unpaced: %s", error)
                    return
                if wait > 0:
                    await self._clock.sleep(max(wait, _LEAST_SECONDS))
                    continue
                chunk.left, chunk.taken_at = self._size, self._clock.monotonic()

    async def refused(self, account: str, *, retry_after: float | None, detail: str) -> None:
        """See the port."""
        refusal = Refusal(creates=False, retry_after=retry_after, detail=detail)
        try:
            await self._limits.refused(account, refusal, now=self._clock.now().timestamp())
        except StoreError as error:
            _log.debug("a 429 was not written down: %s", error)
        self._chunks.pop(account, None)

    def _spend(self, chunk: _Chunk) -> bool:
        if not self._fresh(chunk):
            return False
        chunk.left -= 1
        return True

    def _fresh(self, chunk: _Chunk) -> bool:
        return chunk.left > 0 and self._clock.monotonic() - chunk.taken_at < CHUNK_LIVES_SECONDS
