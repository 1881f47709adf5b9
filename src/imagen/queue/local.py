"""Work of one machine: this process takes batches that no living one works on, and hands out their items in turn.

Whose a batch is stands in the database, as the name of a process; whether that lives, a file lock tells. So the work of
a process that was killed is taken over by the next that looks, and by one only.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator

from imagen.domain.batch import Batch, Control, Item
from imagen.domain.limits import Lane
from imagen.errors import NotFound, StoreError
from imagen.ports import BatchStore, Clock, Owners

LOOK_SECONDS = 1.0
"""How often the wishes of other processes, and batches that were left behind, are looked for."""
_PAUSED_LOOK_SECONDS = 15.0
"""How often a paused batch is looked through for what was bought before the pause, and is not finished."""
_CLAIMED_AT_ONCE = 64
_MOST_SINGLES = 5000
"""Predictions that somebody asked for by themselves wait behind no batch, but not without end."""

Work = Callable[[Batch, Item], Awaitable[None]]
Emptied = Callable[[Batch], Awaitable[None]]

_log = logging.getLogger(__name__)


class _Held:
    """A batch that this process works on.

    Attributes:
        claimed: items that wait here for a free hand; running: those that are worked on.
        exhausted: nothing was left to claim when it was last asked.
        settled: `emptied` was told, and nothing has happened since.
        refreshed: the clock's seconds when these two were last doubted.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.claimed: deque[Item] = deque()
        self.running: dict[int, asyncio.Task[None]] = {}
        self.exhausted = False
        self.settled = False
        self.refreshed = 0.0

    @property
    def empty(self) -> bool:
        """Whether nothing of it waits or is worked on here."""
        return self.exhausted and not (self.claimed or self.running)


