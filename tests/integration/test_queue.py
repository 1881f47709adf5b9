"""The queue of one machine: no fault ends it, what is steered is left in no doubt, and what it holds costs nothing."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from durable import accepted, items, worked_off
from gateway import ADMIN, running_gateway

from fakes.batches import accepted as accepted_by
from fakes.batches import make_batch
from imagen.assembly import App
from imagen.domain.batch import Batch, BatchStatus, Control, Item, ItemStatus
from imagen.emulator import EmulatorThread
from imagen.ports import Begun, OpenWork
from imagen.queue.local import LocalQueue
from imagen.server import run as running
from imagen.store.batches import SqlBatches
from waiting import until

pytestmark = pytest.mark.anyio


def spoil(app: App, sql: str, *values: object) -> None:
    with sqlite3.connect(app.database.path) as connection:
        connection.execute(sql, values)


# --- faults --------------------------------------------------------------------------------------------------


async def test_a_damaged_item_ends_and_keeps_nobody_from_going_on(open_app: Callable[..., App]) -> None:
    async with open_app() as app:
        broken = await accepted(app, ["a fox", "a hen"])
        spoil(app, "UPDATE items SET note = '{broken' WHERE batch_id = ? AND \"index\" = 1", broken.id)
        other = await accepted(app, ["a cow"])
        async with worked_off(app), asyncio.timeout(15):
            views = [await app.batches.ended(batch.id) for batch in (broken, other)]
        found = await items(app, broken)
    assert [view.status for view in views] == [BatchStatus.SUCCEEDED] * 2
    assert [item.note for item in found] == [{"output_filename": "a fox.png"}, {}]


async def test_a_batch_of_which_nothing_can_be_claimed_keeps_no_other_waiting(
    open_app: Callable[..., App], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_app() as app:
        broken, other = await accepted(app, ["a fox"]), await accepted(app, ["a cow"])
        claim, asked = SqlBatches.claim, []

        async def claiming(store: SqlBatches, batch_id: str, **how: Any) -> Sequence[Item]:
            asked.append(batch_id)
            if batch_id == broken.id and asked.count(broken.id) == 1:
                raise RuntimeError("a fault of ours")
            return await claim(store, batch_id, **how)

        monkeypatch.setattr(SqlBatches, "claim", claiming)
        async with worked_off(app), asyncio.timeout(15):
            await app.batches.ended(other.id)
            await app.batches.ended(broken.id)  # tried again after a rest
    assert asked[0] == broken.id
    assert asked.count(broken.id) >= 2


async def test_a_batch_that_cannot_be_read_keeps_no_other_waiting(open_app: Callable[..., App]) -> None:
    async with open_app() as app:
        broken, other = await accepted(app, ["a fox"]), await accepted(app, ["a cow"])
        spoil(app, "UPDATE batches SET caller = '{broken' WHERE id = ?", broken.id)
        async with worked_off(app), asyncio.timeout(15):
            view = await app.batches.ended(other.id)
    assert view.status is BatchStatus.SUCCEEDED


async def test_a_gateway_whose_work_ended_by_a_fault_says_so_and_begins_it_again(
    tmp_path: Path, replicate_emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, goes_on, faults = LocalQueue.run, asyncio.Event(), []

    async def failing_once(queue: LocalQueue, *given: Any, **named: Any) -> None:
        if not faults:
            faults.append(queue)
            raise RuntimeError("a fault of ours")
        await goes_on.wait()
        await run(queue, *given, **named)

    monkeypatch.setattr(LocalQueue, "run", failing_once)
    monkeypatch.setattr(running, "FIRST_RESTART_SECONDS", 0.0)
    monkeypatch.setattr(running, "_HOLDS_SECONDS", 0.1)
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        await until(lambda: faults)
        refused = await gateway.request("GET", "/ready")
        goes_on.set()
        task = {"model_name": "flux-schnell", "tasks": [{"prompt": "a fox"}]}
        taken = await gateway.request("POST", "/batches", headers=ADMIN, json=task)

        async def is_ready() -> bool:
            return (await gateway.request("GET", "/ready")).status == 200

        async with asyncio.timeout(10):
            view = await gateway.app.batches.ended(taken.json()["id"])
            await until(is_ready)
    assert refused.status == 503
    assert "durable work" in refused.json()["reason"]
    assert view.status is BatchStatus.SUCCEEDED


# --- steering ------------------------------------------------------------------------------------------------


@pytest.mark.replicate_emulator(run_seconds=0.5)
@pytest.mark.parametrize("canceled_first", [True, False])
async def test_what_is_tried_again_while_it_is_being_canceled_ends(
    open_app: Callable[..., App],
    replicate_emulator: EmulatorThread,
    monkeypatch: pytest.MonkeyPatch,
    *,
    canceled_first: bool,
) -> None:
    """The batch is open again before, or just after, the queue has done what it saw of the cancelling."""
    async with open_app(REPLICATE_CONCURRENT_LIMIT="4") as app, worked_off(app):
        batch = await accepted(app, [f"a fox {number}" for number in range(12)])
        await until(lambda: replicate_emulator.purchases >= 4)
        cancel_queued, seen = SqlBatches.cancel_queued, asyncio.Event()
        retried: list[int] = []

        async def meeting(store: SqlBatches, batch_id: str, **when: Any) -> int:
            count = await cancel_queued(store, batch_id, **when) if canceled_first else 0
            retried.append(await app.batches.retry_failed(batch_id))
            count += 0 if canceled_first else await cancel_queued(store, batch_id, **when)
            seen.set()
            return count

        monkeypatch.setattr(SqlBatches, "cancel_queued", meeting)
        await app.batches.cancel(batch.id)
        async with asyncio.timeout(20):
            await seen.wait()
            view = await app.batches.ended(batch.id)
        found = await items(app, batch)
    assert view.tally.left == 0
    assert all(item.status.terminal for item in found)
    # What was tried again was not canceled once more.
    assert all(item.status is ItemStatus.SUCCEEDED for item in found if item.attempt > 1)
    assert replicate_emulator.state()["running"] == 0


@pytest.mark.replicate_emulator(run_seconds=0.6)
async def test_of_a_paused_batch_nothing_is_bought_that_stood_in_line(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app(REPLICATE_CONCURRENT_LIMIT="3") as app, worked_off(app):
        batch = await accepted(app, [f"a fox {number}" for number in range(20)])
        await until(lambda: replicate_emulator.purchases == 3)
        await app.batches.pause(batch.id)
        await until(lambda: app.queue.busy == 0)
        view = await app.batches.view(batch.id)
        assert replicate_emulator.purchases == 3
        assert (view.tally.succeeded, view.tally.running, view.tally.queued) == (3, 0, 17)
        await app.batches.resume(batch.id)
        async with asyncio.timeout(20):
            assert (await app.batches.ended(batch.id)).status is BatchStatus.SUCCEEDED
    assert replicate_emulator.purchases == 20


@pytest.mark.replicate_emulator(run_seconds=0.7)
async def test_a_batch_leaves_half_of_a_small_line_to_others(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(
        tmp_path, replicate_emulator, REPLICATE_CONCURRENT_LIMIT="1", IMAGEN_LIMITS__WAITING="4"
    ) as gateway:
        tasks = {"model_name": "flux-schnell", "tasks": [{"prompt": f"fox {number}"} for number in range(9)]}
        await gateway.request("POST", "/batches", headers=ADMIN, json=tasks)
        await until(lambda: replicate_emulator.purchases >= 2)
        answers = await asyncio.gather(*(gateway.generate(prompt=f"hen {number}") for number in range(3)))
    assert [answer.status for answer in answers] == [200] * 3


@pytest.mark.replicate_emulator(run_seconds=0.5)
async def test_whoever_waits_for_work_is_sent_away_as_soon_as_nothing_of_it_runs(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    tasks = {"model_name": "flux-schnell", "tasks": [{"prompt": f"fox {number}"} for number in range(40)]}
    async with aiohttp.ClientSession(headers=ADMIN | {"Idempotency-Key": "k"}) as session:

        async def ask(url: str) -> tuple[int, Any]:
            async with session.post(url, json=tasks) as answer:
                return answer.status, await answer.json()

        async with (
            asyncio.timeout(20),
            running_gateway(
                tmp_path, replicate_emulator, REPLICATE_CONCURRENT_LIMIT="1", IMAGEN_SERVER__DRAIN="60"
            ) as gateway,
        ):
            told = asyncio.ensure_future(ask(f"{gateway.url}/generate-batch"))
            await until(lambda: replicate_emulator.purchases >= 1)
        status, answer = await told
    assert (status, answer["code"]) == (503, "draining")
    assert replicate_emulator.purchases < 10


# --- handed over ---------------------------------------------------------------------------------------------


async def test_what_is_accepted_where_it_is_made_begins_without_being_looked_for(
    open_app: Callable[..., App], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_app() as app, worked_off(app):
        first = await accepted(app, ["a hen"])
        await app.batches.ended(first.id)

        async def never(*_: Any, **__: Any) -> Any:
            raise AssertionError("it was looked for")

        for name in ("take", "claim"):
            monkeypatch.setattr(SqlBatches, name, never)
        batch = await accepted(app, ["a fox", "a cow"])
        async with asyncio.timeout(10):
            assert (await app.batches.ended(batch.id)).status is BatchStatus.SUCCEEDED


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_what_is_accepted_during_a_look_is_worked_on_once(
    open_app: Callable[..., App],
    replicate_emulator: EmulatorThread,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    """The look has seen the database as it was before the batch came into it, or just after that."""
    taken: list[Batch] = []
    async with open_app() as app:
        open_work = SqlBatches.open_work

        async def meeting(store: SqlBatches) -> Sequence[OpenWork]:
            found = await open_work(store) if moment == "before" else None
            if not taken:
                taken.append(await accepted(app, ["a fox"]))
                await asyncio.sleep(0.05)  # its work has begun
            return await open_work(store) if found is None else found

        monkeypatch.setattr(SqlBatches, "open_work", meeting)
        async with worked_off(app), asyncio.timeout(10):
            await until(lambda: taken)
            view = await app.batches.ended(taken[0].id)
        (item,) = await items(app, taken[0])
    assert view.status is BatchStatus.SUCCEEDED
    assert item.sequence == 1
    assert replicate_emulator.purchases == 1


async def test_what_nobody_handed_over_as_its_maker_left_is_found(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept, ids = SqlBatches.accept, list[str]()

    async def left(store: SqlBatches, batch: Batch, **how: Any) -> str:
        ids.append(await accept(store, batch, **how))
        raise asyncio.CancelledError

    async with open_app() as app, worked_off(app):
        await until(lambda: app.queue._runs)
        monkeypatch.setattr(SqlBatches, "accept", left)
        with pytest.raises(asyncio.CancelledError):
            await accepted(app, ["a fox"])
        (batch_id,) = ids
        async with asyncio.timeout(10):
            assert (await app.batches.ended(batch_id)).status is BatchStatus.SUCCEEDED
    assert replicate_emulator.purchases == 1


async def test_what_is_handed_over_at_the_end_is_queued_again(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = SqlBatches.accept

    async def late(store: SqlBatches, batch: Batch, **how: Any) -> str:
        counts = await accept(store, batch, **how)
        app.queue.stop()
        return counts

    async with open_app() as app, worked_off(app):
        await until(lambda: app.queue._runs)
        monkeypatch.setattr(SqlBatches, "accept", late)
        batch = await accepted(app, ["a fox"])

        async def is_queued() -> bool:
            return (await app.batches.view(batch.id)).tally.queued == 1

        await until(is_queued)
    assert replicate_emulator.purchases == 0


# --- what it costs -------------------------------------------------------------------------------------------


class Me:
    """An owner whom nobody contends with."""

    me = "me"

    def alive(self, _: str) -> bool:
        return False


async def test_a_wake_asks_the_database_nothing_about_batches_that_have_nothing_to_do(
    open_app: Callable[..., App], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of paused ones are held by a gateway after a refused token: each wake must stay cheap."""
    asked: list[str] = []
    told: list[str] = []
    begun = asyncio.Event()

    async def work(_: Batch, __: Item, ___: Begun) -> None:
        begun.set()

    async def emptied(batch: Batch) -> None:
        told.append(batch.id)

    async with open_app() as app:
        store = SqlBatches(app.database)
        paused = [await accepted_by(store, make_batch(number, total=1)) for number in range(1, 41)]
        for batch in paused:
            await store.control(batch.id, Control.PAUSE, at=app.clock.now())
        queue = LocalQueue(
            batches=store,
            owners=Me(),
            clock=app.clock,
            width=4,
        )
        work_of_queue = asyncio.ensure_future(queue.run(work, emptied=emptied, takes=lambda _: True))
        await until(lambda: len(told) >= 40)
        for name in ("claim", "get", "take", "requeue"):
            real = getattr(SqlBatches, name)

            async def counted(*given: Any, _real: Any = real, _name: str = name, **named: Any) -> Any:
                asked.append(_name)
                return await _real(*given, **named)

            monkeypatch.setattr(SqlBatches, name, counted)
        looks, open_work = [0], SqlBatches.open_work

        async def looking(of: SqlBatches) -> Sequence[OpenWork]:
            looks[0] += 1
            return await open_work(of)

        monkeypatch.setattr(SqlBatches, "open_work", looking)
        told.clear()
        queue.wake()
        await until(lambda: looks[0] >= 2)
        assert (asked, told) == ([], [])
        await store.control(paused[7].id, Control.RUN, at=app.clock.now() + timedelta(seconds=1))
        queue.wake()
        async with asyncio.timeout(10):
            await begun.wait()
        assert asked.count("claim") <= 2
        work_of_queue.cancel()
        await asyncio.gather(work_of_queue, return_exceptions=True)
