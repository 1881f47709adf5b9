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
_REFUSED_HINT = "`imagen sink sync` offers them again, once the table takes them."

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
        self._refusal: Trouble | None = None

    @property
    def trouble(self) -> Trouble | None:
        """Why entries wait: that the sink is away, else what it refused since we look; None while all is well."""
        return self._trouble or self._refusal

    async def waiting(self) -> int:
        """How many entries the sink does not have yet.

        Raises:
            StoreError: our own database could not be read.
        """
        return 0 if self.sink is None else await self._ledger.count_unsunk(self.sink.name)

    async def refused(self) -> int:
        """How many of those that wait are passed over, since the sink refuses them.

        Raises:
            StoreError: our own database could not be read.
        """
        return 0 if self.sink is None else await self._ledger.count_refused(self.sink.name)

    async def sync(self) -> int:
        """Write everything that waits, with what was refused before; how many entries that were.

        Raises:
            SinkError: it was not taken, or not all of it. What was taken stays so.
            StoreError: our own database could not be read or written.
        """
        if self.sink is None:
            return 0
        try:
            await self._ledger.offer_again(self.sink.name)
            passed_over, written = await self._catch_up(self.sink)
        except ImagenError as error:
            self._note(error)  # whoever asked tells it
            raise
        self._refusal = None
        if passed_over is not None:
            self._note(passed_over)
            raise SinkError(f"{passed_over.detail}; {written} written", hint=passed_over.hint, unfit=True)
        return written

    async def _catch_up(self, sink: UsageSink) -> tuple[SinkError | None, int]:
        """Write what waits, without what was refused before; why the last one was refused, and how many were written."""
        written, refused = 0, 0
        last: SinkError | None = None
        while some := await self._ledger.unsunk(sink.name, limit=BATCH):
            for error in await self._offer(sink, some):
                last, refused = error, refused + 1
            written += len(some)
        if last is not None:
            many = "1 entry was" if refused == 1 else f"{refused} entries were"
            last = SinkError(
                f"{many} refused and passed over: {last.detail}", hint=last.hint or _REFUSED_HINT, unfit=True
            )
        return last, written - refused

    async def _offer(self, sink: UsageSink, entries: Sequence[UsageEntry]) -> list[SinkError]:
        """Write these. Of a batch that is refused the halves are tried, until what does not fit is alone.

        Returns:
            Why single ones were refused.

        Raises:
            SinkError: the sink is away. What was taken before stays so.
        """
        try:
            await _write(sink, entries)
        except SinkError as error:
            if not error.unfit:
                raise
            if len(entries) == 1:
                await self._ledger.refused(sink.name, entries)
                return [SinkError(f"{entries[0].id}: {error.detail}", hint=error.hint, unfit=True)]
            half = len(entries) // 2
            return [*await self._offer(sink, entries[:half]), *await self._offer(sink, entries[half:])]
        await self._ledger.sunk(sink.name, entries)
        self._well_again()
        return []

    async def flush(self, *, within_seconds: float = LEAVE_SECONDS) -> None:
        """Write what waits as far as the time reaches, unless another process does. Never raises for a sink that fails."""
        if self.sink is None:
            return
        try:
            if self._turn.mine():
                async with asyncio.timeout(within_seconds):
                    self._tell((await self._catch_up(self.sink))[0])
        except ImagenError as error:
            self._tell(error)  # and it is left for the next one
        except TimeoutError:
            return

    async def run(self) -> None:
        """Write what waits, now and whenever there is something, until cancelled. What was refused is offered again once."""
        failed, again = 0, True
        while True:
            try:
                if self.sink is not None and self._turn.mine():
                    if again:
                        await self._ledger.offer_again(self.sink.name)
                    again = False
                    self._tell((await self._catch_up(self.sink))[0])
                    if self._refusal is not None and not await self.refused():
                        self._refusal = None  # somebody had them written
                failed = 0
            except ImagenError as error:
                self._tell(error)
                failed += 1
            await self._clock.sleep(pause_after(failed, chance=self._chance()) if failed else LOOK_SECONDS)

    def _tell(self, error: ImagenError | None) -> None:
        """Say in the log why entries wait: of an outage once, of those that are refused whenever there are more."""
        if error is None:
            return
        if self._trouble is None or (isinstance(error, SinkError) and error.unfit):
            _log.warning("entries of the ledger wait for their sink: %s", error)
        self._note(error)

    def _note(self, error: ImagenError) -> None:
        if isinstance(error, SinkError) and error.unfit:
            self._refusal = Trouble(error.detail, error.hint, self._clock.now())
        else:
            since = self._clock.now() if self._trouble is None else self._trouble.since
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
    except UnicodeError:
        raise SinkError("it holds text that cannot be written as UTF-8", unfit=True) from None
    except Exception as error:  # noqa: BLE001 - whatever a library brings about, its text may hold what is secret
        raise SinkError(f"unexpected fault of the sink ({type(error).__name__})") from None


def pause_after(failures: int, *, chance: float) -> float:
    """Seconds until the next try: 1, 2, 4, … 300, each up to a fifth shorter by chance."""
    pause = min(FIRST_PAUSE_SECONDS * 2 ** min(failures - 1, 20), LONGEST_PAUSE_SECONDS)
    return float(pause * (1 - _JITTER * chance))
