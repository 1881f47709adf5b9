"""Keeping a second copy of the ledger elsewhere: what a sink does not have yet is written there, again and again until it is.

Our own database is the queue: an entry is marked when the sink has taken it. A crash between the two writes it again, which
changes nothing there. Nothing that makes pictures waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from datetime import datetime

import msgspec

from imagen.domain.usage import UsageEntry
from imagen.errors import ImagenError, SinkError
from imagen.ports import Clock, Ledger, UsageSink
from imagen.service.deliveries import Turn

BATCH = 500
LOOK_SECONDS = 2.0
"""So often the ledger is asked for what is new."""
LEAVE_SECONDS = 2.0
"""A command that is done waits no longer for its sink; the next one goes on."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 300.0
"""After a failure, and after many in a row."""
_JITTER = 0.2

_log = logging.getLogger(__name__)


class Trouble(msgspec.Struct, frozen=True):
    """Why entries wait: for people, with what helps where that is known, and since when."""

    detail: str
    hint: str | None
    since: datetime


class Mirror:
    """Writes entries to a sink, in batches, oldest first. Of all processes on one store, one does so by itself.

    Args:
        ledger: has the entries, and knows which of them the sink has.
        sink: the other place; None where there is none, and then nothing is done.
        turn: tells whether this process is the one.
        clock: tells the time.
        chance: from 0.0 to 1.0, for pauses that differ.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        sink: UsageSink | None,
        turn: Turn,
        clock: Clock,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.sink = sink
        self._ledger = ledger
        self._turn = turn
        self._clock = clock
        self._chance = chance
        self._trouble: Trouble | None = None

    @property
    def trouble(self) -> Trouble | None:
        """Why entries wait; None while all is well."""
        return self._trouble

    async def waiting(self) -> int:
        """How many entries the sink does not have yet.

        Raises:
            StoreError: our own database could not be read.
        """
        return 0 if self.sink is None else await self._ledger.count_unsunk(self.sink.name)

    async def sync(self) -> int:
        """Write everything that waits; how many entries that were.

        Raises:
            SinkError: it was not taken. What was taken before stays so.
            StoreError: our own database could not be read or written.
        """
        written = 0
        while self.sink is not None and (some := await self._ledger.unsunk(self.sink.name, limit=BATCH)):
            try:
                await _write(self.sink, some)
                await self._ledger.sunk(self.sink.name, some)
            except ImagenError as error:
                self._in_trouble(error)
                raise
            self._well_again()
            written += len(some)
        return written

    async def flush(self, *, within_seconds: float = LEAVE_SECONDS) -> None:
        """Write what waits as far as the time reaches, unless another process does. Never raises for a sink that fails."""
        if self.sink is None:
            return
        try:
            if self._turn.mine():
                async with asyncio.timeout(within_seconds):
                    await self.sync()
        except (ImagenError, TimeoutError):
            return  # it was told, and is left for the next one

    async def run(self) -> None:
        """Write what waits, now and whenever there is something, until cancelled."""
        failed = 0
        while True:
            try:
                if self._turn.mine():
                    await self.sync()
                failed = 0
            except ImagenError as error:
                self._in_trouble(error)
                failed += 1
            await self._clock.sleep(pause_after(failed, chance=self._chance()) if failed else LOOK_SECONDS)

    def _in_trouble(self, error: ImagenError) -> None:
        known = self._trouble
        if known is None:
            _log.warning("entries of the ledger wait for their sink: %s", error)
        since = self._clock.now() if known is None else known.since
        self._trouble = Trouble(error.detail, error.hint, since)

    def _well_again(self) -> None:
        if self._trouble is not None:
            _log.warning("the sink takes entries of the ledger again")
        self._trouble = None


async def _write(sink: UsageSink, entries: Sequence[UsageEntry]) -> None:
    try:
        await sink.write(entries)
    except ImagenError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a library brings about, its text may hold what is secret
        raise SinkError(f"unexpected fault of the sink ({type(error).__name__})") from None


def pause_after(failures: int, *, chance: float) -> float:
    """Seconds until the next try: 1, 2, 4, … 300, each up to a fifth shorter by chance."""
    pause = min(FIRST_PAUSE_SECONDS * 2 ** min(failures - 1, 20), LONGEST_PAUSE_SECONDS)
    return float(pause * (1 - _JITTER * chance))
