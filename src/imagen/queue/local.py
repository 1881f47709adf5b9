"""Work of one machine: this process takes batches that no living one works on, and hands out their items in turn.

Whose a batch is stands in the database, as the name of a process; whether that lives, a file lock tells. So the work of
a process that was killed is taken over by the next that looks, and by one only.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from msgspec.structs import replace

from imagen.domain.batch import Batch, Control, Item
from imagen.domain.limits import Lane
from imagen.errors import NotFound, StoreError
from imagen.ports import BatchStore, Clock, Give, OpenWork, Owners, Work

LOOK_SECONDS = 1.0
"""How often the wishes of other processes, and batches that were left behind, are looked for."""
_PAUSED_LOOK_SECONDS = 15.0
"""How often what is left to finish of a paused batch is tried again."""
_MOST_REST_SECONDS = 60.0
_CLAIMED_AT_ONCE = 64
_TAKEN_AT_ONCE = 64
"""So many batches are taken before items are handed out again."""
_MOST_SINGLES = 5000
"""Predictions that somebody asked for by themselves wait behind no batch, but not without end."""

_TURN_SECONDS = 5.0
"""So long an item may stand in line while a batch waits of which none does."""
_TURNS_AT_ONCE = 16
"""So many give way with each look after that."""

Emptied = Callable[[Batch], Awaitable[bool]]

_log = logging.getLogger(__name__)


class _Held:
    """A batch that this process works on.

    Attributes:
        claimed: items that wait here for a free hand; running: those that are worked on.
        in_line: those of them that have not begun, by index, with the clock's seconds of when they were handed out; in the
            order of that.
        dropped: items whose work was broken off, to be queued again; faulted: the same, at the next look.
        exhausted: nothing was left to claim when it was last asked.
        settled: `emptied` was told, and nothing has happened since.
        finished_at: the clock's seconds when what a paused one had left was tried last.
        faults: so often in turn something unexpected came of it.
        rests_until: it is left alone until then, for a fault or as its work asked for that.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.claimed: deque[Item] = deque()
        self.running: dict[int, asyncio.Task[float | None]] = {}
        self.in_line: dict[int, float] = {}
        self.dropped: list[Item] = []
        self.faulted: list[Item] = []
        self.exhausted = False
        self.settled = False
        self.finished_at = float("-inf")
        self.faults = 0
        self.rests_until = float("-inf")

    @property
    def last_came(self) -> float:
        """When the last of those that stand in line was handed out. At least one does."""
        return self.in_line[next(reversed(self.in_line))]

    @property
    def empty(self) -> bool:
        """Whether nothing of it waits or is worked on here."""
        return self.exhausted and not (self.claimed or self.running or self.dropped or self.faulted)