class LocalQueue:
    """`ports.WorkQueue` for the processes of one machine.

    Args:
        batches: has them.
        owners: tells the living from the dead.
        clock: tells the time.
        width: so many items of batches are worked on at once; most of them stand in line.
        takes: whether this process may work on a batch that nobody works on.
    """

    def __init__(
        self,
        *,
        batches: BatchStore,
        owners: Owners,
        clock: Clock,
        width: int,
        takes: Callable[[Batch], bool],
    ) -> None:
        self.takes = takes
        self._batches = batches
        self._owners = owners
        self._clock = clock
        self._width = width
        self._held: dict[str, _Held] = {}
        self._changed = asyncio.Event()
        self._asked = True
        self._stopped = False

    @property
    def busy(self) -> int:
        """How many items are being worked on now."""
        return sum(len(held.running) for held in self._held.values())

    def holds(self, batch_id: str) -> bool:
        """Whether this process works on that batch."""
        return batch_id in self._held

    def wake(self) -> None:
        """See the port."""
        self._asked = True
        self._changed.set()

    def stop(self) -> None:
        """Begin nothing more; what is being worked on goes on."""
        self._stopped = True
        self._changed.set()

    async def run(self, work: Work, *, emptied: Emptied) -> None:
        """See the port. Cancelled, it lets go of all its batches, and others may take them."""
        looked = float("-inf")
        try:
            while True:
                self._changed.clear()
                try:
                    if self._asked or self._clock.monotonic() - looked >= LOOK_SECONDS:
                        self._asked, looked = False, self._clock.monotonic()
                        await self._look()
                    await self._hand_out(work)
                    await self._settle(emptied)
                except StoreError as error:
                    _log.warning("work waits for the database: %s", error.detail)
                await self._pause()
        finally:
            await asyncio.shield(self._let_go())

    # --- the steps ---------------------------------------------------------------------------------------

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await self._changed.wait()
        except TimeoutError:
            return

    async def _look(self) -> None:
        """What is wanted of the batches here, and which others nobody works on."""
        found = {batch.id: batch for batch in await self._batches.open()}
        for held in list(self._held.values()):
            batch = found.get(held.batch.id)
            if batch is None or batch.owner != self._owners.me:
                self._break_off(self._held.pop(held.batch.id))  # it has ended, or somebody else has it
                continue
            self._refresh(held, batch)
            if batch.control is Control.CANCEL:
                await self._put_back(held)
                self._break_off(held)
                # What was claimed when it was canceled is queued only now.
                await self._batches.control(batch.id, Control.CANCEL, at=self._clock.now())
            elif batch.control is Control.PAUSE:
                await self._put_back(held)
        if not self._stopped:
            for batch in found.values():
                if batch.id not in self._held and self.takes(batch):
                    await self._take(batch)

    def _refresh(self, held: _Held, batch: Batch) -> None:
        """See it as it is wanted now. What is paused has something left to finish only now and then."""
        now = self._clock.monotonic()
        steered = batch.control is not held.batch.control
        if steered or batch.control is not Control.PAUSE or now - held.refreshed >= _PAUSED_LOOK_SECONDS:
            held.exhausted, held.settled, held.refreshed = False, False, now
        held.batch = batch

    async def _take(self, batch: Batch) -> None:
        was = batch.owner
        if was is not None and was != self._owners.me and self._owners.alive(was):
            return
        if await self._batches.take(batch.id, owner=self._owners.me, was=was):
            self._held[batch.id] = _Held(await self._batches.get(batch.id))

    async def _put_back(self, held: _Held) -> None:
        """Queue again what was claimed and not begun."""
        while held.claimed:
            await self._batches.requeue(held.claimed[-1])
            held.claimed.pop()

    async def _hand_out(self, work: Work) -> None:
        """Fill the free hands, with one item of each batch in turn."""
        turns = deque(self._held.values())
        while turns and not self._stopped:
            held = turns.popleft()
            if not self._has_room(held.batch.lane):
                continue
            if not held.claimed and not held.exhausted:
                held.claimed.extend(
                    await self._batches.claim(
                        held.batch.id,
                        owner=self._owners.me,
                        limit=_CLAIMED_AT_ONCE,
                        to_finish=held.batch.control is not Control.RUN,
                    )
                )
                held.exhausted = not held.claimed
            if held.claimed:
                self._begin(held, held.claimed.popleft(), work)
                turns.append(held)

    def _has_room(self, lane: Lane) -> bool:
        busy = sum(len(held.running) for held in self._of(lane))
        return busy < (self._width if lane is Lane.BATCH else _MOST_SINGLES)

    def _of(self, lane: Lane) -> Iterator[_Held]:
        return (held for held in self._held.values() if held.batch.lane is lane)

    def _begin(self, held: _Held, item: Item, work: Work) -> None:
        held.settled = False
        task = asyncio.get_running_loop().create_task(_awaited(work, held.batch, item))
        held.running[item.index] = task

        def ended(done: asyncio.Task[None]) -> None:
            if held.running.get(item.index) is done:  # put back, it may have been begun again by now
                del held.running[item.index]
            self._changed.set()
            if not done.cancelled() and (error := done.exception()) is not None:
                _log.error("item %d of %s: unexpected %s", item.index, held.batch.id, type(error).__name__)

        task.add_done_callback(ended)

    async def _settle(self, emptied: Emptied) -> None:
        """Tell of batches in which nothing is left to do here."""
        for held in list(self._held.values()):
            if not held.empty or held.settled:
                continue
            held.settled = True
            await emptied(held.batch)
            try:
                ended = (await self._batches.get(held.batch.id)).ended_at is not None
            except NotFound:
                ended = True
            if ended:
                self._held.pop(held.batch.id, None)

    def _break_off(self, held: _Held) -> None:
        """Stop working on it; in a batch that is to be canceled, each item is canceled and ended by its worker."""
        held.claimed.clear()
        for task in held.running.values():
            task.cancel()

    async def _let_go(self) -> None:
        tasks = [task for held in self._held.values() for task in held.running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for batch_id in list(self._held):
            try:
                await self._batches.release(batch_id, owner=self._owners.me)
            except StoreError as error:
                _log.debug("%s is let go of with the process: %s", batch_id, error.code)
        self._held.clear()


async def _awaited(work: Work, batch: Batch, item: Item) -> None:
    await work(batch, item)
