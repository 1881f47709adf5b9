"""Hands: no batch keeps them all by standing in line, whatever it is that its items wait for."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from gateway import ADMIN, RunningGateway, running_gateway

from fakes.batches import accepted as accepted_by
from fakes.batches import make_batch
from imagen.assembly import App
from imagen.domain.batch import Batch, BatchStatus, Control, Item
from imagen.emulator import EmulatorThread
from imagen.ports import Begun
from imagen.queue import local
from imagen.queue.local import LocalQueue
from imagen.store.batches import SqlBatches
from waiting import until

pytestmark = pytest.mark.anyio


async def post_batch(
    gateway: RunningGateway, word: str, count: int, *, headers: Any = ADMIN, **each: Any
) -> str:
    tasks = [{"prompt": f"{word} {number}"} | each for number in range(count)]
    taken = await gateway.request(
        "POST", "/batches", headers=headers, json={"model_name": "flux-schnell", "tasks": tasks}
    )
    assert taken.status == 202, taken.body
    return str(taken.json()["id"])


@pytest.mark.parametrize("count", [6, 300])
async def test_a_batch_on_a_full_semaphore_keeps_no_other_waiting(
    tmp_path: Path, replicate_emulator: EmulatorThread, count: int
) -> None:
    async with running_gateway(tmp_path, replicate_emulator, REPLICATE_CONCURRENT_LIMIT="2") as gateway:
        await gateway.request(
            "POST", "/global-semaphores", headers=ADMIN, json={"semaphore_id": "gpu", "limit": 1}
        )
        lease = await gateway.request(
            "POST", "/global-semaphores/gpu/leases", headers=ADMIN, json={"ttl": 3600}
        )
        stuck = await post_batch(gateway, "a fox", count, external_semaphore_id="gpu")
        await until(lambda: gateway.app.queue.in_line == min(count, 8))
        other = await post_batch(gateway, "a hen", 12)
        async with asyncio.timeout(15):
            assert (await gateway.app.batches.ended(other)).tally.succeeded == 12
        assert replicate_emulator.purchases == 12
        # What was broken off lost nothing by it: it goes when there is room.
        await gateway.request(
            "DELETE", f"/global-semaphores/gpu/leases/{lease.json()['lease_id']}", headers=ADMIN
        )
        if count > 50:
            await until(lambda: replicate_emulator.purchases >= 14)
            await gateway.request("POST", f"/batches/{stuck}/cancel", headers=ADMIN)
        async with asyncio.timeout(15):
            view = await gateway.app.batches.ended(stuck)
    assert view.tally.ended == count
    assert view.status is (BatchStatus.CANCELED if count > 50 else BatchStatus.SUCCEEDED)


@pytest.mark.replicate_emulator(run_seconds=0.5)
async def test_a_batch_of_a_key_that_may_do_one_thing_at_a_time_slows_no_other_down(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator, REPLICATE_CONCURRENT_LIMIT="4") as gateway:
        made = await gateway.request("POST", "/keys", headers=ADMIN, json={"name": "slow", "concurrent": 1})
        await post_batch(gateway, "a fox", 60, headers={"X-API-Key": made.json()["key"]})
        await until(lambda: replicate_emulator.purchases >= 1)
        before = replicate_emulator.purchases
        other = await post_batch(gateway, "a hen", 9)
        async with asyncio.timeout(30):
            await gateway.app.batches.ended(other)
        beside = replicate_emulator.purchases - before - 9
    # Three at a time beside the one take three rounds, or a few more. One at a time they would take nine.
    assert beside < 7


# --- the queue alone -----------------------------------------------------------------------------------------


class Me:
    """An owner whom nobody contends with."""

    me = "me"

    def alive(self, _: str) -> bool:
        return False


class Line:
    """Work that stands in line until its batch is let in, and then takes no time."""

    def __init__(self, store: SqlBatches) -> None:
        self._store = store
        self.doors: dict[str, asyncio.Event] = {}
        self.standing: Counter[str] = Counter()
        self.most = 0
        self.ended: Counter[str] = Counter()

    def door(self, batch_id: str) -> asyncio.Event:
        return self.doors.setdefault(batch_id, asyncio.Event())

    async def work(self, batch: Batch, item: Item, begun: Begun) -> None:
        self.standing[batch.id] += 1
        self.most = max(self.most, self.standing.total())
        try:
            await self.door(batch.id).wait()
        finally:
            self.standing[batch.id] -= 1
        begun()
        self.ended[batch.id] += 1

    async def emptied(self, _: Batch) -> bool:
        return True


@asynccontextmanager
async def handed_out(app: App, *, width: int) -> AsyncIterator[tuple[SqlBatches, Line, LocalQueue]]:
    store = SqlBatches(app.database)
    line = Line(store)
    queue = LocalQueue(batches=store, owners=Me(), clock=app.clock, width=width)
    working = asyncio.ensure_future(queue.run(line.work, emptied=line.emptied, takes=lambda _: True))
    try:
        yield store, line, queue
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def test_with_more_batches_than_hands_each_has_its_turn(
    open_app: Callable[..., App], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_TURN_SECONDS", 0.2)
    monkeypatch.setattr(local, "LOOK_SECONDS", 0.1)
    async with open_app() as app, handed_out(app, width=4) as (store, line, queue):
        stuck = [await accepted_by(store, make_batch(number, total=1)) for number in range(1, 11)]
        queue.wake()
        await until(lambda: line.standing.total() == 4)
        free = await accepted_by(store, make_batch(20, total=40))
        line.door(free.id).set()
        queue.wake()
        await until(lambda: line.ended[free.id] == 40, within=8)
        for batch in stuck:
            line.door(batch.id).set()
        await until(lambda: len(line.ended) == 11)
    assert line.most <= 4
    assert line.ended == {batch.id: 1 for batch in stuck} | {free.id: 40}


async def test_who_stands_alone_has_all_hands_and_shares_them_when_another_comes(
    open_app: Callable[..., App],
) -> None:
    async with open_app() as app, handed_out(app, width=8) as (store, line, queue):
        first = await accepted_by(store, make_batch(1, total=40))
        queue.wake()
        await until(lambda: line.standing[first.id] == 8)
        others = [await accepted_by(store, make_batch(number, total=5)) for number in range(2, 6)]
        queue.wake()
        await until(lambda: all(line.standing[batch.id] == 1 for batch in others))
        assert line.standing[first.id] == 4
        # Nobody gives way to somebody of whom one stands in line already.
        queue.wake()
        await asyncio.sleep(0.1)
        assert line.standing[first.id] == 4
        for batch in (first, *others):
            line.door(batch.id).set()
        await until(lambda: line.ended.total() == 60)
        assert queue.in_line == 0
    assert line.most == 8


async def test_what_is_broken_off_of_a_paused_batch_is_not_handed_out_again(
    open_app: Callable[..., App],
) -> None:
    async with open_app() as app, handed_out(app, width=2) as (store, line, queue):
        first = await accepted_by(store, make_batch(1, total=6))
        queue.wake()
        await until(lambda: line.standing[first.id] == 2)
        await store.control(first.id, Control.PAUSE, at=app.clock.now())
        other = await accepted_by(store, make_batch(2, total=2))
        line.door(other.id).set()
        queue.wake()
        await until(lambda: line.ended[other.id] == 2 and not line.standing[first.id])
        view = await app.batches.view(first.id)
        assert (view.status, view.tally.queued) == (BatchStatus.PAUSED, 6)
    assert first.id not in line.ended
