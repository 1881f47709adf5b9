"""Creates whose callers went away before their answer: asked for again, they are the same wish.

Official clients send a create once more when its connection breaks, some at once, and most with nothing that tells it from a
new one.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import Headers

from imagen.ports import Clock
from imagen.server.headers import retries_of

LIVES_SECONDS = 120.0
MOST = 2000
MOMENT_SECONDS = 0.02
"""So long an equal create waits for the end of the connection of the one before, which may arrive after it."""


class Create:
    """One create, from its arrival until nobody can repeat it any more.

    Attributes:
        gone: its caller left before the answer.
        repeats: how often its client has sent it before; None for one that does not count.
        joining: a later create is just getting what this one became; joined: it has it.
    """

    def __init__(self, key: tuple[str, str], repeats: int | None) -> None:
        self.key = key
        self.gone = False
        self.joining = False
        self.joined = False
        self.open = True
        self.until = 0.0
        self.repeats = repeats
        self.became_what: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

    def became(self, batch_id: str) -> None:
        """It was taken on: whoever repeats it gets that batch."""
        if not self.became_what.done():
            self.became_what.set_result(batch_id)

    def leave(self) -> None:
        """Nobody waits for the answer any more."""
        self.gone = True


class Orphans:
    """Creates that are under way in this process, and those whose repetition may still come.

    Args:
        clock: tells the time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._creates: dict[tuple[str, str], list[Create]] = {}
        self._closed: OrderedDict[Create, None] = OrderedDict()

    def __bool__(self) -> bool:
        """Whether any was left by its caller."""
        return any(each.gone for each in self._closed)

    def begin(self, headers: Headers, *, scope: str, fingerprint: str) -> Create:
        """A create has arrived. `end` has to follow.

        Args:
            headers: of the request.
            scope: whose it is.
            fingerprint: of what is asked for.
        """
        self._forget_old()
        create = Create((scope, fingerprint), retries_of(headers))
        self._creates.setdefault(create.key, []).append(create)
        return create

    @asynccontextmanager
    async def earlier(self, create: Create) -> AsyncIterator[str | None]:
        """The batch that an earlier create became, if `create` is the same once more; None for a new wish.

        Equal creates that were sent at the same time are wishes of their own. What was left is found once, the oldest first;
        where the block fails it is as if it had not been found.
        """
        found = await self._find(create)
        if found is None:
            yield None
            return
        found.joining = True
        try:
            yield await asyncio.shield(found.became_what)
            found.joined = True
        finally:
            found.joining = False
            self._settle(found)

    def end(self, create: Create) -> None:
        """It was answered, or its caller has gone."""
        create.open = False
        if not create.became_what.done():
            create.became_what.set_result(None)
        self._settle(create)

    async def _find(self, create: Create) -> Create | None:
        found = self._left_before(create)
        if found is None and any(each.open for each in self._before(create)):
            await asyncio.sleep(MOMENT_SECONDS)
            found = self._left_before(create)
        if found is None and create.repeats:
            found = next(iter(reversed(self._before(create))), None)
        return found

    def _settle(self, create: Create) -> None:
        """Keep one that has ended for as long as it may be repeated, and no other."""
        if create.open or create.joining:
            return
        may_come = create.gone or create.repeats is not None
        if create.became_what.result() is None or create.joined or not may_come:
            self._forget(create)
            return
        create.until = self._clock.monotonic() + LIVES_SECONDS
        self._closed[create] = None

    def _before(self, create: Create) -> list[Create]:
        """What came before it, asks for the same, and was not repeated yet. Never later ones: they may wait for this."""
        equal = self._creates.get(create.key, [])
        return (
            [each for each in equal[: equal.index(create)] if not (each.joined or each.joining)]
            if create in equal
            else []
        )

    def _left_before(self, create: Create) -> Create | None:
        return next((each for each in self._before(create) if each.gone), None)

    def _forget_old(self) -> None:
        now = self._clock.monotonic()
        while self._closed:
            oldest = next(iter(self._closed))
            if oldest.until > now and len(self._closed) <= MOST:
                return
            self._forget(oldest)

    def _forget(self, create: Create) -> None:
        self._closed.pop(create, None)
        equal = self._creates.get(create.key, [])
        if create in equal:
            equal.remove(create)
        if not equal:
            self._creates.pop(create.key, None)
