"""Telling those who watch a batch in this process that something of it has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Changes:
    """What somebody who watches has not looked at yet."""

    def __init__(self) -> None:
        self.event = asyncio.Event()

    async def wait(self, *, seconds: float) -> None:
        """Until something has changed since the last wait, at most for so long."""
        try:
            async with asyncio.timeout(seconds):
                await self.event.wait()
        except TimeoutError:
            return
        self.event.clear()


class News:
    """Wakes whoever watches a batch. Watchers in other processes look now and then."""

    def __init__(self) -> None:
        self._watching: dict[str, set[Changes]] = {}

    def tell(self, batch_id: str) -> None:
        """Something has changed."""
        for changes in self._watching.get(batch_id, ()):
            changes.event.set()

    @contextmanager
    def watch(self, batch_id: str) -> Iterator[Changes]:
        """Be told while the block runs; whatever changes from now on is not missed."""
        changes = Changes()
        watching = self._watching.setdefault(batch_id, set())
        watching.add(changes)
        try:
            yield changes
        finally:
            watching.discard(changes)
            if not watching:
                self._watching.pop(batch_id, None)