class _Lane:
    """The hands of one lane, and the batches that wait for one.

    Attributes:
        room: hands that are free.
        going: batches that may have something to hand out and of which no item stands in line, as the last has begun: they
            go first, as they can go on.
        unserved: those of which none stands in line for another reason: they go next.
        served: the others that may have something to hand out. All three are in the order in which they go.
        standing: batches of which items stand in line.
        yielding: items that were broken off so that a batch gets a hand of which none stands in line.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.going: dict[_Held, None] = {}
        self.unserved: dict[_Held, None] = {}
        self.served: dict[_Held, None] = {}
        self.standing: dict[_Held, None] = {}
        self.yielding: set[asyncio.Task[float | None]] = set()
        self._turned_at = float("-inf")

    def add(self, held: _Held) -> None:
        """It may have something to hand out: it goes after all others of its kind."""
        if held.in_line:
            self.discard(held)
            self.served[held] = None
        elif held not in self.going:
            self.served.pop(held, None)
            self.unserved.setdefault(held)

    def discard(self, held: _Held) -> None:
        """It has nothing to hand out."""
        for those in (self.going, self.unserved, self.served):
            those.pop(held, None)

    def next(self) -> _Held | None:
        """Whose turn it is, while there is a hand for it."""
        ready = self.going or self.unserved or self.served
        if not ready or self.room <= 0:
            return None
        held = next(iter(ready))
        del ready[held]
        return held

    def joins(self, held: _Held, index: int, now: float) -> None:
        """An item begins to stand in line."""
        held.in_line.pop(index, None)  # put back and begun again, it is the last to come
        held.in_line[index] = now
        self.standing[held] = None

    def leaves(self, held: _Held, index: int, *, begun: bool = False) -> bool:
        """An item stands in line no more; whether none of its batch does by that, which wants another hand."""
        held.in_line.pop(index, None)
        if held.in_line:
            return False
        self.standing.pop(held, None)
        if held not in self.served:
            return False
        del self.served[held]
        (self.going if begun else self.unserved)[held] = None
        return True

    def give_way(self, now: float) -> None:
        """Without a free hand, have items broken off that stand in line, one for each batch of which none does.

        Of the batch with the most the last one goes. Where none has more than one, the last to come gives way after a
        turn: who came first is the first to be let in.
        """
        wanted = 0 if self.room > 0 else len(self.going) + len(self.unserved) - len(self.yielding)
        if wanted <= 0:
            return
        # What is being canceled ends by itself.
        able = [held for held in self.standing if held.batch.control is not Control.CANCEL]
        while wanted and able:
            most = max(able, key=lambda held: len(held.in_line))
            if len(most.in_line) < 2:
                break
            self._break_off(most)
            wanted -= 1
        if wanted and now - self._turned_at >= LOOK_SECONDS:
            self._turned_at = now
            old = [held for held in able if held.last_came <= now - _TURN_SECONDS]
            old.sort(key=lambda held: held.last_came, reverse=True)
            for held in old[: min(wanted, _TURNS_AT_ONCE)]:
                self._break_off(held)

    def _break_off(self, held: _Held) -> None:
        index = next(reversed(held.in_line))
        task = held.running[index]
        self.leaves(held, index)
        self.yielding.add(task)
        task.cancel()


class LocalQueue:
    """`ports.WorkQueue` for the processes of one machine.

    What one wake costs depends on what has changed, not on how many batches are held. No batch keeps all hands by
    standing in line: one of which no item does gets the next hand, if need be one of those of the others.

    Args:
        batches: has them.
        owners: tells the living from the dead.
        clock: tells the time.
        width: so many items of batches are worked on at once; most of them stand in line.
    """

    def __init__(
        self,
        *,
        batches: BatchStore,
        owners: Owners,
        clock: Clock,
        width: int,
    ) -> None:
        self._takes: Callable[[Batch], bool] = lambda _: False
        self._batches = batches
        self._owners = owners
        self._clock = clock
        self._lanes = {lane: _Lane(width if lane is Lane.BATCH else _MOST_SINGLES) for lane in Lane}
        self._held: dict[str, _Held] = {}
        self._tasks: dict[asyncio.Task[float | None], tuple[_Held, Item, Control]] = {}
        self._when_done = self._ended  # one for all: each bound method is an object
        # Ordered sets of batches: those that may be empty, and those that have dropped items.
        self._quiet: dict[str, _Held] = {}
        self._dropping: dict[str, _Held] = {}
        self._passed_over: dict[str, Batch | None] = {}
        self._reserved: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._asked = True
        self._looked_at = float("-inf")
        self._runs = self._stopped = False

    @property
    def busy(self) -> int:
        """How many items are being worked on now, or were broken off and are still to be queued again."""
        return len(self._tasks) + sum(len(held.dropped) for held in self._dropping.values())

    @property
    def in_line(self) -> int:
        """How many of the items that are worked on have not begun."""
        return sum(len(held.in_line) for lane in self._lanes.values() for held in lane.standing)

    def wake(self) -> None:
        """See the port."""
        self._asked = True
        self._changed.set()

    def takes(self, batch: Batch) -> bool:
        """Whether this process takes a batch that nobody works on."""
        return self._runs and not self._stopped and self._takes(batch)

    @contextmanager
    def reserved(self, batch: Batch) -> Iterator[Give | None]:
        """See the port."""
        room = min(self._lanes[batch.lane].room - sum(self._reserved.values()), _CLAIMED_AT_ONCE)
        if batch.total > room or not self.takes(batch):
            yield None
            return
        self._reserved[batch.id] = batch.total
        try:
            yield self._give
        finally:
            del self._reserved[batch.id]

    def _give(self, batch: Batch, items: Sequence[Item]) -> None:
        held = self._hold(batch)
        held.claimed.extend(items)
        held.exhausted = True
        self._changed.set()

    def stop(self) -> None:
        """Begin nothing more; what is being worked on goes on."""
        self._stopped = True
        self._changed.set()

    async def run(self, work: Work, *, emptied: Emptied, takes: Callable[[Batch], bool]) -> None:
        """See the port. Cancelled, it lets go of all its batches, and others may take them."""
        self._takes = takes
        self._runs = True
        steps = (self._look, self._requeue, partial(self._hand_out, work), partial(self._settle, emptied))
        try:
            while True:
                self._changed.clear()
                for step in steps:
                    try:
                        await step()
                    except StoreError as error:
                        _log.warning("work waits for the database: %s", error.detail)
                        break
                    except Exception as error:  # noqa: BLE001 - one fault must not end all work
                        _tell_fault("handing out work", error)
                await self._pause()
        finally:
            self._runs = False
            await asyncio.shield(self._let_go())

    # --- looking -----------------------------------------------------------------------------------------

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await self._changed.wait()
        except TimeoutError:
            return

    async def _look(self) -> None:
        """What is wanted of the batches here, and which others nobody works on."""
        now = self._clock.monotonic()
        if not self._asked and now - self._looked_at < LOOK_SECONDS:
            return
        self._asked, self._looked_at = False, now
        here = list(self._held.values())  # what is given while we look is not among what is found
        found = {one.batch_id: one for one in await self._batches.open_work()}
        for held in here:
            one = found.get(held.batch.id)
            if one is None or one.owner != self._owners.me:
                self._forget(held)  # it has ended, or somebody else has it
                _break_off(held.running.values())
            else:
                await self._apart(held, self._see(held, one))
        if not self._stopped:
            await self._take_what_is_left(found)

    async def _see(self, held: _Held, one: OpenWork) -> None:
        """See it as it is wanted now, and look again for what it has to do."""
        now = self._clock.monotonic()
        steered = one.control is not held.batch.control
        if steered or one.sealed_token != held.batch.sealed_token:
            fresh = await self._batches.get(held.batch.id)
            steered = fresh.control is not held.batch.control
            if steered and self._takes(held.batch) and not self._takes(fresh):
                await self._leave(held)  # taken for what was wanted then, and for nothing else
                return
            if steered:
                await self._steer(held, fresh.control)
                # Whoever steers it has mended what was wrong, or wants its end.
                held.rests_until = float("-inf")
            held.batch = fresh  # not before: what fails is to be done once more
        if held.faulted:
            held.dropped += held.faulted
            held.faulted.clear()
            self._dropping[held.batch.id] = held
        if now < held.rests_until:
            return
        paused = held.batch.control is Control.PAUSE
        if steered or (one.waits and not (paused and now - held.finished_at < _PAUSED_LOOK_SECONDS)):
            held.exhausted = False
            held.finished_at = now
        if held.claimed or not held.exhausted:
            self._lanes[held.batch.lane].add(held)
        if not one.left:
            # Known without a claim, which whoever begins nothing more does not make.
            held.exhausted = True
            held.settled = False
            self._quiet[held.batch.id] = held

    async def _steer(self, held: _Held, wanted: Control) -> None:
        """Do what is wanted of it since now. What was claimed and not begun is queued again."""
        if wanted is Control.RUN:
            return
        await self._put_back(held)
        if wanted is Control.CANCEL:
            await self._batches.cancel_queued(held.batch.id, at=self._clock.now())
            _break_off(held.running.values())  # each item is canceled and ended by its worker
            return
        # Let in later, what stands in line would be bought after the pause.
        _break_off([held.running[index] for index in held.in_line])

    async def _leave(self, held: _Held) -> None:
        """Let go of it in the middle: others may take it."""
        self._forget(held)
        _break_off(held.running.values())
        await self._batches.release(held.batch.id, owner=self._owners.me)

    async def _take_what_is_left(self, found: dict[str, OpenWork]) -> None:
        """Take what nobody works on, as far as it is for us; the rest with the next turn."""
        self._passed_over = {one: batch for one, batch in self._passed_over.items() if one in found}
        alive: dict[str, bool] = {self._owners.me: False}
        taken = 0
        for one in found.values():
            if one.batch_id in self._held or one.batch_id in self._reserved:
                continue
            if one.owner is not None and one.owner not in alive:
                alive[one.owner] = self._owners.alive(one.owner)
            if one.owner is not None and alive[one.owner]:
                continue
            if taken == _TAKEN_AT_ONCE:
                self.wake()
                return
            taken += await self._take(one)

    async def _take(self, one: OpenWork) -> bool:
        known = self._passed_over.get(one.batch_id)
        read_before = known is not None
        if one.batch_id not in self._passed_over or (known is not None and _has_changed(known, one)):
            try:
                self._passed_over[one.batch_id] = await self._batches.get(one.batch_id)
            except NotFound:
                return False
            except StoreError:
                raise
            except Exception as error:  # noqa: BLE001 - a damaged row keeps nobody from the others
                _tell_fault(one.batch_id, error)
                self._passed_over[one.batch_id] = None
        batch = self._passed_over[one.batch_id]
        if batch is None or not self._takes(batch):
            return False
        if await self._batches.take(one.batch_id, owner=self._owners.me, was=one.owner):
            del self._passed_over[one.batch_id]
            # Steered since it was read just now, it is seen so with the next look, and nothing of it is claimed before.
            taken = (
                await self._batches.get(one.batch_id)
                if read_before
                else replace(batch, owner=self._owners.me)
            )
            self._hold(taken)
        return True

    def _hold(self, batch: Batch) -> _Held:
        held = self._held[batch.id] = _Held(batch)
        held.finished_at = self._clock.monotonic()
        self._lanes[batch.lane].add(held)
        return held

    async def _apart(self, held: _Held, step: Awaitable[None]) -> bool:
        """Do a step of one batch; False when it failed: then it rests, and the others have their turns."""
        try:
            await step
        except Exception as error:
            held.faults += 1
            self._lanes[held.batch.lane].discard(held)
            self._held[held.batch.id] = self._held.pop(held.batch.id)  # after all others
            if isinstance(error, StoreError):
                raise
            pause = min(LOOK_SECONDS * 2 ** min(held.faults, 10), _MOST_REST_SECONDS)
            held.rests_until = self._clock.monotonic() + pause
            _tell_fault(held.batch.id, error)
            return False
        held.faults = 0
        return True

    # --- handing out -------------------------------------------------------------------------------------

    async def _hand_out(self, work: Work) -> None:
        """Fill the free hands, with one item of each batch in turn."""
        for lane in self._lanes.values():
            while not self._stopped and (held := lane.next()) is not None:
                if self._clock.monotonic() < held.rests_until:
                    continue  # it is looked at again when that is over
                if not (held.claimed or held.exhausted) and not await self._apart(held, self._claim(held)):
                    continue
                if self._stopped:
                    break
                if held.claimed:
                    self._begin(held, held.claimed.popleft(), work)
                    lane.add(held)
                else:
                    self._quiet[held.batch.id] = held
            if not self._stopped:
                lane.give_way(self._clock.monotonic())
        if self._stopped:
            for held in list(self._held.values()):
                await self._put_back(held)

    async def _claim(self, held: _Held) -> None:
        found = await self._batches.claim(
            held.batch.id,
            owner=self._owners.me,
            limit=_CLAIMED_AT_ONCE,
            to_finish=held.batch.control is not Control.RUN,
        )
        held.claimed.extend(found)
        held.exhausted = len(found) < _CLAIMED_AT_ONCE

    def _begin(self, held: _Held, item: Item, work: Work) -> None:
        held.settled = False
        lane = self._lanes[held.batch.lane]
        begun = partial(self._begun, held, item.index)
        task = asyncio.get_running_loop().create_task(work(held.batch, item, begun))
        held.running[item.index] = task
        self._tasks[task] = held, item, held.batch.control
        lane.room -= 1
        lane.joins(held, item.index, self._clock.monotonic())
        task.add_done_callback(self._when_done)

    def _begun(self, held: _Held, index: int) -> None:
        if self._lanes[held.batch.lane].leaves(held, index, begun=True):
            self._changed.set()

    def _ended(self, done: asyncio.Task[float | None]) -> None:
        held, item, control = self._tasks.pop(done)
        lane = self._lanes[held.batch.lane]
        lane.room += 1
        lane.yielding.discard(done)
        if held.running.get(item.index) is done:  # put back, it may have been begun again by now
            del held.running[item.index]
            lane.leaves(held, item.index)
        error = None if done.cancelled() else done.exception()
        if error is not None:
            _tell_fault(f"item {item.index} of {held.batch.id}", error)
        if self._held.get(held.batch.id) is held:
            if done.cancelled():
                held.dropped.append(item)
                self._dropping[held.batch.id] = held
            elif error is not None:
                held.faulted.append(item)
            elif (seconds := done.result()) is not None and held.batch.control is control:
                self._rest(held, seconds)
            if not held.running:
                self._quiet[held.batch.id] = held
        self._changed.set()

    def _rest(self, held: _Held, seconds: float) -> None:
        """Leave a batch alone for so long; what was claimed of it and not begun is queued again."""
        held.rests_until = max(held.rests_until, self._clock.monotonic() + seconds)
        held.exhausted = False
        held.dropped += held.claimed
        held.claimed.clear()
        self._dropping[held.batch.id] = held

    async def _put_back(self, held: _Held) -> None:
        """Queue again what was claimed and not begun."""
        if held.claimed:
            await self._queue_again(list(held.claimed))
            held.claimed.clear()

    async def _requeue(self) -> None:
        """Queue again what was broken off and has not ended, so that somebody works on it."""
        for held in list(self._dropping.values()):
            here = held.running.keys() | {item.index for item in held.claimed}
            dropped = list(held.dropped)
            await self._queue_again([item for item in dropped if item.index not in here])
            del held.dropped[: len(dropped)]
            if not held.dropped:  # others may have been broken off meanwhile
                self._dropping.pop(held.batch.id, None)
            held.exhausted = False
            self._lanes[held.batch.lane].add(held)

    async def _queue_again(self, items: Sequence[Item]) -> None:
        """All in one: the database writes together what waits together."""
        await asyncio.gather(*(self._batches.requeue(item) for item in items))

    # --- ends --------------------------------------------------------------------------------------------

    async def _settle(self, emptied: Emptied) -> None:
        """Tell of batches in which nothing is left to do here."""
        quiet, self._quiet = self._quiet, {}
        for held in quiet.values():
            if held.empty and not held.settled and self._held.get(held.batch.id) is held:
                held.settled = True
                await self._apart(held, self._tell_emptied(held, emptied))

    async def _tell_emptied(self, held: _Held, emptied: Emptied) -> None:
        if await emptied(held.batch):
            self._forget(held)

    def _forget(self, held: _Held) -> None:
        self._lanes[held.batch.lane].discard(held)
        for those in (self._held, self._quiet, self._dropping):
            those.pop(held.batch.id, None)

    async def _let_go(self) -> None:
        _break_off(self._tasks)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._held:  # what was being accepted may be given while others are let go of
            here = list(self._held.values())
            released = await asyncio.gather(
                *(self._batches.release(held.batch.id, owner=self._owners.me) for held in here),
                return_exceptions=True,
            )
            for held, error in zip(here, released, strict=True):
                if error is not None:
                    _log.debug("%s is let go of with the process: %s", held.batch.id, type(error).__name__)
                self._forget(held)


def _has_changed(known: Batch, one: OpenWork) -> bool:
    """Whether it may be for us by now: what is wanted of it, or its token, is not what it was."""
    return known.sealed_token != one.sealed_token or known.control is not one.control


def _break_off(tasks: Iterable[asyncio.Task[float | None]]) -> None:
    for task in list(tasks):
        task.cancel()


def _tell_fault(what: str, error: BaseException) -> None:
    _log.error("%s: unexpected %s", what, type(error).__name__)
    _log.debug("the trace of %s", what, exc_info=error)
