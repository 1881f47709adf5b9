"""Laws of the hands: never more than there are, each item with one of them at a time, and all of them free in the end."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec.structs import replace

from fakes.batches import accepted, make_batch
from imagen.domain.batch import Batch, Control, Item, ItemStatus
from imagen.instrumentation.clock import SystemClock
from imagen.ports import Begun
from imagen.queue import local
from imagen.queue.local import LocalQueue
from imagen.store.batches import SqlBatches
from imagen.store.database import Database

WIDTH = 5


class Me:
    """An owner whom nobody contends with."""

    me = "me"

    def alive(self, _: str) -> bool:
        return False


class House:
    """Work of all kinds: it stands in line for a while or as long as its door is shut, runs, fails, rests, is broken off."""

    def __init__(self, store: SqlBatches, seed: int) -> None:
        self.store = store
        self.chance = random.Random(seed)
        self.doors: dict[str, asyncio.Event] = {}
        self.now = 0
        self.most = 0
        self.held: Counter[tuple[str, int]] = Counter()
        self.twice: list[tuple[str, int]] = []
        self.ends: Counter[tuple[str, int]] = Counter()
        self.broken_off = 0
        self.bought_paused: list[tuple[str, int]] = []

    async def work(self, batch: Batch, item: Item, begun: Begun) -> float | None:
        place = (batch.id, item.index)
        self.now += 1
        self.most = max(self.most, self.now)
        self.held[place] += 1
        if self.held[place] > 1:
            self.twice.append(place)
        try:
            return await self._worked(batch, item, begun)
        except asyncio.CancelledError:
            self.broken_off += 1
            fresh = await asyncio.shield(self.store.get(batch.id))
            if fresh.control is not Control.CANCEL:
                raise
            await self._end(item, ItemStatus.CANCELED)
            return None
        finally:
            self.now -= 1
            self.held[place] -= 1

    async def _worked(self, batch: Batch, item: Item, begun: Begun) -> float | None:
        if batch.control is Control.CANCEL:
            await self._end(item, ItemStatus.CANCELED)
            return None
        await asyncio.sleep(self.chance.random() * 0.01)
        await self.doors[batch.id].wait()
        if batch.control is Control.PAUSE:
            self.bought_paused.append((batch.id, item.index))
        begun()
        what = self.chance.random()
        await asyncio.sleep(self.chance.random() * 0.01)
        if what < 0.05:
            raise RuntimeError("a fault of ours")
        if what < 0.15:
            await self.store.requeue(item)
            return 0.02 if what < 0.1 else None
        await self._end(item, ItemStatus.SUCCEEDED)
        return None

    async def _end(self, item: Item, status: ItemStatus) -> None:
        ended = await self.store.end(replace(item, status=status, ended_at=datetime.now(UTC)))
        if ended is not None:
            self.ends[item.batch_id, item.index] += 1

    async def emptied(self, batch: Batch) -> bool:
        return await self.store.close(batch.id, at=datetime.now(UTC))


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(6))
async def test_whatever_is_wanted_each_item_ends_once_and_every_hand_comes_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    for name, seconds in (("LOOK_SECONDS", 0.02), ("_TURN_SECONDS", 0.05), ("_PAUSED_LOOK_SECONDS", 0.05)):
        monkeypatch.setattr(local, name, seconds)
    database = Database(tmp_path / "imagen.db")
    store, clock = SqlBatches(database), SystemClock()
    house, chance = House(store, seed), random.Random(-seed)
    queue = LocalQueue(batches=store, owners=Me(), clock=clock, width=WIDTH)
    working = asyncio.ensure_future(queue.run(house.work, emptied=house.emptied, takes=lambda _: True))
    made: list[tuple[Batch, int]] = []

    async def steer() -> None:
        for number in range(1, 16):
            total = chance.choice([1, 2, 7, 30])
            batch = make_batch(number, total=total)
            door = house.doors[batch.id] = asyncio.Event()
            if chance.random() < 0.6:
                door.set()
            made.append((await accepted(store, batch), total))
            queue.wake()
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(chance.random() * 0.05)
                one, _ = chance.choice(made)
                wanted = chance.choice([Control.PAUSE, Control.PAUSE, Control.RUN, Control.CANCEL])
                await store.control(one.id, wanted, at=clock.now())
                queue.wake()
        for batch, _ in made:
            house.doors[batch.id].set()
            await store.control(batch.id, Control.RUN, at=clock.now())
        queue.wake()

    try:
        await steer()
        async with asyncio.timeout(30):
            for batch, _ in made:
                while (await store.get(batch.id)).ended_at is None:  # noqa: ASYNC110 - what another task writes
                    await asyncio.sleep(0.01)
        assert house.most <= WIDTH
        assert house.twice == []
        assert house.bought_paused == []
        assert queue.busy == 0
        assert queue.in_line == 0
        lanes = queue._lanes.values()
        assert all(not (lane.standing or lane.yielding or lane.served or lane.unserved) for lane in lanes)
        assert queue._lanes[made[0][0].lane].room == WIDTH
        for batch, total in made:
            found = await store.items(batch.id, limit=100)
            assert [item.status.terminal for item in found] == [True] * total
        assert max(house.ends.values()) == 1
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        database.close()
