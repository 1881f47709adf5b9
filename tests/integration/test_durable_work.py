"""Batches: everything accepted ends once, in order; steered while it runs; taken over from the dead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest
from durable import accepted, items, worked_off

from imagen.assembly import App
from imagen.domain.batch import BatchStatus, ItemStatus
from imagen.domain.money import Usd
from imagen.emulator import EmulatorThread
from imagen.errors import NotFound
from imagen.service.batches import ItemEnded, Progress
from waiting import until

pytestmark = pytest.mark.anyio
PRICE = Usd(3000)


async def free_places(app: App) -> bool:
    state = await app.limits.show(app.backends.get("gateway").account, now=app.clock.now().timestamp())
    return state.running == 0


async def test_every_item_ends_once_in_its_place_and_the_ledger_balances(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    prompts = [f"a fox {number}" for number in range(40)]
    prompts[7] += " [fault:fail preset=nsfw]"
    async with open_app() as app, worked_off(app):
        batch = await accepted(app, prompts, keep=True)
        heard = [news async for news in app.batches.events(batch.id)]
        found = await items(app, batch)
        entries = await app.ledger.entries()
        view = await app.batches.view(batch.id)
        assert await free_places(app)
    assert [item.index for item in found] == list(range(40))
    assert [item.status for item in found].count(ItemStatus.SUCCEEDED) == 39
    assert found[7].status is ItemStatus.FAILED
    assert found[7].code == "prediction_failed"
    assert found[7].cost == Usd(0)
    assert all(
        item.note["output_filename"] == f"{prompt}.png" for item, prompt in zip(found, prompts, strict=True)
    )
    assert all(item.files[0].startswith("shelf:pic_") for item in found if item.index != 7)
    assert view.status is BatchStatus.PARTLY_FAILED
    assert view.tally.cost == PRICE * 39 == Usd.total(entry.cost for entry in entries if entry.cost)
    assert view.batch.quoted == PRICE * 40
    ends = [news.item for news in heard if isinstance(news, ItemEnded)]
    assert [item.sequence for item in ends] == list(range(1, 41))
    assert sorted(item.index for item in ends) == list(range(40))
    assert isinstance(heard[-1], Progress)
    assert heard[-1].view.status is BatchStatus.PARTLY_FAILED
    assert replicate_emulator.purchases == 40


async def test_events_go_on_from_where_somebody_left(open_app: Callable[..., App]) -> None:
    async with open_app() as app, worked_off(app):
        batch = await accepted(app, [f"a fox {number}" for number in range(10)])
        await app.batches.ended(batch.id)
        later = [news async for news in app.batches.events(batch.id, after=7)]
    assert [news.item.sequence for news in later if isinstance(news, ItemEnded)] == [8, 9, 10]


@pytest.mark.replicate_emulator(run_seconds=0.4)
async def test_a_paused_batch_buys_nothing_more_and_goes_on_when_it_is_resumed(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app(REPLICATE_CONCURRENT_LIMIT="2") as app, worked_off(app):
        batch = await accepted(app, [f"a fox {number}" for number in range(12)])
        await until(lambda: replicate_emulator.purchases >= 3)
        await app.batches.pause(batch.id)
        await until(lambda: app.queue.busy == 0)
        bought = replicate_emulator.purchases
        paused = await app.batches.view(batch.id)
        assert paused.status is BatchStatus.PAUSED
        assert paused.tally.running == 0
        assert paused.tally.succeeded == bought < 12
        await app.batches.resume(batch.id)
        view = await app.batches.ended(batch.id)
    assert view.status is BatchStatus.SUCCEEDED
    assert replicate_emulator.purchases == 12


@pytest.mark.replicate_emulator(run_seconds=20)
async def test_a_canceled_batch_stops_what_runs_and_buys_nothing_more(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app(REPLICATE_CONCURRENT_LIMIT="3") as app, worked_off(app):
        batch = await accepted(app, [f"a fox {number}" for number in range(9)])
        await until(lambda: replicate_emulator.purchases == 3)
        await app.batches.cancel(batch.id)
        async with asyncio.timeout(20):
            view = await app.batches.ended(batch.id)
        found = await items(app, batch)
        assert await free_places(app)
    assert view.status is BatchStatus.CANCELED
    assert {item.status for item in found} == {ItemStatus.CANCELED}
    assert replicate_emulator.purchases == 3
    assert replicate_emulator.state()["running"] == 0
    assert replicate_emulator.state()["by_status"] == {"canceled": 3}


async def test_what_failed_is_tried_again_with_a_new_purchase_and_the_rest_is_left_alone(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app, worked_off(app):
        replicate_emulator.add_fault("fail", preset="nsfw", prompt="bad", times=1)
        batch = await accepted(app, ["good", "bad"])
        first = await app.batches.ended(batch.id)
        assert first.status is BatchStatus.PARTLY_FAILED
        assert await app.batches.retry_failed(batch.id) == 1
        second = await app.batches.ended(batch.id)
        found = await items(app, batch)
        assert await app.batches.retry_failed(batch.id) == 0
    assert second.status is BatchStatus.SUCCEEDED
    assert [item.attempt for item in found] == [1, 2]
    assert second.tally.cost == PRICE * 2
    assert replicate_emulator.purchases == 3


@pytest.mark.replicate_emulator(run_seconds=1.5)
async def test_what_a_process_let_go_of_is_finished_by_the_next_without_a_second_purchase(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app(REPLICATE_CONCURRENT_LIMIT="4") as app:
        async with worked_off(app):
            batch = await accepted(app, [f"a fox {number}" for number in range(10)], keep=True)
            await until(lambda: replicate_emulator.purchases >= 4)
        left = await app.batches.view(batch.id)
        assert left.tally.running == 0
        assert left.batch.owner is None
    async with open_app(REPLICATE_CONCURRENT_LIMIT="4") as app, worked_off(app):
        view = await app.batches.ended(batch.id)
        found = await items(app, batch)
        assert await free_places(app)
    assert view.status is BatchStatus.SUCCEEDED
    assert all(item.files for item in found)
    assert replicate_emulator.purchases == 10


async def test_another_process_leaves_the_batch_of_a_living_one_alone(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as one, open_app() as other:
        batch = await accepted(one, [f"a fox {number}" for number in range(30)])
        async with worked_off(one), worked_off(other):
            view = await one.batches.ended(batch.id)
    assert view.status is BatchStatus.SUCCEEDED
    assert replicate_emulator.purchases == 30


async def test_a_batch_is_seen_by_its_maker_alone(open_app: Callable[..., App]) -> None:
    async with open_app() as app:
        batch = await accepted(app, ["a fox"])
        assert (await app.batches.view(batch.id, scope="admin")).batch.id == batch.id
        with pytest.raises(NotFound):
            await app.batches.view(batch.id, scope="key:somebody-else")


async def test_a_refused_token_pauses_the_batch_and_says_why(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app, worked_off(app):
        replicate_emulator.add_fault("status", status=401, operation="predictions.create", times=1)
        batch = await accepted(app, ["a fox"])
        views = (news.view async for news in app.batches.events(batch.id) if isinstance(news, Progress))
        view = await anext(view async for view in views if view.status is BatchStatus.PAUSED)
        assert "token" in (view.batch.reason or "")
        assert view.tally.failed == 0
        await app.batches.resume(batch.id)
        view = await app.batches.ended(batch.id)
    assert view.status is BatchStatus.SUCCEEDED
    assert replicate_emulator.purchases == 1


async def test_a_run_that_the_service_interrupted_is_bought_again_at_no_cost(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app, worked_off(app):
        replicate_emulator.add_fault("fail", preset="interrupted", times=1)
        batch = await accepted(app, ["a fox"])
        view = await app.batches.ended(batch.id)
        (item,) = await items(app, batch)
    assert view.status is BatchStatus.SUCCEEDED
    assert (item.attempt, item.cost) == (2, PRICE)
    assert replicate_emulator.purchases == 2


async def test_what_is_asked_for_once_more_may_be_interrupted_as_often_as_a_new_one(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app, worked_off(app), asyncio.timeout(40):
        replicate_emulator.add_fault("fail", preset="interrupted", times=3)
        batch = await accepted(app, ["a fox"])
        assert (await app.batches.ended(batch.id)).status is BatchStatus.FAILED
        assert replicate_emulator.purchases == 3
        replicate_emulator.add_fault("fail", preset="interrupted", times=2)
        assert await app.batches.retry_failed(batch.id) == 1
        view = await app.batches.ended(batch.id)
        (item,) = await items(app, batch)
    assert (view.status, view.tally.cost) == (BatchStatus.SUCCEEDED, PRICE)
    assert item.attempt == 6
    assert replicate_emulator.purchases == 6


@pytest.mark.parametrize("others", [True, False])
async def test_a_damaged_item_keeps_no_other_from_being_tried_again(
    open_app: Callable[..., App],
    replicate_emulator: EmulatorThread,
    caplog: pytest.LogCaptureFixture,
    *,
    others: bool,
) -> None:
    """It stays as it ended and is not counted, and what is left of it is not told."""
    async with open_app() as app:
        batch = await accepted(app, ["a fox", "a hen", "a cow"] if others else ["a hen"])
        await app.batches.cancel(batch.id)
        hen = 1 if others else 0
        broken = 'UPDATE items SET "order" = ? WHERE "index" = ?'
        await app.database.write(
            lambda connection: connection.exec_driver_sql(broken, ('{"prompt": "a broken hen"', hen))
        )
        async with worked_off(app), asyncio.timeout(20):
            before = await app.batches.ended(batch.id)
            assert before.tally.canceled == batch.total
            assert await app.batches.retry_failed(batch.id) == (2 if others else 0)
            view = await app.batches.ended(batch.id)
            assert await app.batches.retry_failed(batch.id) == 0
        found = await items(app, batch)
    assert (view.tally.succeeded, view.tally.canceled) == ((2, 1) if others else (0, 1))
    assert (found[hen].attempt, found[hen].status) == (1, ItemStatus.CANCELED)
    assert replicate_emulator.purchases == (2 if others else 0)
    assert f"item {hen} of {batch.id} is damaged" in caplog.text
    assert "broken hen" not in caplog.text


@pytest.mark.replicate_emulator(run_seconds=0.5)
async def test_the_forecast_leaves_out_the_time_in_which_nobody_worked_on_it(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    """Before it was begun, and while it was paused."""
    async with open_app(REPLICATE_CONCURRENT_LIMIT="2") as app:
        batch = await accepted(app, [f"a fox {number}" for number in range(400)])
        created = timedelta(seconds=25)
        past = (str((batch.created_at - created).replace(tzinfo=None)),)
        await app.database.write(
            lambda connection: connection.exec_driver_sql("UPDATE batches SET created_at = ?", past)
        )
        async with worked_off(app), asyncio.timeout(30):
            await until(lambda: replicate_emulator.purchases >= 8)
            late = await app.batches.view(batch.id)
            await app.batches.pause(batch.id)
            await until(lambda: app.queue.busy == 0)
            earlier = await app.batches.view(batch.id)
            await app.batches.resume(batch.id)
            unknown = await app.batches.view(batch.id)
            await until(lambda: replicate_emulator.purchases >= earlier.tally.ended + 6)
            again = await app.batches.view(batch.id)
            await app.batches.cancel(batch.id)
            await app.batches.ended(batch.id)
    assert late.tally.recent_seconds < created.total_seconds() / 2
    for view in (late, again):
        pace = view.tally.recent_seconds / view.tally.recent
        assert view.eta_seconds == pytest.approx(pace * view.tally.left)
        assert pace < 1.5
    assert (earlier.eta_seconds, unknown.eta_seconds, unknown.tally.recent) == (None, None, 0)
    assert again.tally.recent == again.tally.ended - earlier.tally.ended


@pytest.mark.parametrize("canceled", [True, False])
async def test_a_damaged_item_ends_and_is_told_of_like_the_others(
    open_app: Callable[..., App], *, canceled: bool
) -> None:
    """Whether it is canceled in the queue or worked on."""
    async with open_app() as app:
        batch = await accepted(
            app,
            ["a fox", "a hen", "a cow"],
            webhook="https://127.0.0.1:9/hook",
            webhook_events=("item", "completed"),
        )
        broken = 'UPDATE items SET "order" = \'{broken\' WHERE "index" = 1'
        await app.database.write(lambda connection: connection.exec_driver_sql(broken))
        if canceled:
            await app.batches.cancel(batch.id)
        async with worked_off(app), asyncio.timeout(20):
            await app.batches.ended(batch.id)
        told = [(one.event, one.body["data"]) for one in reversed(await app.outbox.list(limit=9))]
    assert [event for event, _ in told] == ["batch.item"] * 3 + ["batch.completed"]
    quoted = {data["index"]: data["quoted_usd"] for _, data in told[:3]}
    assert quoted == {0: 0.003, 1: None, 2: 0.003}
